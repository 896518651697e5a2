//! `strace` on a daemon that runs: what it asks of the system, and faults in what the system answers.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// It is attached until this is dropped.
pub(super) struct Strace {
    child: Child,
    /// Kept open, since it writes there when it lets go.
    errors: BufReader<ChildStderr>,
    directory: TempDir,
}

impl Strace {
    /// Attaches to a process, or to one thread of it; everything is under it when this returns.
    #[track_caller]
    pub(super) fn attach(id: u32, options: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let mut command = Command::new("strace");
        command.arg("-p").arg(id.to_string()).args(options).arg("-o").arg(directory.path().join("log"));
        let spawned = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.expect("strace runs: tests/run installs it");
        let errors = BufReader::new(child.stderr.take().unwrap());
        let mut strace = Self { child, errors, directory };
        let mut said = String::new();
        strace.errors.read_line(&mut said).unwrap();
        assert!(said.contains(" attached"), "strace {options:?}: {said}");
        strace
    }

    /// What it has seen so far, one call a line.
    pub(super) fn seen(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Lets go and returns what it has seen.
    pub(super) fn detach(mut self) -> String {
        self.end();
        self.seen()
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn end(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        // It ends by itself with what it traces.
        if self.child.try_wait().unwrap().is_none() {
            let _ended = kill_process(pid, Signal::TERM);
        }
        let _waited = self.child.wait();
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        self.end();
    }
}

/// The threads of a process with that name.
pub(super) fn threads_named(pid: u32, name: &str) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let tasks = tasks.map(|task| task.unwrap().path());
    let named = tasks
        .filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|found| found.trim_end() == name));
    named.map(|task| task.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect()
}
