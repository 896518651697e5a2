//! The configuration: a TOML file and the environment become a [`Config`], and holding one means that it is
//! valid: every secret was read, every certificate parsed, every name resolved.
//!
//! Errors name file, line, column and key and suggest what was meant. They never show a value, because a value
//! may be a secret that stands in the wrong place.

mod accounts;
mod callers;
mod database;
mod files;
mod http_proxy;
mod parse;
mod reader;
mod reload;
mod routes;
mod store;
mod users;
#[cfg(any(test, fuzzing))]
pub mod properties;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use url::Url;

pub use database::Database;
pub(crate) use files::secret_file;
pub use http_proxy::HttpProxy;
pub(crate) use http_proxy::basic;
pub(crate) use parse::{endpoint, listen, upstream};
pub use parse::{is_loopback, is_remote};
use reader::{Entry, Known, Source, TableReader};
pub use reload::Reloadable;
pub use store::{SealKey, StoreOptions};

/// Variables that hold secrets: no program that we start gets them.
pub const SECRET_VARIABLES: [&str; 3] =
    ["CNBLOGS_CLIENT_SECRET", "CNBLOGS_PAT", "CNBLOGS_PROXY_STORE_PASSWORD"];
const DEFAULT_LISTEN: [&str; 2] = ["127.0.0.1:8262", "[::1]:8262"];
const ROOT: Known = &[
    "listen",
    "state_dir",
    "workers",
    "log",
    "log_format",
    "account",
    "route",
    "callers",
    "limits",
    "notify",
    "store",
];
const NOTIFY: Known = &["command", "webhook"];
const LIMITS: Known = &[
    "connections",
    "header_timeout",
    "connect_timeout",
    "response_timeout",
    "stall_timeout",
    "token_timeout",
    "token_wait",
    "idle_timeout",
    "drain_timeout",
    "replay_buffer",
];

/// The variables that the program was started with, captured once by `cli`.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    may_lack_secrets: bool,
}

/// A valid configuration.
#[derive(Debug)]
pub struct Config {
    /// The file it came from; none when built-in defaults and the environment are all.
    pub file: Option<PathBuf>,
    /// Where callers connect.
    pub listen: Vec<Listen>,
    /// True when nobody wrote `listen`: its IPv6 address is left out where this machine has none.
    pub is_default_listen: bool,
    /// Where logins outlive the process.
    pub state_dir: PathBuf,
    /// Worker threads; 0 for one a core.
    pub workers: usize,
    /// The tracing filter.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// The logins, by name.
    pub accounts: BTreeMap<String, Account>,
    /// Where requests go; at least one.
    pub routes: Vec<Route>,
    /// Who may use the proxy.
    pub callers: Callers,
    /// Sizes and times.
    pub limits: Limits,
    /// Who is told of events.
    pub notify: Notify,
    /// How logins are kept.
    pub store: StoreOptions,
}

/// Who is told of events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notify {
    /// A program with its arguments; empty when there is none.
    pub command: Vec<String>,
    /// Where they are posted. Such an address is often a secret.
    pub webhook: Option<Url>,
}

/// An address to accept callers on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// A unix socket, by absolute path.
    Unix(PathBuf),
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text with journal priorities under systemd, else plain or, on a terminal, coloured text.
    Auto,
    /// Plain text.
    Text,
    /// One JSON object a line.
    Json,
}

/// How an account obtains its tokens, and with what.
#[derive(Clone, Debug)]
pub enum Grant {
    /// A person logs in with a browser (RFC 6749, section 4.1).
    AuthorizationCode(Client, Box<BrowserLogin>),
    /// The application's own token (RFC 6749, section 4.4).
    ClientCredentials(Client),
    /// A static token from the account settings.
    PersonalAccessToken {
        /// Its end, in milliseconds since the Unix epoch; none when it is not known.
        expires_at_ms: Option<i64>,
    },
}

/// Which grant it is, as the configuration and the store name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum GrantType {
    /// [`Grant::AuthorizationCode`].
    AuthorizationCode,
    /// [`Grant::ClientCredentials`].
    ClientCredentials,
    /// [`Grant::PersonalAccessToken`].
    PersonalAccessToken,
}

