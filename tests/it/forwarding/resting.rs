//! Connections on which nothing is asked for a while.

use std::thread::sleep;
use std::time::Duration;

use super::caller::Caller;
use super::{one_worker, resident_kib};
use crate::support::{PATIENCE, Setup, eventually};

/// Longer than it takes until a connection rests.
pub(super) const A_WHILE: Duration = Duration::from_secs(4);
const MANY: usize = 800;
/// What a connection may cost that rests, far below what its buffers take.
const RESTING_KIB: u64 = 6;

#[test]
fn connections_that_rest_hold_no_buffers_and_are_served_as_before() {
    let mut world = one_worker().logged_in();
    assert_eq!(Caller::connect(&world.daemon).get("/echo").status, 200);
    let before = resident_kib(&world.daemon);
    let mut callers: Vec<_> = (0..MANY).map(|_| Caller::connect(&world.daemon)).collect();

    for _ in 0..2 {
        for caller in &mut callers {
            assert_eq!(caller.get("/echo").status, 200);
        }
        eventually("the buffers go", || {
            let grown = resident_kib(&world.daemon).saturating_sub(before);
            (grown < MANY as u64 * RESTING_KIB).then_some(())
        });
    }

    assert!(world.daemon.stop().success(), "nobody is waited for");
}

#[test]
fn what_comes_in_pieces_after_a_rest_is_one_request() {
    let world = one_worker().logged_in();
    let mut caller = Caller::connect(&world.daemon);
    let body = b"asked slowly";
    for between in [&b""[..], b"\r\n"] {
        assert_eq!(caller.get("/echo").status, 200);
        caller.send(between);
        sleep(A_WHILE);
        caller.send(b"POST /echo HT");
        sleep(A_WHILE);
        let host = &world.daemon.authority;
        caller.send(format!("TP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
        sleep(A_WHILE);
        caller.send(body);

        let answer = caller.answer("POST");
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains("POST"), "{}", answer.text());
    }
}

#[test]
fn a_connection_that_rests_is_closed_when_it_is_idle_for_too_long() {
    let world = Setup { tables: "[limits]\nidle_timeout = \"5s\"".to_owned(), ..one_worker() }.logged_in();
    let (mut used, mut never_used) = (Caller::connect(&world.daemon), Caller::connect(&world.daemon));
    assert_eq!(used.get("/echo").status, 200);

    assert!(!used.ends_within(A_WHILE), "it has not been idle for that long");
    assert!(used.ends_within(PATIENCE) && never_used.ends_within(PATIENCE));
}
