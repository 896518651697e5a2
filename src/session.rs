//! The live token of one account: a [`Session`] is what requests and commands hold; its keeper is the one task
//! that obtains, persists and publishes tokens.
//!
//! A request only reads and asks. A refresh never lives in a request's future: that is dropped when the caller
//! hangs up, and with it a rotated refresh token that exists nowhere else.

mod keeper;
mod plan;
#[cfg(test)]
#[path = "../tests/histories/main.rs"]
mod histories;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use serde::Serialize;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Account;
use crate::notify::{Event, Notice, Notifier};
use crate::oauth::callback::Code;
use crate::oauth::{Oauth, Pending, Verified};
use crate::pulse::Pulse;
use crate::store::Store;
use crate::token::{At, Moment, Token, now};

/// A person is warned that long before the server ends the login.
pub const WARN_BEFORE: Duration = Duration::from_secs(3 * 24 * 3600);
/// How many events the status shows.
const EVENTS_KEPT: usize = 20;
/// How many refreshes the status shows.
const REFRESHES_KEPT: usize = 10;

/// The live token of one account. Cheap to clone.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

/// Why there is no token for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoToken {
    /// Only a person can help.
    LoginRequired,
    /// It is being retried; the next try is that many seconds away.
    Unavailable {
        /// At least one.
        retry_after_secs: u64,
    },
}

/// How an account is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Requests are served, and refreshing works.
    Ready,
    /// A refresh is on its way.
    Refreshing,
    /// Refreshing or saving fails for now; requests are served as long as the token lasts.
    Degraded,
    /// Only a person can help, even while the last token still serves.
    LoginRequired,
}

/// How a refresh ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefreshOutcome {
    /// With a new token.
    Ok,
    /// The server's OAuth error.
    Refused,
    /// Not now.
    Unavailable,
    /// Sent, and not answered.
    InDoubt,
}

/// A refresh that is over.
#[derive(Clone, Debug, Serialize)]
pub struct Refresh {
    /// When it ended.
    pub at: At,
    /// How it ended.
    pub outcome: RefreshOutcome,
    /// Why it failed.
    pub error: Option<String>,
}

/// What is told about an account. Never a token.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// How its tokens are obtained.
    pub grant: &'static str,
    /// How it is.
    pub state: State,
    /// Who logged in, as far as the API said.
    pub person: Option<String>,
    /// When the token was received; null without one.
    pub obtained_at: Option<At>,
    /// Null without a token, or when the token never expires.
    pub expires_at: Option<At>,
    /// Null when none is planned.
    pub next_refresh_at: Option<At>,
    /// Null when the server ends no login.
    pub login_expires_at: Option<At>,
    /// The last refresh, if there was one.
    pub last_refresh: Option<Refresh>,
    /// The last few of this process, the newest last.
    pub refreshes: VecDeque<Refresh>,
    /// The newest last.
    pub events: VecDeque<Notice>,
    /// How many refreshes of this process ended how.
    #[serde(skip)]
    pub refresh_counts: BTreeMap<RefreshOutcome, u64>,
    /// How many events there were since the start.
    #[serde(skip)]
    pub event_counts: BTreeMap<Event, u64>,
}

/// What the keeper answers to a person's ask.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It can't be done, and why.
    #[error("{0}")]
    Failed(String),
    /// It was not begun, and why: nothing is spent, and it can be asked for again.
    #[error("{0}")]
    NotBegun(String),
    /// Only a login helps.
    #[error("{0}")]
    LoginRequired(String),
    /// The program stops.
    #[error("the daemon is stopping")]
    Stopping,
}

/// What became of a login.
#[derive(Clone, Debug)]
pub enum LoginOutcome {
    /// It is stored and in use.
    Done(LoginDone),
    /// Somebody else is logged in; the new login waits for a yes.
    NeedsConfirmation(Confirmation),
    /// A no: the new login was revoked.
    Declined,
}

/// A login that is in use.
#[derive(Clone, Debug)]
pub struct LoginDone {
    /// Who logged in, as far as the API said.
    pub person: Option<String>,
    /// When the server ends it.
    pub login_expires_at: Option<At>,
    /// Sentences that the person should read.
    pub remarks: Vec<String>,
}

