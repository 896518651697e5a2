//! SIGHUP and `cnblogs-proxy reload`: the configuration is read again, and taken over as a whole or not at all.
//!
//! A file may be a pipe that nobody writes to, or on a file system that does not answer. So a thread of its own reads,
//! one at a time, and builds everything that can fail; the control loop then swaps it in, which can't fail or wait.

use std::collections::BTreeMap;
use std::future::pending;
use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

use super::listen::check_reach;
use super::supervisor::Supervisor;
use crate::config::{Config, Reloadable};
use crate::control::Outcome;
use crate::proxy;
use crate::proxy::guard::Guard;
use crate::proxy::upstream::Way;
use crate::session::{Session, TokenSource};
use crate::store::{SealKeys, Store};
use crate::tls;

/// Whoever asks hears within so long what came of it.
const READ_WITHIN: Duration = Duration::from_secs(10);
const TAKEN_OVER: &str = "took over keys, secrets, certificates and the log filter";

/// A configuration that was read again.
pub struct Reread {
    /// All of it.
    pub config: Config,
    /// Puts its log filter in place.
    pub swap_log: Box<dyn FnOnce() + Send>,
}

/// Who waits for what comes of it; nobody behind a signal.
pub(super) type Asker = Option<oneshot::Sender<Outcome>>;

/// What reads the configuration again.
pub(super) type Read = Arc<dyn Fn() -> anyhow::Result<Reread> + Send + Sync>;

/// Reads again when asked to, and takes over what may be.
pub(super) struct Reloads {
    read: Read,
    running: Running,
    reading: Option<Reading>,
    /// Asked for while one is under way, which may have seen the files as they were before.
    once_more: Vec<Asker>,
}

/// What a reload changes.
#[derive(Clone)]
struct Running {
    config: Arc<Config>,
    sessions: BTreeMap<String, Session>,
    shared: Arc<proxy::ProxyState>,
    store: Store,
}

/// One reading, under way.
struct Reading {
    task: JoinHandle<anyhow::Result<Prepared>>,
    askers: Vec<Asker>,
    due_at: Instant,
    is_overdue: bool,
}

/// Everything new, built and not yet in use.
pub(super) struct Prepared {
    reloadable: Reloadable,
    guard: Guard,
    ways: Vec<Way>,
    sources: Vec<(Session, TokenSource)>,
    keys: Arc<SealKeys>,
    swap_log: Box<dyn FnOnce() + Send>,
}

/// The end of a reading, or of the time that it has.
pub(super) type Ended = Result<Result<anyhow::Result<Prepared>, JoinError>, Elapsed>;

impl Reloads {
    pub(super) fn new(
        read: Read,
        config: Arc<Config>,
        sessions: BTreeMap<String, Session>,
        shared: Arc<proxy::ProxyState>,
        store: Store,
    ) -> Self {
        let running = Running { config, sessions, shared, store };
        Self { read, running, reading: None, once_more: Vec::new() }
    }

    /// Begins to read, or does so once more when what is under way has ended.
    pub(super) fn ask(&mut self, asker: Asker, supervisor: &Supervisor) {
        let Some(reading) = &self.reading else { return self.start(vec![asker], supervisor) };
        let is_overdue = reading.is_overdue;
        if asker.is_some() || self.once_more.is_empty() {
            self.once_more.push(asker);
        }
        if is_overdue {
            self.give_up();
        }
    }

    /// Comes when a reading ends, or is overdue. What is dropped meanwhile loses nothing.
    pub(super) async fn ended(&mut self) -> Ended {
        match &mut self.reading {
            None => pending().await,
            Some(reading) if reading.is_overdue => Ok((&mut reading.task).await),
            Some(reading) => timeout_at(reading.due_at, &mut reading.task).await,
        }
    }

