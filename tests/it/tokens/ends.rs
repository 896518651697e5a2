//! Processes that end at random moments of constant refreshing, and start again: no login is lost.
//!
//! `ENDS=1000` says how many ends of each kind.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use super::{Sent, events, held};
use crate::dice::Dice;
use crate::standin::{Endpoint, Fault, Gate, Options, Presented, Rotation};
use crate::support::{Setup, World, eventually};

/// Of each kind, when `ENDS` says nothing.
const ENDS: usize = 12;
/// Longer than a refresh takes here, so that an end meets every part of one.
const LONGEST_RUN_MS: usize = 60;

fn ends() -> usize {
    std::env::var("ENDS").map_or(ENDS, |text| text.parse().expect("ENDS is a number"))
}

/// Starts and ends a daemon again and again while it is told to refresh without a pause. `check` looks at each.
fn end_again_and_again(world: &mut World, signal: Signal, mut check: impl FnMut(&World)) {
    let mut dice = Dice(u64::from(std::process::id()));
    for number in 0..ends() {
        let is_over = AtomicBool::new(false);
        let before = world.standin.refreshes().len();
        let run_for = Duration::from_millis(dice.below(LONGEST_RUN_MS) as u64);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| ask_until(&is_over, &world.daemon.authority));
            eventually("it refreshes", || (world.standin.refreshes().len() > before).then_some(()));
            std::thread::sleep(run_for);
            world.daemon.signal(signal);
            is_over.store(true, Ordering::Relaxed);
            asking.join().unwrap();
        });
        let status = world.daemon.wait();
        if signal == Signal::TERM {
            assert_eq!(status.code(), Some(0), "end {number}: {}", world.daemon.output());
        }

        world.daemon = world.home.serve();
        check(world);
    }
}

fn ask_until(is_over: &AtomicBool, authority: &str) {
    while !is_over.load(Ordering::Relaxed) {
        ask_for_a_refresh(authority);
    }
}

/// The daemon may end at any moment of it.
fn ask_for_a_refresh(authority: &str) {
    let Ok(mut stream) = TcpStream::connect(authority) else { return };
    let head = format!(
        "POST /-/refresh/main HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    let _sent = stream.write_all(head.as_bytes());
    let _read = stream.read_to_end(&mut Vec::new());
}

#[track_caller]
fn assert_serves(world: &World) {
    let answer = eventually("there is a token", || {
        let answer = world.daemon.get("/api/users");
        (answer.status != 503 || answer.problem() == "login-required").then_some(answer)
    });
    assert_eq!(answer.status, 200, "{answer:?}\n{}", world.daemon.output());
}

#[test]
fn no_sigterm_loses_a_login() {
    let mut world = World::logged_in();

    end_again_and_again(&mut world, Signal::TERM, assert_serves);

    let refreshes = world.standin.refreshes();
    assert!(refreshes.len() >= ends(), "{} refreshes are not constant refreshing", refreshes.len());
    assert!(refreshes.iter().all(|refresh| refresh.presented == Presented::Current), "{refreshes:?}");
    assert_eq!(world.daemon.state(), "ready");
}

#[test]
fn no_sigkill_loses_a_login_where_the_server_grants_some_grace() {
    let options = Options { rotation: Rotation::Grace(Duration::from_secs(600)), ..Options::default() };
    let mut world = Setup { options, ..Setup::default() }.logged_in();

    end_again_and_again(&mut world, Signal::KILL, |world| {
        assert_serves(world);
        // What was in flight is settled before the next end.
        eventually("the account is ready", || (world.daemon.state() == "ready").then_some(()));
    });

    assert!(world.standin.refreshes().len() >= ends(), "{:?}", world.standin.refreshes().len());
    assert!(world.standin.refreshes().iter().all(|refresh| refresh.presented != Presented::Unknown));
}

#[test]
fn a_sigkill_loses_a_login_only_with_the_answer_that_it_met_and_says_so() {
    let mut world = World::logged_in();
    let mut lost = 0;

    end_again_and_again(&mut world, Signal::KILL, |world| {
        let state = eventually("what was in flight is settled", || {
            let state = world.daemon.state();
            ["ready", "login-required"].contains(&state.as_str()).then_some(state)
        });
        if state == "ready" {
            return assert_serves(world);
        }
        lost += 1;
        let told = events(&world.daemon);
        assert_eq!(told.first().map(String::as_str), Some("rotation-in-doubt"), "{told:?}");
        assert_eq!(told.get(1).map(String::as_str), Some("login-required"), "{told:?}");
        let last = world.standin.refreshes().pop().unwrap();
        assert_ne!(last.presented, Presented::Current);
        world.log_in(crate::standin::Person::Alice);
    });

    // One refused try for each lost login: what is durable is never superseded.
    assert_eq!(world.standin.superseded_presentations(), lost, "{:?}", world.standin.refreshes());
}

#[test]
fn a_refresh_that_a_sigkill_met_is_told_though_a_command_opens_the_store_first() {
    let mut world = World::logged_in();
    let gate = Gate::default();
    world.standin.fault(Endpoint::Token, Fault::HoldAfter(gate.clone()));
    let _asked = Sent::refresh(&world.daemon);
    held(&gate);
    world.daemon.kill();
    gate.open();

    assert_eq!(world.home.run(&["token"], "").status.code(), Some(0));
    world.daemon = world.home.serve();

    eventually("it is told", || {
        let told = events(&world.daemon);
        (told == ["rotation-in-doubt", "login-required"]).then_some(())
    });
}
