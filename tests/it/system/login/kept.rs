//! Logins, yeses and logouts while the disk refuses: nothing is lost, nothing is revoked before its successor is
//! durable, nothing is forgotten before it is erased, and all of it can be asked for again. And whose login it is
//! when nobody says.

use serde_json::{Value, json};

use crate::login::person::ask_for;
use crate::standin::{Alter, Endpoint, Fault, Options, Person, Scripted, Spoil};
use crate::support::{Answer, Setup, World, eventually};
use crate::system::store::strace::Strace;
use crate::tokens::refresh;

/// Nobody can reserve room.
const NO_ROOM: (&str, &str) = ("store.next.main", "openat:error=ENOSPC");
/// Room is there, and what was written into it does not become the store.
const NOT_RENAMED: (&str, &str) = ("store.next.main", "rename,renameat,renameat2:error=EIO");

fn refuse(world: &World, (file, injection): (&str, &str)) -> Strace {
    let path = world.home.state().join(file).display().to_string();
    Strace::attach(world.daemon.pid(), &["-f", "-P", &path, "-e", &format!("inject={injection}")])
}

fn say_yes(world: &World, asked: &Value) -> Answer {
    let id = asked["confirm"].as_str().unwrap();
    world.daemon.post_form("/-/login/main", &[("confirm", id), ("answer", "yes")])
}

fn log_out(world: &World) -> Answer {
    world.daemon.post_form("/-/logout/main", &[])
}

#[track_caller]
fn person(world: &World) -> Value {
    world.daemon.status()["accounts"]["main"]["person"].clone()
}

#[test]
fn a_yes_on_a_full_disk_can_be_said_again() {
    let world = World::logged_in();
    let asked = ask_for(&world, Person::Bob).json();
    let fault = refuse(&world, NO_ROOM);

    let answer = say_yes(&world, &asked);

    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.json()["detail"].as_str().unwrap().contains("can't be saved"), "{answer:?}");
    assert_eq!((person(&world), world.standin.revocations().len()), (Person::Alice.display_name().into(), 0));
    assert!(fault.detach().contains("INJECTED"));
    let answer = say_yes(&world, &asked);
    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("logged-in")), "{answer:?}");
    assert_eq!((person(&world), world.standin.revocations().len()), (Person::Bob.display_name().into(), 1));
}

#[test]
fn the_login_before_is_revoked_when_its_successor_is_on_disk_and_not_earlier() {
    let mut world = World::logged_in();
    let asked = ask_for(&world, Person::Bob).json();
    let fault = refuse(&world, NOT_RENAMED);

    let answer = say_yes(&world, &asked);

    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("logged-in")), "{answer:?}");
    let remarks = answer.json()["remarks"].to_string();
    assert!(remarks.contains("can't be saved"), "{remarks}");
    assert_eq!(person(&world), Person::Bob.display_name());
    assert_eq!(world.standin.revocations().len(), 0);
    assert!(fault.detach().contains("INJECTED"));
    eventually("the login before is revoked", || (world.standin.revocations().len() == 1).then_some(()));
    world.restart();
    assert_eq!((person(&world), refresh(&world.daemon).status), (Person::Bob.display_name().into(), 200));
}

#[test]
fn a_kill_before_the_new_login_is_on_disk_leaves_one_of_the_two() {
    let mut world = World::logged_in();
    let asked = ask_for(&world, Person::Bob).json();
    let fault = refuse(&world, NOT_RENAMED);
    assert_eq!(say_yes(&world, &asked).status, 200);

    world.daemon.kill();
    drop(fault);
    world.start_again();

    assert_eq!(refresh(&world.daemon).status, 200, "whoever it is, the login is alive");
    assert_eq!(world.standin.revocations().len(), 0);
}

#[test]
fn a_logout_on_a_full_disk_changes_nothing_and_can_be_repeated() {
    let mut world = World::logged_in();
    let fault = refuse(&world, NO_ROOM);

    let answer = log_out(&world);

    assert_eq!(answer.problem(), "token-unavailable");
    assert!(answer.json()["detail"].as_str().unwrap().contains("log out again"), "{answer:?}");
    assert_eq!(world.standin.revocations().len(), 0);
    assert_eq!(world.daemon.get("/api/users").status, 200);
    assert!(fault.detach().contains("INJECTED"));
    assert_eq!(log_out(&world).status, 200);
    assert_eq!((world.daemon.state(), world.standin.revocations().len()), ("login-required".to_owned(), 1));
    world.restart();
    assert_eq!(world.daemon.state(), "login-required");
}

#[test]
fn a_logout_that_could_not_erase_is_told_and_repeated() {
    let mut world = World::logged_in();
    let fault = refuse(&world, NOT_RENAMED);

    let answer = log_out(&world);

    assert_eq!(answer.problem(), "token-unavailable");
    assert!(answer.json()["detail"].as_str().unwrap().contains("log out again"), "{answer:?}");
    assert!(fault.detach().contains("INJECTED"));
    assert_eq!(log_out(&world).status, 200);
    assert_eq!(world.daemon.state(), "login-required");
    world.restart();
    assert_eq!(world.daemon.state(), "login-required");
    let secrets = world.standin.issued_secrets();
    for entry in std::fs::read_dir(world.home.state()).unwrap() {
        let content = std::fs::read(entry.unwrap().path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&content).into_owned();
        assert!(!secrets.iter().any(|secret| text.contains(secret)), "{text}");
    }
}

