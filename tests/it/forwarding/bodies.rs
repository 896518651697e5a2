//! Bodies: both ways at once, as they come, in constant memory, and whole or visibly not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::caller::Caller;
use super::{assert_problem, one_worker, over_tls, resident_kib, sha256, token};
use crate::standin::{self, Gate, Scripted, Then, pattern, pieces};
use crate::support::{Setup, World, eventually};

const LARGE: usize = 64 * 1024 * 1024;
/// Less than half of it: what is freed is given back some seconds later.
const MOST_GROWTH_KIB: u64 = 28 * 1024;

#[test]
fn events_arrive_one_by_one_while_the_next_is_not_yet_made() {
    for setup in [one_worker(), over_tls()] {
        let world = setup.logged_in();
        let gates: Vec<Gate> = (0..5).map(|_| Gate::default()).collect();
        let held = gates.clone();
        world.standin.on_api(move |_| Some(Scripted::Answer(events(held.clone()))));

        let mut caller = Caller::connect(&world.daemon);
        caller.send_head("GET /events", "Accept: text/event-stream\r\n");
        assert_eq!(caller.head().field("content-type"), Some("text/event-stream"));
        for (number, gate) in gates.iter().enumerate() {
            gate.open();
            assert_eq!(caller.chunk(), Some(format!("data: {number}\n\n").into_bytes()));
        }

        assert_eq!(caller.chunk(), None);
        assert_eq!(caller.get("/again").status, 200, "the connection goes on");
    }
}

#[test]
fn a_body_goes_up_and_comes_back_piece_by_piece() {
    for setup in [one_worker(), over_tls()] {
        let world = setup.logged_in();

        let mut caller = Caller::connect(&world.daemon);
        caller.send_head("POST /echo/?raw", "Transfer-Encoding: chunked\r\n");
        caller.send_chunk(b"ping 0");
        assert_eq!(caller.head().status, 200);
        for number in 0..20 {
            assert_eq!(caller.chunk(), Some(format!("ping {number}").into_bytes()));
            caller.send_chunk(format!("ping {}", number + 1).as_bytes());
        }
        caller.send(b"0\r\n\r\n");

        assert_eq!(caller.chunk(), Some(b"ping 20".to_vec()));
        assert_eq!(caller.chunk(), None);
    }
}

#[test]
fn a_download_that_nobody_reads_is_held_back_at_its_source() {
    for (setup, chunked) in [(one_worker(), ""), (over_tls(), "?chunked")] {
        let world = setup.logged_in();
        let made = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&made);
        let is_chunked = !chunked.is_empty();
        world.standin.on_api(move |_| Some(Scripted::Answer(download(Arc::clone(&counted), is_chunked))));
        let before = resident_kib(&world.daemon);

        let mut caller = Caller::connect(&world.daemon);
        caller.send_head(&format!("GET /large{chunked}"), "");
        until_it_stands_still(|| made.load(Ordering::SeqCst));
        assert!(made.load(Ordering::SeqCst) < LARGE as u64, "all of it left at once");
        let held_back = resident_kib(&world.daemon);
        let body = caller.answer("GET").body;

        assert_eq!((body.len(), sha256(&body)), (LARGE, sha256(&pattern(LARGE))));
        let grown = held_back.max(resident_kib(&world.daemon)).saturating_sub(before);
        assert!(grown < MOST_GROWTH_KIB, "{grown} KiB more for one download");
    }
}

#[test]
fn a_caller_that_goes_away_ends_its_download_at_the_source() {
    for setup in [one_worker(), over_tls()] {
        let world = setup.logged_in();
        let made = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&made);
        world.standin.on_api(move |_| Some(Scripted::Answer(download(Arc::clone(&counted), true))));

        let mut caller = Caller::connect(&world.daemon);
        caller.send_head("GET /large", "");
        assert_eq!(caller.head().status, 200);
        drop(caller);

        eventually("nobody makes it any more", || (Arc::strong_count(&made) == 2).then_some(()));
        assert!(made.load(Ordering::SeqCst) < LARGE as u64);
    }
}

