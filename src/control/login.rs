//! Logins in progress: from the authorization URL to the callback that a person pastes or a browser brings.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use url::Url;

use crate::config::Grant;
use crate::oauth::callback::{self, Callback, CallbackError, Outcome};
use crate::oauth::id_token::IdTokenError;
use crate::oauth::{LoginError, Pending};
use crate::session::{LoginOutcome, Session};
use crate::token::{At, Moment, now};

/// A login that was begun is waited for as long.
pub const PENDING_LIVES: Duration = Duration::from_secs(600);
/// More than anybody has tabs; the oldest gives way.
const MOST_PENDING: usize = 256;
/// Of how many logins that ended it is known how.
const MOST_ENDED: usize = 64;
/// The path of `/-/callback` in a registered address.
const LOCAL_CALLBACK: &str = "/-/callback";

/// The logins in progress of all accounts.
pub struct Logins {
    sessions: BTreeMap<String, Session>,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    pending: Vec<(String, Pending)>,
    ended: VecDeque<Ended>,
}

/// What a page may know of the logins in progress.
#[derive(Clone, Debug, Default)]
pub struct Waiting {
    /// Those that can be finished, the newest last.
    pub alive: Vec<Alive>,
    /// The last that can't any more, the newest last.
    pub ended: Vec<Ended>,
}

/// A login that can be finished.
#[derive(Clone, Debug)]
pub struct Alive {
    /// Whose it is.
    pub account: String,
    /// Names it.
    pub state: String,
    /// How long it can be.
    pub until: At,
}

/// A login that can't be finished any more.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Whose it was.
    pub account: String,
    /// Named it.
    pub state: String,
    /// False when nobody finished it in time.
    pub was_used: bool,
}

/// Why a login came to nothing. The stored login is untouched.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub struct Rejected {
    /// What kind of thing is wrong, for a page in the person's language.
    pub reason: Reason,
    /// Exactly what.
    pub words: String,
}

/// What kind of thing is wrong with a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Another page's address, or none.
    Address,
    /// Not the whole address.
    Incomplete,
    /// Not as any server sends it.
    Malformed,
    /// Another account's login.
    OtherAccount,
    /// No login of ours.
    Unknown,
    /// A login that is over.
    Used,
    /// A login that took too long.
    Late,
    /// The server's no.
    Denied,
    /// The `id_token` does not vouch for it.
    Untrusted,
    /// The clock is wrong.
    Clock,
    /// The authorization server is not there.
    Server,
    /// The exchange, or keeping what it brought, failed.
    Exchange,
    /// Nobody is asked for a yes.
    Unasked,
    /// The account is not one for this.
    Configuration,
}

impl Logins {
    /// Logins for those accounts that a person logs in to.
    pub fn new(sessions: &BTreeMap<String, Session>) -> Self {
        let mut sessions = sessions.clone();
        sessions.retain(|_, session| session.oauth().account().grant == Grant::AuthorizationCode);
        Self { sessions, progress: Mutex::default() }
    }

    /// The accounts that a person logs in to.
    pub fn accounts(&self) -> impl Iterator<Item = &str> {
        self.sessions.keys().map(String::as_str)
    }

    /// The address where the browser ends, as it is registered; none for an account that needs no login.
    pub fn redirect_uri(&self, account: &str) -> Option<Url> {
        self.sessions.get(account).map(|session| session.oauth().account().redirect_uri.clone())
    }

    /// Begins a login and returns the address to open in a browser.
    ///
    /// # Errors
    /// When the account needs no person.
    pub fn start(&self, account: &str) -> Result<Url, Rejected> {
        let pending = Pending::start();
        let url = self.session(account)?.oauth().authorization_url(&pending);
        let mut progress = self.progress();
        if progress.pending.len() >= MOST_PENDING {
            progress.pending.remove(0);
        }
        progress.pending.push((account.to_owned(), pending));
        Ok(url)
    }

    /// The logins in progress, and how the last ones ended.
    pub fn waiting(&self) -> Waiting {
        let progress = self.progress();
        let alive = progress.pending.iter().map(|(account, pending)| Alive {
            account: account.clone(),
            state: pending.state.clone(),
            until: At(pending.started.plus(PENDING_LIVES).wall_ms()),
        });
        Waiting { alive: alive.collect(), ended: progress.ended.iter().cloned().collect() }
    }

