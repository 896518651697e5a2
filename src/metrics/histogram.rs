//! How long something took, sorted into buckets: an observation adds to one bucket and to the sum.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of the buckets; what takes longer than the last is beyond.
const BOUNDS: [Duration; 14] = [
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(60),
];

/// Counts durations.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

/// What was counted until a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// How many were in each bucket alone; the last is beyond all bounds.
    buckets: [u64; BOUNDS.len() + 1],
    /// How long all of them took together.
    pub sum: Duration,
}

impl Histogram {
    pub(super) fn observe(&self, took: Duration) {
        let bucket = BOUNDS.iter().position(|bound| took <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(took_ns, Ordering::Relaxed);
    }

    pub(super) fn distribution(&self) -> Distribution {
        // The sum first: what is observed in between is in a bucket, and not yet in the sum.
        let sum = Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed));
        Distribution { buckets: self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed)), sum }
    }
}

impl Distribution {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Each bound, and how many took no longer.
    pub fn cumulated(&self) -> impl Iterator<Item = (Duration, u64)> {
        let mut so_far = 0;
        BOUNDS.iter().zip(self.buckets).map(move |(bound, number)| {
            so_far += number;
            (*bound, so_far)
        })
    }

    /// Both together.
    #[must_use]
    pub(super) fn plus(&self, more: &Self) -> Self {
        Self {
            buckets: std::array::from_fn(|at| self.buckets[at] + more.buckets[at]),
            sum: self.sum.saturating_add(more.sum),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_that_is_not_too_short_for_it() {
        let histogram = Histogram::default();
        for bound in BOUNDS {
            histogram.observe(bound);
            histogram.observe(bound + Duration::from_nanos(1));
        }

        let seen = histogram.distribution();

        let expected: Vec<_> = BOUNDS.iter().zip(0..).map(|(bound, at)| (*bound, 2 * at + 1)).collect();
        assert_eq!(seen.cumulated().collect::<Vec<_>>(), expected);
        assert_eq!(seen.count(), 2 * BOUNDS.len() as u64);
        let bounds: Duration = BOUNDS.iter().sum();
        assert_eq!(seen.sum, 2 * bounds + Duration::from_nanos(BOUNDS.len() as u64));
        assert!(BOUNDS.is_sorted());
    }
}
