//! A caller's socket, watched: what hyper does not tell is seen as the bytes go by. How long a head takes, how
//! long nothing is read or written, whether a head is ambiguous; and hyper's bare refusals become problems.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use crate::config::Limits;
use crate::problem::{Code, Problem};

/// Longer targets and larger field sections are refused.
const LARGEST: usize = 64 * 1024;
/// A head that takes longer gives way when there is no room; most come whole, at once.
const DAWDLES: Duration = Duration::from_secs(1);
/// Long enough for a length of twenty digits.
const LONGEST_START: usize = "content-length: 12345678901234567890\r\n".len();
/// Who asks nothing for that long is waited for without buffers.
const RESTS_AFTER: Duration = Duration::from_secs(3);
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Between requests.
const IDLE: u8 = 0;
/// A head has begun.
const HEAD: u8 = 1;
/// A request is being answered.
const BUSY: u8 = 2;

/// All that came is whole requests.
const WHOLE: u8 = 0;
/// A head has begun.
const PART_OF_HEAD: u8 = 1;
/// A body is coming in.
const PART_OF_BODY: u8 = 2;

/// What a connection does, and since when, in milliseconds since it was accepted.
pub(super) struct Activity {
    accepted: Instant,
    phase: AtomicU8,
    since_ms: AtomicU64,
    blocked_since_ms: AtomicU64,
    is_answering: AtomicBool,
    /// The caller began with the preface of HTTP/2 (RFC 9113, section 3.4), to which hyper says nothing.
    is_http2: AtomicBool,
    /// What came last, perhaps while the request before it was being answered.
    came: AtomicU8,
    /// hyper is asked for the socket, which stays open.
    is_handed_back: AtomicBool,
    /// How many requests were answered, and which of those to come has a fault.
    requests: AtomicU64,
    faults: Mutex<Vec<(u64, Fault)>>,
}

/// What a caller is connected by.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Ready when there is something to read, the end included.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Writes what there is room for, without waiting.
    fn try_last_words(&self, words: &[u8]);

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

/// The socket, watched.
pub(super) struct Line<T> {
    /// hyper has the line; whether its other end is gone is asked beside it, by the same task.
    socket: Arc<Mutex<T>>,
    activity: Arc<Activity>,
    inbound: Inbound,
    own_words: Vec<u8>,
}

/// Where in a caller's bytes we are.
enum Inbound {
    /// In the head of the request with that number, or before it.
    Head(u64, Head),
    /// In a body with so many bytes left, before the request with that number.
    Body(u64, u64),
    /// In a chunked body, before the request with that number.
    Chunks(Chunk, u64),
}

/// Where in a chunked body (RFC 9112, section 7.1) we are. What is not one ends the connection: hyper sees to that.
enum Chunk {
    /// In the line with a chunk's size, and whether all of its digits were seen.
    Size(u64, bool),
    /// In a chunk with so many bytes left, the end of its line included.
    Data(u64),
    /// In a trailer line, whether anything stood in it yet, and whether a carriage return came last.
    Trailer(bool, bool),
}

/// What is seen of a head while it comes in.
#[derive(Default)]
struct Head {
    /// The start of the current line, as far as a name that matters and its number can reach.
    start: Start,
    request_line: usize,
    fields: usize,
    has_request_line: bool,
    length: Option<u64>,
    /// A length that is written longer than is looked at: how much hyper reads is not known here.
    is_unclear: bool,
    has_encoding: bool,
    is_over: bool,
}

/// The first bytes of a line.
struct Start {
    bytes: [u8; LONGEST_START],
    length: usize,
}

