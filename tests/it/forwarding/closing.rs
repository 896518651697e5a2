//! Upstreams that end connections whenever it suits them: before, in the middle of, and instead of an answer.

use std::time::{Duration, Instant};

use super::caller::Caller;
use super::{assert_problem, one_worker, over_tls};
use crate::dice::Dice;
use crate::standin::{RecordedRequest, Scripted, Standin, Then, pattern};
use crate::support::{Answer, Daemon, Setup, World};

/// GETs for each kind of upstream, when `IDLE_CLOSE_GETS` says nothing.
const GETS: usize = 340;
const CALLERS: usize = 4;
/// Between two requests of a caller, so that idle connections are closed now and then.
const LONGEST_PAUSE_MS: usize = 5;
/// One POST for so many GETs.
const POST_EVERY: usize = 4;

fn gets() -> usize {
    std::env::var("IDLE_CLOSE_GETS").map_or(GETS, |text| text.parse().expect("IDLE_CLOSE_GETS is a number"))
}

#[test]
fn an_upstream_that_closes_idle_connections_costs_no_get_and_sees_no_post_twice() {
    for (setup, most_ms) in [(one_worker(), 50), (one_worker(), 2), (over_tls(), 50), (over_tls(), 2)] {
        let is_tls = setup.options.tls;
        let world = setup.logged_in();
        world.standin.close_idle_within(Some(Duration::from_millis(most_ms)));
        world.standin.clear_api_requests();

        let posts: usize = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLERS).map(|id| (id, Caller::connect(&world.daemon))).collect();
            let asking: Vec<_> =
                callers.into_iter().map(|(id, caller)| scope.spawn(move || ask_all(caller, id))).collect();
            asking.into_iter().map(|asking| asking.join().unwrap()).sum()
        });

        assert!(posts > gets() / POST_EVERY / 2, "TLS {is_tls}: only {posts} POSTs got an answer");
        let connections = world.standin.api_connection_count();
        assert!(connections > CALLERS, "TLS {is_tls}: only {connections} connections");
        assert_sent_at_most(&world.standin, is_tls);
    }
}

/// All GETs of one caller, with POSTs in between; returns how many of these got an answer.
fn ask_all(mut caller: Caller, id: usize) -> usize {
    let (mut answered, mut dice) = (0, Dice(id as u64));
    for number in 0..gets() / CALLERS {
        std::thread::sleep(Duration::from_millis(dice.below(LONGEST_PAUSE_MS) as u64));
        let get = caller.get(&format!("/echo/get/{id}/{number}"));
        assert_eq!(get.status, 200, "{get:?}");
        if number % POST_EVERY == 0 {
            let post = caller.post(&format!("/echo/post/{id}/{number}"), b"body");
            assert!(post.status == 200 || post.problem() == "upstream-unreachable", "{number}: {post:?}");
            answered += usize::from(post.status == 200);
        }
    }
    answered
}

/// Every GET at most twice and every POST at most once, those included that came when it was too late.
#[track_caller]
fn assert_sent_at_most(standin: &Standin, is_tls: bool) {
    let requests = standin.api_requests();
    let late: Vec<_> = standin.api_connections().into_iter().map(|connection| connection.left_over).collect();
    let late = String::from_utf8_lossy(&late.concat()).into_owned();
    let came = |target: &str| {
        let in_time = requests.iter().filter(|request| request.target == target).count();
        in_time + late.matches(&format!(" {target} HTTP/1.1")).count()
    };
    for id in 0..CALLERS {
        for number in 0..gets() / CALLERS {
            let get = came(&format!("/echo/get/{id}/{number}"));
            assert!((1..=2).contains(&get), "TLS {is_tls}: GET {number} was sent {get} times");
            let post = came(&format!("/echo/post/{id}/{number}"));
            assert!(post <= 1, "TLS {is_tls}: POST {number} was sent {post} times");
        }
    }
    assert_eq!(standin.api_violations(), Vec::<String>::new(), "TLS {is_tls}");
}

#[test]
fn a_reset_instead_of_an_answer_is_told_and_nothing_is_sent_twice() {
    for setup in [one_worker(), over_tls()] {
        for method in ["GET", "POST"] {
            let world = Setup { options: setup.options.clone(), ..one_worker() }.logged_in();
            // The login has left no connection to the API: the first request makes one.
            world.standin.set_api_down(true);
            world.standin.set_api_down(false);
            world.standin.on_api(|_| Some(Scripted::Reset));
            world.standin.clear_api_requests();

            let answer = world.daemon.request(method, "/echo", &[], b"");

            assert_problem(&answer, "upstream-unreachable", 502, "connection_terminated");
            let most = if method == "GET" { 2 } else { 1 };
            assert!((1..=most).contains(&world.standin.api_requests().len()), "{method}");
        }
    }
}

