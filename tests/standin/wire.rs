//! HTTP/1.1 on one connection: read strictly, kept byte for byte, answered as told.
//!
//! Written by hand and not with hyper: the raw head, malformed answers, resets and the bytes that
//! are left over when a connection ends are what the tests are about.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use ring::digest;
use tokio::io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_rustls::server::TlsStream;

use super::reply::{Answer, Reply, Then, Wanted, write_reply};
use super::request::{
    BrokeOff, Fields, Framing, Head, Incoming, RecordedRequest, Request, SharedRecord, latin1, lock,
    parse_field, parse_head,
};

const HEAD_LIMIT: usize = 256 * 1024;
const KEPT_BODY: usize = 64 * 1024;
const KEPT_STREAM: usize = 1024 * 1024;

/// What answers the requests of a listener.
pub(crate) type Service =
    Arc<dyn Fn(Request) -> std::pin::Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync>;

/// The byte stream under a connection.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {
    /// The socket at the bottom.
    fn socket(&self) -> &TcpStream;
}

impl Transport for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Transport for TlsStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// How a listener behaves beside its routes.
#[derive(Debug, Default)]
pub(crate) struct Habits {
    /// A peer that shut down its sending side is gone and gets no answer.
    pub(crate) no_half_close: bool,
    /// Idle connections are closed after a random time up to so many milliseconds; 0 is never.
    pub(crate) idle_close_ms: AtomicU64,
}

impl Habits {
    /// How long a connection may stay idle after the answer that was just sent; none is for ever.
    pub(crate) fn idle_limit(&self) -> Option<Duration> {
        match self.idle_close_ms.load(Ordering::Relaxed) {
            0 => None,
            most => Some(Duration::from_millis(random_u64() % (most + 1))),
        }
    }
}

/// What a connection brought.
#[derive(Clone, Debug)]
pub(crate) struct RecordedConnection {
    /// Counts the connections of this listener, from 0.
    pub(crate) id: usize,
    /// The first MiB of everything that arrived, beneath it all but TLS.
    pub(crate) bytes: Vec<u8>,
    /// What followed the last complete request, when the connection ended, or came after it was closed.
    pub(crate) left_over: Vec<u8>,
    /// The peer has shut down its sending side, or is gone.
    pub(crate) ended_by_peer: bool,
}

/// Everything a listener received.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    requests: Mutex<Vec<SharedRecord>>,
    connections: Mutex<Vec<Arc<Mutex<RecordedConnection>>>>,
}

impl Journal {
    pub(crate) fn requests(&self) -> Vec<RecordedRequest> {
        lock(&self.requests).iter().map(|request| lock(request).clone()).collect()
    }

    pub(crate) fn clear(&self) {
        lock(&self.requests).clear();
    }

    /// Forgets the bytes of all connections.
    pub(crate) fn clear_bytes(&self) {
        for connection in lock(&self.connections).iter() {
            let mut connection = lock(connection);
            (connection.bytes, connection.left_over) = (Vec::new(), Vec::new());
        }
    }

    pub(crate) fn connections(&self) -> Vec<RecordedConnection> {
        lock(&self.connections).iter().map(|connection| lock(connection).clone()).collect()
    }

    pub(crate) fn connection_count(&self) -> usize {
        lock(&self.connections).len()
    }

    pub(crate) fn open_connection(&self) -> Arc<Mutex<RecordedConnection>> {
        let mut connections = lock(&self.connections);
        let id = connections.len();
        let connection =
            RecordedConnection { id, bytes: Vec::new(), left_over: Vec::new(), ended_by_peer: false };
        let connection = Arc::new(Mutex::new(connection));
        connections.push(Arc::clone(&connection));
        connection
    }

