//! `/-/callback`, for applications whose registered address points here.

use std::net::TcpListener;

use crate::standin::{Callback, Options, Person, Spoil};
use crate::support::{Answer, Home, Setup, World, config};

use super::{Before, parameter, post_as_browser, post_from_page};

/// Only a name: what a browser does with it, the tests do at the daemon's real port.
const REDIRECT_URI: &str = "http://127.0.0.1:8262/-/callback";

/// An application that is registered with our address.
fn start(settings: &str) -> World {
    let options = Options { redirect_uris: vec![REDIRECT_URI.to_owned()], ..Options::default() };
    let account = format!("redirect_uri = \"{REDIRECT_URI}\"\n{settings}");
    Setup { options, account, ..Setup::default() }.start()
}

#[track_caller]
fn callback(world: &World) -> Callback {
    world.standin.callback(&world.begin_login(), Person::Alice, Spoil::default())
}

/// The form of `form_post`, as a browser sends it from the authorization server's page.
#[track_caller]
fn post(world: &World, callback: &Callback, origin: &str) -> Answer {
    let form: Vec<_> =
        callback.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    post_as_browser(world, "/-/callback", &[("Origin", origin), ("Sec-Fetch-Site", "cross-site")], &form)
}

#[test]
fn a_form_post_from_the_authorization_server_logs_in() {
    for origin in ["null", "https://oauth.cnblogs.com"] {
        let world = start("response_mode = \"form_post\"");
        let url = world.begin_login();
        assert_eq!(parameter(&url, "response_mode"), "form_post");
        let callback = world.standin.callback(&url, Person::Alice, Spoil::default());

        let answer = post(&world, &callback, origin);

        assert_eq!(answer.status, 200, "{origin}: {answer:?}");
        assert!(answer.text().contains("Logged in") && answer.text().contains(Person::Alice.display_name()));
        assert_eq!(world.daemon.state(), "ready");
        let again = post(&world, &callback, origin);
        assert!(again.status == 400 && again.text().contains("`state`"), "{again:?}");
        assert_eq!(world.standin.token_requests().len(), 1);
    }
}

#[test]
fn a_form_post_that_is_spoiled_or_unknown_is_refused() {
    let world = start("response_mode = \"form_post\"");
    let before = Before::of(&world);
    let good = callback(&world);
    let change = |change: fn(&mut Vec<(String, String)>)| {
        let mut changed = good.clone();
        change(&mut changed.parameters);
        changed
    };

    for (spoiled, words) in [
        (change(|all| all.retain(|(name, _)| name != "state")), "`state` is missing"),
        (
            change(|all| all.push(("state".to_owned(), "another".to_owned()))),
            "`state` is there more than once",
        ),
        (change(|all| all.push(all[0].clone())), "`code` is there more than once"),
        (change(|all| all.iter_mut().for_each(|(_, value)| value.push('x'))), "`state` is unknown"),
        // No paste, in which words may stand behind.
        (change(|all| all.iter_mut().for_each(|(_, value)| value.push_str(". Bob"))), "`state` is unknown"),
        (change(|all| all.retain(|(name, _)| name != "id_token")), "no id_token"),
    ] {
        let answer = post(&world, &spoiled, "https://evil.example");
        assert!(answer.status == 400 && answer.text().contains(words), "{words}: {answer:?}");
        before.assert_unchanged(0, &world);
    }

    assert_eq!(post(&world, &good, "null").status, 200);
}

#[test]
fn the_callback_is_refused_for_an_account_that_is_registered_elsewhere() {
    let world = World::start();
    let before = Before::of(&world);
    let callback = callback(&world);

    for answer in
        [post(&world, &callback, "null"), world.daemon.get(&format!("/-/callback?{}", callback.encoded()))]
    {
        assert!(answer.status == 400 && answer.text().contains("redirect_uri"), "{answer:?}");
        before.assert_unchanged(0, &world);
    }

    assert_eq!(world.paste(&callback.address()).status, 200, "where it belongs");
}

