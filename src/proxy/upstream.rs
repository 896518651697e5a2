//! The way to one upstream: connections that are made when needed, verified, kept in a pool of this worker, and
//! driven beside the requests that use them.

mod connection;
mod pool;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tower::Service as _;

use super::alarm::Alarm;
use super::headers;
use super::replay::Upload;
use crate::config::{HttpVersion, Limits, Listen, Route};
use crate::metrics::Counters;
use crate::notify::with_causes;
use crate::problem::{Code, Problem};
use crate::tls::{self, TlsError, TlsStream};
use crate::token::Token;
use connection::{Connection, Driver, LONGEST_USE, Wire};
use pool::Pool;

/// A body that brings nothing for that long has stalled.
const STALL: Duration = Duration::from_secs(60);
/// Without an acknowledgement for that long a connection is dead.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(8);
/// The same for connections that carry streamed bodies: the kernel takes a peer that has no room for more for one
/// that acknowledges nothing, and it is ours to say when a body has stalled.
const UPLOAD_ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(90);
/// What is read of an answer at a time: each read and each write may wake somebody on another core; larger buffers
/// don't stay in the processor's caches.
const ANSWER_BUFFER: usize = 160 * 1024;
/// How often it is looked whether a body makes progress, in the time that an answer may take.
const LOOKS: u32 = 8;
/// How often it is looked after idle connections.
const TIDY_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What all workers share of an upstream.
pub struct Endpoint {
    pub(super) route: Route,
    pub(super) host: HeaderValue,
    uri: Uri,
    server_name: Option<ServerName<'static>>,
    tls: ArcSwapOption<rustls::ClientConfig>,
    limits: Limits,
    listening: Vec<Listen>,
}

/// One worker's connections to an upstream.
pub(super) struct Client {
    pub(super) endpoint: Arc<Endpoint>,
    counters: Arc<Counters>,
    connector: HttpConnector,
    idle: Arc<Pool>,
    idle_for_uploads: Arc<Pool>,
    http2: Mutex<Option<Http2>>,
}

/// The connection that all requests share.
struct Http2 {
    sender: http2::SendRequest<Upload>,
    made_at: Instant,
}

/// Why there is no answer that could be passed on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("connecting")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("connecting took too long")]
    ConnectTimeout,
    #[error("the upstream's address is this proxy's own")]
    Loop,
    #[error("TLS")]
    Tls(#[source] std::io::Error),
    #[error("the upstream speaks no HTTP/2")]
    NoHttp2,
    #[error("HTTP")]
    Http(#[source] hyper::Error),
    #[error("no answer in time")]
    ResponseTimeout,
    #[error("an answer that can't be passed on")]
    Unsuitable,
}

/// What became of one try.
pub(super) enum Tried {
    /// An answer's head.
    Answered(Response<Box<Download>>),
    /// A pooled connection turned out dead before any byte of an answer. The request comes back when nothing
    /// of it had been sent.
    Dead(Option<Box<Request<Upload>>>, Failure),
}

/// An answer's body on its way down.
pub(super) struct Download {
    incoming: Incoming,
    token: Arc<Token>,
    carrier: Carrier,
    /// Since when nothing comes.
    stalls_since: Option<Instant>,
    broken: Option<hyper::Error>,
}

/// Where an answer's body comes from.
enum Carrier {
    /// A connection of its own, which goes back to the pool.
    Http1(Connection, Arc<Pool>),
    /// A connection that others use, too.
    Http2(Alarm),
    /// All of it has come.
    Done,
}

/// How long an answer is waited for: the time starts anew while the caller's body makes progress.
struct Patience<'a> {
    lasts: Duration,
    look_every: Duration,
    look_at: Instant,
    progress: Option<&'a AtomicU64>,
    seen: u64,
    grew_at: Instant,
}

/// Why an answer's body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Nothing came for 60 s.
    #[error("the upstream's answer stalled")]
    Stalled,
    /// It broke off.
    #[error("the upstream's answer broke off")]
    Broken(#[source] hyper::Error),
}

