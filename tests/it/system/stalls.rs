//! A body that stalls, each way and on each side, ends after 60 s; one that is slow goes on, takes no memory, and does
//! not hold up the other way.

use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::Signal;

use crate::forwarding::bodies::until_it_stands_still;
use crate::forwarding::caller::Caller;
use crate::forwarding::{one_worker, resident_kib};
use crate::standin::{self, Gate, Scripted, pieces};
use crate::support::{Daemon, PATIENCE, Setup, World, eventually};

/// What the contract gives a body that stalls, and what a busy machine may add.
const STALL: Duration = Duration::from_secs(60);
const LATE: Duration = Duration::from_secs(20);
/// For how many seconds memory is watched; promised is a minute.
const WATCHED: &str = "SLOW_PEER_SECS";
const WATCHED_BY_DEFAULT: u64 = 10;
const MOST_GROWTH_KIB: u64 = 8 * 1024;
const PIECE: usize = 64 * 1024;
/// More than all sockets on the way hold.
const MORE_THAN_BUFFERS: usize = 32 * 1024 * 1024;

/// lim-007
#[test]
fn a_body_that_stalls_ends_after_a_minute_and_one_that_is_slow_does_not() {
    let world = World::logged_in();
    let is_given_up = slow_api(&world);
    let stops_reading = move |caller: &mut Caller| {
        assert_eq!(caller.head().status, 200);
        until(STALL + LATE, || is_given_up.load(Ordering::SeqCst))
    };
    let (length, huge) = ("Content-Length: 1000000\r\n", "Content-Length: 1000000000\r\n");
    let asking = |line: &str, fields: &str| {
        let mut caller = Caller::connect(&world.daemon);
        caller.send_head(line, fields);
        caller
    };

    let stalled = [
        spawn_for("the caller stops sending", asking("POST /echo?stops", length), stops_sending),
        spawn_for(
            "the caller sends a byte every ten seconds",
            asking("POST /echo?trickles", length),
            trickles,
        ),
        spawn_for("the caller stops reading", asking("GET /unread", ""), stops_reading),
        spawn_for("the upstream stops sending", asking("GET /half", ""), gets_half),
        spawn_for("the upstream stops reading", asking("POST /deaf", huge), is_not_heard),
    ];
    let slow = [
        spawn_for("the caller reads slowly", asking("GET /endless", ""), reads_slowly),
        spawn_for("the caller sends slowly", asking("POST /echo?slow", length), sends_slowly),
    ];
    for (what, thread) in stalled {
        let (is_ended, after) = thread.join().unwrap_or_else(|_| panic!("{what}"));
        assert!(is_ended, "{what}: still there after {after:?}");
        assert!(after > STALL - Duration::from_secs(5), "{what}: ended after {after:?}");
    }
    for (what, thread) in slow {
        let (is_there, after) = thread.join().unwrap_or_else(|_| panic!("{what}"));
        assert!(is_there && after > STALL, "{what}: ended after {after:?}");
    }

    for target in ["/echo?stops", "/echo?trickles", "/deaf"] {
        assert_aborted(&world, target);
    }
}

/// An API that is slow in several ways; says when nobody takes `/unread` any more.
fn slow_api(world: &World) -> Arc<AtomicBool> {
    let is_given_up = Arc::new(AtomicBool::new(false));
    let unread = Arc::clone(&is_given_up);
    world.standin.on_api(move |request| match request.path() {
        "/endless" => Some(Scripted::Answer(endless(Arc::default()))),
        "/unread" => Some(Scripted::Answer(endless(Arc::clone(&unread)))),
        "/half" => Some(Scripted::Answer(half())),
        "/deaf" => Some(Scripted::Hold(Gate::default())),
        _ => None,
    });
    is_given_up
}

/// The request arrived once, and never as a whole.
#[track_caller]
fn assert_aborted(world: &World, target: &str) {
    let requests = world.standin.api_requests();
    let seen: Vec<_> = requests.iter().filter(|request| request.target == target).collect();
    assert_eq!((seen.len(), seen[0].complete), (1, false), "{target}");
}

type Outcome = (bool, Duration);

