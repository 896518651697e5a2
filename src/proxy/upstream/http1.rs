//! HTTP/1.1 to the upstream (RFC 9112): a connection for one request at a time, read and written by the task that uses
//! it, without a hop to another one.

pub(super) mod framing;

use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::buf::Chain;
use bytes::{Buf, Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method};
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::has_budget_remaining;
use tokio::time::Instant;
use tokio_util::io::{poll_read_buf, poll_write_buf};

use super::super::headers;
use super::super::replay::{Upload, UploadError};
use super::super::timer::Timer;
use super::Message;
use super::network::Epoch;
use crate::metrics::OpenConnection;
use crate::tls::TlsStream;
use crate::token::Token;
pub(super) use framing::Head;
use framing::{Body, Invalid, Next};

/// Constant requests keep a connection for that long, so that an upstream's name that moves is followed: no name is
/// asked for while there is a connection.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(300);
/// Idle connections are used again for that long when the upstream announces nothing: servers close theirs after a
/// minute or more.
const KEEP_IDLE: Duration = Duration::from_secs(50);
/// Before an upstream closes an idle connection by its own announcement, no request is sent on it for that long: it
/// would arrive when the connection is gone.
const CLOSES_SOON: Duration = Duration::from_secs(1);
/// What is read of an answer at a time: each read and each write may wake somebody on another core; larger buffers
/// don't stay in the processor's caches.
const MOST_READ: usize = 160 * 1024;
/// What is read of an answer at first: most are small.
const FIRST_READ: usize = 8 * 1024;
/// A body up to this size goes up in one piece with its head: one piece costs less than two.
const SMALL_BODY: usize = 16 * 1024;
/// Room for a head behind its target, with a token of some length.
const USUAL_HEAD: usize = 2 * 1024;

/// A connection to the upstream.
pub(super) struct Connection {
    stream: Stream,
    /// Received, and not yet read.
    received: Bytes,
    /// Where more is received into; nothing between answers.
    buffer: BytesMut,
    /// How much is received at a time, by what the answer before brought.
    room: usize,
    made_at: Instant,
    /// How long it may be idle before it is used again.
    pub(super) keep_idle: Duration,
    _open: OpenConnection,
    /// The state of the network in which it was good last.
    epoch: Epoch,
    /// For whatever is waited for on this connection.
    pub(super) timer: Timer,
}

/// What a connection is made over.
#[expect(clippy::large_enum_variant, reason = "a connection is boxed as a whole, and mostly speaks TLS")]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(TlsStream<TcpStream>),
}

/// A request that goes up on a connection, and the answer that comes down.
pub(super) struct RoundTrip {
    connection: Box<Connection>,
    sending: Sending,
    is_of_head: bool,
    body: Body,
    /// Whether the connection can be used again behind this.
    is_persistent: bool,
    /// Whether any byte of an answer came.
    has_received: bool,
    /// Whether the answer began before the request was sent: it may be what a server still had to say to the one
    /// before.
    is_early: bool,
}

/// A request on its way up.
struct Sending {
    step: Step,
    piece: Piece,
    upload: Upload,
    is_chunked: bool,
    /// Whether any byte of it went out.
    has_begun: bool,
    /// Why no more of it goes out. The upstream may have answered before.
    failure: Option<Error>,
}

/// What comes when the current piece is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// More of the body.
    Body,
    /// Nothing but to see it go.
    Flush,
    Done,
}

/// What goes out next: the head or a chunk's size, the body's bytes, and what ends them.
type Piece = Chain<Chain<Bytes, Bytes>, &'static [u8]>;