#[test]
fn an_upload_that_nobody_reads_is_held_back_at_the_caller() {
    let content = pattern(LARGE);
    let length = format!("Content-Length: {LARGE}\r\n");
    for (setup, is_chunked) in [(one_worker(), false), (over_tls(), true)] {
        let world = setup.logged_in();
        let gate = Gate::default();
        let held = gate.clone();
        world.standin.on_api(move |_| Some(Scripted::Hold(held.clone())));
        let before = resident_kib(&world.daemon);

        let mut caller = Caller::connect(&world.daemon);
        caller.send_head("PUT /echo", if is_chunked { "Transfer-Encoding: chunked\r\n" } else { &length });
        if is_chunked {
            caller.send(format!("{LARGE:x}\r\n").as_bytes());
        }
        let sent = caller.send_until_held_back(&content, Duration::from_millis(700));
        assert!(sent < LARGE, "all of it was taken");
        let held_back = resident_kib(&world.daemon);
        gate.open();
        caller.send(&content[sent..]);
        if is_chunked {
            caller.send(b"\r\n0\r\n\r\n");
        }
        let echo = caller.answer("PUT").json();

        assert_eq!((&echo["body_length"], &echo["body_sha256"]), (&LARGE.into(), &sha256(&content).into()));
        let grown = held_back.max(resident_kib(&world.daemon)).saturating_sub(before);
        assert!(grown < MOST_GROWTH_KIB, "{grown} KiB more for one upload");
    }
}

/// The time for an answer begins when nothing more of the body goes up.
#[test]
fn an_upload_may_take_longer_than_its_answer() {
    let tables = "[limits]\nresponse_timeout = \"2s\"".to_owned();
    let worlds =
        [one_worker(), over_tls()].map(|setup| Setup { tables: tables.clone(), ..setup }.logged_in());
    let mut callers = worlds.each_ref().map(|world| Caller::connect(&world.daemon));
    callers.iter_mut().for_each(|caller| caller.send_head("PUT /echo", "Transfer-Encoding: chunked\r\n"));

    let mut sent = 0;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        callers.iter_mut().for_each(|caller| caller.send_chunk(b"x"));
        sent += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    callers.iter_mut().for_each(|caller| caller.send(b"0\r\n\r\n"));

    for mut caller in callers {
        let answer = caller.answer("PUT");
        assert_eq!((answer.status, &answer.json()["body_length"]), (200, &sent.into()), "{answer:?}");
    }
}

#[test]
fn trailers_come_down_and_none_that_could_harm() {
    for setup in [one_worker(), over_tls()] {
        let world = setup.logged_in();
        let token = token(&world);
        let mut caller = Caller::connect(&world.daemon);
        caller.send_head("GET /trailers", "TE: trailers\r\n");
        assert_eq!(caller.answer("GET").text(), "one\ntwo\nthree\n");
        let expected = [("x-checksum", "abc123"), ("x-lines", "3")];
        assert_eq!(caller.trailers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));

        world.standin.on_api(move |_| Some(Scripted::Answer(harmful_trailers(&token))));
        caller.send_head("GET /trailers", "TE: trailers\r\n");
        caller.answer("GET");
        assert_eq!(caller.trailers, [("x-good".to_owned(), "1".to_owned())]);
    }
}

#[test]
fn a_trailer_goes_up_announced_or_not_and_no_credential_with_it() {
    for setup in [one_worker(), over_tls()] {
        let world = setup.logged_in();
        for announcement in ["Trailer: X-Sum, Authorization, Cookie\r\n", ""] {
            let mut caller = Caller::connect(&world.daemon);
            caller.send_head("POST /echo", &format!("Transfer-Encoding: chunked\r\n{announcement}"));
            caller.send(b"3\r\nabc\r\n0\r\nX-Sum: 7\r\nAuthorization: Bearer evil\r\nCookie: a=b\r\n\r\n");
            assert_eq!(caller.answer("POST").status, 200);

            let arrived = world.standin.api_requests().pop().unwrap();
            let trailers: Vec<_> =
                arrived.trailers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
            assert_eq!(trailers, ["x-sum"], "{announcement}");
        }
    }
}

