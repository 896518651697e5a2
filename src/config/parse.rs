//! The notations of values in the configuration: addresses, URLs, durations, sizes. Errors never repeat the
//! value, which may be a secret in the wrong place.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;
use url::{Host, Url};

use super::{Listen, RedirectUri, Upstream};

/// Longer than any login and any time-out, and far from overflow.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// What is wrong with a path that begins with `~`.
pub(super) const HOME_UNEXPANDED: &str = "`~` is not expanded here: write the whole path";

/// An address to accept callers on.
pub(crate) fn listen(text: &str) -> Result<Listen, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        return if path.is_absolute() {
            Ok(Listen::Unix(path))
        } else {
            Err("a unix socket needs an absolute path: \"unix:/run/cnblogs-proxy/proxy.sock\"".to_owned())
        };
    }
    let text =
        text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
    text.parse::<SocketAddr>().map(Listen::Tcp).map_err(|_invalid| {
        "not an address: write \"127.0.0.1:8262\", \"[::1]:8262\" or \"unix:/path/to/socket\"".to_owned()
    })
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let duration = humantime::parse_duration(text)
        .map_err(|_invalid| "not a duration: write \"10s\", \"500ms\", \"2m\" or \"30d\"".to_owned())?;
    if duration > LONGEST { Err("longer than ten years".to_owned()) } else { Ok(duration) }
}

/// The end of a day, in milliseconds since the Unix epoch, by universal time.
pub(super) fn end_of_day(text: &str) -> Result<i64, String> {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let is_date = text.len() == "2027-01-31".len();
    let midnight = humantime::parse_rfc3339(&format!("{text}T00:00:00Z")).ok().filter(|_| is_date);
    let since_1970 = midnight.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    since_1970
        .and_then(|since_1970| i64::try_from((since_1970 + DAY).as_millis()).ok())
        .ok_or_else(|| "not a date: write \"2027-01-31\"".to_owned())
}

pub(super) fn size(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit: usize = match text[digits.len()..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        _ => return Err("not a size: write \"64KiB\" or \"1MiB\"".to_owned()),
    };
    let number: usize =
        digits.parse().map_err(|_invalid| "not a size: write \"64KiB\" or \"1MiB\"".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "too large".to_owned())
}

/// A directory, whose name no shell has seen.
pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('~') { Err(HOME_UNEXPANDED.to_owned()) } else { Ok(PathBuf::from(text)) }
}

/// A URL that a secret may be sent to: https, or http to this machine.
pub(crate) fn endpoint(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("not a URL: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain a user name or password".to_owned());
    }
    if url.fragment().is_some() {
        return Err("must not contain a fragment".to_owned());
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        "http" => Err("must be https: a secret would cross the network in clear".to_owned()),
        _ => Err("must be an https:// URL".to_owned()),
    }
}

/// A server that requests are forwarded to.
pub(crate) fn upstream(text: &str) -> Result<Upstream, String> {
    let url = endpoint(text)?;
    if url.query().is_some() {
        return Err("must not contain a query".to_owned());
    }
    Upstream::of(&url)
        .filter(|upstream| ServerName::try_from(upstream.host.as_str()).is_ok())
        .ok_or_else(|| "must name a host that a certificate can be for".to_owned())
}

/// An HTTP proxy that is spoken to without TLS; none when it is empty.
pub(super) fn proxy(text: &str) -> Result<Option<Upstream>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let url = Url::parse(text).map_err(|error| format!("not a URL: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain a user name or password".to_owned());
    }
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    match Upstream::of(&url) {
        Some(proxy) if url.scheme() == "http" && is_bare => Ok(Some(proxy)),
        _ => Err("must be http://, a host and a port, and nothing else".to_owned()),
    }
}

/// An issuer that can be asked for its discovery document (OpenID Connect Discovery 1.0, section 2).
pub(super) fn issuer(text: &str) -> Result<(), String> {
    match endpoint(text)?.query() {
        // The parser drops them, and an issuer is compared as it is written.
        _ if text.chars().any(char::is_whitespace) => Err("must not contain spaces".to_owned()),
        Some(_) => Err("must not contain a query".to_owned()),
        None => Ok(()),
    }
}

/// Where the authorization server sends the browser: any address, as it was registered.
pub(super) fn redirect_uri(text: &str) -> Result<RedirectUri, String> {
    let url = Url::parse(text).map_err(|error| format!("not a URL: {error}"))?;
    // The parser drops them, and the authorization server would not.
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("must not contain spaces or characters that can't be seen".to_owned());
    }
    if url.fragment().is_some() {
        return Err("must not contain a fragment (RFC 6749, section 3.1.2)".to_owned());
    }
    if url.cannot_be_a_base() {
        return Err("must be an absolute address".to_owned());
    }
    Ok(RedirectUri { text: text.to_owned(), url })
}

