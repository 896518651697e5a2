//! The walk of a request, from admission to the answer: [`Proxy::forward`] reads as one text.

pub mod access_log;
pub mod timer;
mod body;
pub mod guard;
mod headers;
mod replay;
pub mod upstream;
#[cfg(any(test, fuzzing))]
pub mod properties;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_MAX_AGE, CONTENT_LENGTH,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::config::{Limits, Listen};
use crate::metrics::{Counters, Metrics};
use crate::problem::{Code, Problem};
use crate::session::{NoToken, Session};
use crate::token::Token;
use access_log::Entry;
pub use body::{Body, PolledFrame};
use guard::{Admitted, Caller, Guard};
use headers::AllowedOrigin;
use replay::{Begun, CallerBody, ReplayBuffer, Upload};
use upstream::{Attempt, Client, Download, Endpoint, Message, Network};

/// How long a replay waits for the rest of a body that is still coming.
const REST_OF_BODY: Duration = Duration::from_secs(10);
const PREFLIGHT_MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// What all workers share.
pub struct ProxyState {
    /// Who is admitted; replaced as a whole when keys are re-read.
    pub guard: ArcSwap<Guard>,
    /// One for each route.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// The sessions of the routes, in the same order.
    pub sessions: Vec<Session>,
    /// Sizes and times.
    pub limits: Limits,
    /// The counters of all workers.
    pub metrics: Arc<Metrics>,
    /// Where the daemon listens, for telling people the login page's address.
    pub listening: Vec<Listen>,
}

/// One worker's forwarder.
pub struct Proxy {
    shared: Arc<ProxyState>,
    counters: Arc<Counters>,
    clients: Vec<Client>,
    by_prefix: HashMap<String, usize>,
    /// What `/` is the prefix of: all that no other is.
    root: Option<usize>,
    longest_prefix: usize,
}

/// Who wants to know of a request's body when it ends. It is dropped with the body.
pub trait BodyWatch: fmt::Debug + Send + Sync {
    /// All of it has come, and it had no trailer section.
    fn ended_plainly(&self);
}

/// Marks an answer whose upstream said how long it keeps its own connection. That was removed, and ours is not said in
/// its place, where it could be taken for the upstream's.
#[derive(Clone, Copy, Debug)]
pub struct HadKeepAlive;

/// A request's body, and what is needed to send it again.
enum Source {
    Empty,
    Whole(Bytes, Option<Box<HeaderMap>>),
    Streamed { buffer: Arc<ReplayBuffer>, progress: Arc<AtomicU64> },
}

impl Proxy {
    /// A worker's own connections and counters over what all workers share; within its runtime.
    pub fn new(shared: Arc<ProxyState>, counters: Arc<Counters>) -> Self {
        let network = Arc::new(Network::new());
        let client = |endpoint: &Arc<Endpoint>| {
            Client::new(Arc::clone(endpoint), Arc::clone(&counters), Arc::clone(&network))
        };
        let clients: Vec<_> = shared.endpoints.iter().map(client).collect();
        let by_prefix: HashMap<_, _> = clients
            .iter()
            .enumerate()
            .map(|(at, client)| (client.endpoint.route.prefix.clone(), at))
            .collect();
        let longest_prefix = by_prefix.keys().map(String::len).max().unwrap_or(0);
        let root = by_prefix.get("/").copied();
        Self { shared, counters, clients, by_prefix, root, longest_prefix }
    }

