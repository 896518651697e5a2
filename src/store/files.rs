//! The files of the state directory. Only regular files of our own are opened: what else stands under one of their
//! names is neither followed, waited for nor changed, and the error says what it is.
//!
//! The directory itself may be reached by a symbolic link: systemd's `DynamicUser` makes it one.

use std::fs::{self, DirBuilder, File, FileType, Metadata, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::{Findings, StoreError};

/// Opening a named pipe would wait for whoever writes into it. The standard library adds `O_CLOEXEC`.
const UNFOLLOWED: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits().cast_signed();

/// The state directory, open.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    handle: File,
    /// Its file system can't sync directories, and that was said.
    is_never_synced: AtomicBool,
}

impl Directory {
    /// Makes it with mode 0700 when it is not there, or closes one of ours that others can enter.
    pub(super) fn open(path: &Path, findings: &mut Findings) -> Result<Self, StoreError> {
        if !path.exists() {
            make_durably(path)?;
        }
        let flags = OFlags::DIRECTORY.bits().cast_signed();
        let handle = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let handle = handle.map_err(failed("opening", path))?;
        let metadata = handle.metadata().map_err(failed("looking at", path))?;
        let us = rustix::process::geteuid().as_raw();
        if metadata.uid() != us && us != 0 {
            return Err(StoreError::Foreign { path: path.to_owned(), owner: metadata.uid(), us });
        }
        close_to_others(path, &handle, &metadata, 0o700, findings)?;
        Ok(Self { path: path.to_owned(), handle, is_never_synced: AtomicBool::new(false) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Locks it as well as the file: that can be deleted under us. Some network file systems can't lock
    /// directories, and there the file has to do.
    pub(super) fn lock(&self) -> Result<(), StoreError> {
        match flock(&self.handle, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                Err(StoreError::InUse { dir: self.path.clone(), holder: String::new() })
            }
            _ => Ok(()),
        }
    }

    /// Makes the names in it durable, where the file system can do that.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let Err(error) = self.handle.sync_all() else { return Ok(()) };
        let is_unsupported = matches!(
            Errno::from_io_error(&error),
            Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::BADF)
        );
        if !is_unsupported {
            return Err(failed("syncing", &self.path)(error));
        }
        if !self.is_never_synced.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %error,
                "the file system of {} can't sync directories: after a power cut the login before the last one may \
                 be found there, and a person may have to log in",
                self.path.display()
            );
        }
        Ok(())
    }
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

/// What stands under a name: none, or a regular file of ours.
pub(super) fn look(path: &Path) -> Result<Option<Metadata>, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => check(path, &metadata).map(|()| Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("looking at", path)(error)),
    }
}

/// Opens a regular file of ours, none when there is none. Looks first, since opening alone may already do something
/// to a device, and then at what was opened.
pub(super) fn open(path: &Path) -> Result<Option<File>, StoreError> {
    if look(path)?.is_none() {
        return Ok(None);
    }
    match OpenOptions::new().read(true).custom_flags(UNFOLLOWED).open(path) {
        Ok(file) => {
            check(path, &file.metadata().map_err(failed("looking at", path))?)?;
            Ok(Some(file))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("opening", path)(error)),
    }
}

/// Makes a file that nobody else has made.
pub(super) fn make(path: &Path) -> Result<File, StoreError> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.or_else(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => {
            look(path)?;
            Err(StoreError::Contended { path: path.to_owned() })
        }
        _ => Err(failed("making", path)(source)),
    })
}

/// Takes from a file the rights that others have on it.
pub(super) fn make_private(path: &Path, findings: &mut Findings) -> Result<(), StoreError> {
    let is_open = look(path)?.is_some_and(|metadata| metadata.mode() & 0o177 != 0);
    let Some(file) = is_open.then(|| open(path)).transpose()?.flatten() else { return Ok(()) };
    let metadata = file.metadata().map_err(failed("looking at", path))?;
    if metadata.nlink() > 1 {
        // Its other names, and what they are for, are not known here.
        return Err(strange(path, "a hard link that others can read"));
    }
    close_to_others(path, &file, &metadata, 0o600, findings)
}

fn close_to_others(
    path: &Path,
    file: &File,
    metadata: &Metadata,
    wanted: u32,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    let mode = metadata.mode() & 0o777;
    if mode & !wanted != 0 {
        file.set_permissions(Permissions::from_mode(wanted)).map_err(failed("closing", path))?;
        findings.warnings.push(format!(
            "{} could be reached by others (mode {mode:04o}): closed it to {wanted:04o}",
            path.display()
        ));
    }
    Ok(())
}

/// Opens and locks the file that says who holds the directory.
pub(super) fn take_lock(dir: &Directory) -> Result<File, StoreError> {
    let path = dir.join(super::LOCK);
    look(&path)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(UNFOLLOWED);
    let lock = match options.open(&path) {
        // A read-only file system: the lock of a file that is there still works.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => open(&path)?.ok_or(error),
        opened => opened,
    };
    let lock = lock.map_err(failed("opening", &path))?;
    check(&path, &lock.metadata().map_err(failed("looking at", &path))?)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            if has_one_name(&lock) {
                let _read = (&lock).take(200).read_to_string(&mut holder);
            }
            let holder = holder.lines().next().map(|who| format!(": {who}")).unwrap_or_default();
            Err(StoreError::InUse { dir: dir.path.clone(), holder })
        }
        Err(errno) => Err(failed("locking", &path)(errno.into())),
    }
}

/// Writes who holds the lock into its file, unless that is something else under another name.
pub(super) fn name_holder(lock: &File, path: &Path, who: &str) -> Result<(), StoreError> {
    if !has_one_name(lock) {
        return Err(strange(path, "a hard link"));
    }
    let written = lock.set_len(0).and_then(|()| lock.write_all_at(who.as_bytes(), 0));
    written.map_err(failed("writing", path))
}

fn has_one_name(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.nlink() == 1)
}

/// Writes zeros rather than asking for room: not every file system keeps a promise of room.
pub(super) fn take_room(mut file: &File, room: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(room), &mut file)?;
    file.sync_all()
}

pub(super) fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
        _ => Ok(()),
    }
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(failed("renaming", from))
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

/// Runs something that may block beside the runtime.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("work on the store does not panic")
}

/// Whether it is a regular file of ours.
fn check(path: &Path, metadata: &Metadata) -> Result<(), StoreError> {
    if !metadata.is_file() {
        return Err(strange(path, kind(metadata.file_type())));
    }
    let (owner, us) = (metadata.uid(), rustix::process::geteuid().as_raw());
    // Root may see to the directory of a service: what is in it belongs to that service.
    let owns_directory = |dir| fs::metadata(dir).is_ok_and(|dir| dir.uid() == owner);
    if owner == us || us == 0 && path.parent().is_some_and(owns_directory) {
        return Ok(());
    }
    Err(StoreError::Foreign { path: path.to_owned(), owner, us })
}

fn kind(found: FileType) -> &'static str {
    match found {
        found if found.is_symlink() => "a symbolic link",
        found if found.is_dir() => "a directory",
        found if found.is_fifo() => "a named pipe",
        found if found.is_socket() => "a socket",
        _ => "a device",
    }
}

fn strange(path: &Path, what: &'static str) -> StoreError {
    StoreError::NotAFile { path: path.to_owned(), what }
}
