//! What needs a machine of its own, or minutes: root on Debian 12 with namespaces, and what `tests/run` installs. Built
//! with the feature `system-tests` alone; everything beside this module needs nothing but a Rust toolchain.
//!
//! | modules | need, beside root, namespaces and curl |
//! |---|---|
//! | `browser`, `pages` | node, chromium |
//! | `clients`, `readme`, `run`, `sandbox` | bash; java, node, go, ruby, php, wget, and python with packages of PyPI |
//! | `commands`, `login` | strace; `script`, `setsid` and `setpriv` of util-linux |
//! | `containers` | podman, buildah, runc, and podman-compose of PyPI |
//! | `fleet` | postgresql, pgbouncer, faketime |
//! | `prometheus` | promtool |
//! | `provider`, `providers` | node and packages of npm, glewlwyd, python with packages of PyPI |
//! | `proxies`, `trust`, `attacks` | openssl, squid, tinyproxy, nginx, haproxy |
//! | `release` | git, dpkg-dev, and half an hour with `RELEASE_BUILD=1` |
//! | `shells` | bash, zsh, fish, mandoc |
//! | `store` | strace, `chattr` of e2fsprogs, `mount` |
//! | `systemd` | systemd-nspawn and a small Debian, cargo-deb, lintian |
//! | `time` | faketime |
//! | `idle`, `soak`, `stalls`, `waits` | minutes |

mod addresses;
mod attacks;
mod browser;
mod clients;
mod commands;
mod containers;
mod deployed;
mod descriptors;
mod fleet;
mod idle;
mod login;
mod names;
mod network;
mod notices;
mod pages;
mod prometheus;
mod provider;
mod providers;
mod proxies;
mod readme;
mod release;
mod rereading;
mod run;
mod sandbox;
mod secrets;
mod shells;
mod soak;
mod stalls;
mod store;
mod systemd;
mod time;
mod trust;
mod users;
mod waits;

use std::process::Command;

use crate::support::{Home, PROGRAM};

/// What a script says to the end, in a network that nobody else is in.
#[track_caller]
pub(crate) fn in_a_network_of_its_own(script: &str, home: &Home) -> String {
    let mut command = Command::new("unshare");
    command.args(["--net", "bash", "-c", script, "bash", PROGRAM]).arg(home.path());
    let output = command.output().expect("unshare is installed");
    assert!(output.status.success(), "a network namespace is needed: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
