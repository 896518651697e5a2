//! The local adversary by way of the network: a name that leads back to us, a container beside us.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::{Answer, Home, Setup, World, eventually};

/// A machine that is busy with something else is slower than the second that is promised.
const AT_ONCE: Duration = Duration::from_secs(5);
const KEY: &str = "a-key-of-a-caller-0123456789abcdef";

/// loc-010
#[test]
fn an_upstream_at_our_own_address_is_a_loop_that_is_not_entered() {
    for (listen, name) in [("127.0.0.1", "localhost"), ("0.0.0.0", "127.0.0.2")] {
        let (_key, mut world) = with_key(listen);
        lead_back(&mut world, listen, name);

        for scheme in ["http", "https"] {
            let started = Instant::now();
            let answer = ask(&world, &format!("/{scheme}/x"));

            assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-unreachable"));
            let proxy_status = answer.field("proxy-status");
            assert_eq!(proxy_status, Some("cnblogs-proxy; error=proxy_loop_detected"), "{answer:?}");
            assert!(started.elapsed() < AT_ONCE, "{listen}: {:?}", started.elapsed());
            let lines = || world.daemon.output().matches(&format!("path=\"/{scheme}/x\"")).count();
            eventually("the request is logged", || (lines() > 0).then_some(()));
            assert_eq!(lines(), 1, "{listen}: it went round: {}", world.daemon.output());
        }
        assert_eq!(ask(&world, "/echo").status, 200);
    }
}

/// A world that needs no login and whose callers need a key.
fn with_key(listen: &str) -> (Home, World) {
    let home = Home::new(Vec::new());
    let key = home.secret("key", KEY);
    let tables = format!(
        "[callers]\nallow_remote = true\n[[callers.key]]\nname = \"a\"\nfile = \"{}\"\n",
        key.display()
    );
    let top = format!("log = \"debug\"\nlisten = [\"{listen}:0\"]");
    let account = "grant = \"client_credentials\"".to_owned();
    (home, Setup { top, account, tables, ..Setup::default() }.start())
}

/// Starts the daemon again on its port, with routes whose upstream is that port.
fn lead_back(world: &mut World, listen: &str, name: &str) {
    let port = world.daemon.authority.rsplit(':').next().unwrap().to_owned();
    let config = fs::read_to_string(world.home.config()).unwrap();
    let mut config = config.replace(&format!("{listen}:0"), &format!("{listen}:{port}"));
    for scheme in ["http", "https"] {
        config += &format!("[[route]]\nprefix = \"/{scheme}\"\nupstream = \"{scheme}://{name}:{port}\"\n");
    }
    fs::write(world.home.config(), config).unwrap();
    world.restart();
}

fn ask(world: &World, target: &str) -> Answer {
    let host = format!("localhost:{}", world.daemon.authority.rsplit(':').next().unwrap());
    let key = format!("Bearer {KEY}");
    eventually("there is a token", || {
        let answer =
            world.daemon.request("GET", target, &[("Host", &host), ("Proxy-Authorization", &key)], b"");
        (answer.status != 503).then_some(answer)
    })
}
