//! `login`: the browser's part in any browser, the rest in this terminal.

use std::io::{BufRead as _, IsTerminal as _, stdin};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::Runtime;

use super::daemon::{Daemon, runtime};
use super::{Common, Exit, Failure, log, say, say_error};
use crate::config::{Config, Environment};
use crate::control::login::{PENDING_LIVES, as_json, is_local};
use crate::notify;
use crate::server::Accounts;

/// Where the login takes place: in the running daemon, or here.
enum Place {
    Daemon(Daemon),
    Here(Runtime, Accounts),
}

/// A person who writes, or a script; the person is told how the time passes.
struct Terminal {
    lines: Receiver<std::io::Result<String>>,
    started: Instant,
    told: usize,
    is_one: bool,
}

/// What is said when, and at last nothing: the login is not waited for any longer.
const REMINDERS: [(Duration, Option<&str>); 4] = [
    (Duration::from_secs(5 * 60), Some("(5 minutes are left)")),
    (Duration::from_secs(8 * 60), Some("(2 minutes are left)")),
    (Duration::from_secs(9 * 60), Some("(1 minute is left)")),
    (PENDING_LIVES, None),
];

pub(super) fn login(
    config: &Config,
    account: &str,
    common: &Common,
    environment: &Environment,
) -> Result<Exit, Failure> {
    let place = match Daemon::find(&config.state_dir)? {
        Some(daemon) => Place::Daemon(daemon),
        None => {
            log::start_quiet(config, common, environment)?;
            let (runtime, accounts) = open(config)?;
            Place::Here(runtime, accounts)
        }
    };
    let redirect_uri = &config.accounts[account].redirect_uri.url;
    let outcome = match &place {
        Place::Daemon(_) if is_local(redirect_uri) => come_back(&place, account),
        _ => converse(&place, account),
    };
    if let Place::Here(runtime, accounts) = place {
        runtime.block_on(accounts.close());
    }
    outcome
}

/// The sessions, without a daemon.
pub(super) fn open(config: &Config) -> Result<(Runtime, Accounts), Failure> {
    if let Some(account) = config.accounts.values().find(|account| account.secret.is_missing()) {
        return Err(missing_secret(&account.name));
    }
    let runtime = runtime()?;
    // Nobody is told of events while a person sits in front of it.
    let (notifier, _) = notify::channel();
    let accounts = runtime.block_on(async { Accounts::open(config, &notifier) })?;
    Ok((runtime, accounts))
}

/// The browser comes back to the daemon by itself, which ends the login.
fn come_back(place: &Place, account: &str) -> Result<Exit, Failure> {
    let url = place.start(account)?;
    say("Open this address in a browser on this machine and log in there:\n");
    say(&url);
    say("\nThe browser comes back to the daemon by itself. `cnblogs-proxy status` says when it is done.");
    Ok(Exit::Done)
}

/// No daemon is running, and the secret is not known here.
fn missing_secret(account: &str) -> Failure {
    Failure::new(
        Exit::Configuration,
        format!("account.{account}: has no secret here, and no daemon is running"),
    )
    .with_hint("start the daemon, or name the secret's file in the configuration")
}