fn spawn_for(
    what: &'static str,
    mut caller: Caller,
    act: impl FnOnce(&mut Caller) -> bool + Send + 'static,
) -> (&'static str, JoinHandle<Outcome>) {
    let thread = spawn(move || {
        let started = Instant::now();
        (act(&mut caller), started.elapsed())
    });
    (what, thread)
}

fn stops_sending(caller: &mut Caller) -> bool {
    caller.send(b"half");
    caller.stream.get_ref().set_read_timeout(Some(STALL + LATE)).unwrap();
    assert_eq!(caller.head().status, 400);
    caller.ends_within(LATE)
}

/// That is progress all the time, and would never come to an end.
fn trickles(caller: &mut Caller) -> bool {
    let started = Instant::now();
    while started.elapsed() < STALL {
        caller.send_if_open(b"x");
        sleep(Duration::from_secs(10));
    }
    caller.ends_within(LATE)
}

fn gets_half(caller: &mut Caller) -> bool {
    assert_eq!(caller.head().status, 200);
    assert_eq!(caller.exactly(4), b"half");
    caller.ends_within(STALL + LATE)
}

fn is_not_heard(caller: &mut Caller) -> bool {
    let part = vec![b'x'; 10_000_000];
    let is_held_back =
        (0..50).any(|_| caller.send_until_held_back(&part, Duration::from_secs(2)) < part.len());
    assert!(is_held_back, "nothing holds it back");
    caller.stream.get_ref().set_read_timeout(Some(STALL + LATE)).unwrap();
    assert_eq!(caller.head().status, 504);
    caller.ends_within(LATE)
}

/// 20 KiB/s are little, and progress all the time.
fn reads_slowly(caller: &mut Caller) -> bool {
    let started = Instant::now();
    assert_eq!(caller.head().status, 200);
    while started.elapsed() < STALL + LATE {
        caller.exactly(2 * 1024);
        sleep(Duration::from_millis(100));
    }
    // What is in the caller's own buffers is not proof enough that it goes on.
    caller.exactly(16 << 20);
    true
}

fn sends_slowly(caller: &mut Caller) -> bool {
    let started = Instant::now();
    let mut sent = 0;
    while started.elapsed() < STALL + LATE {
        caller.send(&[b'x'; 100]);
        sent += 100;
        sleep(Duration::from_millis(100));
    }
    caller.send(&vec![b'x'; 1_000_000 - sent]);
    caller.answer("POST").status == 200
}

/// True as soon as it comes true within that time.
fn until(time: Duration, mut is_true: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !is_true() && started.elapsed() < time {
        sleep(Duration::from_millis(50));
    }
    is_true()
}

/// An answer that ends when nobody takes it any more, and says so.
fn endless(is_given_up: Arc<AtomicBool>) -> standin::Answer {
    let content = pieces(|sender| async move {
        let piece = Bytes::from(vec![b'x'; PIECE]);
        while sender.send(piece.clone()).await.is_ok() {}
        is_given_up.store(true, Ordering::SeqCst);
    });
    standin::Answer::stream(200, None, content)
}

/// Four of a hundred bytes, and then nothing.
fn half() -> standin::Answer {
    let content = pieces(|sender| async move {
        sender.send(Bytes::from_static(b"half")).await.ok();
        sender.closed().await;
    });
    standin::Answer::stream(200, Some(100), content)
}