/// What is wrong with a head that hyper takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Framing,
    LongTarget,
    LargeFields,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            accepted: Instant::now(),
            phase: AtomicU8::new(IDLE),
            since_ms: AtomicU64::new(0),
            blocked_since_ms: AtomicU64::new(u64::MAX),
            is_answering: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            came: AtomicU8::new(WHOLE),
            is_handed_back: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            faults: Mutex::default(),
        })
    }

    /// A request is being answered from now on. Says when that is, and what is wrong with its head, if anything is.
    pub(super) fn answering(&self) -> (Instant, Option<Problem>) {
        let began = self.enter(BUSY);
        self.is_answering.store(true, Ordering::Relaxed);
        let fault = self.next_fault();
        self.requests.fetch_add(1, Ordering::Relaxed);
        (began, fault.map(Fault::problem))
    }

    /// What is wrong with the request that is answered next.
    fn next_fault(&self) -> Option<Fault> {
        let next = self.requests.load(Ordering::Relaxed);
        let faults = self.faults.lock().expect("no thread panics while it holds the faults");
        faults.iter().find(|(faulty, _)| *faulty == next).map(|(_, fault)| *fault)
    }

    /// It is the caller's turn from now on, with the rest of a head or with a new one. Says when that is.
    pub(super) fn callers_turn(&self) -> Instant {
        self.enter(if self.came.load(Ordering::Relaxed) == PART_OF_HEAD { HEAD } else { IDLE })
    }

    /// When the connection has to be given up, as things are.
    pub(super) fn deadline(&self, limits: &Limits) -> Instant {
        let since = self.since();
        let patience = match self.phase.load(Ordering::Relaxed) {
            _ if self.has_tail() => NEVER,
            IDLE => since + limits.idle_timeout,
            HEAD => since + limits.header_timeout,
            _ => NEVER,
        };
        let blocked = self.blocked_since_ms.load(Ordering::Relaxed);
        // A caller that reads nothing.
        let is_blocked = blocked != u64::MAX && !limits.stall_timeout.is_zero();
        let unread = if is_blocked { Duration::from_millis(blocked) + limits.stall_timeout } else { NEVER };
        self.accepted + patience.min(unread)
    }

    /// When nothing was asked for so long that the connection can do without buffers; none while something is.
    pub(super) fn rests_at(&self) -> Option<Instant> {
        let is_idle = self.is(IDLE) && !self.has_tail() && self.came.load(Ordering::Relaxed) == WHOLE;
        is_idle.then(|| self.accepted + self.since() + RESTS_AFTER)
    }

    /// Whether hyper's end of the connection leaves the socket open.
    pub(super) fn hand_back(&self, is_handed_back: bool) {
        self.is_handed_back.store(is_handed_back, Ordering::Relaxed);
    }

    /// In which order connections give way to others: those between requests first, then heads that dawdle, each
    /// from the oldest on. None for those that are at work.
    pub(super) fn gives_way(&self) -> Option<(u8, Instant)> {
        let (phase, since) = (self.phase.load(Ordering::Relaxed), self.accepted + self.since());
        let can = match phase {
            _ if self.has_tail() => false,
            IDLE => true,
            HEAD => since.elapsed() > DAWDLES,
            _ => false,
        };
        can.then_some((phase, since))
    }

    /// The answer is made, and some of it is not yet taken by the socket.
    pub(super) fn has_tail(&self) -> bool {
        !self.is(BUSY) && self.is_answering.load(Ordering::Relaxed)
    }

    /// The caller speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::Relaxed)
    }

    /// A request is being answered.
    pub(super) fn is_busy(&self) -> bool {
        self.is(BUSY)
    }

    /// Nothing has come yet.
    pub(super) fn is_new(&self) -> bool {
        self.is(IDLE) && self.requests.load(Ordering::Relaxed) == 0
    }

    fn since(&self) -> Duration {
        Duration::from_millis(self.since_ms.load(Ordering::Relaxed))
    }

    fn now_ms(&self) -> u64 {
        self.ms_until(Instant::now())
    }

    fn ms_until(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.accepted).as_millis()).unwrap_or(u64::MAX)
    }

    fn is(&self, phase: u8) -> bool {
        self.phase.load(Ordering::Relaxed) == phase
    }

    fn enter(&self, phase: u8) -> Instant {
        let now = Instant::now();
        self.since_ms.store(self.ms_until(now), Ordering::Relaxed);
        self.phase.store(phase, Ordering::Relaxed);
        now
    }

    fn note(&self, number: u64, fault: Option<Fault>) {
        if let Some(fault) = fault {
            self.faults.lock().expect("no thread panics while it holds the faults").push((number, fault));
        }
    }

    /// Notes whether the caller takes what is written to it.
    fn wrote<R>(&self, result: Poll<R>) -> Poll<R> {
        let was_blocked = self.blocked_since_ms.load(Ordering::Relaxed) != u64::MAX;
        if result.is_ready() && was_blocked {
            self.blocked_since_ms.store(u64::MAX, Ordering::Relaxed);
        } else if result.is_pending() && !was_blocked {
            self.blocked_since_ms.store(self.now_ms(), Ordering::Relaxed);
        }
        result
    }

    /// Everything of an answer is on its way: what is written next, before another request, is hyper's own.
    fn flushed(&self) {
        if self.has_tail() {
            self.is_answering.store(false, Ordering::Relaxed);
            self.since_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }
}

