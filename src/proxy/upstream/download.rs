//! An answer's body on its way down.

use std::error::Error;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::http1::{self, RoundTrip};
use super::keep;
use super::pool::Pool;
use crate::proxy::alarm::Alarm;
use crate::proxy::headers;
use crate::token::Token;

/// A body that brings nothing for that long has stalled.
const STALL: Duration = Duration::from_secs(60);

/// An answer's body on its way down.
pub(in crate::proxy) struct Download {
    carrier: Carrier,
    token: Arc<Token>,
    /// Since when nothing comes.
    stalls_since: Option<Instant>,
    broken: Option<DownloadError>,
}

/// Where an answer's body comes from.
pub(super) enum Carrier {
    /// A connection that is read here, and then goes back to the pool.
    Http1(RoundTrip, Arc<Pool>),
    /// A task that reads it, and sends the request meanwhile.
    Beside(Beside),
    /// A connection that others use, too.
    Http2(Incoming, Alarm),
    /// All of it has come.
    Done,
}

/// What comes from a task.
pub(super) struct Beside {
    /// None is the end.
    pub(super) parts: mpsc::Receiver<Option<Result<Frame<Bytes>, http1::Error>>>,
    /// How many bytes are left; none when it is not known.
    pub(super) left: Option<u64>,
    pub(super) task: AbortOnDropHandle<()>,
    pub(super) alarm: Alarm,
}

/// Why an answer's body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Nothing came for 60 s.
    #[error("the upstream's answer stalled")]
    Stalled,
    /// It broke off.
    #[error("the upstream's answer broke off")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
}

impl Download {
    pub(super) fn new(carrier: Carrier, token: Arc<Token>) -> Box<Self> {
        let mut download = Box::new(Self { carrier, token, stalls_since: None, broken: None });
        if download.is_end_stream() {
            download.end();
        }
        download
    }

    /// All of it has come: the connection is for others.
    fn end(&mut self) {
        match mem::replace(&mut self.carrier, Carrier::Done) {
            Carrier::Http1(trip, pool) => keep(trip, &pool),
            Carrier::Beside(beside) => drop(beside.task.detach()),
            Carrier::Http2(..) | Carrier::Done => {}
        }
    }

    /// Ready when nothing has come for too long.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = *self.stalls_since.get_or_insert_with(Instant::now) + STALL;
        match &mut self.carrier {
            Carrier::Http1(trip, _) => trip.alarm().poll(deadline, cx),
            Carrier::Beside(beside) => beside.alarm.poll(deadline, cx),
            Carrier::Http2(_, alarm) => alarm.poll(deadline, cx),
            Carrier::Done => Poll::Pending,
        }
    }
}

impl Carrier {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        match self {
            Self::Http1(trip, _) => trip.poll_frame(cx).map_err(DownloadError::broken),
            Self::Beside(beside) => beside.poll_frame(cx).map_err(DownloadError::broken),
            Self::Http2(incoming, _) => Pin::new(incoming).poll_frame(cx).map_err(DownloadError::broken),
            Self::Done => Poll::Ready(None),
        }
    }

    fn is_over(&self) -> bool {
        match self {
            Self::Http1(trip, _) => trip.length() == Some(0),
            Self::Beside(beside) => beside.left == Some(0),
            Self::Http2(incoming, _) => incoming.is_end_stream(),
            Self::Done => true,
        }
    }
}

impl Beside {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, http1::Error>>> {
        // A task that ends without a word was stopped with the daemon.
        let frame = ready!(self.parts.poll_recv(cx)).unwrap_or(Some(Err(http1::Error::Incomplete)));
        if let (Some(left), Some(Ok(frame))) = (&mut self.left, &frame) {
            *left -= frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        Poll::Ready(frame)
    }
}

impl DownloadError {
    fn broken(error: impl Error + Send + Sync + 'static) -> Self {
        Self::Broken(Box::new(error))
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = DownloadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let Poll::Ready(frame) = this.carrier.poll_frame(cx) else {
            ready!(this.poll_stall(cx));
            return Poll::Ready(Some(Err(DownloadError::Stalled)));
        };
        this.stalls_since = None;
        let frame = match frame {
            None => {
                this.end();
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                // What came before goes to the caller first: hyper forgets what it holds when a body fails.
                this.broken = Some(error);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Ok(frame)) => frame,
        };
        if this.carrier.is_over() {
            this.end();
        }
        Poll::Ready(Some(Ok(match frame.into_trailers() {
            Ok(mut trailers) => {
                headers::for_trailers(&mut trailers, Some(&this.token));
                Frame::trailers(trailers)
            }
            Err(data) => data,
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.carrier.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        let left = match &self.carrier {
            Carrier::Http1(trip, _) => trip.length(),
            Carrier::Beside(beside) => beside.left,
            Carrier::Http2(incoming, _) => return incoming.size_hint(),
            Carrier::Done => Some(0),
        };
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
