//! Events that a person should hear of: each is logged, kept for the status page, and told to the configured
//! command.

use std::fmt;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Serialize, Serializer};
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::token::{At, now};

/// A command that takes longer is ended.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Only a person can help: a login with a browser is needed.
    LoginRequired,
    /// The server ends the login soon.
    LoginExpiring,
    /// Refreshing has failed for a while; the current token still serves or will be replaced later.
    RefreshFailing,
    /// A refresh was sent and its answer lost; the login may be lost with it.
    RotationInDoubt,
    /// What failed before works again.
    Recovered,
    /// The login can't be saved, so refresh tokens are not spent.
    StoreFailing,
}

/// An event with its circumstances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// When.
    pub at: At,
    /// What happened.
    pub event: Event,
    /// To which account.
    #[serde(skip)]
    pub account: String,
    /// In words.
    pub message: Text,
}

/// What is told of an event. Written out it is the English of logs, programs and the notify command; its pieces are kept
/// apart for the status page, which has our own words in other languages, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text(Vec<Piece>);

/// A piece of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Our own words: those of a key below `said` in `control/pages/words.toml`.
    Words(&'static str),
    /// A time, a name, the text of an error.
    Value(String),
}

/// Where events are sent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Notifier {
    notices: mpsc::UnboundedSender<Notice>,
}

/// Makes a notifier and what [`run`] reads.
pub fn channel() -> (Notifier, mpsc::UnboundedReceiver<Notice>) {
    let (notices, receiver) = mpsc::unbounded_channel();
    (Notifier { notices }, receiver)
}

/// Tells `command` of every event, one at a time, until all notifiers are gone.
pub async fn run(mut notices: mpsc::UnboundedReceiver<Notice>, command: Vec<String>) {
    while let Some(notice) = notices.recv().await {
        if let Some((program, arguments)) = command.split_first() {
            tell(program, arguments, &notice).await;
        }
    }
}

/// An error in words: its own and those of its causes, each once.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::LoginRequired,
        Self::LoginExpiring,
        Self::RefreshFailing,
        Self::RotationInDoubt,
        Self::Recovered,
        Self::StoreFailing,
    ];

    /// As it is written in the contract.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LoginRequired => "login-required",
            Self::LoginExpiring => "login-expiring",
            Self::RefreshFailing => "refresh-failing",
            Self::RotationInDoubt => "rotation-in-doubt",
            Self::Recovered => "recovered",
            Self::StoreFailing => "store-failing",
        }
    }
}

impl Text {
    /// With more words behind it.
    pub fn words(mut self, words: &'static str) -> Self {
        self.0.push(Piece::Words(words));
        self
    }

    /// With a value behind it.
    pub fn value(mut self, value: impl fmt::Display) -> Self {
        self.0.push(Piece::Value(value.to_string()));
        self
    }

    /// Its pieces, in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.0
    }
}

impl From<&'static str> for Text {
    fn from(words: &'static str) -> Self {
        Self(vec![Piece::Words(words)])
    }
}

impl fmt::Display for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Words(words) => formatter.write_str(words),
            Piece::Value(value) => formatter.write_str(value),
        })
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Notifier {
    /// Logs an event and passes it on.
    pub fn emit(&self, event: Event, account: &str, message: Text) -> Notice {
        let name = event.as_str();
        if event == Event::Recovered {
            tracing::info!(event = name, account, "{message}");
        } else {
            tracing::warn!(event = name, account, "{message}");
        }
        let notice = Notice { at: At(now().wall_ms()), event, account: account.to_owned(), message };
        // Nobody listens while the program stops.
        let _listening = self.notices.send(notice.clone());
        notice
    }
}

async fn tell(program: &str, arguments: &[String], notice: &Notice) {
    let child = Command::new(program)
        .args(arguments)
        .env("CNBLOGS_PROXY_EVENT", notice.event.as_str())
        .env("CNBLOGS_PROXY_ACCOUNT", &notice.account)
        .env("CNBLOGS_PROXY_MESSAGE", notice.message.to_string())
        .env_remove("CNBLOGS_CLIENT_SECRET")
        .env_remove("CNBLOGS_PAT")
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
    match ended {
        Ok(Ok(status)) if status.success() => {}
        Ok(Ok(status)) => tracing::warn!(program, %status, "the notify command failed"),
        Ok(Err(error)) => tracing::warn!(program, %error, "the notify command can't be waited for"),
        Err(_elapsed) => tracing::warn!(program, "the notify command took longer than 30 s and was ended"),
    }
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

    #[tokio::test(start_paused = true)]
    async fn a_command_that_takes_too_long_is_ended_with_all_that_it_started() {
        let directory = tempfile::TempDir::new().unwrap();
        let file = directory.path().join("pids");
        // Two processes write their numbers; both would wait for an hour.
        let script = "sh -c 'echo $$ >> \"$1\"; sleep 3600 & wait' sh \"$1\" & echo $$ >> \"$1\"; wait";
        let arguments = ["-c", script, "sh", file.to_str().unwrap()].map(str::to_owned);
        let notice = Notice {
            at: At(0),
            event: Event::LoginRequired,
            account: "main".to_owned(),
            message: Text::from("a person has to log in"),
        };

        // The clock stands still while the other thread looks, and then jumps.
        let watched = file.clone();
        let started = tokio::task::spawn_blocking(move || eventually(|| pids(&watched).len() == 2));
        let (_, started) = tokio::join!(tell("sh", &arguments, &notice), started);

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
