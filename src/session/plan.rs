//! When to try a refresh, and when not to: decisions only, the clock and the dice come in as arguments.

use std::collections::VecDeque;
use std::time::Duration;

use crate::oauth::{GrantError, Loss};
use crate::token::{Lifetime, Moment};

/// Back-off after a try that may have reached the server: up to `BASE * 2^n`, at most `CAP`.
const BASE: Duration = Duration::from_secs(4);
const CAP: Duration = Duration::from_secs(240);
/// The same while nothing reaches the server: a try costs nobody anything.
const UNSENT_CAP: Duration = Duration::from_secs(60);
/// The same while requests fail for want of a token.
const WANTED_CAP: Duration = Duration::from_secs(2);
/// Between tries while a person is asked for, who is likelier to help.
const SLOWLY: Duration = Duration::from_secs(600);
/// `Retry-After` is honoured up to this part of what the access token has left, and this long at least.
const RETRY_AFTER_PART: u32 = 10;
const RETRY_AFTER_LEAST: Duration = Duration::from_secs(60);
/// Tries that may have reached the server: at most so many in the window.
const MOST_TRIES: usize = 10;
const WINDOW: Duration = Duration::from_secs(600);
/// After a refusal that only a change of the configuration can mend.
const MISCONFIGURED: Duration = Duration::from_secs(310);
/// Upstream 401s cause at most one refresh in this time; in twice that when the fresh token got one, too, and so on.
const REJECTED_EVERY: Duration = Duration::from_secs(60);
const REJECTED_EVERY_AT_MOST: Duration = Duration::from_secs(3600);
/// When a failure is told to a person: after so many tries, or so long.
const TELL_AFTER_FAILURES: u32 = 3;
const TELL_AFTER: Duration = Duration::from_secs(900);
/// When a person is asked for without a last word of the server: after so many refusals over so long, without a
/// usable access token.
const PERSON_AFTER_REFUSALS: u32 = 3;
const PERSON_AFTER: Duration = Duration::from_secs(600);
/// A refused refresh token is shown once more that long before the access token's end: this part of its lifetime,
/// and no more than this.
const LAST_TRY_PART: u32 = 10;
const LAST_TRY_MOST: Duration = Duration::from_secs(120);

/// What the past says about the next try.
#[derive(Debug, Default)]
pub(super) struct Plan {
    failures: u32,
    failing_since: Option<Moment>,
    not_before: Option<(Moment, Duration)>,
    /// The server may still work on a request with the token until then, whatever a person asks for.
    busy: Option<(Moment, Duration)>,
    /// Refusals while there was no usable access token, and when the first of them came.
    refusals: u32,
    refused_since: Option<Moment>,
    sent: VecDeque<Moment>,
    rejection: Option<Rejection>,
    is_told: bool,
}

/// The last upstream 401 that caused a refresh.
#[derive(Clone, Copy, Debug)]
struct Rejection {
    at: Moment,
    /// How long no other one does.
    pause: Duration,
    /// The token that it brought, until that is known to be good or bad.
    brought: Option<u64>,
}

/// What becomes of an upstream's 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It causes a refresh.
    Refresh,
    /// Not now.
    TooEarly,
    /// Not now: the token that the last one brought is refused as well, so that no refresh helps. Said once a token.
    Incurable,
}

impl Plan {
    /// How long until a refresh should be tried by itself. `lifetime` is that of the token in use.
    pub(super) fn until_refresh(&self, lifetime: Option<&Lifetime>, jitter: f64, now: Moment) -> Duration {
        let until_due = lifetime.map_or(Duration::ZERO, |lifetime| until_due(lifetime, jitter, now));
        until_due.max(self.until_allowed(now))
    }

    /// How long until a refused refresh token is shown for the last time; none when that moment has passed.
    pub(super) fn until_last_try(&self, lifetime: &Lifetime, now: Moment) -> Option<Duration> {
        let (lasts, remaining) = (lifetime.expires_in()?, lifetime.remaining(now)?);
        let wait = remaining.saturating_sub((lasts / LAST_TRY_PART).min(LAST_TRY_MOST));
        (!remaining.is_zero()).then(|| wait.max(self.until_allowed(now)))
    }

