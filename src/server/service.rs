//! What answers a request: the walk to an upstream, or our own routes; and the body by which its end is known.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Router;
use bytes::Bytes;
use http::header::{CONNECTION, HeaderName, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::{Body, SizeHint};
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tower::ServiceExt as _;

use super::socket::{Busy, ConnectionState, head_too_large};
use crate::config::Limits;
use crate::control;
use crate::metrics::{Counters, Goal};
use crate::problem::{Code, Problem};
use crate::proxy::access_log::Entry;
use crate::proxy::guard::Caller;
use crate::proxy::{self, Proxy};

/// A path below this is ours, unless it only looks like it.
const LOCAL: &str = "/-/";
/// Larger field sections are refused.
const LARGEST_FIELDS: usize = 64 * 1024;
/// What each field takes beside its name and value: a colon, a space, the end of the line.
const FIELD_OVERHEAD: usize = 4;
/// How long we keep an idle connection (RFC 9112, appendix C.2.2): clients that read it use none that is about to end.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// What one worker answers requests with.
pub(super) struct Service {
    proxy: Proxy,
    shared: Arc<proxy::ProxyState>,
    counters: Arc<Counters>,
    local: Router,
    control: Handle,
    idle_timeout: Option<HeaderValue>,
}

/// An answer's body, and the end of its request: when it is dropped, the request is counted and logged, and the
/// connection is no longer busy with it.
pub(super) struct AnswerBody {
    body: proxy::Body,
    goal: Goal,
    began: Instant,
    bytes: u64,
    is_whole: bool,
    entry: Option<Box<Entry>>,
    counters: Arc<Counters>,
    busy: Busy,
}

impl Service {
    /// Over what all workers share; within the worker's runtime.
    pub(super) fn new(shared: Arc<proxy::ProxyState>, local: Router, control: Handle) -> Self {
        let counters = shared.metrics.worker();
        let proxy = Proxy::new(Arc::clone(&shared), Arc::clone(&counters));
        let idle_secs = shared.limits.idle_timeout.as_secs();
        let idle_timeout = (idle_secs > 0).then(|| {
            HeaderValue::from_str(&format!("timeout={idle_secs}")).expect("a number is a field value")
        });
        Self { proxy, shared, counters, local, control, idle_timeout }
    }

    pub(super) fn limits(&self) -> Limits {
        self.shared.limits
    }

    pub(super) const fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Answers one request of a connection.
    pub(super) async fn answer(
        &self,
        state: &Arc<ConnectionState>,
        caller: &Caller,
        request: Request<Incoming>,
    ) -> Response<AnswerBody> {
        let (busy, began) = state.busy(!request.body().is_end_stream());
        let is_chunked = request.headers().contains_key(TRANSFER_ENCODING);
        let mut closes = asks_to_close(request.headers());
        let is_11 = request.version() == Version::HTTP_11;
        let goal = goal_of(request.uri().path());
        self.counters.began(goal);
        // Made before anything is awaited, so that a caller that leaves is counted, too.
        let mut answer = AnswerBody {
            body: proxy::Body::empty(),
            goal,
            began,
            bytes: 0,
            is_whole: false,
            entry: Entry::of(caller, &request, || self.shared.guard.load().has_keys()),
            counters: Arc::clone(&self.counters),
            busy,
        };
        let mut response = match goal {
            _ if has_large_fields(request.headers()) => {
                self.refuse(head_too_large().closing()).map(Into::into)
            }
            Goal::Local => Box::pin(self.local(caller, request, &mut answer.entry)).await,
            Goal::Upstream => {
                let watch = (!request.body().is_end_stream()).then(|| Box::new(answer.busy.and_body()) as _);
                self.proxy.forward(caller, request, watch, &mut answer.entry).await
            }
        };
        self.counters.answered(goal, response.status());
        if let Some(entry) = &mut answer.entry {
            entry.told(response.status());
        }
        if is_chunked && !state.has_plain_body() {
            if state.has_open_body() && !response.body().is_end_stream() {
                state.end_behind();
            } else {
                closes = true;
            }
        }
        if closes {
            // hyper does not see `close` in a value with bytes beyond ASCII, and would read the next request.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let is_free = response.extensions().get::<proxy::HadKeepAlive>().is_none();
        if let Some(idle_timeout) = self.idle_timeout.as_ref().filter(|_| is_11 && !closes && is_free) {
            response.headers_mut().insert(KEEP_ALIVE, idle_timeout.clone());
        }
        response.map(|body| {
            answer.body = body;
            answer
        })
    }

    /// Our own routes run on the control runtime: they may wait for the keeper, files, commands.
    async fn local(
        &self,
        caller: &Caller,
        request: Request<Incoming>,
        entry: &mut Option<Box<Entry>>,
    ) -> Response<proxy::Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        if !control::is_probe(path) {
            let guard = self.shared.guard.load();
            let admitted = guard.admit_local(caller, &parts, control::is_callback(path));
            if let (Some(entry), Ok(admitted)) = (entry.as_mut(), &admitted) {
                entry.admitted(admitted.key.map(|key| key.name.as_str()));
            }
            if let Err(problem) = admitted.and_then(|admitted| admitted.may_use_local(&parts)) {
                return self.refuse_local(problem).await;
            }
        }
        let request = Request::from_parts(parts, axum::body::Body::new(body));
        let answer = self.control.spawn(self.local.clone().oneshot(request)).await;
        let Ok(Ok(response)) = answer else {
            return self.refuse_local(Problem::new(Code::Stopping, "the daemon is stopping")).await;
        };
        if let Some(entry) = entry {
            entry.answered(&response);
        }
        response.map(proxy::Body::local)
    }

    /// A refusal at our own address carries what every answer of ours carries.
    async fn refuse_local(&self, problem: Problem) -> Response<proxy::Body> {
        let response = self.refuse(problem).map(axum::body::Body::from);
        control::inert(response).await.map(proxy::Body::local)
    }

    fn refuse(&self, problem: Problem) -> Response<Bytes> {
        if problem.code().status().is_client_error() {
            self.counters.refused();
        }
        problem.into_response()
    }
}

fn asks_to_close(fields: &HeaderMap) -> bool {
    let values = fields.get_all(CONNECTION).into_iter();
    let mut members = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    members.any(|member| member.trim_ascii().eq_ignore_ascii_case(b"close"))
}

fn has_large_fields(fields: &HeaderMap) -> bool {
    let sizes = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD);
    sizes.sum::<usize>() > LARGEST_FIELDS
}

