//! Where logins outlive the process: one file in the state directory, with the generation before it kept
//! beside it, locked for the life of the daemon.
//!
//! A refresh token can be used once, so room for its successor is taken and synced **before** it is spent
//! ([`FileStore::reserve`]), and the successor is durable before it is used ([`FileStore::commit`]).
//!
//! | file | what |
//! |---|---|
//! | `store` | the current generation: a header line with version and checksum, then JSON |
//! | `store.previous` | the generation before it, for when `store` is damaged |
//! | `store.damaged` | a `store` that was found damaged last, for whoever wants to know why |
//! | `store.previous.damaged` | the same of `store.previous`, which is older |
//! | `store.next.ACCOUNT` | a reservation; found at start-up, it says that a refresh was in flight |
//! | `store.taken` | a record on its way from a reservation of the last process to `store` |
//! | `store.empty` | an empty file on its way to take the place of a half written reservation |
//! | `lock` | held by the daemon; holds its process id |
//!
//! With keys ([`SealKeys`]) all that is written is sealed with the first of them, and the first save that is leaves no
//! file behind that is plain or sealed with another. What no key opens is not damaged: nothing is done to it.
//!
//! What is in memory has a lock of its own, which is never held across a call on the disk: looking at a login waits
//! for no disk.

mod files;
mod kinds;
mod postgres;
mod record;
mod seal;
#[cfg(any(test, fuzzing))]
pub mod properties;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use files::{Directory, failed, make, remove_if_there, rename};
pub use kinds::{Changes, Reservation, Saved, Store};
pub use postgres::{Claim, PostgresStore, SharedLogin, init, init_sql, inspect};
pub use record::{Binding, Record};
use record::{Damage, Generation, account_of};
pub use seal::{KeyId, SealError, SealKeys, SealedFor, new_key};

const CURRENT: &str = "store";
const PREVIOUS: &str = "store.previous";
const NEXT: &str = "store.next.";
const TAKEN: &str = "store.taken";
const DAMAGED: &str = "store.damaged";
const PREVIOUS_DAMAGED: &str = "store.previous.damaged";
/// Takes the place of a reservation whose content may not stay.
const EMPTY: &str = "store.empty";
const LOCK: &str = "lock";
/// A store that is larger than this is not ours.
const LARGEST: u64 = 1 << 20;
/// Room that a reservation takes beyond twice the current size: records grow with their tokens.
const SPARE_ROOM: u64 = 32 * 1024;

/// Why the store could not be opened or written. The login that is stored is intact in every case.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the store.
    #[error("{dir} is in use by another cnblogs-proxy{holder}")]
    InUse {
        /// The state directory.
        dir: PathBuf,
        /// Who, as far as it is known.
        holder: String,
    },
    /// The directory or a file in it belongs to somebody else.
    #[error(
        "{path} belongs to user {owner}, not to us (user {us}): a login is not kept where others can reach it"
    )]
    Foreign {
        /// What belongs to somebody else.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Our effective user id.
        us: u32,
    },
    /// Something else stands where a file of the store belongs, and nothing is done to it.
    #[error("{path} is {what}, not a file of this program's own: it is left alone")]
    NotAFile {
        /// Its name.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The store was written by a newer version of this program.
    #[error("{path} was written by a newer version of this program (format {version})")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u32,
    },
    /// The store is larger than any that this program writes.
    #[error("{path} is larger than 1 MiB: this is not a store of cnblogs-proxy")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// None of the keys opens what is stored, and nothing is done to it.
    #[error("the login of {account} in {path} can't be opened")]
    Sealed {
        /// The file.
        path: PathBuf,
        /// Whose login, by the key of its record.
        account: String,
        /// Why.
        source: SealError,
    },
    /// There is nothing to seal with.
    #[error("no seal key is in use: `cnblogs-proxy seal-key` makes one for seal_key_files of [store]")]
    NoSealKey,
    /// Another process reserved the same login, although we hold the lock.
    #[error("{path} appeared while we held the lock: another process works on the same login")]
    Contended {
        /// The other's reservation.
        path: PathBuf,
    },
    /// The database that replicas share can't be used now, and why.
    #[error("{0}")]
    Database(String),
    /// The tables were made by a newer version of this program.
    #[error("{database} has the tables of a newer version of this program (version {version})")]
    NewerTables {
        /// The database.
        database: String,
        /// Of its tables.
        version: u32,
    },
    /// None of the keys opens what is stored, and nothing is done to it.
    #[error("the login of {account} in {database} can't be opened")]
    SealedRow {
        /// The database.
        database: String,
        /// Whose login.
        account: String,
        /// Why.
        source: SealError,
    },
    /// Another replica is about to replace the login.
    #[error("{replica} refreshes this login at the moment")]
    Claimed {
        /// Who.
        replica: String,
        /// After that it may be taken over.
        left: Duration,
    },
    /// The operating system said no.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// What was found, and had to be put right, when the store was opened.