    /// How long back-off, `Retry-After` and the budget of tries forbid another one.
    pub(super) fn until_allowed(&self, now: Moment) -> Duration {
        let over_budget = match self.sent.len().checked_sub(MOST_TRIES) {
            Some(oldest) => WINDOW.saturating_sub(now.since(self.sent[oldest])),
            None => Duration::ZERO,
        };
        left(self.not_before, now).max(self.until_answered(now)).max(over_budget)
    }

    /// How long the server may still work on an earlier request.
    pub(super) fn until_answered(&self, now: Moment) -> Duration {
        left(self.busy, now)
    }

    /// Whether an upstream's 401 to the token `serial` causes a refresh now; it is counted then.
    pub(super) fn judge_rejection(&mut self, serial: u64, now: Moment) -> Verdict {
        let is_incurable = self.rejection.is_some_and(|last| last.brought == Some(serial));
        if let Some(last) = self.rejection.as_mut().filter(|_| is_incurable) {
            last.pause = (last.pause * 2).min(REJECTED_EVERY_AT_MOST);
            last.brought = None;
        }
        let is_early = self.rejection.is_some_and(|last| now.since(last.at) < last.pause);
        if is_early || !self.until_allowed(now).is_zero() {
            return if is_incurable { Verdict::Incurable } else { Verdict::TooEarly };
        }
        let pause = self.rejection.map_or(REJECTED_EVERY, |last| last.pause);
        self.rejection = Some(Rejection { at: now, pause, brought: None });
        Verdict::Refresh
    }

    /// The refresh that a 401 caused brought the token `serial`.
    pub(super) fn rejection_brought(&mut self, serial: u64) {
        if let Some(last) = &mut self.rejection {
            last.brought = Some(serial);
        }
    }

    /// The upstream takes the token that a 401 brought.
    pub(super) fn rejection_cured(&mut self) {
        if let Some(last) = &mut self.rejection {
            *last = Rejection { pause: REJECTED_EVERY, brought: None, ..*last };
        }
    }

    /// Everything is well again. True when a person was told that it was not.
    pub(super) fn succeeded(&mut self) -> bool {
        let was_told = self.is_told;
        *self = Self { rejection: self.rejection, ..Self::default() };
        was_told
    }

    /// True since the first failure after the last success.
    pub(super) const fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// True when the server has refused for so long that a person is asked for.
    pub(super) fn needs_person(&self, now: Moment) -> bool {
        let lasting = self.refused_since.is_some_and(|since| now.since(since) >= PERSON_AFTER);
        self.refusals >= PERSON_AFTER_REFUSALS && lasting
    }

