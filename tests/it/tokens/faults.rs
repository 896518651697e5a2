//! What can go wrong at the token endpoint: the good token is kept, a dead one is not presented again, and a
//! person is told once.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{events, expired, logged_in_for, main_account, refresh};
use crate::standin::{Endpoint, ExpiresIn, Fault, Options, Person, Presented, Rotation};
use crate::support::{Setup, World, eventually};

/// Something that the token endpoint may do.
pub(crate) type MakeFault = fn() -> Fault;

#[track_caller]
pub(crate) fn assert_serves(world: &World) {
    let answer = world.daemon.get("/api/users");
    assert_eq!(answer.status, 200, "{answer:?}\n{}", world.daemon.output());
}

fn with_rotation(rotation: Rotation) -> Setup {
    Setup { options: Options { rotation, ..Options::default() }, ..Setup::default() }
}

#[test]
fn a_lost_answer_harms_nothing_where_the_server_grants_some_grace() {
    let lost: [MakeFault; 2] = [|| Fault::DropAfter, || Fault::TruncateAfter];
    for fault in lost {
        let mut world = with_rotation(Rotation::Grace(Duration::from_secs(60))).logged_in();
        let before = told(&world);
        world.standin.fault(Endpoint::Token, fault());

        assert_eq!(refresh(&world.daemon).status, 200, "{:?}", fault());

        assert_eq!(world.standin.refreshes().len(), 2);
        assert_eq!((world.daemon.state(), told(&world)), ("ready".into(), before), "{:?}", fault());
        world.restart();
        assert_eq!(refresh(&world.daemon).status, 200);
        assert_serves(&world);
        assert_eq!(world.standin.superseded_presentations(), 0, "{:?}", fault());
    }
}

#[test]
fn an_answer_that_breaks_off_is_tried_once_more_and_then_needs_a_login() {
    let world = World::logged_in();
    world.standin.fault(Endpoint::Token, Fault::TruncateAfter);

    assert_eq!(refresh(&world.daemon).problem(), "login-required");

    assert_eq!(world.standin.refreshes().len(), 2);
    assert_eq!(told_since_login(&world), ["rotation-in-doubt", "login-required"]);
    assert_serves(&world);
}

#[test]
fn a_request_that_was_lost_before_the_server_saw_it_is_sent_once_more() {
    let world = World::logged_in();
    world.standin.fault(Endpoint::Token, Fault::DropBefore);

    assert_eq!(refresh(&world.daemon).status, 200);

    assert_eq!((world.standin.refreshes().len(), told_since_login(&world).len()), (2, 0));
    assert_serves(&world);
}

