//! A caller's socket, watched: what hyper does not tell is seen as the bytes go by. How long a head takes, how
//! long nothing is read or written, whether a head is ambiguous; and hyper's bare refusals become problems.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::config::Limits;
use crate::problem::{Code, Problem};

/// Longer targets and larger field sections are refused.
const LARGEST: usize = 64 * 1024;
/// A caller that reads nothing for that long is gone.
const WRITE_STALL: Duration = Duration::from_secs(60);
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Between requests.
const IDLE: u8 = 0;
/// A head has begun.
const HEAD: u8 = 1;
/// A request is being answered.
const BUSY: u8 = 2;

/// What a connection does, and since when, in milliseconds since it was accepted.
pub(super) struct Activity {
    accepted: Instant,
    phase: AtomicU8,
    since_ms: AtomicU64,
    blocked_since_ms: AtomicU64,
    is_answering: AtomicBool,
    fault: AtomicU8,
}

/// The socket, watched.
pub(super) struct Line<T> {
    socket: T,
    activity: Arc<Activity>,
    head: Head,
    own_words: Vec<u8>,
}

/// What is seen of a head while it comes in.
#[derive(Default)]
struct Head {
    /// The start of the current line, as far as a name that matters can reach.
    start: Vec<u8>,
    request_line: usize,
    fields: usize,
    has_request_line: bool,
    has_length: bool,
    has_encoding: bool,
    is_over: bool,
}

/// What is wrong with a head that hyper takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Fault {
    None,
    TwoFramings,
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
            fault: AtomicU8::new(Fault::None as u8),
        })
    }

    /// A request is being answered from now on. Says what is wrong with its head, if anything is.
    pub(super) fn answering(&self) -> Option<Problem> {
        self.enter(BUSY);
        self.is_answering.store(true, Ordering::Relaxed);
        let fault = self.fault.swap(Fault::None as u8, Ordering::Relaxed);
        if fault == Fault::TwoFramings as u8 {
            Some(Problem::new(Code::BadRequest, "the request has more than one framing").closing())
        } else if fault == Fault::LongTarget as u8 {
            Some(target_too_long())
        } else if fault == Fault::LargeFields as u8 {
            Some(head_too_large())
        } else {
            None
        }
    }

    /// The answer is complete or given up.
    pub(super) fn answered(&self) {
        self.enter(IDLE);
    }

    /// When the connection has to be given up, as things are.
    pub(super) fn deadline(&self, limits: &Limits) -> Instant {
        let since = Duration::from_millis(self.since_ms.load(Ordering::Relaxed));
        let patience = match self.phase.load(Ordering::Relaxed) {
            IDLE => since + limits.idle_timeout,
            HEAD => since + limits.header_timeout,
            _ => NEVER,
        };
        let blocked = self.blocked_since_ms.load(Ordering::Relaxed);
        let unread = if blocked == u64::MAX { NEVER } else { Duration::from_millis(blocked) + WRITE_STALL };
        self.accepted + patience.min(unread)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is(&self, phase: u8) -> bool {
        self.phase.load(Ordering::Relaxed) == phase
    }

    fn enter(&self, phase: u8) {
        self.since_ms.store(self.now_ms(), Ordering::Relaxed);
        self.phase.store(phase, Ordering::Relaxed);
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
        if !self.is(BUSY) {
            self.is_answering.store(false, Ordering::Relaxed);
        }
    }
}

impl Head {
    /// Long enough for the longest name that matters, and its colon.
    const START: usize = "transfer-encoding:".len();

    /// Takes in more bytes; what follows the head is not looked at.
    fn read(&mut self, mut bytes: &[u8]) {
        while !self.is_over && !bytes.is_empty() {
            let end = memchr::memchr(b'\n', bytes).map(|at| at + 1);
            let part = &bytes[..end.unwrap_or(bytes.len())];
            let room = Self::START - self.start.len();
            self.start.extend_from_slice(&part[..part.len().min(room)]);
            *(if self.has_request_line { &mut self.fields } else { &mut self.request_line }) += part.len();
            if end.is_some() {
                self.end_line();
            }
            bytes = &bytes[part.len()..];
        }
    }

