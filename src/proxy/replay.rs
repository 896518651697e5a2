//! The request's body on its way up: passed on as it comes, with a bounded copy for one replay.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::{BodyWatch, headers};
use crate::metrics::Counters;
use crate::problem::{Code, Problem};

/// A body that brings fewer bytes a minute has stalled, too.
const LEAST_A_MINUTE: u64 = 1024;
/// A chunked body that is small has mostly come with its head, or right behind it. So often so long is waited for its
/// end: not once for all of it, since a thread may have to wait for a processor meanwhile.
const END_WAITS: u32 = 5;
const END_WAIT: Duration = Duration::from_millis(10);

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
    begun: Option<Bytes>,
    body: CallerBody,
    buffer: Option<Arc<ReplayBuffer>>,
    progress: Arc<AtomicU64>,
}

/// A body while it comes from the caller.
#[derive(Debug)]
pub(super) struct CallerBody {
    incoming: Incoming,
    watch: Option<Box<dyn BodyWatch>>,
    counters: Arc<Counters>,
    stall_timeout: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    moved_at: Instant,
    since_stall: u64,
}

/// What has come of a body so far.
#[derive(Debug, Default)]
pub(super) struct Begun {
    bytes: BytesMut,
    trailers: Option<Box<HeaderMap>>,
    is_whole: bool,
}

/// The copy of a streamed body, as far as it fits.
#[derive(Debug)]
pub(super) struct ReplayBuffer {
    limit: usize,
    state: Mutex<BufferState>,
    ended: Notify,
}

#[derive(Debug)]
enum BufferState {
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
    /// A body that is passed on as it comes, behind what has come of it; a copy of up to `limit` bytes is kept.
    pub(super) fn stream(
        begun: Begun,
        body: CallerBody,
        limit: usize,
    ) -> (Self, Arc<ReplayBuffer>, Arc<AtomicU64>) {
        let state = Mutex::new(BufferState::Growing(Vec::new(), None));
        let buffer = Arc::new(ReplayBuffer { limit, state, ended: Notify::new() });
        let progress = Arc::new(AtomicU64::new(0));
        let begun = Some(begun.into_whole().0).filter(|begun| !begun.is_empty());
        let stream =
            Stream { begun, body, buffer: Some(Arc::clone(&buffer)), progress: Arc::clone(&progress) };
        (Self::Stream(Box::new(stream)), buffer, progress)
    }

    /// Whether it goes up in chunks: its length is not known, or trailers are behind it.
    pub(super) fn is_chunked(&self) -> bool {
        match self {
            Self::Empty => false,
            Self::Whole(_, trailers) => trailers.is_some(),
            Self::Stream(stream) => stream.body.length().is_none(),
        }
    }

    /// The next part of it.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes, trailers) => {
                let frame = bytes.take().filter(|bytes| !bytes.is_empty()).map(Frame::data);
                let trailers = || trailers.take().map(|trailers| Frame::trailers(*trailers));
                Poll::Ready(frame.or_else(trailers).map(Ok))
            }
            Self::Stream(stream) => stream.poll_frame(cx),
        }
    }
}

impl UploadError {
    /// What the caller is told.
    pub(super) fn problem(&self) -> Problem {
        let detail = match self {
            Self::Stalled => "the request's body stalled",
            Self::Broken(_) => "the request's body broke off",
        };
        Problem::new(Code::BadRequest, detail).closing()
    }
}

impl CallerBody {
    /// A body that must bring something within each `stall_timeout`; zero means that it may take for ever.
    pub(super) fn new(
        incoming: Incoming,
        watch: Option<Box<dyn BodyWatch>>,
        stall_timeout: Duration,
        counters: Arc<Counters>,
    ) -> Self {
        let (stall, moved_at) = (None, Instant::now());
        Self { incoming, watch, counters, stall_timeout, stall, moved_at, since_stall: 0 }
    }