impl Endpoint {
    /// Prepares a route's upstream, which must not be at an address that we listen on ourselves.
    ///
    /// # Errors
    /// When its TLS set-up is not usable.
    pub fn new(route: &Route, limits: Limits, listening: Vec<Listen>) -> Result<Self, TlsError> {
        let upstream = &route.upstream;
        let server_name = upstream
            .tls
            .then(|| ServerName::try_from(upstream.host.clone()).expect("a URL's host is a server name"));
        let endpoint = Self {
            route: route.clone(),
            host: HeaderValue::from_str(&upstream.authority).expect("a URL's authority is a field value"),
            uri: upstream.origin().parse().expect("an origin is a URI"),
            server_name,
            tls: ArcSwapOption::empty(),
            limits,
            listening,
        };
        endpoint.trust(route)?;
        Ok(endpoint)
    }

    /// The prefix of its route.
    pub fn prefix(&self) -> &str {
        &self.route.prefix
    }

    /// True when a connection ends at one of our own listeners: a request on it would go round in circles.
    fn is_at_our_own(&self, tcp: &TcpStream) -> bool {
        let (Ok(peer), Ok(own)) = (tcp.peer_addr(), tcp.local_addr()) else { return false };
        let is_here = peer.ip().to_canonical().is_loopback() || peer.ip() == own.ip();
        self.listening.iter().any(|listen| match listen {
            Listen::Tcp(address) if address.ip().is_unspecified() => address.port() == peer.port() && is_here,
            Listen::Tcp(address) => *address == peer,
            Listen::Unix(_) => false,
        })
    }

    /// Takes over re-read CA certificates for new connections.
    ///
    /// # Errors
    /// When they can't serve as roots.
    pub fn trust(&self, route: &Route) -> Result<(), TlsError> {
        if self.server_name.is_some() {
            let extra = route.ca.as_ref().map(|ca| ca.certificates.as_slice()).unwrap_or_default();
            let protocol = if route.http == HttpVersion::Http2 { "h2" } else { "http/1.1" };
            self.tls.store(Some(Arc::new(tls::client(extra, &[protocol])?)));
        }
        Ok(())
    }
}

