//! The files that tell the program what to trust: the certificates that it trusted before, and our authority's. They
//! are in a directory that only its owner enters. It goes away with us; when we are killed, the next run removes it.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::getuid;
use rustls::pki_types::CertificateDer;
use rustls_native_certs::{load_certs_from_paths, load_native_certs};

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

/// Those whose certificates are trusted beside the program's own, and not in their place.
const EXTRA: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];

const NO_CERTIFICATE: &str = "no certificate can be read from what it names: correct it, or unset it";

/// The files, as long as this lives, and the variables that name them.
pub(super) struct Trust {
    directory: PathBuf,
    pub(super) variables: Vec<(&'static str, String)>,
    _lock: File,
}

impl Trust {
    /// Writes the files; `proxy` is where our proxy listens.
    ///
    /// The error may be a variable that leads to no certificate: to trust the system's instead could be more than was
    /// meant, and with none no program works.
    pub(super) fn write(
        authority: &CertificateDer<'static>,
        proxy: SocketAddr,
        environment: &Environment,
    ) -> anyhow::Result<Self> {
        // After `su`, the first may be another user's. The program may change its directory.
        let runtime = environment.var("XDG_RUNTIME_DIR").map(Path::new).filter(|path| path.is_absolute());
        let temporary = || make(&std::path::absolute(env::temp_dir())?);
        let made = runtime.and_then(|base| make(base).ok()).map_or_else(temporary, Ok);
        let (directory, lock) = made.context("making a directory for certificates")?;
        let mut trust = Self { directory, variables: Vec::new(), _lock: lock };
        trust.fill(authority, proxy, environment)?;
        Ok(trust)
    }

    fn fill(
        &mut self,
        authority: &CertificateDer<'static>,
        proxy: SocketAddr,
        environment: &Environment,
    ) -> anyhow::Result<()> {
        let mut system = load_native_certs().certs;
        // These take the place of the system's; empty ones, too.
        let mut instead = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter();
        if let Some(name) = instead.find(|name| system.is_empty() && env::var_os(name).is_some()) {
            anyhow::bail!("{name}: {NO_CERTIFICATE}");
        }
        let alone = self.file("own.pem", pem(authority))?;
        system.push(authority.clone());
        let bundle = self.file("ca.pem", system.iter().map(pem).collect::<String>())?;
        for name in BUNDLES {
            let path = match environment.var(name) {
                Some(path) => {
                    let mut theirs = certificates(Path::new(path));
                    anyhow::ensure!(!theirs.is_empty(), "{name}: {NO_CERTIFICATE}");
                    theirs.push(authority.clone());
                    self.file(&format!("{name}.pem"), theirs.iter().map(pem).collect::<String>())?
                }
                None if EXTRA.contains(&name) => alone.clone(),
                None => bundle.clone(),
            };
            self.variables.push((name, path));
        }
        let store = self.file("ca.jks", java_key_store(&system))?;
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

        let theirs = match environment.var("WGETRC") {
            Some(path) => fs::read(path).context("WGETRC: what it names can't be read")?,
            None => {
                let own = environment.var("HOME").map(|home| fs::read(format!("{home}/.wgetrc")));
                own.and_then(Result::ok).unwrap_or_default()
            }
        };
        let ours = format!("\nca_certificate = {bundle}\n");
        let settings = self.file("wgetrc", [&theirs, ours.as_bytes()].concat())?;
        self.variables.push(("WGETRC", settings));

        fs::create_dir(self.directory.join("php")).context("writing what the program trusts")?;
        self.file("php/ca.ini", format!("openssl.cafile={bundle}\ncurl.cainfo={bundle}\n"))?;
        // An empty entry is the directory that PHP was built with.
        let theirs = environment.var("PHP_INI_SCAN_DIR").unwrap_or_default();
        self.variables.push(("PHP_INI_SCAN_DIR", format!("{theirs}:{}/php", self.directory.display())));
        Ok(())
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> anyhow::Result<String> {
        let path = self.directory.join(name);
        fs::write(&path, content).context("writing what the program trusts")?;
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
        let locked = File::open(&directory).and_then(|lock| {
            lock.lock()?;
            fs::metadata(&directory)?;
            Ok(lock)
        });
        match locked {
            // Before it was locked, another run took it for one whose owner is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            locked => return Ok((directory, locked?)),
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
        let Some(lock) = is_ours.then(|| File::open(&path).ok()).flatten() else { continue };
        // Locked until it is gone, so that who has just made it does not take it.
        if lock.try_lock().is_ok() {
            let _removed = fs::remove_dir_all(&path);
        }
    }
}

/// Those of a file or a directory.
fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    let (file, directory) = if path.is_dir() { (None, Some(path)) } else { (Some(path), None) };
    load_certs_from_paths(file, directory).certs
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line) + "\n");
    format!("-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n", lines.collect::<String>())
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

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn those_who_begin_at_once_keep_their_directories_and_remove_the_others() {
        let base = tempfile::tempdir().unwrap();
        let left = base.path().join(format!("{NAME}left"));
        fs::create_dir(&left).unwrap();

        let made: Vec<_> = thread::scope(|scope| {
            let making = || (0..25).map(|_| make(base.path()).unwrap()).collect::<Vec<_>>();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(making)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });

        assert_eq!(made.len(), 200);
        assert!(made.iter().all(|(directory, _)| directory.exists()));
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 200, "and {} is gone", left.display());
    }
}
