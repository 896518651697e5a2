//! What the program asks of an upstream, asked of the daemon: the route's prefix takes the place of the upstream's own
//! path, and comes off again where the daemon names a place on the upstream.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use anyhow::Context as _;
use bytes::Bytes;
use http::header::{EXPECT, LOCATION};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::ext::on_informational;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::AbortOnDropHandle;

use super::caller::Caller;
use crate::config::{self, Upstream};
use crate::problem::{Code, Problem};
use crate::proxy::guard::is_below;

/// More than the daemon takes, so that it is the daemon that refuses.
const MOST_FIELDS: usize = 256;

/// An upstream's host, in lower case, and port.
pub(super) type Destination = (String, u16);

/// The daemon's routes.
pub(super) struct Routes(Vec<Route>);

struct Route {
    prefix: String,
    upstream: Upstream,
    /// Of the upstream, in lower case, where a certificate of our own can be for it: none is for an address.
    host: Option<String>,
}

/// A TLS connection of the program's, and the connection to the daemon that belongs to it.
pub(super) struct Visit {
    routes: Arc<Routes>,
    caller: Arc<Caller>,
    authority: Destination,
    daemon: Mutex<Option<Connection>>,
}

/// A connection to the daemon. Dropped, it is closed at once: one that is only shut down may be half-closed.
struct Connection {
    sender: SendRequest<Upload>,
    _driver: AbortOnDropHandle<()>,
}

/// A socket on which writing does not fail. A daemon that answers early closes before it has read all, and hyper gives
/// up an answer when it can't write; whether there is one, reading tells.
struct Unfailing<S>(S);

