//! The callback that anybody may have made, the `id_token` that came with it, the token endpoint's answers.

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use ring::{digest, hmac};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use url::Url;

use super::callback::{self, Callback, CallbackError, Code, Outcome};
use super::id_token::{self, Claims, Expected, IdTokenError};
use super::keys::{PublicKey, key};
use super::{GrantError, Granted, answer};
use crate::config::ResponseMode;
use crate::testing::fuzz::{Input, at_once};
use crate::token::{Clock, Moment, now};

const AT: &str = "https://oauth.cnblogs.com/auth/callback";
/// What the `id_token`s here are about.
const CLIENT_ID: &str = "the-client";
const NONCE: &str = "the-nonce";
const CODE: &str = "the-code";
const NOW_SECS: i64 = 1_700_000_000;
/// Longer than any word that a message may repeat.
const CANARY: &str = "canary-0123456789-0123456789-0123456789-0123456789";

static OWN_KEY: LazyLock<RsaKeyPair> = LazyLock::new(|| pair(include_bytes!("../testing/key-1.pk8")));
static OTHER_KEY: LazyLock<RsaKeyPair> = LazyLock::new(|| pair(include_bytes!("../testing/key-2.pk8")));
static PUBLISHED: LazyLock<Vec<PublicKey>> = LazyLock::new(|| vec![key(&jwk(&OWN_KEY)).expect("an RSA key")]);

/// What is taken for a callback is one, wherever it was found: written as an address again it says the same, and
/// nothing in it is what no server sends.
pub fn callback(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(Callback { state, outcome, .. }) = pasted(&text, "abc") else { return };

    assert!(!state.is_empty() && !state.chars().any(char::is_control), "{state:?}");
    match outcome {
        Outcome::Code(code) => {
            let (code, id_token) = (code.code.expose_secret(), code.id_token.as_ref());
            assert!(!code.is_empty() && !code.chars().any(char::is_control), "{code:?}");
            let mut meant = vec![("state".to_owned(), state.clone()), ("code".to_owned(), code.to_owned())];
            meant.extend(id_token.map(|token| ("id_token".to_owned(), token.expose_secret().to_owned())));
            let again = written(&meant, AT, &mut Input::new(b""));
            let Ok(Callback { state: again, outcome: Outcome::Code(Code { code: same, .. }), .. }) =
                pasted(&again, &state)
            else {
                panic!("{again} is no callback")
            };
            assert_eq!((again.as_str(), same.expose_secret()), (state.as_str(), code));
        }
        Outcome::Denied { error, description } => {
            let words = [Some(error), description].into_iter().flatten().collect::<String>();
            assert!(words.chars().count() <= 600 && !words.chars().any(char::is_control), "{words:?}");
        }
    }
}

/// As it is pasted while a login with this `state` is in progress.
fn pasted(text: &str, state: &str) -> Result<Callback, CallbackError> {
    callback::parse_pasted(text, &redirect_uri(), ResponseMode::Fragment, &|found| found.state == state)
}

/// Breaks a text into lines of a random width, or does not.
fn wrapped(text: &str, input: &mut Input<'_>) -> String {
    let with = input.one_of(&["", "\n", "\r\n  ", "\n> ", "\\\n"]);
    let width = 1 + input.below(120);
    text.as_bytes().chunks(width).map(String::from_utf8_lossy).collect::<Vec<_>>().join(with)
}

/// A callback that a server could send is read as it was meant, however it is written and wrapped and wherever it is
/// copied from; with one thing wrong it is not read at all.
pub fn callback_round_trip(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (state, code, id_token) = (word(&mut input), word(&mut input), word(&mut input));
    let mut meant = vec![("state".to_owned(), state.clone()), ("code".to_owned(), code.clone())];
    if input.flag() {
        meant.push(("id_token".to_owned(), id_token.clone()));
    }
    (0..input.below(4)).for_each(|n| meant.push((format!("{}{n}", word(&mut input)), word(&mut input))));
    let swapped = input.below(meant.len());
    meant.swap(0, swapped);

    let text = written(&meant, AT, &mut input);
    let text = wrapped(&text, &mut input);
    let read = pasted(&text, &state).unwrap_or_else(|error| panic!("{error}: {text}"));
    let Outcome::Code(read_code) = read.outcome else { panic!("no error was sent") };
    let has_id_token = meant.iter().any(|(name, _)| name == "id_token");
    assert_eq!((&read.state, read_code.code.expose_secret()), (&state, code.as_str()), "{text}");
    assert_eq!(
        read_code.id_token.as_ref().map(SecretString::expose_secret),
        has_id_token.then_some(id_token.as_str())
    );

    let spoiled = spoiled(meant, &mut input);
    let spoiled = wrapped(&spoiled, &mut input);
    assert!(pasted(&spoiled, &state).is_err(), "{spoiled}");
}

