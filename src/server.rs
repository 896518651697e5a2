//! Assembles the parts and takes them apart again: the store, the keepers, the control runtime, the worker
//! threads, and the order of stopping.
//!
//! ```text
//! main thread    control runtime: keepers, control routes, signals, files, commands
//! worker threads one current-thread runtime each: accept, guard, forward
//! ```

mod accept;
mod connection;
mod limit;
pub mod listen;
pub mod peer;
mod reload;
mod service;
mod socket;
mod supervisor;
#[cfg(any(test, fuzzing))]
pub mod properties;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use axum::Router;
use rustix::process::{Resource, getrlimit};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Listen};
use crate::control::login::Logins;
use crate::control::{self, Control};
use crate::heartbeat::Heartbeat;
use crate::metrics::Metrics;
use crate::notify::{self, Notifier};
use crate::proxy::guard::Guard;
use crate::proxy::upstream::Endpoint;
use crate::proxy::{self, login_url};
use crate::session::{self, Session, State, TokenSource};
use crate::store::{Findings, Store};
use crate::token::{Clock, now};
use accept::Worker;
use limit::ConnectionLimit;
pub use limit::raise_open_files;
use listen::{Bound, Inherited};
use reload::Reloads;
pub use reload::Reread;
use service::Service;
use supervisor::Supervisor;

/// The socket in the state directory that our own commands use.
const CONTROL_SOCKET: &str = "control.sock";
/// A refresh in flight is waited for at most as long when stopping.
const KEEPERS_WITHIN: Duration = Duration::from_secs(15);

/// The sessions of all accounts over one locked store.
pub struct Accounts {
    /// By name.
    pub sessions: BTreeMap<String, Session>,
    /// Logins in progress.
    pub logins: Logins,
    store: Store,
    keepers: Vec<JoinHandle<()>>,
    follower: JoinHandle<()>,
    stop: CancellationToken,
}

/// How the daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything that was open is finished.
    Drained,
    /// A second signal, or the end of the drain time, cut something off.
    CutOff,
}

impl Accounts {
    /// Opens the store and starts a keeper for every account on the current runtime.
    ///
    /// # Errors
    /// When the store is in use, not ours, or can't be read.
    pub async fn open(config: &Config, notifier: &Notifier) -> anyhow::Result<Self> {
        Self::over(Store::open(config).await?, config, notifier)
    }

    fn over(
        (store, findings): (Store, Findings),
        config: &Config,
        notifier: &Notifier,
    ) -> anyhow::Result<Self> {
        let Findings { warnings, in_flight } = findings;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        let stop = CancellationToken::new();
        let mut sessions = BTreeMap::new();
        let mut keepers = Vec::new();
        for account in config.accounts.values() {
            let is_in_flight = in_flight.contains(&account.name);
            let (session, keeper) = session::start(
                TokenSource::new(account.clone(), config.limits.token_timeout, &config.state_dir)?,
                store.clone(),
                is_in_flight,
                notifier.clone(),
                Clock::default(),
                fastrand::Rng::new(),
                stop.clone(),
            );
            sessions.insert(account.name.clone(), session);
            keepers.push(keeper);
        }
        let logins = Logins::new(&sessions, store.clone());
        let follower = tokio::spawn(store.clone().follow());
        Ok(Self { sessions, logins, store, keepers, follower, stop })
    }

    /// Lets every keeper finish what it has begun.
    pub async fn close(self) {
        close(self.stop, self.keepers).await;
        self.follower.abort();
    }
}

/// Runs the daemon on the current thread until a signal ends it. `accepting` is told where it listens and which
/// accounts need a login, with the address of the page; `read` reads the configuration again.
///
/// # Errors
/// When it can't start: a port or the state directory is taken, a file can't be read.
pub fn run(
    config: Config,
    inherited: Inherited,
    accepting: impl FnOnce(&[Listen], &[(String, Option<String>)]),
    read: impl Fn() -> anyhow::Result<Reread> + Send + Sync + 'static,
) -> anyhow::Result<Ended> {
    let runtime =
        Builder::new_current_thread().enable_all().build().context("starting the control runtime")?;
    let ended = runtime.block_on(serve(config, inherited, accepting, Arc::new(read)));
    // What is still blocked in a file operation does not hold up the exit.
    runtime.shutdown_background();
    ended
}

/// Where our own commands find a running daemon.
pub fn control_socket(state_dir: &Path) -> PathBuf {
    state_dir.join(CONTROL_SOCKET)
}

