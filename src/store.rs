//! Where logins outlive the process: one file in the state directory, with the generation before it kept
//! beside it, locked for the life of the daemon.
//!
//! A refresh token can be used once, so room for its successor is taken and synced **before** it is spent
//! ([`Store::reserve`]), and the successor is durable before it is used ([`Store::commit`]).
//!
//! | file | what |
//! |---|---|
//! | `store` | the current generation: a header line with version and checksum, then JSON |
//! | `store.previous` | the generation before it, for when `store` is damaged |
//! | `store.damaged` | what was found damaged last, for whoever wants to know why |
//! | `store.next.ACCOUNT` | a reservation; found at start-up, it says that a refresh was in flight |
//! | `lock` | held by the daemon; holds its process id |

mod record;
#[cfg(any(test, fuzzing))]
#[path = "../tests/fuzz/properties/store.rs"]
pub mod properties;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{FlockOperation, flock};

use record::{Damage, Generation};
pub use record::{Person, Record};

const CURRENT: &str = "store";
const PREVIOUS: &str = "store.previous";
const NEXT: &str = "store.next.";
const TAKEN: &str = "store.taken";
const DAMAGED: &str = "store.damaged";
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
    /// Another process reserved the same login, although we hold the lock.
    #[error("{path} appeared while we held the lock: another process works on the same login")]
    Contended {
        /// The other's reservation.
        path: PathBuf,
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
pub struct Store {
    dir: PathBuf,
    handle: File,
    lock: File,
    latest: Mutex<Generation>,
    /// Accounts that an earlier process left a reservation of.
    left_behind: Mutex<BTreeSet<String>>,
}

/// Room on disk for the successor of a record. Dropping it gives the room back, unless a login may be in it.
#[derive(Debug)]
pub struct Reservation {
    path: PathBuf,
    file: File,
    /// A login was written here, or half of it: the next start-up has to look.
    may_hold_login: bool,
    /// Its file has become the store.
    is_in_place: bool,
}

impl Store {
    /// Opens the store in `dir`, making the directory when it is not there, and locks it.
    ///
    /// # Errors
    /// When another process holds it, it belongs to another user, it is newer than this program, or the
    /// operating system refuses.
    pub fn open(dir: &Path) -> Result<(Self, Findings), StoreError> {
        let mut findings = Findings::default();
        make_private(dir, &mut findings)?;
        let lock = take_lock(dir)?;
        let handle = File::open(dir).map_err(failed("opening", dir))?;
        // The file named `lock` can be deleted under us; the directory can't. Some network file systems can't
        // lock directories, and there the file has to do.
        if let Err(rustix::io::Errno::WOULDBLOCK) = flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            return Err(StoreError::InUse { dir: dir.to_owned(), holder: String::new() });
        }

        let latest = load(dir, &mut findings)?;
        let store = Self {
            dir: dir.to_owned(),
            handle,
            lock,
            latest: Mutex::new(latest),
            left_behind: Mutex::default(),
        };
        store.settle_reservations(&mut findings)?;
        Ok((store, findings))
    }

    /// Says in the lock file who holds it, so that a second process can tell.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn name_holder(&self, who: &str) -> Result<(), StoreError> {
        let path = self.dir.join(LOCK);
        let write = || {
            self.lock.set_len(0)?;
            self.lock.write_all_at(who.as_bytes(), 0)
        };
        write().map_err(failed("writing", &path))
    }

    /// The login of an account, as last committed.
    pub fn record(&self, account: &str) -> Option<Record> {
        self.latest().records.get(account).cloned()
    }

    /// Takes and syncs room for the successor of an account's record, before its refresh token is spent, and
    /// looks whether somebody else changed the store since it was last read or written.
    ///
    /// # Errors
    /// When there is no room, the file system refuses, or another process works on the same login. Nothing
    /// was spent then and nothing is changed.
    pub fn reserve(&self, account: &str) -> Result<Reservation, StoreError> {
        self.adopt_foreign_change()?;
        let path = self.dir.join(format!("{NEXT}{account}"));
        if self.left_behind().remove(account) {
            remove_if_there(&path)?;
        }
        let room = 2 * self.latest().encoded_len() + SPARE_ROOM;
        let reservation = Reservation::new(path)?;
        take_room(&reservation.file, room).map_err(failed("taking room in", &reservation.path))?;
        self.handle.sync_all().map_err(failed("syncing", &self.dir))?;
        Ok(reservation)
    }

    /// Makes a record durable in the room that was taken for it: when this returns, a crash can't lose it.
    ///
    /// # Errors
    /// When the file system refuses; the stored generation is intact then, and so is the reservation, so that
    /// it can be tried again.
    pub fn commit(
        &self,
        reservation: &mut Reservation,
        account: &str,
        record: &Record,
    ) -> Result<(), StoreError> {
        reservation.may_hold_login = true;
        self.write(reservation, |records| {
            records.insert(account.to_owned(), record.clone());
        })
    }

    /// Erases the login of an account, in the current generation and in the one before.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn erase(&self, reservation: &mut Reservation, account: &str) -> Result<(), StoreError> {
        self.write(reservation, |records| {
            records.remove(account);
        })?;
        remove_if_there(&self.dir.join(PREVIOUS))?;
        self.handle.sync_all().map_err(failed("syncing", &self.dir))
    }

    fn write(
        &self,
        reservation: &mut Reservation,
        change: impl FnOnce(&mut BTreeMap<String, Record>),
    ) -> Result<(), StoreError> {
        let mut latest = self.latest();
        let mut next = latest.successor();
        change(&mut next.records);
        if reservation.is_in_place {
            // An earlier try ended between the renaming and the sync of it, and the store is never written to
            // where it stands.
            reservation.renew()?;
        }
        let bytes = next.encode();
        let file = &reservation.file;
        // The room for them was synced before, so this waits for the bytes alone.
        let fill = || file.write_all_at(&bytes, 0).and_then(|()| file.sync_data());
        fill().map_err(failed("writing", &reservation.path))?;

        // From here on the record is durable: a start-up that finds it under this name takes it, with what is
        // left of the room behind it.
        file.set_len(bytes.len() as u64).map_err(failed("trimming", &reservation.path))?;
        self.put_in_place(&reservation.path)?;
        reservation.is_in_place = true;
        self.handle.sync_all().map_err(failed("syncing", &self.dir))?;
        *latest = next;
        Ok(())
    }

    /// Makes a durable file the current generation, and what was current the one before.
    fn put_in_place(&self, path: &Path) -> Result<(), StoreError> {
        let (current, previous) = (self.dir.join(CURRENT), self.dir.join(PREVIOUS));
        if current.exists() {
            remove_if_there(&previous)?;
            // A file system without hard links keeps no generation before.
            let _kept = fs::hard_link(&current, &previous);
        }
        fs::rename(path, &current).map_err(failed("renaming", path))
    }

    /// Takes over what somebody else wrote, when it is whole and newer than what we know: spending a refresh
    /// token that another process has already rotated would lose the login.
    fn adopt_foreign_change(&self) -> Result<(), StoreError> {
        let mut latest = self.latest();
        let current = self.dir.join(CURRENT);
        match read_generation(&current) {
            Ok(Some(found)) if found.number > latest.number => {
                tracing::warn!(
                    generation = found.number,
                    "the store was changed by another process: taking it over"
                );
                *latest = found;
            }
            Ok(Some(found)) if found.number == latest.number => {}
            Ok(None) if latest.records.is_empty() => {}
            Ok(Some(found)) => {
                tracing::warn!(
                    generation = found.number,
                    "an older store was put in place of ours: it will be replaced"
                );
            }
            Ok(None) => tracing::warn!("the store was deleted while running: it will be written again"),
            Err(damage) => {
                let mut findings = Findings::default();
                set_aside(&current, damage, &mut findings)?;
                let found = findings.warnings.join("; ");
                tracing::warn!(found, "the store was damaged while running: it will be written again");
            }
        }
        Ok(())
    }

    /// What reservations of the last process mean: a whole record is the newest one, anything else says that
    /// a refresh was in flight.
    fn settle_reservations(&self, findings: &mut Findings) -> Result<(), StoreError> {
        let entries = fs::read_dir(&self.dir).map_err(failed("reading", &self.dir))?;
        for entry in entries {
            let entry = entry.map_err(failed("reading", &self.dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(account) = name.strip_prefix(NEXT) else { continue };

            let path = entry.path();
            match read_generation(&path) {
                Ok(Some(found)) => self.take_over(account, found, &path, findings)?,
                Err(damage) if !damage.is_certain() => return Err(damage.into_error(&path)),
                // Its mark stays until the next refresh: whoever opens the store first need not be the daemon.
                Ok(None) | Err(_) if self.record(account).is_some() => {
                    self.left_behind().insert(account.to_owned());
                    findings.in_flight.insert(account.to_owned());
                }
                Ok(None) | Err(_) => remove_if_there(&path)?,
            }
        }
        self.handle.sync_all().map_err(failed("syncing", &self.dir))
    }

    /// A record that was durable when the last process died, but not yet under its name: it is the newest one,
    /// unless the store has a later one.
    fn take_over(
        &self,
        account: &str,
        found: Generation,
        path: &Path,
        findings: &mut Findings,
    ) -> Result<(), StoreError> {
        let Some(record) = found.records.get(account).cloned() else { return remove_if_there(path) };
        let is_newer = |stored: Record| stored.obtained_at_ms <= record.obtained_at_ms;
        // Generations tell which is newer whatever the clock did, unless another account was saved in between.
        if found.number > self.latest().number {
            // It has all accounts as they were last, and needs no room but its own.
            let synced = File::open(path).and_then(|file| file.sync_all());
            synced.map_err(failed("syncing", path))?;
            self.put_in_place(path)?;
            *self.latest() = found;
        } else if self.record(account).is_none_or(is_newer) {
            // The only durable copy stays until another one is.
            let copy = self.dir.join(TAKEN);
            remove_if_there(&copy)?;
            self.commit(&mut Reservation::new(copy)?, account, &record)?;
            remove_if_there(path)?;
        } else {
            return remove_if_there(path);
        }
        findings.warnings.push(format!("took over the login of {account} that was saved last"));
        Ok(())
    }

    fn left_behind(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.left_behind.lock().expect("no thread panics while it holds a set of names")
    }

    fn latest(&self) -> std::sync::MutexGuard<'_, Generation> {
        self.latest.lock().expect("no thread panics while it holds the store")
    }
}

