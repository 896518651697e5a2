//! What the token endpoint's answers mean (RFC 6749, sections 5.1 and 5.2), from whatever stands in its place:
//! the server, a faulty one, a captive portal, nothing.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use secrecy::SecretString;
use serde_json::{Map, Value};
use zeroize::{Zeroize as _, Zeroizing};

use super::{GrantError, Granted, Identity, id_token, unsent};
use crate::notify::with_causes;
use crate::token::{is_b64token, now};

/// Answers are read up to here and not further.
const LARGEST_ANSWER: usize = 64 * 1024;
/// What RFC 6749 recommends to assume is up to the client; Cnblogs always says.
const DEFAULT_EXPIRES_IN: Duration = Duration::from_secs(3600);
/// How often others get their turn while a connection closes.
const CLOSING_TURNS: usize = 32;
/// A longer lifetime is taken for this one.
const LONGEST_EXPIRES_IN: Duration = Duration::from_secs(366 * 24 * 3600);
/// A longer `Retry-After` is taken for this one.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The members of an answer, wiped when dropped.
struct Members(Map<String, Value>);

/// Why an answer's body is not known.
enum BodyError {
    TooLarge,
    Lost(String),
}

pub(super) async fn read_grant(answer: Response) -> Result<Granted, GrantError> {
    if !answer.status().is_success() {
        return Err(failure(answer).await);
    }

    let is_html = is_html(&answer);
    let body = match body(answer).await {
        Ok(body) => body,
        Err(BodyError::TooLarge) => {
            return Err(unavailable("the token endpoint's answer is larger than 64 KiB".to_owned(), None));
        }
        Err(BodyError::Lost(reason)) => return Err(GrantError::InDoubt { reason }),
    };
    let received = now();
    let Ok(members) = serde_json::from_slice(&body).map(Members) else {
        let reason = "the token endpoint's answer is not a JSON object".to_owned();
        return Err(if is_html { unavailable(reason, None) } else { GrantError::InDoubt { reason } });
    };
    let members = &members.0;
    if let Some(error) = members.get("error").and_then(Value::as_str) {
        return Err(refused(error, members));
    }
    granted(members, received).map_err(|reason| GrantError::Unusable {
        reason,
        successor: text(members, "refresh_token").map(Into::into),
    })
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

/// Any success will do: an unknown token is 200 as well (RFC 7009, section 2.2).
pub(super) async fn read_revocation(answer: Response) -> Result<(), GrantError> {
    if answer.status().is_success() { Ok(()) } else { Err(failure(answer).await) }
}

/// The display name and id of `GET /api/users`, whichever case its members are written in.
pub(super) async fn read_person(answer: Response) -> Option<Identity> {
    if !answer.status().is_success() {
        return None;
    }
    let body = body(answer).await.ok()?;
    let Ok(Value::Object(members)) = serde_json::from_slice(&body) else { return None };
    let member = |wanted: &str| {
        let (_, value) = members.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
        match value {
            Value::String(text) if !text.is_empty() => Some(text.chars().take(200).collect::<String>()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    };
    let id = ["UserId", "SpaceUserId", "BlogApp"].iter().find_map(|name| member(name))?;
    let name = member("DisplayName").unwrap_or_else(|| id.clone());
    Some(Identity { id, name })
}

/// Reads a whole body of at most 64 KiB, for answers whose content matters little.
pub(super) async fn small_body(answer: Response) -> Result<Zeroizing<Vec<u8>>, String> {
    body(answer).await.map_err(|error| match error {
        BodyError::TooLarge => "the answer is larger than 64 KiB".to_owned(),
        BodyError::Lost(reason) => reason,
    })
}

/// Whether a request that got no answer can have reached the server.
pub(super) fn not_answered(error: &reqwest::Error) -> GrantError {
    let reason = with_causes(error);
    if error.is_connect() || error.is_builder() {
        unsent(format!("the authorization server can't be reached: {reason}"))
    } else {
        GrantError::InDoubt { reason: format!("the authorization server did not answer: {reason}") }
    }
}

async fn failure(answer: Response) -> GrantError {
    let status = answer.status();
    let retry_after = retry_after(&answer);
    if !(status == StatusCode::BAD_REQUEST || status == StatusCode::UNAUTHORIZED) {
        return unavailable(format!("the token endpoint answered {status}"), retry_after);
    }

    let Ok(body) = body(answer).await else {
        return GrantError::InDoubt {
            reason: format!("the token endpoint's answer of {status} was cut off"),
        };
    };
    if let Ok(Value::Object(members)) = serde_json::from_slice::<Value>(&body)
        && let Some(error) = members.get("error").and_then(Value::as_str)
    {
        return refused(error, &members);
    }
    // Some servers refuse a dead refresh token without a word.
    if body.iter().all(u8::is_ascii_whitespace) {
        return GrantError::Refused {
            code: "invalid_grant".to_owned(),
            description: " (an empty answer)".to_owned(),
        };
    }
    unavailable(format!("the token endpoint answered {status} with something that is not JSON"), retry_after)
}

fn refused(error: &str, members: &Map<String, Value>) -> GrantError {
    let description = members.get("error_description").and_then(Value::as_str).map(harmless);
    if ["temporarily_unavailable", "server_error", "slow_down"].contains(&error) {
        return unavailable(format!("the token endpoint answered {}", harmless(error)), None);
    }
    GrantError::Refused {
        code: harmless(error),
        description: description.map(|text| format!(" ({text})")).unwrap_or_default(),
    }
}

fn granted(members: &Map<String, Value>, received: crate::token::Moment) -> Result<Granted, String> {
    let text = |name| text(members, name);
    let access_token = text("access_token").ok_or("the answer has no access_token")?;
    if !is_b64token(access_token) {
        return Err("the access token has characters that RFC 6750 does not allow".to_owned());
    }
    match text("token_type") {
        Some(kind) if kind.eq_ignore_ascii_case("bearer") => {}
        Some(_) => return Err("the token_type is not Bearer".to_owned()),
        None => return Err("the answer has no token_type".to_owned()),
    }
    let claims = text("id_token")
        .map(|id_token| id_token::claims(id_token).map_err(|error| format!("the answer's id_token: {error}")))
        .transpose()?;
    Ok(Granted {
        access_token: access_token.into(),
        expires_in: expires_in(members.get("expires_in"))?,
        received,
        refresh_token: text("refresh_token").map(SecretString::from),
        claims,
    })
}

/// A member that is a string with something in it.
fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    members.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// A positive number or numeric string; an hour when it is missing; nothing else.
fn expires_in(value: Option<&Value>) -> Result<Duration, String> {
    let secs = match value {
        None | Some(Value::Null) => return Ok(DEFAULT_EXPIRES_IN),
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') => {
            text.parse().ok()
        }
        Some(_) => None,
    };
    let secs = secs.filter(|secs: &f64| secs.is_finite() && *secs >= 1.0);
    let secs = secs.ok_or("expires_in is not a positive number of seconds")?;
    Ok(Duration::from_secs_f64(secs.floor().min(LONGEST_EXPIRES_IN.as_secs_f64())))
}

/// Seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(answer: &Response) -> Option<Duration> {
    let text = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(secs) => Duration::from_secs(secs),
        Err(_date) => {
            let at = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
            at.saturating_sub(Duration::from_secs(u64::try_from(now().wall_secs()).unwrap_or(0)))
        }
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

async fn body(mut answer: Response) -> Result<Zeroizing<Vec<u8>>, BodyError> {
    if answer.content_length().is_some_and(|length| length > LARGEST_ANSWER as u64) {
        return Err(BodyError::TooLarge);
    }
    // Room for all of it: what grows leaves copies behind.
    let mut body = Zeroizing::new(Vec::with_capacity(LARGEST_ANSWER));
    let mut chunks = Vec::new();
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > LARGEST_ANSWER => return Err(BodyError::TooLarge),
            Ok(Some(chunk)) => {
                body.extend_from_slice(&chunk);
                chunks.push(chunk);
            }
            Ok(None) => {
                drop(answer);
                wipe(chunks).await;
                return Ok(body);
            }
            Err(error) => {
                return Err(BodyError::Lost(format!("the answer was cut off: {}", with_causes(&error))));
            }
        }
    }
}

