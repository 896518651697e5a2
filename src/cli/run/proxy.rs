//! The HTTP proxy that the program is given. Connections to an upstream end here, with a certificate of our own;
//! others are tunnels. Nobody else may use it: it wants a password, or the kernel's word that the program has the
//! other end.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::header::{CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{self, OnUpgrade};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::digest::{Digest, SHA256, digest};
use rustix::process::Pid;
use rustls::ServerConfig;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use super::child;
use super::site::{self, Routes, Visit, Way};
use crate::problem::{Code, Problem};
use crate::server::peer::Kernel;

/// To send the head of a request, or to begin TLS.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// Between attempts to accept when there is no descriptor left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// TLS as each of the upstreams' hosts.
pub(super) type Certified = HashMap<String, Arc<ServerConfig>>;

/// The proxy of one run.
pub(super) struct Proxy {
    credential: Digest,
    child: Pid,
    certified: Certified,
    routes: Arc<Routes>,
    way: Arc<Way>,
    outer: Matcher,
}

impl Proxy {
    /// For who presents the credential, and for that process and its descendants. Tunnels go through the proxy that our
    /// own environment names.
    pub(super) fn new(
        credential: &HeaderValue,
        child: Pid,
        certified: Certified,
        routes: Routes,
        way: Way,
    ) -> Self {
        Self {
            credential: digest(&SHA256, credential.as_bytes()),
            child,
            certified,
            routes: Arc::new(routes),
            way: Arc::new(way),
            outer: Matcher::from_env(),
        }
    }

    /// Serves until it is dropped; the error is one of setting up.
    pub(super) async fn serve<T>(self: Arc<Self>, listener: std::net::TcpListener) -> io::Result<T> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => drop(tokio::spawn(Arc::clone(&self).connection(stream, peer))),
                Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let (Ok(own), Ok(())) = (stream.local_addr(), stream.set_nodelay(true)) else { return };
        let this = &self;
        let service =
            service_fn(|request| async move { Ok::<_, Infallible>(this.answer(request, peer, own).await) });
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
        // Whoever it was is gone, or sent what is no HTTP.
        let _ended = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    }

    async fn answer(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        own: SocketAddr,
    ) -> Response<Full<Bytes>> {
        if !self.admits(request.headers(), peer, own) {
            return password_required();
        }
        let Some(authority) = connect_target(&request) else {
            let detail = "`cnblogs-proxy run` is a proxy for https:// alone, by CONNECT to a host and port";
            return Problem::new(Code::BadRequest, detail).closing().into_response().map(Full::new);
        };
        let upgrade = upgrade::on(&mut request);
        if let Some(tls) = self.certified.get(&authority.0).filter(|_| self.routes.lead_to(&authority)) {
            tokio::spawn(Arc::clone(self).terminate(Arc::clone(tls), authority, upgrade));
            return Response::default();
        }
        match self.tunnel(&authority).await {
            Ok(stream) => {
                tokio::spawn(splice(upgrade, stream));
                Response::default()
            }
            Err(error) => {
                let detail = format!("no connection to {}:{}: {error:#}", authority.0, authority.1);
                Problem::new(Code::UpstreamUnreachable, detail).into_response().map(Full::new)
            }
        }
    }

    /// Compares digests, so that how long it takes tells nothing of the password.
    fn admits(&self, fields: &HeaderMap, peer: SocketAddr, own: SocketAddr) -> bool {
        let credential = fields.get(PROXY_AUTHORIZATION).map(|value| digest(&SHA256, value.as_bytes()));
        let knows_password =
            credential.is_some_and(|credential| credential.as_ref() == self.credential.as_ref());
        knows_password || {
            let inode = Kernel::new().ok().and_then(|kernel| kernel.inode(peer, own));
            inode.is_some_and(|inode| child::has_socket(self.child, inode))
        }
    }

    /// TLS as the upstream, and HTTP/1.1 in it.
    async fn terminate(
        self: Arc<Self>,
        tls: Arc<ServerConfig>,
        authority: site::Destination,
        upgrade: OnUpgrade,
    ) {
        let Ok(upgraded) = upgrade.await else { return };
        let accepting = TlsAcceptor::from(tls).accept(TokioIo::new(upgraded));
        // A program that does not trust us says so itself.
        let Ok(Ok(stream)) = tokio::time::timeout(HEAD_WITHIN, accepting).await else { return };
        let (routes, way) = (Arc::clone(&self.routes), Arc::clone(&self.way));
        Visit { routes, way, authority, daemon: Mutex::default() }.serve(stream).await;
    }

    async fn tunnel(&self, (host, port): &site::Destination) -> anyhow::Result<TcpStream> {
        let target: Uri = format!("https://{host}:{port}").parse()?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_WITHIN));
        let Some(outer) = self.outer.intercept(&target) else {
            return Ok(connector.oneshot(target).await?.into_inner());
        };
        anyhow::ensure!(outer.uri().scheme_str() == Some("http"), "HTTPS_PROXY names no http:// proxy");
        let tunnel = Tunnel::new(outer.uri().clone(), connector);
        let tunnel = match outer.basic_auth() {
            Some(credential) => tunnel.with_auth(credential.clone()),
            None => tunnel,
        };
        Ok(tunnel.oneshot(target).await.context("through the proxy in HTTPS_PROXY")?.into_inner())
    }
}

/// Bytes both ways, until both ends have ended.
async fn splice(upgrade: OnUpgrade, mut stream: TcpStream) {
    if let Ok(upgraded) = upgrade.await {
        // Both ends see it end; there is nobody else to tell.
        let _ended = copy_bidirectional(&mut TokioIo::new(upgraded), &mut stream).await;
    }
}

/// Host and port of a CONNECT.
fn connect_target(request: &Request<Incoming>) -> Option<site::Destination> {
    let authority = request.uri().authority().filter(|_| request.method() == Method::CONNECT)?;
    Some((authority.host().to_ascii_lowercase(), authority.port_u16()?))
}

fn password_required() -> Response<Full<Bytes>> {
    let mut response =
        Response::new(Full::from("this proxy is for one program, and its password is that program's\n"));
    *response.status_mut() = StatusCode::PROXY_AUTHENTICATION_REQUIRED;
    let challenge = HeaderValue::from_static("Basic realm=\"cnblogs-proxy run\"");
    response.headers_mut().insert(PROXY_AUTHENTICATE, challenge);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
