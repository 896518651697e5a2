//! When a connection to the upstream is used again, and when its end is not certain enough for that.

use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::caller::Caller;
use super::one_worker;
use crate::support::{PATIENCE, Setup, World, eventually};

/// What its server says on a connection behind the answer to the request before.
const LATE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";

/// An API that answers the first request of a connection as it is told, and everything behind it with what is late.
struct Upstream {
    /// The first answer on a connection, to a request for `/first`.
    first: Arc<Mutex<String>>,
    connections: Arc<AtomicUsize>,
    /// How often it has asked for the body of a POST in chunks.
    continued: Arc<AtomicUsize>,
    url: String,
}

impl Upstream {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (first, connections) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicUsize::new(0)));
        let continued = Arc::new(AtomicUsize::new(0));
        let (answer, counted, goes_on) =
            (Arc::clone(&first), Arc::clone(&connections), Arc::clone(&continued));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, Ordering::SeqCst);
                let (answer, continued) = (Arc::clone(&answer), Arc::clone(&goes_on));
                std::thread::spawn(move || serve(stream, &answer, &continued));
            }
        });
        Self { first, connections, continued, url }
    }

    fn world(&self) -> World {
        let environment = vec![("CNBLOGS_PROXY_UPSTREAM".to_owned(), self.url.clone())];
        Setup { environment, account: "identity_url = \"\"".to_owned(), ..one_worker() }.logged_in()
    }
}

/// Nothing is late on a connection that began with another request.
fn serve(mut stream: TcpStream, first: &Mutex<String>, continued: &AtomicUsize) -> Option<()> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut head = head(&mut stream)?;
    let is_first = head.contains(" /first ");
    let answer = if is_first { first.lock().unwrap().clone() } else { GOOD.to_owned() };
    loop {
        let answer = match head.contains(" /first ") {
            true => &answer,
            false if is_first => LATE,
            false => GOOD,
        };
        if head.starts_with("POST ") && head.contains("chunked") {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
            continued.fetch_add(1, Ordering::SeqCst);
            read_to(&mut stream, b"0\r\n\r\n")?;
        }
        stream.write_all(answer.as_bytes()).ok()?;
        if head.starts_with("PUT ") {
            read_to(&mut stream, b"0\r\n\r\n")?;
        }
        head = self::head(&mut stream)?;
    }
}

/// The next request's head.
fn head(stream: &mut TcpStream) -> Option<String> {
    String::from_utf8(read_to(stream, b"\r\n\r\n")?).ok()
}

/// What comes up to this end.
fn read_to(stream: &mut TcpStream, end: &[u8]) -> Option<Vec<u8>> {
    let mut came = Vec::new();
    while !came.ends_with(end) {
        came.resize(came.len() + 1, 0);
        stream.read_exact(came.last_mut().map(std::slice::from_mut)?).ok()?;
    }
    Some(came)
}

#[test]
fn what_comes_late_for_one_request_is_given_to_nobody_else() {
    let late_for = |method: &str, answer: &str| {
        let upstream = Upstream::start();
        let world = upstream.world();
        *upstream.first.lock().unwrap() = format!("HTTP/1.1 {answer}\r\n\r\n");
        let mut caller = Caller::connect(&world.daemon);
        caller.send_head(&format!("{method} /first"), "");
        let first = caller.answer(method);
        let next = caller.get("/next");
        assert!(answer.starts_with(&first.status.to_string()), "{method}, {answer}: {first:?}");
        assert_eq!((next.status, next.text().as_str()), (200, "good"), "{method}, {answer}");
    };

    for (method, answer) in [
        ("HEAD", "500 Internal Server Error\r\nContent-Length: 42"),
        ("HEAD", "404 Not Found"),
        ("HEAD", "302 Found\r\nContent-Length: 42"),
        ("HEAD", "200 OK\r\nTransfer-Encoding: chunked"),
        ("GET", "204 No Content\r\nContent-Length: 42"),
        ("DELETE", "204 No Content\r\nTransfer-Encoding: chunked"),
        ("GET", "304 Not Modified\r\nContent-Length: 42"),
    ] {
        late_for(method, answer);
    }
}

