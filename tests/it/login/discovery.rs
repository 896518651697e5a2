//! An account that has only its issuer: the addresses come from the discovery document.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use serde_json::json;

use crate::standin::{Body, Endpoint, Fault, Options, Person, Spoil};
use crate::support::{Setup, World};

use super::{Before, page_secret, parameter, post_from_page, spoiled};

const DOCUMENT: &str = "/.well-known/openid-configuration";

/// A world whose account has an issuer, these lines and no address.
pub(crate) fn discovered(options: Options, account: &str) -> World {
    Setup { options, account: format!("<discovered>{account}"), ..Setup::default() }.start()
}

fn kept(world: &World) -> PathBuf {
    world.home.state().join("discovery.main")
}

#[track_caller]
fn assert_refreshes_and_logs_out(world: &World) {
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
    assert_eq!(world.daemon.post_form("/-/logout/main", &[]).status, 200);
    assert_eq!(world.standin.revocations().len(), 1);
}

/// A login can't start now, and nothing but the document is asked for.
#[track_caller]
fn assert_does_not_start(world: &World, words: &str) {
    let answer = world.daemon.post_form("/-/login/main/start", &[]);
    assert_eq!((answer.status, answer.problem().as_str()), (503, "token-unavailable"), "{answer:?}");
    let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
    assert!(detail.contains(words), "{detail:?} does not say {words:?}");
    let others = world.standin.auth_requests().into_iter().filter(|request| request.path() != DOCUMENT);
    assert_eq!(others.count(), 0);
}

#[test]
fn the_issuer_alone_is_enough_for_a_login_a_refresh_and_a_logout() {
    let world = discovered(Options::default(), "");

    for _ in 0..3 {
        world.log_in(Person::Alice);
    }

    assert_eq!(world.standin.requests_for(DOCUMENT), 1, "at most once a minute");
    assert_eq!(world.standin.key_set_fetches(), 1);
    assert_eq!(fs::symlink_metadata(kept(&world)).unwrap().mode() & 0o777, 0o600);
    assert_refreshes_and_logs_out(&world);
}

#[test]
fn an_application_s_own_token_comes_from_the_token_endpoint_that_the_issuer_names() {
    let mut world = discovered(Options::default(), "\ngrant = \"client_credentials\"");
    assert_eq!(world.daemon.get("/api/blogposts/@sitehome").status, 200);
    assert_eq!((world.standin.requests_for(DOCUMENT), world.standin.token_requests().len()), (1, 1));

    // It may have moved since, and what was kept does when nobody answers.
    world.restart();
    world.standin.fault(Endpoint::Discovery, Fault::status(503));
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);

    assert_eq!((world.standin.requests_for(DOCUMENT), world.standin.token_requests().len()), (2, 2));
}

#[test]
fn an_issuer_with_a_path_is_asked_below_it_and_without_a_double_slash() {
    let standin = crate::standin::Standin::start(Options::default());
    let home = crate::support::Home::new(Vec::new());
    let issuer = format!("{}/realms/x/", standin.auth_url());
    let text = crate::support::config(&standin, &home, "", "<discovered>", "", "");
    let own = format!("issuer = \"{}\"", standin.auth_url());
    fs::write(home.config(), text.replace(&own, &format!("issuer = \"{issuer}\""))).unwrap();
    let world = World { daemon: home.serve(), standin, home };

    let _refused = world.daemon.post_form("/-/login/main/start", &[]);

    assert_eq!(world.standin.requests_for("/realms/x/.well-known/openid-configuration"), 1);
}

/// An issuer that is not there is `unavailable`, and no reason not to start.
#[test]
fn an_issuer_that_does_not_answer_is_asked_again_by_the_next_login() {
    let world = discovered(Options::default(), "");
    world.standin.set_down(true);
    assert_does_not_start(&world, "discovery document");
    let page = post_from_page(&world, "/-/login/main/start", &[("page", &page_secret(&world))]);
    assert!(page.status == 503 && page.text().contains("discovery document"), "{page:?}");

    world.standin.set_down(false);
    world.log_in(Person::Alice);

    assert_eq!(world.daemon.state(), "ready");
}

