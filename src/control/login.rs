//! Logins in progress: from the authorization URL to the callback that a person pastes or a browser brings.

mod seal;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use url::Url;

use crate::config::BrowserLogin;
use crate::notify::with_causes;
use crate::oauth::callback::{self, Callback, CallbackError, Outcome};
use crate::oauth::id_token::IdTokenError;
use crate::oauth::{LoginError, Oauth, Pending};
use crate::session::{self, AskError, LoginOutcome, Session, TokenSource};
use crate::store::{PostgresStore, Store};
use crate::token::{At, Moment, now};
use seal::Seal;

/// A login that was begun is waited for as long.
pub const PENDING_LIVES: Duration = Duration::from_secs(600);
/// Each spent a code at the token endpoint within [`PENDING_LIVES`]; more than that are not spent.
const MOST_SPENT: usize = 4096;
/// Of how many logins that the server said no to it is known.
const MOST_DENIED: usize = 64;
/// The path of `/-/callback` in a registered address.
const LOCAL_CALLBACK: &str = "/-/callback";

/// The logins in progress of all accounts.
pub struct Logins {
    sessions: BTreeMap<String, Session>,
    store: Store,
    seal: Seal,
    progress: Mutex<Progress>,
}

/// What is remembered of logins: which are over, and for the page of each account its newest.
#[derive(Default)]
struct Progress {
    spent: BTreeMap<String, Moment>,
    denied: VecDeque<String>,
    newest: BTreeMap<String, (String, Moment)>,
}

/// Whose login has a `state`, and until when it can be finished.
pub type Look = Result<(String, At), Rejected>;

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
    /// The code could not be sent, and is still good.
    Unspent,
    /// The exchange, or keeping what it brought, failed.
    Exchange,
    /// Nobody is asked for a yes.
    Unasked,
    /// A yes could not be acted on, and can be said again.
    StillAsked,
    /// The account is not one for this.
    Configuration,
}

impl Logins {
    /// Logins for those accounts that a person logs in to.
    pub fn new(sessions: &BTreeMap<String, Session>, store: Store) -> Self {
        let mut sessions = sessions.clone();
        sessions.retain(|_, session| session.source().login().is_some());
        Self { sessions, store, seal: Seal::new(), progress: Mutex::default() }
    }

    /// The accounts that a person logs in to.
    pub fn accounts(&self) -> impl Iterator<Item = &str> {
        self.sessions.keys().map(String::as_str)
    }

    /// The database that replicas share their logins through, if they do.
    pub fn database(&self) -> Option<&PostgresStore> {
        self.store.database()
    }

    /// True when there is a login of an account, configured or not.
    pub fn is_stored(&self, account: &str) -> bool {
        !self.store.records_of(account).is_empty()
    }

    /// Seals all that is stored with the first key, and says so in words.
    ///
    /// # Errors
    /// Why not, in words.
    pub async fn rekey(&self) -> Result<String, String> {
        self.store.rekey().await.map_err(|error| with_causes(&error))
    }

    /// Logs out an account that is not configured any more. Gives a sentence that the person should read, if there is
    /// one.
    ///
    /// # Errors
    /// When it can't be erased.
    pub async fn log_out_unconfigured(&self, account: &str) -> Result<Option<String>, AskError> {
        let (store, account) = (self.store.clone(), account.to_owned());
        session::log_out_unconfigured(store, account, self.sessions.values()).await
    }

    /// The address where the browser ends, as it is registered; none for an account that needs no login.
    pub fn redirect_uri(&self, account: &str) -> Option<Url> {
        let source = self.sessions.get(account)?.source();
        source.login().map(|(_, login)| login.redirect_uri.url.clone())
    }

    /// Begins a login and returns the address to open in a browser.
    ///
    /// # Errors
    /// When the account needs no person, or its issuer can't be asked now where that is.
    pub async fn start(&self, account: &str) -> Result<Url, Rejected> {
        let source = self.session(account)?.source();
        let (oauth, login) = login_of(&source)?;
        let pending = self.seal.begin(account, now());
        let url = oauth.authorization_url(login, &pending).await;
        let url = url.map_err(|error| Rejected::new(reason_of(&error), error.to_string()))?;
        let newest = (pending.state, pending.started);
        self.progress().newest.insert(account.to_owned(), newest);
        Ok(url)
    }

    /// Until when the newest login of an account can be finished, or could be; none when it is over.
    pub fn newest(&self, account: &str) -> Option<At> {
        let progress = self.progress();
        let (state, started) = progress.newest.get(account)?;
        (!progress.is_over(state)).then(|| ends_at(*started))
    }

    /// Whose login has this `state`, and until when it can be finished.
    ///
    /// # Errors
    /// Why it can't.
    pub fn look(&self, state: &str) -> Look {
        self.find(state).map(|(account, pending)| (account, ends_at(pending.started)))
    }