async fn serve(
    config: Config,
    inherited: Inherited,
    accepting: impl FnOnce(&[Listen], &[(String, Option<String>)]),
    read: reload::Read,
) -> anyhow::Result<Ended> {
    let started_with = getrlimit(Resource::Nofile);
    raise_open_files();
    limit::warn_of_few_files(config.limits.connections);
    let mut signals = Signals::new().context("asking for signals")?;
    let (notifier, notices) = notify::channel();
    let notifying = tokio::spawn(notify::run(notices, config.notify.clone(), started_with));

    let opened = Store::open(&config).await?;
    // Before an account asks for a login, which is of no use where nothing can be listened on.
    let mut bound = listen::bind(&config, inherited)?;
    let _removed_at_the_end: Vec<_> = bound.iter_mut().filter_map(|one| one.file.take()).collect();
    let Accounts { sessions, logins, store, mut keepers, follower, stop: stop_keepers } =
        Accounts::over(opened, &config, &notifier)?;
    let listening: Vec<_> = bound.iter().map(|one| one.listen.clone()).collect();
    name_holder(&store, &listening);

    let metrics = Arc::new(Metrics::default());
    let heartbeats: Vec<_> = (0..config.worker_threads()).map(|_| Arc::new(Heartbeat::new())).collect();
    let (seen, on) = (Arc::clone(&metrics), listening.clone());
    let control = Control::new(sessions.clone(), logins, seen, on, heartbeats.clone(), &config.routes);
    let control = Arc::new(control);
    let shared = Arc::new(shared(&config, &sessions, metrics, listening.clone())?);
    let stop = CancellationToken::new();
    let (asked, mut askers) = mpsc::channel(8);
    let private = control::private_router(Arc::clone(&control), asked);
    let private = serve_commands(&config.state_dir, private, stop.clone());
    let local = control::router(Arc::clone(&control));
    let mut workers = start_workers(heartbeats, &bound, &shared, &local, &stop)?;
    drop(bound);

    accepting(&listening, &needing_login(&sessions, &listening));
    let mut supervisor = Supervisor::new();
    supervisor.ready(&sessions, &listening);
    let config = Arc::new(config);
    let mut reloads = Reloads::new(read, Arc::clone(&config), sessions.clone(), Arc::clone(&shared), store);

    let is_asked_to_end = tokio::select! {
        () = attend(&mut signals, &mut askers, &mut reloads, &mut supervisor, &shared, &control) => true,
        () = one_has_ended(&mut keepers) => false,
    };
    supervisor.stopping();
    stop.cancel();
    let drained = drain(&mut signals, &mut workers, config.limits.drain_timeout).await;
    let kept = tokio::select! {
        () = close(stop_keepers, keepers) => true,
        () = signals.terminate() => false,
    };
    [private, follower].iter().for_each(JoinHandle::abort);
    remove_control_socket(&config.state_dir);
    drop(notifier);
    notifying.abort();
    anyhow::ensure!(is_asked_to_end, "the keeper of an account has failed: without it no token is refreshed");
    Ok(if drained && kept { Ended::Drained } else { Ended::CutOff })
}

/// Says in the lock file who holds it, for a second daemon on the same state.
fn name_holder(store: &Store, listening: &[Listen]) {
    let addresses = listening.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if let Err(error) = store.name_holder(&format!("process {}, on {addresses}", std::process::id())) {
        tracing::warn!(%error, "the lock file does not say who we are");
    }
}

/// The accounts that need a login, with the address of its page.
fn needing_login(
    sessions: &BTreeMap<String, Session>,
    listening: &[Listen],
) -> Vec<(String, Option<String>)> {
    let needing = sessions.iter().filter(|(_, session)| session.status().state == State::LoginRequired);
    needing.map(|(name, _)| (name.clone(), login_url(listening, name))).collect()
}

fn shared(
    config: &Config,
    sessions: &BTreeMap<String, Session>,
    metrics: Arc<Metrics>,
    listening: Vec<Listen>,
) -> anyhow::Result<proxy::ProxyState> {
    let endpoint = |route| Endpoint::new(route, config.limits, listening.clone()).map(Arc::new);
    let endpoints: Result<Vec<_>, _> = config.routes.iter().map(endpoint).collect();
    Ok(proxy::ProxyState {
        guard: ArcSwap::from_pointee(Guard::new(config)),
        endpoints: endpoints?,
        sessions: config.routes.iter().map(|route| sessions[&route.account].clone()).collect(),
        limits: config.limits,
        metrics,
        listening,
    })
}

