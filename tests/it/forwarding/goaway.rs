//! An upstream that says GOAWAY while requests are on their way, as nginx does after so many on a connection.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::{one_worker, reconfigured};
use crate::support::World;
use crate::tokens::Sent;

/// Requests that share a connection, and those of them that it takes.
const CROWD: usize = 6;
const TAKEN: usize = 3;

/// The kinds of frames (RFC 9113, section 6), and flags.
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM_AND_HEADERS: u8 = 5;
/// `:status: 204` in the static table (RFC 7541, appendix A).
const NO_CONTENT: [u8; 1] = [0x89];

/// An API behind TLS that counts the requests which came.
struct Upstream {
    came: Arc<AtomicUsize>,
    route: String,
}

impl Upstream {
    fn start(world: &World) -> Self {
        let (config, certificate) = tls();
        let ca = world.home.path().join("goaway.pem");
        std::fs::write(&ca, certificate).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let came = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&came);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let (config, counted) = (Arc::clone(&config), Arc::clone(&counted));
                std::thread::spawn(move || serve(stream, config, number == 0, &counted).ok());
            }
        });
        let route = format!(
            "[[route]]\nprefix = \"/goaway\"\nhttp = \"2\"\nupstream = \"{url}\"\nca_file = \"{}\"\n",
            ca.display()
        );
        Self { came, route }
    }
}

/// A certificate of its own for 127.0.0.1.
fn tls() -> (Arc<ServerConfig>, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config =
        builder.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], der).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    (Arc::new(config), certificate.pem())
}

/// Answers every request at once. Only the first connection, after its first request, waits for a whole crowd, takes
/// some of it, and says GOAWAY to the others.
fn serve(stream: TcpStream, config: Arc<ServerConfig>, is_first: bool, came: &AtomicUsize) -> io::Result<()> {
    let mut stream = StreamOwned::new(ServerConnection::new(config).map_err(io::Error::other)?, stream);
    stream.read_exact(&mut [0; b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()])?;
    write_frame(&mut stream, SETTINGS, 0, 0, &[])?;
    let mut streams = Vec::new();
    loop {
        let (kind, flags, id) = read_frame(&mut stream)?;
        if kind == SETTINGS && flags & ACK == 0 {
            write_frame(&mut stream, SETTINGS, ACK, 0, &[])?;
        }
        if kind != HEADERS {
            continue;
        }
        came.fetch_add(1, Ordering::SeqCst);
        streams.push(id);
        if !is_first || streams.len() == 1 {
            write_frame(&mut stream, HEADERS, END_STREAM_AND_HEADERS, id, &NO_CONTENT)?;
        } else if streams.len() == 1 + CROWD {
            let last = streams[TAKEN].to_be_bytes();
            write_frame(&mut stream, GOAWAY, 0, 0, &[last, [0; 4]].concat())?;
            for id in &streams[1..=TAKEN] {
                write_frame(&mut stream, HEADERS, END_STREAM_AND_HEADERS, *id, &NO_CONTENT)?;
            }
        }
    }
}

fn read_frame(stream: &mut impl Read) -> io::Result<(u8, u8, u32)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let [a, b, c, kind, flags, id @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload)?;
    Ok((kind, flags, u32::from_be_bytes(id)))
}

fn write_frame(stream: &mut impl Write, kind: u8, flags: u8, id: u32, payload: &[u8]) -> io::Result<()> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&[a, b, c, kind, flags][..], &id.to_be_bytes()].concat();
    stream.write_all(&[&head, payload].concat())?;
    stream.flush()
}

#[test]
fn requests_that_an_upstream_did_not_take_before_its_goaway_are_sent_once_more_when_they_may_be() {
    for (method, expected, tries) in [("GET", [204; CROWD], CROWD + CROWD - TAKEN), ("POST", POSTS, CROWD)] {
        let mut world = one_worker().logged_in();
        let upstream = Upstream::start(&world);
        reconfigured(&mut world, &upstream.route);
        assert_eq!(world.daemon.get("/goaway/alone").status, 204, "{}", world.daemon.output());

        let sent: Vec<_> = (0..CROWD)
            .map(|_| Sent::new(world.daemon.connect(), &world.daemon, method, "/goaway/together"))
            .collect();
        let mut statuses: Vec<_> = sent.into_iter().map(|sent| sent.answer().status).collect();
        statuses.sort_unstable();

        assert_eq!(statuses, expected, "{method}: {}", world.daemon.output());
        assert_eq!(upstream.came.load(Ordering::SeqCst), 1 + tries, "{method}");
    }
}

/// Whether those that failed were applied, nobody can tell.
const POSTS: [u16; CROWD] = [204, 204, 204, 502, 502, 502];
