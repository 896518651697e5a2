//! Logins and logouts, as the keeper carries them out: it alone obtains, persists and publishes.

use std::sync::Arc;

use super::{Awaiting, Keeper, blocking};
use crate::config::{Account, Grant};
use crate::notify::{Event, with_causes};
use crate::oauth::callback::Code;
use crate::oauth::{LoggedIn, Pending, Verified, random};
use crate::session::plan::Plan;
use crate::session::{AskError, Confirmation, LoginDone, LoginOutcome};
use crate::store::{Person, Record, Reservation};
use crate::token::now;

impl Keeper {
    pub(super) async fn log_in(
        &mut self,
        pending: &Pending,
        code: &Code,
        verified: Verified,
    ) -> Result<LoginOutcome, AskError> {
        let reservation = self.reserve().await.map_err(AskError::NotBegun)?;
        let LoggedIn { granted, remarks } = match self.oauth.log_in(pending, code, verified).await {
            Ok(logged_in) => logged_in,
            Err(error) if error.is_unsent() => return Err(AskError::NotBegun(error.to_string())),
            Err(error) => return Err(AskError::Failed(error.to_string())),
        };
        let identity = self.oauth.identity(&granted.access_token).await;
        let person = identity.map(|identity| Person { id: identity.id, name: identity.name });
        let record = Record {
            client_id: self.oauth.account().client_id.clone(),
            access_token: granted.access_token.clone(),
            obtained_at_ms: granted.received.wall_ms(),
            expires_in_secs: granted.expires_in.as_secs(),
            refresh_token: granted.refresh_token.clone(),
            is_refused: false,
            login_at_ms: granted.received.wall_ms(),
            subject: granted.claims.as_ref().map(|claims| claims.sub.clone()),
            issuer: granted.claims.as_ref().and_then(|claims| claims.iss.clone()),
            person,
        };
        let stored = self.record.as_ref().and_then(|stored| stored.person.clone());
        if let (Some(stored), Some(new)) = (stored, record.person.clone())
            && stored.id != new.id
        {
            let confirmation =
                Confirmation { id: random(18), stored: Some(stored.name), new: Some(new.name) };
            let outcome = LoginOutcome::NeedsConfirmation(confirmation.clone());
            self.drop_awaiting().await;
            self.awaiting = Some(Awaiting { confirmation, since: now(), record, remarks });
            return Ok(outcome);
        }
        self.drop_awaiting().await;
        Ok(self.accept(reservation, record, remarks).await)
    }

    pub(super) async fn confirm(&mut self, id: &str, yes: bool) -> Result<LoginOutcome, AskError> {
        let Some(awaiting) = self.awaiting.take_if(|awaiting| awaiting.confirmation.id == id) else {
            return Err(AskError::Failed("no login is waiting for a yes: please start again".to_owned()));
        };
        if !yes {
            self.drop_login(awaiting.record).await;
            return Ok(LoginOutcome::Declined);
        }
        let reservation = self.reserve().await.map_err(AskError::Failed)?;
        let replaced = self.record.take();
        let outcome = self.accept(reservation, awaiting.record, awaiting.remarks).await;
        if let Some(replaced) = replaced {
            self.drop_login(replaced).await;
        }
        Ok(outcome)
    }

    pub(super) async fn accept(
        &mut self,
        reservation: Reservation,
        record: Record,
        remarks: Vec<String>,
    ) -> LoginOutcome {
        self.told.remove(&Event::LoginExpiring);
        self.keep_login(Some(reservation), record).await;
        self.look_around();
        self.answer();
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
            self.drop_login(awaiting.record).await;
        }
    }

    /// Makes a login worthless that will not be used. What the server says to it changes nothing.
    pub(super) async fn drop_login(&self, record: Record) {
        if let Some(refresh_token) = &record.refresh_token {
            let _revoked = self.oauth.revoke(refresh_token, "refresh_token").await;
        }
    }

    pub(super) async fn log_out(&mut self) -> Result<(), AskError> {
        if self.oauth.account().grant != Grant::AuthorizationCode {
            return Err(AskError::Failed("this account has no login: its tokens need no person".to_owned()));
        }
        let Some(record) = self.record.take() else {
            return Err(AskError::LoginRequired("nobody is logged in".to_owned()));
        };
        let revoked = match record.refresh_token.as_ref().filter(|_| !record.is_refused) {
            Some(refresh_token) => self.oauth.revoke(refresh_token, "refresh_token").await,
            None => self.oauth.revoke(&record.access_token, "access_token").await,
        };
        self.drop_awaiting().await;
        if let Some(unsaved) = self.unsaved.take() {
            unsaved.give_up();
        }
        self.shared.current.store(None);
        let erased = self.erase().await;
        self.plan = Plan::default();
        self.look_around();
        self.answer();
        if let Err(reason) = erased {
            return Err(AskError::Failed(format!("the stored login can't be erased: {reason}")));
        }
        tracing::info!(account = self.shared.account, "logged out");
        revoked.map_err(|error| {
            AskError::Failed(format!(
                "the login is erased here, but the server did not confirm that it is revoked: {error}"
            ))
        })
    }

    async fn erase(&mut self) -> Result<(), String> {
        let mut reservation = self.reserve().await?;
        let (store, account) = (Arc::clone(&self.store), self.shared.account.clone());
        blocking(move || store.erase(&mut reservation, &account)).await.map_err(|error| with_causes(&error))
    }

    pub(super) fn reconfigure(&mut self, account: Account) {
        let is_personal = account.grant == Grant::PersonalAccessToken;
        match self.oauth.reconfigured(account).map(Arc::new) {
            Ok(oauth) => {
                self.shared.oauth.store(Arc::clone(&oauth));
                self.oauth = oauth;
            }
            Err(error) => {
                tracing::error!(account = self.shared.account, %error, "the new configuration is not used");
                return;
            }
        }
        if is_personal {
            self.load();
        }
        self.is_misconfigured = false;
        self.plan.forgive();
    }
}
