//! What the token endpoint's answers mean (RFC 6749, sections 5.1 and 5.2), from whatever stands in its place:
//! the server, a faulty one, a captive portal, nothing. [`judge`] is the whole of it, without I/O.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use secrecy::SecretString;
use serde_json::{Map, Value};

use super::body::{self, Answer, BodyError, Loss, loss_of, members, text, why};
use super::grant::{GrantError, Granted};
use super::id_token;
use crate::token::{Clock, Moment, Person, is_b64token};

/// What RFC 6749 recommends to assume is up to the client; Cnblogs always says.
const DEFAULT_EXPIRES_IN: Duration = Duration::from_secs(3600);
/// A longer lifetime is taken for this one: what the store and clocks can say.
const LONGEST_EXPIRES_IN: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Errors by which the client is refused, whatever it presents (RFC 6749, section 5.2).
const OF_THE_CLIENT: [&str; 4] =
    ["invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope"];

pub(super) async fn read_grant(response: Response, clock: &Clock) -> Result<Granted, GrantError> {
    let answer = Answer::read(response).await;
    judge(&answer, clock.now())
}

/// What an answer says of the token that was presented.
fn judge(answer: &Answer, received: Moment) -> Result<Granted, GrantError> {
    let (status, retry_after) = (answer.status, answer.retry_after(received));
    let is_elsewhere = status.is_server_error() || status.is_redirection() || status.is_informational();
    if is_elsewhere || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status) {
        let reason = format!("the token endpoint answered {status}");
        return Err(GrantError::Unavailable { reason, was_sent: true, retry_after });
    }
    let not_granted = |reason: String| GrantError::NotGranted { reason, retry_after, successor: None };
    let body = match &answer.body {
        Ok(body) => body,
        Err(BodyError::Lost { reason, loss }) if status.is_success() => {
            return Err(GrantError::InDoubt { reason: reason.clone(), loss: *loss });
        }
        Err(BodyError::Lost { reason, .. }) => return Err(not_granted(format!("{status}: {reason}"))),
        Err(BodyError::TooLarge) => {
            return Err(not_granted("the token endpoint's answer is larger than 64 KiB".to_owned()));
        }
    };
    let Some(members) = members(body, &answer.content_type) else {
        let reason = format!("the token endpoint answered {status} with something that is not a JSON object");
        let may_have_granted = status.is_success() && !is_html(body, &answer.content_type);
        return Err(if may_have_granted {
            GrantError::InDoubt { reason, loss: Loss::Unreadable }
        } else {
            not_granted(reason)
        });
    };
    let members = &members.0;
    let successor = || text(members, "refresh_token").filter(|_| status.is_success()).map(SecretString::from);
    if let Some((code, description)) = oauth_error(members) {
        let is_of_oauth = status == StatusCode::BAD_REQUEST || status == StatusCode::UNAUTHORIZED;
        return Err(match code {
            "invalid_grant" if is_of_oauth => GrantError::Refused { description },
            _ if is_of_oauth && OF_THE_CLIENT.contains(&code) => {
                GrantError::Misconfigured { code: harmless(code), description }
            }
            _ => GrantError::NotGranted {
                reason: format!("the token endpoint answered {}{description}", harmless(code)),
                retry_after,
                successor: successor(),
            },
        });
    }
    if !status.is_success() {
        return Err(not_granted(format!("the token endpoint answered {status} without an OAuth error")));
    }
    granted(members, received).map_err(|reason| GrantError::NotGranted {
        reason,
        retry_after,
        successor: successor(),
    })
}

/// Any success will do: an unknown token is 200 as well (RFC 7009, section 2.2).
pub(super) async fn read_revocation(response: Response) -> Result<(), GrantError> {
    let answer = Answer::read(response).await;
    if answer.status.is_success() {
        return Ok(());
    }
    let members = answer.body.ok().and_then(|body| members(&body, &answer.content_type));
    let said = members.as_ref().and_then(|members| oauth_error(&members.0));
    let said = said.map(|(code, description)| format!(" ({}{description})", harmless(code)));
    let reason = format!("its revocation endpoint answered {}{}", answer.status, said.unwrap_or_default());
    Err(GrantError::Unavailable { reason, was_sent: true, retry_after: None })
}

