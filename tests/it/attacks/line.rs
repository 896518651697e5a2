//! A caller's connection, raw: what is written, what comes back, and when it ends.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::Socket;

/// Nothing takes longer, on a slow and shared machine, unless it hangs.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
const CLOSED_WITHIN: Duration = Duration::from_secs(5);
/// So that the pieces arrive as such.
const BETWEEN_PIECES: Duration = Duration::from_millis(1);
const TICK: Duration = Duration::from_millis(20);

/// What carries the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Unix,
}

/// How a caller behaves beside its bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Manner {
    /// It asks for a head only.
    pub(crate) is_head: bool,
    /// It shuts down its sending side after the request.
    pub(crate) half_close: bool,
    /// It waits for the daemon to close before it shuts down its sending side.
    pub(crate) awaits_close: bool,
}

/// What a caller got.
#[derive(Default)]
pub(crate) struct Heard {
    /// Every byte.
    pub(crate) raw: Vec<u8>,
    /// The same as answers.
    pub(crate) replies: Vec<Reply>,
    /// What is not an answer, when something is not.
    pub(crate) malformed: Option<String>,
    /// The daemon closed before the caller had shut down its sending side.
    pub(crate) was_closed: bool,
    /// The daemon closed at all.
    pub(crate) has_ended: bool,
    /// Until the first answer was complete.
    pub(crate) took: Duration,
}

/// A final answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// In order, names in lower case, values as latin-1.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) is_complete: bool,
}

/// Connects to the daemon.
pub(crate) fn connect(transport: Transport, authority: &str, path: &Path) -> Socket {
    let socket: Socket = match transport {
        Transport::Tcp => TcpStream::connect(authority).unwrap().into(),
        Transport::Unix => UnixStream::connect(path).unwrap().into(),
    };
    socket.set_read_timeout(Some(TICK)).unwrap();
    socket.set_write_timeout(Some(ANSWERED_WITHIN)).unwrap();
    socket
}

/// Writes the pieces and listens until the daemon closes.
pub(crate) fn exchange(socket: &Socket, pieces: &[&[u8]], manner: Manner) -> Heard {
    std::thread::scope(|scope| {
        scope.spawn(|| write(socket, pieces, manner));
        listen(socket, manner)
    })
}

fn write(mut socket: &Socket, pieces: &[&[u8]], manner: Manner) {
    // A daemon that refuses may have closed before all was written.
    let _written = pieces.iter().enumerate().try_for_each(|(at, piece)| {
        if at > 0 {
            std::thread::sleep(BETWEEN_PIECES);
        }
        socket.write_all(piece)
    });
    if manner.half_close {
        let _shut = socket.shutdown(Shutdown::Write);
    }
}

fn listen(socket: &Socket, manner: Manner) -> Heard {
    let mut heard = Heard::default();
    let started = Instant::now();
    while !heard.has_answer() && !heard.has_ended && started.elapsed() < ANSWERED_WITHIN {
        heard.fill(socket, manner);
    }
    heard.took = started.elapsed();
    let answered = Instant::now();
    while manner.awaits_close && !heard.has_ended && answered.elapsed() < CLOSED_WITHIN {
        heard.fill(socket, manner);
    }
    heard.was_closed = heard.has_ended;
    let _shut = socket.shutdown(Shutdown::Write);
    let shut = Instant::now();
    while !heard.has_ended && shut.elapsed() < CLOSED_WITHIN {
        heard.fill(socket, manner);
    }
    let _gone = socket.shutdown(Shutdown::Both);
    heard
}

impl Heard {
    /// The first final answer.
    pub(crate) fn reply(&self) -> Option<&Reply> {
        self.replies.first()
    }

    fn has_answer(&self) -> bool {
        self.replies.first().is_some_and(|reply| reply.is_complete)
    }

