//! A worker thread: one current-thread runtime that accepts from the shared listeners and serves what it
//! accepted to the end, with its own connections to the upstreams. A request never hops to another thread.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::connection::{self, turned_away};
use super::line::Transport;
use super::listen::{Bound, Socket};
use super::peer::{Kernel, owner_of_unix};
use super::room::Room;
use super::supervisor::HEARTBEAT;
use crate::config::Limits;
use crate::control;
use crate::metrics::{Counters, Goal};
use crate::problem::{Code, Problem};
use crate::proxy::access_log::Entry;
use crate::proxy::guard::{Caller, Door, Peer};
use crate::proxy::{self, Proxy};
use crate::pulse::Pulse;

/// After an accept that failed for want of descriptors, others get time to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A path below this is ours, unless it only looks like it.
const LOCAL: &str = "/-/";

/// What a worker answers requests with.
pub(super) struct Worker {
    proxy: Proxy,
    shared: Arc<proxy::Shared>,
    counters: Arc<Counters>,
    local: Router,
    control: Handle,
    kernel: Option<Kernel>,
    room: Arc<Room>,
    idle_timeout: Option<HeaderValue>,
}

/// An answer of the proxy or of our own pages.
pub(super) enum Answered {
    /// By the walk.
    Proxied(Response<proxy::Body>),
    /// By the control routes.
    Local(Response<axum::body::Body>),
}

impl Worker {
    pub(super) fn new(shared: Arc<proxy::Shared>, local: Router, control: Handle, room: Arc<Room>) -> Self {
        let kernel = Kernel::new()
            .inspect_err(|error| tracing::warn!(%error, "the kernel can't be asked who connects"))
            .ok();
        let counters = shared.metrics.worker();
        let proxy = Proxy::new(Arc::clone(&shared), Arc::clone(&counters));
        let idle_secs = shared.limits.idle_timeout.as_secs();
        let idle_timeout = (idle_secs > 0).then(|| {
            HeaderValue::from_str(&format!("timeout={idle_secs}")).expect("a number is a field value")
        });
        Self { proxy, shared, counters, local, control, kernel, room, idle_timeout }
    }

    pub(super) fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// How long an idle connection is kept, for callers.
    pub(super) const fn idle_timeout(&self) -> Option<&HeaderValue> {
        self.idle_timeout.as_ref()
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Forwards a request, or gives it to our own routes.
    pub(super) async fn answer(&self, caller: &Caller, goal: Goal, request: Request<Incoming>) -> Answered {
        let mut entry = Entry::of(caller, &request);
        if goal == Goal::Local {
            let response = Box::pin(self.local(caller, request)).await;
            if let Some(entry) = &mut entry {
                entry.answer(&response);
            }
            return Answered::Local(response);
        }
        let response = self.proxy.forward(caller, request, &mut entry).await;
        Answered::Proxied(match entry {
            Some(entry) => entry.follow(response),
            None => response,
        })
    }

    /// Our own routes run on the control runtime: they may wait for the keeper, files, commands.
    async fn local(&self, caller: &Caller, request: Request<Incoming>) -> Response<axum::body::Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        if !control::is_probe(path) {
            let guard = self.shared.guard.load();
            if let Err(problem) = guard.admit_local(caller, &parts, control::is_callback(path)) {
                self.counters.refused();
                return refused(problem).await;
            }
        }
        let request = Request::from_parts(parts, axum::body::Body::new(body));
        let answer = self.control.spawn(self.local.clone().oneshot(request)).await;
        match answer {
            Ok(Ok(response)) => response,
            Err(_stopped) => refused(Problem::new(Code::Stopping, "the daemon is stopping")).await,
        }
    }

    /// True when the kernel says that the other end of a connection of this machine was closed by its owner.
    pub(super) fn is_orphaned(&self, peer: SocketAddr, own: SocketAddr) -> bool {
        let kernel = self.kernel.as_ref().filter(|_| !Peer::is_remote(peer.ip()));
        kernel.is_some_and(|kernel| kernel.is_orphaned(peer, own))
    }

    fn peer(&self, peer: SocketAddr, stream: &TcpStream) -> Peer {
        if Peer::is_remote(peer.ip()) {
            return Peer::Remote;
        }
        let own = stream.local_addr().ok();
        Peer::Local(own.and_then(|own| self.kernel.as_ref()?.owner(peer, own)))
    }
}

