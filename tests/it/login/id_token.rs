//! The `id_token` that comes with the code: whatever is wrong with it, the code is not spent.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::standin::{Options, Person, Signature, Spoil};
use crate::support::{Setup, World};

use super::{Before, spoiled};

type Row = (&'static str, Spoil, &'static str);

/// Every row is a login of its own beside a stored one.
#[track_caller]
fn check_refused(world: &World, rows: impl IntoIterator<Item = Row>) {
    let before = Before::of(world);
    let mut played = 0;
    for (what, spoil, words) in rows {
        let answer = world.paste(&spoiled(world, spoil));
        assert_eq!(answer.status, 400, "{what}: {answer:?}");
        before.assert_refused(world, &answer, words);
        played += 1;
    }
    assert!(played > 0);
}

fn claims(change: impl FnOnce(&mut Value) + Send + 'static) -> Spoil {
    Spoil { claims: Some(Box::new(change)), ..Spoil::default() }
}

fn claim(name: &'static str, value: impl Into<Value>) -> Spoil {
    let value = value.into();
    claims(move |claims| claims[name] = value)
}

fn without(name: &'static str) -> Spoil {
    claims(move |claims| drop(claims.as_object_mut().unwrap().remove(name)))
}

fn signed(signature: Signature) -> Spoil {
    Spoil { signature, ..Spoil::default() }
}

fn in_place_of_the_id_token(text: &'static str) -> Spoil {
    let replace = move |parameters: &mut Vec<(String, String)>| {
        for (_, value) in parameters.iter_mut().filter(|(name, _)| name == "id_token") {
            text.clone_into(value);
        }
    };
    Spoil { parameters: Some(Box::new(replace)), ..Spoil::default() }
}

/// So many seconds from now; negative is in the past.
fn from_now(secs: i64) -> i64 {
    i64::try_from(UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).as_secs()).unwrap() + secs
}

/// oa-005, oa-006, oa-007: the `id_token` must be there, for this login and for this code.
#[test]
fn an_id_token_of_another_login_or_code_is_refused() {
    let world = World::logged_in();
    let code = Spoil { code: Some("c38fee53637dea2967f123e1c92184d8".to_owned()), ..Spoil::default() };
    let no_c_hash = Spoil { without_c_hash: true, ..Spoil::default() };
    let no_id_token = Spoil { without_id_token: true, ..Spoil::default() };
    check_refused(
        &world,
        [
            ("another nonce", claim("nonce", "another"), "nonce"),
            ("an empty nonce", claim("nonce", ""), "nonce"),
            ("no nonce", without("nonce"), "nonce"),
            ("another code", code, "c_hash"),
            ("no c_hash", no_c_hash, "c_hash"),
            ("an empty c_hash", claim("c_hash", ""), "c_hash"),
            ("no id_token", no_id_token, "no id_token"),
            ("an empty id_token", in_place_of_the_id_token(""), "no id_token"),
            ("garbage", in_place_of_the_id_token("x"), "id_token"),
            ("three parts of garbage", in_place_of_the_id_token("a.b.c"), "id_token"),
            ("no subject", without("sub"), "can't be read"),
            ("a number as subject", claim("sub", 1), "can't be read"),
        ],
    );
}

/// oa-009: the `id_token` must be for this application, and for it alone unless `azp` says so.
#[test]
fn an_id_token_for_another_application_is_refused() {
    let world = World::logged_in();
    let us = world.standin.options().client_id.clone();
    let both = json!([us, "another"]);
    let both_with = |azp: Value| {
        let both = both.clone();
        claims(move |claims| {
            claims["aud"] = both;
            claims["azp"] = azp;
        })
    };
    check_refused(
        &world,
        [
            ("another audience", claim("aud", "another"), "aud"),
            ("others in an array", claim("aud", json!(["another", "third"])), "aud"),
            ("an empty array", claim("aud", json!([])), "aud"),
            ("two without azp", claim("aud", both.clone()), "azp"),
            ("two with another azp", both_with("another".into()), "azp"),
            ("one with another azp", claim("azp", "another"), "azp"),
            ("no audience", without("aud"), "can't be read"),
        ],
    );

    for spoil in [claim("aud", json!([us])), both_with(us.as_str().into()), claim("azp", us.as_str())] {
        assert_eq!(world.paste(&spoiled(&world, spoil)).status, 200);
    }
}

