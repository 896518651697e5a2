//! What a token endpoint grants, or why it does not.

use std::time::Duration;

use secrecy::SecretString;

use super::body::Loss;
use super::id_token::Claims;
use crate::token::Moment;

/// What the token endpoint granted (RFC 6749, section 5.1).
#[derive(Debug)]
pub struct Granted {
    /// The access token, of RFC 6750 characters.
    pub access_token: SecretString,
    /// How long it lasts from `received`.
    pub expires_in: Duration,
    /// When the answer was complete.
    pub received: Moment,
    /// None when the server sent none: the one that was presented stays good.
    pub refresh_token: Option<SecretString>,
    /// The claims of the `id_token`, when there is one.
    pub claims: Option<Claims>,
}

/// Why a grant failed, and what that says about the token that was presented.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GrantError {
    /// The server's last word, `invalid_grant`: what was presented is good for nothing any more (RFC 6749,
    /// section 5.2).
    #[error("the authorization server refused: invalid_grant{description}")]
    Refused {
        /// Its description, with a separator in front, or nothing.
        description: String,
    },
    /// The client is refused, whatever it presents: only another configuration helps.
    #[error("the authorization server refused: {code}{description}")]
    Misconfigured {
        /// The `error` of RFC 6749, section 5.2.
        code: String,
        /// Its description, with a separator in front, or nothing.
        description: String,
    },
    /// Answered with something that grants nothing and is no last word.
    #[error("{reason}")]
    NotGranted {
        /// What is wrong with it.
        reason: String,
        /// What the server asked for in `Retry-After`.
        retry_after: Option<Duration>,
        /// The refresh token that replaces the one presented, if the answer had one.
        successor: Option<SecretString>,
    },
    /// For now: the server is down, busy or can't be reached.
    #[error("{reason}")]
    Unavailable {
        /// What happened.
        reason: String,
        /// False when nothing can have reached the server.
        was_sent: bool,
        /// What the server asked for in `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Sent, and the answer is not known: the token presented may have been rotated.
    #[error("{reason}")]
    InDoubt {
        /// What happened.
        reason: String,
        /// How the answer was lost.
        loss: Loss,
    },
}

impl GrantError {
    /// For something that did not reach the server.
    pub fn unsent(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into(), was_sent: false, retry_after: None }
    }

    /// True when the server answered, and granted nothing.
    pub const fn is_refusal(&self) -> bool {
        match self {
            Self::Refused { .. } | Self::Misconfigured { .. } | Self::NotGranted { .. } => true,
            Self::InDoubt { loss, .. } => matches!(loss, Loss::Unreadable),
            Self::Unavailable { .. } => false,
        }
    }
}
