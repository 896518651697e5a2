//! The one connection of this process to the database: made again whenever it ends, and given up when an answer takes
//! too long, since a database that accepts and does not answer is none.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Client, Connection, SimpleQueryMessage, SimpleQueryRow, Socket};
use tokio_rustls::TlsConnector;

use crate::config::Database;
use crate::notify::with_causes;
use crate::tls::{self, TlsError};

/// How long a connection may take to be made, to each of the hosts.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long an answer is waited for: longer than the database works on a statement.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);

/// A connection that nobody drives yet.
pub(super) type Fresh = (Arc<Client>, Connection<Socket, Tls<Socket>>);

/// Where statements go.
pub(super) struct Link {
    server: ArcSwap<(tokio_postgres::Config, MakeTls)>,
    state: watch::Sender<State>,
    is_given_up: Notify,
}

/// Whether there is a connection, and else why not.
#[derive(Clone)]
enum State {
    /// Soon, or not.
    Connecting,
    Up(Arc<Client>),
    Down(Arc<str>),
}

/// Why the database did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{words}")]
pub(super) struct LinkError {
    words: Arc<str>,
}

impl Link {
    pub(super) fn new(database: &Database) -> Result<Self, TlsError> {
        let state = watch::Sender::new(State::Connecting);
        let server = ArcSwap::from_pointee(server(database)?);
        Ok(Self { server, state, is_given_up: Notify::new() })
    }

    /// Connects with this from the next time on.
    pub(super) fn reconfigure(&self, database: &Database) -> Result<(), TlsError> {
        self.server.store(Arc::new(server(database)?));
        Ok(())
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), State::Up(_))
    }

    pub(super) fn is_down(&self, why: &LinkError) {
        self.state.send_replace(State::Down(Arc::clone(&why.words)));
    }

    pub(super) async fn connect(&self) -> Result<Fresh, LinkError> {
        let server = self.server.load_full();
        let (config, tls) = &*server;
        let hosts = u32::try_from(config.get_hosts().len()).unwrap_or(1).max(1);
        let connected = timeout(CONNECT_WITHIN * 2 * hosts, config.connect(tls.clone())).await;
        let connected = connected.map_err(|_elapsed| LinkError::late())?;
        let (client, connection) = connected.map_err(|error| LinkError::of(&error))?;
        Ok((Arc::new(client), connection))
    }

    /// Drives a connection: what is `first` is asked on it before anybody else may, and `on_change` called whenever the
    /// database tells of a change. Ends with the connection, and says why.
    pub(super) async fn drive(
        &self,
        (client, mut connection): Fresh,
        first: impl Future<Output = Result<(), LinkError>>,
        on_change: impl Fn(),
    ) -> LinkError {
        let driven = end_of(&mut connection, on_change);
        let used = async {
            if let Err(error) = first.await {
                return error;
            }
            self.state.send_replace(State::Up(client));
            self.is_given_up.notified().await;
            LinkError::late()
        };
        let why = tokio::select! {
            why = driven => why,
            why = used => why,
        };
        // Where the connection was made before, another is tried at once.
        self.state.send_modify(|state| {
            *state = match state {
                State::Up(_) => State::Connecting,
                _ => State::Down(Arc::clone(&why.words)),
            }
        });
        why
    }

    /// Asks on a connection that is driven only meanwhile.
    pub(super) async fn ask_once<T>(
        (_, connection): &mut Fresh,
        answer: impl Future<Output = T>,
    ) -> Result<T, LinkError> {
        let driven = end_of(connection, || ());
        tokio::select! {
            biased;
            why = driven => Err(why),
            answer = answer => Ok(answer),
        }
    }

    /// What to ask on. A connection that is being made is waited for.
    pub(super) async fn client(&self) -> Result<Arc<Client>, LinkError> {
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|state| !matches!(state, State::Connecting));
        match timeout(ANSWER_WITHIN, settled).await.ok().and_then(Result::ok).as_deref() {
            Some(State::Up(client)) => Ok(Arc::clone(client)),
            Some(State::Down(words)) => Err(LinkError { words: Arc::clone(words) }),
            Some(State::Connecting) | None => Err(LinkError::late()),
        }
    }

    /// True when the last try to connect failed.
    pub(super) fn has_failed(&self) -> bool {
        matches!(*self.state.borrow(), State::Down(_))
    }

    /// One transaction; the rows of all its statements.
    pub(super) async fn run(&self, sql: &str) -> Result<Vec<SimpleQueryRow>, LinkError> {
        let client = self.client().await?;
        let answered = run(&client, sql).await;
        if answered.as_ref().is_err_and(LinkError::is_late) {
            self.is_given_up.notify_one();
        }
        answered
    }
}

