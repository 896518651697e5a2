//! Lints of a configuration: what works, and had better be otherwise; and what would keep the daemon from starting here
//! and now.

use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use rustix::process::{Gid, Resource, getegid, geteuid, getgroups, getrlimit};
use socket2::{Domain, Socket, Type};
use url::Url;

use crate::config::{
    Account, Address, CallerKey, Config, Environment, ExtraCa, Grant, Listen, ResponseMode, ResponseType,
    Route, User, is_loopback,
};
use crate::control::login::is_local;
use crate::proxy::guard::{LOOPBACK, is_below, is_refused_method, is_unambiguous};
use crate::server::listen::is_without_ipv6;
use crate::store::{self, SealKeys};
use crate::tls;

/// The longest name of a unix socket (`sun_path`, with its end).
const LONGEST_SOCKET: usize = 107;
/// Descriptors for each caller's connection: its own, and one to the upstream.
const DESCRIPTORS_EACH: u64 = 2;

/// All of them, each in a sentence that names the thing.
pub(super) fn lints(config: &Config, running: &[String], environment: &Environment) -> Vec<String> {
    let mut lints = at_start(config, environment);
    of_trusted_files(config, &mut lints);
    let free = config.listen.iter().filter(|listen| !running.contains(&listen.to_string()));
    lints.extend(free.filter_map(|listen| of_listen(listen, config.is_default_listen)));
    lints.extend(of_state(&config.state_dir));
    of_stored_logins(config, &mut lints);
    of_sealing(config, &mut lints);
    for account in config.accounts.values() {
        of_account(account, config, &mut lints);
    }
    of_routes(config, &mut lints);
    of_callers(config, &mut lints);
    for key in &config.callers.keys {
        of_key(key, &config.routes, &mut lints);
    }
    lints.extend(of_limits(config));
    lints.extend(of_notify(&config.notify.command, environment));
    lints
}

/// Those that the daemon tells of, too, when it starts.
pub(in crate::cli) fn at_start(config: &Config, environment: &Environment) -> Vec<String> {
    let mut lints = Vec::new();
    of_secrets(config, environment, &mut lints);
    lints.extend(of_system_roots(config));
    lints
}

fn of_stored_logins(config: &Config, lints: &mut Vec<String>) {
    for name in store::accounts_in(&config.state_dir) {
        if !config.accounts.contains_key(&name) {
            lints.push(format!(
                "there is a login of account {name}, which is not configured: `cnblogs-proxy logout {name}` ends it"
            ));
        }
    }
}

/// Which logins are not sealed although there is a key, and which none of the keys opens.
fn of_sealing(config: &Config, lints: &mut Vec<String>) {
    let keys = SealKeys::new(&config.store.seal_keys);
    for (login, sealed) in store::logins_in(&config.state_dir) {
        let by_rekey = "at the next save it is, or by `cnblogs-proxy store rekey`";
        match sealed.map(|sealed| (keys.name_of(&sealed), keys.is_of_first(&sealed))) {
            Some((Some(_), true)) => {}
            Some((Some(key), false)) => {
                lints.push(format!("the login of {login} is sealed with {key}, not with the first key: {by_rekey}"));
            }
            Some((None, _)) => lints.push(format!(
                "the login of {login} is sealed with a key that is not here: a daemon without it does not start"
            )),
            None if keys.first().is_some() => {
                lints.push(format!("the login of {login} is not sealed: {by_rekey}"));
            }
            None => {}
        }
    }
    for key in &config.store.seal_keys {
        let path = key.from.strip_prefix("file ").map(Path::new);
        if let Some(path) = path.filter(|path| path.starts_with(&config.state_dir)) {
            lints.push(format!(
                "{} lies beside the logins that it seals: whoever copies the directory has both",
                path.display()
            ));
        }
    }
}