#[test]
fn a_document_that_is_not_the_issuer_s_own_or_names_no_good_address_is_not_used() {
    let world = discovered(Options::default(), "");
    let trap = world.standin.trap();
    let set = |name: &'static str, value: &str| {
        let value = json!(value);
        Fault::alter(move |document| document[name] = value)
    };
    let without = |name: &'static str| {
        Fault::alter(move |document| drop(document.as_object_mut().unwrap().remove(name)))
    };
    let slash = format!("{}/", world.standin.auth_url());
    for (fault, words) in [
        (set("issuer", "https://evil.example"), "not the configured one"),
        (set("issuer", &slash), "not the configured one"),
        (without("issuer"), "not the configured one"),
        (set("authorization_endpoint", "http://h.example/"), "authorization_endpoint: must be https"),
        (set("token_endpoint", "http://h.example/"), "token_endpoint: must be https"),
        (set("token_endpoint", "https://user:c4n4ry@h/"), "token_endpoint: must not contain a user name"),
        (set("revocation_endpoint", "x"), "revocation_endpoint: not a URL"),
        (set("userinfo_endpoint", ""), "userinfo_endpoint: not a URL"),
        (Fault::alter(|document| document["jwks_uri"] = json!(7)), "jwks_uri: not a URL"),
        (Fault::alter(|document| *document = json!([])), "not a JSON object"),
        (Fault::html(), "not a JSON object"),
        (Fault::truncated_json(), "not a JSON object"),
        (Fault::huge_json(), "larger than 64 KiB"),
        (Fault::status(404), "404"),
        (Fault::status(503), "503"),
        (Fault::redirect(302, &format!("http://{}/", trap.authority())), "302"),
        (Fault::DropBefore, "discovery document"),
    ] {
        let what = format!("{fault:?} {words}");
        world.standin.fault(Endpoint::Discovery, fault);
        // What was seen last would do: there must not be anything.
        assert!(!kept(&world).exists(), "{what}");
        assert_does_not_start(&world, words);
        assert!(!world.daemon.output().contains("c4n4ry"));
    }

    assert_eq!(trap.caught(), 0);
}

#[test]
fn a_document_without_an_address_is_named_when_that_is_needed() {
    for (name, does_start) in
        [("authorization_endpoint", false), ("token_endpoint", true), ("jwks_uri", true)]
    {
        let world = discovered(Options::default(), "");
        let without = Fault::alter(move |document| drop(document.as_object_mut().unwrap().remove(name)));
        world.standin.fault(Endpoint::Discovery, without);
        if !does_start {
            assert_does_not_start(&world, "has no authorization_endpoint");
            continue;
        }

        let answer = world.paste(&spoiled(&world, Spoil::default()));

        Before::of(&world).assert_refused(&world, &answer, &format!("has no {name}"));
        let names_the_cure = answer.text().contains("jwks_url = ");
        assert_eq!(names_the_cure, name == "jwks_uri", "{}", answer.text());
        assert!(world.standin.token_requests().is_empty());
    }
}

#[test]
fn what_is_written_wins_over_the_document() {
    let world = discovered(Options::default(), "\nrevocation_url = \"\"\njwks_url = \"\"");

    let answer = world.paste(&spoiled(&world, Spoil::default()));

    assert!(answer.status == 200 && answer.text().contains("signature was not checked"), "{answer:?}");
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
    let logout = world.daemon.post_form("/-/logout/main", &[]);
    assert!(logout.text().contains("no revocation_url"), "{logout:?}");
    assert_eq!((world.standin.key_set_fetches(), world.standin.revocations().len()), (0, 0));
}

/// As the token endpoint's answers, those of the other endpoints are read in whichever way they are written.
#[test]
fn a_byte_order_mark_or_another_character_set_is_no_reason_to_know_nothing() {
    let rewritten = || {
        Fault::Rewrite(|answer| {
            let Body::Full(body) = &mut answer.body else { panic!("not whole") };
            *body = [b"\xef\xbb\xbf", body.as_slice()].concat();
        })
    };
    let mut world = discovered(Options { own_subjects: true, ..Options::default() }, "");
    for endpoint in [Endpoint::Discovery, Endpoint::KeySet, Endpoint::UserInfo] {
        world.standin.fault_always(endpoint, rewritten);
    }

    let answer = world.paste(&spoiled(&world, Spoil::default()));

    assert_eq!((answer.status, &answer.json()["person"]), (200, &json!(Person::Alice.display_name())));
    world.restart();
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
    assert_eq!(world.standin.requests_for(DOCUMENT), 1);
}

/// A file that could not be kept is no reason to forget in a reload what is known.
#[test]
fn a_reload_forgets_no_endpoint() {
    let world = discovered(Options::default(), "");
    world.log_in(Person::Alice);
    fs::remove_file(kept(&world)).unwrap();
    world.standin.fault_always(Endpoint::Discovery, || Fault::status(503));

    assert!(world.home.run(&["reload"], "").status.success());

    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
}

#[test]
fn after_a_restart_a_login_is_refreshed_and_ended_without_the_document() {
    let mut world = discovered(Options::default(), "");
    world.log_in(Person::Alice);
    world.standin.fault_always(Endpoint::Discovery, || Fault::status(503));

    world.restart();

    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
    world.log_in(Person::Alice);
    assert_refreshes_and_logs_out(&world);
    assert_eq!(world.standin.requests_for(DOCUMENT), 2, "one for each login");
}