impl Inbound {
    /// Takes in more bytes, through as many requests as they hold.
    fn read(&mut self, mut bytes: &[u8], activity: &Activity) {
        while let Some(next) = self.advance(&mut bytes, activity) {
            *self = next;
        }
    }

    /// What comes behind what `bytes` end; none when they end nothing.
    fn advance(&mut self, bytes: &mut &[u8], activity: &Activity) -> Option<Self> {
        match self {
            Self::Head(number, head) => {
                *bytes = &bytes[head.read(bytes)..];
                if !head.is_over {
                    return None;
                }
                activity.note(*number, head.fault());
                let body = Self::Body(head.length.unwrap_or(0), *number + 1);
                Some(if head.has_encoding { Self::Chunks(Chunk::START, *number + 1) } else { body })
            }
            Self::Body(left, next) => skip(left, bytes).then(|| Self::Head(*next, Head::default())),
            Self::Chunks(chunk, next) => {
                let is_over = chunk.read(bytes);
                is_over.then(|| Self::Head(*next, Head::default()))
            }
        }
    }

    /// What came last.
    fn came(&self) -> u8 {
        match self {
            Self::Head(_, head) if head.request_line > 0 => PART_OF_HEAD,
            Self::Head(..) => WHOLE,
            Self::Body(..) | Self::Chunks(..) => PART_OF_BODY,
        }
    }

    /// What is wrong with the head that is coming in.
    fn fault(&self) -> Option<Fault> {
        match self {
            Self::Head(_, head) => head.fault(),
            _ => None,
        }
    }
}

impl Chunk {
    const START: Self = Self::Size(0, false);

    /// Takes in more bytes, up to the end of the body. True when that is reached.
    fn read(&mut self, bytes: &mut &[u8]) -> bool {
        while let Some((byte, rest)) = bytes.split_first() {
            if self.is_data(bytes) {
                continue;
            }
            *bytes = rest;
            if self.ends_with(*byte) {
                return true;
            }
        }
        false
    }

    /// Passes over what is left of a chunk; false when we are in none.
    fn is_data(&mut self, bytes: &mut &[u8]) -> bool {
        let Self::Data(left) = self else { return false };
        if skip(left, bytes) {
            *self = Self::START;
        }
        true
    }

    /// Takes in one byte of a line between chunks. True when it is the body's last.
    fn ends_with(&mut self, byte: u8) -> bool {
        match self {
            Self::Size(0, _) if byte == b'\n' => *self = Self::Trailer(false, false),
            Self::Size(size, _) if byte == b'\n' => *self = Self::Data(size.saturating_add(2)),
            Self::Size(size, is_complete) => {
                let digit = char::from(byte).to_digit(16).filter(|_| !*is_complete);
                *is_complete = digit.is_none();
                *size = digit.map_or(*size, |digit| size.saturating_mul(16).saturating_add(digit.into()));
            }
            Self::Trailer(false, true) if byte == b'\n' => return true,
            Self::Trailer(has_text, is_ending) => {
                let is_over = byte == b'\n' && *is_ending;
                *is_ending = byte == b'\r';
                *has_text = !is_over && (*has_text || !*is_ending);
            }
            Self::Data(_) => {}
        }
        false
    }
}

/// Passes over so many bytes, as far as there are any. True when all were there.
fn skip(left: &mut u64, bytes: &mut &[u8]) -> bool {
    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    *left -= here as u64;
    *bytes = &bytes[here..];
    *left == 0
}

impl Head {
    /// Takes in more bytes, up to the end of the head, and says how many that were.
    fn read(&mut self, bytes: &[u8]) -> usize {
        let mut read = 0;
        while !self.is_over && read < bytes.len() {
            let rest = &bytes[read..];
            let end = memchr::memchr(b'\n', rest).map(|at| at + 1);
            let part = &rest[..end.unwrap_or(rest.len())];
            self.start.take(part);
            *(if self.has_request_line { &mut self.fields } else { &mut self.request_line }) += part.len();
            if end.is_some() {
                self.end_line();
            }
            read += part.len();
        }
        read
    }

