//! The body of an answer, whoever gives it.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::upstream::Download;

/// The body of an answer. Not a `Body` of its own: it is polled by the one that knows when the request is over.
pub struct Body(Source);

enum Source {
    /// Known as a whole.
    Whole(Option<Bytes>),
    /// Of our own routes.
    Local(axum::body::Body),
    /// The upstream's.
    Upstream(Box<Download>),
}

/// What comes of a body next.
pub type PolledFrame = Poll<Option<Result<Frame<Bytes>, Box<dyn Error + Send + Sync>>>>;

impl Body {
    /// None.
    pub const fn empty() -> Self {
        Self(Source::Whole(None))
    }

    /// One of our own routes' answer.
    pub const fn local(body: axum::body::Body) -> Self {
        Self(Source::Local(body))
    }

    pub(super) const fn upstream(download: Box<Download>) -> Self {
        Self(Source::Upstream(download))
    }

    /// The next part of it.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> PolledFrame {
        match &mut self.0 {
            Source::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Local(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Source::Upstream(download) => download.poll_frame(cx).map_err(Into::into),
        }
    }

    /// Whether nothing comes any more.
    pub fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Source::Local(body) => body.is_end_stream(),
            Source::Upstream(download) => download.is_end_stream(),
        }
    }

    /// How much is still to come, in bytes.
    pub fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Source::Local(body) => body.size_hint(),
            Source::Upstream(download) => download.size_hint(),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(Source::Whole(Some(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_answers_have_a_known_length() {
        for (body, length) in [(Body::empty(), 0), (Bytes::new().into(), 0), (Bytes::from("abc").into(), 3)] {
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(length), length == 0));
        }
    }
}
