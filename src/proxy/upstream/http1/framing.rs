//! Where the parts of an HTTP/1.1 answer begin and end (RFC 9112): its head, its body, its trailers. No I/O.

use std::mem::MaybeUninit;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Longer heads and trailer sections are refused.
const LARGEST_HEAD: usize = 160 * 1024;
/// Heads with more fields are refused.
const MOST_FIELDS: usize = 128;
/// The line with a chunk's size, extensions included.
const LONGEST_LINE: usize = 4 * 1024;
/// Of a chunk's size: more don't fit into 64 bits.
const MOST_DIGITS: usize = 16;

/// An answer's head.
#[derive(Debug)]
pub(in crate::proxy::upstream) struct Head {
    pub(in crate::proxy::upstream) status: StatusCode,
    pub(in crate::proxy::upstream) fields: HeaderMap,
    /// Whether the connection goes on behind the answer (section 9.3), whose end is certain.
    pub(in crate::proxy::upstream) is_persistent: bool,
    /// How long the upstream keeps an idle connection, when it says so.
    pub(in crate::proxy::upstream) keeps_idle: Option<Duration>,
}

/// Where in an answer's body we are, and how its end is known (section 6.3).
#[derive(Debug, PartialEq, Eq)]
pub(in crate::proxy::upstream) enum Body {
    /// So many bytes are left.
    Length(u64),
    /// In a chunked body.
    Chunks(Chunk),
    /// Ends with the connection.
    UntilClose,
}

/// Where in a chunked body (section 7.1) we are.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::proxy::upstream) enum Chunk {
    /// Before the line with a chunk's size.
    Size,
    /// In a chunk with so many bytes left.
    Data(u64),
    /// Behind a chunk's bytes.
    End,
    /// Behind the last chunk.
    Trailers,
}