impl Reservation {
    fn new(path: PathBuf) -> Result<Self, StoreError> {
        let file = make(&path)?;
        Ok(Self { path, file, may_hold_login: false, is_in_place: false })
    }

    /// Begins again under the same name, when its file has become the store.
    fn renew(&mut self) -> Result<(), StoreError> {
        self.file = make(&self.path)?;
        self.is_in_place = false;
        Ok(())
    }

    /// Gives the room back, with the record in it if there is one: its login is not wanted any more.
    pub fn give_up(mut self) {
        self.may_hold_login = false;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.may_hold_login {
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// Makes the directory with mode 0700, or repairs one of ours that others can enter.
fn make_private(dir: &Path, findings: &mut Findings) -> Result<(), StoreError> {
    if !dir.exists() {
        make_durably(dir)?;
    }
    repair_mode(dir, 0o700, findings)?;
    for name in [CURRENT, PREVIOUS, LOCK] {
        let path = dir.join(name);
        if path.symlink_metadata().is_ok() {
            repair_mode(&path, 0o600, findings)?;
        }
    }
    Ok(())
}

/// Makes a directory and those that it is in, so that a crash can't take it away with the first login.
fn make_durably(dir: &Path) -> Result<(), StoreError> {
    let missing: Vec<_> = dir.ancestors().take_while(|path| !path.exists()).collect();
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(failed("making", parent))?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("making", dir)(error));
        }
        _ => {}
    }
    for parent in missing.into_iter().filter_map(Path::parent) {
        // One that we may write but not read can't be synced.
        let _synced = File::open(parent).and_then(|parent| parent.sync_all());
    }
    Ok(())
}

