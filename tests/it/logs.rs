//! The line that each request leaves in the log at debug, and what connects it with the lines of others; failures that
//! come again and again; readers that do not read.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, PipeWriter, Read, Write, pipe};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, Signal, getuid, kill_process};
use serde_json::Value;

use crate::standin::Scripted;
use crate::support::{Daemon, Setup, World, eventually};

const KEY: &str = "a-key-of-a-caller";
/// A pipe holds some 300 lines, and the queue 2048.
const MORE_THAN_WAITS: usize = 3500;
/// Of refreshes, requests and what still waits for its reader.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn a_request_leaves_one_line_that_reads_alone() {
    let world = logging("debug", "");

    let answer =
        world.daemon.request("POST", "/echo/x?raw&q=c4n4ry", &[("X-Request-Id", "id-1.a_B")], b"c4n4ry");

    let line = line_of(&world.daemon, "/echo/x");
    assert_eq!(line["message"], "answered");
    assert_eq!((&line["method"], &line["status"]), (&"POST".into(), &answer.status.into()));
    assert_eq!(line["bytes"], answer.body.len());
    assert_eq!(line["caller"], format!("uid {}", getuid().as_raw()));
    assert_eq!((&line["route"], &line["request_id"]), (&"/".into(), &"id-1.a_B".into()));
    assert!(
        line["upstream_ms"].as_u64() <= line["took_ms"].as_u64() && line["upstream_ms"].is_u64(),
        "{line}"
    );
    assert_eq!((&line["level"], line.get("key")), (&"DEBUG".into(), None));
    assert!(line["timestamp"].is_string() && line["target"].is_string(), "{line}");
    assert!(!world.daemon.output().contains("c4n4ry"), "{}", world.daemon.output());
}

#[test]
fn the_line_names_the_key_and_tells_what_was_refused_or_is_our_own() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("key");
    std::fs::write(&file, KEY).unwrap();
    let key =
        format!("[[callers.key]]\nname = \"reader\"\nfile = \"{}\"\nmethods = [\"GET\"]", file.display());
    let world = logging_without_login(&key);
    let authorization = format!("Bearer {KEY}");
    let with_key = [("Authorization", authorization.as_str())];
    for (method, target, fields, status, key) in [
        ("GET", "/echo/mine", &with_key[..], 503, Some("reader")),
        ("PUT", "/echo/limited", &with_key, 403, Some("reader")),
        ("GET", "/echo/nobody", &[], 401, None),
        ("GET", "/-/status", &with_key, 200, Some("reader")),
    ] {
        let answer = world.daemon.request(method, target, fields, b"");

        let line = eventually("it is logged", || {
            let mut lines = lines_of(&world.daemon, target);
            lines.retain(|line| line["level"] == "DEBUG");
            lines.pop()
        });
        assert_eq!((answer.status, &line["status"]), (status, &status.into()), "{line}");
        assert_eq!(line.get("key").and_then(Value::as_str), key, "{line}");
        assert_eq!(
            (line["bytes"].as_u64(), line.get("upstream_ms")),
            (Some(answer.body.len() as u64), None),
            "{line}"
        );
    }
    assert!(!world.daemon.output().contains(KEY), "{}", world.daemon.output());
}

#[test]
fn an_answer_that_does_not_reach_its_end_is_said_to_have_broken_off() {
    let world = logging("debug", "");
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
    world.standin.on_api(move |_| Some(Scripted::raw_then_close(format!("{head}begun"))));

    let mut stream = world.daemon.connect();
    let request =
        format!("GET /echo/half HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", world.daemon.authority);
    stream.write_all(request.as_bytes()).unwrap();
    let _broken = stream.read_to_end(&mut Vec::new());

    let line = line_of(&world.daemon, "/echo/half");
    assert_eq!((&line["message"], &line["bytes"]), (&"the answer broke off".into(), &5.into()), "{line}");
}

