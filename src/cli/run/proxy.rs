//! The HTTP proxy that the program is given. Connections to an upstream end here, with a certificate of our own;
//! others are tunnels. Nobody else may use it: it wants a password, or the kernel's word that the program has the
//! other end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::header::{CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
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
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use super::caller::Caller;
use super::child;
use super::site::{Destination, Routes, Visit};
use crate::cli::daemon::in_time;
use crate::problem::{Code, Problem};
use crate::server::peer::Kernel;

/// To send the head of a request, or to begin TLS.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
const CONNECTS_WITHIN: Duration = Duration::from_secs(30);
/// Whether a program still has its end of a connection.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between attempts to accept when there is no descriptor left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// The proxy of one run.
pub(super) struct Proxy {
    /// The digest of what to present, so that how long a comparison takes tells nothing.
    pub(super) credential: Digest,
    /// With its descendants, who need not present it.
    pub(super) child: Pid,
    /// TLS as any of the upstreams.
    pub(super) tls: TlsAcceptor,
    pub(super) routes: Arc<Routes>,
    pub(super) caller: Arc<Caller>,
    /// What tunnels go through.
    pub(super) outer: Matcher,
}

impl Proxy {
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
        if self.routes.lead_to(&authority) {
            let visit = Visit::new(Arc::clone(&self.routes), Arc::clone(&self.caller), authority);
            tokio::spawn(terminate(self.tls.clone(), upgrade, visit, closed(peer, own)));
            return Response::default();
        }
        match self.tunnel(&authority).await {
            Ok(stream) => drop(tokio::spawn(splice(upgrade, stream))),
            Err(error) => {
                let detail = format!("no connection to {}:{}: {error:#}", authority.0, authority.1);
                return Problem::new(Code::UpstreamUnreachable, detail).into_response().map(Full::new);
            }
        }
        Response::default()
    }

    fn admits(&self, fields: &HeaderMap, peer: SocketAddr, own: SocketAddr) -> bool {
        let credential = fields.get(PROXY_AUTHORIZATION).map(|value| digest(&SHA256, value.as_bytes()));
        credential.is_some_and(|credential| credential.as_ref() == self.credential.as_ref()) || {
            let inode = Kernel::new().ok().and_then(|kernel| kernel.inode(peer, own));
            inode.is_some_and(|inode| child::has_socket(self.child, inode))
        }
    }

    async fn tunnel(&self, (host, port): &Destination) -> anyhow::Result<TcpStream> {
        let target: Uri = format!("https://{host}:{port}").parse()?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        // Of several addresses, each has its part of the time.
        connector.set_connect_timeout(Some(CONNECTS_WITHIN));
        let connecting = async {
            let Some(outer) = self.outer.intercept(&target) else {
                return Ok(connector.oneshot(target).await?.into_inner());
            };
            let mut tunnel = Tunnel::new(outer.uri().clone(), connector);
            if let Some(credential) = outer.basic_auth() {
                tunnel = tunnel.with_auth(credential.clone());
            }
            let stream = tunnel.oneshot(target).await.context("through the proxy of the environment")?;
            Ok(stream.into_inner())
        };
        in_time(CONNECTS_WITHIN, connecting).await
    }
}

/// TLS as the upstream, and HTTP/1.1 in it, until the connection ends or is closed.
async fn terminate(tls: TlsAcceptor, upgrade: OnUpgrade, visit: Visit, closed: impl Future<Output = ()>) {
    let Ok(upgraded) = upgrade.await else { return };
    let accepted = tokio::time::timeout(HEAD_WITHIN, tls.accept(TokioIo::new(upgraded))).await;
    // A program that does not trust us says so itself.
    let Ok(Ok(stream)) = accepted else { return };
    tokio::select! {
        () = visit.serve(stream) => {}
        () = closed => {}
    }
}

/// Comes when the program has closed its end: that looks like one that only has no more to send.
async fn closed(peer: SocketAddr, own: SocketAddr) {
    while !Kernel::new().is_ok_and(|kernel| kernel.is_orphaned(peer, own)) {
        tokio::time::sleep(LOOK_EVERY).await;
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
fn connect_target(request: &Request<Incoming>) -> Option<Destination> {
    let authority = request.uri().authority().filter(|_| request.method() == Method::CONNECT)?;
    Some((authority.host().to_ascii_lowercase(), authority.port_u16()?))
}

fn password_required() -> Response<Full<Bytes>> {
    let words = "this proxy is for one program, and its password is that program's\n";
    let response = Response::builder().status(StatusCode::PROXY_AUTHENTICATION_REQUIRED);
    let response = response.header(PROXY_AUTHENTICATE, "Basic realm=\"cnblogs-proxy run\"");
    response.header(CONNECTION, "close").body(Full::from(words)).expect("they are valid fields")
}