/// Why there is no answer, or no whole one.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum Error {
    #[error("sending")]
    Send(#[source] io::Error),
    #[error("receiving")]
    Receive(#[source] io::Error),
    #[error("the connection ended without an answer")]
    Closed,
    #[error("the connection ended within the answer")]
    Incomplete,
    #[error("the answer is not valid")]
    Invalid(#[from] Invalid),
    #[error("the caller's body")]
    Upload(#[source] UploadError),
}

/// A request without an answer.
pub(super) struct NoResponse {
    pub(super) error: Error,
    /// Not one byte came, and the connection is dead.
    pub(super) is_dead: bool,
    /// The body, when nothing of the request was sent.
    pub(super) unsent: Option<Upload>,
}

impl Connection {
    /// One that was made just now.
    pub(super) fn new(stream: Stream, open: OpenConnection, epoch: Epoch) -> Self {
        Self {
            stream,
            received: Bytes::new(),
            buffer: BytesMut::new(),
            room: FIRST_READ,
            made_at: Instant::now(),
            keep_idle: KEEP_IDLE,
            _open: open,
            epoch,
            timer: Timer::default(),
        }
    }

    /// Whether another request can go out on it: it is not too old, and the upstream has said nothing unasked, nor
    /// ended it.
    pub(super) fn is_good(&mut self, now: Instant) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        // tokio reads nothing for a task that has used up its budget.
        now.saturating_duration_since(self.made_at) < MAX_CONNECTION_AGE
            && has_budget_remaining()
            && Pin::new(&mut self.stream).poll_read(&mut cx, &mut ReadBuf::new(&mut [0])).is_pending()
    }

    /// Whether it outlived what has happened to the network.
    pub(super) fn is_good_in(&mut self, epoch: Epoch) -> bool {
        let is_good = self.epoch.is_good_in(epoch, self.stream.tcp());
        self.epoch = epoch;
        is_good
    }

    /// The answer that comes next is most likely as large as this one.
    fn expect(&mut self, body: &Body) {
        if let Some(length) = body.length() {
            self.room = if length > FIRST_READ as u64 { MOST_READ } else { FIRST_READ };
        }
    }

    /// Receives once, `most` bytes at most, and returns how many came; 0 is the end.
    fn poll_receive(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
        // What is left from before is the beginning of what comes now.
        let begun = mem::take(&mut self.received);
        self.buffer.reserve(begun.len() + most.min(self.room));
        self.buffer.extend_from_slice(&begun);
        let received = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buffer))?;
        if received >= self.room {
            self.room = MOST_READ;
        }
        self.received = self.buffer.split().freeze();
        Poll::Ready(Ok(received))
    }
}

impl RoundTrip {
    /// Begins one; nothing is sent before it is polled.
    pub(super) fn new(
        connection: Box<Connection>,
        message: &Message<'_>,
        host: &HeaderValue,
        token: &Token,
        upload: Upload,
    ) -> Self {
        Self {
            connection,
            sending: Sending::new(head_of(message, host, token), upload, message.is_chunked),
            is_of_head: message.parts.method == Method::HEAD,
            body: Body::NONE,
            is_persistent: false,
            has_received: false,
            is_early: false,
        }
    }

