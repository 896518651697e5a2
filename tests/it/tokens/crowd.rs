//! Many who ask at the same time: one outcome for all of them, and nobody waits behind them.

use super::{Sent, held};
use crate::standin::{Endpoint, Fault, Gate, Person};
use crate::support::{World, eventually};

/// Those that the daemon is about to serve.
fn in_flight(world: &World) -> u64 {
    world.daemon.status()["requests"]["in_flight"].as_u64().unwrap()
}

#[test]
fn all_who_ask_for_a_refresh_at_the_same_time_share_one() {
    let world = World::logged_in();
    let gate = Gate::default();
    world.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));

    let asked: Vec<_> = (0..8).map(|_| Sent::refresh(&world.daemon)).collect();
    held(&gate);
    eventually("all of them wait", || (in_flight(&world) > 8).then_some(()));
    gate.open();
    let answers: Vec<_> = asked.into_iter().map(|asked| asked.answer().status).collect();

    assert_eq!(answers, [200; 8]);
    assert_eq!(world.standin.refreshes().len(), 1);
}

#[test]
fn a_failure_is_shared_as_well() {
    let world = World::logged_in();
    let gate = Gate::default();
    world.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));
    world.standin.forget_refresh_tokens();

    let asked: Vec<_> = (0..4).map(|_| Sent::refresh(&world.daemon)).collect();
    held(&gate);
    eventually("all of them wait", || (in_flight(&world) > 4).then_some(()));
    gate.open();

    for asked in asked {
        assert_eq!(asked.answer().problem(), "login-required");
    }
    assert_eq!(world.standin.refreshes().len(), 1);
}

#[test]
fn who_has_left_is_not_refreshed_for_and_a_login_does_not_wait_for_them() {
    let world = World::logged_in();
    let gate = Gate::default();
    world.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));
    let callback = world.standin.authorize(&world.begin_login(), Person::Alice);

    let mut asked: Vec<_> = (0..8).map(|_| Sent::refresh(&world.daemon)).collect();
    held(&gate);
    eventually("all of them wait", || (in_flight(&world) > 8).then_some(()));
    asked.truncate(1);
    let login = Sent::form(&world.daemon, "/-/login/main", &[("callback", &callback)]);
    eventually("the login waits, too", || (in_flight(&world) > 2).then_some(()));
    gate.open();
    let login = login.answer();

    assert_eq!((login.status, &login.json()["outcome"]), (200, &"logged-in".into()), "{login:?}");
    assert_eq!(asked.remove(0).answer().status, 200);
    assert_eq!(world.standin.refreshes().len(), 1, "nothing is refreshed for those who left");
}
