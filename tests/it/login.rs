//! Logging in: the authorization URL, the way from a callback to a stored login, and all that must not become one.
//!
//! What the cases of `login-cases.json` have in common: a login that is refused costs no request to the token
//! endpoint and leaves the stored one alone.

mod callback;
mod client;
pub(crate) mod discovery;
mod exchange;
mod id_token;
mod keys;
mod local;
mod pages;
pub(crate) mod person;
mod secrecy;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use url::Url;

use crate::standin::{Person, Spoil};
use crate::support::{Answer, World};

/// What a login that comes to nothing must leave as it was.
struct Before {
    token_requests: usize,
    store: Option<Vec<u8>>,
    authorization: Option<String>,
}

impl Before {
    #[track_caller]
    fn of(world: &World) -> Self {
        Self {
            token_requests: world.standin.token_requests().len(),
            store: std::fs::read(world.home.state().join("store")).ok(),
            authorization: authorization_in_use(world),
        }
    }

    /// A login was refused with these words, and its code was not sent.
    #[track_caller]
    fn assert_refused(&self, world: &World, answer: &Answer, words: &str) {
        self.assert_refused_after(0, world, answer, words);
    }

    /// A login was refused with these words after so many requests to the token endpoint.
    #[track_caller]
    fn assert_refused_after(&self, sent: usize, world: &World, answer: &Answer, words: &str) {
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-request"), "{answer:?}");
        let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert!(detail.contains(words), "{detail:?} does not say {words:?}");
        self.assert_unchanged(sent, world);
    }

    /// The stored login is the same, and in use, after so many requests to the token endpoint.
    #[track_caller]
    fn assert_unchanged(&self, sent: usize, world: &World) {
        let now = Self::of(world);
        assert_eq!(now.token_requests, self.token_requests + sent, "requests to the token endpoint");
        assert_eq!(now.store, self.store, "the stored login");
        assert_eq!(now.authorization, self.authorization, "what the API is sent");
    }
}

/// The `Authorization` with which the API is called; none without a login.
#[track_caller]
fn authorization_in_use(world: &World) -> Option<String> {
    let answer = world.daemon.get("/api/blogposts/@sitehome");
    if answer.status == 503 {
        return None;
    }
    assert_eq!(answer.status, 200, "{answer:?}");
    let requests = world.standin.api_requests();
    let asked = requests.iter().rev().find(|request| request.path() == "/api/blogposts/@sitehome");
    asked.and_then(|request| request.field("authorization"))
}

/// Begins a login and comes back with something wrong.
#[track_caller]
pub(crate) fn spoiled(world: &World, spoil: Spoil) -> String {
    world.standin.authorize_with(&world.begin_login(), Person::Alice, spoil)
}

/// The value of the one query parameter with that name.
#[track_caller]
pub(crate) fn parameter(url: &str, name: &str) -> String {
    let url = Url::parse(url).unwrap();
    let values: Vec<_> = url.query_pairs().filter(|(key, _)| key == name).map(|(_, value)| value).collect();
    assert_eq!(values.len(), 1, "{name} in {url}");
    values[0].clone().into_owned()
}

/// The hidden field `page` of the login page.
#[track_caller]
fn page_secret(world: &World) -> String {
    attribute(&world.daemon.get("/-/login").text(), "name=\"page\" value=\"")
}

/// What stands behind `before` in a page, up to the next quote.
#[track_caller]
fn attribute(page: &str, before: &str) -> String {
    let (_, rest) = page.split_once(before).unwrap_or_else(|| panic!("no {before} in {page}"));
    rest.split('"').next().unwrap_or_default().to_owned()
}

/// Posts a form as a browser does from one of our own pages.
#[track_caller]
fn post_from_page(world: &World, target: &str, form: &[(&str, &str)]) -> Answer {
    let origin = format!("http://{}", world.daemon.authority);
    post_as_browser(world, target, &[("Origin", &origin), ("Sec-Fetch-Site", "same-origin")], form)
}

/// Posts a form as a browser does from the page that these fields tell of.
#[track_caller]
fn post_as_browser(world: &World, target: &str, from: &[(&str, &str)], form: &[(&str, &str)]) -> Answer {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let mut fields = vec![
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Accept", "text/html,application/xhtml+xml"),
        ("Sec-Fetch-Mode", "navigate"),
        ("Sec-Fetch-Dest", "document"),
    ];
    fields.extend_from_slice(from);
    world.daemon.request("POST", target, &fields, body.as_bytes())
}