/// A client (RFC 6749, section 2) and its authorization server.
#[derive(Clone, Debug)]
pub struct Client {
    /// Names the application.
    pub client_id: String,
    /// How it authenticates.
    pub client_auth: ClientAuth,
    /// The scope to ask for.
    pub scope: Option<String>,
    /// Compared with `iss` when set.
    pub issuer: Option<String>,
    /// Where the authorization server is.
    pub endpoints: Endpoints,
    /// The fraction of the lifetime after which a refresh is due.
    pub refresh_at: f64,
}

/// How a person logs in.
#[derive(Clone, Debug)]
pub struct BrowserLogin {
    /// The registered address that the browser is sent back to.
    pub redirect_uri: RedirectUri,
    /// True when the code is bound to this client by PKCE (RFC 7636).
    pub pkce: bool,
    /// What the authorization endpoint is asked for.
    pub response_type: ResponseType,
    /// How it answers.
    pub response_mode: ResponseMode,
    /// Who is asked after a login whose it is; none when nobody.
    pub identity: Option<Identity>,
    /// When the server ends a login; none when never.
    pub lifetime: Option<Duration>,
}

/// Where it is asked who logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// True when the userinfo endpoint of the discovery document is asked first.
    pub userinfo_first: bool,
    /// The API's; none when no route leads to one.
    pub url: Option<Url>,
}

/// What the authorization endpoint is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseType {
    /// `code id_token`: the hybrid flow (OpenID Connect Core, section 3.3).
    Hybrid,
    /// `code`: the authorization code flow.
    Code,
}

/// How the authorization endpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseMode {
    /// Behind the `#` of the redirect address.
    Fragment,
    /// In the query of the redirect address.
    Query,
    /// As a form that the browser posts.
    FormPost,
}

/// How the client authenticates at the token endpoint (RFC 6749, section 2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// `client_id` and `client_secret` in the form body.
    Body,
    /// HTTP Basic.
    Basic,
    /// `client_id` alone: a public client has no secret (RFC 6749, section 2.1).
    None,
}

/// The registered address that the browser is sent back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectUri {
    /// As it is written: authorization servers compare strings (RFC 9700, section 4.1.3).
    pub text: String,
    /// The same, parsed.
    pub url: Url,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Written in the configuration, or Cnblogs' own.
    At(Url),
    /// In the discovery document of the account's `issuer`.
    Discovered,
    /// Nowhere: the server has no such endpoint, or the grant needs none.
    None,
}

/// The authorization server's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// The authorization endpoint.
    pub authorization: Address,
    /// The token endpoint.
    pub token: Address,
    /// The revocation endpoint (RFC 7009).
    pub revocation: Address,
    /// The keys that sign `id_token`s.
    pub jwks: Address,
}

/// A secret and where it was found; empty when it may be missing and is, and from nowhere when there is none.
#[derive(Clone, Debug)]
pub struct Secret {
    /// The secret itself.
    pub value: SecretString,
    /// The file or variable it was read from.
    pub from: String,
}

/// Certificates that are trusted beside the system's.
#[derive(Clone, Debug)]
pub struct ExtraCa {
    /// The PEM file.
    pub file: PathBuf,
    /// True when there is a private key in it as well, which is of no use here.
    pub has_private_key: bool,
    /// Its certificates, at least one.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// One login: who we are towards the authorization server and where that is.
#[derive(Clone, Debug)]
pub struct Account {
    /// The name of its table.
    pub name: String,
    /// How it obtains tokens.
    pub grant: Grant,
    /// The client secret, or the personal access token.
    pub secret: Secret,
    /// Trusted for this account's URLs.
    pub ca: Option<ExtraCa>,
    /// Where https:// URLs of this account are reached through; http:// ones are of this machine, and no proxy's.
    pub proxy: Option<HttpProxy>,
    /// True when the daemon is not ready before this account is.
    pub required: bool,
}

/// Where requests with a prefix go.
#[derive(Clone, Debug)]
pub struct Route {
    /// Whole segments; `/` or without a slash at its end.
    pub prefix: String,
    /// For keys and logs.
    pub name: String,
    /// Where to.
    pub upstream: Upstream,
    /// The account whose token is injected.
    pub account: String,
    /// Trusted for this upstream.
    pub ca: Option<ExtraCa>,
    /// What an upstream that speaks TLS is reached through.
    pub proxy: Option<HttpProxy>,
}

/// An API server: scheme and authority are constants that no request can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// True for https.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// What goes into the Host field.
    pub authority: String,
    /// Put in front of every path; no slash at its end.
    pub base_path: String,
}

