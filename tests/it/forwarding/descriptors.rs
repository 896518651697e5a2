//! Descriptors: as many connections as are allowed, and what happens when there are fewer.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::caller::Caller;
use super::resident_kib;
use crate::support::with_descriptors;
use crate::support::{Daemon, Home, Setup, World, eventually};

/// How many connections are idle at the same time; the default limit is 10000.
const IDLE: &str = "IDLE_CONNECTIONS";
const IDLE_BY_DEFAULT: usize = 2000;
/// An idle connection has its task and hyper's buffers, and nothing of a request.
const MOST_KIB_FOR_ONE: u64 = 24;

#[test]
fn thousands_of_idle_connections_take_little_and_are_all_served() {
    let count = std::env::var(IDLE).map_or(IDLE_BY_DEFAULT, |number| number.parse().unwrap());
    may_open(count as u64 + 500);
    let tables = format!("[limits]\nconnections = {count}\nidle_timeout = \"1h\"");
    let world = Setup { tables, ..Setup::default() }.logged_in();
    let before = resident_kib(&world.daemon);

    let mut callers: Vec<_> = (0..count).map(|_| Caller::connect(&world.daemon)).collect();
    for caller in &mut callers {
        assert_eq!(caller.get("/status/200").status, 200);
    }
    let grown = resident_kib(&world.daemon).saturating_sub(before);

    assert!(grown < count as u64 * MOST_KIB_FOR_ONE, "{grown} KiB more for {count} connections");
    for caller in callers.iter_mut().rev() {
        assert_eq!(caller.get("/status/200").status, 200);
    }
}

#[test]
fn the_daemon_takes_all_descriptors_it_may_have_and_says_when_they_are_few() {
    let world = World::start();
    let limits = |daemon: &Daemon| {
        let text = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };

    for (limit, connections, is_warned) in
        [((200, 3000), 2000, false), ((200, 1000), 2000, true), ((200, 1000), 900, false)]
    {
        let (_home, command) = limited(&world, limit, connections);
        let mut daemon = Daemon::spawn(command);

        let hard = limit.1.to_string();
        assert_eq!(limits(&daemon), [hard.clone(), hard]);
        daemon.stop();
        let output = daemon.output();
        assert_eq!(output.contains("limits.connections"), is_warned, "{limit:?}, {connections}: {output}");
    }
}

#[test]
fn with_few_descriptors_it_serves_or_says_why_not() {
    let world = World::start();
    let (mut served, mut failed) = (0, 0);
    for limit in (8..40).step_by(2) {
        let (home, command) = limited(&world, (limit, limit), 1);
        let output = home.path().join("output");
        let mut daemon = Started::new(command, &output);
        let said = || std::fs::read_to_string(&output).unwrap();
        let is_served = eventually("it serves or says why not", || {
            let said = said();
            let address = said.lines().find_map(|line| line.strip_prefix("listening on http://"));
            let ended = daemon.0.try_wait().unwrap().map(|status| status.code() == Some(1));
            match ended {
                Some(is_orderly) => {
                    assert!(is_orderly && said.contains("error: "), "{limit}: {said}");
                    Some(false)
                }
                None if said.contains("can't be accepted") => Some(false),
                None => address.and_then(|address| healthz(address).then_some(true)),
            }
        });
        assert!(!said().contains("panicked"), "{limit}: {}", said());
        *(if is_served { &mut served } else { &mut failed }) += 1;
    }
    assert!(served > 0 && failed > 0, "{served} served and {failed} failed");
}

/// A program that does not outlive its test.
struct Started(Child);

impl Started {
    fn new(mut command: Command, output: &Path) -> Self {
        let output = File::create(output).unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _waited = self.0.wait();
    }
}

/// A daemon that may have so many descriptors, on a state of its own.
fn limited(world: &World, (soft, hard): (usize, usize), connections: usize) -> (Home, Command) {
    let home = Home::new(Vec::new());
    let config = std::fs::read_to_string(world.home.config()).unwrap();
    let state = |home: &Home| home.state().display().to_string();
    let config = config.replace(&state(&world.home), &state(&home));
    std::fs::write(home.config(), format!("{config}\n[limits]\nconnections = {connections}\n")).unwrap();
    let command = with_descriptors(soft, hard, &home.command(&["serve"]));
    (home, command)
}

/// Makes sure that this process may open so many.
#[track_caller]
fn may_open(count: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    assert!(maximum.is_none_or(|most| most >= count), "this needs {count} descriptors: raise `ulimit -Hn`");
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// True when somebody answers there before long.
fn healthz(authority: &str) -> bool {
    let mut stream = TcpStream::connect(authority).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    stream.write_all(b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    let _read = stream.read_to_string(&mut answer);
    answer.starts_with("HTTP/1.1 200")
}
