//! Logins that replicas share through PostgreSQL: a row an account, and a claim in it instead of a lock.
//!
//! Whoever holds the claim on generation *g* may spend its refresh token, with no transaction open and nothing locked.
//! A claim is durable before it is used, and can be taken over when it is older than any refresh lasts; whoever takes
//! it over knows that it is in doubt. A successor is kept where the generation is still *g*, whoever holds the claim by
//! then; until that is acknowledged it is, sealed, in the state directory as well (`store.unsaved.ACCOUNT`).
//!
//! Times are the database's: what is kept in a record is counted by its clock.

mod admin;
mod link;
mod sql;
mod unsaved;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio_postgres::{Client, SimpleQueryRow};

use super::files::{self, Directory};
use super::record::Generation;
use super::seal::{SealKeys, SealedFor};
use super::{Binding, Findings, LOCK, Record, Saved, StoreError};
use crate::config::{Config, Database};
use crate::notify::with_causes;
use crate::token::{Moment, now};
use link::{Fresh, Link, LinkError};
use sql::Sql;
use unsaved::{Unsaved, UnsavedFiles};

pub use admin::{init, init_sql, inspect};

/// How often it is looked what others changed, in case that the database can't tell: while somebody waits, and else.
const LOOK_OFTEN: Duration = Duration::from_secs(2);
const LOOK_SELDOM: Duration = Duration::from_secs(30);
/// How soon a connection is made again.
const RECONNECT: Duration = Duration::from_secs(1);
/// What a claim may be late beside two requests to the token endpoint.
const SPARE: Duration = Duration::from_secs(30);

/// The open store. Holding it means holding the lock on the state directory.
pub struct PostgresStore {
    database: Database,
    sql: Sql,
    link: Link,
    keys: ArcSwap<SealKeys>,
    directory: Directory,
    lock: File,
    unsaved: UnsavedFiles,
    token_timeout: Duration,
    /// Names this process in claims.
    me: String,
    claims: AtomicU64,
    rows: Mutex<BTreeMap<String, Row>>,
    /// What an earlier process of this state directory could not save.
    left_behind: Mutex<BTreeMap<String, Unsaved>>,
    /// The rows were read once.
    is_read: AtomicBool,
    /// How far our wall clock is ahead of the database's.
    ahead_ms: AtomicI64,
    waiting: Mutex<BTreeSet<String>>,
    look: Notify,
    changes: watch::Sender<u64>,
    /// A connection that was made when the store was opened.
    fresh: Mutex<Option<Fresh>>,
}

/// A row, as it was last seen.
#[derive(Clone, Debug, Default)]
struct Row {
    generation: u64,
    sealed: Option<Vec<u8>>,
    logins: Generation,
    claim: Option<String>,
    claimed_by: Option<String>,
    claimed_secs: u64,
}

/// The right to spend a refresh token.
#[derive(Debug)]
pub struct Claim {
    account: String,
    id: String,
    generation: u64,
    since: Moment,
    taken_from: Option<String>,
    /// What was sent to be kept, the newest last.
    sent: Vec<Sent>,
}

#[derive(Debug)]
struct Sent {
    generation: u64,
    record: Record,
    logins: Generation,
    sealed: Vec<u8>,
}

/// What is told of a login that replicas share.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SharedLogin {
    /// How often it was replaced.
    pub generation: u64,
    /// The replica that refreshed it last, or is about to.
    pub refreshed_by: Option<String>,
}