    /// Ends a login with what a person pasted.
    ///
    /// # Errors
    /// What is wrong with it, in words for the person.
    pub async fn finish_pasted(&self, account: &str, pasted: &str) -> Result<LoginOutcome, Rejected> {
        let session = self.session(account)?;
        let is_ours = |callback: &Callback| self.begun(&callback.state, now()).is_some();
        let source = session.source();
        let (_, login) = login_of(&source)?;
        let callback =
            callback::parse_pasted(pasted, &login.redirect_uri.url, login.response_mode, &is_ours)?;
        let (owner, pending) = self.find(&callback.state)?;
        if owner != account {
            return Err(Rejected::new(
                Reason::OtherAccount,
                "this address belongs to the login of another account",
            ));
        }
        self.finish(callback, pending, session).await
    }

    /// Ends a login with what a browser brought, in the query of a GET or the form of a POST. Says which account
    /// it was for, as far as that is known.
    pub async fn finish_brought(&self, parameters: &str) -> (String, Result<LoginOutcome, Rejected>) {
        let callback = callback::parse_parameters(&[parameters]).map_err(Rejected::from);
        let found = callback.and_then(|callback| Ok((self.find(&callback.state)?, callback)));
        let ((account, pending), callback) = match found {
            Ok(found) => found,
            Err(why) => return (String::new(), Err(why)),
        };
        let is_registered = self.redirect_uri(&account).as_ref().is_some_and(is_local);
        let outcome = match self.session(&account) {
            Ok(session) if is_registered => self.finish(callback, pending, session).await,
            _ => Err(Rejected::new(
                Reason::Configuration,
                "this account's redirect_uri is not the address of this page",
            )),
        };
        (account, outcome)
    }

    async fn finish(
        &self,
        callback: Callback,
        pending: Pending,
        session: &Session,
    ) -> Result<LoginOutcome, Rejected> {
        let account = session.account();
        let failed = |reason, error: &dyn std::error::Error| {
            tracing::warn!(account, reason = %error, "a login came to nothing");
            Rejected::new(reason, error.to_string())
        };
        let source = session.source();
        let (oauth, login) = login_of(&source)?;
        let named = oauth.check_issuer(&callback).await;
        named.map_err(|error| failed(reason_of(&error), &error))?;
        let code = match callback.outcome {
            Outcome::Code(code) => code,
            Outcome::Denied { error, description } => {
                self.progress().deny(pending.state);
                let words = description.map(|words| format!(": {words}")).unwrap_or_default();
                return Err(Rejected::new(
                    Reason::Denied,
                    format!("the authorization server said no ({error}){words}"),
                ));
            }
        };
        // What does not vouch for the login leaves it open: the person may still bring the right address.
        let verified = oauth.verify(login, &pending, &code).await;
        let verified = verified.map_err(|error| failed(reason_of(&error), &error))?;
        let state = pending.state.clone();
        self.progress().spend(&pending, now())?;
        match session.log_in(pending, code, verified).await {
            Err(error @ AskError::NotBegun(_)) => {
                self.progress().spent.remove(&state);
                let Rejected { reason, words } = failed(Reason::Unspent, &error);
                Err(Rejected::new(reason, format!("{words}: the same address can be pasted again")))
            }
            outcome => outcome.map_err(|error| failed(Reason::Exchange, &error)),
        }
    }

    fn session(&self, account: &str) -> Result<&Session, Rejected> {
        self.sessions.get(account).ok_or_else(|| needs_no_login(account))
    }

    /// The login with this `state`, whether or not it is over.
    fn begun(&self, state: &str, now: Moment) -> Option<(String, Pending)> {
        let of = |account: &String| Some((account.clone(), self.seal.open(account, state, now)?));
        self.sessions.keys().find_map(of)
    }

    /// The login with this `state`, while it can be finished.
    fn find(&self, state: &str) -> Result<(String, Pending), Rejected> {
        let now = now();
        let (account, pending) = self.begun(state, now).ok_or_else(|| {
            Rejected::new(
                Reason::Unknown,
                "no login is waiting for this address (its `state` is unknown: it is another login's, or from before \
                 the daemon was started): please start the login again",
            )
        })?;
        self.progress().check(&pending, now)?;
        Ok((account, pending))
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("no thread panics while it holds the logins")
    }
}

/// Where and how a person logs in.
fn login_of(source: &TokenSource) -> Result<(&Oauth, &BrowserLogin), Rejected> {
    source.login().ok_or_else(|| needs_no_login(&source.account.name))
}

fn needs_no_login(account: &str) -> Rejected {
    let words = format!("account {account} needs no login: its tokens need no person");
    Rejected::new(Reason::Configuration, words)
}