fn repair_mode(path: &Path, wanted: u32, findings: &mut Findings) -> Result<(), StoreError> {
    let metadata = fs::metadata(path).map_err(failed("looking at", path))?;
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us && us != 0 {
        return Err(StoreError::Foreign { path: path.to_owned(), owner: metadata.uid(), us });
    }
    let mode = metadata.mode() & 0o777;
    if mode & !wanted != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(wanted)).map_err(failed("closing", path))?;
        findings.warnings.push(format!(
            "{} could be reached by others (mode {mode:04o}): closed it to {wanted:04o}",
            path.display()
        ));
    }
    Ok(())
}

fn take_lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut lock = match open {
        Ok(lock) => lock,
        // A read-only file system: the lock of a file that is there still works.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            File::open(&path).map_err(failed("opening", &path))?
        }
        Err(error) => return Err(failed("opening", &path)(error)),
    };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let _read = (&mut lock).take(200).read_to_string(&mut holder);
            let holder = holder.lines().next().map(|who| format!(": {who}")).unwrap_or_default();
            Err(StoreError::InUse { dir: dir.to_owned(), holder })
        }
        Err(errno) => Err(failed("locking", &path)(errno.into())),
    }
}

/// The current generation, else the one before, else an empty one. A damaged file is moved aside, so that it
/// never takes the place of a good one; one that can't be read may be good, and nothing is done then.
fn load(dir: &Path, findings: &mut Findings) -> Result<Generation, StoreError> {
    let mut is_first = true;
    for path in [dir.join(CURRENT), dir.join(PREVIOUS)] {
        match read_generation(&path) {
            Ok(Some(generation)) => {
                if !is_first {
                    findings.warnings.push(format!("using {}, the generation before", path.display()));
                }
                return Ok(generation);
            }
            Ok(None) => {}
            Err(damage) => set_aside(&path, damage, findings)?,
        }
        is_first = false;
    }
    Ok(Generation::default())
}

