//! Listeners, on loopback unless told otherwise, on ports that the system chose.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::request::lock;
use super::wire::{Habits, Journal, Service, serve};

/// A listener with its routes; it can be shut so that connections are refused, and opened again on the same port.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    pub(crate) journal: Arc<Journal>,
    pub(crate) habits: Arc<Habits>,
    inside: Inside,
    runtime: Handle,
    state: Mutex<State>,
}

enum State {
    Open(JoinHandle<()>),
    /// The port stays ours, bound without listening.
    Shut(TcpSocket),
    Moving,
}

#[derive(Clone)]
struct Inside {
    service: Service,
    tls: Option<TlsAcceptor>,
    journal: Arc<Journal>,
    habits: Arc<Habits>,
}

impl Door {
    /// Binds and listens.
    pub(crate) fn open(
        runtime: &Handle,
        listener: std::net::TcpListener,
        tls: Option<TlsAcceptor>,
        habits: Habits,
        service: Service,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (journal, habits) = (Arc::new(Journal::default()), Arc::new(habits));
        let inside = Inside { service, tls, journal: Arc::clone(&journal), habits: Arc::clone(&habits) };
        let listener = within(runtime, move || TcpListener::from_std(listener))?;
        let accepting = runtime.spawn(accept(listener, inside.clone()));
        let state = Mutex::new(State::Open(accepting));
        Ok(Self { address, journal, habits, inside, runtime: runtime.clone(), state })
    }

    /// Refuses connections and cuts the open ones, until [`Self::unshut`].
    pub(crate) fn shut(&self) {
        let mut state = lock(&self.state);
        let State::Open(accepting) = std::mem::replace(&mut *state, State::Moving) else {
            unreachable!("the door at {} is open when it is shut", self.address);
        };
        let address = self.address;
        let (done, bound) = mpsc::channel();
        accepting.abort();
        drop(self.runtime.spawn(async move {
            accepting.await.ok();
            done.send(reserve_again(address).await).ok();
        }));
        let socket = bound.recv().expect("the runtime outlives its door");
        *state = State::Shut(socket.expect("a port that was just left can be bound again"));
    }

    /// Accepts again.
    pub(crate) fn unshut(&self) {
        let mut state = lock(&self.state);
        let State::Shut(socket) = std::mem::replace(&mut *state, State::Moving) else {
            unreachable!("the door at {} is shut when it is opened", self.address);
        };
        let listener = within(&self.runtime, move || socket.listen(1024));
        let listener = listener.expect("a bound socket can listen");
        *state = State::Open(self.runtime.spawn(accept(listener, self.inside.clone())));
    }

    pub(crate) fn is_shut(&self) -> bool {
        matches!(*lock(&self.state), State::Shut(_))
    }
}

/// Other threads of a test start processes, and between fork and exec such a child holds the port, too.
async fn reserve_again(address: SocketAddr) -> io::Result<TcpSocket> {
    for _ in 0..1000 {
        match reserve(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            reserved => return reserved,
        }
    }
    reserve(address)
}

/// A listener that must never be contacted.
#[derive(Debug)]
pub(crate) struct Trap {
    address: SocketAddr,
    caught: Arc<AtomicUsize>,
    bytes: Arc<Mutex<Vec<u8>>>,
    task: AbortHandle,
}

impl Trap {
    pub(crate) fn set(runtime: &Handle) -> io::Result<Self> {
        let listener = bind(Ipv4Addr::LOCALHOST.into())?;
        let address = listener.local_addr()?;
        let (caught, bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let listener = within(runtime, move || TcpListener::from_std(listener))?;
        let task = runtime.spawn(catch(listener, Arc::clone(&caught), Arc::clone(&bytes)));
        Ok(Self { address, caught, bytes, task: task.abort_handle() })
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn authority(&self) -> String {
        self.address.to_string()
    }

    /// How many connections came.
    pub(crate) fn caught(&self) -> usize {
        self.caught.load(Ordering::SeqCst)
    }

    /// Everything that they sent.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        lock(&self.bytes).clone()
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A socket on a port of the system's choice.
pub(crate) fn bind(address: IpAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind((address, 0))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn accept(listener: TcpListener, inside: Inside) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(stream, inside.clone()))),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, inside: Inside) {
    let Inside { service, tls, journal, habits } = inside;
    stream.set_nodelay(true).ok();
    let Some(tls) = tls else {
        return serve(Box::new(stream), &service, &journal, &habits).await;
    };
    let Ok(stream) = tls.accept(stream).await else { return };
    serve(Box::new(stream), &service, &journal, &habits).await;
}

async fn catch(listener: TcpListener, caught: Arc<AtomicUsize>, bytes: Arc<Mutex<Vec<u8>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        caught.fetch_add(1, Ordering::SeqCst);
        let bytes = Arc::clone(&bytes);
        drop(tokio::task::spawn_blocking(move || listen_to(stream, &bytes)));
    }
}

fn listen_to(stream: TcpStream, bytes: &Mutex<Vec<u8>>) {
    let Ok(mut stream) = stream.into_std() else { return };
    stream.set_nonblocking(false).ok();
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok();
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        lock(bytes).extend_from_slice(&piece[..read]);
    }
}

fn reserve(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn within<T>(runtime: &Handle, what: impl FnOnce() -> T) -> T {
    let _entered = runtime.enter();
    what()
}
