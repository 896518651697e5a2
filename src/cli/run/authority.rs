//! A certificate authority for one run. Its key is in memory alone, and no longer than it takes to sign. What it signs
//! is believed for the upstreams' names only: its own certificate says so (RFC 5280, section 4.2.1.10).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CidrSubnet, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::{tls, token};

/// A clock that was set back after the start, by so much, changes nothing.
const BEFORE: Duration = Duration::from_secs(3600);
const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// The authority's certificate, and TLS as any of these hosts: at least one, since without any permitted name, all
/// would be. HTTP/1.1 is all that is spoken.
pub(super) fn certify(
    hosts: &BTreeSet<String>,
) -> anyhow::Result<(CertificateDer<'static>, Arc<ServerConfig>)> {
    let authority = authority(hosts)?;
    let mut params = params("upstreams of cnblogs-proxy run", hosts.iter().cloned().collect())?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority)?;

    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((authority.der().clone(), Arc::new(config)))
}

fn authority(hosts: &BTreeSet<String>) -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let mut params = params("cnblogs-proxy run", vec![])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: hosts.iter().cloned().map(GeneralSubtree::DnsName).collect(),
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    });
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn params(name: &str, hosts: Vec<String>) -> Result<CertificateParams, rcgen::Error> {
    let epoch = date_time_ymd(1970, 1, 1);
    let now = Duration::from_millis(u64::try_from(token::now().wall_ms()).unwrap_or(0));
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = epoch + now.saturating_sub(BEFORE);
    params.not_after = epoch + now + LIFETIME;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    /// What rustls says of a certificate for `name` that the authority for `api.cnblogs.com` signed.
    fn is_believed(name: &str) -> bool {
        let authority = authority(&BTreeSet::from(["api.cnblogs.com".to_owned()])).unwrap();
        let params = params(name, vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&KeyPair::generate().unwrap(), &authority).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::provider()).build().unwrap();
        let now =
            UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(token::now().wall_ms()).unwrap()));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(certificate.der(), &[], &name, &[], now).is_ok()
    }

    #[test]
    fn the_authority_is_believed_for_the_upstreams_alone() {
        assert!(is_believed("api.cnblogs.com"));
        for other in
            ["www.cnblogs.com", "cnblogs.com", "evilapi.cnblogs.com", "bank.example", "127.0.0.1", "::1"]
        {
            assert!(!is_believed(other), "{other}");
        }
    }
}
