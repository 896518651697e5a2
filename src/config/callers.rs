//! The `[callers]` table: users, hosts, origins and keys.

use std::path::Path;

use http::Method;
use secrecy::ExposeSecret;

use super::files::secret_file;
use super::reader::{Entry, Known, Source, TableReader};
use super::{CallerKey, Callers, ConfigError, Environment, Listen, Route, User, parse, users};

pub(super) const CALLERS: Known = &["users", "hosts", "allowed_origins", "allow_remote", "key"];
pub(super) const KEY: Known = &["name", "file", "methods", "paths", "routes"];

pub(super) fn read(
    root: &TableReader<'_>,
    environment: &Environment,
    listen: &[Listen],
    routes: &[Route],
) -> Result<Callers, ConfigError> {
    let empty = toml::de::DeTable::new();
    let source = Source::new(Path::new(""), String::new());
    let table = match root.table("callers", CALLERS)? {
        Some(table) => table,
        None => TableReader::new(&source, "callers".to_owned(), None, &empty, CALLERS)?,
    };

    let mut users = Vec::new();
    for entry in
        table.entry("users").map(|e| e.items("a list of user names or uids")).transpose()?.unwrap_or_default()
    {
        users.push(read_user(&entry)?);
    }
    if users.is_empty() {
        users.push(User::Myself);
    }
    let mut hosts = Vec::new();
    for entry in table.strings("hosts")?.unwrap_or_default() {
        hosts.push(read_host(&entry)?);
    }
    let mut allowed_origins = Vec::new();
    for entry in table.strings("allowed_origins")?.unwrap_or_default() {
        allowed_origins.push(parse::origin(&entry.string()?).map_err(|message| entry.error(message))?);
    }
    let allow_remote = table.entry("allow_remote").map(|entry| entry.boolean()).transpose()?.unwrap_or(false);
    let mut keys: Vec<CallerKey> = Vec::new();
    for key_table in table.tables("key", KEY)? {
        let key = read_key(&key_table, routes)?;
        if keys.iter().any(|other| other.name == key.name) {
            return Err(key_table.error_at("name", "another key has the same name"));
        }
        if keys.iter().any(|other| other.secret.value.expose_secret() == key.secret.value.expose_secret()) {
            return Err(key_table.error_at("file", "another key holds the same secret"));
        }
        keys.push(key);
    }

    let remote = listen.iter().position(Listen::is_remote);
    if let Some(index) = remote
        && (!allow_remote || keys.is_empty())
    {
        return Err(remote_error(root, index, environment).with_hint(
            "listen on 127.0.0.1, or set callers.allow_remote = true and give callers keys with [[callers.key]]",
        ));
    }
    Ok(Callers { users, hosts, allowed_origins, allow_remote, keys })
}

fn remote_error(root: &TableReader<'_>, index: usize, environment: &Environment) -> ConfigError {
    let message = "can be reached by other machines";
    if environment.var("CNBLOGS_PROXY_LISTEN").is_some() {
        return ConfigError::at("CNBLOGS_PROXY_LISTEN", "", message.to_owned());
    }
    let entries = root.strings("listen").ok().flatten().unwrap_or_default();
    entries.get(index).map_or_else(|| root.error(message), |entry| entry.error(message))
}

fn read_user(entry: &Entry<'_>) -> Result<User, ConfigError> {
    if let Ok(uid) = entry.integer() {
        let uid = u32::try_from(uid).map_err(|_overflow| entry.error("too large for a uid"))?;
        return Ok(User::Uid(uid));
    }
    let name = entry.string()?;
    if let Ok(uid) = name.parse() {
        return Ok(User::Uid(uid));
    }
    match name.as_str() {
        "self" => Ok(User::Myself),
        "*" => Ok(User::Anyone),
        "root" => Ok(User::Uid(0)),
        _ => users::uid_of(&name).map(User::Uid).map_err(|message| entry.error(message)),
    }
}

fn read_host(entry: &Entry<'_>) -> Result<(String, Option<u16>), ConfigError> {
    let text = entry.string()?.to_ascii_lowercase();
    let wrong = || entry.error("not a host: write \"name\" or \"name:port\"");
    let authority: http::uri::Authority = text.parse().map_err(|_invalid| wrong())?;
    let port = authority.port_u16();
    let is_whole = text
        == port.map_or_else(|| authority.host().to_owned(), |port| format!("{}:{port}", authority.host()));
    if authority.host().is_empty() || text.contains(['@', '*']) || !is_whole {
        return Err(wrong());
    }
    Ok((authority.host().to_owned(), port))
}

fn read_key(table: &TableReader<'_>, routes: &[Route]) -> Result<CallerKey, ConfigError> {
    let name = table.string("name")?.ok_or_else(|| table.error("a key needs a `name`"))?;
    let secret = table.parsed("file", |path| secret_file(Path::new(path)))?;
    let secret = secret.ok_or_else(|| table.error("a key needs a `file` that holds it"))?;

    let methods = table.strings("methods")?.map(|entries| {
        let method = |entry: &Entry<'_>| {
            Method::from_bytes(entry.string()?.as_bytes()).map_err(|_invalid| entry.error("not a method"))
        };
        entries.iter().map(method).collect::<Result<Vec<_>, _>>()
    });
    let paths = table.strings("paths")?.map(|entries| {
        let path = |entry: &Entry<'_>| {
            parse::path(&entry.string()?).map(str::to_owned).map_err(|message| entry.error(message))
        };
        entries.iter().map(path).collect::<Result<Vec<_>, _>>()
    });
    let allowed = table.strings("routes")?.map(|entries| {
        let route = |entry: &Entry<'_>| {
            let name = entry.string()?;
            let known = routes.iter().any(|route| route.name == name);
            if known { Ok(name) } else { Err(entry.error("there is no route of that name")) }
        };
        entries.iter().map(route).collect::<Result<Vec<_>, _>>()
    });
    let (methods, paths, allowed) = (methods.transpose()?, paths.transpose()?, allowed.transpose()?);
    Ok(CallerKey {
        name,
        secret,
        methods: methods.filter(|list| !list.is_empty()),
        paths: paths.filter(|list| !list.is_empty()),
        routes: allowed.filter(|list| !list.is_empty()),
    })
}
