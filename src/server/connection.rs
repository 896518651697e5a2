//! One caller's connection: hyper between a watched socket and the walk, with the deadlines that hyper lacks; and no
//! hyper, with its buffers, while nothing is asked.

use std::convert::Infallible;
use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderMap, HeaderName, Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;

use super::line::{Activity, Ended, Line, Transport, in_bytes, locked};
use super::room::Place;
use super::worker::{Answered, Worker, goal_of};
use crate::config::Limits;
use crate::metrics::Goal;
use crate::problem::{Code, Problem};
use crate::proxy;
use crate::proxy::alarm::Alarm;
use crate::proxy::guard::Caller;

/// How long a half-sent head holds up the end.
const LEAVING: Duration = Duration::from_secs(1);
/// How long we keep an idle connection (RFC 9112, appendix C.2.2): clients that read it use none that is about to end.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
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

/// How long a connection may stay.
struct Stay<'a> {
    place: &'a Place,
    leave: Pin<&'a mut (dyn Future<Output = ()> + Send)>,
    is_asked: bool,
    limits: Limits,
    alarm: Alarm,
}

/// Notices that a caller has gone while its request is answered, which hyper does not (it does not read then, so that a
/// half-closed caller gets its answer).
struct HangUp<T> {
    socket: Arc<Mutex<T>>,
    worker: Arc<Worker>,
    is_half_closed: bool,
}

impl<T: Transport> HangUp<T> {
    /// Ready when nobody reads the answer: the connection was reset, or its other end has no owner any more.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let socket = locked(&self.socket);
        ready!(socket.poll_readable(cx));
        match socket.ended() {
            Ended::Both => Poll::Ready(()),
            Ended::Sending if !self.is_half_closed => {
                self.is_half_closed = true;
                let addresses = socket.addresses();
                let is_gone = addresses.is_some_and(|(peer, own)| self.worker.is_orphaned(peer, own));
                if is_gone { Poll::Ready(()) } else { Poll::Pending }
            }
            Ended::Sending | Ended::Nothing => Poll::Pending,
        }
    }
}

/// Serves a caller until the connection ends, or, when it has to leave, until its current request is answered.
pub(super) async fn serve<T: Transport>(socket: T, caller: Caller, worker: Arc<Worker>, place: Place) {
    let activity = Arc::clone(&place.activity);
    let limits = worker.limits();
    let service = |request: Request<Incoming>| {
        let (worker, activity, caller) = (Arc::clone(&worker), Arc::clone(&activity), caller.clone());
        async move { Ok::<_, Infallible>(answer(worker, activity, caller, request).await) }
    };
    let mut line = Line::new(socket, Arc::clone(&activity));
    let mut hang_up = HangUp { socket: line.socket(), worker: Arc::clone(&worker), is_half_closed: false };
    let leave = pin!(place.leave.cancelled());
    let mut stay = Stay { place: &place, leave, is_asked: false, limits, alarm: Alarm::default() };
    while asks(&mut line, &mut stay).await {
        // Nothing of hyper's is kept while a connection rests, nor what it is made with.
        let connection = Box::new(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(None)
                .half_close(true)
                .max_headers(MOST_FIELDS)
                .max_header_size(Line::<T>::HYPER_TAKES)
                .max_buf_size(Line::<T>::HYPER_TAKES)
                .serve_connection(TokioIo::new(line), service_fn(service)),
        );
        match talk(connection, &mut stay, &mut hang_up).await {
            Some(rested) => line = rested,
            None if activity.is_http2() => {
                let problem =
                    Problem::new(Code::BadRequest, "this proxy speaks HTTP/1.1 with callers, not HTTP/2");
                return locked(&hang_up.socket).try_last_words(&in_bytes(problem.closing()));
            }
            None => return,
        }
    }
}

/// Waits until there is something to read. False when the connection has to end.
async fn asks<T: Transport>(line: &mut Line<T>, stay: &mut Stay<'_>) -> bool {
    poll_fn(|cx| {
        // First, so that what has arrived is served.
        if line.poll_readable(cx).is_ready() {
            return Poll::Ready(true);
        }
        if stay.has_to_end(cx) { Poll::Ready(false) } else { stay.poll_deadline(cx).map(|()| false) }
    })
    .await
}

