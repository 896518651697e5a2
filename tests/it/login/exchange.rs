//! The code is spent: once, at the configured token endpoint only, and for an answer that holds together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::standin::{Endpoint, ExpiresIn, Fault, Options, Person, Scripted, Signature, Spoil, TlsDefect};
use crate::support::{Setup, World, eventually};
use crate::tokens::events;

use super::{Before, authorization_in_use, parameter, spoiled};

/// A login whose exchange goes wrong: nothing is stored, and the code is sent once, whatever is tried afterwards.
#[track_caller]
fn check_burnt(world: &World, fault: Fault, words: &str) {
    let before = Before::of(world);
    let what = format!("{fault:?}");
    world.standin.fault(Endpoint::Token, fault);
    let callback = spoiled(world, Spoil::default());

    let answer = world.paste(&callback);

    assert_eq!(answer.status, 400, "{what}: {answer:?}");
    before.assert_refused_after(1, world, &answer, words);
    assert_eq!(world.standin.pending_faults(Endpoint::Token), 0);
    before.assert_refused_after(1, world, &world.paste(&callback), "`state`");
}

fn set(name: &'static str, value: impl Into<Value>) -> Fault {
    let value = value.into();
    Fault::alter(move |answer| answer[name] = value)
}

fn without(name: &'static str) -> Fault {
    Fault::alter(move |answer| drop(answer.as_object_mut().unwrap().remove(name)))
}

/// oa-023, and the rest of what an answer must not be.
#[test]
fn a_token_answer_that_does_not_hold_together_is_not_stored() {
    let world = World::logged_in();
    let changed = |name: &'static str| Fault::alter_id_token(move |claims| claims[name] = "another".into());
    for (fault, words) in [
        (changed("sub"), "another subject (sub)"),
        (changed("aud"), "another application (aud"),
        (changed("nonce"), "nonce is not the one of this login, in the token answer: the code is spent"),
        (Fault::alter_id_token(|claims| claims["exp"] = from_now(-301).into()), "expired"),
        (Fault::alter_id_token(|claims| claims["exp"] = 0.into()), "the code is spent"),
        (Fault::alter_id_token(|claims| claims["iat"] = from_now(360).into()), "not valid yet"),
        (set("id_token", "x"), "id_token"),
        (set("id_token", "a.b.c"), "id_token"),
        (without("token_type"), "token_type"),
        (set("token_type", "mac"), "token_type"),
        (set("token_type", "Bearer "), "token_type"),
        (set("token_type", json!(["Bearer"])), "token_type"),
        (without("access_token"), "access_token"),
        (set("access_token", ""), "access_token"),
        (set("access_token", json!(7)), "access_token"),
        (set("access_token", "with space"), "RFC 6750"),
        (set("access_token", "with\r\nX-Injected: yes"), "RFC 6750"),
        (set("access_token", "with,comma"), "RFC 6750"),
        (set("access_token", "博客园"), "RFC 6750"),
        (set("expires_in", 0), "expires_in"),
        (set("expires_in", -3600), "expires_in"),
        (set("expires_in", "soon"), "expires_in"),
        (set("expires_in", ""), "expires_in"),
        (set("expires_in", true), "expires_in"),
        (set("expires_in", json!([3600])), "expires_in"),
        (set("error", "invalid_grant"), "invalid_grant"),
    ] {
        check_burnt(&world, fault, words);
    }
    assert_eq!(world.standin.refreshes().len(), 0);
}

/// So many seconds from now; negative is in the past.
fn from_now(secs: i64) -> i64 {
    i64::try_from(UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).as_secs()).unwrap() + secs
}

/// Cnblogs' tokens have carried an internal issuer. The first `id_token`, which is signed, was checked in any case.
#[test]
fn an_answer_s_id_token_of_another_issuer_or_none_at_all_is_a_remark() {
    let world = World::start();
    let another = || Fault::alter_id_token(|claims| claims["iss"] = "http://openapi_oauth-server".into());
    let as_it_should_be = "[]";
    for (fault, remark) in [
        (another(), "names another issuer"),
        (
            Fault::alter_id_token(|claims| drop(claims.as_object_mut().unwrap().remove("iss"))),
            "another issuer",
        ),
        (without("id_token"), "no id_token came with the tokens: the first one was checked"),
        (set("id_token", ""), "no id_token came with the tokens"),
        (
            Fault::alter_id_token(|claims| drop(claims.as_object_mut().unwrap().remove("nonce"))),
            as_it_should_be,
        ),
        (Fault::alter_id_token(|claims| claims["exp"] = from_now(-240).into()), as_it_should_be),
    ] {
        let what = format!("{fault:?} {remark}");
        world.standin.fault(Endpoint::Token, fault);

        let answer = world.paste(&spoiled(&world, Spoil::default()));

        assert_eq!(answer.status, 200, "{what}: {answer:?}");
        assert!(answer.json()["remarks"].to_string().contains(remark), "{what}: {answer:?}");
    }

    let issuer = "https://oauth.cnblogs.com".to_owned();
    let account = format!("issuer = \"{issuer}\"");
    let options = Options { issuer: Some(issuer), ..Options::default() };
    let world = Setup { options, account, ..Setup::default() }.start();
    check_burnt(&world, another(), "issuer (iss) is not the configured one, in the token answer");
}

