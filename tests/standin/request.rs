//! A request as it arrived: parsed strictly, kept byte for byte.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

/// Fields in their order, names as they were spelled.
pub(crate) type Fields = Vec<(String, Vec<u8>)>;

/// What is kept of a request. Text is latin-1 throughout: one `char` is one byte as received.
#[derive(Clone, Debug)]
pub(crate) struct RecordedRequest {
    /// Counts the connections of this listener, from 0.
    pub(crate) connection: usize,
    /// When the head was complete.
    pub(crate) at: Instant,
    /// Empty when the head was malformed.
    pub(crate) method: String,
    /// The request target exactly as received.
    pub(crate) target: String,
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub(crate) version: String,
    /// The fields in order.
    pub(crate) fields: Fields,
    /// Every byte of the head with its empty line.
    pub(crate) raw_head: Vec<u8>,
    /// The first 64 KiB of the content.
    pub(crate) body: Vec<u8>,
    /// How many bytes of content have arrived.
    pub(crate) body_length: u64,
    /// SHA-256 of the content in hex, once it ended or broke off.
    pub(crate) body_sha256: String,
    /// The trailer section.
    pub(crate) trailers: Fields,
    /// Whether the request has arrived to its end.
    pub(crate) complete: bool,
    /// What was malformed, when it was.
    pub(crate) violation: Option<String>,
    /// The status that was answered; none while, or when, there was no answer.
    pub(crate) status: Option<u16>,
}

impl RecordedRequest {
    /// The only value of the field, as latin-1; none when it is absent.
    ///
    /// # Panics
    /// When the field came more than once.
    #[track_caller]
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let mut values = self.fields_named(name);
        assert!(values.len() <= 1, "{name} came {} times", values.len());
        values.pop()
    }

    /// All values of the field in order, as latin-1.
    pub(crate) fn fields_named(&self, name: &str) -> Vec<String> {
        let named = self.fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name));
        named.map(|(_, value)| latin1(value)).collect()
    }

    /// The target up to its query.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The query, empty when there is none.
    pub(crate) fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }
}

/// A record that its connection still writes to.
pub(crate) type SharedRecord = Arc<Mutex<RecordedRequest>>;

/// A request on its way to the routes.
#[derive(Debug)]
pub(crate) struct Request {
    /// As it was when the head was complete.
    pub(crate) head: RecordedRequest,
    /// The content as it arrives.
    pub(crate) body: Incoming,
}

/// The content of a request; asking for it is what answers `Expect: 100-continue`.
#[derive(Debug)]
pub(crate) struct Incoming {
    pieces: mpsc::Receiver<Result<Bytes, BrokeOff>>,
    wanted: Option<oneshot::Sender<()>>,
}

/// The request ended before its content did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BrokeOff;

impl Incoming {
    /// The content, where to put its pieces, and what tells that it is wanted.
    pub(crate) fn channel() -> (Self, mpsc::Sender<Result<Bytes, BrokeOff>>, oneshot::Receiver<()>) {
        let (feeder, pieces) = mpsc::channel(4);
        let (wanted, asked) = oneshot::channel();
        (Self { pieces, wanted: Some(wanted) }, feeder, asked)
    }

    /// The next piece; none at the end.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, BrokeOff>> {
        if let Some(wanted) = self.wanted.take() {
            wanted.send(()).ok();
        }
        self.pieces.recv().await
    }

    /// All of it; none when it broke off.
    pub(crate) async fn whole(&mut self) -> Option<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await {
            whole.extend_from_slice(&piece.ok()?);
        }
        Some(whole)
    }
}

/// Where the content of a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// So many bytes after the head.
    Length(u64),
    /// At the last chunk.
    Chunked,
}

/// A head, parsed.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) version: String,
    pub(crate) fields: Fields,
    pub(crate) framing: Framing,
    pub(crate) keep_alive: bool,
    pub(crate) expects_continue: bool,
}

