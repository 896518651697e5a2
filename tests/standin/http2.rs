//! HTTP/2 on a TLS connection, into the same routes and the same journal. Raw answers, resets of the connection and
//! interim answers are HTTP/1.1 only.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as HttpBody, Frame};
use hyper::body::Incoming as HyperIncoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ring::digest;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::server::TlsStream;

use super::reply::{Answer, Body, Reply, Sent};
use super::request::{Fields, Incoming, RecordedRequest, Request, SharedRecord, lock};
use super::wire::{Content, Feeder, Habits, Journal, Service};

/// Serves one connection to its end; an idle one is ended with GOAWAY, as the habits say.
pub(crate) async fn serve(
    stream: TlsStream<TcpStream>,
    service: Service,
    journal: Arc<Journal>,
    habits: &Habits,
) {
    let record = journal.open_connection();
    let socket = stream.get_ref().0.as_fd().try_clone_to_owned();
    let connection = lock(&record).id;
    let (answered, when_answered) = watch::channel(None);
    let answers = service_fn(move |request| {
        let (service, journal, answered) = (Arc::clone(&service), Arc::clone(&journal), answered.clone());
        async move {
            let answer = answer(request, connection, &service, &journal).await;
            answered.send_replace(Some(Instant::now()));
            answer
        }
    });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), answers));
    tokio::select! {
        _ended = &mut serving => {}
        () = idle(when_answered, habits) => {
            serving.as_mut().graceful_shutdown();
            serving.await.ok();
        }
    }
    if let Ok(socket) = socket {
        linger(socket).await.ok();
    }
    lock(&record).ended_by_peer = true;
}

/// Takes what the peer still sends: a socket that is closed before that loses what the peer has not read yet.
async fn linger(socket: OwnedFd) -> io::Result<()> {
    let mut socket = TcpStream::from_std(socket.into())?;
    let drain = async { while let Ok(1..) = socket.read(&mut [0; 4096]).await {} };
    tokio::time::timeout(Duration::from_secs(1), drain).await.ok();
    Ok(())
}

/// Until the connection has been idle for longer than it may.
async fn idle(mut when_answered: watch::Receiver<Option<Instant>>, habits: &Habits) {
    while when_answered.changed().await.is_ok() {
        let Some(limit) = habits.idle_limit() else { continue };
        if tokio::time::timeout(limit, when_answered.changed()).await.is_err() {
            return;
        }
        when_answered.mark_changed();
    }
    std::future::pending::<()>().await;
}

async fn answer(
    request: http::Request<HyperIncoming>,
    connection: usize,
    service: &Service,
    journal: &Journal,
) -> Result<http::Response<Outgoing>, io::Error> {
    let (parts, content) = request.into_parts();
    let record = journal.add(recorded(connection, &parts));
    let (body, feeder, _) = Incoming::channel();
    drop(tokio::spawn(read(content, feeder, Arc::clone(&record))));
    let head = lock(&record).clone();
    match service(Request { head, body }).await {
        Reply::Answer(answer) => {
            lock(&record).status = Some(answer.status);
            response(answer)
        }
        Reply::Raw { .. } => response(Answer::full(500, "raw answers are HTTP/1.1 only")),
        Reply::Hang => std::future::pending().await,
        Reply::End(_) => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

async fn read(mut content: HyperIncoming, feeder: Feeder, record: SharedRecord) {
    let mut into = Content { feeder, digest: digest::Context::new(&digest::SHA256), record: &record };
    let mut trailers = Fields::new();
    let outcome = loop {
        match std::future::poll_fn(|context| Pin::new(&mut content).poll_frame(context)).await {
            None => break Ok(trailers),
            Some(Err(error)) => break Err(io::Error::other(error)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(piece) => into.add(piece).await,
                Err(frame) => trailers = frame.into_trailers().map(|map| fields_of(&map)).unwrap_or_default(),
            },
        }
    };
    into.end(outcome).await.ok();
}

fn recorded(connection: usize, parts: &http::request::Parts) -> RecordedRequest {
    RecordedRequest {
        connection,
        at: Instant::now(),
        method: parts.method.to_string(),
        target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        version: "HTTP/2.0".to_owned(),
        fields: fields_of(&parts.headers),
        raw_head: Vec::new(),
        body: Vec::new(),
        body_length: 0,
        body_sha256: String::new(),
        trailers: Fields::new(),
        complete: false,
        violation: None,
        status: None,
    }
}

fn response(answer: Answer) -> Result<http::Response<Outgoing>, io::Error> {
    let body = match answer.body {
        Body::Full(content) => {
            Outgoing { first: Some(content.into()), pieces: None, trailers: None, sent: answer.sent }
        }
        Body::Stream { pieces, trailers, .. } => {
            let trailers = Some(map_of(&trailers)?).filter(|map| !map.is_empty());
            Outgoing { first: None, pieces: Some(pieces), trailers, sent: answer.sent }
        }
    };
    let mut response = http::Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(answer.status).map_err(io::Error::other)?;
    *response.headers_mut() = map_of(&answer.fields)?;
    Ok(response)
}

fn fields_of(map: &HeaderMap) -> Fields {
    map.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect()
}

fn map_of(fields: &[(String, String)]) -> io::Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(io::Error::other)?;
        map.append(name, HeaderValue::from_bytes(value.as_bytes()).map_err(io::Error::other)?);
    }
    Ok(map)
}

struct Outgoing {
    first: Option<Bytes>,
    pieces: Option<mpsc::Receiver<Bytes>>,
    trailers: Option<HeaderMap>,
    sent: Sent,
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if let Some(pieces) = &mut self.pieces {
            match pieces.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                Poll::Ready(None) => self.pieces = None,
            }
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if let Some(sent) = self.sent.0.take() {
            sent();
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.first.as_ref().is_none_or(Bytes::is_empty)
            && self.pieces.is_none()
            && self.trailers.is_none()
            && self.sent.0.is_none()
    }
}
