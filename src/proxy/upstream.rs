//! The way to one upstream: connections that are made when needed, verified, kept in a pool of this worker, and
//! driven by the requests that use them.

mod connect;
mod download;
mod failure;
mod http1;
mod network;
mod pool;
mod tunnel;
#[cfg(any(test, fuzzing))]
pub mod properties;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response};
use http_body::Frame;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::headers;
use super::replay::Upload;
use super::timer::Timer;
use crate::config::{Limits, Listen, Route, Upstream, is_remote};
use crate::metrics::Counters;
use crate::tls::{self, TlsError, TlsStream};
use crate::token::Token;
pub(super) use download::Download;
pub use download::DownloadError;
use download::{BodySource, UploadTask};
use failure::Failure;
use http1::{Connection, NoResponse, RoundTrip, Stream};
use network::Epoch;
pub(super) use network::Network;
use pool::Pool;
pub use tunnel::{Tunnel, TunnelError};

/// Without an acknowledgement for that long a connection is dead.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(8);
/// On connections that carry streamed bodies it is so much longer than a body may stall: the kernel takes a peer that
/// has no room for more for one that acknowledges nothing, and it is ours to say when a body has stalled.
const BEHIND_A_STALL: Duration = Duration::from_secs(30);
/// How often it is looked whether a body makes progress, in the time that an answer may take.
const LOOKS: u32 = 8;
/// How often it is looked after idle connections.
const TIDY_EVERY: Duration = Duration::from_secs(5);

/// What all workers share of an upstream.
pub struct Endpoint {
    pub(super) route: Route,
    host: HeaderValue,
    server_name: Option<ServerName<'static>>,
    way: ArcSwap<Way>,
    limits: Limits,
    listening: Vec<Listen>,
}

/// What a connection to an upstream is made with, and what a reload may change of it.
pub struct Way {
    /// None where there is no TLS.
    tls: Option<Arc<rustls::ClientConfig>>,
    /// None where the upstream is connected to directly.
    tunnel: Option<Tunnel>,
}

/// One worker's connections to an upstream.
pub(super) struct Client {
    pub(super) endpoint: Arc<Endpoint>,
    counters: Arc<Counters>,
    network: Arc<Network>,
    idle: Arc<Pool>,
    idle_for_uploads: Arc<Pool>,
}

/// What goes up of a request, but for the body and the token.
pub(super) struct Message<'a> {
    pub(super) parts: &'a Parts,
    pub(super) is_chunked: bool,
}

/// What became of one attempt.
pub(super) enum Attempt {
    /// An answer's head.
    Answered(Response<Box<Download>>),
    /// A pooled connection turned out dead before any byte of an answer. The body comes back when nothing of the
    /// request had been sent.
    Dead(Option<Upload>, Failure),
}

/// What an upload task says of its request: the head of the answer, and how long the body is.
type TaskHead = Result<(http1::Head, Option<u64>), NoResponse>;

/// The response deadline: it starts anew while the caller's body makes progress.
struct ResponseDeadline<'a> {
    lasts: Duration,
    look_every: Duration,
    look_at: Instant,
    progress: Option<&'a AtomicU64>,
    seen: u64,
    grew_at: Instant,
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
        Ok(Self {
            route: route.clone(),
            host: HeaderValue::from_str(&upstream.authority).expect("a URL's authority is a field value"),
            server_name,
            way: ArcSwap::from_pointee(Way::new(route)?),
            limits,
            listening,
        })
    }

    /// The prefix of its route.
    pub fn prefix(&self) -> &str {
        &self.route.prefix
    }

    /// How long nothing may move in a body; none when for ever.
    fn stall_timeout(&self) -> Option<Duration> {
        Some(self.limits.stall_timeout).filter(|stall_timeout| !stall_timeout.is_zero())
    }

    /// True when a connection ends at one of our own listeners: a request on it would go round in circles.
    fn is_at_our_own(&self, tcp: &TcpStream) -> bool {
        let (Ok(peer), Ok(own)) = (tcp.peer_addr(), tcp.local_addr()) else { return false };
        let is_here = !is_remote(peer.ip()) || peer.ip() == own.ip();
        self.listening.iter().any(|listen| match listen {
            Listen::Tcp(address) if address.ip().is_unspecified() => address.port() == peer.port() && is_here,
            Listen::Tcp(address) => *address == peer,
            Listen::Unix(_) => false,
        })
    }

    /// Replaces what new connections are made with.
    pub fn reconfigure(&self, way: Way) {
        self.way.store(Arc::new(way));
    }
}

