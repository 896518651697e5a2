//! The files that a configuration names: secrets and certificates.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::reader::TableReader;
use super::{ConfigError, ExtraCa, Secret, parse};

/// A secret longer than this is some other file.
const LARGEST_SECRET: usize = 64 * 1024;
/// The largest configuration or file of certificates.
const LARGEST_TEXT: usize = 16 * 1024 * 1024;
/// A named pipe is given so long until somebody opens it to write, and the writer so long to finish: a person may have
/// to unlock a password manager first.
const WRITER_WITHIN: Duration = Duration::from_secs(5);
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How a secret is quoted in notes, `.env` files and chats.
const QUOTES: [[char; 2]; 7] = [
    ['"', '"'],
    ['\'', '\''],
    ['`', '`'],
    ['\u{201c}', '\u{201d}'],
    ['\u{2018}', '\u{2019}'],
    ['\u{ab}', '\u{bb}'],
    ['\u{300c}', '\u{300d}'],
];

/// The certificates of `ca_file`, if one is named.
pub(super) fn ca_file(table: &TableReader<'_>) -> Result<Option<ExtraCa>, ConfigError> {
    table
        .parsed("ca_file", |path| {
            if path.is_empty() {
                return Ok(None);
            }
            let file = PathBuf::from(path);
            let pem = read(&file, LARGEST_TEXT).map_err(|error| format!("can't be read: {error}"))?;
            extra_ca(file, &pem).map(Some)
        })
        .map(Option::flatten)
}

fn extra_ca(file: PathBuf, pem: &[u8]) -> Result<ExtraCa, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|error| format!("not a PEM file: {error}"))?;
    let has_private_key = PrivateKeyDer::from_pem_slice(pem).is_ok();
    if !certificates.is_empty() {
        return Ok(ExtraCa { file, has_private_key, certificates });
    }
    // A DER sequence with a long length (X.690, sections 8.1.3 and 8.9), as certificates are.
    let is_der = matches!(pem, [0x30, 0x80..=0xff, ..]);
    Err(match (is_der, has_private_key, pem.trim_ascii().is_empty()) {
        (true, ..) => "is in DER: `openssl x509 -inform der` writes it as PEM",
        (_, true, _) => "holds a private key and no certificate: name the authority's certificate",
        (_, _, true) => "is empty",
        _ => "holds no certificate in PEM",
    }
    .to_owned())
}

/// A secret from a file. The path is named only when a file was there: else it may be the secret itself, in the wrong
/// place.
pub(crate) fn secret_file(path: &Path) -> Result<Secret, String> {
    let bytes = read(path, LARGEST_SECRET).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => "the file is too large for a secret".to_owned(),
        _ => format!("the file can't be read: {error}"),
    })?;
    let shown = path.display();
    secret(&bytes, format!("file {shown}")).map_err(|what| format!("{shown} {what}"))
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
    let file = match open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) if path.to_string_lossy().starts_with('~') => {
            return Err(io::Error::new(io::ErrorKind::NotFound, parse::HOME_UNEXPANDED));
        }
        opened => File::from(opened?),
    };
    let writer_within = if file.metadata()?.file_type().is_fifo() { WRITER_WITHIN } else { Duration::ZERO };
    read_to_end(file, limit, writer_within, WRITTEN_WITHIN)
}

/// What can be read from a descriptor that does not block: an end before any byte is one after `writer_within` only.
pub(super) fn read_to_end(
    mut file: File,
    limit: usize,
    writer_within: Duration,
    written_within: Duration,
) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit.min(LARGEST_SECRET) + 1));
    let opened = Instant::now();
    loop {
        let rest = limit.saturating_add(1).saturating_sub(bytes.len());
        let (within, why) = match file.by_ref().take(rest as u64).read_to_end(&mut bytes) {
            Ok(_) if !writer_within.is_zero() && bytes.is_empty() => {
                (writer_within, "nobody writes to this pipe")
            }
            Ok(_) if bytes.len() > limit => return Err(io::ErrorKind::FileTooLarge.into()),
            Ok(_) => return Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                (written_within, "its writer does not come to an end")
            }
            Err(error) => return Err(error),
        };
        if opened.elapsed() >= within {
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A secret that is one line of text; else what is wrong with it. A byte order mark and blanks at its ends are no part
/// of it.
pub(super) fn secret(bytes: &[u8], from: String) -> Result<Secret, String> {
    if is_utf16(bytes) {
        return Err("is in UTF-16, as `>` of Windows PowerShell writes it: save it as UTF-8".to_owned());
    }
    let text = std::str::from_utf8(bytes).map_err(|_invalid| "is not text in UTF-8")?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_matches([' ', '\t', '\r', '\n']);
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if text.contains(['\r', '\n']) {
        return Err("has more than one line".to_owned());
    }
    if let Some(unseen) = text.chars().find(|c| is_unseen(*c)) {
        return Err(format!("holds a character that can't be seen (U+{:04X})", u32::from(unseen)));
    }
    if QUOTES.iter().any(|quotes| text.len() > 1 && text.starts_with(quotes[0]) && text.ends_with(quotes[1]))
    {
        return Err("has quotes around what it holds: take them off".to_owned());
    }
    Ok(Secret { value: text.into(), from })
}

/// By its byte order mark, or because every unit of it has a zero, as with letters of ASCII.
fn is_utf16(bytes: &[u8]) -> bool {
    let is_marked = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
    is_marked || bytes.contains(&0) && bytes.chunks(2).all(|unit| unit.contains(&0))
}

/// Control and format characters, blanks other than the space, fillers and variation selectors (Unicode's
/// `Default_Ignorable_Code_Point`): nobody sees that they came with a copied secret.
fn is_unseen(c: char) -> bool {
    let is_ignorable = matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffc}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}');
    is_ignorable || c.is_control() || c.is_whitespace() && c != ' '
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
