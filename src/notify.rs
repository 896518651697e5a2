//! Events that a person should hear of: each is logged, kept for the status page, and told to the configured
//! command and webhook.

mod command;
mod webhook;

use std::fmt;

use rustix::process::Rlimit;
use serde::{Serialize, Serializer};
use tokio::sync::mpsc;

use crate::token::At;
use crate::{config, tls};
use command::{Runner, Strays};
use webhook::Webhook;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// What is told of an event. Written out it is the English of logs, programs and the notify command; its pieces are
/// kept apart for the status page, which has our own words in other languages, too.
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

/// Tells whom the configuration names of every event, one at a time, until all notifiers are gone. A command runs
/// with the limit of open files that the daemon was `started_with`.
pub async fn run(
    mut notices: mpsc::UnboundedReceiver<Notice>,
    configured: config::Notify,
    started_with: Rlimit,
) {
    let runner = Runner::new(configured.command, started_with);
    let webhook = configured.webhook.and_then(Webhook::new);
    let mut strays = Strays::new();
    loop {
        let notice = tokio::select! {
            notice = notices.recv() => notice,
            () = strays.reap() => continue,
        };
        let Some(notice) = notice else { return };
        let post = async {
            if let Some(webhook) = &webhook {
                webhook.post(&notice).await;
            }
        };
        tokio::join!(runner.tell(&notice), post);
    }
}

/// An error in words: its own and those of its causes, each once, and why a server is not trusted.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = tls::why_untrusted(cause).unwrap_or_else(|| cause.to_string());
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

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
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
    pub fn emit(&self, at: At, event: Event, account: &str, message: Text) -> Notice {
        let name = event.as_str();
        if event == Event::Recovered {
            tracing::info!(event = name, account, "{message}");
        } else {
            tracing::warn!(event = name, account, "{message}");
        }
        let notice = Notice { at, event, account: account.to_owned(), message };
        // Nobody listens while the program stops.
        let _listening = self.notices.send(notice.clone());
        notice
    }
}
