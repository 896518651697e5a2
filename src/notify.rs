//! Events that a person should hear of: each is logged, kept for the status page, and told to the configured
//! command and webhook.

mod command;
mod webhook;

use rustix::process::Rlimit;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::token::{At, now};
use crate::{config, tls};
pub use command::{LAUNCHER, launch};
use command::{Runner, Strays};
use webhook::Webhook;

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
    pub message: String,
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

impl Notifier {
    /// Logs an event and passes it on.
    pub fn emit(&self, event: Event, account: &str, message: String) -> Notice {
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
