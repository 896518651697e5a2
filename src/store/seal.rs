//! Sealing: what is stored is of use only to whoever has the key (AES-256-GCM, RFC 5116, section 5.2).
//!
//! A sealed record is a version byte, four bytes that tell the key, a nonce of 12 random bytes, the ciphertext and its
//! tag of 16 bytes. Its place is associated data: elsewhere it does not open.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use crate::config::SealKey;

const VERSION: u8 = 1;
const ID: usize = 4;
const NONCE: usize = 12;
const TAG: usize = 16;
const HEADER: usize = 1 + ID;
/// Keeps a key's name apart from other digests of the same bytes.
const ID_LABEL: &[u8] = b"cnblogs-proxy seal key\0";

/// The keys that records are sealed with: the first seals, all of them open. Without any, nothing is sealed.
#[derive(Debug, Default)]
pub struct SealKeys(Vec<Key>);

struct Key {
    name: String,
    id: KeyId,
    bytes: Zeroizing<[u8; 32]>,
}

/// Tells keys apart, and says nothing about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId([u8; ID]);

/// What a sealed record is bound to: anywhere else it does not open.
#[derive(Clone, Copy, Debug)]
pub struct SealedFor<'a> {
    /// What kind of store it is in, or the schema of its table.
    pub schema: &'a str,
    /// The account, or the key of its record.
    pub account: &'a str,
    /// The generation that it belongs to.
    pub generation: u64,
}

/// A new key as text, wiped when dropped.
///
/// # Panics
/// When the system has no random numbers.
pub fn new_key() -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 32]);
    SystemRandom::new().fill(&mut *bytes).expect("the system has random numbers");
    Zeroizing::new(STANDARD.encode(*bytes))
}

/// Why a sealed record does not open. Nothing says that it is damaged: with the right key it may be whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key that sealed it is none of ours.
    #[error("sealed with key {sealed_with}, which is not here ({})", words_for_tried(.tried))]
    NoKey {
        /// The key that sealed it.
        sealed_with: KeyId,
        /// The names of the keys that were tried.
        tried: Vec<String>,
    },
    /// It was changed, or sealed for another account, generation or store.
    #[error("{key} does not open it: it was changed, or belongs to another account, generation or store")]
    Altered {
        /// The key that should have opened it.
        key: String,
    },
    /// It is too short, or sealed in a way that only a newer program knows.
    #[error("not sealed in a way that this program knows")]
    Unknown,
}

impl SealKeys {
    /// The keys of a configuration, in its order.
    pub fn new(keys: &[SealKey]) -> Self {
        let key = |key: &SealKey| {
            let bytes = Zeroizing::new(*key.bytes.expose_secret());
            Key { name: key.from.clone(), id: KeyId::of(&bytes), bytes }
        };
        Self(keys.iter().map(key).collect())
    }

    /// The key that seals; none when nothing is sealed.
    pub fn first(&self) -> Option<KeyId> {
        self.0.first().map(|key| key.id)
    }

    /// The names of all keys, for messages.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// The name of the key that sealed this, when it is one of ours.
    pub fn name_of(&self, sealed: &[u8]) -> Option<String> {
        let id = KeyId::of_sealed(sealed)?;
        self.0.iter().find(|key| key.id == id).map(ToString::to_string)
    }

    /// True when the first key sealed this.
    pub fn is_of_first(&self, sealed: &[u8]) -> bool {
        self.first().is_some_and(|first| KeyId::of_sealed(sealed) == Some(first))
    }

    /// Seals a record for its place with the first key.
    ///
    /// # Panics
    /// When there is no key, or the system has no random numbers.
    pub fn seal(&self, what: &SealedFor<'_>, plain: &[u8]) -> Vec<u8> {
        let key = self.0.first().expect("only who has a key seals");
        let mut nonce = [0; NONCE];
        SystemRandom::new().fill(&mut nonce).expect("the system has random numbers");

        let mut sealed = Vec::with_capacity(HEADER + NONCE + plain.len() + TAG);
        sealed.push(VERSION);
        sealed.extend(key.id.0);
        let associated = what.associated_with(&sealed);
        sealed.extend(nonce);
        // Encrypted where it stands, so that no plain copy is left.
        sealed.extend(plain);
        let (_, text) = sealed.split_at_mut(HEADER + NONCE);
        let tag = key.cipher().seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(associated),
            text,
        );
        sealed.extend(tag.expect("a record is shorter than 64 GiB").as_ref());
        sealed
    }

    /// Opens what was sealed for this place, with whichever key did it.
    ///
    /// # Errors
    /// When none of the keys did, it was changed, or it was sealed for another place.
    pub fn open(&self, what: &SealedFor<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let id = KeyId::of_sealed(sealed).ok_or(SealError::Unknown)?;
        let (header, rest) = sealed.split_at(HEADER);
        let (nonce, text) = rest.split_at(NONCE);
        let associated = what.associated_with(header);
        let mut ours = self.0.iter().filter(|key| key.id == id).peekable();
        let Some(name) = ours.peek().map(ToString::to_string) else {
            return Err(SealError::NoKey { sealed_with: id, tried: self.names() });
        };
        let opened = ours.find_map(|key| {
            let mut text = Zeroizing::new(text.to_vec());
            let nonce = Nonce::try_assume_unique_for_key(nonce).expect("it has its length");
            let length = key.cipher().open_in_place(nonce, Aad::from(&associated), &mut text).ok()?.len();
            text.truncate(length);
            Some(text)
        });
        opened.ok_or(SealError::Altered { key: name })
    }
}

