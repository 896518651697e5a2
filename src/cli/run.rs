//! `run`: a program whose address can't be changed. It is started with an HTTP proxy and a certificate authority of its
//! own; what it asks of the configured upstreams goes to the daemon, and all else goes where it went before.
//!
//! The daemon knows nothing of this: to it, we are a caller. No token passes here. The authority's key is gone
//! before the program starts; the caller key is in our memory alone, and the proxy's password in the program's, too.

mod authority;
mod child;
mod proxy;
mod site;
mod trust;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use http::HeaderValue;
use hyper_util::client::proxy::matcher::Matcher;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::CertificateDer;
use secrecy::ExposeSecret as _;

use super::daemon::{Daemon, runtime};
use super::{Exit, Failure};
use crate::config::{self, Config, Environment, Listen, Upstream};
use crate::server::raise_open_files;
use authority::Authority;
use proxy::{Certified, Proxy};
use site::{Routes, Way};
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

pub(super) fn run(asked: &Run, config: &Config, environment: &Environment) -> Result<Exit, Failure> {
    let key = asked.key.as_deref().map(caller_key).transpose()?;
    let daemon = find_daemon(config)?;
    let hosts: BTreeSet<String> = config
        .routes
        .iter()
        .filter(|route| is_interceptable(&route.upstream))
        .map(|route| route.upstream.host.to_ascii_lowercase())
        .collect();
    if hosts.is_empty() {
        return Err(Failure::new(Exit::Configuration, "no route has an https upstream with a name")
            .with_hint("`run` is for upstreams like https://api.cnblogs.com"));
    }

    let (authority, certified) = certify(&hosts).context("making certificates")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on a loopback port")?;
    let address = listener.local_addr().context("listening on a loopback port")?;
    let password = random();
    let trust = Trust::write(&authority, address, environment)
        .context("writing the certificates that the program trusts")?;
    let mut variables = trust.variables().to_vec();
    variables.extend(proxy_variables(address, &password, &hosts, environment));

    let routes = Routes::new(config.routes.clone());
    let way = Way::new(daemon, key);
    let credential = config::basic(&format!("run:{password}"));
    runtime()?.block_on(async {
        let mut child = child::start(&asked.command, &variables)?;
        raise_open_files();
        let proxy = Proxy::new(&credential, child.id, certified, routes, way);
        let ended = tokio::select! {
            ended = child.wait() => ended,
            never = Arc::new(proxy).serve(listener) => never,
        };
        Ok(Exit::Child(ended.context("waiting for the program")?))
    })
}

/// The first listener of the daemon that can be connected to: as it says itself or, where its state directory is not
/// ours to enter, as it is configured. Where we may enter it and no daemon is, whoever listens there is a stranger.
fn find_daemon(config: &Config) -> Result<Listen, Failure> {
    let listening: Vec<_> = match Daemon::find(&config.state_dir) {
        Err(_) if config.listen.iter().any(answers) => config.listen.clone(),
        Err(failure) => return Err(failure),
        Ok(None) => return Err(Daemon::none(&config.state_dir)),
        Ok(Some(daemon)) => {
            let status = daemon.get("/-/status")?.success()?.json();
            let listening = status.get("listening").and_then(serde_json::Value::as_array);
            let texts = listening.into_iter().flatten().filter_map(serde_json::Value::as_str);
            texts.filter_map(|text| config::listen(text.trim_start_matches("http://")).ok()).collect()
        }
    };
    listening.into_iter().find(answers).ok_or_else(|| {
        Failure::new(Exit::Failed, "no listener of the daemon can be connected to from here")
            .with_hint("`cnblogs-proxy status` names them")
    })
}

fn answers(listen: &Listen) -> bool {
    match listen {
        Listen::Tcp(address) => TcpStream::connect(address).is_ok(),
        Listen::Unix(path) => UnixStream::connect(path).is_ok(),
    }
}

fn caller_key(path: &Path) -> Result<HeaderValue, Failure> {
    // The path may be the key itself, in the wrong place.
    let unusable = |why| Failure::new(Exit::Failed, format!("--key: {why}"));
    let secret = config::secret_file(path).map_err(unusable)?;
    Ok(config::basic(&format!("run:{}", secret.value.expose_secret())))
}

/// The certificate of an authority, and what it certifies. Its key is gone when this returns.
fn certify(hosts: &BTreeSet<String>) -> anyhow::Result<(CertificateDer<'static>, Certified)> {
    let authority = Authority::new(hosts)?;
    let certified = hosts.iter().map(|host| Ok((host.clone(), authority.server(host)?)));
    Ok((authority.certificate().clone(), certified.collect::<anyhow::Result<_>>()?))
}

/// True when a certificate of our own can be for it: none is for an address.
fn is_interceptable(upstream: &Upstream) -> bool {
    upstream.tls && upstream.host.parse::<IpAddr>().is_err()
}

fn proxy_variables(
    address: SocketAddr,
    password: &str,
    hosts: &BTreeSet<String>,
    environment: &Environment,
) -> Vec<(&'static str, String)> {
    let url = format!("http://run:{password}@{address}");
    let outer = environment.var("no_proxy").or_else(|| environment.var("NO_PROXY")).unwrap_or_default();
    let unproxied = LOOPBACK.split(',').chain(outer.split([',', ' '])).map(str::trim);
    let unproxied: Vec<_> =
        unproxied.filter(|entry| !entry.is_empty() && !covers_any(entry, hosts)).collect();
    let unproxied = unproxied.join(",");
    vec![
        ("HTTPS_PROXY", url.clone()),
        ("https_proxy", url),
        ("NO_PROXY", unproxied.clone()),
        ("no_proxy", unproxied),
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
