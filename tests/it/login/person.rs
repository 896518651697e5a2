//! Who logged in, and what happens when it is somebody else.

use serde_json::{Value, json};

use super::{Before, attribute, authorization_in_use, page_secret, post_as_browser, post_from_page, spoiled};
use crate::standin::{self, Person, Scripted, Spoil};
use crate::support::{Answer, Setup, World};

#[track_caller]
fn person(world: &World) -> Value {
    world.daemon.status()["accounts"]["main"]["person"].clone()
}

/// A login of Bob's, up to the question.
#[track_caller]
fn ask_for_bob(world: &World) -> Answer {
    ask_for(world, Person::Bob)
}

/// A login up to the question whether it shall replace the one that is there.
#[track_caller]
pub(crate) fn ask_for(world: &World, person: Person) -> Answer {
    let answer = world.paste(&world.standin.authorize(&world.begin_login(), person));
    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("needs-confirmation")), "{answer:?}");
    answer
}

/// The refresh token that this revocation made worthless, as a number of the login: 0 is the first.
#[track_caller]
fn revoked_logins(world: &World) -> Vec<String> {
    let revocations = world.standin.revocations();
    let token = |form: &[(String, String)]| form.iter().find(|(name, _)| name == "token").unwrap().1.clone();
    revocations.iter().map(|revocation| token(&revocation.form)).collect()
}

/// The refresh token in an answer of the token endpoint is always the one issued after its access token.
#[track_caller]
fn refresh_token_behind(world: &World, authorization: &str) -> String {
    let access_token = authorization.strip_prefix("Bearer ").unwrap();
    let issued = world.standin.issued_secrets();
    let at = issued.iter().position(|secret| secret == access_token).unwrap();
    issued[at + 1].clone()
}

#[test]
fn the_name_of_who_logged_in_is_shown_and_kept() {
    let mut world = World::start();
    let callback = spoiled(&world, Spoil::default());
    let secret = page_secret(&world);

    let answer = post_from_page(&world, "/-/login/main", &[("page", &secret), ("callback", &callback)]);

    let name = Person::Alice.display_name();
    assert!(answer.status == 200 && answer.text().contains(name), "{}", answer.text());
    assert_eq!(person(&world), name);
    world.restart();
    assert_eq!(person(&world), name);
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
    assert_eq!(person(&world), name);
}

#[test]
fn a_name_is_text_on_every_page() {
    let world = World::start();
    world.standin.on_api(|_| {
        let answer = json!({ "UserId": "1", "DisplayName": "<script>alert(1)</script>\"'&" });
        Some(Scripted::Answer(standin::Answer::json(200, &answer)))
    });
    let (callback, secret) = (spoiled(&world, Spoil::default()), page_secret(&world));

    let done = post_from_page(&world, "/-/login/main", &[("page", &secret), ("callback", &callback)]);
    let status = world.daemon.get("/-/");

    for page in [done.text(), status.text()] {
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"), "{page}");
        assert!(!page.contains("<script>"), "{page}");
    }
}

#[test]
fn a_name_moves_no_cursor_and_ends_no_line_on_a_terminal() {
    let world = World::start();
    let name = "\u{1b}[2J\u{7}evil\nmain: ready as root\u{202e}";
    world.standin.on_api(move |_| {
        Some(Scripted::Answer(standin::Answer::json(200, &json!({ "UserId": "1", "DisplayName": name }))))
    });
    world.log_in(Person::Alice);

    let status = world.home.run(&["status"], "").stdout;
    let login = world.home.run(&["status", "--json"], "").stdout;

    let shown = String::from_utf8(status).unwrap();
    assert!(shown.contains(r"\u{1b}[2J\u{7}evil\nmain: ready as root\u{202e}"), "{shown:?}");
    assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
    let status: Value = serde_json::from_slice(&login).unwrap();
    assert_eq!(status["accounts"]["main"]["person"], name);
}

