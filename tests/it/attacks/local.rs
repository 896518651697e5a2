//! The local adversary: `tests/cases/local-cases.json`, as far as it takes raw connections, other users and files.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use super::line::latin1;
use crate::standin::{Options, TlsDefect};
use crate::support::{Daemon, Home, Setup, World};

/// `nobody`.
pub(crate) const STRANGER: u32 = 65534;
const SLOW: usize = 1000;
const CLEAN: usize = 100;

/// lim-006
#[test]
fn slow_heads_are_cut_off_in_time_and_hold_nobody_up() {
    let world =
        Setup { tables: "[limits]\nheader_timeout = \"2s\"\n".to_owned(), ..Setup::default() }.logged_in();
    let started = Instant::now();
    let mut slow: Vec<_> = (0..SLOW).map(|_| world.daemon.connect()).collect();
    for stream in &mut slow {
        stream.set_nonblocking(true).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
    }
    let trickle = std::thread::spawn(move || cut_off(slow, started));

    // A machine that is busy with something else gets a second chance to be quick.
    let worst = clean_p99(&world.daemon).min(clean_p99(&world.daemon));
    let cut_off = trickle.join().unwrap();

    assert!(worst < Duration::from_millis(100), "the slowest but one of {CLEAN} took {worst:?}");
    assert_eq!(cut_off.len(), SLOW);
    let (first, last) = (cut_off[0], cut_off[SLOW - 1]);
    assert!(first >= Duration::from_secs(2), "cut off after {first:?}");
    assert!(last < Duration::from_secs(6), "cut off after {last:?}");
    assert_eq!(world.standin.api_requests().iter().filter(|request| request.target == "/").count(), 0);
}

/// Sends a byte every 250 ms on each until all are closed; returns when each was.
fn cut_off(mut slow: Vec<std::net::TcpStream>, started: Instant) -> Vec<Duration> {
    let mut cut_off = Vec::new();
    while !slow.is_empty() && started.elapsed() < Duration::from_secs(30) {
        slow.retain_mut(|stream| {
            let mut answer = [0; 4096];
            let is_open = match stream.read(&mut answer) {
                Ok(read) => read > 0,
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            };
            let is_open = is_open && stream.write_all(b"a").is_ok();
            if !is_open {
                cut_off.push(started.elapsed());
            }
            is_open
        });
        std::thread::sleep(Duration::from_millis(250));
    }
    cut_off
}