/// A user that may connect from this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// The one that the daemon runs as.
    Myself,
    /// Every user, known or not.
    Anyone,
    /// A uid.
    Uid(u32),
}

/// Who may use the proxy.
#[derive(Clone, Debug)]
pub struct Callers {
    /// Users of this machine.
    pub users: Vec<User>,
    /// Accepted Host values beside the loopback ones: a name, with a port or with any listening one.
    pub hosts: Vec<(String, Option<u16>)>,
    /// Web origins, in lower case.
    pub allowed_origins: Vec<String>,
    /// True when listening beyond loopback is meant.
    pub allow_remote: bool,
    /// When there are any, every caller must present one.
    pub keys: Vec<CallerKey>,
}

/// What a caller proves itself with, and what it may do.
#[derive(Clone, Debug)]
pub struct CallerKey {
    /// For logs and messages.
    pub name: String,
    /// The key itself.
    pub secret: Secret,
    /// Methods; none means all.
    pub methods: Option<Vec<Method>>,
    /// Path prefixes; none means all.
    pub paths: Option<Vec<String>>,
    /// Route names; none means all.
    pub routes: Option<Vec<String>>,
}

/// Sizes and times.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Callers' connections at a time.
    pub connections: usize,
    /// To receive a request's head.
    pub header_timeout: Duration,
    /// To connect to the upstream, TLS included.
    pub connect_timeout: Duration,
    /// To the head of the upstream's answer.
    pub response_timeout: Duration,
    /// How long nothing may move in a body, either way; zero means for ever.
    pub stall_timeout: Duration,
    /// How long the authorization server may take to answer.
    pub token_timeout: Duration,
    /// How long a request waits for a token that is on its way.
    pub token_wait: Duration,
    /// A keep-alive connection without a request.
    pub idle_timeout: Duration,
    /// How long stopping waits for open requests.
    pub drain_timeout: Duration,
    /// The largest request body kept for one replay, in bytes.
    pub replay_buffer: usize,
}

/// What is wrong with the configuration. Never shows a value.
#[derive(Debug)]
pub struct ConfigError {
    place: String,
    key: String,
    message: String,
    hint: Option<String>,
}

