//! A caller's socket, watched: what hyper does not tell is seen as bytes come and go. Since when a connection is idle,
//! reads a head or is busy, whether its output is taken, and whether the caller has gone. And hyper's bare answers to
//! what it can't parse become problems.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use super::peer::Kernel;
use crate::config::{Limits, is_remote};
use crate::problem::{Code, Problem};
use crate::proxy::BodyWatch;

/// A head that takes longer is slow: its connection may be evicted. Most heads come whole, at once.
const SLOW_HEAD: Duration = Duration::from_secs(1);
/// How a connection of HTTP/2 begins (RFC 9113, section 3.4). hyper says nothing to it.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// In a larger head than hyper takes, a line that is longer is what is too large.
const LARGEST_LINE: usize = 64 * 1024;
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// `blocked_since_ms` of a connection whose output is taken.
const NOT_BLOCKED: u64 = u64::MAX;
/// The answer is not over.
const ANSWER: u8 = 1;
/// The request's body is not over, which may be later than its answer.
const BODY: u8 = 2;

/// What a connection does. Shared with the other workers, which look for idle ones.
#[derive(Debug)]
pub(super) struct ConnectionState {
    accepted: Instant,
    /// Which ends of an exchange are open: [`ANSWER`], [`BODY`].
    open: AtomicU8,
    has_head_begun: AtomicBool,
    /// What was read last does not end with an empty line, by which heads end.
    has_rest: AtomicBool,
    /// An answer was made, and the socket has not yet taken all of it.
    has_unsent: AtomicBool,
    was_asked: AtomicBool,
    /// The request's body is whole, and had no trailers.
    has_plain_body: AtomicBool,
    /// Nothing is read behind the request that is answered.
    is_last: AtomicBool,
    /// When the phase began, and when the caller stopped taking output, in milliseconds since `accepted`.
    since_ms: AtomicU64,
    blocked_since_ms: AtomicU64,
}

/// The phases of a connection, in the order in which connections are evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Between requests.
    Idle,
    /// A head has begun.
    ReadingHead,
    /// A request is being answered, or its body still comes.
    Busy,
    /// The answer is made, and not all of it is sent.
    Flushing,
}

/// An open end of an exchange: while there is one, the connection is busy.
#[derive(Debug)]
pub(super) struct Busy {
    state: Arc<ConnectionState>,
    end: u8,
}

/// A stream socket of a caller.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Ready when there is something to read, the end included.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Writes what there is room for, without waiting.
    fn try_write_some(&self, bytes: &[u8]);

    /// How much of the connection the other end has ended, as far as the socket tells.
    fn ended(&self) -> Ended;

    /// Both addresses, the other end's first, of a connection that the kernel can be asked about.
    fn addresses(&self) -> Option<(SocketAddr, SocketAddr)>;
}

/// How much of a connection its other end has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// None of it.
    Nothing,
    /// It sends nothing more, and may still read.
    Sending,
    /// It was reset, or nobody can read there any more.
    Both,
}

/// The socket that hyper reads from and writes to.
pub(super) struct WatchedSocket<T> {
    socket: T,
    state: Arc<ConnectionState>,
    kernel: Option<Arc<Kernel>>,
    line: RequestLine,
    /// What the caller is told at the end, in place of what hyper says.
    refusal: Option<Problem>,
    is_half_closed: bool,
}

/// What is seen of a request line, for saying what is wrong with one that hyper can't parse.
#[derive(Debug, Default)]
struct RequestLine {
    length: usize,
    has_ended: bool,
    has_raw_bytes: bool,
}