/// oa-010, oa-011: 300 seconds of leeway, both ways.
#[test]
fn an_id_token_out_of_its_time_is_refused_beyond_five_minutes() {
    let world = World::logged_in();
    let begins = |secs: i64| {
        claims(move |claims| {
            claims["iat"] = from_now(secs).into();
            claims["nbf"] = from_now(secs).into();
            claims["exp"] = from_now(secs + 300).into();
        })
    };
    check_refused(
        &world,
        [
            ("ended 6 minutes ago", claim("exp", from_now(-360)), "start the login again"),
            ("ended in 1970", claim("exp", 0), "start the login again"),
            ("begins in 11 minutes", begins(660), "not valid yet"),
            ("nbf in 11 minutes", claim("nbf", from_now(660)), "not valid yet"),
            ("iat in 11 minutes", claim("iat", from_now(660)), "not valid yet"),
            ("no end", without("exp"), "can't be read"),
            ("an end in words", claim("exp", "tomorrow"), "can't be read"),
        ],
    );

    for spoil in [claim("exp", from_now(-240)), begins(240), without("nbf"), without("iat")] {
        assert_eq!(world.paste(&spoiled(&world, spoil)).status, 200);
    }
}

/// A signature that proves nothing. The key set is asked for; none of it helps.
#[test]
fn an_id_token_without_the_server_s_signature_is_refused() {
    let world = World::logged_in();
    let header = |alg: &'static str| Spoil {
        header: Some(Box::new(move |header| header["alg"] = alg.into())),
        ..Spoil::default()
    };
    let unsigned = |alg: &'static str| Spoil { signature: Signature::Tampered, ..header(alg) };
    check_refused(
        &world,
        [
            ("alg none", signed(Signature::None), "not signed with a public key"),
            (
                "HS256 with the public key",
                signed(Signature::Hs256WithPublicKey),
                "not signed with a public key",
            ),
            ("alg NONE", unsigned("NONE"), "not signed with a public key"),
            ("alg nOnE", unsigned("nOnE"), "not signed with a public key"),
            ("no alg", unsigned(""), "not signed with a public key"),
            ("a wrong key", signed(Signature::WrongKey), "signature does not verify"),
            ("one bit", signed(Signature::Tampered), "signature does not verify"),
            (
                "an extension that nobody here understands",
                Spoil {
                    header: Some(Box::new(|header| header["crit"] = json!(["b64"]))),
                    ..Spoil::default()
                },
                "(crit)",
            ),
            ("RS256 called RS512", header("RS512"), "key"),
            ("RS256 called ES256", header("ES256"), "key"),
        ],
    );
}

/// A configured issuer is the only one.
#[test]
fn an_id_token_of_another_issuer_is_refused_where_one_is_configured() {
    let account = "issuer = \"https://oauth.cnblogs.com\"".to_owned();
    let options = Options { issuer: Some("https://oauth.cnblogs.com".to_owned()), ..Options::default() };
    let world = Setup { options, account, ..Setup::default() }.logged_in();

    check_refused(
        &world,
        [
            ("another", claim("iss", "https://evil.example"), "iss"),
            ("a slash", claim("iss", "https://oauth.cnblogs.com/"), "iss"),
            ("none", without("iss"), "iss"),
        ],
    );
}

#[test]
fn claims_that_nobody_knows_do_no_harm() {
    let world = World::start();

    let spoil = claims(|claims| {
        claims["groups"] = json!([{ "a": [null, 1.5] }]);
        claims["s_hash"] = "x".into();
    });

    assert_eq!(
        world.paste(&world.standin.authorize_with(&world.begin_login(), Person::Alice, spoil)).status,
        200
    );
}
