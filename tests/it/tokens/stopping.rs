//! Stopping: what has begun is finished, what is granted is kept.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::Signal;

use super::{Sent, held, logged_in_for, refresh};
use crate::standin::{self, Endpoint, Fault, Gate, Scripted, pattern, pieces};
use crate::support::{Answer, PATIENCE, Setup, World, eventually};

const DOWNLOADS: usize = 200;
const LENGTH: usize = 1 << 20;
/// Where the time until the exit is no part of the test, or must have another reason.
const LONG_DRAIN: &str = "[limits]\ndrain_timeout = \"60s\"";
/// So much of a download comes at once.
const FIRST: usize = 16 << 10;

#[test]
fn a_refresh_in_flight_is_finished_and_kept_before_the_exit() {
    let holds: [fn(Gate) -> Fault; 2] = [Fault::HoldAfter, Fault::HoldBefore];
    for hold in holds {
        let mut world = World::logged_in();
        let gate = Gate::default();
        world.standin.fault(Endpoint::Token, hold(gate.clone()));
        let asked = Sent::refresh(&world.daemon);
        held(&gate);

        world.daemon.signal(Signal::TERM);
        refuses_connections(&world);
        stays(&world);
        gate.open();
        assert_eq!(world.daemon.wait().code(), Some(0), "{}", world.daemon.output());
        assert_eq!(asked.answer().status, 200, "the one who asked is told");

        world.daemon = world.home.serve();
        assert_eq!(refresh(&world.daemon).status, 200, "the new refresh token is the one that is stored");
        assert_eq!((world.standin.refreshes().len(), world.standin.superseded_presentations()), (2, 0));
    }
}

#[test]
fn a_refresh_that_nobody_waits_for_is_kept_before_the_exit() {
    let gate = Gate::default();
    let mut world = logged_in_for(2, vec![Fault::HoldAfter(gate.clone())], Setup::default());
    held(&gate);

    world.daemon.signal(Signal::TERM);
    refuses_connections(&world);
    stays(&world);
    gate.open();

    assert_eq!(world.daemon.wait().code(), Some(0), "{}", world.daemon.output());
    world.daemon = world.home.serve();
    assert_eq!(world.daemon.get("/api/users").status, 200);
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!((world.standin.refreshes().len(), world.standin.superseded_presentations()), (2, 0));
}

#[test]
fn two_hundred_downloads_and_a_refresh_in_flight_are_finished_before_the_exit() {
    let mut world = Setup { tables: LONG_DRAIN.to_owned(), ..Setup::default() }.logged_in();
    let (rest, answer) = (Gate::default(), Gate::default());
    let held_rest = rest.clone();
    world.standin.on_api(move |_| Some(Scripted::Answer(download(held_rest.clone()))));
    let mut downloads: Vec<_> =
        (0..DOWNLOADS).map(|_| Sent::get(world.daemon.connect(), &world.daemon, "/large")).collect();
    for download in &mut downloads {
        let mut first = [0; 1];
        assert_eq!(download.stream.peek(&mut first).unwrap(), 1);
    }
    eventually("each has begun", || (rest.waiting() == DOWNLOADS).then_some(()));
    // Last, since a refresh is not waited for as long as the downloads may take to begin and to end.
    world.standin.fault(Endpoint::Token, Fault::HoldAfter(answer.clone()));
    let refreshed = Sent::refresh(&world.daemon);
    held(&answer);

    world.daemon.signal(Signal::TERM);
    refuses_connections(&world);
    answer.open();
    rest.open();
    let answers: Vec<_> = downloads.into_iter().map(Sent::answer).collect();

    let expected = pattern(LENGTH);
    assert_eq!(answers.len(), DOWNLOADS);
    for answer in answers {
        assert!(answer.status == 200 && answer.body == expected, "{} bytes came", answer.body.len());
    }
    assert_eq!(refreshed.answer().status, 200);
    assert_eq!(world.daemon.wait().code(), Some(0), "{}", world.daemon.output());
    world.daemon = world.home.serve();
    assert_eq!(refresh(&world.daemon).status, 200, "the new refresh token is the one that is stored");
    assert_eq!(world.standin.superseded_presentations(), 0);
}

/// A body whose rest comes when the gate is open.
fn download(rest: Gate) -> standin::Answer {
    let content = pieces(|sender| async move {
        let content = Bytes::from(pattern(LENGTH));
        sender.send(content.slice(..FIRST)).await.ok();
        rest.passed().await;
        sender.send(content.slice(FIRST..)).await.ok();
    });
    standin::Answer::stream(200, Some(LENGTH as u64), content)
}

