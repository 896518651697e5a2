//! [`Machine`]: a small Debian whose PID 1 is systemd, in a container of its own. Nothing of it outlives the test.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use crate::standin::{Person, Standin};
use crate::support::{Answer, Home, PATIENCE, PROGRAM, config, eventually};

/// Made by tests/run.
const IMAGE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../test-tools/debian");
const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

/// It shares the network of the thread that boots it, and forgets everything when it is dropped.
pub(super) struct Machine {
    nspawn: Child,
    init: u32,
    /// What is seen in the machine as `/exchange`.
    pub(super) exchange: TempDir,
}

impl Machine {
    /// Boots, and returns when everything is up. `/deploy` is ours.
    #[track_caller]
    pub(super) fn boot() -> Self {
        assert!(fs::exists(IMAGE).unwrap(), "{IMAGE} is missing: tests/run makes it");
        let exchange = TempDir::new().unwrap();
        let mut command = Command::new("systemd-nspawn");
        command.args([
            "--quiet",
            "--register=no",
            "--keep-unit",
            "--volatile=overlay",
            "--boot",
            "--console=pipe",
        ]);
        command.arg(format!(
            "--machine=test-{}",
            exchange.path().file_name().unwrap().to_str().unwrap()[4..].to_lowercase()
        ));
        command.arg(format!("--directory={IMAGE}")).arg(format!("--bind-ro={DEPLOY}:/deploy"));
        command.arg(format!("--bind={}:/exchange", exchange.path().display()));
        // Machines only read the image.
        command.env("SYSTEMD_NSPAWN_LOCK", "0").stdin(Stdio::null()).stdout(Stdio::null());
        let console = fs::File::create(exchange.path().join("nspawn.log")).unwrap();
        let nspawn = command.stderr(console).spawn().expect("systemd-nspawn runs: tests/run installs it");
        let mut machine = Self { nspawn, init: 0, exchange };
        eventually("the machine is up", || {
            if let Some(ended) = machine.nspawn.try_wait().unwrap() {
                let log = fs::read_to_string(machine.exchange.path().join("nspawn.log")).unwrap();
                panic!("no machine boots here: {ended}\n{log}");
            }
            machine.init = machine.first_child()?;
            let state = machine.run("systemctl is-system-running --wait", "");
            (state.stdout == b"running\n" || state.stdout == b"degraded\n").then_some(())
        });
        machine
    }

    /// Boots with the program and the units where an administrator puts them by hand.
    #[track_caller]
    pub(super) fn with_units() -> Self {
        let machine = Self::boot();
        fs::hard_link(PROGRAM, machine.exchange.path().join("cnblogs-proxy"))
            .or_else(|_| fs::copy(PROGRAM, machine.exchange.path().join("cnblogs-proxy")).map(drop))
            .unwrap();
        machine.done("install /exchange/cnblogs-proxy /usr/local/bin/");
        machine.done("install -m 644 /deploy/systemd/cnblogs-proxy* /etc/systemd/system/");
        machine.done("systemctl daemon-reload");
        machine
    }

