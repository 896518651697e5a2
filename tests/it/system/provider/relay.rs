//! What stands between the daemon and the provider's token endpoint: passes requests on over verified TLS, and does
//! with each of them and its answer what a script says.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use url::{Url, form_urlencoded};

use crate::support::Answer;

/// Longer than the 12 s after which an answer was once given up.
const LATE: Duration = Duration::from_secs(15);

/// What becomes of one request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// It is passed on, and the answer comes back altered.
    Pass(fn(&mut Answer)),
    /// It is passed on at once, and the answer comes back after [`LATE`].
    AnswerLate,
    /// The connection ends, and the provider sees nothing.
    BreakBefore,
    /// The connection ends when the provider has answered.
    BreakAfter,
    /// This answer comes, and the provider sees nothing.
    Instead(fn() -> Answer),
}

/// A step and its name.
pub(super) type Named = (&'static str, Step);

/// A request that came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The refresh token in it; none with a code.
    pub(super) refresh_token: Option<String>,
    /// The name of what became of it.
    pub(super) step: &'static str,
    /// Whether the provider saw it and its grant was handed back.
    pub(super) is_granted: bool,
}

/// Listens on loopback without TLS until the tests end.
pub(super) struct Relay {
    /// For `token_url`.
    pub(super) token_url: String,
    plot: Arc<Mutex<Plot>>,
}

#[derive(Default)]
struct Plot {
    script: VecDeque<Named>,
    seen: Vec<Seen>,
}

/// The endpoint behind it.
struct Endpoint {
    url: Url,
    tls: Arc<ClientConfig>,
}

struct Request {
    /// All but those that are the connection's or the relay's own.
    fields: String,
    body: Vec<u8>,
}

impl Relay {
    pub(super) fn start(token_url: &str, ca_file: &Path) -> Self {
        let endpoint = Arc::new(Endpoint { url: token_url.parse().unwrap(), tls: trusting_only(ca_file) });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let token_url = format!("http://{}{}", listener.local_addr().unwrap(), endpoint.url.path());
        let plot = Arc::new(Mutex::new(Plot::default()));
        let shared = Arc::clone(&plot);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (endpoint, plot) = (Arc::clone(&endpoint), Arc::clone(&shared));
                thread::spawn(move || serve(&stream, &endpoint, &plot));
            }
        });
        Self { token_url, plot }
    }

    /// What becomes of the next requests; those behind the last step are passed on.
    pub(super) fn follow(&self, script: impl IntoIterator<Item = Named>) {
        self.plot.lock().unwrap().script.extend(script);
    }

    /// How many steps are left.
    pub(super) fn left(&self) -> usize {
        self.plot.lock().unwrap().script.len()
    }

    /// The requests that came with a refresh token, in order.
    pub(super) fn refreshes(&self) -> Vec<Seen> {
        let plot = self.plot.lock().unwrap();
        plot.seen.iter().filter(|seen| seen.refresh_token.is_some()).cloned().collect()
    }
}

fn serve(mut stream: &TcpStream, endpoint: &Endpoint, plot: &Mutex<Plot>) {
    let request = Request::read(stream);
    let (step, number) = {
        let mut plot = plot.lock().unwrap();
        let (name, step) = plot.script.pop_front().unwrap_or(("beyond the script", Step::Pass(|_| {})));
        plot.seen.push(Seen { refresh_token: request.refresh_token(), step: name, is_granted: false });
        (step, plot.seen.len() - 1)
    };
    let (is_passed_on, mut answer) = match step {
        Step::BreakBefore => return,
        Step::Instead(made) => (false, made()),
        Step::Pass(_) | Step::AnswerLate | Step::BreakAfter => (true, endpoint.ask(&request)),
    };
    match step {
        Step::BreakAfter => return,
        Step::AnswerLate => thread::sleep(LATE),
        Step::Pass(alter) => alter(&mut answer),
        Step::BreakBefore | Step::Instead(_) => {}
    }
    plot.lock().unwrap().seen[number].is_granted = is_passed_on && answer.status == 200;
    // A daemon that has read enough may have hung up.
    let _hung_up = stream.write_all(&written(&answer));
}

impl Request {
    fn read(stream: &TcpStream) -> Self {
        let mut stream = BufReader::new(stream);
        let (mut fields, mut length) = (String::new(), 0);
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert!(line.starts_with("POST "), "{line}");
        loop {
            line.clear();
            stream.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "host" | "connection" => {}
                "content-length" => length = value.parse().unwrap(),
                _ => fields += &line,
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        Self { fields, body }
    }

    fn refresh_token(&self) -> Option<String> {
        let mut form = form_urlencoded::parse(&self.body);
        form.find(|(name, _)| name == "refresh_token").map(|(_, token)| token.into_owned())
    }
}

impl Endpoint {
    fn ask(&self, request: &Request) -> Answer {
        let (host, port) = (self.url.host_str().unwrap(), self.url.port().unwrap());
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let client = ClientConnection::new(Arc::clone(&self.tls), name).unwrap();
        let mut stream = StreamOwned::new(client, TcpStream::connect((host, port)).unwrap());
        let (path, fields, length) = (self.url.path(), &request.fields, request.body.len());
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\nContent-Length: {length}\r\n\
             {fields}\r\n"
        );
        stream.write_all(&[head.as_bytes(), &request.body].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        Answer::parse(&answer, "POST").unwrap_or_else(|| panic!("the provider's answer is cut off"))
    }
}

fn trusting_only(ca_file: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(client.with_root_certificates(roots).with_no_client_auth())
}

/// The answer's bytes, its length as it is now.
fn written(answer: &Answer) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} Said\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.fields {
        if !["connection", "keep-alive", "content-length", "transfer-encoding"].contains(&name.as_str()) {
            head += &format!("{name}: {value}\r\n");
        }
    }
    head += &format!("content-length: {}\r\n\r\n", answer.body.len());
    [head.as_bytes(), &answer.body].concat()
}
