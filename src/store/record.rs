//! A login's form on disk: a header line with version and checksum, then JSON.
//!
//! ```text
//! cnblogs-proxy store 1 sha256:<hex of the rest of the file and the version>
//! {"generation":7,"accounts":{"main":{...},"main@1f0c53a9":{...}}}
//! ```
//!
//! With keys, each record is sealed for its key in the JSON and its generation, and the version is 2:
//!
//! ```text
//! cnblogs-proxy store 2 sha256:<hex of the rest of the file and the version>
//! {"generation":7,"accounts":{"main":"<base64 of the sealed record>"}}
//! ```
//!
//! An account has one record under its own name, and one under `NAME@` and a digest for each other client, grant or
//! token endpoint that it was configured with. No account's name has an `@`, so 0.1.0 keeps those unread.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{Context, SHA256, digest};
use secrecy::{ExposeSecret, SecretString};
use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

use super::seal::{KeyId, SealError, SealKeys, SealedFor};
use crate::config::{Client, GrantType};
use crate::token::Person;

/// The format without sealed records, which every version of this program reads.
const PLAIN: u32 = 1;
/// The format of sealed records, and the newest that this program reads.
const SEALED: u32 = 2;
const MAGIC: &str = "cnblogs-proxy store ";
/// What the records of this kind of store are sealed for.
const SCHEMA: &str = "file store";
/// A record without its tokens, unless it is full of what JSON escapes.
const MEMBERS: usize = 1024;

/// What a login belongs to. Presented by another client, for another grant or to another server, its tokens are
/// of no use there, and may be spent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The application.
    pub client_id: String,
    /// How it was obtained; None matches any (0.1.0 stored none).
    pub grant: Option<GrantType>,
    /// The token endpoint, or the issuer whose discovery document names it; None matches any (0.1.0 stored none).
    pub token_url: Option<String>,
}

/// One account's login.
#[derive(Clone, Debug)]
pub struct Record {
    /// What it belongs to.
    pub binding: Binding,
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
    /// True when a refused refresh token was presented for the last time.
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

/// Everything that is stored, at one point.
#[derive(Clone, Debug, Default)]
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) records: BTreeMap<String, Record>,
    /// The key that all of it was sealed with where it was read or written; none when not all of it was.
    pub(super) sealed_with: Option<KeyId>,
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
    /// None, for whoever has the key.
    #[error("the login of {account} is sealed")]
    Sealed { account: String, source: SealError },
}

#[derive(Serialize, Deserialize)]
struct StoredForm<K: Ord, R> {
    generation: u64,
    accounts: BTreeMap<K, R>,
}

#[derive(Serialize, Deserialize)]
struct RecordForm {
    client_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<GrantType>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_url: Option<String>,
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

impl RecordForm {
    /// Room for all of it, unless it is full of what JSON escapes: what grows leaves copies behind.
    fn room(&self) -> usize {
        let refresh_token = self.refresh_token.as_ref().map_or(0, |token| token.len());
        MEMBERS + self.access_token.len() + refresh_token
    }
}

impl Record {
    /// True when it holds the same tokens.
    pub(super) fn has_tokens_of(&self, other: &Self) -> bool {
        let tokens = |record: &Self| {
            let refresh_token = record.refresh_token.as_ref().map(|token| token.expose_secret().to_owned());
            Zeroizing::new([
                record.access_token.expose_secret().to_owned(),
                refresh_token.unwrap_or_default(),
            ])
        };
        self.refresh_token.is_some() == other.refresh_token.is_some() && tokens(self) == tokens(other)
    }

    /// True when nothing differs but times.
    pub fn is_same(&self, other: &Self) -> bool {
        let said = |record: &Self| (record.is_refused, record.is_retried, record.person.clone());
        self.has_tokens_of(other) && self.binding == other.binding && said(self) == said(other)
    }

