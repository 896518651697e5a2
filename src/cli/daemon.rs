//! Talking to the running daemon, over the socket in its state directory: whoever may enter that directory may
//! read the store anyway, so no key is needed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, LOCATION};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};
use url::form_urlencoded;

use super::{Exit, Failure};
use crate::server::control_socket;

const LARGEST_ANSWER: usize = 1 << 20;
/// A daemon that is well answers a probe in this time. The image's health check waits for 5 s.
const ANSWERS_WITHIN: Duration = Duration::from_secs(4);
/// What is only asked for: a token is waited for 20 s.
const READS_WITHIN: Duration = Duration::from_secs(30);
/// What waits for the authorization server, which may take `token_timeout` more than once.
const CHANGES_WITHIN: Duration = Duration::from_secs(600);

/// A running daemon.
pub(super) struct Daemon {
    runtime: Runtime,
    path: std::path::PathBuf,
}

/// What it answered.
pub(super) struct DaemonAnswer {
    pub(super) status: StatusCode,
    pub(super) location: Option<String>,
    pub(super) body: Bytes,
}

impl Daemon {
    /// The daemon of a state directory, if one is running.
    pub(super) fn find(state_dir: &Path) -> Result<Option<Self>, Failure> {
        let runtime = runtime()?;
        let path = crate::server::reachable(state_dir)
            .map_or_else(|_missing| control_socket(state_dir), |dir| control_socket(&dir));
        match runtime.block_on(UnixStream::connect(&path)) {
            Ok(_) => Ok(Some(Self { runtime, path })),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(Failure::new(
                Exit::Failed,
                format!("{} may not be entered: {error}", state_dir.display()),
            )
            .with_hint(
                "run this as root, or as the user that the daemon runs as; whoever may call it finds the same at its \
                 address under /-/, as http://127.0.0.1:8262/-/ or with curl http://127.0.0.1:8262/-/status",
            )),
            Err(_) => Ok(None),
        }
    }

    /// The error that says that there is none.
    pub(super) fn none(state_dir: &Path) -> Failure {
        Failure::new(Exit::Failed, format!("no daemon is running on {}", state_dir.display())).with_hint(
            "start it with `cnblogs-proxy serve`; give this command the same --config or environment",
        )
    }

    /// The same, where another state directory may be why.
    pub(super) fn none_to_reload(state_dir: &Path) -> Failure {
        Self::none(state_dir).with_hint(
            "start it with `cnblogs-proxy serve`; when `state_dir` has changed, it needs a restart",
        )
    }

    /// The names of its accounts.
    pub(super) fn accounts(&self) -> Result<Vec<String>, Failure> {
        let status = self.get("/-/status")?.success()?.json();
        let accounts = status.get("accounts").and_then(Value::as_object);
        Ok(accounts.into_iter().flat_map(|accounts| accounts.keys().cloned()).collect())
    }

    pub(super) fn get(&self, path: &str) -> Result<DaemonAnswer, Failure> {
        self.call(Method::GET, path, &[])
    }

    pub(super) fn post(&self, path: &str, form: &[(&str, &str)]) -> Result<DaemonAnswer, Failure> {
        self.call(Method::POST, path, form)
    }

    /// A GET through every listener, as callers ask. Returns the first answer that is no success, or the last one.
    pub(super) fn ask_listeners(&self, path: &str) -> Result<DaemonAnswer, Failure> {
        self.runtime.block_on(self.ask_each(path)).map_err(|error| Failure::of(&error))
    }

    async fn ask_each(&self, path: &str) -> anyhow::Result<DaemonAnswer> {
        let status =
            within("its own socket", ask_socket(&self.path, request(Method::GET, "/-/status", &[]))).await?;
        let listening = status.json()["listening"].take();
        let mut answer = None;
        for listener in listening.as_array().into_iter().flatten().filter_map(Value::as_str) {
            let asked = within(listener, ask(listener, request(Method::GET, path, &[]))).await?;
            let is_success = asked.status.is_success();
            answer = Some(asked);
            if !is_success {
                break;
            }
        }
        answer.context("the daemon does not say where it listens")
    }

    fn call(&self, method: Method, path: &str, form: &[(&str, &str)]) -> Result<DaemonAnswer, Failure> {
        let asking = ask_socket(&self.path, request(method, path, form));
        self.runtime.block_on(asking).map_err(|error| Failure::of(&error))
    }

