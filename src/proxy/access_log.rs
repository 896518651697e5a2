//! The entry that a request leaves in the log, at debug: written when its answer has gone out, or was given up.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::Body;
use super::guard::{Caller, Peer};
use super::upstream::DownloadError;

const REQUEST_ID: &str = "x-request-id";
/// What is longer is no id.
const LONGEST_ID: usize = 64;

/// What is known of a request so far. Dropping it writes the entry.
pub struct Entry {
    method: Method,
    path: String,
    caller: String,
    key: Option<String>,
    route: Option<String>,
    request_id: Option<String>,
    started: Instant,
    upstream: Option<Duration>,
    status: Option<u16>,
    bytes: u64,
    is_whole: bool,
}

/// An answer's body that is counted on its way.
pub struct Counted {
    body: Body,
    entry: Box<Entry>,
}

impl Entry {
    /// None when nobody reads it.
    pub fn of<B>(caller: &Caller, request: &Request<B>) -> Option<Box<Self>> {
        tracing::enabled!(tracing::Level::DEBUG).then(|| {
            Box::new(Self {
                method: request.method().clone(),
                path: request.uri().path().to_owned(),
                caller: match caller.peer {
                    Peer::Local(Some(uid)) => format!("uid {uid}"),
                    Peer::Local(None) => "unknown".to_owned(),
                    Peer::Remote => "remote".to_owned(),
                },
                key: None,
                route: None,
                request_id: request_id(request.headers()),
                started: Instant::now(),
                upstream: None,
                status: None,
                bytes: 0,
                is_whole: false,
            })
        })
    }

    /// It was admitted, with that key, and takes that route.
    pub(super) fn admitted(&mut self, key: Option<&str>, route: &str) {
        self.key = key.map(str::to_owned);
        self.route = Some(route.to_owned());
    }

    /// The upstream took that long until the head of its first answer.
    pub(super) fn upstream_took(&mut self, took: Duration) {
        self.upstream = Some(took);
    }

    /// Takes the answer's head into the entry.
    pub fn answer<B: HttpBody>(&mut self, response: &Response<B>) {
        self.status = Some(response.status().as_u16());
        if self.request_id.is_none() {
            self.request_id = request_id(response.headers());
        }
        self.bytes = response.body().size_hint().exact().unwrap_or(0);
        self.is_whole = true;
    }

    /// Follows the answer to its end.
    pub fn follow(mut self: Box<Self>, response: Response<Body>) -> Response<Body> {
        self.answer(&response);
        (self.bytes, self.is_whole) = (0, false);
        response.map(|body| Body::Counted(Box::new(Counted { body, entry: self })))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Self { path, caller, bytes, .. } = &*self;
        let (method, key, route) = (self.method.as_str(), self.key.as_deref(), self.route.as_deref());
        let (status, request_id) = (self.status, self.request_id.as_deref());
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (took_ms, upstream_ms) = (ms(self.started.elapsed()), self.upstream.map(ms));
        let message = match (status, self.is_whole) {
            (None, _) => "the caller left before the answer",
            (Some(_), false) => "the answer broke off",
            (Some(_), true) => "answered",
        };
        tracing::debug!(
            method,
            path,
            status,
            bytes,
            took_ms,
            upstream_ms,
            caller,
            key,
            route,
            request_id,
            "{message}"
        );
    }
}

impl Counted {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.entry.bytes += frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
            }
            Poll::Ready(None) => self.entry.is_whole = true,
            _ => {}
        }
        polled
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.entry.is_whole |= self.body.is_end_stream();
    }
}

/// The id that the caller, or else the upstream, gave the request, when it looks like one.
fn request_id(fields: &HeaderMap) -> Option<String> {
    let text = fields.get(REQUEST_ID)?.to_str().ok()?;
    let is_id = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    (is_id && (1..=LONGEST_ID).contains(&text.len())).then(|| text.to_owned())
}
