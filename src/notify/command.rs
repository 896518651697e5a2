//! The command that is told of events, and what becomes of what it starts.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, getrlimit, kill_process_group, waitpid};
use tokio::process::Command;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use super::Notice;
use crate::config::SECRET_VARIABLES;
use crate::processes::{NOT_EXECUTABLE, NOT_FOUND, Prepared, Process};

/// A command that takes longer is ended.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the command.
pub(super) struct Runner {
    command: Vec<String>,
    /// The limit of open files that we were started with, when it is not ours any more.
    limit: Option<u64>,
}

impl Runner {
    pub(super) fn new(command: Vec<String>, started_with: Rlimit) -> Self {
        let is_raised = getrlimit(Resource::Nofile).current != started_with.current;
        Self { command, limit: started_with.current.filter(|_| is_raised) }
    }

    pub(super) async fn tell(&self, notice: &Notice) {
        let Some((program, arguments)) = self.command.split_first() else { return };
        let mut command = self.start(program);
        for secret in SECRET_VARIABLES {
            command.env_remove(secret);
        }
        let child = command
            .args(arguments)
            .env("CNBLOGS_PROXY_EVENT", notice.event.as_str())
            .env("CNBLOGS_PROXY_ACCOUNT", &notice.account)
            .env("CNBLOGS_PROXY_MESSAGE", notice.message.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                tracing::warn!(program, %error, "the notify command can't be run");
                return;
            }
        };
        let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        let ended = tokio::time::timeout(COMMAND_TIMEOUT, child.wait()).await;
        if ended.is_ok() {
            group.leave();
        }
        let can_run = |code: i32| ![NOT_FOUND, NOT_EXECUTABLE].map(i32::from).contains(&code);
        match ended {
            Ok(Ok(status)) if status.success() => {}
            Ok(Ok(status)) if status.code().is_none_or(can_run) => {
                tracing::warn!(program, %status, "the notify command failed");
            }
            Ok(Ok(status)) => tracing::warn!(program, %status, "the notify command can't be run"),
            Ok(Err(error)) => tracing::warn!(program, %error, "the notify command can't be waited for"),
            Err(_elapsed) => {
                tracing::warn!(program, "the notify command took longer than 30 s and was ended");
            }
        }
    }

    fn start(&self, program: &str) -> Command {
        self.limit.map_or_else(
            || Command::new(program),
            |limit| Prepared::OpenFiles(limit).command(program.as_ref()).into(),
        )
    }
}

/// Processes whose parents have ended: they are the first process's, which has to ask how each ends. Nobody's when we
/// are not the first.
pub(super) struct Strays(Option<Signals>);

impl Strays {
    pub(super) fn new() -> Self {
        let is_first = std::process::id() == 1;
        Self(is_first.then(|| signal(SignalKind::child()).ok()).flatten())
    }

    /// Takes those away that have ended, whenever a child ends; does not come back when there can be none. While this
    /// runs, no command does, so what is not of our own process group is a stray.
    pub(super) async fn reap(&mut self) {
        let Some(signals) = &mut self.0 else { return std::future::pending().await };
        let _child = signals.recv().await;
        for stray in ended_strays() {
            let _reaped = waitpid(Some(stray), WaitOptions::NOHANG);
        }
    }
}

/// Children that have ended in process groups other than ours. `getpgid` can't say so: a group that is none of our PID
/// namespace is 0 there, which `rustix` takes for impossible.
fn ended_strays() -> impl Iterator<Item = Pid> {
    let own_group = Process::own().map(|own| own.group);
    let strays = Process::all().filter(move |process| {
        process.is_zombie && process.parent == 1 && own_group.is_some_and(|own| own != process.group)
    });
    strays.filter_map(|stray| Pid::from_raw(stray.id))
}

/// A running command with all that it has started: ended together when nobody waits for it any more.
struct Group(Option<Pid>);

impl Group {
    /// The command has ended by itself, and its number may soon be another's.
    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Nothing is left to be ended when this fails.
        let _ended = self.0.map(|leader| kill_process_group(leader, Signal::KILL));
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::notify::Event;
    use crate::token::At;

    #[tokio::test(start_paused = true)]
    async fn a_command_that_takes_too_long_is_ended_with_all_that_it_started() {
        let directory = tempfile::TempDir::new().unwrap();
        let file = directory.path().join("pids");
        // Two processes write their numbers; both would wait for an hour.
        let script = "sh -c 'echo $$ >> \"$1\"; sleep 3600 & wait' sh \"$1\" & echo $$ >> \"$1\"; wait";
        let command = ["sh", "-c", script, "sh", file.to_str().unwrap()].map(str::to_owned).into();
        let runner = Runner { command, limit: None };
        let notice = Notice {
            at: At(0),
            event: Event::LoginRequired,
            account: "main".to_owned(),
            message: "a person has to log in".into(),
        };

        // The clock stands still while the other thread looks, and then jumps.
        let watched = file.clone();
        let started = tokio::task::spawn_blocking(move || eventually(|| pids(&watched).len() == 2));
        let (_, started) = tokio::join!(runner.tell(&notice), started);

        assert!(started.unwrap(), "both processes ran");
        let pids = pids(&file);
        assert!(eventually(|| !pids.iter().any(|pid| is_alive(pid))), "one of {pids:?} lives on");
    }

    fn pids(file: &PathBuf) -> Vec<String> {
        std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// A dead process that nobody asked about is a zombie.
    fn is_alive(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }

    fn eventually(mut is_true: impl FnMut() -> bool) -> bool {
        (0..6000).any(|_| {
            let came = is_true();
            if !came {
                std::thread::sleep(Duration::from_millis(5));
            }
            came
        })
    }
}
