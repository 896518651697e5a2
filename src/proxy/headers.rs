//! Which fields cross the proxy, each way. Pure functions.

use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, AUTHORIZATION, CONNECTION, CONTENT_LENGTH,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, LOCATION, TRANSFER_ENCODING, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::Upstream;
use crate::problem::SANDBOX;
use crate::token::Token;

const AUTHORIZATION_TYPE: HeaderName = HeaderName::from_static("authorization-type");

/// A page that may read the answer.
#[derive(Debug)]
pub struct AllowedOrigin(pub HeaderValue);

/// Gives each field of a request that goes up to `put`: the upstream's own `Host`, what of the caller's fields the
/// upstream may see, and our token, last.
pub(super) fn for_upstream(
    fields: &HeaderMap,
    is_chunked: bool,
    host: &HeaderValue,
    token: &Token,
    mut put: impl FnMut(&HeaderName, &HeaderValue),
) {
    put(&HOST, host);
    let named = named_by_connection(fields);
    for (name, value) in fields {
        let text = name.as_str();
        let is_replaced = match text {
            "host" | "authorization" => true,
            "trailer" => !is_chunked,
            // Where the body ends is said once (RFC 9112, section 6.3).
            "content-length" => is_chunked,
            _ => is_hop_by_hop(text) || is_the_callers(text),
        };
        if !is_replaced && !named.contains(name) {
            put(name, value);
        }
    }
    if is_chunked {
        put(&TRANSFER_ENCODING, &HeaderValue::from_static("chunked"));
    }
    if token.is_personal() {
        put(&AUTHORIZATION_TYPE, &HeaderValue::from_static("pat"));
    }
    put(&AUTHORIZATION, token.authorization());
}

/// Leaves what the caller may see, and makes the answer inert in a browser.
pub(super) fn for_caller(
    fields: &mut HeaderMap,
    prefix: &str,
    upstream: &Upstream,
    token: &Token,
    origin: Option<&AllowedOrigin>,
) {
    let (mut is_chunked, mut is_redirect) = (false, false);
    remove(fields, |name, value| {
        is_chunked |= name == "transfer-encoding";
        is_redirect |= name == "location";
        belongs_to_api_origin(name) || token.occurs_in(value.as_bytes())
    });
    // Where the body ends is said once (RFC 9112, section 6.3).
    if is_chunked {
        fields.remove(CONTENT_LENGTH);
    }
    if is_redirect
        && let Some(location) = fields.get(LOCATION)
        && let Some(ours) = rewritten(location.as_bytes(), prefix, upstream)
    {
        fields.insert(LOCATION, ours);
    }
    fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    fields.insert(CONTENT_SECURITY_POLICY, SANDBOX);
    if let Some(origin) = origin {
        allow(fields, origin);
    }
}

/// Lets a page read the answer: CORS without credentials.
pub(super) fn allow(fields: &mut HeaderMap, origin: &AllowedOrigin) {
    fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.0.clone());
    fields.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
    fields.append(VARY, HeaderValue::from_static("Origin"));
}

/// Leaves of the trailers what may cross as a field; framing and credentials never come late
/// (RFC 9110, section 6.5.1).
pub(super) fn for_trailers(fields: &mut HeaderMap, token: Option<&Token>) {
    remove(fields, |name, value| {
        is_the_callers(name)
            || belongs_to_api_origin(name)
            || ["authorization", "content-length", "host"].contains(&name)
            || token.is_some_and(|token| token.occurs_in(value.as_bytes()))
    });
}

/// Whether a body is a stream of events, which may be silent for any time (HTML, section 9.2).
pub(super) fn is_event_stream(fields: &HeaderMap) -> bool {
    let media_type =
        fields.get(CONTENT_TYPE).and_then(|value| value.as_bytes().split(|byte| *byte == b';').next());
    media_type.is_some_and(|media_type| media_type.trim_ascii().eq_ignore_ascii_case(b"text/event-stream"))
}

/// Removes the fields that go, and what `Connection` names. One walk over all fields: most messages have few, and
/// nothing else to remove.
fn remove(fields: &mut HeaderMap, mut goes: impl FnMut(&str, &HeaderValue) -> bool) {
    let mut gone = named_by_connection(fields);
    for (name, value) in &*fields {
        if goes(name.as_str(), value) || is_hop_by_hop(name.as_str()) {
            gone.push(name.clone());
        }
    }
    for name in gone {
        fields.remove(name);
    }
}

/// The fields that are there and that `Connection` names; but not the length of the message, which only goes when it
/// is wrong.
fn named_by_connection(fields: &HeaderMap) -> Vec<HeaderName> {
    let values = fields.get_all(CONNECTION).into_iter();
    let named = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let named = named.map(<[u8]>::trim_ascii).filter(|name| *name != b"keep-alive");
    let named = named.filter_map(|name| HeaderName::from_bytes(name).ok());
    named.filter(|name| name != CONTENT_LENGTH && fields.contains_key(name)).collect()
}