fn clean_p99(daemon: &Daemon) -> Duration {
    let mut times: Vec<Duration> = (0..CLEAN)
        .map(|_| {
            let started = Instant::now();
            let answer = daemon.get("/status/200");
            assert_eq!(answer.status, 200, "{answer:?}");
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[CLEAN - 2]
}

/// loc-003
#[test]
fn what_stands_at_the_sockets_path_is_left_alone_unless_it_is_a_dead_socket() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("file"), "kept").unwrap();
    symlink(at("file"), at("link")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    let live = UnixListener::bind(at("live")).unwrap();
    symlink(at("live"), at("link-to-live")).unwrap();
    drop(UnixListener::bind(at("dead")).unwrap());
    symlink(at("dead"), at("link-to-dead")).unwrap();
    fs::create_dir(at("open")).unwrap();
    fs::set_permissions(at("open"), Permissions::from_mode(0o777)).unwrap();
    fs::create_dir(at("foreign")).unwrap();
    let mut refused =
        vec!["file", "link", "dangling", "live", "link-to-live", "link-to-dead", "open/proxy.sock"];
    if is_root() {
        std::os::unix::fs::chown(at("foreign"), Some(STRANGER), None).unwrap();
        refused.push("foreign/proxy.sock");
    }
    let before = listing(directory.path());

    for name in refused {
        let (code, said) = serve_on(&at(name));
        assert_eq!(code, Some(1), "{name}: {said}");
        assert_eq!(listing(directory.path()), before, "{name}: {said}");
    }
    assert_eq!(fs::read(at("file")).unwrap(), b"kept");
    live.set_nonblocking(true).unwrap();

    let home = Home::new(Vec::new());
    fs::write(home.config(), minimal(&home, &format!("unix:{}", at("dead").display()))).unwrap();
    let daemon = home.serve();
    assert!(daemon.output().contains("listening on"), "{}", daemon.output());
}

/// loc-006
#[test]
fn the_command_line_and_the_environment_hold_no_secret() {
    let world = World::logged_in();
    assert_eq!(world.daemon.get("/status/200").status, 200);
    let mut secrets = world.standin.issued_secrets();
    secrets.push(world.standin.options().client_secret.clone());
    assert!(secrets.len() > 3, "a login brings several secrets");

    for file in ["cmdline", "environ"] {
        // Refusing to be read is an answer as well.
        let text = latin1(&fs::read(format!("/proc/{}/{file}", world.daemon.pid())).unwrap_or_default());
        assert!(file != "cmdline" || text.contains("serve"), "the command line was read: {text:?}");
        let told = secrets.iter().filter(|secret| text.contains(secret.as_str())).count();
        assert_eq!(told, 0, "{file} tells {told} secrets");
    }
}

/// loc-009
#[test]
fn an_upstream_that_is_not_the_api_gets_no_byte_of_a_request() {
    for defect in [TlsDefect::UnknownAuthority, TlsDefect::WrongName, TlsDefect::Expired] {
        let options = Options { tls: true, api_tls_defect: Some(defect), ..Options::default() };
        let world = Setup { options, ..Setup::default() }.logged_in();

        let answer = world.daemon.get("/api/blogposts");

        assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-untrusted"), "{defect:?}");
        assert_eq!(
            world.standin.api_connection_count(),
            0,
            "{defect:?}: no connection came as far as a byte"
        );
        assert_eq!(world.standin.api_requests().len(), 0, "{defect:?}");
    }
}

/// loc-013
#[test]
fn a_port_is_shared_with_nobody() {
    let squatter = shared_socket();
    squatter.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    squatter.listen(1).unwrap();
    let taken = squatter.local_addr().unwrap().as_socket().unwrap();

    let home = Home::new(Vec::new());
    fs::write(home.config(), minimal(&home, &taken.to_string())).unwrap();
    let started = Instant::now();
    let (code, said) = ended(home.command(&["serve"]));
    assert_eq!(code, Some(1), "{said}");
    assert!(started.elapsed() < Duration::from_secs(5), "it took {:?}: {said}", started.elapsed());

    let world = World::start();
    let port = world.daemon.authority.parse::<std::net::SocketAddr>().unwrap();
    for address in [port, std::net::SocketAddr::from(([0, 0, 0, 0], port.port()))] {
        let late = shared_socket();
        let bound = late.bind(&address.into()).and_then(|()| late.listen(1));
        assert_eq!(bound.map_err(|error| error.kind()), Err(io::ErrorKind::AddrInUse), "{address}");
        assert!(TcpListener::bind(address).is_err(), "{address}");
    }
}

fn shared_socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The smallest configuration: a daemon that listens there and that nobody is logged in to.
fn minimal(home: &Home, listen: &str) -> String {
    let secret = home.secret("client_secret", "a-secret");
    format!(
        "listen = [\"{listen}\"]\nstate_dir = \"{}\"\n\n[account.main]\nclient_id = \"a\"\nclient_secret_file = \"{}\"\n",
        home.state().display(),
        secret.display(),
    )
}

/// What the daemon says when it is to listen on that path.
fn serve_on(path: &Path) -> (Option<i32>, String) {
    let home = Home::new(Vec::new());
    fs::write(home.config(), minimal(&home, &format!("unix:{}", path.display()))).unwrap();
    ended(home.command(&["serve"]))
}

/// The exit code of a program that has to end by itself, and what it said.
fn ended(mut command: Command) -> (Option<i32>, String) {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// Names, kinds and inodes below a directory.
fn listing(directory: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let found = fs::symlink_metadata(entry.path()).unwrap();
        names.push(format!("{} {:?} {}", entry.path().display(), found.file_type(), found.ino()));
        if found.is_dir() {
            names.extend(listing(&entry.path()));
        }
    }
    names.sort();
    names
}
