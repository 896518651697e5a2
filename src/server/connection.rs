//! One caller's connection: hyper between a watched socket and the walk, with the deadlines that hyper lacks.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::line::{Activity, Line, in_bytes};
use super::room::Place;
use super::worker::{Answered, Worker, goal_of};
use crate::metrics::Goal;
use crate::problem::{Code, Problem};
use crate::proxy;
use crate::proxy::alarm::Alarm;
use crate::proxy::guard::Caller;

/// How long a half-sent head holds up the end.
const LEAVING: Duration = Duration::from_secs(1);
/// Heads with more fields are refused.
const MOST_FIELDS: usize = 128;

/// An answer's body, of either kind, that ends a request when it is done or dropped.
pub(super) struct Answer {
    kind: Kind,
    goal: Goal,
    began: Instant,
    activity: Arc<Activity>,
    worker: Arc<Worker>,
}

enum Kind {
    Proxied(proxy::Body),
    Local(axum::body::Body),
}

/// Serves a caller until the connection ends, or, when it has to leave, until its current request is answered.
pub(super) async fn serve<T>(socket: T, caller: Caller, worker: Arc<Worker>, place: Place)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::clone(&place.activity);
    let line = Line::new(socket, Arc::clone(&activity));
    let mut limits = worker.limits();
    let service = service_fn(|request: Request<Incoming>| {
        let (worker, activity, caller) = (Arc::clone(&worker), Arc::clone(&activity), caller.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(worker, activity, caller, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .half_close(true)
        .max_headers(MOST_FIELDS)
        .max_header_size(Line::<T>::HYPER_TAKES)
        .max_buf_size(Line::<T>::HYPER_TAKES)
        .serve_connection(TokioIo::new(line), service);

    let mut connection = pin!(connection);
    let mut leave = pin!(place.leave.cancelled());
    let (mut is_asked, mut is_leaving, mut is_last) = (false, false, false);
    let mut alarm = Alarm::default();
    poll_fn(|cx| {
        loop {
            // First, so that what has arrived is served.
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            // Asked once, it wakes this task; and a look costs less than to ask again.
            let has_to_leave =
                if is_asked { place.leave.is_cancelled() } else { leave.as_mut().poll(cx).is_ready() };
            is_asked = true;
            if !is_leaving && has_to_leave {
                is_leaving = true;
                // What does not ask anything soon is not waited for.
                limits.header_timeout = limits.header_timeout.min(LEAVING);
                limits.idle_timeout = limits.idle_timeout.min(LEAVING);
            }
            // hyper closes a connection between requests at once, and forgets what of the answer before is unsent;
            // and a new one before its first request, which may be on its way.
            if !is_leaving || is_last || activity.has_tail() || activity.is_new() {
                break;
            }
            is_last = true;
            connection.as_mut().graceful_shutdown();
        }
        // Deadlines move later with every request: the hot path never touches the timer.
        alarm.poll(activity.deadline(&limits), cx)
    })
    .await;
}

/// The last words to a caller that there is no room for.
pub(super) fn turned_away(code: Code, detail: &str) -> Vec<u8> {
    in_bytes(Problem::new(code, detail).retry_after(1).closing())
}

async fn answer(
    worker: Arc<Worker>,
    activity: Arc<Activity>,
    caller: Caller,
    request: Request<Incoming>,
) -> Response<Answer> {
    let (began, refusal) = activity.answering();
    let goal = goal_of(request.uri().path());
    worker.counters().began(goal);
    // Made before anything is awaited, so that a caller that leaves is counted, too.
    let kind = Kind::Proxied(proxy::Body::Own(None));
    let mut unanswered = Answer { kind, goal, began, activity, worker: Arc::clone(&worker) };

    let response = match refusal {
        Some(problem) => {
            worker.counters().refused();
            problem.into_response().map(|body| Kind::Proxied(proxy::Body::Own(Some(body))))
        }
        None => match worker.answer(&caller, goal, request).await {
            Answered::Proxied(response) => response.map(Kind::Proxied),
            Answered::Local(response) => response.map(Kind::Local),
        },
    };
    worker.counters().answered(goal, response.status());
    response.map(|kind| {
        unanswered.kind = kind;
        unanswered
    })
}

impl Drop for Answer {
    fn drop(&mut self) {
        let ended = self.activity.answered();
        self.worker.counters().ended(self.goal, ended.duration_since(self.began));
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let polled = match &mut this.kind {
            Kind::Proxied(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Local(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        };
        if let (Poll::Ready(Some(Ok(frame))), Goal::Upstream) = (&polled, this.goal) {
            this.worker.counters().response_body(frame.data_ref().map_or(0, Bytes::len));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Proxied(body) => body.is_end_stream(),
            Kind::Local(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Proxied(body) => body.size_hint(),
            Kind::Local(body) => body.size_hint(),
        }
    }
}
