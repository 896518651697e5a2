//! The database of the `[store]` table, which replicas share their logins through.

use std::net::IpAddr;
use std::path::Path;

use secrecy::ExposeSecret as _;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::files::{ca_file, secret, secret_file};
use super::reader::TableReader;
use super::{ConfigError, Environment, ExtraCa, Secret};

const URL_VARIABLE: &str = "CNBLOGS_PROXY_STORE_URL";
const PASSWORD_VARIABLE: &str = "CNBLOGS_PROXY_STORE_PASSWORD";
const PASSWORD_FILE_VARIABLE: &str = "CNBLOGS_PROXY_STORE_PASSWORD_FILE";
const DEFAULT_SCHEMA: &str = "cnblogs_proxy";
/// PostgreSQL cuts longer names off.
const LONGEST_SCHEMA: usize = 63;

/// A database of PostgreSQL.
#[derive(Clone, Debug)]
pub struct Database {
    /// Where it is, and as whom to connect; without a password.
    pub server: tokio_postgres::Config,
    /// Shown to people: hosts and database.
    pub shown: String,
    /// Its password, if there is one.
    pub password: Option<Secret>,
    /// Trusted for it beside the system's.
    pub ca: Option<ExtraCa>,
    /// Where in it.
    pub schema: String,
}

impl Database {
    /// What to connect with.
    pub fn with_password(&self) -> tokio_postgres::Config {
        let mut server = self.server.clone();
        if let Some(password) = &self.password {
            server.password(password.value.expose_secret());
        }
        server
    }
}

pub(super) fn read(
    table: Option<&TableReader<'_>>,
    environment: &Environment,
) -> Result<Option<Database>, ConfigError> {
    let own = table.map(|table| table.parsed("url", server)).transpose()?.flatten();
    let given = environment.var(URL_VARIABLE).map(server).transpose();
    let given = given.map_err(|message| ConfigError::at(URL_VARIABLE, "", message))?;
    let schema = table.map(|table| table.parsed("schema", schema)).transpose()?.flatten();
    let ca = table.map(ca_file).transpose()?.flatten();
    let password = read_password(table, environment)?;
    let Some((mut server, mode)) = given.or(own) else { return Ok(None) };
    let wants_tls = !is_local(&server) || ca.is_some() || mode == Mode::Tls;
    server.ssl_mode(if wants_tls { SslMode::Require } else { SslMode::Disable });
    server.target_session_attrs(TargetSessionAttrs::ReadWrite);
    server.application_name("cnblogs-proxy");
    let shown = shown(&server);
    let schema = schema.unwrap_or_else(|| DEFAULT_SCHEMA.to_owned());
    Ok(Some(Database { server, shown, password, ca, schema }))
}

/// What a URL says of TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Where the server is on another machine.
    Unsaid,
    Tls,
}

/// The parameter `sslmode` is libpq's: everything but `disable` means here that the name is verified.
fn server(text: &str) -> Result<(tokio_postgres::Config, Mode), String> {
    const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];
    if !SCHEMES.iter().any(|scheme| text.starts_with(scheme)) {
        return Err("must begin with postgres://".to_owned());
    }
    let (place, query) = text.split_once('?').unwrap_or((text, ""));
    let (modes, others): (Vec<_>, Vec<_>) =
        query.split('&').filter(|pair| !pair.is_empty()).partition(|pair| pair.starts_with("sslmode="));
    let text = if others.is_empty() { place.to_owned() } else { format!("{place}?{}", others.join("&")) };
    let server: tokio_postgres::Config = text.parse().map_err(|error: tokio_postgres::Error| {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        format!("is not the address of a database{}", source.unwrap_or_default())
    })?;
    if server.get_password().is_some() {
        return Err("holds a password, which belongs into password_file".to_owned());
    }
    if server.get_hosts().is_empty() {
        return Err("names no host: for a unix socket, postgres:///DATABASE?host=/run/postgresql".to_owned());
    }
    let mode = match modes.last() {
        None => Mode::Unsaid,
        Some(&"sslmode=disable") if !is_local(&server) => {
            return Err("needs TLS, since the database is not on this machine: leave sslmode out".to_owned());
        }
        Some(&"sslmode=disable" | &"sslmode=prefer" | &"sslmode=allow") => Mode::Unsaid,
        Some(_) => Mode::Tls,
    };
    Ok((server, mode))
}

