//! The kinds of store behind one face: for each step of the keeper's walk (reserve, commit, publish) one call.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::{Binding, FileStore, Findings, Record, Room, SealKeys, StoreError};

/// Where logins are kept. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Store {
    /// In the state directory, for this process alone.
    Files(Arc<FileStore>),
}

/// What allows a refresh token to be spent: its successor can be kept.
#[derive(Debug)]
pub enum Reservation {
    /// Room on disk.
    Files(Room),
}

/// What became of a record that was to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// It is durable.
    Kept,
}

impl Store {
    /// Opens the store of a state directory.
    ///
    /// # Errors
    /// As [`FileStore::open`].
    pub fn open(dir: &Path, keys: Arc<SealKeys>) -> Result<(Self, Findings), StoreError> {
        let (files, findings) = FileStore::open(dir, keys)?;
        Ok((Self::Files(Arc::new(files)), findings))
    }

    /// Says who holds the state directory, so that a second process can tell.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn name_holder(&self, who: &str) -> Result<(), StoreError> {
        let Self::Files(files) = self;
        files.name_holder(who)
    }

    /// Looks whether these keys open all that is stored, before [`Self::use_keys`].
    ///
    /// # Errors
    /// When they do not, or it can't be read.
    pub fn try_keys(&self, keys: &SealKeys) -> Result<(), StoreError> {
        let Self::Files(files) = self;
        files.try_keys(keys)
    }

    /// From now on the first of these keys seals.
    pub fn use_keys(&self, keys: Arc<SealKeys>) {
        let Self::Files(files) = self;
        files.use_keys(keys);
    }

    /// Seals all logins with the first key. Says so in words.
    ///
    /// # Errors
    /// When there is no key, or it can't be written; what is stored is intact then.
    pub async fn rekey(&self) -> Result<String, StoreError> {
        let Self::Files(files) = self;
        let files = Arc::clone(files);
        blocking(move || files.rekey()).await
    }

    /// The login of an account, as last committed, when one is stored that belongs to this.
    pub fn record(&self, account: &str, binding: &Binding) -> Option<Record> {
        let Self::Files(files) = self;
        files.record(account, binding)
    }

    /// All logins of an account, whatever they belong to.
    pub fn records_of(&self, account: &str) -> Vec<Record> {
        let Self::Files(files) = self;
        files.records_of(account)
    }

    /// The accounts that a login is stored of, configured or not.
    pub fn accounts(&self) -> BTreeSet<String> {
        let Self::Files(files) = self;
        files.accounts()
    }

    /// Makes sure that the successor of an account's record can be kept, before its refresh token is spent, and looks
    /// whether somebody else changed the store since it was last read or written.
    ///
    /// # Errors
    /// When it can't be. Nothing was spent then and nothing is changed.
    pub async fn reserve(&self, account: &str) -> Result<Reservation, StoreError> {
        let Self::Files(files) = self;
        let (files, account) = (Arc::clone(files), account.to_owned());
        blocking(move || files.reserve(&account)).await.map(Reservation::Files)
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
        let (Self::Files(files), Reservation::Files(mut room)) = (self, reservation);
        let (files, account, record) = (Arc::clone(files), account.to_owned(), record.clone());
        let (room, saved) = blocking(move || {
            let saved = files.commit(&mut room, &account, &record);
            (room, saved)
        })
        .await;
        saved.map(|()| Saved::Kept).map_err(|error| (Reservation::Files(room), error))
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
        let (Self::Files(files), Reservation::Files(mut room)) = (self, reservation);
        let (files, account) = (Arc::clone(files), account.to_owned());
        let (room, erased) = blocking(move || {
            let erased = files.erase(&mut room, &account);
            (room, erased)
        })
        .await;
        erased.map_err(|error| (Reservation::Files(room), error))
    }

    /// Gives a reservation back that nothing is kept in.
    pub async fn give_back(&self, reservation: Reservation) {
        let Reservation::Files(room) = reservation;
        blocking(move || drop(room)).await;
    }

    /// Gives a reservation back with the record in it, if there is one: its login is not wanted any more.
    pub async fn give_up(&self, reservation: Reservation) {
        let Reservation::Files(room) = reservation;
        blocking(move || room.give_up()).await;
    }
}

/// Runs something that may block beside the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("work on the store does not panic")
}
