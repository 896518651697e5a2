//! Clocks that a history moves: they follow the runtime's time, which is paused.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::token::{Clock, Moment};

/// What a machine's clocks show.
pub(super) struct Clocks {
    started: Instant,
    at_start: Mutex<Moment>,
}

impl Clocks {
    pub(super) fn start(at: Moment) -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), at_start: Mutex::new(at) })
    }

    pub(super) fn now(&self) -> Moment {
        self.at_start.lock().unwrap().plus(self.started.elapsed())
    }

    /// For a session and its client.
    pub(super) fn clock(self: &Arc<Self>) -> Clock {
        let clocks = Arc::clone(self);
        Clock::new(move || clocks.now())
    }

    /// Somebody sets the wall clock.
    pub(super) fn set_wall_clock(&self, by_ms: i64) {
        let mut at = self.at_start.lock().unwrap();
        *at = Moment::new(at.wall_ms() + by_ms, at.boot_ms());
    }

    /// The machine sleeps: both clocks go on, the runtime's does not.
    pub(super) fn suspend(&self, by: Duration) {
        let mut at = self.at_start.lock().unwrap();
        *at = at.plus(by);
    }
}
