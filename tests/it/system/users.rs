//! Callers that are another user, and sockets of a service manager.

use std::process::Command;

use crate::forwarding::assert_problem;
use crate::forwarding::users::{Door, mode, world};
use crate::support::{Answer, World};

const NOBODY: u32 = 65534;

#[test]
fn another_user_is_refused_on_loopback_and_on_a_unix_socket() {
    let door = Door::new();
    // A list of users opens the socket's mode: the kernel's word has to refuse.
    let users = if is_root() { "\"self\", 64999" } else { "65534" };
    let world = world(&door, users);
    assert_eq!(mode(&door.socket()), 0o666);

    for answer in stranger_asks(&world, &door) {
        assert_problem(&answer, "forbidden-user", 403, "http_request_denied");
        assert!(answer.text().contains("callers.users"), "{answer:?}");
    }

    assert_eq!(world.standin.api_requests().len(), 0);
}

#[test]
fn another_user_that_is_listed_is_admitted() {
    let own = rustix::process::geteuid().as_raw();
    let listed = if is_root() { NOBODY } else { own };
    for users in ["\"*\"".to_owned(), listed.to_string(), format!("\"{listed}\"")] {
        let door = Door::new();
        let world = world(&door, &users);
        assert_eq!(mode(&door.socket()), 0o666);
        for answer in stranger_asks(&world, &door) {
            assert_problem(&answer, "login-required", 503, "proxy_internal_response");
        }
    }
}

/// Hands the listener that it makes at `$2` to the program, which does not get to remove what is the manager's.
const GIVEN: &str = r#"
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[2])
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], [sys.argv[1], "--config", sys.argv[3]])
"#;

#[test]
fn a_socket_of_the_service_manager_stays() {
    let door = Door::new();
    let mut world = World::start();
    world.daemon.stop();
    let mut command = Command::new("python3");
    command.args(["-c", GIVEN, crate::support::PROGRAM]).args([door.socket(), world.home.config()]);

    world.daemon = crate::support::Daemon::spawn(command);

    assert_eq!(world.daemon.authority, format!("unix:{}", door.socket().display()));
    assert_eq!(world.daemon.stop().code(), Some(0));
    assert!(door.socket().exists());
}

/// A GET by somebody else, over TCP and over the socket.
fn stranger_asks(world: &World, door: &Door) -> [Answer; 2] {
    let url = format!("http://{}/echo", world.daemon.authority);
    let socket = door.socket();
    let ways: [&[&str]; 2] = [&[], &["--unix-socket", socket.to_str().unwrap()]];
    ways.map(|way| {
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--clear-groups", "curl"]);
            command
        } else {
            Command::new("curl")
        };
        command.args([
            "--silent",
            "--show-error",
            "--include",
            "--raw",
            "--noproxy",
            "*",
            "--max-time",
            "30",
        ]);
        let output = command.args(way).arg(&url).output().expect("curl can be run");
        let answer = Answer::parse(&output.stdout, "GET");
        answer.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)))
    })
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
