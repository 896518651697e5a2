//! The connection limit: who is connected, over all workers, and which idle connections are evicted for new ones.
//!
//! Costs two short locks a connection and nothing a request: whether a connection is idle is read from the state that
//! it keeps for its own deadlines, and only when another one needs its slot.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;

use super::socket::ConnectionState;

/// At most so many are evicted at once, and at most one of [`SHARE`] that could be, as in nginx: looking for them costs
/// a walk over all connections, which a burst of new ones must not cause for each of them.
const AT_ONCE: usize = 32;
const SHARE: usize = 8;
/// A table for fewer connections is not shrunk.
const SHRUNK_ABOVE: usize = 1024;
/// Descriptors that are no caller's: listeners, runtimes, files.
const OWN_DESCRIPTORS: u64 = 64;
/// `accept` fails for want of descriptors whether or not somebody waits: connections younger than that are kept.
const NEW: Duration = Duration::from_millis(200);

/// The connections of all workers, and how many there may be.
pub(super) struct ConnectionLimit {
    limit: usize,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    next: u64,
    by_number: HashMap<u64, Connection>,
}

struct Connection {
    state: Arc<ConnectionState>,
    leave: CancellationToken,
}

/// A connection's slot, until it is dropped.
pub(super) struct Slot {
    /// What the connection does.
    pub(super) state: Arc<ConnectionState>,
    /// Cancelled when the connection has to end, once its current request is answered.
    pub(super) leave: CancellationToken,
    limit: Arc<ConnectionLimit>,
    number: u64,
}

impl ConnectionLimit {
    /// For so many connections at a time.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, connections: Mutex::default() })
    }

    /// A slot for one more; where there is none, idle connections are evicted. None when there are none.
    pub(super) fn enter(self: &Arc<Self>, stop: &CancellationToken) -> Option<Slot> {
        let mut connections = self.connections();
        if connections.by_number.len() >= self.limit && !connections.evict(Duration::ZERO) {
            return None;
        }
        let (number, state, leave) = (connections.next, ConnectionState::new(), stop.child_token());
        connections.next += 1;
        connections.by_number.insert(number, Connection { state: Arc::clone(&state), leave: leave.clone() });
        drop(connections);
        Some(Slot { state, leave, limit: Arc::clone(self), number })
    }

    /// A connection could not be accepted, most likely for want of descriptors: idle ones are evicted.
    pub(super) fn not_accepted(&self, error: &io::Error) {
        tracing::warn!(%error, "connections can't be accepted");
        self.connections().evict(NEW);
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().expect("no thread panics while it holds the connections")
    }
}

/// Raises the limit of open files as far as we may, as other servers do.
pub fn raise_open_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Says when fewer files may be open than there may be connections.
pub(super) fn warn_of_few_files(connections: usize) {
    let limit = getrlimit(Resource::Nofile).current;
    if let Some(limit) = limit.filter(|limit| *limit < connections as u64 + OWN_DESCRIPTORS) {
        tracing::warn!(
            limit,
            connections,
            "fewer files may be open than limits.connections: raise `ulimit -Hn` or LimitNOFILE, or lower it"
        );
    }
}

impl Connections {
    /// Evicts connections that are idle for so long. False when there are none.
    fn evict(&mut self, idle_for: Duration) -> bool {
        let mut candidates: Vec<_> = self
            .by_number
            .iter()
            .filter_map(|(number, connection)| Some((connection.state.eviction_order()?, *number)))
            .filter(|((_, since), _)| since.elapsed() >= idle_for)
            .collect();
        candidates.sort_unstable();
        let evicted = (candidates.len() / SHARE).clamp(1, AT_ONCE);
        for (_, number) in candidates.iter().take(evicted) {
            if let Some(connection) = self.by_number.remove(number) {
                connection.leave.cancel();
            }
        }
        !candidates.is_empty()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let by_number = &mut self.limit.connections().by_number;
        // One that was evicted is not there any more.
        by_number.remove(&self.number);
        if by_number.capacity() > SHRUNK_ABOVE.max(8 * by_number.len()) {
            by_number.shrink_to(2 * by_number.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_is_idle_for_longest_is_evicted_and_none_that_is_busy() {
        let (limit, stop) = (ConnectionLimit::new(3), CancellationToken::new());
        let slots: Vec<_> = (0..3).map(|_| limit.enter(&stop).unwrap()).collect();
        let _busy = slots[0].state.busy(false);

        let fourth = limit.enter(&stop).expect("two are idle");
        let left: Vec<_> = slots.iter().map(|slot| slot.leave.is_cancelled()).collect();
        assert_eq!(left, [false, true, false], "the second is idle for longer than the third");

        let _busy = slots[2].state.busy(false);
        let _busy = fourth.state.busy(false);
        assert!(limit.enter(&stop).is_none(), "all are at work");
    }

    #[test]
    fn whoever_leaves_frees_a_slot_and_whoever_was_evicted_does_so_once() {
        let (limit, stop) = (ConnectionLimit::new(1), CancellationToken::new());
        let first = limit.enter(&stop).unwrap();
        let second = limit.enter(&stop).expect("the first is evicted");
        let _busy = second.state.busy(false);

        drop(first);
        assert!(limit.enter(&stop).is_none(), "its slot was given away before it left");
        drop(second);
        assert!(limit.enter(&stop).is_some());
    }
}