#[derive(Debug, Default)]
pub struct Findings {
    /// Sentences for the log.
    pub warnings: Vec<String>,
    /// Accounts whose refresh was in flight when the last process died.
    pub in_flight: BTreeSet<String>,
}

/// The open store. Holding it means holding the lock.
#[derive(Debug)]
pub struct FileStore {
    directory: Directory,
    lock: File,
    keys: ArcSwap<SealKeys>,
    /// Locked to look or to replace.
    latest: Mutex<Generation>,
    /// Locked as long as the files are compared or changed.
    writer: Mutex<Writer>,
}

/// What whoever changes the files has to know.
#[derive(Debug, Default)]
struct Writer {
    /// Accounts that an earlier process left a reservation of.
    left_behind: BTreeSet<String>,
}

/// What a file is found to be.
enum Found {
    Nothing,
    Whole(Generation),
    Damaged(Damage),
}

/// Room on disk for the successor of a record. Dropping it gives the room back, unless a login may be in it.
#[derive(Debug)]
pub struct Room {
    path: PathBuf,
    file: File,
    /// A login was written here, or half of it: the next start-up has to look.
    may_hold_login: bool,
}

impl FileStore {
    /// Opens the store in `dir`, making the directory when it is not there, and locks it. What is saved is sealed with
    /// the first of the keys.
    ///
    /// # Errors
    /// When another process holds it, it belongs to another user, it is newer than this program, none of the keys
    /// opens it, or the operating system refuses.
    pub fn open(dir: &Path, keys: Arc<SealKeys>) -> Result<(Self, Findings), StoreError> {
        let mut findings = Findings::default();
        let directory = Directory::open(dir, &mut findings)?;
        let lock = files::take_lock(&directory)?;
        directory.lock()?;
        for name in [LOCK, CURRENT, PREVIOUS, DAMAGED, PREVIOUS_DAMAGED, TAKEN] {
            files::make_private(&directory.join(name), &mut findings)?;
        }

        let latest = Mutex::new(load(dir, &keys, &mut findings)?);
        let store = Self { directory, lock, keys: ArcSwap::new(keys), latest, writer: Mutex::default() };
        store.settle_reservations(&mut findings)?;
        Ok((store, findings))
    }

    /// Says in the lock file who holds it, so that a second process can tell.
    ///
    /// # Errors
    /// When the file can't be written, or has other names under which it may be something else.
    pub fn name_holder(&self, who: &str) -> Result<(), StoreError> {
        files::name_holder(&self.lock, &self.directory.join(LOCK), who)
    }

    /// The login of an account, as last committed, when one is stored that belongs to this.
    pub fn record(&self, account: &str, binding: &Binding) -> Option<Record> {
        self.latest().record(account, binding).cloned()
    }

    /// All logins of an account, whatever they belong to.
    pub fn records_of(&self, account: &str) -> Vec<Record> {
        self.latest().records_of(account).cloned().collect()
    }

    /// The accounts that a login is stored of, configured or not.
    pub fn accounts(&self) -> BTreeSet<String> {
        self.latest().accounts()
    }

    /// Takes and syncs room for the successor of an account's record, before its refresh token is spent, and
    /// looks whether somebody else changed the store since it was last read or written.
    ///
    /// # Errors
    /// When there is no room, the file system refuses, or another process works on the same login. Nothing
    /// was spent then and nothing is changed.
    pub fn reserve(&self, account: &str) -> Result<Room, StoreError> {
        let path = self.directory.join(&format!("{NEXT}{account}"));
        let mut writer = self.writer();
        self.adopt_foreign_change(&writer)?;
        if writer.left_behind.contains(account) {
            remove_if_there(&path)?;
            writer.left_behind.remove(account);
        }
        // Each account takes its room beside the others.
        drop(writer);

        let room = 2 * self.latest().encoded_len(&self.keys.load()) + SPARE_ROOM;
        let reservation = Room::new(path)?;
        files::take_room(&reservation.file, room).map_err(failed("taking room in", &reservation.path))?;
        self.directory.sync()?;
        Ok(reservation)
    }

