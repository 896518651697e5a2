//! What the keeper tells: the state, the status, what a person should know, and an answer to all who wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Keeper;
use crate::config::{Account, Grant, GrantType};
use crate::notify::{Event, Text};
use crate::session::{State, Status, WARN_BEFORE};
use crate::token::{At, rfc3339};

/// A person is warned that long before the end of a personal access token.
const WARN_OF_PERSONAL: Duration = Duration::from_secs(7 * 24 * 3600);

/// Before the keeper's first look at the store.
pub(in crate::session) fn first_status(account: &Account) -> Status {
    Status {
        grant: account.grant_type().as_str(),
        state: State::Refreshing,
        person: None,
        obtained_at: None,
        expires_at: None,
        next_refresh_at: None,
        login_expires_at: None,
        last_refresh: None,
        refreshes: VecDeque::new(),
        events: VecDeque::new(),
        shared: None,
        refresh_counts: BTreeMap::new(),
        event_counts: BTreeMap::new(),
    }
}

impl Keeper {
    pub(super) fn state(&self) -> State {
        let is_usable = self.lifetime().is_some_and(|lifetime| lifetime.is_usable(self.now()));
        if self.has_last_token() {
            return if is_usable && !self.is_dead { State::Ready } else { State::LoginRequired };
        }
        if self.is_unknown && self.record.is_none() && self.grant() == GrantType::AuthorizationCode {
            return State::Degraded;
        }
        let needs_person = !self.may_present() || !is_usable && self.plan.needs_person(self.now());
        if self.grant() == GrantType::AuthorizationCode && needs_person {
            return State::LoginRequired;
        }
        if self.is_refreshing || self.is_elsewhere {
            return State::Refreshing;
        }
        let is_failing = self.plan.is_failing() || self.journal.is_raised(Event::StoreFailing);
        if is_failing || !is_usable { State::Degraded } else { State::Ready }
    }

    /// When the server ends the login, in milliseconds since the Unix epoch.
    fn login_ends_at_ms(&self) -> Option<i64> {
        let record = self.record.as_ref()?;
        let source = self.source();
        let login = source.account.login()?;
        if record.refresh_token.is_none() {
            return self.lifetime().and_then(|lifetime| lifetime.expires_at_wall_ms());
        }
        let lasts = i64::try_from(login.lifetime?.as_millis()).ok()?;
        Some(record.login_at_ms.saturating_add(lasts))
    }

    /// Tells what a person should know by now, and publishes the status.
    pub(super) fn refresh_status(&mut self) {
        if self.state() == State::LoginRequired {
            let message = self.words_for_login_required();
            self.journal.raise(Event::LoginRequired, || message);
        } else if self.has_last_token() && self.journal.clear(Event::LoginRequired) {
            self.journal.note(Event::Recovered, Text::from("the API takes the access token again"));
        }
        self.warn_of_the_end();
        self.publish();
    }

    fn warn_of_the_end(&mut self) {
        let is_soon = |at_ms: &i64, warn_before: Duration| {
            let warn_ms = i64::try_from(warn_before.as_millis()).unwrap_or(i64::MAX);
            at_ms.saturating_sub(self.now().wall_ms()) < warn_ms
        };
        let personal_end = match self.source().account.grant {
            Grant::PersonalAccessToken { expires_at_ms } => expires_at_ms,
            _ => None,
        };
        let personal_end = personal_end.filter(|at| is_soon(at, WARN_OF_PERSONAL));
        let is_refreshed = self.record.as_ref().is_some_and(|record| record.refresh_token.is_some());
        let login_end = self.login_ends_at_ms().filter(|at| is_refreshed && is_soon(at, WARN_BEFORE));
        let message = match (personal_end, login_end) {
            (Some(at_ms), _) => Text::from("this personal access token ends at ")
                .value(rfc3339(at_ms))
                .words(": make a new one before that"),
            (None, Some(at_ms)) => Text::from("the server ends this login at ")
                .value(rfc3339(at_ms))
                .words(": log in again before that"),
            (None, None) => {
                self.journal.clear(Event::LoginExpiring);
                return;
            }
        };
        self.journal.raise(Event::LoginExpiring, || message);
    }

    fn words_for_login_required(&self) -> Text {
        let is_usable = self.lifetime().is_some_and(|lifetime| lifetime.is_usable(self.now()));
        if self.grant() == GrantType::PersonalAccessToken {
            let message = Text::from("the personal access token serves no more");
            let message = match is_usable {
                true => message.words(", the API refuses it"),
                false => message.words(", its last day (`expires`) is over"),
            };
            return message.words(": make a new one, for ").value(&self.source().account.secret.from);
        }
        let mut message = Text::from("a person has to log in");
        if is_usable {
            message = message.words(" before the last token expires");
        }
        match &self.record {
            Some(record) if record.is_refused => message.words(
                ": the server refuses the refresh token; it was revoked, the login has ended, or another copy of this \
                 login is in use",
            ),
            Some(record) if record.refresh_token.is_none() && is_usable => {
                message.words(": the API refuses the access token, and no refresh token came with it")
            }
            Some(_) if self.plan.needs_person(self.now()) => {
                message.words(": the server has given no token for ten minutes, and is asked on")
            }
            _ => message,
        }
    }

    pub(super) fn status(&self) -> Status {
        let lifetime = self.lifetime();
        let next = self.may_present().then_some(lifetime).flatten();
        Status {
            grant: self.grant().as_str(),
            state: self.state(),
            person: self.record.as_ref().and_then(|record| record.person.as_ref()).map(|p| p.name.clone()),
            obtained_at: lifetime.map(|lifetime| At(lifetime.obtained_wall_ms())),
            expires_at: lifetime.and_then(|lifetime| lifetime.expires_at_wall_ms()).map(At),
            next_refresh_at: next.and_then(|lifetime| lifetime.due_at_wall_ms()).map(At),
            login_expires_at: self.login_ends_at_ms().map(At),
            last_refresh: self.journal.refreshes().back().cloned(),
            refreshes: self.journal.refreshes().clone(),
            events: self.journal.events().clone(),
            shared: self.store.shared_login(&self.shared.account),
            refresh_counts: self.journal.refresh_counts().clone(),
            event_counts: self.journal.event_counts().clone(),
        }
    }

    /// Those who wait are woken when something has changed, and by nothing else.
    pub(super) fn publish(&self) {
        let status = self.status();
        self.shared.published.send_if_modified(|published| {
            let is_new = *published.status != status;
            if is_new {
                published.status = Arc::new(status);
            }
            is_new
        });
    }

    /// Tells all who wait for a token that a try is over.
    pub(super) fn finish_try(&self) {
        self.answer(1, 0);
    }

    /// Tells all whose token the upstream refused that no refresh comes of it.
    pub(super) fn turn_down(&self) {
        self.answer(0, 1);
    }

    fn answer(&self, tries: u64, turned_down: u64) {
        let (status, retry_in) = (Arc::new(self.status()), self.plan.until_allowed(self.now()));
        self.shared.published.send_modify(|published| {
            published.tries += tries;
            published.turned_down += turned_down;
            published.retry_in = retry_in;
            published.at = self.now();
            published.status = status;
        });
    }
}