    fn end_line(&mut self) {
        let is_empty = self.start == b"\n" || self.start == b"\r\n";
        if !self.has_request_line {
            // Empty lines before a request line are passed over (RFC 9112, section 2.2).
            self.has_request_line = !is_empty;
            self.request_line *= usize::from(!is_empty);
        } else {
            let name = self.start.split(|byte| *byte == b':').next().unwrap_or_default();
            self.has_length |= name.eq_ignore_ascii_case(b"content-length");
            self.has_encoding |= name.eq_ignore_ascii_case(b"transfer-encoding");
            self.is_over = is_empty;
        }
        self.start.clear();
    }

    fn fault(&self) -> Fault {
        if self.request_line > LARGEST {
            Fault::LongTarget
        } else if self.fields > LARGEST {
            Fault::LargeFields
        } else if self.has_length && self.has_encoding {
            Fault::TwoFramings
        } else {
            Fault::None
        }
    }
}

impl<T> Line<T> {
    /// What hyper takes of a head: a target and fields of 64 KiB each, and some more, so that it is us who refuse.
    pub(super) const HYPER_TAKES: usize = 3 * LARGEST;

    pub(super) fn new(socket: T, activity: Arc<Activity>) -> Self {
        Self { socket, activity, head: Head::default(), own_words: Vec::new() }
    }

    fn watch(&mut self, read: &[u8]) {
        if self.activity.is(IDLE) {
            self.activity.enter(HEAD);
            self.head = Head::default();
        }
        if self.activity.is(HEAD) {
            self.head.read(read);
            self.activity.fault.store(self.head.fault() as u8, Ordering::Relaxed);
        }
    }

    /// hyper answers what it can't parse with a bare status. That is ours to say, as a problem.
    fn reword(&mut self, words_of_hyper: &[u8]) -> bool {
        if self.activity.is_answering.load(Ordering::Relaxed) || !words_of_hyper.starts_with(b"HTTP/1.1 4") {
            return false;
        }
        let problem = match &words_of_hyper[9..12] {
            b"414" => target_too_long(),
            b"431" if self.head.fault() == Fault::LongTarget => target_too_long(),
            b"431" => head_too_large(),
            _ => Problem::new(Code::BadRequest, "the request is not valid HTTP/1.1"),
        };
        self.own_words = in_bytes(problem.closing());
        true
    }
}

impl<T: AsyncWrite + Unpin> Line<T> {
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
        let read = &buffer.filled()[before..];
        if !read.is_empty() && !this.activity.is(BUSY) {
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
        ready!(Pin::new(&mut this.socket).poll_flush(cx))?;
        this.activity.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_own_words(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
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

    fn fault(head: &str, piece: usize) -> Fault {
        let mut seen = Head::default();
        head.as_bytes().chunks(piece).for_each(|bytes| seen.read(bytes));
        seen.fault()
    }

    #[test]
    fn two_framings_are_seen_however_the_head_arrives() {
        let both =
            "\r\nPOST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\ncontent-LENGTH: 5\r\n\r\n";
        let in_body = "POST / HTTP/1.1\r\nContent-Length: 30\r\n\r\nTransfer-Encoding: chunked\r\n\r\n";
        let other_names = "POST / HTTP/1.1\r\nX-Content-Length: 1\r\nContent-Lengthy: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for piece in [1, 2, 7, 1000] {
            assert_eq!(fault(both, piece), Fault::TwoFramings, "{piece}");
            assert_eq!(fault(in_body, piece), Fault::None, "{piece}");
            assert_eq!(fault(other_names, piece), Fault::None, "{piece}");
        }
    }

    #[test]
    fn target_and_fields_are_measured_apart() {
        let long = "a".repeat(LARGEST);
        assert_eq!(fault(&format!("GET /{long} HTTP/1.1\r\n"), 4096), Fault::LongTarget);
        assert_eq!(fault(&format!("GET /{long}"), 4096), Fault::LongTarget);
        assert_eq!(fault(&format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n"), 4096), Fault::LargeFields);
        assert_eq!(fault(&format!("GET /{} HTTP/1.1\r\nX: 1\r\n\r\n", &long[..60_000]), 4096), Fault::None);
    }
}
