//! A PostgreSQL of Debian's package in a temporary directory, on a unix socket, and pgbouncer in front of it.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::support::eventually;

const SOCKET: &str = ".s.PGSQL.5432";
const SERVERS: &str = "/usr/lib/postgresql";
/// PostgreSQL does not run as root.
const NOBODY: u32 = 65_534;

/// A server with one database, `postgres`.
pub(crate) struct Database {
    directory: TempDir,
    server: Option<Child>,
}

impl Database {
    /// Makes a database and starts it.
    pub(crate) fn start() -> Self {
        // The path of a socket is short.
        let directory = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if geteuid().is_root() {
            chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut database = Self { directory, server: None };
        let data = database.data();
        let arguments = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-D"];
        let made = as_nobody(&program("initdb")).args(arguments).arg(&data).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        database.start_again();
        database
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// Starts the server, and waits until it answers.
    pub(crate) fn start_again(&mut self) {
        let mut command = as_nobody(&program("postgres"));
        command.arg("-D").arg(self.data()).arg("-k").arg(self.path());
        for setting in [
            "listen_addresses=",
            "fsync=off",
            "max_connections=300",
            "shared_buffers=16MB",
            "log_statement=all",
            "log_line_prefix=%a ",
        ] {
            command.args(["-c", setting]);
        }
        let log = fs::File::options().create(true).append(true).open(self.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(command.spawn().unwrap());
        eventually("the database answers", || self.psql("select 1").status.success().then_some(()));
    }

    /// A standby that has all that is acknowledged, from now on.
    pub(crate) fn synchronous_standby(&self) -> Self {
        let directory = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if geteuid().is_root() {
            chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut standby = Self { directory, server: None };
        let mut copy = as_nobody(&program("pg_basebackup"));
        copy.args(["-U", "postgres", "-R", "--checkpoint=fast", "-h"])
            .arg(self.path())
            .arg("-D")
            .arg(standby.data());
        let copied = copy.output().unwrap();
        assert!(copied.status.success(), "{copied:?}");
        standby.start_again();
        self.ask("alter system set synchronous_standby_names = '*'");
        self.ask("select pg_reload_conf()");
        eventually("the standby is synchronous", || {
            let state = self.ask("select sync_state from pg_stat_replication");
            (state == "sync").then_some(())
        });
        standby
    }

    /// A standby becomes the primary.
    pub(crate) fn promote(&self) {
        self.ask("select pg_promote()");
    }

    /// Ends the server as a power cut does.
    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // SIGQUIT: an immediate shutdown, of all its processes.
            kill_process(Pid::from_child(&server), Signal::QUIT).unwrap();
            server.wait().unwrap();
        }
    }

    /// The whole server takes connections and answers nothing, or goes on.
    pub(crate) fn freeze(&self, frozen: bool) {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        let server = Pid::from_child(self.server.as_ref().unwrap());
        let children =
            Command::new("pgrep").args(["-P", &server.as_raw_nonzero().to_string()]).output().unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        let children = children.lines().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap());
        for process in [server].into_iter().chain(children) {
            // One that has just ended needs none.
            let _sent = kill_process(process, signal);
        }
    }

    /// The address of two hosts of one database.
    pub(crate) fn url_with(&self, standby: &Self) -> String {
        format!(
            "postgres:///postgres?host={}&host={}&user=postgres",
            self.path().display(),
            standby.path().display()
        )
    }

    /// The address for replicas, as this user.
    pub(crate) fn url(&self, user: &str) -> String {
        format!("postgres:///postgres?host={}&user={user}", self.path().display())
    }

    /// How many statements replicas have sent.
    pub(crate) fn statements(&self) -> usize {
        let log = fs::read_to_string(self.path().join("log")).unwrap();
        log.lines().filter(|line| line.starts_with("cnblogs-proxy LOG:  statement")).count()
    }

    fn psql(&self, sql: &str) -> Output {
        let mut command = Command::new(program("psql"));
        command.args([
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-d",
            "postgres",
            "-h",
        ]);
        command.arg(self.path()).args(["-c", sql]).output().unwrap()
    }

    /// Runs statements as the administrator and gives what they print.
    #[track_caller]
    pub(crate) fn ask(&self, sql: &str) -> String {
        let output = self.psql(sql);
        assert!(output.status.success(), "{sql}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.freeze(false);
        }
        self.stop();
    }
}

/// A pgbouncer in transaction mode.
pub(crate) struct Pooler {
    directory: TempDir,
    server: Child,
}

impl Pooler {
    pub(crate) fn start(database: &Database) -> Self {
        let directory = tempfile::Builder::new().prefix("pb").tempdir_in("/tmp").unwrap();
        let (path, behind) = (directory.path().display(), database.path().display());
        let ini = format!(
            "[databases]\npostgres = host={behind} dbname=postgres user=postgres\n\
             [pgbouncer]\nlisten_addr =\nlisten_port = 6432\nunix_socket_dir = {path}\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = 3\nlogfile = {path}/log\npidfile = {path}/pid\n"
        );
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(directory.path().join("ini"), ini).unwrap();
        if geteuid().is_root() {
            chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut command = as_nobody(Path::new("/usr/sbin/pgbouncer"));
        command
            .arg(directory.path().join("ini"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let server = command.spawn().unwrap();
        let socket = directory.path().join(".s.PGSQL.6432");
        eventually("pgbouncer listens", || socket.exists().then_some(()));
        Self { directory, server }
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres:///postgres?host={}&port=6432&user=postgres", self.directory.path().display())
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _gone = self.server.kill();
        let _waited = self.server.wait();
    }
}

/// A way to a database that can be cut.
pub(crate) struct Relay {
    directory: TempDir,
    is_cut: Arc<AtomicBool>,
}

impl Relay {
    pub(crate) fn to(database: &Database) -> Self {
        let directory = tempfile::Builder::new().prefix("re").tempdir_in("/tmp").unwrap();
        let listener = UnixListener::bind(directory.path().join(SOCKET)).unwrap();
        let (is_cut, behind) = (Arc::new(AtomicBool::new(false)), database.path().join(SOCKET));
        let cut = Arc::clone(&is_cut);
        std::thread::spawn(move || {
            let callers = listener.incoming().map_while(Result::ok);
            for caller in callers.filter(|_| !cut.load(Ordering::Relaxed)) {
                let server = UnixStream::connect(&behind).unwrap();
                carry(caller.try_clone().unwrap(), server.try_clone().unwrap(), Arc::clone(&cut));
                carry(server, caller, Arc::clone(&cut));
            }
        });
        Self { directory, is_cut }
    }

    pub(crate) fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::Relaxed);
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres:///postgres?host={}&user=postgres", self.directory.path().display())
    }
}

/// Carries bytes one way until an end, or until the way is cut.
fn carry(mut from: UnixStream, mut to: UnixStream, is_cut: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if is_cut.load(Ordering::Relaxed) || to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        for stream in [&from, &to] {
            let _gone = stream.shutdown(Shutdown::Both);
        }
    });
}

/// The newest server that is installed.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir(SERVERS).unwrap_or_else(|error| panic!("{SERVERS}: {error}"));
    let newest = versions.map(|entry| entry.unwrap().path()).max().unwrap();
    newest.join("bin").join(name)
}

fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}