#[test]
fn a_wrong_client_secret_keeps_the_login_and_is_mended_by_a_reload() {
    let world = logged_in_for(6, Vec::new(), Setup::default());
    world.home.secret("client_secret", "not-the-secret");
    world.daemon.signal(Signal::HUP);
    eventually("it was read again", || world.daemon.output().contains("took over").then_some(()));

    eventually("it was refused", || (told_since_login(&world) == ["refresh-failing"]).then_some(()));
    let event = main_account(&world.daemon)["events"].as_array().unwrap().last().unwrap().clone();
    let message = event["message"].as_str().unwrap();
    assert!(message.contains("invalid_client") && message.contains("secret"), "{message}");
    assert!(!message.contains("not-the-secret"));
    assert_eq!(world.daemon.state(), "degraded");
    assert_serves(&world);

    expired(&world.daemon);
    let answer = world.daemon.get("/api/users");
    assert_eq!(answer.problem(), "token-unavailable");
    let retry_after: u64 = answer.field("retry-after").unwrap().parse().unwrap();
    assert!((200..=320).contains(&retry_after), "{retry_after}");
    assert_eq!(world.standin.refreshes().len(), 1, "at most one try in five minutes");

    world.home.secret("client_secret", &world.standin.options().client_secret);
    world.daemon.signal(Signal::HUP);
    eventually("it recovers", || (world.daemon.get("/api/users").status == 200).then_some(()));
    assert_eq!(told_since_login(&world), ["refresh-failing", "recovered"]);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn retry_after_is_honoured_and_the_refresh_token_kept() {
    for status in [429, 503] {
        let busy = Fault::status_with(status, "Retry-After", "3");
        let world = logged_in_for(2, vec![busy], Setup::default());
        eventually("it was asked again", || (world.standin.refreshes().len() == 2).then_some(()));
        eventually("it recovers", || (world.daemon.get("/api/users").status == 200).then_some(()));

        let refreshes = world.standin.refreshes();
        assert_eq!(refreshes.len(), 2, "{status}");
        let pause = refreshes[1].at - refreshes[0].at;
        assert!(pause.as_millis() >= 2990, "{status}: asked again after {pause:?}");
        assert_eq!(refreshes[1].presented, Presented::Current);
    }
}

#[test]
fn a_long_retry_after_is_honoured_for_a_minute_and_requests_do_not_wait_for_it() {
    let busy = Fault::status_with(503, "Retry-After", "86400");
    let tables = "[limits]\ntoken_wait = \"30s\"".to_owned();
    let world = logged_in_for(2, vec![busy], Setup { tables, ..Setup::default() });
    expired(&world.daemon);

    let started = Instant::now();
    let answer = world.daemon.get("/api/users");
    let waited = started.elapsed();
    let retry_after: u64 = answer.field("retry-after").unwrap().parse().unwrap();
    assert_eq!(answer.problem(), "token-unavailable");
    assert!((31..=61).contains(&retry_after), "{answer:?}");
    assert_eq!(world.standin.refreshes().len(), 1);
    assert_eq!(told_since_login(&world), ["refresh-failing"], "it outlasts the token");

    assert_eq!(refresh(&world.daemon).status, 200);
    assert_serves(&world);
    assert!(waited < Duration::from_secs(30), "no token can come in time, and it waited for {waited:?}");
}

#[test]
fn an_answer_that_is_none_keeps_the_refresh_token() {
    let cases: [(MakeFault, &str); 9] = [
        (|| Fault::status(500), "unavailable"),
        (|| Fault::status(503), "unavailable"),
        (|| Fault::status(404), "unavailable"),
        (|| Fault::redirect(302, "http://portal.test/"), "unavailable"),
        (Fault::html, "unavailable"),
        (Fault::huge_json, "unavailable"),
        (|| Fault::error(400, "temporarily_unavailable"), "unavailable"),
        (Fault::truncated_json, "in-doubt"),
        (|| Fault::status(200), "in-doubt"),
    ];
    let world = World::logged_in();
    for (number, (fault, outcome)) in cases.into_iter().enumerate() {
        world.standin.fault_always(Endpoint::Token, fault);
        let answer = refresh(&world.daemon);
        assert_eq!(answer.problem(), "token-unavailable", "{:?}", fault());
        let account = main_account(&world.daemon);
        assert_eq!(account["last_refresh"]["outcome"], outcome, "{:?}", fault());
        assert!(account["last_refresh"]["error"].as_str().is_some_and(|error| !error.is_empty()));
        assert_eq!(account["state"], "degraded", "{:?}", fault());
        assert_serves(&world);

        world.standin.clear_faults();
        assert_eq!(refresh(&world.daemon).status, 200, "{:?}", fault());
        assert_eq!(world.daemon.state(), "ready");
        let good = world.standin.refreshes().iter().filter(|refresh| refresh.delivered).count();
        assert!(good > number, "{:?}", fault());
    }
    assert_eq!(world.standin.superseded_presentations(), 0);
    assert!(told_since_login(&world).is_empty(), "one failure each is nothing to tell");
}

#[test]
fn a_failure_that_lasts_is_told_once_and_so_is_its_end() {
    let world = World::logged_in();
    world.standin.set_unavailable(true);

    for _ in 0..5 {
        assert_eq!(refresh(&world.daemon).problem(), "token-unavailable");
    }
    assert_eq!(told_since_login(&world), ["refresh-failing"]);
    world.standin.set_unavailable(false);
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(refresh(&world.daemon).status, 200);

    assert_eq!(told_since_login(&world), ["refresh-failing", "recovered"]);
}

#[test]
fn a_lifetime_is_taken_as_a_number_a_numeric_text_or_an_hour() {
    for (form, told_secs, expected_secs) in
        [(ExpiresIn::Number, 7200, 7200), (ExpiresIn::Text, 7200, 7200), (ExpiresIn::Absent, 7200, 3600)]
    {
        let world = World::logged_in();
        world.standin.set_expires_in(told_secs);
        world.standin.set_expires_in_form(form);

        assert_eq!(refresh(&world.daemon).status, 200, "{form:?}");

        let left = secs_left(&world);
        assert!((expected_secs - 30..=expected_secs + 1).contains(&left), "{form:?}: {left} s");
        assert_serves(&world);
    }
}

#[test]
fn an_absurd_lifetime_is_refused_and_the_token_kept() {
    for absurd in ["0", "-3600", "\"soon\"", "true", "[3600]", "{}", "\"-1\""] {
        let mut world = World::logged_in();
        let lie =
            move || Fault::alter(move |answer| answer["expires_in"] = serde_json::from_str(absurd).unwrap());
        let until = main_account(&world.daemon)["expires_at"].clone();
        world.standin.fault_always(Endpoint::Token, lie);

        assert_eq!(refresh(&world.daemon).problem(), "token-unavailable", "{absurd}");

        assert_eq!(main_account(&world.daemon)["expires_at"], until, "{absurd}");
        assert_serves(&world);
        world.standin.clear_faults();
        world.restart();
        assert_eq!(refresh(&world.daemon).status, 200, "{absurd}");
        assert_eq!(world.standin.superseded_presentations(), 0, "{absurd}");
    }
}

#[test]
fn a_lifetime_of_ages_is_cut_to_ten_years() {
    let world = World::logged_in();
    world.standin.fault(Endpoint::Token, Fault::alter(|answer| answer["expires_in"] = 1e300.into()));

    assert_eq!(refresh(&world.daemon).status, 200);

    let days = secs_left(&world) / 86_400;
    assert!((3649..=3650).contains(&days), "{days} days");
}

#[test]
fn an_answer_with_a_bad_access_token_or_kind_is_refused_and_the_token_kept() {
    for (member, bad) in
        [("access_token", "a\r\nX-Evil: 1"), ("access_token", ""), ("token_type", "mac"), ("id_token", "x")]
    {
        let mut world = World::logged_in();
        let lie = move || Fault::alter(move |answer| answer[member] = bad.into());
        world.standin.fault_always(Endpoint::Token, lie);

        assert_eq!(refresh(&world.daemon).problem(), "token-unavailable", "{member}");

        assert_serves(&world);
        world.standin.clear_faults();
        world.restart();
        assert_eq!(refresh(&world.daemon).status, 200, "{member}");
        assert_eq!(world.standin.superseded_presentations(), 0, "{member}");
    }
}

#[test]
fn a_server_that_comes_back_is_found_within_five_seconds() {
    let world = logged_in_for(2, Vec::new(), Setup::default());
    world.standin.set_down(true);
    expired(&world.daemon);

    let answer = world.daemon.get("/api/users");
    assert_eq!(answer.problem(), "token-unavailable");
    let retry_after: u64 = answer.field("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&retry_after), "{answer:?}");
    assert_eq!(main_account(&world.daemon)["last_refresh"]["outcome"], "unavailable");
    // Back-off that doubled each time would be minutes by then.
    for _ in 0..6 {
        assert_eq!(refresh(&world.daemon).problem(), "token-unavailable");
    }
    assert_eq!(told_since_login(&world), ["refresh-failing"]);
    world.standin.set_down(false);
    let up_at = Instant::now();
    eventually("it recovers", || (world.daemon.get("/api/users").status == 200).then_some(()));

    assert!(up_at.elapsed() < Duration::from_secs(5), "after {:?}", up_at.elapsed());
    assert_eq!(told_since_login(&world), ["refresh-failing", "recovered"]);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn a_server_that_is_down_while_the_token_is_good_harms_no_request() {
    let world = logged_in_for(600, Vec::new(), Setup::default());
    world.standin.set_down(true);

    for _ in 0..4 {
        assert_eq!(refresh(&world.daemon).problem(), "token-unavailable");
        assert_serves(&world);
    }

    assert_eq!(world.daemon.state(), "degraded");
    assert_eq!(world.daemon.get("/-/readyz").status, 200);
    assert_eq!(world.home.run(&["status"], "").status.code(), Some(0));
    world.standin.set_down(false);
    assert_eq!(refresh(&world.daemon).status, 200);
}

/// The events of the account, in order.
fn told(world: &World) -> Vec<String> {
    events(&world.daemon)
}

/// The same behind those of the first login: nobody was logged in at first, and then somebody was.
#[track_caller]
pub(crate) fn told_since_login(world: &World) -> Vec<String> {
    let mut told = told(world);
    assert_eq!(told.drain(..2).collect::<Vec<_>>(), ["login-required", "recovered"]);
    told
}

/// How long the access token lasts by the status.
fn secs_left(world: &World) -> u64 {
    let text = main_account(&world.daemon)["expires_at"].as_str().unwrap().to_owned();
    let at = humantime::parse_rfc3339(&text).unwrap();
    at.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() - wall_secs()
}

fn wall_secs() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    u64::try_from(now.tv_sec).unwrap()
}

#[test]
fn a_login_after_a_refusal_makes_the_account_ready_again() {
    let world = World::logged_in();
    world.standin.forget_refresh_tokens();
    assert_eq!(refresh(&world.daemon).problem(), "login-required");
    assert_eq!(world.daemon.state(), "login-required");

    world.log_in(Person::Alice);

    assert_eq!(world.daemon.state(), "ready");
    assert_eq!(main_account(&world.daemon)["last_refresh"]["outcome"], "refused");
}
