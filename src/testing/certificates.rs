//! A certificate authority for one run, and what it certifies.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

const NAMES: [&str; 7] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "oauth.cnblogs.com",
    "api.cnblogs.com",
    "write.cnblogs.com",
    // No name server knows it.
    "api.invalid",
];

/// What is wrong with a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsDefect {
    /// An authority that nobody trusts signed it.
    UnknownAuthority,
    /// It is for `elsewhere.example`.
    WrongName,
    /// It ended in 2021.
    Expired,
    /// It begins in 2100.
    NotYet,
}

/// A certificate authority whose key nobody keeps.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        CertifiedIssuer::self_signed(params, KeyPair::generate()?).map(Self)
    }

    /// The authority's own certificate.
    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// What a listener at that address needs to speak TLS.
    pub(crate) fn acceptor(&self, address: IpAddr, defect: Option<TlsDefect>) -> io::Result<TlsAcceptor> {
        let names = if defect == Some(TlsDefect::WrongName) { &["elsewhere.example"] } else { &NAMES[..] };
        let mut names: Vec<String> = names.iter().map(ToString::to_string).collect();
        if defect != Some(TlsDefect::WrongName) {
            names.push(address.to_string());
        }
        let mut params = CertificateParams::new(names).map_err(io::Error::other)?;
        if defect == Some(TlsDefect::Expired) {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        if defect == Some(TlsDefect::NotYet) {
            params.not_before = date_time_ymd(2100, 1, 1);
            params.not_after = date_time_ymd(2101, 1, 1);
        }
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let stranger = Self::new("stranger").map_err(io::Error::other)?;
        let issuer = if defect == Some(TlsDefect::UnknownAuthority) { &stranger } else { self };
        let certificate = params.signed_by(&key, &issuer.0).map_err(io::Error::other)?;

        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key);
        let mut config = config.map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