/// The one that is cut began last, so the others were silent for longer.
#[test]
fn an_event_stream_may_be_silent_and_a_body_may_stall_for_the_time_that_is_configured() {
    let world_of = |stall: &str| {
        let tables = format!("[limits]\nstall_timeout = \"{stall}\"");
        let world = Setup { tables, ..one_worker() }.logged_in();
        let (gate, is_given_up) = (Gate::default(), Arc::new(AtomicBool::new(false)));
        let (held, unread) = (gate.clone(), Arc::clone(&is_given_up));
        world.standin.on_api(move |request| {
            let answer = silent_until(held.clone());
            Some(Scripted::Early(match request.path() {
                "/unread" => endless(Arc::clone(&unread)),
                "/events" => answer.with("Content-Type", "Text/Event-Stream; charset=utf-8"),
                _ => answer,
            }))
        });
        (world, gate, is_given_up)
    };
    let asks = |world: &World, line: &str| {
        let mut caller = Caller::connect(&world.daemon);
        caller.send_head(line, "");
        assert_eq!((caller.head().status, caller.chunk()), (200, Some(b"first".to_vec())), "{line}");
        caller
    };
    let ((world, gate, is_given_up), (never, late, _)) = (world_of("1s"), world_of("0"));
    let mut events = asks(&world, "GET /events");
    let mut for_ever = asks(&never, "GET /x");
    let mut stalled = asks(&world, "GET /x");
    let mut unread = Caller::connect(&world.daemon);
    unread.send_head("GET /unread", "");
    assert_eq!(unread.head().status, 200);
    let mut unsent = Caller::connect(&world.daemon);
    unsent.send_head("POST /x", "Content-Length: 100000\r\n");

    assert!(stalled.ends_within(STALL / 2), "nothing moves");
    assert!(unsent.ends_within(STALL / 2), "nothing comes from the caller");
    assert!(until(STALL / 2, || is_given_up.load(Ordering::SeqCst)), "nothing is taken by the caller");
    gate.open();
    late.open();

    assert_eq!(events.chunk(), Some(b"second".to_vec()));
    assert_eq!(for_ever.chunk(), Some(b"second".to_vec()));
}

/// Something, and the rest when the gate is open.
fn silent_until(gate: Gate) -> standin::Answer {
    let content = pieces(|sender| async move {
        sender.send(Bytes::from_static(b"first")).await.ok();
        gate.passed().await;
        sender.send(Bytes::from_static(b"second")).await.ok();
    });
    standin::Answer::stream(200, None, content)
}

/// lim-010
#[test]
fn a_caller_that_reads_a_kilobyte_a_second_costs_no_memory() {
    let world = one_worker().logged_in();
    world.standin.on_api(|_| Some(Scripted::Answer(endless(Arc::default()))));
    let mut caller = Caller::connect(&world.daemon);
    let before = resident_kib(&world.daemon);

    caller.send_head("GET /endless", "");
    assert_eq!(caller.head().status, 200);
    let most = most_while_slow(&world.daemon, || drop(caller.exactly(1024)));

    assert!(most.saturating_sub(before) < MOST_GROWTH_KIB, "{} KiB more", most.saturating_sub(before));
}

/// lim-011
#[test]
fn an_upstream_that_reads_a_kilobyte_a_second_costs_no_memory() {
    let (upstream, world) = with_upstream();
    let before = resident_kib(&world.daemon);
    let mut caller = Caller::connect(&world.daemon);
    caller.send_head("POST /endless", "Transfer-Encoding: chunked\r\n");
    let uploading = spawn(move || {
        let chunk = [format!("{PIECE:x}\r\n").as_bytes(), &vec![b'x'; PIECE], b"\r\n"].concat();
        while caller.send_if_open(&chunk) {}
    });
    let mut taken = accepted(&upstream);
    let most = most_while_slow(&world.daemon, || taken.read_exact(&mut [0; 1024]).unwrap());

    assert!(most.saturating_sub(before) < MOST_GROWTH_KIB, "{} KiB more", most.saturating_sub(before));
    drop((taken, world));
    uploading.join().unwrap();
}

