//! How the program answers for itself: a problem (RFC 9457) with a `Proxy-Status` (RFC 9209), so that a caller
//! can tell its answers from the API's. No internal cause, no secret.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde_json::{Map, Value};

/// RFC 9209.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// The Content-Security-Policy of what is data and no page: a browser that shows it runs nothing of it.
pub const SANDBOX: HeaderValue =
    HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox");
/// What every answer of our own carries beside its own fields.
pub const INERT: [(HeaderName, HeaderValue); 2] = [
    (http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (http::header::CONTENT_SECURITY_POLICY, SANDBOX),
];

/// What went wrong, as the contract names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Malformed or ambiguous request.
    BadRequest,
    /// Host not accepted.
    WrongHost,
    /// A web page that may not call.
    ForbiddenOrigin,
    /// Another user of this machine.
    ForbiddenUser,
    /// The caller's key does not reach that far.
    ForbiddenByKey,
    /// Keys are configured and none, or a wrong one, came.
    KeyRequired,
    /// `CONNECT`, `TRACE`, `TRACK`.
    MethodRefused,
    /// No route's prefix matches.
    NoRoute,
    /// No such local path.
    NotFound,
    /// The request target is too long.
    TargetTooLong,
    /// The request's head is too large.
    HeadTooLarge,
    /// No usable token, and only a person can help.
    LoginRequired,
    /// No usable token yet.
    TokenUnavailable,
    /// The upstream can't be reached.
    UpstreamUnreachable,
    /// The upstream's certificate or TLS is not right.
    UpstreamUntrusted,
    /// The upstream's answer can't be passed on.
    UpstreamInvalid,
    /// The upstream took too long.
    UpstreamTimeout,
    /// The connection limit is reached.
    TooManyConnections,
    /// The program stops.
    Stopping,
}

/// An answer of our own.
#[derive(Debug)]
pub struct Problem {
    code: Code,
    proxy_error: &'static str,
    detail: String,
    members: Map<String, Value>,
    fields: Vec<(HeaderName, HeaderValue)>,
    is_in_doubt: bool,
}

impl Code {
    /// As it stands behind `urn:cnblogs-proxy:`.
    pub const fn as_str(self) -> &'static str {
        self.facts().0
    }

    /// The status that goes with it.
    pub const fn status(self) -> StatusCode {
        self.facts().1
    }

    /// Name, status, `Proxy-Status` error and title.
    #[expect(clippy::too_many_lines, reason = "one table")]
    const fn facts(self) -> (&'static str, StatusCode, &'static str, &'static str) {
        const DENIED: &str = "http_request_denied";
        const MALFORMED: &str = "http_request_error";
        const OURS: &str = "proxy_internal_response";
        use StatusCode as S;
        match self {
            Self::BadRequest => ("bad-request", S::BAD_REQUEST, MALFORMED, "The request is malformed"),
            Self::WrongHost => ("wrong-host", S::MISDIRECTED_REQUEST, DENIED, "The Host is not this proxy's"),
            Self::ForbiddenOrigin => {
                ("forbidden-origin", S::FORBIDDEN, DENIED, "Web pages may not call this proxy")
            }
            Self::ForbiddenUser => {
                ("forbidden-user", S::FORBIDDEN, DENIED, "This user may not call this proxy")
            }
            Self::ForbiddenByKey => {
                ("forbidden-by-key", S::FORBIDDEN, DENIED, "This key does not allow that")
            }
            Self::KeyRequired => ("key-required", S::UNAUTHORIZED, DENIED, "A caller key is required"),
            Self::MethodRefused => {
                ("method-refused", S::METHOD_NOT_ALLOWED, DENIED, "This method is not forwarded")
            }
            Self::NoRoute => {
                ("no-route", S::NOT_FOUND, "destination_not_found", "No route matches this path")
            }
            Self::NotFound => {
                ("not-found", S::NOT_FOUND, "destination_not_found", "There is no such local page")
            }
            Self::TargetTooLong => {
                ("target-too-long", S::URI_TOO_LONG, MALFORMED, "The request target is too long")
            }
            Self::HeadTooLarge => (
                "head-too-large",
                S::REQUEST_HEADER_FIELDS_TOO_LARGE,
                MALFORMED,
                "The request's head is too large",
            ),
            Self::LoginRequired => ("login-required", S::SERVICE_UNAVAILABLE, OURS, "A person has to log in"),
            Self::TokenUnavailable => {
                ("token-unavailable", S::SERVICE_UNAVAILABLE, OURS, "There is no token yet")
            }
            Self::UpstreamUnreachable => (
                "upstream-unreachable",
                S::BAD_GATEWAY,
                "destination_unavailable",
                "The API can't be reached",
            ),
            Self::UpstreamUntrusted => (
                "upstream-untrusted",
                S::BAD_GATEWAY,
                "tls_certificate_error",
                "The API's identity can't be verified",
            ),
            Self::UpstreamInvalid => (
                "upstream-invalid",
                S::BAD_GATEWAY,
                "http_protocol_error",
                "The API's answer can't be passed on",
            ),
            Self::UpstreamTimeout => {
                ("upstream-timeout", S::GATEWAY_TIMEOUT, "http_response_timeout", "The API took too long")
            }
            Self::TooManyConnections => (
                "too-many-connections",
                S::SERVICE_UNAVAILABLE,
                "connection_limit_reached",
                "There are too many connections",
            ),
            Self::Stopping => ("stopping", S::SERVICE_UNAVAILABLE, OURS, "The proxy is stopping"),
        }
    }
}

