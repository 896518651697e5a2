//! Callers that go away while their request is answered: what is done for them ends at once. One that only ends its
//! sending side is answered.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use socket2::SockRef;

use crate::standin::{Gate, Scripted};
use crate::support::{Setup, World, eventually};

const HELD: &str = "/api/held";

/// A world whose API holds its answers to one path until a gate opens.
fn held(top: &str) -> (World, Gate) {
    let tables = "[limits]\nresponse_timeout = \"10m\"".to_owned();
    let world = Setup { top: top.to_owned(), tables, ..Setup::default() }.logged_in();
    let gate = Gate::default();
    let hold = gate.clone();
    world.standin.on_api(move |request| (request.path() == HELD).then(|| Scripted::Hold(hold.clone())));
    (world, gate)
}

fn ask(world: &World, stream: &mut impl Write) {
    let head =
        format!("GET {HELD} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", world.daemon.authority);
    stream.write_all(head.as_bytes()).unwrap();
}

/// How many connections to the API are open.
fn to_the_api(world: &World) -> usize {
    let text = world.daemon.get("/-/metrics").text();
    let lines = text.lines().filter(|line| line.contains("upstream_connections_open"));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok()).sum()
}

#[track_caller]
fn ends_at_once(world: &World, what: &str) {
    eventually(what, || (in_flight(world) == 1).then_some(()));
}

/// Those that are being answered, the question included.
fn in_flight(world: &World) -> u64 {
    world.daemon.status()["requests"]["in_flight"].as_u64().unwrap()
}

#[track_caller]
fn waits(world: &World, gate: &Gate) {
    eventually("it waits for the API", || (gate.waiting() == 1 && in_flight(world) == 2).then_some(()));
}

#[test]
fn a_reset_ends_the_request_to_the_api() {
    let (world, gate) = held("");
    let mut stream = world.daemon.connect();
    ask(&world, &mut stream);
    waits(&world, &gate);
    let open = to_the_api(&world);

    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);

    ends_at_once(&world, "the request has ended");
    assert!(to_the_api(&world) < open.max(1), "{open} connections to the API before");
}

#[test]
fn a_socket_that_is_closed_ends_the_request_to_the_api() {
    let (world, gate) = held("");
    let mut stream = world.daemon.connect();
    ask(&world, &mut stream);
    waits(&world, &gate);

    drop(stream);

    ends_at_once(&world, "the request has ended");
}

#[test]
fn a_unix_socket_that_is_closed_ends_the_request_to_the_api() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proxy.sock");
    let (world, gate) = held(&format!("listen = [\"127.0.0.1:0\", \"unix:{}\"]", path.display()));
    let mut stream = UnixStream::connect(&path).unwrap();
    ask(&world, &mut stream);
    waits(&world, &gate);

    drop(stream);

    ends_at_once(&world, "the request has ended");
}

#[test]
fn a_caller_that_ends_its_sending_side_is_answered() {
    let (world, gate) = held("");
    let mut stream = world.daemon.connect();
    ask(&world, &mut stream);
    stream.shutdown(Shutdown::Write).unwrap();
    waits(&world, &gate);

    gate.open();

    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    assert!(!answer.is_empty());
}

#[test]
fn an_idle_connection_s_time_is_announced_to_those_who_keep_theirs() {
    let tables = "[limits]\nidle_timeout = \"77s\"".to_owned();
    let world = Setup { tables, ..Setup::default() }.logged_in();
    for target in ["/api/users", "/-/status", "/-/nothing"] {
        let mut stream = world.daemon.connect();
        let ask = |connection: &str| {
            format!("GET {target} HTTP/1.1\r\nHost: {}\r\n{connection}\r\n", world.daemon.authority)
        };
        stream.write_all(format!("{}{}", ask(""), ask("Connection: close\r\n")).as_bytes()).unwrap();

        let mut answers = Vec::new();
        stream.read_to_end(&mut answers).unwrap();

        let answers = String::from_utf8_lossy(&answers).to_ascii_lowercase();
        assert_eq!(answers.matches("http/1.1 ").count(), 2, "{answers}");
        assert_eq!(answers.matches("keep-alive: timeout=77\r\n").count(), 1, "{answers}");
        let (first, _) = answers.split_once("keep-alive: timeout=77").unwrap();
        assert_eq!(first.matches("http/1.1 ").count(), 1, "{answers}");
    }
}

#[test]
fn http_2_with_prior_knowledge_is_told_what_is_spoken_here() {
    let world = World::start();

    let answer = world.daemon.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");

    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("not HTTP/2"), "{text:?}");
}