/// A login of somebody else than the stored one.
#[derive(Clone, Debug)]
pub struct Confirmation {
    /// Names it in the answer.
    pub id: String,
    /// Who is logged in, if that is known.
    pub stored: Option<String>,
    /// Who would be, if that is known.
    pub new: Option<String>,
}

struct Shared {
    account: String,
    oauth: ArcSwap<Oauth>,
    current: ArcSwapOption<Token>,
    rejected: AtomicU64,
    poke: Notify,
    pulse: Pulse,
    asks: mpsc::Sender<Ask>,
    published: watch::Sender<Published>,
}

/// What the keeper last said. `answers` counts the times that it finished a try, or turned one down.
#[derive(Clone)]
struct Published {
    answers: u64,
    retry_in: Duration,
    published_at: Moment,
    status: Arc<Status>,
}

impl Published {
    /// How long until the next try, from now on.
    fn retry_in(&self) -> Duration {
        self.retry_in.saturating_sub(now().since(self.published_at))
    }

    /// True when a token will not come from the try that was under way, or not in time.
    fn is_hopeless(&self, seen_answers: u64, patience: Duration) -> bool {
        let state = self.status.state;
        let is_late = state != State::Refreshing && self.retry_in() > patience;
        self.answers > seen_answers || state == State::LoginRequired || is_late
    }
}

enum Ask {
    Refresh(oneshot::Sender<Result<(), AskError>>),
    LogIn { login: Box<(Pending, Code, Verified)>, reply: oneshot::Sender<Result<LoginOutcome, AskError>> },
    Confirm { id: String, yes: bool, reply: oneshot::Sender<Result<LoginOutcome, AskError>> },
    LogOut(oneshot::Sender<Result<(), AskError>>),
    Reconfigure(Box<Account>),
}

/// Starts the keeper of a client's account on the current runtime and returns its session. The keeper ends
/// after `stop`, when what it has begun is done. `is_in_flight` says that a refresh was under way when the last
/// process ended.
pub fn start(
    oauth: Oauth,
    store: Arc<Store>,
    is_in_flight: bool,
    notifier: Notifier,
    stop: CancellationToken,
) -> (Session, JoinHandle<()>) {
    let (asks, asked) = mpsc::channel(32);
    let oauth = Arc::new(oauth);
    let status = keeper::first_status(oauth.account());
    let first =
        Published { answers: 0, retry_in: Duration::ZERO, published_at: now(), status: Arc::new(status) };
    let shared = Arc::new(Shared {
        account: oauth.account().name.clone(),
        oauth: ArcSwap::new(Arc::clone(&oauth)),
        current: ArcSwapOption::empty(),
        rejected: AtomicU64::new(0),
        poke: Notify::new(),
        pulse: Pulse::new(),
        asks,
        published: watch::Sender::new(first),
    });
    let keeper = keeper::Keeper::new(Arc::clone(&shared), oauth, store, is_in_flight, notifier);
    let task = tokio::spawn(keeper.keep(asked, stop));
    (Session { shared }, task)
}

impl Session {
    /// The account's name.
    pub fn account(&self) -> &str {
        &self.shared.account
    }

    /// The client of its authorization server.
    pub fn oauth(&self) -> Arc<Oauth> {
        self.shared.oauth.load_full()
    }

    /// The token in use, if it can be: one load and two looks at clocks.
    pub fn current(&self) -> Option<Guard<Option<Arc<Token>>>> {
        let token = self.shared.current.load();
        let is_usable = token.as_ref().is_some_and(|token| token.lifetime().is_usable(now()));
        is_usable.then_some(token)
    }

    /// The token in use, or the next one when it is on its way and comes within `patience`.
    ///
    /// # Errors
    /// When there is none in time, and who can help.
    pub async fn token(&self, patience: Duration) -> Result<Arc<Token>, NoToken> {
        let token = match self.usable() {
            Some(token) => Some(token),
            None => tokio::time::timeout(patience, self.next(patience)).await.ok().flatten(),
        };
        token.ok_or_else(|| self.why_none())
    }

