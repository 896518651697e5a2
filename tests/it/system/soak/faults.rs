//! What is ordered to go wrong, how the stand-in does it, and what a caller may see of it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use url::form_urlencoded;

use super::line::Outcome;
use crate::dice::Dice;
use crate::standin::{Answer, Fault, RecordedRequest, Scripted, Then, pieces};

/// Of the daemon.
pub(super) const RESPONSE_TIMEOUT_SECS: u64 = 3;
/// How many there are.
pub(super) const KINDS: usize = 9;

/// What goes wrong with one request at the API, at its first try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ordered {
    /// 503.
    Unavailable,
    /// 401.
    Unauthorized,
    /// The connection is reset instead of an answer.
    Reset,
    /// The connection is closed instead of an answer.
    Closed,
    /// The answer ends in its head.
    HeadCutOff,
    /// The answer stalls in its head.
    HeadStalls,
    /// The answer ends in its body.
    BodyCutOff,
    /// The connection is reset in the answer's body.
    BodyReset,
    /// The answer comes before the request's body has gone up, and the connection ends.
    Early,
}

const ALL: [Ordered; KINDS] = [
    Ordered::Unavailable,
    Ordered::Unauthorized,
    Ordered::Reset,
    Ordered::Closed,
    Ordered::HeadCutOff,
    Ordered::HeadStalls,
    Ordered::BodyCutOff,
    Ordered::BodyReset,
    Ordered::Early,
];

/// What the API has seen, by the request's number.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Pages>);

#[derive(Debug, Default)]
struct Pages {
    tries: BTreeMap<u64, usize>,
    met: BTreeMap<Ordered, usize>,
    sent_too_often: Vec<String>,
}

impl Ordered {
    /// One that makes sense for this request.
    pub(super) fn draw(dice: &mut Dice, method: &str) -> Self {
        loop {
            let fault = dice.pick(&ALL);
            let has_body = !matches!(fault, Self::BodyCutOff | Self::BodyReset) || method != "HEAD";
            let is_early = fault != Self::Early || ["POST", "PUT"].contains(&method);
            if has_body && is_early {
                return fault;
            }
        }
    }

    /// True when this came of it and nothing else.
    pub(super) fn explains(self, outcome: &Outcome) -> bool {
        let (Outcome::Wrong(answer) | Outcome::Right(answer)) = outcome else {
            return matches!((self, outcome), (Self::BodyCutOff | Self::BodyReset, Outcome::CutOff(_)));
        };
        let seen = (answer.status, proxy_error(answer));
        match self {
            Self::Unavailable => seen == (503, None),
            Self::Unauthorized => seen == (401, None),
            Self::Early => seen == (413, None),
            Self::Reset | Self::Closed | Self::BodyReset => seen == (502, Some("connection_terminated")),
            Self::HeadCutOff => seen.0 == 502 && seen.1.is_some(),
            Self::HeadStalls => seen == (504, Some("http_response_timeout")),
            Self::BodyCutOff => false,
        }
    }

    fn scripted(self) -> Scripted {
        let half_head = b"HTTP/1.1 200 OK\r\nContent-Le".to_vec();
        let half_body = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf".to_vec();
        let early =
            b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec();
        match self {
            Self::Unavailable => Scripted::Answer(slowly(503)),
            Self::Unauthorized => Scripted::Unauthorized,
            Self::Reset => Scripted::Reset,
            Self::Closed => Scripted::Close,
            Self::HeadCutOff => Scripted::Raw { bytes: half_head, then: Then::Close },
            Self::HeadStalls => Scripted::Raw { bytes: half_head, then: Then::Stall },
            Self::BodyCutOff => Scripted::Raw { bytes: half_body, then: Then::Close },
            Self::BodyReset => Scripted::Raw { bytes: half_body, then: Then::Reset },
            Self::Early => Scripted::EarlyRaw { bytes: early, then: Then::Close },
        }
    }
}

/// The reason that stands in an answer of the proxy's own, also when it has no content (HEAD).
pub(super) fn proxy_error(answer: &crate::support::Answer) -> Option<&str> {
    answer.field("proxy-status")?.strip_prefix("cnblogs-proxy; error=")
}

/// An answer whose content trickles.
fn slowly(status: u16) -> Answer {
    let content = pieces(|sender| async move {
        for _ in 0..5 {
            sender.send(Bytes::from_static(b"slowly\n")).await.ok();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    Answer::stream(status, None, content)
}

impl Ledger {
    /// Notes a request that came to the API; its first try meets what was ordered for it.
    pub(super) fn meet(&self, request: &RecordedRequest) -> Option<Scripted> {
        let pairs: Vec<(String, String)> =
            form_urlencoded::parse(request.query().as_bytes()).into_owned().collect();
        let said = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let id = said("id")?.parse().ok()?;
        let fault = said("fault").and_then(|name| ALL.into_iter().find(|one| format!("{one:?}") == name));

        let mut pages = self.0.lock().unwrap();
        let tries = pages.tries.entry(id).or_default();
        *tries += 1;
        let tries = *tries;
        let is_idempotent = request.method != "POST";
        if tries > 1 + usize::from(is_idempotent) + usize::from(fault == Some(Ordered::Unauthorized)) {
            let what = format!("{} {} came {tries} times", request.method, request.target);
            pages.sent_too_often.push(what);
        }
        let fault = fault.filter(|_| tries == 1)?;
        *pages.met.entry(fault).or_default() += 1;
        Some(fault.scripted())
    }

    /// How often that request came to the API.
    pub(super) fn tries(&self, id: u64) -> usize {
        self.0.lock().unwrap().tries.get(&id).copied().unwrap_or(0)
    }

    /// How often each fault met a request.
    pub(super) fn met(&self) -> BTreeMap<Ordered, usize> {
        self.0.lock().unwrap().met.clone()
    }

    /// Requests that came more often than they may.
    pub(super) fn sent_too_often(&self) -> Vec<String> {
        self.0.lock().unwrap().sent_too_often.clone()
    }
}

/// What the token endpoint does to one refresh. None of it may cost a request, and none may cost the login.
pub(super) fn at_the_token_endpoint(dice: &mut Dice) -> Fault {
    let short = Duration::from_millis(dice.below(1500) as u64);
    match dice.below(11) {
        0 => Fault::DelayBefore(short),
        1 => Fault::DelayAfter(short),
        2 => Fault::DropBefore,
        3 => Fault::DropAfter,
        4 => Fault::TruncateAfter,
        5 => Fault::status(500),
        6 => Fault::status_with(429, "Retry-After", "1"),
        7 => Fault::status_with(503, "Retry-After", "2"),
        8 => Fault::html(),
        9 => Fault::truncated_json(),
        _ => Fault::Hang(short),
    }
}
