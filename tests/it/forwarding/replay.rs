//! A refused token, and a pooled connection that turns out dead: what is sent again, and how often.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::caller::Caller;
use super::{assert_problem, one_worker, over_tls, sha256, token};
use crate::standin::{Gate, Scripted, pattern};
use crate::support::{Setup, World, eventually};

#[test]
fn a_request_whose_token_was_refused_is_sent_once_more_with_a_new_one() {
    for setup in [one_worker(), over_tls()] {
        let world = setup.logged_in();
        let old = token(&world);
        world.standin.revoke_access(&old);

        let answer = world.daemon.get("/echo");

        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(world.standin.refreshes().len(), 1);
        let tries = world.standin.api_requests();
        assert_eq!(tries.len(), 2);
        assert_ne!(tries[0].field("authorization"), tries[1].field("authorization"));
    }
}

#[test]
fn a_body_up_to_the_replay_buffer_is_sent_once_more_byte_for_byte() {
    for http in ["plain", "TLS"] {
        for (length, is_chunked) in
            [(0, false), (0, true), (10, false), (10, true), (65_536, false), (65_536, true)]
        {
            let setup = if http == "plain" { one_worker() } else { over_tls() };
            let world = setup.logged_in();
            world.standin.revoke_access(&token(&world));
            let body = pattern(length);

            let mut caller = Caller::connect(&world.daemon);
            let answer = if is_chunked { chunked(&mut caller, &body) } else { caller.post("/echo", &body) };

            assert_eq!(answer.status, 200, "{http} {length} {is_chunked}: {answer:?}");
            let tries = world.standin.api_requests();
            assert_eq!(tries.len(), 2);
            for one in tries {
                assert_eq!(
                    (one.body_length, one.body_sha256),
                    (length as u64, sha256(&body)),
                    "{http} {is_chunked}"
                );
                assert_eq!(one.trailers.len(), usize::from(is_chunked), "{http} {length}");
            }
        }
    }
}

#[test]
fn a_larger_body_is_not_sent_again_but_the_next_caller_has_a_new_token() {
    for is_chunked in [false, true] {
        let world = one_worker().logged_in();
        let old = token(&world);
        world.standin.revoke_access(&old);
        let body = pattern(65_537);

        let mut caller = Caller::connect(&world.daemon);
        let answer = if is_chunked { chunked(&mut caller, &body) } else { caller.post("/echo", &body) };

        assert_eq!((answer.status, answer.field("proxy-status")), (401, None), "the API's own: {answer:?}");
        assert_eq!(answer.field("www-authenticate"), Some("Bearer"));
        eventually("a refresh began", || (world.standin.refreshes().len() == 1).then_some(()));
        assert_eq!(world.standin.api_requests().len(), 1);
        eventually("the new token serves", || (world.daemon.get("/echo").status == 200).then_some(()));
        assert_eq!(world.standin.refreshes().len(), 1);
    }
}

#[test]
fn a_body_that_is_still_coming_is_sent_once_more_when_it_is_there() {
    let world = one_worker().logged_in();
    token(&world);
    let refused = AtomicUsize::new(0);
    world
        .standin
        .on_api(move |_| (refused.fetch_add(1, Ordering::SeqCst) == 0).then_some(Scripted::Unauthorized));

    let mut caller = Caller::connect(&world.daemon);
    caller.send_head("POST /echo", "Transfer-Encoding: chunked\r\n");
    caller.send_chunk(b"first ");
    eventually("the refusal is out", || {
        world.standin.api_requests().first().and_then(|request| request.status)
    });
    caller.send_chunk(b"second");
    caller.send(b"0\r\n\r\n");
    let answer = caller.answer("POST");

    assert_eq!((answer.status, &answer.json()["body_sha256"]), (200, &sha256(b"first second").into()));
}

