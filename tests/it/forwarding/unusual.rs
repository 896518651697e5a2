//! Callers and upstreams that use what the protocol allows, and what it does not.

use super::caller::Caller;
use super::{assert_problem, one_worker};
use crate::standin::{Scripted, Then};
use crate::support::{Answer, World};

#[test]
fn http_1_0_is_served_when_it_names_a_host() {
    let world = one_worker().logged_in();
    let authority = &world.daemon.authority;

    let raw = world.daemon.raw(format!("GET /echo HTTP/1.0\r\nHost: {authority}\r\n\r\n").as_bytes());
    assert_eq!(Answer::parse(&raw, "GET").unwrap().json()["method"], "GET");

    let raw = world
        .daemon
        .raw(format!("GET /bytes/100000?chunked HTTP/1.0\r\nHost: {authority}\r\n\r\n").as_bytes());
    let answer = Answer::parse(&raw, "GET").unwrap();
    assert_eq!(
        (answer.field("transfer-encoding"), answer.body.len()),
        (None, 100_000),
        "1.0 knows no chunks"
    );

    let raw = world.daemon.raw(b"GET /echo HTTP/1.0\r\n\r\n");
    assert_problem(&Answer::parse(&raw, "GET").unwrap(), "bad-request", 400, "http_request_error");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let world = one_worker().logged_in();
    let mut caller = Caller::connect(&world.daemon);
    let mut all = String::new();
    for number in 0..20 {
        let authority = &world.daemon.authority;
        all += &format!("POST /echo/{number} HTTP/1.1\r\nHost: {authority}\r\nContent-Length: 4\r\n\r\nbody");
    }

    caller.send(all.as_bytes());

    for number in 0..20 {
        assert_eq!(caller.answer("POST").json()["target"], format!("/echo/{number}"));
    }
}

#[test]
fn what_an_answer_leaves_behind_is_never_the_next_answer() {
    let world = one_worker().logged_in();
    let poisoned =
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngoodHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    world.standin.on_api(move |_| Some(Scripted::raw(poisoned)));

    let mut caller = Caller::connect(&world.daemon);
    for _ in 0..50 {
        assert_eq!(caller.get("/x").text(), "good");
    }
}

#[test]
fn an_answer_to_nobody_is_never_the_next_answer() {
    let world = one_worker().logged_in();
    let late = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    world.standin.on_api(move |request| (request.method == "HEAD").then(|| Scripted::raw(late)));

    let mut caller = Caller::connect(&world.daemon);
    for _ in 0..50 {
        caller.send_head("HEAD /x", "");
        assert_eq!(caller.answer("HEAD").status, 200);
        assert_ne!(caller.get("/echo").text(), "evil");
    }
}

#[test]
fn a_request_with_a_framing_that_is_none_is_refused() {
    let world = World::logged_in();
    world.standin.clear_api_requests();
    for fields in [
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Content-Length: -1",
        "Content-Length: 99999999999999999999",
        "Content-Length:",
        "Transfer-Encoding : chunked",
    ] {
        let head = format!("POST /echo HTTP/1.1\r\nHost: {}\r\n{fields}\r\n\r\n", world.daemon.authority);
        let raw = world.daemon.raw(&[head.as_bytes(), b"0\r\n\r\n"].concat());
        let answer = Answer::parse(&raw, "POST").unwrap_or_else(|| panic!("{fields:?}: {raw:?}"));
        assert_eq!(
            (answer.status, answer.field("proxy-status").is_some()),
            (400, true),
            "{fields:?}: {answer:?}"
        );
        assert_problem(&answer, "bad-request", 400, "http_request_error");
    }
    assert_eq!(world.standin.api_requests().len(), 0, "nothing of it went up");
}

/// RFC 9112, section 6.1: the transfer coding counts, and nothing behind such a request is read.
#[test]
fn a_request_with_two_framings_is_the_last_on_its_connection() {
    let world = World::logged_in();
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 80\r\nTransfer-Encoding: chunked\r\nContent-Length: 80",
    ] {
        world.standin.clear_api_requests();
        let host = format!("Host: {}\r\n", world.daemon.authority);
        let head = format!("POST /echo HTTP/1.1\r\n{host}{fields}\r\n\r\n");
        let behind = format!("GET /smuggled HTTP/1.1\r\n{host}\r\n");

        let raw = world.daemon.raw(format!("{head}2\r\nab\r\n0\r\n\r\n{behind}").as_bytes());

        let answer = Answer::parse(&raw, "POST").unwrap_or_else(|| panic!("{fields:?}: {raw:?}"));
        assert_eq!((answer.status, answer.field("connection")), (200, Some("close")), "{answer:?}");
        let requests = world.standin.api_requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        assert_eq!(
            (requests[0].field("content-length").as_deref(), &requests[0].body[..]),
            (Some("2"), &b"ab"[..])
        );
    }
}