#[test]
fn ids_pass_both_ways_untouched_and_none_is_made() {
    let world = logging("debug", "");
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let fields = [("X-Request-Id", "from the caller: 1"), ("traceparent", trace), ("tracestate", "a=b")];
    let head = "HTTP/1.1 200 OK\r\nX-Request-Id: from-the-api\r\nTraceparent: t\r\nContent-Length: 0\r\n\r\n";
    world.standin.on_api(move |_| Some(Scripted::raw(head)));

    let with = world.daemon.request("GET", "/echo/with", &fields, b"");
    let _without = world.daemon.get("/echo/without");

    let requests = world.standin.api_requests();
    let [up, bare] = &requests[requests.len() - 2..] else { panic!("{requests:?}") };
    for (name, value) in fields {
        assert_eq!(up.field(name).as_deref(), Some(value), "{name}");
        assert_eq!(bare.field(name), None, "{name}");
    }
    assert_eq!((with.field("x-request-id"), with.field("traceparent")), (Some("from-the-api"), Some("t")));
    for path in ["/echo/with", "/echo/without"] {
        assert_eq!(line_of(&world.daemon, path)["request_id"], "from-the-api", "what is no id is not logged");
    }
    assert!(!world.daemon.output().contains("from the caller"), "{}", world.daemon.output());
}

#[test]
fn requests_leave_no_line_unless_debug_is_asked_for() {
    let world = logging("info", "");

    assert_eq!(world.daemon.get("/echo/quiet").status, 200);
    world.daemon.signal(Signal::HUP);
    eventually("a later line is logged", || world.daemon.output().contains("took over").then_some(()));

    assert!(!world.daemon.output().contains("/echo/quiet"), "{}", world.daemon.output());
}

/// What is known of each unsafe request with a key, at info: whether the upstream has done what it asks for.
#[test]
fn who_changed_what_with_which_key_is_a_line_each() {
    let directory = tempfile::TempDir::new().unwrap();
    let keys = [("writer", ""), ("reader", "methods = [\"GET\"]")];
    let world = with_keys(logging("info", ""), &directory, &keys);
    let [writer, reader] = ["writer", "reader"].map(|name| format!("Bearer {KEY}-{name}"));
    for (at, (status, carried_out)) in
        [(200, "yes"), (303, "yes"), (307, "no"), (404, "no"), (500, "unknown"), (503, "unknown")]
            .into_iter()
            .enumerate()
    {
        world.standin.on_api(move |_| {
            Some(Scripted::raw(format!("HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n\r\n")))
        });
        let target = format!("/echo/{at}");
        let answer =
            world.daemon.request("POST", &format!("{target}?q=c4n4ry"), &[("Authorization", &writer)], b"x");
        assert_eq!(answer.status, status);
        let line = line_of(&world.daemon, &target);
        let told = [&line["level"], &line["key"], &line["method"], &line["carried_out"]];
        assert_eq!(told, ["INFO", "writer", "POST", carried_out], "{line}");
        assert_eq!(line["status"], status);
    }

    world.standin.on_api(|_| Some(Scripted::raw_then_close("")));
    world.daemon.request("POST", "/echo/dropped", &[("Authorization", &writer)], b"x");
    world.daemon.request("PUT", "/echo/refused", &[("Authorization", &reader)], b"");
    world.daemon.request("POST", "/-/refresh/main", &[("Authorization", &reader)], b"");
    world.daemon.request("POST", "/-/refresh/main", &[("Authorization", &writer)], b"");
    for (path, carried_out) in [("/echo/dropped", "unknown"), ("/echo/refused", "no")] {
        assert_eq!(line_of(&world.daemon, path)["carried_out"], carried_out, "{path}");
    }
    let own = eventually("both are logged", || {
        let lines = lines_of(&world.daemon, "/-/refresh/main");
        (lines.len() == 2).then_some(lines)
    });
    let told: Vec<_> = own.iter().map(|line| (&line["key"], &line["carried_out"])).collect();
    assert_eq!(told, [(&"reader".into(), &"no".into()), (&"writer".into(), &"yes".into())]);
    assert!(!world.daemon.output().contains("c4n4ry"), "{}", world.daemon.output());
}

