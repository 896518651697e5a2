//! Logins in progress: from the authorization URL to the callback that a person pastes or a browser brings.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use url::Url;

use crate::config::{Account, Grant};
use crate::oauth::callback::{self, Callback, Outcome};
use crate::oauth::{Oauth, Pending};
use crate::session::{LoginOutcome, Session};
use crate::token::{Moment, now};

/// A code is good for as long.
const PENDING_LIVES: Duration = Duration::from_secs(600);
/// More than anybody has tabs; the oldest gives way.
const MOST_PENDING: usize = 256;
/// The path of `/-/callback` in a registered address.
const LOCAL_CALLBACK: &str = "/-/callback";

/// The logins in progress of all accounts.
pub struct Logins {
    accounts: BTreeMap<String, Oauth>,
    pending: Mutex<Vec<(String, Pending)>>,
}

/// A callback that a browser brings.
#[derive(Clone, Copy, Debug)]
pub enum Brought<'a> {
    /// In the query of a GET.
    Query(&'a str),
    /// In the form of a POST: by `form_post`, or by our own page's script.
    Form(&'a str),
}

/// Why a login came to nothing, in words for the person. The stored login is untouched.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(pub String);

impl Logins {
    /// Logins for those accounts that a person logs in to.
    ///
    /// # Errors
    /// When an account's TLS set-up is not usable.
    pub fn new<'a>(accounts: impl IntoIterator<Item = &'a Account>) -> Result<Self, crate::tls::TlsError> {
        let of_people = accounts.into_iter().filter(|account| account.grant == Grant::AuthorizationCode);
        let accounts: Result<_, _> =
            of_people.map(|account| Ok((account.name.clone(), Oauth::new(account.clone())?))).collect();
        Ok(Self { accounts: accounts?, pending: Mutex::new(Vec::new()) })
    }

    /// The accounts that a person logs in to.
    pub fn accounts(&self) -> impl Iterator<Item = &str> {
        self.accounts.keys().map(String::as_str)
    }

    /// The address where the browser ends, as it is registered; none for an account that needs no login.
    pub fn redirect_uri(&self, account: &str) -> Option<&Url> {
        self.accounts.get(account).map(|oauth| &oauth.account().redirect_uri)
    }

    /// Begins a login and returns the address to open in a browser.
    ///
    /// # Errors
    /// When the account needs no person.
    pub fn start(&self, account: &str) -> Result<Url, Rejected> {
        let oauth = self.oauth(account)?;
        let pending = Pending::start();
        let url = oauth.authorization_url(&pending);
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
    pub async fn finish_pasted(
        &self,
        account: &str,
        pasted: &str,
        session: &Session,
    ) -> Result<LoginOutcome, Rejected> {
        let redirect_uri = &self.oauth(account)?.account().redirect_uri;
        let callback =
            callback::parse_pasted(pasted, redirect_uri).map_err(|error| Rejected(error.to_string()))?;
        let owner = self.account_of(&callback.state);
        if owner.as_deref().is_some_and(|owner| owner != account) {
            return Err(Rejected("this address belongs to the login of another account".to_owned()));
        }
        self.finish(callback, session).await
    }

    /// Ends a login with what a browser brought. Says which account it was for, as far as that is known.
    pub async fn finish_brought(
        &self,
        brought: Brought<'_>,
        sessions: &BTreeMap<String, Session>,
    ) -> (String, Result<LoginOutcome, Rejected>) {
        let (Brought::Query(text) | Brought::Form(text)) = brought;
        let callback = match callback::parse_parameters(&[text]) {
            Ok(callback) => callback,
            Err(error) => return (String::new(), Err(Rejected(error.to_string()))),
        };
        let Some(account) = self.account_of(&callback.state) else {
            return (String::new(), Err(unknown_state()));
        };
        let is_registered = self.redirect_uri(&account).is_some_and(is_local);
        let Some(session) = sessions.get(&account).filter(|_| is_registered) else {
            return (
                account,
                Err(Rejected("this account's redirect_uri is not the address of this page".to_owned())),
            );
        };
        let outcome = self.finish(callback, session).await;
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
        let verified = self.oauth(account)?.verify(&pending, &code).await.map_err(|error| failed(&error))?;
        let pending = self.take(&callback.state).ok_or_else(unknown_state)?;
        session.log_in(pending, code, verified).await.map_err(|error| failed(&error))
    }

    fn oauth(&self, account: &str) -> Result<&Oauth, Rejected> {
        self.accounts
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