impl Way {
    /// What a route's configuration says.
    ///
    /// # Errors
    /// When its CA certificates can't serve as roots.
    pub fn new(route: &Route) -> Result<Self, TlsError> {
        let extra = route.ca.as_ref().map(|ca| ca.certificates.as_slice()).unwrap_or_default();
        let client = || tls::client(extra, &["http/1.1"]).map(Arc::new);
        Ok(Self {
            tls: route.upstream.tls.then(client).transpose()?,
            tunnel: route.proxy.as_ref().map(|proxy| Tunnel::new(proxy, &route.upstream)),
        })
    }
}

impl Client {
    pub(super) fn new(endpoint: Arc<Endpoint>, counters: Arc<Counters>, network: Arc<Network>) -> Self {
        Self { endpoint, counters, network, idle: Arc::default(), idle_for_uploads: Arc::default() }
    }

    /// Sends a request and waits for the head of its answer. `progress` counts what was sent of a streamed
    /// body: the time for the answer starts when it stops growing.
    pub(super) async fn send(
        &self,
        message: &Message<'_>,
        upload: Upload,
        token: &Arc<Token>,
        progress: Option<&AtomicU64>,
        may_reuse: bool,
        now: Instant,
    ) -> Result<Attempt, Failure> {
        let is_upload = progress.is_some();
        let pool = if is_upload { &self.idle_for_uploads } else { &self.idle };
        let epoch = self.network.epoch(now);
        let pooled = if may_reuse { pool.take(now, epoch) } else { None };
        let (connection, is_reused) = match pooled {
            Some(connection) => (connection, true),
            None => (Box::pin(self.connect(is_upload, epoch)).await?, false),
        };
        let trip = RoundTrip::new(connection, message, &self.endpoint.host, token, upload);
        let deadline = ResponseDeadline::new(now, self.endpoint.limits.response_timeout, progress);
        let answered = if is_upload {
            Box::pin(answered_to_task(trip, Arc::clone(pool), deadline)).await
        } else {
            answered(trip, pool, deadline).await
        };
        match answered.ok_or(Failure::ResponseTimeout)? {
            Ok((head, source)) => {
                let stall_timeout =
                    self.endpoint.stall_timeout().filter(|_| !headers::is_event_stream(&head.fields));
                let mut answer = Response::new(Download::new(source, Arc::clone(token), stall_timeout));
                *answer.status_mut() = head.status;
                *answer.headers_mut() = head.fields;
                Ok(Attempt::Answered(answer))
            }
            Err(NoResponse { error, is_dead, unsent }) => {
                let failure = Failure::Exchange(error);
                if !is_dead || !is_reused {
                    return Err(failure);
                }
                if failure.is_timeout() {
                    self.idle.clear();
                    self.idle_for_uploads.clear();
                }
                Ok(Attempt::Dead(unsent, failure))
            }
        }
    }

    async fn connect(&self, is_for_uploads: bool, epoch: Epoch) -> Result<Box<Connection>, Failure> {
        let acknowledged_within = if is_for_uploads {
            self.endpoint.stall_timeout().map(|stall_timeout| stall_timeout + BEHIND_A_STALL)
        } else {
            Some(ACKNOWLEDGED_WITHIN)
        };
        let way = self.endpoint.way.load_full();
        let connecting =
            async { self.connect_tls(&way, self.connect_tcp(&way, acknowledged_within).await?).await };
        let stream = timeout(self.endpoint.limits.connect_timeout, connecting)
            .await
            .map_err(|_elapsed| Failure::ConnectTimeout)??;
        Ok(Box::new(Connection::new(stream, self.counters.upstream(), epoch)))
    }

    /// A connection that ends at the upstream.
    async fn connect_tcp(
        &self,
        way: &Way,
        acknowledged_within: Option<Duration>,
    ) -> Result<TcpStream, Failure> {
        let Some(tunnel) = &way.tunnel else {
            return self.connect_to(&self.endpoint.route.upstream, acknowledged_within).await;
        };
        let tcp = self.connect_to(&tunnel.proxy, acknowledged_within).await;
        let tcp = tcp.map_err(|failure| Failure::Proxy(Box::new(failure)))?;
        tunnel.open(tcp).await.map_err(Failure::Tunnel)
    }

