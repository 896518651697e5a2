//! A caller's bytes, before anything is a request.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::line::{Activity, Line};
use crate::fuzz::Input;

const LARGEST: usize = 64 * 1024;
const MOST_FIELDS: usize = 128;
/// A Content-Length with more white space or zeros is refused.
const LONGEST_LENGTH: usize = "content-length: 12345678901234567890\r\n".len();

const NAMES: [&str; 8] = [
    "Content-Length",
    "Transfer-Encoding",
    "X-Content-Length",
    "Content-Lengthy",
    "Transfer-Encoding-X",
    "X",
    "Connection",
    "Expect",
];
const VALUES: [&str; 9] = ["0", "3", "003", "chunked", "gzip", "keep-alive", "100-continue", "+3", ""];

/// What a socket brings, piece by piece, and then its end.
struct Socket<'a> {
    pieces: Vec<&'a [u8]>,
}

/// A request as hyper gave it to us, and whether the line had seen a fault in it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    method: String,
    is_faulty: bool,
}

/// One request on the line is one request for hyper, and what is ambiguous in it is seen in it and in no other.
pub fn requests(bytes: &[u8]) {
    let (expected, are_all) = by_hand(bytes);
    for (size, reads_bodies) in [(1, true), (7, false), (usize::MAX, true), (usize::MAX, false)] {
        let seen = by_hyper(bytes, size, reads_bodies);
        for (expected, seen) in expected.iter().zip(&seen) {
            assert_eq!(expected, seen, "{size} bytes at a time: {}", bytes.escape_ascii());
        }
        assert!(!are_all || seen.len() <= expected.len(), "{seen:?} of {}", bytes.escape_ascii());
    }
}

/// The same for requests that are nearly right.
pub fn composed_requests(bytes: &[u8]) {
    requests(&composed(&mut Input::new(bytes)));
}

