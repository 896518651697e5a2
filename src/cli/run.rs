//! `run`: a program whose address can't be changed. It is started with an HTTP proxy and a certificate authority of its
//! own; what it asks of the configured upstreams goes to the daemon, and all else goes where it went before.
//!
//! The daemon knows nothing of this: to it, we are a caller. No token passes here. The authority's key is gone
//! before the program starts; the caller key is in our memory alone, and the proxy's password in the program's, too.

mod authority;
mod caller;
mod child;
mod proxy;
mod site;
mod trust;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use http::uri::Scheme;
use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use secrecy::ExposeSecret as _;
use serde_json::Value;

use super::daemon::{Daemon, runtime};
use super::{Exit, Failure};
use crate::config::{self, Config, Environment};
use crate::server::raise_open_files;
use caller::Caller;
use proxy::Proxy;
use site::Routes;
use trust::Trust;

/// What the program asks of these goes to no proxy.
const LOOPBACK: &str = "localhost,127.0.0.1,::1";

#[derive(Args)]
pub(super) struct Run {
    /// File with the caller key to use, where the daemon wants one
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn run(asked: &Run, file: Option<&Path>, environment: &Environment) -> Result<Exit, Failure> {
    let key = asked.key.as_deref().map(caller_key).transpose()?;
    let (caller, routes) = find_daemon(file, environment, key)?;
    let outer = outer_proxy(environment)?;

    let hosts = routes.hosts();
    let (authority, tls) = authority::certify(&hosts).context("making certificates")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on a loopback port")?;
    let address = listener.local_addr().context("listening on a loopback port")?;
    let trust = Trust::write(&authority, address, environment)?;
    let password = random();
    let credential = config::basic(&format!("run:{password}"));
    let mut variables = proxy_variables(address, &password, &hosts, environment);
    variables.extend_from_slice(&trust.variables);

    runtime()?.block_on(async {
        let mut child = child::start(&asked.command, &variables).context("starting the program")?;
        raise_open_files();
        let credential = digest(&SHA256, credential.as_bytes());
        let (routes, caller) = (Arc::new(routes), Arc::new(caller));
        let proxy = Proxy { credential, child: child.id, tls: tls.into(), routes, caller, outer };
        let ended = tokio::select! {
            ended = child.wait() => ended,
            never = Arc::new(proxy).serve(listener) => never,
        };
        Ok(Exit::Child(ended.context("waiting for the program")?))
    })
}

/// The daemon of the state directory or, where that is not ours to enter, who accepts where the daemon is configured to
/// listen. Where we may enter it and no daemon is, whoever listens there is a stranger.
fn find_daemon(
    file: Option<&Path>,
    environment: &Environment,
    key: Option<HeaderValue>,
) -> Result<(Caller, Routes), Failure> {
    let state_dir = Config::find_state_dir(file, environment)?;
    let (caller, status) = match Daemon::find(&state_dir) {
        Ok(None) => return Err(Daemon::none(&state_dir)),
        Ok(Some(daemon)) => {
            let status = daemon.get("/-/status")?.success()?.json();
            let listening = status["listening"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let listening =
                listening.filter_map(|one| config::listen(one.trim_start_matches("http://")).ok());
            let user = daemon.user().context("asking the kernel whose the daemon is")?;
            (runtime()?.block_on(Caller::new(listening.collect(), Some(user), key))?, status)
        }
        Err(not_entered) => runtime()?.block_on(async {
            let caller = Caller::new(Config::find_listen(file, environment)?, None, key).await;
            let caller = caller.map_err(|why| not_entered.with_hint(why.message))?;
            let status = caller.status().await?;
            Ok::<_, Failure>((caller, status))
        })?,
    };
    match Routes::of(&status) {
        Some(routes) if !routes.hosts().is_empty() => Ok((caller, routes)),
        Some(_) => Err(Failure::new(Exit::Configuration, "no route has an https upstream with a name")
            .with_hint("`run` is for upstreams like https://api.cnblogs.com")),
        None => Err(Failure::new(Exit::Failed, "the daemon does not say where its routes lead")
            .with_hint("it is of another version: restart it")),
    }
}

fn caller_key(path: &Path) -> Result<HeaderValue, Failure> {
    // The path may be the key itself, in the wrong place.
    let unusable = |why| Failure::new(Exit::Failed, format!("--key: {why}"));
    let secret = config::secret_file(path).map_err(unusable)?;
    Ok(config::basic(&format!("run:{}", secret.value.expose_secret())))
}

/// The proxy that tunnels go through: that of our own environment.
fn outer_proxy(environment: &Environment) -> Result<Matcher, Failure> {
    let names = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    let Some((name, url)) = names.into_iter().find_map(|name| Some((name, environment.var(name)?))) else {
        return Ok(Matcher::builder().build());
    };
    let any = Matcher::builder().https(url).build().intercept(&Uri::from_static("https://any.invalid"));
    if any.is_none_or(|proxy| proxy.uri().scheme() != Some(&Scheme::HTTP)) {
        return Err(Failure::new(Exit::Failed, format!("{name} names a proxy that is not spoken to here"))
            .with_hint(
                "`run` reaches other hosts through proxies with http:// addresses alone, or through none",
            ));
    }
    Ok(Matcher::builder().https(url).no(unproxied(environment)).build())
}

/// Where our own environment wants no proxy.
fn unproxied(environment: &Environment) -> &str {
    environment.var("no_proxy").or_else(|| environment.var("NO_PROXY")).unwrap_or_default()
}

fn proxy_variables(
    address: SocketAddr,
    password: &str,
    hosts: &BTreeSet<String>,
    environment: &Environment,
) -> Vec<(&'static str, String)> {
    let url = format!("http://run:{password}@{address}");
    let outer = unproxied(environment).split([',', ' ']).filter(|entry| !entry.is_empty());
    let entries: Vec<_> =
        LOOPBACK.split(',').chain(outer).filter(|entry| !covers_any(entry, hosts)).collect();
    let entries = entries.join(",");
    vec![
        ("HTTPS_PROXY", url.clone()),
        ("https_proxy", url),
        ("NO_PROXY", entries.clone()),
        ("no_proxy", entries),
        ("NODE_USE_ENV_PROXY", "1".to_owned()),
    ]
}

/// True when an entry of `NO_PROXY` would keep one of the hosts from our proxy. Some programs take `*.` for a dot, and
/// a port behind the name.
fn covers_any(entry: &str, hosts: &BTreeSet<String>) -> bool {
    let name = entry.split(':').next().unwrap_or_default();
    let name = name.strip_prefix('*').filter(|rest| !rest.is_empty()).unwrap_or(name);
    let matcher = Matcher::builder().all("http://proxy.invalid").no(name).build();
    hosts
        .iter()
        .any(|host| format!("https://{host}").parse().is_ok_and(|url| matcher.intercept(&url).is_none()))
}

/// What nobody can guess, in characters that mean nothing in URLs and paths.
fn random() -> String {
    let mut bytes = [0; 24];
    SystemRandom::new().fill(&mut bytes).expect("the operating system has random numbers");
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_of_an_upstream_comes_to_the_proxy_whatever_no_proxy_said() {
        let hosts = BTreeSet::from(["api.cnblogs.com".to_owned()]);
        for (outer, expected) in [
            ("", "localhost,127.0.0.1,::1"),
            (
                "intern.example, .example.org,10.0.0.0/8",
                "localhost,127.0.0.1,::1,intern.example,.example.org,10.0.0.0/8",
            ),
            ("*", "localhost,127.0.0.1,::1"),
            ("a.example *.cnblogs.com api.cnblogs.com:443", "localhost,127.0.0.1,::1,a.example"),
            (".cnblogs.com,cnblogs.com,API.cnblogs.com,blogs.com", "localhost,127.0.0.1,::1,blogs.com"),
        ] {
            let environment = Environment::new([("NO_PROXY".to_owned(), outer.to_owned())]);
            let address = "127.0.0.1:1".parse().unwrap();

            let variables = proxy_variables(address, "p", &hosts, &environment);

            assert_eq!(variables[2], ("NO_PROXY", expected.to_owned()), "{outer}");
        }
    }
}