impl Problem {
    /// A problem with a sentence for the caller.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let proxy_error = code.facts().2;
        Self {
            code,
            proxy_error,
            detail: detail.into(),
            members: Map::new(),
            fields: Vec::new(),
            is_in_doubt: false,
        }
    }

    /// Another `error` for `Proxy-Status` than the code's own (RFC 9209, section 2.3).
    #[must_use]
    pub const fn because(mut self, proxy_error: &'static str) -> Self {
        self.proxy_error = proxy_error;
        self
    }

    /// Another member of the JSON object.
    #[must_use]
    pub fn with_member(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// Asks the caller to come back.
    #[must_use]
    pub fn retry_after(self, secs: u64) -> Self {
        self.with_field(RETRY_AFTER, HeaderValue::from(secs))
    }

    /// Says how to authenticate.
    #[must_use]
    pub fn with_challenge(self) -> Self {
        let challenge = "Basic realm=\"cnblogs-proxy\", charset=\"UTF-8\", Bearer realm=\"cnblogs-proxy\"";
        self.with_field(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }

    /// Ends the connection after the answer: what follows on it can't be trusted to be a request.
    #[must_use]
    pub fn closing(self) -> Self {
        self.with_field(CONNECTION, HeaderValue::from_static("close"))
    }

    /// The request may have been carried out all the same.
    #[must_use]
    pub const fn in_doubt(mut self) -> Self {
        self.is_in_doubt = true;
        self
    }

    /// Whether the request may have been carried out.
    pub const fn is_in_doubt(&self) -> bool {
        self.is_in_doubt
    }

    /// Which problem it is.
    pub const fn code(&self) -> Code {
        self.code
    }

    /// The answer.
    pub fn into_response(self) -> Response<Bytes> {
        let (name, status, _, title) = self.code.facts();
        let mut body = Map::new();
        body.insert("type".to_owned(), format!("urn:cnblogs-proxy:{name}").into());
        body.insert("title".to_owned(), title.into());
        body.insert("status".to_owned(), status.as_u16().into());
        // The clients of Cnblogs read `Message`.
        body.insert("Message".to_owned(), self.detail.as_str().into());
        body.insert("detail".to_owned(), self.detail.into());
        body.extend(self.members);

        let mut response = Response::new(Bytes::from(Value::Object(body).to_string()));
        *response.status_mut() = status;
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        fields.insert(PROXY_STATUS, proxy_status(self.proxy_error));
        fields.extend(INERT);
        if status == StatusCode::METHOD_NOT_ALLOWED {
            fields.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        fields.extend(self.fields);
        response
    }

    fn with_field(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.fields.push((name, value));
        self
    }
}

fn proxy_status(error: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("cnblogs-proxy; error={error}")).expect("the errors are tokens")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_who_answers_and_why() {
        let response = Problem::new(Code::TokenUnavailable, "wait").retry_after(7).into_response();

        let body: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "7");
        assert_eq!(response.headers()["proxy-status"], "cnblogs-proxy; error=proxy_internal_response");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(body["type"], "urn:cnblogs-proxy:token-unavailable");
        assert_eq!((&body["status"], &body["detail"]), (&503.into(), &"wait".into()));
        assert_eq!(body["Message"], "wait");
    }
}
