//! Who is admitted. A program that puts a person's token on any request is a confused deputy waiting to happen:
//! each reason to refuse is here, and each is checked before a token is touched.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HOST, ORIGIN, PROXY_AUTHORIZATION, REFERER};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use ring::digest::{SHA256, digest};
use secrecy::ExposeSecret;

use super::headers::AllowedOrigin;
use crate::config::{CallerKey, Callers, Config, Listen, User};
use crate::problem::{Code, Problem};

const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Fields by which some servers are told another method than the request line's.
const OVERRIDES: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];

/// The listener that a caller connected to: the Host values that name it, and who can reach it. Made when the socket
/// is bound: what is read into the configuration later changes neither.
#[derive(Debug)]
pub struct Door {
    hosts: Hosts,
    is_remote: bool,
}

#[derive(Debug)]
enum Hosts {
    /// A unix socket: no web page can reach it, so any valid value will do.
    Any,
    /// In lower case.
    These(Vec<String>),
}

/// Who owns the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// On this machine, with the user id that the kernel gave; none when it could not tell.
    Local(Option<u32>),
    /// On another machine.
    Remote,
}

/// The caller's side of one connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub peer: Peer,
    /// Where.
    pub door: Arc<Door>,
}

/// A request that may go on.
#[derive(Debug)]
pub struct Admitted<'a> {
    /// The page that may read the answer.
    pub origin: Option<AllowedOrigin>,
    /// The key that the caller presented, where keys are configured.
    pub key: Option<&'a CallerKey>,
}

/// What every admission looks at of a head, found in one walk over its fields: most have few, and to search for each
/// name costs more.
#[derive(Default)]
struct Looks<'a> {
    hosts: Once<'a>,
    codings: Once<'a>,
    is_of_a_browser: bool,
}

/// The value of a field that may come once.
#[derive(Default)]
struct Once<'a> {
    first: Option<&'a HeaderValue>,
    has_more: bool,
}

/// The rules, made once from the configuration.
#[derive(Debug)]
pub struct Guard {
    users: Vec<User>,
    own_uid: u32,
    allowed_origins: Vec<String>,
    keys: HashMap<[u8; 32], CallerKey>,
}

impl Door {
    /// The door of a bound listener.
    pub fn of(listen: &Listen, callers: &Callers) -> Self {
        let hosts = match listen {
            Listen::Tcp(address) => Hosts::of_tcp(address.port(), callers),
            Listen::Unix(_) => Hosts::Any,
        };
        Self { hosts, is_remote: listen.is_remote() }
    }

    fn is_any(&self) -> bool {
        matches!(self.hosts, Hosts::Any)
    }

    fn accepts(&self, authority: &str) -> bool {
        match &self.hosts {
            Hosts::Any => true,
            Hosts::These(hosts) => {
                // Nearly all write it as we do.
                hosts.iter().any(|host| host == authority)
                    || hosts.iter().any(|host| host.eq_ignore_ascii_case(authority))
            }
        }
    }
}

impl Hosts {
    /// The loopback names with a port, and what is configured beside them.
    fn of_tcp(port: u16, callers: &Callers) -> Self {
        let mut hosts = Vec::new();
        let mut accept = |name: &str, only: Option<u16>| {
            hosts.push(format!("{name}:{}", only.unwrap_or(port)));
            if only.is_none() && (port == 80 || !LOOPBACK.contains(&name)) {
                hosts.push(name.to_owned());
            }
        };
        LOOPBACK.iter().for_each(|name| accept(name, None));
        callers.hosts.iter().for_each(|(name, only)| accept(name, *only));
        Self::These(hosts)
    }
}

impl Guard {
    /// The rules of a configuration.
    pub fn new(config: &Config) -> Self {
        let keys = config.callers.keys.iter();
        Self {
            users: config.callers.users.clone(),
            own_uid: rustix::process::geteuid().as_raw(),
            allowed_origins: config.callers.allowed_origins.clone(),
            keys: keys
                .map(|key| (fingerprint(key.secret.value.expose_secret().as_bytes()), key.clone()))
                .collect(),
        }
    }

