//! How long a caller may take.

use std::time::{Duration, Instant};

use super::caller::Caller;
use super::one_worker;
use crate::standin::{Gate, Scripted};
use crate::support::{Setup, World, eventually};

/// Far above the second that is configured, and far below every default.
const SOON: Duration = Duration::from_secs(8);

#[test]
fn a_head_that_does_not_come_to_its_end_closes_the_connection() {
    let world = limited("header_timeout = \"1s\"");
    for start in ["G", "GET /echo HTTP/1.1\r\nHost: localhost\r\nX-Half: "] {
        let mut caller = Caller::connect(&world.daemon);
        caller.send(start.as_bytes());
        assert!(caller.ends_within(SOON), "{start:?}");
    }
}

#[test]
fn a_head_that_trickles_in_does_not_get_more_time() {
    let world = limited("header_timeout = \"1s\"");
    let mut caller = Caller::connect(&world.daemon);
    let started = Instant::now();

    caller.send(b"GET /echo HTTP/1.1\r\nX-Slow: ");
    while !caller.ends_within(Duration::from_millis(100)) {
        assert!(started.elapsed() < SOON, "the connection stays open");
        caller.send_if_open(b"x");
    }
}

#[test]
fn half_a_head_behind_a_whole_request_has_the_same_time() {
    let world = limited("header_timeout = \"1s\"");
    let mut caller = Caller::connect(&world.daemon);

    let host = format!("Host: {}\r\n", world.daemon.authority);
    caller.send(format!("GET /echo HTTP/1.1\r\n{host}\r\nGET /echo HTTP/1.1\r\n").as_bytes());
    assert_eq!(caller.answer("GET").status, 200);

    assert!(caller.ends_within(SOON), "header_timeout does not count");
}

#[test]
fn an_idle_connection_is_closed() {
    let world = limited("idle_timeout = \"1s\"");
    let mut never_used = Caller::connect(&world.daemon);
    let mut used = Caller::connect(&world.daemon);
    assert_eq!(used.get("/echo").status, 200);

    assert!(used.ends_within(SOON) && never_used.ends_within(SOON));
}

#[test]
fn a_connection_in_use_outlives_the_time_for_idle_ones() {
    let world = limited("idle_timeout = \"2s\"");
    let mut caller = Caller::connect(&world.daemon);
    let started = Instant::now();

    while started.elapsed() < Duration::from_secs(3) {
        assert_eq!(caller.get("/echo").status, 200);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_connection_that_waits_for_its_answer_is_not_idle() {
    let world = limited("idle_timeout = \"1s\"\nheader_timeout = \"1s\"");
    let gate = Gate::default();
    let held = gate.clone();
    world.standin.on_api(move |_| Some(Scripted::Hold(held.clone())));
    let mut waits = Caller::connect(&world.daemon);
    waits.send_head("GET /echo", "");
    eventually("it waits", || (gate.waiting() == 1).then_some(()));
    let mut idle = Caller::connect(&world.daemon);

    assert!(idle.ends_within(SOON), "time has passed");
    gate.open();

    assert_eq!(waits.answer("GET").status, 200);
}

fn limited(limits: &str) -> World {
    Setup { tables: format!("[limits]\n{limits}"), ..one_worker() }.logged_in()
}
