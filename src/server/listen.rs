//! The sockets that callers connect to: bound here, or given by the service manager.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, fstat, lstat, open};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, Type};

use crate::config::{Callers, Config, Listen, User};
use crate::proxy::guard::Door;

/// Connections that wait for a worker.
const BACKLOG: i32 = 1024;
/// The kernel takes no more of an answer than this beyond what the caller has room for, so that a caller that reads
/// slowly is not taken for one that reads nothing.
const UNSENT: u32 = 128 * 1024;

/// A socket that callers connect to. Cheap to share among workers.
#[derive(Debug)]
pub struct Bound {
    /// The address, with the real port.
    pub listen: Listen,
    pub(super) socket: Socket,
    pub(super) door: Arc<Door>,
    /// Of a unix socket that was made here.
    pub(super) file: Option<SocketFile>,
}

/// The file of a unix socket, removed when this is dropped, unless another one has taken its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Keeps the inode, so that no other file gets its number.
    handle: OwnedFd,
}

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Sockets that the service manager opened before the daemon began (`LISTEN_FDS`).
#[derive(Debug, Default)]
pub struct Inherited {
    /// TCP listeners.
    pub tcp: Vec<TcpListener>,
    /// Unix listeners.
    pub unix: Vec<UnixListener>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The operating system said no.
    #[error("can't listen on {listen}")]
    Bind {
        /// Where.
        listen: Listen,
        /// The reason.
        source: io::Error,
    },
    /// Another process accepts there.
    #[error("{0} is in use by another process")]
    InUse(Listen),
    /// Something that is not a socket stands at the path.
    #[error("{0} is not a socket: it is left alone")]
    NotASocket(PathBuf),
    /// A socket of the service manager that other machines can reach.
    #[error("{0} can be reached by other machines: set callers.allow_remote = true and give callers keys")]
    Remote(Listen),
    /// A socket of the service manager that nobody can connect to.
    #[error("{0} is not listened on: the service manager has to give a listening socket (Accept=no)")]
    NotListening(Listen),
    /// Others could replace the socket.
    #[error("{0} can be written by others, who could put their own socket there")]
    OpenDirectory(PathBuf),
}

impl Bound {
    pub(super) fn share(&self) -> io::Result<Self> {
        let socket = match &self.socket {
            Socket::Tcp(listener) => Socket::Tcp(listener.try_clone()?),
            Socket::Unix(listener) => Socket::Unix(listener.try_clone()?),
        };
        Ok(Self { listen: self.listen.clone(), socket, door: Arc::clone(&self.door), file: None })
    }
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        let handle = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { path: path.to_owned(), handle })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fstat(&self.handle).map(|file| (file.st_dev, file.st_ino));
        if ours.is_ok() && ours == lstat(&self.path).map(|file| (file.st_dev, file.st_ino)) {
            let _removed = fs::remove_file(&self.path);
        }
    }
}

impl Inherited {
    fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.unix.is_empty()
    }
}

/// Binds everything, or takes what the service manager gave instead.
///
/// # Errors
/// The first socket that can't be had, except an IPv6 address that nobody wrote on a machine without IPv6.
pub fn bind(config: &Config, inherited: Inherited) -> Result<Vec<Bound>, ListenError> {
    let Config { listen, callers, .. } = config;
    let mut bound = Vec::new();
    if inherited.is_empty() {
        for one in listen {
            match bind_one(one, callers) {
                Err(ListenError::Bind { source, .. })
                    if config.is_default_listen && is_without_ipv6(one, &source) =>
                {
                    tracing::debug!(%source, "{one} is left out: this machine has no IPv6");
                }
                one => bound.push(one?),
            }
        }
        return Ok(bound);
    }
    for listener in inherited.tcp {
        let address = listener.local_addr().map_err(|source| failed(&listen[0], source))?;
        bound.push(of(Listen::Tcp(address), Socket::Tcp(listener), callers)?);
    }
    for listener in inherited.unix {
        let address = listener.local_addr().map_err(|source| failed(&listen[0], source))?;
        let path = address.as_pathname().unwrap_or_else(|| Path::new("(unnamed)")).to_owned();
        bound.push(of(Listen::Unix(path), Socket::Unix(listener), callers)?);
    }
    Ok(bound)
}

/// True when an IPv6 address can't be bound since the machine, or its network namespace, has none.
pub fn is_without_ipv6(listen: &Listen, error: &io::Error) -> bool {
    let is_missing =
        [Some(Errno::ADDRNOTAVAIL), Some(Errno::AFNOSUPPORT)].contains(&Errno::from_io_error(error));
    is_missing && matches!(listen, Listen::Tcp(SocketAddr::V6(_)))
}