#[test]
fn an_answer_without_a_body_whose_end_is_certain_costs_no_connection() {
    for (method, answer) in [
        ("HEAD", "200 OK\r\nContent-Length: 42"),
        ("DELETE", "204 No Content"),
        ("GET", "304 Not Modified"),
        ("GET", "205 Reset Content\r\nContent-Length: 0"),
    ] {
        let upstream = Upstream::start();
        let world = upstream.world();
        *upstream.first.lock().unwrap() = format!("HTTP/1.1 {answer}\r\n\r\n");
        let mut caller = Caller::connect(&world.daemon);

        for _ in 0..3 {
            caller.send_head(&format!("{method} /first"), "");
            assert!(answer.starts_with(&caller.answer(method).status.to_string()), "{method}, {answer}");
        }

        assert_eq!(upstream.connections.load(Ordering::SeqCst), 1, "{method}, {answer}");
    }
}

/// It may be an answer to the request before; whatever the upstream says next is then one behind.
#[test]
fn behind_an_answer_that_began_before_its_request_was_sent_a_connection_is_not_used_again() {
    let upstream = Upstream::start();
    let world = upstream.world();
    *upstream.first.lock().unwrap() = GOOD.to_owned();

    let mut caller = Caller::connect(&world.daemon);
    caller.send_head("PUT /first", "Transfer-Encoding: chunked\r\n");
    caller.send_chunk(&[b'x'; 100]);
    let early = caller.head();
    assert_eq!((early.status, caller.exactly(4)), (200, b"good".to_vec()));
    caller.send(b"0\r\n\r\n");
    assert!(caller.ends_within(PATIENCE), "the upload has come to its end, and nothing is read behind it");

    let mut caller = Caller::connect(&world.daemon);
    caller.send_head("PUT /next", "Content-Length: 100000\r\n");
    caller.send_if_open(&[b'x'; 100_000]);
    let next = caller.answer("PUT");
    assert_eq!((next.status, next.text().as_str()), (200, "good"));
    assert_eq!(upstream.connections.load(Ordering::SeqCst), 2);
}

#[test]
fn an_interim_answer_that_comes_before_its_request_was_sent_costs_no_connection() {
    let upstream = Upstream::start();
    let world = upstream.world();
    *upstream.first.lock().unwrap() = GOOD.to_owned();
    let mut caller = Caller::connect(&world.daemon);

    for number in 1..4 {
        caller.send_head("POST /first", "Transfer-Encoding: chunked\r\n");
        caller.send_chunk(b"body");
        eventually("it goes on", || (upstream.continued.load(Ordering::SeqCst) == number).then_some(()));
        caller.send(b"0\r\n\r\n");
        assert_eq!(caller.answer("POST").text(), "good");
    }

    assert_eq!(upstream.connections.load(Ordering::SeqCst), 1);
}

/// A server that closes at the same moment would cost a POST its answer.
#[test]
fn a_connection_is_left_a_second_before_its_upstream_may_close_it() {
    for (said, connections) in [
        ("Keep-Alive: timeout=1", 3),
        ("Keep-Alive: max=9, Timeout = \"1\"", 3),
        ("Keep-Alive: timeout=0", 3),
        ("Keep-Alive: timeout=60", 1),
        ("Keep-Alive: max=9", 1),
        ("Keep-Alive: timeout=soon", 1),
    ] {
        let upstream = Upstream::start();
        let world = upstream.world();
        *upstream.first.lock().unwrap() = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{said}\r\n\r\n");
        let mut caller = Caller::connect(&world.daemon);

        for _ in 0..3 {
            assert_eq!(caller.post("/first", b"").status, 200, "{said}");
        }

        assert_eq!(upstream.connections.load(Ordering::SeqCst), connections, "{said}");
    }
}
