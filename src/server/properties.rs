//! A caller's bytes, before anything is a request.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
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

use super::connection::{LARGEST_HEAD, MOST_FIELDS};
use super::socket::{ConnectionState, Ended, Phase, Transport, WatchedSocket};
use crate::testing::fuzz::Input;

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
struct Socket {
    pieces: Vec<Vec<u8>>,
}

impl Transport for Socket {
    fn poll_readable(&self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn try_write_some(&self, _bytes: &[u8]) {}

    fn ended(&self) -> Ended {
        Ended::Nothing
    }

    fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        None
    }
}

/// One request of the stream is one request for hyper; and behind one that has both framings there is none.
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

/// The methods of the requests that hyper makes of a stream behind the watched socket.
fn by_hyper(stream: &[u8], size: usize, reads_bodies: bool) -> Vec<String> {
    let seen = RefCell::new(Vec::new());
    let state = ConnectionState::new();
    let service = service_fn(|request: Request<Incoming>| {
        seen.borrow_mut().push(request.method().to_string());
        let (busy, _) = state.busy(false);
        assert_eq!(state.phase(), Phase::Busy);
        async move {
            if reads_bodies {
                let _whole = request.into_body().collect().await;
            }
            drop(busy);
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let socket = Socket { pieces: stream.chunks(size).rev().map(<[u8]>::to_vec).collect() };
    let socket = WatchedSocket::new(socket, Arc::clone(&state), None);
    let connection = http1::Builder::new()
        .half_close(true)
        .max_headers(MOST_FIELDS)
        .max_header_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(socket), service);

    let mut connection = std::pin::pin!(connection);
    let mut context = Context::from_waker(std::task::Waker::noop());
    for _ in 0..stream.len() + 100 {
        if connection.as_mut().poll(&mut context).is_ready() {
            break;
        }
    }
    seen.into_inner()
}

/// The methods of the requests of a stream, by RFC 9112, sections 2, 6 and 7, and whether they are all.
fn by_hand(mut stream: &[u8]) -> (Vec<String>, bool) {
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
        seen.push(request.method.unwrap_or_default().to_owned());

        let is_chunked = encodings == 1
            && request.headers.iter().filter(is("transfer-encoding")).all(|field| field.value == b"chunked");
        let body = &stream[end..];
        match length(&lengths) {
            // Both framings: the connection ends behind it (RFC 9112, section 6.1).
            _ if is_chunked && !lengths.is_empty() => return (seen, true),
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

impl AsyncRead for Socket {
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
                pieces.push(later.to_vec());
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
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
    use crate::testing::fuzz::holds;

    #[test]
    fn requests_of_a_stream_are_hypers_requests() {
        holds("requests", 500, requests);
    }

    #[test]
    fn composed_requests_are_hypers_requests_as_well() {
        holds("composed_requests", 500, composed_requests);
    }
}
