//! `check --connect`: whether every server can be reached and is trusted. No request with a secret is sent; only
//! the public keys are asked for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::super::daemon::runtime;
use super::super::{Failure, say};
use super::{in_ms, row, through};
use crate::config::{
    Account, Address, Client, Config, Database, Endpoints, Environment, ExtraCa, HttpProxy, Upstream,
};
use crate::notify::with_causes;
use crate::oauth::Oauth;
use crate::proxy::upstream::Tunnel;
use crate::store::{self, SealKeys};
use crate::tls::{self, TlsStream};

/// A server, and what it is for.
struct Server {
    upstream: Upstream,
    ca: Option<ExtraCa>,
    proxy: Option<HttpProxy>,
    purposes: Vec<String>,
}

/// Tries all servers one after the other, says what was found, and returns how many can't be used.
pub(super) fn try_all(config: &Config) -> Result<usize, Failure> {
    let runtime = runtime()?;
    let unusable = runtime.block_on(async {
        let mut unusable = 0;
        for server in servers(config) {
            let through = through(server.proxy.as_ref());
            let purposes = server.purposes.join(", ");
            row("connect", &format!("{} ({purposes}){through}", server.upstream.origin()));
            unusable += usize::from(!try_server(&server, config.limits.connect_timeout).await);
        }
        if let Some(database) = &config.store.database {
            row("connect", &format!("{} (shared logins)", database.shown));
            unusable += usize::from(!try_database(database, config).await);
        }
        for (account, client) in clients(config) {
            unusable += usize::from(!try_metadata(account, client, config.limits.connect_timeout).await);
        }
        unusable
    });
    // A name server that does not answer holds nobody up.
    runtime.shutdown_background();
    Ok(unusable)
}

async fn try_database(database: &Database, config: &Config) -> bool {
    let inspected = store::inspect(database, &SealKeys::new(&config.store.seal_keys)).await;
    match &inspected {
        Ok(found) => found.iter().for_each(|words| say_found(words)),
        Err(error) => say_found(&with_causes(error)),
    }
    inspected.is_ok()
}

/// The accounts that have a client.
fn clients(config: &Config) -> impl Iterator<Item = (&Account, &Client)> {
    config.accounts.values().filter_map(|account| Some((account, account.client()?)))
}

/// What may be wrong beyond what was found.
pub(super) fn advice(environment: &Environment) -> &'static str {
    let is_proxied = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    if is_proxied.iter().any(|name| environment.var(name).is_some()) {
        "HTTPS_PROXY is set, and ignored: `proxy` at the account and the route says what they go through"
    } else {
        "look at the network, the clock of this machine, and `ca_file` where there is a private CA"
    }
}

/// Every server that the daemon talks to, once.
fn servers(config: &Config) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    let mut add = |upstream: Upstream, ca: &Option<ExtraCa>, proxy: &Option<HttpProxy>, purpose: String| {
        let file = |ca: &Option<ExtraCa>| ca.as_ref().map(|ca| PathBuf::clone(&ca.file));
        let upstream = Upstream { base_path: String::new(), ..upstream };
        // http:// is of this machine.
        let proxy = proxy.as_ref().filter(|_| upstream.tls);
        let known = servers.iter_mut().find(|known| {
            let is_same_way = through(known.proxy.as_ref()) == through(proxy);
            known.upstream == upstream && file(&known.ca) == file(ca) && is_same_way
        });
        match known {
            Some(known) => known.purposes.push(purpose),
            None => servers.push(Server {
                upstream,
                ca: ca.clone(),
                proxy: proxy.cloned(),
                purposes: vec![purpose],
            }),
        }
    };
    for route in &config.routes {
        add(route.upstream.clone(), &route.ca, &route.proxy, format!("route {}", route.name));
    }
    for (account, client) in clients(config) {
        let Endpoints { token, revocation, jwks, .. } = &client.endpoints;
        for (address, name) in
            [(token, "token endpoint"), (revocation, "revocation endpoint"), (jwks, "keys")]
        {
            if let Some(upstream) = address.url().and_then(Upstream::of) {
                let purpose = format!("{name} of account {}", account.name);
                add(upstream, &account.ca, &account.proxy, purpose);
            }
        }
    }
    servers
}