/// The display name and id of `GET /api/users`, whichever case its members are written in.
pub(super) async fn read_person(answer: Response) -> Option<Person> {
    let members = body::json(answer).await.ok()?;
    let member = |wanted: &str| {
        let (_, value) = members.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
        match value {
            Value::String(text) if !text.is_empty() => Some(text.chars().take(200).collect::<String>()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    };
    let id = ["UserId", "SpaceUserId", "BlogApp"].iter().find_map(|name| member(name))?;
    let name = member("DisplayName").unwrap_or_else(|| id.clone());
    Some(Person { id, name })
}

/// Whether a request that got no answer can have reached the server.
pub(super) fn not_answered(error: &reqwest::Error) -> GrantError {
    let reason = why(error);
    if error.is_connect() || error.is_builder() {
        GrantError::unsent(format!("the authorization server can't be reached: {reason}"))
    } else {
        let reason = format!("the authorization server did not answer: {reason}");
        GrantError::InDoubt { reason, loss: loss_of(error) }
    }
}

/// The error code and its description, with a separator in front, or nothing. Some servers nest both.
fn oauth_error(members: &Map<String, Value>) -> Option<(&str, String)> {
    let (code, description) = match members.get("error")? {
        Value::String(code) if !code.is_empty() => (code, members.get("error_description")),
        Value::Object(nested) => match nested.get("code")? {
            Value::String(code) => (code, nested.get("message").or_else(|| members.get("error_description"))),
            _ => return None,
        },
        _ => return None,
    };
    let description = description.and_then(Value::as_str).map(|text| format!(" ({})", harmless(text)));
    Some((code, description.unwrap_or_default()))
}

fn granted(members: &Map<String, Value>, received: Moment) -> Result<Granted, String> {
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

fn is_html(body: &[u8], content_type: &str) -> bool {
    content_type.contains("html") || body.trim_ascii_start().starts_with(b"<")
}

/// Somebody else's words, cut to what can be shown: printable, short, and nothing that might be a token.
fn harmless(text: &str) -> String {
    let words = text.split_whitespace().map(|word| if may_be_token(word) { "[...]" } else { word });
    let line = words.collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// True for a word with more ASCII than words have, or with a long run of a token's characters, digits among them.
fn may_be_token(word: &str) -> bool {
    let is_of_token = |char: char| char.is_ascii_alphanumeric() || "-._~+/=%".contains(char);
    let has_run = |run: &str| run.len() >= 16 && run.bytes().any(|byte| byte.is_ascii_digit());
    word.bytes().filter(u8::is_ascii).count() > 40 || word.split(|char| !is_of_token(char)).any(has_run)
}

#[cfg(test)]
mod tests {
    use encoding_rs::GB18030;
    use zeroize::Zeroizing;

    use super::*;

    const GRANT: &str = r#"{"access_token":"a","token_type":"Bearer","refresh_token":"r"}"#;

    /// What kind of thing an answer says.
    fn verdict(status: u16, content_type: &str, body: Result<&[u8], BodyError>) -> &'static str {
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            content_type: content_type.to_owned(),
            retry_after: None,
            body: body.map(|body| Zeroizing::new(body.to_vec())),
        };
        match judge(&answer, Moment::new(0, 0)) {
            Ok(_) => "granted",
            Err(GrantError::Refused { .. }) => "last word",
            Err(GrantError::Misconfigured { .. }) => "misconfigured",
            Err(GrantError::NotGranted { successor: Some(_), .. }) => "spent",
            Err(GrantError::NotGranted { .. }) => "not granted",
            Err(GrantError::Unavailable { was_sent: true, .. }) => "unavailable",
            Err(GrantError::Unavailable { .. }) => "not sent",
            Err(GrantError::InDoubt { loss: Loss::Broken, .. }) => "broken",
            Err(GrantError::InDoubt { loss: Loss::Unreadable, .. }) => "unreadable",
            Err(GrantError::InDoubt { loss: Loss::TimedOut, .. }) => "slow",
        }
    }

    #[test]
    fn only_the_last_word_is_one() {
        const JSON: &str = "application/json";
        const DEAD: &str = r#"{"error":"invalid_grant"}"#;
        let bad = GRANT.replace("Bearer", "mac");
        let cases: &[(u16, &str, &str, &str)] = &[
            (200, JSON, GRANT, "granted"),
            (201, "text/html", GRANT, "granted"),
            (200, JSON, &bad, "spent"),
            (200, JSON, r#"{"access_token":"a"}"#, "not granted"),
            (200, JSON, "{}", "not granted"),
            (200, JSON, DEAD, "not granted"),
            (200, JSON, &GRANT.replace('{', r#"{"error":"","#), "granted"),
            (200, JSON, &GRANT.replace('{', r#"{"error":"9","#), "spent"),
            (400, JSON, &GRANT.replace('{', r#"{"error":"9","#), "not granted"),
            (400, JSON, r#"{"error":""}"#, "not granted"),
            (200, JSON, "", "unreadable"),
            (200, JSON, "[]", "unreadable"),
            (200, JSON, r#"{"access_token":"#, "unreadable"),
            (200, "text/html", "<h1>Wi-Fi</h1>", "not granted"),
            (200, "", "  <!doctype html>", "not granted"),
            (400, JSON, DEAD, "last word"),
            (401, "", DEAD, "last word"),
            (400, JSON, r#"{"error":{"code":"invalid_grant"}}"#, "last word"),
            (400, JSON, r#"{"error":"Invalid_Grant"}"#, "not granted"),
            (400, JSON, r#"{"error":"invalid_grant "}"#, "not granted"),
            (400, JSON, r#"{"error":{"code":"token_expired"}}"#, "not granted"),
            (400, JSON, r#"{"error":{"error":"invalid_grant"}}"#, "not granted"),
            (400, JSON, r#"{"code":"invalid_grant"}"#, "not granted"),
            (400, JSON, r#"{"error":"invalid_request"}"#, "not granted"),
            (400, JSON, r#"{"error":"temporarily_unavailable"}"#, "not granted"),
            (400, JSON, "", "not granted"),
            (400, "text/html", "<p>invalid_grant</p>", "not granted"),
            (400, JSON, GRANT, "not granted"),
            (400, JSON, r#"{"error":"invalid_client"}"#, "misconfigured"),
            (401, JSON, r#"{"error":"unauthorized_client"}"#, "misconfigured"),
            (403, JSON, DEAD, "not granted"),
            (404, "text/html", "", "not granted"),
            (408, JSON, DEAD, "unavailable"),
            (429, JSON, DEAD, "unavailable"),
            (500, JSON, DEAD, "unavailable"),
            (302, "text/html", "", "unavailable"),
        ];
        for (status, content_type, body, expected) in cases {
            assert_eq!(verdict(*status, content_type, Ok(body.as_bytes())), *expected, "{status} {body}");
        }
        let lost = |loss| Err(BodyError::Lost { reason: String::new(), loss });
        assert_eq!(verdict(200, JSON, lost(Loss::Broken)), "broken");
        assert_eq!(verdict(200, JSON, lost(Loss::TimedOut)), "slow");
        assert_eq!(verdict(400, JSON, lost(Loss::Broken)), "not granted");
        assert_eq!(verdict(200, JSON, Err(BodyError::TooLarge)), "not granted");
    }

    #[test]
    fn an_answer_is_read_in_the_character_set_that_it_is_written_in() {
        let text = r#"{"error":"invalid_grant","error_description":"令牌无效"}"#;
        let utf16 = |unit: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(unit).collect::<Vec<_>>();
        let cases = [
            ("", text.as_bytes().to_vec()),
            ("charset=gbk", text.as_bytes().to_vec()),
            ("", GB18030.encode(text).0.into_owned()),
            ("charset=utf-8", GB18030.encode(text).0.into_owned()),
            ("charset=\"gb2312\"", GB18030.encode(text).0.into_owned()),
            (
                "charset=big5",
                encoding_rs::BIG5.encode("{\"error\":\"invalid_grant\",\"a\":\"許功蓋\"}").0.into_owned(),
            ),
            ("", [b"\xef\xbb\xbf", text.as_bytes()].concat()),
            ("", [b"\xff\xfe", &*utf16(u16::to_le_bytes)].concat()),
            ("", [b"\xfe\xff", &*utf16(u16::to_be_bytes)].concat()),
            ("charset=utf-16", utf16(u16::to_le_bytes)),
            ("", utf16(u16::to_be_bytes)),
            ("", b"{\"error\":\"invalid_grant\",\"x\":\"\xff\xfe\x80\"}".to_vec()),
        ];
        for (content_type, body) in cases {
            assert_eq!(verdict(400, content_type, Ok(&body)), "last word", "{content_type} {body:?}");
        }
    }

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
    fn a_description_shows_nothing_that_might_be_a_token_and_what_people_can_read() {
        for (text, shown) in [
            ("unknown refresh token 0123456789abcdef0123456789abcdef", "unknown refresh token [...]"),
            ("token='rt-4f9Ka7sPq0zXw1Ty' expired", "[...] expired"),
            ("client_secret=s3cretS3cretS3cret!", "[...]"),
            ("unsupported_response_type", "unsupported_response_type"),
            ("AADSTS70008: at 2026-11-30T21:41:15Z", "AADSTS70008: at 2026-11-30T21:41:15Z"),
            ("刷新令牌无效或者已经过期，请重新登录并授权", "刷新令牌无效或者已经过期，请重新登录并授权"),
            ("令牌0123456789abcdef0123456789abcdef无效", "[...]"),
        ] {
            assert_eq!(harmless(text), shown);
        }
    }

    #[test]
    fn an_answer_without_its_parts_is_not_taken() {
        let read = |json: &str| {
            let Value::Object(members) = serde_json::from_str(json).unwrap() else { panic!("{json}") };
            granted(&members, Moment::new(0, 0))
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
