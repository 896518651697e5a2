//! Who owns the other end, by the kernel's word; and the unix sockets that callers connect to.
//!
//! Root can become somebody else; whoever is not root is a stranger to a daemon that serves another user alone.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use tempfile::TempDir;

use super::assert_problem;
use crate::support::{Answer, PATIENCE, Setup, World, eventually};

#[test]
fn a_unix_socket_is_for_its_owner_alone_and_takes_any_valid_host() {
    let door = Door::new();
    let mut world = World::logged_in();
    listen_on(&world, &door.socket());
    world.restart();
    assert_eq!(mode(&door.socket()), 0o600);

    for host in ["localhost", "anything.example", "[::1]:1"] {
        let answer =
            ask(&door.socket(), &format!("GET /echo HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    for hosts in ["", "Host:\r\n", "Host: a/b\r\n", "Host: a\r\nHost: a\r\n"] {
        let answer = ask(&door.socket(), &format!("GET /echo HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n"));
        assert_problem(&answer, "bad-request", 400, "http_request_error");
    }
    let page = "GET /echo HTTP/1.1\r\nHost: a\r\nOrigin: https://evil.example\r\nConnection: close\r\n\r\n";
    assert_problem(&ask(&door.socket(), page), "forbidden-origin", 403, "http_request_denied");
}

#[test]
fn a_socket_that_nobody_listens_on_any_more_is_replaced() {
    let door = Door::new();
    drop(UnixListener::bind(door.socket()).unwrap());
    assert!(fs::symlink_metadata(door.socket()).unwrap().file_type().is_socket(), "a stale socket is left");

    let mut world = world(&door, "\"self\"");
    world.daemon.kill();
    world.daemon = world.home.serve();

    let answer = ask(&door.socket(), "GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_problem(&answer, "login-required", 503, "proxy_internal_response");
}

#[test]
fn the_socket_s_file_goes_with_the_daemon_that_made_it_and_no_other_file_does() {
    let door = Door::new();
    let mut world = world(&door, "\"self\"");
    assert_eq!(world.daemon.stop().code(), Some(0));
    assert!(!door.socket().exists());

    let replace: [fn(&Path) -> Option<UnixListener>; 2] = [
        |path| Some(UnixListener::bind(path).unwrap()),
        |path| {
            fs::write(path, "precious").unwrap();
            None
        },
    ];
    for place in replace {
        world.daemon = world.home.serve();
        fs::remove_file(door.socket()).unwrap();
        let _other = place(&door.socket());

        assert_eq!(world.daemon.stop().code(), Some(0));

        assert!(door.socket().exists(), "it is another one's");
        fs::remove_file(door.socket()).unwrap();
    }
}

/// A daemon that does not come up leaves nothing behind either.
#[test]
fn a_socket_that_was_made_before_the_start_failed_is_removed() {
    let door = Door::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut world = world(&door, "\"self\"");
    assert_eq!(world.daemon.stop().code(), Some(0));
    let config = fs::read_to_string(world.home.config()).unwrap();
    let listen =
        format!("listen = [\"unix:{}\", \"{}\"]", door.socket().display(), taken.local_addr().unwrap());
    let line = config.lines().find(|line| line.starts_with("listen")).unwrap();
    fs::write(world.home.config(), config.replace(line, &listen)).unwrap();

    assert_exits_1(&world);

    assert!(!door.socket().exists());
}

#[test]
fn what_is_no_stale_socket_is_left_alone() {
    let mut world = World::start();
    world.daemon.stop();
    let door = Door::new();
    listen_on(&world, &door.socket());

    fs::write(door.socket(), "precious").unwrap();
    assert_exits_1(&world);
    assert_eq!(fs::read_to_string(door.socket()).unwrap(), "precious");
    fs::remove_file(door.socket()).unwrap();

    let elsewhere = door.0.path().join("elsewhere");
    symlink(&elsewhere, door.socket()).unwrap();
    assert_exits_1(&world);
    assert_eq!(fs::read_link(door.socket()).unwrap(), elsewhere);
    assert!(!elsewhere.exists());
    fs::remove_file(door.socket()).unwrap();

    fs::create_dir(door.socket()).unwrap();
    assert_exits_1(&world);
    fs::remove_dir(door.socket()).unwrap();

    let live = UnixListener::bind(door.socket()).unwrap();
    live.set_nonblocking(true).unwrap();
    assert_exits_1(&world);
    while live.accept().is_ok() {}
    let _ours = UnixStream::connect(door.socket()).expect("it is still the other's socket");
    assert!(live.accept().is_ok());
}

#[test]
fn a_directory_where_others_could_replace_the_socket_is_refused() {
    let mut world = World::start();
    world.daemon.stop();
    let door = Door::new();
    listen_on(&world, &door.socket());
    fs::set_permissions(door.0.path(), fs::Permissions::from_mode(0o777)).unwrap();

    assert_exits_1(&world);

    assert!(!door.socket().exists());
}

/// A directory that everybody may enter.
pub(crate) struct Door(TempDir);

impl Door {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(directory)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.path().join("proxy.sock")
    }
}

/// A world without a login that listens on loopback and on the door's socket.
pub(crate) fn world(door: &Door, users: &str) -> World {
    Setup {
        top: format!("listen = [\"127.0.0.1:0\", \"unix:{}\"]", door.socket().display()),
        tables: format!("[callers]\nusers = [{users}]"),
        ..Setup::default()
    }
    .start()
}

/// Makes the next daemon listen on the socket, too.
fn listen_on(world: &World, socket: &Path) {
    let config = fs::read_to_string(world.home.config()).unwrap();
    let listen = format!("listen = [\"127.0.0.1:0\", \"unix:{}\"]", socket.display());
    let changed = config.replace("listen = [\"127.0.0.1:0\"]", &listen);
    assert_ne!(changed, config);
    fs::write(world.home.config(), changed).unwrap();
}

/// One request over a unix socket.
fn ask(socket: &Path, request: &str) -> Answer {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).unwrap();
    Answer::parse(&raw, "GET").expect("an answer")
}

/// Starts the daemon where it can't listen.
#[track_caller]
fn assert_exits_1(world: &World) {
    let mut command = world.home.command(&["serve"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut child = Ended(child);
    let status = eventually("the daemon gives up", || child.0.try_wait().unwrap());
    let mut text = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("error: "), "{text}");
}

/// A program that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _waited = self.0.wait();
    }
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}