    /// Ends a login with what a person pasted.
    ///
    /// # Errors
    /// What is wrong with it, in words for the person.
    pub async fn finish_pasted(&self, account: &str, pasted: &str) -> Result<LoginOutcome, Rejected> {
        let session = self.session(account)?;
        let is_ours = |callback: &Callback| self.account_of(&callback.state).is_some();
        let oauth = session.oauth();
        let (redirect_uri, mode) = (&oauth.account().redirect_uri, oauth.account().response_mode);
        let callback = callback::parse_pasted(pasted, redirect_uri, mode, &is_ours)?;
        let owner = self.account_of(&callback.state);
        if owner.as_deref().is_some_and(|owner| owner != account) {
            return Err(Rejected::new(
                Reason::OtherAccount,
                "this address belongs to the login of another account",
            ));
        }
        self.finish(callback, session).await
    }

    /// Ends a login with what a browser brought, in the query of a GET or the form of a POST. Says which account
    /// it was for, as far as that is known.
    pub async fn finish_brought(&self, parameters: &str) -> (String, Result<LoginOutcome, Rejected>) {
        let callback = match callback::parse_parameters(&[parameters]) {
            Ok(callback) => callback,
            Err(error) => return (String::new(), Err(error.into())),
        };
        let Some(account) = self.account_of(&callback.state) else {
            return (String::new(), Err(self.progress().gone(&callback.state)));
        };
        let is_registered = self.redirect_uri(&account).as_ref().is_some_and(is_local);
        let outcome = match self.session(&account) {
            Ok(session) if is_registered => self.finish(callback, session).await,
            _ => Err(Rejected::new(
                Reason::Configuration,
                "this account's redirect_uri is not the address of this page",
            )),
        };
        (account, outcome)
    }

    async fn finish(&self, callback: Callback, session: &Session) -> Result<LoginOutcome, Rejected> {
        let code = match callback.outcome {
            Outcome::Code(code) => code,
            Outcome::Denied { error, description } => {
                self.take(&callback.state)?;
                let words = description.map(|words| format!(": {words}")).unwrap_or_default();
                return Err(Rejected::new(
                    Reason::Denied,
                    format!("the authorization server said no ({error}){words}"),
                ));
            }
        };
        let account = session.account();
        let failed = |reason, error: &dyn std::error::Error| {
            tracing::warn!(account, reason = %error, "a login came to nothing");
            Rejected::new(reason, error.to_string())
        };
        // What does not vouch for the login leaves it open: the person may still bring the right address.
        let pending = self.progress().find(&callback.state)?;
        let verified = session.oauth().verify(&pending, &code).await;
        let verified = verified.map_err(|error| failed(reason_of(&error), &error))?;
        let pending = self.take(&callback.state)?;
        session.log_in(pending, code, verified).await.map_err(|error| failed(Reason::Exchange, &error))
    }

    fn session(&self, account: &str) -> Result<&Session, Rejected> {
        self.sessions.get(account).ok_or_else(|| {
            let words = format!("account {account} needs no login: its tokens need no person");
            Rejected::new(Reason::Configuration, words)
        })
    }

    fn account_of(&self, state: &str) -> Option<String> {
        let progress = self.progress();
        progress
            .pending
            .iter()
            .find(|(_, pending)| pending.state == state)
            .map(|(account, _)| account.clone())
    }

    /// A login is taken once, and only while it lives.
    fn take(&self, state: &str) -> Result<Pending, Rejected> {
        let mut progress = self.progress();
        let Some(at) = progress.pending.iter().position(|(_, pending)| pending.state == state) else {
            return Err(progress.gone(state));
        };
        let (account, pending) = progress.pending.remove(at);
        progress.end(account, &pending, true);
        Ok(pending)
    }

    /// Those that live, and how the others ended.
    fn progress(&self) -> MutexGuard<'_, Progress> {
        let mut progress = self.progress.lock().expect("no thread panics while it holds the logins");
        progress.end_late_ones(now());
        progress
    }
}

impl Progress {
    fn find(&self, state: &str) -> Result<Pending, Rejected> {
        let found = self.pending.iter().find(|(_, pending)| pending.state == state);
        found.map(|(_, pending)| pending.clone()).ok_or_else(|| self.gone(state))
    }

    fn end_late_ones(&mut self, now: Moment) {
        let (alive, late) =
            std::mem::take(&mut self.pending).into_iter().partition(|(_, one)| is_alive(one, now));
        self.pending = alive;
        let late: Vec<_> = late;
        for (account, pending) in late {
            self.end(account, &pending, false);
        }
    }

    fn end(&mut self, account: String, pending: &Pending, was_used: bool) {
        if self.ended.len() >= MOST_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(Ended { account, state: pending.state.clone(), was_used });
    }

