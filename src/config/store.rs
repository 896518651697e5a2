//! The `[store]` table: how logins are kept.

use std::path::Path;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use secrecy::{ExposeSecret as _, SecretBox};
use zeroize::Zeroizing;

use super::files::secret_file;
use super::reader::{Known, TableReader};
use super::{ConfigError, Database, Environment, Secret, database};

pub(super) const STORE: Known = &["url", "password_file", "ca_file", "seal_key_files", "schema"];
const KEY_VARIABLE: &str = "CNBLOGS_PROXY_SEAL_KEY_FILE";
/// 32 bytes in base64.
const LONGEST_KEY: usize = 44;
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How logins are kept.
#[derive(Debug, Default)]
pub struct StoreOptions {
    /// The first seals what is stored, all of them open it. Without any, logins are kept plain.
    pub seal_keys: Vec<SealKey>,
    /// Where replicas share their logins; none when this process has its own, in files.
    pub database: Option<Database>,
}

/// A key that stored logins are sealed with.
#[derive(Debug)]
pub struct SealKey {
    /// Where it was read from.
    pub from: String,
    /// The key itself.
    pub bytes: SecretBox<[u8; 32]>,
}

pub(super) fn read(root: &TableReader<'_>, environment: &Environment) -> Result<StoreOptions, ConfigError> {
    let table = root.table("store", STORE)?;
    let seal_keys = read_seal_keys(table.as_ref(), environment)?;
    let database = database::read(table.as_ref(), environment)?;
    if database.is_some() && seal_keys.is_empty() && !environment.may_lack_secrets {
        let error = ConfigError::at("", "store", "logins in a database have to be sealed".to_owned());
        return Err(error.with_hint(
            "`cnblogs-proxy seal-key` makes a key: name its file in seal_key_files, or in CNBLOGS_PROXY_SEAL_KEY_FILE",
        ));
    }
    Ok(StoreOptions { seal_keys, database })
}

fn read_seal_keys(
    table: Option<&TableReader<'_>>,
    environment: &Environment,
) -> Result<Vec<SealKey>, ConfigError> {
    let at = |place: &str, message| ConfigError::at(place, "", message);
    if let Some(path) = environment.var(KEY_VARIABLE) {
        return Ok(vec![seal_key(Path::new(path)).map_err(|message| at(KEY_VARIABLE, message))?]);
    }
    let mut keys: Vec<SealKey> = Vec::new();
    for entry in table.map(|table| table.strings("seal_key_files")).transpose()?.flatten().unwrap_or_default()
    {
        let key = seal_key(Path::new(&entry.string()?)).map_err(|message| entry.error(message))?;
        if keys.iter().any(|other| other.bytes.expose_secret() == key.bytes.expose_secret()) {
            return Err(entry.error("another file holds the same key"));
        }
        keys.push(key);
    }
    match environment.credential("seal_key").filter(|_| keys.is_empty()) {
        Some(path) => Ok(vec![seal_key(&path).map_err(|message| at("CREDENTIALS_DIRECTORY", message))?]),
        None => Ok(keys),
    }
}

fn seal_key(path: &Path) -> Result<SealKey, String> {
    let Secret { value, from } = secret_file(path)?;
    let text = value.expose_secret();
    let mut bytes = Zeroizing::new([0; LONGEST_KEY]);
    let length = match text.len() {
        0..=LONGEST_KEY => BASE64.decode_slice(text, &mut *bytes).unwrap_or_default(),
        _ => 0,
    };
    match bytes[..length].try_into() {
        Ok(key) => Ok(SealKey { from, bytes: SecretBox::new(Box::new(key)) }),
        Err(_) => Err(format!(
            "{} holds no key of 32 bytes in base64: `cnblogs-proxy seal-key` makes one",
            path.display()
        )),
    }
}