    /// Answers a request: with the upstream's answer, or with a problem. What is learnt goes into the entry.
    pub async fn forward(
        &self,
        caller: &Caller,
        request: Request<Incoming>,
        watch: Option<Box<dyn BodyWatch>>,
        entry: &mut Option<Box<Entry>>,
    ) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        let guard = self.shared.guard.load();
        match guard.admit_preflight(caller, &parts) {
            Ok(Some(origin)) => return preflight(&parts, &origin),
            Ok(None) => {}
            Err(problem) => return self.refuse(problem, None),
        }
        let admitted = match guard.admit(caller, &parts) {
            Ok(admitted) => admitted,
            Err(problem) => return self.refuse(problem, guard.origin_of(&parts.headers).as_ref()),
        };
        if let Some(entry) = entry {
            entry.admitted(admitted.key.map(|key| key.name.as_str()));
        }
        let body = CallerBody::new(body, watch, self.shared.limits.stall_timeout, Arc::clone(&self.counters));
        self.walk(&admitted, &mut parts, body, entry).await.unwrap_or_else(|problem| {
            if let Some(entry) = entry {
                entry.refused(&problem);
            }
            self.refuse(problem, admitted.origin.as_ref())
        })
    }

    async fn walk(
        &self,
        admitted: &Admitted<'_>,
        parts: &mut Parts,
        body: CallerBody,
        entry: &mut Option<Box<Entry>>,
    ) -> Result<Response<Body>, Problem> {
        let at = self.longest_prefix(parts.uri.path())?;
        let (client, session) = (&self.clients[at], &self.shared.sessions[at]);
        admitted.may_use(parts, &client.endpoint.route.name)?;

        let token = self.token(session).await?;

        let route = &client.endpoint.route;
        rebase(&mut parts.uri, &route.prefix, &route.upstream.base_path)?;
        let (upload, source) = source(parts, body, self.shared.limits.replay_buffer).await?;
        let message = Message { parts, is_chunked: upload.is_chunked() };
        if let Some(entry) = entry {
            entry.sending(&route.name);
        }

        let departure = Instant::now();
        let answer = self.send(client, &message, upload, &source, &token, departure).await;
        let took = departure.elapsed();
        if let Some(entry) = entry {
            entry.upstream_took(took);
        }
        let answer = answer?;
        self.counters.upstream_answered(took);
        let (answer, token) = if answer.status() == StatusCode::UNAUTHORIZED {
            Box::pin(self.replayed(client, session, &message, &source, token, answer)).await?
        } else {
            if answer.status().is_success() {
                session.note_accepted(&token);
            }
            (answer, token)
        };
        if let Some(entry) = entry {
            entry.answered(&answer);
        }

        Ok(self.for_caller(client, answer, &token, admitted.origin.as_ref()))
    }

    /// The route with the longest prefix of whole segments.
    fn longest_prefix(&self, path: &str) -> Result<usize, Problem> {
        let bytes = path.as_bytes();
        let ends = (1..=bytes.len().min(self.longest_prefix)).rev();
        let ends = ends.filter(|end| bytes.get(*end).is_none_or(|next| *next == b'/'));
        let mut candidates = ends.filter_map(|end| path.get(..end));
        candidates
            .find_map(|prefix| self.by_prefix.get(prefix).copied())
            .or(self.root)
            .ok_or_else(|| Problem::new(Code::NoRoute, "add a [[route]] whose prefix this path begins with"))
    }

    /// The token in use: one load. Waits only when there is none and one is on its way.
    async fn token(&self, session: &Session) -> Result<Arc<Token>, Problem> {
        session.token(self.shared.limits.token_wait).await.map_err(|reason| match reason {
            NoToken::LoginRequired => self.login_required(session.account()),
            NoToken::Unavailable { retry_after_secs } => Problem::new(
                Code::TokenUnavailable,
                "the authorization server gives no token now; it is being retried",
            )
            .retry_after(retry_after_secs),
        })
    }

    fn login_required(&self, account: &str) -> Problem {
        let url = login_url(&self.shared.listening, account);
        let detail = match &url {
            Some(url) => format!("open {url} in a browser, or run `cnblogs-proxy login {account}`"),
            None => format!("run `cnblogs-proxy login {account}`"),
        };
        let problem = Problem::new(Code::LoginRequired, detail);
        match url {
            Some(url) => problem.with_member("login_url", url),
            None => problem,
        }
    }

    /// One request up; once more, on a fresh connection, when a pooled one turns out dead and nothing can have
    /// happened twice (RFC 9110, section 9.2.2).
    async fn send(
        &self,
        client: &Client,
        message: &Message<'_>,
        upload: Upload,
        source: &Source,
        token: &Arc<Token>,
        now: Instant,
    ) -> Result<Response<Box<Download>>, Problem> {
        let (unsent, failure) = match client.send(message, upload, token, source.progress(), true, now).await
        {
            Ok(Attempt::Answered(answer)) => return Ok(answer),
            Ok(Attempt::Dead(unsent, failure)) => (unsent, failure),
            Err(failure) => return Err(failure.problem(&client.endpoint.route.name)),
        };
        let again = match unsent {
            Some(upload) => Some(upload),
            None if message.parts.method.is_idempotent() => source.again(REST_OF_BODY).await,
            None => None,
        };
        let Some(upload) = again else { return Err(failure.problem(&client.endpoint.route.name)) };

        self.counters.replayed();
        match Box::pin(client.send(message, upload, token, source.progress(), false, Instant::now())).await {
            Ok(Attempt::Answered(answer)) => Ok(answer),
            Ok(Attempt::Dead(_, failure)) | Err(failure) => Err(failure.problem(&client.endpoint.route.name)),
        }
    }

    /// A 401 says that the request was not applied (RFC 9110, section 15.5.2): the token is refreshed, once for
    /// all who saw the same, and the request is sent once more when its body can be. When the login is over, only a
    /// person can help, and the caller is told so in place of the 401.
    async fn replayed(
        &self,
        client: &Client,
        session: &Session,
        message: &Message<'_>,
        source: &Source,
        token: Arc<Token>,
        refusal: Response<Box<Download>>,
    ) -> Result<(Response<Box<Download>>, Arc<Token>), Problem> {
        let Some((newer, upload)) = self.renewed(session, source, &token).await else {
            return if session.needs_login() && !token.is_personal() {
                Err(self.login_required(session.account()))
            } else {
                Ok((refusal, token))
            };
        };
        drop(refusal);
        self.counters.replayed();
        let answer = self.send(client, message, upload, source, &newer, Instant::now()).await?;
        match answer.status() {
            StatusCode::UNAUTHORIZED => session.report_rejected(&newer),
            _ => session.report_cured(&newer),
        }
        Ok((answer, newer))
    }

    /// What a request needs to be sent once more, when it is there within `token_wait`: a newer token, and the body.
    /// The refresh begins at once, whether or not the body comes.
    async fn renewed(
        &self,
        session: &Session,
        source: &Source,
        refused: &Token,
    ) -> Option<(Arc<Token>, Upload)> {
        if refused.is_last() {
            session.report_rejected(refused);
            return None;
        }
        let patience = self.shared.limits.token_wait;
        let newer = async { session.refreshed_since(refused, patience).await.ok_or(()) };
        let upload = async { source.again(patience.min(REST_OF_BODY)).await.ok_or(()) };
        tokio::try_join!(newer, upload).ok()
    }

    fn for_caller(
        &self,
        client: &Client,
        answer: Response<Box<Download>>,
        token: &Token,
        origin: Option<&AllowedOrigin>,
    ) -> Response<Body> {
        let route = &client.endpoint.route;
        let (mut parts, body) = answer.into_parts();
        let has_keep_alive = parts.headers.contains_key("keep-alive");
        headers::for_caller(&mut parts.headers, &route.prefix, &route.upstream, token, origin);
        parts.extensions.clear();
        if has_keep_alive {
            parts.extensions.insert(HadKeepAlive);
        }
        parts.version = http::Version::HTTP_11;
        Response::from_parts(parts, Body::upstream(body))
    }

    fn refuse(&self, problem: Problem, origin: Option<&AllowedOrigin>) -> Response<Body> {
        if problem.code().status().is_client_error() {
            self.counters.refused();
        }
        let mut response = problem.into_response().map(Body::from);
        if let Some(origin) = origin {
            headers::allow(response.headers_mut(), origin);
        }
        response
    }
}

