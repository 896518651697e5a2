//! The kinds of store behind one face: for each step of the keeper's walk (reserve, commit, publish) one call.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::files::blocking;
use super::{
    Binding, Claim, FileStore, Findings, PostgresStore, Record, Room, SealKeys, SharedLogin, StoreError,
};
use crate::config::{Config, Database};
use crate::token::Moment;

/// Where logins are kept. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Store {
    /// In the state directory, for this process alone.
    Files(Arc<FileStore>),
    /// In a database that replicas share.
    Postgres(Arc<PostgresStore>),
}

/// What allows a refresh token to be spent: its successor can be kept, and nobody else spends it.
#[derive(Debug)]
pub enum Reservation {
    /// Room on disk.
    Files(Room),
    /// A claim in the database.
    Postgres(Box<Claim>),
}

/// What became of a record that was to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// It is durable.
    Kept,
    /// Another process has replaced the login meanwhile, and that one is kept.
    Superseded,
}

/// Tells when another process has changed what is stored.
#[derive(Debug)]
pub struct Changes(Option<watch::Receiver<u64>>);

impl Changes {
    /// Comes with the next change; cancelling the wait loses none.
    pub async fn next(&mut self) {
        let has_changed = match &mut self.0 {
            Some(changes) => changes.changed().await,
            None => std::future::pending().await,
        };
        if has_changed.is_err() {
            // The store is gone, and so is whoever asks soon.
            std::future::pending::<()>().await;
        }
    }
}

impl Reservation {
    /// True when another process may have spent the refresh token, and its successor was lost.
    pub const fn is_in_doubt(&self) -> bool {
        match self {
            Self::Files(_) => false,
            Self::Postgres(claim) => claim.is_in_doubt(),
        }
    }

    /// True when a request that is sent now, and takes `timeout`, ends before anybody else may send one.
    pub fn covers_a_request(&self, timeout: Duration, now: Moment) -> bool {
        match self {
            Self::Files(_) => true,
            Self::Postgres(claim) => claim.covers_a_request(timeout, now),
        }
    }
}

impl Store {
    /// Opens the store of a configuration and locks its state directory.
    ///
    /// # Errors
    /// As [`FileStore::open`]; a database that can't be reached does not prevent it.
    pub async fn open(config: &Config) -> Result<(Self, Findings), StoreError> {
        let keys = Arc::new(SealKeys::new(&config.store.seal_keys));
        let Some(database) = &config.store.database else { return Self::in_dir(&config.state_dir, keys) };
        let (postgres, findings) = PostgresStore::open(config, database, keys).await?;
        Ok((Self::Postgres(Arc::new(postgres)), findings))
    }

    /// Opens the files of a state directory.
    ///
    /// # Errors
    /// As [`FileStore::open`].
    pub fn in_dir(dir: &Path, keys: Arc<SealKeys>) -> Result<(Self, Findings), StoreError> {
        let (files, findings) = FileStore::open(dir, keys)?;
        Ok((Self::Files(Arc::new(files)), findings))
    }

    /// Keeps in touch with other processes that share the store. Never ends.
    pub async fn follow(self) {
        match self {
            Self::Files(_) => std::future::pending().await,
            Self::Postgres(postgres) => postgres.follow().await,
        }
    }

    /// Tells when another process has changed what is stored.
    pub fn changes(&self) -> Changes {
        match self {
            Self::Files(_) => Changes(None),
            Self::Postgres(postgres) => Changes(Some(postgres.changes())),
        }
    }

