//! What the stand-in says, and how it is written.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::io::{self, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Reply {
    /// An answer that is framed properly.
    Answer(Answer),
    /// Bytes as they are.
    Raw {
        /// Written verbatim.
        bytes: Vec<u8>,
        /// What follows.
        then: Then,
    },
    /// Nothing, until the peer goes away.
    Hang,
    /// The connection ends without an answer.
    End(Then),
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// It takes the next request.
    Continue,
    /// It is closed in order.
    Close,
    /// It is reset.
    Reset,
    /// Nothing more, until the peer goes away.
    Stall,
}

/// A status, fields in order, and content; `Content-Length` or `Transfer-Encoding` is added unless it is among the
/// fields.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Body,
    /// Interim answers (1xx) that go first.
    pub(crate) interim: Vec<(u16, Vec<(String, String)>)>,
    /// How many bytes at the end are left out, after which the connection is closed.
    pub(crate) cut_short: Option<usize>,
    /// What is done when all was written.
    pub(crate) sent: Sent,
}

/// The content of an answer.
#[derive(Debug)]
pub(crate) enum Body {
    /// Known at once.
    Full(Vec<u8>),
    /// Written as it comes; chunked when the length is unknown.
    Stream {
        /// Of all pieces.
        length: Option<u64>,
        /// The content.
        pieces: mpsc::Receiver<Bytes>,
        /// After the last chunk.
        trailers: Vec<(String, String)>,
    },
}

/// Called when an answer was written to its end.
#[derive(Default)]
pub(crate) struct Sent(pub(crate) Option<Box<dyn FnOnce() + Send>>);

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Sent(..)" } else { "Sent" })
    }
}

impl Answer {
    /// A status without content.
    pub(crate) fn status(status: u16) -> Self {
        Self::full(status, Vec::new())
    }

    /// A status with JSON.
    pub(crate) fn json(status: u16, value: &Value) -> Self {
        Self::full(status, value.to_string()).with("Content-Type", "application/json; charset=utf-8")
    }

    /// A status with a page.
    pub(crate) fn html(status: u16, page: impl Into<Vec<u8>>) -> Self {
        Self::full(status, page).with("Content-Type", "text/html; charset=utf-8")
    }

    /// A status with content and no fields.
    pub(crate) fn full(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = Body::Full(body.into());
        Self { status, fields: Vec::new(), body, interim: Vec::new(), cut_short: None, sent: Sent::default() }
    }

    /// Content that comes piece by piece.
    pub(crate) fn stream(status: u16, length: Option<u64>, pieces: mpsc::Receiver<Bytes>) -> Self {
        let body = Body::Stream { length, pieces, trailers: Vec::new() };
        Self { body, ..Self::status(status) }
    }

    /// One more field, at the end.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Holds an answer or a request until a test opens it.
#[derive(Clone, Debug)]
pub(crate) struct Gate(watch::Sender<bool>);

impl Default for Gate {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Gate {
    /// Lets through what waits and whatever comes later.
    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    /// How many wait here now.
    pub(crate) fn waiting(&self) -> usize {
        if *self.0.borrow() { 0 } else { self.0.receiver_count() }
    }