    fn end_line(&mut self) {
        let start = self.start.bytes();
        let is_empty = [&b"\n"[..], b"\r\n"].contains(&start);
        if !self.has_request_line {
            // Empty lines before a request line are passed over (RFC 9112, section 2.2).
            self.has_request_line = !is_empty;
            self.request_line *= usize::from(!is_empty);
        } else {
            let mut parts = start.splitn(2, |byte| *byte == b':');
            let name = parts.next().unwrap_or_default();
            let value = parts.next().unwrap_or_default();
            if name.eq_ignore_ascii_case(b"content-length") {
                let digits = std::str::from_utf8(value.trim_ascii()).unwrap_or_default();
                self.length = Some(digits.parse().unwrap_or(0));
                self.is_unclear |= !start.ends_with(b"\n");
            }
            self.has_encoding |= name.eq_ignore_ascii_case(b"transfer-encoding");
            self.is_over = is_empty;
        }
        self.start.length = 0;
    }

    fn fault(&self) -> Option<Fault> {
        if self.request_line > LARGEST {
            Some(Fault::LongTarget)
        } else if self.fields > LARGEST {
            Some(Fault::LargeFields)
        } else {
            let is_ambiguous = self.is_unclear || self.length.is_some() && self.has_encoding;
            is_ambiguous.then_some(Fault::Framing)
        }
    }
}

impl Default for Start {
    fn default() -> Self {
        Self { bytes: [0; LONGEST_START], length: 0 }
    }
}

impl Start {
    /// Takes in more of the line, as far as there is room.
    fn take(&mut self, part: &[u8]) {
        let room = &mut self.bytes[self.length..];
        let taken = part.len().min(room.len());
        room[..taken].copy_from_slice(&part[..taken]);
        self.length += taken;
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Fault {
    fn problem(self) -> Problem {
        match self {
            Self::Framing => {
                Problem::new(Code::BadRequest, "where the request ends can be read two ways").closing()
            }
            Self::LongTarget => target_too_long(),
            Self::LargeFields => head_too_large(),
        }
    }
}

impl<T> Line<T> {
    /// What hyper takes of a head: a target and fields of 64 KiB each, and some more, so that it is us who refuse.
    pub(super) const HYPER_TAKES: usize = 3 * LARGEST;

    pub(super) fn new(socket: T, activity: Arc<Activity>) -> Self {
        let socket = Arc::new(Mutex::new(socket));
        Self { socket, activity, inbound: Inbound::Head(0, Head::default()), own_words: Vec::new() }
    }

    fn watch(&mut self, read: &[u8]) {
        let activity = &self.activity;
        if activity.is_new() && read.starts_with(HTTP2_PREFACE) {
            activity.is_http2.store(true, Ordering::Relaxed);
        }
        self.inbound.read(read, activity);
        let (came, before) = (self.inbound.came(), activity.came.load(Ordering::Relaxed));
        activity.came.store(came, Ordering::Relaxed);
        if activity.is(IDLE) && came != before {
            activity.callers_turn();
        }
    }

    /// hyper answers what it can't parse with a bare status. That is ours to say, as a problem.
    fn reword(&mut self, words_of_hyper: &[u8]) -> bool {
        if self.activity.is_answering.load(Ordering::Relaxed) || !words_of_hyper.starts_with(b"HTTP/1.1 4") {
            return false;
        }
        let fault = self.activity.next_fault().or_else(|| self.inbound.fault());
        let problem = match &words_of_hyper[9..12] {
            b"414" => target_too_long(),
            b"431" if fault == Some(Fault::LongTarget) => target_too_long(),
            b"431" => head_too_large(),
            _ => Problem::new(Code::BadRequest, "the request is not valid HTTP/1.1"),
        };
        self.own_words = in_bytes(problem.closing());
        true
    }
}

impl<T: Transport> Line<T> {
    pub(super) fn socket(&self) -> Arc<Mutex<T>> {
        Arc::clone(&self.socket)
    }

    /// Ready when there is something to read, the end included.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        locked(&self.socket).poll_readable(cx)
    }
}

impl Transport for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_read_ready(cx).map(drop)
    }

    fn try_last_words(&self, words: &[u8]) {
        let _sent = self.try_write(words);
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

    fn try_last_words(&self, words: &[u8]) {
        let _sent = self.try_write(words);
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

/// Never waits: one task has the connection.
pub(super) fn locked<T>(socket: &Mutex<T>) -> MutexGuard<'_, T> {
    socket.lock().expect("no thread panics while it holds a socket")
}

impl<T: AsyncWrite + Unpin> Line<T> {
    fn poll_own_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.own_words.is_empty() {
            let written = ready!(Pin::new(&mut *locked(&self.socket)).poll_write(cx, &self.own_words))?;
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
        ready!(Pin::new(&mut *locked(&this.socket)).poll_read(cx, buffer))?;
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            this.watch(read);
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
        this.activity.wrote(Pin::new(&mut *locked(&this.socket)).poll_write(cx, bytes))
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
        this.activity.wrote(Pin::new(&mut *locked(&this.socket)).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        locked(&self.socket).is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_own_words(cx))?;
        ready!(Pin::new(&mut *locked(&this.socket)).poll_flush(cx))?;
        this.activity.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.activity.is_handed_back.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_own_words(cx))?;
        Pin::new(&mut *locked(&this.socket)).poll_shutdown(cx)
    }
}