    /// Whether callers present keys.
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The whole admission of a request that would be forwarded.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub fn admit(&self, caller: &Caller, parts: &Parts) -> Result<Admitted<'_>, Problem> {
        let looks = self.greet(caller, parts)?;
        // Most callers are no browsers.
        let origin = if looks.is_of_a_browser { self.page(&parts.headers)? } else { None };
        let key = self.key(caller, &parts.headers)?;
        Ok(Admitted { origin, key })
    }

    /// The admission to our own pages: as [`Self::admit`], but allowed origins are not allowed here, and the one
    /// cross-site request, the callback of a login, lives by its `state` alone.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub fn admit_local(
        &self,
        caller: &Caller,
        parts: &Parts,
        is_callback: bool,
    ) -> Result<Admitted<'_>, Problem> {
        self.greet(caller, parts)?;
        if is_callback {
            check_navigation(&parts.headers)?;
        } else if self.allowed_page(&parts.headers)?.is_some() {
            return Err(forbidden_origin("this origin may call the API, but not the proxy's own pages"));
        }
        let key = self.key(caller, &parts.headers)?;
        Ok(Admitted { origin: None, key })
    }

    /// The page behind a CORS preflight that may go on; preflights carry no key (Fetch, section 3.2.2).
    ///
    /// # Errors
    /// When the page may not call.
    pub fn admit_preflight(&self, caller: &Caller, parts: &Parts) -> Result<Option<AllowedOrigin>, Problem> {
        let is_preflight = parts.method == Method::OPTIONS
            && parts.headers.contains_key(ORIGIN)
            && parts.headers.contains_key(http::header::ACCESS_CONTROL_REQUEST_METHOD);
        if !is_preflight {
            return Ok(None);
        }
        self.greet(caller, parts)?;
        self.allowed_page(&parts.headers)
    }

    /// The page of a request that was refused may read why, when it is an allowed one.
    pub fn origin_of(&self, fields: &HeaderMap) -> Option<AllowedOrigin> {
        if !fields.contains_key(ORIGIN) {
            return None;
        }
        self.allowed_page(fields).ok().flatten()
    }

    /// What is asked of everybody, whatever they want.
    fn greet<'a>(&self, caller: &Caller, parts: &'a Parts) -> Result<Looks<'a>, Problem> {
        let looks = Looks::of(&parts.headers);
        check_framing_and_target(parts, &looks.codings)?;
        check_host(caller, parts, &looks.hosts)?;
        self.check_user(caller)?;
        Ok(looks)
    }

    fn check_user(&self, caller: &Caller) -> Result<(), Problem> {
        let Peer::Local(uid) = caller.peer else { return Ok(()) };
        let is_known = self.users.iter().any(|user| match user {
            User::Anyone => true,
            User::Myself => uid == Some(self.own_uid),
            User::Uid(known) => uid == Some(*known),
        });
        if is_known || uid == Some(0) {
            return Ok(());
        }
        let came = uid.map_or_else(
            || {
                "the kernel can't tell which user owns this connection (another network namespace?)"
                    .to_owned()
            },
            |uid| format!("this connection belongs to user {uid}"),
        );
        Err(Problem::new(Code::ForbiddenUser, format!("{came}: to admit it, add it to callers.users")))
    }

    /// The page that asks for a forwarded request.
    fn page(&self, fields: &HeaderMap) -> Result<Option<AllowedOrigin>, Problem> {
        let origin = self.allowed_page(fields)?;
        if origin.is_none() {
            check_not_embedded(fields)?;
        }
        Ok(origin)
    }

    /// The allowed page that a request comes from; none when no page is involved.
    fn allowed_page(&self, fields: &HeaderMap) -> Result<Option<AllowedOrigin>, Problem> {
        check_not_speculative(fields)?;
        let own = fields.get(HOST).map(HeaderValue::as_bytes);
        let is_own = |origin: &[u8]| {
            let (scheme, host) = origin.split_at(origin.len().min(b"http://".len()));
            scheme.eq_ignore_ascii_case(b"http://") && own.is_some_and(|own| own.eq_ignore_ascii_case(host))
        };
        let is_allowed = |origin: &[u8]| {
            self.allowed_origins.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin))
        };

        let mut origins = fields.get_all(ORIGIN).iter();
        let allowed = match (origins.next(), origins.next()) {
            (None, _) => None,
            (Some(origin), None) if is_own(origin.as_bytes()) => None,
            (Some(origin), None) if is_allowed(origin.as_bytes()) => Some(AllowedOrigin(origin.clone())),
            _ => {
                return Err(forbidden_origin(
                    "to let this page call, add its origin to callers.allowed_origins",
                ));
            }
        };
        for referer in fields.get_all(REFERER).iter().filter(|_| !is_of_a_program(fields)) {
            let origin = origin_of(referer.as_bytes());
            if !is_own(origin) && !is_allowed(origin) {
                return Err(forbidden_origin(
                    "the Referer is another page's: a program that sets it itself says so by Authorization: Bearer",
                ));
            }
        }
        for site in fields.get_all(SEC_FETCH_SITE) {
            if allowed.is_none() && ![&b"none"[..], b"same-origin"].contains(&site.as_bytes()) {
                return Err(forbidden_origin("a page of another site asked for this"));
            }
        }
        Ok(allowed)
    }

    /// The key of a caller: where any is configured, and wherever other machines come from, even with none left.
    fn key(&self, caller: &Caller, fields: &HeaderMap) -> Result<Option<&CallerKey>, Problem> {
        let required = |detail: &str| Err(Problem::new(Code::KeyRequired, detail).with_challenge());
        if self.keys.is_empty() {
            return match caller.door.is_remote || caller.peer == Peer::Remote {
                false => Ok(None),
                true => {
                    required("other machines can reach this address: give callers keys with [[callers.key]]")
                }
            };
        }
        let Some(presented) = credential(fields)? else {
            return required(
                "send the key as Authorization: Bearer KEY, as Basic password, or in Proxy-Authorization",
            );
        };
        let known = credentials(presented).and_then(|secret| self.keys.get(&fingerprint(&secret)));
        if known.is_some() { Ok(known) } else { required("this key is not known here") }
    }
}

impl<'a> Looks<'a> {
    fn of(fields: &'a HeaderMap) -> Self {
        let mut looks = Self::default();
        for (name, value) in fields {
            match name.as_str() {
                "host" => looks.hosts.take(value),
                "transfer-encoding" => looks.codings.take(value),
                // By which a browser says where a request comes from and what it is for.
                "origin" | "referer" | "sec-fetch-site" | "sec-fetch-mode" => looks.is_of_a_browser = true,
                name => looks.is_of_a_browser |= is_speculative(name),
            }
        }
        looks
    }
}

impl<'a> Once<'a> {
    fn take(&mut self, value: &'a HeaderValue) {
        self.has_more |= self.first.is_some();
        self.first = self.first.or(Some(value));
    }
}

