//! Two network namespaces with a cable between them. Nobody else sees them, and they end with the test.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub(crate) const NEAR: Ipv4Addr = Ipv4Addr::new(10, 82, 62, 1);
pub(super) const FAR: Ipv4Addr = Ipv4Addr::new(10, 82, 62, 2);

/// Both ends.
pub(crate) struct Net {
    pub(crate) near: Space,
    pub(crate) far: Space,
}

/// One end: a namespace, held by a process that waits for the end of its input.
pub(crate) struct Space {
    holder: Child,
    _input: ChildStdin,
}

/// A link that is down until this is dropped.
pub(super) struct Link<'a>(&'a Space);

/// Runs a test on a thread that can move between both ends; it starts at the near one.
pub(crate) fn in_a_net(test: impl FnOnce(&Net) + Send) {
    on_a_thread(|| {
        let net = Net::new();
        net.near.enter();
        test(&net);
    });
}

/// Runs a test on a thread that has a loopback for itself, with every port free, and so has what it starts.
pub(crate) fn alone(test: impl FnOnce() + Send) {
    on_a_thread(|| {
        let space = Space::new();
        space.enter();
        test();
    });
}

fn on_a_thread(run: impl FnOnce() + Send) {
    std::thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

impl Net {
    fn new() -> Self {
        let net = Self { near: Space::new(), far: Space::new() };
        let far = net.far.holder.id().to_string();
        net.near.ip(&["link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", &far]);
        for (space, address) in [(&net.near, NEAR), (&net.far, FAR)] {
            space.ip(&["address", "add", &format!("{address}/29"), "dev", "cable"]);
            space.mend();
        }
        net
    }
}

impl Space {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"]);
        let mut holder =
            with_sbin(&mut command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = holder.stdin.take().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "a network namespace needs root");
        Self { holder, _input: input }
    }

    /// Sockets of this thread, and of what it starts, are here from now on.
    pub(crate) fn enter(&self) {
        let space = File::open(self.path()).unwrap();
        move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// Takes this end of the cable down.
    pub(super) fn cut(&self) -> Link<'_> {
        self.cut_for_good();
        Link(self)
    }

    pub(super) fn cut_for_good(&self) {
        self.ip(&["link", "set", "cable", "down"]);
    }

    pub(super) fn mend(&self) {
        self.ip(&["link", "set", "cable", "up"]);
    }

    /// Has another address, as after a move to another network.
    pub(super) fn move_to(&self, address: Ipv4Addr) {
        self.ip(&["address", "flush", "dev", "cable"]);
        self.ip(&["address", "add", &format!("{address}/29"), "dev", "cable"]);
    }

    /// Has one more address, on another link.
    pub(super) fn also_has(&self, address: Ipv4Addr) {
        self.ip(&["address", "add", &format!("{address}/24"), "dev", "lo"]);
    }

    /// Nothing leaves for these ports any more, and nobody is told.
    pub(super) fn fall_silent_towards(&self, ports: &[u16]) {
        for port in ports {
            self.ip(&["rule", "add", "ipproto", "tcp", "dport", &port.to_string(), "blackhole"]);
        }
    }

    /// The ports of our ends of the connections to an address.
    pub(super) fn ports_to(&self, authority: &str) -> Vec<u16> {
        let lines = self.connections_to(authority);
        let local = lines.iter().filter_map(|line| line.split_whitespace().nth(2));
        local.filter_map(|local| local.rsplit_once(':')?.1.parse().ok()).collect()
    }

    /// True when the kernel asks within seconds whether each idle connection to an address is still there.
    pub(super) fn all_have_keepalive(&self, authority: &str) -> bool {
        let lines = self.connections_to(authority);
        let is_soon = |line: &String| line.contains("timer:(keepalive,") && !line.contains("min");
        !lines.is_empty() && lines.iter().all(is_soon)
    }

    fn connections_to(&self, authority: &str) -> Vec<String> {
        let filter = ["-H", "-t", "-n", "-o", "state", "established", "dst", authority];
        self.run("ss", &filter).lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn ip(&self, arguments: &[&str]) {
        self.run("ip", arguments);
    }

    #[track_caller]
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program).args(arguments);
        let output = with_sbin(&mut command).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _gone = self.holder.kill();
        let _waited = self.holder.wait();
    }
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        self.0.mend();
    }
}

/// Programs of root are found without root's PATH.
fn with_sbin(command: &mut Command) -> &mut Command {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"))
}