/// An `id_token` passes when it is what our login asked for, signed with the published key, and not with anything
/// else about it.
pub fn id_token(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(6) {
        0 => changed_token_fails(&mut input),
        1 => changed_claim_fails(&mut input),
        2 => other_algorithm_fails(&mut input),
        3 => other_key_fails(input),
        4 => any_claims_are_judged_as_they_stand(input),
        _ => {
            // Nothing but what comes in; that it is signed right can't happen.
            let text = String::from_utf8_lossy(input.rest()).into_owned();
            assert!(judge(&text, &PUBLISHED).is_err(), "{text}");
        }
    }
}

/// The token endpoint's answers are granted when they say so, and what they hold in secret is in no message.
pub fn token_answer(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let status = input.one_of(&[200, 201, 204, 302, 400, 401, 403, 408, 429, 500, 503]);
    let kind = input.one_of(&["application/json", "text/html; charset=utf-8", "", "application/JSON"]);
    let retry_after = input.bytes().to_vec();
    let body = filled(input.rest());
    let answer = || {
        let mut answer = http::Response::builder().status(status).header("content-type", kind);
        if let Ok(value) = http::HeaderValue::from_bytes(&retry_after) {
            answer = answer.header("retry-after", value);
        }
        reqwest::Response::from(answer.body(body.clone()).expect("valid parts"))
    };

    let before = now();
    let grant = at_once(answer::read_grant(answer(), &Clock::default()));
    match &grant {
        Ok(granted) => is_what_was_said(granted, status, &body),
        Err(error) => is_harmless(error, &String::from_utf8_lossy(&retry_after), before),
    }

    let revoked = at_once(answer::read_revocation(answer()));
    assert_eq!(revoked.is_ok(), (200..300).contains(&status));
    if let Some(person) = at_once(answer::read_person(answer())) {
        assert!(!person.id.is_empty() && person.id.chars().count() <= 200);
        assert!(!person.name.is_empty() && person.name.chars().count() <= 200);
    }
}

fn redirect_uri() -> Url {
    Url::parse(AT).expect("a constant URL")
}

/// A value that a parameter may have, and not an empty one.
fn word(input: &mut Input<'_>) -> String {
    let text = input.text();
    let text: String =
        text.chars().filter(|c| !c.is_control() && *c != char::REPLACEMENT_CHARACTER).collect();
    if text.is_empty() { "x".to_owned() } else { text }
}

/// The parameters behind an address, or alone.
fn written(parameters: &[(String, String)], at: &str, input: &mut Input<'_>) -> String {
    let is_sparing = input.flag();
    let encoded: Vec<_> = parameters
        .iter()
        .map(|(name, value)| format!("{}={}", encoded(name, is_sparing), encoded(value, is_sparing)))
        .collect();
    let all = encoded.join("&");
    let in_query = input.below(encoded.len() + 1);
    match input.below(6) {
        0 => format!("{at}?{all}"),
        1 => format!("{at}?{}#{}", encoded[..in_query].join("&"), encoded[in_query..].join("&")),
        2 => format!("#{all}"),
        3 => format!(" <{at}#{all}>\r\n"),
        4 => all,
        _ => format!("{at}#{all}"),
    }
}

fn encoded(text: &str, is_sparing: bool) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() && is_sparing || byte == b'_';
    let encode = |byte: u8| match byte {
        b' ' if is_sparing => "+".to_owned(),
        byte if is_plain(byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02x}"),
    };
    text.bytes().map(encode).collect()
}

