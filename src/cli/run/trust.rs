//! The files that tell the program what to trust: the certificates that it trusted before, and our authority's. They
//! are in a directory that only its owner enters. It goes away with us; when we are killed, the next run removes it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::getuid;
use rustls::pki_types::CertificateDer;

use super::random;
use crate::config::Environment;

const NAME: &str = "cnblogs-proxy-run-";
/// Variables that name a file of certificates in PEM.
const BUNDLES: [&str; 8] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "DENO_CERT",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
];

/// The files, as long as this lives, and the variables that name them.
pub(super) struct Trust {
    directory: PathBuf,
    variables: Vec<(&'static str, String)>,
    _lock: File,
}

impl Trust {
    /// Writes the files; `proxy` is where our proxy listens.
    pub(super) fn write(
        authority: &CertificateDer<'_>,
        proxy: SocketAddr,
        environment: &Environment,
    ) -> io::Result<Self> {
        // After `su`, the first may be another user's. The program may change its directory.
        let runtime = environment.var("XDG_RUNTIME_DIR").map(Path::new).filter(|path| path.is_absolute());
        let temporary = || make(&std::path::absolute(std::env::temp_dir())?);
        let (directory, lock) = runtime.and_then(|base| make(base).ok()).map_or_else(temporary, Ok)?;
        let mut trust = Self { directory, variables: Vec::new(), _lock: lock };
        trust.fill(authority, proxy, environment)?;
        Ok(trust)
    }

    /// What the program finds the files by.
    pub(super) fn variables(&self) -> &[(&'static str, String)] {
        &self.variables
    }

    fn fill(
        &mut self,
        authority: &CertificateDer<'_>,
        proxy: SocketAddr,
        environment: &Environment,
    ) -> io::Result<()> {
        let mut all = rustls_native_certs::load_native_certs().certs;
        all.push(authority.clone());
        let bundle = self.file("ca.pem", all.iter().map(pem).collect::<String>())?;
        for name in BUNDLES {
            let path = match environment.var(name).and_then(|path| fs::read(path).ok()) {
                // What stands between certificates is in any encoding.
                Some(theirs) => {
                    let both = [&theirs, "\n".as_bytes(), pem(authority).as_bytes()].concat();
                    self.file(&format!("{name}.pem"), both)?
                }
                None => bundle.clone(),
            };
            self.variables.push((name, path));
        }

        let store = self.file("ca.jks", java_key_store(&all))?;
        let options = environment.var("JAVA_TOOL_OPTIONS").unwrap_or_default();
        self.variables.push((
            "JAVA_TOOL_OPTIONS",
            format!(
                "{options} -Dhttps.proxyHost={} -Dhttps.proxyPort={} -Djavax.net.ssl.trustStore={store} \
                 -Djavax.net.ssl.trustStoreType=jks",
                proxy.ip(),
                proxy.port()
            )
            .trim_start()
            .to_owned(),
        ));

        let own = environment.var("HOME").map(|home| format!("{home}/.wgetrc"));
        let theirs = environment.var("WGETRC").map(str::to_owned).or(own);
        let theirs = theirs.and_then(|path| fs::read(path).ok()).unwrap_or_default();
        let ours = format!("\nca_certificate = {bundle}\n");
        let settings = self.file("wgetrc", [&theirs, ours.as_bytes()].concat())?;
        self.variables.push(("WGETRC", settings));

        fs::create_dir(self.directory.join("php"))?;
        self.file("php/ca.ini", format!("openssl.cafile={bundle}\ncurl.cainfo={bundle}\n"))?;
        // An empty entry is the directory that PHP was built with.
        let theirs = environment.var("PHP_INI_SCAN_DIR").unwrap_or_default();
        self.variables.push(("PHP_INI_SCAN_DIR", format!("{theirs}:{}/php", self.directory.display())));
        Ok(())
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> io::Result<String> {
        let path = self.directory.join(name);
        fs::write(&path, content)?;
        Ok(path.display().to_string())
    }
}

impl Drop for Trust {
    fn drop(&mut self) {
        // What can't be removed now, the next run removes.
        let _removed = fs::remove_dir_all(&self.directory);
    }
}

/// A new directory, and the lock that says that its owner lives.
fn make(base: &Path) -> io::Result<(PathBuf, File)> {
    sweep(base);
    loop {
        let directory = base.join(format!("{NAME}{}", random()));
        DirBuilder::new().mode(0o700).create(&directory)?;
        let lock = File::open(&directory)?;
        lock.lock()?;
        // Another run may have found it before it was locked.
        if directory.exists() {
            return Ok((directory, lock));
        }
    }
}

/// Removes the directories of ours whose owner was killed.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_ours = entry.file_name().to_string_lossy().starts_with(NAME)
            && fs::symlink_metadata(&path)
                .is_ok_and(|found| found.is_dir() && found.uid() == getuid().as_raw());
        if is_ours && File::open(&path).is_ok_and(|lock| lock.try_lock().is_ok() && path.exists()) {
            let _removed = fs::remove_dir_all(&path);
        }
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().copied().map(char::from));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

/// A key store of Java in its first format, which holds certificates in the clear. The digest at its end is left out:
/// it is compared only where a password is given.
fn java_key_store(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    let word = |number: usize| u32::try_from(number).expect("certificates are small and few").to_be_bytes();
    let text = |text: &str| [&word(text.len())[2..], text.as_bytes()].concat();
    let mut store = [0xfeed_feed_u32.to_be_bytes(), word(2), word(certificates.len())].concat();
    for (at, certificate) in certificates.iter().enumerate() {
        const TRUSTED_CERTIFICATE: usize = 2;
        const CREATED_AT: [u8; 8] = [0; 8];
        store.extend(word(TRUSTED_CERTIFICATE));
        store.extend(text(&format!("ca{at}")));
        store.extend(CREATED_AT);
        store.extend(text("X.509"));
        store.extend(word(certificate.len()));
        store.extend(certificate.as_ref());
    }
    store
}