fn bind_one(listen: &Listen, callers: &Callers) -> Result<Bound, ListenError> {
    match listen {
        Listen::Tcp(address) => {
            let listener = bind_tcp(*address).map_err(|source| match source.kind() {
                io::ErrorKind::AddrInUse => ListenError::InUse(listen.clone()),
                _ => failed(listen, source),
            })?;
            let real = listener.local_addr().map_err(|source| failed(listen, source))?;
            of(Listen::Tcp(real), Socket::Tcp(listener), callers)
        }
        Listen::Unix(path) => {
            clear_the_way(path)?;
            // Only for us, or for everybody whom the kernel's word then admits or refuses.
            let only_us = callers.users.iter().all(|user| matches!(user, User::Myself | User::Uid(0)));
            let mode = if only_us { 0o600 } else { 0o666 };
            let listener = bind_unix(path, mode).map_err(|source| failed(listen, source))?;
            let file = SocketFile::at(path).map_err(|source| failed(listen, source))?;
            Ok(Bound { file: Some(file), ..of(listen.clone(), Socket::Unix(listener), callers)? })
        }
    }
}

fn of(listen: Listen, socket: Socket, callers: &Callers) -> Result<Bound, ListenError> {
    match &socket {
        Socket::Tcp(listener) => {
            // Accepted sockets inherit it.
            let _taken = SockRef::from(listener).set_tcp_notsent_lowat(UNSENT);
            listener.set_nonblocking(true)
        }
        Socket::Unix(listener) => listener.set_nonblocking(true),
    }
    .map_err(|source| failed(&listen, source))?;
    let is_listening = match &socket {
        Socket::Tcp(listener) => SockRef::from(listener).is_listener(),
        Socket::Unix(listener) => SockRef::from(listener).is_listener(),
    };
    if !is_listening.map_err(|source| failed(&listen, source))? {
        return Err(ListenError::NotListening(listen));
    }
    check_reach(&listen, callers)?;
    let door = Arc::new(Door::of(&listen, callers));
    Ok(Bound { listen, socket, door, file: None })
}

/// A listener that other machines can reach is meant to be, and callers need keys there.
///
/// # Errors
/// When it is not so.
pub(super) fn check_reach(listen: &Listen, callers: &Callers) -> Result<(), ListenError> {
    if listen.is_remote() && (!callers.allow_remote || callers.keys.is_empty()) {
        return Err(ListenError::Remote(listen.clone()));
    }
    Ok(())
}

/// One listener for all workers, and never `SO_REUSEPORT`, by which another process could share the port.
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Makes a unix socket that has its mode from the first moment.
pub(super) fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let before = rustix::process::umask(Mode::from_raw_mode(0o777 & !mode));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// Removes a socket that nobody accepts on any more, and nothing else.
pub(super) fn clear_the_way(path: &Path) -> Result<(), ListenError> {
    let listen = || Listen::Unix(path.to_owned());
    let parent = path.parent().unwrap_or_else(|| Path::new("/"));
    let directory = fs::metadata(parent).map_err(|source| failed(&listen(), source))?;
    let us = rustix::process::geteuid().as_raw();
    let is_ours = directory.uid() == us || directory.uid() == 0;
    let is_open = directory.mode() & 0o002 != 0 && directory.mode() & 0o1000 == 0;
    if !is_ours || is_open {
        return Err(ListenError::OpenDirectory(parent.to_owned()));
    }
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| failed(&listen(), source))
        }
        _ => Err(ListenError::InUse(listen())),
    }
}

fn failed(listen: &Listen, source: io::Error) -> ListenError {
    ListenError::Bind { listen: listen.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_ipv6_address_that_can_not_be_had_is_for_want_of_ipv6() {
        let [v4, v6] = ["127.0.0.1:1", "[::1]:1"].map(|address| Listen::Tcp(address.parse().unwrap()));
        for (listen, errno, expected) in [
            (&v6, Errno::ADDRNOTAVAIL, true),
            (&v6, Errno::AFNOSUPPORT, true),
            (&v6, Errno::ADDRINUSE, false),
            (&v6, Errno::ACCESS, false),
            (&v4, Errno::ADDRNOTAVAIL, false),
        ] {
            assert_eq!(is_without_ipv6(listen, &errno.into()), expected, "{listen} {errno}");
        }
    }
}