fn start_workers(
    heartbeats: Vec<Arc<Heartbeat>>,
    bound: &[Bound],
    shared: &Arc<proxy::ProxyState>,
    local: &Router,
    stop: &CancellationToken,
) -> anyhow::Result<mpsc::Receiver<()>> {
    // Every worker holds a sender; the receiver ends when the last worker has.
    let (alive, ended) = mpsc::channel(1);
    let (control, limit) = (Handle::current(), ConnectionLimit::new(shared.limits.connections));
    for (number, heartbeat) in heartbeats.into_iter().enumerate() {
        let bound: Vec<_> =
            bound.iter().map(Bound::share).collect::<Result<_, _>>().context("sharing listeners")?;
        let (shared, local, control) = (Arc::clone(shared), local.clone(), control.clone());
        let (stop, alive, limit) = (stop.clone(), alive.clone(), Arc::clone(&limit));
        let runtime =
            Builder::new_current_thread().enable_all().build().context("starting a worker's runtime")?;
        std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                let _alive = alive;
                let worker = {
                    let _entered = runtime.enter();
                    Worker::new(Service::new(shared, local, control), limit)
                };
                // As a task: a runtime that wakes what it blocks on does so by a system call.
                let _ended = runtime.block_on(runtime.spawn(accept::run(worker, bound, heartbeat, stop)));
                runtime.shutdown_background();
            })
            .context("starting a worker thread")?;
    }
    Ok(ended)
}

/// Until the first signal that ends: tells the service manager how things are, and reloads when asked to.
async fn attend(
    signals: &mut Signals,
    askers: &mut mpsc::Receiver<oneshot::Sender<control::Outcome>>,
    reloads: &mut Reloads,
    supervisor: &mut Supervisor,
    shared: &proxy::ProxyState,
    control: &Control,
) {
    let mut heartbeat = supervisor.heartbeat();
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Asked::End => return,
                Asked::Reread => reloads.ask(None, supervisor),
            },
            Some(asker) = askers.recv() => reloads.ask(Some(asker), supervisor),
            ended = reloads.ended() => reloads.settle(ended, supervisor),
            _ = heartbeat.tick() => {
                shared.metrics.look(now());
                supervisor.beat(&control.sessions, &shared.listening, control.stuck());
            }
        }
    }
}

/// Waits until every worker has answered what it accepted. False when something was cut off.
async fn drain(signals: &mut Signals, workers: &mut mpsc::Receiver<()>, within: Duration) -> bool {
    tokio::select! {
        _ = workers.recv() => true,
        () = tokio::time::sleep(within) => {
            tracing::warn!("some requests took longer than the drain time and were cut off");
            true
        }
        () = signals.terminate() => false,
    }
}

/// Comes when a keeper ends by itself, which only a panic makes it do.
async fn one_has_ended(keepers: &mut Vec<JoinHandle<()>>) {
    poll_fn(|cx| {
        let has_ended = keepers.iter_mut().any(|keeper| Pin::new(keeper).poll(cx).is_ready());
        if has_ended { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    keepers.retain(|keeper| !keeper.is_finished());
}

async fn close(stop: CancellationToken, keepers: Vec<JoinHandle<()>>) {
    stop.cancel();
    let deadline = tokio::time::Instant::now() + KEEPERS_WITHIN;
    for keeper in keepers {
        if tokio::time::timeout_at(deadline, keeper).await.is_err() {
            tracing::warn!("a refresh in flight did not end in time");
        }
    }
}

/// Serves our own commands, for those who may enter the state directory.
fn serve_commands(state_dir: &Path, router: Router, stop: CancellationToken) -> JoinHandle<()> {
    let bound = bind_control_socket(state_dir);
    tokio::spawn(async move {
        let listener = match bound {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!("commands will not find this daemon: {error:#}");
                return;
            }
        };
        let serving = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = serving.await {
            tracing::warn!(%error, "commands do not find this daemon any more");
        }
    })
}

fn bind_control_socket(state_dir: &Path) -> anyhow::Result<UnixListener> {
    let path = reachable(state_dir)?.join(CONTROL_SOCKET);
    // We hold the lock, so whoever made it is gone.
    let _removed = std::fs::remove_file(&path);
    let listener = listen::bind_unix(&path, 0o600)?;
    listener.set_nonblocking(true)?;
    Ok(UnixListener::from_std(listener)?)
}

fn remove_control_socket(state_dir: &Path) {
    let _removed = std::fs::remove_file(control_socket(state_dir));
}

/// The directory by a name that is short enough for a socket's address.
///
/// # Errors
/// When it can't be opened.
pub fn reachable(dir: &Path) -> anyhow::Result<PathBuf> {
    const LONGEST: usize = 80;
    if dir.as_os_str().len() <= LONGEST {
        return Ok(dir.to_owned());
    }
    // The descriptor stays open as long as the program, like the socket.
    let handle = Box::leak(Box::new(std::fs::File::open(dir)?));
    Ok(PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(handle))))
}

enum Asked {
    End,
    Reread,
}

struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.term.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.hangup.recv() => Asked::Reread,
        }
    }

    async fn terminate(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
