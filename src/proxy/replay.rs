//! The request's body on its way up: passed on as it comes, with a bounded copy for one replay.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::headers;
use crate::metrics::Counters;

/// A body that brings less than [`LEAST`] bytes in this time has stalled.
const STALL: Duration = Duration::from_secs(60);
const LEAST: u64 = 1024;

/// A request's body, as it is sent to the upstream.
#[derive(Debug)]
pub(super) enum Upload {
    /// None.
    Empty,
    /// Known as a whole.
    Whole(Option<Bytes>, Option<Box<HeaderMap>>),
    /// Passed on as it comes.
    Stream(Box<Stream>),
}

/// A body that is passed on while it comes.
#[derive(Debug)]
pub(super) struct Stream {
    incoming: Incoming,
    copy: Option<Arc<Copy>>,
    progress: Arc<AtomicU64>,
    counters: Arc<Counters>,
    stall: Pin<Box<Sleep>>,
    since_stall: u64,
}

/// The copy of a streamed body, as far as it fits.
#[derive(Debug)]
pub(super) struct Copy {
    limit: usize,
    state: Mutex<CopyState>,
    ended: Notify,
}

#[derive(Debug)]
enum CopyState {
    Growing(Vec<u8>, Option<HeaderMap>),
    Whole(Vec<u8>, Option<HeaderMap>),
    Gone,
}

/// Why a body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    #[error("the caller's body stalled")]
    Stalled,
    #[error("the caller's body broke off")]
    Broken(#[source] hyper::Error),
}

impl Upload {
    /// A body that is passed on as it comes; a copy of up to `limit` bytes is kept.
    pub(super) fn stream(
        incoming: Incoming,
        limit: usize,
        counters: Arc<Counters>,
    ) -> (Self, Arc<Copy>, Arc<AtomicU64>) {
        let state = Mutex::new(CopyState::Growing(Vec::new(), None));
        let copy = Arc::new(Copy { limit, state, ended: Notify::new() });
        let progress = Arc::new(AtomicU64::new(0));
        let stream = Stream {
            incoming,
            copy: Some(Arc::clone(&copy)),
            progress: Arc::clone(&progress),
            counters,
            stall: Box::pin(tokio::time::sleep(STALL)),
            since_stall: 0,
        };
        (Self::Stream(Box::new(stream)), copy, progress)
    }
}

impl Copy {
    /// The body once more, when all of it came and fitted. Waits for the rest of a body that is still coming.
    pub(super) async fn whole(&self, patience: Duration) -> Option<Upload> {
        tokio::time::timeout(patience, self.end_of_body()).await.ok().flatten()
    }

    async fn end_of_body(&self) -> Option<Upload> {
        loop {
            let ended = self.ended.notified();
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
            ended.await;
        }
    }

    /// None while the body is still coming; then the copy, or that there is none.
    fn outcome(&self) -> Option<Option<Upload>> {
        match &*self.state.lock().expect("no thread panics while it holds a copy") {
            CopyState::Growing(..) => None,
            CopyState::Whole(bytes, trailers) => {
                let trailers = trailers.clone().map(Box::new);
                Some(Some(Upload::Whole(Some(bytes.clone().into()), trailers)))
            }
            CopyState::Gone => Some(None),
        }
    }

    fn grow(&self, frame: &Frame<Bytes>) {
        let mut state = self.state.lock().expect("no thread panics while it holds a copy");
        let CopyState::Growing(bytes, trailers) = &mut *state else { return };
        match frame.data_ref() {
            Some(part) if bytes.len() + part.len() <= self.limit => bytes.extend_from_slice(part),
            Some(_) => {
                *state = CopyState::Gone;
                self.ended.notify_waiters();
            }
            None => *trailers = frame.trailers_ref().cloned(),
        }
    }

    fn end(&self, is_whole: bool) {
        let mut state = self.state.lock().expect("no thread panics while it holds a copy");
        if let CopyState::Growing(bytes, trailers) = &mut *state {
            let (bytes, trailers) = (std::mem::take(bytes), trailers.take());
            *state = if is_whole { CopyState::Whole(bytes, trailers) } else { CopyState::Gone };
        }
        self.ended.notify_waiters();
    }
}

impl Stream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                ready!(self.stall.as_mut().poll(cx));
                if self.since_stall < LEAST {
                    return Poll::Ready(Some(Err(UploadError::Stalled)));
                }
                self.since_stall = 0;
                self.stall.as_mut().reset(Instant::now() + STALL);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        };
        match frame {
            None => {
                self.end(true);
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                self.end(false);
                Poll::Ready(Some(Err(UploadError::Broken(error))))
            }
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    headers::for_trailers(trailers, None);
                }
                let length = frame.data_ref().map_or(0, Bytes::len);
                self.counters.request_body(length);
                let length = length as u64;
                self.progress.fetch_add(length + 1, Ordering::Relaxed);
                self.since_stall += length;
                if let Some(copy) = &self.copy {
                    copy.grow(&frame);
                }
                if frame.is_trailers() || self.incoming.is_end_stream() {
                    self.end(true);
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn end(&mut self, is_whole: bool) {
        if let Some(copy) = self.copy.take() {
            copy.end(is_whole);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end(false);
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes, trailers) => {
                let frame = bytes.take().filter(|bytes| !bytes.is_empty()).map(Frame::data);
                let trailers = || trailers.take().map(|trailers| Frame::trailers(*trailers));
                Poll::Ready(frame.or_else(trailers).map(Ok))
            }
            Self::Stream(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes, trailers) => bytes.as_ref().is_none_or(Bytes::is_empty) && trailers.is_none(),
            Self::Stream(stream) => stream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes, _) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Stream(stream) => stream.incoming.size_hint(),
        }
    }
}
