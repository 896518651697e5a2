//! oa-027: whatever the log level and format, no secret is printed, and none is in a file outside the store.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use url::form_urlencoded;

use crate::standin::{Endpoint, Fault, Options, Person, Rotation, Signature, Spoil};
use crate::support::{Setup, World, eventually};

use super::{page_secret, post_from_page, spoiled};

/// Everything that a login, its use and its end may go through.
fn live_through(world: &World) {
    world.log_in(Person::Alice);
    for _ in 0..3 {
        world.daemon.get("/api/blogposts/@sitehome?access_token=in-a-query");
    }
    world.standin.refuse_next(1);
    assert_eq!(world.daemon.request("POST", "/api/statuses", &[], b"body").status, 200);
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
    refused_logins(world);
    failing_refreshes(world);
    another_person(world);
    for command in [&["status"][..], &["status", "--json"], &["check"], &["refresh"]] {
        let output = world.home.run(command, "");
        assert_clean(world, &format!("{command:?}"), &[output.stdout, output.stderr].concat());
    }
    let page = page_secret(world);
    let callback = spoiled(world, Spoil::default());
    let answer = post_from_page(world, "/-/login/main", &[("page", &page), ("callback", &callback)]);
    assert_clean(world, "the page after a login", &answer.body);
    assert_eq!(world.daemon.post_form("/-/logout/main", &[]).status, 200);
}

fn refused_logins(world: &World) {
    let refused = |spoil| assert_eq!(world.paste(&spoiled(world, spoil)).status, 400);
    refused(Spoil { without_c_hash: true, ..Spoil::default() });
    refused(Spoil { without_id_token: true, ..Spoil::default() });
    refused(Spoil { signature: Signature::Tampered, ..Spoil::default() });
    refused(Spoil { signature: Signature::None, ..Spoil::default() });
    refused(Spoil { header: Some(Box::new(|header| header["alg"] = 7.into())), ..Spoil::default() });
    refused(Spoil { claims: Some(Box::new(|claims| claims["exp"] = "x".into())), ..Spoil::default() });
    world.paste(&spoiled(world, Spoil::default()).replace("state=", "state=x"));
    world.paste(&spoiled(world, Spoil::default()).replace("127.0.0.1", "localhost"));
    let query = spoiled(world, Spoil::default());
    world.daemon.get(&format!("/-/callback?{}", query.split_once('#').unwrap().1));
    for fault in [
        Fault::DropAfter,
        Fault::TruncateAfter,
        Fault::alter(|answer| answer["expires_in"] = answer["access_token"].clone()),
        Fault::alter(|answer| answer["token_type"] = answer["access_token"].clone()),
        Fault::alter(|answer| answer["error"] = answer["refresh_token"].clone()),
        Fault::alter(|answer| {
            answer["error"] = "invalid_grant".into();
            answer["error_description"] = answer["refresh_token"].clone();
        }),
        Fault::alter_id_token(|claims| claims["sub"] = "another".into()),
    ] {
        world.standin.fault(Endpoint::Token, fault);
        refused(Spoil::default());
    }
}

fn failing_refreshes(world: &World) {
    for fault in [Fault::DropBefore, Fault::status(503), Fault::error(400, "invalid_request"), Fault::html()]
    {
        world.standin.fault(Endpoint::Token, fault);
        world.daemon.post_form("/-/refresh/main", &[]);
    }
    world.standin.clear_faults();
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
}

fn another_person(world: &World) {
    let answer = world.paste(&world.standin.authorize(&world.begin_login(), Person::Bob));
    let id = answer.json()["confirm"].as_str().unwrap().to_owned();
    assert_eq!(world.daemon.post_form("/-/login/main", &[("confirm", &id), ("answer", "no")]).status, 200);
}

