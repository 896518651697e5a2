//! What crosses the proxy: fields each way, redirects, request targets, and the paths that a limited key reaches.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use url::Url;

use super::guard::Admitted;
use super::headers::{self, AllowedOrigin};
use super::rebase;
use crate::config::{CallerKey, Secret, Upstream};
use crate::testing::fuzz::Input;
use crate::token::{Lifetime, Moment, Token};

const TOKEN: &str = "the-token-of-the-person";
/// The proxy, as its callers call it.
const OURS: &str = "http://proxy.example:8262";
/// Names that mean something on the way, and some that mean nothing.
const NAMES: [&str; 40] = [
    "authorization",
    "authorization-type",
    "proxy-authorization",
    "proxy-authenticate",
    "proxy-connection",
    "cookie",
    "origin",
    "referer",
    "forwarded",
    "via",
    "host",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "x-forwarded-for",
    "x-forwarded-anything",
    "x-forwardedfor",
    "set-cookie",
    "strict-transport-security",
    "alt-svc",
    "clear-site-data",
    "refresh",
    "service-worker-allowed",
    "public-key-pins",
    "access-control-allow-origin",
    "access-control-anything",
    "vary",
    "content-security-policy",
    "x-content-type-options",
    "etag",
    "x-kept",
    "accept",
    "content-type",
    "expect",
    "location",
    "www-authenticate",
];
/// Of one connection (RFC 9110, section 7.6.1).
const OF_A_CONNECTION: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
];
const OF_THE_CALLER: [&str; 7] =
    ["authorization", "authorization-type", "cookie", "origin", "referer", "forwarded", "via"];
const OF_THE_API: [&str; 7] = [
    "set-cookie",
    "strict-transport-security",
    "alt-svc",
    "clear-site-data",
    "refresh",
    "service-worker-allowed",
    "public-key-pins",
];

/// One Authorization and one Host go up, both ours, nothing of the connection or the caller's own, and everything
/// else as it came; and a second time changes nothing.
pub fn upstream_fields(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (is_chunked, is_personal) = (input.flag(), input.flag());
    let came = fields(&mut input);
    let named = named_by_connection(&came);
    let host = HeaderValue::from_static("api.example");
    let token = token(is_personal);

    let left = going_up(&came, is_chunked, &host, &token);

    let mut expected: Vec<(String, Vec<u8>)> = listed(&came)
        .into_iter()
        .filter(|(name, _)| {
            let is_ours = [&OF_A_CONNECTION[..], &OF_THE_CALLER].concat().contains(&name.as_str());
            let is_named = named.contains(name) && name != "content-length";
            let is_framing = match name.as_str() {
                "trailer" => !is_chunked,
                "content-length" => is_chunked,
                _ => false,
            };
            !is_ours && !is_named && !is_framing && name != "host" && !name.starts_with("x-forwarded-")
        })
        .collect();
    expected.push(("authorization".to_owned(), format!("Bearer {TOKEN}").into_bytes()));
    expected.push(("host".to_owned(), b"api.example".to_vec()));
    if is_personal {
        expected.push(("authorization-type".to_owned(), b"pat".to_vec()));
    }
    if is_chunked {
        expected.push(("transfer-encoding".to_owned(), b"chunked".to_vec()));
    }
    assert_eq!(sorted(listed(&left)), sorted(expected));
    assert!(left["authorization"].is_sensitive());

    let twice = going_up(&left, is_chunked, &host, &token);
    assert_eq!(sorted(listed(&twice)), sorted(listed(&left)));
}

/// What goes up, the token last.
fn going_up(came: &HeaderMap, is_chunked: bool, host: &HeaderValue, token: &Token) -> HeaderMap {
    let (mut fields, mut last) = (HeaderMap::new(), None);
    headers::for_upstream(came, is_chunked, host, token, |name, value| {
        fields.append(name, value.clone());
        last = Some(name.clone());
    });
    assert_eq!(last.expect("a field").as_str(), "authorization");
    fields
}

