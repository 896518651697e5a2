//! A heartbeat: when a thread or a task last showed that it moves, for whoever watches it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When a thread or a task last showed that it moves, by a clock that stands still while the machine is suspended.
#[derive(Debug)]
pub struct Heartbeat {
    since: Instant,
    beat_at_ms: AtomicU64,
}

impl Heartbeat {
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