impl PostgresStore {
    /// Opens the store. A database that is not there does not prevent that: it is asked again and again by
    /// [`Self::follow`].
    ///
    /// # Errors
    /// When the state directory is in use or not ours, the tables are a newer program's, or a record is sealed with
    /// none of the keys.
    pub(super) async fn open(
        config: &Config,
        database: &Database,
        keys: Arc<SealKeys>,
    ) -> Result<(Self, Findings), StoreError> {
        let mut findings = Findings::default();
        let directory = Directory::open(&config.state_dir, &mut findings)?;
        let lock = files::take_lock(&directory)?;
        directory.lock()?;
        let token_timeout = config.limits.token_timeout;
        let unsaved = UnsavedFiles::in_dir(&config.state_dir);
        let left_behind = unsaved.read(&mut findings)?;
        let link = Link::new(database).map_err(|error| StoreError::Database(with_causes(&error)))?;
        let store = Self {
            database: database.clone(),
            sql: Sql::new(&database.schema),
            link,
            keys: ArcSwap::new(keys),
            directory,
            lock,
            unsaved,
            token_timeout,
            me: own_name(),
            claims: AtomicU64::new(0),
            rows: Mutex::default(),
            left_behind: Mutex::default(),
            is_read: AtomicBool::new(false),
            ahead_ms: AtomicI64::new(0),
            waiting: Mutex::default(),
            look: Notify::new(),
            changes: watch::Sender::new(0),
            fresh: Mutex::default(),
        };
        store.serve_unsaved(left_behind)?;
        store.begin_at_once(&mut findings).await?;
        Ok((store, findings))
    }

    /// What could not be saved is the newest there is, and serves until the database says otherwise.
    fn serve_unsaved(&self, left_behind: BTreeMap<String, Unsaved>) -> Result<(), StoreError> {
        for (account, unsaved) in &left_behind {
            let logins = self.opened(account, unsaved.to, &unsaved.sealed)?;
            let row = Row { generation: unsaved.to, logins, ..Row::default() };
            self.rows().insert(account.clone(), row);
        }
        *self.left_behind.lock().expect(UNPOISONED) = left_behind;
        Ok(())
    }