#[test]
fn a_request_that_was_never_sent_is_not_carried_out_and_a_safe_one_leaves_no_line() {
    let directory = tempfile::TempDir::new().unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let route = format!("[[route]]\nprefix = \"/gone\"\nupstream = \"http://{closed}\"\n");
    let world = with_keys(logging("info", &route), &directory, &[("writer", "")]);
    let writer = format!("Bearer {KEY}-writer");

    world.daemon.request("GET", "/gone/read", &[("Authorization", &writer)], b"");
    world.daemon.request("DELETE", "/gone/write", &[("Authorization", &writer)], b"");

    let line = line_of(&world.daemon, "/gone/write");
    assert_eq!((&line["carried_out"], &line["status"]), (&"no".into(), &502.into()), "{line}");
    assert!(lines_of(&world.daemon, "/gone/read").is_empty());
}

/// The same world, with caller keys of these names and limits.
fn with_keys(mut world: World, directory: &tempfile::TempDir, keys: &[(&str, &str)]) -> World {
    let mut config = std::fs::read_to_string(world.home.config()).unwrap();
    for (name, limits) in keys {
        let file = directory.path().join(name);
        std::fs::write(&file, format!("{KEY}-{name}")).unwrap();
        let file = file.display();
        config.push_str(&format!("\n[[callers.key]]\nname = \"{name}\"\nfile = \"{file}\"\n{limits}\n"));
    }
    std::fs::write(world.home.config(), config).unwrap();
    world.restart();
    world
}

#[test]
fn the_same_failure_is_said_once_and_then_counted() {
    let dead =
        |prefix: &str| format!("[[route]]\nprefix = \"/{prefix}\"\nupstream = \"http://127.0.0.1:1\"\n");
    let mut world = logging("info", &format!("{}{}", dead("dead"), dead("gone")));

    for _ in 0..100 {
        assert_eq!(world.daemon.get("/dead/x").problem(), "upstream-unreachable");
    }
    assert_eq!(world.daemon.get("/gone/x").problem(), "upstream-unreachable");
    assert_eq!(world.daemon.stop().code(), Some(0));

    let failures = eventually("the last line has come", || {
        let failures: Vec<_> = lines(&world.daemon)
            .filter_map(|line| line["message"].as_str().map(str::to_owned))
            .filter(|message| message.starts_with("the upstream gave no answer"))
            .collect();
        failures.last()?.contains("more").then_some(failures)
    });
    let count_of = |line: &String| line.rsplit_once(" more in the last")?.0.rsplit_once('(')?.1.parse().ok();
    let counts: Vec<u32> = failures.iter().filter_map(count_of).collect();
    assert_eq!(counts.iter().sum::<u32>(), 99, "{failures:?}");
    assert_eq!(failures.len() - counts.len(), 2, "each route's first is a line of its own: {failures:?}");
    assert!(counts.len() <= 9, "every 10 s: {failures:?}");
}

#[test]
fn a_reader_that_stops_reading_stops_nothing_and_is_told_what_it_missed() {
    let mut world = logging("debug", "");
    world.daemon.kill();
    let (daemon, stderr) = Daemon::spawn_unread(world.home.command(&["serve"]));
    world.daemon = daemon;
    world.daemon.await_listening();

    let mut stream = world.daemon.connect();
    for number in 0..MORE_THAN_WAITS {
        ask(&mut stream, number);
    }
    assert_eq!(world.daemon.get("/echo/x").status, 200);
    let health = world.home.run(&["health"], "");
    assert!(health.status.success(), "{health:?}");

    world.daemon.read(stderr);
    let lost = eventually("what was lost is said", || {
        let said = lines(&world.daemon).filter_map(|line| Some(line["message"].as_str()?.to_owned()));
        let mut counts = said.filter_map(|said| said.split_once(" lines were lost")?.0.parse::<usize>().ok());
        counts.next()
    });
    assert_eq!(world.daemon.get("/echo/later").status, 200);
    line_of(&world.daemon, "/echo/later");
    let read: HashSet<usize> = lines(&world.daemon)
        .filter_map(|line| line["request_id"].as_str()?.strip_prefix('n')?.parse().ok())
        .collect();
    let missed = (0..MORE_THAN_WAITS).filter(|number| !read.contains(number)).count();
    assert!(missed > 0 && (missed..missed + 20).contains(&lost), "{missed} were missed, {lost} lost");
    assert_eq!(world.daemon.stop().code(), Some(0));
}

