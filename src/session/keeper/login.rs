//! Logins and logouts, as the keeper carries them out: it alone obtains, persists and publishes.

use std::sync::Arc;
use std::time::Duration;

use super::{Awaiting, Keeper};
use crate::config::GrantType;
use crate::notify::{Event, with_causes};
use crate::oauth::callback::Code;
use crate::oauth::id_token::NOBODY;
use crate::oauth::{GrantError, LoggedIn, Oauth, Pending, Verified, random};
use crate::session::plan::Plan;
use crate::session::{AskError, Confirmation, LoginDone, LoginOutcome, TokenSource};
use crate::store::{Record, Reservation, Saved, Store, StoreError};

/// How long the server may take to revoke a token: a person waits for it.
const REVOKED_WITHIN: Duration = Duration::from_secs(12);
/// Of an account that nobody logs in to.
const NO_LOGIN: &str = "this account has no login: its tokens need no person";
/// What is said of logins that no configured client can revoke.
const NOT_TOLD: &str = "the server was not told of a login that belongs to a client or a server which is not configured \
    any more: whoever has a copy of its tokens can use them until they end";

impl Keeper {
    pub(super) async fn log_in(
        &mut self,
        pending: &Pending,
        code: &Code,
        verified: Verified,
    ) -> Result<LoginOutcome, AskError> {
        let reservation = self.reserve_for_a_person().await.map_err(AskError::NotBegun)?;
        let (record, remarks) = match self.exchange(pending, code, verified).await {
            Ok(exchanged) => exchanged,
            Err(error) => {
                self.give_back(reservation).await;
                return Err(error);
            }
        };
        self.drop_awaiting().await;
        let stored = self.record.as_ref().filter(|stored| !is_same_person(stored, &record));
        if let Some(stored) = stored {
            let name = |record: &Record| record.person.as_ref().map(|person| person.name.clone());
            let confirmation = Confirmation { id: random(18), stored: name(stored), new: name(&record) };
            let outcome = LoginOutcome::NeedsConfirmation(confirmation.clone());
            self.awaiting = Some(Awaiting { confirmation, since: self.now(), record, remarks });
            self.give_back(reservation).await;
            return Ok(outcome);
        }
        Ok(self.accept(reservation, record, remarks).await)
    }

    /// Spends the code, and asks who it is.
    async fn exchange(
        &self,
        pending: &Pending,
        code: &Code,
        verified: Verified,
    ) -> Result<(Record, Vec<String>), AskError> {
        let source = self.source();
        let Some((oauth, login)) = source.login() else { return Err(AskError::Failed(NO_LOGIN.to_owned())) };
        let logged_in = self.held(oauth.log_in(login, pending, code, verified)).await;
        let LoggedIn { granted, remarks } = match logged_in {
            Ok(logged_in) => logged_in,
            Err(error) if error.is_unsent() => return Err(AskError::NotBegun(error.to_string())),
            Err(error) => return Err(AskError::Failed(error.to_string())),
        };
        let person = match &login.identity {
            Some(identity) => self.held(oauth.person(identity, &granted)).await,
            None => None,
        };
        let record = Record {
            subject: granted.claims.as_ref().map(|claims| claims.sub.clone()),
            issuer: granted.claims.as_ref().and_then(|claims| claims.iss.clone()),
            person,
            ..self.begun(&granted)
        };
        Ok((record, remarks))
    }

    /// A yes takes room for the waiting login before it is taken, so that it can be said again on a full disk.
    pub(super) async fn confirm(&mut self, id: &str, yes: bool) -> Result<LoginOutcome, AskError> {
        let now = self.now();
        if self
            .awaiting
            .as_ref()
            .is_none_or(|awaiting| awaiting.confirmation.id != id || awaiting.is_over(now))
        {
            return Err(AskError::Failed("no login is waiting for a yes: please start again".to_owned()));
        }
        if !yes {
            self.drop_awaiting().await;
            return Ok(LoginOutcome::Declined);
        }
        let reservation = self.reserve_for_a_person().await.map_err(AskError::NotBegun)?;
        let Awaiting { record, remarks, .. } = self.awaiting.take().expect("it was there before");
        self.replaced.extend(self.record.take());
        Ok(self.accept(reservation, record, remarks).await)
    }