fn of_secrets(config: &Config, environment: &Environment, lints: &mut Vec<String>) {
    let secrets = config.accounts.values().map(|account| &account.secret);
    let secrets = secrets.chain(config.callers.keys.iter().map(|key| &key.secret));
    let of_accounts = config.accounts.values().filter_map(|account| account.proxy.as_ref());
    let of_routes = config.routes.iter().filter_map(|route| route.proxy.as_ref());
    let secrets = secrets.chain(of_accounts.chain(of_routes).filter_map(|proxy| proxy.auth.as_ref()));
    let seal_keys = config.store.seal_keys.iter().map(|key| &key.from);
    let given = environment.var("CREDENTIALS_DIRECTORY").map(Path::new);
    for from in secrets.map(|secret| &secret.from).chain(seal_keys) {
        let Some(path) = from.strip_prefix("file ").map(Path::new) else { continue };
        // The service manager keeps others out of its directory.
        if given.is_some_and(|directory| path.starts_with(directory)) {
            continue;
        }
        let Ok(metadata) = path.metadata() else { continue };
        let (shown, mode) = (path.display(), metadata.mode() & 0o777);
        if mode & others(&metadata) != 0 {
            lints.push(format!("{shown} can be read by others (mode {mode:04o}): chmod 600 it"));
        }
        lints.extend(foreign(path, &metadata, &config.state_dir));
    }
}

/// The rights on a secret that only others have a use for: not its group's, where we read it by that group.
fn others(metadata: &Metadata) -> u32 {
    let is_our_group = |gid| getegid() == gid || getgroups().is_ok_and(|groups| groups.contains(&gid));
    let is_by_group = metadata.uid() != geteuid().as_raw() && is_our_group(Gid::from_raw(metadata.gid()));
    if is_by_group { 0o037 } else { 0o077 }
}

/// Nothing that is asked over TLS can be trusted without certificates.
fn of_system_roots(config: &Config) -> Option<String> {
    let is_asked = |account: &Account| {
        let Some(client) = account.client() else { return false };
        let is_https = |address: &&Address| match address {
            Address::At(url) => url.scheme() == "https",
            Address::Discovered => true,
            Address::None => false,
        };
        client.endpoints.all().iter().any(is_https)
    };
    let routes = config.routes.iter().filter(|route| route.upstream.tls && route.ca.is_none());
    let accounts = config.accounts.values().filter(|account| is_asked(account) && account.ca.is_none());
    let named: Vec<_> = routes
        .map(|route| format!("route {}", route.name))
        .chain(accounts.map(|account| format!("account {}", account.name)))
        .collect();
    let is_in_need = !named.is_empty() && !tls::has_system_roots();
    is_in_need.then(|| {
        format!(
            "this machine has no CA certificates, so no server is trusted ({}): install its package ca-certificates, or \
             name a ca_file",
            named.join(", ")
        )
    })
}

fn of_trusted_files(config: &Config, lints: &mut Vec<String>) {
    let cas = config
        .accounts
        .values()
        .map(|account| &account.ca)
        .chain(config.routes.iter().map(|route| &route.ca));
    for ExtraCa { file, has_private_key, certificates } in cas.flatten() {
        if *has_private_key {
            lints.push(format!("{} holds a private key, which nobody needs here", file.display()));
        }
        if let Err(error) = tls::client(certificates, &[]) {
            lints.push(format!("{}: {error}", file.display()));
        }
        lints.extend(changeable(file, &config.state_dir));
    }
    lints.extend(config.file.as_deref().and_then(|file| changeable(file, &config.state_dir)));
}

/// Whoever can change what is trusted can have the token sent elsewhere.
fn changeable(path: &Path, state_dir: &Path) -> Option<String> {
    let metadata = path.metadata().ok()?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o022 != 0 {
        return Some(format!("{} can be changed by others (mode {mode:04o}): chmod go-w it", path.display()));
    }
    foreign(path, &metadata, state_dir)
}

/// Root may look at what belongs to a service: that is who owns the state directory.
fn foreign(path: &Path, metadata: &Metadata, state_dir: &Path) -> Option<String> {
    let (owner, us) = (metadata.uid(), geteuid().as_raw());
    let is_the_service_s = || us == 0 && state_dir.metadata().is_ok_and(|state| state.uid() == owner);
    (owner != us && owner != 0 && !is_the_service_s())
        .then(|| format!("{} belongs to user {owner}, who can change it", path.display()))
}