    pub(crate) fn add(&self, request: RecordedRequest) -> SharedRecord {
        let shared = Arc::new(Mutex::new(request));
        lock(&self.requests).push(Arc::clone(&shared));
        shared
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve(stream: Box<dyn Transport>, service: &Service, journal: &Journal, habits: &Habits) {
    let connection = journal.open_connection();
    let (read, mut write) = io::split(stream);
    let mut reader = Reader { io: read, buffer: BytesMut::new(), connection };

    let mut idle_limit = None;
    let then = loop {
        match exchange(&mut reader, &mut write, service, journal, habits, idle_limit).await {
            Then::Continue => idle_limit = habits.idle_limit(),
            then => break then,
        }
    };

    lock(&reader.connection).left_over = reader.buffer.to_vec();
    let stream = reader.io.unsplit(write);
    match then {
        Then::Reset => stream.socket().set_zero_linger().ok().unwrap_or_default(),
        Then::Close | Then::Continue | Then::Stall => linger(stream, &reader.connection).await,
    }
}

/// One request and what becomes of it.
async fn exchange(
    reader: &mut Reader,
    write: &mut WriteHalf<Box<dyn Transport>>,
    service: &Service,
    journal: &Journal,
    habits: &Habits,
    idle_limit: Option<Duration>,
) -> Then {
    let Some(raw) = reader.head(idle_limit).await else { return Then::Close };
    let id = lock(&reader.connection).id;
    let head = match parse_head(&raw) {
        Ok(head) => head,
        Err(violation) => {
            journal.add(malformed(id, raw, violation));
            let wanted = Wanted { head_only: false, keep_alive: false, one_dot_zero: false };
            let refusal = Reply::Answer(Answer::status(400));
            return write_reply(write, refusal, wanted).await.unwrap_or(Then::Close);
        }
    };
    let record = journal.add(recorded(id, raw, &head));
    let (body, feeder, asked) = Incoming::channel();
    let request = Request { head: lock(&record).clone(), body };

    let answered = Notify::new();
    let mut reading = pin!(async {
        if reader.body(head.framing, feeder, &record).await.is_ok() {
            reader.watch(habits.no_half_close, &answered).await
        } else {
            Peer::Gone
        }
    });
    let mut answering = pin!(async {
        let then = answer(write, service(request), asked, &head, &record).await;
        answered.notify_one();
        then
    });
    let mut then = None;
    loop {
        tokio::select! {
            // What was read is recorded before an answer can end the connection.
            biased;
            peer = &mut reading => return then.filter(|_| peer == Peer::There).unwrap_or(Then::Close),
            done = &mut answering, if then.is_none() => match done {
                Then::Continue => then = Some(done),
                Then::Close | Then::Reset | Then::Stall => return done,
            },
        }
    }
}

async fn answer(
    write: &mut WriteHalf<Box<dyn Transport>>,
    service: impl Future<Output = Reply>,
    mut asked: oneshot::Receiver<()>,
    head: &Head,
    record: &SharedRecord,
) -> Then {
    let mut service = pin!(service);
    let mut asking = head.expects_continue;
    let mut continued = !asking;
    let reply = loop {
        tokio::select! {
            biased;
            wanted = &mut asked, if asking => {
                asking = false;
                if wanted.is_ok() {
                    continued = write.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_ok();
                    write.flush().await.ok();
                }
            }
            reply = &mut service => break reply,
        }
    };
    if let Reply::Answer(answer) = &reply {
        lock(record).status = Some(answer.status);
    }
    let wanted = Wanted {
        head_only: head.method == "HEAD",
        keep_alive: head.keep_alive && continued,
        one_dot_zero: head.version == "HTTP/1.0",
    };
    write_reply(write, reply, wanted).await.unwrap_or(Then::Close)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    There,
    Gone,
}

struct Reader {
    io: ReadHalf<Box<dyn Transport>>,
    buffer: BytesMut,
    connection: Arc<Mutex<RecordedConnection>>,
}

impl Reader {
    /// The next head with its empty line; none when the connection ends, or stays idle too long, before it.
    async fn head(&mut self, idle: Option<Duration>) -> Option<Vec<u8>> {
        let mut seen = 0;
        loop {
            if let Some(end) = find(&self.buffer[seen..], b"\r\n\r\n") {
                return Some(self.buffer.split_to(seen + end + 4).to_vec());
            }
            seen = self.buffer.len().saturating_sub(3);
            if seen > HEAD_LIMIT {
                return None;
            }
            let arrived = match idle.filter(|_| self.buffer.is_empty()) {
                Some(idle) => tokio::time::timeout(idle, self.fill()).await.ok()?,
                None => self.fill().await,
            };
            if arrived.ok()? == 0 {
                return None;
            }
        }
    }

    /// Reads the content, records it, and passes it on while somebody wants it.
    async fn body(&mut self, framing: Framing, feeder: Feeder, record: &SharedRecord) -> io::Result<()> {
        let mut content = Content { feeder, digest: digest::Context::new(&digest::SHA256), record };
        let outcome = match framing {
            Framing::Length(length) => self.piece(length, &mut content).await.map(|()| Fields::new()),
            Framing::Chunked => self.chunks(&mut content).await,
        };
        content.end(outcome).await
    }

    async fn chunks(&mut self, content: &mut Content<'_>) -> io::Result<Fields> {
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default();
            let hex = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_hexdigit());
            let size = u64::from_str_radix(size, 16).ok().filter(|_| hex);
            let size = size.ok_or_else(|| invalid(format!("a chunk size that is none: {line:?}")))?;
            if size == 0 {
                break;
            }
            self.piece(size, content).await?;
            if !self.line().await?.is_empty() {
                return Err(invalid("a chunk longer than its size".to_owned()));
            }
        }
        let mut trailers = Fields::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(trailers);
            }
            trailers.push(parse_field(&line).map_err(invalid)?);
        }
    }

    async fn piece(&mut self, mut length: u64, content: &mut Content<'_>) -> io::Result<()> {
        while length > 0 {
            if self.buffer.is_empty() && self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let take = self.buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            length -= u64::try_from(take).unwrap_or(length);
            content.add(self.buffer.split_to(take).freeze()).await;
        }
        Ok(())
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let line = latin1(&self.buffer.split_to(end));
                self.buffer.advance(2);
                return Ok(line);
            }
            if self.buffer.len() > HEAD_LIMIT {
                return Err(invalid("a line without end".to_owned()));
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Until the answer is written: whether the peer is still there.
    async fn watch(&mut self, no_half_close: bool, answered: &Notify) -> Peer {
        loop {
            if self.buffer.len() > HEAD_LIMIT {
                answered.notified().await;
                return Peer::There;
            }
            tokio::select! {
                biased;
                () = answered.notified() => return Peer::There,
                arrived = self.fill() => match arrived {
                    Ok(0) if no_half_close => return Peer::Gone,
                    Ok(0) => {
                        answered.notified().await;
                        return Peer::There;
                    }
                    Ok(_) => {}
                    Err(_) => return Peer::Gone,
                },
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(64 * 1024);
        let outcome = self.io.read_buf(&mut self.buffer).await;
        lock(&self.connection).ended_by_peer = !matches!(outcome, Ok(1..));
        let arrived = outcome?;
        let mut connection = lock(&self.connection);
        let kept = arrived.min(KEPT_STREAM.saturating_sub(connection.bytes.len()));
        let start = self.buffer.len() - arrived;
        connection.bytes.extend_from_slice(&self.buffer[start..start + kept]);
        drop(connection);
        Ok(arrived)
    }
}

type Feeder = mpsc::Sender<Result<Bytes, BrokeOff>>;

/// The content of a request while it arrives.
struct Content<'a> {
    feeder: Feeder,
    digest: digest::Context,
    record: &'a SharedRecord,
}

impl Content<'_> {
    async fn add(&mut self, piece: Bytes) {
        self.digest.update(&piece);
        {
            let mut record = lock(self.record);
            record.body_length += u64::try_from(piece.len()).unwrap_or_default();
            let kept = piece.len().min(KEPT_BODY.saturating_sub(record.body.len()));
            record.body.extend_from_slice(&piece[..kept]);
        }
        self.feeder.send(Ok(piece)).await.ok();
    }

    async fn end(self, outcome: io::Result<Fields>) -> io::Result<()> {
        let outcome = {
            let mut record = lock(self.record);
            record.body_sha256 = hex(self.digest.finish().as_ref());
            record.complete = outcome.is_ok();
            record.violation = match &outcome {
                Err(error) if error.kind() == io::ErrorKind::InvalidData => Some(error.to_string()),
                _ => None,
            };
            outcome.map(|trailers| record.trailers = trailers)
        };
        if outcome.is_err() {
            self.feeder.send(Err(BrokeOff)).await.ok();
        }
        outcome
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A number that nobody can foresee.
pub(crate) fn random_u64() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(Instant::now())
}

fn recorded(connection: usize, raw_head: Vec<u8>, head: &Head) -> RecordedRequest {
    RecordedRequest {
        method: head.method.clone(),
        target: head.target.clone(),
        version: head.version.clone(),
        fields: head.fields.clone(),
        violation: None,
        ..malformed(connection, raw_head, String::new())
    }
}

fn malformed(connection: usize, raw_head: Vec<u8>, violation: String) -> RecordedRequest {
    RecordedRequest {
        connection,
        at: Instant::now(),
        method: String::new(),
        target: String::new(),
        version: String::new(),
        fields: Vec::new(),
        raw_head,
        body: Vec::new(),
        body_length: 0,
        body_sha256: String::new(),
        trailers: Vec::new(),
        complete: false,
        violation: Some(violation),
        status: None,
    }
}

/// Closes without losing what the peer has not read yet. What the peer still sends is left over.
async fn linger(mut stream: Box<dyn Transport>, connection: &Mutex<RecordedConnection>) {
    if stream.shutdown().await.is_ok() {
        let mut late = vec![0; 16 * 1024];
        let drain = async {
            while let Ok(read @ 1..) = stream.read(&mut late).await {
                let mut connection = lock(connection);
                let kept = read.min(KEPT_STREAM.saturating_sub(connection.left_over.len()));
                connection.left_over.extend_from_slice(&late[..kept]);
            }
        };
        tokio::time::timeout(Duration::from_secs(1), drain).await.ok();
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