#[test]
fn what_changed_is_noticed_when_a_login_starts() {
    let mut world = discovered(Options::default(), "");
    world.log_in(Person::Alice);
    world.standin.fault_always(Endpoint::Discovery, || {
        Fault::alter(|document| drop(document.as_object_mut().unwrap().remove("revocation_endpoint")))
    });
    world.restart();
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
    assert_eq!(world.standin.requests_for(DOCUMENT), 1, "a refresh does not look");

    world.log_in(Person::Alice);

    let logout = world.daemon.post_form("/-/logout/main", &[]);
    assert!(logout.text().contains("no revocation_url"), "{logout:?}");
    assert_eq!(world.standin.revocations().len(), 0);
}

/// Whatever stands in the file's place, it is not followed, and what is fetched anew replaces it.
#[test]
fn a_kept_document_that_is_damaged_or_none_is_made_anew() {
    let mut world = discovered(Options::default(), "");
    world.log_in(Person::Alice);
    let (kept, elsewhere) = (kept(&world), world.home.path().join("elsewhere"));
    let good = fs::read_to_string(&kept).unwrap();
    let foreign = good.replace(&world.standin.auth_url(), "https://evil.example");
    fs::write(&elsewhere, &foreign).unwrap();

    for what in ["empty", "damaged", "of another issuer", "a link", "a pipe"] {
        fs::remove_file(&kept).unwrap();
        match what {
            "empty" => fs::write(&kept, "").unwrap(),
            "damaged" => fs::write(&kept, &good[..good.len() / 2]).unwrap(),
            "of another issuer" => fs::write(&kept, &foreign).unwrap(),
            "a link" => symlink(&elsewhere, &kept).unwrap(),
            _ => assert!(std::process::Command::new("mkfifo").arg(&kept).status().unwrap().success()),
        }
        world.restart();
        let before = world.standin.requests_for(DOCUMENT);

        assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200, "{what}");

        assert_eq!(world.standin.requests_for(DOCUMENT), before + 1, "{what}");
        assert_eq!(fs::read_to_string(&kept).unwrap(), good, "{what}");
        assert!(fs::symlink_metadata(&kept).unwrap().is_file(), "{what}");
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), foreign, "{what}");
    }
}

/// RFC 9207: who names another issuer, or none although it always names itself, was not where the login began. An
/// `id_token` names it as well.
#[test]
fn a_callback_of_another_issuer_is_refused_before_its_code_is_spent() {
    for (sends_iss, flow) in [(false, "code"), (true, "code"), (true, "code id_token")] {
        let options = Options { sends_iss, ..Options::default() };
        let world = discovered(options, &format!("\nresponse_type = \"{flow}\""));
        world.log_in(Person::Alice);
        let before = Before::of(&world);
        let own = world.standin.auth_url();
        let named = |iss: Option<String>| Spoil {
            parameters: Some(Box::new(move |parameters| {
                parameters.retain(|(name, _)| name != "iss");
                parameters.extend(iss.map(|iss| ("iss".to_owned(), iss)));
            })),
            ..Spoil::default()
        };

        for other in ["https://evil.test", &format!("{own}/"), ""] {
            let answer = world.paste(&spoiled(&world, named(Some(other.to_owned()))));
            before.assert_refused(&world, &answer, "issuer (iss) is not the configured one");
        }
        let unnamed = world.paste(&spoiled(&world, named(None)));
        if sends_iss && flow == "code" {
            before.assert_refused(&world, &unnamed, "issuer (iss) is missing");
        } else {
            assert_eq!(unnamed.status, 200, "{unnamed:?}");
        }
        assert_eq!(world.paste(&spoiled(&world, named(Some(own)))).status, 200);
    }
}

#[test]
fn a_no_of_another_issuer_is_refused_and_leaves_the_login_open() {
    let world = discovered(Options { sends_iss: true, ..Options::default() }, "");
    let url = world.begin_login();
    let no = world.standin.deny(&url);
    let own = format!(
        "iss={}",
        url::form_urlencoded::byte_serialize(world.standin.auth_url().as_bytes()).collect::<String>()
    );
    assert!(no.contains(&own), "{no}");

    let answer = world.paste(&no.replace(&own, "iss=https%3A%2F%2Fevil.test"));

    Before::of(&world).assert_refused(&world, &answer, "issuer (iss) is not the configured one");
    assert_eq!(world.paste(&world.standin.authorize(&url, Person::Alice)).status, 200);

    // Some leave it out of refusals.
    let no = world.standin.deny(&world.begin_login());
    let answer = world.paste(&no.replace(&format!("&{own}"), ""));
    Before::of(&world).assert_refused(&world, &answer, "said no (access_denied)");
}