/// The login page's address, for a person with a browser; none when only unix sockets are listened on.
pub fn login_url(listening: &[Listen], account: &str) -> Option<String> {
    let address = listening.iter().find_map(|listen| match listen {
        Listen::Tcp(address) => Some(address),
        Listen::Unix(_) => None,
    })?;
    let host = match address.ip() {
        ip if ip.is_unspecified() => format!("localhost:{}", address.port()),
        _ => address.to_string(),
    };
    Some(format!("http://{host}/-/login/{account}"))
}

impl Source {
    /// The body once more, when all of it is known within `patience`.
    async fn again(&self, patience: Duration) -> Option<Upload> {
        match self {
            Self::Empty => Some(Upload::Empty),
            Self::Whole(bytes, trailers) => Some(Upload::Whole(Some(bytes.clone()), trailers.clone())),
            Self::Streamed { buffer, .. } => buffer.whole(patience).await,
        }
    }

    /// What was sent of a streamed body.
    fn progress(&self) -> Option<&AtomicU64> {
        match self {
            Self::Streamed { progress, .. } => Some(progress),
            _ => None,
        }
    }
}

/// The request's body: none, small (read as a whole, so that it can be sent again, and with its length), or a stream
/// with a bounded copy.
async fn source(parts: &mut Parts, mut body: CallerBody, small: usize) -> Result<(Upload, Source), Problem> {
    if body.is_end_stream() {
        return Ok((Upload::Empty, Source::Empty));
    }
    // Only a chunked body has no length.
    let length = body.length();
    let mut begun = Begun::default();
    let filled = match length {
        None => begun.fill_soon(&mut body, small).await,
        Some(length) if length <= small as u64 => begun.fill(&mut body, small).await,
        Some(_) => Ok(()),
    };
    filled.map_err(|error| error.problem())?;
    if !begun.is_whole() {
        let (upload, buffer, progress) = Upload::stream(begun, body, small);
        return Ok((upload, Source::Streamed { buffer, progress }));
    }
    let (bytes, trailers) = begun.into_whole();
    if length.is_none() && trailers.is_none() {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    }
    Ok((Upload::Whole(Some(bytes.clone()), trailers.clone()), Source::Whole(bytes, trailers)))
}

