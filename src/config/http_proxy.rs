//! The keys `proxy` and `proxy_auth_file`: the HTTP proxy that servers are reached through.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use super::files::secret_file;
use super::reader::TableReader;
use super::{ConfigError, Secret, Upstream, parse};

const HINT: &str = "write \"http://proxy.example:3128\"; credentials go as \"user:password\" into a file that only you can \
    read, named in proxy_auth_file";

/// An HTTP proxy that opens tunnels to servers that speak TLS (RFC 9110, section 9.3.6).
#[derive(Clone, Debug)]
pub struct HttpProxy {
    /// Where it is. It is spoken to without TLS; what goes through its tunnels is encrypted end to end.
    pub server: Upstream,
    /// `user:password`; none when it wants to be shown nothing.
    pub auth: Option<Secret>,
}

impl HttpProxy {
    /// The value of `Proxy-Authorization`: Basic (RFC 7617), in UTF-8.
    pub fn authorization(&self) -> Option<HeaderValue> {
        self.auth.as_ref().map(|auth| basic(auth.value.expose_secret()))
    }
}

/// The value of a field for Basic authentication (RFC 7617) with a pair `user:password`.
pub(crate) fn basic(pair: &str) -> HeaderValue {
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair)));
    let mut value = HeaderValue::from_str(&text).expect("base64 is a valid field value");
    value.set_sensitive(true);
    value
}

/// The proxy of an account or a route, if it has one.
pub(super) fn read(table: &TableReader<'_>) -> Result<Option<HttpProxy>, ConfigError> {
    let server = table.parsed("proxy", parse::proxy).map_err(|error| error.with_hint(HINT))?.flatten();
    let Some(server) = server else {
        return match table.string("proxy_auth_file")?.filter(|path| !path.is_empty()) {
            Some(_) => Err(table.error_at("proxy_auth_file", "nothing uses it without `proxy`")),
            None => Ok(None),
        };
    };
    let auth = table.parsed("proxy_auth_file", |path| match path {
        "" => Ok(None),
        path => credentials(Path::new(path)).map(Some),
    })?;
    Ok(Some(HttpProxy { server, auth: auth.flatten() }))
}

fn credentials(path: &Path) -> Result<Secret, String> {
    let auth = secret_file(path)?;
    match auth.value.expose_secret().split_once(':') {
        Some((user, _)) if !user.is_empty() => Ok(auth),
        _ => Err("the file does not hold \"user:password\"".to_owned()),
    }
}