    /// The user that it runs as, by the kernel's word.
    pub(super) fn user(&self) -> io::Result<u32> {
        let user = async { Ok(UnixStream::connect(&self.path).await?.peer_cred()?.uid()) };
        self.runtime.block_on(user)
    }
}

/// A request of ours, with a form.
pub(super) fn request(method: Method, path: &str, form: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(body)))
        .expect("the paths are constants and account names")
}

async fn within(
    listener: &str,
    asking: impl Future<Output = anyhow::Result<DaemonAnswer>>,
) -> anyhow::Result<DaemonAnswer> {
    let asked = in_time(ANSWERS_WITHIN, asking).await;
    asked.with_context(|| format!("the daemon can't be used through {listener}"))
}

/// What comes of it, or the error that it took too long.
pub(super) async fn in_time<T>(
    limit: Duration,
    asking: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let asked = tokio::time::timeout(limit, asking).await;
    asked.with_context(|| format!("no answer within {} s", limit.as_secs()))?
}

/// Asks through the daemon's own socket.
async fn ask_socket(path: &Path, request: Request<Full<Bytes>>) -> anyhow::Result<DaemonAnswer> {
    let limit = if *request.method() == Method::GET { READS_WITHIN } else { CHANGES_WITHIN };
    let asking = async {
        let stream = UnixStream::connect(path).await.context("the daemon is not running any more")?;
        exchange(stream, request).await
    };
    in_time(limit, asking).await
}

/// Asks through a listener as it is written in the status document.
async fn ask(listener: &str, request: Request<Full<Bytes>>) -> anyhow::Result<DaemonAnswer> {
    if let Some(path) = listener.strip_prefix("unix:") {
        return exchange(UnixStream::connect(path).await?, request).await;
    }
    let mut address: SocketAddr = listener.trim_start_matches("http://").parse()?;
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    exchange(TcpStream::connect(address).await?, request).await
}

/// One request and its answer on a connection of their own.
pub(super) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<DaemonAnswer> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Takes the sender, so that the connection ends with the answer.
    let asking = async move {
        let response = sender.send_request(request).await?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, LARGEST_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        let location = parts.headers.get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        anyhow::Ok(DaemonAnswer { status: parts.status, location, body })
    };
    let (answer, closed) = tokio::join!(asking, connection);
    closed?;
    answer
}

impl DaemonAnswer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body of a success, or the problem as a failure.
    pub(super) fn success(self) -> Result<Self, Failure> {
        if self.status.is_success() || self.status.is_redirection() {
            return Ok(self);
        }
        let problem = self.json();
        let text = |name: &str| problem.get(name).and_then(Value::as_str);
        let message =
            text("detail").or_else(|| text("title")).unwrap_or("the daemon gave no reason").to_owned();
        let needs_login = text("type") == Some("urn:cnblogs-proxy:login-required");
        Err(if needs_login { login_required(message) } else { Failure::new(Exit::Failed, message) })
    }
}

/// A document whose texts can be shown on a terminal: what would move its cursor or turn its text around is escaped.
pub(super) fn printable(value: Value) -> Value {
    let is_shown =
        |c: char| !c.is_control() && !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    match value {
        Value::String(text) if !text.chars().all(is_shown) => {
            let escaped = text.chars().map(|c| match is_shown(c) {
                true => c.to_string(),
                false => c.escape_default().to_string(),
            });
            Value::String(escaped.collect())
        }
        Value::Array(values) => values.into_iter().map(printable).collect(),
        Value::Object(members) => members.into_iter().map(|(name, value)| (name, printable(value))).collect(),
        other => other,
    }
}

/// Exit code 3, and what to do.
pub(super) fn login_required(message: String) -> Failure {
    Failure::new(Exit::LoginRequired, message)
        .with_hint("run `cnblogs-proxy login` with the account's name, or open /-/login in a browser")
}

pub(super) fn runtime() -> Result<Runtime, Failure> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::new(Exit::Failed, format!("starting a runtime: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_never_answers_is_not_waited_for_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = control_socket(directory.path());
        let _silent = tokio::net::UnixListener::bind(&path).unwrap();

        for (method, limit) in [(Method::GET, "30 s"), (Method::POST, "600 s")] {
            let error = ask_socket(&path, request(method, "/-/status", &[])).await.err().unwrap();
            assert_eq!(error.to_string(), format!("no answer within {limit}"));
        }
    }
}