#[test]
fn an_api_that_does_not_say_who_it_is_fails_no_login() {
    let world = World::start();
    let trap = world.standin.trap();
    let there = format!("http://{}/api/users", trap.authority());
    world.standin.set_api_down(true);
    world.log_in(Person::Alice);
    assert_eq!((person(&world), world.daemon.state().as_str()), (Value::Null, "ready"));
    world.standin.set_api_down(false);

    type Reply = Box<dyn Fn() -> standin::Answer + Send + Sync>;
    let replies: [Reply; 6] = [
        Box::new(|| standin::Answer::status(500)),
        Box::new(|| standin::Answer::status(401)),
        Box::new(|| standin::Answer::html(200, "<h1>Welcome to the hotel</h1>")),
        Box::new(|| standin::Answer::json(200, &json!([]))),
        Box::new(|| standin::Answer::full(200, vec![b' '; 1 << 20])),
        Box::new(move || standin::Answer::status(307).with("Location", &there)),
    ];
    for reply in replies {
        world.standin.on_api(move |_| Some(Scripted::Answer(reply())));
        let asked = ask_for(&world, Person::Alice).json();
        let form = [("confirm", asked["confirm"].as_str().unwrap()), ("answer", "yes")];
        assert_eq!(world.daemon.post_form("/-/login/main", &form).status, 200);
        assert_eq!((person(&world), world.daemon.state().as_str()), (Value::Null, "ready"));
    }

    assert_eq!(trap.caught(), 0, "the token follows no redirect");
}

#[test]
fn without_an_identity_url_the_api_is_not_asked() {
    let account = "identity_url = \"\"".to_owned();

    let world = Setup { account, ..Setup::default() }.logged_in();
    ask_for_bob(&world);

    assert_eq!((person(&world), world.standin.api_requests().len()), (Value::Null, 0));
}

#[test]
fn the_same_person_is_not_asked_again() {
    let world = World::logged_in();
    let before = authorization_in_use(&world);

    world.log_in(Person::Alice);

    assert_ne!(authorization_in_use(&world), before);
    assert_eq!(world.standin.revocations().len(), 0);
}

#[test]
fn another_person_waits_for_a_yes_which_replaces_the_login() {
    let mut world = World::logged_in();
    let before = Before::of(&world);
    let alices = refresh_token_behind(&world, before.authorization.as_deref().unwrap());
    let asked = ask_for_bob(&world).json();
    assert_eq!(asked["stored"], Person::Alice.display_name());
    assert_eq!(asked["new"], Person::Bob.display_name());
    before.assert_unchanged(1, &world);

    let id = asked["confirm"].as_str().unwrap();
    let answer = world.daemon.post_form("/-/login/main", &[("confirm", id), ("answer", "yes")]);

    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("logged-in")), "{answer:?}");
    assert_eq!(answer.json()["person"], Person::Bob.display_name());
    assert_eq!(person(&world), Person::Bob.display_name());
    assert_ne!(authorization_in_use(&world), before.authorization);
    assert_eq!(revoked_logins(&world), [alices]);
    world.restart();
    assert_eq!(person(&world), Person::Bob.display_name());
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200, "the new one is good");
}

#[test]
fn a_no_revokes_the_new_login_and_keeps_the_old_one() {
    let world = World::logged_in();
    let before = Before::of(&world);
    let id = ask_for_bob(&world).json()["confirm"].as_str().unwrap().to_owned();

    let answer = world.daemon.post_form("/-/login/main", &[("confirm", &id), ("answer", "no")]);

    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("declined")), "{answer:?}");
    before.assert_unchanged(1, &world);
    assert_eq!((person(&world), revoked_logins(&world).len()), (Person::Alice.display_name().into(), 1));
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200, "the old one is good");
    for late in ["yes", "no"] {
        let answer = world.daemon.post_form("/-/login/main", &[("confirm", &id), ("answer", late)]);
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-request"), "{answer:?}");
    }
    assert_eq!(revoked_logins(&world).len(), 1);
}