/// No token, nothing of the connection or of the API's own origin comes down, nothing that a browser would run, and
/// everything else as it was sent; a redirect still leads where the API meant, through the proxy or past it.
pub fn caller_fields(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let upstream =
        input.one_of(&["https://api.example", "https://api.example/base", "http://127.0.0.1:80/b/c"]);
    let prefix = input.one_of(&["/", "/w", "/w/x"]);
    let upstream = Upstream::of(&Url::parse(upstream).expect("a URL")).expect("with a host");
    let page = input.flag().then(|| AllowedOrigin(HeaderValue::from_static("http://page.example")));
    let mut came = fields(&mut input);
    let location = location(&mut input, &upstream);
    came.remove("location");
    if let Ok(value) = HeaderValue::from_bytes(location.as_bytes()) {
        came.insert("location", value);
    }
    let named = named_by_connection(&came);

    let mut left = came.clone();
    headers::for_caller(&mut left, prefix, &upstream, &token(false), page.as_ref());

    let added = ["x-content-type-options", "content-security-policy", "location", "vary"];
    let has_token = |name: &str| came.get_all(name).iter().any(|value| contains(value.as_bytes(), TOKEN));
    let is_ours = |name: &str| {
        OF_A_CONNECTION.contains(&name) || OF_THE_API.contains(&name) || name.starts_with("access-control-")
    };
    let is_named = |name: &str| named.iter().any(|known| known == name) && name != "content-length";
    let is_length = |name: &str| name == "content-length" && came.contains_key("transfer-encoding");
    let passes = |name: &str| !is_ours(name) && !is_named(name) && !has_token(name) && !is_length(name);
    let of_others = |(name, _): &(String, Vec<u8>)| {
        !added.contains(&name.as_str()) && !name.starts_with("access-control-")
    };
    let expected = listed(&came).into_iter().filter(|(name, _)| passes(name)).filter(of_others).collect();
    assert_eq!(sorted(listed(&left).into_iter().filter(of_others).collect()), sorted(expected));

    assert!(!left.values().any(|value| contains(value.as_bytes(), TOKEN)));
    let only = |name: &str| {
        let mut values = left.get_all(name).iter();
        let first = values.next().map(HeaderValue::as_bytes);
        assert!(values.next().is_none(), "{name} is there twice");
        first
    };
    assert_eq!(only("x-content-type-options"), Some(&b"nosniff"[..]));
    assert!(only("content-security-policy").is_some_and(|policy| contains(policy, "sandbox")));
    assert_eq!(only("access-control-allow-origin"), page.as_ref().map(|page| page.0.as_bytes()));
    assert!(!left.contains_key("access-control-allow-credentials"));
    if let Some(now) = left.get("location").and_then(|value| value.to_str().ok()) {
        leads_to_the_same(&location, now, prefix, &upstream);
    }
}

/// The caller's path and query go up byte for byte behind the upstream's own path, and nothing in them becomes a
/// scheme or an authority.
pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let base = input.one_of(&["", "/api", "/a/b"]);
    let depth = input.below(3);
    let raw = [b"/", input.rest()].concat();
    let Ok(uri) = Uri::from_maybe_shared(bytes::Bytes::from(raw.clone())) else { return };
    let path_end = raw.iter().position(|byte| b"?#".contains(byte)).unwrap_or(raw.len());
    let whole_end = raw.iter().position(|byte| *byte == b'#').unwrap_or(raw.len());
    // What the route's prefix takes: so many whole segments of the path, however they are written.
    let ends = (1..=path_end).filter(|end| *end == path_end || raw[*end] == b'/');
    let prefix = ends.take(depth).last().map_or("/", |end| uri.path().get(..end).unwrap_or("/"));
    if prefix != "/" && prefix.ends_with('/') {
        return;
    }

    let mut rebased = uri.clone();
    rebase(&mut rebased, prefix, base).expect("short enough");

    let rest = if prefix == "/" { &raw[..whole_end] } else { &raw[prefix.len()..whole_end] };
    let slash: &[u8] = if base.is_empty() && !rest.starts_with(b"/") { b"/" } else { b"" };
    let expected = [base.as_bytes(), slash, rest].concat();
    let got = rebased.path_and_query().map(|target| target.as_str().as_bytes().to_vec());
    assert_eq!(got.as_deref(), Some(&expected[..]));
    assert_eq!((rebased.scheme(), rebased.authority()), (None, None));
}

