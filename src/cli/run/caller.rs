//! `run` as a caller of the daemon: through which listener, to whom, and with which key.

use std::time::Duration;

use anyhow::Context as _;
use http::header::{AUTHORIZATION, HOST, PROXY_AUTHORIZATION};
use http::{HeaderMap, HeaderValue, Method};
use rustix::process::getuid;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

use crate::cli::daemon::{self, in_time};
use crate::cli::{Exit, Failure};
use crate::config::Listen;
use crate::server::peer::Kernel;

/// A daemon with much to do accepts late.
const CONNECTS_WITHIN: Duration = Duration::from_secs(30);
/// Between looks whether the daemon has accepted a connection.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A caller of the daemon.
pub(super) struct Caller {
    listen: Listen,
    daemon: Option<u32>,
    host: HeaderValue,
    key: Option<HeaderValue>,
}

impl Caller {
    /// Through the first of the listeners at which the daemon accepts. `daemon` is the user that it runs as; none when
    /// that is not known.
    pub(super) async fn new(
        listening: Vec<Listen>,
        daemon: Option<u32>,
        key: Option<HeaderValue>,
    ) -> Result<Self, Failure> {
        let mut why = "it has none".to_owned();
        for listen in listening {
            let host = match &listen {
                Listen::Tcp(address) => format!("localhost:{}", address.port()),
                Listen::Unix(_) => "localhost".to_owned(),
            };
            let host = HeaderValue::try_from(host).expect("a name and a number");
            let caller = Self { listen, daemon, host, key: key.clone() };
            match caller.connect().await {
                Ok(_) => return Ok(caller),
                Err(error) => why = format!("{error:#}"),
            }
        }
        let why = format!("no listener of the daemon can be connected to from here: {why}");
        Err(Failure::new(Exit::Failed, why).with_hint("`cnblogs-proxy status` names them"))
    }

    /// The daemon's status document, as it gives it to callers.
    pub(super) async fn status(&self) -> Result<Value, Failure> {
        let mut request = daemon::request(Method::GET, "/-/status", &[]);
        self.address(request.headers_mut());
        let asking = async { daemon::exchange(self.connect().await?, request).await };
        Ok(in_time(CONNECTS_WITHIN, asking).await?.success()?.json())
    }

    /// A connection that the daemon has accepted: nobody else is sent a request, and the key in it.
    pub(super) async fn connect(&self) -> anyhow::Result<Either<TcpStream, UnixStream>> {
        let connecting = async {
            let (stream, user) = match &self.listen {
                Listen::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    let user = accepted_by(&stream).await?;
                    (Either::Left(stream), user)
                }
                Listen::Unix(path) => {
                    let stream = UnixStream::connect(path).await?;
                    let user = stream.peer_cred()?.uid();
                    (Either::Right(stream), user)
                }
            };
            anyhow::ensure!(
                self.is_daemon(user),
                "a program of user {user} listens there, and not the daemon"
            );
            Ok(stream)
        };
        in_time(CONNECTS_WITHIN, connecting).await.with_context(|| format!("through {}", self.listen))
    }

    /// True for the daemon's user, ourselves and root. Where we can't know the first, for the system's own users: those
    /// below 1000, and those that systemd makes up for services.
    fn is_daemon(&self, user: u32) -> bool {
        let is_system = user < 1000 || (61_184..=65_519).contains(&user);
        user == 0 || user == getuid().as_raw() || self.daemon.map_or(is_system, |daemon| daemon == user)
    }

    /// The fields of a request that the daemon is to see. Of credentials, only the key: the program's own
    /// `Authorization` is for the upstream, and would be taken for a key.
    pub(super) fn address(&self, fields: &mut HeaderMap) {
        fields.remove(AUTHORIZATION);
        fields.remove(PROXY_AUTHORIZATION);
        fields.insert(HOST, self.host.clone());
        if let Some(key) = &self.key {
            fields.insert(PROXY_AUTHORIZATION, key.clone());
        }
    }
}

/// The user whose process has accepted the connection, once it has.
async fn accepted_by(stream: &TcpStream) -> anyhow::Result<u32> {
    let kernel = Kernel::new().context("asking the kernel who listens")?;
    let (peer, own) = (stream.peer_addr()?, stream.local_addr()?);
    loop {
        if let Some(user) = kernel.owner(peer, own) {
            return Ok(user);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_is_taken_for_the_daemon() {
        let own = getuid().as_raw();
        for (daemon, user, expected) in [
            (Some(123_456), 123_456, true),
            (Some(123_456), own, true),
            (Some(123_456), 0, true),
            (Some(123_456), 999, own == 999),
            (Some(123_456), 123_457, false),
            (None, own, true),
            (None, 0, true),
            (None, 999, true),
            (None, 61_184, true),
            (None, 123_456, false),
            (None, 65_534, own == 65_534),
        ] {
            let listen = Listen::Unix("/".into());
            let caller = Caller { listen, daemon, host: HeaderValue::from_static("x"), key: None };
            assert_eq!(caller.is_daemon(user), expected, "{daemon:?} {user}");
        }
    }
}
