//! What a request leaves in the log, when its answer has gone out or was given up: an entry at debug, and at info who
//! changed what with which key.

use std::time::{Duration, Instant};

use http::{HeaderMap, Method, Request, Response, StatusCode};

use super::guard::{Caller, Peer};
use crate::problem::Problem;

const REQUEST_ID: &str = "x-request-id";
/// What is longer is no id.
const LONGEST_ID: usize = 64;

/// What is known of a request so far.
#[derive(Debug)]
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
    carried_out: CarriedOut,
}

/// Whether what an unsafe request asks for was done (RFC 9110, section 9.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CarriedOut {
    No,
    /// It was sent, and no answer says so or not.
    Unknown,
    Yes,
}

impl Entry {
    /// None when nobody reads it: at info, only what came with a key is written.
    pub fn of<B>(
        caller: &Caller,
        request: &Request<B>,
        has_keys: impl FnOnce() -> bool,
    ) -> Option<Box<Self>> {
        let is_read = tracing::enabled!(tracing::Level::DEBUG)
            || !request.method().is_safe() && tracing::enabled!(tracing::Level::INFO) && has_keys();
        is_read.then(|| {
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
                carried_out: CarriedOut::No,
            })
        })
    }

    /// It came with that key.
    pub fn admitted(&mut self, key: Option<&str>) {
        self.key = key.map(str::to_owned);
    }

    /// It is sent by that route.
    pub(super) fn sending(&mut self, route: &str) {
        self.route = Some(route.to_owned());
        self.carried_out = CarriedOut::Unknown;
    }

    /// The upstream took that long until the head of its first answer.
    pub(super) fn upstream_took(&mut self, took: Duration) {
        self.upstream = Some(took);
    }

    /// It is answered by whoever was asked to carry it out.
    pub fn answered<B>(&mut self, response: &Response<B>) {
        self.carried_out = CarriedOut::by(response.status());
        if self.request_id.is_none() {
            self.request_id = request_id(response.headers());
        }
    }

    /// It is answered by a problem.
    pub fn refused(&mut self, problem: &Problem) {
        if !problem.is_in_doubt() {
            self.carried_out = CarriedOut::No;
        }
    }

    /// The caller gets that status.
    pub fn told(&mut self, status: StatusCode) {
        self.status = Some(status.as_u16());
    }

    /// Writes it, with what the caller took of the answer.
    pub fn write(&self, bytes: u64, is_whole: bool) {
        let Self { path, caller, status, .. } = self;
        let (method, key, route) = (self.method.as_str(), self.key.as_deref(), self.route.as_deref());
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (took_ms, upstream_ms) = (ms(self.started.elapsed()), self.upstream.map(ms));
        let (carried_out, request_id) = (self.carried_out.as_str(), self.request_id.as_deref());
        let message = match (status, is_whole) {
            (None, _) => "the caller left before the answer",
            (Some(_), false) => "the answer broke off",
            (Some(_), true) => "answered",
        };
        if let Some(key) = key.filter(|_| !self.method.is_safe()) {
            tracing::info!(key, method, path, status, carried_out, "a request that changes something");
        }
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

impl CarriedOut {
    /// As far as a status tells: a client error was not applied (RFC 9110, section 15.5), nor was what is to be asked
    /// elsewhere; a server error may come after the deed.
    fn by(status: StatusCode) -> Self {
        match status {
            StatusCode::SEE_OTHER | StatusCode::NOT_MODIFIED => Self::Yes,
            StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => Self::No,
            status if status.is_success() => Self::Yes,
            status if status.is_client_error() => Self::No,
            _ => Self::Unknown,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Unknown => "unknown",
            Self::Yes => "yes",
        }
    }
}

/// The id that the caller, or else the upstream, gave the request, when it looks like one.
fn request_id(fields: &HeaderMap) -> Option<String> {
    let text = fields.get(REQUEST_ID)?.to_str().ok()?;
    let is_id = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    (is_id && (1..=LONGEST_ID).contains(&text.len())).then(|| text.to_owned())
}
