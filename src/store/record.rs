//! A login's form on disk: a header line with version and checksum, then JSON.
//!
//! ```text
//! cnblogs-proxy store 1 sha256:<hex of the rest of the file and the version>
//! {"generation":7,"accounts":{"main":{...}}}
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use ring::digest::{Context, SHA256};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::StoreError;

/// The format that this program writes, and the newest that it reads.
const VERSION: u32 = 1;
const MAGIC: &str = "cnblogs-proxy store ";

/// One account's login.
#[derive(Clone, Debug)]
pub struct Record {
    /// The application that the login belongs to.
    pub client_id: String,
    /// The access token.
    pub access_token: SecretString,
    /// When it was received, in milliseconds since the Unix epoch.
    pub obtained_at_ms: i64,
    /// How long it lasts from then, in seconds.
    pub expires_in_secs: u64,
    /// None when the server gave none.
    pub refresh_token: Option<SecretString>,
    /// True when the server refused the refresh token: it is never presented again.
    pub is_refused: bool,
    /// True when a refused refresh token was shown for the last time.
    pub is_retried: bool,
    /// When the person logged in, in milliseconds since the Unix epoch.
    pub login_at_ms: i64,
    /// The `sub` of the `id_token`.
    pub subject: Option<String>,
    /// The `iss` of the `id_token`.
    pub issuer: Option<String>,
    /// Who logged in, as far as the API said.
    pub person: Option<Person>,
}

/// Who logged in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// Tells people apart.
    pub id: String,
    /// What the person is called.
    pub name: String,
}

/// Everything that is stored, at one point.
#[derive(Clone, Debug, Default)]
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) records: BTreeMap<String, Record>,
}

/// Why a file is not a generation.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    #[error("it does not start like a store")]
    NotAStore,
    #[error("its checksum does not match")]
    Checksum,
    #[error("format {version} is newer than this program")]
    Newer { version: u32 },
    #[error("it is not the JSON of a store")]
    Content,
    #[error("it is larger than 1 MiB")]
    TooLarge,
    #[error("it can't be read: {0}")]
    Unreadable(io::Error),
}

#[derive(Serialize, Deserialize)]
struct Form {
    generation: u64,
    accounts: BTreeMap<String, RecordForm>,
}

#[derive(Serialize, Deserialize)]
struct RecordForm {
    client_id: String,
    access_token: Zeroizing<String>,
    obtained_at_ms: i64,
    expires_in_secs: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<Zeroizing<String>>,
    #[serde(default)]
    is_refused: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_retried: bool,
    login_at_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    person: Option<Person>,
}

impl Form {
    /// Room for all of it, unless it is full of what JSON escapes: what grows leaves copies behind.
    fn room(&self) -> usize {
        const MEMBERS: usize = 1024;
        let secrets = self.accounts.values().map(|record| {
            let refresh_token = record.refresh_token.as_ref().map_or(0, |token| token.len());
            MEMBERS + record.access_token.len() + refresh_token
        });
        MEMBERS + secrets.sum::<usize>()
    }
}

impl Damage {
    /// True when the content itself is wrong; false for what another version or another moment may read.
    pub(super) const fn is_certain(&self) -> bool {
        matches!(self, Self::NotAStore | Self::Checksum | Self::Content)
    }

    /// The reason not to go on.
    pub(super) fn into_error(self, path: &Path) -> StoreError {
        let path = path.to_owned();
        match self {
            Self::Newer { version } => StoreError::Newer { path, version },
            Self::Unreadable(source) => StoreError::Io { action: "reading", path, source },
            _ => StoreError::TooLarge { path },
        }
    }
}

impl Generation {
    /// A copy with the next number.
    pub(super) fn successor(&self) -> Self {
        Self { number: self.number + 1, records: self.records.clone() }
    }

    /// The bytes of the file, wiped when dropped.
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let accounts = self.records.iter().map(|(name, record)| (name.clone(), record.into())).collect();
        let form = Form { generation: self.number, accounts };
        let mut json = Zeroizing::new(Vec::with_capacity(form.room()));
        serde_json::to_writer(&mut *json, &form).expect("a store has only string keys");
        let header = format!("{MAGIC}{VERSION} sha256:{}\n", checksum(VERSION, &json));
        let mut bytes = Zeroizing::new(Vec::with_capacity(header.len() + json.len() + 1));
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&json);
        bytes
    }

    /// How many bytes [`Self::encode`] gives.
    pub(super) fn encoded_len(&self) -> u64 {
        self.encode().len() as u64
    }

    /// Reads what [`Self::encode`] wrote; anything else, down to a single bit, is damage.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let newline = bytes.iter().take(200).position(|b| *b == b'\n').ok_or(Damage::NotAStore)?;
        let (header, json) = (&bytes[..newline], &bytes[newline + 1..]);
        let header = std::str::from_utf8(header).map_err(|_invalid| Damage::NotAStore)?;
        let rest = header.strip_prefix(MAGIC).ok_or(Damage::NotAStore)?;
        let (version, sum) = rest.split_once(" sha256:").ok_or(Damage::NotAStore)?;
        let version_number: u32 = version.parse().map_err(|_invalid| Damage::NotAStore)?;
        if version_number.to_string() != version || checksum(version_number, json) != sum {
            return Err(Damage::Checksum);
        }
        if version_number > VERSION {
            return Err(Damage::Newer { version: version_number });
        }

        let form: Form = serde_json::from_slice(json).map_err(|_invalid| Damage::Content)?;
        let records = form.accounts.into_iter().map(|(name, record)| (name, record.into())).collect();
        Ok(Self { number: form.generation, records })
    }
}

