//! Connections on which nothing is asked for a while.

use std::thread::sleep;
use std::time::Duration;

use crate::forwarding::caller::Caller;
use crate::forwarding::one_worker;
use crate::support::{PATIENCE, Setup};

/// Less than any deadline of the connection.
const A_WHILE: Duration = Duration::from_secs(4);

#[test]
fn what_comes_in_pieces_after_a_while_is_one_request() {
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
fn a_connection_is_closed_when_it_is_idle_for_too_long() {
    let world = Setup { tables: "[limits]\nidle_timeout = \"5s\"".to_owned(), ..one_worker() }.logged_in();
    let (mut used, mut never_used) = (Caller::connect(&world.daemon), Caller::connect(&world.daemon));
    assert_eq!(used.get("/echo").status, 200);

    assert!(!used.ends_within(A_WHILE), "it has not been idle for that long");
    assert!(used.ends_within(PATIENCE) && never_used.ends_within(PATIENCE));
}
