//! A connection that can be used again, and who moves it on.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Upload;
use crate::metrics::Open;
use crate::proxy::alarm::Alarm;

/// Constant requests keep a connection for that long, so that an upstream's name that moves is followed: no name is
/// asked for while there is a connection.
pub(super) const LONGEST_USE: Duration = Duration::from_secs(300);
/// How often a connection is moved on before others get their turn.
const MOST_TURNS: usize = 4;

/// One HTTP/1.1 connection, for one request at a time.
pub(super) struct Connection {
    sender: http1::SendRequest<Upload>,
    driver: Driver,
    made_at: Instant,
    _open: Open,
    /// For whatever is waited for on this connection.
    pub(super) alarm: Alarm,
}

/// What reads and writes.
pub(super) enum Driver {
    /// Whoever uses the connection, in the same task: no hop to another one, and no wake-up.
    User(Wire),
    /// A task of its own, for bodies that go both ways at a time.
    Task(AbortHandle),
}

/// The connection's reading and writing side.
pub(super) struct Wire {
    /// None when it has ended.
    http: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    bell: Arc<Bell>,
    waker: Waker,
}

/// Wakes the task that uses a connection, unless it is at it anyway.
#[derive(Default)]
struct Bell {
    rang: AtomicBool,
    listener: Mutex<Option<Waker>>,
}

impl Connection {
    /// One that was made just now.
    pub(super) fn new(sender: http1::SendRequest<Upload>, driver: Driver, open: Open) -> Self {
        Self { sender, driver, made_at: Instant::now(), _open: open, alarm: Alarm::default() }
    }

    /// Sends a request. The answer comes as the connection is moved on with [`Self::poll_beside`].
    pub(super) fn send(
        &mut self,
        request: Request<Upload>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Upload>>>> + use<> {
        self.sender.try_send_request(request)
    }

    /// Polls what comes of this connection, and moves it on until neither gets any further. Only a connection that
    /// moves on makes a difference to what comes of it.
    pub(super) fn poll_beside<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut what: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let Driver::User(wire) = &mut self.driver else { return what(cx) };
        let mut nobody = Context::from_waker(Waker::noop());
        for _ in 0..MOST_TURNS {
            if let Poll::Ready(done) = what(&mut nobody) {
                return Poll::Ready(done);
            }
            wire.go_on();
            if let Poll::Ready(done) = what(&mut nobody) {
                return Poll::Ready(done);
            }
            if wire.bell.listen(cx.waker()) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether another request can go out on it. If it has something to say, that is heard first.
    pub(super) fn is_good(&mut self, now: Instant) -> bool {
        if let Driver::User(wire) = &mut self.driver
            && (wire.bell.has_rung() || !self.sender.is_ready())
        {
            wire.go_on();
        }
        self.sender.is_ready() && now.saturating_duration_since(self.made_at) < LONGEST_USE
    }

    /// Ends it, whatever is still on its way.
    pub(super) fn cut(self) {
        if let Driver::Task(task) = &self.driver {
            task.abort();
        }
    }

    /// True when it has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

impl Wire {
    pub(super) fn new(http: impl Future<Output = hyper::Result<()>> + Send + 'static) -> Self {
        let bell = Arc::<Bell>::default();
        Self { http: Some(Box::pin(http)), waker: Waker::from(Arc::clone(&bell)), bell }
    }

    /// Reads and writes what can be without waiting.
    fn go_on(&mut self) {
        self.bell.hush();
        let Some(http) = &mut self.http else { return };
        if let Poll::Ready(ended) = http.as_mut().poll(&mut Context::from_waker(&self.waker)) {
            self.http = None;
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to the upstream ended");
            }
        }
    }
}

impl Bell {
    /// From now on nobody is woken; whether it rings is noted.
    fn hush(&self) {
        self.listener().take();
        self.rang.store(false, Ordering::Relaxed);
    }

    /// Wakes this one from now on. False when it has rung since it was hushed.
    fn listen(&self, waker: &Waker) -> bool {
        let mut listener = self.listener();
        if !listener.as_ref().is_some_and(|listener| listener.will_wake(waker)) {
            *listener = Some(waker.clone());
        }
        !self.has_rung()
    }

    fn has_rung(&self) -> bool {
        self.rang.load(Ordering::Relaxed)
    }

    fn listener(&self) -> std::sync::MutexGuard<'_, Option<Waker>> {
        self.listener.lock().expect("no thread panics while it holds the listener")
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rang.store(true, Ordering::Relaxed);
        let listener = self.listener().take();
        if let Some(listener) = listener {
            listener.wake();
        }
    }
}