#[test]
fn an_answer_that_is_none_burns_the_code_and_stores_nothing() {
    let world = World::logged_in();
    for (fault, words) in [
        (Fault::html(), "not a JSON object"),
        (Fault::truncated_json(), "not a JSON object"),
        (Fault::alter(|answer| *answer = json!([1])), "not a JSON object"),
        (Fault::huge_json(), "larger than 64 KiB"),
        (Fault::error(400, "invalid_grant"), "invalid_grant"),
        (Fault::error(400, "invalid_request"), "invalid_request"),
        (Fault::error(401, "invalid_client"), "invalid_client"),
        (Fault::status(500), "500"),
        (Fault::status(503), "503"),
        (Fault::Raw(b"not HTTP at all\r\n\r\n".to_vec()), ""),
    ] {
        check_burnt(&world, fault, words);
    }
}

/// The answer is lost and nobody knows whether the code is spent: it is not sent again.
#[test]
fn a_code_whose_answer_is_lost_is_not_sent_again() {
    let world = World::logged_in();

    for fault in [Fault::DropBefore, Fault::DropAfter, Fault::TruncateAfter] {
        check_burnt(&world, fault, "");
    }

    assert_eq!(world.standin.refreshes().len(), 0);
    world.log_in(Person::Alice);
}

#[test]
fn tokens_that_are_not_for_this_login_are_revoked() {
    let world = World::logged_in();
    let before = Before::of(&world);
    world.standin.fault(Endpoint::Token, Fault::alter_id_token(|claims| claims["sub"] = "another".into()));

    let answer = world.paste(&spoiled(&world, Spoil::default()));

    before.assert_refused_after(1, &world, &answer, "sub");
    let revocations = world.standin.revocations();
    assert_eq!(revocations.len(), 1, "{revocations:?}");
    assert!(revocations[0].form.contains(&("token_type_hint".to_owned(), "refresh_token".to_owned())));
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200, "the stored login");
}

/// oa-021: neither code nor client secret follow a redirect.
#[test]
fn a_redirect_of_the_token_endpoint_is_not_followed() {
    let world = World::logged_in();
    let trap = world.standin.trap();

    for status in [301, 302, 303, 307, 308] {
        let there = format!("http://{}/connect/token", trap.authority());
        check_burnt(&world, Fault::redirect(status, &there), &status.to_string());
    }

    assert_eq!(trap.caught(), 0, "{:?}", String::from_utf8_lossy(&trap.bytes()));
}

/// oa-022: a server that can't prove who it is gets not one byte.
#[test]
fn an_untrusted_authorization_server_is_sent_nothing() {
    for defect in [TlsDefect::UnknownAuthority, TlsDefect::WrongName, TlsDefect::Expired] {
        // With `code` the token endpoint is the first that is asked, else the key set.
        for response_type in ["code", "code id_token"] {
            let options = Options { tls: true, auth_tls_defect: Some(defect), ..Options::default() };
            let account = format!("response_type = \"{response_type}\"");
            let world = Setup { options, account, ..Setup::default() }.start();
            let before = Before::of(&world);

            let answer = world.paste(&spoiled(&world, Spoil::default()));

            before.assert_refused(&world, &answer, "certificate");
            assert_eq!(world.standin.auth_requests().len(), 0, "{defect:?}");
            let sent: Vec<u8> =
                world.standin.auth_connections().into_iter().flat_map(|one| one.bytes).collect();
            assert!(sent.is_empty(), "{defect:?}: {:?}", String::from_utf8_lossy(&sent));
        }
    }
}

#[test]
fn a_trusted_authorization_server_is_talked_to_over_tls() {
    let options = Options { tls: true, ..Options::default() };

    let world = Setup { options, ..Setup::default() }.logged_in();

    assert_eq!(world.daemon.state(), "ready");
}

#[test]
fn a_server_that_was_not_reached_burns_no_stored_login() {
    let world = World::logged_in();
    let before = Before::of(&world);
    let callback = spoiled(&world, Spoil::default());

    world.standin.set_down(true);
    let answer = world.paste(&callback);
    world.standin.set_down(false);

    before.assert_refused(&world, &answer, "can't be reached");
    world.log_in(Person::Alice);
}

