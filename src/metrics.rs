//! Counters that all threads share, and signs of life.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Counts what happened to requests.
#[derive(Debug, Default)]
pub struct Metrics {
    answered: [AtomicU64; 5],
    refused: AtomicU64,
    replayed: AtomicU64,
    in_flight: AtomicU64,
    connections: AtomicU64,
}

/// When something last showed that it is alive, by a clock that stands still while the machine is suspended.
#[derive(Debug)]
pub struct Pulse {
    since: Instant,
    beat_at_ms: AtomicU64,
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

impl Pulse {
    /// Alive now.
    #[expect(clippy::new_without_default, reason = "it is made at a moment, and not equal to another")]
    pub fn new() -> Self {
        Self { since: Instant::now(), beat_at_ms: AtomicU64::new(0) }
    }

    /// Alive still.
    pub fn beat(&self) {
        let at_ms = u64::try_from(self.since.elapsed().as_millis()).expect("no program runs for so long");
        self.beat_at_ms.store(at_ms, Ordering::Relaxed);
    }

    /// Counts as alive until the next beat: for what must not be interrupted, however long it takes.
    pub fn hold(&self) {
        self.beat_at_ms.store(u64::MAX, Ordering::Relaxed);
    }

    /// Since the last sign of life.
    pub fn silent_for(&self) -> Duration {
        self.since.elapsed().saturating_sub(Duration::from_millis(self.beat_at_ms.load(Ordering::Relaxed)))
    }
}

impl Metrics {
    /// A request was answered with this status.
    pub fn answered(&self, status: http::StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.answered[class].fetch_add(1, Ordering::Relaxed);
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
        let by_class: [u64; 5] = std::array::from_fn(|class| read(&self.answered[class]));
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