fn of_listen(listen: &Listen, is_default: bool) -> Option<String> {
    match listen {
        Listen::Tcp(address) => {
            let bound = Socket::new(Domain::for_address(*address), Type::STREAM, None).and_then(|socket| {
                socket.set_reuse_address(true)?;
                socket.bind(&(*address).into())
            });
            let error = bound.err().filter(|error| !(is_default && is_without_ipv6(listen, error)));
            error.map(|error| format!("{address} can't be listened on now: {error}"))
        }
        Listen::Unix(path) => {
            let shown = path.display();
            if path.as_os_str().len() > LONGEST_SOCKET {
                return Some(format!("{shown} is too long for a socket: at most {LONGEST_SOCKET} bytes"));
            }
            if is_listened_on(path) {
                return Some(format!("{shown} can't be listened on now: another program listens there"));
            }
            let directory = path.parent()?;
            not_writable(directory).map(|why| format!("{shown} can't be made: {} {why}", directory.display()))
        }
    }
}

fn is_listened_on(path: &Path) -> bool {
    let sockets = std::fs::read("/proc/net/unix").unwrap_or_default();
    let name = [b" ", path.as_os_str().as_bytes()].concat();
    sockets.split(|byte| *byte == b'\n').any(|line| line.ends_with(&name))
}

fn of_state(dir: &Path) -> Option<String> {
    let (shown, there) = (dir.display(), dir.ancestors().find(|path| path.exists())?);
    if there != dir {
        return not_writable(there).map(|why| format!("{shown} can't be made: {} {why}", there.display()));
    }
    let metadata = dir.metadata().ok()?;
    let us = geteuid().as_raw();
    if metadata.uid() != us && us != 0 {
        return Some(format!(
            "{shown} belongs to user {}: the daemon has to run as that user",
            metadata.uid()
        ));
    }
    not_writable(dir).map(|why| format!("{shown} {why}"))
}

fn not_writable(directory: &Path) -> Option<String> {
    if !directory.is_dir() {
        return Some("is not a directory".to_owned());
    }
    access(directory, Access::WRITE_OK | Access::EXEC_OK)
        .err()
        .map(|error| format!("can't be written to: {error}"))
}

fn of_account(account: &Account, config: &Config, lints: &mut Vec<String>) {
    let name = &account.name;
    if config.first_route_of(name).is_none() {
        lints.push(format!("no route uses account {name}"));
    }
    let Grant::AuthorizationCode(client, login) = &account.grant else { return };
    let scope = client.scope.as_deref().unwrap_or_default();
    if !scope.split_whitespace().any(|one| one == "offline_access") {
        lints.push(format!(
            "account {name}: without offline_access in its scope a login ends with its first token"
        ));
    }
    if login.response_type == ResponseType::Hybrid && client.endpoints.jwks == Address::None {
        lints.push(format!("account {name}: without a jwks_url nobody's signature is checked at a login"));
    }
    let uri = &login.redirect_uri.url;
    if login.response_mode == ResponseMode::FormPost && !is_local(uri) {
        lints.push(format!(
            "account {name}: a login can never finish: with response_mode = \"form_post\" the browser posts to \
             redirect_uri, which is not the daemon's /-/callback"
        ));
    }
    let port = uri.port_or_known_default();
    let is_ours = |listen: &Listen| port_of(listen) == port;
    if is_local(uri) && !config.listen.iter().any(is_ours) {
        lints
            .push(format!("account {name}: redirect_uri is {uri}, but nothing of this listens on that port"));
    }
}

fn of_routes(config: &Config, lints: &mut Vec<String>) {
    for route in &config.routes {
        if route.prefix.split('/').any(|segment| segment == "." || segment == "..") {
            let prefix = &route.prefix;
            lints.push(format!(
                "route {prefix} is hardly ever reached: clients resolve dots before they send a path"
            ));
        }
    }
}