/// A request's body. One that the program holds back until it is asked for (RFC 9110, section 10.1.1) is asked for when
/// the daemon does, which may answer without it.
struct Upload {
    /// There until it is dropped.
    body: Option<Incoming>,
    held_back: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Routes {
    /// As the daemon's status document lists them; none when it does not.
    pub(super) fn of(status: &Value) -> Option<Self> {
        let route = |listed: &Value| {
            let upstream = config::upstream(listed["upstream"].as_str()?).ok()?;
            let is_named = upstream.tls && upstream.host.parse::<IpAddr>().is_err();
            let host = is_named.then(|| upstream.host.to_ascii_lowercase());
            Some(Route { prefix: listed["prefix"].as_str()?.to_owned(), host, upstream })
        };
        status["routes"].as_array()?.iter().map(route).collect::<Option<_>>().map(Self)
    }

    /// The hosts whose requests are the daemon's.
    pub(super) fn hosts(&self) -> BTreeSet<String> {
        self.0.iter().filter_map(|route| route.host.clone()).collect()
    }

    /// True when requests to that host and port are the daemon's.
    pub(super) fn lead_to(&self, authority: &Destination) -> bool {
        self.of_upstream(authority).next().is_some()
    }

    fn of_upstream(&self, (host, port): &Destination) -> impl Iterator<Item = &Route> + Clone {
        self.0.iter().filter(move |route| route.host.as_ref() == Some(host) && route.upstream.port == *port)
    }

    /// The route for what is asked of the upstream, and the target to ask the daemon for.
    fn find(&self, authority: &Destination, asked: &Uri) -> Result<(&Route, PathAndQuery), Problem> {
        let no_route = |why| Problem::new(Code::NoRoute, why);
        let bases = self.of_upstream(authority);
        let bases = bases.filter(|route| is_below(asked.path(), &route.upstream.base_path));
        let longest = bases.clone().map(|route| route.upstream.base_path.len()).max();
        let longest =
            longest.ok_or_else(|| no_route("no [[route]] has an upstream that this address is below"))?;
        let rest = &asked.path_and_query().map_or("/", PathAndQuery::as_str)[longest..];
        let mut targets = bases.filter(|route| route.upstream.base_path.len() == longest).map(|route| {
            let prefix = route.prefix.trim_end_matches('/');
            let slash = if prefix.is_empty() && !rest.starts_with('/') { "/" } else { "" };
            (route, format!("{prefix}{slash}{rest}"))
        });
        let (route, target) = targets.find(|(route, target)| self.is_chosen(route, target)).ok_or_else(|| {
            no_route("another route, or a page of the daemon's own, stands at this path: give the route a longer prefix")
        })?;
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

impl Visit {
    pub(super) fn new(routes: Arc<Routes>, caller: Arc<Caller>, authority: Destination) -> Self {
        Self { routes, caller, authority, daemon: Mutex::default() }
    }

    /// Answers the requests of the connection until it ends.
    pub(super) async fn serve(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let this = &self;
        let service = service_fn(|request| async move {
            let answer = this.answer(request).await.map(|answer| answer.map(Either::Left));
            let refused = |problem: Problem| problem.into_response().map(Full::new).map(Either::Right);
            Ok::<_, Infallible>(answer.unwrap_or_else(refused))
        });
        let mut server = http1::Builder::new();
        let server = server.max_headers(MOST_FIELDS).half_close(true);
        // The program went away, or sent what is no HTTP: nobody else is to be told.
        let _ended = server.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Result<Response<Incoming>, Problem> {
        let (route, target) = self.routes.find(&self.authority, request.uri())?;
        *request.uri_mut() = target.into();
        self.caller.address(request.headers_mut());

        let mut response = self.send(Upload::of(request)).await.map_err(|error| {
            Problem::new(Code::UpstreamUnreachable, format!("the daemon does not answer: {error:#}"))
        })?;

        if let Some(location) = response.headers_mut().get_mut(LOCATION)
            && let Some(own) = on_upstream(location.as_bytes(), route)
        {
            *location = own;
        }
        Ok(response)
    }

    /// Sends the request on the daemon's connection, or on a fresh one when that has ended before the request began.
    async fn send(&self, mut request: Request<Upload>) -> anyhow::Result<Response<Incoming>> {
        let mut daemon = self.daemon.lock().await;
        if let Some(Connection { sender, .. }) = daemon.as_mut()
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
        let stream = TokioIo::new(Unfailing(self.caller.connect().await.context("connecting")?));
        let (sender, connection) = Builder::new().max_headers(MOST_FIELDS).handshake(stream).await?;
        // When it ends by itself, the sender is told.
        let driver = tokio::spawn(async { drop(connection.await) });
        let fresh = Connection { sender, _driver: AbortOnDropHandle::new(driver) };
        Ok(daemon.insert(fresh).sender.send_request(request).await?)
    }
}

impl Upload {
    /// The request, whose body it becomes.
    fn of(mut request: Request<Incoming>) -> Request<Self> {
        let expected = request.headers().get(EXPECT).filter(|_| request.version() == Version::HTTP_11);
        if !expected.is_some_and(|what| what.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
            return request.map(|body| Self { body: Some(body), held_back: None });
        }
        let asked = CancellationToken::new();
        let held_back = Some(Box::pin(asked.clone().cancelled_owned()));
        on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                asked.cancel();
            }
        });
        request.map(|body| Self { body: Some(body), held_back })
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        if let Some(asked) = &mut self.held_back {
            ready!(asked.as_mut().poll(cx));
            self.held_back = None;
        }
        self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Upload {
    /// What the daemon did not want is read all the same: hyper closes a connection with something unread at once, and
    /// the answer may be lost with it.
    fn drop(&mut self) {
        let unread = self.body.take().filter(|body| self.held_back.is_none() && !body.is_end_stream());
        if let (Some(unread), Ok(runtime)) = (unread, Handle::try_current()) {
            runtime.spawn(drain(unread));
        }
    }
}

async fn drain(mut body: Incoming) {
    while let Some(Ok(_)) = body.frame().await {}
}

impl<S: AsyncRead + Unpin> AsyncRead for Unfailing<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unfailing<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.0).poll_write(cx, bytes));
        Poll::Ready(Ok(written.unwrap_or(bytes.len())))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
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
    HeaderValue::try_from(format!("{}{rest}", route.upstream)).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn routes(routes: &[(&str, &str)]) -> Routes {
        let listed =
            routes.iter().map(|(prefix, upstream)| json!({ "prefix": prefix, "upstream": upstream }));
        Routes::of(&json!({ "routes": listed.collect::<Vec<_>>() })).unwrap()
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