/// A whole answer as it goes over the wire.
pub(super) fn in_bytes(problem: Problem) -> Vec<u8> {
    let response = problem.into_response();
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
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

fn target_too_long() -> Problem {
    Problem::new(Code::TargetTooLong, "the request target is longer than 64 KiB").closing()
}

fn head_too_large() -> Problem {
    Problem::new(Code::HeadTooLarge, "the head has more than 64 KiB or 128 fields").closing()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(head: &str, piece: usize) -> Option<Fault> {
        let mut seen = Head::default();
        for bytes in head.as_bytes().chunks(piece) {
            seen.read(bytes);
        }
        seen.fault()
    }

    #[test]
    fn two_framings_are_seen_however_the_head_arrives() {
        let both =
            "\r\nPOST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\ncontent-LENGTH: 5\r\n\r\n";
        let in_body = "POST / HTTP/1.1\r\nContent-Length: 30\r\n\r\nTransfer-Encoding: chunked\r\n\r\n";
        let other_names = "POST / HTTP/1.1\r\nX-Content-Length: 1\r\nContent-Lengthy: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for piece in [1, 2, 7, 1000] {
            assert_eq!(fault(both, piece), Some(Fault::Framing), "{piece}");
            assert_eq!(fault(in_body, piece), None, "{piece}");
            assert_eq!(fault(other_names, piece), None, "{piece}");
            for length in [format!("{:40}5", ""), format!("{:040}5", 0)] {
                let wide = format!("POST / HTTP/1.1\r\nContent-Length:{length}\r\n\r\n");
                assert_eq!(fault(&wide, piece), Some(Fault::Framing), "{wide}");
            }
        }
    }

    #[test]
    fn target_and_fields_are_measured_apart() {
        let long = "a".repeat(LARGEST);
        assert_eq!(fault(&format!("GET /{long} HTTP/1.1\r\n"), 4096), Some(Fault::LongTarget));
        assert_eq!(fault(&format!("GET /{long}"), 4096), Some(Fault::LongTarget));
        assert_eq!(fault(&format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n"), 4096), Some(Fault::LargeFields));
        assert_eq!(fault(&format!("GET /{} HTTP/1.1\r\nX: 1\r\n\r\n", &long[..60_000]), 4096), None);
    }

    #[test]
    fn requests_behind_one_another_are_judged_one_by_one() {
        let both = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n";
        let chunks = "3;x=1\r\n0\r\n\r\n000A\r\n0123456789\r\n0\r\nT: 1\r\n\r\n";
        let stream = format!(
            "GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n\r\n\r\
             POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{both}"
        );
        for piece in [1, 3, 1000] {
            let activity = Activity::new();
            let mut inbound = Inbound::Head(0, Head::default());
            stream.as_bytes().chunks(piece).for_each(|bytes| inbound.read(bytes, &activity));

            let refused: Vec<_> = (0..4).map(|_| activity.answering().1.is_some()).collect();
            assert_eq!(refused, [false, false, false, true], "{piece}");
        }
    }
}
