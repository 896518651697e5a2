//! A TLS connection to a server, made for large answers: rustls decrypts bytes where the kernel put them, in one buffer
//! of the thread that stays in the processor's caches, and a connection that waits holds none. The streams of
//! tokio-rustls read 4 KiB at a time, or through a buffer of their own each.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use rustls::ClientConfig;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, ReadTraffic, UnbufferedStatus, WriteTraffic,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a thread reads into and encrypts into: the largest piece and what its records add, behind a record's beginning.
const ROOM: usize = 192 * 1024;
/// Received at least, however little is asked for: each read and each write may wake somebody on another core.
const LEAST_PIECE: usize = 64 * 1024;
/// Encrypted at a time.
const MOST_SENT: usize = 128 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; ROOM].into_boxed_slice());
}

/// The client's end of a connection whose server has shown a certificate that is trusted.
///
/// A connection that ends without a `close_notify` was cut (RFC 8446, section 6.1): reading fails with
/// [`io::ErrorKind::UnexpectedEof`], so that no part passes for the whole.
pub struct TlsStream<T> {
    io: T,
    tls: UnbufferedClientConnection,
    /// Received: the beginning of a record, or of a handshake message that goes on in the next one.
    begun: Vec<u8>,
    /// Decrypted, and more than was asked for.
    plain: BytesMut,
    /// Encrypted, and more than the socket has room for.
    unsent: BytesMut,
    end: Option<End>,
}

/// Why nothing more comes.
enum End {
    Closed,
    Cut,
    Broken(rustls::Error),
}

impl<T: AsyncRead + AsyncWrite + Unpin> TlsStream<T> {
    /// Makes a connection over `io` to the server of that name, which has to prove that it is the one.
    ///
    /// # Errors
    /// What the transport says, or a [`rustls::Error`] within the [`io::Error`].
    pub async fn connect(config: Arc<ClientConfig>, name: ServerName<'static>, io: T) -> io::Result<Self> {
        let tls = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
        let (begun, plain, unsent) = (Vec::new(), BytesMut::new(), BytesMut::new());
        let mut stream = Self { io, tls, begun, plain, unsent, end: None };
        stream.process(&mut [], &mut ReadBuf::new(&mut []), |_| ());
        poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    /// The transport.
    pub const fn get_ref(&self) -> &T {
        &self.io
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let sent = self.poll_send(cx);
            if let Some(end) = &self.end {
                return Poll::Ready(Err(end.error()));
            }
            if !self.tls.is_handshaking() || matches!(sent, Poll::Ready(Err(_))) {
                return sent;
            }
            ready!(self.poll_receive(cx, &mut ReadBuf::new(&mut [])))?;
        }
    }