#[test]
fn a_body_that_does_not_come_holds_a_refused_request_no_longer_than_it_may_wait_nor_the_refresh() {
    let setup = one_worker();
    let tables = format!("{}\n[limits]\ntoken_wait = \"1s\"\n", setup.tables);
    let world = Setup { tables, ..setup }.logged_in();
    token(&world);
    world.standin.on_api(|_| Some(Scripted::Unauthorized));

    let mut caller = Caller::connect(&world.daemon);
    let began = Instant::now();
    caller.send_head("POST /echo", "Transfer-Encoding: chunked\r\n");
    caller.send_chunk(b"first");
    eventually("a refresh began", || (world.standin.refreshes().len() == 1).then_some(()));
    let answer = caller.answer("POST");

    assert_eq!((answer.status, answer.field("proxy-status")), (401, None), "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(8), "it took {:?}", began.elapsed());
}

#[test]
fn twenty_refused_requests_share_one_refresh() {
    let world = World::logged_in();
    let old = token(&world);
    let gate = Gate::default();
    let held = gate.clone();
    world.standin.on_api(move |_| Some(Scripted::Hold(held.clone())));

    let mut callers: Vec<_> = (0..20).map(|_| Caller::connect(&world.daemon)).collect();
    callers.iter_mut().for_each(|caller| caller.send_head("GET /echo", ""));
    eventually("all are on their way", || (gate.waiting() == 20).then_some(()));
    world.standin.revoke_access(&old);
    gate.open();

    let statuses: Vec<_> = callers.iter_mut().map(|caller| caller.answer("GET").status).collect();
    assert_eq!(statuses, [200; 20]);
    assert_eq!(world.standin.refreshes().len(), 1);
    assert_eq!(world.standin.api_requests().len(), 40);
}

#[test]
fn an_api_that_refuses_every_token_causes_one_refresh_and_is_then_believed() {
    let world = one_worker().logged_in();
    world.standin.on_api(|_| Some(Scripted::Unauthorized));
    world.standin.clear_api_requests();

    let mut caller = Caller::connect(&world.daemon);
    for _ in 0..30 {
        let answer = caller.get("/echo");
        assert_eq!((answer.status, answer.field("proxy-status")), (401, None));
    }

    assert_eq!(world.standin.refreshes().len(), 1);
    assert_eq!(world.standin.api_requests().len(), 31);
}

#[test]
fn a_refused_token_whose_refresh_fails_is_passed_on_as_the_apis_401() {
    let world = one_worker().logged_in();
    world.standin.set_unavailable(true);
    world.standin.on_api(|_| Some(Scripted::Unauthorized));

    for _ in 0..10 {
        let answer = world.daemon.get("/echo");
        assert_eq!((answer.status, answer.field("proxy-status")), (401, None), "{answer:?}");
    }

    assert_eq!(world.standin.refreshes().len(), 1, "a failed refresh counts for the minute, too");
}

#[test]
fn a_403_is_the_apis_last_word() {
    let world = one_worker().logged_in();
    world.standin.clear_api_requests();

    assert_eq!(world.daemon.get("/status/403").status, 403);

    assert_eq!((world.standin.api_requests().len(), world.standin.refreshes().len()), (1, 0));
}

#[test]
fn a_post_on_a_pooled_connection_that_dies_is_not_sent_twice() {
    for ending in [|| Scripted::Close, || Scripted::Reset] {
        let world = one_worker().logged_in();
        let mut caller = Caller::connect(&world.daemon);
        assert_eq!(caller.get("/echo").status, 200, "one connection is pooled");
        world.standin.on_api(move |_| Some(ending()));
        world.standin.clear_api_requests();

        for length in [0, 10, 100_000] {
            let answer = Caller::connect(&world.daemon).post("/echo", &pattern(length));
            assert_problem(&answer, "upstream-unreachable", 502, "connection_terminated");
            assert_eq!(world.standin.api_requests().len(), 1, "{length}");
            world.standin.clear_on_api();
            assert_eq!(caller.get("/echo").status, 200);
            world.standin.on_api(move |_| Some(ending()));
            world.standin.clear_api_requests();
        }
    }
}

#[test]
fn an_idempotent_request_on_a_pooled_connection_that_dies_is_sent_once_more() {
    for ending in [|| Scripted::Close, || Scripted::Reset] {
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
            let world = one_worker().logged_in();
            let mut caller = Caller::connect(&world.daemon);
            assert_eq!(caller.get("/echo").status, 200, "one connection is pooled");
            let asked = AtomicUsize::new(0);
            world.standin.on_api(move |_| (asked.fetch_add(1, Ordering::SeqCst) == 0).then(ending));
            world.standin.clear_api_requests();

            caller.send_head(&format!("{method} /echo"), "Content-Length: 4\r\n");
            caller.send(b"body");
            let answer = caller.answer(method);

            assert_eq!(answer.status, 200, "{method}: {answer:?}");
            let tries = world.standin.api_requests();
            assert_eq!(tries.len(), 2, "{method}");
            assert_eq!(tries[1].body, b"body");
            assert_ne!(tries[0].connection, tries[1].connection);
        }
    }
}