impl Environment {
    /// Takes the variables as they are.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { variables: variables.into_iter().collect(), may_lack_secrets: false }
    }

    /// For commands that ask the running daemon, which has the secrets: here, a credential of its service is
    /// not there.
    #[must_use]
    pub fn without_secrets(&self) -> Self {
        Self { may_lack_secrets: true, ..self.clone() }
    }

    /// The value of a variable that is set and not empty.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The configuration file to read.
    fn config_file(&self) -> Option<PathBuf> {
        if let Some(named) = self.var("CNBLOGS_PROXY_CONFIG") {
            return Some(named.into());
        }
        let own =
            self.directory("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("cnblogs-proxy/config.toml"));
        let candidates = [own, Some("/etc/cnblogs-proxy/config.toml".into())];
        candidates.into_iter().flatten().find(|path| path.exists())
    }

    fn state_dir(&self) -> Option<PathBuf> {
        if let Some(given) = self.var("STATE_DIRECTORY") {
            return given.split(':').next().map(PathBuf::from);
        }
        self.directory("XDG_STATE_HOME", ".local/state").map(|dir| dir.join("cnblogs-proxy"))
    }

    fn directory(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        let given = self.var(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        given.or_else(|| self.var("HOME").map(|home| Path::new(home).join(below_home)))
    }

    /// A systemd credential, if there is one of that name.
    fn credential(&self, name: &str) -> Option<PathBuf> {
        self.var("CREDENTIALS_DIRECTORY").map(|dir| Path::new(dir).join(name)).filter(|path| path.exists())
    }
}

impl Config {
    /// Reads `file`, else the file that the environment or the usual places give, else only the environment.
    ///
    /// # Errors
    /// When anything in it, or in a file that it names, is not valid.
    pub fn load(file: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        let (path, source) = source(file, environment)?;
        let root = source.parse()?;
        let reader = TableReader::new(&source, String::new(), None, root.get_ref(), ROOT)?;
        Self::read(path, &reader, environment)
    }

    /// Only where logins are kept, and a running daemon is found, whatever else is wrong with the file.
    ///
    /// # Errors
    /// When the file can't be read, or does not say it in TOML.
    pub fn find_state_dir(file: Option<&Path>, environment: &Environment) -> Result<PathBuf, ConfigError> {
        find("state_dir", file, environment, read_state_dir)
    }

    /// Only where callers connect, for one that may not enter `state_dir`.
    ///
    /// # Errors
    /// When the file can't be read, or does not say it in TOML.
    pub fn find_listen(file: Option<&Path>, environment: &Environment) -> Result<Vec<Listen>, ConfigError> {
        find("listen", file, environment, read_listen).map(|(listen, _)| listen)
    }

    /// How many worker threads there are, at least one.
    pub fn worker_threads(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(4),
            number => number,
        }
    }

    /// The account's route whose upstream is asked for the person's name, and where requests go by default.
    pub fn first_route_of(&self, account: &str) -> Option<&Route> {
        self.routes.iter().find(|route| route.account == account)
    }

    fn read(
        file: Option<PathBuf>,
        root: &TableReader<'_>,
        environment: &Environment,
    ) -> Result<Self, ConfigError> {
        let (listen, is_default_listen) = read_listen(root, environment)?;
        let state_dir = read_state_dir(root, environment)?;
        let workers = root.entry("workers").map(|entry| entry.integer()).transpose()?.unwrap_or(0);
        let log = read_log(root, environment)?;
        let log_format = root.parsed("log_format", log_format)?.unwrap_or(LogFormat::Auto);

        let mut accounts = accounts::read(root, environment, file.as_deref())?;
        let routes = routes::read(root, environment, &accounts)?;
        accounts::fill_identity(&mut accounts, &routes);
        let callers = callers::read(root, environment, &listen, &routes)?;
        let limits = read_limits(root)?;
        let notify = read_notify(root)?;
        let store = store::read(root, environment)?;

        Ok(Self {
            file,
            listen,
            is_default_listen,
            state_dir,
            workers: usize::try_from(workers).unwrap_or(usize::MAX).min(64),
            log,
            log_format: match environment.var("CNBLOGS_PROXY_LOG_FORMAT") {
                Some(text) => log_format_of_variable(text)?,
                None => log_format,
            },
            accounts,
            routes,
            callers,
            limits,
            notify,
            store,
        })
    }
}

impl Listen {
    /// True when other machines can reach it.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Tcp(address) if is_remote(address.ip()))
    }
}

impl Upstream {
    /// The upstream that a URL names; none when it has no host.
    pub fn of(url: &Url) -> Option<Self> {
        let port = url.port_or_known_default()?;
        let host = url.host_str()?;
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Some(Self {
            tls: url.scheme() == "https",
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            authority,
            base_path: url.path().trim_end_matches('/').to_owned(),
        })
    }

    /// Scheme and authority, as in an origin.
    pub fn origin(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

impl GrantType {
    /// As it is written in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AuthorizationCode => "authorization_code",
            Self::ClientCredentials => "client_credentials",
            Self::PersonalAccessToken => "personal_access_token",
        }
    }
}

impl From<GrantType> for &'static str {
    fn from(grant: GrantType) -> Self {
        grant.as_str()
    }
}

impl TryFrom<String> for GrantType {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let all = [Self::AuthorizationCode, Self::ClientCredentials, Self::PersonalAccessToken];
        all.into_iter().find(|grant| grant.as_str() == text).ok_or_else(|| {
            let [first, second, third] = all.map(Self::as_str);
            format!("must be \"{first}\", \"{second}\" or \"{third}\"")
        })
    }
}