    /// With its times by another clock.
    pub(super) fn moved_by(self, by_ms: i64) -> Self {
        let moved = |at_ms: i64| at_ms.saturating_add(by_ms);
        Self { obtained_at_ms: moved(self.obtained_at_ms), login_at_ms: moved(self.login_at_ms), ..self }
    }
}

impl Binding {
    /// Of what a client obtains by a grant.
    pub fn of(client: &Client, grant: GrantType) -> Self {
        Self {
            client_id: client.client_id.clone(),
            grant: Some(grant),
            token_url: Some(client.bound_to().to_owned()),
        }
    }

    /// True when nothing that both of them say differs.
    pub fn matches(&self, other: &Self) -> bool {
        self.client_id == other.client_id
            && agree(self.grant.as_ref(), other.grant.as_ref())
            && agree(self.token_url.as_ref(), other.token_url.as_ref())
    }

    /// The key of an account's record that does not belong to what the account's own name is taken by.
    fn key(&self, account: &str) -> String {
        let grant = self.grant.map_or("", GrantType::as_str);
        let token_url = self.token_url.as_deref().unwrap_or_default();
        let sum =
            hex(digest(&SHA256, format!("{}\0{grant}\0{token_url}", self.client_id).as_bytes()).as_ref());
        format!("{account}@{}", &sum[..8])
    }
}

fn agree<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> bool {
    one.is_none() || other.is_none() || one == other
}

impl Generation {
    /// A copy with the next number.
    pub(super) fn successor(&self) -> Self {
        Self { number: self.number + 1, records: self.records.clone(), sealed_with: None }
    }

    /// The login of an account, when one is stored that belongs to this.
    pub(super) fn record(&self, account: &str, binding: &Binding) -> Option<&Record> {
        let stored = [binding.key(account).as_str(), account].map(|key| self.records.get(key));
        stored.into_iter().flatten().find(|record| record.binding.matches(binding))
    }

    /// All logins of an account.
    pub(super) fn records_of(&self, account: &str) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |(key, _)| account_of(key) == account).map(|(_, record)| record)
    }

    /// Which accounts have a login.
    pub(super) fn accounts(&self) -> BTreeSet<String> {
        self.records.keys().map(|key| account_of(key).to_owned()).collect()
    }

    /// Puts a login in the place of the one that belongs to the same, and leaves the account's others alone.
    pub(super) fn put(&mut self, account: &str, record: Record) {
        let beside = record.binding.key(account);
        let is_beside = match self.records.get(account) {
            Some(stored) => self.records.contains_key(&beside) || !stored.binding.matches(&record.binding),
            None => false,
        };
        if is_beside {
            self.records.insert(beside, record);
        } else {
            self.records.remove(&beside);
            self.records.insert(account.to_owned(), record);
        }
    }

    /// Removes all logins of an account.
    pub(super) fn erase(&mut self, account: &str) {
        self.records.retain(|key, _| account_of(key) != account);
    }

    /// The bytes of the file, wiped when dropped, with every record sealed when there is a key.
    pub(super) fn encode(&self, keys: &SealKeys) -> Zeroizing<Vec<u8>> {
        if keys.first().is_none() || self.records.is_empty() {
            let forms = self.records.iter().map(|(name, record)| (name, RecordForm::from(record)));
            let accounts: BTreeMap<_, _> = forms.collect();
            let room = MEMBERS + accounts.values().map(RecordForm::room).sum::<usize>();
            return in_file(PLAIN, &json(&StoredForm { generation: self.number, accounts }, room));
        }
        let sealed = self.records.iter().map(|(name, record)| {
            let place = SealedFor { schema: SCHEMA, account: name, generation: self.number };
            (name, STANDARD.encode(keys.seal(&place, &record.encode())))
        });
        in_file(SEALED, &json(&StoredForm { generation: self.number, accounts: sealed.collect() }, MEMBERS))
    }

    /// How many bytes [`Self::encode`] gives.
    pub(super) fn encoded_len(&self, keys: &SealKeys) -> u64 {
        self.encode(keys).len() as u64
    }

    /// Reads what [`Self::encode`] wrote; anything else, down to a single bit, is damage.
    pub(super) fn decode(bytes: &[u8], keys: &SealKeys) -> Result<Self, Damage> {
        let (version, json) = content(bytes)?;
        if version == PLAIN {
            let StoredForm { generation, accounts } = form::<StoredForm<String, RecordForm>>(json)?;
            let records = accounts.into_iter().map(|(name, record)| (name, record.into())).collect();
            return Ok(Self { number: generation, records, sealed_with: None });
        }

        let StoredForm { generation, accounts } = form::<StoredForm<String, Base64>>(json)?;
        let ids: BTreeSet<_> = accounts.values().map(|sealed| KeyId::of_sealed(&sealed.0)).collect();
        let open = |(name, Base64(sealed)): (String, Base64)| {
            let place = SealedFor { schema: SCHEMA, account: &name, generation };
            let opened = keys.open(&place, &sealed);
            let opened = opened.map_err(|source| Damage::Sealed { account: name.clone(), source })?;
            Ok((name, Record::decode(&opened)?))
        };
        let records = accounts.into_iter().map(open).collect::<Result<_, _>>()?;
        let sealed_with = if ids.len() == 1 { ids.into_iter().next().flatten() } else { None };
        Ok(Self { number: generation, records, sealed_with })
    }
}

