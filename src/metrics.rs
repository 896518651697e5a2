//! Counters that all threads share.

mod hour;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::token::Moment;
use hour::Hour;
pub use hour::{MINUTES, Minute};

/// How many requests are timed between two looks at the counters.
const TIMED_A_LOOK: u32 = 16;

/// Counts what happened to requests.
#[derive(Debug, Default)]
pub struct Metrics {
    answered: [AtomicU64; 5],
    by_ourselves: [AtomicU64; 5],
    to_time: AtomicU32,
    upstream_answers: AtomicU64,
    upstream_us: AtomicU64,
    hour: Mutex<Hour>,
    refused: AtomicU64,
    replayed: AtomicU64,
    in_flight: AtomicU64,
    connections: AtomicU64,
}

/// The counters at one point.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Counts {
    /// Requests that were answered, by us or by the upstream.
    pub total: u64,
    /// By class of the answer's status, from 1xx to 5xx.
    #[serde(skip)]
    pub by_class: [u64; 5],
    /// Answered with a 4xx status.
    pub client_errors: u64,
    /// Answered with a 5xx status.
    pub server_errors: u64,
    /// Refused by the guard.
    pub refused: u64,
    /// Sent once more after a 401 or on a fresh connection.
    pub replayed: u64,
    /// Requests whose answer is not complete.
    pub in_flight: u64,
    /// Open connections of callers.
    pub connections: u64,
}

impl Metrics {
    /// A request was answered with this status.
    pub fn answered(&self, status: http::StatusCode) {
        self.answered[class_of(status)].fetch_add(1, Ordering::Relaxed);
    }

    /// The same request was for our own pages: the last hour tells of what is forwarded, not of who looks at it.
    pub fn answered_by_ourselves(&self, status: http::StatusCode) {
        self.by_ourselves[class_of(status)].fetch_add(1, Ordering::Relaxed);
    }

    /// When a request goes up, if it is one of those that are timed: the first few after every [`Self::look`], so
    /// that all are where there are few, and where there are many each costs one load.
    pub fn departure(&self) -> Option<Instant> {
        let left = self.to_time.load(Ordering::Relaxed);
        (left > 0).then(|| {
            self.to_time.store(left - 1, Ordering::Relaxed);
            Instant::now()
        })
    }

    /// The head of the upstream's answer to such a request is here.
    pub fn arrived(&self, departure: Option<Instant>) {
        if let Some(departure) = departure {
            let took_us = u64::try_from(departure.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.upstream_us.fetch_add(took_us, Ordering::Relaxed);
            self.upstream_answers.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Puts what was counted since the last look into the minute that is now: to be called every few seconds.
    pub fn look(&self, now: Moment) {
        self.hour.lock().expect("no thread panics while it holds the hour").note(self.totals(), now.minute());
        self.to_time.store(TIMED_A_LOOK, Ordering::Relaxed);
    }

    /// The last hour, the oldest minute first; the newest has begun and is not over.
    pub fn last_hour(&self, now: Moment) -> Vec<Minute> {
        self.look(now);
        self.hour.lock().expect("no thread panics while it holds the hour").minutes()
    }

    /// What was counted of forwarded requests since the start.
    fn totals(&self) -> Minute {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Ours last: an answer is counted there before it is counted among all, so one in between is not taken for
        // a forwarded one.
        let (all, ours) = (by_class(&self.answered), by_class(&self.by_ourselves));
        let forwarded: [u64; 5] = std::array::from_fn(|class| all[class].saturating_sub(ours[class]));
        Minute {
            answered: forwarded.iter().sum(),
            client_errors: forwarded[3],
            server_errors: forwarded[4],
            upstream_answers: read(&self.upstream_answers),
            upstream_total: Duration::from_micros(read(&self.upstream_us)),
        }
    }

    /// The guard refused a request.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was sent once more.
    pub fn replayed(&self) {
        self.replayed.fetch_add(1, Ordering::Relaxed);
    }

    /// A request begins; [`Self::ended`] ends it.
    pub fn began(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A request's answer is complete or given up.
    pub fn ended(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// A caller connected; returns how many are connected now.
    pub fn connected(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A caller's connection ended.
    pub fn disconnected(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// All counters.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let by_class = by_class(&self.answered);
        Counts {
            total: by_class.iter().sum(),
            by_class,
            client_errors: by_class[3],
            server_errors: by_class[4],
            refused: read(&self.refused),
            replayed: read(&self.replayed),
            in_flight: read(&self.in_flight),
            connections: read(&self.connections),
        }
    }
}

fn by_class(counters: &[AtomicU64; 5]) -> [u64; 5] {
    counters.each_ref().map(|counter| counter.load(Ordering::Relaxed))
}

fn class_of(status: http::StatusCode) -> usize {
    usize::from(status.as_u16() / 100).clamp(1, 5) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::now;

    #[test]
    fn where_requests_are_few_all_are_timed_and_where_they_are_many_a_few() {
        let metrics = Metrics::default();
        assert!(metrics.departure().is_none(), "nobody has looked yet");

        for _ in 0..2 {
            metrics.look(now());
            let timed = (0..1000).filter(|_| metrics.departure().is_some()).count();
            assert_eq!(timed, TIMED_A_LOOK as usize);
        }

        metrics.arrived(None);
        metrics.arrived(Some(Instant::now()));
        let answers: u64 = metrics.last_hour(now()).iter().map(|minute| minute.upstream_answers).sum();
        assert_eq!(answers, 1);
    }
}
