//! Logins in progress: from the authorization URL to the callback that a person pastes or a browser brings.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use url::Url;

use crate::config::Grant;
use crate::oauth::Pending;
use crate::oauth::callback::{self, Callback, Outcome};
use crate::session::{LoginOutcome, Session};
use crate::token::{Moment, now};

/// A login that was begun is waited for as long.
pub const PENDING_LIVES: Duration = Duration::from_secs(600);
/// More than anybody has tabs; the oldest gives way.
const MOST_PENDING: usize = 256;
/// The path of `/-/callback` in a registered address.
const LOCAL_CALLBACK: &str = "/-/callback";

/// The logins in progress of all accounts.
pub struct Logins {
    sessions: BTreeMap<String, Session>,
    pending: Mutex<Vec<(String, Pending)>>,
}

/// Why a login came to nothing, in words for the person. The stored login is untouched.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(pub String);

impl Logins {
    /// Logins for those accounts that a person logs in to.
    pub fn new(sessions: &BTreeMap<String, Session>) -> Self {
        let mut sessions = sessions.clone();
        sessions.retain(|_, session| session.oauth().account().grant == Grant::AuthorizationCode);
        Self { sessions, pending: Mutex::new(Vec::new()) }
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
        let mut all = self.pending.lock().expect("no thread panics while it holds the logins");
        all.retain(|(_, pending)| is_alive(pending, now()));
        if all.len() >= MOST_PENDING {
            all.remove(0);
        }
        all.push((account.to_owned(), pending));
        Ok(url)
    }

    /// Ends a login with what a person pasted.
    ///
    /// # Errors
    /// What is wrong with it, in words for the person.
    pub async fn finish_pasted(&self, account: &str, pasted: &str) -> Result<LoginOutcome, Rejected> {
        let session = self.session(account)?;
        let callback = callback::parse_pasted(pasted, &session.oauth().account().redirect_uri);
        let callback = callback.map_err(|error| Rejected(error.to_string()))?;
        let owner = self.account_of(&callback.state);
        if owner.as_deref().is_some_and(|owner| owner != account) {
            return Err(Rejected("this address belongs to the login of another account".to_owned()));
        }
        self.finish(callback, session).await
    }

    /// Ends a login with what a browser brought, in the query of a GET or the form of a POST. Says which account
    /// it was for, as far as that is known.
    pub async fn finish_brought(&self, parameters: &str) -> (String, Result<LoginOutcome, Rejected>) {
        let callback = match callback::parse_parameters(&[parameters]) {
            Ok(callback) => callback,
            Err(error) => return (String::new(), Err(Rejected(error.to_string()))),
        };
        let Some(account) = self.account_of(&callback.state) else {
            return (String::new(), Err(unknown_state()));
        };
        let is_registered = self.redirect_uri(&account).as_ref().is_some_and(is_local);
        let outcome = match self.session(&account) {
            Ok(session) if is_registered => self.finish(callback, session).await,
            _ => Err(Rejected("this account's redirect_uri is not the address of this page".to_owned())),
        };
        (account, outcome)
    }

    async fn finish(&self, callback: Callback, session: &Session) -> Result<LoginOutcome, Rejected> {
        let code = match callback.outcome {
            Outcome::Code(code) => code,
            Outcome::Denied { error, description } => {
                self.take(&callback.state).ok_or_else(unknown_state)?;
                let words = description.map(|words| format!(": {words}")).unwrap_or_default();
                return Err(Rejected(format!("the authorization server said no ({error}){words}")));
            }
        };
        let account = session.account();
        let failed = |error: &dyn std::error::Error| {
            tracing::warn!(account, reason = %error, "a login came to nothing");
            Rejected(error.to_string())
        };
        // What does not vouch for the login leaves it open: the person may still bring the right address.
        let pending = self.waiting(&callback.state).ok_or_else(unknown_state)?;
        let verified = session.oauth().verify(&pending, &code).await.map_err(|error| failed(&error))?;
        let pending = self.take(&callback.state).ok_or_else(unknown_state)?;
        session.log_in(pending, code, verified).await.map_err(|error| failed(&error))
    }

    fn session(&self, account: &str) -> Result<&Session, Rejected> {
        self.sessions
            .get(account)
            .ok_or_else(|| Rejected(format!("account {account} needs no login: its tokens need no person")))
    }

    fn account_of(&self, state: &str) -> Option<String> {
        let all = self.pending.lock().expect("no thread panics while it holds the logins");
        all.iter().find(|(_, pending)| pending.state == state).map(|(account, _)| account.clone())
    }

    fn waiting(&self, state: &str) -> Option<Pending> {
        let all = self.pending.lock().expect("no thread panics while it holds the logins");
        let (_, pending) = all.iter().find(|(_, pending)| pending.state == state)?;
        is_alive(pending, now()).then(|| pending.clone())
    }

    /// A login is taken once, and only while it lives.
    fn take(&self, state: &str) -> Option<Pending> {
        let mut all = self.pending.lock().expect("no thread panics while it holds the logins");
        let at = all.iter().position(|(_, pending)| pending.state == state)?;
        let (_, pending) = all.remove(at);
        is_alive(&pending, now()).then_some(pending)
    }
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

fn unknown_state() -> Rejected {
    Rejected(
        "no login is waiting for this address (its `state` is unknown, was used already, or is older than 10 \
         minutes): please start the login again"
            .to_owned(),
    )
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
}