    /// Says who holds the state directory, so that a second process can tell.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn name_holder(&self, who: &str) -> Result<(), StoreError> {
        match self {
            Self::Files(files) => files.name_holder(who),
            Self::Postgres(postgres) => postgres.name_holder(who),
        }
    }

    /// Looks whether these keys open all that is stored, before [`Self::use_keys`].
    ///
    /// # Errors
    /// When they do not, or it can't be read.
    pub fn try_keys(&self, keys: &SealKeys) -> Result<(), StoreError> {
        match self {
            Self::Files(files) => files.try_keys(keys),
            Self::Postgres(postgres) => postgres.try_keys(keys),
        }
    }

    /// From now on the first of these keys seals.
    pub fn use_keys(&self, keys: Arc<SealKeys>) {
        match self {
            Self::Files(files) => files.use_keys(keys),
            Self::Postgres(postgres) => postgres.use_keys(keys),
        }
    }

    /// Seals all logins with the first key. Says so in words.
    ///
    /// # Errors
    /// When there is no key, or it can't be written; what is stored is intact then.
    pub async fn rekey(&self) -> Result<String, StoreError> {
        match self {
            Self::Files(files) => {
                let files = Arc::clone(files);
                blocking(move || files.rekey()).await
            }
            Self::Postgres(postgres) => postgres.rekey().await,
        }
    }

    /// The login of an account, as last committed, when one is stored that belongs to this.
    pub fn record(&self, account: &str, binding: &Binding) -> Option<Record> {
        match self {
            Self::Files(files) => files.record(account, binding),
            Self::Postgres(postgres) => postgres.record(account, binding),
        }
    }

    /// All logins of an account, whatever they belong to.
    pub fn records_of(&self, account: &str) -> Vec<Record> {
        match self {
            Self::Files(files) => files.records_of(account),
            Self::Postgres(postgres) => postgres.records_of(account),
        }
    }

    /// The accounts that a login is stored of, configured or not.
    pub fn accounts(&self) -> BTreeSet<String> {
        match self {
            Self::Files(files) => files.accounts(),
            Self::Postgres(postgres) => postgres.accounts(),
        }
    }

    /// Why it can't be said whether there is a login; none when it can.
    pub fn why_unknown(&self) -> Option<String> {
        match self {
            Self::Files(_) => None,
            Self::Postgres(postgres) => postgres.why_unknown(),
        }
    }

    /// True when another process has claimed an account, and not given it back.
    pub fn is_claimed(&self, account: &str) -> bool {
        match self {
            Self::Files(_) => false,
            Self::Postgres(postgres) => postgres.is_claimed(account),
        }
    }

    /// Whether what another process does to an account is waited for.
    pub fn await_change(&self, account: &str, waits: bool) {
        if let Self::Postgres(postgres) = self {
            postgres.await_change(account, waits);
        }
    }

    /// What is told of a login that replicas share.
    pub fn shared_login(&self, account: &str) -> Option<SharedLogin> {
        match self {
            Self::Files(_) => None,
            Self::Postgres(postgres) => postgres.shared_login(account),
        }
    }

    /// Where logins are shared; none when they are not.
    pub fn database(&self) -> Option<&PostgresStore> {
        match self {
            Self::Files(_) => None,
            Self::Postgres(postgres) => Some(postgres),
        }
    }

    /// Connects to the database with another password or other certificates from the next time on.
    ///
    /// # Errors
    /// When a certificate can't be a root.
    pub fn reconfigure(&self, database: Option<&Database>) -> Result<(), StoreError> {
        match (self, database) {
            (Self::Postgres(postgres), Some(database)) => postgres.reconfigure(database),
            _ => Ok(()),
        }
    }

    /// Makes sure that the successor of an account's record can be kept and that nobody else spends its refresh token,
    /// before that is spent, and looks whether somebody else changed the store since it was last read or written.
    ///
    /// # Errors
    /// When it can't be, or another process is about to. Nothing was spent then and nothing is changed.
    pub async fn reserve(&self, account: &str) -> Result<Reservation, StoreError> {
        match self {
            Self::Files(files) => {
                let (files, account) = (Arc::clone(files), account.to_owned());
                blocking(move || files.reserve(&account)).await.map(Reservation::Files)
            }
            Self::Postgres(postgres) => {
                let claim = postgres.reserve(account).await?;
                Ok(Reservation::Postgres(Box::new(claim)))
            }
        }
    }

    /// Makes a record durable: when this returns, a crash can't lose it. It takes the place of the account's record
    /// that belongs to the same; others stay.
    ///
    /// # Errors
    /// When it can't be, with the reservation to try it again; what was stored is intact then.
    pub async fn commit(
        &self,
        reservation: Reservation,
        account: &str,
        record: &Record,
    ) -> Result<Saved, (Reservation, StoreError)> {
        match (self, reservation) {
            (Self::Files(files), Reservation::Files(mut room)) => {
                let (files, account, record) = (Arc::clone(files), account.to_owned(), record.clone());
                let (room, saved) = blocking(move || {
                    let saved = files.commit(&mut room, &account, &record);
                    (room, saved)
                })
                .await;
                saved.map(|()| Saved::Kept).map_err(|error| (Reservation::Files(room), error))
            }
            (Self::Postgres(postgres), Reservation::Postgres(mut claim)) => {
                let saved = postgres.commit(&mut claim, record).await;
                saved.map_err(|error| (Reservation::Postgres(claim), error))
            }
            _ => unreachable!("a reservation is of the store that gave it"),
        }
    }

    /// Erases all logins of an account, whatever they belong to.
    ///
    /// # Errors
    /// When they can't be, with the reservation to try it again.
    pub async fn erase(
        &self,
        reservation: Reservation,
        account: &str,
    ) -> Result<(), (Reservation, StoreError)> {
        match (self, reservation) {
            (Self::Files(files), Reservation::Files(mut room)) => {
                let (files, account) = (Arc::clone(files), account.to_owned());
                let (room, erased) = blocking(move || {
                    let erased = files.erase(&mut room, &account);
                    (room, erased)
                })
                .await;
                erased.map_err(|error| (Reservation::Files(room), error))
            }
            (Self::Postgres(postgres), Reservation::Postgres(mut claim)) => {
                let erased = postgres.erase(&mut claim).await;
                erased.map_err(|error| (Reservation::Postgres(claim), error))
            }
            _ => unreachable!("a reservation is of the store that gave it"),
        }
    }

    /// Gives a reservation back that nothing is kept in. One under which a refresh token may have been spent stays
    /// claimed: whoever takes it over knows then.
    pub async fn give_back(&self, reservation: Reservation, is_in_doubt: bool) {
        match reservation {
            Reservation::Files(room) => blocking(move || drop(room)).await,
            Reservation::Postgres(_) if is_in_doubt => {}
            Reservation::Postgres(claim) => {
                if let Self::Postgres(postgres) = self {
                    postgres.release(&claim).await;
                }
            }
        }
    }

    /// Gives a reservation back with the record in it, if there is one: its login is not wanted any more.
    pub async fn give_up(&self, reservation: Reservation) {
        match reservation {
            Reservation::Files(room) => blocking(move || room.give_up()).await,
            claim @ Reservation::Postgres(_) => self.give_back(claim, false).await,
        }
    }
}