/// Everything that nobody but the two servers and the store may see, and the ways in which it is sent.
fn secrets(world: &World) -> Vec<String> {
    let mut secrets = world.standin.issued_secrets();
    for request in world.standin.authorize_requests() {
        let is_bound = |name: &str| name == "state" || name == "nonce";
        secrets.extend(
            request.parameters.into_iter().filter(|(name, _)| is_bound(name)).map(|(_, value)| value),
        );
    }
    for request in world.standin.token_requests() {
        secrets.extend(request.form_field("code_verifier").map(str::to_owned));
        secrets.extend(request.authorization.map(|field| field.replace("Basic ", "")));
    }
    let Options { client_id, client_secret, .. } = world.standin.options();
    secrets.push(client_secret.clone());
    secrets.push(form_urlencoded::byte_serialize(client_secret.as_bytes()).collect());
    secrets.push(STANDARD.encode(format!("{client_id}:{client_secret}")));
    secrets.push("access_token=in-a-query".to_owned());
    secrets
}

/// No secret, whole or by its first half.
#[track_caller]
fn assert_clean(world: &World, place: &str, content: &[u8]) {
    let text = String::from_utf8_lossy(content);
    let all = secrets(world);
    assert!(all.len() > 4);
    for secret in all {
        let half: String = secret.chars().take((secret.len() / 2).max(16)).collect();
        // All id_tokens begin with the same header, which is none.
        let found = if secret.contains('.') { text.contains(&secret) } else { text.contains(&half) };
        assert!(!found, "{place} has {secret}:\n{text}");
    }
}

#[track_caller]
fn assert_files_are_clean(world: &World, directory: &Path) {
    let mut looked_at = 0;
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let name = entry.file_name().to_string_lossy().into_owned();
        if kind.is_dir() {
            assert_files_are_clean(world, &path);
        } else if kind.is_file() && !name.starts_with("store") && name != "client_secret" {
            assert_clean(world, &name, &fs::read(&path).unwrap());
            looked_at += 1;
        }
    }
    assert!(looked_at > 0, "nothing in {}", directory.display());
}

#[track_caller]
fn check_silent(format: &str, account: &str) {
    let mut world = Setup {
        options: Options { rotation: Rotation::OneTime, ..Options::default() },
        account: account.to_owned(),
        top: format!("log = \"trace\"\nlog_format = \"{format}\""),
        environment: vec![("RUST_LOG".to_owned(), "trace".to_owned())],
        ..Setup::default()
    }
    .start();

    live_through(&world);
    assert_files_are_clean(&world, world.home.path());
    assert_eq!(world.daemon.stop().code(), Some(0));

    let output =
        eventually("all is read", || Some(world.daemon.output()).filter(|text| text.contains("logged out")));
    for said in ["listening on", "logged in", "refreshed the token", "a login came to nothing", "answered"] {
        assert!(output.contains(said), "the log is not at work: {said}\n{output}");
    }
    if format == "json" {
        let lines: Vec<_> = output.lines().filter(|line| line.starts_with('{')).collect();
        assert!(lines.len() > 10, "{output}");
        for line in lines {
            assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
        }
    }
    assert_clean(&world, "the log", output.as_bytes());
}

/// Some servers repeat in their descriptions what was presented to them, however short it is.
#[test]
fn what_a_server_repeats_of_what_was_presented_is_not_shown() {
    let (secret, code) = ("c4n4ry-secret", "c4n4ry-code");
    let options = Options { client_secret: secret.to_owned(), ..Options::default() };
    let world = Setup { options, account: "response_type = \"code\"".to_owned(), ..Setup::default() }.start();
    let said = format!(r#"{{"error":"invalid_client","error_description":"not {secret}, not {code}!"}}"#);
    world.standin.fault(Endpoint::Token, Fault::typed(401, "application/json", said));

    let answer = world.paste(&spoiled(&world, Spoil { code: Some(code.to_owned()), ..Spoil::default() }));

    assert!(answer.text().contains("invalid_client (not [...], not [...]!)"), "{answer:?}");
    assert!(!world.daemon.output().contains("c4n4ry"), "{}", world.daemon.output());
}

#[test]
fn no_secret_is_printed_in_text_at_any_level() {
    check_silent("text", "");
}

#[test]
fn no_secret_is_printed_in_json_at_any_level() {
    check_silent("json", "client_auth = \"basic\"");
}