/// Drives a connection to its end, and says why it ended.
async fn end_of(connection: &mut Connection<Socket, Tls<Socket>>, on_change: impl Fn()) -> LinkError {
    loop {
        match poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notification(_))) => on_change(),
            Some(Ok(_)) => {}
            Some(Err(error)) => return LinkError::of(&error),
            None => return LinkError::of_words("the connection was closed"),
        }
    }
}

/// One transaction; the rows of all its statements.
pub(super) async fn run(client: &Client, sql: &str) -> Result<Vec<SimpleQueryRow>, LinkError> {
    let answered = timeout(ANSWER_WITHIN, client.simple_query(sql)).await;
    let messages = answered.map_err(|_elapsed| LinkError::late())?.map_err(|error| LinkError::of(&error))?;
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

const LATE: &str = "the database does not answer";

impl LinkError {
    pub(super) fn of_words(words: &str) -> Self {
        Self { words: words.into() }
    }

    fn late() -> Self {
        Self::of_words(LATE)
    }

    fn is_late(&self) -> bool {
        &*self.words == LATE
    }

    fn of(error: &tokio_postgres::Error) -> Self {
        let Some(code) = error.code() else { return Self::of_words(&without_code(error)) };
        let said = error.as_db_error().map_or("", |error| error.message());
        let words = match cure(code) {
            Some(cure) => format!("{said}: {cure}"),
            None => said.to_owned(),
        };
        Self { words: words.into() }
    }
}

/// What can be done about what the database says.
fn cure(code: &SqlState) -> Option<&'static str> {
    if code.code().starts_with("53") && *code != SqlState::TOO_MANY_CONNECTIONS {
        return Some("make room on the database's machine");
    }
    Some(match code.code() {
        "25006" => "this is a read-only standby: name the primary in `url`, or all hosts of it",
        "28000" | "28P01" => "check the user in `url`, and password_file",
        "3D000" => "make the database, or name another one in `url`",
        "42501" => {
            "let an administrator of the database run what `cnblogs-proxy store init --print` prints, and grant this role \
             usage on the schema, and select, insert and update on its tables"
        }
        "3F000" | "42P01" => "`cnblogs-proxy store init` makes the tables",
        "53300" => "each replica needs one connection: raise max_connections, or use pgbouncer",
        _ => return None,
    })
}

fn without_code(error: &tokio_postgres::Error) -> String {
    let source = std::error::Error::source(error);
    let is_standby = source
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied && error.get_ref().is_some());
    if is_standby {
        return "the database is a read-only standby: name the primary in `url`, or all hosts of it"
            .to_owned();
    }
    with_causes(error)
}

fn server(database: &Database) -> Result<(tokio_postgres::Config, MakeTls), TlsError> {
    let mut server = database.with_password();
    if server.get_connect_timeout().is_none() {
        server.connect_timeout(CONNECT_WITHIN);
    }
    server.keepalives_idle(Duration::from_secs(60));
    let extra = database.ca.as_ref().map_or(&[][..], |ca| &ca.certificates);
    Ok((server, MakeTls(Arc::new(tls::client(extra, &[])?))))
}

/// Our TLS, as the client of the database wants it.
#[derive(Clone)]
pub(super) struct MakeTls(Arc<ClientConfig>);

pub(super) struct TlsTo {
    client: Arc<ClientConfig>,
    /// None where the server has none: on a unix socket there is no TLS.
    name: Option<ServerName<'static>>,
}

pub(super) struct Tls<S>(tokio_rustls::client::TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for MakeTls {
    type Stream = Tls<S>;
    type TlsConnect = TlsTo;
    type Error = Infallible;

    fn make_tls_connect(&mut self, domain: &str) -> Result<TlsTo, Self::Error> {
        Ok(TlsTo { client: Arc::clone(&self.0), name: ServerName::try_from(domain.to_owned()).ok() })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for TlsTo {
    type Stream = Tls<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Tls<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let name = self
                .name
                .ok_or_else(|| io::Error::other("the database's host has no name that TLS can verify"))?;
            TlsConnector::from(self.client).connect(name, stream).await.map(Tls)
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> tokio_postgres::tls::TlsStream for Tls<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tls<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tls<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
