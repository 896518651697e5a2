//! The files that a configuration names: secrets and certificates.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::reader::Reader;
use super::{ConfigError, ExtraCa, Secret};

/// A secret longer than this is some other file.
const LARGEST_SECRET: usize = 64 * 1024;
/// The largest configuration or file of certificates.
const LARGEST_TEXT: usize = 16 * 1024 * 1024;
/// A named pipe is given so long until somebody opens it to write, and the writer so long to finish: a person may have
/// to unlock a password manager first.
const WRITER_WITHIN: Duration = Duration::from_secs(5);
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The certificates of `ca_file`, if one is named.
pub(super) fn ca_file(table: &Reader<'_>) -> Result<Option<ExtraCa>, ConfigError> {
    table
        .parsed("ca_file", |path| {
            if path.is_empty() {
                return Ok(None);
            }
            let file = PathBuf::from(path);
            let pem = read(&file, LARGEST_TEXT).map_err(|error| format!("can't be read: {error}"))?;
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
pub(crate) fn secret_file(path: &Path) -> Result<Secret, String> {
    let bytes = read(path, LARGEST_SECRET).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => "the file is too large for a secret".to_owned(),
        _ => format!("the file can't be read: {error}"),
    })?;
    let text = std::str::from_utf8(&bytes).map_err(|_invalid| "the file is not text".to_owned())?;
    secret(text.trim(), format!("file {}", path.display()))
}

/// The text of a configuration file.
pub(super) fn text(path: &Path) -> io::Result<String> {
    let bytes = read(path, LARGEST_TEXT)?;
    let text = std::str::from_utf8(&bytes);
    text.map(str::to_owned)
        .map_err(|_invalid| io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8"))
}

/// A file to its end. Not by its length: a device has none, and no end. A pipe is not waited for without end, since the
/// daemon reads its files again while it runs.
fn read(path: &Path, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    // Without NONBLOCK, to open a pipe blocks until somebody writes to it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut file = File::from(open(path, flags, Mode::empty())?);
    let is_pipe = file.metadata()?.file_type().is_fifo();
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit.min(LARGEST_SECRET) + 1));
    let opened = Instant::now();
    loop {
        let rest = limit.saturating_add(1).saturating_sub(bytes.len());
        let (within, why) = match file.by_ref().take(rest as u64).read_to_end(&mut bytes) {
            Ok(_) if is_pipe && bytes.is_empty() => (WRITER_WITHIN, "nobody writes to this pipe"),
            Ok(_) if bytes.len() > limit => return Err(io::ErrorKind::FileTooLarge.into()),
            Ok(_) => return Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                (WRITTEN_WITHIN, "its writer does not come to an end")
            }
            Err(error) => return Err(error),
        };
        if opened.elapsed() >= within {
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        std::thread::sleep(LOOK_EVERY);
    }
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
        assert_eq!(text(Path::new("/dev/zero")).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn what_is_written_to_a_pipe_in_pieces_is_read_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());

        let writing = path.clone();
        let writer = std::thread::spawn(move || {
            use std::io::Write as _;
            let mut pipe = File::options().write(true).open(writing).unwrap();
            pipe.write_all(b"a-").unwrap();
            std::thread::sleep(LOOK_EVERY * 3);
            pipe.write_all(b"secret\n").unwrap();
        });

        assert_eq!(text(&path).unwrap(), "a-secret\n");
        writer.join().unwrap();
    }
}