#[test]
fn a_second_signal_cuts_off() {
    let mut world = Setup { tables: LONG_DRAIN.to_owned(), ..Setup::default() }.logged_in();
    world.standin.on_api(|_| Some(Scripted::Hang));
    let hanging = Sent::get(world.daemon.connect(), &world.daemon, "/api/users");
    eventually("it arrived", || (world.standin.api_connection_count() > 1).then_some(()));

    world.daemon.signal(Signal::TERM);
    refuses_connections(&world);
    let started = Instant::now();
    world.daemon.signal(Signal::TERM);

    assert_eq!(world.daemon.wait().code(), Some(1), "{}", world.daemon.output());
    assert!(started.elapsed() < Duration::from_secs(30), "after {:?}", started.elapsed());
    drop(hanging);
}

#[test]
fn what_outlasts_the_drain_time_is_cut_off() {
    let tables = "[limits]\ndrain_timeout = \"1s\"".to_owned();
    let mut world = Setup { tables, ..Setup::default() }.logged_in();
    world.standin.on_api(|_| Some(Scripted::Hang));
    let hanging = Sent::get(world.daemon.connect(), &world.daemon, "/api/users");
    eventually("it arrived", || (world.standin.api_connection_count() > 1).then_some(()));

    let started = Instant::now();
    world.daemon.signal(Signal::TERM);
    world.daemon.wait();

    let took = started.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(30), "after {took:?}");
    drop(hanging);
}

#[test]
fn idle_connections_do_not_delay_the_exit() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut world = Setup { tables: LONG_DRAIN.to_owned(), ..Setup::default() }.logged_in();
        let idle: Vec<_> = (0..20).map(|_| kept_alive(&world)).collect();
        let silent = world.daemon.connect();
        let mut half_sent = world.daemon.connect();
        half_sent.write_all(b"GET / HTTP/1.1\r\nHo").unwrap();

        let started = Instant::now();
        world.daemon.signal(signal);

        assert_eq!(world.daemon.wait().code(), Some(0), "{}", world.daemon.output());
        assert!(started.elapsed() < Duration::from_secs(30), "after {:?}", started.elapsed());
        drop((idle, silent, half_sent));
    }
}

#[test]
fn a_request_that_is_on_its_way_when_the_daemon_stops_is_answered() {
    // A connection that asks nothing for a second is not waited for: a machine that is that slow tries again.
    let answer = (0..20).find_map(|_| {
        let mut world = World::logged_in();
        let connected_at = Instant::now();
        let connection = world.daemon.connect();
        eventually("it is accepted", || {
            (world.daemon.status()["requests"]["connections"].as_u64() >= Some(2)).then_some(())
        });

        world.daemon.signal(Signal::TERM);
        refuses_connections(&world);
        let sent = Sent::get(connection, &world.daemon, "/api/users");
        let was_in_time = connected_at.elapsed() < Duration::from_millis(800);
        let answer = was_in_time.then(|| sent.answer());

        assert_eq!(world.daemon.wait().code(), Some(0), "{}", world.daemon.output());
        answer
    });

    assert_eq!(answer.expect("once the machine was quick enough").status, 200);
}

/// Waits until a new connection is refused, or reset before it gets anything.
#[track_caller]
fn refuses_connections(world: &World) {
    eventually("new connections are refused", || {
        let Ok(mut stream) = TcpStream::connect(&world.daemon.authority) else { return Some(()) };
        let head = format!("GET /-/healthz HTTP/1.1\r\nHost: {}\r\n\r\n", world.daemon.authority);
        let _written = stream.write_all(head.as_bytes());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = [0; 12];
        let read = stream.read(&mut answer).unwrap_or(0);
        (!answer[..read].starts_with(b"HTTP/1.1 200")).then_some(())
    });
}

/// Looks for a while whether the daemon ends although it should not.
#[track_caller]
fn stays(world: &World) {
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(500) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", world.daemon.pid())).unwrap();
        assert!(!status.contains("State:\tZ"), "it ended: {}", world.daemon.output());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A connection that has served one request and stays open.
fn kept_alive(world: &World) -> TcpStream {
    let mut stream = world.daemon.connect();
    let head = format!("GET /status/200 HTTP/1.1\r\nHost: {}\r\n\r\n", world.daemon.authority);
    stream.write_all(head.as_bytes()).unwrap();
    let mut raw = Vec::new();
    while !raw.ends_with(b"status 200\n") {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "the connection was closed");
        raw.extend_from_slice(&piece[..read]);
    }
    assert_eq!(Answer::parse(&raw, "GET").map(|answer| answer.status), Some(200));
    stream
}
