//! The program that is run: started as a shell would, told of signals, and known among other processes.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt as _;

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::termios::tcgetpgrp;
use tokio::process::Command;
use tokio::signal::unix::{Signal as Arriving, SignalKind, signal};

use crate::config::SECRET_VARIABLES;
use crate::processes::{Prepared, Process};

/// What is passed on. The terminal sends the last two to its whole foreground group, in which the program is, too.
const FORWARDED: [Signal; 6] =
    [Signal::TERM, Signal::HUP, Signal::USR1, Signal::USR2, Signal::INT, Signal::QUIT];

/// The running program.
pub(super) struct Child {
    process: tokio::process::Child,
    /// Its process id.
    pub(super) id: Pid,
}

/// Starts it, in our process group and on our terminal. When we are killed, it is, too.
pub(super) fn start(command: &[OsString], variables: &[(&'static str, String)]) -> io::Result<Child> {
    let (program, arguments) = command.split_first().expect("the command line asks for one");
    // Caught before there is a program, so that none of them ends us alone.
    let caught = catch()?;
    let mut command = Prepared::EndsWithUs.command(program);
    command.args(arguments).envs(variables.iter().map(|(name, value)| (name, value)));
    for secret in SECRET_VARIABLES {
        command.env_remove(secret);
    }
    let process = Command::from(command).spawn()?;
    let id = process.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("nobody waited for it yet");
    for (signal, arriving) in caught {
        tokio::spawn(pass_on(signal, arriving, id));
    }
    Ok(Child { process, id })
}

impl Child {
    /// Waits for its end. Returns the status that a shell would tell.
    pub(super) async fn wait(&mut self) -> io::Result<u8> {
        let status = self.process.wait().await?;
        let status = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1);
        Ok(u8::try_from(status).unwrap_or(u8::MAX))
    }
}

/// The signals that are to be passed on. What we were started to ignore, as by `nohup`, the program ignores, too.
fn catch() -> io::Result<Vec<(Signal, Arriving)>> {
    let ignored = ignored_signals();
    let caught = FORWARDED.into_iter().filter(|signal| ignored & (1 << (signal.as_raw() - 1)) == 0);
    caught.map(|caught| Ok((caught, signal(SignalKind::from_raw(caught.as_raw()))?))).collect()
}

async fn pass_on(signal: Signal, mut arriving: Arriving, id: Pid) {
    while arriving.recv().await.is_some() {
        if ![Signal::INT, Signal::QUIT].contains(&signal) || !is_in_foreground() {
            // Gone is as good as told.
            let _gone = kill_process(id, signal);
        }
    }
}

/// A bit for each signal that is ignored: `SigIgn` of proc(5).
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn is_in_foreground() -> bool {
    let terminal = fs::File::open("/dev/tty");
    terminal.is_ok_and(|terminal| tcgetpgrp(terminal).is_ok_and(|foreground| foreground == getpgrp()))
}

/// True when the process or one that descends from it has that socket open, by the kernel's word.
pub(super) fn has_socket(ancestor: Pid, inode: u32) -> bool {
    let wanted = format!("socket:[{inode}]");
    family(ancestor).into_iter().any(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .any(|target| target.as_os_str() == wanted.as_str())
    })
}

/// The process and all that descend from it.
fn family(ancestor: Pid) -> HashSet<i32> {
    let processes: Vec<_> = Process::all().collect();
    let mut family = HashSet::from([ancestor.as_raw_nonzero().get()]);
    // A parent may stand behind its children.
    let is_new =
        |family: &HashSet<i32>, one: &Process| family.contains(&one.parent) && !family.contains(&one.id);
    while let Some(process) = processes.iter().find(|process| is_new(&family, process)) {
        family.insert(process.id);
    }
    family
}