impl Admitted<'_> {
    /// Whether the caller's key reaches our own pages with this request.
    ///
    /// # Errors
    /// When it is limited.
    pub fn may_use_local(&self, parts: &Parts) -> Result<(), Problem> {
        let is_limited =
            self.key.is_some_and(|k| k.methods.is_some() || k.paths.is_some() || k.routes.is_some());
        let may_read = parts.uri.path() == "/-/status" && [Method::GET, Method::HEAD].contains(&parts.method);
        if is_limited && !may_read {
            return Err(Problem::new(
                Code::ForbiddenByKey,
                "a limited key may read /-/status and nothing else here",
            ));
        }
        Ok(())
    }

    /// Whether the caller's key reaches a route with this request.
    ///
    /// # Errors
    /// What it does not allow.
    pub fn may_use(&self, parts: &Parts, route: &str) -> Result<(), Problem> {
        let Some(key) = self.key else { return Ok(()) };
        let refuse = |what: &str| {
            Err(Problem::new(
                Code::ForbiddenByKey,
                format!("the key \"{}\" does not allow this {what}", key.name),
            ))
        };
        if let Some(methods) = &key.methods
            && (!methods.contains(&parts.method)
                || OVERRIDES.iter().any(|name| parts.headers.contains_key(*name)))
        {
            return refuse("method");
        }
        let path = parts.uri.path();
        let is_below_one = |paths: &Vec<String>| paths.iter().any(|prefix| is_below(path, prefix));
        if key.paths.as_ref().is_some_and(|paths| !is_below_one(paths)) {
            return refuse("path");
        }
        // The upstream's own path in front of the caller's is a limit as well.
        let judges_paths = key.paths.is_some() || key.routes.is_some();
        if judges_paths && !is_unambiguous(path) || key.methods.is_some() && climbs(path) {
            return refuse("path");
        }
        match &key.routes {
            Some(routes) if !routes.iter().any(|name| name == route) => refuse("route"),
            _ => Ok(()),
        }
    }
}

/// The names of a listener that need not be configured.
pub const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
/// Methods that are never forwarded: no tunnel, and no request that comes back with the token in it.
const REFUSED_METHODS: [&str; 3] = ["CONNECT", "TRACE", "TRACK"];

/// True for a method that is never forwarded, in upper or lower case.
pub fn is_refused_method(method: &str) -> bool {
    REFUSED_METHODS.iter().any(|refused| refused.eq_ignore_ascii_case(method))
}

/// Methods that are never forwarded, and targets that are not a path.
fn check_framing_and_target(parts: &Parts, codings: &Once<'_>) -> Result<(), Problem> {
    if is_refused_method(parts.method.as_str()) {
        return Err(Problem::new(Code::MethodRefused, "this proxy makes no tunnels and no echoes").closing());
    }
    if !parts.uri.path().starts_with('/') {
        return Err(Problem::new(Code::BadRequest, "the request target is not a path").closing());
    }
    match (codings.first, codings.has_more) {
        (None, _) => Ok(()),
        (Some(coding), false) if coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Problem::new(Code::BadRequest, "the only transfer coding is chunked, once").closing()),
    }
}

/// Exactly one Host, and one that names this proxy (RFC 9112, section 3.2); an absolute-form target must
/// name it, too.
fn check_host(caller: &Caller, parts: &Parts, hosts: &Once<'_>) -> Result<(), Problem> {
    let (Some(host), false) = (hosts.first, hosts.has_more) else {
        return Err(Problem::new(Code::BadRequest, "a request has exactly one Host").closing());
    };
    let Ok(host) = host.to_str() else { return Err(malformed_host()) };
    // A name of our own is well-formed.
    let is_accepted = caller.door.accepts(host);
    if (!is_accepted || caller.door.is_any()) && !is_authority(host) {
        return Err(malformed_host());
    }
    // Nobody speaks to a unix socket as to a forward proxy.
    let foreign_target = parts.uri.authority().is_some_and(|authority| {
        caller.door.is_any()
            || parts.uri.scheme_str() != Some("http")
            || !authority.as_str().eq_ignore_ascii_case(host)
    });
    if foreign_target || !is_accepted {
        let detail = "this proxy is http://localhost with its port; other names go into callers.hosts";
        return Err(Problem::new(Code::WrongHost, detail));
    }
    Ok(())
}

fn malformed_host() -> Problem {
    Problem::new(Code::BadRequest, "the Host is malformed").closing()
}

/// What a browser sends when it fetches on its own account, or installs something that outlives the page.
fn is_speculative(name: &str) -> bool {
    matches!(name, "sec-purpose" | "purpose" | "x-moz" | "service-worker")
}

/// Nothing that a browser fetches on its own account.
fn check_not_speculative(fields: &HeaderMap) -> Result<(), Problem> {
    match fields.keys().map(HeaderName::as_str).find(|name| is_speculative(name)) {
        Some(name) => Err(forbidden_origin(&format!("requests with {name} are not served"))),
        None => Ok(()),
    }
}

/// True for what no browser sends for a page of another site. To this machine's own names browsers always say what site
/// a request comes from (Fetch Metadata, section 2); to other names over plain http they do not, but no page can send a
/// Bearer credential without a CORS preflight (Fetch, section 3.2.2).
fn is_of_a_program(fields: &HeaderMap) -> bool {
    let says_site = [ORIGIN, SEC_FETCH_SITE, SEC_FETCH_MODE, SEC_FETCH_DEST];
    if says_site.iter().any(|name| fields.contains_key(name)) {
        return false;
    }
    let host = fields.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    let is_bearer = |value: &HeaderValue| {
        value.as_bytes().get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "))
    };
    LOOPBACK.iter().any(|own| own.eq_ignore_ascii_case(name))
        || [AUTHORIZATION, PROXY_AUTHORIZATION].iter().any(|name| fields.get_all(name).iter().any(is_bearer))
}

/// Nothing that belongs to a page, such as the icon that a browser fetches for every page it shows, and be it our
/// refusal: no page that may call shows the API's answers as its parts.
fn check_not_embedded(fields: &HeaderMap) -> Result<(), Problem> {
    if fields.get_all(SEC_FETCH_MODE).iter().any(|mode| mode == "no-cors") {
        return Err(forbidden_origin("the API's answers are not parts of a page"));
    }
    Ok(())
}

/// A person's browser going to a page, and not a page loading a picture.
fn check_navigation(fields: &HeaderMap) -> Result<(), Problem> {
    check_not_speculative(fields)?;
    match fields.get(SEC_FETCH_DEST) {
        Some(destination) if destination != "document" => {
            Err(forbidden_origin("a login's callback is a page of its own"))
        }
        _ => Ok(()),
    }
}

