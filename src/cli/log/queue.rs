//! Lines on their way to standard error: through a bounded queue to a thread of its own, so that a reader that does
//! not read stops nothing but that thread.

use std::io::{self, ErrorKind, Write, stderr};
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tracing::Dispatch;
use tracing::dispatcher::with_default;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// So many lines wait for their reader.
const LINES: usize = 2048;
/// At the end, what waits is written within this time or not at all.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// When lines are lost all the time, that is said so often.
const LOST_EVERY: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// The queue, until it is dropped.
pub(super) struct Queue {
    guard: Option<WorkerGuard>,
    is_behind: Arc<AtomicBool>,
}

/// What the thread writes to.
struct Stderr {
    is_behind: Arc<AtomicBool>,
    lost: Arc<OnceLock<ErrorCounter>>,
    said: usize,
    said_at: Instant,
    direct: Dispatch,
}

impl Queue {
    /// A queue and its entrance. `direct` writes past it how many lines were lost.
    pub(super) fn to_stderr(direct: Dispatch) -> (Self, NonBlocking) {
        let (is_behind, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(OnceLock::new()));
        let (said, said_at) = (0, Instant::now());
        let stderr =
            Stderr { is_behind: Arc::clone(&is_behind), lost: Arc::clone(&lost), said, said_at, direct };
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES);
        let (writer, guard) = builder.thread_name("log").finish(stderr);
        lost.set(writer.error_counter()).expect("it is set once");
        (Self { guard: Some(guard), is_behind }, writer)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let deadline = Instant::now() + ENDS_WITHIN;
        while self.is_behind.load(Ordering::Relaxed) && Instant::now() < deadline {
            sleep(PAUSE);
        }
        // Behind a full queue the guard would write to standard output, whose reader may be the one that does not read.
        if self.is_behind.load(Ordering::Relaxed) {
            mem::forget(self.guard.take());
        }
    }
}

impl Stderr {
    fn say_lost(&mut self) {
        let lost = self.lost.get().map_or(0, ErrorCounter::dropped_lines);
        let lines = lost - self.said;
        if lines > 0 {
            (self.said, self.said_at) = (lost, Instant::now());
            with_default(&self.direct, || {
                tracing::warn!("{lines} lines were lost: the log was not read as fast as it was written");
            });
        }
    }
}

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.is_behind.store(true, Ordering::Relaxed);
        if self.said_at.elapsed() > LOST_EVERY {
            self.say_lost();
        }
        match stderr().write(line) {
            // Whoever started us may have made it so for itself. Interrupted writes are repeated.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                sleep(PAUSE);
                Err(ErrorKind::Interrupted.into())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            // What can't be written has nobody to read it.
            Err(_) => Ok(line.len()),
            written => written,
        }
    }

    /// Nothing waits any more.
    fn flush(&mut self) -> io::Result<()> {
        self.say_lost();
        self.is_behind.store(false, Ordering::Relaxed);
        Ok(())
    }
}
