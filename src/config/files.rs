//! The files that a configuration names: secrets and certificates.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::reader::Reader;
use super::{ConfigError, ExtraCa, Secret};

/// A secret longer than this is some other file.
const LARGEST_SECRET: usize = 64 * 1024;

/// The certificates of `ca_file`, if one is named.
pub(super) fn ca_file(table: &Reader<'_>) -> Result<Option<ExtraCa>, ConfigError> {
    table
        .parsed("ca_file", |path| {
            if path.is_empty() {
                return Ok(None);
            }
            let file = PathBuf::from(path);
            let pem = std::fs::read(&file).map_err(|error| format!("can't be read: {error}"))?;
            let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            let certificates = certificates.map_err(|error| format!("not a PEM file: {error}"))?;
            if certificates.is_empty() {
                return Err("holds no certificate in PEM".to_owned());
            }
            Ok(Some(ExtraCa { file, certificates }))
        })
        .map(Option::flatten)
}

/// A secret from a file, without the white space at its end. Messages do not repeat the path: it may be the
/// secret itself, in the wrong place.
pub(super) fn secret_file(path: &Path) -> Result<Secret, String> {
    let problem = |error: std::io::Error| format!("the file can't be read: {error}");
    // Not by its length: a device has none, and no end.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LARGEST_SECRET + 1));
    let file = File::open(path).map_err(problem)?;
    file.take(LARGEST_SECRET as u64 + 1).read_to_end(&mut bytes).map_err(problem)?;
    if bytes.len() > LARGEST_SECRET {
        return Err("the file is too large for a secret".to_owned());
    }
    let text = std::str::from_utf8(&bytes).map_err(|_invalid| "the file is not text".to_owned())?;
    secret(text.trim(), format!("file {}", path.display()))
}

/// A secret that is one line of text.
pub(super) fn secret(text: &str, from: String) -> Result<Secret, String> {
    if text.is_empty() {
        return Err("the secret is empty".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("the secret has more than one line, or control characters".to_owned());
    }
    Ok(Secret { value: text.into(), from })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_not_read_to_it() {
        let problem = secret_file(Path::new("/dev/zero")).unwrap_err();

        assert_eq!(problem, "the file is too large for a secret");
    }
}