impl Client {
    pub(super) fn new(endpoint: Arc<Endpoint>, counters: Arc<Counters>) -> Self {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(Duration::from_secs(10)));
        connector.set_keepalive_retries(Some(3));
        Self {
            endpoint,
            counters,
            connector,
            idle: Arc::default(),
            idle_for_uploads: Arc::default(),
            http2: Mutex::new(None),
        }
    }

    /// Sends a request and waits for the head of its answer. `progress` counts what was sent of a streamed
    /// body: the time for the answer starts when it stops growing.
    pub(super) async fn send(
        &self,
        request: Request<Upload>,
        token: &Arc<Token>,
        progress: Option<&AtomicU64>,
        may_reuse: bool,
        now: Instant,
    ) -> Result<Tried, Failure> {
        if self.endpoint.route.http == HttpVersion::Http2 {
            return Box::pin(self.send_http2(request, token, progress, may_reuse)).await;
        }
        let is_upload = progress.is_some();
        let pool = if is_upload { &self.idle_for_uploads } else { &self.idle };
        let (mut connection, is_reused) = match pool.take(now).filter(|_| may_reuse) {
            Some(connection) => (connection, true),
            None => (Box::pin(self.connect_http1(is_upload)).await?, false),
        };
        let mut answer = std::pin::pin!(connection.send(request));
        let mut patience = Patience::new(now, self.endpoint.limits.response_timeout, progress);
        let answered = poll_fn(|cx| {
            let answered = connection.poll_beside(cx, |cx| answer.as_mut().poll(cx));
            if answered.is_pending() && patience.poll(&mut connection.alarm, cx).is_ready() {
                return Poll::Ready(None);
            }
            answered.map(Some)
        });
        match answered.await {
            Some(Ok(answer)) => {
                let carrier = Carrier::Http1(connection, Arc::clone(pool));
                Ok(Tried::Answered(passable(answer, token, carrier)?))
            }
            Some(Err(error)) => {
                let tried = judged(error, is_reused, false);
                if matches!(&tried, Ok(Tried::Dead(_, failure)) if failure.is_silence()) {
                    self.idle.clear();
                    self.idle_for_uploads.clear();
                }
                tried
            }
            None => {
                // A body that nobody takes would hold it, and the caller, until the kernel gives it up.
                connection.cut();
                Err(Failure::ResponseTimeout)
            }
        }
    }

    async fn send_http2(
        &self,
        mut request: Request<Upload>,
        token: &Arc<Token>,
        progress: Option<&AtomicU64>,
        may_reuse: bool,
    ) -> Result<Tried, Failure> {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = self.endpoint.uri.scheme().cloned();
        parts.authority = self.endpoint.uri.authority().cloned();
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_impossible| Failure::Unsuitable)?;
        request.headers_mut().remove(http::header::HOST);
        request.headers_mut().remove(http::header::TRANSFER_ENCODING);

        let (mut sender, is_reused) = self.http2_sender(may_reuse).await?;
        let mut answer = std::pin::pin!(sender.try_send_request(request));
        let mut patience = Patience::new(Instant::now(), self.endpoint.limits.response_timeout, progress);
        let mut alarm = Alarm::default();
        let answered = poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Pending => patience.poll(&mut alarm, cx).map(|()| None),
            answered => answered.map(Some),
        });
        match answered.await.ok_or(Failure::ResponseTimeout)? {
            Ok(answer) => Ok(Tried::Answered(passable(answer, token, Carrier::Http2(alarm))?)),
            Err(error) => judged(error, is_reused, sender.is_closed()),
        }
    }

    /// The connection that all requests share, and whether it was there before.
    async fn http2_sender(&self, may_reuse: bool) -> Result<(http2::SendRequest<Upload>, bool), Failure> {
        let kept = self.http2.lock().expect("no thread panics while it holds a sender").take();
        let is_good =
            |kept: &Http2| may_reuse && !kept.sender.is_closed() && kept.made_at.elapsed() < LONGEST_USE;
        let (connection, is_reused) = match kept.filter(is_good) {
            Some(kept) => (kept, true),
            None => (self.connect_http2().await?, false),
        };
        let sender = connection.sender.clone();
        *self.http2.lock().expect("no thread panics while it holds a sender") = Some(connection);
        Ok((sender, is_reused))
    }

    async fn connect_http1(&self, is_for_uploads: bool) -> Result<Connection, Failure> {
        let acknowledged_within =
            if is_for_uploads { UPLOAD_ACKNOWLEDGED_WITHIN } else { ACKNOWLEDGED_WITHIN };
        let connecting = async {
            let tcp = self.connect_tcp(acknowledged_within).await?;
            let mut http = http1::Builder::new();
            // What is not streamed is small: one piece costs less than several.
            http.writev(is_for_uploads).max_buf_size(ANSWER_BUFFER);
            match self.connect_tls(tcp).await? {
                Stream::Plain(tcp) => self.connection_over(tcp, &http, is_for_uploads).await,
                Stream::Tls(tls) => self.connection_over(tls, &http, is_for_uploads).await,
            }
        };
        timeout(self.endpoint.limits.connect_timeout, connecting)
            .await
            .map_err(|_elapsed| Failure::ConnectTimeout)?
    }

    async fn connection_over<T>(
        &self,
        stream: T,
        http: &http1::Builder,
        is_for_uploads: bool,
    ) -> Result<Connection, Failure>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, http) = http.handshake(TokioIo::new(stream)).await.map_err(Failure::Http)?;
        Ok(Connection::new(sender, driver(http, is_for_uploads), self.counters.upstream()))
    }

    async fn connect_http2(&self) -> Result<Http2, Failure> {
        let connecting = async {
            let tcp = self.connect_tcp(ACKNOWLEDGED_WITHIN).await?;
            let Stream::Tls(tls) = self.connect_tls(tcp).await? else { return Err(Failure::NoHttp2) };
            if tls.alpn_protocol() != Some(b"h2") {
                return Err(Failure::NoHttp2);
            }
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(KEEPALIVE)
                .adaptive_window(true)
                .handshake(TokioIo::new(tls))
                .await
                .map_err(Failure::Http)?;
            let open = self.counters.upstream();
            drive(async move {
                let ended = connection.await;
                drop(open);
                ended
            });
            Ok(Http2 { sender, made_at: Instant::now() })
        };
        timeout(self.endpoint.limits.connect_timeout, connecting)
            .await
            .map_err(|_elapsed| Failure::ConnectTimeout)?
    }

    async fn connect_tcp(&self, acknowledged_within: Duration) -> Result<TcpStream, Failure> {
        let connected = self.connector.clone().call(self.endpoint.uri.clone()).await;
        let tcp = connected.map_err(|error| Failure::Connect(error.into()))?.into_inner();
        if self.endpoint.is_at_our_own(&tcp) {
            return Err(Failure::Loop);
        }
        // Not every kernel takes it; a dead connection is then noticed later.
        let _taken = SockRef::from(&tcp).set_tcp_user_timeout(Some(acknowledged_within));
        Ok(tcp)
    }

    async fn connect_tls(&self, tcp: TcpStream) -> Result<Stream, Failure> {
        let (Some(name), Some(config)) = (&self.endpoint.server_name, self.endpoint.tls.load_full()) else {
            return Ok(Stream::Plain(tcp));
        };
        let tls = TlsStream::connect(config, name.clone(), tcp).await.map_err(Failure::Tls)?;
        Ok(Stream::Tls(Box::new(tls)))
    }
}