/// Some servers and firewalls refuse chunks with 411, and .NET sends small JSON in chunks.
#[test]
fn a_small_chunked_body_that_has_ended_goes_up_with_its_length() {
    for (setup, method) in [(one_worker(), "POST"), (over_tls(), "PUT"), (one_worker(), "GET")] {
        let world = setup.logged_in();
        let mut caller = Caller::connect(&world.daemon);
        for (chunks, length) in [("", 0), ("3\r\nabc\r\n", 3), ("3\r\nabc\r\n4;x=y\r\ndefg\r\n", 7)] {
            let fields = "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\nHost: ";
            let head = format!("{method} /echo HTTP/1.1\r\n{fields}{}\r\n\r\n", world.daemon.authority);
            caller.send(format!("{head}{chunks}0\r\n\r\n").as_bytes());
            assert_eq!(caller.answer(method).status, 200);

            let arrived = world.standin.api_requests().pop().unwrap();
            assert_eq!(arrived.fields_named("content-length"), [length.to_string()], "{arrived:?}");
            assert_eq!(arrived.body, &b"abcdefg"[..length]);
            assert_eq!((arrived.field("transfer-encoding"), arrived.field("trailer")), (None, None));
        }
    }
}

#[test]
fn a_chunked_body_that_is_large_or_has_not_ended_goes_up_in_chunks_as_it_comes() {
    let tables = "[limits]\nreplay_buffer = \"1KiB\"".to_owned();
    let world = Setup { tables, ..one_worker() }.logged_in();
    let gate = Gate::default();
    let held = gate.clone();
    world.standin.on_api(move |_| Some(Scripted::Hold(held.clone())));
    let mut large = Caller::connect(&world.daemon);
    large.send_head("POST /echo?large", "Transfer-Encoding: chunked\r\n");
    large.send_chunk(&pattern(1000));
    large.send_chunk(&pattern(25));
    let mut slow = Caller::connect(&world.daemon);
    slow.send_head("POST /echo?slow", "Transfer-Encoding: chunked\r\n");
    slow.send_chunk(b"abc");
    eventually("both are on their way", || (gate.waiting() == 2).then_some(()));

    gate.open();
    for (caller, length) in [(&mut large, 1025), (&mut slow, 3)] {
        caller.send(b"0\r\n\r\n");
        let echo = caller.answer("POST").json();
        assert_eq!(echo["body_length"], length);
    }
    for arrived in world.standin.api_requests().iter().filter(|request| request.path() == "/echo") {
        assert_eq!(arrived.fields_named("transfer-encoding"), ["chunked"], "{arrived:?}");
        assert_eq!(arrived.field("content-length"), None, "{arrived:?}");
    }
}

#[test]
fn a_trailer_announcement_without_a_chunked_body_stays_behind() {
    let world = World::logged_in();

    world.daemon.request("POST", "/echo", &[("Trailer", "X-Sum")], b"abc");

    assert_eq!(world.standin.api_requests().pop().unwrap().field("trailer"), None);
}

#[test]
fn a_caller_that_expects_100_continue_is_told_before_it_sends() {
    for (fields, content) in [
        ("Content-Length: 5\r\n", &b"hello"[..]),
        ("Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
        ("Content-Length: 100005\r\n", &[&[b'x'; 100_000][..], b"hello"].concat()),
    ] {
        let world = World::logged_in();

        let mut caller = Caller::connect(&world.daemon);
        caller.send_head("POST /echo", &format!("{fields}Expect: 100-continue\r\n"));
        assert_eq!(caller.any_head().status, 100, "{fields}");
        caller.send(content);
        let answer = caller.answer("POST");

        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.json()["body_length"].as_u64() >= Some(5), "{answer:?}");
    }
}

