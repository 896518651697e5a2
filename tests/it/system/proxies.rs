//! Debian's squid and tinyproxy, with and without Basic.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::proxies::scripted::ONLY_HERE;
use crate::proxies::{application, auth_file, logs, with_upstream_at};
use crate::standin::Person;
use crate::support::eventually;
use crate::system::network::space::alone;
use crate::tokens::{main_account, refresh};

const USER: &str = "user:p4ss-word.of-a-company";
/// Neither of them runs as root.
const NOBODY: u32 = 65534;

/// A proxy on port 3128 of its test's own loopback.
struct Real {
    child: Child,
    directory: TempDir,
}

impl Real {
    fn start(mut command: Command, config: &str, files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display().to_string();
        for (name, content) in [("config", config)].iter().chain(files) {
            fs::write(directory.path().join(name), content.replace("<dir>", &path)).unwrap();
        }
        if rustix::process::geteuid().is_root() {
            chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
            command.uid(NOBODY).gid(NOBODY);
        }
        let output = fs::File::create(directory.path().join("output")).unwrap();
        command.arg(directory.path().join("config")).current_dir("/").stdin(Stdio::null());
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let mut real = Self { child: command.spawn().unwrap(), directory };
        eventually("it listens", || {
            assert!(real.child.try_wait().unwrap().is_none(), "it ended: {}", real.said());
            TcpStream::connect("127.0.0.1:3128").ok()
        });
        real
    }

    fn squid(with_auth: bool) -> Self {
        let auth = "auth_param basic program /usr/lib/squid/basic_ncsa_auth <dir>/users\n\
                    auth_param basic children 1\nacl known proxy_auth REQUIRED\nhttp_access allow known\n";
        let access = if with_auth { auth } else { "http_access allow all\n" };
        let config = format!(
            "http_port 127.0.0.1:3128\npid_filename none\ncache_log <dir>/cache.log\ncache deny all\n\
             access_log stdio:<dir>/access.log\nhosts_file <dir>/hosts\ncoredump_dir <dir>\n\
             netdb_filename none\npinger_enable off\nvisible_hostname proxy.example\nmax_filedescriptors 256\n\
             shutdown_lifetime 0 seconds\n{access}"
        );
        let password = USER.split_once(':').unwrap().1;
        let hash = Command::new("openssl").args(["passwd", "-apr1", password]).output().unwrap();
        let users = format!("user:{}", String::from_utf8(hash.stdout).unwrap());
        let hosts = format!("127.0.0.1 localhost {ONLY_HERE}\n");
        let mut command = Command::new("/usr/sbin/squid");
        command.args(["-N", "-f"]);
        Self::start(command, &config, &[("users", &users), ("hosts", &hosts)])
    }

    fn tinyproxy(with_auth: bool) -> Self {
        let (user, password) = USER.split_once(':').unwrap();
        let auth = if with_auth { format!("BasicAuth {user} {password}\n") } else { String::new() };
        let config = format!(
            "Port 3128\nListen 127.0.0.1\nTimeout 600\nMaxClients 50\nLogFile \"<dir>/access.log\"\n\
             LogLevel Connect\nAllow 127.0.0.1\n{auth}"
        );
        let mut command = Command::new("tinyproxy");
        command.args(["-d", "-c"]);
        Self::start(command, &config, &[])
    }

    fn said(&self) -> String {
        let of = |name: &&str| fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
        ["output", "cache.log", "access.log"].iter().map(of).collect()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// A whole login, requests, a refresh and a logout through a proxy, to an API with that host's name.
#[track_caller]
fn assert_all_goes_through(real: &Real, host: &str, credentials: Option<&Path>) {
    let auth_file = credentials.map(|path| path.display().to_string()).unwrap_or_default();
    let keys = format!("proxy = \"http://127.0.0.1:3128\"\nproxy_auth_file = \"{auth_file}\"\n");
    let world = with_upstream_at(host, &keys, &keys, "");

    world.log_in(Person::Alice);
    let answer = world.daemon.request("POST", "/echo/x", &[], &[b'x'; 100_000]);
    assert_eq!(answer.status, 200, "{answer:?}\n{}", real.said());
    assert_eq!(refresh(&world.daemon).status, 200, "{}", real.said());
    assert_eq!(main_account(&world.daemon)["person"], Person::Alice.display_name(), "its identity_url");
    assert_eq!(world.daemon.post_form("/-/logout/main", &[]).status, 200);

    assert!(!world.standin.revocations().is_empty());
    let logged =
        eventually("it logs what it did", || Some(real.said()).filter(|said| said.contains("CONNECT")));
    assert!(logged.contains(host), "{logged}");
}

/// Nothing is reached, nothing is lost, and it is told what to configure.
#[track_caller]
fn assert_is_refused(keys: &str) {
    let world = application("127.0.0.1", keys, "", "");
    let refused = world.daemon.get("/echo");
    assert_eq!((refused.status, refused.problem().as_str()), (502, "upstream-unreachable"), "{refused:?}");
    assert!(refused.text().contains("proxy_auth_file"), "{refused:?}");
    logs(&world, "see proxy_auth_file (40");

    let world = application("127.0.0.1", "", keys, "");
    let refused = refresh(&world.daemon);
    assert_eq!((refused.status, refused.problem().as_str()), (503, "token-unavailable"), "{refused:?}");
    let last = main_account(&world.daemon)["last_refresh"].take();
    assert_eq!(last["outcome"], "unavailable", "{last}");
    assert!(last["error"].as_str().unwrap().contains("proxy_auth_file"), "{last}");
}

fn assert_works(start: fn(bool) -> Real, host: &str) {
    alone(|| {
        let open = start(false);
        assert_all_goes_through(&open, host, None);
        drop(open);

        let closed = start(true);
        let (right, wrong) = (auth_file(USER), auth_file("user:wrong"));
        assert_all_goes_through(&closed, host, Some(right.path()));
        assert_is_refused("proxy = \"http://127.0.0.1:3128\"\n");
        let wrong = wrong.path().display();
        assert_is_refused(&format!("proxy = \"http://127.0.0.1:3128\"\nproxy_auth_file = \"{wrong}\"\n"));
    });
}

/// It resolves a name that nobody else knows.
#[test]
fn squid_makes_tunnels_for_requests_logins_and_refreshes() {
    assert_works(Real::squid, ONLY_HERE);
}

#[test]
fn tinyproxy_makes_tunnels_for_requests_logins_and_refreshes() {
    assert_works(Real::tinyproxy, "localhost");
}