fn of_callers(config: &Config, lints: &mut Vec<String>) {
    let callers = &config.callers;
    if callers.users.contains(&User::Anyone) && callers.keys.is_empty() {
        lints.push(
            "callers.users has \"*\" and no key is needed: every user of this machine acts in your name"
                .to_owned(),
        );
    }
    if callers.allow_remote && !config.listen.iter().any(Listen::is_remote) {
        lints.push(
            "callers.allow_remote has no effect: every address in `listen` is of this machine".to_owned(),
        );
    }
    let ports: Vec<_> = config.listen.iter().filter_map(port_of).collect();
    for (name, port) in &callers.hosts {
        let is_own = LOOPBACK.contains(&name.as_str());
        if is_own && port.is_none_or(|port| ports.contains(&port)) {
            lints.push(format!("callers.hosts: {name} is accepted without being named"));
        } else if ports.is_empty() {
            lints.push(format!("callers.hosts: {name} has no effect: over a unix socket any Host will do"));
        }
    }
    for origin in &callers.allowed_origins {
        if Url::parse(origin).is_ok_and(|url| url.scheme() == "http" && !is_loopback(&url)) {
            lints.push(format!(
                "callers.allowed_origins: whoever is on the network can pose as {origin}: use https"
            ));
        }
    }
}

fn port_of(listen: &Listen) -> Option<u16> {
    match listen {
        Listen::Tcp(address) => Some(address.port()),
        Listen::Unix(_) => None,
    }
}

fn of_key(key: &CallerKey, routes: &[Route], lints: &mut Vec<String>) {
    let name = &key.name;
    let allowed = |route: &Route| key.routes.as_ref().is_none_or(|names| names.contains(&route.name));
    for method in key.methods.iter().flatten() {
        let upper = method.as_str().to_ascii_uppercase();
        if is_refused_method(&upper) {
            lints.push(format!("key {name}: {upper} is never forwarded"));
        } else if upper != method.as_str() {
            lints.push(format!("key {name}: methods are told apart by case: {method} is not {upper}"));
        }
    }
    let paths = key.paths.as_deref().unwrap_or_default();
    for (at, path) in paths.iter().enumerate() {
        if !is_unambiguous(path) {
            lints.push(format!("key {name}: no request comes through {path}, which can be read in two ways"));
        } else if !reached(path, routes).any(allowed) {
            let taken = reached(path, routes).map(|route| format!("route {} takes it", route.name)).next();
            let why = taken.unwrap_or_else(|| "no route takes it".to_owned());
            lints.push(format!("key {name}: no request comes through {path}: {why}"));
        }
        let wider = paths.iter().enumerate().find(|(other, wide)| *other != at && is_below(path, wide));
        if let Some((_, wide)) = wider.filter(|(other, wide)| *wide != path || *other < at) {
            lints.push(format!("key {name}: {path} is below {wide}, which it may use anyway"));
        }
    }
    let is_led_through = |path: &String| is_unambiguous(path) && reached(path, routes).any(allowed);
    if paths.is_empty() || !paths.iter().all(is_led_through) {
        return;
    }
    for route in routes.iter().filter(|route| key.routes.is_some() && allowed(route)) {
        if !paths.iter().any(|path| reached(path, routes).any(|other| other.name == route.name)) {
            lints.push(format!("key {name}: none of its paths leads to route {}", route.name));
        }
    }
}

/// The routes that requests at or below a path may take.
fn reached<'a>(path: &'a str, routes: &'a [Route]) -> impl Iterator<Item = &'a Route> {
    let at = routes
        .iter()
        .filter(move |route| is_below(path, &route.prefix))
        .max_by_key(|route| route.prefix.len());
    let below = routes.iter().filter(move |route| route.prefix != path && is_below(&route.prefix, path));
    at.into_iter().chain(below)
}

fn of_limits(config: &Config) -> Option<String> {
    let most = getrlimit(Resource::Nofile).maximum?;
    let connections = config.limits.connections;
    (most / DESCRIPTORS_EACH < connections as u64).then(|| {
        format!(
            "limits.connections is {connections}, but a process started here may have {most} open files, two \
             for each connection"
        )
    })
}

fn of_notify(command: &[String], environment: &Environment) -> Option<String> {
    let program = command.first()?;
    let candidates: Vec<PathBuf> = if program.contains('/') {
        vec![program.into()]
    } else {
        environment
            .var("PATH")
            .unwrap_or_default()
            .split(':')
            .map(|dir| Path::new(dir).join(program))
            .collect()
    };
    let can_run = |path: &PathBuf| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    (!candidates.iter().any(can_run))
        .then(|| format!("notify.command: {program} is no program that can be run here"))
}
