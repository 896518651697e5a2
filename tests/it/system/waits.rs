//! Servers that let wait for ten seconds and more, and tokens that end meanwhile.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::forwarding::reconfigured;
use crate::login::discovery::discovered;
use crate::login::spoiled;
use crate::standin::{Endpoint, Fault, Gate, Options, Person, Presented, Spoil};
use crate::support::{Setup, World, eventually};
use crate::tokens::answers::assert_ready;
use crate::tokens::faults::{MakeFault, assert_serves, told_since_login};
use crate::tokens::{Sent, events, expired, held, logged_in_for, refresh, two_accounts};

/// oa-031: and then there is nothing to try.
const SLOW: Duration = Duration::from_secs(14);

#[test]
fn a_login_without_a_refresh_token_ends_without_a_refresh() {
    let mut world = World::start();
    world.standin.leave_out_refresh_token(true);
    world.standin.set_expires_in(2);
    world.log_in(Person::Alice);
    world.restart();

    eventually("a login is required", || (world.daemon.state() == "login-required").then_some(()));

    assert_eq!(world.daemon.get("/api/blogposts/@sitehome").problem(), "login-required");
    assert_eq!(world.daemon.get("/-/readyz").status, 503);
    assert_eq!(world.standin.token_requests().len(), 1);
}

#[test]
fn neither_document_nor_keys_are_waited_for_as_long_as_a_token_is() {
    let world = discovered(Options::default(), "");
    let hang = || Fault::Hang(Duration::from_secs(600));
    for endpoint in [Endpoint::Discovery, Endpoint::KeySet] {
        world.standin.fault(endpoint, hang());
        let began = Instant::now();

        let answer = match endpoint {
            Endpoint::Discovery => world.daemon.post_form("/-/login/main/start", &[]),
            _ => world.paste(&spoiled(&world, Spoil::default())),
        };

        assert!([400, 503].contains(&answer.status), "{answer:?}");
        let waited = began.elapsed();
        assert!((12..50).contains(&waited.as_secs()), "{endpoint:?}: {waited:?}");
    }
    assert!(world.standin.token_requests().is_empty());
}

#[test]
fn a_rotation_whose_answer_is_lost_is_told_at_once_and_the_last_token_serves_to_its_end() {
    let logged_in_at = Instant::now();
    let world = logged_in_for(10, vec![Fault::DropAfter], Setup::default());

    let started = Instant::now();
    assert_eq!(refresh(&world.daemon).problem(), "login-required");
    assert!(started.elapsed() < Duration::from_secs(5), "it took {:?}", started.elapsed());

    assert_eq!(told_since_login(&world), ["rotation-in-doubt", "login-required"]);
    assert_eq!(world.home.run(&["status"], "").status.code(), Some(3));
    assert_eq!(world.daemon.state(), "login-required");
    assert_eq!(world.daemon.get("/-/readyz").status, 200);
    let refused = eventually("the token ends", || {
        let answer = world.daemon.get("/api/users");
        (answer.status != 200).then_some(answer)
    });
    assert!(logged_in_at.elapsed() >= Duration::from_secs(10), "after {:?}", logged_in_at.elapsed());
    assert_eq!(refused.problem(), "login-required");
    assert_eq!(world.daemon.get("/-/readyz").status, 503);
    let presented: Vec<_> = world.standin.refreshes().iter().map(|refresh| refresh.presented).collect();
    assert_eq!(presented, [Presented::Current, Presented::SupersededUndelivered]);

    world.log_in(Person::Alice);
    assert_serves(&world);
    assert_eq!(told_since_login(&world), ["rotation-in-doubt", "login-required", "recovered"]);
    assert_eq!(world.home.run(&["status"], "").status.code(), Some(0));
}

#[test]
fn a_refused_refresh_token_is_shown_once_more_before_the_access_token_ends_and_never_again() {
    let refusals: [MakeFault; 2] =
        [|| Fault::error(400, "invalid_grant"), || Fault::error(401, "invalid_grant")];
    for refusal in refusals {
        let mut world = logged_in_for(10, vec![refusal(), refusal()], Setup::default());
        let logged_in_at = Instant::now();
        assert_eq!(refresh(&world.daemon).problem(), "login-required", "{:?}", refusal());
        assert_eq!(told_since_login(&world), ["login-required"]);
        assert_serves(&world);

        assert_eq!(refresh(&world.daemon).problem(), "login-required");
        world.standin.refuse_next(1);
        let refused = world.daemon.get("/api/users");
        assert_eq!(
            refused.problem(),
            "login-required",
            "in place of the API's 401, which no refresh can cure"
        );
        assert!(refused.json()["login_url"].as_str().unwrap().ends_with("/-/login/main"), "{refused:?}");
        world.restart();
        assert_eq!(world.home.run(&["status"], "").status.code(), Some(3));
        assert_eq!(refresh(&world.daemon).problem(), "login-required");
        let too_early = world.standin.refreshes().len() - 1;
        let is_early = logged_in_at.elapsed() < Duration::from_secs(8);
        assert!(too_early == 0 || !is_early, "{:?}", refusal());
        expired(&world.daemon);

        assert_eq!(world.daemon.get("/api/users").problem(), "login-required");
        assert_eq!(events(&world.daemon), ["login-required"]);
        assert_eq!(refresh(&world.daemon).problem(), "login-required");
        world.restart();
        assert_eq!(refresh(&world.daemon).problem(), "login-required");
        assert_eq!(world.standin.refreshes().len(), 2, "{:?}", refusal());
    }
}

#[test]
fn a_server_that_rotates_at_once_and_answers_late_is_waited_for() {
    let world = World::logged_in();
    world.standin.fault(Endpoint::Token, Fault::DelayAfter(SLOW));

    assert_eq!(refresh(&world.daemon).status, 200);

    assert_eq!(world.standin.refreshes().len(), 1);
    assert_ready(&world);
}

#[test]
fn a_code_whose_exchange_takes_long_is_waited_for() {
    let world = World::start();
    world.standin.fault(Endpoint::Token, Fault::DelayAfter(SLOW));

    world.log_in(Person::Alice);

    assert_eq!(world.standin.token_requests().len(), 1);
    assert_ready(&world);
}

#[test]
fn refreshes_of_several_accounts_are_waited_for_at_the_same_time() {
    let mut world = two_accounts();
    reconfigured(&mut world, "[limits]\ndrain_timeout = \"1s\"\n");
    let asked = ["main", "other"].map(|account| {
        let gate = Gate::default();
        world.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));
        let asked = Sent::refresh_of(&world.daemon, account);
        held(&gate);
        (asked, gate)
    });

    let started = Instant::now();
    world.daemon.signal(Signal::TERM);
    world.daemon.wait();

    let took = started.elapsed();
    assert!(took < Duration::from_secs(28), "each alone is waited for 15 s: after {took:?}");
    drop(asked);
}