    /// Sends what can be sent. Ready when nothing more will be: all of it is sent, or no more of it can be.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sending.step != Step::Done
            && let Err(error) = ready!(self.sending.poll(&mut self.connection.stream, cx))
        {
            self.sending.step = Step::Done;
            self.sending.failure = Some(error);
        }
        Poll::Ready(())
    }

    /// Waits for the head of the answer, and sends meanwhile.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Error>> {
        self.send_on(cx)?;
        loop {
            match ready!(self.connection.poll_receive(cx, usize::MAX)) {
                Ok(0) if self.has_received => return Poll::Ready(Err(Error::Incomplete)),
                Ok(0) => return Poll::Ready(Err(self.sending.cause_of(Error::Closed))),
                Ok(_) => self.has_received = true,
                Err(error) => return Poll::Ready(Err(self.sending.cause_of(Error::Receive(error)))),
            }
            let next = Head::next(&mut self.connection.received, self.is_of_head)?;
            // Interim answers may come before.
            let has_begun = next.is_some() || !self.connection.received.is_empty();
            self.is_early |= has_begun && self.sending.step != Step::Done;
            if let Some((head, body)) = next {
                self.connection.expect(&body);
                let announced = head.keeps_idle.map(|keeps| keeps.saturating_sub(CLOSES_SOON));
                self.connection.keep_idle = announced.unwrap_or(KEEP_IDLE).min(KEEP_IDLE);
                (self.body, self.is_persistent) = (body, head.is_persistent && !self.is_early);
                return Poll::Ready(Ok(head));
            }
        }
    }

    /// How many bytes of the answer's body are left; none when it is not known.
    pub(super) fn length(&self) -> Option<u64> {
        self.body.length()
    }

    /// Waits for more of the answer's body, and sends meanwhile.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.send_on(cx)?;
        loop {
            match self.body.next(&mut self.connection.received)? {
                Next::Data(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Next::Trailers(fields) => return Poll::Ready(Some(Ok(Frame::trailers(fields)))),
                Next::Over => return Poll::Ready(None),
                Next::More => {}
            }
            let left = self.body.length().and_then(|left| usize::try_from(left).ok()).unwrap_or(usize::MAX);
            match ready!(self.connection.poll_receive(cx, left)) {
                Ok(0) if self.body == Body::UntilClose => return Poll::Ready(None),
                Ok(0) => return Poll::Ready(Some(Err(Error::Incomplete))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(Error::Receive(error)))),
            }
        }
    }

    /// For whatever is waited for.
    pub(super) fn timer(&mut self) -> &mut Timer {
        &mut self.connection.timer
    }

    /// The connection, for another request, when it is done with this one and goes on.
    pub(super) fn into_connection(self) -> Option<Box<Connection>> {
        let is_sent = self.sending.step == Step::Done && self.sending.failure.is_none();
        let mut connection = self.connection;
        connection.buffer = BytesMut::new();
        let goes_on =
            is_sent && self.body == Body::NONE && self.is_persistent && connection.received.is_empty();
        goes_on.then_some(connection)
    }

    /// What became of a request that failed before its answer.
    pub(super) fn no_response(self, error: Error) -> NoResponse {
        let is_dead =
            !self.has_received && matches!(error, Error::Send(_) | Error::Receive(_) | Error::Closed);
        let is_unsent = is_dead && !self.sending.has_begun;
        NoResponse { error, is_dead, unsent: is_unsent.then_some(self.sending.upload) }
    }

    /// Sends what can be sent. Without the rest of the caller's body there is nothing to wait for.
    fn send_on(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let _is_sent = self.poll_send(cx);
        self.sending.failure.take_if(|failure| matches!(failure, Error::Upload(_))).map_or(Ok(()), Err)
    }
}

impl Sending {
    fn new(mut head: Vec<u8>, upload: Upload, is_chunked: bool) -> Self {
        let step = match &upload {
            _ if is_chunked => Step::Body,
            Upload::Empty => Step::Flush,
            Upload::Whole(Some(bytes), None) if bytes.len() <= SMALL_BODY => {
                head.extend_from_slice(bytes);
                Step::Flush
            }
            Upload::Whole(..) | Upload::Stream(_) => Step::Body,
        };
        let piece = piece(head.into(), Bytes::new(), b"");
        Self { step, piece, upload, is_chunked, has_begun: false, failure: None }
    }