    /// Takes over what was read, or nothing, and says so to the log and to whoever asked.
    pub(super) fn settle(&mut self, ended: Ended, supervisor: &Supervisor) {
        let Ok(ended) = ended else {
            self.give_up();
            return supervisor.reloaded();
        };
        let Some(Reading { mut askers, is_overdue, .. }) = self.reading.take() else { return };
        if is_overdue {
            tracing::warn!(
                "reading the configuration has ended at last; what it brought is too old to be used"
            );
        } else {
            let prepared = ended.unwrap_or_else(|panic| Err(panic.into()));
            match prepared {
                Ok(prepared) => {
                    self.swap(prepared);
                    tell(&mut askers, &Ok(TAKEN_OVER.to_owned()));
                }
                Err(error) => not_taken_over(&mut askers, &format!("{error:#}")),
            }
            supervisor.reloaded();
        }
        if !self.once_more.is_empty() {
            let askers = take(&mut self.once_more);
            self.start(askers, supervisor);
        }
    }

    fn start(&mut self, askers: Vec<Asker>, supervisor: &Supervisor) {
        supervisor.reloading();
        let (read, running) = (Arc::clone(&self.read), self.running.clone());
        let task = spawn_blocking(move || running.prepare(read()?));
        self.reading =
            Some(Reading { task, askers, due_at: Instant::now() + READ_WITHIN, is_overdue: false });
    }

    /// Nobody waits any longer for a reading that does not end.
    fn give_up(&mut self) {
        let why = format!(
            "reading it has not ended within {} s: a pipe, or a file system that does not answer?",
            READ_WITHIN.as_secs()
        );
        let reading = self.reading.iter_mut().flat_map(|reading| {
            reading.is_overdue = true;
            take(&mut reading.askers)
        });
        let mut askers: Vec<_> = reading.collect();
        askers.extend(self.once_more.iter_mut().map(Option::take));
        self.once_more.truncate(1);
        not_taken_over(&mut askers, &why);
    }

    fn swap(&mut self, prepared: Prepared) {
        let Prepared { reloadable, guard, ways, sources, keys, swap_log } = prepared;
        let Running { config, shared, store, .. } = &mut self.running;
        swap_log();
        shared.guard.store(Arc::new(guard));
        for (endpoint, way) in shared.endpoints.iter().zip(ways) {
            endpoint.reconfigure(way);
        }
        for (session, source) in sources {
            session.reconfigure(source);
        }
        store.use_keys(keys);
        if let Err(error) = store.reconfigure(reloadable.config().store.database.as_ref()) {
            tracing::error!(%error, "the database is used as before");
        }
        *config = Arc::new(reloadable.into_config());
        tracing::info!("{TAKEN_OVER}");
    }
}

impl Running {
    /// Builds everything new, beside what runs.
    fn prepare(&self, reread: Reread) -> anyhow::Result<Prepared> {
        let Reread { config, swap_log } = reread;
        let reloadable = self.config.reloadable(config);
        let reloadable =
            reloadable.map_err(|keys| anyhow!("these keys need a restart: {}", keys.join(", ")))?;
        let config = reloadable.config();
        for listen in &self.shared.listening {
            check_reach(listen, &config.callers)?;
        }

        let keys = Arc::new(SealKeys::new(&config.store.seal_keys));
        self.store.try_keys(&keys).context("store.seal_key_files")?;
        tls::reread_system_roots()?;
        let sources = config.accounts.iter().map(|(name, account)| {
            let session = self.sessions[name].clone();
            let source = session.source().reconfigured(account.clone());
            Ok((session, source.with_context(|| format!("account.{name}"))?))
        });
        let sources = sources.collect::<anyhow::Result<_>>()?;
        let ways = self.shared.endpoints.iter().map(|endpoint| {
            let route = config.routes.iter().find(|route| route.prefix == endpoint.prefix());
            let route = route.expect("what may be taken over has the routes that run");
            Way::new(route).with_context(|| format!("route.{}", route.prefix))
        });
        let ways = ways.collect::<Result<_, _>>()?;
        Ok(Prepared { guard: Guard::new(config), reloadable, ways, sources, keys, swap_log })
    }
}

fn not_taken_over(askers: &mut [Asker], why: &str) {
    let words = format!("the configuration was not taken over: {why}");
    tracing::error!("{words}");
    tell(askers, &Err(words));
}

/// Whoever has heard something hears nothing else.
fn tell(askers: &mut [Asker], outcome: &Outcome) {
    for asker in askers.iter_mut().filter_map(Option::take) {
        // One that has gone away does not wait.
        let _sent = asker.send(outcome.clone());
    }
}