/// With addresses that are all written, a configured issuer counts as well; without one nobody is compared.
#[test]
fn the_issuer_of_a_callback_is_compared_where_one_is_configured() {
    for (account, status) in [("issuer = \"https://oauth.cnblogs.com\"", 400), ("", 200)] {
        let options = Options { issuer: Some("https://oauth.cnblogs.com".to_owned()), ..Options::default() };
        let world = Setup { options, account: account.to_owned(), ..Setup::default() }.start();
        let callback = spoiled(&world, Spoil::default());

        let answer = world.paste(&format!("{callback}&iss=https://evil.test"));

        assert_eq!(answer.status, status, "{account}: {answer:?}");
        assert_eq!(world.standin.token_requests().len(), usize::from(status == 200));
        assert_eq!(world.standin.requests_for(DOCUMENT), 0);
    }
}

/// Who it is: the userinfo endpoint says it, unless it speaks of somebody else or of everybody.
#[test]
fn the_person_is_the_one_that_the_userinfo_endpoint_names() {
    let alice = Person::Alice;
    let own_subjects = || Options { own_subjects: true, ..Options::default() };
    let set =
        |name: &'static str, value: &'static str| Fault::alter(move |answer| answer[name] = json!(value));
    let nameless = Fault::alter(|answer| {
        *answer =
            json!({ "sub": answer["sub"], "name": "", "preferred_username": "alice7", "nickname": "al" });
    });
    for (options, account, fault, person, asks_the_api) in [
        (own_subjects(), "", None, Some(alice.display_name()), false),
        (own_subjects(), "", Some(set("name", "爱")), Some("爱"), false),
        (own_subjects(), "", Some(nameless), Some("alice7"), false),
        (
            own_subjects(),
            "",
            Some(Fault::alter(|answer| answer["name"] = json!(null))),
            Some(alice.user_id()),
            false,
        ),
        (own_subjects(), "", Some(set("sub", "another")), Some(alice.display_name()), true),
        (own_subjects(), "", Some(Fault::html()), Some(alice.display_name()), true),
        (own_subjects(), "", Some(Fault::status(500)), Some(alice.display_name()), true),
        (Options::default(), "", Some(set("name", "everybody")), Some(alice.display_name()), true),
        (own_subjects(), "\nidentity_url = \"\"", None, None, false),
    ] {
        let what = format!("{account} {fault:?}");
        let world = discovered(options, account);
        if let Some(fault) = fault {
            world.standin.fault(Endpoint::UserInfo, fault);
        }

        let answer = world.paste(&spoiled(&world, Spoil::default()));

        assert_eq!(answer.status, 200, "{what}: {answer:?}");
        assert_eq!(answer.json()["person"].as_str(), person, "{what}: {answer:?}");
        let asked = world.standin.api_requests().iter().any(|request| request.path() == "/api/users");
        assert_eq!(asked, asks_the_api, "{what}");
    }
}

#[test]
fn an_identity_url_that_is_written_is_asked_in_place_of_the_userinfo_endpoint() {
    let standin = crate::standin::Standin::start(Options { own_subjects: true, ..Options::default() });
    let home = crate::support::Home::new(Vec::new());
    let account = format!("<discovered>\nidentity_url = \"{}/api/users\"", standin.api_url());
    fs::write(home.config(), crate::support::config(&standin, &home, "", &account, "", "")).unwrap();
    let world = World { daemon: home.serve(), standin, home };

    world.log_in(Person::Bob);

    assert_eq!(world.standin.requests_for("/connect/userinfo"), 0);
    assert_eq!(world.daemon.status()["accounts"]["main"]["person"], Person::Bob.display_name());
}

/// The issuer of the `id_token`s is compared, as `issuer` says.
#[test]
fn an_id_token_of_another_issuer_is_refused() {
    let world = discovered(Options::default(), "");
    let spoil = Spoil {
        claims: Some(Box::new(|claims| claims["iss"] = json!("https://evil.test"))),
        ..Spoil::default()
    };

    let answer = world.paste(&spoiled(&world, spoil));

    Before::of(&world).assert_refused(&world, &answer, "the id_token's issuer (iss)");
}

/// The login page of an account whose authorization endpoint is not known yet.
#[test]
fn the_login_page_asks_nobody() {
    let world = discovered(Options::default(), "");

    let page = world.daemon.get("/-/login");

    assert!(page.text().contains(&format!("data-authorize=\"{}\"", world.standin.auth_url())), "{page:?}");
    assert_eq!(world.standin.auth_requests().len(), 0);
    assert_eq!(parameter(&world.begin_login(), "response_type"), "code id_token");
}