impl ConnectionState {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            accepted: Instant::now(),
            open: AtomicU8::new(0),
            has_head_begun: AtomicBool::new(false),
            has_rest: AtomicBool::new(false),
            has_unsent: AtomicBool::new(false),
            was_asked: AtomicBool::new(false),
            has_plain_body: AtomicBool::new(false),
            is_last: AtomicBool::new(false),
            since_ms: AtomicU64::new(0),
            blocked_since_ms: AtomicU64::new(NOT_BLOCKED),
        })
    }

    /// A request's head is whole: the connection is busy with the answer. Says when that began. What is left of a read
    /// behind a request without a body is the next head; behind others it may be their body.
    pub(super) fn busy(self: &Arc<Self>, has_body: bool) -> (Busy, Instant) {
        let has_rest = self.has_rest.load(Ordering::Relaxed);
        self.has_head_begun.store(has_rest && !has_body, Ordering::Relaxed);
        self.was_asked.store(true, Ordering::Relaxed);
        self.has_plain_body.store(!has_body, Ordering::Relaxed);
        self.has_unsent.store(true, Ordering::Relaxed);
        (self.open(ANSWER), self.begin())
    }

    pub(super) fn phase(&self) -> Phase {
        if self.open.load(Ordering::Relaxed) > 0 {
            Phase::Busy
        } else if self.has_unsent.load(Ordering::Relaxed) {
            Phase::Flushing
        } else if self.has_head_begun.load(Ordering::Relaxed) {
            Phase::ReadingHead
        } else {
            Phase::Idle
        }
    }

    /// No request has come yet, nor a part of one.
    pub(super) fn is_new(&self) -> bool {
        !self.was_asked.load(Ordering::Relaxed) && self.phase() == Phase::Idle
    }

    /// Whether what stands behind the request is certain, as far as its body has come: hyper takes all up to an empty
    /// line for trailers, and others end them at another line end, so that the rest of them is a request for one and
    /// none for the other.
    pub(super) fn has_plain_body(&self) -> bool {
        self.has_plain_body.load(Ordering::Relaxed)
    }

    /// The request's body is still coming.
    pub(super) fn has_open_body(&self) -> bool {
        self.open.load(Ordering::Relaxed) & BODY != 0
    }

    /// Nothing is to be read behind the current request.
    pub(super) fn end_behind(&self) {
        self.is_last.store(true, Ordering::Relaxed);
    }

    /// Whether that was asked for, once.
    pub(super) fn takes_end(&self) -> bool {
        self.is_last.load(Ordering::Relaxed) && self.is_last.swap(false, Ordering::Relaxed)
    }

    /// Only a request's body is not over. Its end, unlike an answer's, does not wake the connection's task.
    pub(super) fn awaits_body(&self) -> bool {
        self.open.load(Ordering::Relaxed) == BODY
    }

    /// When the connection has to be given up, as things are.
    pub(super) fn deadline(&self, limits: &Limits) -> Instant {
        let by_phase = match self.phase() {
            Phase::Idle => self.since() + limits.idle_timeout,
            Phase::ReadingHead => self.since() + limits.header_timeout,
            Phase::Busy | Phase::Flushing => NEVER,
        };
        let blocked = self.blocked_since_ms.load(Ordering::Relaxed);
        let is_cut = blocked != NOT_BLOCKED && !limits.stall_timeout.is_zero();
        let by_output = if is_cut { Duration::from_millis(blocked) + limits.stall_timeout } else { NEVER };
        self.accepted + by_phase.min(by_output)
    }

    /// In which order connections are evicted: idle ones first, then slow heads, each from the oldest on. None for
    /// those that are not.
    pub(super) fn eviction_order(&self) -> Option<(Phase, Instant)> {
        let (phase, since) = (self.phase(), self.accepted + self.since());
        let can_be_evicted = match phase {
            Phase::Idle => true,
            Phase::ReadingHead => since.elapsed() > SLOW_HEAD,
            Phase::Busy | Phase::Flushing => false,
        };
        can_be_evicted.then_some((phase, since))
    }

    fn open(self: &Arc<Self>, end: u8) -> Busy {
        self.open.fetch_or(end, Ordering::Relaxed);
        Busy { state: Arc::clone(self), end }
    }

    fn since(&self) -> Duration {
        Duration::from_millis(self.since_ms.load(Ordering::Relaxed))
    }

    fn begin(&self) -> Instant {
        let now = Instant::now();
        self.since_ms.store(self.ms_until(now), Ordering::Relaxed);
        now
    }

    fn ms_until(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.accepted).as_millis()).unwrap_or(u64::MAX)
    }

    /// Bytes came. True when they are the first of a head. What comes while a request is answered belongs to its body,
    /// or waits in hyper's buffer.
    fn received(&self, bytes: &[u8]) -> bool {
        let is_whole = bytes.ends_with(b"\n\r\n") || bytes.ends_with(b"\n\n");
        self.has_rest.store(!is_whole, Ordering::Relaxed);
        let begins = self.phase() == Phase::Idle;
        if begins {
            self.has_head_begun.store(true, Ordering::Relaxed);
            self.begin();
        }
        begins
    }

    /// Notes whether the caller takes what is written to it.
    fn wrote<R>(&self, result: Poll<R>) -> Poll<R> {
        let was_blocked = self.blocked_since_ms.load(Ordering::Relaxed) != NOT_BLOCKED;
        if result.is_ready() && was_blocked {
            self.blocked_since_ms.store(NOT_BLOCKED, Ordering::Relaxed);
        } else if result.is_pending() && !was_blocked {
            self.blocked_since_ms.store(self.ms_until(Instant::now()), Ordering::Relaxed);
        }
        result
    }

    /// The socket has taken everything.
    fn flushed(&self) {
        let is_answered = self.open.load(Ordering::Relaxed) & ANSWER == 0;
        if is_answered && self.has_unsent.load(Ordering::Relaxed) {
            self.has_unsent.store(false, Ordering::Relaxed);
            self.begin();
        }
    }
}