/// The same with one thing wrong.
fn spoiled(mut meant: Vec<(String, String)>, input: &mut Input<'_>) -> String {
    let elsewhere = [
        "http://oauth.cnblogs.com/auth/callback",
        "https://oauth.cnblogs.com.evil.example/auth/callback",
        "https://oauth.cnblogs.com@evil.example/auth/callback",
        "https://evil@oauth.cnblogs.com/auth/callback",
        "https://oauth.cnblogs.com:444/auth/callback",
        "https://oauth.cnblogs.com/auth/callback/",
        "https://oauth.cnblogs.com/auth/Callback",
        "javascript://oauth.cnblogs.com/auth/callback",
    ];
    match input.below(5) {
        0 => meant.retain(|(name, _)| name != "state"),
        1 => meant.retain(|(name, _)| name != "code"),
        2 => {
            let repeated = meant[input.below(meant.len())].0.clone();
            meant.push((repeated, word(input)));
        }
        3 => (0..40).for_each(|n| meant.push((format!("filler{n}"), String::new()))),
        _ => {
            let at = input.one_of(&elsewhere);
            return written(&meant, at, &mut Input::new(b""));
        }
    }
    written(&meant, AT, input)
}

fn pair(pkcs8: &[u8]) -> RsaKeyPair {
    RsaKeyPair::from_pkcs8(pkcs8).expect("the test keys are RSA in PKCS #8")
}

fn jwk(pair: &RsaKeyPair) -> Value {
    let public: PublicKeyComponents<Vec<u8>> = pair.public().into();
    let [n, e] = [public.n, public.e].map(|number| URL_SAFE_NO_PAD.encode(number));
    json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": "1", "n": n, "e": e })
}

fn header() -> Value {
    json!({ "alg": "RS256", "kid": "1", "typ": "JWT" })
}

fn claims() -> Value {
    let hash = digest::digest(&digest::SHA256, CODE.as_bytes());
    json!({
        "iss": "https://oauth.cnblogs.com", "sub": "s", "aud": CLIENT_ID, "nonce": NONCE,
        "exp": NOW_SECS + 300, "nbf": NOW_SECS, "iat": NOW_SECS,
        "c_hash": URL_SAFE_NO_PAD.encode(&hash.as_ref()[..16]),
    })
}

fn signed(header: &Value, claims: &[u8], pair: &RsaKeyPair) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims));
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
        .expect("the buffer has the length of the modulus");
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn judge(text: &str, keys: &[PublicKey]) -> Result<Claims, IdTokenError> {
    let now = Moment::new(NOW_SECS * 1000, 0);
    let expected = Expected { client_id: CLIENT_ID, issuer: None, nonce: NONCE, code: &CODE.into() };
    id_token::check(&SecretString::from(text), Some(keys), expected, now)
}

/// One bit, byte or stretch of a valid token.
fn changed_token_fails(input: &mut Input<'_>) {
    static VALID: LazyLock<String> =
        LazyLock::new(|| signed(&header(), claims().to_string().as_bytes(), &OWN_KEY));
    assert!(judge(&VALID, &PUBLISHED).is_ok());

    let mut bytes = VALID.clone().into_bytes();
    let at = input.below(bytes.len());
    match input.below(4) {
        0 => bytes[at] ^= 1 << input.below(7),
        1 => bytes[at] = input.byte() & 0x7f,
        2 => drop(bytes.drain(at..(at + 1 + input.below(9)).min(VALID.len()))),
        _ => drop(bytes.splice(at..at, input.bytes().iter().map(|byte| byte & 0x7f))),
    }
    let text = String::from_utf8(bytes).expect("ASCII");
    assert!(text == *VALID || judge(&text, &PUBLISHED).is_err(), "{text}");
}

