//! Why a server is not trusted, in words for whoever can mend it.

use std::error::Error;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use rustls::CertificateError;
use rustls::pki_types::UnixTime;

/// What is wrong with the server's certificate, or its TLS; none when the error is about something else.
pub fn why_untrusted(error: &(dyn Error + 'static)) -> Option<String> {
    match rustls_error(error)? {
        rustls::Error::InvalidCertificate(reason) => {
            Some(format!("its certificate {}", what_is_wrong(reason)))
        }
        rustls::Error::NoCertificatesPresented => Some("it presents no certificate".to_owned()),
        rustls::Error::InvalidMessage(_) => Some("what answers there does not speak TLS".to_owned()),
        _ => None,
    }
}

/// Within I/O errors, one in another: they are not each other's sources.
fn rustls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    match error.downcast_ref::<io::Error>() {
        Some(wrapper) => rustls_error(wrapper.get_ref()?),
        None => error.downcast_ref(),
    }
}

fn what_is_wrong(reason: &CertificateError) -> String {
    use CertificateError::{
        BadEncoding, BadSignature, Expired, ExpiredContext, InvalidPurpose, InvalidPurposeContext,
        NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext, Other, Revoked,
        UnknownIssuer, UnsupportedSignatureAlgorithmContext,
        UnsupportedSignatureAlgorithmForPublicKeyContext,
    };
    const OR_THE_CLOCK: &str = "or the clock of this machine is wrong";
    let words = match reason {
        ExpiredContext { not_after, .. } => {
            return format!("has expired ({}), {OR_THE_CLOCK}", date(*not_after));
        }
        NotValidYetContext { not_before, .. } => {
            return format!("is not valid before {}, {OR_THE_CLOCK}", date(*not_before));
        }
        NotValidForNameContext { expected, presented } => {
            return format!("is for another name: for {}, not for {}", names(presented), expected.to_str());
        }
        Expired => "has expired, or the clock of this machine is wrong",
        NotValidYet => "is not valid yet, or the clock of this machine is wrong",
        NotValidForName => "is for another name",
        UnknownIssuer => {
            "comes from an authority that is not trusted here (see ca_file): a ca_file has to hold the certificate of \
             that authority, not the one that the server presents"
        }
        Revoked => "was revoked",
        BadEncoding => "can't be read: it is not well-formed",
        BadSignature => "is not signed by the authority that it names: another key of that name did it",
        UnsupportedSignatureAlgorithmContext { .. }
        | UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "is signed in a way that is too weak, or not known here (SHA-1, a short RSA key): it needs another one"
        }
        InvalidPurpose | InvalidPurposeContext { .. } => {
            "is not meant for servers: its extended key usage lacks serverAuth"
        }
        Other(other) => return of_webpki(&other.to_string()),
        other => return format!("is not valid: {other}"),
    };
    words.to_owned()
}

/// What rustls hands on as it came from webpki, by the name that it has there.
fn of_webpki(name: &str) -> String {
    let words = match name {
        "CaUsedAsEndEntity" => {
            "is an authority's (CA:TRUE), which no server may present as its own: make one for the server with \
             CA:FALSE, self-signed or signed by that authority, and name in ca_file the one that signed it"
        }
        "EndEntityUsedAsCa" => "is signed by one that is no authority's (CA:TRUE is missing there)",
        "UnsupportedCertVersion" => "is of X.509 version 1: make one of version 3, with subjectAltName",
        "NameConstraintViolation" => "has a name that its authority may not sign for (name constraints)",
        other => return format!("is not valid: {other}"),
    };
    words.to_owned()
}

fn date(time: UnixTime) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(time.as_secs())).to_string()
}

/// As webpki writes them, `DnsName("a.example")`, and as no terminal takes amiss: an untrusted server sends them.
fn names(presented: &[String]) -> String {
    const SHOWN: usize = 5;
    let bare = |name: &String| {
        let inner = name.split_once('(').map_or(name.as_str(), |(_kind, inner)| inner.trim_end_matches(')'));
        inner.trim_matches('"').escape_default().to_string()
    };
    let names: Vec<_> = presented.iter().take(SHOWN).map(bare).collect();
    if names.is_empty() { "no name at all (subjectAltName)".to_owned() } else { names.join(", ") }
}
