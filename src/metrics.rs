//! What happens to requests and connections, counted: by each worker for itself, and summed up when somebody looks.

mod histogram;
mod hour;
pub mod text;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;

use crate::token::Moment;
pub use histogram::Distribution;
use histogram::Histogram;
use hour::Hour;
pub use hour::{MINUTES, Minute};

/// The counters of all workers, and the last hour.
#[derive(Debug, Default)]
pub struct Metrics {
    workers: Mutex<Vec<Arc<Counters>>>,
    hour: Mutex<Hour>,
}

/// What one worker counts, on cache lines of its own: no worker waits for another.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    began: AtomicU64,
    answered: [AtomicU64; 5],
    durations: Histogram,
    upstream_durations: Histogram,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    refused: AtomicU64,
    replayed: AtomicU64,
    local_began: AtomicU64,
    local_answered: [AtomicU64; 5],
    local_ended: AtomicU64,
    callers: Connections,
    turned_away: AtomicU64,
    upstreams: Connections,
}

/// Whom a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The upstream, whether it gets there or not.
    Upstream,
    /// Our own pages.
    Local,
}

/// A connection that is counted as open until this is dropped.
#[derive(Debug)]
pub struct OpenConnection {
    counters: Arc<Counters>,
    of: fn(&Counters) -> &Connections,
}

#[derive(Debug, Default)]
struct Connections {
    opened: AtomicU64,
    closed: AtomicU64,
}

/// The sums over all workers at one point.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    /// Forwarded requests that were answered, by the upstream or by us; by class of status, from 1xx to 5xx.
    pub answered: [u64; 5],
    /// Requests for our own pages that were answered, by class.
    pub local_answered: [u64; 5],
    /// Requests that we refused.
    pub refused: u64,
    /// Sent once more after a 401 or on a fresh connection.
    pub replayed: u64,
    /// Forwarded requests whose answer is not complete.
    pub in_flight: u64,
    /// The same for our own pages.
    pub local_in_flight: u64,
    /// From the whole head of a forwarded request to the end of its answer, or until it was given up.
    pub durations: Distribution,
    /// From sending a request up to the head of the first answer.
    pub upstream_durations: Distribution,
    /// Of the bodies of forwarded requests, as far as they came from callers.
    pub request_bytes: u64,
    /// Of the bodies of the answers to them, as far as they went to callers.
    pub response_bytes: u64,
    /// Connections of callers that were accepted.
    pub callers_accepted: u64,
    /// Those that are open.
    pub callers_open: u64,
    /// Those that there was no room for.
    pub callers_turned_away: u64,
    /// Connections that were made to upstreams.
    pub upstreams_opened: u64,
    /// Those that are open, in use or idle.
    pub upstreams_open: u64,
}

/// The counters that the status shows.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Counts {
    /// Requests that were answered, by us or by the upstream.
    pub total: u64,
    /// Answered with a 4xx status.
    pub client_errors: u64,
    /// Answered with a 5xx status.
    pub server_errors: u64,
    /// Refused by us.
    pub refused: u64,
    /// Sent once more after a 401 or on a fresh connection.
    pub replayed: u64,
    /// Requests whose answer is not complete.
    pub in_flight: u64,
    /// Open connections of callers.
    pub connections: u64,
}

impl Metrics {
    /// The counters of one more worker.
    pub fn worker(&self) -> Arc<Counters> {
        let counters = Arc::<Counters>::default();
        self.workers.lock().expect("no thread panics while it holds the workers").push(Arc::clone(&counters));
        counters
    }

    /// The sums over all workers.
    pub fn totals(&self) -> Totals {
        let workers = self.workers.lock().expect("no thread panics while it holds the workers");
        let sum = |of: fn(&Counters) -> &AtomicU64| workers.iter().map(|each| read(of(each))).sum::<u64>();
        let classes = |of: fn(&Counters) -> &[AtomicU64; 5]| {
            std::array::from_fn(|class| workers.iter().map(|each| read(&of(each)[class])).sum())
        };
        let observed = |of: fn(&Counters) -> &Histogram| {
            workers
                .iter()
                .map(|each| of(each).distribution())
                .fold(Distribution::default(), |a, b| a.plus(&b))
        };
        // What ended first: nothing has ended without having begun.
        let (durations, local_ended) = (observed(|each| &each.durations), sum(|each| &each.local_ended));
        let callers_closed = sum(|each| &each.callers.closed);
        let upstreams_closed = sum(|each| &each.upstreams.closed);
        let callers_accepted = sum(|each| &each.callers.opened);
        let upstreams_opened = sum(|each| &each.upstreams.opened);
        Totals {
            answered: classes(|each| &each.answered),
            local_answered: classes(|each| &each.local_answered),
            refused: sum(|each| &each.refused),
            replayed: sum(|each| &each.replayed),
            in_flight: sum(|each| &each.began).saturating_sub(durations.count()),
            local_in_flight: sum(|each| &each.local_began).saturating_sub(local_ended),
            durations,
            upstream_durations: observed(|each| &each.upstream_durations),
            request_bytes: sum(|each| &each.request_bytes),
            response_bytes: sum(|each| &each.response_bytes),
            callers_accepted,
            callers_open: callers_accepted.saturating_sub(callers_closed),
            callers_turned_away: sum(|each| &each.turned_away),
            upstreams_opened,
            upstreams_open: upstreams_opened.saturating_sub(upstreams_closed),
        }
    }

