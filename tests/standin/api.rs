//! The API: who may ask, what a script says, and routes that are there for tests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ring::digest;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::cnblogs;
use super::grants::Bearer;
use super::reply::{Answer, Body, Gate, Reply, Then, pieces, wait};
use super::request::{Incoming, RecordedRequest, Request, latin1, lock};
use super::state::Shared;
use super::wire::hex;

const PIECE: usize = 16 * 1024;

/// What a script decides for one request.
#[derive(Debug)]
pub(crate) enum Scripted {
    /// This answer, once the content of the request has arrived.
    Answer(Answer),
    /// This answer at once.
    Early(Answer),
    /// These bytes verbatim, once the content of the request has arrived.
    Raw { bytes: Vec<u8>, then: Then },
    /// These bytes verbatim at once.
    EarlyRaw { bytes: Vec<u8>, then: Then },
    /// Nothing, until the peer goes away; the content is not read.
    Hang,
    /// The connection is reset.
    Reset,
    /// The connection is closed.
    Close,
    /// 401 at once, whatever the token is.
    Unauthorized,
    /// As usual, once the gate is open.
    Hold(Gate),
}

impl Scripted {
    /// These bytes verbatim, after which the connection goes on.
    pub(crate) fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Raw { bytes: bytes.into(), then: Then::Continue }
    }

    /// These bytes verbatim, after which the connection is closed.
    pub(crate) fn raw_then_close(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Raw { bytes: bytes.into(), then: Then::Close }
    }
}

/// Answers one request.
pub(crate) async fn reply(shared: Arc<Shared>, mut request: Request) -> Reply {
    let hook = lock(&shared.api).hook.clone();
    if let Some(scripted) = hook.and_then(|hook| hook(&request.head))
        && let Some(reply) = play(&shared, scripted, &mut request.body).await
    {
        return reply;
    }
    let Some(bearer) = authenticate(&shared, &request.head) else {
        return Reply::Answer(unauthorized(&shared));
    };
    if request.head.path().to_ascii_lowercase().starts_with("/api/") {
        let Some(content) = request.body.whole().await else { return Reply::End(Then::Close) };
        let mut api = lock(&shared.api);
        return Reply::Answer(cnblogs::answer(&mut api.content, &request.head, &content, bearer));
    }
    test_route(request).await
}

/// The length of `GET /bytes/{length}` and what it brings: the same every time.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut word = 0;
    while bytes.len() < length {
        bytes.extend_from_slice(&mix(word).to_le_bytes());
        word += 1;
    }
    bytes.truncate(length);
    bytes
}

async fn play(shared: &Shared, scripted: Scripted, body: &mut Incoming) -> Option<Reply> {
    if matches!(scripted, Scripted::Answer(_) | Scripted::Raw { .. }) && body.whole().await.is_none() {
        return Some(Reply::End(Then::Close));
    }
    match scripted {
        Scripted::Answer(answer) | Scripted::Early(answer) => Some(Reply::Answer(answer)),
        Scripted::Raw { bytes, then } | Scripted::EarlyRaw { bytes, then } => {
            Some(Reply::Raw { bytes, then })
        }
        Scripted::Hang => Some(Reply::Hang),
        Scripted::Reset => Some(Reply::End(Then::Reset)),
        Scripted::Close => Some(Reply::End(Then::Close)),
        Scripted::Unauthorized => Some(Reply::Answer(unauthorized(shared))),
        Scripted::Hold(gate) => {
            gate.passed().await;
            None
        }
    }
}

/// Whom the request stands for, when it has exactly one good token. A personal access token needs `Authorization-Type:
/// pat` beside it.
fn authenticate(shared: &Shared, head: &RecordedRequest) -> Option<Bearer> {
    {
        let mut api = lock(&shared.api);
        if api.refusals > 0 {
            api.refusals -= 1;
            return None;
        }
    }
    let (fields, kinds) = (head.fields_named("authorization"), head.fields_named("authorization-type"));
    let token = match fields.as_slice() {
        [one] => one.strip_prefix("Bearer ").unwrap_or_default(),
        _ => "",
    };
    match kinds.as_slice() {
        [] => lock(&shared.authorization).grants.bearer(token, Instant::now()),
        [kind] if kind == "pat" => {
            let mut known = shared.options.personal_access_tokens.iter();
            known.find(|(pat, _)| pat == token).map(|(_, person)| Bearer::User(*person))
        }
        _ => None,
    }
}

fn unauthorized(shared: &Shared) -> Answer {
    let answer = if lock(&shared.api).empty_errors {
        Answer::status(401)
    } else {
        Answer::json(401, &json!({ "Message": "Authorization has been denied for this request." }))
    };
    answer.with("WWW-Authenticate", "Bearer")
}