/// Parses a head with its empty line, more strictly than RFC 9112 demands of a server; the error
/// says what is malformed or ambiguous.
pub(crate) fn parse_head(raw: &[u8]) -> Result<Head, String> {
    let text = latin1(raw);
    let mut lines = text.strip_suffix("\r\n\r\n").unwrap_or(&text).split("\r\n");
    let (method, target, version) = parse_request_line(lines.next().unwrap_or_default())?;
    let fields = lines.map(parse_field).collect::<Result<Fields, String>>()?;

    let values = |name: &str| {
        let named = fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name));
        named.map(|(_, value)| latin1(value)).collect::<Vec<_>>()
    };
    let hosts = values("host").len();
    if hosts > 1 || (hosts == 0 && version == "HTTP/1.1") {
        return Err(format!("{hosts} Host fields"));
    }
    let framing = parse_framing(&values("content-length"), &values("transfer-encoding"), &version)?;
    let connection = values("connection").join(",").to_ascii_lowercase();
    let options: Vec<&str> = connection.split(',').map(str::trim).collect();
    let keep_alive =
        if version == "HTTP/1.1" { !options.contains(&"close") } else { options.contains(&"keep-alive") };
    let expects_continue = values("expect").iter().any(|value| value.eq_ignore_ascii_case("100-continue"));
    Ok(Head { method, target, version, fields, framing, keep_alive, expects_continue })
}

/// Parses a field line; also used for trailers.
pub(crate) fn parse_field(line: &str) -> Result<(String, Vec<u8>), String> {
    let Some((name, value)) = line.split_once(':') else {
        return Err(format!("a field line without a colon: {line:?}"));
    };
    if !is_token(name) {
        return Err(format!("a field name that is no token: {name:?}"));
    }
    let value = value.trim_matches([' ', '\t']);
    if value.chars().any(|char| (char < ' ' && char != '\t') || char == '\x7f') {
        return Err(format!("a control character in {name}: {value:?}"));
    }
    Ok((name.to_owned(), bytes_of(value)))
}

/// Every byte as the `char` of the same number.
pub(crate) fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// What a panic elsewhere left is still worth reading.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bytes_of(text: &str) -> Vec<u8> {
    text.chars().map(|char| u8::try_from(u32::from(char)).unwrap_or(b'?')).collect()
}

fn parse_request_line(line: &str) -> Result<(String, String, String), String> {
    let words: Vec<&str> = line.split(' ').collect();
    let &[method, target, version] = words.as_slice() else {
        return Err(format!("a request line that is not three words: {line:?}"));
    };
    if !is_token(method) {
        return Err(format!("a method that is no token: {method:?}"));
    }
    if target.is_empty() || target.chars().any(|char| char <= ' ' || char == '\x7f' || char == '#') {
        return Err(format!("a malformed target: {target:?}"));
    }
    if version != "HTTP/1.1" && version != "HTTP/1.0" {
        return Err(format!("an unknown version: {version:?}"));
    }
    Ok((method.to_owned(), target.to_owned(), version.to_owned()))
}

fn parse_framing(lengths: &[String], encodings: &[String], version: &str) -> Result<Framing, String> {
    match (lengths, encodings) {
        ([], []) => Ok(Framing::Length(0)),
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            length.parse().map(Framing::Length).map_err(|error| format!("Content-Length {length:?}: {error}"))
        }
        ([], [encoding]) if encoding.eq_ignore_ascii_case("chunked") && version == "HTTP/1.1" => {
            Ok(Framing::Chunked)
        }
        _ => Err(format!("ambiguous framing: Content-Length {lengths:?}, Transfer-Encoding {encodings:?}")),
    }
}

fn is_token(text: &str) -> bool {
    let special = |char| "!#$%&'*+-.^_`|~".contains(char);
    !text.is_empty() && text.chars().all(|char| char.is_ascii_alphanumeric() || special(char))
}
