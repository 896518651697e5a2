//! What an upstream answers over HTTP/1.1: where its parts begin and end.

use std::time::Duration;

use bytes::Bytes;

use super::http1::framing::{Body, Head, Next};
use crate::proxy::properties::listed;
use crate::testing::fuzz::Input;

/// What was read of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    status: u16,
    fields: Vec<(String, Vec<u8>)>,
    is_persistent: bool,
    keeps_idle: Option<Duration>,
    body: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
    is_refused: bool,
    /// How many bytes are behind the answer, when its end came.
    behind: Option<usize>,
}

/// However an answer is cut into pieces on its way, the same is read, or the same refused.
pub fn answer(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (is_of_head, piece) = (input.flag(), 1 + input.below(9));
    let raw = input.rest();

    assert_eq!(read(raw, piece, is_of_head), read(raw, raw.len(), is_of_head));
}

/// An answer that is in order is read as it was meant, up to its end and no further.
pub fn answer_round_trip(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let status = input.one_of(&[200, 201, 404, 500, 599]);
    let mut raw = Vec::new();
    for _ in 0..input.below(3) {
        raw.extend_from_slice(
            input.one_of(&["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 x\r\nLink: y\r\n\r\n"]).as_bytes(),
        );
    }
    raw.extend_from_slice(format!("HTTP/1.1 {status} reason\r\nX-A: {}\r\n", input.below(1000)).as_bytes());
    let (body, trailers) =
        if input.flag() { chunked(&mut input, &mut raw) } else { sized(&mut input, &mut raw) };
    let piece = 1 + input.below(300);
    let behind = input.rest();
    raw.extend_from_slice(behind);

    let read = read(&raw, piece, false);

    assert!(!read.is_refused, "{}", raw.escape_ascii());
    assert!(read.is_persistent, "its end is certain: {}", raw.escape_ascii());
    assert_eq!((read.status, read.body, read.trailers), (status, body, trailers));
    assert_eq!(read.behind, Some(behind.len()));
}

type Fields = Vec<(String, Vec<u8>)>;

/// A body in chunks and its trailers, appended to a head.
fn chunked(input: &mut Input<'_>, raw: &mut Vec<u8>) -> (Vec<u8>, Fields) {
    raw.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
    let mut body = Vec::new();
    for _ in 0..input.below(6) {
        let (data, extension) = (input.bytes(), input.one_of(&["", ";a", " ;a=\"b\"", "\t"]));
        if !data.is_empty() {
            raw.extend_from_slice(
                format!("{:0width$X}{extension}\r\n", data.len(), width = input.below(9)).as_bytes(),
            );
            raw.extend_from_slice(data);
            raw.extend_from_slice(b"\r\n");
            body.extend_from_slice(data);
        }
    }
    let trailers: Fields = (0..input.below(3)).map(|n| (format!("x-{n}"), b"value".to_vec())).collect();
    raw.extend_from_slice(b"0\r\n");
    for (name, value) in &trailers {
        raw.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    raw.extend_from_slice(b"\r\n");
    (body, trailers)
}

/// A body whose length is said, appended to a head.
fn sized(input: &mut Input<'_>, raw: &mut Vec<u8>) -> (Vec<u8>, Fields) {
    let body = input.bytes().to_vec();
    raw.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
    raw.extend_from_slice(&body);
    (body, Vec::new())
}

/// Reads an answer that is received in pieces of that size.
fn read(raw: &[u8], piece: usize, is_of_head: bool) -> Read {
    let (mut read, mut received, mut pieces) = (Read::default(), Bytes::new(), raw.chunks(piece.max(1)));
    let mut body = None;
    loop {
        let more = match &mut body {
            None => read.head(&mut received, is_of_head, &mut body),
            Some(body) => read.body(&mut received, body),
        };
        match more {
            Some(true) => {}
            Some(false) => {
                let unread = received.len() + pieces.map(<[u8]>::len).sum::<usize>();
                read.behind = (!read.is_refused).then_some(unread);
                return read;
            }
            None => match pieces.next() {
                Some(next) => received = [&received, next].concat().into(),
                None => return read,
            },
        }
    }
}

impl Read {
    /// Whether to go on; none when more has to be received.
    fn head(&mut self, received: &mut Bytes, is_of_head: bool, body: &mut Option<Body>) -> Option<bool> {
        let Ok(next) = Head::next(received, is_of_head) else { return self.refuse() };
        let (head, follows) = next?;
        (self.status, self.fields) = (head.status.as_u16(), listed(&head.fields));
        (self.is_persistent, self.keeps_idle) = (head.is_persistent, head.keeps_idle);
        *body = Some(follows);
        Some(true)
    }

    fn body(&mut self, received: &mut Bytes, body: &mut Body) -> Option<bool> {
        match body.next(received) {
            Ok(Next::Data(data)) => self.body.extend_from_slice(&data),
            Ok(Next::Trailers(fields)) => self.trailers = listed(&fields),
            Ok(Next::Over) => return Some(false),
            Ok(Next::More) => return None,
            Err(_) => return self.refuse(),
        }
        Some(true)
    }

    fn refuse(&mut self) -> Option<bool> {
        self.is_refused = true;
        Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fuzz::holds;

    #[test]
    fn answer_is_the_same_in_all_pieces() {
        holds("answer", 5000, answer);
    }

    #[test]
    fn answer_round_trip_is_what_was_meant() {
        holds("answer_round_trip", 3000, answer_round_trip);
    }
}