/// The upstream answers at once, until nobody takes more of it, and then takes all of the body.
#[test]
fn a_body_goes_up_to_its_end_while_nobody_takes_its_answer() {
    let (upstream, world) = with_upstream();
    let mut caller = Caller::connect(&world.daemon);
    caller.send_head("POST /x", &format!("Content-Length: {MORE_THAN_BUFFERS}\r\n"));
    let taking = spawn(move || {
        let mut taken = accepted(&upstream);
        let mut answering = taken.try_clone().unwrap();
        let said = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&said);
        let answering = spawn(move || {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {MORE_THAN_BUFFERS}\r\n\r\n");
            answering.write_all(head.as_bytes()).unwrap();
            for _ in 0..MORE_THAN_BUFFERS / PIECE {
                answering.write_all(&[b'a'; PIECE]).unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        until_it_stands_still(|| said.load(Ordering::Relaxed));
        // Its head as well: who closes with anything unread takes back what it has said.
        read_to(&mut taken, b"\r\n\r\n");
        taken.read_exact(&mut vec![0; MORE_THAN_BUFFERS]).unwrap();
        answering.join().unwrap();
    });

    caller.send(&vec![b'x'; MORE_THAN_BUFFERS]);

    let answer = caller.answer("POST");
    assert_eq!((answer.status, answer.body.len()), (200, MORE_THAN_BUFFERS));
    taking.join().unwrap();
}

/// The upstream answers before it has the body, whose rest comes when a connection without a request is long closed.
#[test]
fn an_upload_goes_on_behind_its_answer_after_a_pause() {
    let limits = "[limits]\nidle_timeout = \"1s\"\nheader_timeout = \"1s\"";
    let (upstream, world) = with_upstream_and(limits);
    let mut caller = Caller::connect(&world.daemon);
    let (begins, rest) = (vec![b'x'; PIECE], vec![0xff; PIECE]);
    caller.send_head("POST /x", "Transfer-Encoding: chunked\r\n");
    caller.send_chunk(&begins);
    let taking = spawn(move || {
        let mut taken = accepted(&upstream);
        taken.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly").unwrap();
        read_to(&mut taken, b"0\r\n\r\n").iter().filter(|byte| **byte == 0xff).count()
    });
    assert_eq!(caller.answer("POST").text(), "early");

    for part in rest.chunks(PIECE / 2) {
        sleep(Duration::from_secs(2));
        caller.send_chunk(part);
    }
    caller.send(b"0\r\n\r\n");

    assert_eq!(taking.join().unwrap(), rest.len());
    assert!(caller.ends_within(PATIENCE), "nothing is read behind chunks that end after their answer");
}

/// The same while the daemon stops: the connection ends with the answer.
#[test]
fn an_answer_comes_before_its_upload_ends_while_the_daemon_stops() {
    let (upstream, mut world) = with_upstream();
    let mut caller = Caller::connect(&world.daemon);
    caller.send_head("POST /x", "Transfer-Encoding: chunked\r\n");
    caller.send_chunk(&vec![b'x'; PIECE]);
    let mut taken = accepted(&upstream);

    world.daemon.signal(Signal::TERM);
    let address = world.daemon.authority.clone();
    eventually("nobody is accepted any more", || TcpStream::connect(&address).is_err().then_some(()));
    taken.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly").unwrap();

    assert_eq!(caller.answer("POST").text(), "early");
    assert!(world.daemon.wait().success(), "nothing is waited for any more");
}

/// A world whose API is this listener.
fn with_upstream() -> (TcpListener, World) {
    with_upstream_and("")
}

fn with_upstream_and(tables: &str) -> (TcpListener, World) {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", upstream.local_addr().unwrap());
    let environment = vec![("CNBLOGS_PROXY_UPSTREAM".to_owned(), address)];
    (upstream, Setup { environment, tables: tables.to_owned(), ..one_worker() }.logged_in())
}

/// The connection that carries the upload: a login asks its upstream who it is, and gets no answer.
fn accepted(upstream: &TcpListener) -> TcpStream {
    loop {
        let (stream, _) = upstream.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut start = [0; 4];
        stream.peek(&mut start).unwrap();
        if &start == b"POST" {
            return stream;
        }
    }
}

/// What comes up to this end, and nothing behind it.
fn read_to(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut came = Vec::new();
    while !came.ends_with(end) {
        came.resize(came.len() + 1, 0);
        stream.read_exact(came.last_mut().map(std::slice::from_mut).unwrap()).unwrap();
    }
    came
}

/// The most memory that the daemon takes while something happens once a second.
fn most_while_slow(daemon: &Daemon, mut act: impl FnMut()) -> u64 {
    let secs = std::env::var(WATCHED).map_or(WATCHED_BY_DEFAULT, |number| number.parse().unwrap());
    let mut most = 0;
    for _ in 0..secs {
        act();
        sleep(Duration::from_secs(1));
        most = most.max(resident_kib(daemon));
    }
    assert!(most > 0, "{WATCHED} is at least 1");
    most
}
