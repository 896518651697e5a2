//! What the keeper tells: the state, the events, the status, and an answer to all who wait.

use std::sync::Arc;

use super::Keeper;
use crate::config::Grant;
use crate::notify::Event;
use crate::session::{EVENTS_KEPT, REFRESHES_KEPT, Refresh, RefreshOutcome, State, Status, WARN_BEFORE};
use crate::token::{At, now, rfc3339};

impl Keeper {
    pub(super) fn state(&self) -> State {
        let lifetime = self.lifetime();
        let is_usable = lifetime.is_some_and(|lifetime| lifetime.is_usable(now()));
        let grant = self.oauth.account().grant;
        if grant == Grant::AuthorizationCode && !self.can_refresh() {
            // Without a refresh token from the start, the access token is the whole login.
            let is_whole = self.record.as_ref().is_some_and(|record| record.refresh_token.is_none());
            return if is_usable && is_whole { State::Ready } else { State::LoginRequired };
        }
        if self.is_refreshing {
            return State::Refreshing;
        }
        let is_told = self.told.contains(&Event::StoreFailing);
        if self.plan.is_failing() || is_told || self.is_misconfigured || !is_usable {
            State::Degraded
        } else {
            State::Ready
        }
    }

    /// When the server ends the login, in milliseconds since the Unix epoch.
    pub(super) fn login_ends_at_ms(&self) -> Option<i64> {
        let record = self.record.as_ref()?;
        let account = self.oauth.account();
        if account.grant != Grant::AuthorizationCode {
            return None;
        }
        if record.refresh_token.is_none() {
            return self.lifetime().and_then(|lifetime| lifetime.expires_at_wall_ms());
        }
        let lasts = i64::try_from(account.login_lifetime?.as_millis()).ok()?;
        Some(record.login_at_ms.saturating_add(lasts))
    }

    /// Tells what a person should know by now, and publishes the status.
    pub(super) fn look_around(&mut self) {
        if self.state() == State::LoginRequired {
            let usable = self.lifetime().is_some_and(|lifetime| lifetime.is_usable(now()));
            let until = if usable { " before the last token expires" } else { "" };
            self.tell(Event::LoginRequired, format!("a person has to log in{until}"));
        }
        let warn_ms = i64::try_from(WARN_BEFORE.as_millis()).unwrap_or(i64::MAX);
        if let Some(ends_at) = self.login_ends_at_ms()
            && ends_at.saturating_sub(now().wall_ms()) < warn_ms
            && self.record.as_ref().is_some_and(|record| record.refresh_token.is_some())
        {
            self.tell(
                Event::LoginExpiring,
                format!("the server ends this login at {}: log in again before that", rfc3339(ends_at)),
            );
        }
        self.publish();
    }

    pub(super) fn tell(&mut self, event: Event, message: String) {
        if self.told.insert(event) {
            self.note_event(event, message);
        }
    }

    pub(super) fn untell(&mut self, event: Event, message: &str) {
        if self.told.remove(&event) {
            self.note_event(Event::Recovered, message.to_owned());
        }
    }

    pub(super) fn note_event(&mut self, event: Event, message: String) {
        *self.event_counts.entry(event).or_default() += 1;
        let notice = self.notifier.emit(event, &self.shared.account, message);
        self.events.push_back(notice);
        if self.events.len() > EVENTS_KEPT {
            self.events.pop_front();
        }
    }

    pub(super) fn note_refresh(&mut self, outcome: RefreshOutcome, error: Option<String>) {
        match &error {
            None => tracing::info!(account = self.shared.account, "refreshed the token"),
            Some(reason) => {
                tracing::warn!(account = self.shared.account, ?outcome, reason, "the refresh failed");
            }
        }
        *self.refresh_counts.entry(outcome).or_default() += 1;
        self.refreshes.push_back(Refresh { at: At(now().wall_ms()), outcome, error });
        if self.refreshes.len() > REFRESHES_KEPT {
            self.refreshes.pop_front();
        }
    }

    pub(super) fn status(&self) -> Status {
        let lifetime = self.lifetime();
        let next = self.can_refresh().then_some(lifetime).flatten();
        Status {
            grant: self.oauth.account().grant.as_str(),
            state: self.state(),
            person: self.record.as_ref().and_then(|record| record.person.as_ref()).map(|p| p.name.clone()),
            obtained_at: lifetime.map(|lifetime| At(lifetime.obtained_wall_ms())),
            expires_at: lifetime.and_then(|lifetime| lifetime.expires_at_wall_ms()).map(At),
            next_refresh_at: next.and_then(|lifetime| lifetime.due_at_wall_ms()).map(At),
            login_expires_at: self.login_ends_at_ms().map(At),
            last_refresh: self.refreshes.back().cloned(),
            refreshes: self.refreshes.clone(),
            events: self.events.clone(),
            refresh_counts: self.refresh_counts.clone(),
            event_counts: self.event_counts.clone(),
        }
    }

    pub(super) fn publish(&self) {
        let (status, retry_in) = (Arc::new(self.status()), self.plan.until_allowed(now()));
        self.shared.published.send_modify(|published| {
            published.status = status;
            published.retry_in = retry_in;
            published.published_at = now();
        });
    }

    /// Tells all who wait that a try is over, or that there will be none.
    pub(super) fn answer(&self) {
        self.publish();
        self.shared.published.send_modify(|published| published.answers += 1);
    }
}