async fn test_route(mut request: Request) -> Reply {
    let head = request.head.clone();
    let mut segments = head.path().split('/').skip(1);
    let (route, rest) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
    let answer = match route {
        "echo" if query(&head, "raw").is_some() => echo_raw(request.body).await,
        "echo" => echo(&head, &mut request.body).await,
        "bytes" => Some(bytes(rest.parse().unwrap_or_default(), query(&head, "chunked").is_some())),
        "events" => Some(events(number(&head, "n", 10), number(&head, "every_ms", 100))),
        "status" => consume(&mut request.body).await.map(|_| status(rest)),
        "early" => Some(Answer::status(u16::try_from(number(&head, "status", 413)).unwrap_or(413))),
        "slow" => {
            wait(Duration::from_millis(number(&head, "ms", 1000))).await;
            Some(Answer::full(200, "slow\n"))
        }
        "trailers" => Some(trailers()),
        "informational" => Some(informational()),
        "redirect" => {
            let code = u16::try_from(number(&head, "code", 302)).unwrap_or(302);
            Some(Answer::status(code).with("Location", &query(&head, "to").unwrap_or_default()))
        }
        "fields" => Some(fields(&head)),
        _ => Some(Answer::json(404, &json!({ "Message": "No HTTP resource was found." }))),
    };
    answer.map_or(Reply::End(Then::Close), Reply::Answer)
}

/// `ANY /echo/...`: what arrived, as JSON.
async fn echo(head: &RecordedRequest, body: &mut Incoming) -> Option<Answer> {
    let (length, sha256) = consume(body).await?;
    let fields: Vec<Value> = head.fields.iter().map(|(name, value)| json!([name, latin1(value)])).collect();
    Some(Answer::json(
        200,
        &json!({
            "method": head.method, "target": head.target, "version": head.version, "fields": fields,
            "body_length": length, "body_sha256": sha256,
        }),
    ))
}

/// `ANY /echo/...?raw`: the content, as it arrives.
async fn echo_raw(mut body: Incoming) -> Option<Answer> {
    let first = match body.next().await {
        None => return Some(Answer::status(200)),
        Some(first) => first.ok()?,
    };
    let content = pieces(|sender| async move {
        let mut next = Some(Ok(first));
        while let Some(Ok(piece)) = next {
            if sender.send(piece).await.is_err() {
                return;
            }
            next = body.next().await;
        }
    });
    Some(Answer::stream(200, None, content).with("Content-Type", "application/octet-stream"))
}

/// `GET /bytes/{n}`: [`pattern`], chunked on request.
fn bytes(length: u64, chunked: bool) -> Answer {
    let content = pieces(move |sender| async move {
        let (mut word, mut left) = (0, length);
        while left > 0 {
            let mut piece = Vec::with_capacity(PIECE);
            while piece.len() < PIECE {
                piece.extend_from_slice(&mix(word).to_le_bytes());
                word += 1;
            }
            piece.truncate(usize::try_from(left).unwrap_or(PIECE).min(PIECE));
            left -= u64::try_from(piece.len()).unwrap_or(left);
            if sender.send(Bytes::from(piece)).await.is_err() {
                return;
            }
        }
    });
    let length = (!chunked).then_some(length);
    Answer::stream(200, length, content).with("Content-Type", "application/octet-stream")
}

/// `GET /events?n=..&every_ms=..`: an event stream; each event says when it left, in milliseconds since the first.
fn events(n: u64, every_ms: u64) -> Answer {
    let content = pieces(move |sender| async move {
        let start = Instant::now();
        for event in 0..n {
            if event > 0 {
                wait(Duration::from_millis(every_ms)).await;
            }
            let event = format!("id: {event}\ndata: {}\n\n", start.elapsed().as_millis());
            if sender.send(Bytes::from(event)).await.is_err() {
                return;
            }
        }
    });
    Answer::stream(200, None, content)
        .with("Content-Type", "text/event-stream")
        .with("Cache-Control", "no-cache")
}

/// `ANY /status/{code}`.
fn status(code: &str) -> Answer {
    let code = code.parse().ok().filter(|code| (200..=999).contains(code)).unwrap_or(400);
    let content = if matches!(code, 204 | 304) { String::new() } else { format!("status {code}\n") };
    Answer::full(code, content).with("X-Status", &code.to_string())
}

/// `GET /trailers`: three chunks and two trailers.
fn trailers() -> Answer {
    let content = pieces(|sender| async move {
        for piece in ["one\n", "two\n", "three\n"] {
            sender.send(Bytes::from(piece)).await.ok();
        }
    });
    let mut answer = Answer::stream(200, None, content).with("Trailer", "X-Checksum, X-Lines");
    if let Body::Stream { trailers, .. } = &mut answer.body {
        trailers.push(("X-Checksum".to_owned(), "abc123".to_owned()));
        trailers.push(("X-Lines".to_owned(), "3".to_owned()));
    }
    answer
}

/// `GET /informational`: 103 and then 200.
fn informational() -> Answer {
    let mut answer = Answer::full(200, "after 103\n");
    answer.interim.push((103, vec![("Link".to_owned(), "</style.css>; rel=preload".to_owned())]));
    answer
}

/// `GET /fields?Name=value&...`: the fields that the query says.
fn fields(head: &RecordedRequest) -> Answer {
    let pairs = form_urlencoded::parse(head.query().as_bytes());
    pairs.fold(Answer::full(200, "fields\n"), |answer, (name, value)| answer.with(&name, &value))
}

async fn consume(body: &mut Incoming) -> Option<(u64, String)> {
    let mut digest = digest::Context::new(&digest::SHA256);
    let mut length = 0;
    while let Some(piece) = body.next().await {
        let piece = piece.ok()?;
        length += u64::try_from(piece.len()).unwrap_or_default();
        digest.update(&piece);
    }
    Some((length, hex(digest.finish().as_ref())))
}

fn query(head: &RecordedRequest, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(head.query().as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn number(head: &RecordedRequest, name: &str, default: u64) -> u64 {
    query(head, name).and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// `SplitMix64`.
fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
