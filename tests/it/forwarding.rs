//! What crosses the proxy, each way, and what it refuses: section "Forwarding" of the contract, seen from outside.

mod answers;
pub(crate) mod bodies;
mod bytes;
pub(crate) mod caller;
mod closing;
pub(crate) mod descriptors;
mod guard;
mod leaving;
mod limit;
mod limits;
mod problems;
mod replay;
mod reuse;
mod unusual;
pub(crate) mod users;

use std::fs;

use ring::digest::{SHA256, digest};

use crate::standin::Options;
use crate::support::{Answer, Daemon, Setup, World};

/// One worker, so that every request meets the same pool of connections.
pub(crate) fn one_worker() -> Setup {
    Setup { top: "workers = 1".to_owned(), ..Setup::default() }
}

/// An upstream behind TLS.
fn over_tls() -> Setup {
    Setup { options: Options { tls: true, ..Options::default() }, ..one_worker() }
}

/// Adds tables to the configuration and starts the daemon again; the login stays.
pub(crate) fn reconfigured(world: &mut World, tables: &str) {
    let mut config = fs::read_to_string(world.home.config()).unwrap();
    config.push_str(tables);
    fs::write(world.home.config(), config).unwrap();
    world.restart();
}

/// The table of a caller's key, which is kept in a file of that name.
pub(crate) fn key_table(world: &World, name: &str, key: &str, limits: &str) -> String {
    let file = world.home.secret(name, key);
    format!("[[callers.key]]\nname = \"{name}\"\nfile = \"{}\"\n{limits}\n", file.display())
}

/// The access token in use, as the API sees it.
fn token(world: &World) -> String {
    assert_eq!(world.daemon.get("/echo").status, 200);
    let seen = world.standin.api_requests().pop().expect("the API was asked");
    let authorization = seen.field("authorization").expect("a token went up");
    world.standin.clear_api_requests();
    authorization.strip_prefix("Bearer ").expect("a bearer token").to_owned()
}

/// An answer of the proxy's own, with nothing of its insides in it.
#[track_caller]
pub(crate) fn assert_problem(answer: &Answer, code: &str, status: u16, error: &str) {
    assert_eq!((answer.problem().as_str(), answer.status), (code, status), "{answer:?}");
    let expected = format!("cnblogs-proxy; error={error}");
    assert_eq!(answer.field("proxy-status"), Some(expected.as_str()), "{answer:?}");
    assert_eq!(answer.field("x-content-type-options"), Some("nosniff"), "{answer:?}");
    for inside in ["hyper", "rustls", "webpki", "os error", "Kind", "src/", "panicked", "invalid peer"] {
        assert!(!answer.text().contains(inside), "{inside} is nobody's business: {}", answer.text());
    }
}

/// SHA-256 in hex.
fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The daemon's resident memory.
pub(crate) fn resident_kib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel says it");
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}