    pub(crate) async fn passed(&self) {
        let mut opened = self.0.subscribe();
        opened.wait_for(|open| *open).await.ok();
    }
}

/// How an answer must be framed for its request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) head_only: bool,
    pub(crate) keep_alive: bool,
    pub(crate) one_dot_zero: bool,
}

/// Writes a reply; says what becomes of the connection.
pub(crate) async fn write_reply<W>(write: &mut W, reply: Reply, wanted: Wanted) -> io::Result<Then>
where
    W: AsyncWrite + Unpin,
{
    match reply {
        Reply::Answer(answer) => write_answer(write, answer, wanted).await,
        Reply::Raw { bytes, then } => {
            write.write_all(&bytes).await?;
            write.flush().await?;
            if then == Then::Stall { std::future::pending().await } else { Ok(then) }
        }
        Reply::Hang | Reply::End(Then::Stall) => std::future::pending().await,
        Reply::End(then) => Ok(then),
    }
}

async fn write_answer<W>(write: &mut W, answer: Answer, wanted: Wanted) -> io::Result<Then>
where
    W: AsyncWrite + Unpin,
{
    let Answer { status, fields, body, interim, cut_short, sent } = answer;
    let mut head = String::new();
    for (status, fields) in &interim {
        head.push_str(&head_of(*status, fields));
    }
    let framing = framing_of(status, &fields, &body, wanted);
    let closes = !wanted.keep_alive || framing == BodyFraming::UntilClose || says_close(&fields);
    let mut fields = fields;
    match framing {
        BodyFraming::Length(length) => fields.push(("Content-Length".to_owned(), length.to_string())),
        BodyFraming::Chunked => fields.push(("Transfer-Encoding".to_owned(), "chunked".to_owned())),
        BodyFraming::Given | BodyFraming::UntilClose => {}
    }
    if closes && !says_close(&fields) {
        fields.push(("Connection".to_owned(), "close".to_owned()));
    }
    head.push_str(&head_of(status, &fields));

    let mut out = Vec::from(head);
    if let (Body::Full(content), false) = (&body, wanted.head_only) {
        out.extend_from_slice(content);
    }
    if let Some(missing) = cut_short {
        out.truncate(out.len().saturating_sub(missing));
    }
    write.write_all(&out).await?;
    write.flush().await?;
    if cut_short.is_some() {
        return Ok(Then::Close);
    }
    if let (Body::Stream { pieces, trailers, .. }, false) = (body, wanted.head_only) {
        write_pieces(write, pieces, &trailers, framing == BodyFraming::Chunked).await?;
    }
    if let Some(sent) = sent.0 {
        sent();
    }
    Ok(if closes { Then::Close } else { Then::Continue })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum BodyFraming {
    Length(u64),
    Chunked,
    UntilClose,
    Given,
}

fn framing_of(status: u16, fields: &[(String, String)], body: &Body, wanted: Wanted) -> BodyFraming {
    let given = fields.iter().any(|(name, _)| {
        name.eq_ignore_ascii_case("content-length") || name.eq_ignore_ascii_case("transfer-encoding")
    });
    if given || matches!(status, 100..=199 | 204 | 304) {
        return BodyFraming::Given;
    }
    match body {
        Body::Full(content) => BodyFraming::Length(u64::try_from(content.len()).unwrap_or(u64::MAX)),
        Body::Stream { length: Some(length), .. } => BodyFraming::Length(*length),
        Body::Stream { length: None, .. } if wanted.one_dot_zero => BodyFraming::UntilClose,
        Body::Stream { length: None, .. } => BodyFraming::Chunked,
    }
}

async fn write_pieces<W>(
    write: &mut W,
    mut pieces: mpsc::Receiver<Bytes>,
    trailers: &[(String, String)],
    chunked: bool,
) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    while let Some(piece) = pieces.recv().await {
        if !chunked {
            write.write_all(&piece).await?;
        } else if !piece.is_empty() {
            let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
            chunk.extend_from_slice(&piece);
            chunk.extend_from_slice(b"\r\n");
            write.write_all(&chunk).await?;
        }
        write.flush().await?;
    }
    if chunked {
        let lines = trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let end = format!("0\r\n{}\r\n", lines.collect::<String>());
        write.write_all(end.as_bytes()).await?;
    }
    write.flush().await
}

fn head_of(status: u16, fields: &[(String, String)]) -> String {
    let lines = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
    format!("HTTP/1.1 {status} {}\r\n{}\r\n", reason(status), lines.collect::<String>())
}

fn says_close(fields: &[(String, String)]) -> bool {
    fields.iter().any(|(name, value)| {
        name.eq_ignore_ascii_case("connection") && value.to_ascii_lowercase().contains("close")
    })
}

fn reason(status: u16) -> &'static str {
    let known = http::StatusCode::from_u16(status).ok();
    known.and_then(|status| status.canonical_reason()).unwrap_or("")
}

/// Spawns what makes the pieces of a stream.
pub(crate) fn pieces<F, Fut>(produce: F) -> mpsc::Receiver<Bytes>
where
    F: FnOnce(mpsc::Sender<Bytes>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(4);
    drop(tokio::spawn(produce(sender)));
    receiver
}

/// Waits; never when told none.
pub(crate) async fn wait(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}
