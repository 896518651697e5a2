//! TLS to servers. Which certificates are trusted: the system's and, where one is configured, an extra CA. One crypto
//! provider for the whole program, and no key log whatever the environment says.

mod stream;
mod trust;

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::{CipherSuite, ClientConfig, RootCertStore};

pub use stream::TlsStream;
pub use trust::why_untrusted;

/// Offered before the others, as browsers do: AES with 128 bits is strong enough for anybody (RFC 8446, section 9.1
/// asks for it) and costs a third less than with 256.
const FIRST: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
];

static SYSTEM_ROOTS: ArcSwapOption<RootCertStore> = ArcSwapOption::const_empty();

/// Why no TLS client can be built.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate of the extra CA file can't serve as a root.
    #[error("a certificate of the extra CA can't be trusted as a root")]
    Root(#[source] rustls::Error),
    /// There were some.
    #[error("the system's CA certificates can't be read any more")]
    NoSystemRoots,
    /// The crypto provider has no usable protocol version.
    #[error("the TLS client can't be built")]
    Client(#[source] rustls::Error),
}

/// A client that verifies servers against the system's roots and `extra`, and offers the protocols in `alpn`.
///
/// # Errors
/// When a certificate in `extra` is not one.
pub fn client(extra: &[CertificateDer<'static>], alpn: &[&str]) -> Result<ClientConfig, TlsError> {
    let mut roots = system_roots();
    for certificate in extra {
        Arc::make_mut(&mut roots).add(certificate.clone()).map_err(TlsError::Root)?;
    }
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Client)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(client)
}

/// An HTTP client over [`client`]: it follows no redirect, knows no proxy of the environment, sends nothing twice, and
/// makes a new connection for every request.
///
/// # Errors
/// When a certificate in `extra` is not one.
pub fn http_client(extra: &[CertificateDer<'static>]) -> Result<reqwest::ClientBuilder, TlsError> {
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(client(extra, &[])?)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .pool_max_idle_per_host(0)
        .user_agent(concat!("cnblogs-proxy/", env!("CARGO_PKG_VERSION"))))
}

/// Reads the system's certificates again, for the clients that are made from now on.
///
/// # Errors
/// When there is none any more.
pub fn reread_system_roots() -> Result<(), TlsError> {
    let fresh = read_system_roots();
    if fresh.is_empty() && !system_roots().is_empty() {
        return Err(TlsError::NoSystemRoots);
    }
    SYSTEM_ROOTS.store(Some(Arc::new(fresh)));
    Ok(())
}

/// False on a machine without CA certificates, where only servers with a `ca_file` are trusted.
pub fn has_system_roots() -> bool {
    !system_roots().is_empty()
}

/// Read once, and when asked to: a system has some 140 of them.
fn system_roots() -> Arc<RootCertStore> {
    SYSTEM_ROOTS.load_full().unwrap_or_else(|| {
        let roots = Arc::new(read_system_roots());
        SYSTEM_ROOTS.store(Some(Arc::clone(&roots)));
        roots
    })
}

fn read_system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (trusted, refused) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(trusted, refused, unreadable = found.errors.len(), "read the system's CA certificates");
    roots
}

/// The crypto provider of the whole program.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let made = || {
        let mut provider = rustls::crypto::ring::default_provider();
        provider.cipher_suites.sort_by_key(|suite| !FIRST.contains(&suite.suite()));
        Arc::new(provider)
    };
    PROVIDER.get_or_init(made).clone()
}