    async fn accept(
        &mut self,
        reservation: Reservation,
        record: Record,
        mut remarks: Vec<String>,
    ) -> LoginOutcome {
        self.journal.clear(Event::LoginExpiring);
        // What the API said to the tokens of the login before says nothing of this one's.
        self.plan.rejection_cured();
        self.is_incurable = false;
        if self.keep_login(Some(reservation), record).await == Some(Saved::Superseded) {
            remarks.push(
                "another replica stored another login at the same time, and that one is in use: please look who is \
                 logged in"
                    .to_owned(),
            );
        }
        self.refresh_status();
        self.finish_try();
        if self.unsaved.is_some() {
            remarks.push(
                "this login can't be saved now and would not survive a restart; saving it is tried again and again"
                    .to_owned(),
            );
        }
        let status = self.status();
        tracing::info!(account = self.shared.account, person = status.person, "logged in");
        LoginOutcome::Done(LoginDone {
            person: status.person,
            login_expires_at: status.login_expires_at,
            remarks,
        })
    }

    /// A login that nobody can say yes to any more is a no.
    pub(super) async fn drop_awaiting(&mut self) {
        if let Some(awaiting) = self.awaiting.take() {
            self.drop_login(&awaiting.record).await;
        }
    }

    /// The login in use is on disk: those that it replaces are worth nothing from now on.
    pub(super) async fn revoke_replaced(&mut self) {
        for record in std::mem::take(&mut self.replaced) {
            self.drop_login(&record).await;
        }
    }

    /// Makes a login worthless that will not be used. What the server says to it changes nothing.
    pub(super) async fn drop_login(&self, record: &Record) {
        if let Some(oauth) = &self.source().oauth {
            let _revoked = revoke(oauth, record).await;
        }
    }

    /// Nothing is revoked before there is room to erase it, and nothing forgotten before it is erased: whatever
    /// fails, it can be asked for again.
    pub(super) async fn log_out(&mut self) -> Result<Option<String>, AskError> {
        let source = self.source();
        let is_login = |record: &Record| record.binding.grant != Some(GrantType::ClientCredentials);
        let records = self.all_records();
        if !records.iter().any(is_login) {
            return Err(match self.grant() {
                GrantType::AuthorizationCode => AskError::LoginRequired("nobody is logged in".to_owned()),
                _ => AskError::Failed(NO_LOGIN.to_owned()),
            });
        }
        let reservation = match self.unsaved.take() {
            Some(unsaved) => unsaved,
            None => self.reserve_for_a_person().await.map_err(|reason| {
                AskError::NotBegun(format!("{reason}; nothing is revoked, please log out again"))
            })?,
        };
        let (mut revoked, mut is_told) = (Ok(()), true);
        for record in &records {
            match client_for(&source, record) {
                Some(oauth) => revoked = revoked.and(revoke(oauth, record).await),
                None => is_told = false,
            }
        }
        let erased = self.held(self.store.erase(reservation, &self.shared.account)).await;
        if let Err((reservation, error)) = erased {
            if let (Some(record), true) = (&mut self.record, revoked.is_ok()) {
                // It is not presented any more.
                (record.is_refused, record.is_retried) = (true, true);
            }
            self.unsaved = Some(reservation);
            self.refresh_status();
            return Err(AskError::Failed(not_erased(&error)));
        }
        self.revoke_replaced().await;
        self.forget().await;
        tracing::info!(account = self.shared.account, "logged out");
        revoked.map(|()| (!is_told).then(|| NOT_TOLD.to_owned())).map_err(|error| {
            AskError::Failed(format!(
                "the login is erased here, but the server did not confirm that it is revoked: {error}. Until it ends \
                 by itself, whoever has a copy of its tokens can use it"
            ))
        })
    }