    fn poll(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            while self.piece.has_remaining() {
                ready!(poll_write(stream, cx, &mut self.piece)).map_err(Error::Send)?;
                self.has_begun = true;
            }
            match self.step {
                Step::Body => match self.upload.poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => self.piece = self.piece_of(frame),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Error::Upload(error))),
                    Poll::Ready(None) => self.piece = self.last_piece(&HeaderMap::new()),
                    Poll::Pending => {
                        // TLS keeps what the socket had no room for, and the next part may be long in coming.
                        ready!(Pin::new(&mut *stream).poll_flush(cx)).map_err(Error::Send)?;
                        return Poll::Pending;
                    }
                },
                Step::Flush => {
                    ready!(Pin::new(&mut *stream).poll_flush(cx)).map_err(Error::Send)?;
                    self.step = Step::Done;
                }
                Step::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    /// What goes out for a part of the body (RFC 9112, section 7.1).
    fn piece_of(&mut self, frame: Frame<Bytes>) -> Piece {
        match frame.into_data() {
            Ok(data) if self.is_chunked && !data.is_empty() => {
                piece(format!("{:x}\r\n", data.len()).into(), data, b"\r\n")
            }
            Ok(data) => piece(Bytes::new(), data, b""),
            Err(frame) => self.last_piece(&frame.into_trailers().unwrap_or_default()),
        }
    }

    /// What goes out behind the body.
    fn last_piece(&mut self, trailers: &HeaderMap) -> Piece {
        self.step = Step::Flush;
        let mut section = Vec::new();
        if self.is_chunked {
            section.extend_from_slice(b"0\r\n");
            for (name, value) in trailers {
                put_field(&mut section, name.as_str(), value.as_bytes());
            }
            section.extend_from_slice(b"\r\n");
        }
        piece(section.into(), Bytes::new(), b"")
    }

    /// That the request could not be sent is why there is no answer.
    fn cause_of(&mut self, error: Error) -> Error {
        self.failure.take().unwrap_or(error)
    }
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, into),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, parts),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// Writes once. What comes in one part is written without a list of parts.
fn poll_write(stream: &mut Stream, cx: &mut Context<'_>, piece: &mut Piece) -> Poll<io::Result<()>> {
    let mut stream = Pin::new(stream);
    let written = if piece.chunk().len() == piece.remaining() {
        let written = ready!(stream.as_mut().poll_write(cx, piece.chunk()))?;
        piece.advance(written);
        written
    } else {
        ready!(poll_write_buf(stream, cx, piece))?
    };
    Poll::Ready(if written > 0 { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) })
}