    async fn connect_to(
        &self,
        server: &Upstream,
        acknowledged_within: Option<Duration>,
    ) -> Result<TcpStream, Failure> {
        let tcp = connect::connect(&server.host, server.port).await?;
        if self.endpoint.is_at_our_own(&tcp) {
            return Err(Failure::Loop);
        }
        // Not every kernel takes it; a dead connection is then noticed later.
        let _taken = SockRef::from(&tcp).set_tcp_user_timeout(acknowledged_within);
        Ok(tcp)
    }

    async fn connect_tls(&self, way: &Way, tcp: TcpStream) -> Result<Stream, Failure> {
        let (Some(name), Some(config)) = (&self.endpoint.server_name, way.tls.clone()) else {
            return Ok(Stream::Plain(tcp));
        };
        let tls = TlsStream::connect(config, name.clone(), tcp).await.map_err(Failure::Tls)?;
        Ok(Stream::Tls(tls))
    }
}

/// Waits for the head of an answer; none when the response deadline passes.
async fn answered(
    mut trip: RoundTrip,
    pool: &Arc<Pool>,
    mut deadline: ResponseDeadline<'_>,
) -> Option<Result<(http1::Head, BodySource), NoResponse>> {
    let head = poll_fn(|cx| match trip.poll_head(cx) {
        Poll::Pending => deadline.poll(trip.timer(), cx).map(|()| None),
        head => head.map(Some),
    });
    Some(match head.await? {
        Ok(head) => Ok((head, BodySource::Connection(trip, Arc::clone(pool)))),
        Err(error) => Err(trip.no_response(error)),
    })
}

/// The same for a body that is streamed up: an upload task goes on with it while the caller reads nothing of the
/// answer.
async fn answered_to_task(
    trip: RoundTrip,
    pool: Arc<Pool>,
    mut deadline: ResponseDeadline<'_>,
) -> Option<Result<(http1::Head, BodySource), NoResponse>> {
    let (tells_head, head) = oneshot::channel();
    let (tells_parts, parts) = mpsc::channel(1);
    let task = AbortOnDropHandle::new(tokio::spawn(upload(trip, tells_head, tells_parts, pool)));
    let (mut head, mut timer) = (pin!(head), Timer::default());
    let head = poll_fn(|cx| match head.as_mut().poll(cx) {
        Poll::Pending => deadline.poll(&mut timer, cx).map(|()| None),
        head => head.map(Some),
    });
    let stopped = |_| Err(NoResponse { error: http1::Error::Incomplete, is_dead: false, unsent: None });
    let head = head.await?.unwrap_or_else(stopped);
    Some(head.map(|(head, left)| (head, BodySource::Task(UploadTask { parts, left, task, timer }))))
}

/// The upload task: sends a request and passes on what comes of its answer, until both are done.
async fn upload(
    mut trip: RoundTrip,
    tells_head: oneshot::Sender<TaskHead>,
    tells_parts: mpsc::Sender<Option<Result<Frame<Bytes>, http1::Error>>>,
    pool: Arc<Pool>,
) {
    let head = match poll_fn(|cx| trip.poll_head(cx)).await {
        Ok(head) => Ok((head, trip.length())),
        Err(error) => {
            let _nobody_waits = tells_head.send(Err(trip.no_response(error)));
            return;
        }
    };
    let _nobody_waits = tells_head.send(head);
    loop {
        let mut room = pin!(tells_parts.reserve());
        let room = poll_fn(|cx| {
            let _is_sent = trip.poll_send(cx);
            room.as_mut().poll(cx)
        });
        // Nobody takes it any more.
        let Ok(room) = room.await else { break };
        let part = poll_fn(|cx| trip.poll_frame(cx)).await;
        let is_last = !matches!(part, Some(Ok(_)));
        room.send(part);
        if is_last {
            break;
        }
    }
    poll_fn(|cx| trip.poll_send(cx)).await;
    keep(trip, &pool);
}

/// Keeps the connection of a request that is done for others.
fn keep(trip: RoundTrip, pool: &Arc<Pool>) {
    if let Some(connection) = trip.into_connection()
        && pool.give_back(connection)
    {
        tokio::spawn(tidy(Arc::downgrade(pool)));
    }
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

impl<'a> ResponseDeadline<'a> {
    fn new(now: Instant, lasts: Duration, progress: Option<&'a AtomicU64>) -> Self {
        let look_every = if progress.is_some() { lasts / LOOKS } else { lasts };
        Self { lasts, look_every, look_at: now + look_every, progress, seen: 0, grew_at: now }
    }

    /// Ready when it has passed.
    fn poll(&mut self, timer: &mut Timer, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(timer.poll(self.look_at, cx));
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