#[test]
fn an_early_answer_reaches_a_caller_that_still_sends() {
    for setup in [one_worker(), over_tls()] {
        let world = setup.logged_in();

        let mut caller = Caller::connect(&world.daemon);
        caller.send_head("POST /early?status=413", "Content-Length: 100000000\r\n");
        caller.send(&[b'x'; 100_000]);

        assert_eq!(caller.answer("POST").status, 413);
        assert_eq!(world.daemon.get("/echo").status, 200, "others are served");
    }
}

#[test]
fn a_caller_that_closed_its_sending_side_gets_its_whole_answer() {
    let world = one_worker().logged_in();
    let gate = Gate::default();
    let held = gate.clone();
    world.standin.on_api(move |_| Some(Scripted::Hold(held.clone())));

    let mut caller = Caller::connect(&world.daemon);
    caller.send_head("POST /echo/?raw", "Content-Length: 5\r\n");
    caller.send(b"hello");
    caller.close_sending_side();
    eventually("the request is there", || (gate.waiting() > 0).then_some(()));
    gate.open();
    let answer = caller.answer("POST");

    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
    assert_eq!(caller.rest(), b"");
}

#[test]
fn an_answer_until_close_comes_whole() {
    let world = one_worker().logged_in();
    world.standin.on_api(|_| Some(Scripted::raw_then_close("HTTP/1.1 200 OK\r\n\r\nuntil the end")));

    let answer = Caller::connect(&world.daemon).get("/x");

    assert_eq!(answer.text(), "until the end");
}

#[test]
fn an_answer_that_breaks_off_looks_broken_off() {
    let world = one_worker().logged_in();
    let by_length = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf";
    world.standin.on_api(move |_| Some(Scripted::raw_then_close(by_length)));
    let mut caller = Caller::connect(&world.daemon);
    caller.send_head("GET /x", "");
    assert_eq!(caller.head().field("content-length"), Some("10"));
    assert_eq!(caller.rest(), b"half");

    for then in [Then::Close, Then::Reset] {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
        world.standin.on_api(move |_| Some(Scripted::Raw { bytes: chunked.into(), then }));
        let mut caller = Caller::connect(&world.daemon);
        caller.send_head("GET /x", "");
        assert_eq!(caller.head().status, 200);
        let rest = caller.rest();
        assert!(
            !rest.windows(5).any(|window| window == b"0\r\n\r\n"),
            "{:?}",
            String::from_utf8_lossy(&rest)
        );
    }
}

#[test]
fn a_body_that_breaks_off_is_not_passed_on_as_a_whole_one() {
    for (fields, content) in [
        ("Transfer-Encoding: chunked\r\n", &b"4\r\nhalf\r\nnonsense\r\n"[..]),
        ("Transfer-Encoding: chunked\r\n", b"4\r\nhalf\r\n"),
        ("Content-Length: 100000\r\n", b"half"),
        ("Content-Length: 10\r\n", b"half"),
    ] {
        let world = one_worker().logged_in();
        world.standin.clear_api_requests();

        let mut caller = Caller::connect(&world.daemon);
        caller.send_head("POST /echo", fields);
        caller.send(content);
        caller.close_sending_side();
        let rest = caller.rest();

        let head = String::from_utf8_lossy(&rest).into_owned();
        assert!(head.is_empty() || head.starts_with("HTTP/1.1 400 "), "{fields:?}: {head}");
        assert_eq!(world.daemon.get("/echo").status, 200);
        let whole = world
            .standin
            .api_requests()
            .into_iter()
            .filter(|request| request.method == "POST" && request.complete);
        assert_eq!(whole.count(), 0, "{fields:?}");
    }
}

