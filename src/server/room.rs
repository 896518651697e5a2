//! Room for callers: who is connected, over all workers, and who gives way when there is no more room.
//!
//! Costs two short locks a connection and nothing a request: whether a connection is idle is read from what it
//! notes for its own deadlines, and only when somebody else needs the room.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::line::Activity;

/// At most so many give way at once, and at most one of [`SHARE`] that could, as in nginx: looking for them costs
/// a walk over all connections, and a crowd that comes in shall not pay it one by one.
const AT_ONCE: usize = 32;
const SHARE: usize = 8;
/// The book of fewer guests is not worth making smaller.
const A_CROWD: usize = 1024;
/// Descriptors that are no caller's: listeners, runtimes, files.
const OWN_DESCRIPTORS: u64 = 64;
/// Without descriptors `accept` fails whether somebody waits or not: whoever has just come is not sent away for that.
const JUST_COME: Duration = Duration::from_millis(200);
/// That descriptors are scarce is said at most that often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// The connections of all workers.
pub(super) struct Room {
    limit: usize,
    guests: Mutex<Guests>,
}

#[derive(Default)]
struct Guests {
    next: u64,
    by_number: HashMap<u64, Guest>,
    complained_at: Option<Instant>,
}

struct Guest {
    activity: Arc<Activity>,
    leave: CancellationToken,
}

/// A connection's place in the room, until it is dropped.
pub(super) struct Place {
    /// What the connection does.
    pub(super) activity: Arc<Activity>,
    /// Cancelled when the connection has to end, once its current request is answered.
    pub(super) leave: CancellationToken,
    room: Arc<Room>,
    number: u64,
}

impl Room {
    /// For so many connections at a time.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, guests: Mutex::default() })
    }

    /// A place for one more; where there is none, idle connections give way. None when nobody can.
    pub(super) fn enter(self: &Arc<Self>, stop: &CancellationToken) -> Option<Place> {
        let mut guests = self.guests();
        if guests.by_number.len() >= self.limit && !guests.make_room(Duration::ZERO) {
            return None;
        }
        let (number, activity, leave) = (guests.next, Activity::new(), stop.child_token());
        guests.next += 1;
        guests.by_number.insert(number, Guest { activity: Arc::clone(&activity), leave: leave.clone() });
        drop(guests);
        Some(Place { activity, leave, room: Arc::clone(self), number })
    }

    /// A connection could not be accepted, most likely for want of descriptors: idle ones give way.
    pub(super) fn not_accepted(&self, error: &io::Error) {
        let mut guests = self.guests();
        if guests.complained_at.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY) {
            guests.complained_at = Some(Instant::now());
            tracing::warn!(%error, "connections can't be accepted");
        }
        guests.make_room(JUST_COME);
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().expect("no thread panics while it holds the guests")
    }
}

/// Takes all the descriptors that we may have, as other servers do, and says when that is too few.
pub(super) fn take_descriptors(connections: usize) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    let limit = getrlimit(Resource::Nofile).current;
    if let Some(limit) = limit.filter(|limit| *limit < connections as u64 + OWN_DESCRIPTORS) {
        tracing::warn!(
            limit,
            connections,
            "fewer files may be open than limits.connections: raise `ulimit -Hn` or LimitNOFILE, or lower it"
        );
    }
}

impl Guests {
    /// Idle connections give way when they are idle for so long. False when there are none.
    fn make_room(&mut self, idle_for: Duration) -> bool {
        let mut candidates: Vec<((u8, Instant), u64)> = self
            .by_number
            .iter()
            .filter_map(|(number, guest)| Some((guest.activity.gives_way()?, *number)))
            .filter(|((_, since), _)| since.elapsed() >= idle_for)
            .collect();
        candidates.sort_unstable();
        let leaving = (candidates.len() / SHARE).clamp(1, AT_ONCE);
        for (_, number) in candidates.iter().take(leaving) {
            if let Some(guest) = self.by_number.remove(number) {
                guest.leave.cancel();
            }
        }
        !candidates.is_empty()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let by_number = &mut self.room.guests().by_number;
        // One that gave way is not there any more.
        by_number.remove(&self.number);
        // A crowd that has left leaves no memory behind.
        if by_number.capacity() > A_CROWD.max(8 * by_number.len()) {
            by_number.shrink_to(2 * by_number.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_is_idle_for_longest_gives_way_and_none_that_answers() {
        let (room, stop) = (Room::new(3), CancellationToken::new());
        let places: Vec<_> = (0..3).map(|_| room.enter(&stop).unwrap()).collect();
        let _no_fault = places[0].activity.answering();

        let fourth = room.enter(&stop).expect("two are idle");
        let left: Vec<_> = places.iter().map(|place| place.leave.is_cancelled()).collect();
        assert_eq!(left, [false, true, false], "the second is idle for longer than the third");

        let _no_fault = places[2].activity.answering();
        let _no_fault = fourth.activity.answering();
        assert!(room.enter(&stop).is_none(), "all are at work");
    }

    #[test]
    fn whoever_leaves_makes_room_and_whoever_gave_way_does_so_once() {
        let (room, stop) = (Room::new(1), CancellationToken::new());
        let first = room.enter(&stop).unwrap();
        let second = room.enter(&stop).expect("the first gives way");
        let _no_fault = second.activity.answering();

        drop(first);
        assert!(room.enter(&stop).is_none(), "its place was given away before it left");
        drop(second);
        assert!(room.enter(&stop).is_some());
    }
}
