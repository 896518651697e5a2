//! When to try a refresh, and when not to: decisions only, the clock and the dice come in as arguments.

use std::collections::VecDeque;
use std::time::Duration;

use crate::oauth::GrantError;
use crate::token::{Lifetime, Moment};

/// Back-off after a try that may have reached the server: up to `BASE * 2^n`, at most `CAP`.
const BASE: Duration = Duration::from_secs(4);
const CAP: Duration = Duration::from_secs(240);
/// The same while nothing reaches the server: a try costs nobody anything.
const UNSENT_CAP: Duration = Duration::from_secs(60);
/// The same while requests fail for want of a token.
const WANTED_CAP: Duration = Duration::from_secs(2);
/// Tries that may have reached the server: at most so many in the window.
const MOST_TRIES: usize = 10;
const WINDOW: Duration = Duration::from_secs(600);
/// After a refusal that only a change of the configuration can mend.
const MISCONFIGURED: Duration = Duration::from_secs(310);
/// Upstream 401s cause at most one refresh in this time.
const REJECTED_EVERY: Duration = Duration::from_secs(60);
/// When a failure is told to a person: after so many tries, or so long.
const TELL_AFTER_FAILURES: u32 = 3;
const TELL_AFTER: Duration = Duration::from_secs(900);

/// What the past says about the next try.
#[derive(Debug, Default)]
pub(super) struct Plan {
    failures: u32,
    failing_since: Option<Moment>,
    not_before: Option<(Moment, Duration)>,
    sent: VecDeque<Moment>,
    rejected_at: Option<Moment>,
    is_told: bool,
}

impl Plan {
    /// How long until a refresh should be tried by itself. `lifetime` is that of the token in use.
    pub(super) fn until_refresh(&self, lifetime: Option<&Lifetime>, jitter: f64, now: Moment) -> Duration {
        let until_due = lifetime.map_or(Duration::ZERO, |lifetime| until_due(lifetime, jitter, now));
        until_due.max(self.until_allowed(now))
    }

    /// How long back-off, `Retry-After` and the budget of tries forbid another one.
    pub(super) fn until_allowed(&self, now: Moment) -> Duration {
        let backing_off =
            self.not_before.map_or(Duration::ZERO, |(since, wait)| wait.saturating_sub(now.since(since)));
        let over_budget = match self.sent.len().checked_sub(MOST_TRIES) {
            Some(oldest) => WINDOW.saturating_sub(now.since(self.sent[oldest])),
            None => Duration::ZERO,
        };
        backing_off.max(over_budget)
    }

    /// True when an upstream's 401 may cause a refresh now; it is counted then.
    pub(super) fn admit_rejection(&mut self, now: Moment) -> bool {
        let recently = self.rejected_at.is_some_and(|at| now.since(at) < REJECTED_EVERY);
        if recently || !self.until_allowed(now).is_zero() {
            return false;
        }
        self.rejected_at = Some(now);
        true
    }

    /// Everything is well again. True when a person was told that it was not.
    pub(super) fn succeeded(&mut self) -> bool {
        let was_told = self.is_told;
        *self = Self { rejected_at: self.rejected_at, ..Self::default() };
        was_told
    }

    /// True since the first failure after the last success.
    pub(super) const fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// A try failed. `dice` is from 0 to 1; `is_wanted` says that requests fail for want of a token.
    pub(super) fn failed(&mut self, error: &GrantError, is_wanted: bool, dice: f64, now: Moment) {
        self.failures = self.failures.saturating_add(1);
        self.failing_since.get_or_insert(now);
        let growing = |cap: Duration| {
            let doublings = 1_u32.checked_shl(self.failures - 1).unwrap_or(u32::MAX);
            BASE.saturating_mul(doublings).min(cap).mul_f64(dice)
        };
        let wait = match error {
            GrantError::Refused { .. } => MISCONFIGURED,
            GrantError::Unavailable { was_sent: false, .. } if is_wanted => growing(WANTED_CAP),
            GrantError::Unavailable { was_sent: false, .. } => growing(UNSENT_CAP),
            GrantError::Unavailable { retry_after: Some(asked), .. } => (*asked).max(Duration::from_secs(1)),
            GrantError::Unavailable { .. } | GrantError::Unusable { .. } | GrantError::InDoubt { .. } => {
                growing(CAP)
            }
        };
        self.not_before = Some((now, wait));
    }