/// However an API decodes, cuts and joins a path: one that a key is limited to reach stays below its prefix.
pub fn admission(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let prefix = input.one_of(&["/api/blogposts", "/a", "/write/x"]);
    let start = input.one_of(&[prefix, prefix, "/", "/other/.."]);
    let middle: String = (0..input.below(10)).map(|_| input.one_of(&STEPS)).collect();
    let end = if input.flag() { input.rest() } else { b"" };
    let raw = [start.as_bytes(), middle.as_bytes(), end].concat();
    let Ok(uri) = Uri::from_maybe_shared(bytes::Bytes::from(raw)) else { return };
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.uri = uri;
    let key = CallerKey {
        name: "limited".to_owned(),
        secret: Secret { value: "key".into(), from: String::new() },
        methods: None,
        paths: Some(vec![prefix.to_owned()]),
        routes: None,
    };
    let admitted = Admitted { origin: None, key: Some(&key) };
    if admitted.may_use(&parts, "/").is_err() {
        return;
    }

    let mut readings = vec![parts.uri.path().as_bytes().to_vec()];
    for _ in 0..3 {
        let read_on = readings.iter().flat_map(|path| READINGS.iter().map(move |read| read(path)));
        let more: Vec<_> = read_on.filter(|path| !readings.contains(path)).collect();
        readings.extend(more);
    }
    for path in readings {
        let path = path.to_ascii_lowercase();
        let rest = path.strip_prefix(prefix.as_bytes());
        let is_below = rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
        assert!(is_below, "{} may be read as {}", parts.uri.path(), path.escape_ascii());
    }
}

/// Of paths.
const STEPS: [&str; 24] = [
    "/",
    "/..",
    "/../",
    "/./",
    "//",
    "/..%5c",
    "/%2e%2E/",
    "/..%2f",
    "/..\\",
    "/..;/",
    "/..;x=",
    "..",
    ".",
    "%2f",
    "%25",
    "2e",
    "%",
    ";",
    "%00",
    "%20",
    "\\",
    "a",
    "api",
    "/%252e%252e/",
];

type Reading = fn(&[u8]) -> Vec<u8>;

/// What servers and the proxies in front of them do to a path.
const READINGS: [Reading; 5] =
    [percent_decoded, with_slashes, with_single_slashes, without_dot_segments, without_parameters];

fn percent_decoded(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = path;
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match digits.filter(|_| *first == b'%').and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                rest = &behind[2..];
            }
            None => {
                decoded.push(*first);
                rest = behind;
            }
        }
    }
    decoded
}

fn with_slashes(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect()
}

fn with_single_slashes(path: &[u8]) -> Vec<u8> {
    let mut path = path.to_vec();
    path.dedup_by(|one, other| *one == b'/' && *other == b'/');
    path
}

/// RFC 3986, section 5.2.4.
fn without_dot_segments(path: &[u8]) -> Vec<u8> {
    let mut left: Vec<&[u8]> = Vec::new();
    let segments: Vec<_> = path.split(|byte| *byte == b'/').skip(1).collect();
    for (at, segment) in segments.iter().enumerate() {
        let is_last = at + 1 == segments.len();
        match *segment {
            b"." if is_last => left.push(b""),
            b"." => {}
            b".." => {
                left.pop();
                if is_last {
                    left.push(b"");
                }
            }
            segment => left.push(segment),
        }
    }
    left.iter().flat_map(|segment| [b"/", *segment].concat()).collect()
}

/// Everything from a semicolon to the next slash, and from a NUL to the end.
fn without_parameters(path: &[u8]) -> Vec<u8> {
    let whole = path.split(|byte| *byte == 0).next().unwrap_or_default();
    let cut = |segment: &[u8]| segment.split(|byte| *byte == b';').next().unwrap_or_default().to_vec();
    whole.split(|byte| *byte == b'/').map(cut).collect::<Vec<_>>().join(&b'/')
}

fn token(is_personal: bool) -> Token {
    Token::new(1, &TOKEN.into(), is_personal, Lifetime::endless(Moment::new(0, 0))).expect("a token")
}

fn fields(input: &mut Input<'_>) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for _ in 0..input.below(24) {
        let own = input.flag().then(|| HeaderName::from_bytes(input.bytes()).ok()).flatten();
        let name = own.unwrap_or_else(|| HeaderName::from_static(input.one_of(&NAMES)));
        let value = match input.below(5) {
            0 => input.one_of(&NAMES).as_bytes().to_vec(),
            1 => [input.one_of(&NAMES), input.one_of(&NAMES)].join(", ").to_uppercase().into_bytes(),
            2 => [input.bytes(), TOKEN.as_bytes(), input.bytes()].concat(),
            _ => input.bytes().to_vec(),
        };
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            fields.append(name, value);
        }
    }
    fields
}