/// Where trailers end is read in more than one way (a LF alone, or none of it): nothing is read behind them. Behind
/// chunks without them the connection goes on.
#[test]
fn a_request_with_trailers_is_the_last_on_its_connection() {
    let world = World::logged_in();
    let host = format!("Host: {}\r\n", world.daemon.authority);
    let behind = format!("GET /smuggled HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
    let hidden = format!("\nPOST /echo HTTP/1.1\r\n{host}Content-Length: 1000\r\n\r\n{behind}");
    for (target, status, tail, are_read) in [
        ("/echo", 200, hidden.clone(), false),
        ("/echo", 200, format!("T: 1\r\n\r\n{behind}"), false),
        // Refused before its body is read.
        ("/-/nothing", 404, hidden.clone(), false),
        ("/-/nothing", 404, format!("T: 1\r\n\r\n{behind}"), false),
        ("/echo", 200, format!("\r\n{behind}"), true),
    ] {
        world.standin.clear_api_requests();
        let head = format!("POST {target} HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n");

        let raw = world.daemon.raw(format!("{head}2\r\nab\r\n0\r\n{tail}").as_bytes());

        let answer = Answer::parse(&raw, "POST").unwrap_or_else(|| panic!("{tail:?}: {raw:?}"));
        assert_eq!(answer.status, status, "{tail:?}: {answer:?}");
        let targets: Vec<_> =
            world.standin.api_requests().iter().map(|request| request.target.clone()).collect();
        assert_eq!(targets.contains(&"/smuggled".to_owned()), are_read, "{tail:?}: {targets:?}");
        assert_eq!(
            targets.len(),
            usize::from(status == 200) + usize::from(are_read),
            "{tail:?}: {targets:?}"
        );
    }
}

#[test]
fn a_pipelined_request_is_judged_as_any_other() {
    let world = one_worker().logged_in();
    let long = format!("GET /{} HTTP/1.1", "a".repeat(70_000));
    for (line, fields, code) in
        [("POST /echo HTTP/1.1", "Content-Length: 5, 6\r\n", "bad-request"), (&long, "", "target-too-long")]
    {
        world.standin.clear_api_requests();
        let mut caller = Caller::connect(&world.daemon);
        let host = format!("Host: {}\r\n", world.daemon.authority);
        let first = format!("GET /echo HTTP/1.1\r\n{host}\r\n");
        caller.send(format!("{first}{line}\r\n{host}{fields}\r\n0\r\n\r\n").as_bytes());
        assert_eq!(caller.answer("GET").status, 200);
        let second = caller.answer("POST");
        assert_eq!(
            second.field("proxy-status").map(|_| second.problem()).as_deref(),
            Some(code),
            "{second:?}"
        );
        assert_eq!(world.standin.api_requests().len(), 1);
    }
}

/// A search for 你好 as a program writes it that encodes nothing, on a new connection and on a used one. As UTF-8 it
/// goes up byte for byte.
#[test]
fn a_target_in_gbk_is_refused_with_what_to_do() {
    let world = World::logged_in();
    for requests_before in [0, 1] {
        let mut caller = Caller::connect(&world.daemon);
        for _ in 0..requests_before {
            assert_eq!(caller.get("/echo?q=你好").status, 200);
        }
        let end = format!(" HTTP/1.1\r\nHost: {}\r\n\r\n", world.daemon.authority);
        caller.send(&[b"GET /api/search?q=\xc4\xe3\xba\xc3", end.as_bytes()].concat());

        let answer = caller.answer("GET");
        assert_problem(&answer, "bad-request", 400, "http_request_error");
        assert!(answer.text().contains("percent-encode"), "{}", answer.text());
    }
}

#[test]
fn a_malformed_request_is_refused_and_its_connection_ends() {
    let world = World::logged_in();
    world.standin.clear_api_requests();
    let host = format!("Host: {}", world.daemon.authority);
    for head in [
        format!("GET /echo HTTP/1.1\r\n{host}\r\nX-Nul: a\0b"),
        format!("GET /echo HTTP/1.1\r\n{host}\r\n folded: line"),
        format!("GET /echo HTTP/1.1\r\n{host}\r\nno colon"),
        format!("GET /echo HTTP/1.1\r\n{host}\r\nX Y: z"),
        format!("GET /echo HTTP/1.1\r\n{host}\r\nX-A : z"),
        format!("GET /ec ho HTTP/1.1\r\n{host}"),
        format!("GET echo HTTP/1.1\r\n{host}"),
        format!("OPTIONS * HTTP/1.1\r\n{host}"),
        format!("G ET /echo HTTP/1.1\r\n{host}"),
        format!("GET /echo HTTP/3.0\r\n{host}"),
        format!("GET /echo\r\n{host}"),
        format!("\x16\x03\x01\x02 / HTTP/1.1\r\n{host}"),
        "PRI * HTTP/2.0".to_owned(),
        "hello".to_owned(),
    ] {
        let raw = world.daemon.raw(format!("{head}\r\n\r\n").as_bytes());
        let answer = Answer::parse(&raw, "GET").unwrap_or_else(|| panic!("{head:?}: {raw:?}"));
        assert_eq!(answer.status, 400, "{head:?}: {answer:?}");
        assert_problem(&answer, "bad-request", 400, "http_request_error");
    }
    assert_eq!(world.standin.api_requests().len(), 0);
}

#[test]
fn an_answer_that_is_cut_in_its_head_is_no_answer() {
    let world = one_worker().logged_in();
    for then in [Then::Close, Then::Reset] {
        let head = "HTTP/1.1 200 OK\r\nContent-Le";
        world.standin.on_api(move |_| Some(Scripted::Raw { bytes: head.into(), then }));
        let answer = world.daemon.get("/x");
        assert_eq!(answer.status, 502, "{answer:?}");
        assert!(
            ["upstream-invalid", "upstream-unreachable"].contains(&answer.problem().as_str()),
            "{answer:?}"
        );
    }
}
