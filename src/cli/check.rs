//! `check`: says what the daemon would do and what looks wrong. The configuration was read when this begins, so
//! every file that it names could be read.

mod connect;
mod lints;

use std::time::Duration;

pub(super) use lints::at_start;

use super::daemon::Daemon;
use super::status_line::about;
use super::{Exit, Failure, say};
use crate::config::{
    Account, Address, CallerKey, Callers, Client, Config, Endpoints, Environment, HttpProxy, Route, User,
};
use crate::store::{self, SealKeys};

pub(super) fn check(
    config: &Config,
    is_to_connect: bool,
    environment: &Environment,
) -> Result<Exit, Failure> {
    let running = addresses_of_running(config);
    describe(config, running.as_deref());
    for lint in lints::lints(config, running.as_deref().unwrap_or_default(), environment) {
        say(&format!("warning: {lint}"));
    }
    if is_to_connect {
        let unreached = connect::try_all(config)?;
        if unreached > 0 {
            return Err(Failure::new(Exit::Failed, format!("{unreached} of the servers can't be used"))
                .with_hint(connect::advice(environment)));
        }
    }
    say("ok");
    Ok(Exit::Done)
}

/// Where the daemon on this state directory listens, when one is running and may be asked.
fn addresses_of_running(config: &Config) -> Option<Vec<String>> {
    let daemon = Daemon::find(&config.state_dir).ok()??;
    let status = daemon.get("/-/status").ok()?.json();
    let listening = status.get("listening")?.as_array()?;
    Some(listening.iter().filter_map(|address| Some(address.as_str()?.to_owned())).collect())
}

fn describe(config: &Config, running: Option<&[String]>) {
    let file = config.file.as_ref().map_or_else(
        || "built-in defaults and the environment".to_owned(),
        |file| file.display().to_string(),
    );
    row("configuration", &file);
    for listen in &config.listen {
        let reach = if listen.is_remote() { " (other machines can reach it, with a key)" } else { "" };
        row("listen", &format!("{listen}{reach}"));
    }
    let state = if config.state_dir.exists() { "" } else { " (will be made)" };
    row("state", &format!("{}{state}", config.state_dir.display()));
    if let Some(running) = running {
        row("daemon", &format!("is running, on {}", running.join(", ")));
    }
    row("workers", &config.worker_threads().to_string());
    describe_store(config);
    for account in config.accounts.values() {
        row("account", &words_for_account(account));
        row("", &words_for_lifetime(account));
    }
    for route in &config.routes {
        row("route", &words_for_route(route));
    }
    if !config.routes.iter().any(|route| route.prefix == "/") {
        row("route", "every other path is answered with 404 (no-route)");
    }
    for key in &config.callers.keys {
        row("key", &words_for_key(key));
    }
    row("callers", &words_for_callers(&config.callers));
    if let Some(program) = config.notify.command.first() {
        row("notify", program);
    }
    // The rest of such an address is often a secret.
    if let Some(url) = &config.notify.webhook {
        row("notify", &format!("a webhook at {}", url.origin().ascii_serialization()));
    }
}

fn describe_store(config: &Config) {
    let keys = SealKeys::new(&config.store.seal_keys);
    for key in keys.names() {
        row("seal key", &key);
    }
    for (login, sealed) in store::logins_in(&config.state_dir) {
        let with =
            |sealed: Vec<u8>| keys.name_of(&sealed).unwrap_or_else(|| "a key that is not here".to_owned());
        let how =
            sealed.map_or_else(|| "not sealed".to_owned(), |sealed| format!("sealed with {}", with(sealed)));
        row("login", &format!("{login}, {how}"));
    }
}

fn row(label: &str, words: &str) {
    say(&format!("{label:<15}{words}"));
}

fn words_for_account(account: &Account) -> String {
    let (name, grant, from) = (&account.name, account.grant_type().as_str(), &account.secret.from);
    let Some(client) = account.client() else { return format!("{name}: {grant}, token from {from}") };
    let secret = if from.is_empty() { "no secret".to_owned() } else { format!("secret from {from}") };
    let (endpoints, through) = (words_for_endpoints(client), through(account.proxy.as_ref()));
    format!("{name}: {grant}, client {}, {secret}, {endpoints}{through}", client.client_id)
}

/// Where the authorization server is, and who says so.
fn words_for_endpoints(client: &Client) -> String {
    let (own, cnblogs) = (&client.endpoints, Endpoints::default());
    let is_default = |(own, default): (&Address, &Address)| own == default || *own == Address::None;
    let source = match &client.issuer {
        Some(issuer) if own.are_discovered() => &format!("discovery at {issuer}"),
        _ if own.all().into_iter().zip(cnblogs.all()).all(is_default) => "defaults",
        _ => "configuration",
    };
    let token = own.token.url().map(|url| format!(", token endpoint {url}")).unwrap_or_default();
    format!("endpoints from {source}{token}")
}

/// When the account's token is replaced, and when a person is needed.
fn words_for_lifetime(account: &Account) -> String {
    let name = &account.name;
    let Some(client) = account.client() else { return format!("{name}: the token is never replaced") };
    let percent = client.refresh_at * 100.0;
    let refreshed = format!("{name}: tokens are refreshed after {percent:.0} % of their lifetime");
    match account.login().map(|login| login.lifetime) {
        None => refreshed,
        Some(None) => format!("{refreshed}; a login never ends"),
        Some(Some(lifetime)) => format!("{refreshed}; a login lasts {}", about(lifetime)),
    }
}

fn words_for_route(route: &Route) -> String {
    let name = if route.name == route.prefix { String::new() } else { format!(", called {}", route.name) };
    let (origin, base) = (route.upstream.origin(), &route.upstream.base_path);
    let through = through(route.proxy.as_ref());
    format!("{} -> {origin}{base} with account {}{name}{through}", route.prefix, route.account)
}

/// Which proxy servers are reached through, if there is one.
fn through(proxy: Option<&HttpProxy>) -> String {
    let Some(HttpProxy { server, auth }) = proxy else { return String::new() };
    let auth = auth.as_ref().map(|auth| format!(" (credentials from {})", auth.from));
    format!(", through {}{}", server.origin(), auth.unwrap_or_default())
}

fn words_for_key(key: &CallerKey) -> String {
    let list = |what: &str, items: Option<String>| {
        items.map(|items| format!(", {what} {items}")).unwrap_or_default()
    };
    let methods =
        key.methods.as_ref().map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    let limits = [
        list("methods", methods),
        list("paths", key.paths.as_ref().map(|all| all.join(" "))),
        list("routes", key.routes.as_ref().map(|all| all.join(" "))),
    ];
    format!("{} from {}{}", key.name, key.secret.from, limits.concat())
}

fn words_for_callers(callers: &Callers) -> String {
    let users = callers.users.iter().map(|user| match user {
        User::Myself => "self".to_owned(),
        User::Anyone => "*".to_owned(),
        User::Uid(uid) => uid.to_string(),
    });
    let keys = if callers.keys.is_empty() { "no key needed" } else { "with a key" };
    let hosts = callers.hosts.iter().map(|(name, port)| match port {
        Some(port) => format!(", as {name}:{port}"),
        None => format!(", as {name}"),
    });
    let origins = callers.allowed_origins.iter().map(|origin| format!(", from pages of {origin}"));
    let more: String = hosts.chain(origins).collect();
    format!("users {}, {keys}{more}", users.collect::<Vec<_>>().join(", "))
}

/// A time that a person compares with others.
fn in_ms(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}