#[test]
fn an_idempotent_request_is_sent_at_most_twice() {
    let world = one_worker().logged_in();
    let mut caller = Caller::connect(&world.daemon);
    assert_eq!(caller.get("/echo").status, 200, "one connection is pooled");
    world.standin.on_api(|_| Some(Scripted::Close));
    world.standin.clear_api_requests();

    assert_problem(&caller.get("/echo"), "upstream-unreachable", 502, "connection_terminated");
    assert_eq!(world.standin.api_requests().len(), 2);

    world.standin.clear_api_requests();
    assert_problem(&caller.get("/echo"), "upstream-unreachable", 502, "connection_terminated");
    assert_eq!(world.standin.api_requests().len(), 1, "a fresh connection's word is final");
}

#[test]
fn a_request_that_is_sent_once_more_leaves_the_other_pooled_connections_alone() {
    let world = one_worker().logged_in();
    let mut callers = [Caller::connect(&world.daemon), Caller::connect(&world.daemon)];
    // Two at once, each on a connection of its own.
    let two = |callers: &mut [Caller; 2]| {
        let gate = Gate::default();
        let held = gate.clone();
        world.standin.on_api(move |_| Some(Scripted::Hold(held.clone())));
        callers.iter_mut().for_each(|caller| caller.send_head("GET /echo", ""));
        eventually("both are on their way", || (gate.waiting() == 2).then_some(()));
        world.standin.clear_on_api();
        gate.open();
        callers.iter_mut().for_each(|caller| assert_eq!(caller.answer("GET").status, 200));
    };
    two(&mut callers);
    let before = world.standin.api_connection_count();

    let resets = AtomicUsize::new(0);
    world.standin.on_api(move |_| (resets.fetch_add(1, Ordering::SeqCst) == 0).then_some(Scripted::Reset));
    assert_eq!(callers[0].get("/echo").status, 200);
    assert_eq!(world.standin.api_connection_count(), before + 1, "it was sent once more on a new one");

    two(&mut callers);
    assert_eq!(world.standin.api_connection_count(), before + 1, "the other one of the pool is still there");
}

#[test]
fn a_pooled_connection_that_died_unnoticed_costs_a_caller_nothing() {
    for http in ["plain", "TLS"] {
        let setup = if http == "plain" { one_worker() } else { over_tls() };
        let world = setup.logged_in();
        let mut caller = Caller::connect(&world.daemon);
        for _ in 0..20 {
            assert_eq!(caller.get("/echo").status, 200);
            // The end of the pooled connection and the next request are there together when the daemon wakes.
            world.daemon.signal(Signal::STOP);
            world.standin.set_api_down(true);
            world.standin.set_api_down(false);
            caller.send_head("GET /echo", "");
            world.daemon.signal(Signal::CONT);
            let answer = caller.answer("GET");
            assert_eq!(answer.status, 200, "{http}: {answer:?}");
        }
    }
}

/// A POST with chunks and a trailer, to its end.
fn chunked(caller: &mut Caller, body: &[u8]) -> crate::support::Answer {
    caller.send_head("POST /echo", "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n");
    body.chunks(30_000).for_each(|chunk| caller.send_chunk(chunk));
    caller.send(b"0\r\nX-Sum: 7\r\n\r\n");
    caller.answer("POST")
}