/// Of one connection, not of the message (RFC 9110, section 7.6.1).
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// The caller's own: a credential, a trace of where it is, or of this machine's other programs. Its `Host` and
/// `Authorization` are replaced.
fn is_the_callers(name: &str) -> bool {
    matches!(name, "authorization-type" | "cookie" | "origin" | "referer" | "forwarded" | "via")
        || name.starts_with("x-forwarded-")
}

/// The API's word about its own origin, which would be taken for ours.
fn belongs_to_api_origin(name: &str) -> bool {
    matches!(
        name,
        "set-cookie"
            | "strict-transport-security"
            | "alt-svc"
            | "clear-site-data"
            | "refresh"
            | "service-worker-allowed"
            | "public-key-pins"
    ) || name.starts_with("access-control-")
}

/// A redirect within the upstream's own origin, as the caller has to follow it; none for any other.
fn rewritten(location: &[u8], prefix: &str, upstream: &Upstream) -> Option<HeaderValue> {
    let location = std::str::from_utf8(location).ok()?;
    let (path, is_absolute) = match path_on(location, upstream) {
        Some(path) => (path, true),
        None if location.starts_with('/') && !names_a_host(location) => (location, false),
        None => return None,
    };
    let below_base = path
        .strip_prefix(upstream.base_path.as_str())
        .filter(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
    let prefix = prefix.trim_end_matches('/');
    let ours = below_base.map(|rest| match rest {
        _ if rest.starts_with('/') || !prefix.is_empty() => format!("{prefix}{rest}"),
        _ => format!("/{rest}"),
    });
    // What this route does not reach, or what would read as another host, is named in full.
    match ours.filter(|ours| !names_a_host(ours)) {
        Some(ours) => HeaderValue::from_str(&ours).ok(),
        None if is_absolute => None,
        None => HeaderValue::from_str(&format!("{}{path}", upstream.origin())).ok(),
    }
}

/// True when a browser takes what follows for a host: it reads `\` as a slash and leaves tabs out (URL Standard,
/// section 4.4).
fn names_a_host(path: &str) -> bool {
    path.bytes().filter(|byte| *byte != b'\t').take(2).filter(|byte| b"/\\".contains(byte)).count() == 2
}

/// What follows the upstream's origin in an absolute address.
fn path_on<'a>(location: &'a str, upstream: &Upstream) -> Option<&'a str> {
    let (scheme, rest) = location.split_once("://")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (own_scheme, default_port) = if upstream.tls { ("https", 443) } else { ("http", 80) };
    let with_port = |text: &str| {
        let has_port =
            text.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        if has_port {
            text.to_ascii_lowercase()
        } else {
            format!("{}:{default_port}", text.to_ascii_lowercase())
        }
    };
    let same =
        scheme.eq_ignore_ascii_case(own_scheme) && with_port(authority) == with_port(&upstream.authority);
    same.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{Lifetime, now};

    fn token(is_personal: bool) -> Token {
        Token::new(1, &"the-token".into(), is_personal, Lifetime::endless(now())).unwrap()
    }

    fn upstream(url: &str) -> Upstream {
        Upstream::of(&url.parse().unwrap()).unwrap()
    }

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(pair).collect()
    }

    fn going_up(fields: &HeaderMap, is_personal: bool) -> Vec<(String, String)> {
        let (host, mut put) = (HeaderValue::from_static("api.example"), Vec::new());
        for_upstream(fields, false, &host, &token(is_personal), |name, value| {
            put.push((name.as_str().to_owned(), value.to_str().unwrap().to_owned()));
        });
        put
    }

    #[test]
    fn exactly_one_authorization_leaves_whatever_the_caller_names() {
        let fields = map(&[
            ("connection", "close, Authorization, \"authorization\";q=1,, x-mine"),
            ("authorization", "Bearer evil"),
            ("authorization", "Basic evil"),
            ("authorization-type", "pat"),
            ("proxy-authorization", "Basic evil"),
            ("cookie", "a=b"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-host", "evil"),
            ("forwarded", "for=evil"),
            ("via", "1.1 x"),
            ("origin", "https://page.example"),
            ("referer", "https://page.example/"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authenticate", "Basic"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "trailers"),
            ("trailer", "x-t"),
            ("x-mine", "1"),
            ("x-keep", "v"),
        ]);

        assert_eq!(
            going_up(&fields, false),
            [("host", "api.example"), ("x-keep", "v"), ("authorization", "Bearer the-token")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }

    #[test]
    fn a_personal_token_says_that_it_is_one() {
        let going_up = going_up(&HeaderMap::new(), true);

        assert!(going_up.contains(&("authorization-type".to_owned(), "pat".to_owned())), "{going_up:?}");
    }

    #[test]
    fn framing_survives_a_connection_field_that_names_it() {
        let fields = map(&[("connection", "content-length, host"), ("content-length", "5"), ("host", "x")]);

        let going_up = going_up(&fields, false);

        for (name, value) in [("content-length", "5"), ("host", "api.example")] {
            assert!(going_up.contains(&(name.to_owned(), value.to_owned())), "{going_up:?}");
        }
    }

    #[test]
    fn the_token_and_the_apis_origin_never_reach_the_caller() {
        let mut fields = map(&[
            ("x-echo", "Bearer the-token!"),
            ("set-cookie", "a=b"),
            ("strict-transport-security", "max-age=1"),
            ("alt-svc", "h2=x"),
            ("clear-site-data", "*"),
            ("refresh", "0"),
            ("service-worker-allowed", "/"),
            ("public-key-pins", "x"),
            ("access-control-allow-origin", "*"),
            ("connection", "x-mine"),
            ("x-mine", "1"),
            ("x-keep", "v"),
            ("location", "https://api.example/a"),
            ("content-security-policy", "default-src *"),
        ]);

        for_caller(&mut fields, "/", &upstream("https://api.example"), &token(false), None);

        let mut names: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-security-policy", "location", "x-content-type-options", "x-keep"]);
        assert_eq!(
            (&fields["location"], &fields["x-content-type-options"]),
            (&"/a".parse().unwrap(), &"nosniff".parse().unwrap())
        );
        assert_eq!(fields["content-security-policy"], SANDBOX);
    }

    #[test]
    fn an_allowed_page_may_read_the_answer_without_credentials() {
        let mut fields = map(&[("vary", "accept"), ("access-control-allow-credentials", "true")]);
        let origin = AllowedOrigin(HeaderValue::from_static("https://page.example"));

        for_caller(&mut fields, "/", &upstream("https://api.example"), &token(false), Some(&origin));

        assert_eq!(fields["access-control-allow-origin"], "https://page.example");
        assert_eq!(fields["access-control-expose-headers"], "*");
        assert!(!fields.contains_key("access-control-allow-credentials"));
        let vary: Vec<_> = fields.get_all(VARY).iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(vary, ["accept", "Origin"]);
    }

    #[test]
    fn trailers_bring_neither_framing_nor_credentials_nor_the_token() {
        let sent = map(&[
            ("authorization", "Bearer evil"),
            ("cookie", "a=b"),
            ("host", "evil"),
            ("set-cookie", "a=b"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("connection", "x-mine"),
            ("x-mine", "1"),
            ("x-forwarded-for", "203.0.113.9"),
            ("access-control-allow-origin", "*"),
            ("x-echo", "the-token"),
            ("x-checksum", "v"),
        ]);

        for (token, expected) in
            [(None, &["x-checksum", "x-echo"][..]), (Some(&token(false)), &["x-checksum"])]
        {
            let mut fields = sent.clone();
            for_trailers(&mut fields, token);
            let mut left: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
            left.sort_unstable();
            assert_eq!(left, expected, "{token:?}");
        }
    }

    #[test]
    fn redirects_on_the_upstreams_origin_come_back_through_the_proxy() {
        let cases = [
            ("/", "https://api.example", "https://api.example/a?b#c", Some("/a?b#c")),
            ("/", "https://api.example", "https://API.example:443/a", Some("/a")),
            ("/", "https://api.example", "/a", Some("/a")),
            ("/", "https://api.example", "https://api.example", Some("/")),
            ("/w", "https://api.example/base", "https://api.example/base/a", Some("/w/a")),
            ("/w", "https://api.example/base", "/base/a", Some("/w/a")),
            ("/w", "https://api.example/base", "/elsewhere", Some("https://api.example/elsewhere")),
            ("/w", "https://api.example/base", "/basement", Some("https://api.example/basement")),
            ("/w", "https://api.example/base", "https://api.example/basement", None),
            ("/", "https://api.example", "https://api.example//evil.example", None),
            ("/", "https://api.example", "https://api.example/\\evil.example", None),
            ("/", "https://api.example", "https://api.example/\t/evil.example", None),
            ("/", "https://api.example", "/\\evil.example", None),
            ("/", "https://api.example", "https://evil.example/a", None),
            ("/", "https://api.example", "//evil.example/a", None),
            ("/", "https://api.example", "http://api.example/a", None),
            ("/", "https://api.example", "https://api.example.evil/a", None),
            ("/", "https://api.example", "https://api.example@evil/a", None),
            ("/", "https://api.example", "relative", None),
        ];
        for (prefix, url, location, expected) in cases {
            let got = rewritten(location.as_bytes(), prefix, &upstream(url));
            assert_eq!(got.as_ref().map(|v| v.to_str().unwrap()), expected, "{location}");
        }
    }
}
