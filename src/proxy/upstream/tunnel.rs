//! Tunnels through an HTTP proxy: `CONNECT` (RFC 9110, section 9.3.6), spoken by hyper.

use std::future::poll_fn;
use std::pin::pin;

use bytes::Bytes;
use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::config::{HttpProxy, Upstream};

/// The largest head of an answer to `CONNECT`, in bytes: the least that hyper takes, and more than proxies send.
const LARGEST_HEAD: usize = 8 * 1024;

/// How tunnels to one server are asked for.
pub struct Tunnel {
    /// The proxy that is asked.
    pub proxy: Upstream,
    request: Request<Empty<Bytes>>,
}

/// Why there is no tunnel. The proxy's own words are not repeated.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// It wants credentials, or others: 407 (RFC 9110, section 15.5.8), or 401, as tinyproxy says.
    #[error("the proxy wants (other) credentials, by Basic: see proxy_auth_file ({0})")]
    Unauthenticated(StatusCode),
    /// It answered, and refuses.
    #[error("the proxy refused a tunnel: {0}")]
    Refused(StatusCode),
    /// Something came before the server was spoken to: servers wait for the client in TLS, so it is not the server's.
    #[error("the proxy sent something of its own behind its answer")]
    NotATunnel,
    /// The connection broke, or what came is no HTTP.
    #[error("asking the proxy for a tunnel")]
    Exchange(#[source] hyper::Error),
}

impl Tunnel {
    /// Tunnels through `proxy` to `upstream`, whose name the proxy resolves.
    pub fn new(proxy: &HttpProxy, upstream: &Upstream) -> Self {
        let host = &upstream.host;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let authority = format!("{host}:{}", upstream.port);
        let request = Request::builder().method(Method::CONNECT).uri(&authority).header(HOST, &authority);
        let mut request = request.body(Empty::new()).expect("a URL's host and port are an authority");
        if let Some(authorization) = proxy.authorization() {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
        }
        Self { proxy: proxy.server.clone(), request }
    }

    /// Makes a connection to the proxy one to the server.
    ///
    /// # Errors
    /// When the proxy refuses, or does not answer as a proxy does. The caller sees to the time that it takes.
    pub async fn open(&self, tcp: TcpStream) -> Result<TcpStream, TunnelError> {
        let made = http1::Builder::new().max_buf_size(LARGEST_HEAD).handshake(TokioIo::new(tcp)).await;
        let (mut sender, mut connection) = made.map_err(TunnelError::Exchange)?;
        let mut answer = pin!(sender.send_request(self.request.clone()));
        let answer = poll_fn(|cx| {
            // What goes wrong here, the answer says.
            let _driven = connection.poll_without_shutdown(cx);
            answer.as_mut().poll(cx)
        });
        let status = answer.await.map_err(TunnelError::Exchange)?.status();
        match status {
            StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::UNAUTHORIZED => {
                return Err(TunnelError::Unauthenticated(status));
            }
            status if !status.is_success() => return Err(TunnelError::Refused(status)),
            _ => {}
        }
        let parts = connection.into_parts();
        if !parts.read_buf.is_empty() {
            return Err(TunnelError::NotATunnel);
        }
        Ok(parts.io.into_inner())
    }
}