    /// Receives once, and decrypts all records that are whole.
    fn poll_receive(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let begun = self.begun.len();
            // A record adds 22 bytes to 16 KiB.
            let piece = into.remaining() + into.remaining() / 512;
            let until = ROOM.min(begun + piece.max(LEAST_PIECE));
            let mut received = ReadBuf::new(&mut scratch[begun..until]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut received))?;
            let received = received.filled().len();
            if received == 0 {
                self.end = Some(End::Cut);
                return Poll::Ready(Ok(()));
            }
            scratch[..begun].copy_from_slice(&self.begun);
            let records = &mut scratch[..begun + received];
            let (done, _) = self.process(records, into, |_| ());
            // Mostly nothing is left, and nothing held.
            self.begun = records[done..].to_vec();
            Poll::Ready(Ok(()))
        })
    }

    /// Goes through `records` up to where one is not whole: gives what is in them, and does `write` if the connection
    /// is made by then. Returns how many bytes are done with.
    fn process<R>(
        &mut self,
        records: &mut [u8],
        into: &mut ReadBuf<'_>,
        write: impl FnOnce(WriteTraffic<'_, ClientConnectionData>) -> R,
    ) -> (usize, Option<R>) {
        let mut done = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(&mut records[done..]);
            match state {
                Ok(ConnectionState::ReadTraffic(traffic)) => {
                    discard += hand_out(traffic, into, &mut self.plain);
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut self.unsent),
                // It goes out before anything that is written from now on.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.end = Some(End::Closed),
                Ok(ConnectionState::WriteTraffic(traffic)) => return (done + discard, Some(write(traffic))),
                Ok(_) => return (done + discard, None),
                Err(error) => {
                    done += discard;
                    self.break_off(error, &mut records[done..]);
                    return (done, None);
                }
            }
            done += discard;
        }
    }

    /// Nothing is read or written any more, and the server is told why.
    fn break_off(&mut self, error: rustls::Error, rest: &mut [u8]) {
        self.end = Some(End::Broken(error));
        if let Ok(ConnectionState::EncodeTlsData(alert)) = self.tls.process_tls_records(rest).state {
            encode(alert, &mut self.unsent);
        }
    }

    /// Encrypts what there is to say into `sealed`, which has room for it. Returns how long it is.
    fn seal(
        &mut self,
        sealed: &mut [u8],
        say: impl FnOnce(WriteTraffic<'_, ClientConnectionData>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> io::Result<usize> {
        if let Some(End::Broken(error)) = &self.end {
            return Err(invalid(error.clone()));
        }
        let mut begun = mem::take(&mut self.begun);
        let (done, said) =
            self.process(&mut begun, &mut ReadBuf::new(&mut []), |traffic| say(traffic, sealed));
        begun.drain(..done);
        self.begun = begun;
        said.ok_or(io::ErrorKind::BrokenPipe)?.map_err(io::Error::other)
    }

    /// Sends what there is room for, and keeps the rest.
    fn send(&mut self, cx: &mut Context<'_>, mut bytes: &[u8]) -> io::Result<()> {
        if let Poll::Ready(sent) = self.poll_send(cx) {
            sent?;
            if let Poll::Ready(sent) = poll_write_all(&mut self.io, cx, &mut bytes) {
                return sent;
            }
        }
        self.unsent.extend_from_slice(bytes);
        Ok(())
    }

    /// Sends what was kept.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.unsent.is_empty() {
            ready!(poll_write_all(&mut self.io, cx, &mut self.unsent))?;
            self.unsent = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Gives what was decrypted before.
    fn give(&mut self, into: &mut ReadBuf<'_>) {
        let given = put(into, &self.plain);
        self.plain.advance(given);
        if self.plain.is_empty() {
            self.plain = BytesMut::new();
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        // An alert, say. That it can't be sent is told to who writes.
        let _sent = this.poll_send(cx);
        if !this.plain.is_empty() {
            this.give(into);
        }
        while into.filled().len() == before && into.remaining() > 0 {
            match &this.end {
                None => ready!(this.poll_receive(cx, into))?,
                Some(End::Closed) => break,
                Some(end) => return Poll::Ready(Err(end.error())),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        SCRATCH.with_borrow_mut(|scratch| {
            let (mut taken, mut sealed) = (0, 0);
            for part in parts {
                let part = &part[..part.len().min(MOST_SENT - taken)];
                sealed +=
                    this.seal(&mut scratch[sealed..], |mut traffic, into| traffic.encrypt(part, into))?;
                taken += part.len();
            }
            this.send(cx, &scratch[..sealed])?;
            Poll::Ready(Ok(taken))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    /// Ends it with a `close_notify`.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        SCRATCH.with_borrow_mut(|scratch| {
            // Once it was said, or nothing can be said, there is nothing to say.
            let sealed =
                this.seal(scratch, |mut traffic, into| traffic.queue_close_notify(into)).unwrap_or(0);
            this.send(cx, &scratch[..sealed])
        })?;
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

impl End {
    fn error(&self) -> io::Error {
        match self {
            Self::Closed | Self::Cut => {
                io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was cut")
            }
            Self::Broken(error) => invalid(error.clone()),
        }
    }
}

/// Gives what was decrypted, and keeps what is too much. Returns how many more bytes are done with.
fn hand_out(
    mut traffic: ReadTraffic<'_, '_, ClientConnectionData>,
    into: &mut ReadBuf<'_>,
    kept: &mut BytesMut,
) -> usize {
    let mut done = 0;
    while let Some(Ok(record)) = traffic.next_record() {
        let given = put(into, record.payload);
        kept.extend_from_slice(&record.payload[given..]);
        done += record.discard;
    }
    done
}

/// Copies what fits. Returns how much that is.
fn put(into: &mut ReadBuf<'_>, bytes: &[u8]) -> usize {
    let fits = bytes.len().min(into.remaining());
    into.put_slice(&bytes[..fits]);
    fits
}

/// Writes as long as there is room; what is not written stays in `bytes`.
fn poll_write_all<T: AsyncWrite + Unpin>(
    io: &mut T,
    cx: &mut Context<'_>,
    bytes: &mut impl Buf,
) -> Poll<io::Result<()>> {
    while bytes.has_remaining() {
        match ready!(Pin::new(&mut *io).poll_write(cx, bytes.chunk()))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            sent => bytes.advance(sent),
        }
    }
    Poll::Ready(Ok(()))
}

fn encode(mut data: EncodeTlsData<'_, ClientConnectionData>, into: &mut BytesMut) {
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        let before = into.len();
        into.resize(before + size.required_size, 0);
        data.encode(&mut into[before..]).expect("it has the room that it asked for");
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::Ipv4Addr;

    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::version::{TLS12, TLS13};
    use rustls::{AlertDescription, RootCertStore, ServerConfig, SupportedProtocolVersion};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio_rustls::TlsAcceptor;

    use crate::testing::certificates::{Authority, TlsDefect};
    use crate::testing::dice::Dice;

    type Client = TlsStream<DuplexStream>;
    type Server = tokio_rustls::server::TlsStream<DuplexStream>;

    /// A connection whose transport holds so many bytes, and whose server sends records of at most such a size.
    struct Line {
        version: &'static SupportedProtocolVersion,
        transport: usize,
        record: Option<usize>,
        defect: Option<TlsDefect>,
    }

    impl Default for Line {
        fn default() -> Self {
            Self { version: &TLS13, transport: 1 << 20, record: None, defect: None }
        }
    }

    impl Line {
        fn configured(self) -> (Arc<ClientConfig>, TlsAcceptor) {
            let authority = Authority::new("authority").unwrap();
            let acceptor = authority.acceptor(Ipv4Addr::LOCALHOST.into(), self.defect).unwrap();
            let mut config = ServerConfig::clone(acceptor.config());
            config.max_fragment_size = self.record;
            if self.transport < 1000 {
                // Nobody reads them yet, and there is no room to leave them.
                config.send_tls13_tickets = 0;
            }
            let acceptor = TlsAcceptor::from(Arc::new(config));

            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
            let mut config = ClientConfig::builder_with_provider(crate::tls::provider())
                .with_protocol_versions(&[self.version])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            (Arc::new(config), acceptor)
        }

        /// Connects both ends.
        async fn tried(self) -> (io::Result<Client>, io::Result<Server>) {
            let (near, far) = duplex(self.transport);
            let (config, acceptor) = self.configured();
            let name = ServerName::try_from("localhost").unwrap();
            tokio::join!(Client::connect(config, name, near), acceptor.accept(far))
        }

        async fn made(self) -> (Client, Server) {
            let (client, server) = self.tried().await;
            (client.unwrap(), server.unwrap())
        }
    }

    fn some_bytes(dice: &mut Dice, length: usize) -> Vec<u8> {
        (0..length).map(|_| dice.next().to_le_bytes()[0]).collect()
    }

    #[tokio::test]
    async fn all_bytes_arrive_in_order_whatever_the_pieces() {
        for (transport, record) in [(1, Some(64)), (100, None), (20_000, None), (1 << 20, Some(5000))] {
            both_ways(Line { version: &TLS12, transport, record, ..Line::default() }).await;
            both_ways(Line { version: &TLS13, transport, record, ..Line::default() }).await;
        }
    }

    /// Sends in large parts, and reads in all sizes.
    async fn both_ways(line: Line) {
        let mut dice = Dice(1);
        let length = 300 * line.transport.clamp(50, 1000);
        let (up, down) = (some_bytes(&mut dice, length), some_bytes(&mut dice, length));
        let (client, server) = line.made().await;
        assert_eq!(client.tls.alpn_protocol(), Some(&b"http/1.1"[..]));

        let (mut from_server, mut to_server) = tokio::io::split(client);
        let (mut from_client, mut to_client) = tokio::io::split(server);
        let asks = async {
            for part in up.chunks(1 + length / 3) {
                to_server.write_all(part).await.unwrap();
            }
            to_server.shutdown().await.unwrap();
        };
        let answers = async {
            to_client.write_all(&down).await.unwrap();
            to_client.shutdown().await.unwrap();
        };
        let reads = async {
            let (mut came, mut buffer) = (Vec::new(), vec![0; 30_000]);
            let mut read = 1;
            while read > 0 {
                let size = 1 + dice.below(buffer.len());
                read = from_server.read(&mut buffer[..size]).await.unwrap();
                came.extend_from_slice(&buffer[..read]);
            }
            came
        };
        let mut asked = Vec::new();
        let ((), (), came, all) = tokio::join!(asks, answers, reads, from_client.read_to_end(&mut asked));

        assert_eq!(all.unwrap(), length);
        assert!(asked == up, "another request came");
        assert!(came == down, "another answer came");
    }

    #[tokio::test]
    async fn parts_are_written_at_once_and_none_is_lost() {
        let (mut client, mut server) = Line::default().made().await;
        let large = vec![b'x'; MOST_SENT];
        let parts = [IoSlice::new(b"head"), IoSlice::new(b""), IoSlice::new(&large), IoSlice::new(b"tail")];

        let written = client.write_vectored(&parts).await.unwrap();
        client.flush().await.unwrap();

        assert_eq!(written, MOST_SENT, "no more than there is room for");
        let mut came = vec![0; written];
        server.read_exact(&mut came).await.unwrap();
        assert!(came == [b"head", &large[..MOST_SENT - 4]].concat());
    }

    #[tokio::test]
    async fn keys_that_change_on_the_way_change_nothing() {
        let (mut client, mut server) = Line::default().made().await;
        for _ in 0..3 {
            server.write_all(b"before").await.unwrap();
            server.get_mut().1.refresh_traffic_keys().unwrap();
            server.write_all(b"after!").await.unwrap();
            server.flush().await.unwrap();
            let mut came = [0; 12];
            client.read_exact(&mut came).await.unwrap();
            assert_eq!(&came, b"beforeafter!");

            client.write_all(b"request").await.unwrap();
            client.flush().await.unwrap();
            let mut came = [0; 7];
            server.read_exact(&mut came).await.unwrap();
            assert_eq!(&came, b"request");
        }
    }

    #[tokio::test]
    async fn only_an_end_that_was_announced_is_one() {
        let (mut client, mut server) = Line::default().made().await;
        server.write_all(b"all of it").await.unwrap();
        server.shutdown().await.unwrap();
        let mut came = Vec::new();
        client.read_to_end(&mut came).await.unwrap();
        assert_eq!(came, b"all of it");
        assert_eq!(client.read(&mut [0; 9]).await.unwrap(), 0, "it stays at its end");

        for cut in [&b""[..], &[23, 3, 3, 0, 99, 1, 2]] {
            let (mut client, mut server) = Line::default().made().await;
            server.write_all(b"a part of it").await.unwrap();
            server.flush().await.unwrap();
            server.get_mut().0.write_all(cut).await.unwrap();
            drop(server);
            let mut came = Vec::new();
            let error = client.read_to_end(&mut came).await.unwrap_err();
            assert_eq!(came, b"a part of it");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
        }
    }

    #[tokio::test]
    async fn what_was_tampered_with_ends_it_and_the_server_is_told() {
        for version in [&TLS12, &TLS13] {
            let (mut client, mut server) = Line { version, ..Line::default() }.made().await;
            server.write_all(b"genuine").await.unwrap();
            server.flush().await.unwrap();
            let forged = [&[23, 3, 3, 0, 64][..], &[7; 64]].concat();
            server.get_mut().0.write_all(&forged).await.unwrap();
            server.write_all(b"genuine, but behind").await.unwrap();
            server.flush().await.unwrap();

            let mut came = Vec::new();
            let error = client.read_to_end(&mut came).await.unwrap_err();
            assert_eq!(came, b"genuine", "{version:?}");
            assert_eq!(rustls_error(&error), &rustls::Error::DecryptError, "{version:?}");
            let again = client.read(&mut [0; 9]).await.unwrap_err();
            assert_eq!(rustls_error(&again), &rustls::Error::DecryptError, "{version:?}");
            let writing = client.write_all(b"more").await.unwrap_err();
            assert_eq!(rustls_error(&writing), &rustls::Error::DecryptError, "{version:?}");

            let told = server.read(&mut [0; 9]).await.unwrap_err();
            let alert = rustls::Error::AlertReceived(AlertDescription::BadRecordMac);
            assert_eq!(rustls_error(&told), &alert, "{version:?}");
        }
    }

    #[tokio::test]
    async fn a_byte_that_changes_on_the_way_never_passes_for_the_truth() {
        let mut dice = Dice(2);
        let truth = some_bytes(&mut dice, 20_000);
        let (mut whole, mut partial) = (0, 0);
        for seed in 0..150 {
            let came = with_one_changed(&truth, Dice(seed)).await;
            assert!(truth.starts_with(&came), "seed {seed}: another answer came");
            whole += usize::from(came.len() == truth.len());
            partial += usize::from((1..truth.len()).contains(&came.len()));
        }
        // What is in the clear is not all protected: a version that nobody looks at, say.
        assert!(whole < 15 && partial > 20, "{whole} answers look whole, {partial} are seen in part");
    }

    /// What comes before the end or an error, when somebody between changes a bit.
    async fn with_one_changed(truth: &[u8], mut dice: Dice) -> Vec<u8> {
        let line = Line { version: dice.pick(&[&TLS12, &TLS13]), record: Some(3000), ..Line::default() };
        let changed = if dice.chance(30) { dice.below(2000) } else { dice.below(20_000) };
        let (config, acceptor) = line.configured();
        let (near, mut near_end) = duplex(1 << 16);
        let (mut far_end, far) = duplex(1 << 16);
        let serving = async {
            let mut server = acceptor.accept(far).await?;
            server.write_all(truth).await?;
            server.shutdown().await
        };
        let between = async {
            let (from_client, to_client) = tokio::io::split(&mut near_end);
            let (from_server, to_server) = tokio::io::split(&mut far_end);
            let up = pass_on_changed(from_client, to_server, usize::MAX, Dice(0));
            tokio::join!(up, pass_on_changed(from_server, to_client, changed, dice))
        };
        let asking = async {
            let mut came = Vec::new();
            let name = ServerName::try_from("localhost").unwrap();
            if let Ok(mut client) = Client::connect(config, name, near).await {
                let _ended = client.read_to_end(&mut came).await;
            }
            came
        };
        tokio::join!(serving, between, asking).2
    }

    /// Passes on what comes in pieces of all sizes, with a bit of this byte turned over.
    async fn pass_on_changed(
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        changed: usize,
        mut dice: Dice,
    ) -> io::Result<()> {
        let (mut buffer, mut passed, mut read) = (vec![0; 5000], 0, 1);
        while read > 0 {
            let size = 1 + dice.below(buffer.len());
            read = from.read(&mut buffer[..size]).await?;
            if let Some(at) = changed.checked_sub(passed).filter(|at| *at < read) {
                buffer[at] ^= 1 << dice.below(8);
            }
            to.write_all(&buffer[..read]).await?;
            passed += read;
        }
        to.shutdown().await
    }

    #[tokio::test]
    async fn a_server_that_is_not_the_one_is_told_so() {
        for (defect, alert) in [
            (TlsDefect::UnknownAuthority, AlertDescription::UnknownCA),
            (TlsDefect::WrongName, AlertDescription::BadCertificate),
            (TlsDefect::Expired, AlertDescription::CertificateExpired),
        ] {
            let (client, server) = Line { defect: Some(defect), ..Line::default() }.tried().await;

            let error = client.err().expect("it is not trusted");
            assert!(
                matches!(rustls_error(&error), rustls::Error::InvalidCertificate(_)),
                "{defect:?}: {error}"
            );
            // The client's end of a handshake in TLS 1.3 comes when the server's has gone.
            let told = match server {
                Err(told) => told,
                Ok(mut server) => server.read(&mut [0; 9]).await.unwrap_err(),
            };
            assert_eq!(rustls_error(&told), &rustls::Error::AlertReceived(alert), "{defect:?}");
        }
    }

    #[tokio::test]
    async fn a_handshake_that_is_cut_off_is_an_error() {
        let (near, mut far) = duplex(1 << 16);
        let name = ServerName::try_from("localhost").unwrap();
        let config = Arc::new(crate::tls::client(&[], &[]).unwrap());
        let cutting = async {
            far.read_u8().await.unwrap();
            far.write_all(&[22, 3, 3, 0, 99, 2]).await.unwrap();
            drop(far);
        };

        let (client, ()) = tokio::join!(Client::connect(config, name, near), cutting);

        assert_eq!(client.err().unwrap().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_connection_that_waits_holds_no_buffer() {
        let (mut client, mut server) = Line::default().made().await;
        client.write_all(&vec![1; 100_000]).await.unwrap();
        client.flush().await.unwrap();
        server.read_exact(&mut vec![0; 100_000]).await.unwrap();
        server.write_all(&vec![2; 100_000]).await.unwrap();
        server.flush().await.unwrap();
        let mut came = vec![0; 100_000];
        for part in came.chunks_mut(1000) {
            client.read_exact(part).await.unwrap();
        }

        let held = client.begun.capacity() + client.plain.capacity() + client.unsent.capacity();
        assert_eq!(held, 0);
    }

    fn rustls_error(error: &io::Error) -> &rustls::Error {
        error.get_ref().and_then(|error| error.downcast_ref()).expect("an error of TLS")
    }
}
