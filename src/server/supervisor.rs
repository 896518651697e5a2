//! What the service manager is told (`sd_notify(3)`): that we are ready, how the accounts are, and that nothing is
//! stuck. It restarts a daemon that it does not hear from.

use std::collections::BTreeMap;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::config::Listen;
use crate::proxy::login_url;
use crate::session::{Session, State};

/// It is told of changes, and that we are alive, at least this often.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);

/// The service manager, or nobody.
pub(super) struct Supervisor {
    watchdog: Option<Duration>,
    told: String,
    stuck: Option<String>,
}

impl Supervisor {
    /// It hears nothing until [`Self::ready`].
    pub(super) fn new() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled(), told: String::new(), stuck: None }
    }

    /// Ticks whenever [`Self::beat`] is due.
    pub(super) fn heartbeat(&self) -> Interval {
        let often_enough = self.watchdog.map_or(HEARTBEAT, |within| HEARTBEAT.min(within / 3));
        let mut heartbeat = interval(often_enough.max(Duration::from_millis(1)));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat
    }

    /// We accept; how the accounts are is told in the same breath.
    pub(super) fn ready(&mut self, sessions: &BTreeMap<String, Session>, listening: &[Listen]) {
        self.told = one_line(sessions, listening);
        tell(&[NotifyState::Ready, NotifyState::Status(&self.told)]);
    }

    /// How the accounts are, when that has changed, and that we are alive, when nothing is `stuck`.
    pub(super) fn beat(
        &mut self,
        sessions: &BTreeMap<String, Session>,
        listening: &[Listen],
        stuck: Option<String>,
    ) {
        let status = one_line(sessions, listening);
        if status != self.told {
            tell(&[NotifyState::Status(&status)]);
            self.told = status;
        }
        if let Some(stuck) = stuck.as_ref().filter(|_| self.stuck.is_none()) {
            tracing::error!("{stuck}");
        }
        if stuck.is_none() && self.watchdog.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
        self.stuck = stuck;
    }

    /// The configuration is being read again, until [`Self::reloaded`].
    pub(super) fn reloading(&self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            tell(&[NotifyState::Reloading, now]);
        }
    }

    /// It was, taken over or not.
    pub(super) fn reloaded(&self) {
        tell(&[NotifyState::Ready, NotifyState::Status(&self.told)]);
    }

    /// We accept no more and finish what is open.
    pub(super) fn stopping(&self) {
        tell(&[NotifyState::Stopping, NotifyState::Status("finishing what is open")]);
    }
}

fn one_line(sessions: &BTreeMap<String, Session>, listening: &[Listen]) -> String {
    let accounts = sessions.iter().map(|(name, session)| {
        let status = session.status();
        let state = status.state.as_str();
        match (status.state, login_url(listening, name), &status.expires_at) {
            (State::LoginRequired, Some(url), _) => format!("{name}: {state}, open {url}"),
            (State::LoginRequired, None, _) => {
                format!("{name}: {state}, run `cnblogs-proxy login {name}`")
            }
            (State::Ready, _, Some(at)) => format!("{name}: {state} until {at}"),
            _ => format!("{name}: {state}"),
        }
    });
    accounts.collect::<Vec<_>>().join("; ")
}

/// Nothing when no service manager listens.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}
