//! What a server answers, as it was received: at most 64 KiB, decoded, in whichever character set.

use std::borrow::Cow;
use std::io::Read;
use std::time::Duration;

use brotli::Decompressor;
use encoding_rs::{Encoding, GB18030, UTF_8, UTF_16BE, UTF_16LE};
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use serde_json::{Map, Value};
use zeroize::{Zeroize as _, Zeroizing};

use crate::notify::with_causes;
use crate::token::Moment;

/// Answers are read up to here and not further.
const LARGEST_ANSWER: usize = 64 * 1024;

/// The members of an answer, wiped when dropped.
pub(super) struct Members(pub(super) Map<String, Value>);

/// An answer as it was received.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content_type: String,
    /// As it was received.
    pub(super) retry_after: Option<String>,
    pub(super) body: Result<Zeroizing<Vec<u8>>, BodyError>,
}

/// Why an answer's body is not known.
#[derive(Debug)]
pub(super) enum BodyError {
    TooLarge,
    Lost { reason: String, loss: Loss },
}

/// How an answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The connection ended before the answer did: the server does not work on the request any more.
    Broken,
    /// It came whole, and can't be read.
    Unreadable,
    /// It did not come in time: the server may still work on the request.
    TimedOut,
}

impl Answer {
    pub(super) async fn read(response: Response) -> Self {
        let status = response.status();
        let field = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let content_type = field(CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
        let retry_after = field(RETRY_AFTER).map(|text| text.trim().to_owned());
        Self { status, content_type, retry_after, body: body(response).await }
    }

    /// Seconds, or a date (RFC 9110, section 10.2.3).
    pub(super) fn retry_after(&self, received: Moment) -> Option<Duration> {
        let text = self.retry_after.as_deref()?;
        let secs = text.parse().map(Duration::from_secs);
        secs.ok().or_else(|| {
            let at = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
            Some(at.saturating_sub(Duration::from_secs(u64::try_from(received.wall_secs()).unwrap_or(0))))
        })
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for value in self.0.values_mut() {
            if let Value::String(text) = value {
                text.zeroize();
            }
        }
    }
}

/// Reads a JSON object of at most 64 KiB, for answers that can be asked for again.
pub(super) async fn json(answer: Response) -> Result<Members, String> {
    let Answer { content_type, body, .. } = Answer::read(answer).await;
    let body = body.map_err(|error| match error {
        BodyError::TooLarge => "the answer is larger than 64 KiB".to_owned(),
        BodyError::Lost { reason, .. } => reason,
    })?;
    members(&body, &content_type).ok_or_else(|| "it is not a JSON object".to_owned())
}

/// Why no answer came. Of a proxy that refuses, hyper-util says no more than "tunnel error".
pub(super) fn why(error: &reqwest::Error) -> String {
    let tunnel = "no tunnel through the account's proxy (see proxy and proxy_auth_file)";
    with_causes(error).replace("tunnel error", tunnel)
}

pub(super) fn loss_of(error: &reqwest::Error) -> Loss {
    if error.is_timeout() { Loss::TimedOut } else { Loss::Broken }
}

/// The JSON object in a body, in whichever character set it is written: what is declared is often wrong.
pub(super) fn members(body: &[u8], content_type: &str) -> Option<Members> {
    let label = content_type.split_once("charset=").map(|(_, label)| label.trim_matches(['"', ' ', ';']));
    let declared = label.and_then(|label| Encoding::for_label(label.as_bytes()));
    let marked = Encoding::for_bom(body).map(|(encoding, _)| encoding);
    let wide = match body {
        [0, _, ..] => Some(UTF_16BE),
        [_, 0, ..] => Some(UTF_16LE),
        _ => None,
    };
    let candidates = [marked, wide, Some(UTF_8), declared, Some(GB18030)];
    let strict = candidates.into_iter().flatten().filter_map(|encoding| {
        let (text, is_malformed) = encoding.decode_with_bom_removal(body);
        (!is_malformed).then_some(text)
    });
    let lossy = std::iter::once_with(|| String::from_utf8_lossy(body));
    strict.chain(lossy).find_map(|text| {
        let members = serde_json::from_str(&text).ok().map(Members);
        if let Cow::Owned(mut decoded) = text {
            decoded.zeroize();
        }
        members
    })
}

/// A member that is a string with something in it.
pub(super) fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    members.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

async fn body(mut answer: Response) -> Result<Zeroizing<Vec<u8>>, BodyError> {
    if answer.content_length().is_some_and(|length| length > LARGEST_ANSWER as u64) {
        return Err(BodyError::TooLarge);
    }
    let codings = answer.headers().get_all(CONTENT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let codings = codings.collect::<Vec<_>>().join(",").to_ascii_lowercase();
    // Room for all of it: what grows leaves copies behind.
    let mut body = Zeroizing::new(Vec::with_capacity(LARGEST_ANSWER));
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > LARGEST_ANSWER => return Err(BodyError::TooLarge),
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return decoded(body, &codings),
            Err(error) => {
                let reason = format!("the answer was cut off: {}", with_causes(&error));
                return Err(BodyError::Lost { reason, loss: loss_of(&error) });
            }
        }
    }
}

/// Undoes content codings that nobody asked for (RFC 9110, section 8.4.1), and gzip that is not said. What is not coded
/// as it says is left as it is.
fn decoded(mut body: Zeroizing<Vec<u8>>, codings: &str) -> Result<Zeroizing<Vec<u8>>, BodyError> {
    for coding in codings.rsplit(',').chain(["gzip"]) {
        let coded = body.as_slice();
        let plain = match coding.trim() {
            "gzip" | "x-gzip" => plain(MultiGzDecoder::new(coded)),
            // Many leave out what RFC 9110 wants around it.
            "deflate" => plain(ZlibDecoder::new(coded)).or_else(|| plain(DeflateDecoder::new(coded))),
            "br" => plain(Decompressor::new(coded, 4096)),
            _ => None,
        };
        body = plain.unwrap_or(body);
        if body.len() > LARGEST_ANSWER {
            return Err(BodyError::TooLarge);
        }
    }
    Ok(body)
}

/// What a decoder gives, up to a byte more than is read of an answer; none when it is not coded like that.
fn plain(decoder: impl Read) -> Option<Zeroizing<Vec<u8>>> {
    let mut plain = Zeroizing::new(Vec::with_capacity(LARGEST_ANSWER + 1));
    decoder.take(LARGEST_ANSWER as u64 + 1).read_to_end(&mut plain).ok()?;
    Some(plain)
}