#[test]
fn a_code_in_the_query_logs_in_once_and_is_not_shown() {
    let world = start("response_type = \"code\"");
    let callback = callback(&world);
    let target = format!("/-/callback?{}", callback.encoded());
    let fields = [("Accept", "text/html"), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Dest", "document")];

    let answer = world.daemon.request("GET", &target, &fields, b"");

    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.text().contains(Person::Alice.display_name()), "{}", answer.text());
    assert!(
        callback.parameters.iter().all(|(name, value)| name == "scope" || !answer.text().contains(value))
    );
    let again = world.daemon.request("GET", &target, &fields, b"");
    assert!(again.status == 400 && again.text().contains("`state`"), "{again:?}");
    assert_eq!(world.standin.token_requests().len(), 1);
}

/// web-023: what a browser fetches by itself, and a HEAD, consume nothing.
#[test]
fn a_prefetch_of_the_callback_consumes_nothing() {
    let world = start("response_type = \"code\"");
    let target = format!("/-/callback?{}", callback(&world).encoded());

    for (method, field) in [
        ("GET", ("Sec-Purpose", "prefetch")),
        ("GET", ("Purpose", "prefetch")),
        ("GET", ("Sec-Fetch-Dest", "image")),
        ("GET", ("Sec-Fetch-Dest", "empty")),
        ("HEAD", ("Accept", "*/*")),
    ] {
        world.daemon.request(method, &target, &[field], b"");
        assert_eq!(world.standin.token_requests().len(), 0, "{method} {field:?}");
    }

    assert_eq!(world.daemon.get(&target).status, 200);
}

#[test]
fn an_issuer_in_the_query_does_not_hide_what_is_behind_the_hash() {
    let world = World::start();

    let page = world.daemon.get("/-/callback?iss=https%3A%2F%2Foauth.cnblogs.com");

    assert!(page.status == 200 && page.text().contains("id=\"fragment\""), "{}", page.text());
}

#[test]
fn a_query_that_is_no_callback_is_refused_quickly() {
    let world = start("response_type = \"code\"");
    let good = callback(&world).encoded();

    for query in [
        format!("{good}&state=another"),
        format!("{good}&code=another"),
        format!("{good}{}", "&x=1".repeat(10_000)),
        "code=%ff%fe&state=x".to_owned(),
        "code=a%00b&state=x".to_owned(),
        "code=a".to_owned(),
        "state=a".to_owned(),
        "x".to_owned(),
    ] {
        let answer = world.daemon.get(&format!("/-/callback?{query}"));
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-request"), "{query:.80}");
    }

    assert_eq!(world.standin.token_requests().len(), 0);
    assert_eq!(world.daemon.get(&format!("/-/callback?{good}")).status, 200);
}

/// oa-029: no server sees a fragment; a page of ours brings it and wipes it from the address bar.
#[test]
fn the_callback_without_parameters_is_the_page_that_brings_the_fragment() {
    let world = start("");
    let callback = callback(&world);
    let fields = [("Accept", "text/html"), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")];

    let page = world.daemon.request("GET", "/-/callback", &fields, b"");
    let script = world.daemon.get("/-/page.js");

    assert!(
        page.status == 200 && page.text().contains("<script src=\"/-/page.js\" defer></script>"),
        "{page:?}"
    );
    assert!(page.text().contains("method=\"post\" action=\"/-/callback\""), "{}", page.text());
    assert_eq!(page.text().matches("<script").count(), 1, "nothing inline");
    let source = script.text();
    let (wiped, sent) = (source.find("history.replaceState"), source.find(".submit()"));
    assert!(wiped.is_some() && wiped < sent, "wiped before anything else happens: {source}");
    let form: Vec<_> =
        callback.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(post_from_page(&world, "/-/callback", &form).status, 200);
    assert_eq!(post_from_page(&world, "/-/callback", &form).status, 400, "once");
    assert_eq!(world.standin.token_requests().len(), 1);
}

/// oa-030: where another program listens, nobody is sent to log in.
#[test]
fn a_daemon_whose_port_is_taken_offers_no_login() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let standin = crate::standin::Standin::start(Options::default());
    let home = Home::new(Vec::new());
    let (top, account) = (
        format!("listen = [\"127.0.0.1:{port}\"]"),
        format!("redirect_uri = \"http://127.0.0.1:{port}/-/callback\""),
    );
    std::fs::write(home.config(), config(&standin, &home, &top, &account, "", "")).unwrap();

    let output = home.run(&["serve"], "");

    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
}
