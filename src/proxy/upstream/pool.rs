//! The connections of one worker to one upstream that wait to be used again, and for how long.

use std::sync::{Mutex, MutexGuard};

use tokio::time::Instant;

use super::http1::Connection;
use super::network::Epoch;

/// Idle connections a worker keeps for one upstream.
const MOST_IDLE: usize = 256;

/// Idle connections, the one that was used last at the end.
#[derive(Default)]
pub(super) struct Pool(Mutex<Shelf>);

#[derive(Default)]
struct Shelf {
    idle: Vec<Idle>,
    is_tidied: bool,
}

struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

impl Pool {
    /// The connection that was used last, if it is still good.
    pub(super) fn take(&self, now: Instant, epoch: Epoch) -> Option<Box<Connection>> {
        let mut shelf = self.shelf();
        loop {
            let mut idle = shelf.idle.pop()?;
            if idle.is_good(now) && idle.connection.is_good_in(epoch) {
                return Some(idle.connection);
            }
        }
    }

    /// Keeps a connection. True when it is time for somebody to begin to [`Self::tidy`].
    #[must_use]
    pub(super) fn give_back(&self, connection: Box<Connection>) -> bool {
        let mut shelf = self.shelf();
        if shelf.idle.len() >= MOST_IDLE {
            return false;
        }
        shelf.idle.push(Idle { connection, since: Instant::now() });
        !std::mem::replace(&mut shelf.is_tidied, true)
    }

    /// Closes what is idle for too long, or was closed by the upstream. False when nothing is left.
    pub(super) fn tidy(&self, now: Instant) -> bool {
        let mut shelf = self.shelf();
        shelf.idle.retain_mut(|idle| idle.is_good(now));
        shelf.is_tidied = !shelf.idle.is_empty();
        shelf.is_tidied
    }

    /// Closes all idle connections: they share a network path, and when one times out, all are dropped.
    pub(super) fn clear(&self) {
        self.shelf().idle.clear();
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().expect("no thread panics while it holds the pool")
    }
}

impl Idle {
    /// Whether another request can go out on it.
    fn is_good(&mut self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < self.connection.keep_idle && self.connection.is_good(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::yield_now;
    use tokio::time::timeout;

    use super::super::http1::Stream;
    use crate::metrics::Metrics;

    /// A connection that nobody answers, and its far end.
    async fn made() -> (Box<Connection>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let open = Metrics::default().worker().upstream();
        (Box::new(Connection::new(Stream::Plain(near), open, Epoch::default())), far)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_in_constant_use_is_given_up_after_five_minutes() {
        let pool = Pool::default();
        let (connection, _far) = made().await;
        let _is_first = pool.give_back(connection);

        let mut uses = 0;
        while let Some(connection) = pool.take(Instant::now(), Epoch::default()) {
            tokio::time::advance(Duration::from_secs(10)).await;
            let _is_first = pool.give_back(connection);
            uses += 1;
        }

        assert_eq!(uses, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_used_again_for_less_than_a_minute() {
        for (secs, is_good) in [(49, true), (51, false)] {
            let (pool, _far) = with_one().await;

            tokio::time::advance(Duration::from_secs(secs)).await;

            assert_eq!(pool.take(Instant::now(), Epoch::default()).is_some(), is_good, "after {secs} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_used_again_for_as_long_as_its_upstream_keeps_it() {
        for (millis, is_good) in [(3900, true), (4000, false)] {
            let (pool, (mut connection, _far)) = (Pool::default(), made().await);
            connection.keep_idle = Duration::from_secs(4);
            let _is_first = pool.give_back(connection);

            tokio::time::advance(Duration::from_millis(millis)).await;

            assert_eq!(pool.take(Instant::now(), Epoch::default()).is_some(), is_good, "after {millis} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_when_it_would_not_be_used_again() {
        for (secs, stays) in [(49, true), (51, false)] {
            let (pool, mut far) = with_one().await;

            tokio::time::advance(Duration::from_secs(secs)).await;

            assert_eq!(pool.tidy(Instant::now()), stays, "after {secs} s");
            let read = timeout(Duration::from_millis(1), far.read_u8()).await;
            assert_eq!(read.is_err(), stays, "after {secs} s: {read:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_the_upstream_closed_is_not_used_again() {
        let (pool, far) = with_one().await;
        drop(far);
        soon(|| !is_there(&pool)).await;

        let (pool, far) = with_one().await;
        drop(far);
        soon(|| !pool.tidy(Instant::now())).await;
    }

    #[tokio::test]
    async fn a_connection_on_which_the_upstream_speaks_unasked_is_not_used_again() {
        let (pool, mut far) = with_one().await;
        far.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").await.unwrap();
        soon(|| !is_there(&pool)).await;
    }

    /// Waits until the kernel has told of what happened at the far end.
    async fn soon(mut is_so: impl FnMut() -> bool) {
        let waiting = async {
            while !is_so() {
                yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), waiting).await.expect("it is so within 10 s");
    }

    /// Whether there is a connection that could be used again.
    fn is_there(pool: &Pool) -> bool {
        let connection = pool.take(Instant::now(), Epoch::default());
        connection.map(|connection| pool.give_back(connection)).is_some()
    }

    async fn with_one() -> (Pool, TcpStream) {
        let pool = Pool::default();
        let (connection, far) = made().await;
        assert!(pool.give_back(connection), "somebody has to tidy");
        (pool, far)
    }
}
