//! Tokens that the API refuses although they should be good: what a refresh cures, and what it does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{events, main_account, refresh};
use crate::standin::{Endpoint, Fault, Options, Person, Scripted, Standin};
use crate::support::{Daemon, Home, Setup, World, eventually};

const PAT: &str = "pat-0123456789abcdefghijklmnopqrstuvwxyz";

/// A daemon with a personal access token.
pub(crate) fn with_personal_token(
    account: &str,
    environment: Vec<(String, String)>,
) -> (Standin, Home, Daemon) {
    let options =
        Options { personal_access_tokens: vec![(PAT.to_owned(), Person::Alice)], ..Options::default() };
    let standin = Standin::start(options);
    let home = Home::new(environment);
    let token_file = home.secret("pat", PAT);
    let config = format!(
        "listen = [\"127.0.0.1:0\"]\nstate_dir = \"{}\"\n[account.main]\ngrant = \"personal_access_token\"\n\
         token_file = \"{}\"\n{account}\n[[route]]\nupstream = \"{}\"\n",
        home.state().display(),
        token_file.display(),
        standin.api_url()
    );
    std::fs::write(home.config(), config).unwrap();
    let daemon = home.serve();
    (standin, home, daemon)
}

#[test]
fn a_personal_access_token_that_the_api_refuses_is_told_once_and_works_again_when_it_does() {
    let (standin, _home, daemon) = with_personal_token("", Vec::new());
    let is_refused = Arc::new(AtomicBool::new(true));
    let refuses = Arc::clone(&is_refused);
    standin.on_api(move |_| refuses.load(Ordering::Relaxed).then(|| Scripted::Unauthorized));

    for _ in 0..2 {
        assert_eq!(daemon.get("/api/users").status, 401);
    }
    assert_eq!((daemon.state(), events(&daemon).len()), ("ready".to_owned(), 0), "two say nothing yet");
    for _ in 0..18 {
        assert_eq!(daemon.get("/api/users").status, 401);
    }

    eventually("it is told", || (daemon.state() == "login-required").then_some(()));
    assert_eq!(events(&daemon), ["login-required"]);
    let message = main_account(&daemon)["events"][0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("make a new one") && message.contains("pat"), "{message}");
    assert_eq!(daemon.get("/-/readyz").status, 503);

    is_refused.store(false, Ordering::Relaxed);
    assert_eq!(daemon.get("/api/users").status, 200);
    eventually("it works again", || (daemon.state() == "ready").then_some(()));
    assert_eq!(events(&daemon), ["login-required", "recovered"]);
    assert_eq!(standin.auth_requests().len(), 0);
}

#[test]
fn successes_between_refusals_make_a_personal_access_token_no_dead_one() {
    let (standin, _home, daemon) = with_personal_token("", Vec::new());

    for _ in 0..4 {
        standin.refuse_next(2);
        let statuses: Vec<_> = (0..3).map(|_| daemon.get("/api/users").status).collect();
        assert_eq!(statuses, [401, 401, 200]);
    }

    assert_eq!((daemon.state(), events(&daemon).len()), ("ready".to_owned(), 0));
}

#[test]
fn a_401_that_no_token_cures_is_told_once_and_the_refreshes_become_fewer() {
    let world = World::logged_in();
    world.standin.on_api(|request| (request.path() == "/api/elsewhere").then(|| Scripted::Unauthorized));
    let before = events(&world.daemon).len();

    for _ in 0..10 {
        assert_eq!(world.daemon.get("/api/elsewhere").status, 401);
        assert_eq!(world.daemon.get("/api/users").status, 200);
    }

    assert_eq!(world.standin.refreshes().len(), 1);
    eventually("it is told", || (events(&world.daemon).len() > before).then_some(()));
    assert_eq!(events(&world.daemon)[before..], ["refresh-failing"]);
    assert_eq!(world.daemon.state(), "ready");
}

#[test]
fn a_login_that_is_over_answers_for_the_apis_401() {
    let world = World::logged_in();
    world.standin.forget_refresh_tokens();
    assert_eq!(refresh(&world.daemon).problem(), "login-required");
    assert_eq!(world.daemon.get("/api/users").status, 200, "the access token serves on");

    world.standin.expire_access_tokens();
    let large = vec![b'x'; 200_000];
    for answer in [
        world.daemon.get("/api/users"),
        world.daemon.request("POST", "/api/statuses", &[], b"{}"),
        world.daemon.request("POST", "/api/statuses", &[], &large),
    ] {
        assert_eq!(answer.problem(), "login-required");
        assert!(answer.json()["login_url"].as_str().unwrap().ends_with("/-/login/main"), "{answer:?}");
    }
}

#[test]
fn a_wrong_secret_asks_for_a_person_only_after_the_access_token_ends() {
    let world = Setup::default().logged_in();
    world.standin.fault_always(Endpoint::Token, || Fault::error(401, "invalid_client"));

    for _ in 0..4 {
        assert_eq!(refresh(&world.daemon).problem(), "token-unavailable");
    }

    assert_eq!(world.daemon.state(), "degraded");
    world.standin.clear_faults();
    assert_eq!(refresh(&world.daemon).status, 200);
}
