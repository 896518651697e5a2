//! What the program asks of an upstream, asked of the daemon: the route's prefix takes the place of the upstream's own
//! path, and comes off again where the daemon names a place on the upstream.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, LOCATION, PROXY_AUTHORIZATION};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;

use super::is_interceptable;
use crate::config::{Listen, Route};
use crate::problem::{Code, Problem};
use crate::proxy::guard::is_below;

/// More than the daemon takes, so that it is the daemon that refuses.
const MOST_FIELDS: usize = 256;

type Body = Either<Incoming, Full<Bytes>>;

/// An upstream's host, in lower case, and port.
pub(super) type Destination = (String, u16);

/// The routes of the configuration.
pub(super) struct Routes(Vec<Route>);

/// How the daemon is reached, and what it wants to be told.
pub(super) struct Way {
    listen: Listen,
    host: HeaderValue,
    key: Option<HeaderValue>,
}

/// A TLS connection of the program's, and the connection to the daemon that belongs to it.
pub(super) struct Visit {
    pub(super) routes: Arc<Routes>,
    pub(super) way: Arc<Way>,
    pub(super) authority: Destination,
    pub(super) daemon: Mutex<Option<SendRequest<Incoming>>>,
}

impl Routes {
    pub(super) const fn new(routes: Vec<Route>) -> Self {
        Self(routes)
    }

    /// True when requests to that host and port are the daemon's.
    pub(super) fn lead_to(&self, authority: &Destination) -> bool {
        self.0.iter().any(|route| is_for(route, authority))
    }

    /// The route for what is asked of the upstream, and the target to ask the daemon for.
    fn find(&self, authority: &Destination, asked: &Uri) -> Result<(&Route, PathAndQuery), Problem> {
        let path = asked.path();
        let bases = self.0.iter().filter(|route| is_for(route, authority));
        let bases = bases.filter(|route| is_below(path, &route.upstream.base_path));
        let Some(longest) = bases.clone().map(|route| route.upstream.base_path.len()).max() else {
            return Err(Problem::new(
                Code::NoRoute,
                "no [[route]] has an upstream that this address is below",
            ));
        };
        let rest = &asked.path_and_query().map_or("/", PathAndQuery::as_str)[longest..];
        let candidates = bases.filter(|route| route.upstream.base_path.len() == longest);
        let mut targets = candidates.map(|route| {
            let prefix = route.prefix.trim_end_matches('/');
            let slash = if prefix.is_empty() && !rest.starts_with('/') { "/" } else { "" };
            (route, format!("{prefix}{slash}{rest}"))
        });
        let Some((route, target)) = targets.find(|(route, target)| self.is_chosen(route, target)) else {
            return Err(Problem::new(
                Code::NoRoute,
                "another route, or a page of the daemon's own, stands at this path: give the route a longer prefix",
            ));
        };
        let target = PathAndQuery::from_maybe_shared(Bytes::from(target))
            .map_err(|_too_long| Problem::new(Code::TargetTooLong, "the request target is too long"))?;
        Ok((route, target))
    }

    /// True when the daemon takes that route for the target: the one with the longest prefix. Anything else would send
    /// a request to another upstream than the program means.
    fn is_chosen(&self, route: &Route, target: &str) -> bool {
        let path = target.split('?').next().unwrap_or_default();
        let reaching = self.0.iter().filter(|route| is_below(path, &route.prefix));
        let chosen = reaching.max_by_key(|route| route.prefix.len());
        chosen.is_some_and(|chosen| chosen.prefix == route.prefix) && !path.starts_with("/-/")
    }
}

fn is_for(route: &Route, (host, port): &Destination) -> bool {
    let upstream = &route.upstream;
    is_interceptable(upstream) && upstream.port == *port && upstream.host.eq_ignore_ascii_case(host)
}

impl Way {
    pub(super) fn new(listen: Listen, key: Option<HeaderValue>) -> Self {
        let host = match &listen {
            Listen::Tcp(address) => format!("localhost:{}", address.port()),
            Listen::Unix(_) => "localhost".to_owned(),
        };
        Self { listen, host: HeaderValue::try_from(host).expect("a name and a number"), key }
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Incoming>> {
        match &self.listen {
            Listen::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                handshake(stream).await
            }
            Listen::Unix(path) => handshake(UnixStream::connect(path).await?).await,
        }
    }

    /// The fields of a request that the daemon is to see. Of credentials, only the key: the program's own
    /// `Authorization` is for the upstream, and would be taken for a key.
    fn address(&self, fields: &mut HeaderMap) {
        fields.remove(AUTHORIZATION);
        fields.remove(PROXY_AUTHORIZATION);
        fields.insert(HOST, self.host.clone());
        if let Some(key) = &self.key {
            fields.insert(PROXY_AUTHORIZATION, key.clone());
        }
    }
}

async fn handshake<S>(stream: S) -> anyhow::Result<SendRequest<Incoming>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) =
        Builder::new().max_headers(MOST_FIELDS).handshake(TokioIo::new(stream)).await?;
    // Ends with the sender, or with the daemon; the sender is told.
    tokio::spawn(connection);
    Ok(sender)
}