/// `host [ ":" port ]` without user information (RFC 9110, section 7.2).
fn is_authority(host: &str) -> bool {
    let (name, port) = match host.rfind(':') {
        Some(at) if !host[at..].contains(']') => (&host[..at], Some(&host[at + 1..])),
        _ => (host, None),
    };
    let is_name = !name.is_empty()
        && if let Some(ip) = name.strip_prefix('[') {
            ip.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok())
        } else {
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(&b))
        };
    is_name && port.is_none_or(|port| port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()))
}

fn origin_of(referer: &[u8]) -> &[u8] {
    let after_scheme = referer.windows(3).position(|w| w == b"://").map_or(referer.len(), |at| at + 3);
    let end = referer[after_scheme..].iter().position(|b| b"/?#".contains(b));
    &referer[..end.map_or(referer.len(), |at| after_scheme + at)]
}

fn forbidden_origin(detail: &str) -> Problem {
    Problem::new(Code::ForbiddenOrigin, detail)
}

/// The one field that presents a key. Programs that set an Authorization of their own present it in
/// Proxy-Authorization, which is looked at first.
fn credential(fields: &HeaderMap) -> Result<Option<&HeaderValue>, Problem> {
    for name in [PROXY_AUTHORIZATION, AUTHORIZATION] {
        let mut values = fields.get_all(&name).iter();
        match (values.next(), values.next()) {
            (None, _) => {}
            (Some(value), None) => return Ok(Some(value)),
            (Some(_), Some(_)) => {
                return Err(Problem::new(Code::BadRequest, "a request has one credential").closing());
            }
        }
    }
    Ok(None)
}

/// What follows `Bearer`, or the password of `Basic` (RFC 7617).
fn credentials(value: &HeaderValue) -> Option<zeroize::Zeroizing<Vec<u8>>> {
    let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.as_bytes().to_vec().into());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = zeroize::Zeroizing::new(STANDARD.decode(rest).ok()?);
    let colon = pair.iter().position(|b| *b == b':')?;
    Some(pair[colon + 1..].to_vec().into())
}

/// Keys are looked up by digest, so that time tells nothing of how much of a key was right.
fn fingerprint(secret: &[u8]) -> [u8; 32] {
    digest(&SHA256, secret).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// True when no server can read the path as another one.
pub fn is_unambiguous(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let encoded = ["%2e", "%2f", "%3b", "%5c", "%25", "\\", ";", "%00"].iter().any(|bad| lower.contains(bad));
    // What is left of `%2%65` when it was decoded once is decoded by whoever is behind.
    let is_escape = |rest: &str| rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    let is_whole = path.split('%').skip(1).all(is_escape);
    let mut segments = path.split('/').skip(1).peekable();
    let mut is_clean = true;
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        is_clean &= segment != "." && segment != ".." && (is_last || !segment.is_empty());
    }
    is_clean && is_whole && !encoded
}

/// True when a server may read dot segments in the path, however they are encoded.
fn climbs(path: &str) -> bool {
    if memchr::memchr3(b'.', b'%', b'\\', path.as_bytes()).is_none() {
        return false;
    }
    let mut plain = path.to_ascii_lowercase();
    // What is encoded twice is decoded by whoever is behind.
    while plain.contains("%25") {
        plain = plain.replace("%25", "%");
    }
    let plain = plain.replace("%2e", ".").replace("%2f", "/").replace("%5c", "/").replace('\\', "/");
    plain.split('/').any(|segment| {
        let name = segment.split([';', '%']).next().unwrap_or_default();
        name == "." || name == ".."
    })
}