/// What hyper makes of a stream behind the line.
fn by_hyper(stream: &[u8], size: usize, reads_bodies: bool) -> Vec<Seen> {
    let seen = RefCell::new(Vec::new());
    let activity = Activity::new();
    let service = service_fn(|request: Request<Incoming>| {
        let method = request.method().to_string();
        seen.borrow_mut().push(Seen { method, is_faulty: activity.answering().1.is_some() });
        let activity = &activity;
        async move {
            if reads_bodies {
                let _whole = request.into_body().collect().await;
            }
            activity.callers_turn();
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let line = Line::new(Socket { pieces: stream.chunks(size).rev().collect() }, Arc::clone(&activity));
    let connection = http1::Builder::new()
        .half_close(true)
        .max_headers(MOST_FIELDS)
        .max_header_size(Line::<Socket<'_>>::HYPER_TAKES)
        .serve_connection(TokioIo::new(line), service);

    let mut connection = std::pin::pin!(connection);
    let mut context = Context::from_waker(std::task::Waker::noop());
    for _ in 0..stream.len() + 100 {
        if connection.as_mut().poll(&mut context).is_ready() {
            break;
        }
    }
    seen.into_inner()
}

/// The requests of a stream and their faults, by RFC 9112, sections 2, 6 and 7, and whether they are all.
fn by_hand(mut stream: &[u8]) -> (Vec<Seen>, bool) {
    let mut seen = Vec::new();
    loop {
        let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        let Ok(httparse::Status::Complete(end)) = request.parse(stream) else { return (seen, true) };
        let is =
            |name: &'static str| move |field: &&httparse::Header<'_>| field.name.eq_ignore_ascii_case(name);
        let encodings = request.headers.iter().filter(is("transfer-encoding")).count();
        let lengths: Vec<_> =
            request.headers.iter().filter(is("content-length")).map(|field| field.value).collect();

        let start = stream.len() - stream.iter().skip_while(|byte| b"\r\n".contains(byte)).count();
        let line_end =
            stream.iter().skip(start).position(|byte| *byte == b'\n').map_or(end, |at| start + at + 1);
        let is_large = line_end - start > LARGEST || end - line_end > LARGEST;
        let head = stream[..end].to_ascii_lowercase();
        let is_wide = |line: &[u8]| line.starts_with(b"content-length:") && line.len() >= LONGEST_LENGTH;
        let is_unclear = head.split(|byte| *byte == b'\n').any(is_wide);
        let is_faulty = is_large || is_unclear || encodings > 0 && !lengths.is_empty();
        seen.push(Seen { method: request.method.unwrap_or_default().to_owned(), is_faulty });

        let is_chunked = encodings == 1
            && request.headers.iter().filter(is("transfer-encoding")).all(|field| field.value == b"chunked");
        let body = &stream[end..];
        match length(&lengths).filter(|_| !is_unclear) {
            Some(_) if is_chunked => match behind_chunks(body) {
                Some(rest) => stream = rest,
                None => return (seen, false),
            },
            Some(length) if encodings == 0 && length <= body.len() => stream = &body[length..],
            Some(_) if encodings == 0 => return (seen, true),
            _ => return (seen, false),
        }
    }
}

/// What follows a chunked body; none when it is not whole.
fn behind_chunks(mut stream: &[u8]) -> Option<&[u8]> {
    loop {
        let Ok(httparse::Status::Complete((start, size))) = httparse::parse_chunk_size(stream) else {
            return None;
        };
        let rest = &stream[start..];
        if size == 0 {
            // A line feed alone ends no trailer for hyper.
            let end = memchr::memmem::find(rest, b"\r\n\r\n").map(|at| at + 4);
            return rest.strip_prefix(b"\r\n").or_else(|| rest.get(end?..));
        }
        let end = usize::try_from(size).ok()?;
        stream = rest.get(end..)?.strip_prefix(b"\r\n")?;
    }
}

/// None when it can't be told.
fn length(lengths: &[&[u8]]) -> Option<usize> {
    let Some(first) = lengths.first() else { return Some(0) };
    let is_clear = lengths.iter().all(|other| other == first) && first.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(first).ok().filter(|_| is_clear)?.parse().ok()
}

/// Requests behind one another that are nearly right.
fn composed(input: &mut Input<'_>) -> Vec<u8> {
    let mut stream = String::new();
    for n in 0..=input.below(5) {
        let end = input.one_of(&["\r\n", "\r\n", "\r\n", "\n"]);
        let empty = input.one_of(&["", "", "\r\n", "\n\r\n"]);
        let body = input.one_of(&["", "abc", "\r\n\r\n", "0\r\n\r\n", "M /x HTTP/1.1\r\n\r\nxx"]);
        let mut fields = vec![("Host", "x".to_owned())];
        let is_chunked = input.below(4) == 0;
        let body = if is_chunked { chunked(body, input) } else { body.to_owned() };
        if is_chunked {
            fields.push((input.one_of(&["Transfer-Encoding", "transfer-encoding"]), "chunked".to_owned()));
        }
        if input.below(4) > usize::from(is_chunked) * 2 {
            fields.push((input.one_of(&["Content-Length", "content-LENGTH"]), body.len().to_string()));
        }
        if input.below(4) == 0 {
            fields.push((input.one_of(&NAMES), input.one_of(&VALUES).to_owned()));
        }
        let swapped = input.below(fields.len());
        fields.swap(0, swapped);

        stream.push_str(&format!("{empty}M{n} /{n} HTTP/1.1{end}"));
        for (name, value) in fields {
            let space = input.one_of(&["", " ", "\t", "                                        "]);
            stream.push_str(&format!("{name}:{space}{value}{space}{end}"));
        }
        stream.push_str(&format!("{end}{body}"));
    }
    stream.into_bytes()
}

/// A body in chunks, most of the time a right one.
fn chunked(body: &str, input: &mut Input<'_>) -> String {
    let (first, second) = body.split_at(input.below(body.len() + 1));
    let mut chunks = String::new();
    for part in [first, second].into_iter().filter(|part| !part.is_empty()) {
        let extension = input.one_of(&["", "", ";a=b", ";0", " ", "x"]);
        let zeros = input.one_of(&["", "", "0", "000000000000000"]);
        chunks.push_str(&format!("{zeros}{:X}{extension}\r\n{part}\r\n", part.len()));
    }
    let trailers = input.one_of(&["", "", "", "T: 1\r\n", "Content-Length: 9\r\nT: 1\r\n", "\n"]);
    format!("{chunks}0\r\n{trailers}\r\n")
}

impl AsyncRead for Socket<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let pieces = &mut self.get_mut().pieces;
        if let Some(piece) = pieces.pop() {
            let (now, later) = piece.split_at(piece.len().min(buffer.remaining()));
            buffer.put_slice(now);
            if !later.is_empty() {
                pieces.push(later);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket<'_> {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::holds;

    #[test]
    fn requests_on_the_line_are_hypers_requests() {
        holds("requests", 500, requests);
    }

    #[test]
    fn composed_requests_are_hypers_requests_as_well() {
        holds("composed_requests", 500, composed_requests);
    }
}