fn converse(place: &Place, account: &str) -> Result<Exit, Failure> {
    let url = place.start(account)?;
    say("Open this address in a browser and log in there:\n");
    say(&url);
    say(
        "\nThe browser ends at an almost empty page. Copy the whole address of that page from the address bar,",
    );
    say("with everything behind the #, and paste it here:");
    let mut terminal = Terminal::new();
    terminal.tell("(10 minutes are left)");
    let mut last = None;
    loop {
        let Some(line) = terminal.next_line()? else {
            return Err(last.unwrap_or_else(|| Failure::new(Exit::Failed, "nothing was pasted")));
        };
        if line.trim().is_empty() {
            continue;
        }
        terminal.tell("Checking the address, and exchanging its code for a token ...");
        match place.finish(account, &line) {
            Ok(outcome) => {
                return settle(place, account, &outcome, &mut || terminal.next_line().ok().flatten());
            }
            Err(failure) if terminal.is_one && failure.exit == Exit::Failed => {
                say_error(&format!("error: {}", failure.message));
                say("Paste the address again, or press Ctrl-C and start over:");
                last = Some(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
}

fn settle(
    place: &Place,
    account: &str,
    outcome: &Value,
    next_line: &mut dyn FnMut() -> Option<String>,
) -> Result<Exit, Failure> {
    let text = |name: &str| outcome.get(name).and_then(Value::as_str).unwrap_or_default();
    match text("outcome") {
        "needs-confirmation" => {
            say(&format!(
                "{account} is logged in as {}, and you logged in as {}. Write yes to replace the login:",
                text("stored"),
                text("new")
            ));
            let is_yes = next_line().is_some_and(|line| line.trim().eq_ignore_ascii_case("yes"));
            let outcome = place.confirm(account, text("confirm"), is_yes)?;
            settle(place, account, &outcome, &mut || None)
        }
        "declined" => {
            say("Nothing changed: the new login was revoked.");
            Ok(Exit::Failed)
        }
        _ => {
            let who =
                if text("person").is_empty() { String::new() } else { format!(" as {}", text("person")) };
            say(&format!("{account} is logged in{who}."));
            if !text("login_expires_at").is_empty() {
                say(&format!("This login lasts until {}.", text("login_expires_at")));
            }
            for remark in outcome.get("remarks").and_then(Value::as_array).into_iter().flatten() {
                say_error(&format!("warning: {}", remark.as_str().unwrap_or_default()));
            }
            Ok(Exit::Done)
        }
    }
}

impl Terminal {
    fn new() -> Self {
        let (sender, lines) = channel();
        // It waits for a person, whom nothing but the end of the program interrupts.
        std::thread::spawn(move || stdin().lock().lines().try_for_each(|line| sender.send(line)).ok());
        Self { lines, started: Instant::now(), told: 0, is_one: stdin().is_terminal() }
    }

    /// Progress, for a person who sits in front of it.
    fn tell(&self, words: &str) {
        if self.is_one {
            say_error(words);
        }
    }

    /// What the person writes next; none when nothing more will come.
    fn next_line(&mut self) -> Result<Option<String>, Failure> {
        loop {
            let reminder = REMINDERS.get(self.told).filter(|_| self.is_one);
            let line = match reminder {
                None => self.lines.recv().map_err(|_ended| RecvTimeoutError::Disconnected),
                Some((at, _)) => self.lines.recv_timeout(at.saturating_sub(self.started.elapsed())),
            };
            match (line, reminder) {
                (Ok(line), _) => return line.map(Some).map_err(|error| Failure::of(&error.into())),
                (Err(RecvTimeoutError::Timeout), Some((_, Some(words)))) => {
                    self.tell(words);
                    self.told += 1;
                }
                (Err(RecvTimeoutError::Timeout), _) => {
                    let failure = Failure::new(Exit::Failed, "the 10 minutes of this login are over");
                    return Err(failure.with_hint("run the command again: it gives a new address"));
                }
                (Err(RecvTimeoutError::Disconnected), _) => return Ok(None),
            }
        }
    }
}

impl Place {
    fn start(&self, account: &str) -> Result<String, Failure> {
        match self {
            Self::Daemon(daemon) => {
                let answer = daemon.post(&format!("/-/login/{account}/start"), &[])?.success()?;
                answer.location.ok_or_else(|| Failure::new(Exit::Failed, "the daemon gave no address"))
            }
            Self::Here(runtime, accounts) => {
                runtime.block_on(accounts.logins.start(account)).map(String::from).map_err(failed)
            }
        }
    }

    fn finish(&self, account: &str, pasted: &str) -> Result<Value, Failure> {
        match self {
            Self::Daemon(daemon) => {
                Ok(daemon.post(&format!("/-/login/{account}"), &[("callback", pasted)])?.success()?.json())
            }
            Self::Here(runtime, accounts) => {
                let outcome = runtime.block_on(accounts.logins.finish_pasted(account, pasted));
                outcome.map(|outcome| as_json(&outcome)).map_err(failed)
            }
        }
    }

    fn confirm(&self, account: &str, id: &str, yes: bool) -> Result<Value, Failure> {
        let answer = if yes { "yes" } else { "no" };
        match self {
            Self::Daemon(daemon) => {
                let form = [("confirm", id), ("answer", answer)];
                Ok(daemon.post(&format!("/-/login/{account}"), &form)?.success()?.json())
            }
            Self::Here(runtime, accounts) => {
                let outcome = runtime.block_on(accounts.sessions[account].confirm(id.to_owned(), yes));
                outcome.map(|outcome| as_json(&outcome)).map_err(failed)
            }
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, error.to_string())
}