impl Account {
    /// Which grant it has.
    pub const fn grant_type(&self) -> GrantType {
        match self.grant {
            Grant::AuthorizationCode(..) => GrantType::AuthorizationCode,
            Grant::ClientCredentials(_) => GrantType::ClientCredentials,
            Grant::PersonalAccessToken { .. } => GrantType::PersonalAccessToken,
        }
    }

    /// Its client; none for a personal access token.
    pub const fn client(&self) -> Option<&Client> {
        match &self.grant {
            Grant::AuthorizationCode(client, _) | Grant::ClientCredentials(client) => Some(client),
            Grant::PersonalAccessToken { .. } => None,
        }
    }

    /// How a person logs in to it; none when none does.
    pub const fn login(&self) -> Option<&BrowserLogin> {
        match &self.grant {
            Grant::AuthorizationCode(_, login) => Some(login),
            _ => None,
        }
    }
}

impl Client {
    /// What a stored login is bound to beside client and grant: the token endpoint, or the issuer that names it.
    pub fn bound_to(&self) -> &str {
        match &self.endpoints.token {
            Address::At(url) => url.as_str(),
            Address::Discovered | Address::None => self.issuer.as_deref().unwrap_or_default(),
        }
    }
}

impl Address {
    /// The address, where the configuration says it.
    pub const fn url(&self) -> Option<&Url> {
        match self {
            Self::At(url) => Some(url),
            Self::Discovered | Self::None => None,
        }
    }
}

impl Endpoints {
    /// All of them.
    pub const fn all(&self) -> [&Address; 4] {
        [&self.authorization, &self.token, &self.revocation, &self.jwks]
    }

    /// True when the issuer has to be asked where one of them is.
    pub fn are_discovered(&self) -> bool {
        self.all().contains(&&Address::Discovered)
    }
}

impl Secret {
    /// True for a secret that only the daemon has.
    pub fn is_missing(&self) -> bool {
        self.value.expose_secret().is_empty() && !self.from.is_empty()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            header_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(60),
            token_timeout: Duration::from_secs(60),
            token_wait: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(15),
            replay_buffer: 64 * 1024,
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl ConfigError {
    fn at(place: &str, key: &str, message: String) -> Self {
        Self { place: place.to_owned(), key: key.to_owned(), message, hint: None }
    }

    fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What can be done about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// As an address, with the path that is put in front.
impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.base_path)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [&self.place, &self.key, &self.message].map(String::as_str);
        f.write_str(&parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": "))
    }
}

impl std::error::Error for ConfigError {}