    /// Whether nothing comes any more.
    pub(super) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    /// How many bytes are to come; none of a chunked body.
    pub(super) fn length(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            ready!(self.poll_stall(cx));
            return Poll::Ready(Some(Err(UploadError::Stalled)));
        };
        if frame.is_none()
            && let Some(watch) = &self.watch
        {
            watch.ended_plainly();
        }
        Poll::Ready(frame.map(|frame| {
            let mut frame = frame.map_err(UploadError::Broken)?;
            if let Some(trailers) = frame.trailers_mut() {
                headers::for_trailers(trailers, None);
                // There are trailers, if only empty ones: not plainly.
                self.watch = None;
            }
            let length = frame.data_ref().map_or(0, Bytes::len);
            self.counters.request_body(length);
            self.since_stall += length as u64;
            self.moved_at = Instant::now();
            Ok(frame)
        }))
    }

    /// Ready when too little has come for too long.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let stall_timeout = self.stall_timeout;
        if stall_timeout.is_zero() {
            return Poll::Pending;
        }
        let least = LEAST_A_MINUTE * stall_timeout.as_secs() / 60;
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(stall_timeout)));
        loop {
            ready!(stall.as_mut().poll(cx));
            let moves = self.moved_at + stall_timeout > Instant::now();
            if !moves || self.since_stall < least {
                return Poll::Ready(());
            }
            self.since_stall = 0;
            stall.as_mut().reset(self.moved_at + stall_timeout);
        }
    }
}

impl Begun {
    /// Takes in what comes, up to the end or to more than `limit` bytes. When it is dropped before, what has come
    /// stays.
    pub(super) async fn fill(&mut self, body: &mut CallerBody, limit: usize) -> Result<(), UploadError> {
        while !self.is_whole && self.bytes.len() <= limit {
            let Some(frame) = poll_fn(|cx| body.poll_frame(cx)).await.transpose()? else {
                self.is_whole = true;
                break;
            };
            match frame.into_data() {
                Ok(data) => self.bytes.extend_from_slice(&data),
                Err(frame) => {
                    let trailers = frame.into_trailers().ok().filter(|trailers| !trailers.is_empty());
                    (self.trailers, self.is_whole) = (trailers.map(Box::new), true);
                }
            }
            self.is_whole |= body.is_end_stream();
        }
        Ok(())
    }

    /// The same for a body that most likely is about to end.
    pub(super) async fn fill_soon(&mut self, body: &mut CallerBody, limit: usize) -> Result<(), UploadError> {
        for _ in 0..END_WAITS {
            if let Ok(filled) = timeout(END_WAIT, self.fill(body, limit)).await {
                return filled;
            }
        }
        Ok(())
    }

    pub(super) const fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// All that has come.
    pub(super) fn into_whole(self) -> (Bytes, Option<Box<HeaderMap>>) {
        (self.bytes.freeze(), self.trailers)
    }
}

impl ReplayBuffer {
    /// The body once more, when all of it came and fitted. Waits for the rest of a body that is still coming.
    pub(super) async fn whole(&self, within: Duration) -> Option<Upload> {
        timeout(within, self.end_of_body()).await.ok().flatten()
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
            BufferState::Growing(..) => None,
            BufferState::Whole(bytes, trailers) => {
                let trailers = trailers.clone().map(Box::new);
                Some(Some(Upload::Whole(Some(bytes.clone().into()), trailers)))
            }
            BufferState::Gone => Some(None),
        }
    }

    fn grow(&self, frame: &Frame<Bytes>) {
        let mut state = self.state.lock().expect("no thread panics while it holds a copy");
        let BufferState::Growing(bytes, trailers) = &mut *state else { return };
        match frame.data_ref() {
            Some(part) if bytes.len() + part.len() <= self.limit => bytes.extend_from_slice(part),
            Some(_) => {
                *state = BufferState::Gone;
                self.ended.notify_waiters();
            }
            None => *trailers = frame.trailers_ref().cloned(),
        }
    }

    fn end(&self, is_whole: bool) {
        let mut state = self.state.lock().expect("no thread panics while it holds a copy");
        if let BufferState::Growing(bytes, trailers) = &mut *state {
            let (bytes, trailers) = (std::mem::take(bytes), trailers.take());
            *state = if is_whole { BufferState::Whole(bytes, trailers) } else { BufferState::Gone };
        }
        self.ended.notify_waiters();
    }
}

impl Stream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let frame = match self.begun.take() {
            Some(begun) => Some(Ok(Frame::data(begun))),
            None => ready!(self.body.poll_frame(cx)),
        };
        match &frame {
            None => self.end(true),
            Some(Err(_)) => self.end(false),
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.progress.fetch_add(length + 1, Ordering::Relaxed);
                if let Some(buffer) = &self.buffer {
                    buffer.grow(frame);
                }
                if frame.is_trailers() || self.body.is_end_stream() {
                    self.end(true);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn end(&mut self, is_whole: bool) {
        if let Some(buffer) = self.buffer.take() {
            buffer.end(is_whole);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end(false);
    }
}
