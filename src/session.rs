//! The live token of one account: a [`Session`] is what requests and commands hold; its keeper is the one task
//! that obtains, persists and publishes tokens.
//!
//! A request only reads and asks. A refresh never lives in a request's future: that is dropped when the caller
//! hangs up, and with it a rotated refresh token that exists nowhere else.

mod journal;
mod keeper;
mod mailbox;
mod plan;
#[cfg(test)]
mod histories;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use serde::{Serialize, Serializer};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Account, BrowserLogin};
use crate::heartbeat::Heartbeat;
use crate::notify::{Event, Notice, Notifier};
use crate::oauth::callback::Code;
use crate::oauth::{Oauth, Pending, Verified};
use crate::store::{SharedLogin, Store};
use crate::tls::TlsError;
use crate::token::{At, Clock, Moment, Token};
use mailbox::{Ask, Mailbox, Reply};

/// A person is warned that long before the server ends the login.
pub const WARN_BEFORE: Duration = Duration::from_secs(3 * 24 * 3600);
/// A token that no refresh replaces is taken for dead after so many 401s without a success between.
const DEAD_AFTER_REFUSALS: u32 = 3;

/// The live token of one account. Cheap to clone.
#[derive(Clone)]
pub struct Session {
    shared: Arc<SessionState>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refresh {
    /// When it ended.
    pub at: At,
    /// How it ended.
    pub outcome: RefreshOutcome,
    /// Why it failed.
    pub error: Option<String>,
}

/// What is told about an account. Never a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    /// What replicas share of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<SharedLogin>,
    /// How many refreshes of this process ended how.
    #[serde(skip)]
    pub refresh_counts: BTreeMap<RefreshOutcome, u64>,
    /// How many events there were since the start.
    #[serde(skip)]
    pub event_counts: BTreeMap<Event, u64>,
}

/// What the keeper answers to a person's ask.
#[derive(Clone, Debug, thiserror::Error)]
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
    /// Who is logged in, as far as the API said.
    pub stored: Option<String>,
    /// Who would be, as far as the API said.
    pub new: Option<String>,
}

struct SessionState {
    account: String,
    clock: Clock,
    source: ArcSwap<TokenSource>,
    current: ArcSwapOption<Token>,
    mailbox: Mailbox,
    heartbeat: Heartbeat,
    published: watch::Sender<Published>,
}

/// Where the tokens of an account come from.
pub struct TokenSource {
    /// As it is configured.
    pub account: Account,
    /// The client of its authorization server; none for a personal access token.
    pub oauth: Option<Oauth>,
}

impl TokenSource {
    /// As an account is configured. A request to its server takes `timeout` at most; what is discovered of that is kept
    /// in `state_dir`.
    ///
    /// # Errors
    /// When the TLS set-up is not usable.
    pub fn new(account: Account, timeout: Duration, state_dir: &Path) -> Result<Self, TlsError> {
        let oauth = account.client().map(|client| Oauth::new(&account, client, timeout)).transpose()?;
        let file = state_dir.join(format!("discovery.{}", account.name));
        Ok(Self { oauth: oauth.map(|oauth| oauth.keeping_in(file)), account })
    }

    /// The same with re-read secrets and certificates.
    ///
    /// # Errors
    /// When the TLS set-up is not usable.
    pub fn reconfigured(&self, account: Account) -> Result<Self, TlsError> {
        let client = self.oauth.as_ref().zip(account.client());
        let oauth = client.map(|(oauth, client)| oauth.reconfigured(&account, client)).transpose()?;
        Ok(Self { account, oauth })
    }

    /// Where and how a person logs in; none when none does.
    pub fn login(&self) -> Option<(&Oauth, &BrowserLogin)> {
        self.oauth.as_ref().zip(self.account.login())
    }
}

/// What the keeper last said.
#[derive(Clone)]
struct Published {
    /// How many tries are over.
    tries: u64,
    /// How many of the upstream's 401s cause no refresh.
    turned_down: u64,
    /// How long after `at` the next try is allowed.
    retry_in: Duration,
    at: Moment,
    status: Arc<Status>,
}

impl Published {
    /// How long until the next try, from now on.
    fn retry_in(&self, now: Moment) -> Duration {
        self.retry_in.saturating_sub(now.since(self.at))
    }

    /// True when a token will not come from the try that was under way, or not in time.
    fn is_hopeless(&self, seen_tries: u64, patience: Duration, now: Moment) -> bool {
        let state = self.status.state;
        let is_late = state != State::Refreshing && self.retry_in(now) > patience;
        self.tries > seen_tries || state == State::LoginRequired || is_late
    }
}

/// Starts the keeper of an account on the current runtime and returns its session. The keeper ends
/// after `stop`, when what it has begun is done. `is_in_flight` says that a refresh was under way when the last
/// process ended, `random` spreads refreshes.
pub fn start(
    source: TokenSource,
    store: Store,
    is_in_flight: bool,
    notifier: Notifier,
    clock: Clock,
    random: fastrand::Rng,
    stop: CancellationToken,
) -> (Session, JoinHandle<()>) {
    let status = Arc::new(keeper::first_status(&source.account));
    let first = Published { tries: 0, turned_down: 0, retry_in: Duration::ZERO, at: clock.now(), status };
    let shared = Arc::new(SessionState {
        account: source.account.name.clone(),
        clock,
        source: ArcSwap::from_pointee(source),
        current: ArcSwapOption::empty(),
        mailbox: Mailbox::default(),
        heartbeat: Heartbeat::new(),
        published: watch::Sender::new(first),
    });
    let keeper = keeper::Keeper::new(Arc::clone(&shared), store, is_in_flight, notifier, random);
    let task = tokio::spawn(keeper.keep(stop));
    (Session { shared }, task)
}