/// What was not sent is still good.
#[test]
fn an_address_can_be_pasted_again_when_its_code_was_not_sent() {
    let account = "response_type = \"code\"".to_owned();
    let world = Setup { account, ..Setup::default() }.logged_in();
    let before = Before::of(&world);
    let callback = world.standin.authorize(&world.begin_login(), Person::Alice);

    world.standin.set_down(true);
    let answers = [world.paste(&callback), world.paste(&callback)];
    world.standin.set_down(false);

    for answer in answers {
        before.assert_refused(&world, &answer, "the same address can be pasted again");
    }
    assert_eq!(world.paste(&callback).status, 200);
    assert_eq!(world.paste(&callback).status, 400, "it is used up now");
}

#[test]
fn the_exchange_has_every_parameter_once_and_the_secret_in_the_body() {
    let world = World::logged_in();

    let sent = world.standin.token_requests();

    assert_eq!(sent.len(), 1);
    let mut names: Vec<_> = sent[0].form.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let expected = ["client_id", "client_secret", "code", "code_verifier", "grant_type", "redirect_uri"];
    assert_eq!(names, expected);
    assert_eq!((sent[0].grant_type.as_str(), &sent[0].authorization), ("authorization_code", &None));
    assert_eq!(sent[0].form_field("client_secret"), Some(world.standin.options().client_secret.as_str()));
}

#[test]
fn with_basic_the_secret_is_in_the_field_and_not_in_the_body() {
    let account = "client_auth = \"basic\"".to_owned();
    let world = Setup { account, ..Setup::default() }.logged_in();
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
    assert_eq!(world.daemon.post_form("/-/logout/main", &[]).status, 200);

    let sent = world.standin.token_requests();
    assert_eq!(sent.len(), 2);
    for request in sent {
        assert!(request.authorization.as_deref().unwrap_or_default().starts_with("Basic "), "{request:?}");
        assert_eq!((request.form_field("client_secret"), request.form_field("client_id")), (None, None));
    }
    assert!(world.standin.revocations().iter().all(|revocation| revocation.authorization.is_some()));
}

/// The code flow: PKCE and nonce vouch for it, by query.
#[test]
fn the_code_flow_works_by_query_with_pkce_and_nonce() {
    let account = "response_type = \"code\"".to_owned();
    let world = Setup { account, ..Setup::default() }.start();
    let url = world.begin_login();
    assert_eq!(parameter(&url, "response_type"), "code");
    assert_eq!(parameter(&url, "code_challenge_method"), "S256");
    assert!(!parameter(&url, "nonce").is_empty() && !url.contains("response_mode"), "{url}");

    let callback = world.standin.authorize(&url, Person::Alice);

    assert!(callback.contains("?code=") && !callback.contains("id_token"), "{callback}");
    assert_eq!(world.paste(&callback).status, 200);
    assert!(world.standin.token_requests()[0].form_field("code_verifier").is_some_and(|it| it.len() >= 43));
    assert_eq!(world.standin.key_set_fetches(), 0);
}

#[test]
fn in_the_code_flow_the_id_token_of_the_answer_is_checked() {
    let account = "response_type = \"code\"\nissuer = \"https://oauth.cnblogs.com\"".to_owned();
    let options = Options { issuer: Some("https://oauth.cnblogs.com".to_owned()), ..Options::default() };
    let world = Setup { options, account, ..Setup::default() }.logged_in();

    for (name, value, words) in [
        ("nonce", json!("another"), "nonce"),
        ("aud", json!("another"), "aud"),
        ("iss", json!("https://evil.example"), "iss"),
        ("exp", json!(1), "start the login again"),
    ] {
        check_burnt(&world, Fault::alter_id_token(move |claims| claims[name] = value), words);
    }

    world.standin.fault(Endpoint::Token, without("id_token"));
    let answer = world.paste(&spoiled(&world, Spoil::default()));
    assert!(answer.status == 200 && answer.text().contains("is openid in the scope?"), "{answer:?}");
}

/// oa-031: the login works, and the person is told that it ends with its access token.
#[test]
fn a_login_without_a_refresh_token_works_and_says_what_that_means() {
    let world = World::start();
    world.standin.leave_out_refresh_token(true);
    let answer = world.paste(&spoiled(&world, Spoil::default()));

    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.json()["remarks"].to_string().contains("no refresh token"), "{}", answer.text());
    let main = world.daemon.status()["accounts"]["main"].clone();
    assert_eq!((&main["state"], &main["next_refresh_at"]), (&json!("ready"), &Value::Null), "{main}");
    assert_eq!((&main["login_expires_at"], main["expires_at"].is_string()), (&main["expires_at"], true));
    world.standin.refuse_next(1);
    assert_eq!(world.daemon.get("/api/blogposts/@sitehome").status, 401, "passed on");
    assert_eq!(world.daemon.get("/api/blogposts/@sitehome").status, 200);
    assert_eq!(world.daemon.state(), "ready");
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).problem(), "login-required");
    assert_eq!(world.standin.token_requests().len(), 1);
}