/// Tells a pooled connection that was dead from everything else that can go wrong.
fn judged(
    mut error: TrySendError<Request<Upload>>,
    is_reused: bool,
    is_closed: bool,
) -> Result<Tried, Failure> {
    let unsent = error.take_message();
    let failure = Failure::Http(error.into_error());
    let is_dead = is_reused && (unsent.is_some() || is_closed || failure.is_dead_connection());
    if is_dead || failure.is_untaken() {
        Ok(Tried::Dead(unsent.map(Box::new), failure))
    } else {
        Err(failure)
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Bodies that are streamed up go on while the caller reads nothing of the answer.
fn driver(http: impl Future<Output = hyper::Result<()>> + Send + 'static, is_for_uploads: bool) -> Driver {
    if is_for_uploads { Driver::Task(drive(http)) } else { Driver::User(Wire::new(http)) }
}

/// A connection lives beside the requests that use it, on the same thread.
fn drive(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) -> AbortHandle {
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the upstream ended");
        }
    });
    driver.abort_handle()
}

/// Looks after idle connections while there are any.
async fn tidy(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(TIDY_EVERY).await;
        let Some(pool) = pool.upgrade() else { return };
        if !pool.tidy(Instant::now()) {
            return;
        }
    }
}

/// We offer no upgrade, so nobody can accept one.
fn passable(
    answer: Response<Incoming>,
    token: &Arc<Token>,
    carrier: Carrier,
) -> Result<Response<Box<Download>>, Failure> {
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Failure::Unsuitable);
    }
    Ok(answer.map(|incoming| {
        let is_over = incoming.is_end_stream();
        let mut download = Box::new(Download {
            incoming,
            token: Arc::clone(token),
            carrier,
            stalls_since: None,
            broken: None,
        });
        if is_over {
            download.end();
        }
        download
    }))
}

impl<'a> Patience<'a> {
    fn new(now: Instant, lasts: Duration, progress: Option<&'a AtomicU64>) -> Self {
        let look_every = if progress.is_some() { lasts / LOOKS } else { lasts };
        Self { lasts, look_every, look_at: now + look_every, progress, seen: 0, grew_at: now }
    }

    /// Ready when it is over.
    fn poll(&mut self, alarm: &mut Alarm, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(alarm.poll(self.look_at, cx));
            let (now, sent) = (Instant::now(), self.progress.map_or(0, |sent| sent.load(Ordering::Relaxed)));
            if sent != self.seen {
                (self.seen, self.grew_at) = (sent, now);
            } else if now.saturating_duration_since(self.grew_at) >= self.lasts {
                return Poll::Ready(());
            }
            self.look_at = now + self.look_every;
        }
    }
}

impl Failure {
    /// The connection ended before any byte of an answer.
    fn is_dead_connection(&self) -> bool {
        let Self::Http(error) = self else { return false };
        let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
        error.is_incomplete_message() || error.is_canceled() || error.is_closed() || io.is_some()
    }

    /// The upstream ends an HTTP/2 connection while requests are on their way (GOAWAY), or has no room for this one
    /// (RFC 9113, section 8.7). A request that was taken before a GOAWAY fails in the same way when the connection
    /// breaks, so only what is idempotent can be sent again.
    fn is_untaken(&self) -> bool {
        let Self::Http(error) = self else { return false };
        let http2 = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
        http2.is_some_and(|error| {
            error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
        })
    }

    /// Nobody answered for so long that the kernel gave the connection up, as no server ends one.
    fn is_silence(&self) -> bool {
        use std::io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
        let Self::Http(error) = self else { return false };
        matches!(io_kind(error), Some(TimedOut | HostUnreachable | NetworkUnreachable))
    }