    /// Makes a record durable in the room that was taken for it: when this returns, a crash can't lose it. It takes
    /// the place of the account's record that belongs to the same; others stay.
    ///
    /// # Errors
    /// When the file system refuses; the stored generation is intact then, and so is the reservation, so that
    /// it can be tried again.
    pub fn commit(&self, reservation: &mut Room, account: &str, record: &Record) -> Result<(), StoreError> {
        reservation.may_hold_login = true;
        self.write(&self.writer(), reservation, |next| next.put(account, record.clone()))
    }

    /// Erases all logins of an account, whatever they belong to, and every file that may hold one of them.
    ///
    /// # Errors
    /// When the file system refuses; it can be tried again with a new reservation.
    pub fn erase(&self, reservation: &mut Room, account: &str) -> Result<(), StoreError> {
        let writer = self.writer();
        self.write(&writer, reservation, |next| next.erase(account))?;
        self.remove_copies(&writer, None)
    }

    /// Looks whether other keys than those in use open all that is stored, before [`Self::use_keys`].
    ///
    /// # Errors
    /// When they do not, or a file can't be read.
    pub fn try_keys(&self, keys: &SealKeys) -> Result<(), StoreError> {
        if self.keys.load().names() == keys.names() {
            return Ok(());
        }
        let dir = self.directory.path();
        [CURRENT, PREVIOUS].iter().try_for_each(|name| read(&dir.join(name), keys).map(drop))?;
        reservations(dir)?.iter().try_for_each(|(_, path)| read(path, keys).map(drop))
    }

    /// From now on the first of these keys seals.
    pub fn use_keys(&self, keys: Arc<SealKeys>) {
        self.keys.store(keys);
    }

    /// Seals all logins with the first key, and leaves no file behind that is not. Says so in words.
    ///
    /// # Errors
    /// When there is no key, or the file system refuses; what is stored is intact then.
    pub fn rekey(&self) -> Result<String, StoreError> {
        let keys = self.keys.load().names();
        let key = keys.first().ok_or(StoreError::NoSealKey)?;
        let writer = self.writer();
        self.adopt_foreign_change(&writer)?;
        // The second makes the first the generation before.
        for _ in 0..2 {
            let path = self.directory.join(TAKEN);
            remove_if_there(&path)?;
            self.write(&writer, &mut Room::new(path)?, |_unchanged| ())?;
        }
        let accounts: Vec<_> = self.accounts().into_iter().collect();
        let accounts =
            if accounts.is_empty() { "no login is stored".to_owned() } else { accounts.join(", ") };
        Ok(format!("sealed with {key}: {accounts}"))
    }

    fn write(
        &self,
        writer: &Writer,
        reservation: &mut Room,
        change: impl FnOnce(&mut Generation),
    ) -> Result<(), StoreError> {
        let mut next = self.latest().successor();
        change(&mut next);
        if files::look(&reservation.path)?.is_none() {
            // An earlier try ended between the renaming and the sync of it, and the store is never written to
            // where it stands; or somebody has removed it.
            reservation.file = make(&reservation.path)?;
        }
        let keys = self.keys.load();
        let bytes = next.encode(&keys);
        next.sealed_with = keys.first();
        let file = &reservation.file;
        // The room for them was synced before, so this waits for the bytes alone.
        let fill = || file.write_all_at(&bytes, 0).and_then(|()| file.sync_data());
        fill().map_err(failed("writing", &reservation.path))?;

        // From here on the record is durable: a start-up that finds it under this name takes it, with what is
        // left of the room behind it.
        file.set_len(bytes.len() as u64).map_err(failed("trimming", &reservation.path))?;
        self.put_in_place(writer, &reservation.path)?;
        self.directory.sync()?;
        *self.latest() = next;
        Ok(())
    }

    /// Makes a durable file the current generation, and what was current the one before.
    fn put_in_place(&self, writer: &Writer, path: &Path) -> Result<(), StoreError> {
        let (current, previous) = (self.directory.join(CURRENT), self.directory.join(PREVIOUS));
        if !self.was_sealed(&current) {
            // The next start looks for the generation before only until it finds a current one.
            if files::look(&current)?.is_none() && files::look(&previous)?.is_some() {
                rename(&previous, &current)?;
            }
            // Durably, before the sealed one is found in place: nothing looks for them then.
            self.remove_copies(writer, Some(path))?;
        } else if files::look(&current)?.is_some() {
            remove_if_there(&previous)?;
            // A file system without hard links keeps no generation before.
            let _kept = fs::hard_link(&current, &previous);
        }
        rename(path, &current)
    }

