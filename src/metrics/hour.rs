//! The last hour, a minute at a time: what is counted anyway, looked at every few seconds, so that it costs a request
//! nothing.

use std::collections::VecDeque;
use std::time::Duration;

/// How much of the past is kept.
pub const MINUTES: usize = 60;

/// What was counted in a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Minute {
    /// Forwarded requests that were answered, by the upstream or by us.
    pub answered: u64,
    /// Those answered with a 4xx status.
    pub client_errors: u64,
    /// Those answered with a 5xx status.
    pub server_errors: u64,
    /// Answers of an upstream that were timed.
    pub upstream_answers: u64,
    /// How long all of those took together, to the head of the answer.
    pub upstream_total: Duration,
}

/// A ring of minutes.
#[derive(Debug)]
pub(super) struct Hour {
    minutes: VecDeque<Minute>,
    newest: Option<u64>,
    seen: Minute,
}

impl Default for Hour {
    fn default() -> Self {
        Self { minutes: VecDeque::from([Minute::default(); MINUTES]), newest: None, seen: Minute::default() }
    }
}

impl Hour {
    /// What is new in these counts since the start belongs to this minute, counted on a clock that nobody sets.
    pub(super) fn note(&mut self, since_start: Minute, minute: u64) {
        let passed = self.newest.map_or(0, |newest| minute.saturating_sub(newest));
        for _ in 0..passed.min(MINUTES as u64) {
            self.minutes.pop_front();
            self.minutes.push_back(Minute::default());
        }
        self.newest = self.newest.max(Some(minute));
        let new = since_start.minus(&self.seen);
        if let Some(now) = self.minutes.back_mut() {
            *now = now.plus(&new);
        }
        // Only ever more: what one look saw too little of, the next one adds.
        self.seen = self.seen.plus(&new);
    }

    /// The oldest first.
    pub(super) fn minutes(&self) -> Vec<Minute> {
        self.minutes.iter().copied().collect()
    }
}

impl Minute {
    /// The mean time to the head of an upstream's answer; none when none was timed.
    pub fn upstream_mean(&self) -> Option<Duration> {
        let answers = u32::try_from(self.upstream_answers).unwrap_or(u32::MAX);
        self.upstream_total.checked_div(answers)
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, more: &Self) -> Self {
        Self {
            answered: self.answered.saturating_add(more.answered),
            client_errors: self.client_errors.saturating_add(more.client_errors),
            server_errors: self.server_errors.saturating_add(more.server_errors),
            upstream_answers: self.upstream_answers.saturating_add(more.upstream_answers),
            upstream_total: self.upstream_total.saturating_add(more.upstream_total),
        }
    }

    /// What has been added since `earlier`, if anything was.
    fn minus(&self, earlier: &Self) -> Self {
        Self {
            answered: self.answered.saturating_sub(earlier.answered),
            client_errors: self.client_errors.saturating_sub(earlier.client_errors),
            server_errors: self.server_errors.saturating_sub(earlier.server_errors),
            upstream_answers: self.upstream_answers.saturating_sub(earlier.upstream_answers),
            upstream_total: self.upstream_total.saturating_sub(earlier.upstream_total),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(answered: u64, upstream_ms: u64) -> Minute {
        let upstream_total = Duration::from_millis(upstream_ms);
        Minute { answered, upstream_answers: answered, upstream_total, ..Minute::default() }
    }

    #[test]
    fn what_is_counted_belongs_to_its_minute_and_is_gone_after_an_hour() {
        let mut hour = Hour::default();
        hour.note(counted(0, 0), 1000);
        hour.note(counted(3, 30), 1000);
        hour.note(counted(5, 90), 1001);
        hour.note(counted(6, 91), 1003);

        let answered = |hour: &Hour| hour.minutes().iter().map(|one| one.answered).collect::<Vec<_>>();
        assert_eq!(answered(&hour)[MINUTES - 4..], [3, 2, 0, 1]);
        assert_eq!(hour.minutes()[MINUTES - 3].upstream_mean(), Some(Duration::from_millis(30)));
        assert_eq!(hour.minutes()[MINUTES - 2].upstream_mean(), None);

        hour.note(counted(6, 91), 1060);
        assert_eq!(answered(&hour)[..3], [2, 0, 1]);
        hour.note(counted(7, 92), 9_999_999);
        assert_eq!(answered(&hour).iter().sum::<u64>(), 1, "a long sleep leaves nothing behind");
        assert_eq!(hour.minutes().len(), MINUTES);
    }
}