    /// Runs a shell's command as root.
    pub(super) fn run(&self, command: &str, input: &str) -> Output {
        let mut child = self.start(command);
        let _read = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Starts a shell's command as root.
    pub(super) fn start(&self, command: &str) -> Child {
        let mut entering = Command::new("nsenter");
        entering.args(["--target", &self.init.to_string(), "--all", "--", "/bin/sh", "-c", command]);
        entering.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        entering.env("HOME", "/root").env("DEBIAN_FRONTEND", "noninteractive");
        entering.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs a command that must succeed, and returns what it printed.
    #[track_caller]
    pub(super) fn done(&self, command: &str) -> String {
        self.done_with(command, "")
    }

    /// The same with something on standard input.
    #[track_caller]
    pub(super) fn done_with(&self, command: &str, input: &str) -> String {
        let ended = self.run(command, input);
        let [out, err] =
            [&ended.stdout, &ended.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
        if !ended.status.success() {
            let journal = self.run("journalctl --no-pager --lines=40", "").stdout;
            panic!("{command}: {}\n{out}\n{err}\n{}", ended.status, String::from_utf8_lossy(&journal));
        }
        out
    }

    /// Writes a file.
    #[track_caller]
    pub(super) fn write(&self, path: &str, text: &str) {
        self.done_with(&format!("install -D -m 644 /dev/stdin '{path}'"), text);
    }

    /// A property of a unit.
    #[track_caller]
    pub(super) fn show(&self, unit: &str, property: &str) -> String {
        self.done(&format!("systemctl show '{unit}' --value --property={property}")).trim_end().to_owned()
    }

    /// What a unit logged, at a priority or a more urgent one.
    #[track_caller]
    pub(super) fn journal(&self, unit: &str, priority: &str) -> String {
        self.done(&format!("journalctl --no-pager --output=cat --unit='{unit}' --priority={priority}"))
    }

    /// The main process of a unit, as it is called outside of the machine.
    #[track_caller]
    pub(super) fn pid_of(&self, unit: &str) -> u32 {
        let inside = self.show(unit, "MainPID");
        let is_it = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            ids.split_whitespace().nth(1) == Some(&inside) && self.has_namespace_of(*pid)
        };
        let processes = fs::read_dir("/proc").unwrap();
        let mut pids = processes.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        pids.find(is_it).unwrap_or_else(|| panic!("{unit} has no process"))
    }

    /// The whole login of Alice in the machine's terminal.
    #[track_caller]
    pub(super) fn log_in(&self, standin: &Standin, command: &str) {
        use std::io::{BufRead, BufReader};

        let mut login = self.start(command);
        let mut lines = BufReader::new(login.stdout.take().unwrap()).lines().map_while(Result::ok);
        let wanted = format!("{}/connect/authorize?", standin.auth_url());
        let found = lines.find_map(|line| Some(line[line.find(&wanted)?..].trim().to_owned()));
        let Some(url) = found else {
            panic!("{command}: {}", String::from_utf8_lossy(&login.wait_with_output().unwrap().stderr))
        };
        let callback = standin.authorize(&url, Person::Alice);
        writeln!(login.stdin.take().unwrap(), "{callback}").unwrap();
        let rest = lines.collect::<Vec<_>>();
        let ended = login.wait_with_output().unwrap();
        assert!(ended.status.success(), "{rest:?} {}", String::from_utf8_lossy(&ended.stderr));
    }

    fn first_child(&self) -> Option<u32> {
        let id = self.nspawn.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    fn has_namespace_of(&self, pid: u32) -> bool {
        let namespace = |pid| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        namespace(pid) == namespace(self.init)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With its PID 1 everything in it ends; nspawn then cleans up and ends, too.
        let init = i32::try_from(self.init).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(init) = init {
            let _ended = rustix::process::kill_process(init, rustix::process::Signal::KILL);
        } else {
            let _ended = self.nspawn.kill();
        }
        let _waited = self.nspawn.wait();
    }
}

/// The table of an account and the route to the stand-in, without a secret, a state and an address.
pub(super) fn account(standin: &Standin) -> String {
    let whole = config(standin, &Home::new(Vec::new()), "", "", "", "");
    let is_ours =
        |line: &&str| !["listen", "state_dir", "client_secret_file"].iter().any(|key| line.starts_with(key));
    whole.lines().filter(is_ours).fold(String::new(), |text, line| text + line + "\n")
}

/// A GET on a connection of its own, to a port of loopback.
#[track_caller]
pub(super) fn get(port: u16, target: &str) -> Answer {
    try_get(port, target).unwrap_or_else(|| panic!("no answer to {target} on port {port}"))
}

/// None when there is no whole answer.
pub(super) fn try_get(port: u16, target: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut raw = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut raw).ok()?;
    Answer::parse(&raw, "GET")
}