/// A request's head (RFC 9112, section 2.1): the caller's target byte for byte, and what may go up of its fields.
fn head_of(message: &Message<'_>, host: &HeaderValue, token: &Token) -> Vec<u8> {
    let target = message.parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let mut head = Vec::with_capacity(target.len() + USUAL_HEAD);
    head.extend_from_slice(message.parts.method.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(target.as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\n");
    headers::for_upstream(&message.parts.headers, message.is_chunked, host, token, |name, value| {
        put_field(&mut head, name.as_str(), value.as_bytes());
    });
    head.extend_from_slice(b"\r\n");
    head
}

fn piece(lead: Bytes, body: Bytes, end: &'static [u8]) -> Piece {
    lead.chain(body).chain(end)
}

/// Appends a field line (RFC 9112, section 5).
fn put_field(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::future::{pending, poll_fn};
    use std::net::Ipv4Addr;
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use hyper::body::Incoming;
    use hyper::server::conn::http1::Builder;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName};
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::net::TcpListener;
    use tokio::sync::oneshot;
    use tokio::time::timeout;
    use tokio_util::task::AbortOnDropHandle;

    use crate::metrics::Metrics;
    use crate::proxy::replay::{Begun, CallerBody};
    use crate::testing::certificates::Authority;
    use crate::token::{Lifetime, now};

    /// Both ends of a connection.
    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    /// A request on a connection.
    fn round_trip(stream: Stream, upload: Upload) -> RoundTrip {
        let connection = Connection::new(stream, Metrics::default().worker().upstream(), Epoch::default());
        let (parts, ()) = Request::post("/x").body(()).unwrap().into_parts();
        let (message, host) =
            (Message { parts: &parts, is_chunked: true }, HeaderValue::from_static("api.example"));
        let token = Token::new(1, &"the-token".into(), false, Lifetime::endless(now())).unwrap();
        RoundTrip::new(Box::new(connection), &message, &host, &token, upload)
    }

    /// The same without TLS, and the connection's far end.
    async fn begun(upload: Upload) -> (RoundTrip, TcpStream) {
        let (near, far) = connected().await;
        (round_trip(Stream::Plain(near), upload), far)
    }

    /// A body of so many bytes 7 that goes on behind them, for as long as the second value lives.
    async fn paused(length: usize) -> (Upload, impl Sized) {
        let (mut caller, ours) = duplex(1 << 20);
        let (tells, told) = oneshot::channel();
        let tells = Mutex::new(Some(tells));
        let service = service_fn(move |request: Request<Incoming>| {
            let _told = tells.lock().unwrap().take().map(|tells| tells.send(request.into_body()));
            pending::<io::Result<Response<String>>>()
        });
        let serving = Builder::new().serve_connection(TokioIo::new(ours), service);
        let serving = AbortOnDropHandle::new(tokio::task::spawn(serving));
        let head = format!("POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n");
        caller.write_all(&[head.as_bytes(), &vec![7; length]].concat()).await.unwrap();
        let body = CallerBody::new(told.await.unwrap(), None, Duration::ZERO, Metrics::default().worker());
        let (upload, ..) = Upload::stream(Begun::default(), body, 0);
        (upload, (caller, serving))
    }

    /// A request behind TLS on a socket with little room, and the connection's far end.
    async fn begun_over_tls(upload: Upload) -> (RoundTrip, impl AsyncRead + Unpin) {
        let (near, far) = connected().await;
        SockRef::from(&near).set_send_buffer_size(1).unwrap();
        SockRef::from(&far).set_recv_buffer_size(1).unwrap();
        let authority = Authority::new("authority").unwrap();
        let acceptor = authority.acceptor(Ipv4Addr::LOCALHOST.into(), None).unwrap();
        let root = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
        let config = Arc::new(crate::tls::client(&[root], &[]).unwrap());
        let name = ServerName::try_from("localhost").unwrap();
        let (near, far) = tokio::join!(TlsStream::connect(config, name, near), acceptor.accept(far));
        (round_trip(Stream::Tls(near.unwrap()), upload), far.unwrap())
    }

    /// TLS holds the last part, whatever its size, in the one case or the other.
    #[tokio::test]
    async fn a_body_that_pauses_goes_up_to_its_last_byte_while_nobody_takes_the_answer() {
        for length in (10_000..100_000).step_by(10_000) {
            let (upload, _caller) = paused(length).await;
            let (mut trip, mut far) = begun_over_tls(upload).await;

            tokio::select! {
                () = poll_fn(|cx| trip.poll_send(cx)) => panic!("the body has not ended"),
                all = timeout(Duration::from_secs(20), sevens(&mut far, length)) => all.expect("all of it goes up"),
            }
        }
    }

    /// Reads until so many bytes 7 have come.
    async fn sevens(far: &mut (impl AsyncRead + Unpin), mut left: usize) {
        let mut buffer = [0; 1000];
        while left > 0 {
            let read = far.read(&mut buffer).await.unwrap();
            left -= buffer[..read].iter().filter(|byte| **byte == 7).count();
        }
    }

    #[tokio::test]
    async fn an_answer_that_came_before_the_connection_broke_is_heard() {
        let whole = Bytes::from(vec![b'x'; 1 << 20]);
        let (mut trip, mut far) = begun(Upload::Whole(Some(whole), None)).await;
        far.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        far.set_zero_linger().unwrap();
        drop(far);

        poll_fn(|cx| trip.poll_send(cx)).await;
        let is_broken = trip.sending.failure.is_some();
        let head = poll_fn(|cx| trip.poll_head(cx)).await.unwrap();

        assert!(is_broken, "the rest could not be sent");
        assert_eq!(head.status, 413);
        assert!(trip.into_connection().is_none());
    }

    #[tokio::test]
    async fn a_body_goes_up_in_chunks_with_its_trailers_behind() {
        let trailers: HeaderMap = [("x-sum".parse().unwrap(), "7".parse().unwrap())].into_iter().collect();
        let body = Bytes::from_static(b"ten bytes!");
        let (mut trip, mut far) = begun(Upload::Whole(Some(body), Some(Box::new(trailers)))).await;
        let expected = "POST /x HTTP/1.1\r\nhost: api.example\r\ntransfer-encoding: chunked\r\n\
                        authorization: Bearer the-token\r\n\r\na\r\nten bytes!\r\n0\r\nx-sum: 7\r\n\r\n";

        poll_fn(|cx| trip.poll_send(cx)).await;
        drop(trip);
        let mut sent = String::new();
        far.read_to_string(&mut sent).await.unwrap();

        assert_eq!(sent, expected);
    }
}