    /// What the caller is told. The cause is logged, and stays here.
    pub(super) fn problem(&self) -> Problem {
        tracing::warn!(cause = %with_causes(self), "the upstream gave no answer");
        match self {
            Self::Connect(error) => {
                let (proxy_error, detail) = match io_kind(error.as_ref()) {
                    Some(std::io::ErrorKind::ConnectionRefused) => {
                        ("connection_refused", "it refused the connection")
                    }
                    Some(std::io::ErrorKind::TimedOut) => {
                        ("connection_timeout", "it did not accept the connection")
                    }
                    _ if error.to_string().contains("dns") => ("dns_error", "its name can't be resolved"),
                    _ => ("destination_unavailable", "there is no way to it"),
                };
                Problem::new(Code::UpstreamUnreachable, format!("the API can't be reached: {detail}"))
                    .because(proxy_error)
            }
            Self::ConnectTimeout => {
                Problem::new(Code::UpstreamTimeout, "connecting to the API took too long")
                    .because("connection_timeout")
            }
            Self::Loop => {
                Problem::new(Code::UpstreamUnreachable, "the API's address leads back to this proxy")
                    .because("proxy_loop_detected")
            }
            Self::Tls(error) => tls_problem(error),
            Self::NoHttp2 => {
                Problem::new(Code::UpstreamInvalid, "the upstream speaks no HTTP/2 (http = \"2\")")
            }
            Self::ResponseTimeout => Problem::new(Code::UpstreamTimeout, "the API did not answer in time"),
            Self::Unsuitable => Problem::new(Code::UpstreamInvalid, "the API's answer can't be passed on"),
            Self::Http(error) if error.is_parse() => {
                Problem::new(Code::UpstreamInvalid, "the API's answer is not valid HTTP")
            }
            Self::Http(error) if error.is_user() => {
                Problem::new(Code::BadRequest, "the request's body broke off").closing()
            }
            Self::Http(_) => {
                Problem::new(Code::UpstreamUnreachable, "the API closed the connection without an answer")
                    .because("connection_terminated")
            }
        }
    }
}

fn tls_problem(error: &std::io::Error) -> Problem {
    let is_certificate = matches!(
        error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)
    );
    if is_certificate {
        let detail = "the API's certificate is not trusted: nothing was sent (see ca_file for a private CA)";
        Problem::new(Code::UpstreamUntrusted, detail)
    } else {
        Problem::new(Code::UpstreamUntrusted, "no TLS connection to the API could be made")
            .because("tls_protocol_error")
    }
}

fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        cause = error.source();
    }
    None
}

impl Download {
    /// All of it has come: the connection is for others.
    fn end(&mut self) {
        if let Carrier::Http1(connection, pool) = std::mem::replace(&mut self.carrier, Carrier::Done)
            && pool.give_back(connection)
        {
            tokio::spawn(tidy(Arc::downgrade(&pool)));
        }
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let mut incoming = Pin::new(&mut self.incoming);
        match &mut self.carrier {
            Carrier::Http1(connection, _) => {
                connection.poll_beside(cx, |cx| incoming.as_mut().poll_frame(cx))
            }
            Carrier::Http2(_) | Carrier::Done => incoming.poll_frame(cx),
        }
    }

    /// What came before goes to the caller first: hyper forgets what it holds when a body fails.
    fn break_off(
        &mut self,
        error: hyper::Error,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        self.broken = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready when nothing has come for too long.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = *self.stalls_since.get_or_insert_with(Instant::now) + STALL;
        match &mut self.carrier {
            Carrier::Http1(connection, _) => connection.alarm.poll(deadline, cx),
            Carrier::Http2(alarm) => alarm.poll(deadline, cx),
            Carrier::Done => Poll::Pending,
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = DownloadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(DownloadError::Broken(error))));
        }
        let Poll::Ready(frame) = this.poll_incoming(cx) else {
            ready!(this.poll_stall(cx));
            return Poll::Ready(Some(Err(DownloadError::Stalled)));
        };
        this.stalls_since = None;
        let frame = match frame {
            None => {
                this.end();
                return Poll::Ready(None);
            }
            Some(Err(error)) => return this.break_off(error, cx),
            Some(Ok(frame)) => frame,
        };
        if this.incoming.is_end_stream() {
            this.end();
        }
        Poll::Ready(Some(Ok(match frame.into_trailers() {
            Ok(mut trailers) => {
                headers::for_trailers(&mut trailers, Some(&this.token));
                Frame::trailers(trailers)
            }
            Err(data) => data,
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