#[test]
fn the_page_asks_with_two_buttons_and_takes_the_answer() {
    for (answer, heading, person_then) in
        [("yes", "<h1>Logged in</h1>", Person::Bob), ("no", "<h1>Nothing changed</h1>", Person::Alice)]
    {
        let world = World::logged_in();
        let callback = world.standin.authorize(&world.begin_login(), Person::Bob);
        let secret = page_secret(&world);
        let form = [("page", secret.as_str()), ("callback", callback.as_str())];
        let page = post_from_page(&world, "/-/login/main", &form).text();

        assert!(
            page.contains(Person::Alice.display_name()) && page.contains(Person::Bob.display_name()),
            "{page}"
        );
        for button in ["name=\"answer\" value=\"yes\"", "name=\"answer\" value=\"no\""] {
            assert!(page.contains(&format!("<button type=\"submit\" {button}")), "{page}");
        }
        assert!(page.contains("<form method=\"post\" action=\"/-/login/main\">"), "{page}");
        let id = attribute(&page, "name=\"confirm\" value=\"");
        let secret = attribute(&page, "name=\"page\" value=\"");
        let form = [("page", secret.as_str()), ("confirm", id.as_str()), ("answer", answer)];
        let done = post_from_page(&world, "/-/login/main", &form);

        assert!(done.status == 200 && done.text().contains(heading), "{}", done.text());
        assert_eq!(person(&world), person_then.display_name());
    }
}

#[test]
fn only_the_page_that_asked_can_answer() {
    let world = World::logged_in();
    let before = Before::of(&world);
    let id = ask_for_bob(&world).json()["confirm"].as_str().unwrap().to_owned();

    let form = [("confirm", id.as_str()), ("answer", "yes")];
    let evil = [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site")];
    assert_eq!(post_as_browser(&world, "/-/login/main", &evil, &form).status, 403);
    assert_eq!(post_from_page(&world, "/-/login/main", &form).status, 403);
    for guess in ["", "x"] {
        let form = [("confirm", guess), ("answer", "yes")];
        assert_eq!(world.daemon.post_form("/-/login/main", &form).status, 400);
    }

    before.assert_unchanged(1, &world);
    assert_eq!(world.daemon.post_form("/-/login/main", &form).status, 200);
}

/// A login that nobody will answer any more must not stay good at the server.
#[test]
fn a_login_that_waits_is_revoked_when_another_takes_its_place() {
    let world = World::logged_in();
    let first = ask_for_bob(&world).json()["confirm"].as_str().unwrap().to_owned();

    let second = ask_for_bob(&world).json()["confirm"].as_str().unwrap().to_owned();

    assert_eq!(revoked_logins(&world).len(), 1, "the first one of Bob's");
    let late = world.daemon.post_form("/-/login/main", &[("confirm", &first), ("answer", "yes")]);
    assert_eq!(late.status, 400, "{late:?}");
    let answer = world.daemon.post_form("/-/login/main", &[("confirm", &second), ("answer", "yes")]);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!((person(&world), revoked_logins(&world).len()), (Person::Bob.display_name().into(), 2));
}

#[test]
fn a_login_that_waits_is_revoked_when_the_daemon_stops() {
    let mut world = World::logged_in();
    ask_for_bob(&world);

    world.restart();

    assert_eq!(revoked_logins(&world).len(), 1);
    assert_eq!(person(&world), Person::Alice.display_name());
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
}

#[test]
fn the_old_login_goes_on_being_refreshed_while_another_waits() {
    let world = World::logged_in();
    let id = ask_for_bob(&world).json()["confirm"].as_str().unwrap().to_owned();

    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
    assert_eq!(person(&world), Person::Alice.display_name());
    let answer = world.daemon.post_form("/-/login/main", &[("confirm", &id), ("answer", "yes")]);

    assert_eq!(answer.status, 200, "{answer:?}");
    let revoked = revoked_logins(&world);
    assert_eq!(revoked.len(), 1);
    assert_eq!(world.standin.superseded_presentations(), 0);
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
}