impl Busy {
    /// With the request's body, too.
    pub(super) fn and_body(&self) -> Self {
        self.state.open(BODY)
    }

    /// Nothing is to be read behind this exchange, and hyper is not told yet.
    pub(super) fn is_last(&self) -> bool {
        self.state.is_last.load(Ordering::Relaxed)
    }
}

impl BodyWatch for Busy {
    fn ended_plainly(&self) {
        self.state.has_plain_body.store(true, Ordering::Relaxed);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.state.open.fetch_and(!self.end, Ordering::Relaxed);
        // Behind an answer it is the flush from which on the connection is idle.
        if self.end == BODY {
            self.state.begin();
        }
    }
}

impl<T: Transport> WatchedSocket<T> {
    pub(super) fn new(socket: T, state: Arc<ConnectionState>, kernel: Option<Arc<Kernel>>) -> Self {
        let line = RequestLine::default();
        Self { socket, state, kernel, line, refusal: None, is_half_closed: false }
    }

    /// The socket, and what the caller is told before it is closed.
    pub(super) fn into_parts(self) -> (T, Option<Problem>) {
        (self.socket, self.refusal)
    }

    fn received(&mut self, bytes: &[u8]) {
        let is_new = self.state.is_new();
        if self.state.received(bytes) {
            self.line = RequestLine::default();
        }
        self.line.read(bytes);
        if is_new && bytes.starts_with(HTTP2_PREFACE) {
            let detail = "this proxy speaks HTTP/1.1 with callers, not HTTP/2";
            self.refusal = Some(Problem::new(Code::BadRequest, detail).closing());
        }
    }

    /// True when what hyper writes is not sent: it answers what it can't parse with a bare status, which is ours to
    /// say, as a problem, and writes nothing behind that.
    fn withholds(&mut self, bytes: &[u8]) -> bool {
        let is_hypers = matches!(self.state.phase(), Phase::Idle | Phase::ReadingHead);
        if is_hypers && self.refusal.is_none() && bytes.starts_with(b"HTTP/1.1 4") {
            self.refusal = Some(self.line.refusal(&bytes[9..12]));
        }
        self.refusal.is_some()
    }

    /// Ready when nobody reads the answer: the connection was reset, or no process has its other end any more. hyper
    /// does not notice, since it reads nothing while a request is answered, so that a half-closed caller gets its
    /// answer.
    fn poll_hang_up(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        ready!(self.socket.poll_readable(cx));
        let has_hung_up = match self.socket.ended() {
            Ended::Both => true,
            Ended::Sending if !self.is_half_closed => {
                self.is_half_closed = true;
                self.is_orphaned()
            }
            Ended::Sending | Ended::Nothing => false,
        };
        if has_hung_up { Poll::Ready(io::ErrorKind::ConnectionAborted.into()) } else { Poll::Pending }
    }

    /// True when the kernel says that the other end of a connection of this machine was closed by its owner.
    fn is_orphaned(&self) -> bool {
        let (Some(kernel), Some((peer, own))) = (&self.kernel, self.socket.addresses()) else { return false };
        !is_remote(peer.ip()) && kernel.is_orphaned(peer, own)
    }
}

impl RequestLine {
    fn read(&mut self, bytes: &[u8]) {
        // Empty lines before a request line are passed over (RFC 9112, section 2.2).
        let bytes = if self.length > 0 { bytes } else { bytes.trim_ascii_start() };
        if !self.has_ended {
            let end = memchr::memchr(b'\n', bytes);
            let line = &bytes[..end.unwrap_or(bytes.len())];
            self.length += line.len();
            self.has_raw_bytes |= !line.is_ascii();
            self.has_ended = end.is_some();
        }
    }

