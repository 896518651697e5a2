//! A timer for deadlines that mostly move later and are rarely reached.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// Rings at a deadline. One that moves later costs nothing until the earlier one has passed, so that no request
/// touches the runtime's timers.
#[derive(Debug, Default)]
pub struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Ready when `deadline` has passed.
    pub fn poll(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if deadline < sleep.deadline() {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_the_deadline_it_was_last_given() {
        for moved_secs in [10, 60, 120] {
            let (mut alarm, began) = (Alarm::default(), Instant::now());
            let first = began + Duration::from_secs(60);
            assert!(poll_fn(|cx| Poll::Ready(alarm.poll(first, cx))).await.is_pending());

            let moved = began + Duration::from_secs(moved_secs);
            poll_fn(|cx| alarm.poll(moved, cx)).await;

            assert_eq!(began.elapsed().as_secs(), moved_secs);
        }
    }
}