/// The caller's path and query, byte for byte, with the route's prefix taken off and the upstream's own path
/// put in front. Scheme and authority are the endpoint's constants, and no part of this.
fn rebase(uri: &mut Uri, prefix: &str, base_path: &str) -> Result<(), Problem> {
    if prefix == "/" && base_path.is_empty() && uri.authority().is_none() {
        return Ok(());
    }
    let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let rest = if prefix == "/" { target } else { &target[prefix.len()..] };
    let slash = if base_path.is_empty() && !rest.starts_with('/') { "/" } else { "" };
    let rebased = Bytes::from(format!("{base_path}{slash}{rest}"));
    *uri = PathAndQuery::from_maybe_shared(rebased)
        .map(Uri::from)
        .map_err(|_too_long| Problem::new(Code::TargetTooLong, "the request target is too long"))?;
    Ok(())
}

/// Answers a CORS preflight of an allowed page (Fetch, section 4.8), without asking the upstream.
fn preflight(parts: &Parts, origin: &AllowedOrigin) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let fields = response.headers_mut();
    headers::allow(fields, origin);
    fields.insert(ACCESS_CONTROL_MAX_AGE, PREFLIGHT_MAX_AGE);
    if let Some(method) = parts.headers.get(http::header::ACCESS_CONTROL_REQUEST_METHOD) {
        fields.insert(ACCESS_CONTROL_ALLOW_METHODS, method.clone());
    }
    if let Some(names) = parts.headers.get(http::header::ACCESS_CONTROL_REQUEST_HEADERS) {
        fields.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_goes_up_byte_for_byte() {
        let cases = [
            (
                "/api/a%2fb/c%2Ed?x=%e4%bd%a0&y=a+b&z='(!*)'",
                "/",
                "",
                "/api/a%2fb/c%2Ed?x=%e4%bd%a0&y=a+b&z='(!*)'",
            ),
            ("/api/x?", "/", "", "/api/x?"),
            ("//evil.example/x", "/", "", "//evil.example/x"),
            ("/a/%2e%2e/b", "/", "", "/a/%2e%2e/b"),
            ("/statuses//1/comments", "/", "", "/statuses//1/comments"),
            ("/write/posts?a", "/write", "/api", "/api/posts?a"),
            ("/write", "/write", "/api", "/api"),
            ("/write?a", "/write", "", "/?a"),
            ("/write//x", "/write", "", "//x"),
            ("/x", "/", "/api", "/api/x"),
        ];
        for (target, prefix, base, expected) in cases {
            let mut rebased: Uri = target.parse().unwrap();
            rebase(&mut rebased, prefix, base).unwrap();
            assert_eq!(rebased.to_string(), expected, "{target}");
            assert_eq!((rebased.scheme(), rebased.authority()), (None, None), "{target}");
        }
    }

    #[test]
    fn the_login_page_is_at_the_first_address_that_a_browser_can_open() {
        let tcp = |address: &str| Listen::Tcp(address.parse().unwrap());
        let unix = || Listen::Unix("/run/proxy.sock".into());
        for (listening, expected) in [
            (vec![tcp("127.0.0.1:1")], Some("http://127.0.0.1:1/-/login/main")),
            (vec![tcp("[::1]:1")], Some("http://[::1]:1/-/login/main")),
            (vec![tcp("0.0.0.0:1")], Some("http://localhost:1/-/login/main")),
            (vec![tcp("[::]:1")], Some("http://localhost:1/-/login/main")),
            (vec![unix(), tcp("127.0.0.1:1"), tcp("127.0.0.1:2")], Some("http://127.0.0.1:1/-/login/main")),
            (vec![unix()], None),
            (vec![], None),
        ] {
            assert_eq!(login_url(&listening, "main").as_deref(), expected, "{listening:?}");
        }
    }
}