impl Progress {
    fn is_over(&self, state: &str) -> bool {
        self.spent.contains_key(state) || self.denied.iter().any(|denied| denied == state)
    }

    fn check(&self, pending: &Pending, now: Moment) -> Result<(), Rejected> {
        if self.is_over(&pending.state) {
            return Err(Rejected::new(
                Reason::Used,
                "this address was used already (its `state` is that of a login that is over): please start the \
                 login again",
            ));
        }
        if !is_alive(pending.started, now) {
            return Err(Rejected::new(
                Reason::Late,
                "this login began more than 10 minutes ago (its `state` has expired): please start the login again",
            ));
        }
        Ok(())
    }

    /// A code is spent once, and only while its login lives. What was spent is forgotten when the login has ended
    /// anyway, and not before, however much others do.
    fn spend(&mut self, pending: &Pending, now: Moment) -> Result<(), Rejected> {
        self.check(pending, now)?;
        if self.spent.len() >= MOST_SPENT {
            self.spent.retain(|_, started| is_alive(*started, now));
        }
        if self.spent.len() >= MOST_SPENT {
            return Err(Rejected::new(
                Reason::Unspent,
                "very many logins were finished in the last 10 minutes: paste the address again in a minute",
            ));
        }
        self.spent.insert(pending.state.clone(), pending.started);
        Ok(())
    }

    /// A no ends the login. One that is forgotten spent nothing: a code that comes after it is as good as any.
    fn deny(&mut self, state: String) {
        if self.denied.len() >= MOST_DENIED {
            self.denied.pop_front();
        }
        self.denied.push_back(state);
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
    pub(super) const ALL: [Self; 16] = [
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
        Self::Unspent,
        Self::Exchange,
        Self::Unasked,
        Self::StillAsked,
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

fn is_alive(started: Moment, now: Moment) -> bool {
    now.since(started) < PENDING_LIVES
}

fn ends_at(started: Moment) -> At {
    At(started.plus(PENDING_LIVES).wall_ms())
}

const fn reason_of(error: &LoginError) -> Reason {
    match error {
        LoginError::IdToken(IdTokenError::Missing) => Reason::Incomplete,
        LoginError::IdToken(IdTokenError::Expired) => Reason::Late,
        LoginError::IdToken(IdTokenError::NotYetValid) => Reason::Clock,
        LoginError::IdToken(_) | LoginError::ForeignCallback(_) => Reason::Untrusted,
        LoginError::Keys(_) | LoginError::Discovery(_) => Reason::Server,
        LoginError::Exchange(_) | LoginError::Answer(_) => Reason::Exchange,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment::new(1_700_000_000_000, 5_000);

    fn begun() -> Pending {
        Seal::new().begin("main", NOW)
    }

    fn after(secs: u64) -> Moment {
        NOW.plus(Duration::from_secs(secs))
    }

    #[test]
    fn a_login_is_waited_for_as_long_as_its_code_is_good() {
        assert!(is_alive(NOW, after(0)) && is_alive(NOW, after(599)));
        assert!(!is_alive(NOW, after(600)) && !is_alive(NOW, after(601)));
    }

    #[test]
    fn of_a_login_that_is_over_it_is_known_how_it_ended() {
        let (used, denied, late) = (begun(), begun(), begun());
        let mut progress = Progress::default();
        assert!(progress.check(&late, after(599)).is_ok());

        progress.spend(&used, NOW).unwrap();
        progress.deny(denied.state.clone());

        for (pending, reason) in [(&used, Reason::Used), (&denied, Reason::Used), (&late, Reason::Late)] {
            for gone in [progress.check(pending, after(600)), progress.spend(pending, after(600))] {
                let gone = gone.unwrap_err();
                assert_eq!(gone.reason, reason);
                assert!(
                    gone.words.contains("`state`") && gone.words.contains("start the login again"),
                    "{gone}"
                );
            }
        }
    }

    /// What can still be spent a second time is remembered; then no more is spent, and nothing is lost by it.
    #[test]
    fn a_spent_login_is_pushed_out_by_no_others() {
        let mut progress = Progress::default();
        let first = begun();
        progress.spend(&first, NOW).unwrap();
        (0..2 * MOST_DENIED).for_each(|_| progress.deny(begun().state));
        (1..MOST_SPENT).for_each(|_| progress.spend(&begun(), NOW).unwrap());

        let last = begun();
        assert_eq!(progress.spend(&last, after(599)).unwrap_err().reason, Reason::Unspent);
        assert_eq!(progress.spend(&first, after(599)).unwrap_err().reason, Reason::Used);
        assert_eq!(progress.denied.len(), MOST_DENIED);

        let next = Seal::new().begin("main", after(600));
        progress.spend(&next, after(600)).unwrap();
        assert_eq!(progress.spent.len(), 1);
    }
}