    /// Puts what was counted since the last look into the minute that is now: to be called every few seconds.
    pub fn look(&self, now: Moment) {
        let totals = self.totals();
        let since_start = Minute {
            answered: totals.answered.iter().sum(),
            client_errors: totals.answered[3],
            server_errors: totals.answered[4],
            upstream_answers: totals.upstream_durations.count(),
            upstream_total: totals.upstream_durations.sum,
        };
        self.hour.lock().expect("no thread panics while it holds the hour").note(since_start, now.minute());
    }

    /// The last hour, the oldest minute first; the newest has begun and is not over.
    pub fn last_hour(&self, now: Moment) -> Vec<Minute> {
        self.look(now);
        self.hour.lock().expect("no thread panics while it holds the hour").minutes()
    }
}

impl Counters {
    /// A request begins; [`Self::ended`] ends it.
    pub fn began(&self, goal: Goal) {
        add(goal.of(&self.began, &self.local_began), 1);
    }

    /// A request was answered with this status.
    pub fn answered(&self, goal: Goal, status: http::StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        add(&goal.of(&self.answered, &self.local_answered)[class], 1);
    }

    /// A request's answer is complete or given up, so long after it began.
    pub fn ended(&self, goal: Goal, took: Duration) {
        match goal {
            Goal::Upstream => self.durations.observe(took),
            Goal::Local => add(&self.local_ended, 1),
        }
    }

    /// We refused a request.
    pub fn refused(&self) {
        add(&self.refused, 1);
    }

    /// A request was sent once more.
    pub fn replayed(&self) {
        add(&self.replayed, 1);
    }

    /// The head of the upstream's first answer came so long after the request was sent.
    pub fn upstream_answered(&self, took: Duration) {
        self.upstream_durations.observe(took);
    }

    /// So much of a request's body came from a caller.
    pub fn request_body(&self, bytes: usize) {
        add(&self.request_bytes, bytes as u64);
    }

    /// So much of an answer's body went to a caller.
    pub fn response_body(&self, bytes: usize) {
        add(&self.response_bytes, bytes as u64);
    }

    /// A caller's connection was accepted.
    pub fn caller(self: &Arc<Self>) -> OpenConnection {
        OpenConnection::new(self, |counters| &counters.callers)
    }

    /// There was no room for a caller.
    pub fn turned_away(&self) {
        add(&self.turned_away, 1);
    }

    /// A connection to an upstream was made.
    pub fn upstream(self: &Arc<Self>) -> OpenConnection {
        OpenConnection::new(self, |counters| &counters.upstreams)
    }
}

impl Goal {
    fn of<T>(self, upstream: T, local: T) -> T {
        match self {
            Self::Upstream => upstream,
            Self::Local => local,
        }
    }
}

impl OpenConnection {
    fn new(counters: &Arc<Counters>, of: fn(&Counters) -> &Connections) -> Self {
        add(&of(counters).opened, 1);
        Self { counters: Arc::clone(counters), of }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        add(&(self.of)(&self.counters).closed, 1);
    }
}

impl Totals {
    /// What the status shows: of all requests, those for our own pages as well.
    pub fn counts(&self) -> Counts {
        let of_class = |class: usize| self.answered[class] + self.local_answered[class];
        Counts {
            total: (0..5).map(of_class).sum(),
            client_errors: of_class(3),
            server_errors: of_class(4),
            refused: self.refused,
            replayed: self.replayed,
            in_flight: self.in_flight + self.local_in_flight,
            connections: self.callers_open,
        }
    }
}

fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::token::now;

    #[test]
    fn what_workers_count_is_one_sum_and_the_last_hour_has_it_but_for_our_own_pages() {
        let metrics = Metrics::default();
        let workers = [metrics.worker(), metrics.worker()];
        for counters in &workers {
            for (goal, status) in [
                (Goal::Upstream, StatusCode::OK),
                (Goal::Upstream, StatusCode::NOT_FOUND),
                (Goal::Local, StatusCode::OK),
            ] {
                counters.began(goal);
                counters.answered(goal, status);
                counters.ended(goal, Duration::from_millis(3));
            }
            counters.began(Goal::Upstream);
            counters.upstream_answered(Duration::from_millis(2));
        }

        let (totals, hour) = (metrics.totals(), metrics.last_hour(now()));

        assert_eq!((totals.answered, totals.local_answered), ([0, 2, 0, 2, 0], [0, 2, 0, 0, 0]));
        assert_eq!((totals.in_flight, totals.local_in_flight), (2, 0));
        assert_eq!((totals.durations.count(), totals.durations.sum), (4, Duration::from_millis(12)));
        let counts = totals.counts();
        assert_eq!((counts.total, counts.client_errors, counts.in_flight), (6, 2, 2));
        let newest = hour[MINUTES - 1];
        assert_eq!((newest.answered, newest.client_errors, newest.upstream_answers), (4, 2, 2));
        assert_eq!(newest.upstream_mean(), Some(Duration::from_millis(2)));
    }

    #[test]
    fn a_connection_is_open_until_it_is_dropped() {
        let metrics = Metrics::default();
        let counters = metrics.worker();
        let (first, second, upstream) = (counters.caller(), counters.caller(), counters.upstream());
        drop(first);

        let seen = || {
            let totals = metrics.totals();
            [totals.callers_accepted, totals.callers_open, totals.upstreams_opened, totals.upstreams_open]
        };

        assert_eq!(seen(), [2, 1, 1, 1]);
        drop((second, upstream));
        assert_eq!(seen(), [2, 0, 1, 0]);
    }
}