/// Whom a request with this path is for.
fn goal_of(path: &str) -> Goal {
    if is_local(path) { Goal::Local } else { Goal::Upstream }
}

/// A path with dot segments, encoded or not, only looks like one of ours.
fn is_local(path: &str) -> bool {
    path.starts_with(LOCAL)
        && !path.split('/').any(|segment| {
            let plain = segment.to_ascii_lowercase().replace("%2e", ".");
            plain == "." || plain == ".."
        })
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> proxy::PolledFrame {
        let this = self.get_mut();
        if this.busy.is_last() {
            // Not before hyper is told: it reads on as soon as answer and body are over, within the same poll.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let frame = ready!(this.body.poll_frame(cx));
        this.is_whole = frame.is_none();
        if let Some(Ok(frame)) = &frame {
            let length = frame.data_ref().map_or(0, Bytes::len);
            this.bytes += length as u64;
            if this.goal == Goal::Upstream {
                this.counters.response_body(length);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.counters.ended(self.goal, self.began.elapsed());
        if let Some(entry) = self.entry.take() {
            entry.write(self.bytes, self.is_whole || self.body.is_end_stream());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_local_route_is_one() {
        for ours in ["/-/", "/-/status", "/-/nothing", "/-/login/main", "/-//status"] {
            assert!(is_local(ours), "{ours}");
        }
        for theirs in ["/", "/-", "/-x/", "/-/../api", "/-/%2e%2E/api", "/-/./status", "/%2d/status", "//-/"]
        {
            assert!(!is_local(theirs), "{theirs}");
        }
    }
}
