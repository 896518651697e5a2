//! TCP connections to a host that may have several addresses (RFC 8305).

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::failure::Failure;

/// An attempt to connect is left alone for that long before the next one begins beside it (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// An idle connection is probed after the first, and then at intervals of the second: a peer that is gone is noticed
/// within a minute, and what is between remembers the connection.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// Connects to the first address of a host that takes a connection.
///
/// # Errors
/// That the host has no address, or the most telling reason why none of them takes one.
pub(super) async fn connect(host: &str, port: u16) -> Result<TcpStream, Failure> {
    let addresses = lookup_host((host, port)).await.map_err(Failure::Resolve)?;
    let tcp = race(interleaved(addresses)).await.map_err(Failure::Connect)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    // A kernel without them serves all the same.
    let _taken = SockRef::from(&tcp).set_tcp_keepalive(&keepalive);
    let _taken = tcp.set_nodelay(true);
    Ok(tcp)
}

/// The families take turns, beginning with the one that the system prefers (RFC 8305, section 4).
fn interleaved(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses = addresses.peekable();
    let prefers_ipv6 = addresses.peek().is_some_and(SocketAddr::is_ipv6);
    let (preferred, other): (Vec<_>, Vec<_>) =
        addresses.partition(|address| address.is_ipv6() == prefers_ipv6);
    let turns = 0..preferred.len().max(other.len());
    turns.flat_map(|turn| [preferred.get(turn), other.get(turn)]).flatten().copied().collect()
}

/// The next address is tried at once when an attempt fails, and beside the others when all are silent.
async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let (mut waiting, mut attempts) = (addresses.into_iter(), Vec::new());
    let mut reason = io::Error::from(ErrorKind::HostUnreachable);
    loop {
        let next = waiting.next().map(|address| -> Connecting { Box::pin(TcpStream::connect(address)) });
        attempts.extend(next);
        if attempts.is_empty() {
            return Err(reason);
        }
        match timeout(ATTEMPT_DELAY, first_of(&mut attempts)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) if weight(&error) >= weight(&reason) => reason = error,
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

/// The outcome of the first attempt that has one; it is taken off.
async fn first_of(attempts: &mut Vec<Connecting>) -> io::Result<TcpStream> {
    poll_fn(|cx| {
        let outcome = attempts.iter_mut().enumerate().find_map(|(at, attempt)| {
            let Poll::Ready(outcome) = attempt.as_mut().poll(cx) else { return None };
            Some((at, outcome))
        });
        let Some((at, outcome)) = outcome else { return Poll::Pending };
        drop(attempts.swap_remove(at));
        Poll::Ready(outcome)
    })
    .await
}

/// A host that refuses is there, and more telling than one that is silent, and that more than a missing network.
fn weight(error: &io::Error) -> u8 {
    match error.kind() {
        ErrorKind::ConnectionRefused => 2,
        ErrorKind::TimedOut => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::TcpListener;

    use socket2::{Domain, Socket, Type};
    use tokio::time::Instant;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// An address that answers nothing: the only place in its queue is taken.
    fn silent() -> (Socket, std::net::TcpStream, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&address("127.0.0.1:0").into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let takes_the_place = std::net::TcpStream::connect(address).unwrap();
        (socket, takes_the_place, address)
    }

    /// An address that refuses connections as long as the socket is there.
    fn refusing() -> (Socket, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&address("127.0.0.1:0").into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, address)
    }

    #[test]
    fn families_take_turns_and_the_preferred_one_begins() {
        let of = |texts: &[&str]| texts.iter().map(|text| address(text)).collect::<Vec<_>>();
        for (given, expected) in [
            (&["[::1]:1", "[::2]:1", "1.1.1.1:1"][..], &["[::1]:1", "1.1.1.1:1", "[::2]:1"][..]),
            (&["1.1.1.1:1", "1.1.1.2:1", "[::1]:1"], &["1.1.1.1:1", "[::1]:1", "1.1.1.2:1"]),
            (&["1.1.1.1:1", "1.1.1.2:1"], &["1.1.1.1:1", "1.1.1.2:1"]),
            (&["[::1]:1"], &["[::1]:1"]),
            (&[], &[]),
        ] {
            assert_eq!(interleaved(of(given).into_iter()), of(expected));
        }
    }

    #[tokio::test]
    async fn the_next_address_is_tried_beside_one_that_is_silent() {
        let ((_silent, _queued, first), (_also, _too, second)) = (silent(), silent());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (third, started) = (listener.local_addr().unwrap(), Instant::now());

        let tcp = race(vec![first, second, third]).await.unwrap();

        assert_eq!(tcp.peer_addr().unwrap(), third);
        assert!(started.elapsed() >= 2 * ATTEMPT_DELAY, "after {:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_address_is_tried_at_once_after_one_that_refuses() {
        let ((_bound, first), listener) = (refusing(), TcpListener::bind("127.0.0.1:0").unwrap());
        let (second, started) = (listener.local_addr().unwrap(), Instant::now());

        let tcp = race(vec![first, second]).await.unwrap();

        assert_eq!(tcp.peer_addr().unwrap(), second);
        assert!(started.elapsed() < ATTEMPT_DELAY, "after {:?}", started.elapsed());
    }

    #[tokio::test]
    async fn of_several_reasons_the_most_telling_is_told() {
        // No source address reaches the one, and nobody has been assigned the other.
        let ((_bound, refuses), unreachable) = (refusing(), address("[100::1%9999]:1"));
        for addresses in [vec![refuses, unreachable], vec![unreachable, refuses]] {
            let error = race(addresses).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        }
        assert!(race(Vec::new()).await.is_err());
    }
}
