//! The authorization server's public keys: from the configured address only, and not too often.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::standin::{Endpoint, Fault, KeySet, Person, Signature, Spoil};
use crate::support::{Answer, World};

use super::{Before, spoiled};

fn header(change: impl FnOnce(&mut Value) + Send + 'static) -> Spoil {
    Spoil { header: Some(Box::new(change)), ..Spoil::default() }
}

/// The key that `Signature::WrongKey` signs with, as a key set has it.
#[track_caller]
fn strangers_key(world: &World) -> Value {
    world.standin.set_key_set(KeySet::OtherKey);
    let auth = world.standin.auth_url();
    let mut stream = TcpStream::connect(auth.trim_start_matches("http://")).unwrap();
    let request =
        "GET /.well-known/openid-configuration/jwks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).unwrap();
    world.standin.set_key_set(KeySet::Right);
    Answer::parse(&raw, "GET").unwrap().json()["keys"][0].clone()
}

/// oa-013: where keys are is configured; a token's header has no say.
#[test]
fn keys_that_the_id_token_itself_names_are_not_used() {
    let world = World::logged_in();
    let before = Before::of(&world);
    let (trap, key) = (world.standin.trap(), strangers_key(&world));
    let evil = format!("http://{}/keys", trap.authority());

    for names_them in ["jku", "x5u"] {
        let (evil, signature) = (evil.clone(), Signature::WrongKey);
        let spoil = Spoil { signature, ..header(move |header| header[names_them] = evil.into()) };
        before.assert_refused(&world, &world.paste(&spoiled(&world, spoil)), "signature does not verify");
    }
    let spoil = Spoil { signature: Signature::WrongKey, ..header(move |header| header["jwk"] = key) };
    before.assert_refused(&world, &world.paste(&spoiled(&world, spoil)), "signature does not verify");
    let spoil = header(move |header| header["jku"] = evil.into());
    assert_eq!(world.paste(&spoiled(&world, spoil)).status, 200, "a right signature beside it");

    assert_eq!(trap.caught(), 0, "{:?}", trap.bytes());
}

/// oa-013: an unknown key is looked for, at most once a minute.
#[test]
fn an_unknown_key_is_looked_for_at_most_once_a_minute() {
    let world = World::logged_in();
    let before = Before::of(&world);
    assert_eq!(world.standin.key_set_fetches(), 1);

    for number in 0..10 {
        let spoil = header(move |header| header["kid"] = format!("unknown-{number}").into());
        before.assert_refused(&world, &world.paste(&spoiled(&world, spoil)), "does not publish");
    }

    let refetches = world.standin.key_set_fetches() - 1;
    assert!(refetches <= 1, "{refetches} more looks at the key set");
}

#[test]
fn keys_that_were_just_changed_are_found() {
    let world = World::logged_in();

    world.standin.rotate_keys();
    world.log_in(Person::Alice);

    assert_eq!(world.standin.key_set_fetches(), 2);
}

#[test]
fn keys_are_fetched_once_for_many_logins() {
    let world = World::logged_in();

    for _ in 0..5 {
        world.log_in(Person::Alice);
    }

    assert_eq!(world.standin.key_set_fetches(), 1);
}

/// A server without keys can't be checked: that is said, and all else is checked all the same.
#[test]
fn without_published_keys_a_login_works_and_says_that_no_signature_was_checked() {
    let world = World::start();
    world.standin.fault_always(Endpoint::KeySet, || Fault::status(404));
    let claims = |change: fn(&mut Value)| Spoil { claims: Some(Box::new(change)), ..Spoil::default() };
    let signed = |signature| Spoil { signature, ..Spoil::default() };

    let before = Before::of(&world);
    for (spoil, words) in [
        (signed(Signature::None), "not signed with a public key"),
        (signed(Signature::Hs256WithPublicKey), "not signed with a public key"),
        (claims(|claims| claims["nonce"] = "another".into()), "nonce"),
        (claims(|claims| claims["aud"] = "another".into()), "aud"),
        (claims(|claims| claims["exp"] = 0.into()), "start the login again"),
        (claims(|claims| claims["c_hash"] = "another".into()), "c_hash"),
    ] {
        before.assert_refused(&world, &world.paste(&spoiled(&world, spoil)), words);
    }
    let answer = world.paste(&spoiled(&world, Spoil::default()));

    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.text().contains("signature was not checked"), "{}", answer.text());
}

#[test]
fn keys_that_come_back_are_used_again() {
    let mut world = World::start();
    world.standin.fault(Endpoint::KeySet, Fault::status(404));
    world.log_in(Person::Alice);

    world.restart();

    let spoil = Spoil { signature: Signature::WrongKey, ..Spoil::default() };
    Before::of(&world).assert_refused(&world, &world.paste(&spoiled(&world, spoil)), "signature");
}

/// Keys that can't be had now: nothing is sent, and the same address will do later.
#[test]
fn without_the_key_set_nothing_is_sent_and_the_same_address_works_later() {
    let world = World::start();
    let before = Before::of(&world);
    let trap = world.standin.trap();
    let callback = spoiled(&world, Spoil::default());

    for fault in [
        Fault::status(500),
        Fault::status(503),
        Fault::status(403),
        Fault::status(429),
        Fault::Answer { status: 500, fields: Vec::new(), body: br#"{"keys":[]}"#.to_vec() },
        Fault::redirect(302, &format!("http://{}/", trap.authority())),
        Fault::redirect(307, &format!("http://{}/", trap.authority())),
        Fault::html(),
        Fault::truncated_json(),
        Fault::huge_json(),
        Fault::DropBefore,
        Fault::TruncateAfter,
        Fault::alter(|set| *set = json!({ "keys": "none" })),
        Fault::alter(|set| *set = json!([])),
    ] {
        let what = format!("{fault:?}");
        world.standin.fault(Endpoint::KeySet, fault);
        let answer = world.paste(&callback);
        assert_eq!(answer.status, 400, "{what}: {answer:?}");
        before.assert_refused(&world, &answer, "keys can't be fetched");
        let cure = "for a server that publishes none set jwks_url = \"\": the signature is not checked then";
        before.assert_refused(&world, &answer, cure);
    }

    assert_eq!(world.paste(&callback).status, 200);
    assert_eq!(trap.caught(), 0);
}

#[test]
fn a_key_set_without_the_right_key_verifies_nothing() {
    for (key_set, words) in
        [(KeySet::Empty, "does not publish"), (KeySet::OtherKey, "signature does not verify")]
    {
        let world = World::start();
        world.standin.set_key_set(key_set);

        let callback = spoiled(&world, Spoil::default());

        Before::of(&world).assert_refused(&world, &world.paste(&callback), words);
    }
}

#[test]
fn keys_of_other_kinds_in_the_set_do_no_harm() {
    let world = World::start();
    world.standin.fault(
        Endpoint::KeySet,
        Fault::alter(|set| {
            let keys = set["keys"].as_array_mut().unwrap();
            keys.insert(0, json!({ "kty": "oct", "k": "AAAA", "alg": "HS256" }));
            keys.insert(0, json!({ "kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA" }));
            keys.insert(0, json!("garbage"));
        }),
    );

    world.log_in(Person::Alice);

    assert_eq!(world.daemon.state(), "ready");
}
