//! The file that a login is kept in.

use std::collections::BTreeMap;

use ring::digest;
use secrecy::{ExposeSecret as _, SecretString};

use super::record::{Binding, Damage, Generation, Record};
use super::seal::{SealKeys, SealedFor};
use crate::config::{GrantType, SealKey};
use crate::testing::fuzz::Input;
use crate::token::Person;

/// What is read as a store was whole, and is read the same after it was written again. Nothing is read as sealed that
/// the key did not seal.
pub fn record(bytes: &[u8]) {
    let keys = keys();
    let (plain, claimed) = (in_file(1, bytes), in_file(2, bytes));
    for bytes in [bytes, &plain, &claimed] {
        let Ok(read) = Generation::decode(bytes, &keys) else { continue };
        let end = bytes.iter().position(|byte| *byte == b'\n').expect("a header line");
        let version = if bytes.starts_with(b"cnblogs-proxy store 2") { 2 } else { 1 };
        let header = in_file(version, &bytes[end + 1..]);
        assert!(header == bytes && (version == 1 || read.records.is_empty()), "{}", bytes.escape_ascii());

        for keys in [&SealKeys::default(), &keys] {
            let written = read.encode(keys);
            let again = Generation::decode(&written, keys).expect("we read what we wrote");
            assert_eq!((read.number, fields(&read)), (again.number, fields(&again)));
        }
    }
}

/// Strangers' bytes do not open; what was sealed opens in its place and as it was, and in no other.
pub fn sealed(bytes: &[u8]) {
    let keys = keys();
    let mut input = Input::new(bytes);
    let (schema, account, generation) = (input.text(), input.text(), number(&mut input));
    let here = SealedFor { schema: &schema, account: &account, generation };
    let other = (input.text(), input.text(), number(&mut input));
    let there = SealedFor { schema: &other.0, account: &other.1, generation: other.2 };
    let plain = input.rest();
    assert!(keys.open(&here, plain).is_err());

    let sealed = keys.seal(&here, plain);
    assert_eq!(**keys.open(&here, &sealed).expect("it is as it was"), *plain);
    let is_elsewhere = (&schema, &account, generation) != (&other.0, &other.1, other.2);
    assert_eq!(keys.open(&there, &sealed).is_err(), is_elsewhere);
    let changed = changed(&sealed, &mut Input::new(bytes));
    assert_eq!(keys.open(&here, &changed).is_err(), changed != sealed);
}

/// Every login is read as it was written, and with anything changed it is damage, and certainly so.
pub fn record_round_trip(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut records = BTreeMap::new();
    for _ in 0..input.below(4) {
        records.insert(input.text(), login(&mut input));
    }
    let generation = Generation { number: number(&mut input), records, sealed_with: None };
    let keys = if input.flag() { keys() } else { SealKeys::default() };

    let written = generation.encode(&keys);
    assert_eq!(written.len() as u64, generation.encoded_len(&keys));
    let read = Generation::decode(&written, &keys).expect("we read what we wrote");
    assert_eq!((generation.number, fields(&generation)), (read.number, fields(&read)));

    let damaged = changed(&written, &mut input);
    if damaged != *written {
        let damage = Generation::decode(&damaged, &keys).expect_err("it was changed");
        assert!(!matches!(damage, Damage::Newer { .. } | Damage::Sealed { .. }), "{damage}");
    }
}

/// The bytes with something changed, or not.
fn changed(bytes: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    let at = input.below(changed.len());
    match input.below(5) {
        0 => changed[at] ^= 1 << input.below(8),
        1 => changed.truncate(at),
        2 => drop(changed.splice(at..at, input.bytes().iter().copied())),
        3 => changed.extend_from_slice(input.bytes()),
        _ => {
            let to = input.below(changed.len());
            changed.swap(at, to);
        }
    }
    changed
}

fn keys() -> SealKeys {
    SealKeys::new(&[SealKey { from: "file key".to_owned(), bytes: Box::new([7; 32]).into() }])
}

/// The bytes as the content of a store of this version, with the right checksum.
fn in_file(version: u32, bytes: &[u8]) -> Vec<u8> {
    let sum = digest::digest(&digest::SHA256, &[&version.to_be_bytes(), bytes].concat());
    let sum: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    [format!("cnblogs-proxy store {version} sha256:{sum}\n").as_bytes(), bytes].concat()
}

fn login(input: &mut Input<'_>) -> Record {
    let grants = [GrantType::AuthorizationCode, GrantType::ClientCredentials];
    let binding = Binding {
        client_id: input.text(),
        // What has none is a person's as soon as it shows that.
        grant: Some(grants[input.below(2)]),
        token_url: input.flag().then(|| input.text()),
    };
    Record {
        binding,
        access_token: input.text().into(),
        obtained_at_ms: number(input).cast_signed(),
        expires_in_secs: number(input),
        refresh_token: input.flag().then(|| input.text().into()),
        is_refused: input.flag(),
        is_retried: input.flag(),
        login_at_ms: number(input).cast_signed(),
        subject: input.flag().then(|| input.text()),
        issuer: input.flag().then(|| input.text()),
        person: input.flag().then(|| Person { id: input.text(), name: input.text() }),
    }
}

fn number(input: &mut Input<'_>) -> u64 {
    (0..8).fold(0, |number, _| number << 8 | u64::from(input.byte()))
}

/// Everything that a generation holds, secrets as well.
fn fields(generation: &Generation) -> Vec<String> {
    let fields = |(name, record): (&String, &Record)| {
        let refresh_token = record.refresh_token.as_ref().map(SecretString::expose_secret);
        let Record { binding, access_token, subject, issuer, person, .. } = record;
        let secrets = format!("{:?} {refresh_token:?}", access_token.expose_secret());
        let (obtained, expires, login) = (record.obtained_at_ms, record.expires_in_secs, record.login_at_ms);
        let times = format!("{obtained} {expires} {login} {} {}", record.is_refused, record.is_retried);
        format!("{name:?} {binding:?} {secrets} {times} {subject:?} {issuer:?} {person:?}")
    };
    generation.records.iter().map(fields).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fuzz::holds;

    #[test]
    fn record_that_is_read_was_whole() {
        holds("record", 2000, record);
    }

    #[test]
    fn sealed_bytes_open_in_their_place_alone() {
        holds("sealed", 1000, sealed);
    }

    #[test]
    fn record_round_trip_notices_every_change() {
        holds("record_round_trip", 1000, record_round_trip);
    }
}