impl Record {
    /// As it is sealed, wiped when dropped.
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let form = RecordForm::from(self);
        json(&form, form.room())
    }

    /// Reads what [`Self::encode`] wrote.
    pub(super) fn decode(json: &[u8]) -> Result<Self, Damage> {
        form::<RecordForm>(json).map(Self::from)
    }
}

/// The keys of the records in a file, for whoever has no key that opens them, and what each is sealed with.
pub(super) fn sealed_with(bytes: &[u8]) -> Result<BTreeMap<String, Option<Vec<u8>>>, Damage> {
    let (version, json) = content(bytes)?;
    Ok(match version {
        PLAIN => form::<StoredForm<String, IgnoredAny>>(json)?
            .accounts
            .into_keys()
            .map(|key| (key, None))
            .collect(),
        _ => form::<StoredForm<String, Base64>>(json)?
            .accounts
            .into_iter()
            .map(|(key, sealed)| (key, Some(sealed.0)))
            .collect(),
    })
}

/// The version and the JSON of a file whose checksum is right.
fn content(bytes: &[u8]) -> Result<(u32, &[u8]), Damage> {
    let newline = bytes.iter().take(200).position(|b| *b == b'\n').ok_or(Damage::NotAStore)?;
    let (header, json) = (&bytes[..newline], &bytes[newline + 1..]);
    let header = std::str::from_utf8(header).map_err(|_invalid| Damage::NotAStore)?;
    let rest = header.strip_prefix(MAGIC).ok_or(Damage::NotAStore)?;
    let (version, sum) = rest.split_once(" sha256:").ok_or(Damage::NotAStore)?;
    let version_number: u32 = version.parse().map_err(|_invalid| Damage::NotAStore)?;
    if version_number.to_string() != version || checksum(version_number, json) != sum {
        return Err(Damage::Checksum);
    }
    match version_number {
        PLAIN | SEALED => Ok((version_number, json)),
        0 => Err(Damage::NotAStore),
        version => Err(Damage::Newer { version }),
    }
}

fn form<F: DeserializeOwned>(json: &[u8]) -> Result<F, Damage> {
    serde_json::from_slice(json).map_err(|_invalid| Damage::Content)
}

fn json(form: &impl Serialize, room: usize) -> Zeroizing<Vec<u8>> {
    let mut json = Zeroizing::new(Vec::with_capacity(room));
    serde_json::to_writer(&mut *json, form).expect("a store has only string keys");
    json
}