    /// A try that may reach the server begins.
    pub(super) fn sending(&mut self, now: Moment) {
        self.sent.push_back(now);
        while self.sent.front().is_some_and(|at| now.since(*at) >= WINDOW) {
            self.sent.pop_front();
        }
    }

    /// A try turned out not to have reached the server.
    pub(super) fn was_not_sent(&mut self) {
        self.sent.pop_back();
    }

    /// The store can't take another login now: look again soon, without having spent anything.
    pub(super) fn postpone(&mut self, wait: Duration, now: Moment) {
        self.not_before = Some((now, wait));
    }

    /// The configuration changed, or a person asks: forget what forbade a try.
    pub(super) fn forgive(&mut self) {
        self.not_before = None;
    }

    /// True once, when the failure has lasted long enough to bother a person with it.
    pub(super) fn should_tell(&mut self, now: Moment) -> bool {
        let lasting = self.failing_since.is_some_and(|since| now.since(since) >= TELL_AFTER);
        let tell = !self.is_told && (self.failures >= TELL_AFTER_FAILURES || lasting);
        self.is_told |= tell;
        tell
    }
}

/// The refresh point moved by up to 5 % of itself; `jitter` is from 0 to 1.
fn until_due(lifetime: &Lifetime, jitter: f64, now: Moment) -> Duration {
    if lifetime.expires_in().is_none() {
        return Duration::MAX;
    }
    if !lifetime.is_usable(now) {
        return Duration::ZERO;
    }
    let early = lifetime.due_after().mul_f64(0.05 * jitter);
    lifetime.until_due(now).saturating_sub(early)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment::new(1_000_000_000, 5_000_000);

    fn unavailable(was_sent: bool, retry_after: Option<Duration>) -> GrantError {
        GrantError::Unavailable { reason: String::new(), was_sent, retry_after }
    }

    #[test]
    fn a_server_that_is_down_is_asked_at_most_twelve_times_in_ten_minutes() {
        for dice in [0.0, 0.3, 1.0] {
            let (mut plan, mut now, mut tries) = (Plan::default(), START, 0);
            while now.since(START) < WINDOW {
                plan.sending(now);
                plan.failed(&unavailable(true, None), true, dice, now);
                tries += 1;
                now = now.plus(plan.until_allowed(now).max(Duration::from_millis(10)));
            }
            assert!((3..=12).contains(&tries), "{tries} tries with dice {dice}");
        }
    }

    #[test]
    fn retry_after_is_honoured() {
        let mut plan = Plan::default();

        plan.failed(&unavailable(true, Some(Duration::from_secs(120))), true, 0.0, START);

        assert_eq!(plan.until_refresh(None, 0.0, START), Duration::from_secs(120));
    }

    #[test]
    fn a_network_that_comes_back_is_noticed_within_two_seconds() {
        let mut plan = Plan::default();

        for _ in 0..50 {
            plan.failed(&unavailable(false, None), true, 1.0, START);
        }

        assert!(plan.until_allowed(START) <= Duration::from_secs(2));
    }

    #[test]
    fn rejections_cause_one_refresh_a_minute() {
        let mut plan = Plan::default();

        assert!(plan.admit_rejection(START));
        plan.succeeded();
        assert!(!plan.admit_rejection(START.plus(Duration::from_secs(59))));
        assert!(plan.admit_rejection(START.plus(Duration::from_secs(60))));
    }

    #[test]
    fn a_person_is_told_once_after_three_failures_or_a_quarter_of_an_hour() {
        let told = |failures: u32, after: Duration| {
            let mut plan = Plan::default();
            for _ in 0..failures {
                plan.failed(&unavailable(true, None), false, 0.5, START);
            }
            let first = plan.should_tell(START.plus(after));
            assert!(!plan.should_tell(START.plus(after)), "told twice");
            first
        };
        assert!(!told(2, Duration::ZERO));
        assert!(told(3, Duration::ZERO));
        assert!(told(1, TELL_AFTER));
    }

    #[test]
    fn a_refresh_is_due_at_half_of_the_lifetime_and_up_to_a_twentieth_earlier() {
        let lifetime = Lifetime::new(START, Duration::from_secs(3600), 0.5);
        let plan = Plan::default();

        assert_eq!(plan.until_refresh(Some(&lifetime), 0.0, START), Duration::from_secs(1800));
        assert_eq!(plan.until_refresh(Some(&lifetime), 1.0, START), Duration::from_secs(1710));
        assert_eq!(
            plan.until_refresh(Some(&lifetime), 0.0, START.plus(Duration::from_secs(9999))),
            Duration::ZERO
        );
    }
}
