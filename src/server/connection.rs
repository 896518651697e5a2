//! One caller's connection: hyper between a watched socket and the walk. Watches what hyper does not: how long
//! a head takes, how long nothing is asked, and how long nothing is read.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::worker::Worker;
use crate::config::Limits;
use crate::problem::{Code, Problem};
use crate::proxy;
use crate::proxy::guard::Caller;

/// Heads over 64 KiB or 128 fields are refused.
const LARGEST_HEAD: usize = 64 * 1024;
const MOST_FIELDS: usize = 128;
/// A caller that reads nothing for that long is gone.
const WRITE_STALL: Duration = Duration::from_secs(60);

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const BUSY: u8 = 2;

/// What a connection does, and since when, in milliseconds since it was accepted.
struct Activity {
    accepted: Instant,
    phase: AtomicU8,
    since_ms: AtomicU64,
    blocked_since_ms: AtomicU64,
}

/// The socket, watched.
struct Line<T> {
    socket: T,
    activity: Arc<Activity>,
    own_words: Vec<u8>,
}

/// An answer's body, of either kind, that ends a request when it is done or dropped.
pub(super) struct Answer {
    kind: Kind,
    activity: Arc<Activity>,
    worker: Arc<Worker>,
}

enum Kind {
    Proxied(proxy::Body),
    Local(axum::body::Body),
}

/// Serves a caller until the connection ends, or, after `stop`, until its current request is answered.
pub(super) async fn serve<T>(socket: T, caller: Caller, worker: Arc<Worker>, stop: CancellationToken)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity {
        accepted: Instant::now(),
        phase: AtomicU8::new(IDLE),
        since_ms: AtomicU64::new(0),
        blocked_since_ms: AtomicU64::new(u64::MAX),
    });
    let line = Line { socket, activity: Arc::clone(&activity), own_words: Vec::new() };
    let limits = worker.limits();
    let service = service_fn(|request: Request<Incoming>| {
        let (worker, activity, caller) = (Arc::clone(&worker), Arc::clone(&activity), caller.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(worker, activity, caller, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .half_close(true)
        .max_headers(MOST_FIELDS)
        .max_header_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(line), service);

    let mut connection = pin!(connection);
    let mut stopping = pin!(stop.cancelled());
    let mut is_stopping = false;
    let mut armed = activity.deadline(&limits);
    let mut alarm = pin!(sleep_until(armed));
    poll_fn(|cx| {
        if !is_stopping && stopping.as_mut().poll(cx).is_ready() {
            is_stopping = true;
            connection.as_mut().graceful_shutdown();
        }
        if connection.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // Deadlines move later with every request, and the alarm is moved only when one comes earlier: the
        // hot path never touches the timer.
        loop {
            let deadline = activity.deadline(&limits);
            if deadline < armed {
                armed = deadline;
                alarm.as_mut().reset(armed);
            }
            ready!(alarm.as_mut().poll(cx));
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            armed = deadline;
            alarm.as_mut().reset(armed);
        }
    })
    .await;
}

/// The last words to a caller that there is no room for.
pub(super) fn turned_away(code: Code, detail: &str) -> Vec<u8> {
    words(Problem::new(code, detail).retry_after(1).closing())
}

async fn answer(
    worker: Arc<Worker>,
    activity: Arc<Activity>,
    caller: Caller,
    request: Request<Incoming>,
) -> Response<Answer> {
    activity.enter(BUSY);
    worker.metrics().began();
    let ended = |kind| Answer { kind, activity, worker: Arc::clone(&worker) };
    // Made before anything is awaited, so that a caller that leaves is counted, too.
    let mut unanswered = ended(Kind::Proxied(proxy::Body::Own(None)));

    let response = match worker.answer(&caller, request).await {
        super::worker::Answered::Proxied(response) => response.map(Kind::Proxied),
        super::worker::Answered::Local(response) => response.map(Kind::Local),
    };
    worker.metrics().answered(response.status());
    response.map(|kind| {
        unanswered.kind = kind;
        unanswered
    })
}

impl Activity {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn enter(&self, phase: u8) {
        self.since_ms.store(self.now_ms(), Ordering::Relaxed);
        self.phase.store(phase, Ordering::Relaxed);
    }

    /// When the connection has to be given up, as things are.
    fn deadline(&self, limits: &Limits) -> Instant {
        let since = Duration::from_millis(self.since_ms.load(Ordering::Relaxed));
        let patience = match self.phase.load(Ordering::Relaxed) {
            IDLE => since + limits.idle_timeout,
            HEAD => since + limits.header_timeout,
            _ => Duration::from_secs(24 * 3600 * 365),
        };
        let blocked = self.blocked_since_ms.load(Ordering::Relaxed);
        let unread =
            if blocked == u64::MAX { Duration::MAX } else { Duration::from_millis(blocked) + WRITE_STALL };
        self.accepted + patience.min(unread)
    }

    fn wrote<T>(&self, result: Poll<T>) -> Poll<T> {
        if result.is_ready() {
            if self.blocked_since_ms.load(Ordering::Relaxed) != u64::MAX {
                self.blocked_since_ms.store(u64::MAX, Ordering::Relaxed);
            }
        } else if self.blocked_since_ms.load(Ordering::Relaxed) == u64::MAX {
            self.blocked_since_ms.store(self.now_ms(), Ordering::Relaxed);
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> Line<T> {
    /// hyper answers what it can't parse with a bare status. That is ours to say, as a problem.
    fn reword(&mut self, head: &[u8]) -> bool {
        if !head.starts_with(b"HTTP/1.1 4") || memchr::memmem::find(head, b"nosniff").is_some() {
            return false;
        }
        let problem = match &head[9..12] {
            b"414" => Problem::new(Code::TargetTooLong, "the request target is longer than 64 KiB"),
            b"431" => Problem::new(Code::HeadTooLarge, "the head has more than 64 KiB or 128 fields"),
            _ => Problem::new(Code::BadRequest, "the request is not valid HTTP/1.1"),
        };
        self.own_words = words(problem.closing());
        true
    }

    fn poll_own_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.own_words.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.own_words))?;
            self.own_words.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Line<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buffer))?;
        if buffer.filled().len() > before && this.activity.phase.load(Ordering::Relaxed) == IDLE {
            this.activity.enter(HEAD);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Line<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_own_words(cx))?;
        if this.reword(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        this.activity.wrote(Pin::new(&mut this.socket).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_own_words(cx))?;
        if let Some(first) = parts.first()
            && this.reword(first)
        {
            return Poll::Ready(Ok(first.len()));
        }
        this.activity.wrote(Pin::new(&mut this.socket).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_own_words(cx))?;
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_own_words(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.activity.enter(IDLE);
        self.worker.metrics().ended();
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match &mut self.get_mut().kind {
            Kind::Proxied(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Local(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Proxied(body) => body.is_end_stream(),
            Kind::Local(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Proxied(body) => body.size_hint(),
            Kind::Local(body) => body.size_hint(),
        }
    }
}

/// A whole answer as it goes over the wire.
fn words(problem: Problem) -> Vec<u8> {
    let response = problem.into_response();
    let status = response.status();
    let mut bytes =
        format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default())
            .into_bytes();
    for (name, value) in response.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", response.body().len()).as_bytes());
    bytes.extend_from_slice(response.body());
    bytes
}