impl Key {
    /// Made for each use: `ring` does not wipe what it holds.
    fn cipher(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*self.bytes).expect("a key has its length"))
    }
}

impl KeyId {
    fn of(key: &[u8; 32]) -> Self {
        let sum = digest(&SHA256, &Zeroizing::new([ID_LABEL, key].concat()));
        Self(*sum.as_ref().first_chunk().expect("a digest has 32 bytes"))
    }

    /// The key that sealed this; none when it can't be a sealed record.
    pub fn of_sealed(sealed: &[u8]) -> Option<Self> {
        let (version, rest) = sealed.split_first()?;
        let is_whole = *version == VERSION && sealed.len() >= HEADER + NONCE + TAG;
        is_whole.then_some(Self(*rest.first_chunk()?))
    }
}

impl SealedFor<'_> {
    /// The header and the place, each text behind its length, so that no two places read the same.
    fn associated_with(&self, header: &[u8]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        for text in [self.schema, self.account] {
            bytes.extend((text.len() as u64).to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes.extend(self.generation.to_be_bytes());
        bytes
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (key {})", self.name, self.id)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn words_for_tried(tried: &[String]) -> String {
    if tried.is_empty() { "no key is configured".to_owned() } else { format!("tried {}", tried.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SealedFor<'_> = SealedFor { schema: "file", account: "main", generation: 7 };
    const PLAIN: &[u8] = b"access-secret";

    fn keys(bytes: &[u8]) -> SealKeys {
        let key =
            |byte: &u8| SealKey { from: format!("file {byte}.key"), bytes: Box::new([*byte; 32]).into() };
        SealKeys::new(&bytes.iter().map(key).collect::<Vec<_>>())
    }

    #[test]
    fn what_was_sealed_opens_in_its_place_alone() {
        let keys = keys(&[1]);
        let sealed = keys.seal(&HERE, PLAIN);
        assert_eq!(**keys.open(&HERE, &sealed).unwrap(), *PLAIN);
        assert_eq!(sealed.len(), PLAIN.len() + HEADER + NONCE + TAG);

        for elsewhere in [
            SealedFor { schema: "cnblogs_proxy", ..HERE },
            SealedFor { account: "main@1f0c53a9", ..HERE },
            SealedFor { account: "", ..HERE },
            SealedFor { schema: "filem", account: "ain", ..HERE },
            SealedFor { schema: "", account: "filemain", ..HERE },
            SealedFor { generation: 6, ..HERE },
            SealedFor { generation: 8, ..HERE },
        ] {
            let refused = keys.open(&elsewhere, &sealed).unwrap_err();
            assert!(matches!(refused, SealError::Altered { .. }), "{elsewhere:?}: {refused}");
        }
    }

    #[test]
    fn nothing_opens_with_a_bit_flipped_or_a_byte_less_or_more() {
        let keys = keys(&[1, 2]);
        let sealed = keys.seal(&HERE, PLAIN);
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(keys.open(&HERE, &changed).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(keys.open(&HERE, &sealed[..length]).is_err(), "{length} bytes");
        }
        assert!(keys.open(&HERE, &[&sealed[..], b"\0"].concat()).is_err());
    }

    #[test]
    fn the_first_key_seals_and_all_of_them_open() {
        let (old, both, new) = (keys(&[1]), keys(&[2, 1]), keys(&[2]));
        let sealed = old.seal(&HERE, PLAIN);
        assert!(old.is_of_first(&sealed) && !both.is_of_first(&sealed) && !keys(&[]).is_of_first(&sealed));
        assert_eq!(**both.open(&HERE, &sealed).unwrap(), *PLAIN);
        assert!(both.name_of(&sealed).unwrap().starts_with("file 1.key (key "));

        let again = both.seal(&HERE, PLAIN);
        assert!(both.is_of_first(&again) && new.open(&HERE, &again).is_ok());

        let refused = new.open(&HERE, &sealed).unwrap_err();
        let SealError::NoKey { sealed_with, tried } = &refused else { panic!("{refused}") };
        assert_eq!((Some(*sealed_with), tried.len()), (old.first(), 1));
        assert!(refused.to_string().contains("tried file 2.key (key "), "{refused}");
        assert!(keys(&[]).open(&HERE, &sealed).unwrap_err().to_string().contains("no key is configured"));
    }

    #[test]
    fn the_same_record_is_sealed_differently_each_time() {
        let keys = keys(&[1]);
        let one = keys.seal(&HERE, PLAIN);
        let nonce = HEADER..HEADER + NONCE;

        let all = (0..100).map(|_| keys.seal(&HERE, PLAIN)[nonce.clone()].to_vec());

        assert_eq!(
            all.chain([one[nonce.clone()].to_vec()]).collect::<std::collections::BTreeSet<_>>().len(),
            101
        );
    }

    #[test]
    fn what_was_sealed_once_opens_for_good() {
        let sealed: Vec<u8> = (0..SEALED.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&SEALED[at..at + 2], 16).unwrap())
            .collect();
        assert_eq!(**keys(&[1]).open(&HERE, &sealed).unwrap(), *PLAIN);
    }

    /// Made by the first version that sealed. It never changes.
    const SEALED: &str =
        "01e62248fc000102030405060708090a0bdac5f643538d2b0a9b0995a154b987cb9a132b6682b3b936871597cab0";

    #[test]
    fn no_key_is_shown() {
        let shown = format!("{:?} {:?}", keys(&[0xab]), keys(&[0xab]).names());
        assert!(shown.contains("file 171.key") && !shown.to_lowercase().contains("abab"), "{shown}");
        assert!(!shown.contains("171, 171"), "{shown}");
    }
}