    /// True when what was saved last, and what stands in its place, may be kept beside what is saved now: it is sealed
    /// with the first key as well, when there is one.
    fn was_sealed(&self, current: &Path) -> bool {
        let keys = self.keys.load();
        let is_of_first = |generation: &Generation| generation.sealed_with == keys.first();
        let stands = match read(current, &keys) {
            Ok(Found::Whole(found)) => is_of_first(&found),
            Ok(Found::Damaged(_)) => false,
            Ok(Found::Nothing) | Err(_) => true,
        };
        keys.first().is_none() || stands && is_of_first(&self.latest())
    }

    /// Removes every file but `kept` that may hold a login beside the current generation.
    fn remove_copies(&self, writer: &Writer, kept: Option<&Path>) -> Result<(), StoreError> {
        let copies = [PREVIOUS, DAMAGED, PREVIOUS_DAMAGED, TAKEN].map(|name| self.directory.join(name));
        copies
            .iter()
            .filter(|path| Some(path.as_path()) != kept)
            .try_for_each(|path| remove_if_there(path))?;
        for other in &writer.left_behind {
            // A reservation that an earlier process had half written has all accounts. Of it only the name counts.
            let empty = self.directory.join(EMPTY);
            remove_if_there(&empty)?;
            make(&empty)?;
            rename(&empty, &self.directory.join(&format!("{NEXT}{other}")))?;
        }
        self.directory.sync()
    }

    /// Takes over what somebody else wrote, when it is whole and newer than what we know: spending a refresh
    /// token that another process has already rotated would lose the login.
    fn adopt_foreign_change(&self, _writer: &Writer) -> Result<(), StoreError> {
        let current = self.directory.join(CURRENT);
        let (number, is_empty) = {
            let latest = self.latest();
            (latest.number, latest.records.is_empty())
        };
        match read(&current, &self.keys.load())? {
            Found::Whole(found) if found.number > number => {
                tracing::warn!(
                    generation = found.number,
                    "the store was changed by another process: taking it over"
                );
                *self.latest() = found;
            }
            Found::Whole(found) if found.number == number => {}
            Found::Nothing if is_empty => {}
            Found::Whole(found) => {
                tracing::warn!(
                    generation = found.number,
                    "an older store was put in place of ours: it will be replaced"
                );
            }
            Found::Nothing => {
                tracing::warn!("the store was deleted while running: it will be written again");
            }
            Found::Damaged(damage) => {
                let found = set_aside(&current, &damage)?;
                tracing::warn!(found, "the store was damaged while running: it will be written again");
            }
        }
        Ok(())
    }

    /// What reservations of the last process mean: a whole record is the newest one, anything else says that
    /// a refresh was in flight.
    fn settle_reservations(&self, findings: &mut Findings) -> Result<(), StoreError> {
        let mut writer = self.writer();
        let mut found = Vec::new();
        for (account, path) in reservations(self.directory.path())? {
            files::make_private(&path, findings)?;
            found.push((read(&path, &self.keys.load())?, account, path));
        }
        for (found, account, path) in found {
            match found {
                Found::Whole(found) => self.take_over(&writer, &account, found, &path, findings)?,
                // Its mark stays until the next refresh: whoever opens the store first need not be the daemon.
                _ if self.accounts().contains(&account) => {
                    writer.left_behind.insert(account.clone());
                    findings.in_flight.insert(account);
                }
                _ => remove_if_there(&path)?,
            }
        }
        self.directory.sync()
    }

    /// A record that was durable when the last process died, but not yet under its name: it is the newest one,
    /// unless the store has a later one.
    fn take_over(
        &self,
        writer: &Writer,
        account: &str,
        found: Generation,
        path: &Path,
        findings: &mut Findings,
    ) -> Result<(), StoreError> {
        let is_newer = |record: &&Record| {
            let stored = self.record(account, &record.binding);
            stored.is_none_or(|stored| stored.obtained_at_ms <= record.obtained_at_ms)
        };
        let newer: Vec<_> = found.records_of(account).filter(is_newer).cloned().collect();
        // Generations tell which is newer whatever the clock did, unless another account was saved in between.
        if found.number > self.latest().number && found.accounts().contains(account) {
            // It has all accounts as they were last, and needs no room but its own.
            if let Some(file) = files::open(path)? {
                file.sync_all().map_err(failed("syncing", path))?;
            }
            self.put_in_place(writer, path)?;
            *self.latest() = found;
        } else if !newer.is_empty() {
            // The only durable copy stays until another one is.
            let copy = self.directory.join(TAKEN);
            remove_if_there(&copy)?;
            let mut reservation = Room::new(copy)?;
            reservation.may_hold_login = true;
            self.write(writer, &mut reservation, |next| {
                newer.into_iter().for_each(|record| next.put(account, record));
            })?;
            remove_if_there(path)?;
        } else {
            return remove_if_there(path);
        }
        findings.warnings.push(format!("took over the login of {account} that was saved last"));
        Ok(())
    }