impl Visit {
    /// Answers the requests of the connection until it ends.
    pub(super) async fn serve(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let this = &self;
        let service = service_fn(|request| async move {
            let answer = this.answer(request).await;
            Ok::<_, Infallible>(
                answer.unwrap_or_else(|problem| problem.into_response().map(Full::new).map(Either::Right)),
            )
        });
        let mut server = http1::Builder::new();
        // The program went away, or sent what is no HTTP: nobody else is to be told.
        let _ended = server.max_headers(MOST_FIELDS).serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Problem> {
        let (route, target) = self.routes.find(&self.authority, request.uri())?;
        *request.uri_mut() = target.into();
        self.way.address(request.headers_mut());

        let mut response = self.send(request).await.map_err(|error| {
            Problem::new(Code::UpstreamUnreachable, format!("the daemon does not answer: {error:#}"))
        })?;

        if let Some(location) = response.headers_mut().get_mut(LOCATION)
            && let Some(own) = on_upstream(location.as_bytes(), route)
        {
            *location = own;
        }
        Ok(response.map(Either::Left))
    }

    /// Sends the request on the daemon's connection, or on a fresh one when that has ended before the request began.
    async fn send(&self, mut request: Request<Incoming>) -> anyhow::Result<Response<Incoming>> {
        let mut daemon = self.daemon.lock().await;
        if let Some(sender) = daemon.as_mut()
            && sender.ready().await.is_ok()
        {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().into()),
                },
            }
        }
        let fresh = daemon.insert(self.way.connect().await.context("connecting")?);
        Ok(fresh.send_request(request).await?)
    }
}

/// A place on the upstream, as the program knows it; none when it is another place.
fn on_upstream(location: &[u8], route: &Route) -> Option<HeaderValue> {
    let path = std::str::from_utf8(location).ok()?;
    let prefix = route.prefix.trim_end_matches('/');
    let rest = path.strip_prefix(prefix)?;
    let names_a_host = path.starts_with("//") || path.starts_with("/\\") || path.starts_with("/\t");
    if !path.starts_with('/') || names_a_host {
        return None;
    }
    let upstream = &route.upstream;
    HeaderValue::try_from(format!("{}{}{rest}", upstream.origin(), upstream.base_path)).ok()
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;
    use crate::config::Upstream;

    fn routes(routes: &[(&str, &str)]) -> Routes {
        let route = |(prefix, upstream): &(&str, &str)| Route {
            prefix: (*prefix).to_owned(),
            name: (*prefix).to_owned(),
            upstream: Upstream::of(&Url::parse(upstream).unwrap()).unwrap(),
            account: "main".to_owned(),
            proxy: None,
            ca: None,
        };
        Routes(routes.iter().map(route).collect())
    }

    #[track_caller]
    fn check(routes: &Routes, host: &str, port: u16, asked: &str, expected: Option<&str>) {
        let found = routes.find(&(host.to_owned(), port), &asked.parse().unwrap());
        assert_eq!(found.ok().map(|(_, target)| target.to_string()).as_deref(), expected, "{host} {asked}");
    }

    #[test]
    fn the_base_path_decides_between_routes_of_one_host_and_the_prefix_takes_its_place() {
        let routes = routes(&[
            ("/", "https://api.example"),
            ("/b", "https://api.example/blog"),
            ("/w", "https://write.example:8443/api"),
            ("/plain", "http://127.0.0.1:80"),
        ]);
        for (host, port, asked, expected) in [
            ("api.example", 443, "/api/users?x=%2f", Some("/api/users?x=%2f")),
            ("api.example", 443, "//two", Some("//two")),
            ("api.example", 443, "/blog/1", Some("/b/1")),
            ("api.example", 443, "/blog?q", Some("/b?q")),
            ("api.example", 443, "/blogs", Some("/blogs")),
            ("write.example", 8443, "/api/posts", Some("/w/posts")),
            ("write.example", 8443, "/elsewhere", None),
            ("write.example", 443, "/api/posts", None),
        ] {
            check(&routes, host, port, asked, expected);
        }
        assert!(!routes.lead_to(&("127.0.0.1".to_owned(), 80)));
    }

    #[test]
    fn what_the_daemon_would_send_elsewhere_is_refused() {
        let routes = routes(&[("/", "https://api.example"), ("/w", "https://write.example")]);

        for hidden in ["/w", "/w/posts", "/w?x", "/-/status", "/-/logout/main"] {
            check(&routes, "api.example", 443, hidden, None);
        }
        check(&routes, "api.example", 443, "/words", Some("/words"));
    }

    #[test]
    fn a_place_on_the_upstream_is_named_as_the_program_knows_it() {
        for (prefix, upstream, location, expected) in [
            ("/", "https://api.example", "/a?b#c", Some("https://api.example/a?b#c")),
            ("/w", "https://api.example:8443/base", "/w/a", Some("https://api.example:8443/base/a")),
            ("/w", "https://api.example/base", "/w", Some("https://api.example/base")),
            ("/", "https://api.example", "//evil.example/a", None),
            ("/", "https://api.example", "/\\evil.example", None),
            ("/", "https://api.example", "https://evil.example/a", None),
            ("/", "https://api.example", "relative", None),
        ] {
            let routes = routes(&[(prefix, upstream)]);
            let got = on_upstream(location.as_bytes(), &routes.0[0]);
            assert_eq!(got.as_ref().map(|value| value.to_str().unwrap()), expected, "{location}");
        }
    }
}