fn in_file(version: u32, json: &[u8]) -> Zeroizing<Vec<u8>> {
    let header = format!("{MAGIC}{version} sha256:{}\n", checksum(version, json));
    let mut bytes = Zeroizing::new(Vec::with_capacity(header.len() + json.len() + 1));
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(json);
    bytes
}

/// A sealed record as text.
struct Base64(Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(D::Error::custom)
    }
}

impl From<&Record> for RecordForm {
    fn from(record: &Record) -> Self {
        let expose = |secret: &SecretString| Zeroizing::new(secret.expose_secret().to_owned());
        Self {
            client_id: record.binding.client_id.clone(),
            grant: record.binding.grant,
            token_url: record.binding.token_url.clone(),
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
        // 0.1.0 did not store it, and these come with a person's login only.
        let is_a_persons = form.refresh_token.is_some() || form.subject.is_some() || form.person.is_some();
        let grant = form.grant.or_else(|| is_a_persons.then_some(GrantType::AuthorizationCode));
        Self {
            binding: Binding { client_id: form.client_id, grant, token_url: form.token_url },
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

/// The account whose record has this key.
pub(super) fn account_of(key: &str) -> &str {
    key.split_once('@').map_or(key, |(account, _)| account)
}

fn checksum(version: u32, json: &[u8]) -> String {
    let mut context = Context::new(&SHA256);
    context.update(&version.to_be_bytes());
    context.update(json);
    hex(context.finish().as_ref())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _written = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SealKey;

    fn binding() -> Binding {
        let grant = Some(GrantType::AuthorizationCode);
        Binding { client_id: "id".into(), grant, token_url: Some("https://a.test/token".into()) }
    }

    fn generation() -> Generation {
        let record = Record {
            binding: binding(),
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
        Generation { number: 7, records: BTreeMap::from([("main".to_owned(), record)]), sealed_with: None }
    }

    fn plain() -> SealKeys {
        SealKeys::default()
    }

    /// Keys of bytes that are all the same.
    fn keys(bytes: &[u8]) -> SealKeys {
        let key = |byte: &u8| SealKey { from: format!("file {byte}"), bytes: Box::new([*byte; 32]).into() };
        SealKeys::new(&bytes.iter().map(key).collect::<Vec<_>>())
    }

    #[test]
    fn what_was_written_is_read() {
        for keys in [plain(), keys(&[1])] {
            let read = Generation::decode(&generation().encode(&keys), &keys).unwrap();

            let record = &read.records["main"];
            assert_eq!((read.number, read.sealed_with), (7, keys.first()));
            assert_eq!(record.refresh_token.as_ref().unwrap().expose_secret(), "refresh-secret");
            assert_eq!(record.person.as_ref().unwrap().name, "园子");
        }
    }

    #[test]
    fn only_names_can_be_read_of_what_is_sealed() {
        let bytes = generation().encode(&keys(&[1]));

        let text = str::from_utf8(&bytes).unwrap();
        assert!(text.starts_with("cnblogs-proxy store 2 sha256:") && text.contains("\"main\""), "{text}");
        for hidden in ["secret", "园子", "id", "a.test", "_token"] {
            assert!(!text.contains(hidden), "{hidden} in {text}");
        }
        assert_eq!(sealed_with(&bytes).unwrap().into_keys().collect::<Vec<_>>(), ["main"]);
    }

    #[test]
    fn the_format_is_a_newer_one_only_when_something_is_sealed() {
        for (generation, keys) in [(generation(), plain()), (Generation::default(), keys(&[1]))] {
            assert!(generation.encode(&keys).starts_with(b"cnblogs-proxy store 1 sha256:"));
        }
    }

    #[test]
    fn what_does_not_open_is_not_damaged_and_the_keys_that_were_tried_are_named() {
        let sealed = generation().encode(&keys(&[1]));
        assert_eq!(Generation::decode(&sealed, &keys(&[2, 1])).unwrap().records.len(), 1);
        for (tried, says) in [(plain(), "no key is configured"), (keys(&[2, 3]), "tried file 2 (key ")] {
            let damage = Generation::decode(&sealed, &tried).unwrap_err();
            let Damage::Sealed { account, source } = damage else { panic!("{damage}") };
            assert!(account == "main" && source.to_string().contains(says), "{source}");
        }
    }

    #[test]
    fn a_sealed_record_opens_under_no_other_name_and_in_no_other_generation() {
        let keys = keys(&[1]);
        let sealed = generation().encode(&keys);
        let json = str::from_utf8(&sealed).unwrap().split_once('\n').unwrap().1;
        let opened = |json: &str| Generation::decode(&in_file(SEALED, json.as_bytes()), &keys);
        assert!(opened(json).is_ok());

        for (from, to) in [("\"main\"", "\"other\""), (":7,", ":8,"), (":7,", ":6,")] {
            let damage = opened(&json.replace(from, to)).unwrap_err();
            assert!(matches!(damage, Damage::Sealed { source: SealError::Altered { .. }, .. }), "{damage}");
        }
    }

    /// A login with this access token that belongs to a client, a grant and a token endpoint.
    fn login(
        access_token: &str,
        client_id: &str,
        grant: Option<GrantType>,
        token_url: Option<&str>,
    ) -> Record {
        let binding = Binding { client_id: client_id.into(), grant, token_url: token_url.map(Into::into) };
        let login = generation().records["main"].clone();
        Record { binding, access_token: access_token.into(), ..login }
    }

    /// Which login of `main` is found for this one's binding.
    fn found(generation: &Generation, login: &Record) -> Option<String> {
        let found = generation.record("main", &login.binding)?;
        Some(found.access_token.expose_secret().to_owned())
    }

    #[test]
    fn logins_of_one_account_that_belong_to_different_things_are_kept_beside_one_another() {
        use GrantType::{AuthorizationCode, ClientCredentials};
        let logins = [
            login("one", "id", Some(AuthorizationCode), Some("https://a.test/token")),
            login("two", "other", Some(AuthorizationCode), Some("https://a.test/token")),
            login("three", "id", Some(ClientCredentials), Some("https://a.test/token")),
            login("four", "id", Some(AuthorizationCode), Some("https://b.test/token")),
        ];
        let mut generation = Generation::default();
        for login in &logins {
            assert_eq!(found(&generation, login), None);
            generation.put("main", login.clone());
        }

        for login in &logins {
            assert_eq!(found(&generation, login).unwrap(), login.access_token.expose_secret());
            generation.put("main", login.clone());
        }
        assert_eq!(generation.records_of("main").count(), 4, "each takes the place of its own kind");
        assert_eq!(generation.records["main"].access_token.expose_secret(), "one");
        assert_eq!(generation.accounts(), BTreeSet::from(["main".to_owned()]));
        generation.put("mai", logins[0].clone());
        generation.erase("main");
        assert_eq!(generation.records.keys().collect::<Vec<_>>(), ["mai"]);
    }

    #[test]
    fn the_key_of_a_login_beside_another_is_the_same_for_good() {
        assert_eq!(binding().key("main"), "main@c389003b");
    }

    #[test]
    fn a_login_that_does_not_say_what_it_belongs_to_matches_whatever_it_may_be() {
        use GrantType::{AuthorizationCode, ClientCredentials};
        let asked = |grant| login("", "id", Some(grant), Some("https://a.test/token"));
        let mut generation = Generation::default();
        for (grant, expected) in [(None, [true, true]), (Some(AuthorizationCode), [true, false])] {
            generation.records.insert("main".into(), login("old", "id", grant, None));
            let is_found = |grant| found(&generation, &asked(grant)).is_some();
            assert_eq!([AuthorizationCode, ClientCredentials].map(is_found), expected);
            assert!(found(&generation, &login("", "other", grant, None)).is_none());
        }

        generation.put("main", login("new", "id", Some(AuthorizationCode), Some("https://a.test/token")));
        assert_eq!(generation.records.len(), 1, "it takes the place of what it came from");
        generation.put("main", login("app", "id", Some(ClientCredentials), Some("https://a.test/token")));
        // 0.1.0 saves without what it does not know: the one beside is still the application's.
        generation.records.insert("main".into(), login("old", "id", None, None));
        assert_eq!(found(&generation, &asked(ClientCredentials)).unwrap(), "app");
        generation.put("main", login("app2", "id", Some(ClientCredentials), Some("https://a.test/token")));
        assert_eq!(found(&generation, &asked(AuthorizationCode)).unwrap(), "old");
        assert_eq!(found(&generation, &asked(ClientCredentials)).unwrap(), "app2");
    }

    #[test]
    fn a_login_under_a_free_name_of_its_account_has_no_other_place() {
        let mut generation = Generation::default();
        let one = login("one", "id", Some(GrantType::AuthorizationCode), Some("https://a.test/token"));
        generation.records.insert(one.binding.key("main"), one.clone());

        generation.put("main", one);

        assert_eq!(generation.records.keys().collect::<Vec<_>>(), ["main"]);
    }

    #[test]
    fn what_was_retried_is_said_only_when_it_was() {
        let mut generation = generation();
        let text = |generation: &Generation| String::from_utf8(generation.encode(&plain()).to_vec()).unwrap();
        assert!(!text(&generation).contains("is_retried"));

        generation.records.get_mut("main").unwrap().is_retried = true;

        assert!(text(&generation).contains("\"is_retried\":true"));
        assert!(
            Generation::decode(&generation.encode(&plain()), &plain()).unwrap().records["main"].is_retried
        );
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_damage() {
        for keys in [plain(), keys(&[1])] {
            let good = generation().encode(&keys);
            for length in 0..good.len() {
                assert!(Generation::decode(&good[..length], &keys).is_err(), "{length} bytes");
            }
            for bit in 0..good.len() * 8 {
                let mut bad = good.to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                let damage = Generation::decode(&bad, &keys).unwrap_err();
                assert!(matches!(damage, Damage::NotAStore | Damage::Checksum), "bit {bit}: {damage}");
            }
        }
    }

    /// Files as each version of the format was first released. They never change, and are read for good.
    const RELEASED: [&[u8]; SEALED as usize] =
        [include_bytes!("../testing/store-1"), include_bytes!("../testing/store-2")];

    #[test]
    fn every_released_format_is_read_for_good() {
        for (index, file) in RELEASED.iter().enumerate() {
            let version = format!("{MAGIC}{} ", index + 1);
            assert!(file.starts_with(version.as_bytes()), "{version}");

            let read = Generation::decode(file, &keys(&[1])).unwrap();

            assert_eq!((read.number, read.records.len()), (41, 2), "{version}");
            let (full, bare) = (&read.records["main"], &read.records["application"]);
            let client_id = "BDB525D7-13C9-440E-AF03-6ADF87ACC8D6".to_owned();
            let (grant, token_url) = (Some(GrantType::AuthorizationCode), None);
            assert_eq!(full.binding, Binding { client_id, grant, token_url }, "{version}");
            assert_eq!((bare.binding.grant, &bare.binding.token_url), (None, &None), "{version}");
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
        let mut bytes = format!("{MAGIC}3 sha256:{}\n", checksum(3, json)).into_bytes();
        bytes.extend_from_slice(json);

        assert!(matches!(Generation::decode(&bytes, &plain()), Err(Damage::Newer { version: 3 })));
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let shown = format!("{:?}", generation());

        assert!(!shown.contains("access-secret") && !shown.contains("refresh-secret"), "{shown}");
    }
}