    /// A newer token than one that the upstream refused with 401: there already, or from the one refresh that
    /// all who saw the same refusal share. None when there will be none.
    pub async fn refreshed_since(&self, refused: &Token) -> Option<Arc<Token>> {
        let mut published = self.shared.published.subscribe();
        let seen = published.borrow_and_update().answers;
        self.shared.rejected.fetch_max(refused.serial(), Ordering::AcqRel);
        if self.newer_than(refused).is_none() {
            self.shared.poke.notify_one();
        }
        loop {
            if let Some(token) = self.newer_than(refused) {
                return Some(token);
            }
            if published.borrow_and_update().answers > seen {
                return None;
            }
            published.changed().await.ok()?;
        }
    }

    /// Tells the keeper that the upstream refused a token, without waiting for what comes of it.
    pub fn report_rejected(&self, refused: &Token) {
        self.shared.rejected.fetch_max(refused.serial(), Ordering::AcqRel);
        self.shared.poke.notify_one();
    }

    /// What is told about the account.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.shared.published.borrow().status)
    }

    /// Since when the keeper has not moved. One that saves a login which is nowhere else counts as moving.
    pub fn silent_for(&self) -> Duration {
        self.shared.pulse.silent_for()
    }

    /// Refreshes now, whatever forbade it for a while.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn refresh(&self) -> Result<(), AskError> {
        self.ask(Ask::Refresh).await
    }

    /// Spends the code of a callback, once, and stores what it brings.
    ///
    /// # Errors
    /// Why there is no login; the stored one is untouched then.
    pub async fn log_in(
        &self,
        pending: Pending,
        code: Code,
        verified: Verified,
    ) -> Result<LoginOutcome, AskError> {
        self.ask(|reply| Ask::LogIn { login: Box::new((pending, code, verified)), reply }).await
    }

    /// Answers whether another person's login shall replace the stored one.
    ///
    /// # Errors
    /// When none is waiting under that id.
    pub async fn confirm(&self, id: String, yes: bool) -> Result<LoginOutcome, AskError> {
        self.ask(|reply| Ask::Confirm { id, yes, reply }).await
    }

    /// Revokes the refresh token at the server and erases the stored login.
    ///
    /// # Errors
    /// When the stored one can't be erased, or was erased and the server did not confirm.
    pub async fn log_out(&self) -> Result<(), AskError> {
        self.ask(Ask::LogOut).await
    }

    /// Takes over re-read secrets and certificates.
    pub async fn reconfigure(&self, account: Account) {
        // A keeper that is gone needs no configuration.
        let _taken = self.shared.asks.send(Ask::Reconfigure(Box::new(account))).await;
    }

    fn usable(&self) -> Option<Arc<Token>> {
        self.current().and_then(|token| token.as_ref().cloned())
    }

    /// The outcome of the keeper's next try, when that comes within `patience`.
    async fn next(&self, patience: Duration) -> Option<Arc<Token>> {
        let mut published = self.shared.published.subscribe();
        let seen = published.borrow_and_update().answers;
        self.shared.poke.notify_one();
        loop {
            if let Some(token) = self.usable() {
                return Some(token);
            }
            if published.borrow_and_update().is_hopeless(seen, patience) {
                return None;
            }
            published.changed().await.ok()?;
        }
    }

    fn newer_than(&self, refused: &Token) -> Option<Arc<Token>> {
        let token = self.current()?;
        token.as_ref().filter(|token| token.serial() > refused.serial()).cloned()
    }

    fn why_none(&self) -> NoToken {
        let published = self.shared.published.borrow();
        match published.status.state {
            State::LoginRequired => NoToken::LoginRequired,
            _ => NoToken::Unavailable { retry_after_secs: published.retry_in().as_secs().saturating_add(1) },
        }
    }

    async fn ask<T>(
        &self,
        ask: impl FnOnce(oneshot::Sender<Result<T, AskError>>) -> Ask,
    ) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        if self.shared.asks.send(ask(reply)).await.is_err() {
            return Err(AskError::Stopping);
        }
        answer.await.unwrap_or(Err(AskError::Stopping))
    }
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ready, Self::Refreshing, Self::Degraded, Self::LoginRequired];

    /// As it is written in the contract.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Refreshing => "refreshing",
            Self::Degraded => "degraded",
            Self::LoginRequired => "login-required",
        }
    }
}

impl RefreshOutcome {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Refused, Self::Unavailable, Self::InDoubt];

    /// As it is written in the contract.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::InDoubt => "in-doubt",
        }
    }
}