    /// What hyper's answer with that status means.
    fn refusal(&self, status: &[u8]) -> Problem {
        let problem = match status {
            b"414" => target_too_long(),
            b"431" if self.length > LARGEST_LINE => target_too_long(),
            b"431" => head_too_large(),
            _ if self.has_raw_bytes => Problem::new(
                Code::BadRequest,
                "the request target has bytes that are neither ASCII nor UTF-8: percent-encode them, as in %E4%BD%A0",
            ),
            _ => Problem::new(Code::BadRequest, "the request is not valid HTTP/1.1"),
        };
        problem.closing()
    }
}

impl Transport for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_read_ready(cx).map(drop)
    }

    fn try_write_some(&self, bytes: &[u8]) {
        let _sent = self.try_write(bytes);
    }

    fn ended(&self) -> Ended {
        ended(self.ready(Interest::READABLE | Interest::WRITABLE))
    }

    fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.peer_addr().ok().zip(self.local_addr().ok())
    }
}

impl Transport for UnixStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_read_ready(cx).map(drop)
    }

    fn try_write_some(&self, bytes: &[u8]) {
        let _sent = self.try_write(bytes);
    }

    fn ended(&self) -> Ended {
        ended(self.ready(Interest::READABLE | Interest::WRITABLE))
    }

    fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        None
    }
}

/// What epoll says: a reset and a hang-up end both directions, a FIN ends one.
fn ended(ready: impl Future<Output = io::Result<Ready>>) -> Ended {
    match pin!(ready).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(ready)) if ready.is_write_closed() => Ended::Both,
        Poll::Ready(Ok(ready)) if ready.is_read_closed() => Ended::Sending,
        _ => Ended::Nothing,
    }
}

impl<T: Transport> AsyncRead for WatchedSocket<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buffer))?;
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            this.received(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport> AsyncWrite for WatchedSocket<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.withholds(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        this.state.wrote(Pin::new(&mut this.socket).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(first) = parts.first()
            && this.withholds(first)
        {
            return Poll::Ready(Ok(first.len()));
        }
        this.state.wrote(Pin::new(&mut this.socket).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    /// hyper flushes whenever it is polled. That is where a caller that has gone is noticed.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.socket).poll_flush(cx))?;
        this.state.flushed();
        if this.state.phase() == Phase::Busy
            && let Poll::Ready(error) = this.poll_hang_up(cx)
        {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(()))
    }

    /// Not while something is left to be said.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.refusal {
            Some(_) => Poll::Ready(Ok(())),
            None => Pin::new(&mut this.socket).poll_shutdown(cx),
        }
    }
}

/// The target is longer than is passed on.
fn target_too_long() -> Problem {
    Problem::new(Code::TargetTooLong, "the request target is longer than 64 KiB")
}

/// The field section is larger than is passed on.
pub(super) fn head_too_large() -> Problem {
    Problem::new(Code::HeadTooLarge, "the head has more than 64 KiB or 128 fields")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_line_says_what_is_wrong_with_it() {
        for (lines, has_raw_bytes) in [
            (&b"GET /?q=\xc4\xe3 HTTP/1.1\r\n"[..], true),
            (b"\r\nGET /?q=\xc4", true),
            (b"GET /?q=1 HTTP/1.1\r\nX: \xc4\xe3\r\n", false),
            (b"\n\r\nGET / HTTP/1.1\r\n\xff", false),
        ] {
            for piece in [1, 2, 1000] {
                let mut seen = RequestLine::default();
                lines.chunks(piece).for_each(|bytes| seen.read(bytes));
                assert_eq!(seen.has_raw_bytes, has_raw_bytes, "{}, by {piece}", lines.escape_ascii());
            }
        }
    }

    #[test]
    fn a_connection_is_busy_until_request_and_answer_have_ended() {
        let state = ConnectionState::new();
        assert!(state.is_new() && state.received(b"POST"));
        assert_eq!(state.phase(), Phase::ReadingHead);

        let (answer, _) = state.busy(true);
        let body = answer.and_body();
        state.flushed();
        drop(answer);
        assert_eq!((state.phase(), state.received(b"body")), (Phase::Busy, false));
        drop(body);
        assert_eq!(state.phase(), Phase::Flushing);
        state.flushed();
        assert_eq!((state.phase(), state.is_new()), (Phase::Idle, false));

        state.received(b"GET / HTTP/1.1\r\n\r\nGET");
        drop(state.busy(false));
        state.flushed();
        assert_eq!(state.phase(), Phase::ReadingHead, "the next one has begun");
    }
}