/// Signed with the right key, and one claim that is not ours.
fn changed_claim_fails(input: &mut Input<'_>) {
    let mut claims = claims();
    let (name, values) = input.one_of::<(&str, fn(&str) -> Vec<Value>)>(&[
        ("aud", |other| {
            vec![json!(other), json!([other]), json!([CLIENT_ID, other]), Value::Null, json!([])]
        }),
        ("azp", |other| vec![json!(other), json!(1), json!([CLIENT_ID])]),
        ("nonce", |other| vec![json!(other), Value::Null, json!(NONCE.to_uppercase()), json!([NONCE])]),
        ("c_hash", |other| vec![json!(other), Value::Null, json!(CODE), json!("")]),
        ("exp", |_| vec![json!(NOW_SECS - 302), json!(0), Value::Null, json!("x"), json!(-1e300)]),
        ("nbf", |_| vec![json!(NOW_SECS + 302), json!(1e300), json!("x")]),
        ("iat", |_| vec![json!(NOW_SECS + 302), json!(1e300), json!([1])]),
        ("sub", |_| vec![Value::Null, json!(1), json!({})]),
    ]);
    let other = format!("{}!", input.text());
    let values = values(&other);
    claims[name] = values[input.below(values.len())].clone();

    let text = signed(&header(), claims.to_string().as_bytes(), &OWN_KEY);
    assert!(judge(&text, &PUBLISHED).is_err(), "{claims}");
}

/// Unsigned, signed with what everybody knows, or with an algorithm that the key is not for.
fn other_algorithm_fails(input: &mut Input<'_>) {
    let algorithm = input.one_of(&[
        "none", "None", "", "HS256", "HS384", "HS512", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256",
        "ES384", "EdDSA", "rs256",
    ]);
    let mut header = header();
    header["alg"] = json!(algorithm);
    match input.below(3) {
        0 => drop(header.as_object_mut().map(|members| members.remove("kid"))),
        1 => header["jwk"] = jwk(&OTHER_KEY),
        _ => {}
    }
    let by_us = signed(&header, claims().to_string().as_bytes(), &OWN_KEY);
    let (text, signature) = by_us.rsplit_once('.').expect("three parts");

    let known = match input.below(3) {
        0 => OWN_KEY.public_key().as_ref().to_vec(),
        1 => jwk(&OWN_KEY)["n"].to_string().into_bytes(),
        _ => Vec::new(),
    };
    let hmac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &known), text.as_bytes());
    let hmac = URL_SAFE_NO_PAD.encode(hmac);
    let signature = input.one_of(&["", signature, hmac.as_str()]);
    let text = format!("{text}.{signature}");
    assert!(judge(&text, &PUBLISHED).is_err(), "{text}");
}

/// No key verifies what another one signed, whatever the key set says of it.
fn other_key_fails(mut input: Input<'_>) {
    let mut header = header();
    match input.below(4) {
        0 => header["jwk"] = jwk(&OTHER_KEY),
        1 => header["jku"] = json!("https://evil.example/keys"),
        2 => header["kid"] = json!(input.text()),
        _ => {}
    }
    let text = signed(&header, claims().to_string().as_bytes(), &OTHER_KEY);
    assert!(judge(&text, &PUBLISHED).is_err(), "{text}");

    let mut published = jwk(&OWN_KEY);
    let any: Value = serde_json::from_slice(input.rest()).unwrap_or_default();
    for (name, value) in any.as_object().into_iter().flatten() {
        published[name] = value.clone();
    }
    let is_the_signers = ["n", "e"].iter().all(|name| published[name] == jwk(&OTHER_KEY)[name]);
    let keys: Vec<_> = key(&published).into_iter().collect();
    assert!(is_the_signers || judge(&text, &keys).is_err(), "{published}");
}

/// Signed with the right key: what passes says what our login asked for.
fn any_claims_are_judged_as_they_stand(mut input: Input<'_>) {
    let is_merged = input.flag();
    let bytes = input.rest();
    let mut merged = claims();
    let any: Value = serde_json::from_slice(bytes).unwrap_or_default();
    for (name, value) in any.as_object().into_iter().flatten() {
        merged[name] = value.clone();
    }
    let payload = if is_merged { merged.to_string().into_bytes() } else { bytes.to_vec() };
    if judge(&signed(&header(), &payload, &OWN_KEY), &PUBLISHED).is_err() {
        return;
    }

    let said: Value = serde_json::from_slice(&payload).expect("what passes is JSON");
    let is_us = |value: &Value| value.as_str().is_some_and(|text| text.eq_ignore_ascii_case(CLIENT_ID));
    let audiences = said["aud"].as_array().map_or(1, Vec::len);
    assert!(said["aud"].as_array().map_or_else(|| is_us(&said["aud"]), |all| all.iter().any(is_us)));
    assert!(if audiences > 1 { is_us(&said["azp"]) } else { said["azp"].is_null() || is_us(&said["azp"]) });
    assert_eq!((&said["nonce"], &said["c_hash"]), (&json!(NONCE), &claims()["c_hash"]));
    let secs = |name: &str| said[name].as_f64().unwrap_or(NOW_SECS as f64);
    assert!(said["exp"].is_number() && secs("exp") >= (NOW_SECS - 300) as f64);
    assert!(secs("nbf") <= (NOW_SECS + 300) as f64 && secs("iat") <= (NOW_SECS + 300) as f64);
}