/// Whole segments, byte for byte: `/write` is above `/write/x` and not above `/writer`, `/write/` not above `/write`.
pub fn is_below(path: &str, prefix: &str) -> bool {
    let rest = path.strip_prefix(prefix);
    rest.is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    const ME: u32 = 1000;
    const PAGE: (&str, &str) = ("origin", "https://page.example");
    /// What every good request has.
    const OURS: (&str, &str) = ("host", "localhost:8262");
    const KEY: (&str, &str) = ("authorization", "Bearer the-key");

    fn well_formed_alone(parts: &Parts) -> Result<(), Problem> {
        check_framing_and_target(parts, &Looks::of(&parts.headers).codings)
    }

    fn right_host_alone(caller: &Caller, parts: &Parts) -> Result<(), Problem> {
        check_host(caller, parts, &Looks::of(&parts.headers).hosts)
    }

    fn callers() -> Callers {
        let hosts = vec![("proxy.lan".to_owned(), None), ("behind.example".to_owned(), Some(443))];
        Callers {
            users: Vec::new(),
            hosts,
            allowed_origins: Vec::new(),
            allow_remote: false,
            keys: Vec::new(),
        }
    }

    fn guard(users: &[User], keys: &[CallerKey]) -> Guard {
        let print = |key: &CallerKey| fingerprint(key.secret.value.expose_secret().as_bytes());
        Guard {
            users: users.to_vec(),
            own_uid: ME,
            allowed_origins: vec![PAGE.1.to_owned()],
            keys: keys.iter().map(|key| (print(key), key.clone())).collect(),
        }
    }

    /// For callers that need no key.
    fn open() -> Guard {
        guard(&[User::Myself], &[])
    }

    fn key() -> CallerKey {
        CallerKey {
            name: "k".to_owned(),
            secret: Secret { value: "the-key".into(), from: String::new() },
            methods: None,
            paths: None,
            routes: None,
        }
    }

    /// Keys with one limit each.
    fn limited_keys() -> [CallerKey; 3] {
        [
            CallerKey { methods: Some(vec![Method::GET]), ..key() },
            CallerKey { paths: Some(vec!["/a".to_owned(), "/b".to_owned()]), ..key() },
            CallerKey { routes: Some(vec!["api".to_owned(), "writing".to_owned()]), ..key() },
        ]
    }

    fn tcp(address: &str) -> Listen {
        Listen::Tcp(address.parse().unwrap())
    }

    fn door() -> Door {
        Door::of(&tcp("127.0.0.1:8262"), &callers())
    }

    fn socket() -> Door {
        Door::of(&Listen::Unix("/run/proxy.sock".into()), &callers())
    }

    fn caller_at(door: Door, peer: Peer) -> Caller {
        Caller { peer, door: Arc::new(door) }
    }

    fn caller() -> Caller {
        caller_at(door(), Peer::Local(Some(ME)))
    }

    fn parts(method: &str, target: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn code<T>(admitted: Result<T, Problem>) -> Option<Code> {
        admitted.err().map(|problem| problem.code())
    }

    #[test]
    fn a_door_has_the_loopback_names_with_its_port_and_the_configured_names() {
        for (port, authority, expected) in [
            (8262, "localhost:8262", true),
            (8262, "LocalHost:8262", true),
            (8262, "127.0.0.1:8262", true),
            (8262, "[::1]:8262", true),
            (8262, "localhost", false),
            (8262, "localhost:80", false),
            (8262, "127.0.0.2:8262", false),
            (80, "localhost:80", true),
            (80, "localhost", true),
            (8262, "proxy.lan", true),
            (8262, "proxy.lan:8262", true),
            (8262, "proxy.lan:80", false),
            (8262, "behind.example:443", true),
            (8262, "behind.example:8262", false),
            (8262, "behind.example", false),
            (80, "behind.example", false),
        ] {
            let door = Door::of(&tcp(&format!("127.0.0.1:{port}")), &callers());
            assert_eq!(door.accepts(authority), expected, "{authority} on {port}");
        }
        assert!(socket().accepts("anything"));
    }

    #[test]
    fn tunnels_echoes_and_other_transfer_codings_are_refused() {
        for (method, target, coding, expected) in [
            ("GET", "/a", None, None),
            ("OPTIONS", "/", None, None),
            ("POST", "/", Some("chunked"), None),
            ("POST", "/", Some(" Chunked"), None),
            ("POST", "/", Some("gzip, chunked"), Some(Code::BadRequest)),
            ("POST", "/", Some("identity"), Some(Code::BadRequest)),
            ("OPTIONS", "*", None, Some(Code::BadRequest)),
            ("CONNECT", "/", None, Some(Code::MethodRefused)),
            ("TRACE", "/", None, Some(Code::MethodRefused)),
            ("TRACK", "/", None, Some(Code::MethodRefused)),
            ("track", "/", None, Some(Code::MethodRefused)),
        ] {
            let fields: Vec<_> = coding.map(|coding| ("transfer-encoding", coding)).into_iter().collect();
            assert_eq!(
                code(well_formed_alone(&parts(method, target, &fields))),
                expected,
                "{method} {target}"
            );
        }
        let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(code(well_formed_alone(&parts("POST", "/", &twice))), Some(Code::BadRequest));
    }

    #[test]
    fn exactly_one_host_names_the_door_and_so_does_an_absolute_target() {
        for (target, hosts, expected) in [
            ("/", &["localhost:8262"][..], None),
            ("/", &[], Some(Code::BadRequest)),
            ("/", &["localhost:8262", "localhost:8262"], Some(Code::BadRequest)),
            ("/", &["a b"], Some(Code::BadRequest)),
            ("/", &["evil.example"], Some(Code::WrongHost)),
            ("http://localhost:8262/", &["localhost:8262"], None),
            ("http://LOCALHOST:8262/", &["localhost:8262"], None),
            ("http://evil.example/", &["localhost:8262"], Some(Code::WrongHost)),
            ("http://127.0.0.1:8262/", &["localhost:8262"], Some(Code::WrongHost)),
            ("http://evil.example/", &["evil.example"], Some(Code::WrongHost)),
            ("https://localhost:8262/", &["localhost:8262"], Some(Code::WrongHost)),
        ] {
            let fields: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            let came = code(right_host_alone(&caller(), &parts("GET", target, &fields)));
            assert_eq!(came, expected, "{target} {hosts:?}");
        }
        let at_socket = caller_at(socket(), Peer::Local(Some(ME)));
        for (target, expected) in [("/", None), ("http://any.example/", Some(Code::WrongHost))] {
            let came = code(right_host_alone(&at_socket, &parts("GET", target, &[("host", "any.example")])));
            assert_eq!(came, expected, "{target} on a unix socket");
        }
    }

    #[test]
    fn the_users_that_are_meant_and_root_may_call() {
        for (users, peer, expected) in [
            (&[User::Myself][..], Peer::Local(Some(ME)), true),
            (&[User::Myself], Peer::Local(Some(ME + 1)), false),
            (&[User::Myself], Peer::Local(None), false),
            (&[User::Myself], Peer::Local(Some(0)), true),
            (&[User::Myself], Peer::Remote, true),
            (&[User::Uid(7), User::Uid(8)], Peer::Local(Some(8)), true),
            (&[User::Uid(7)], Peer::Local(Some(ME)), false),
            (&[User::Uid(7)], Peer::Local(None), false),
            (&[User::Uid(7), User::Anyone], Peer::Local(Some(ME)), true),
            (&[User::Anyone], Peer::Local(None), true),
        ] {
            let came = guard(users, &[]).check_user(&caller_at(socket(), peer));
            assert_eq!(came.is_ok(), expected, "{users:?} {peer:?}");
        }
    }

    #[test]
    fn only_our_own_and_allowed_pages_may_call() {
        let own = ("origin", "http://localhost:8262");
        let site = |value: &'static str| ("sec-fetch-site", value);
        for (fields, expected) in [
            (&[][..], Ok(None)),
            (&[own], Ok(None)),
            (&[("origin", "HTTP://LOCALHOST:8262")], Ok(None)),
            (&[PAGE], Ok(Some(PAGE.1))),
            (&[("origin", "https://localhost:8262")], Err(())),
            (&[("origin", "http://localhost:8263")], Err(())),
            (&[("origin", "http://localhost:82621")], Err(())),
            (&[("origin", "null")], Err(())),
            (&[("origin", "")], Err(())),
            (&[("origin", "https://evil.example")], Err(())),
            (&[own, own], Err(())),
            (&[PAGE, PAGE], Err(())),
            (&[("referer", "http://localhost:8262/-/")], Ok(None)),
            (&[("referer", "https://page.example/x")], Ok(None)),
            (&[("referer", "https://evil.example/http://localhost:8262/"), site("cross-site")], Err(())),
            (&[own, ("referer", "https://evil.example/")], Err(())),
            (&[site("none")], Ok(None)),
            (&[site("same-origin"), own], Ok(None)),
            (&[site("same-site")], Err(())),
            (&[site("cross-site")], Err(())),
            (&[site("cross-site"), own], Err(())),
            (&[site("cross-site"), PAGE], Ok(Some(PAGE.1))),
            (&[("sec-purpose", "prefetch")], Err(())),
            (&[("purpose", "prefetch")], Err(())),
            (&[("x-moz", "prefetch")], Err(())),
            (&[PAGE, ("service-worker", "script")], Err(())),
        ] {
            let parts = parts("GET", "/", &[&[OURS], fields].concat());
            let came = open().allowed_page(&parts.headers).map_err(|problem| problem.code());
            let came = came.map(|page| page.map(|AllowedOrigin(page)| page.to_str().unwrap().to_owned()));
            let expected = expected.map(|page| page.map(str::to_owned)).map_err(|()| Code::ForbiddenOrigin);
            assert_eq!(came, expected, "{fields:?}");
        }
    }

    #[test]
    fn a_referer_alone_is_a_programs_where_browsers_say_more_or_can_not_say_as_much() {
        let elsewhere = ("referer", "https://www.cnblogs.com/");
        for (host, more, may_call) in [
            ("localhost:8262", &[][..], true),
            ("127.0.0.1:8262", &[], true),
            ("[::1]:8262", &[], true),
            ("localhost:8262", &[("sec-fetch-mode", "navigate")], false),
            ("localhost:8262", &[("origin", "http://localhost:8262")], false),
            ("proxy.lan", &[], false),
            ("localhost.evil.example", &[], false),
            ("proxy.lan", &[KEY], true),
            ("proxy.lan", &[("proxy-authorization", "bearer x")], true),
            ("proxy.lan", &[("authorization", "Basic eDp5")], false),
            ("proxy.lan", &[KEY, ("sec-fetch-site", "cross-site")], false),
        ] {
            let fields = [&[("host", host), elsewhere], more].concat();
            let came = open().allowed_page(&parts("GET", "/", &fields).headers);
            assert_eq!(came.is_ok(), may_call, "{host} {more:?}");
        }
    }

    #[test]
    fn a_request_presents_one_credential() {
        let guard = guard(&[User::Myself], &[key()]);
        let wrong = ("authorization", "Bearer wrong");
        for (fields, expected) in [
            (&[KEY][..], Ok(true)),
            (&[wrong], Err(Code::KeyRequired)),
            (&[wrong, KEY], Err(Code::BadRequest)),
            (&[KEY, KEY], Err(Code::BadRequest)),
            (&[wrong, ("proxy-authorization", "Bearer the-key")], Ok(true)),
            (&[KEY, ("proxy-authorization", "Bearer wrong")], Err(Code::KeyRequired)),
        ] {
            let admitted = guard.key(&caller(), &parts("GET", "/", fields).headers);
            let admitted = admitted.map(|key| key.is_some()).map_err(|problem| problem.code());
            assert_eq!(admitted, expected, "{fields:?}");
        }
    }

    #[test]
    fn a_refusal_is_readable_for_an_allowed_page_alone() {
        let page_of = |fields| open().origin_of(&parts("GET", "/", fields).headers).map(|origin| origin.0);

        assert_eq!(page_of(&[OURS, PAGE]), Some(PAGE.1.parse().unwrap()));
        assert_eq!(page_of(&[OURS, ("origin", "http://localhost:8262")]), None);
        assert_eq!(page_of(&[OURS, ("origin", "https://evil.example")]), None);
        assert_eq!(page_of(&[OURS]), None);
    }

    #[test]
    fn a_preflight_is_of_an_allowed_page_and_asks_for_a_method() {
        let asks = ("access-control-request-method", "PUT");
        let admit = |method, fields: &[_]| {
            let admitted = open().admit_preflight(&caller(), &parts(method, "/", fields));
            admitted.map(|page| page.is_some()).map_err(|problem| problem.code())
        };

        assert_eq!(admit("OPTIONS", &[OURS, PAGE, asks]), Ok(true));
        assert_eq!(admit("PUT", &[OURS, PAGE, asks]), Ok(false));
        assert_eq!(admit("OPTIONS", &[OURS, asks]), Ok(false));
        assert_eq!(admit("OPTIONS", &[OURS, PAGE]), Ok(false));
        assert_eq!(
            admit("OPTIONS", &[OURS, asks, ("origin", "https://evil.example")]),
            Err(Code::ForbiddenOrigin)
        );
    }

    #[test]
    fn a_preflight_needs_no_key_and_all_else_that_a_request_needs() {
        let keyed = guard(&[User::Myself], &[key()]);
        let stranger = caller_at(door(), Peer::Local(Some(ME + 1)));
        let good = caller();
        let asks = ("access-control-request-method", "PUT");
        for (caller, fields, expected) in [
            (&good, &[OURS][..], None),
            (&good, &[("host", "evil.example")], Some(Code::WrongHost)),
            (&good, &[OURS, ("transfer-encoding", "gzip")], Some(Code::BadRequest)),
            (&stranger, &[OURS], Some(Code::ForbiddenUser)),
        ] {
            let parts = parts("OPTIONS", "/", &[&[PAGE, asks], fields].concat());
            assert_eq!(code(keyed.admit_preflight(caller, &parts)), expected, "{caller:?} {fields:?}");
        }
    }

    #[test]
    fn a_listener_that_other_machines_reach_needs_a_key_even_when_none_is_left() {
        let asks = ("access-control-request-method", "PUT");
        for (address, peer, expected) in [
            ("127.0.0.1:8262", Peer::Local(Some(ME)), None),
            ("[::ffff:127.0.0.1]:8262", Peer::Local(Some(ME)), None),
            ("127.0.0.1:8262", Peer::Remote, Some(Code::KeyRequired)),
            ("0.0.0.0:8262", Peer::Local(Some(ME)), Some(Code::KeyRequired)),
            ("0.0.0.0:8262", Peer::Remote, Some(Code::KeyRequired)),
            ("[::]:8262", Peer::Remote, Some(Code::KeyRequired)),
            ("[::ffff:192.0.2.1]:8262", Peer::Remote, Some(Code::KeyRequired)),
        ] {
            let caller = caller_at(Door::of(&tcp(address), &callers()), peer);
            for presented in [&[OURS][..], &[OURS, KEY]] {
                let asked = parts("GET", "/-/status", presented);
                assert_eq!(code(open().admit(&caller, &asked)), expected, "{address} {peer:?}");
                assert_eq!(code(open().admit_local(&caller, &asked, false)), expected, "{address} {peer:?}");
                assert_eq!(code(open().admit_local(&caller, &asked, true)), expected, "{address} {peer:?}");
            }
            let preflight = parts("OPTIONS", "/", &[OURS, PAGE, asks]);
            assert!(open().admit_preflight(&caller, &preflight).unwrap().is_some(), "{address} {peer:?}");
        }
    }

    #[test]
    fn each_reason_to_refuse_is_reason_enough() {
        let keyed = guard(&[User::Myself], &[key()]);
        let stranger = caller_at(door(), Peer::Local(Some(ME + 1)));
        let evil = ("origin", "https://evil.example");
        let good = caller();
        for (caller, method, fields, expected) in [
            (&good, "GET", &[OURS, KEY][..], None),
            (&good, "GET", &[OURS, KEY, PAGE], None),
            (&good, "TRACE", &[OURS, KEY], Some(Code::MethodRefused)),
            (&good, "GET", &[("host", "evil.example"), KEY], Some(Code::WrongHost)),
            (&stranger, "GET", &[OURS, KEY], Some(Code::ForbiddenUser)),
            (&good, "GET", &[OURS, KEY, evil], Some(Code::ForbiddenOrigin)),
            (&good, "GET", &[OURS], Some(Code::KeyRequired)),
        ] {
            let parts = parts(method, "/", fields);
            assert_eq!(code(keyed.admit(caller, &parts)), expected, "forwarded: {caller:?} {fields:?}");
            if !fields.contains(&PAGE) {
                let local = keyed.admit_local(caller, &parts, false);
                assert_eq!(code(local), expected, "local: {caller:?} {fields:?}");
            }
        }
    }

    #[test]
    fn a_part_of_a_page_is_not_fetched_unless_an_allowed_page_calls() {
        let mode = |value: &'static str| ("sec-fetch-mode", value);
        for (fields, expected) in [
            (&[mode("navigate")][..], None),
            (&[mode("cors")], None),
            (&[mode("no-cors")], Some(Code::ForbiddenOrigin)),
            (&[mode("cors"), mode("no-cors")], Some(Code::ForbiddenOrigin)),
            (&[mode("no-cors"), PAGE], None),
        ] {
            let parts = parts("GET", "/", &[&[OURS], fields].concat());
            assert_eq!(code(open().admit(&caller(), &parts)), expected, "{fields:?}");
        }
    }

    #[test]
    fn our_own_pages_are_for_no_other_page_but_the_callback_of_a_login() {
        let dest = |value: &'static str| ("sec-fetch-dest", value);
        let from_server = [("origin", "null"), ("sec-fetch-site", "cross-site")];
        for (fields, is_callback, expected) in [
            (&[][..], false, true),
            (&[("origin", "http://localhost:8262")], false, true),
            (&[PAGE], false, false),
            (&[dest("image")], false, true),
            (&[PAGE], true, true),
            (&from_server, false, false),
            (&from_server, true, true),
            (&[dest("document")], true, true),
            (&[dest("image")], true, false),
            (&[dest("iframe")], true, false),
            (&[("purpose", "prefetch")], true, false),
        ] {
            let parts = parts("GET", "/-/callback", &[&[OURS], fields].concat());
            let came = code(open().admit_local(&caller(), &parts, is_callback));
            assert_eq!(came, (!expected).then_some(Code::ForbiddenOrigin), "{fields:?} {is_callback}");
        }
    }

    #[test]
    fn a_key_with_any_limit_reads_the_status_and_no_other_page_of_ours() {
        let may = |key: &CallerKey, method: &str, target: &str| {
            let guard = guard(&[User::Myself], std::slice::from_ref(key));
            let parts = parts(method, target, &[OURS, KEY]);
            let admitted = guard.admit_local(&caller(), &parts, false);
            admitted.is_ok_and(|admitted| admitted.key.is_some() && admitted.may_use_local(&parts).is_ok())
        };
        for key in limited_keys() {
            assert!(may(&key, "GET", "/-/status") && may(&key, "HEAD", "/-/status"), "{key:?}");
            for (method, target) in
                [("POST", "/-/status"), ("GET", "/-/"), ("GET", "/-/status/x"), ("POST", "/-/logout/main")]
            {
                assert!(!may(&key, method, target), "{key:?} {method} {target}");
            }
        }
        assert!(may(&key(), "GET", "/-/metrics") && may(&key(), "POST", "/-/logout/main"));
    }

    #[test]
    fn a_key_is_found_in_each_of_its_forms() {
        let keyed = guard(&[User::Myself], &[key()]);
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for (name, value, expected) in [
            ("authorization", "Bearer the-key", true),
            ("authorization", "bEARER  the-key ", true),
            ("proxy-authorization", "Bearer the-key", true),
            ("authorization", &basic("anyone:the-key"), true),
            ("authorization", &basic(":the-key"), true),
            ("proxy-authorization", &basic("a:the-key"), true),
            ("authorization", &basic("a:b:the-key"), false),
            ("authorization", &basic("the-key"), false),
            ("authorization", &basic("the-key:"), false),
            ("authorization", "Basic the-key", false),
            ("authorization", "Bearer another", false),
            ("authorization", "Token the-key", false),
            ("authorization", "the-key", false),
            ("x-key", "Bearer the-key", false),
        ] {
            let parts = parts("GET", "/", &[OURS, (name, value)]);
            let found = keyed.key(&caller(), &parts.headers).map(|key| key.map(|key| key.name.as_str()));
            assert_eq!(found.ok().flatten(), expected.then_some("k"), "{name}: {value}");
            assert!(open().key(&caller(), &parts.headers).unwrap().is_none(), "no keys, none needed");
        }
    }

    #[test]
    fn a_key_reaches_as_far_as_each_of_its_limits() {
        let may = |key: &CallerKey, method: &str, target: &str, route: &str, fields: &[_]| {
            let admitted = Admitted { origin: None, key: Some(key) };
            let refusal = code(admitted.may_use(&parts(method, target, fields), route));
            assert!(matches!(refusal, None | Some(Code::ForbiddenByKey)), "{refusal:?}");
            refusal.is_none()
        };
        let [of_methods, of_paths, of_routes] = limited_keys();

        assert!(may(&of_methods, "GET", "/a//b/%2f;x", "x", &[]));
        let of_folder = CallerKey { paths: Some(vec!["/api/blogposts/".to_owned()]), ..key() };
        assert!(may(&of_folder, "GET", "/api/blogposts/1", "x", &[]));
        assert!(may(&of_folder, "GET", "/api/blogposts/", "x", &[]));
        assert!(!may(&of_folder, "GET", "/api/blogposts", "x", &[]));
        assert!(!may(&of_routes, "GET", "/write/../users", "writing", &[]));
        assert!(!may(&of_routes, "GET", "/write//users", "writing", &[]));
        for climbing in
            ["/a/../b", "/a/%2e%2E/b", "/a/..%2fb", "/a/%252e%252e/b", "/a\\..\\b", "/a/..;x/b", "/a/.."]
        {
            assert!(!may(&of_methods, "GET", climbing, "x", &[]), "{climbing}");
        }
        assert!(!may(&of_methods, "POST", "/a", "x", &[]));
        for name in ["x-http-method-override", "x-http-method", "x-method-override"] {
            assert!(!may(&of_methods, "GET", "/a", "x", &[(name, "GET")]), "{name}");
            assert!(may(&of_paths, "GET", "/a", "x", &[(name, "GET")]), "{name}");
        }
        assert!(may(&of_paths, "POST", "/a/x", "x", &[]) && may(&of_paths, "GET", "/b", "x", &[]));
        assert!(!may(&of_paths, "GET", "/c", "x", &[]) && !may(&of_paths, "GET", "/a/../a", "x", &[]));
        assert!(may(&of_routes, "POST", "/c", "api", &[]) && may(&of_routes, "GET", "/c", "writing", &[]));
        assert!(!may(&of_routes, "GET", "/c", "x", &[]));
        assert!(may(&key(), "POST", "/a/../b", "x", &[("x-http-method", "PUT")]));
        let anyone = Admitted { origin: None, key: None };
        assert!(anyone.may_use(&parts("POST", "/", &[]), "x").is_ok());
    }

    #[test]
    fn an_authority_is_a_name_and_perhaps_a_port() {
        for good in ["localhost", "localhost:80", "127.0.0.1:1", "[::1]:8262", "[::1]", "x", "LOCALHOST.:1"] {
            assert!(is_authority(good), "{good}");
        }
        for bad in ["", ":80", "a b", "a,b", "u@h", "[::1", "::1", "a:b", "a/b", "[x]:1", "a:123456", "a\\b"]
        {
            assert!(!is_authority(bad), "{bad}");
        }
    }

    #[test]
    fn a_path_that_can_be_read_two_ways_is_not_judged() {
        for good in ["/", "/api/blogposts", "/api/@sitehome", "/a/b/", "/a%20b"] {
            assert!(is_unambiguous(good), "{good}");
        }
        for bad in [
            "/a/../b",
            "/a/./b",
            "//a",
            "/a//b",
            "/%2e%2e/b",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/..",
            "/%252e",
            "/..%3b/x",
            "/%2%65%2%65/x",
            "/%u002e",
            "/a;b",
            "/%00",
        ] {
            assert!(!is_unambiguous(bad), "{bad}");
        }
    }

    #[test]
    fn prefixes_end_where_segments_end() {
        assert!(is_below("/write", "/write") && is_below("/write/x", "/write") && is_below("/x", "/"));
        assert!(!is_below("/writer", "/write") && !is_below("/Write", "/write"));
    }

    #[test]
    fn the_origin_of_a_referer_is_what_comes_before_its_path() {
        assert_eq!(origin_of(b"http://localhost:1/a/b?c"), b"http://localhost:1");
        assert_eq!(origin_of(b"http://localhost:1"), b"http://localhost:1");
        assert_eq!(origin_of(b"http://a/b//c"), b"http://a");
        assert_eq!(origin_of(b"http://"), b"http://");
        assert_eq!(origin_of(b"garbage"), b"garbage");
    }
}
