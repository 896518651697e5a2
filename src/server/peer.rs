//! Which user owns the other end of a connection, by the kernel's word: `SO_PEERCRED` for unix sockets, an exact
//! `sock_diag` look-up of the four-tuple for loopback TCP. Asked once a connection.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const IPPROTO_TCP: u8 = 6;
/// Of `linux/tcp_states.h`: a socket that nobody owns any more reports no user, or root.
const TIME_WAIT: u8 = 6;
const NETLINK_HEADER: usize = 16;
/// `struct inet_diag_msg`: family, state, timer, retrans, id, expires, rqueue, wqueue, uid, inode.
const ANSWER: usize = NETLINK_HEADER + 72;

/// What the kernel says of a socket.
struct Found {
    state: u8,
    uid: u32,
    inode: u32,
}

/// Asks the kernel about TCP sockets. One a worker.
#[derive(Debug)]
pub struct Kernel {
    netlink: OwnedFd,
}

impl Kernel {
    /// Opens a socket to the kernel.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn new() -> io::Result<Self> {
        let netlink =
            socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(SOCK_DIAG))?;
        Ok(Self { netlink })
    }

    /// The user that owns the socket at `peer` which is connected to `own`; none when the kernel can't tell.
    pub fn owner(&self, peer: SocketAddr, own: SocketAddr) -> Option<u32> {
        self.ask(peer, own)
            .filter(|socket| socket.state != TIME_WAIT && socket.inode != 0)
            .map(|socket| socket.uid)
    }

    /// The number by which `/proc/PID/fd` names that socket; none when no process has it.
    pub fn inode(&self, peer: SocketAddr, own: SocketAddr) -> Option<u32> {
        self.ask(peer, own).map(|socket| socket.inode).filter(|inode| *inode != 0)
    }

    /// True when that socket is known, and no process has it any more: it was closed, not only shut down.
    pub fn is_orphaned(&self, peer: SocketAddr, own: SocketAddr) -> bool {
        self.ask(peer, own).is_some_and(|socket| socket.inode == 0)
    }

    fn ask(&self, peer: SocketAddr, own: SocketAddr) -> Option<Found> {
        let request = request(peer, own)?;
        let sent = sendto(&self.netlink, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0));
        sent.ok()?;
        let mut answer = [0; 512];
        let (_, length) = recv(&self.netlink, &mut answer[..], RecvFlags::DONTWAIT).ok()?;
        found(answer.get(..length)?)
    }
}

/// The user at the other end of a unix socket.
pub(super) fn owner_of_unix(socket: impl AsFd) -> Option<u32> {
    rustix::net::sockopt::socket_peercred(socket).ok().map(|credentials| credentials.uid.as_raw())
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2` of `linux/inet_diag.h`, for one socket.
fn request(peer: SocketAddr, own: SocketAddr) -> Option<Vec<u8>> {
    let (peer_ip, own_ip) = (peer.ip().to_canonical(), own.ip().to_canonical());
    let (family, peer_bytes, own_bytes) = match (peer_ip, own_ip) {
        (IpAddr::V4(peer), IpAddr::V4(own)) => {
            let widen = |ip: std::net::Ipv4Addr| {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&ip.octets());
                bytes
            };
            (AddressFamily::INET, widen(peer), widen(own))
        }
        (IpAddr::V6(peer), IpAddr::V6(own)) => (AddressFamily::INET6, peer.octets(), own.octets()),
        _ => return None,
    };
    let mut message = Vec::with_capacity(72);
    message.extend(72_u32.to_ne_bytes());
    message.extend(BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([u8::try_from(family.as_raw()).ok()?, IPPROTO_TCP, 0, 0]);
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(peer.port().to_be_bytes());
    message.extend(own.port().to_be_bytes());
    message.extend(peer_bytes);
    message.extend(own_bytes);
    message.extend(0_u32.to_ne_bytes());
    message.extend([0xff; 8]);
    Some(message)
}

fn found(answer: &[u8]) -> Option<Found> {
    let word =
        |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes)?;
    let state = *answer.get(NETLINK_HEADER + 1)?;
    let (uid, inode) = (word(ANSWER - 8)?, word(ANSWER - 4)?);
    (kind == BY_FAMILY).then_some(Found { state, uid, inode })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_kernel_knows_who_connected() {
        let kernel = Kernel::new().unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, peer) = listener.accept().unwrap();

            let owner = kernel.owner(peer, accepted.local_addr().unwrap());

            assert_eq!(owner, Some(rustix::process::getuid().as_raw()), "{address}");
            drop(caller);
            let after = kernel.owner(peer, accepted.local_addr().unwrap());
            assert_eq!(after, None, "nobody owns a closed socket");
        }
    }
}