    /// Why no login with this state can be finished.
    fn gone(&self, state: &str) -> Rejected {
        match self.ended.iter().find(|ended| ended.state == state) {
            Some(Ended { was_used: true, .. }) => Rejected::new(
                Reason::Used,
                "this address was used already (its `state` is that of a login that is over): please start the \
                 login again",
            ),
            Some(_) => Rejected::new(
                Reason::Late,
                "this login began more than 10 minutes ago (its `state` has expired): please start the login again",
            ),
            None => Rejected::new(
                Reason::Unknown,
                "no login is waiting for this address (its `state` is unknown: it is another login's, or from before \
                 the daemon was started): please start the login again",
            ),
        }
    }
}

impl Rejected {
    /// A reason, and exactly what.
    pub fn new(reason: Reason, words: impl Into<String>) -> Self {
        Self { reason, words: words.into() }
    }
}

impl From<CallbackError> for Rejected {
    fn from(error: CallbackError) -> Self {
        let reason = match error {
            CallbackError::Empty | CallbackError::Address { .. } => Reason::Address,
            CallbackError::NoParameters(_) | CallbackError::Missing(_) => Reason::Incomplete,
            CallbackError::TooLong
            | CallbackError::Characters
            | CallbackError::Repeated(_)
            | CallbackError::TooMany
            | CallbackError::Several => Reason::Malformed,
        };
        Self::new(reason, error.to_string())
    }
}

#[cfg(test)]
impl Reason {
    pub(super) const ALL: [Self; 14] = [
        Self::Address,
        Self::Incomplete,
        Self::Malformed,
        Self::OtherAccount,
        Self::Unknown,
        Self::Used,
        Self::Late,
        Self::Denied,
        Self::Untrusted,
        Self::Clock,
        Self::Server,
        Self::Exchange,
        Self::Unasked,
        Self::Configuration,
    ];
}

/// True for a registered address that is our own `/-/callback`.
pub fn is_local(redirect_uri: &Url) -> bool {
    redirect_uri.path() == LOCAL_CALLBACK
}

/// What became of a login, for programs.
pub fn as_json(outcome: &LoginOutcome) -> Value {
    match outcome {
        LoginOutcome::Done(done) => json!({
            "outcome": "logged-in",
            "person": done.person,
            "login_expires_at": done.login_expires_at,
            "remarks": done.remarks,
        }),
        LoginOutcome::NeedsConfirmation(asked) => json!({
            "outcome": "needs-confirmation",
            "confirm": asked.id,
            "stored": asked.stored,
            "new": asked.new,
        }),
        LoginOutcome::Declined => json!({ "outcome": "declined" }),
    }
}

fn is_alive(pending: &Pending, now: Moment) -> bool {
    now.since(pending.started) < PENDING_LIVES
}

const fn reason_of(error: &LoginError) -> Reason {
    match error {
        LoginError::IdToken(IdTokenError::Missing) => Reason::Incomplete,
        LoginError::IdToken(IdTokenError::Expired) => Reason::Late,
        LoginError::IdToken(IdTokenError::NotYetValid) => Reason::Clock,
        LoginError::IdToken(_) => Reason::Untrusted,
        LoginError::Keys(_) => Reason::Server,
        LoginError::Exchange(_) => Reason::Exchange,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_waited_for_as_long_as_its_code_is_good() {
        let pending = Pending::start();
        let after = |secs| pending.started.plus(Duration::from_secs(secs));

        assert!(is_alive(&pending, after(0)) && is_alive(&pending, after(599)));
        assert!(!is_alive(&pending, after(600)) && !is_alive(&pending, after(601)));
    }

    #[test]
    fn of_a_login_that_is_over_it_is_known_how_it_ended() {
        let (used, late) = (Pending::start(), Pending::start());
        let mut progress = Progress::default();
        progress.end("main".to_owned(), &used, true);
        progress.pending.push(("main".to_owned(), late.clone()));

        progress.end_late_ones(late.started.plus(Duration::from_secs(599)));
        assert!(progress.find(&late.state).is_ok());
        progress.end_late_ones(late.started.plus(PENDING_LIVES));

        for (state, reason) in
            [(&*used.state, Reason::Used), (&late.state, Reason::Late), ("x", Reason::Unknown)]
        {
            let gone = progress.find(state).unwrap_err();
            assert_eq!(gone.reason, reason);
            assert!(gone.words.contains("`state`") && gone.words.contains("start the login again"), "{gone}");
        }
        (0..=MOST_ENDED).for_each(|_| progress.end("main".to_owned(), &late, false));
        assert_eq!(progress.ended.len(), MOST_ENDED);
    }
}