/// True when one of the server's addresses can be used, or one of the proxy's before it.
async fn try_server(server: &Server, within: Duration) -> bool {
    let Upstream { host, port, .. } = server.proxy.as_ref().map_or(&server.upstream, |proxy| &proxy.server);
    let started = Instant::now();
    let addresses: Vec<_> = match timeout(within, tokio::net::lookup_host((host.as_str(), *port))).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return found(&format!("{host} has no address: {error}"), false),
        Err(_elapsed) => {
            return found(&format!("{host}: no name server answered within {}", in_ms(within)), false);
        }
    };
    if addresses.is_empty() {
        return found(&format!("{host} has no address"), false);
    }
    if addresses.iter().any(|address| address.ip().to_string() != *host) {
        say_found(&format!("{} addresses of {host}, found in {}", addresses.len(), in_ms(started.elapsed())));
    }

    let mut can_be_used = false;
    for address in addresses {
        match try_address(server, address, within).await {
            Ok(words) => can_be_used = found(&format!("{address}: {words}"), true),
            Err(words) => say_found(&format!("{address}: {words}")),
        }
    }
    can_be_used
}

async fn try_address(server: &Server, address: SocketAddr, within: Duration) -> Result<String, String> {
    let started = Instant::now();
    let tcp = match timeout(within, TcpStream::connect(address)).await {
        Ok(tcp) => tcp.map_err(|error| format!("{error} after {}", in_ms(started.elapsed())))?,
        Err(_elapsed) => return Err(format!("no connection within {}", in_ms(within))),
    };
    let connected = format!("connected in {}", in_ms(started.elapsed()));
    let tcp = match &server.proxy {
        None => tcp,
        Some(proxy) => match timeout(within, Tunnel::new(proxy, &server.upstream).open(tcp)).await {
            Ok(tunnel) => tunnel.map_err(|error| format!("{connected}, but {}", with_causes(&error)))?,
            Err(_elapsed) => return Err(format!("{connected}, but no tunnel within {}", in_ms(within))),
        },
    };
    if !server.upstream.tls {
        return Ok(connected);
    }

    let certificates = server.ca.as_ref().map_or(&[][..], |ca| &ca.certificates);
    let client: Arc<ClientConfig> =
        tls::client(certificates, &[]).map_err(|error| with_causes(&error))?.into();
    let name = ServerName::try_from(server.upstream.host.clone()).map_err(|error| error.to_string())?;
    let started = Instant::now();
    match timeout(within, TlsStream::connect(client, name, tcp)).await {
        Ok(Ok(_trusted)) => Ok(format!("{connected}, trusted in {}", in_ms(started.elapsed()))),
        Ok(Err(error)) => Err(format!("{connected}, but {}", in_words(&error))),
        Err(_elapsed) => Err(format!("{connected}, but TLS took longer than {}", in_ms(within))),
    }
}

/// Asks for the metadata, where they are discovered, and for the public keys, as every login does.
async fn try_metadata(account: &Account, client: &Client, within: Duration) -> bool {
    let oauth = match Oauth::new(account, client, within) {
        Ok(oauth) => oauth,
        Err(error) => return found(&with_causes(&error), false),
    };
    if let Some(issuer) = client.issuer.as_ref().filter(|_| client.endpoints.are_discovered()) {
        row("discovery", &format!("{issuer} (account {})", account.name));
        match oauth.token_url().await {
            Ok(url) => say_found(&format!("token endpoint {url}")),
            Err(reason) => return found(&reason, false),
        }
    }
    client.endpoints.jwks == Address::None || try_keys(&account.name, &oauth).await
}

async fn try_keys(account: &str, oauth: &Oauth) -> bool {
    let at = oauth.client().endpoints.jwks.url().map(|url| format!("{url} ")).unwrap_or_default();
    row("keys", &format!("{at}(account {account})"));
    let started = Instant::now();
    match oauth.published_keys().await.map_err(|error| with_causes(&error)) {
        Ok(Some(0)) => found("no key that this program knows the kind of", false),
        Ok(Some(count)) => found(&format!("{count} found in {}", in_ms(started.elapsed())), true),
        Ok(None) => found("the server publishes none", false),
        Err(reason) => found(&reason, false),
    }
}

fn in_words(error: &std::io::Error) -> String {
    tls::why_untrusted(error).unwrap_or_else(|| format!("no TLS connection can be made: {error}"))
}

fn found(words: &str, is_good: bool) -> bool {
    say_found(words);
    is_good
}

fn say_found(words: &str) {
    say(&format!("{:<17}{words}", ""));
}