/// True when what is said to the database stays on this machine.
fn is_local(server: &tokio_postgres::Config) -> bool {
    let is_loopback =
        |name: &str| name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    let by_name = server.get_hosts().iter().all(|host| match host {
        Host::Tcp(name) => is_loopback(name),
        Host::Unix(_) => true,
    });
    by_name && server.get_hostaddrs().iter().all(IpAddr::is_loopback)
}

fn shown(server: &tokio_postgres::Config) -> String {
    let mut ports = server.get_ports().iter().cycle();
    let hosts = server.get_hosts().iter().map(|host| {
        let port = ports.next().copied().unwrap_or(5432);
        match host {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]:{port}"),
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(path) => path.display().to_string(),
        }
    });
    let hosts = hosts.collect::<Vec<_>>().join(", ");
    match server.get_dbname().or_else(|| server.get_user()) {
        Some(name) => format!("PostgreSQL at {hosts}, database {name}"),
        None => format!("PostgreSQL at {hosts}"),
    }
}

/// A name that needs no quotes, so that people can type it.
fn schema(text: &str) -> Result<String, String> {
    let mut characters = text.chars();
    let begins = characters.next().is_some_and(|first| first.is_ascii_lowercase() || first == '_');
    let goes_on = characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if begins && goes_on && text.len() <= LONGEST_SCHEMA && !text.starts_with("pg_") {
        return Ok(text.to_owned());
    }
    Err("must be a name of lower-case letters, digits and _, 63 at most, that does not begin with pg_"
        .to_owned())
}

fn read_password(
    table: Option<&TableReader<'_>>,
    environment: &Environment,
) -> Result<Option<Secret>, ConfigError> {
    let at = |place: &str, found: Result<Secret, String>| {
        found.map(Some).map_err(|message| ConfigError::at(place, "", message))
    };
    if let Some(text) = environment.var(PASSWORD_VARIABLE) {
        return at(PASSWORD_VARIABLE, secret(text.as_bytes(), PASSWORD_VARIABLE.to_owned()));
    }
    if let Some(path) = environment.var(PASSWORD_FILE_VARIABLE) {
        return at(PASSWORD_FILE_VARIABLE, secret_file(Path::new(path)));
    }
    if let Some(entry) = table.and_then(|table| table.entry("password_file")) {
        return match entry.string()?.as_str() {
            "" => Ok(None),
            path => secret_file(Path::new(path)).map(Some).map_err(|message| entry.error(message)),
        };
    }
    match environment.credential("store_password") {
        Some(path) => at("CREDENTIALS_DIRECTORY", secret_file(&path)),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn local(text: &str, expected: bool) {
        assert_eq!(is_local(&server(text).unwrap().0), expected, "{text}");
    }

    #[test]
    fn what_is_said_to_another_machine_needs_tls() {
        local("postgres://a@127.0.0.1/b", true);
        local("postgres://a@localhost:6432/b", true);
        local("postgres:///b?host=/run/postgresql", true);
        local("postgres://a@db.example/b", false);
        local("postgres://a@localhost,db.example/b", false);
        local("postgres://a@localhost/b?hostaddr=192.0.2.1", false);
        assert!(server("postgres://a@db.example/b?sslmode=disable").is_err());
        assert!(server("postgres://a@127.0.0.1/b?sslmode=disable").is_ok());
        for mode in ["require", "verify-ca", "verify-full"] {
            let text = format!("postgres://a@127.0.0.1/b?sslmode={mode}&target_session_attrs=read-write");
            assert!(server(&text).is_ok_and(|(_, mode)| mode == Mode::Tls), "{mode}");
        }
    }

    #[test]
    fn an_address_that_holds_a_password_or_no_host_is_refused_without_showing_it() {
        for text in [
            "mysql://a@b/c",
            "postgres://a:secret@b/c",
            "postgres:///c",
            "postgres://a@b/c?password=secret&x=secret",
        ] {
            let Err(message) = server(text) else { panic!("{text}") };
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn a_schema_needs_no_quotes() {
        assert!(["cnblogs_proxy", "_a1"].iter().all(|name| schema(name).is_ok()));
        assert!(
            ["", "1a", "A", "a-b", "a\"b", "pg_a", &"a".repeat(64)].iter().all(|name| schema(name).is_err())
        );
    }
}
