//! One caller's connection: hyper between a watched socket and the service, with the deadlines that hyper lacks.

use std::convert::Infallible;
use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, timeout};

use super::limit::Slot;
use super::peer::Kernel;
use super::service::{AnswerBody, Service};
use super::socket::{Phase, Transport, WatchedSocket};
use crate::config::Limits;
use crate::problem::Problem;
use crate::proxy::guard::Caller;
use crate::proxy::timer::Timer;

/// How long a half-sent head, or a caller that does not take the final response, delays the end of a connection.
const LEAVING: Duration = Duration::from_secs(1);
/// How often a connection looks whether a request's body is over that goes on behind its answer.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Heads with more fields are refused.
pub(super) const MOST_FIELDS: usize = 128;
/// What hyper takes of a head: a target and fields of 64 KiB each, and some more, so that it is us who refuse.
pub(super) const LARGEST_HEAD: usize = 3 * 64 * 1024;

/// How long a connection goes on.
struct Deadlines<'a> {
    slot: &'a Slot,
    leave: Pin<&'a mut (dyn Future<Output = ()> + Send)>,
    is_asked: bool,
    limits: Limits,
    look_every: Duration,
    timer: Timer,
}

/// Serves a caller until the connection ends, or, when it has to leave, until its current request is answered.
pub(super) async fn serve<T: Transport>(
    socket: T,
    caller: Caller,
    service: Arc<Service>,
    kernel: Option<Arc<Kernel>>,
    slot: Slot,
) {
    let answering = service_fn(|request: Request<Incoming>| {
        let (service, state, caller) = (Arc::clone(&service), Arc::clone(&slot.state), caller.clone());
        async move { Ok::<_, Infallible>(service.answer(&state, &caller, request).await) }
    });
    let socket = WatchedSocket::new(socket, Arc::clone(&slot.state), kernel);
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .half_close(true)
        .max_headers(MOST_FIELDS)
        .max_header_size(LARGEST_HEAD)
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(socket), answering);
    let leave = pin!(slot.leave.cancelled());
    let mut deadlines = Deadlines::new(&slot, leave, service.limits());
    poll_fn(|cx| deadlines.poll(&mut connection, cx)).await;

    let (mut socket, refusal) = connection.into_parts().io.into_inner().into_parts();
    if let Some(problem) = refusal {
        let response = final_response(problem);
        let _taken = timeout(LEAVING, async {
            socket.write_all(&response).await?;
            socket.shutdown().await
        })
        .await;
    }
}

/// The last response on a connection, as it goes over the wire.
pub(super) fn final_response(problem: Problem) -> Vec<u8> {
    let response = problem.closing().into_response();
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in response.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", response.body().len()).as_bytes());
    bytes.extend_from_slice(response.body());
    bytes
}

impl<'a> Deadlines<'a> {
    fn new(slot: &'a Slot, leave: Pin<&'a mut (dyn Future<Output = ()> + Send)>, limits: Limits) -> Self {
        Self { slot, leave, is_asked: false, limits, look_every: LOOK_EVERY, timer: Timer::default() }
    }

    /// Polls a connection. Ready when it has ended, or has to be given up.
    fn poll<T, S>(
        &mut self,
        connection: &mut http1::Connection<TokioIo<WatchedSocket<T>>, S>,
        cx: &mut Context<'_>,
    ) -> Poll<()>
    where
        T: Transport,
        S: HttpService<Incoming, ResBody = AnswerBody, Error = Infallible>,
    {
        // First, so that what has arrived is served.
        if Pin::new(&mut *connection).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let is_last = self.slot.state.takes_end();
        if self.has_to_leave(cx) || is_last {
            Pin::new(&mut *connection).graceful_shutdown();
            if Pin::new(connection).poll(cx).is_ready() {
                return Poll::Ready(());
            }
        }
        self.poll_deadline(cx)
    }

    /// Whether the connection has to end as soon as it is idle, and can be told so.
    fn has_to_leave(&mut self, cx: &mut Context<'_>) -> bool {
        // Asked once, it wakes this task; and a look costs less than to ask again.
        let is_leaving = if mem::replace(&mut self.is_asked, true) {
            self.slot.leave.is_cancelled()
        } else {
            self.leave.as_mut().poll(cx).is_ready()
        };
        if is_leaving {
            self.look_every = LEAVING;
            self.limits.header_timeout = self.limits.header_timeout.min(LEAVING);
            self.limits.idle_timeout = self.limits.idle_timeout.min(LEAVING);
        }
        // `graceful_shutdown` closes an idle connection at once and drops unflushed output; and a new one before its
        // first request, which may be on its way.
        let state = &self.slot.state;
        is_leaving && state.phase() != Phase::Flushing && !state.is_new()
    }

    /// Ready when the connection has to be given up. Deadlines move later with every request: the hot path never
    /// touches the runtime's timers.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let state = &self.slot.state;
        let mut deadline = state.deadline(&self.limits);
        if state.awaits_body() {
            deadline = deadline.min(Instant::now() + self.look_every);
        }
        self.timer.poll(deadline, cx)
    }
}
