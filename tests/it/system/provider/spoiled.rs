//! The provider's token endpoint behind a relay that delays, drops and spoils answers. The provider's refresh tokens
//! serve once: one that it sees again ends the login.

use std::cell::Cell;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::relay::{Named, Relay, Seen, Step};
use super::{
    Application, Daemon, LONG_LIFETIME_SECS, Provider, assert_calls_as_alice, call_until, log_in, request,
    wait_until,
};
use crate::dice::Dice;
use crate::support::Answer;

/// Repeats a run.
const SEED: &str = "SPOILED_SEED";
/// Of the random script, and how often each step is in it at least.
const STEPS: usize = 60;
const EACH: usize = 2;
/// What a grant is said to last for the next refresh to be the timer's.
const SOON_OVER_SECS: u32 = 4;
const SOON_OVER: &str = "soon over";
const LATE: Named = ("late", Step::AnswerLate);
const BROKEN: Named = ("broken before it was passed on", Step::BreakBefore);

/// All that loses nothing: what is forwarded is granted and arrives, and what does not arrive was not forwarded.
const HARMLESS: [Named; 21] = [
    ("passed on", Step::Pass(|_| {})),
    LATE,
    BROKEN,
    ("an empty 400", Step::Instead(|| said(400, "application/json", ""))),
    ("an empty 401", Step::Instead(|| said(401, "application/json", ""))),
    ("HTML, 400", Step::Instead(|| said(400, "text/html", "<h1>Bad Request</h1>"))),
    ("a captive portal", Step::Instead(|| said(200, "text/html", "<form>Accept our terms"))),
    ("internal_error", Step::Instead(|| said(400, "application/json", r#"{"error":"internal_error"}"#))),
    ("nested", Step::Instead(|| said(400, "application/json", r#"{"error":{"code":"token_expired"}}"#))),
    ("503, for a day", Step::Instead(|| said_with(503, ("retry-after", "86400")))),
    ("429", Step::Instead(|| said_with(429, ("retry-after", "30")))),
    ("302", Step::Instead(|| said_with(302, ("location", "https://127.0.0.1:1/login")))),
    ("cut JSON", Step::Instead(|| said(200, "application/json", r#"{"access_token":"cut"#))),
    (
        "5 MiB",
        Step::Instead(|| said(200, "application/json", &json!({ "x": "x".repeat(5 << 20) }).to_string())),
    ),
    (
        "a byte order mark",
        Step::Pass(|answer| answer.body = [b"\xef\xbb\xbf", answer.body.as_slice()].concat()),
    ),
    ("gzip", Step::Pass(gzip)),
    ("UTF-16", Step::Pass(utf_16)),
    ("GBK", Step::Pass(gbk)),
    ("1e300 s", Step::Pass(|answer| set(answer, "expires_in", json!(1e300)))),
    ("bearer", Step::Pass(|answer| set(answer, "token_type", json!("bearer")))),
    (SOON_OVER, Step::Pass(|answer| set(answer, "expires_in", json!(SOON_OVER_SECS)))),
];

#[test]
fn a_session_of_random_faults_loses_no_login_and_fails_no_request() {
    let seed =
        std::env::var(SEED).map_or_else(|_| u64::from(std::process::id()), |seed| seed.parse().unwrap());
    let provider = Provider::start(LONG_LIFETIME_SECS);
    let (relay, daemon, _application) = logged_in_through_a_relay(&provider, &[LATE]);
    let script = script(&mut Dice(seed));
    tell(seed, &script);
    relay.follow(script);

    let asked = Cell::new(0);
    let calls = call_until(&daemon.base, || {
        refresh_and_compare(&relay, &daemon);
        asked.set(asked.get() + 1);
        relay.left() == 0
    });

    assert_eq!(calls.failures, Vec::<String>::new(), "of {} calls", calls.made);
    assert!(calls.made > 200 && asked.get() > STEPS / 2, "{} calls, {} refreshes", calls.made, asked.get());
    assert_eq!(refresh(&daemon).0, 200);
    assert_calls_as_alice(&daemon);
    let refreshes = relay.refreshes();
    for pair in refreshes.windows(2) {
        let is_kept = pair[0].refresh_token == pair[1].refresh_token;
        assert_eq!(is_kept, !pair[0].is_granted, "after {}", pair[0].step);
    }
    let granted = refreshes.iter().filter(|seen| seen.is_granted).count();
    let stats = provider.stats();
    assert_eq!((&stats["refreshes"], &stats["grants_revoked"]), (&json!(granted), &json!(0)), "{stats:#}");
    assert_eq!(stats["token_requests"]["refresh_token"], json!(granted), "{stats:#}");
    provider.assert_content_with(1);
}

#[test]
fn a_grant_lost_on_its_way_back_is_told_as_such_and_a_new_login_serves_again() {
    let provider = Provider::start(LONG_LIFETIME_SECS);
    let (relay, daemon, _application) = logged_in_through_a_relay(&provider, &[]);
    relay.follow([("broken when it was answered", Step::BreakAfter)]);

    let (status, body) = refresh(&daemon);

    assert!(status == 503 && body.contains("urn:cnblogs-proxy:login-required"), "{status} {body}");
    let told = events(&daemon);
    assert!(told.ends_with(&["rotation-in-doubt", "login-required"].map(str::to_owned)), "{told:?}");
    let stats = provider.stats();
    assert_eq!(
        (&stats["refreshes"], &stats["old_refresh_tokens_presented"]),
        (&json!(1), &json!(1)),
        "{stats:#}"
    );
    assert!(stats["grants_revoked"].as_u64() > Some(0), "{stats:#}");
    // The provider has ended the access token as well.
    let answer = request(&daemon.base, "GET", "/api/users", "").unwrap();
    assert_eq!((answer.status, &answer.json()["type"]), (503, &json!("urn:cnblogs-proxy:login-required")));
    assert!(answer.json()["login_url"].is_string(), "{}", answer.body);

    log_in("paste", &daemon);
    assert_eq!(refresh(&daemon).0, 200);
    assert_calls_as_alice(&daemon);
    assert_eq!(events(&daemon).last().map(String::as_str), Some("recovered"));
    assert_eq!(provider.count("old_refresh_tokens_presented"), 1);
}

/// Standard output of a test, shown when it fails.
#[expect(clippy::print_stdout, reason = "a run that failed can be repeated")]
fn tell(seed: u64, script: &[Named]) {
    let names: Vec<_> = script.iter().map(|(name, _)| *name).collect();
    println!("{SEED}={seed}: {names:?}");
}

/// Each step [`EACH`] times and some more, in a random order. The late ones take long: no more of them.
fn script(dice: &mut Dice) -> Vec<Named> {
    let quick: Vec<_> = HARMLESS.into_iter().filter(|(_, step)| !matches!(step, Step::AnswerLate)).collect();
    let mut script = HARMLESS.repeat(EACH);
    script.extend((script.len()..STEPS).map(|_| *dice.one_of(&quick)));
    for place in (1..script.len()).rev() {
        script.swap(place, dice.below(place + 1));
    }
    script
}

/// Asks for a refresh, whose answer must be that of the step which it met: of two when the first connection broke. A
/// grant that is soon over is left to the timer first, which may go on trying beside us until there is another one.
#[track_caller]
fn refresh_and_compare(relay: &Relay, daemon: &Daemon) {
    let before = relay.refreshes();
    let last_grant = before.iter().rposition(|seen| seen.is_granted);
    let soon_over = last_grant.filter(|at| before[*at].step == SOON_OVER);
    if soon_over.is_some_and(|at| at + 1 == before.len()) {
        wait_until("the timer refreshes", || relay.refreshes().len() > before.len());
    }

    let (status, body) = refresh(daemon);

    let met = relay.refreshes().split_off(soon_over.map_or(before.len(), |at| at + 1));
    let explains = |seen: &Seen| seen.is_granted == (status == 200);
    let is_explained = match (soon_over, met.as_slice()) {
        (Some(_), all) => all.iter().any(explains),
        (None, [broken, last]) => broken.step == BROKEN.0 && explains(last),
        (None, [only]) => only.step != BROKEN.0 && explains(only),
        (None, _) => false,
    };
    let steps: Vec<_> = met.iter().map(|seen| seen.step).collect();
    assert!(is_explained, "{steps:?}: {status} {body}");
    assert!(status == 200 || body.contains("urn:cnblogs-proxy:token-unavailable"), "{steps:?}: {body}");
}

/// A daemon that asks for tokens through a relay; the exchange of the code meets these steps.
#[track_caller]
fn logged_in_through_a_relay(provider: &Provider, steps: &[Named]) -> (Relay, Daemon, Application) {
    let relay = Relay::start(provider.text("token_url"), Path::new(provider.text("ca_file")));
    let application = provider.paste_application();
    let config = fs::read_to_string(&application.config).unwrap();
    let config = config.replace(provider.text("token_url"), &relay.token_url);
    // As long as a late answer takes, and a caller waits no longer than 30 s.
    fs::write(&application.config, config + "\n[limits]\ntoken_wait = \"28s\"\n").unwrap();
    relay.follow(steps.iter().copied());
    let daemon = Daemon::start(&application);
    log_in("paste", &daemon);
    assert_eq!(relay.left(), 0, "the code is exchanged at the relay");
    (relay, daemon, application)
}

#[track_caller]
fn refresh(daemon: &Daemon) -> (u16, String) {
    let answer = request(&daemon.base, "POST", "/-/refresh/main", "").unwrap();
    (answer.status, answer.body)
}

#[track_caller]
fn events(daemon: &Daemon) -> Vec<String> {
    let status = request(&daemon.base, "GET", "/-/status", "").unwrap().json();
    let events = status["accounts"]["main"]["events"].as_array().unwrap();
    events.iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect()
}

fn said(status: u16, media_type: &str, body: &str) -> Answer {
    let fields = vec![("content-type".to_owned(), media_type.to_owned())];
    Answer { status, fields, body: body.as_bytes().to_vec() }
}

fn said_with(status: u16, (name, value): (&str, &str)) -> Answer {
    Answer { status, fields: vec![(name.to_owned(), value.to_owned())], body: Vec::new() }
}

fn set(answer: &mut Answer, member: &str, value: Value) {
    let mut grant = answer.json();
    grant[member] = value;
    answer.body = grant.to_string().into_bytes();
}

fn set_type(answer: &mut Answer, media_type: &str) {
    answer.fields.retain(|(name, _)| name != "content-type");
    answer.fields.push(("content-type".to_owned(), media_type.to_owned()));
}

fn gzip(answer: &mut Answer) {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&answer.body).unwrap();
    answer.body = encoder.finish().unwrap();
    answer.fields.push(("content-encoding".to_owned(), "gzip".to_owned()));
}

fn utf_16(answer: &mut Answer) {
    answer.body = answer.text().encode_utf16().flat_map(u16::to_be_bytes).collect();
    set_type(answer, "application/json; charset=utf-16be");
}

/// With a member whose second byte, read as ASCII, is a backslash.
fn gbk(answer: &mut Answer) {
    answer.body.pop();
    answer.body.extend_from_slice(b",\"\xcb\xb5\xc3\xf7\":\"\x81\x5c\xd0\xc2\"}");
    set_type(answer, "application/json; charset=gbk");
}
