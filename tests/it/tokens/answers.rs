//! What the token endpoint may say: only its last word ends a login, and only what came whole is an answer.

use std::io::Write;
use std::time::Duration;

use flate2::Compression;

use super::{events, expired, held, logged_in_for, main_account, refresh};
use crate::standin::{Answer, Body, Endpoint, Fault, Gate, Options};
use crate::support::{Setup, World, eventually};

pub(crate) fn assert_ready(world: &World) {
    let answer = world.daemon.get("/api/users");
    assert_eq!((answer.status, world.daemon.state()), (200, "ready".to_owned()), "{}", world.daemon.output());
}

fn body_of(answer: &mut Answer) -> &mut Vec<u8> {
    match &mut answer.body {
        Body::Full(body) => body,
        Body::Stream { .. } => panic!("the answer is no whole one"),
    }
}

fn encoded(answer: &mut Answer, name: &str, encode: impl FnOnce(&[u8]) -> Vec<u8>) {
    let body = body_of(answer);
    *body = encode(body);
    answer.fields.push(("Content-Encoding".to_owned(), name.to_owned()));
}

fn gzipped(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn deflated(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn typed(answer: &mut Answer, media_type: &str) {
    answer.fields.retain(|(name, _)| !name.eq_ignore_ascii_case("content-type"));
    answer.fields.push(("Content-Type".to_owned(), media_type.to_owned()));
}

#[test]
fn a_server_that_may_still_work_on_a_refresh_is_not_asked_again_whoever_asks() {
    let gate = Gate::default();
    let tables = "[limits]\ntoken_timeout = \"2s\"".to_owned();
    let world = Setup { tables, ..Setup::default() }.logged_in();
    world.standin.fault(Endpoint::Token, Fault::HoldAfter(gate.clone()));

    assert_eq!(refresh(&world.daemon).problem(), "token-unavailable");
    let account = main_account(&world.daemon);
    assert_eq!(account["last_refresh"]["outcome"], "in-doubt", "{account}");
    let asked_again = refresh(&world.daemon);

    assert_eq!(asked_again.problem(), "token-unavailable");
    let detail = asked_again.json()["detail"].as_str().unwrap_or_default().to_owned();
    assert!(detail.contains("may still work") || world.standin.refreshes().len() > 1, "{detail}");
    let refreshes = eventually("it is asked again, later", || {
        refresh(&world.daemon);
        let refreshes = world.standin.refreshes();
        (refreshes.len() > 1).then_some(refreshes)
    });
    let pause = refreshes[1].at - refreshes[0].at;
    // The server may have seen the first one late: 2 s, and about as long again.
    assert!(pause >= Duration::from_secs(3), "asked again after {pause:?}");
}

#[test]
fn what_is_no_last_word_keeps_the_login_and_the_next_good_answer_recovers() {
    type MakeFault = fn() -> Fault;
    let cases: [MakeFault; 14] = [
        || Fault::status(400),
        || Fault::status(401),
        || Fault::status(403),
        || Fault::error(400, "internal_error"),
        || Fault::error(400, "invalid_request"),
        || Fault::error(403, "invalid_grant"),
        || Fault::error(200, "invalid_grant"),
        || Fault::typed(400, "text/html", "<h1>Bad Request</h1> invalid_grant"),
        || Fault::typed(400, "application/json", r#"{"error":{"code":"token_expired"}}"#),
        || Fault::typed(400, "application/json", r#"{"error":["invalid_grant"]}"#),
        || Fault::typed(400, "application/json", r#"["invalid_grant"]"#),
        || Fault::typed(400, "text/plain", "invalid_grant"),
        || Fault::typed(200, "application/json", "{}"),
        || Fault::typed(200, "application/json", "null"),
    ];
    let mut world = World::logged_in();
    for fault in cases {
        world.standin.fault(Endpoint::Token, fault());
        let answer = refresh(&world.daemon);
        assert_eq!(answer.problem(), "token-unavailable", "{:?}", fault());
        assert_eq!(world.daemon.state(), "degraded", "{:?}", fault());

        world.restart();
        assert_eq!(refresh(&world.daemon).status, 200, "{:?}", fault());
        assert_ready(&world);
    }
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn a_last_word_is_heard_in_whatever_it_is_written() {
    let gbk: &[u8] = b"{\"error\":\"invalid_grant\",\"error_description\":\"\xcb\xa2\xd0\xc2\xc1\xee\xc5\xc6\xce\xde\xd0\xa7\x81\x5c\"}";
    let utf16: Vec<u8> =
        "\u{feff}{\"error\":\"invalid_grant\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let cases: [(&str, Vec<u8>); 5] = [
        ("application/json", gbk.to_vec()),
        ("application/json; charset=utf-8", gbk.to_vec()),
        ("application/json; charset=utf-16", utf16),
        ("text/plain", b"\xef\xbb\xbf {\"error\":\"invalid_grant\"}".to_vec()),
        ("application/json", br#"{"error":{"code":"invalid_grant","message":"gone"}}"#.to_vec()),
    ];
    for (media_type, body) in cases {
        let world = World::logged_in();
        let last_word = Fault::typed(400, media_type, body);
        world.standin.fault(Endpoint::Token, last_word);

        assert_eq!(refresh(&world.daemon).problem(), "login-required", "{media_type}");

        let error = main_account(&world.daemon)["last_refresh"]["error"].as_str().unwrap().to_owned();
        assert!(error.contains("invalid_grant"), "{error}");
    }
}

#[test]
fn a_grant_is_read_in_whatever_it_is_written() {
    type Rewrite = fn(&mut Answer);
    let cases: [(&str, Rewrite); 13] = [
        ("a byte order mark", |answer| {
            let body = body_of(answer);
            *body = [b"\xef\xbb\xbf", body.as_slice()].concat();
        }),
        ("UTF-16", |answer| {
            let text = String::from_utf8(body_of(answer).clone()).unwrap();
            *body_of(answer) = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
            typed(answer, "application/json; charset=utf-16be");
        }),
        ("GBK beside the tokens", |answer| {
            let body = body_of(answer);
            body.pop();
            body.extend_from_slice(b",\"\xcb\xb5\xc3\xf7\":\"\x81\x5c\xd0\xc2\"}");
        }),
        ("gzip", |answer| encoded(answer, "gzip", gzipped)),
        ("gzip by its old name", |answer| encoded(answer, "x-gzip", gzipped)),
        ("gzip in capitals", |answer| encoded(answer, "GZIP", gzipped)),
        ("gzip twice", |answer| encoded(answer, "gzip, gzip", |body| gzipped(&gzipped(body)))),
        ("gzip that is not said", |answer| encoded(answer, "identity", gzipped)),
        ("gzip that is said and not done", |answer| encoded(answer, "gzip", <[u8]>::to_vec)),
        ("deflate without what belongs around it", |answer| encoded(answer, "deflate", deflated)),
        ("deflate", |answer| {
            encoded(answer, "deflate", |body| {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(body).unwrap();
                encoder.finish().unwrap()
            });
        }),
        ("brotli", |answer| {
            encoded(answer, "br", |body| {
                let mut compressed = Vec::new();
                brotli::CompressorWriter::new(&mut compressed, 4096, 5, 22).write_all(body).unwrap();
                compressed
            });
        }),
        ("a type that it is not", |answer| typed(answer, "text/html")),
    ];
    for (what, rewrite) in cases {
        let world = World::logged_in();
        world.standin.fault(Endpoint::Token, Fault::Rewrite(rewrite));

        assert_eq!(refresh(&world.daemon).status, 200, "{what}: {}", world.daemon.output());

        assert_eq!(world.standin.refreshes().len(), 1, "{what}");
        assert_ready(&world);
    }
}

#[test]
fn an_answer_that_is_small_and_becomes_large_is_not_read_to_its_end() {
    let world = World::logged_in();
    world.standin.fault(
        Endpoint::Token,
        Fault::Rewrite(|answer| {
            encoded(answer, "gzip", |_body| {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::best());
                // 32 KiB on the wire.
                (0..32).for_each(|_| encoder.write_all(&[b' '; 1 << 20]).unwrap());
                encoder.finish().unwrap()
            });
        }),
    );

    assert_eq!(refresh(&world.daemon).problem(), "token-unavailable");

    let error = main_account(&world.daemon)["last_refresh"]["error"].as_str().unwrap().to_owned();
    assert!(error.contains("64 KiB"), "{error}");
}

#[test]
fn an_answer_that_came_whole_and_cant_be_used_is_not_tried_again_at_once() {
    let world = World::logged_in();
    world.standin.fault(Endpoint::Token, Fault::truncated_json());

    assert_eq!(refresh(&world.daemon).problem(), "token-unavailable");

    assert_eq!(world.standin.refreshes().len(), 1);
    assert_eq!(refresh(&world.daemon).status, 200);
}

#[test]
fn a_server_that_refuses_early_refreshes_is_asked_once_more_and_nobody_has_to_log_in() {
    let world = logged_in_for(10, vec![Fault::error(400, "invalid_grant")], Setup::default());
    world.standin.set_expires_in(3600);

    eventually("it is told at once", || {
        events(&world.daemon).ends_with(&["login-required".to_owned()]).then_some(())
    });
    assert_eq!(world.daemon.get("/-/readyz").status, 200);
    eventually("it recovers by itself", || (world.daemon.state() == "ready").then_some(()));

    let refreshes = world.standin.refreshes();
    let pause = refreshes[1].at - refreshes[0].at;
    assert!(refreshes.len() == 2 && pause >= Duration::from_secs(3), "after {pause:?} of the 5 s left");
    assert_eq!(events(&world.daemon).last().map(String::as_str), Some("recovered"));
    assert_ready(&world);
}

#[test]
fn a_last_word_that_nothing_explains_names_another_copy_of_the_login() {
    let world = World::logged_in();
    world.standin.forget_refresh_tokens();

    assert_eq!(refresh(&world.daemon).problem(), "login-required");

    let events = main_account(&world.daemon)["events"].clone();
    let message = events.as_array().unwrap().last().unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("another copy of this login"), "{message}");
}

#[test]
fn one_far_retry_after_does_not_silence_the_daemon_for_a_day() {
    let world = World::logged_in();
    world.standin.fault(Endpoint::Token, Fault::status_with(503, "Retry-After", "86400"));

    assert_eq!(refresh(&world.daemon).problem(), "token-unavailable");

    let last = main_account(&world.daemon)["events"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["event"], "refresh-failing", "it outlasts the token, and a person is told at once");
    assert!(last["message"].as_str().unwrap().contains("86400"), "{last}");
    assert_eq!(refresh(&world.daemon).status, 200);
}

#[test]
fn an_expired_token_and_a_server_that_hangs_hold_no_request_longer_than_it_may_wait() {
    let gate = Gate::default();
    let tables = "[limits]\ntoken_wait = \"500ms\"".to_owned();
    let options = Options { expires_in_secs: 3600, ..Options::default() };
    let world = Setup { options, tables, ..Setup::default() }.logged_in();
    world.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));
    world.standin.refuse_next(1);

    let refused = world.daemon.get("/api/users");

    assert_eq!(refused.status, 401, "the API's own answer, while the refresh still hangs");
    held(&gate);
    assert_eq!(world.daemon.state(), "refreshing");
    world.standin.set_expires_in(1);
    gate.open();
    let gate = Gate::default();
    eventually("there is a token for a second", || (world.daemon.state() != "refreshing").then_some(()));
    world.standin.fault_always(Endpoint::Token, {
        let gate = gate.clone();
        move || Fault::HoldBefore(gate.clone())
    });
    expired(&world.daemon);
    assert_eq!(world.daemon.get("/api/users").problem(), "token-unavailable");
    gate.open();
}