/// What comes next of a body.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::proxy::upstream) enum Next {
    Data(Bytes),
    Trailers(HeaderMap),
    /// Nothing more.
    Over,
    /// Not known before more is received.
    More,
}

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum Invalid {
    #[error("no HTTP")]
    Syntax(#[source] httparse::Error),
    #[error("a status that is none")]
    Status(#[source] http::status::InvalidStatusCode),
    #[error("a field name that is none")]
    Name(#[source] http::header::InvalidHeaderName),
    #[error("a field value that is none")]
    Value(#[source] http::header::InvalidHeaderValue),
    #[error("a head that is too large")]
    TooLarge,
    #[error("no way to know where the body ends")]
    Framing,
    #[error("a chunk that is none")]
    Chunk,
    #[error("an upgrade that nobody asked for")]
    Upgrade,
}

impl Head {
    /// The next head that is not interim (RFC 9110, section 15.2), and what follows it, if all of it was received: it
    /// is taken off. `is_of_head` says that HEAD was asked.
    pub(in crate::proxy::upstream) fn next(
        received: &mut Bytes,
        is_of_head: bool,
    ) -> Result<Option<(Self, Body)>, Invalid> {
        loop {
            let Some((status, version, fields)) = parsed(received)? else { return Ok(None) };
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Invalid::Upgrade);
            }
            if !status.is_informational() {
                let body = Body::of(status, version, &fields, is_of_head)?;
                let is_persistent = body != Body::UntilClose
                    && is_persistent(version, &fields)
                    && has_certain_end(status, &fields, is_of_head);
                let keeps_idle = keeps_idle(&fields);
                return Ok(Some((Self { status, fields, is_persistent, keeps_idle }, body)));
            }
            // Its body, which can't be (RFC 9112, section 6.3), would be read as the final answer.
            if announces_body(&fields) {
                return Err(Invalid::Framing);
            }
        }
    }
}

/// Status, minor version and fields of a head, which is taken off, if all of it is there.
fn parsed(received: &mut Bytes) -> Result<Option<(StatusCode, u8, HeaderMap)>, Invalid> {
    let whole = received.clone();
    let mut places = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let parsed = parser.parse_response_with_uninit_headers(&mut response, &whole, &mut places);
    let length = match parsed.map_err(Invalid::Syntax)? {
        httparse::Status::Complete(length) if length <= LARGEST_HEAD => length,
        httparse::Status::Partial if whole.len() < LARGEST_HEAD => return Ok(None),
        _ => return Err(Invalid::TooLarge),
    };
    let status = StatusCode::from_u16(response.code.unwrap_or_default()).map_err(Invalid::Status)?;
    let fields = fields_of(&whole, response.headers)?;
    received.advance(length);
    Ok(Some((status, response.version.unwrap_or_default(), fields)))
}

/// The fields as a map, whose values are parts of `whole`.
fn fields_of(whole: &Bytes, parsed: &[httparse::Header<'_>]) -> Result<HeaderMap, Invalid> {
    // The answer's own, and those that we put on.
    let mut fields = HeaderMap::with_capacity(parsed.len() + 2);
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(Invalid::Name)?;
        // That the connection goes on is the rule, and nothing about the answer.
        if name == CONNECTION && field.value.eq_ignore_ascii_case(b"keep-alive") {
            continue;
        }
        let value = HeaderValue::from_maybe_shared(whole.slice_ref(field.value)).map_err(Invalid::Value)?;
        fields.append(name, value);
    }
    Ok(fields)
}

/// Whether the connection may be used again (section 9.3). From HTTP/1.0 that is not expected.
fn is_persistent(version: u8, fields: &HeaderMap) -> bool {
    let values = fields.get_all(CONNECTION).into_iter();
    let mut options = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    version == 1 && !options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// The timeout that a server announces for an idle connection: `Keep-Alive: timeout=5, max=100` (RFC 2068, section
/// 19.7.1.1).
fn keeps_idle(fields: &HeaderMap) -> Option<Duration> {
    let values = fields.get_all(&KEEP_ALIVE).into_iter();
    let parameters = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let timeouts = parameters.filter_map(|parameter| {
        let equals = memchr::memchr(b'=', parameter)?;
        let is_timeout = parameter[..equals].trim_ascii().eq_ignore_ascii_case(b"timeout");
        let secs = parameter[equals + 1..].trim_ascii();
        let secs = secs.strip_prefix(b"\"").and_then(|secs| secs.strip_suffix(b"\"")).unwrap_or(secs);
        decimal(secs).filter(|_| is_timeout)
    });
    timeouts.min().map(Duration::from_secs)
}

/// False when the answer has no body by its method or status, and a server is known to send one all the same: its
/// bytes would be taken for the next answer.
fn has_certain_end(status: StatusCode, fields: &HeaderMap, is_of_head: bool) -> bool {
    match status {
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => !announces_body(fields),
        // The length of what GET would bring is expected here. An error is often written by a program in between that
        // does not know the method, and the last chunk by one that only leaves out the data.
        _ if is_of_head => status.is_success() && !fields.contains_key(TRANSFER_ENCODING),
        _ => true,
    }
}

/// Whether a body is said to follow.
fn announces_body(fields: &HeaderMap) -> bool {
    let mut lengths = fields.get_all(CONTENT_LENGTH).into_iter();
    lengths.any(|length| decimal(length.as_bytes()) != Some(0)) || fields.contains_key(TRANSFER_ENCODING)
}

impl Body {
    pub(in crate::proxy::upstream) const NONE: Self = Self::Length(0);

    fn of(status: StatusCode, version: u8, fields: &HeaderMap, is_of_head: bool) -> Result<Self, Invalid> {
        if is_of_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(Self::NONE);
        }
        let mut encodings = fields.get_all(TRANSFER_ENCODING).into_iter();
        if let Some(encoding) = encodings.next() {
            // We asked for no other one, and who doesn't know chunks can't send any.
            let is_chunked =
                encoding.as_bytes().eq_ignore_ascii_case(b"chunked") && encodings.next().is_none();
            return if is_chunked && version == 1 {
                Ok(Self::Chunks(Chunk::Size))
            } else {
                Err(Invalid::Framing)
            };
        }
        let values = fields.get_all(CONTENT_LENGTH).into_iter();
        let mut lengths = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        let Some(first) = lengths.next() else { return Ok(Self::UntilClose) };
        let length = decimal(first).ok_or(Invalid::Framing)?;
        // Said more than once, it has to be the same.
        let is_clear = lengths.all(|other| decimal(other) == Some(length));
        is_clear.then_some(Self::Length(length)).ok_or(Invalid::Framing)
    }

    /// How many bytes are left; none when it is not known.
    pub(in crate::proxy::upstream) fn length(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            _ => None,
        }
    }

    /// What comes next; it is taken off.
    pub(in crate::proxy::upstream) fn next(&mut self, received: &mut Bytes) -> Result<Next, Invalid> {
        match self {
            Self::Length(0) => Ok(Next::Over),
            Self::Length(left) => Ok(part(left, received)),
            Self::UntilClose => Ok(part(&mut { u64::MAX }, received)),
            Self::Chunks(chunk) => {
                let next = chunk.next(received)?;
                if matches!(next, Next::Over | Next::Trailers(_)) {
                    *self = Self::NONE;
                }
                Ok(next)
            }
        }
    }
}

impl Chunk {
    fn next(&mut self, received: &mut Bytes) -> Result<Next, Invalid> {
        loop {
            match self {
                Self::Size => match size(received)? {
                    None => return Ok(Next::More),
                    Some(0) => *self = Self::Trailers,
                    Some(size) => *self = Self::Data(size),
                },
                Self::Data(0) => *self = Self::End,
                Self::Data(left) => return Ok(part(left, received)),
                Self::End if end(received)? => *self = Self::Size,
                Self::End => return Ok(Next::More),
                Self::Trailers => return trailers(received),
            }
        }
    }
}

/// Takes off what is there of `left` bytes.
fn part(left: &mut u64, received: &mut Bytes) -> Next {
    if received.is_empty() {
        return Next::More;
    }
    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(received.len());
    *left -= here as u64;
    Next::Data(received.split_to(here))
}

/// The size of the chunk that begins here, if its line is there: it is taken off, with its extensions.
fn size(received: &mut Bytes) -> Result<Option<u64>, Invalid> {
    let seen = &received[..received.len().min(LONGEST_LINE)];
    let Some(end) = memchr::memchr(b'\n', seen) else {
        return if seen.len() < LONGEST_LINE { Ok(None) } else { Err(Invalid::Chunk) };
    };
    let line = seen[..end].strip_suffix(b"\r").ok_or(Invalid::Chunk)?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (number, extensions) = line.split_at(digits);
    let is_size = (1..=MOST_DIGITS).contains(&digits)
        && matches!(extensions.trim_ascii_start(), [] | [b';', ..])
        && !extensions.contains(&b'\r');
    let number = std::str::from_utf8(number).ok().filter(|_| is_size);
    let size = number.and_then(|number| u64::from_str_radix(number, 16).ok()).ok_or(Invalid::Chunk)?;
    received.advance(end + 1);
    Ok(Some(size))
}

/// Whether the end of a chunk's line is there: it is taken off.
fn end(received: &mut Bytes) -> Result<bool, Invalid> {
    if !received.iter().zip(b"\r\n").all(|(byte, expected)| byte == expected) {
        return Err(Invalid::Chunk);
    }
    let is_there = received.len() >= 2;
    received.advance(if is_there { 2 } else { 0 });
    Ok(is_there)
}

/// The trailer section, if all of it is there: it is taken off.
fn trailers(received: &mut Bytes) -> Result<Next, Invalid> {
    if received.starts_with(b"\r\n") {
        received.advance(2);
        return Ok(Next::Over);
    }
    let whole = received.clone();
    let mut places = [httparse::EMPTY_HEADER; MOST_FIELDS];
    match httparse::parse_headers(&whole, &mut places).map_err(Invalid::Syntax)? {
        httparse::Status::Complete((length, fields)) if length <= LARGEST_HEAD => {
            received.advance(length);
            Ok(Next::Trailers(fields_of(&whole, fields)?))
        }
        httparse::Status::Partial if whole.len() < LARGEST_HEAD => Ok(Next::More),
        _ => Err(Invalid::TooLarge),
    }
}

/// A number in digits and nothing else but white space around it.
fn decimal(text: &[u8]) -> Option<u64> {
    let digits = text.trim_ascii();
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head, what follows it, and what was received of that.
    fn head(text: &str, is_of_head: bool) -> Result<Option<(Head, Body, Bytes)>, Invalid> {
        let mut received = Bytes::copy_from_slice(text.as_bytes());
        Ok(Head::next(&mut received, is_of_head)?.map(|(head, body)| (head, body, received)))
    }

    /// All that comes of a body that is received in pieces of that size, and whether its end came.
    fn read(mut body: Body, text: &str, piece: usize) -> Result<(String, Vec<String>, bool), Invalid> {
        let (mut data, mut names, mut received) = (String::new(), Vec::new(), Bytes::new());
        let mut pieces = text.as_bytes().chunks(piece);
        loop {
            match body.next(&mut received)? {
                Next::Data(bytes) => data.push_str(std::str::from_utf8(&bytes).unwrap()),
                Next::Trailers(fields) => names.extend(fields.keys().map(ToString::to_string)),
                Next::Over => return Ok((data, names, true)),
                Next::More => match pieces.next() {
                    Some(more) => received = [&received[..], more].concat().into(),
                    None => return Ok((data, names, false)),
                },
            }
        }
    }

    #[test]
    fn how_a_body_ends_is_said_by_its_head() {
        let chunked = Body::Chunks(Chunk::Size);
        for (fields, is_of_head, expected) in [
            ("200 OK\r\nContent-Length: 5\r\n", false, Body::Length(5)),
            ("200 OK\r\nContent-Length: 5\r\nContent-Length:5 \r\n", false, Body::Length(5)),
            ("200 OK\r\nContent-Length: 5, 5\r\n", false, Body::Length(5)),
            ("200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 5\r\n", false, chunked),
            ("200 OK\r\n", false, Body::UntilClose),
            ("200\r\n", false, Body::UntilClose),
            ("200 OK\r\nContent-Length: 5\r\n", true, Body::NONE),
            ("304 Not Modified\r\nContent-Length: 5\r\n", false, Body::NONE),
            ("204 No Content\r\n", false, Body::NONE),
        ] {
            let (_, body, rest) = head(&format!("HTTP/1.1 {fields}\r\nrest"), is_of_head).unwrap().unwrap();
            assert_eq!((body, &rest[..]), (expected, &b"rest"[..]), "{fields}");
        }
    }

    #[test]
    fn an_answer_whose_end_can_be_read_two_ways_is_refused() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5,\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: 1\r\n Content-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 102 Processing\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 099 Low\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
        ] {
            assert!(head(text, false).is_err(), "{text}");
        }
    }

    #[test]
    fn interim_answers_are_passed_over_and_half_a_head_is_none() {
        let text = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\n";
        for end in 0..text.len() {
            assert!(head(&text[..end], false).unwrap().is_none(), "{end}");
        }
        let (head, _, rest) = head(text, false).unwrap().unwrap();
        assert_eq!((head.status, head.fields.len(), rest.len()), (StatusCode::OK, 1, 0));
    }

    #[test]
    fn a_head_that_never_ends_is_given_up() {
        let long = format!("HTTP/1.1 200 OK\r\nA: {}", "v".repeat(LARGEST_HEAD));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(MOST_FIELDS + 1));
        let all = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(MOST_FIELDS));
        assert!(matches!(head(&long, false), Err(Invalid::TooLarge)));
        assert!(matches!(head(&many, false), Err(Invalid::Syntax(httparse::Error::TooManyHeaders))));
        assert_eq!(head(&all, false).unwrap().unwrap().0.fields.len(), MOST_FIELDS);
    }

    #[test]
    fn a_connection_goes_on_unless_it_is_said_to_end() {
        for (text, is_persistent) in [
            ("HTTP/1.1 204 x\r\n\r\n", true),
            ("HTTP/1.1 204 x\r\nConnection: x, Close\r\n\r\n", false),
            ("HTTP/1.1 204 x\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n", false),
            ("HTTP/1.0 204 x\r\n\r\n", false),
            ("HTTP/1.0 204 x\r\nConnection: Keep-Alive\r\n\r\n", false),
            ("HTTP/1.1 200 x\r\n\r\n", false),
        ] {
            assert_eq!(head(text, false).unwrap().unwrap().0.is_persistent, is_persistent, "{text}");
        }
    }

    #[test]
    fn a_connection_ends_behind_an_answer_whose_end_is_not_certain() {
        for (said, is_of_head, is_persistent) in [
            ("200 x\r\nContent-Length: 5\r\n", false, true),
            ("205 x\r\nContent-Length: 0\r\n", false, true),
            ("204 x\r\nContent-Length: 0\r\n", false, true),
            ("204 x\r\nContent-Length: 5\r\n", false, false),
            ("204 x\r\nContent-Length: x\r\n", false, false),
            ("204 x\r\nContent-Length: 0\r\nContent-Length: 5\r\n", false, false),
            ("204 x\r\nTransfer-Encoding: chunked\r\n", false, false),
            ("304 x\r\n", false, true),
            ("304 x\r\nContent-Length: 5\r\n", false, false),
            ("304 x\r\nTransfer-Encoding: chunked\r\n", true, false),
            ("200 x\r\n", true, true),
            ("200 x\r\nContent-Length: 5\r\n", true, true),
            ("200 x\r\nTransfer-Encoding: chunked\r\n", true, false),
            ("204 x\r\nContent-Length: 5\r\n", true, false),
            ("302 x\r\nContent-Length: 5\r\n", true, false),
            ("404 x\r\n", true, false),
            ("500 x\r\nContent-Length: 5\r\n", true, false),
        ] {
            let (head, ..) = head(&format!("HTTP/1.1 {said}\r\n"), is_of_head).unwrap().unwrap();
            assert_eq!(head.is_persistent, is_persistent, "{said}, HEAD {is_of_head}");
        }
    }

    #[test]
    fn a_body_is_the_same_however_it_arrives() {
        let chunked = || Body::Chunks(Chunk::Size);
        for piece in [1, 2, 3, 1000] {
            for (body, text, data, names, is_over) in [
                (Body::Length(5), "hello!", "hello", "", true),
                (Body::Length(5), "hell", "hell", "", false),
                (Body::NONE, "x", "", "", true),
                (Body::UntilClose, "hello", "hello", "", false),
                (chunked(), "5\r\nhello\r\n0\r\n\r\n", "hello", "", true),
                (
                    chunked(),
                    "2;a=\"b\"\r\nhe\r\n003 \t;x\r\nllo\r\n000\r\nA: b\r\nc:d\r\n\r\n",
                    "hello",
                    "a c",
                    true,
                ),
                (chunked(), "A\r\n0123456789\r\n", "0123456789", "", false),
                (chunked(), "0\r\nA: b\r\n", "", "", false),
                (chunked(), "0\r\n", "", "", false),
                (chunked(), "5", "", "", false),
            ] {
                let (got, got_names, got_over) = read(body, text, piece).unwrap();
                let names: Vec<_> = names.split_terminator(' ').collect();
                assert_eq!(
                    (got.as_str(), got_names, got_over),
                    (data, names.iter().map(ToString::to_string).collect(), is_over),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let long = format!("1;{}", "x".repeat(LONGEST_LINE));
        for text in [
            "\r\n",
            " 5\r\nhello",
            "5\nhello",
            "-5\r\n",
            "+5\r\n",
            "0x5\r\n",
            "5 5\r\n",
            "5\r\nhelloo\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5;a\rb\r\n",
            "g\r\n",
            ";\r\n",
            "00000000000000000\r\n",
            "0\r\nno colon\r\n\r\n",
            &long,
        ] {
            for piece in [1, 1000] {
                let result = read(Body::Chunks(Chunk::Size), text, piece);
                assert!(matches!(result, Err(Invalid::Chunk | Invalid::Syntax(_))), "{text:?}: {result:?}");
            }
        }
    }
}
