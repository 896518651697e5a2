//! What a running daemon takes over from a configuration that was read again, and which keys need a restart.

use std::collections::{BTreeMap, BTreeSet};

use super::accounts::ENDPOINTS;
use super::{
    Account, BrowserLogin, Callers, Client, ClientAuth, Config, Database, Grant, HttpProxy, Limits, Notify,
    Route, StoreOptions,
};

/// A configuration that differs from the running one in nothing but secrets, the end of a personal access token,
/// caller keys, CA files and the log filter. Only [`Config::reloadable`] makes one.
#[derive(Debug)]
pub struct Reloadable(Config);

/// The keys of a table that need a restart and differ. Every field is named once, so that a new one does not compile
/// before somebody decides: compared here, or else free to change, or looked at apart.
macro_rules! differing {
    ($Type:ident, $running:expr, $new:expr => $($key:ident),* $(; else $($other:ident),*)?) => {{
        let $Type { $($key,)* $($($other: _,)*)? } = $running;
        let keys = [$((stringify!($key), *$key != $new.$key)),*];
        keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect::<Vec<_>>()
    }};
}

impl Config {
    /// What may be taken over from a configuration that was read again, while this one runs: all of it or nothing.
    ///
    /// # Errors
    /// The keys that differ and need a restart.
    pub fn reloadable(&self, new: Self) -> Result<Reloadable, Vec<String>> {
        let top = differing!(Config, self, new => listen, state_dir, workers, log_format;
            else file, is_default_listen, log, accounts, routes, callers, limits, notify, store);
        let below = |table: &str, keys: Vec<&str>| -> Vec<_> {
            keys.iter().map(|key| format!("{table}.{key}")).collect()
        };
        let keys = [
            top.into_iter().map(str::to_owned).collect(),
            tables("account", &self.accounts_by_name(), &new.accounts_by_name(), of_account),
            tables("route", &self.routes_by_prefix(), &new.routes_by_prefix(), of_route),
            below("callers", of_callers(&self.callers, &new.callers)),
            below("limits", of_limits(&self.limits, &new.limits)),
            below("notify", of_notify(&self.notify, &new.notify)),
            below("store", of_store(&self.store, &new.store)),
        ]
        .concat();
        if keys.is_empty() { Ok(Reloadable(new)) } else { Err(keys) }
    }

    fn accounts_by_name(&self) -> BTreeMap<&str, &Account> {
        self.accounts.iter().map(|(name, account)| (name.as_str(), account)).collect()
    }

    fn routes_by_prefix(&self) -> BTreeMap<&str, &Route> {
        self.routes.iter().map(|route| (route.prefix.as_str(), route)).collect()
    }
}

impl Reloadable {
    /// All of it.
    pub const fn config(&self) -> &Config {
        &self.0
    }

    /// It runs now.
    pub fn into_config(self) -> Config {
        self.0
    }
}

fn of_account(running: &Account, new: &Account) -> Vec<&'static str> {
    let mut keys = differing!(Account, running, new => required; else name, grant, secret, ca, proxy);
    keys.extend(other_proxy(running.proxy.as_ref(), new.proxy.as_ref()));
    match (&running.grant, &new.grant) {
        (Grant::AuthorizationCode(running, login), Grant::AuthorizationCode(new, new_login)) => {
            keys.extend(of_client(running, new));
            keys.extend(of_login(login, new_login));
        }
        (Grant::ClientCredentials(running), Grant::ClientCredentials(new)) => {
            keys.extend(of_client(running, new));
        }
        (Grant::PersonalAccessToken { .. }, Grant::PersonalAccessToken { .. }) => {}
        _ => keys.push("grant"),
    }
    keys
}

fn of_client(running: &Client, new: &Client) -> Vec<&'static str> {
    let mut keys = differing!(Client, running, new =>
        client_id, scope, issuer, refresh_at; else client_auth, endpoints);
    let addresses = running.endpoints.all().into_iter().zip(new.endpoints.all());
    let endpoints = ENDPOINTS.into_iter().zip(addresses);
    keys.extend(endpoints.filter(|(_, (running, new))| running != new).map(|(key, _)| key));
    let is_public = |client: &Client| client.client_auth == ClientAuth::None;
    if is_public(running) != is_public(new) {
        keys.push("client_secret_file");
    } else if running.client_auth != new.client_auth {
        keys.push("client_auth");
    }
    keys
}

fn of_login(running: &BrowserLogin, new: &BrowserLogin) -> Vec<&'static str> {
    let mut keys = differing!(BrowserLogin, running, new =>
        redirect_uri, pkce, response_type, response_mode; else identity, lifetime);
    keys.extend((running.identity != new.identity).then_some("identity_url"));
    keys.extend((running.lifetime != new.lifetime).then_some("login_lifetime"));
    keys
}

fn of_route(running: &Route, new: &Route) -> Vec<&'static str> {
    let mut keys = differing!(Route, running, new => name, upstream, account; else prefix, ca, proxy);
    keys.extend(other_proxy(running.proxy.as_ref(), new.proxy.as_ref()));
    keys
}

/// The key, when another proxy is named. What it is shown may change.
fn other_proxy(running: Option<&HttpProxy>, new: Option<&HttpProxy>) -> Option<&'static str> {
    (running.map(|proxy| &proxy.server) != new.map(|proxy| &proxy.server)).then_some("proxy")
}

fn of_callers(running: &Callers, new: &Callers) -> Vec<&'static str> {
    differing!(Callers, running, new => users, hosts, allowed_origins, allow_remote; else keys)
}

fn of_limits(running: &Limits, new: &Limits) -> Vec<&'static str> {
    differing!(Limits, running, new =>
        connections, header_timeout, connect_timeout, response_timeout, stall_timeout, token_timeout, token_wait,
        idle_timeout, drain_timeout, replay_buffer)
}

fn of_notify(running: &Notify, new: &Notify) -> Vec<&'static str> {
    differing!(Notify, running, new => command, webhook)
}

/// What the database is shown and who signs its certificate may change.
fn of_store(running: &StoreOptions, new: &StoreOptions) -> Vec<&'static str> {
    match (&running.database, &new.database) {
        (Some(running), Some(new)) => {
            differing!(Database, running, new => server, schema; else shown, password, ca)
                .into_iter()
                .map(|key| if key == "server" { "url" } else { key })
                .collect()
        }
        (None, None) => Vec::new(),
        _ => vec!["url"],
    }
}

/// The keys of tables with names; a table that only one of them has is named as a whole.
fn tables<T>(
    kind: &str,
    running: &BTreeMap<&str, &T>,
    new: &BTreeMap<&str, &T>,
    differing: fn(&T, &T) -> Vec<&'static str>,
) -> Vec<String> {
    let names: BTreeSet<_> = running.keys().chain(new.keys()).copied().collect();
    let keys_of = |name: &str| match (running.get(name), new.get(name)) {
        (Some(running), Some(new)) => {
            differing(running, new).into_iter().map(|key| format!("{kind}.{name}.{key}")).collect()
        }
        _ => vec![format!("{kind}.{name}")],
    };
    names.into_iter().flat_map(keys_of).collect()
}