#[test]
fn a_login_without_a_refresh_token_that_the_api_refuses_is_told_once_and_works_again_when_it_does() {
    let world = World::start();
    world.standin.leave_out_refresh_token(true);
    world.log_in(Person::Alice);
    let before = events(&world.daemon).len();
    let is_refused = Arc::new(AtomicBool::new(true));
    let refuses = Arc::clone(&is_refused);
    world.standin.on_api(move |_| refuses.load(Ordering::Relaxed).then(|| Scripted::Unauthorized));

    for _ in 0..2 {
        assert_eq!(world.daemon.get("/api/users").status, 401);
    }
    assert_eq!(world.daemon.state(), "ready", "two say nothing yet");
    eventually("a person is asked for", || {
        let answer = world.daemon.get("/api/users");
        (answer.status == 503).then(|| assert_eq!(answer.problem(), "login-required"))
    });

    assert_eq!(events(&world.daemon)[before..], ["login-required"]);
    let main = world.daemon.status()["accounts"]["main"].clone();
    assert_eq!(main["state"], "login-required");
    assert!(main["events"].to_string().contains("no refresh token came with it"), "{main}");
    assert_eq!(world.daemon.get("/-/readyz").status, 503);

    is_refused.store(false, Ordering::Relaxed);
    assert_eq!(world.daemon.get("/api/users").status, 200);
    eventually("it works again", || (world.daemon.state() == "ready").then_some(()));
    assert_eq!(events(&world.daemon)[before..], ["login-required", "recovered"]);
    assert_eq!(world.standin.token_requests().len(), 1);
}

#[test]
fn a_lifetime_is_taken_as_number_or_text_and_is_an_hour_when_unsaid() {
    let world = World::start();
    world.standin.set_expires_in(7200);
    for (form, expected) in [(ExpiresIn::Number, 7200), (ExpiresIn::Text, 7200), (ExpiresIn::Absent, 3600)] {
        world.standin.set_expires_in_form(form);

        world.log_in(Person::Alice);

        let expires_at = world.daemon.status()["accounts"]["main"]["expires_at"].as_str().unwrap().to_owned();
        let secs = secs_until(&expires_at);
        assert!((expected - 60..=expected).contains(&secs), "{form:?}: {secs} s until {expires_at}");
    }
}

/// From now to a time of RFC 3339 in UTC, less than a day away.
#[track_caller]
fn secs_until(time: &str) -> i64 {
    let (_, clock) = time.split_once('T').unwrap();
    let number = |at: usize| clock[at..at + 2].parse::<i64>().unwrap();
    let then = number(0) * 3600 + number(3) * 60 + number(6);
    let now = UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).as_secs() % 86400;
    (then - i64::try_from(now).unwrap()).rem_euclid(86400)
}

#[test]
fn a_token_type_is_bearer_in_any_case() {
    let world = World::start();

    for kind in ["bearer", "BEARER"] {
        world.standin.fault(Endpoint::Token, set("token_type", kind));
        world.log_in(Person::Alice);
    }

    assert!(authorization_in_use(&world).is_some_and(|value| value.starts_with("Bearer ")));
}

/// A server that mixes sessions up: the token is another person's, and is not used.
#[test]
fn a_refresh_that_brings_somebody_else_s_tokens_changes_nothing() {
    let options = Options { own_subjects: true, ..Options::default() };
    let world = Setup { options, ..Setup::default() }.logged_in();
    let in_use = authorization_in_use(&world);
    for (name, value) in [("sub", "another"), ("aud", "another")] {
        let mut claims = world.standin.id_token_claims(None);
        claims[name] = value.into();
        let id_token = world.standin.sign_id_token(&claims, Signature::Right);
        let tokens = json!({
            "access_token": "somebody-else-s",
            "refresh_token": "somebody-else-s-too",
            "token_type": "Bearer",
            "id_token": id_token,
        });
        world.standin.fault(Endpoint::Token, Fault::typed(200, "application/json", tokens.to_string()));

        let answer = world.daemon.post_form("/-/refresh/main", &[]);

        assert!(answer.status == 503 && answer.text().contains("in the answer to a refresh"), "{answer:?}");
        assert_eq!(authorization_in_use(&world), in_use, "{name}");
    }
    let refreshes = world.standin.refreshes();
    assert!(refreshes.iter().all(|one| one.form_field("refresh_token") != Some("somebody-else-s-too")));
}