    fn latest(&self) -> MutexGuard<'_, Generation> {
        self.latest.lock().expect("no thread panics while it holds the generation")
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().expect("no thread panics while it changes the files")
    }
}

impl Room {
    fn new(path: PathBuf) -> Result<Self, StoreError> {
        let file = make(&path)?;
        Ok(Self { path, file, may_hold_login: false })
    }

    /// Gives the room back, with the record in it if there is one: its login is not wanted any more.
    pub fn give_up(mut self) {
        self.may_hold_login = false;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if !self.may_hold_login {
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// The accounts that a state directory has logins of. Takes no lock and changes nothing: a daemon may be running.
pub fn accounts_in(dir: &Path) -> BTreeSet<String> {
    logins_in(dir).keys().map(|key| account_of(key).to_owned()).collect()
}

/// The logins of a state directory, by the keys of their records, each with its sealed bytes when it is sealed. Takes
/// no lock and changes nothing, as [`accounts_in`].
pub fn logins_in(dir: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let whole = [CURRENT, PREVIOUS].iter().find_map(|name| {
        let bytes = contents(&dir.join(name)).ok().flatten()?;
        record::sealed_with(&bytes).ok()
    });
    whole.unwrap_or_default()
}

/// The reservations in a state directory, by account.
fn reservations(dir: &Path) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("reading", dir))? {
        let entry = entry.map_err(failed("reading", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        found.extend(name.strip_prefix(NEXT).map(|account| (account.to_owned(), entry.path())));
    }
    Ok(found)
}

/// The current generation, else the one before, else an empty one. A damaged file is moved aside, so that it
/// never takes the place of a good one; one that can't be read, or opened, may be good, and nothing is done then.
fn load(dir: &Path, keys: &SealKeys, findings: &mut Findings) -> Result<Generation, StoreError> {
    let (mut damaged, mut whole) = (Vec::new(), None);
    for path in [CURRENT, PREVIOUS].map(|name| dir.join(name)) {
        match read(&path, keys)? {
            Found::Whole(generation) => {
                whole = Some((generation, path));
                break;
            }
            Found::Nothing => {}
            Found::Damaged(damage) => damaged.push((path, damage)),
        }
    }
    for (path, damage) in damaged {
        findings.warnings.push(set_aside(&path, &damage)?);
    }
    let Some((generation, path)) = whole else { return Ok(Generation::default()) };
    if path.ends_with(PREVIOUS) {
        findings.warnings.push(format!("using {}, the generation before", path.display()));
    }
    Ok(generation)
}

/// Moves a damaged file out of the way, each generation under a name of its own: the current one may be the only copy
/// of a login that somebody can still put together. Returns a sentence for the log.
fn set_aside(path: &Path, damage: &Damage) -> Result<String, StoreError> {
    rename(path, &path.with_added_extension("damaged"))?;
    Ok(format!("{} is damaged ({damage}): it is moved aside", path.display()))
}

fn read(path: &Path, keys: &SealKeys) -> Result<Found, StoreError> {
    let Some(bytes) = contents(path)? else { return Ok(Found::Nothing) };
    match Generation::decode(&bytes, keys) {
        Ok(generation) => Ok(Found::Whole(generation)),
        Err(Damage::Newer { version }) => Err(StoreError::Newer { path: path.to_owned(), version }),
        Err(Damage::Sealed { account, source }) => {
            Err(StoreError::Sealed { path: path.to_owned(), account, source })
        }
        Err(damage) => Ok(Found::Damaged(damage)),
    }
}

/// What is in a file, without the room that was taken for it.
fn contents(path: &Path) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, StoreError> {
    let Some(file) = files::open(path)? else { return Ok(None) };
    // Room for all of it: what grows leaves copies behind.
    let length = file.metadata().map_err(failed("looking at", path))?.len().min(LARGEST);
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(length as usize + 64));
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed("reading", path))?;
    if bytes.len() as u64 > LARGEST {
        return Err(StoreError::TooLarge { path: path.to_owned() });
    }
    // Behind a record there may still be the room that was taken for it: the rest is given back once the record
    // is durable.
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(end);
    Ok(Some(bytes))
}