    async fn begin_at_once(&self, findings: &mut Findings) -> Result<(), StoreError> {
        let mut fresh = match self.link.connect().await {
            Ok(fresh) => fresh,
            Err(error) => {
                self.link.is_down(&error);
                findings.warnings.push(format!("{} can't be used yet: {error}", self.database.shown));
                return Ok(());
            }
        };
        let client = Arc::clone(&fresh.0);
        let begun = Link::ask_once(&mut fresh, self.begin(&client)).await;
        match begun.unwrap_or_else(|error| Err(StoreError::Database(error.to_string()))) {
            Ok(()) => *self.fresh.lock().expect(UNPOISONED) = Some(fresh),
            Err(StoreError::Database(words)) => {
                self.link.is_down(&LinkError::of_words(&words));
                findings.warnings.push(format!("{} can't be used yet: {words}", self.database.shown));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What is asked first on every connection.
    async fn begin(&self, client: &Client) -> Result<(), StoreError> {
        let failed = |error: LinkError| StoreError::Database(error.to_string());
        admin::make_missing(client, &self.sql).await.map_err(failed)?;
        let version = admin::version(client, &self.sql).await.map_err(failed)?;
        admin::is_ours(&self.database, version)?;
        link::run(client, &self.sql.listen()).await.map_err(failed)?;
        let rows = link::run(client, &self.sql.rows(None)).await.map_err(failed)?;
        self.take_in(&rows, false)?;
        self.save_left_behind(client).await?;
        self.is_read.store(true, Ordering::Release);
        self.tell();
        Ok(())
    }

    /// Holds the connection, makes it again, and looks what others change. Never ends.
    pub(super) async fn follow(&self) {
        tokio::join!(self.stay_connected(), self.keep_looking());
    }

    async fn stay_connected(&self) {
        let mut next = self.fresh.lock().expect(UNPOISONED).take().map(Ok);
        let mut told = String::new();
        loop {
            let connected = match next.take() {
                Some(fresh) => fresh,
                None => self.link.connect().await,
            };
            let why = match connected {
                Ok(fresh) => self.use_connection(fresh).await,
                Err(error) => {
                    self.link.is_down(&error);
                    error
                }
            };
            self.tell();
            let is_new = told != why.to_string();
            if is_new && self.link.has_failed() {
                told = why.to_string();
                tracing::warn!(database = self.database.shown, reason = told, "the database can't be used");
            }
            let pause = if self.link.has_failed() { RECONNECT } else { RECONNECT / 10 };
            tokio::time::sleep(pause.mul_f64(1.0 + 2.0 * fastrand::f64())).await;
        }
    }

    async fn use_connection(&self, fresh: Fresh) -> LinkError {
        let client = Arc::clone(&fresh.0);
        let first = async move {
            let begun = self.begin(&client).await;
            begun.map_err(|error| LinkError::of_words(&with_causes(&error)))
        };
        self.link.drive(fresh, first, || self.look.notify_one()).await
    }

    async fn keep_looking(&self) {
        loop {
            let is_awaited = !self.waiting.lock().expect(UNPOISONED).is_empty();
            let pause =
                if is_awaited { LOOK_OFTEN } else { LOOK_SELDOM.mul_f64(0.9 + 0.2 * fastrand::f64()) };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.look.notified() => {}
            }
            if let Ok(rows) = self.link.run(&self.sql.rows(None)).await
                && let Err(error) = self.take_in(&rows, false)
            {
                tracing::error!(error = with_causes(&error), "a login that others changed can't be used");
            }
        }
    }

    /// Says who holds the state directory.
    pub(super) fn name_holder(&self, who: &str) -> Result<(), StoreError> {
        files::name_holder(&self.lock, &self.directory.join(LOCK), who)
    }

    pub(super) fn record(&self, account: &str, binding: &Binding) -> Option<Record> {
        let record = self.rows().get(account)?.logins.record(account, binding).cloned();
        record.map(|record| self.by_our_clock(record))
    }

    pub(super) fn records_of(&self, account: &str) -> Vec<Record> {
        let logins = self.rows().get(account).map(|row| row.logins.clone()).unwrap_or_default();
        logins.records_of(account).cloned().map(|record| self.by_our_clock(record)).collect()
    }

    pub(super) fn accounts(&self) -> BTreeSet<String> {
        let rows = self.rows();
        rows.iter().filter(|(_, row)| !row.logins.records.is_empty()).map(|(name, _)| name.clone()).collect()
    }

    /// Why it is not known yet whether there is a login.
    pub(super) fn why_unknown(&self) -> Option<String> {
        let is_known = self.is_read.load(Ordering::Acquire);
        (!is_known).then(|| format!("{} was not reached yet", self.database.shown))
    }

    /// True when another process holds the claim on an account.
    pub(super) fn is_claimed(&self, account: &str) -> bool {
        self.rows().get(account).is_some_and(|row| {
            row.claim.is_some() && row.claimed_by.as_ref().is_some_and(|by| *by != self.me)
        })
    }

    /// Whether somebody waits for what another replica does with an account: it is looked for more often then.
    pub(super) fn await_change(&self, account: &str, waits: bool) {
        let mut waiting = self.waiting.lock().expect(UNPOISONED);
        match waits {
            true if waiting.insert(account.to_owned()) => self.look.notify_one(),
            true => {}
            false => drop(waiting.remove(account)),
        }
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Takes the claim on an account.
    pub(super) async fn reserve(&self, account: &str) -> Result<Claim, StoreError> {
        let client = self.link.client().await.map_err(|error| self.unusable(&error))?;
        self.save_left_behind(&client).await?;
        let number = self.claims.fetch_add(1, Ordering::Relaxed);
        let (id, since) = (format!("{} {number}", self.me), now());
        let sql = self.sql.claim(account, &id, &self.me, self.stale_after());
        let rows = self.asked(&sql).await?;
        let taken_from = rows.iter().find_map(|row| text(row, "taken_from"));
        self.take_in(&rows, false)?;
        let row = self.rows().get(account).cloned().unwrap_or_default();
        if seen(&rows).and_then(|row| text(row, "claim")).as_ref() != Some(&id) {
            let replica = row.claimed_by.unwrap_or_else(|| "another replica".to_owned());
            let left = self.stale_after().saturating_sub(Duration::from_secs(row.claimed_secs));
            return Err(StoreError::Claimed { replica, left: left + Duration::from_secs(1) });
        }
        if let Some(replica) = &taken_from {
            tracing::warn!(
                account,
                replica,
                "takes over a refresh that another replica began and did not end"
            );
        }
        let generation = seen(&rows).and_then(|row| number_of(row, "generation")).unwrap_or_default();
        Ok(Claim { account: account.to_owned(), id, generation, since, taken_from, sent: Vec::new() })
    }

    /// Keeps a record as the successor of the claimed generation, or beside its tokens when they are the same.
    pub(super) async fn commit(&self, claim: &mut Claim, record: &Record) -> Result<Saved, StoreError> {
        let logins = self.rows().get(&claim.account).map(|row| (row.generation, row.logins.clone()));
        let (known, logins) = logins.unwrap_or_default();
        let record = self.by_its_clock(record.clone());
        let has_same_tokens = |old: &Record| old.has_tokens_of(&record);
        let is_mark = logins.record(&claim.account, &record.binding).is_some_and(has_same_tokens);
        let is_sent = claim.sent.last().is_some_and(|sent| sent.record.is_same(&record));
        if !is_sent {
            let generation = if is_mark { claim.generation } else { known.max(claim.generation) + 1 };
            let mut logins = logins;
            logins.put(&claim.account, record.clone());
            logins.number = generation;
            let sealed = self.sealed(&claim.account, &logins);
            claim.sent.push(Sent { generation, record, logins, sealed });
        }
        self.send(claim).await
    }

    /// Erases all logins of an account.
    pub(super) async fn erase(&self, claim: &mut Claim) -> Result<(), StoreError> {
        let known = self.rows().get(&claim.account).map_or(0, |row| row.generation);
        let next = known.max(claim.generation) + 1;
        let rows = self.asked(&self.sql.keep(&claim.account, claim.generation, next, None)).await?;
        self.take_in(&rows, false)?;
        self.unsaved.remove(&claim.account).await?;
        match seen(&rows).and_then(|row| text(row, "record")) {
            None => Ok(()),
            Some(_) => Err(StoreError::Database("another replica replaced the login meanwhile".to_owned())),
        }
    }

    /// True when these keys open all rows as they were last seen.
    pub(super) fn try_keys(&self, keys: &SealKeys) -> Result<(), StoreError> {
        let rows = self.rows().clone();
        rows.iter().try_for_each(|(account, row)| match &row.sealed {
            Some(sealed) => self.opened_with(keys, account, row.generation, sealed).map(drop),
            None => Ok(()),
        })
    }

    pub(super) fn use_keys(&self, keys: Arc<SealKeys>) {
        self.keys.store(keys);
    }

    /// Seals every row with the first key. Says so in words.
    pub(super) async fn rekey(&self) -> Result<String, StoreError> {
        let names = self.keys.load().names();
        let key = names.first().ok_or(StoreError::NoSealKey)?;
        let accounts = self.accounts();
        for account in &accounts {
            let claim = self.reserve(account).await?;
            let row = self.rows().get(account).cloned().unwrap_or_default();
            let sealed = self.sealed(account, &row.logins);
            self.asked(&self.sql.mark(account, claim.generation, &sealed, &claim.id)).await?;
        }
        let accounts: Vec<_> = accounts.into_iter().collect();
        let accounts =
            if accounts.is_empty() { "no login is stored".to_owned() } else { accounts.join(", ") };
        Ok(format!("sealed with {key}: {accounts}"))
    }

    /// Gives a claim back: nothing was spent.
    pub(super) async fn release(&self, claim: &Claim) {
        // Who can't be reached is told by the claim's age.
        let _released = self.link.run(&self.sql.release(&claim.account, &claim.id)).await;
    }

    /// True while there is a connection.
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// How many claims were tried.
    pub fn claims(&self) -> u64 {
        self.claims.load(Ordering::Relaxed)
    }

    /// Which database it is.
    pub fn shown(&self) -> &str {
        &self.database.shown
    }

    pub(super) fn shared_login(&self, account: &str) -> Option<SharedLogin> {
        let rows = self.rows();
        let row = rows.get(account)?;
        Some(SharedLogin { generation: row.generation, refreshed_by: row.claimed_by.clone() })
    }

    pub(super) fn reconfigure(&self, database: &Database) -> Result<(), StoreError> {
        self.link.reconfigure(database).map_err(|error| StoreError::Database(with_causes(&error)))
    }

    /// Sends what is to be kept, on whatever connection there is by now.
    async fn send(&self, claim: &mut Claim) -> Result<Saved, StoreError> {
        let Claim { account, id, generation: from, sent, .. } = claim;
        let (newest, earlier) = sent.split_last().expect("something is to be kept");
        let is_mark = newest.generation == *from;
        let sql = if is_mark {
            self.sql.mark(account, *from, &newest.sealed, id)
        } else {
            let copy = Unsaved { from: *from, to: newest.generation, sealed: newest.sealed.clone() };
            self.unsaved.write(account, &copy).await;
            self.sql.keep(account, *from, newest.generation, Some(&newest.sealed))
        };
        let rows = self.asked(&sql).await?;
        let found = seen(&rows).and_then(|row| text(row, "record")).and_then(|hex| sql::unhex(&hex));
        let generation = seen(&rows).and_then(|row| number_of(row, "generation")).unwrap_or_default();
        if found.as_ref() == Some(&newest.sealed) {
            let row = Row {
                generation: newest.generation,
                sealed: found,
                logins: newest.logins.clone(),
                claimed_by: Some(self.me.clone()),
                ..Row::default()
            };
            self.rows().insert(account.clone(), row);
            self.unsaved.remove(account).await?;
            return Ok(Saved::Kept);
        }
        if earlier.iter().any(|sent| Some(&sent.sealed) == found.as_ref()) || generation < *from {
            // An earlier try of ours arrived late, or an older backup was put in place: ours is the successor of that.
            *from = generation;
            sent.clear();
            return Err(StoreError::Database("the login has to be saved once more".to_owned()));
        }
        self.take_in(&rows, true)?;
        self.unsaved.remove(account).await?;
        Ok(Saved::Superseded)
    }

    /// Saves what an earlier process could not, where nobody did anything else meanwhile.
    async fn save_left_behind(&self, client: &Client) -> Result<(), StoreError> {
        let left_behind = self.left_behind.lock().expect(UNPOISONED).clone();
        for (account, Unsaved { from, to, sealed }) in left_behind {
            let keep = |from| self.sql.keep(&account, from, to, Some(&sealed));
            let mut rows = link::run(client, &keep(from)).await.map_err(|error| self.unusable(&error))?;
            match seen(&rows).and_then(|row| number_of(row, "generation")) {
                // An older backup was put in place.
                Some(older) if older < from => {
                    rows = link::run(client, &keep(older)).await.map_err(|error| self.unusable(&error))?;
                }
                _ => {}
            }
            self.take_in(&rows, true)?;
            self.unsaved.remove(&account).await?;
            self.left_behind.lock().expect(UNPOISONED).remove(&account);
            tracing::info!(account, "the login that could not be saved before is settled");
        }
        Ok(())
    }

    /// Takes over what is newer than what is known. An older row, or none, is what a backup left: it is replaced at the
    /// next refresh, except where `is_final`.
    fn take_in(&self, found: &[SimpleQueryRow], is_final: bool) -> Result<(), StoreError> {
        let mut has_changed = false;
        for found in found {
            let (Some(account), Some(generation)) = (text(found, "account"), number_of(found, "generation"))
            else {
                continue;
            };
            if let Some(now_ms) = number_of(found, "now_ms") {
                let ahead_ms = now().wall_ms().saturating_sub(i64::try_from(now_ms).unwrap_or(i64::MAX));
                self.ahead_ms.store(ahead_ms, Ordering::Relaxed);
            }
            let sealed = text(found, "record").and_then(|hex| sql::unhex(&hex));
            let claim = (text(found, "claim"), text(found, "claimed_by"), number_of(found, "claimed_secs"));
            has_changed |= self.take_in_row(&account, generation, sealed, claim, is_final)?;
        }
        if has_changed {
            self.tell();
        }
        Ok(())
    }

    fn take_in_row(
        &self,
        account: &str,
        generation: u64,
        sealed: Option<Vec<u8>>,
        (claim, claimed_by, claimed_secs): (Option<String>, Option<String>, Option<u64>),
        is_final: bool,
    ) -> Result<bool, StoreError> {
        let known = self.rows().get(account).cloned();
        let is_older = known.as_ref().is_some_and(|row| row.generation > generation) && !is_final;
        let is_same = known.as_ref().is_some_and(|row| row.generation == generation && row.sealed == sealed);
        let mut row = known.clone().unwrap_or_default();
        if !is_older && !is_same {
            row.logins = match &sealed {
                Some(sealed) => self.opened(account, generation, sealed)?,
                None => Generation::default(),
            };
            row.sealed = sealed;
            row.generation = generation;
        }
        let has_changed = !is_older && !is_same || known.is_none_or(|known| known.claim != claim);
        row.claim = claim;
        row.claimed_by = claimed_by;
        row.claimed_secs = claimed_secs.unwrap_or_default();
        self.rows().insert(account.to_owned(), row);
        Ok(has_changed)
    }

    fn sealed(&self, account: &str, logins: &Generation) -> Vec<u8> {
        let place = SealedFor { schema: &self.database.schema, account, generation: logins.number };
        // Sealed as a whole.
        self.keys.load().seal(&place, &logins.encode(&SealKeys::default()))
    }

    fn opened(&self, account: &str, generation: u64, sealed: &[u8]) -> Result<Generation, StoreError> {
        self.opened_with(&self.keys.load(), account, generation, sealed)
    }

    fn opened_with(
        &self,
        keys: &SealKeys,
        account: &str,
        generation: u64,
        sealed: &[u8],
    ) -> Result<Generation, StoreError> {
        let place = SealedFor { schema: &self.database.schema, account, generation };
        let plain = keys.open(&place, sealed).map_err(|source| StoreError::SealedRow {
            database: format!("{}, schema {}", self.database.shown, self.database.schema),
            account: account.to_owned(),
            source,
        })?;
        let decoded = Generation::decode(&plain, &SealKeys::default());
        decoded.map_err(|damage| StoreError::Database(format!("the login of {account}: {damage}")))
    }

    async fn asked(&self, sql: &str) -> Result<Vec<SimpleQueryRow>, StoreError> {
        let asked = self.link.run(sql).await;
        asked.map_err(|error| self.unusable(&error))
    }

    fn unusable(&self, error: &LinkError) -> StoreError {
        StoreError::Database(format!("{}: {error}", self.database.shown))
    }

    fn by_our_clock(&self, record: Record) -> Record {
        record.moved_by(self.ahead_ms.load(Ordering::Relaxed))
    }

    fn by_its_clock(&self, record: Record) -> Record {
        record.moved_by(-self.ahead_ms.load(Ordering::Relaxed))
    }

    /// No refresh lasts longer: two requests are sent at most.
    fn stale_after(&self) -> Duration {
        2 * self.token_timeout + SPARE
    }

    fn tell(&self) {
        self.changes.send_modify(|number| *number += 1);
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<String, Row>> {
        self.rows.lock().expect(UNPOISONED)
    }
}

const UNPOISONED: &str = "no thread panics while it holds what is known of the database";

impl Claim {
    /// True when another process may have spent the refresh token.
    pub(super) const fn is_in_doubt(&self) -> bool {
        self.taken_from.is_some()
    }

    /// True when a request that is sent now ends before anybody may take the claim over.
    pub(super) fn covers_a_request(&self, token_timeout: Duration, now: Moment) -> bool {
        now.since(self.since) <= token_timeout + SPARE / 2
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("shown", &self.database.shown).finish_non_exhaustive()
    }
}

/// The row of an account among all rows of an answer.
fn seen(rows: &[SimpleQueryRow]) -> Option<&SimpleQueryRow> {
    rows.iter().find(|row| text(row, "account").is_some())
}

fn text(row: &SimpleQueryRow, column: &str) -> Option<String> {
    row.try_get(column).ok().flatten().map(str::to_owned)
}

fn number_of(row: &SimpleQueryRow, column: &str) -> Option<u64> {
    text(row, column)?.parse().ok()
}

/// What tells this process from all others, and a person which it is.
fn own_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{:012x}", host.trim(), fastrand::u64(..1 << 48))
}
