//! A timer for deadlines that mostly move later and are rarely reached.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// Ready at a deadline. One that moves later costs nothing until the earlier one has passed, so that no request
/// touches the runtime's timers.
#[derive(Debug, Default)]
pub struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whom it wakes.
    waker: Option<Waker>,
}

impl Timer {
    /// Ready when `deadline` has passed.
    pub fn poll(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        let wakes_us = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if deadline < sleep.deadline() {
            sleep.as_mut().reset(deadline);
        } else if wakes_us && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        if !wakes_us {
            self.waker = Some(cx.waker().clone());
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
            let (mut timer, began) = (Timer::default(), Instant::now());
            let first = began + Duration::from_secs(60);
            assert!(poll_fn(|cx| Poll::Ready(timer.poll(first, cx))).await.is_pending());

            let moved = began + Duration::from_secs(moved_secs);
            poll_fn(|cx| timer.poll(moved, cx)).await;

            assert_eq!(began.elapsed().as_secs(), moved_secs);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_wakes_the_task_that_looked_at_it_last() {
        let (mut timer, began) = (Timer::default(), Instant::now());
        let deadline = began + Duration::from_secs(10);
        let later = began + Duration::from_secs(20);
        let nobody = &mut Context::from_waker(Waker::noop());
        assert!(timer.poll(deadline, nobody).is_pending());

        poll_fn(|cx| timer.poll(later, cx)).await;

        assert_eq!(began.elapsed().as_secs(), 20);
    }
}