/// A small body whose length is known is there before anything of it goes up.
#[test]
fn a_small_body_that_breaks_off_is_not_begun_upstream() {
    let world = one_worker().logged_in();
    world.standin.clear_api_requests();

    let mut caller = Caller::connect(&world.daemon);
    caller.send_head("POST /echo", "Content-Length: 10\r\n");
    caller.send(b"half");
    assert_eq!(world.daemon.get("/echo").status, 200);
    caller.close_sending_side();
    caller.rest();
    assert_eq!(world.daemon.get("/echo").status, 200);

    let begun: Vec<_> = world.standin.api_requests().into_iter().map(|request| request.method).collect();
    assert_eq!(begun, ["GET", "GET"]);
}

#[test]
fn a_body_in_another_transfer_coding_is_refused() {
    let world = World::logged_in();
    world.standin.clear_api_requests();

    for coding in ["gzip, chunked", "chunked, chunked", "gzip", "identity", "xchunked"] {
        let mut caller = Caller::connect(&world.daemon);
        caller.send_head("POST /echo", &format!("Transfer-Encoding: {coding}\r\nConnection: close\r\n"));
        caller.send(b"3\r\nabc\r\n0\r\n\r\n");
        assert_problem(&caller.answer("POST"), "bad-request", 400, "http_request_error");
    }

    assert_eq!(world.standin.api_requests().len(), 0, "a coding that we took off would be missing");
}

#[test]
fn a_body_that_looks_like_an_answer_of_a_server_is_only_a_body() {
    let world = one_worker().logged_in();
    let gate = Gate::default();
    let held = gate.clone();
    let second = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    world.standin.on_api(move |_| {
        let gate = held.clone();
        let content = pieces(|sender| async move {
            sender.send(Bytes::from_static(b"first ")).await.ok();
            gate.passed().await;
            sender.send(Bytes::from_static(second.as_bytes())).await.ok();
        });
        Some(Scripted::Answer(standin::Answer::stream(200, Some(6 + second.len() as u64), content)))
    });

    let mut caller = Caller::connect(&world.daemon);
    caller.send_head("GET /x", "");
    caller.head();
    assert_eq!(caller.exactly(6), b"first ");
    gate.open();
    caller.close_sending_side();

    assert_eq!(String::from_utf8_lossy(&caller.rest()), second);
}

fn events(gates: Vec<Gate>) -> standin::Answer {
    let content = pieces(|sender| async move {
        for (number, gate) in gates.into_iter().enumerate() {
            gate.passed().await;
            sender.send(Bytes::from(format!("data: {number}\n\n"))).await.ok();
        }
    });
    standin::Answer::stream(200, None, content).with("Content-Type", "text/event-stream")
}

fn download(made: Arc<AtomicU64>, is_chunked: bool) -> standin::Answer {
    let content = pieces(move |sender| async move {
        let content = Bytes::from(pattern(LARGE));
        for start in (0..LARGE).step_by(16 * 1024) {
            if sender.send(content.slice(start..start + 16 * 1024)).await.is_err() {
                return;
            }
            made.fetch_add(16 * 1024, Ordering::SeqCst);
        }
    });
    standin::Answer::stream(200, (!is_chunked).then_some(LARGE as u64), content)
}

fn harmful_trailers(token: &str) -> standin::Answer {
    let content = pieces(|sender| async move {
        sender.send(Bytes::from_static(b"content")).await.ok();
    });
    let names = "X-Good, Set-Cookie, X-Echo, Access-Control-Allow-Origin";
    let mut answer = standin::Answer::stream(200, None, content).with("Trailer", names);
    let standin::Body::Stream { trailers, .. } = &mut answer.body else { unreachable!("a stream was made") };
    for (name, value) in
        [("X-Good", "1"), ("Set-Cookie", "a=b"), ("X-Echo", token), ("Access-Control-Allow-Origin", "*")]
    {
        trailers.push((name.to_owned(), value.to_owned()));
    }
    answer
}

/// Waits until a number has not changed for a good while.
pub(crate) fn until_it_stands_still(number: impl Fn() -> u64) {
    let (mut last, mut looks) = (0, 0);
    eventually("it stands still", || {
        let now = number();
        looks = if now == last && now > 0 { looks + 1 } else { 0 };
        last = now;
        (looks > 60).then_some(())
    });
}
