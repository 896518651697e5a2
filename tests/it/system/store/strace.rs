//! `strace` on a daemon that runs: what it asks of the system, and faults in what the system answers.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::images::Op;

/// It is attached until this is dropped.
pub(crate) struct Strace {
    child: Child,
    /// Kept open, since it writes there when it lets go.
    errors: BufReader<ChildStderr>,
    directory: TempDir,
}

impl Strace {
    /// Attaches to a process, or to one thread of it; everything is under it when this returns.
    #[track_caller]
    pub(crate) fn attach(id: u32, options: &[&str]) -> Self {
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
    pub(crate) fn seen(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Lets go and returns what it has seen.
    pub(crate) fn detach(mut self) -> String {
        self.end();
        self.seen()
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn end(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        // It ends by itself with what it traces; while it delays a call it hears nothing.
        for _ in 0..100 {
            if self.child.try_wait().unwrap().is_some() {
                return;
            }
            let _ended = kill_process(pid, Signal::TERM);
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        self.end();
    }
}

/// The threads of a process with that name.
pub(crate) fn threads_named(pid: u32, name: &str) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let tasks = tasks.map(|task| task.unwrap().path());
    let named = tasks
        .filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|found| found.trim_end() == name));
    named.map(|task| task.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect()
}

/// A program that is started under `strace`: its calls that change what is in one directory.
pub(super) struct Recording {
    log: TempDir,
    parent: PathBuf,
    directory: PathBuf,
}

/// What numbers and names of the recorded program stand for.
#[derive(Default)]
struct Reader {
    ops: Vec<Op>,
    names: HashMap<String, usize>,
    open: HashMap<String, usize>,
    files: usize,
    /// The first half of a line, by thread.
    begun: HashMap<String, String>,
}

const RECORDED: &str = "mkdir,openat,creat,write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,\
    fdatasync,sync_file_range,rename,renameat,renameat2,link,linkat,symlink,unlink,unlinkat,sendfile,\
    copy_file_range";
/// All names that the program may use there.
const NAMES: [&str; 7] = [
    "lock",
    "store",
    "store.previous",
    "store.next.main",
    "store.taken",
    "store.damaged",
    "store.previous.damaged",
];

impl Recording {
    /// Of the calls on a directory that is not yet there, and on the one it will be in.
    pub(super) fn new(parent: &Path, directory: &Path) -> Self {
        Self { log: TempDir::new().unwrap(), parent: parent.to_owned(), directory: directory.to_owned() }
    }

    /// The line of shell that the program is started behind. It stays the child of whoever starts it.
    pub(super) fn command(&self) -> String {
        let names = NAMES.map(|name| self.directory.join(name));
        let paths = [self.parent.clone(), self.directory.clone()].into_iter().chain(names);
        let paths: String = paths.map(|path| format!(" -P '{}'", path.display())).collect();
        format!(
            "exec strace -D -f -y -xx -s 1000000 -o '{}' -e trace={RECORDED}{paths} --",
            self.log.path().join("log").display()
        )
    }

    /// What was done so far.
    #[track_caller]
    pub(super) fn ops(&self) -> Vec<Op> {
        let mut reader = Reader::default();
        let log = fs::read_to_string(self.log.path().join("log")).unwrap();
        for line in log.lines() {
            let (thread, line) = line.trim_start().split_once(' ').unwrap();
            if let Some(line) = reader.whole(thread, line.trim_start()) {
                reader.read(&line, &self.directory);
            }
        }
        reader.ops
    }
}

impl Reader {
    /// The line, or both halves of it once the second is there; none for what is no call.
    fn whole(&mut self, thread: &str, line: &str) -> Option<String> {
        if let Some(first) = line.strip_suffix("<unfinished ...>") {
            self.begun.insert(thread.to_owned(), first.trim_end().to_owned());
            return None;
        }
        if line.starts_with("<... ") {
            let (_, second) = line.split_once(" resumed>").unwrap();
            return Some(self.begun.remove(thread).unwrap() + second);
        }
        (!line.starts_with("+++") && !line.starts_with("---")).then(|| line.to_owned())
    }

    #[track_caller]
    fn read(&mut self, line: &str, directory: &Path) {
        let (call, rest) = line.split_once('(').unwrap();
        let (arguments, result) = rest.rsplit_once(" = ").unwrap();
        if result.starts_with(['-', '?']) {
            return;
        }
        let arguments: Vec<_> = arguments.trim_end().strip_suffix(')').unwrap().split(", ").collect();
        let op = match call {
            "mkdir" if path_of(arguments[0]) == directory => Op::MakeDirectory,
            "mkdir" => Op::Other,
            "openat" => self.opened(&path_of(arguments[1]), arguments[2], result, directory),
            "fsync" | "fdatasync" if path_of(arguments[0]) == directory => Op::SyncDirectory,
            "fsync" | "fdatasync" if Some(&*path_of(arguments[0])) == directory.parent() => Op::SyncParent,
            "fsync" | "fdatasync" => Op::Sync { file: self.file_of(arguments[0]) },
            "write" | "pwrite64" => {
                let (file, bytes) = (self.file_of(arguments[0]), bytes_of(arguments[1]));
                assert_eq!(result, bytes.len().to_string(), "{line}");
                let at = arguments.get(3).map_or_else(|| self.end_of(file), |at| at.parse().unwrap());
                Op::Write { file, at, bytes }
            }
            "ftruncate" => {
                Op::Truncate { file: self.file_of(arguments[0]), length: arguments[1].parse().unwrap() }
            }
            "rename" => {
                let [from, to] = [0, 1].map(|index| name_in(directory, arguments[index]));
                let file = self.names.remove(&from).unwrap();
                self.names.insert(to.clone(), file);
                Op::Rename { from, to }
            }
            "linkat" => {
                let [name, to] = [1, 3].map(|index| name_in(directory, arguments[index]));
                self.names.insert(to.clone(), self.names[&name]);
                Op::Link { name, to }
            }
            "unlink" => {
                let name = name_in(directory, arguments[0]);
                self.names.remove(&name);
                Op::Unlink { name }
            }
            other => panic!("{other} is new here: teach this how it changes a directory: {line}"),
        };
        self.ops.push(op);
    }

    /// What opening a path changed; remembers which file the descriptor stands for.
    fn opened(&mut self, path: &Path, flags: &str, descriptor: &str, directory: &Path) -> Op {
        if path.parent() != Some(directory) {
            return Op::Other;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(!flags.contains("O_TRUNC") && !flags.contains("O_APPEND"), "{name} is opened with {flags}");
        let number = number_of(descriptor);
        if let Some(file) = self.names.get(&name) {
            self.open.insert(number, *file);
            return Op::Other;
        }
        self.files += 1;
        self.names.insert(name.clone(), self.files);
        self.open.insert(number, self.files);
        Op::Create { name, file: self.files }
    }

    fn file_of(&self, descriptor: &str) -> usize {
        self.open[&number_of(descriptor)]
    }

    /// Where a plain write goes: nothing here seeks.
    fn end_of(&self, file: usize) -> usize {
        let written = self.ops.iter().rev().find_map(|op| match op {
            Op::Write { file: other, at, bytes } if *other == file => Some(at + bytes.len()),
            _ => None,
        });
        written.unwrap_or(0)
    }
}

fn path_of(argument: &str) -> PathBuf {
    PathBuf::from(String::from_utf8(bytes_of(argument)).unwrap())
}

#[track_caller]
fn name_in(directory: &Path, argument: &str) -> String {
    let path = path_of(argument);
    assert_eq!(path.parent(), Some(directory));
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Of `12</path>`.
fn number_of(descriptor: &str) -> String {
    descriptor.split('<').next().unwrap().to_owned()
}

/// What stands as `\x2f` between quotes or angle brackets.
fn bytes_of(argument: &str) -> Vec<u8> {
    argument.split("\\x").skip(1).map(|hex| u8::from_str_radix(&hex[..2], 16).unwrap()).collect()
}
