//! What can't be saved in the database yet, sealed, in the state directory: a restart does not lose it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::super::files::{self, failed, make, remove_if_there, rename};
use super::super::{Findings, StoreError};

const PREFIX: &str = "store.unsaved.";
const NEW: &str = "store.unsaved-new.";
const MAGIC: &str = "cnblogs-proxy unsaved 1";

/// A successor that replaces one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsaved {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) sealed: Vec<u8>,
}

/// Where they are.
#[derive(Clone, Debug)]
pub(super) struct UnsavedFiles(PathBuf);

impl UnsavedFiles {
    pub(super) fn in_dir(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// All of them, by account. What is half written was never the only copy, and is removed.
    pub(super) fn read(&self, findings: &mut Findings) -> Result<BTreeMap<String, Unsaved>, StoreError> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.0).map_err(failed("reading", &self.0))? {
            let path = entry.map_err(failed("reading", &self.0))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(NEW) {
                remove_if_there(&path)?;
            }
            let Some(account) = name.strip_prefix(PREFIX) else { continue };
            files::make_private(&path, findings)?;
            let bytes = fs::read(&path).map_err(failed("reading", &path))?;
            match decode(&bytes) {
                Some(unsaved) => drop(found.insert(account.to_owned(), unsaved)),
                None => findings.warnings.push(format!("{} is damaged: it is left alone", path.display())),
            }
        }
        Ok(found)
    }

    /// Writes one, durably. Where there is no disk to write to, it is in memory and soon in the database all the same.
    pub(super) async fn write(&self, account: &str, unsaved: &Unsaved) {
        let [path, new] = [PREFIX, NEW].map(|prefix| self.0.join(format!("{prefix}{account}")));
        let (bytes, dir) = (encode(unsaved), self.0.clone());
        let written = files::blocking(move || {
            remove_if_there(&new)?;
            let mut file = make(&new)?;
            let filled = file.write_all(&bytes).and_then(|()| file.sync_all());
            filled.map_err(failed("writing", &new))?;
            rename(&new, &path)?;
            fs::File::open(&dir).and_then(|dir| dir.sync_all()).map_err(failed("syncing", &dir))
        })
        .await;
        if let Err(error) = written {
            let error: StoreError = error;
            tracing::warn!(
                account,
                error = crate::notify::with_causes(&error),
                "no copy beside the database"
            );
        }
    }

    /// It is in the database, or worth nothing any more.
    pub(super) async fn remove(&self, account: &str) -> Result<(), StoreError> {
        let path = self.0.join(format!("{PREFIX}{account}"));
        files::blocking(move || remove_if_there(&path)).await
    }
}

fn encode(unsaved: &Unsaved) -> Vec<u8> {
    let header = format!("{MAGIC} {} {}\n", unsaved.from, unsaved.to);
    [header.as_bytes(), &unsaved.sealed].concat()
}

fn decode(bytes: &[u8]) -> Option<Unsaved> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let header = std::str::from_utf8(&bytes[..end]).ok()?.strip_prefix(MAGIC)?.strip_prefix(' ')?;
    let (from, to) = header.split_once(' ')?;
    Some(Unsaved { from: from.parse().ok()?, to: to.parse().ok()?, sealed: bytes[end + 1..].to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_nothing_else_is() {
        let unsaved = Unsaved { from: 3, to: 4, sealed: b"\n\0sealed".to_vec() };
        let bytes = encode(&unsaved);
        assert_eq!(decode(&bytes), Some(unsaved));
        for other in
            [&b""[..], b"cnblogs-proxy unsaved 1 3\n", b"cnblogs-proxy unsaved 2 3 4\nx", &bytes[..20]]
        {
            assert_eq!(decode(other), None);
        }
    }
}