/// oa-001: every login has its own state, nonce and challenge, and the URL has these parameters and no others.
#[test]
fn a_thousand_logins_share_neither_state_nor_nonce() {
    let world = World::start();
    let urls: Vec<String> = (0..1000).map(|_| world.begin_login()).collect();

    let expected = [
        ("client_id", world.standin.options().client_id.clone()),
        ("scope", "openid profile CnBlogsApi offline_access".to_owned()),
        ("response_type", "code id_token".to_owned()),
        ("redirect_uri", format!("{}/auth/callback", world.standin.auth_url())),
        ("code_challenge_method", "S256".to_owned()),
        ("response_mode", "fragment".to_owned()),
    ];
    for url in &urls {
        assert!(url.starts_with(&format!("{}/connect/authorize?", world.standin.auth_url())), "{url}");
        assert!(!url.contains('+'), "a space is %20: {url}");
        for (name, value) in &expected {
            assert_eq!(&parameter(url, name), value);
        }
        assert_eq!(Url::parse(url).unwrap().query_pairs().count(), expected.len() + 3, "{url}");
        assert_eq!(world.standin.authorize_refusal(url), None);
    }
    for name in ["state", "nonce", "code_challenge"] {
        assert_random(&urls.iter().map(|url| parameter(url, name)).collect());
    }
}

/// All differ, all have 128 bits or more, and every bit of them is as often set as not.
#[track_caller]
fn assert_random(values: &HashSet<String>) {
    let decoded: Vec<Vec<u8>> = values.iter().map(|value| URL_SAFE_NO_PAD.decode(value).unwrap()).collect();
    assert_eq!(decoded.len(), 1000, "some came twice");
    let bytes = decoded.iter().map(Vec::len).min().unwrap();
    assert!(bytes >= 16, "{bytes} bytes");
    for bit in 0..bytes * 8 {
        let set = decoded.iter().filter(|value| value[bit / 8] >> (bit % 8) & 1 == 1).count();
        assert!((400..=600).contains(&set), "bit {bit} is set in {set} of 1000");
    }
}

#[test]
fn a_login_is_stored_in_use_and_outlives_a_restart() {
    let mut world = World::start();
    assert_eq!(world.daemon.state(), "login-required");

    world.log_in(Person::Alice);
    let authorization = authorization_in_use(&world);
    world.restart();

    assert!(authorization.is_some());
    assert_eq!(authorization_in_use(&world), authorization);
    assert_eq!((world.daemon.state().as_str(), world.standin.token_requests().len()), ("ready", 1));
}

/// oa-019: parts of two logins do not mix, and each of them can still be finished, once.
#[test]
fn two_tabs_both_finish_but_their_parts_do_not_mix() {
    let world = World::start();
    let (url_a, url_b) = (world.begin_login(), world.begin_login());
    let a = world.standin.callback(&url_a, Person::Alice, Spoil::default());
    let b = world.standin.callback(&url_b, Person::Alice, Spoil::default());
    let mut mixed = b.clone();
    for (name, value) in &mut mixed.parameters {
        if name == "state" {
            *value = parameter(&url_a, "state");
        }
    }

    let before = Before::of(&world);
    before.assert_refused(&world, &world.paste(&mixed.address()), "nonce");

    for (callback, so_far) in [(&b, 1), (&a, 2)] {
        assert_eq!(world.paste(&callback.address()).status, 200);
        assert_eq!(world.paste(&callback.address()).status, 400, "a second time");
        assert_eq!(world.standin.token_requests().len(), so_far);
    }
}

#[test]
fn a_callback_pasted_many_times_at_once_spends_its_code_once() {
    let world = World::start();
    let callback = world.standin.authorize(&world.begin_login(), Person::Alice);

    let form =
        url::form_urlencoded::Serializer::new(String::new()).append_pair("callback", &callback).finish();
    let request = format!(
        "POST /-/login/main HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}",
        world.daemon.authority,
        form.len()
    );
    let mut streams: Vec<_> = (0..16).map(|_| world.daemon.connect()).collect();
    streams.iter_mut().for_each(|stream| stream.write_all(request.as_bytes()).unwrap());
    let read = |mut stream: TcpStream| {
        let mut raw = Vec::new();
        stream.read_to_end(&mut raw).unwrap();
        Answer::parse(&raw, "POST").unwrap().status
    };
    let statuses: Vec<u16> = streams.into_iter().map(read).collect();

    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 400).count(), 15, "{statuses:?}");
    assert_eq!(world.standin.token_requests().len(), 1);
}

#[test]
fn no_number_of_logins_that_are_begun_or_denied_pushes_one_out() {
    let world = World::start();
    let oldest = world.standin.authorize(&world.begin_login(), Person::Alice);
    let used = world.standin.authorize(&world.begin_login(), Person::Alice);
    assert_eq!(world.paste(&used).status, 200);

    let urls: Vec<String> = (0..1000).map(|_| world.begin_login()).collect();
    urls.iter().take(300).for_each(|url| assert_eq!(world.paste(&world.standin.deny(url)).status, 400));

    Before::of(&world).assert_refused(&world, &world.paste(&used), "used already");
    let newest = world.standin.authorize(urls.last().unwrap(), Person::Alice);
    for callback in [oldest, newest] {
        assert_eq!(world.paste(&callback).status, 200);
    }
}