/// With a secret in place of every question mark.
fn filled(body: &[u8]) -> Vec<u8> {
    match serde_json::from_slice(body) {
        Ok(json @ Value::Object(_)) => json.to_string().replace('?', CANARY).into_bytes(),
        _ => body.to_vec(),
    }
}

fn is_what_was_said(granted: &Granted, status: u16, body: &[u8]) {
    assert!(granted.access_token.expose_secret().bytes().all(|byte| byte.is_ascii_graphic()));
    // Other character sets are read as well, by a library.
    let Ok(body) = std::str::from_utf8(body) else { return };
    let said: Value = serde_json::from_str(body).expect("what is granted is JSON");
    assert!((200..300).contains(&status) && !said["error"].is_string());
    let text = |name: &str| said[name].as_str().filter(|text| !text.is_empty());
    assert_eq!(text("access_token"), Some(granted.access_token.expose_secret()));
    assert_eq!(text("refresh_token"), granted.refresh_token.as_ref().map(SecretString::expose_secret));
    assert!(text("token_type").is_some_and(|kind| kind.eq_ignore_ascii_case("bearer")));
    assert_eq!(text("id_token").is_some(), granted.claims.is_some());

    let ten_years = 3650.0 * 24.0 * 3600.0;
    let secs = match &said["expires_in"] {
        Value::Null => 3600.0,
        Value::String(digits) => digits.parse::<f64>().expect("what is granted lasts for a number"),
        number => number.as_f64().expect("what is granted lasts for a number"),
    };
    assert!(secs >= 1.0, "{secs}");
    assert_eq!(granted.expires_in, Duration::from_secs_f64(secs.floor().min(ten_years)));
}

fn is_harmless(error: &GrantError, retry_after: &str, before: Moment) {
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains(CANARY), "{shown}");
    let words = error.to_string();
    assert!(words.chars().count() <= 510 && !words.chars().any(char::is_control), "{words:?}");
    assert!(words.split_whitespace().all(|word| word.len() <= 43), "{words:?}");
    let (GrantError::Unavailable { retry_after: Some(wait), .. }
    | GrantError::NotGranted { retry_after: Some(wait), .. }) = error
    else {
        return;
    };
    if let Ok(secs) = retry_after.trim().parse::<u64>() {
        assert_eq!(*wait, Duration::from_secs(secs));
    } else {
        let until = before.wall_secs() + i64::try_from(wait.as_secs()).expect("before year 9999");
        let said = httpdate::parse_http_date(retry_after.trim()).expect("neither seconds nor a date");
        let said = said.duration_since(std::time::UNIX_EPOCH).expect("no date before").as_secs();
        let said = i64::try_from(said).expect("before year 9999");
        assert!(wait.is_zero() || (until - said).abs() <= 2, "{until} is not {said}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fuzz::holds;

    #[test]
    fn callback_has_one_state_and_one_code() {
        holds("callback", 3000, callback);
    }

    #[test]
    fn callback_round_trip_gives_what_was_meant() {
        holds("callback_round_trip", 2000, callback_round_trip);
    }

    #[test]
    fn id_token_of_anything_else_fails() {
        (0..8).for_each(|claim| (0..5).for_each(|value| id_token(&[1, claim, 0, value])));
        holds("id_token", 300, id_token);
    }

    #[test]
    fn token_answer_is_taken_for_what_it_is() {
        holds("token_answer", 3000, token_answer);
    }
}