    /// A try failed. `remaining` is what the access token has left; requests fail for want of one when that is
    /// nothing. `timeout` is how long an answer is waited for; `dice` is from 0 to 1.
    pub(super) fn failed(
        &mut self,
        error: &GrantError,
        remaining: Duration,
        timeout: Duration,
        dice: f64,
        now: Moment,
    ) {
        self.failures = self.failures.saturating_add(1);
        self.failing_since.get_or_insert(now);
        let is_wanted = remaining.is_zero();
        if is_wanted && error.is_refusal() {
            self.refusals = self.refusals.saturating_add(1);
            self.refused_since.get_or_insert(now);
        }
        let growing = |cap: Duration| {
            let doublings = 1_u32.checked_shl(self.failures - 1).unwrap_or(u32::MAX);
            BASE.saturating_mul(doublings).min(cap).mul_f64(dice)
        };
        let wait = match error {
            GrantError::Unavailable { was_sent: false, .. } if is_wanted => growing(WANTED_CAP),
            GrantError::Unavailable { was_sent: false, .. } => growing(UNSENT_CAP),
            // Its token is not presented again, or once, at a time of its own.
            GrantError::Refused { .. } => Duration::ZERO,
            GrantError::Misconfigured { .. } => MISCONFIGURED,
            GrantError::Unavailable { retry_after: Some(asked), .. }
            | GrantError::NotGranted { retry_after: Some(asked), .. } => {
                let most = (remaining / RETRY_AFTER_PART).max(RETRY_AFTER_LEAST);
                (*asked).clamp(Duration::from_secs(1), most)
            }
            GrantError::Unavailable { .. } | GrantError::NotGranted { .. } | GrantError::InDoubt { .. } => {
                growing(CAP)
            }
        };
        self.not_before = Some((now, if self.needs_person(now) { wait.max(SLOWLY) } else { wait }));
        if let GrantError::InDoubt { loss: Loss::TimedOut, .. } = error {
            self.busy = Some((now, timeout));
        }
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

    /// True once, when the failure has lasted long enough to bother a person with it, or its pause (`asked` by the
    /// server) outlasts what the access token has left.
    pub(super) fn should_tell(&mut self, asked: Option<Duration>, remaining: Duration, now: Moment) -> bool {
        let lasting = self.failing_since.is_some_and(|since| now.since(since) >= TELL_AFTER);
        let outlasts = asked.is_some_and(|asked| asked >= remaining.max(RETRY_AFTER_LEAST));
        let tell = !self.is_told && (self.failures >= TELL_AFTER_FAILURES || lasting || outlasts);
        self.is_told |= tell;
        tell
    }
}

/// What is left of a wait.
fn left(wait: Option<(Moment, Duration)>, now: Moment) -> Duration {
    wait.map_or(Duration::ZERO, |(since, wait)| wait.saturating_sub(now.since(since)))
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
    const TIMEOUT: Duration = Duration::from_secs(60);
    const NOTHING: Duration = Duration::ZERO;
    const HOUR: Duration = Duration::from_secs(3600);

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn unavailable(was_sent: bool, retry_after: Option<Duration>) -> GrantError {
        GrantError::Unavailable { reason: String::new(), was_sent, retry_after }
    }

    fn not_granted() -> GrantError {
        GrantError::NotGranted { reason: String::new(), retry_after: None, successor: None }
    }

    #[test]
    fn a_server_that_grants_nothing_is_asked_at_most_twelve_times_in_ten_minutes() {
        for (error, dice) in [
            (unavailable(true, None), 0.0),
            (unavailable(true, None), 0.3),
            (unavailable(true, None), 1.0),
            (not_granted(), 0.0),
            (not_granted(), 1.0),
        ] {
            let (mut plan, mut now, mut tries) = (Plan::default(), START, 0);
            while now.since(START) < WINDOW {
                plan.sending(now);
                plan.failed(&error, NOTHING, TIMEOUT, dice, now);
                tries += 1;
                now = now.plus(plan.until_allowed(now).max(Duration::from_millis(10)));
            }
            assert!((3..=12).contains(&tries), "{tries} tries with dice {dice}");
        }
    }

    #[test]
    fn retry_after_is_honoured_up_to_a_tenth_of_what_the_token_has_left_and_a_minute_at_least() {
        for (asked, remaining, expected) in [
            (secs(120), secs(1800), secs(120)),
            (secs(86_400), secs(1800), secs(180)),
            (secs(86_400), NOTHING, secs(60)),
            (secs(50), NOTHING, secs(50)),
            (NOTHING, NOTHING, secs(1)),
        ] {
            let mut plan = Plan::default();
            plan.failed(&unavailable(true, Some(asked)), remaining, TIMEOUT, 0.0, START);
            assert_eq!(plan.until_refresh(None, 0.0, START), expected, "{asked:?}, {remaining:?}");
        }
    }

    #[test]
    fn a_pause_that_outlasts_the_token_is_told_at_once() {
        for (asked, remaining, expected) in [
            (secs(86_400), secs(1800), true),
            (secs(1800), secs(1800), true),
            (secs(120), secs(1800), false),
            (secs(5), secs(1), false),
            (secs(61), NOTHING, true),
        ] {
            let mut plan = Plan::default();
            plan.failed(&unavailable(true, Some(asked)), remaining, TIMEOUT, 0.0, START);
            assert_eq!(plan.should_tell(Some(asked), remaining, START), expected, "{asked:?}, {remaining:?}");
        }
    }

    #[test]
    fn a_server_that_may_still_work_on_a_request_is_not_asked_again_not_even_by_a_person() {
        let lost = |loss| GrantError::InDoubt { reason: String::new(), loss };
        for (loss, expected) in
            [(Loss::TimedOut, TIMEOUT), (Loss::Broken, NOTHING), (Loss::Unreadable, NOTHING)]
        {
            let mut plan = Plan::default();
            plan.failed(&lost(loss), HOUR, TIMEOUT, 0.0, START);
            plan.forgive();
            assert_eq!(plan.until_allowed(START), expected, "{loss:?}");
            assert_eq!(plan.until_allowed(START.plus(TIMEOUT)), NOTHING, "{loss:?}");
        }
    }

    #[test]
    fn a_network_that_comes_back_is_noticed_within_two_seconds() {
        let mut plan = Plan::default();

        for _ in 0..50 {
            plan.failed(&unavailable(false, None), NOTHING, TIMEOUT, 1.0, START);
        }

        assert!(plan.until_allowed(START) <= secs(2));
    }

    #[test]
    fn a_person_is_asked_for_after_three_refusals_in_ten_minutes_without_a_token() {
        let after = |refusals: u32, remaining, over: Duration, error: &GrantError| {
            let mut plan = Plan::default();
            for _ in 0..refusals {
                plan.failed(error, remaining, TIMEOUT, 0.0, START);
            }
            plan.needs_person(START.plus(over))
        };
        assert!(after(3, NOTHING, PERSON_AFTER, &not_granted()));
        assert!(!after(2, NOTHING, PERSON_AFTER, &not_granted()));
        assert!(!after(9, NOTHING, PERSON_AFTER - secs(1), &not_granted()));
        assert!(!after(9, secs(1), HOUR, &not_granted()), "the access token serves");
        assert!(!after(9, NOTHING, HOUR, &unavailable(true, None)), "nobody refuses anything");
        let misconfigured =
            GrantError::Misconfigured { code: "invalid_client".to_owned(), description: String::new() };
        assert!(after(3, NOTHING, PERSON_AFTER, &misconfigured));
    }

    #[test]
    fn the_last_try_is_shortly_before_the_end() {
        let until = |lasts: Duration, age: Duration| {
            let lifetime = Lifetime::new(START, lasts, 0.5);
            Plan::default().until_last_try(&lifetime, START.plus(age))
        };
        assert_eq!(until(secs(100), secs(50)), Some(secs(40)));
        assert_eq!(until(secs(100), secs(90)), Some(NOTHING));
        assert_eq!(until(secs(100), secs(100)), None);
        assert_eq!(until(secs(36_000), NOTHING), Some(secs(36_000 - 120)));
    }

    #[test]
    fn rejections_cause_one_refresh_a_minute_and_ever_fewer_when_no_refresh_helps() {
        let mut plan = Plan::default();

        assert_eq!(plan.judge_rejection(1, START), Verdict::Refresh);
        plan.succeeded();
        assert_eq!(plan.judge_rejection(2, START.plus(secs(59))), Verdict::TooEarly);
        assert_eq!(plan.judge_rejection(2, START.plus(secs(60))), Verdict::Refresh);

        let (mut plan, mut refreshes, mut told) = (Plan::default(), 0, 0);
        for second in 0..24 * 3600 {
            match plan.judge_rejection(refreshes, START.plus(secs(second))) {
                Verdict::Refresh => {
                    refreshes += 1;
                    plan.rejection_brought(refreshes);
                }
                Verdict::Incurable => told += 1,
                Verdict::TooEarly => {}
            }
        }
        assert!((24..=40).contains(&refreshes), "{refreshes} refreshes in a day");
        assert_eq!(told, refreshes);
        plan.rejection_cured();
        let later = START.plus(secs(25 * 3600));
        assert_eq!(plan.judge_rejection(0, later), Verdict::Refresh);
        assert_eq!(plan.judge_rejection(0, later.plus(REJECTED_EVERY)), Verdict::Refresh);
    }

    #[test]
    fn a_person_is_told_once_after_three_failures_or_a_quarter_of_an_hour() {
        let told = |failures: u32, after: Duration| {
            let mut plan = Plan::default();
            for _ in 0..failures {
                plan.failed(&unavailable(true, None), HOUR, TIMEOUT, 0.5, START);
            }
            let first = plan.should_tell(None, HOUR, START.plus(after));
            assert!(!plan.should_tell(None, HOUR, START.plus(after)), "told twice");
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
