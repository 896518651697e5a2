//! A worker thread: one current-thread runtime that accepts from the shared listeners and serves what it accepted to
//! the end, with its own connections to the upstreams. A request never hops to another thread.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{self, final_response};
use super::limit::ConnectionLimit;
use super::listen::{Bound, Socket};
use super::peer::{Kernel, owner_of_unix};
use super::service::Service;
use super::socket::Transport;
use super::supervisor::HEARTBEAT;
use crate::config::is_remote;
use crate::heartbeat::Heartbeat;
use crate::problem::{Code, Problem};
use crate::proxy::guard::{Caller, Door, Peer};

/// After an accept that failed for want of descriptors, others get time to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a worker serves connections with.
pub(super) struct Worker {
    service: Arc<Service>,
    kernel: Option<Arc<Kernel>>,
    limit: Arc<ConnectionLimit>,
}

impl Worker {
    pub(super) fn new(service: Service, limit: Arc<ConnectionLimit>) -> Self {
        let kernel = Kernel::new()
            .inspect_err(|error| tracing::warn!(%error, "the kernel can't be asked who connects"))
            .ok();
        Self { service: Arc::new(service), kernel: kernel.map(Arc::new), limit }
    }

    fn peer(&self, peer: SocketAddr, stream: &TcpStream) -> Peer {
        if is_remote(peer.ip()) {
            return Peer::Remote;
        }
        let own = stream.local_addr().ok();
        Peer::Local(own.and_then(|own| self.kernel.as_ref()?.owner(peer, own)))
    }
}

/// Accepts from all listeners until `stop`, then waits until what was accepted is served.
pub(super) async fn run(
    worker: Worker,
    bound: Vec<Bound>,
    heartbeat: Arc<Heartbeat>,
    stop: CancellationToken,
) {
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
        () = live(&heartbeat, &accepting, listeners) => {}
    }
    served.close();
    served.wait().await;
}

/// Shows that this thread moves, as long as every listener is accepted from.
async fn live(heartbeat: &Heartbeat, accepting: &TaskTracker, listeners: usize) {
    loop {
        if accepting.len() == listeners {
            heartbeat.beat();
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
            while let Some((stream, peer)) = accepted(&stop, &worker.limit, || listener.accept()).await {
                // Containers come to loopback from elsewhere where `route_localnet` lets them; keys guard no such door.
                if is_remote(peer.ip()) && !is_for_remote {
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
            while let Some((stream, _)) = accepted(&stop, &worker.limit, || listener.accept()).await {
                let peer = Peer::Local(owner_of_unix(&stream));
                admit(stream, peer, &door, &worker, &served, &stop);
            }
        }
    }
    Ok(())
}

async fn accepted<T, F>(
    stop: &CancellationToken,
    limit: &ConnectionLimit,
    mut accept: impl FnMut() -> F,
) -> Option<T>
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
                limit.not_accepted(&error);
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
    let counters = worker.service.counters();
    let Some(slot) = worker.limit.enter(stop) else {
        counters.turned_away();
        let problem = Problem::new(Code::TooManyConnections, "limits.connections is reached").retry_after(1);
        stream.try_write_some(&final_response(problem));
        return;
    };
    let caller = Caller { peer, door: Arc::clone(door) };
    let (service, kernel) = (Arc::clone(&worker.service), worker.kernel.clone());
    let open = counters.caller();
    served.spawn(async move {
        connection::serve(stream, caller, service, kernel, slot).await;
        drop(open);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_that_has_lost_a_listener_shows_no_life() {
        let (heartbeat, accepting, stop) = (Heartbeat::new(), TaskTracker::new(), CancellationToken::new());
        let failing = accepting.spawn(async { panic!("an accept loop fails") });
        accepting.spawn(stop.clone().cancelled_owned());
        tokio::task::yield_now().await;
        assert!(failing.await.is_err());
        let before = heartbeat.silent_for();

        for listeners in [2, 1] {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let living = live(&heartbeat, &accepting, listeners);
            assert!(tokio::time::timeout(Duration::from_millis(1), living).await.is_err());
            let is_alive = heartbeat.silent_for() < before + Duration::from_millis(20);
            assert_eq!(is_alive, listeners == accepting.len(), "{listeners}");
        }
    }
}