/// Moves a damaged file out of the way.
fn set_aside(path: &Path, damage: Damage, findings: &mut Findings) -> Result<(), StoreError> {
    if !damage.is_certain() {
        return Err(damage.into_error(path));
    }
    findings.warnings.push(format!("{} is damaged ({damage}): it is moved aside", path.display()));
    fs::rename(path, path.with_file_name(DAMAGED)).map_err(failed("renaming", path))
}

fn read_generation(path: &Path) -> Result<Option<Generation>, Damage> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Damage::Unreadable(error)),
    };
    // Room for all of it: what grows leaves copies behind.
    let length = file.metadata().map_err(Damage::Unreadable)?.len().min(LARGEST);
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(length as usize + 64));
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(Damage::Unreadable)?;
    if bytes.len() as u64 > LARGEST {
        return Err(Damage::TooLarge);
    }
    // Behind a record there may still be the room that was taken for it: the rest is given back once the record
    // is durable.
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    Generation::decode(&bytes[..end]).map(Some)
}

/// Makes a file that nobody else has made.
fn make(path: &Path) -> Result<File, StoreError> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => StoreError::Contended { path: path.to_owned() },
        _ => failed("making", path)(source),
    })
}

/// Writes zeros rather than asking for room: not every file system keeps a promise of room.
fn take_room(mut file: &File, room: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(room), &mut file)?;
    file.sync_all()
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}
