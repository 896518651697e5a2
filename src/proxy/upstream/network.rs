//! Whether the machine slept or came to another network. Connections that were made before lead nowhere, and the kernel
//! reports it only when a request on them has been unacknowledged for seconds.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use rustix::time::{ClockId, clock_gettime};
use tokio::net::{TcpStream, UdpSocket as Datagrams};
use tokio::time::Instant;

/// `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR` and `RTMGRP_IPV6_ROUTE` of `linux/rtnetlink.h`.
const ADDRESSES_AND_ROUTES: u32 = 0x10 | 0x40 | 0x100 | 0x400;
/// Two clocks are read one after the other, and a thread may wait for a processor in between.
const SLEPT_AT_LEAST: Duration = Duration::from_secs(1);

/// What a worker knows of the machine's network.
pub(in crate::proxy) struct Network {
    /// The kernel's messages about addresses and routes; none where it gives no such socket.
    messages: Option<Datagrams>,
    changes: AtomicU64,
    started_at: Instant,
    booted: Duration,
}

/// The state of the network at some time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Epoch {
    /// How long the machine has slept in all.
    slept: Duration,
    /// How often its addresses or routes have changed.
    changes: u64,
}

impl Network {
    /// Begins to listen to the kernel; within a worker's runtime.
    pub(in crate::proxy) fn new() -> Self {
        let messages = messages()
            .inspect_err(|error| tracing::debug!(%error, "the kernel does not tell of changes of addresses"))
            .ok();
        Self { messages, changes: AtomicU64::new(0), started_at: Instant::now(), booted: since_boot() }
    }

    /// The state of the network now. Costs a clock, and a look at a flag of the runtime's.
    pub(super) fn epoch(&self, now: Instant) -> Epoch {
        if let Some(messages) = &self.messages {
            // What changed is not read: the routes are asked. An error says that there were too many messages.
            while !matches!(messages.try_recv(&mut [0]), Err(error) if is_over(&error)) {
                self.changes.fetch_add(1, Ordering::Relaxed);
            }
        }
        // The clock that goes on while the machine sleeps, less the one that does not.
        let awake = now.saturating_duration_since(self.started_at);
        let slept = since_boot().saturating_sub(self.booted).saturating_sub(awake);
        Epoch { slept, changes: self.changes.load(Ordering::Relaxed) }
    }
}

impl Epoch {
    /// Whether a connection that was good in this epoch is still good in a later one.
    pub(super) fn is_good_in(self, later: Self, tcp: &TcpStream) -> bool {
        later.slept.saturating_sub(self.slept) < SLEPT_AT_LEAST
            && (later.changes == self.changes || has_its_route(tcp).unwrap_or(false))
    }
}

fn messages() -> io::Result<Datagrams> {
    // Without a protocol it is `NETLINK_ROUTE`, which is 0.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let netlink: OwnedFd = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, None)?;
    bind(&netlink, &SocketAddrNetlink::new(0, ADDRESSES_AND_ROUTES))?;
    // Any datagram socket will do for waiting and receiving.
    Datagrams::from_std(UdpSocket::from(netlink))
}

fn is_over(error: &io::Error) -> bool {
    error.raw_os_error() != Some(rustix::io::Errno::NOBUFS.raw_os_error())
}

fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::try_from(now).expect("the time since boot is not negative")
}

/// Whether the kernel would make the connection from the same address now. Nothing is sent for that.
fn has_its_route(tcp: &TcpStream) -> io::Result<bool> {
    let (own, peer) = (tcp.local_addr()?, tcp.peer_addr()?);
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let probe = UdpSocket::bind(any)?;
    probe.connect(peer)?;
    Ok(probe.local_addr()?.ip() == own.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_connection_is_good_until_the_machine_sleeps_or_its_route_is_another() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let usual = TcpStream::connect(address).await.unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let unusual = socket.connect(address).await.unwrap();
        let epoch = |slept_ms, changes| Epoch { slept: Duration::from_millis(slept_ms), changes };

        for (made, now, is_good, is_good_elsewhere) in [
            (epoch(0, 0), epoch(0, 0), true, true),
            (epoch(5000, 0), epoch(5300, 0), true, true),
            (epoch(0, 0), epoch(2000, 0), false, false),
            (epoch(0, 3), epoch(0, 4), true, false),
            (epoch(0, 3), epoch(2000, 4), false, false),
        ] {
            assert_eq!(made.is_good_in(now, &usual), is_good, "{made:?}, {now:?}");
            assert_eq!(made.is_good_in(now, &unusual), is_good_elsewhere, "{made:?}, {now:?}");
        }
    }

    #[tokio::test]
    async fn time_awake_is_no_sleep() {
        let network = Network::new();
        let later = network.started_at + Duration::from_secs(60);
        assert!(network.epoch(Instant::now()).slept < SLEPT_AT_LEAST);
        assert_eq!(network.epoch(later).slept, Duration::ZERO);

        let asleep =
            Network { booted: network.booted.checked_sub(Duration::from_secs(60)).unwrap(), ..network };
        assert!(asleep.epoch(Instant::now()).slept > Duration::from_secs(59));
    }
}