/// Logs out an account that is not configured any more: revokes what the clients of these sessions can, and erases
/// all of it. Gives a sentence that the person should read, if there is one.
///
/// # Errors
/// When it can't be erased.
pub async fn log_out_unconfigured(
    store: Store,
    account: String,
    sessions: impl Iterator<Item = &Session>,
) -> Result<Option<String>, AskError> {
    let sources: Vec<_> = sessions.map(Session::source).collect();
    keeper::log_out_unconfigured(store, account, &sources).await
}

impl Session {
    /// The account's name.
    pub fn account(&self) -> &str {
        &self.shared.account
    }

    /// Where its tokens come from.
    pub fn source(&self) -> Arc<TokenSource> {
        self.shared.source.load_full()
    }

    /// The token in use, if it can be: one load and two looks at clocks.
    pub fn current(&self) -> Option<Guard<Option<Arc<Token>>>> {
        let token = self.shared.current.load();
        let is_usable =
            token.as_ref().is_some_and(|token| token.lifetime().is_usable(self.shared.clock.now()));
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
    /// all who saw the same refusal share. None when there will be none, or not within `patience`.
    pub async fn refreshed_since(&self, refused: &Token, patience: Duration) -> Option<Arc<Token>> {
        tokio::time::timeout(patience, self.next_after(refused)).await.ok().flatten()
    }

    /// Tells the keeper that the upstream answered 401 to a token, without waiting for what comes of it. One that no
    /// refresh replaces is dead when that happens three times without a success between.
    pub fn report_rejected(&self, refused: &Token) {
        if !refused.is_last() || refused.note_refusal() >= DEAD_AFTER_REFUSALS {
            self.shared.mailbox.tell_rejected(refused.serial());
        }
    }

    /// Tells the keeper that the upstream takes a token which replaces one that it had refused.
    pub fn report_cured(&self, token: &Token) {
        self.shared.mailbox.tell_accepted(token.serial());
    }

    /// Notes that the upstream takes a token: one load, unless it had refused it before.
    pub fn note_accepted(&self, token: &Token) {
        if token.forget_refusals() >= DEAD_AFTER_REFUSALS {
            self.shared.mailbox.tell_accepted(token.serial());
        }
    }

    /// True when a request can be served now.
    pub fn is_ready(&self) -> bool {
        self.current().is_some_and(|token| {
            token.as_ref().is_some_and(|token| !token.is_last() || self.status().state == State::Ready)
        })
    }

    /// True when the account's login is known to be over: what the upstream refuses then, only a person can mend.
    pub fn needs_login(&self) -> bool {
        self.status().state == State::LoginRequired
    }

    /// What is told about the account.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.shared.published.borrow().status)
    }

    /// Since when the keeper has not moved. One that saves a login which is nowhere else counts as moving.
    pub fn silent_for(&self) -> Duration {
        self.shared.heartbeat.silent_for()
    }

    /// Refreshes now, whatever forbade it for a while.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn refresh(&self) -> Result<(), AskError> {
        self.ask(|reply| self.shared.mailbox.ask_for_a_refresh(reply)).await
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
        let login = Box::new((pending, code, verified));
        self.ask(|reply| self.shared.mailbox.ask(Ask::LogIn { login, reply })).await
    }

    /// Answers whether another person's login shall replace the stored one.
    ///
    /// # Errors
    /// When none is waiting under that id.
    pub async fn confirm(&self, id: String, yes: bool) -> Result<LoginOutcome, AskError> {
        self.ask(|reply| self.shared.mailbox.ask(Ask::Confirm { id, yes, reply })).await
    }

    /// Revokes the refresh token at the server and erases the stored login. Gives a sentence that the person should
    /// read, if there is one.
    ///
    /// # Errors
    /// When the stored one can't be erased, or was erased and the server did not confirm.
    pub async fn log_out(&self) -> Result<Option<String>, AskError> {
        self.ask(|reply| self.shared.mailbox.ask(Ask::LogOut { reply })).await
    }

    /// Takes over re-read secrets and certificates, at once for all that begins from now on. Never waits.
    pub fn reconfigure(&self, source: TokenSource) {
        self.shared.source.store(Arc::new(source));
        self.shared.mailbox.tell_reconfigured();
    }

    fn usable(&self) -> Option<Arc<Token>> {
        self.current().and_then(|token| token.as_ref().cloned())
    }

    /// The outcome of the keeper's next try, when that comes within `patience`.
    async fn next(&self, patience: Duration) -> Option<Arc<Token>> {
        let mut published = self.shared.published.subscribe();
        let seen = published.borrow_and_update().tries;
        self.shared.mailbox.tell_wanted();
        loop {
            if let Some(token) = self.usable() {
                return Some(token);
            }
            if published.borrow_and_update().is_hopeless(seen, patience, self.shared.clock.now()) {
                return None;
            }
            published.changed().await.ok()?;
        }
    }

    /// What becomes of the upstream's 401 to a token.
    async fn next_after(&self, refused: &Token) -> Option<Arc<Token>> {
        let mut published = self.shared.published.subscribe();
        let verdicts = |published: &Published| (published.tries, published.turned_down);
        let seen = verdicts(&published.borrow_and_update());
        if self.newer_than(refused).is_none() {
            self.report_rejected(refused);
        }
        loop {
            if let Some(token) = self.newer_than(refused) {
                return Some(token);
            }
            if verdicts(&published.borrow_and_update()) != seen {
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
            _ => NoToken::Unavailable {
                retry_after_secs: published.retry_in(self.shared.clock.now()).as_secs().saturating_add(1),
            },
        }
    }

    async fn ask<T>(&self, post: impl FnOnce(Reply<T>)) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        post(reply);
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

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Serialize for RefreshOutcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