/// hyper's own buffers are ours to wipe as soon as their connection has ended, which takes it a few turns.
async fn wipe(mut chunks: Vec<Bytes>) {
    for _turn in 0..CLOSING_TURNS {
        chunks = chunks
            .into_iter()
            .filter_map(|chunk| chunk.try_into_mut().map(|mut own| own.as_mut().zeroize()).err())
            .collect();
        if chunks.is_empty() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

fn is_html(answer: &Response) -> bool {
    let kind = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.to_ascii_lowercase().contains("html")
}

fn unavailable(reason: String, retry_after: Option<Duration>) -> GrantError {
    GrantError::Unavailable { reason, was_sent: true, retry_after }
}

/// Somebody else's words, cut to what can be shown: printable, short, and no long runs that might be a token.
fn harmless(text: &str) -> String {
    let words = text.split_whitespace().map(|word| if word.len() > 40 { "[...]" } else { word });
    let line = words.collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_a_positive_number_or_numeric_string() {
        let secs = |json: &str| expires_in(Some(&serde_json::from_str(json).unwrap())).map(|d| d.as_secs());
        assert_eq!(expires_in(None), Ok(DEFAULT_EXPIRES_IN));
        for (json, expected) in [("86400", 86400), ("\"10800\"", 10800), ("3600.7", 3600), ("1", 1)] {
            assert_eq!(secs(json), Ok(expected), "{json}");
        }
        assert_eq!(secs("1e300"), Ok(LONGEST_EXPIRES_IN.as_secs()));
        for json in ["0", "-1", "\"soon\"", "\"\"", "true", "[]", "0.4", "\"-5\"", "\"inf\""] {
            assert!(secs(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_description_never_repeats_a_token() {
        let secret = "a".repeat(64);

        let shown = harmless(&format!("token {secret}\r\n is\tdead"));

        assert_eq!(shown, "token [...] is dead");
    }

    #[test]
    fn an_answer_without_its_parts_is_not_taken() {
        let read = |json: &str| {
            let Value::Object(members) = serde_json::from_str(json).unwrap() else { panic!("{json}") };
            granted(&members, now())
        };
        assert!(read(r#"{"access_token":"a","token_type":"bearer"}"#).is_ok());
        for bad in [
            r#"{"token_type":"Bearer"}"#,
            r#"{"access_token":"a b","token_type":"Bearer"}"#,
            r#"{"access_token":"a\r\nX: y","token_type":"Bearer"}"#,
            r#"{"access_token":"a","token_type":"mac"}"#,
            r#"{"access_token":"a"}"#,
            r#"{"access_token":"a","token_type":"Bearer","id_token":"x"}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