/// The prefix of a route: starts with a slash, without one at its end (except "/" itself).
pub(super) fn prefix(text: &str) -> Result<String, String> {
    let trimmed = path(text)?.trim_end_matches('/');
    Ok(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })
}

/// The beginning of a caller's path, byte for byte.
pub(super) fn path(text: &str) -> Result<&str, String> {
    if !text.starts_with('/') {
        return Err("must start with a slash".to_owned());
    }
    if text.bytes().any(|b| !b.is_ascii_graphic() || b"?#\\<>\"".contains(&b)) {
        return Err("must be the bytes of a path as they stand in a request".to_owned());
    }
    if text == "/-" || text.starts_with("/-/") {
        return Err("/-/ is for the proxy's own pages".to_owned());
    }
    Ok(text)
}

/// A tracing filter: a level, or levels by target.
pub(super) fn filter(text: &str) -> Result<String, String> {
    tracing_subscriber::EnvFilter::try_new(text)
        .map(|_valid| text.to_owned())
        .map_err(|_invalid| "not a filter: write error, warn, info, debug or trace".to_owned())
}

/// A web origin as browsers write it (RFC 6454, section 6.2).
pub(super) fn origin(text: &str) -> Result<String, String> {
    let wrong = || "not an origin: write \"http://localhost:3000\", without a path".to_owned();
    let lower = text.to_ascii_lowercase();
    let url = Url::parse(&lower).map_err(|_invalid| wrong())?;
    let is_exact = match url.scheme() {
        "http" | "https" => url.origin().ascii_serialization() == lower,
        // Browser extensions have origins of their own schemes.
        scheme => url.host_str().is_some_and(|host| lower == format!("{scheme}://{host}")),
    };
    if is_exact && !lower.contains('*') { Ok(lower) } else { Err(wrong()) }
}

/// True when a URL's host is this machine, by its loopback interface.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(ip)) => !is_remote(ip.into()),
        Some(Host::Ipv6(ip)) => !is_remote(ip.into()),
        None => false,
    }
}

/// True for an address that is not of this machine's loopback interface.
pub fn is_remote(address: IpAddr) -> bool {
    !address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_local() {
        for (address, expected) in [
            ("127.0.0.1", false),
            ("127.1.2.3", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("0.0.0.0", true),
            ("::", true),
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", true),
        ] {
            assert_eq!(is_remote(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn a_secret_goes_only_over_tls_or_stays_on_this_machine() {
        for good in
            ["https://api.cnblogs.com", "http://127.0.0.1:1/x", "http://[::1]/", "http://localhost:80"]
        {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in
            ["http://api.cnblogs.com", "ftp://localhost", "https://u:p@h/", "http://127.0.0.1.evil/", "x"]
        {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_upstream_is_a_name_that_a_certificate_can_have() {
        for good in [
            "https://api.cnblogs.com",
            "https://a_b.example.:1",
            "https://192.0.2.1",
            "https://[2001:db8::1]",
        ] {
            assert!(upstream(good).is_ok(), "{good}");
        }
        for bad in
            ["https://a+b.example", "https://a..b", "https://-", "https://{x}", "https://a'b", "https://x?y"]
        {
            assert!(upstream(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_proxy_is_a_host_and_a_port() {
        for (good, host, port) in [
            ("http://proxy.example:3128", "proxy.example", 3128),
            ("http://proxy.example/", "proxy.example", 80),
            ("HTTP://[2001:db8::1]:1", "2001:db8::1", 1),
        ] {
            let proxy = proxy(good).unwrap().unwrap();
            assert_eq!((proxy.host.as_str(), proxy.port, proxy.tls), (host, port, false), "{good}");
        }
        assert_eq!(proxy(""), Ok(None));
    }

    #[test]
    fn durations_and_sizes_have_units() {
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 86400)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert!(duration("10").is_err() && duration("soon").is_err() && duration("900y").is_err());
        assert_eq!(end_of_day("1970-01-01"), Ok(86_400_000));
        for bad in ["2027-1-31", "2027-02-30", "2027-01-31T00:00:00Z", "soon", ""] {
            assert!(end_of_day(bad).is_err(), "{bad}");
        }
        assert_eq!(size("64KiB"), Ok(65536));
        assert_eq!(size("10"), Ok(10));
        assert!(size("KiB").is_err() && size("6 parsecs").is_err());
    }

    #[test]
    fn prefixes_are_whole_segments() {
        assert_eq!(prefix("/"), Ok("/".to_owned()));
        assert_eq!(prefix("/write/"), Ok("/write".to_owned()));
        assert!(prefix("write").is_err() && prefix("/-/x").is_err() && prefix("/a b").is_err());
    }
}