/// One key of the file, whatever else is wrong with it.
fn find<T>(
    key: &str,
    file: Option<&Path>,
    environment: &Environment,
    read: impl FnOnce(&TableReader<'_>, &Environment) -> Result<T, ConfigError>,
) -> Result<T, ConfigError> {
    let (_, source) = source(file, environment)?;
    let root = source.parse()?.into_inner();
    let only = root.into_iter().filter(|(known, _)| known.get_ref() == key).collect();
    read(&TableReader::new(&source, String::new(), None, &only, ROOT)?, environment)
}

/// The configuration file that was named or found, or nothing.
fn source(file: Option<&Path>, environment: &Environment) -> Result<(Option<PathBuf>, Source), ConfigError> {
    let path = file.map(Path::to_owned).or_else(|| environment.config_file());
    let text = match &path {
        None => String::new(),
        Some(path) => files::text(path).map_err(|error| {
            ConfigError::at(&path.display().to_string(), "", format!("can't be read: {error}"))
        })?,
    };
    let source = Source::new(path.as_deref().unwrap_or_else(|| Path::new("(built-in defaults)")), text);
    Ok((path, source))
}

/// The addresses, and whether they are the default ones.
fn read_listen(
    root: &TableReader<'_>,
    environment: &Environment,
) -> Result<(Vec<Listen>, bool), ConfigError> {
    let mut listen = Vec::new();
    for entry in root.strings("listen")?.unwrap_or_default() {
        listen.push(parse::listen(&entry.string()?).map_err(|message| entry.error(message))?);
    }
    if let Some(given) = environment.var("CNBLOGS_PROXY_LISTEN") {
        let parsed: Result<_, _> = given.split(',').map(|one| parse::listen(one.trim())).collect();
        listen = parsed.map_err(|message| ConfigError::at("CNBLOGS_PROXY_LISTEN", "", message))?;
    }
    let is_default = listen.is_empty();
    if is_default {
        listen.extend(DEFAULT_LISTEN.map(|one| parse::listen(one).expect("the default is an address")));
    }
    Ok((listen, is_default))
}

fn read_state_dir(root: &TableReader<'_>, environment: &Environment) -> Result<PathBuf, ConfigError> {
    let from_file = root.parsed("state_dir", parse::directory)?.filter(|dir| !dir.as_os_str().is_empty());
    let given = environment.var("CNBLOGS_PROXY_STATE_DIR").map(parse::directory).transpose();
    let given = given.map_err(|message| ConfigError::at("CNBLOGS_PROXY_STATE_DIR", "", message))?;
    let dir = given.or(from_file).or_else(|| environment.state_dir()).ok_or_else(|| {
        ConfigError::at("", "state_dir", "nowhere to keep the login: HOME is not set".to_owned())
            .with_hint("set state_dir in the configuration or CNBLOGS_PROXY_STATE_DIR in the environment")
    })?;
    std::path::absolute(&dir)
        .map_err(|error| ConfigError::at("", "state_dir", format!("can't be made absolute: {error}")))
}

fn read_limits(root: &TableReader<'_>) -> Result<Limits, ConfigError> {
    let Some(table) = root.table("limits", LIMITS)? else { return Ok(Limits::default()) };
    let default = Limits::default();
    let time = |key, default| table.parsed(key, parse::duration).map(|given| given.unwrap_or(default));
    let positive = |key, default: Duration| {
        table
            .parsed(key, |text| match parse::duration(text)? {
                Duration::ZERO => Err("must be longer than nothing".to_owned()),
                duration => Ok(duration),
            })
            .map(|given| given.unwrap_or(default))
    };
    let connections = match table.entry("connections") {
        None => default.connections,
        Some(entry) => match usize::try_from(entry.integer()?) {
            Ok(number @ 1..=1_000_000) => number,
            _ => return Err(entry.error("must be from 1 to 1000000")),
        },
    };
    let limits = Limits {
        connections,
        header_timeout: positive("header_timeout", default.header_timeout)?,
        connect_timeout: positive("connect_timeout", default.connect_timeout)?,
        response_timeout: positive("response_timeout", default.response_timeout)?,
        stall_timeout: time("stall_timeout", default.stall_timeout)?,
        token_timeout: positive("token_timeout", default.token_timeout)?,
        token_wait: time("token_wait", default.token_wait)?,
        idle_timeout: positive("idle_timeout", default.idle_timeout)?,
        drain_timeout: time("drain_timeout", default.drain_timeout)?,
        replay_buffer: table.parsed("replay_buffer", parse::size)?.unwrap_or(default.replay_buffer),
    };
    Ok(limits)
}

fn read_notify(root: &TableReader<'_>) -> Result<Notify, ConfigError> {
    let Some(table) = root.table("notify", NOTIFY)? else { return Ok(Notify::default()) };
    let entries = table.strings("command")?.unwrap_or_default();
    let command: Result<_, _> = entries.iter().map(Entry::string).collect();
    Ok(Notify { command: command?, webhook: table.parsed("webhook", endpoint)? })
}

/// The tracing filter, from the environment or the file.
fn read_log(root: &TableReader<'_>, environment: &Environment) -> Result<String, ConfigError> {
    let from_file = root.parsed("log", parse::filter)?;
    let from_environment = environment.var("CNBLOGS_PROXY_LOG").map(parse::filter).transpose();
    let from_environment =
        from_environment.map_err(|message| ConfigError::at("CNBLOGS_PROXY_LOG", "", message))?;
    Ok(from_environment.or(from_file).unwrap_or_else(|| "info".to_owned()))
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("must be \"auto\", \"text\" or \"json\"".to_owned()),
    }
}

fn log_format_of_variable(text: &str) -> Result<LogFormat, ConfigError> {
    log_format(text).map_err(|message| ConfigError::at("CNBLOGS_PROXY_LOG_FORMAT", "", message))
}
