//! An answer's body on its way down.

use std::error::Error;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::http1::{self, RoundTrip};
use super::keep;
use super::pool::Pool;
use crate::proxy::headers;
use crate::proxy::timer::Timer;
use crate::token::Token;

/// An answer's body on its way down.
pub(in crate::proxy) struct Download {
    source: BodySource,
    token: Arc<Token>,
    /// How long nothing may come; none when for ever.
    stall_timeout: Option<Duration>,
    /// Since when nothing comes.
    stalls_since: Option<Instant>,
    broken: Option<DownloadError>,
}

/// Where an answer's body comes from.
pub(super) enum BodySource {
    /// A connection that is read here, and then goes back to the pool.
    Connection(RoundTrip, Arc<Pool>),
    /// An upload task that reads it, and sends the request meanwhile.
    Task(UploadTask),
    /// All of it has come.
    Done,
}

/// What comes from an upload task.
pub(super) struct UploadTask {
    /// None is the end.
    pub(super) parts: mpsc::Receiver<Option<Result<Frame<Bytes>, http1::Error>>>,
    /// How many bytes are left; none when it is not known.
    pub(super) left: Option<u64>,
    pub(super) task: AbortOnDropHandle<()>,
    pub(super) timer: Timer,
}

/// Why an answer's body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Nothing came for `stall_timeout`.
    #[error("the upstream's answer stalled")]
    Stalled,
    /// It broke off.
    #[error("the upstream's answer broke off")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
}

impl Download {
    pub(super) fn new(source: BodySource, token: Arc<Token>, stall_timeout: Option<Duration>) -> Box<Self> {
        let mut download = Box::new(Self { source, token, stall_timeout, stalls_since: None, broken: None });
        if download.is_end_stream() {
            download.end();
        }
        download
    }

    /// All of it has come: the connection is for others.
    fn end(&mut self) {
        match mem::replace(&mut self.source, BodySource::Done) {
            BodySource::Connection(trip, pool) => keep(trip, &pool),
            BodySource::Task(task) => drop(task.task.detach()),
            BodySource::Done => {}
        }
    }

    /// Ready when nothing has come for too long.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(stall_timeout) = self.stall_timeout else { return Poll::Pending };
        let deadline = *self.stalls_since.get_or_insert_with(Instant::now) + stall_timeout;
        match &mut self.source {
            BodySource::Connection(trip, _) => trip.timer().poll(deadline, cx),
            BodySource::Task(task) => task.timer.poll(deadline, cx),
            BodySource::Done => Poll::Pending,
        }
    }
}

impl BodySource {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, http1::Error>>> {
        match self {
            Self::Connection(trip, _) => trip.poll_frame(cx),
            Self::Task(task) => task.poll_frame(cx),
            Self::Done => Poll::Ready(None),
        }
    }

    fn is_over(&self) -> bool {
        match self {
            Self::Connection(trip, _) => trip.length() == Some(0),
            Self::Task(task) => task.left == Some(0),
            Self::Done => true,
        }
    }
}

impl UploadTask {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, http1::Error>>> {
        // A task that ends without a word was stopped with the daemon.
        let frame = ready!(self.parts.poll_recv(cx)).unwrap_or(Some(Err(http1::Error::Incomplete)));
        if let (Some(left), Some(Ok(frame))) = (&mut self.left, &frame) {
            *left -= frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        Poll::Ready(frame)
    }
}

impl Download {
    /// The next part of it.
    pub(in crate::proxy) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let Poll::Ready(frame) = self.source.poll_frame(cx) else {
            ready!(self.poll_stall(cx));
            return Poll::Ready(Some(Err(DownloadError::Stalled)));
        };
        self.stalls_since = None;
        let frame = match frame {
            None => {
                self.end();
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                // What came before goes to the caller first: hyper drops its unflushed output when a body fails.
                self.broken = Some(DownloadError::Broken(Box::new(error)));
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Ok(frame)) => frame,
        };
        if self.source.is_over() {
            self.end();
        }
        Poll::Ready(Some(Ok(match frame.into_trailers() {
            Ok(mut trailers) => {
                headers::for_trailers(&mut trailers, Some(&self.token));
                Frame::trailers(trailers)
            }
            Err(data) => data,
        })))
    }

    /// Whether nothing comes any more.
    pub(in crate::proxy) fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.source.is_over()
    }

    /// How much is still to come.
    pub(in crate::proxy) fn size_hint(&self) -> SizeHint {
        let left = match &self.source {
            BodySource::Connection(trip, _) => trip.length(),
            BodySource::Task(task) => task.left,
            BodySource::Done => Some(0),
        };
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