    fn fill(&mut self, mut socket: &Socket, manner: Manner) {
        let mut piece = [0; 64 * 1024];
        match socket.read(&mut piece) {
            Ok(0) => self.has_ended = true,
            Ok(read) => self.raw.extend_from_slice(&piece[..read]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(_reset) => self.has_ended = true,
        }
        self.parse(manner.is_head);
    }

    fn parse(&mut self, is_head: bool) {
        self.replies.clear();
        self.malformed = None;
        let mut rest = self.raw.as_slice();
        while !rest.is_empty() {
            let first_of_head = is_head && self.replies.is_empty();
            let (reply, length) = match parse(rest, first_of_head, self.has_ended) {
                Ok(Some(found)) => found,
                Ok(None) => return,
                Err(what) => return self.malformed = Some(what),
            };
            rest = &rest[length..];
            if reply.status >= 200 || reply.status == 101 {
                self.replies.push(reply);
            }
        }
    }
}

impl Reply {
    /// All values of a field.
    pub(crate) fn named(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The code, when this is an answer of the proxy's own and in order.
    pub(crate) fn problem(&self) -> Option<String> {
        let said = self.named("proxy-status");
        let is_ours = matches!(said.as_slice(), [one] if one.starts_with("cnblogs-proxy; error="));
        let is_typed = self.named("content-type") == ["application/problem+json"];
        let body: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        let code = body["type"].as_str()?.strip_prefix("urn:cnblogs-proxy:")?;
        (is_ours && is_typed && body["status"] == self.status).then(|| code.to_owned())
    }
}

/// The first answer and its length; none while its head is not there.
fn parse(raw: &[u8], is_head: bool, has_ended: bool) -> Result<Option<(Reply, usize)>, String> {
    // To a caller that speaks 1.0, hyper says so, too.
    let is_answer =
        [b"HTTP/1.1 ", b"HTTP/1.0 "].iter().any(|version| raw.starts_with(&version[..raw.len().min(9)]));
    if !is_answer {
        return Err(format!("no answer: {:?}", latin1(&raw[..raw.len().min(80)])));
    }
    let Some(end) = find(raw, b"\r\n\r\n") else { return Ok(None) };
    let head = latin1(&raw[..end]);
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default();
    let status = line.get(9..12).and_then(|digits| digits.parse().ok());
    let status: u16 = status.ok_or_else(|| format!("no status: {line:?}"))?;
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("no field: {line:?}"))?;
        if name.is_empty() || name.contains([' ', '\t']) || line.contains(['\r', '\n', '\0']) {
            return Err(format!("no field: {line:?}"));
        }
        fields.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
    }
    let mut reply = Reply { status, fields, body: Vec::new(), is_complete: false };
    let length = end + 4 + read_body(&mut reply, &raw[end + 4..], is_head, has_ended)?;
    Ok(Some((reply, length)))
}

/// Reads the body as far as it is there and returns how many bytes it took.
fn read_body(reply: &mut Reply, rest: &[u8], is_head: bool, has_ended: bool) -> Result<usize, String> {
    if is_head || reply.status < 200 || matches!(reply.status, 204 | 304) {
        reply.is_complete = true;
        return Ok(0);
    }
    let lengths: Vec<String> =
        reply.named("content-length").iter().map(|&length| length.to_owned()).collect();
    let encodings: Vec<String> =
        reply.named("transfer-encoding").iter().map(|&name| name.to_owned()).collect();
    match (lengths.as_slice(), encodings.as_slice()) {
        ([length], []) => {
            let length: usize =
                length.parse().map_err(|error| format!("Content-Length {length:?}: {error}"))?;
            let taken = length.min(rest.len());
            reply.body = rest[..taken].to_vec();
            reply.is_complete = taken == length;
            Ok(taken)
        }
        ([], [encoding]) if encoding == "chunked" => read_chunks(reply, rest),
        ([], []) => {
            reply.body = rest.to_vec();
            reply.is_complete = has_ended;
            Ok(rest.len())
        }
        _ => Err(format!("ambiguous framing: {lengths:?} and {encodings:?}")),
    }
}

fn read_chunks(reply: &mut Reply, rest: &[u8]) -> Result<usize, String> {
    let mut at = 0;
    loop {
        let Some(end) = find(&rest[at..], b"\r\n") else { return Ok(rest.len()) };
        let line = latin1(&rest[at..at + end]);
        let size =
            usize::from_str_radix(&line, 16).map_err(|error| format!("chunk size {line:?}: {error}"))?;
        at += end + 2;
        if size == 0 {
            let Some(end) = find(&rest[at - 2..], b"\r\n\r\n") else { return Ok(rest.len()) };
            reply.is_complete = true;
            return Ok(at + end + 2);
        }
        let there = size.min(rest.len() - at);
        reply.body.extend_from_slice(&rest[at..at + there]);
        if rest.len() < at + size + 2 {
            return Ok(rest.len());
        }
        at += size + 2;
    }
}

/// Where the needle is.
pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(haystack, needle)
}

/// Every byte as the `char` of the same number.
pub(crate) fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}
