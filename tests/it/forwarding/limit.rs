//! Room for callers: at `limits.connections` those that are idle give way, and those at work never do.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::{Domain, Socket, Type};

use super::caller::Caller;
use crate::standin::{self, Gate, Scripted, pattern, pieces};
use crate::support::{PATIENCE, Setup, World, eventually};

const ROOM: usize = 50;
/// A machine that is busy with something else is slower than the second that is promised.
const AT_ONCE: Duration = Duration::from_secs(5);
const PART: usize = 64 * 1024;
/// Downloads of so many sizes, around what buffers take.
const SIZES: usize = 32;
const STEP: usize = 48 * 1024;

/// lim-012
#[test]
fn idle_connections_give_way_and_those_at_work_never_do() {
    for workers in [1, 4] {
        let world = with_room(workers, "");
        let gate = downloads_in_two_parts(&world);
        let _idle: Vec<_> = (0..ROOM).map(|_| asked_once(&world)).collect();

        let mut working: Vec<_> = (0..ROOM / 2).map(|_| half_a_download(&world)).collect();
        let mut newest = asked_once(&world);
        for _ in 0..2 * ROOM {
            newest = asked_once(&world);
        }
        gate.open();

        for caller in &mut working {
            assert_eq!(caller.exactly(PART), pattern(PART), "a download was cut off");
        }
        assert_eq!(newest.get("/echo").status, 200, "the oldest gives way, not the newest");
        eventually("who gave way is gone", || (connections(&world) <= ROOM as u64).then_some(()));
    }
}

#[test]
fn connections_that_never_asked_anything_give_way() {
    let world = with_room(2, "");
    let _silent: Vec<_> = (0..2 * ROOM).map(|_| world.daemon.connect()).collect();

    for _ in 0..2 * ROOM {
        asked_once(&world);
    }
}

#[test]
fn heads_that_dawdle_give_way_long_before_their_time_is_over() {
    let world = with_room(2, "header_timeout = \"1h\"\n");
    let mut slow: Vec<_> = (0..ROOM).map(|_| world.daemon.connect()).collect();
    for stream in &mut slow {
        stream.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
    }

    eventually("there is room", || (world.daemon.get("/echo").status == 200).then_some(()));
}

#[test]
fn the_end_of_an_answer_is_not_lost_when_its_connection_has_to_go() {
    let mut world = with_room(1, "connections = 100\ndrain_timeout = \"60s\"\n");
    let sizes: Vec<_> = (1..=SIZES).map(|number| number * STEP).collect();
    let unread: Vec<_> = sizes.iter().map(|size| unread_download(&world, *size)).collect();
    let in_flight = || world.daemon.status()["requests"]["in_flight"].as_u64().unwrap() - 1;
    stands_still(in_flight);
    let held_back = in_flight();
    assert!((3..SIZES as u64 - 3).contains(&held_back), "{held_back} of {SIZES} do not fit into buffers");

    let _crowd: Vec<_> = (0..100).map(|_| asked_once(&world)).collect();
    world.daemon.signal(rustix::process::Signal::TERM);
    std::thread::sleep(Duration::from_secs(3));

    for (mut stream, size) in unread.into_iter().zip(sizes) {
        let mut raw = Vec::new();
        let read = stream.read_to_end(&mut raw);
        let start = raw.windows(4).position(|window| window == b"\r\n\r\n").map_or(raw.len(), |at| at + 4);
        assert_eq!(raw.len() - start, size, "{read:?}");
    }
    assert_eq!(world.daemon.wait().code(), Some(0), "{}", world.daemon.output());
}

fn with_room(workers: usize, limits: &str) -> World {
    let room = if limits.contains("connections") { String::new() } else { format!("connections = {ROOM}\n") };
    Setup {
        top: format!("workers = {workers}"),
        tables: format!("[limits]\n{room}{limits}"),
        ..Setup::default()
    }
    .logged_in()
}

/// A connection that is kept after one request, which was served at once.
#[track_caller]
fn asked_once(world: &World) -> Caller {
    let started = Instant::now();
    let mut caller = Caller::connect(&world.daemon);
    let answer = caller.get("/echo");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(started.elapsed() < AT_ONCE, "served after {:?}", started.elapsed());
    caller
}

/// The API answers to `/slow` with one part and, once the gate is open, another.
fn downloads_in_two_parts(world: &World) -> Gate {
    let gate = Gate::default();
    let held = gate.clone();
    world.standin.on_api(move |request| {
        let gate = held.clone();
        let content = || {
            pieces(|sender| async move {
                sender.send(Bytes::from(pattern(PART))).await.ok();
                gate.passed().await;
                sender.send(Bytes::from(pattern(PART))).await.ok();
            })
        };
        let answer = || standin::Answer::stream(200, Some(2 * PART as u64), content());
        (request.target == "/slow").then(|| Scripted::Answer(answer()))
    });
    gate
}

#[track_caller]
fn half_a_download(world: &World) -> Caller {
    let mut caller = Caller::connect(&world.daemon);
    caller.send_head("GET /slow", "");
    assert_eq!(caller.head().status, 200);
    assert_eq!(caller.exactly(PART), pattern(PART));
    caller
}

/// A download that was asked for and is not read; its connection takes little.
fn unread_download(world: &World, size: usize) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address: std::net::SocketAddr = world.daemon.authority.parse().unwrap();
    socket.connect(&address.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("GET /bytes/{size} HTTP/1.1\r\nHost: {}\r\n\r\n", world.daemon.authority);
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

fn connections(world: &World) -> u64 {
    world.daemon.status()["requests"]["connections"].as_u64().unwrap()
}

/// Waits until a number has not changed for a good while.
fn stands_still(number: impl Fn() -> u64) {
    let (mut last, mut looks) = (u64::MAX, 0);
    eventually("it stands still", || {
        let now = number();
        looks = if now == last { looks + 1 } else { 0 };
        last = now;
        (looks > 60).then_some(())
    });
}
