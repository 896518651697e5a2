//! Another user of the machine attacks.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::attacks::local::{STRANGER, is_root};
use crate::attacks::stage::resident_kib;
use crate::standin::Person;
use crate::support::{Answer, Setup, World};

const PIPELINED: usize = 10_000;

/// loc-001
#[test]
fn another_user_is_refused_over_tcp() {
    let world = Setup { tables: not_ours(), ..Setup::default() }.start();
    log_in(&world);
    world.standin.clear_api_requests();

    let output = stranger(&["-sS", "-i", &format!("http://{}/api/blogposts", world.daemon.authority)]);

    let answer = Answer::parse(&output.stdout, "GET").unwrap_or_else(|| panic!("no answer: {output:?}"));
    assert_eq!((answer.status, answer.problem().as_str()), (403, "forbidden-user"));
    assert_eq!(world.standin.api_requests().len(), 0);
}

/// loc-002
#[test]
fn another_user_is_refused_over_the_socket_even_when_its_mode_lets_in() {
    let (directory, socket, world) = world_with_socket(&not_ours());
    log_in(&world);
    world.standin.clear_api_requests();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let path = socket.display().to_string();
    let ask = || stranger(&["-sS", "-i", "--unix-socket", &path, "http://x/api/blogposts"]);

    if is_root() {
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        let output = ask();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(7), 0), "{output:?}");
    }
    fs::set_permissions(&socket, Permissions::from_mode(0o777)).unwrap();
    let output = ask();

    let answer = Answer::parse(&output.stdout, "GET").unwrap_or_else(|| panic!("no answer: {output:?}"));
    assert_eq!((answer.status, answer.problem().as_str()), (403, "forbidden-user"));
    assert_eq!(world.standin.api_requests().len(), 0);
}

/// Who admits the stranger's opposite: root can become another user; anybody else admits another user only, and
/// is the stranger then.
fn not_ours() -> String {
    if is_root() { String::new() } else { format!("[callers]\nusers = [\"{STRANGER}\"]\n") }
}

/// curl as a user that the daemon does not know.
fn stranger(arguments: &[&str]) -> Output {
    let mut curl = Command::new("curl");
    curl.args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .current_dir("/");
    if is_root() {
        curl.uid(STRANGER).gid(STRANGER);
    }
    curl.output().expect("curl is installed")
}

fn world_with_socket(tables: &str) -> (TempDir, std::path::PathBuf, World) {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("proxy.sock");
    let top = format!("listen = [\"127.0.0.1:0\", \"unix:{}\"]\n", socket.display());
    let world = Setup { top, tables: tables.to_owned(), ..Setup::default() }.start();
    (directory, socket, world)
}

/// Logs in by the command, which needs no admission.
fn log_in(world: &World) {
    let mut child = world.home.command(&["login"]);
    let mut child =
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = io::BufReader::new(child.stdout.take().unwrap());
    let url = std::iter::from_fn(|| {
        let mut line = String::new();
        let read = io::BufRead::read_line(&mut said, &mut line).ok()?;
        (read > 0).then_some(line)
    });
    let url =
        url.map(|line| line.trim().to_owned()).find(|line| line.starts_with("http")).expect("an address");
    let callback = world.standin.authorize(&url, Person::Alice);
    child.stdin.take().unwrap().write_all(format!("{callback}\n").as_bytes()).unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{rest}");
}

/// lim-008
#[test]
fn a_caller_that_pipelines_and_never_reads_is_held_back_and_then_cut_off() {
    let world = World::logged_in();
    assert_eq!(world.daemon.get("/bytes/2048").status, 200);
    let before = resident_kib(world.daemon.pid());
    let request = format!("GET /bytes/2048 HTTP/1.1\r\nHost: {}\r\n\r\n", world.daemon.authority);
    let stream = world.daemon.connect();
    stream.set_nonblocking(true).unwrap();

    let started = Instant::now();
    let all = request.repeat(PIPELINED).into_bytes();
    let (mut written, mut most, mut is_open) = (0, before, true);
    while is_open && started.elapsed() < Duration::from_secs(90) {
        is_open = match (&stream).write(all.get(written..).filter(|rest| !rest.is_empty()).unwrap_or(b"G")) {
            Ok(count) => {
                written += count;
                true
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        most = most.max(resident_kib(world.daemon.pid()));
        std::thread::sleep(Duration::from_millis(20));
    }
    let closed_after = started.elapsed();

    let asked = world.standin.api_requests().len();
    assert!(asked < PIPELINED, "all {PIPELINED} went up though nobody read: {asked}");
    assert!(most - before < 16 * 1024, "the daemon grew by {} KiB", most - before);
    assert!(closed_after < Duration::from_secs(75), "closed after {closed_after:?}");
    assert_eq!(world.daemon.get("/bytes/2048").status, 200);
}