#[test]
fn an_answer_whose_head_stalls_times_out_and_its_connection_is_not_used_again() {
    for setup in [one_worker(), over_tls()] {
        let world = Setup { tables: "[limits]\nresponse_timeout = \"1s\"".to_owned(), ..setup }.logged_in();
        let half = "HTTP/1.1 200 OK\r\nContent-Le";
        world.standin.on_api(move |_| Some(Scripted::Raw { bytes: half.into(), then: Then::Stall }));
        world.standin.clear_api_requests();

        for (number, method) in ["GET", "POST"].into_iter().enumerate() {
            let started = Instant::now();
            let answer = world.daemon.request(method, "/echo", &[], b"");
            assert_problem(&answer, "upstream-timeout", 504, "http_response_timeout");
            assert!(started.elapsed() >= Duration::from_secs(1), "after {:?}", started.elapsed());
            assert_eq!(world.standin.api_requests().len(), number + 1, "{method}: asked once");
        }

        let stalled = last(&world).connection;
        world.standin.clear_on_api();
        assert_eq!(world.daemon.get("/echo").status, 200);
        assert_ne!(last(&world).connection, stalled);
    }
}

#[test]
fn an_answer_whose_body_breaks_off_never_looks_whole() {
    let by_length = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    let in_a_chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf";
    let in_the_trailers = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\nX-Su";
    for setup in [one_worker(), over_tls()] {
        let world = setup.logged_in();
        for bytes in [by_length, chunked, in_a_chunk, in_the_trailers] {
            for then in [Then::Close, Then::Reset] {
                world.standin.on_api(move |_| Some(Scripted::Raw { bytes: bytes.into(), then }));
                let mut caller = Caller::connect(&world.daemon);
                caller.send_head("GET /x", "");
                let raw = caller.rest();
                let text = String::from_utf8_lossy(&raw);
                let whole = text.contains("0\r\n\r\n") || text.ends_with("half\r\n0\r\n");
                assert!(!whole, "{bytes:?}, {then:?}: {text}");
                assert!(text.starts_with("HTTP/1.1 200") || text.starts_with("HTTP/1.1 502"), "{text}");
            }
        }
        world.standin.clear_on_api();
        assert_eq!(world.daemon.get("/echo").status, 200, "others are served");
    }
}

#[test]
fn an_early_answer_before_the_connection_ends_reaches_a_caller_that_still_sends() {
    let early = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntoo much";
    for setup in [one_worker(), over_tls()] {
        let world = setup.logged_in();
        for (is_pooled, length) in [(false, 100_000), (false, 8 << 20), (true, 100_000), (true, 8 << 20)] {
            world.standin.clear_on_api();
            if is_pooled {
                assert_eq!(world.daemon.get("/echo").status, 200);
            }
            world
                .standin
                .on_api(move |_| Some(Scripted::EarlyRaw { bytes: early.into(), then: Then::Close }));
            world.standin.clear_api_requests();

            let answer = early_answer(&world.daemon, length);

            assert_eq!((answer.status, answer.text().as_str()), (413, "too much"), "{length}");
            assert_eq!(world.standin.api_requests().len(), 1);
        }
    }
}

/// What comes down while a body goes up, whether or not it is taken to its end.
fn early_answer(daemon: &Daemon, length: usize) -> Answer {
    let mut caller = Caller::connect(daemon);
    caller.send_head("POST /echo", &format!("Content-Length: {length}\r\n"));
    caller.send_if_open(&pattern(length));
    caller.answer("POST")
}

fn last(world: &World) -> RecordedRequest {
    world.standin.api_requests().pop().expect("the API was asked")
}

#[test]
fn an_early_answer_to_a_chunked_upload_does_not_harm_the_next_request() {
    let world = one_worker().logged_in();
    world.standin.on_api(|request| (request.method == "PUT").then_some(Scripted::Unauthorized));
    let next = format!("GET /echo HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", world.daemon.authority);

    let mut served = 0;
    for number in 0..100 {
        let body = pattern(100_000 + 2000 * number);
        let chunks = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
        let mut caller = Caller::connect(&world.daemon);
        caller.send_head("PUT /x", "Transfer-Encoding: chunked\r\n");
        caller.send_if_open(&chunks);
        assert_eq!(caller.answer("PUT").status, 401);
        caller.send_if_open(next.as_bytes());
        // Whether the connection goes on is for the daemon to decide.
        if let Some(answer) = Answer::parse(&caller.rest(), "GET") {
            assert_eq!(answer.status, 200, "after {served}: {answer:?}");
            served += 1;
        }
    }
    assert!(served > 0, "no connection went on");
}
