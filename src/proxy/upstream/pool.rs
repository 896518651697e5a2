//! The connections of one worker to one upstream that can be used again, and when they no longer should be.

use std::sync::Mutex;
use std::time::Duration;

use hyper::client::conn::http1;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Upload;

/// Idle connections are used again for that long: servers close theirs after a minute or more.
const KEEP_IDLE: Duration = Duration::from_secs(50);
/// Constant requests keep a connection for that long, so that an upstream's name that moves is followed: no name is
/// asked for while there is a connection.
const LONGEST_USE: Duration = Duration::from_secs(300);
/// Idle connections a worker keeps for one upstream.
const MOST_IDLE: usize = 256;

/// The sending side of a connection, and how old that is.
#[derive(Clone)]
pub(super) struct Connection<S> {
    pub(super) sender: S,
    driver: AbortHandle,
    made_at: Instant,
}

/// Idle connections, the one that was used last at the end.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<Idle>>);

struct Idle {
    connection: Connection<http1::SendRequest<Upload>>,
    since: Instant,
}

impl<S> Connection<S> {
    /// One that was made just now.
    pub(super) fn new(sender: S, driver: AbortHandle) -> Self {
        Self { sender, driver, made_at: Instant::now() }
    }

    /// Ends it, whatever is still on its way.
    pub(super) fn cut(&self) {
        self.driver.abort();
    }

    /// True when no further request should go out on it.
    pub(super) fn is_old(&self) -> bool {
        self.made_at.elapsed() >= LONGEST_USE
    }
}

impl Pool {
    /// The connection that was used last, if it is still good.
    pub(super) fn take(&self) -> Option<Connection<http1::SendRequest<Upload>>> {
        let mut idle = self.0.lock().expect("no thread panics while it holds the pool");
        loop {
            let Idle { connection, since } = idle.pop()?;
            if since.elapsed() > KEEP_IDLE {
                idle.clear();
                return None;
            }
            if connection.sender.is_ready() && !connection.is_old() {
                return Some(connection);
            }
        }
    }

    pub(super) fn give_back(&self, connection: Connection<http1::SendRequest<Upload>>) {
        let mut idle = self.0.lock().expect("no thread panics while it holds the pool");
        if !connection.sender.is_closed() && !connection.is_old() && idle.len() < MOST_IDLE {
            idle.push(Idle { connection, since: Instant::now() });
        }
    }

    /// Closes all idle connections: one of them fell silent, and they went the same way.
    pub(super) fn clear(&self) {
        self.0.lock().expect("no thread panics while it holds the pool").clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use hyper_util::rt::TokioIo;

    use crate::proxy::upstream::drive;

    /// A connection that nobody answers, and its far end.
    async fn made() -> (Connection<http1::SendRequest<Upload>>, impl Sized) {
        let (near, far) = tokio::io::duplex(64);
        let (mut sender, driver) = http1::handshake(TokioIo::new(near)).await.unwrap();
        let driver = drive(driver);
        sender.ready().await.unwrap();
        (Connection::new(sender, driver), far)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_in_constant_use_is_given_up_after_five_minutes() {
        let pool = Pool::default();
        let (connection, _far) = made().await;
        pool.give_back(connection);

        let mut uses = 0;
        while let Some(connection) = pool.take() {
            tokio::time::advance(Duration::from_secs(10)).await;
            pool.give_back(connection);
            uses += 1;
        }

        assert_eq!(uses, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_used_again_for_less_than_a_minute() {
        for (secs, is_good) in [(49, true), (51, false)] {
            let pool = Pool::default();
            let (connection, _far) = made().await;
            pool.give_back(connection);

            tokio::time::advance(Duration::from_secs(secs)).await;

            assert_eq!(pool.take().is_some(), is_good, "after {secs} s");
        }
    }
}
