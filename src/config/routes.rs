//! The `[[route]]` tables, and the one route that stands for none.

use std::collections::BTreeMap;

use super::files::ca_file;
use super::http_proxy;
use super::reader::{Known, TableReader};
use super::{Account, ConfigError, Environment, Route, parse};

/// The API that is served when no route says otherwise.
const DEFAULT_UPSTREAM: &str = "https://api.cnblogs.com";
const ONLY_TLS: &str = "a route with a `proxy` needs an https:// upstream";
pub(super) const ROUTE: Known =
    &["prefix", "name", "upstream", "account", "ca_file", "proxy", "proxy_auth_file", "http"];

pub(super) fn read(
    root: &TableReader<'_>,
    environment: &Environment,
    accounts: &BTreeMap<String, Account>,
) -> Result<Vec<Route>, ConfigError> {
    let override_url = environment.var("CNBLOGS_PROXY_UPSTREAM").map(parse::upstream).transpose();
    let override_url =
        override_url.map_err(|message| ConfigError::at("CNBLOGS_PROXY_UPSTREAM", "", message))?;
    let only = if accounts.len() == 1 { accounts.keys().next() } else { None };

    let mut routes: Vec<Route> = Vec::new();
    for table in root.tables("route", ROUTE)? {
        let route = read_route(&table, only, accounts)?;
        if routes.iter().any(|other| other.prefix == route.prefix) {
            return Err(table.error_at("prefix", "another route has the same prefix"));
        }
        if routes.iter().any(|other| other.name == route.name) {
            let key = if table.entry("name").is_some() { "name" } else { "prefix" };
            return Err(table.error_at(key, "another route has the same name"));
        }
        routes.push(route);
    }

    if routes.is_empty() {
        let account = only.ok_or_else(|| {
            root.error("route: there are several accounts and none says which one to use")
                .with_hint("add a [[route]] with prefix, upstream and account for each")
        })?;
        let upstream = parse::upstream(DEFAULT_UPSTREAM).expect("the default is a URL");
        routes.push(Route {
            prefix: "/".to_owned(),
            name: "/".to_owned(),
            upstream,
            account: account.clone(),
            ca: None,
            proxy: None,
        });
    }
    if let Some(upstream) = override_url {
        let alone = routes.len() == 1;
        let route = routes.iter_mut().find(|route| alone || route.prefix == "/").ok_or_else(|| {
            ConfigError::at(
                "CNBLOGS_PROXY_UPSTREAM",
                "",
                "there are several routes and none is \"/\"".to_owned(),
            )
        })?;
        if route.proxy.is_some() && !upstream.tls {
            return Err(ConfigError::at("CNBLOGS_PROXY_UPSTREAM", "", ONLY_TLS.to_owned()));
        }
        route.upstream = upstream;
    }
    Ok(routes)
}

fn read_route(
    table: &TableReader<'_>,
    only: Option<&String>,
    accounts: &BTreeMap<String, Account>,
) -> Result<Route, ConfigError> {
    let prefix = table.parsed("prefix", parse::prefix)?.unwrap_or_else(|| "/".to_owned());
    let name = table.string("name")?.unwrap_or_else(|| prefix.clone());
    let upstream = table
        .parsed("upstream", parse::upstream)?
        .unwrap_or_else(|| parse::upstream(DEFAULT_UPSTREAM).expect("the default is a URL"));
    let account = table.parsed("account", |account| {
        let names: Vec<_> = accounts.keys().map(String::as_str).collect();
        if accounts.contains_key(account) {
            Ok(account.to_owned())
        } else {
            Err(format!("there is no such account; there is: {}", names.join(", ")))
        }
    })?;
    let account = account
        .or_else(|| only.cloned())
        .ok_or_else(|| table.error("there are several accounts: say which one with `account`"))?;
    let ca = ca_file(table)?;
    let proxy = http_proxy::read(table)?;
    if proxy.is_some() && !upstream.tls {
        return Err(table.error_at("proxy", ONLY_TLS));
    }
    // Read until 1.0, and means nothing: HTTP/1.1 was cheaper at every rate that occurs.
    table.parsed("http", |text| match text {
        "auto" | "1.1" => Ok(()),
        "2" => {
            Err("HTTP/2 to upstreams is gone: HTTP/1.1 is spoken, and this key can be left out".to_owned())
        }
        _ => Err("must be \"auto\" or \"1.1\"".to_owned()),
    })?;
    Ok(Route { prefix, name, upstream, account, ca, proxy })
}