/// Accepts from all listeners until `stop`, then waits until what was accepted is served.
pub(super) async fn run(worker: Worker, bound: Vec<Bound>, pulse: Arc<Pulse>, stop: CancellationToken) {
    let worker = Arc::new(worker);
    let served = TaskTracker::new();
    let accepting = TaskTracker::new();
    let listeners = bound.len();
    for one in bound {
        let (worker, served, stop) = (Arc::clone(&worker), served.clone(), stop.clone());
        accepting.spawn(async move {
            if let Err(error) = accept_from(one, worker, served, stop).await {
                tracing::error!(%error, "a listener can't be used");
            }
        });
    }
    accepting.close();
    tokio::select! {
        () = accepting.wait() => {}
        () = live(&pulse, &accepting, listeners) => {}
    }
    served.close();
    served.wait().await;
}

/// Shows that this thread moves, as long as every listener is accepted from.
async fn live(pulse: &Pulse, accepting: &TaskTracker, listeners: usize) {
    loop {
        if accepting.len() == listeners {
            pulse.beat();
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}

async fn accept_from(
    bound: Bound,
    worker: Arc<Worker>,
    served: TaskTracker,
    stop: CancellationToken,
) -> io::Result<()> {
    let (door, is_for_remote) = (bound.door, bound.listen.is_remote());
    match bound.socket {
        Socket::Tcp(listener) => {
            let listener = TcpListener::from_std(listener)?;
            while let Some((stream, peer)) = accepted(&stop, &worker.room, || listener.accept()).await {
                // Containers come to loopback from elsewhere where `route_localnet` lets them; keys guard no such door.
                if Peer::is_remote(peer.ip()) && !is_for_remote {
                    continue;
                }
                // Small answers are not held back.
                let _set = stream.set_nodelay(true);
                let peer = worker.peer(peer, &stream);
                admit(stream, peer, &door, &worker, &served, &stop);
            }
        }
        Socket::Unix(listener) => {
            let listener = UnixListener::from_std(listener)?;
            while let Some((stream, _)) = accepted(&stop, &worker.room, || listener.accept()).await {
                let peer = Peer::Local(owner_of_unix(&stream));
                admit(stream, peer, &door, &worker, &served, &stop);
            }
        }
    }
    Ok(())
}

async fn accepted<T, F>(stop: &CancellationToken, room: &Room, mut accept: impl FnMut() -> F) -> Option<T>
where
    F: Future<Output = io::Result<T>>,
{
    loop {
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            result = accept() => result,
        };
        match result {
            Ok(accepted) => return Some(accepted),
            Err(error) => {
                room.not_accepted(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit<T: Transport>(
    stream: T,
    peer: Peer,
    door: &Arc<Door>,
    worker: &Arc<Worker>,
    served: &TaskTracker,
    stop: &CancellationToken,
) {
    let Some(place) = worker.room.enter(stop) else {
        worker.counters.turned_away();
        stream.try_last_words(&turned_away(Code::TooManyConnections, "limits.connections is reached"));
        return;
    };
    let (worker, caller) = (Arc::clone(worker), Caller { peer, door: Arc::clone(door) });
    let open = worker.counters.caller();
    served.spawn(async move {
        connection::serve(stream, caller, worker, place).await;
        drop(open);
    });
}

/// A refusal at our own address carries what every answer of ours carries.
async fn refused(problem: Problem) -> Response<axum::body::Body> {
    control::inert(problem.into_response().map(axum::body::Body::from)).await
}

/// Whom a request with this path is for.
pub(super) fn goal_of(path: &str) -> Goal {
    if is_local(path) { Goal::Local } else { Goal::Upstream }
}

/// A path with dot segments, encoded or not, only looks like one of ours.
fn is_local(path: &str) -> bool {
    path.starts_with(LOCAL)
        && !path.split('/').any(|segment| {
            let plain = segment.to_ascii_lowercase().replace("%2e", ".");
            plain == "." || plain == ".."
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_that_has_lost_a_listener_shows_no_life() {
        let (pulse, accepting, stop) = (Pulse::new(), TaskTracker::new(), CancellationToken::new());
        let failing = accepting.spawn(async { panic!("an accept loop fails") });
        accepting.spawn(stop.clone().cancelled_owned());
        tokio::task::yield_now().await;
        assert!(failing.await.is_err());
        let before = pulse.silent_for();

        for listeners in [2, 1] {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let living = live(&pulse, &accepting, listeners);
            assert!(tokio::time::timeout(Duration::from_millis(1), living).await.is_err());
            let is_alive = pulse.silent_for() < before + Duration::from_millis(20);
            assert_eq!(is_alive, listeners == accepting.len(), "{listeners}");
        }
    }

    #[test]
    fn only_what_is_a_local_route_is_one() {
        for ours in ["/-/", "/-/status", "/-/nothing", "/-/login/main", "/-//status"] {
            assert!(is_local(ours), "{ours}");
        }
        for theirs in ["/", "/-", "/-x/", "/-/../api", "/-/%2e%2E/api", "/-/./status", "/%2d/status", "//-/"]
        {
            assert!(!is_local(theirs), "{theirs}");
        }
    }
}
