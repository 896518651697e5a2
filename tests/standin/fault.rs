//! What can go wrong at the authorization server, on request.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::authorize::Alter;
use super::reply::{Answer, Body, Gate, Reply, Then, wait};

/// What faults can be queued for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Endpoint {
    Token,
    Revocation,
    KeySet,
    UserInfo,
    Discovery,
}

/// What happens to one request.
pub(crate) enum Fault {
    /// This is answered; nothing is granted, no code is spent.
    Answer { status: u16, fields: Vec<(String, String)>, body: Vec<u8> },
    /// These bytes are written as they are; nothing is granted. Then the connection is closed.
    Raw(Vec<u8>),
    /// Nothing for so long, then the connection is closed; nothing is granted.
    Hang(Duration),
    /// The connection is closed; nothing is granted.
    DropBefore,
    /// Everything as usual, so much later.
    DelayBefore(Duration),
    /// Everything as usual, once the gate is open.
    HoldBefore(Gate),
    /// It is granted (a rotation included), and the connection is closed without an answer.
    DropAfter,
    /// It is granted, and the answer lacks its last 20 bytes.
    TruncateAfter,
    /// It is granted, and answered so much later.
    DelayAfter(Duration),
    /// It is granted, and answered once the gate is open.
    HoldAfter(Gate),
    /// The JSON answer is changed.
    Alter(Alter),
    /// The answer is written in another way.
    Rewrite(fn(&mut Answer)),
    /// The claims of the `id_token` in the answer are changed, and signed again.
    AlterIdToken(Alter),
}

impl Fault {
    /// A status without content.
    pub(crate) fn status(status: u16) -> Self {
        Self::Answer { status, fields: Vec::new(), body: Vec::new() }
    }

    /// A status with one field and no content.
    pub(crate) fn status_with(status: u16, name: &str, value: &str) -> Self {
        Self::Answer { status, fields: vec![(name.to_owned(), value.to_owned())], body: Vec::new() }
    }

    /// `{"error": ...}` with this status.
    pub(crate) fn error(status: u16, error: &str) -> Self {
        Self::typed(status, "application/json", format!(r#"{{"error":"{error}"}}"#))
    }

    /// A captive portal's page.
    pub(crate) fn html() -> Self {
        Self::typed(200, "text/html", "<!doctype html><title>Wi-Fi</title><h1>Welcome to the hotel</h1>")
    }

    /// JSON that ends too early, in a complete answer.
    pub(crate) fn truncated_json() -> Self {
        Self::typed(200, "application/json", r#"{"access_token":"abc","token_type":"Bea"#)
    }

    /// 5 MiB of valid JSON with good-looking tokens.
    pub(crate) fn huge_json() -> Self {
        let padding = "x".repeat(5 * 1024 * 1024);
        let tokens = r#""access_token":"abc","refresh_token":"def","token_type":"Bearer","expires_in":3600"#;
        Self::typed(200, "application/json", format!(r#"{{"padding":"{padding}",{tokens}}}"#))
    }

    /// 301, 302, 303, 307 or 308 to there.
    pub(crate) fn redirect(status: u16, to: &str) -> Self {
        Self::status_with(status, "Location", to)
    }

    /// Changes the JSON answer.
    pub(crate) fn alter(change: impl FnOnce(&mut Value) + Send + 'static) -> Self {
        Self::Alter(Box::new(change))
    }

    /// Changes the claims of the `id_token` in the answer.
    pub(crate) fn alter_id_token(change: impl FnOnce(&mut Value) + Send + 'static) -> Self {
        Self::AlterIdToken(Box::new(change))
    }

    /// An answer with a body of a type.
    pub(crate) fn typed(status: u16, media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let fields = vec![("Content-Type".to_owned(), media_type.to_owned())];
        Self::Answer { status, fields, body: body.into() }
    }

    /// What is done before the request counts: a reply that ends it, or what is left to do afterwards.
    pub(crate) async fn before(self) -> Result<Option<Self>, Reply> {
        match self {
            Self::Answer { status, fields, body } => {
                Err(Reply::Answer(Answer { fields, ..Answer::full(status, body) }))
            }
            Self::Raw(bytes) => Err(Reply::Raw { bytes, then: Then::Close }),
            Self::Hang(time) => {
                wait(time).await;
                Err(Reply::End(Then::Close))
            }
            Self::DropBefore => Err(Reply::End(Then::Close)),
            Self::DelayBefore(time) => {
                wait(time).await;
                Ok(None)
            }
            Self::HoldBefore(gate) => {
                gate.passed().await;
                Ok(None)
            }
            after => Ok(Some(after)),
        }
    }

    /// What is done to the answer.
    pub(crate) async fn after(self, mut answer: Answer) -> Reply {
        match self {
            Self::DropAfter => return Reply::End(Then::Close),
            Self::TruncateAfter => answer.cut_short = Some(20),
            Self::DelayAfter(time) => wait(time).await,
            Self::HoldAfter(gate) => gate.passed().await,
            Self::Alter(change) => change_json(&mut answer, change),
            Self::Rewrite(rewrite) => rewrite(&mut answer),
            _ => {}
        }
        Reply::Answer(answer)
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Answer { status, .. } => return write!(f, "Answer({status})"),
            Self::Raw(_) => "Raw",
            Self::Hang(_) => "Hang",
            Self::DropBefore => "DropBefore",
            Self::DelayBefore(_) => "DelayBefore",
            Self::HoldBefore(_) => "HoldBefore",
            Self::DropAfter => "DropAfter",
            Self::TruncateAfter => "TruncateAfter",
            Self::DelayAfter(_) => "DelayAfter",
            Self::HoldAfter(_) => "HoldAfter",
            Self::Alter(_) => "Alter",
            Self::Rewrite(_) => "Rewrite",
            Self::AlterIdToken(_) => "AlterIdToken",
        };
        f.write_str(name)
    }
}

/// Changes an answer that is JSON; leaves any other alone.
pub(crate) fn change_json(answer: &mut Answer, change: Alter) {
    let Body::Full(body) = &mut answer.body else { return };
    let Ok(mut value) = serde_json::from_slice(body) else { return };
    change(&mut value);
    *body = value.to_string().into_bytes();
}