/// What the Connection fields name, in lower case (RFC 9110, section 7.6.1).
fn named_by_connection(fields: &HeaderMap) -> Vec<String> {
    let values = fields.iter().filter(|(name, _)| name.as_str() == "connection");
    values
        .flat_map(|(_, value)| value.as_bytes().split(|byte| *byte == b','))
        .map(|option| String::from_utf8_lossy(option).trim_matches([' ', '\t']).to_ascii_lowercase())
        .collect()
}

pub(super) fn listed(fields: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    fields.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect()
}

/// By name; the values of one name stay in their order.
fn sorted(mut fields: Vec<(String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    fields
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn location(input: &mut Input<'_>, upstream: &Upstream) -> String {
    let start = match input.below(9) {
        0 => upstream.origin(),
        1 => upstream.origin().to_uppercase(),
        2 => format!("{}:{}", upstream.origin().trim_end_matches(":80"), upstream.port),
        3 => format!("{}{}", upstream.origin(), upstream.base_path),
        4 => upstream.base_path.clone(),
        5 => input
            .one_of(&["https://evil.example", "//evil.example", "http://api.example", "ftp://api.example"])
            .into(),
        6 => format!(
            "{}{}",
            upstream.origin(),
            input.one_of(&["@evil.example", ".evil", ":8080", "\\", "evil"])
        ),
        7 => {
            let slashes = input.one_of(&["//", "/\\", "/\t/", "\\/", "/"]);
            return format!("{}{slashes}evil.example", upstream.origin());
        }
        _ => String::new(),
    };
    let path: String = (0..input.below(6))
        .map(|_| {
            input.one_of(&[
                "/",
                "a",
                "//",
                "\\",
                "?",
                "#",
                "\t",
                "evil.example",
                "base",
                "..",
                "%2e",
                "@",
                ":",
            ])
        })
        .collect();
    format!("{start}{path}{}", String::from_utf8_lossy(input.bytes()))
}

/// A browser that follows the redirect ends where it would have ended without us, or at our place for it.
fn leads_to_the_same(before: &str, after: &str, prefix: &str, upstream: &Upstream) {
    let base = Url::parse(&format!("{}{}/here", upstream.origin(), upstream.base_path)).expect("a URL");
    let ours = Url::parse(OURS).expect("a URL");
    let here = ours.join(&format!("{}/here", prefix.trim_end_matches('/'))).expect("a URL");
    let (Ok(meant), Ok(got)) = (base.join(before), here.join(after)) else { return };
    if got.origin() != ours.origin() {
        let is_same = meant.as_str().split_once(':').map(|(_, rest)| rest)
            == got.as_str().split_once(':').map(|(_, rest)| rest);
        assert!(is_same, "{before:?} means {meant} and became {after:?}, {got}");
        return;
    }

    // What is relative to the request, or climbs, is the browser's to resolve.
    let lower = before.to_ascii_lowercase();
    let is_relative = !before.starts_with('/') && Url::parse(before).is_err();
    let climbs = ["/.", "%2e"].iter().any(|step| lower.contains(step));
    if is_relative || climbs || before.contains(['\t', '\\']) {
        return;
    }
    let below = got.path().strip_prefix(prefix.trim_end_matches('/')).expect("below the route's prefix");
    let path = format!("{}{below}", upstream.base_path);
    assert_eq!(
        meant.origin().ascii_serialization(),
        Url::parse(&upstream.origin()).expect("a URL").origin().ascii_serialization()
    );
    assert_eq!(
        (meant.path().trim_end_matches('/'), meant.query(), meant.fragment()),
        (path.trim_end_matches('/'), got.query(), got.fragment()),
        "{before:?} became {after:?}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fuzz::holds;

    #[test]
    fn upstream_fields_are_ours_and_what_may_pass() {
        holds("upstream_fields", 2000, upstream_fields);
    }

    #[test]
    fn caller_fields_hold_no_token_and_redirect_to_the_same() {
        holds("caller_fields", 2000, caller_fields);
    }

    #[test]
    fn target_goes_up_byte_for_byte() {
        holds("target", 4000, target);
    }

    #[test]
    fn admission_is_the_same_however_a_path_is_read() {
        holds("admission", 10_000, admission);
    }
}