/// Serves until nothing has been asked for a while: hyper's buffers go, and the line comes back. None when the
/// connection has ended.
async fn talk<T: Transport, S>(
    mut connection: Box<http1::Connection<TokioIo<Line<T>>, S>>,
    stay: &mut Stay<'_>,
    hang_up: &mut HangUp<T>,
) -> Option<Line<T>>
where
    S: HttpService<Incoming, ResBody = Answer, Error = Infallible>,
{
    let mut is_last = false;
    let rests = poll_fn(|cx| {
        loop {
            // First, so that what has arrived is served.
            if Pin::new(&mut *connection).poll(cx).is_ready() {
                return Poll::Ready(false);
            }
            if stay.place.activity.is_busy() && hang_up.poll(cx).is_ready() {
                return Poll::Ready(false);
            }
            let has_to_end = stay.has_to_end(cx);
            if is_last {
                return stay.poll_deadline(cx).map(|()| false);
            }
            if !has_to_end && !ready!(stay.poll_rest(cx)) {
                return Poll::Ready(false);
            }
            is_last = true;
            Pin::new(&mut *connection).graceful_shutdown();
            if !has_to_end && let Poll::Ready(ended) = stay.hand_back(|| Pin::new(&mut *connection).poll(cx))
            {
                return Poll::Ready(ended.is_ok());
            }
        }
    });
    rests.await.then(|| connection.into_parts().io.into_inner())
}

impl Stay<'_> {
    /// Whether the connection has to end as soon as nothing is asked on it, and nothing is.
    fn has_to_end(&mut self, cx: &mut Context<'_>) -> bool {
        // Asked once, it wakes this task; and a look costs less than to ask again.
        let is_leaving = if mem::replace(&mut self.is_asked, true) {
            self.place.leave.is_cancelled()
        } else {
            self.leave.as_mut().poll(cx).is_ready()
        };
        if is_leaving {
            // What does not ask anything soon is not waited for.
            self.limits.header_timeout = self.limits.header_timeout.min(LEAVING);
            self.limits.idle_timeout = self.limits.idle_timeout.min(LEAVING);
        }
        // hyper closes a connection between requests at once, and forgets what of the answer before is unsent;
        // and a new one before its first request, which may be on its way.
        let activity = &self.place.activity;
        is_leaving && !activity.has_tail() && !activity.is_new()
    }

    /// Ready when the connection has to be given up.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Deadlines move later with every request: the hot path never touches the timer.
        self.alarm.poll(self.place.activity.deadline(&self.limits), cx)
    }

    /// Polls hyper, which was told to end, and keeps it from ending the socket. It is ready between requests; else the
    /// connection goes on until what is under way is done.
    fn hand_back<R>(&self, poll: impl FnOnce() -> Poll<R>) -> Poll<R> {
        self.place.activity.hand_back(true);
        let ended = poll();
        self.place.activity.hand_back(false);
        ended
    }

    /// Ready with true when nothing was asked for a while, and with false when the connection has to be given up.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let activity = &self.place.activity;
        let rests_at = activity.rests_at().filter(|rests_at| *rests_at < activity.deadline(&self.limits));
        match rests_at {
            Some(rests_at) => self.alarm.poll(rests_at, cx).map(|()| true),
            None => self.poll_deadline(cx).map(|()| false),
        }
    }
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
    let stays = request.version() == Version::HTTP_11 && !asks_to_close(request.headers());
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
    let mut response = response;
    let is_free = response.extensions().get::<proxy::HadKeepAlive>().is_none();
    if stays
        && is_free
        && let Some(idle_timeout) = worker.idle_timeout()
    {
        response.headers_mut().insert(KEEP_ALIVE, idle_timeout.clone());
    }
    response.map(|kind| {
        unanswered.kind = kind;
        unanswered
    })
}

fn asks_to_close(fields: &HeaderMap) -> bool {
    let mut values = fields.get_all(CONNECTION).iter();
    values.any(|value| value.as_bytes().to_ascii_lowercase().windows(5).any(|part| part == b"close"))
}

impl Drop for Answer {
    fn drop(&mut self) {
        let ended = self.activity.callers_turn();
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