impl From<&Record> for RecordForm {
    fn from(record: &Record) -> Self {
        let expose = |secret: &SecretString| Zeroizing::new(secret.expose_secret().to_owned());
        Self {
            client_id: record.client_id.clone(),
            access_token: expose(&record.access_token),
            obtained_at_ms: record.obtained_at_ms,
            expires_in_secs: record.expires_in_secs,
            refresh_token: record.refresh_token.as_ref().map(expose),
            is_refused: record.is_refused,
            is_retried: record.is_retried,
            login_at_ms: record.login_at_ms,
            subject: record.subject.clone(),
            issuer: record.issuer.clone(),
            person: record.person.clone(),
        }
    }
}

impl From<RecordForm> for Record {
    fn from(form: RecordForm) -> Self {
        let secret = |text: Zeroizing<String>| SecretString::from(text.as_str());
        Self {
            client_id: form.client_id,
            access_token: secret(form.access_token),
            obtained_at_ms: form.obtained_at_ms,
            expires_in_secs: form.expires_in_secs,
            refresh_token: form.refresh_token.map(secret),
            is_refused: form.is_refused,
            is_retried: form.is_retried,
            login_at_ms: form.login_at_ms,
            subject: form.subject,
            issuer: form.issuer,
            person: form.person,
        }
    }
}

fn checksum(version: u32, json: &[u8]) -> String {
    let mut context = Context::new(&SHA256);
    context.update(&version.to_be_bytes());
    context.update(json);
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation() -> Generation {
        let record = Record {
            client_id: "id".into(),
            access_token: "access-secret".into(),
            obtained_at_ms: 1_700_000_000_000,
            expires_in_secs: 3600,
            refresh_token: Some("refresh-secret".into()),
            is_refused: false,
            is_retried: false,
            login_at_ms: 1_700_000_000_000,
            subject: None,
            issuer: None,
            person: Some(Person { id: "1".into(), name: "园子".into() }),
        };
        Generation { number: 7, records: BTreeMap::from([("main".to_owned(), record)]) }
    }

    #[test]
    fn what_was_written_is_read() {
        let read = Generation::decode(&generation().encode()).unwrap();

        let record = &read.records["main"];
        assert_eq!(read.number, 7);
        assert_eq!(record.refresh_token.as_ref().unwrap().expose_secret(), "refresh-secret");
        assert_eq!(record.person.as_ref().unwrap().name, "园子");
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_damage() {
        let good = generation().encode();
        for length in 0..good.len() {
            assert!(Generation::decode(&good[..length]).is_err(), "{length} bytes");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let damage = Generation::decode(&bad);
            assert!(damage.is_err() && !matches!(damage, Err(Damage::Newer { .. })), "bit {bit}");
        }
    }

    /// Files as each version of the format was first released. They never change, and are read for good.
    const RELEASED: [&[u8]; VERSION as usize] = [include_bytes!("../../tests/upgrades/store-1")];

    #[test]
    fn every_released_format_is_read_for_good() {
        for (index, file) in RELEASED.iter().enumerate() {
            let version = format!("{MAGIC}{} ", index + 1);
            assert!(file.starts_with(version.as_bytes()), "{version}");

            let read = Generation::decode(file).unwrap();

            assert_eq!((read.number, read.records.len()), (41, 2), "{version}");
            let (full, bare) = (&read.records["main"], &read.records["application"]);
            assert_eq!(full.client_id, "BDB525D7-13C9-440E-AF03-6ADF87ACC8D6", "{version}");
            assert_eq!(full.access_token.expose_secret(), "access-token-of-main", "{version}");
            assert_eq!(
                (full.obtained_at_ms, full.expires_in_secs),
                (1_700_000_000_123, 3_153_600_000),
                "{version}"
            );
            let refresh_token = full.refresh_token.as_ref().map(ExposeSecret::expose_secret);
            assert_eq!(refresh_token, Some("refresh-token-of-main"), "{version}");
            assert_eq!((full.is_refused, full.login_at_ms), (true, 1_690_000_000_456), "{version}");
            assert_eq!(full.subject.as_deref(), Some("subject-1"), "{version}");
            assert_eq!(full.issuer.as_deref(), Some("https://oauth.cnblogs.com"), "{version}");
            assert_eq!(full.person, Some(Person { id: "1".into(), name: "园子".into() }), "{version}");
            assert!(bare.refresh_token.is_none() && !bare.is_refused && bare.person.is_none(), "{version}");
            assert_eq!(bare.access_token.expose_secret(), "access-token-of-application", "{version}");
        }
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let json = br#"{"generation":1,"accounts":{}}"#;
        let mut bytes = format!("{MAGIC}2 sha256:{}\n", checksum(2, json)).into_bytes();
        bytes.extend_from_slice(json);

        assert!(matches!(Generation::decode(&bytes), Err(Damage::Newer { version: 2 })));
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let shown = format!("{:?}", generation());

        assert!(!shown.contains("access-secret") && !shown.contains("refresh-secret"), "{shown}");
    }
}
