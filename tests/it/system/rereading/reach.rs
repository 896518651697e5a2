//! Whoever other machines can reach asks for a key, whatever is read into the configuration later: with addresses that
//! are bound here, and with those that the service manager gave.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use crate::rereading::whole::hang_up;
use crate::standin::{Options, Standin};
use crate::support::{Answer, Daemon, Home, PATIENCE, PROGRAM, World, config, eventually};
use crate::system::network::space::{NEAR, Net, in_a_net};

const KEY: &str = "key-of-a-caller";
/// Gives a listener to the program, as a service manager does (`sd_listen_fds(3)`); the one at `::` takes IPv4 as well.
const GIVEN: &str = r#"
import os, socket, sys
address, program = sys.argv[1], sys.argv[2:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
listener = socket.create_server((address, 0), family=family, dualstack_ipv6=address == "::")
if listener.fileno() != 3: os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp(program[0], program)
"#;

/// A daemon that listens where the file says, or at an address that it is given, and has a token.
fn world(listen: &str, given: Option<&str>) -> World {
    let standin = Standin::start(Options::default());
    let home = Home::new(Vec::new());
    let key = home.secret("key", KEY).display().to_string();
    let (top, account) = (format!("listen = [\"{listen}\"]"), "grant = \"client_credentials\"");
    let callers = "[callers]\nallow_remote = true\nhosts = [\"proxy.example\"]\n";
    let keys = format!("[[callers.key]]\nname = \"k\"\nfile = \"{key}\"\n");
    fs::write(home.config(), config(&standin, &home, &top, account, "", &format!("{callers}{keys}")))
        .unwrap();
    let daemon = match given {
        None => home.serve(),
        Some(address) => {
            let mut command = Command::new("python3");
            command.args(["-c", GIVEN, address, PROGRAM, "--config"]).arg(home.config());
            Daemon::spawn(command)
        }
    };
    let world = World { daemon, standin, home };
    eventually("there is a token", || (ask(&world, "127.0.0.1", "/echo/x", KEY) == 200).then_some(()));
    let health = world.home.run(&["health"], "");
    assert!(health.status.success(), "{listen}, {given:?}: {health:?}");
    world
}

/// What a caller from this end of the net gets at an address; an empty key is none.
fn ask(world: &World, address: &str, target: &str, key: &str) -> u16 {
    let port = world.daemon.authority.rsplit(':').next().unwrap();
    let mut stream = TcpStream::connect(format!("{address}:{port}")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let presented = if key.is_empty() { String::new() } else { format!("Authorization: Bearer {key}\r\n") };
    let fields = format!("Host: proxy.example:{port}\r\n{presented}Connection: close");
    stream.write_all(format!("GET {target} HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes()).unwrap();
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).unwrap();
    Answer::parse(&raw, "GET").unwrap().status
}

#[track_caller]
fn assert_asks_for_a_key(net: &Net, world: &World, why: &str) {
    let ours = ["/echo/x", "/-/status", "/-/healthz"].map(|target| ask(world, "127.0.0.1", target, ""));
    net.far.enter();
    let near = NEAR.to_string();
    let theirs = ["/echo/x", "/-/status", "/-/healthz"].map(|target| ask(world, &near, target, ""));
    let with_a_key = ask(world, &near, "/echo/x", KEY);
    net.near.enter();
    assert_eq!((theirs, ours, with_a_key), ([401, 401, 200], [401, 401, 200], 200), "{why}");
}

/// Nobody could connect to it, and we would say that we accept.
#[test]
fn a_socket_that_nobody_listens_on_ends_the_daemon_at_once() {
    let standin = Standin::start(Options::default());
    let home = Home::new(Vec::new());
    fs::write(home.config(), config(&standin, &home, "", "grant = \"client_credentials\"", "", "")).unwrap();
    let bound = GIVEN.replace(
        "socket.create_server((address, 0), family=family, dualstack_ipv6=address == \"::\")",
        "socket.socket(); listener.bind((address, 0))",
    );
    assert_ne!(bound, GIVEN);
    let mut command = Command::new("python3");
    command.args(["-c", &bound, "127.0.0.1", PROGRAM, "--config"]).arg(home.config());

    let told = command.output().unwrap();

    let said = String::from_utf8_lossy(&told.stderr);
    assert_eq!((told.status.code(), told.stdout.len()), (Some(1), 0), "{said}");
    assert!(said.contains("is not listened on"), "{said}");
}

#[test]
fn no_reload_lets_anybody_in_without_a_key_where_other_machines_come_from() {
    in_a_net(|net| {
        for (listen, given) in
            [("0.0.0.0:0", None), ("127.0.0.1:0", Some("0.0.0.0")), ("127.0.0.1:0", Some("::"))]
        {
            let world = world(listen, given);
            let file = fs::read_to_string(world.home.config()).unwrap();
            let (without_keys, _) = file.split_once("[[callers.key]]").unwrap();
            let (without_callers, _) = file.split_once("[callers]").unwrap();
            let refusing = |file: &str| file.replace("allow_remote = true", "allow_remote = false");
            assert_asks_for_a_key(net, &world, "from the start");

            for text in [
                without_keys.to_owned(),
                without_keys.replace("0.0.0.0:0", "127.0.0.1:0"),
                without_callers.replace("0.0.0.0:0", "127.0.0.1:0"),
                refusing(&file),
                refusing(&file).replace("0.0.0.0:0", "127.0.0.1:0"),
                refusing(without_keys).replace("0.0.0.0:0", "127.0.0.1:0"),
            ] {
                fs::write(world.home.config(), &text).unwrap();

                let said = hang_up(&world);

                assert!(said.contains("not taken over"), "{said}");
                assert_asks_for_a_key(net, &world, &format!("{said} {text}"));
            }
            fs::write(world.home.config(), &file).unwrap();
            world.home.secret("key", "another-key-of-a-caller");
            assert!(hang_up(&world).contains("took over"));
            assert_eq!(ask(&world, "127.0.0.1", "/echo/x", KEY), 401);
            assert_eq!(ask(&world, "127.0.0.1", "/echo/x", "another-key-of-a-caller"), 200);
        }
    });
}