/// What the server was asked to revoke, in order.
fn revoked(world: &World) -> Vec<String> {
    let token = |form: &[(String, String)]| form.iter().find(|(name, _)| name == "token_type_hint").cloned();
    world.standin.revocations().iter().filter_map(|one| Some(token(&one.form)?.1)).collect()
}

#[test]
fn a_logout_that_neither_revoked_nor_erased_revokes_the_refresh_token_when_it_is_repeated() {
    let world = World::logged_in();
    let fault = refuse(&world, NOT_RENAMED);
    world.standin.fault(Endpoint::Revocation, Fault::status(503));
    assert_eq!(log_out(&world).problem(), "token-unavailable");
    drop(fault);
    assert!(revoked(&world).is_empty());

    assert_eq!(log_out(&world).status, 200);

    assert_eq!(revoked(&world), ["refresh_token"]);
    assert_eq!(world.daemon.state(), "login-required");
}

#[test]
fn a_logout_before_the_new_login_is_on_disk_revokes_the_one_before_as_well() {
    let world = World::logged_in();
    let asked = ask_for(&world, Person::Bob).json();
    // The generation before has no place now, until the logout, which comes before the next try to save.
    let previous = world.home.state().join("store.previous");
    std::fs::create_dir(&previous).unwrap();
    assert!(say_yes(&world, &asked).json()["remarks"].to_string().contains("can't be saved"));
    std::fs::remove_dir(&previous).unwrap();

    assert_eq!(log_out(&world).status, 200);

    assert_eq!(revoked(&world), ["refresh_token", "refresh_token"]);
}

#[test]
fn a_no_to_a_login_without_a_refresh_token_revokes_its_access_token() {
    let world = World::logged_in();
    world.standin.leave_out_refresh_token(true);
    let asked = ask_for(&world, Person::Bob).json();
    let id = asked["confirm"].as_str().unwrap();

    let answer = world.daemon.post_form("/-/login/main", &[("confirm", id), ("answer", "no")]);

    assert_eq!(answer.json()["outcome"], "declined");
    assert_eq!(revoked(&world), ["access_token"]);
}

#[test]
fn a_server_that_confirms_no_revocation_is_said_with_what_it_means() {
    let world = World::logged_in();
    let refusal = || Fault::typed(400, "application/json", r#"{"error":"9"}"#);
    world.standin.fault(Endpoint::Revocation, refusal());

    let answer = log_out(&world);

    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    for words in ["erased here", "did not confirm", "400", "copy of its tokens"] {
        assert!(detail.contains(words), "{detail}");
    }
    assert_eq!(world.daemon.state(), "login-required");
}

#[test]
fn an_application_token_needs_no_disk() {
    let options = Options { expires_in_secs: 2, ..Options::default() };
    let account = "grant = \"client_credentials\"".to_owned();
    for injection in [
        ("store.next.main", "fdatasync:error=EIO"),
        NO_ROOM,
        NOT_RENAMED,
        ("store.next.main", "fsync:error=EIO"),
    ] {
        let world = Setup { options: options.clone(), account: account.clone(), ..Setup::default() }.start();
        eventually("it is served", || (world.daemon.get("/status/200").status == 200).then_some(()));
        let before = world.standin.token_requests().len();
        let fault = refuse(&world, injection);

        while world.standin.token_requests().len() < before + 3 {
            assert_eq!(
                world.daemon.get("/status/200").status,
                200,
                "{injection:?}: {}",
                world.daemon.output()
            );
        }

        assert!(fault.detach().contains("INJECTED"), "{injection:?}");
    }
}

#[test]
fn a_person_is_asked_when_nothing_says_whose_login_it_is() {
    let world = World::logged_in();
    world.standin.on_api(|request| (request.path() == "/api/users").then_some(Scripted::Close));

    let asked = ask_for(&world, Person::Bob).json();

    assert_eq!((&asked["stored"], &asked["new"]), (&Person::Alice.display_name().into(), &Value::Null));
    assert_eq!(person(&world), Person::Alice.display_name());
    let page = world.daemon.get("/-/login/main");
    assert_eq!(page.status, 200);
    assert_eq!(say_yes(&world, &asked).status, 200);
}

#[test]
fn different_signed_subjects_are_different_people() {
    let with_subject = |subject: &'static str| -> Option<Alter> {
        Some(Box::new(move |claims| claims["sub"] = subject.into()))
    };
    // The token answer says the same.
    let log_in = |world: &World, subject: &'static str| {
        let spoil = Spoil { claims: with_subject(subject), ..Spoil::default() };
        let callback = world.standin.authorize_with(&world.begin_login(), Person::Alice, spoil);
        world
            .standin
            .fault(Endpoint::Token, Fault::alter_id_token(move |claims| claims["sub"] = subject.into()));
        world.paste(&callback).json()["outcome"].clone()
    };
    let account = "identity_url = \"\"".to_owned();
    let world = Setup { account, ..Setup::default() }.start();

    assert_eq!(log_in(&world, "alice"), "logged-in");
    assert_eq!(log_in(&world, "alice"), "logged-in", "the same person");
    assert_eq!(log_in(&world, "bob"), "needs-confirmation");
    let nobody = "00000000-0000-0000-0000-000000000000";
    assert_eq!(log_in(&world, nobody), "needs-confirmation", "it says nothing");
}