    /// The login in use, which may be newer than what is stored, and those of other clients, grants and servers.
    fn all_records(&self) -> Vec<Record> {
        let ours = self.binding();
        let mut records = self.store.records_of(&self.shared.account);
        records.retain(|record| !ours.as_ref().is_some_and(|ours| record.binding.matches(ours)));
        records.extend(self.record.clone());
        records
    }

    async fn forget(&mut self) {
        self.record = None;
        self.drop_awaiting().await;
        if self.grant() != GrantType::PersonalAccessToken {
            self.shared.current.store(None);
        }
        self.plan = Plan::default();
        self.is_in_doubt = false;
        self.refresh_status();
        self.finish_try();
    }

    /// There are new secrets or certificates: what failed for want of them may work now.
    pub(super) fn reconfigured(&mut self) {
        if self.grant() == GrantType::PersonalAccessToken {
            self.load();
        }
        self.plan.forgive();
    }
}

/// Logs out an account that is not configured any more: revokes what one of these clients can, and erases all of it.
/// Gives a sentence when something was not revoked.
///
/// # Errors
/// When it can't be erased.
pub(in crate::session) async fn log_out_unconfigured(
    store: Store,
    account: String,
    sources: &[Arc<TokenSource>],
) -> Result<Option<String>, AskError> {
    let mut is_revoked = true;
    for record in store.records_of(&account) {
        is_revoked &= match sources.iter().find_map(|source| client_for(source, &record)) {
            Some(client) => revoke(client, &record).await.is_ok(),
            None => false,
        };
    }
    let failed = |error: &StoreError| AskError::Failed(not_erased(error));
    let reservation = store.reserve(&account).await.map_err(|error| failed(&error))?;
    store.erase(reservation, &account).await.map_err(|(_room, error)| failed(&error))?;
    Ok((!is_revoked).then(|| NOT_TOLD.to_owned()))
}

fn not_erased(error: &StoreError) -> String {
    format!("the stored login can't be erased, please log out again: {}", with_causes(error))
}

/// Makes a login worthless at the server.
async fn revoke(oauth: &Oauth, record: &Record) -> Result<(), GrantError> {
    let revoked = match record.refresh_token.as_ref().filter(|_| !record.is_refused) {
        Some(refresh_token) => oauth.revoke(refresh_token, "refresh_token"),
        None => oauth.revoke(&record.access_token, "access_token"),
    };
    let late = || {
        let reason = format!("no answer within {} s", REVOKED_WITHIN.as_secs());
        GrantError::Unavailable { reason, was_sent: true, retry_after: None }
    };
    tokio::time::timeout(REVOKED_WITHIN, revoked).await.unwrap_or_else(|_elapsed| Err(late()))
}

/// The client that may speak for a login at its server, whatever grant it came by.
fn client_for<'a>(source: &'a TokenSource, record: &Record) -> Option<&'a Oauth> {
    let of_client = |oauth: &&Oauth| {
        let of_record = &record.binding;
        let is_same_server =
            of_record.token_url.as_deref().is_none_or(|token_url| token_url == oauth.client().bound_to());
        of_record.client_id == oauth.client().client_id && is_same_server
    };
    source.oauth.as_ref().filter(of_client)
}

/// True when something says that two logins are the same person's, and nothing that they are not.
fn is_same_person(stored: &Record, new: &Record) -> bool {
    let persons = match (&stored.person, &new.person) {
        (Some(stored), Some(new)) => Some(stored.id == new.id),
        _ => None,
    };
    let subject = |record: &Record| record.subject.clone().filter(|subject| subject != NOBODY);
    let subjects = match (subject(stored), subject(new)) {
        (Some(stored_subject), Some(new_subject)) if stored.issuer == new.issuer => {
            Some(stored_subject == new_subject)
        }
        _ => None,
    };
    match (persons, subjects) {
        (Some(false), _) | (_, Some(false)) => false,
        (persons, subjects) => persons.or(subjects).is_some(),
    }
}