#[test]
fn nobody_reads_from_the_beginning_to_the_end() {
    let mut world = Setup::default().logged_in();
    world.daemon.kill();
    let (_reader, writer) = full_pipe();
    let start = || {
        let mut command = world.home.command(&["serve", "--log", "trace"]);
        let (stdout, stderr) = (writer.try_clone().unwrap(), writer.try_clone().unwrap());
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        Started(command.spawn().unwrap())
    };

    let mut daemon = start();
    eventually("it serves", || world.home.run(&["health"], "").status.success().then_some(()));
    let began = Instant::now();
    let mut second = start();
    let ended = eventually("the second one sees the first", || second.0.try_wait().unwrap());
    assert_eq!(ended.code(), Some(1));
    kill_process(Pid::from_child(&daemon.0), Signal::TERM).unwrap();
    let ended = eventually("it ends", || daemon.0.try_wait().unwrap());

    assert_eq!(ended.code(), Some(0));
    assert!(began.elapsed() < ENDS_WITHIN, "after {:?}", began.elapsed());
}

#[test]
fn a_pipe_that_does_not_wait_loses_nothing() {
    let mut world = logging("debug", "");
    world.daemon.kill();
    let (mut reader, writer) = pipe().unwrap();
    ioctl_fionbio(&writer, true).unwrap();
    let mut command = world.home.command(&["serve"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(writer);
    let mut daemon = Started(command.spawn().unwrap());
    drop(command);
    let mut listening = String::new();
    BufReader::new(daemon.0.stdout.as_mut().unwrap()).read_line(&mut listening).unwrap();
    let mut stream =
        TcpStream::connect(listening.trim().strip_prefix("listening on http://").unwrap()).unwrap();

    for number in 0..1000 {
        ask(&mut stream, number);
    }
    let reading = std::thread::spawn(move || {
        let mut said = String::new();
        reader.read_to_string(&mut said).map(|_| said)
    });
    ask(&mut stream, 1000);
    kill_process(Pid::from_child(&daemon.0), Signal::TERM).unwrap();
    let said = reading.join().unwrap().unwrap();

    assert_eq!(daemon.0.wait().unwrap().code(), Some(0));
    let missed: Vec<_> = (0..=1000).filter(|number| !said.contains(&format!("\"n{number}\""))).collect();
    assert!(missed.is_empty(), "{missed:?}");
}

/// A program that does not outlive its test.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _waited = self.0.wait();
    }
}

/// Both ends of a pipe that takes nothing more, and whose writers wait.
fn full_pipe() -> (impl Read, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    ioctl_fionbio(&writer, true).unwrap();
    while writer.write_all(&[b'x'; 512]).is_ok() {}
    while writer.write_all(b"x").is_ok() {}
    ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

/// A request that leaves a line with its number, and its answer.
fn ask(stream: &mut TcpStream, number: usize) {
    let head = format!("GET /-/healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: n{number}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(b"}") {
        let read = stream.read(&mut piece).unwrap();
        assert_ne!(read, 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..read]);
    }
}

fn lines(daemon: &Daemon) -> impl Iterator<Item = Value> + use<> {
    let lines: Vec<_> = daemon.output().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    lines.into_iter()
}

/// A world where Alice is logged in, whose log is JSON.
fn logging(level: &str, tables: &str) -> World {
    let top = format!("log = \"{level}\"\nlog_format = \"json\"");
    Setup { top, tables: tables.to_owned(), ..Setup::default() }.logged_in()
}

fn logging_without_login(tables: &str) -> World {
    let top = "log = \"debug\"\nlog_format = \"json\"".to_owned();
    Setup { top, tables: tables.to_owned(), ..Setup::default() }.start()
}

/// The one line about a path.
#[track_caller]
fn line_of(daemon: &Daemon, path: &str) -> Value {
    let lines = eventually(&format!("{path} is logged"), || {
        Some(lines_of(daemon, path)).filter(|lines| !lines.is_empty())
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines[0].clone()
}

/// The lines of the requests for a path.
fn lines_of(daemon: &Daemon, path: &str) -> Vec<Value> {
    lines(daemon).filter(|line| line["path"] == path).collect()
}
