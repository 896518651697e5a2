//! The same warning is a line once, and then a number every [`EVERY`], for as long as it goes on.

use std::collections::HashMap;
use std::fmt::{Debug, Write as _};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

const EVERY: Duration = Duration::from_secs(10);
/// Different failures at a time. What comes beyond them is a line each time.
const MOST: usize = 64;

/// The failures that were said a short time ago.
#[derive(Default)]
pub(super) struct Repeats {
    seen: Mutex<HashMap<Failure, Seen>>,
}

/// Dropped, it says the last numbers.
pub(super) struct Counting(pub(super) Arc<Repeats>);

/// Two failures are the same when the same place in the program says the same words and values.
#[derive(PartialEq, Eq, Hash)]
struct Failure {
    place: Identifier,
    text: String,
}

struct Seen {
    more: u64,
    since: Instant,
}

impl Repeats {
    /// False for a warning that is counted instead. An error is a line each time: it answers what a person did, or ends
    /// something.
    pub(super) fn is_new(self: &Arc<Self>, event: &Event<'_>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() != Level::WARN || metadata.target() == module_path!() {
            return true;
        }
        let mut failure = Failure { place: metadata.callsite(), text: String::new() };
        event.record(&mut failure);
        let mut seen = self.seen();
        if let Some(seen) = seen.get_mut(&failure) {
            seen.more += 1;
            return false;
        }
        if seen.len() < MOST {
            seen.insert(failure, Seen { more: 0, since: Instant::now() });
        }
        // The thread of earlier ones has ended, or will when it finds none.
        if seen.len() == 1 && self.count().is_err() {
            seen.clear();
        }
        true
    }

    /// Starts the thread that says the numbers. It ends when nothing has failed for a while.
    fn count(self: &Arc<Self>) -> std::io::Result<thread::JoinHandle<()>> {
        let own = Arc::clone(self);
        thread::Builder::new().name("log-counts".to_owned()).spawn(move || {
            while let Some(next) = own.say(Instant::now()) {
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        })
    }

    /// Says the numbers that are due, and returns when the next is.
    fn say(&self, due_at: Instant) -> Option<Instant> {
        let mut due = Vec::new();
        let mut seen = self.seen();
        seen.retain(|failure, seen| {
            if seen.since + EVERY > due_at {
                return true;
            }
            let (more, span) = (mem::take(&mut seen.more), seen.since.elapsed());
            if more > 0 {
                due.push((failure.text.clone(), more, span.as_secs().max(1)));
                seen.since = Instant::now();
            }
            more > 0
        });
        let next = seen.values().map(|seen| seen.since + EVERY).min();
        drop(seen);
        for (text, more, secs) in due {
            tracing::warn!("{text} ({more} more in the last {secs} s)");
        }
        next
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<Failure, Seen>> {
        self.seen.lock().expect("no thread panics while it holds the failures")
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let _next = self.0.say(Instant::now() + EVERY);
    }
}

/// As the fields stand in a line of text.
impl Visit for Failure {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let space = if self.text.is_empty() { "" } else { " " };
        // Writing to a string does not fail.
        let _written = match field.name() {
            "message" => write!(self.text, "{space}{value:?}"),
            name => write!(self.text, "{space}{name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use tracing::Subscriber;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

    use super::*;

    /// What is let through.
    #[derive(Clone, Default)]
    struct Lines {
        repeats: Arc<Repeats>,
        texts: Arc<Mutex<Vec<String>>>,
    }

    impl<S: Subscriber> Layer<S> for Lines {
        fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
            self.repeats.is_new(event)
        }

        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut line = Failure { place: event.metadata().callsite(), text: String::new() };
            event.record(&mut line);
            self.texts.lock().unwrap().push(line.text);
        }
    }

    #[test]
    fn the_same_failure_is_a_line_once_and_then_a_number_for_as_long_as_it_goes_on() {
        let lines = said(|repeats| {
            for times in [3, 1, 0, 1] {
                (0..times).for_each(|_| tracing::warn!(route = "/", "it failed"));
                tracing::info!("a round");
                repeats.say(Instant::now() + EVERY);
            }
        });

        let (first, round) = ("it failed route=\"/\"", "a round");
        let [two, one] = [2, 1].map(|more| format!("{first} ({more} more in the last 1 s)"));
        assert_eq!(lines, [first, round, &two, round, &one, round, first, round]);
    }

    #[test]
    fn failures_that_differ_are_lines_each_however_many() {
        let lines = said(|_| {
            for port in 0..2 * MOST {
                tracing::warn!(port, "it failed");
                tracing::error!(port, "it failed");
            }
        });

        assert_eq!(lines.len(), 4 * MOST);
    }

    fn said(act: impl FnOnce(&Repeats)) -> Vec<String> {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::registry().with(lines.clone());
        tracing::subscriber::with_default(subscriber, || act(&lines.repeats));
        lines.texts.lock().unwrap().clone()
    }
}
