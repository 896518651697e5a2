//! The file that a login is kept in.

use std::collections::BTreeMap;

use ring::digest;
use secrecy::{ExposeSecret as _, SecretString};

use super::record::{Binding, Damage, Generation, Record};
use crate::config::GrantType;
use crate::testing::fuzz::Input;
use crate::token::Person;

/// What is read as a store was whole, and is read the same after it was written again.
pub fn record(bytes: &[u8]) {
    let sealed = sealed(bytes);
    for bytes in [bytes, &sealed] {
        let Ok(read) = Generation::decode(bytes) else { continue };
        let end = bytes.iter().position(|byte| *byte == b'\n').expect("a header line");
        let header = [b"cnblogs-proxy store 1 sha256:", sum(&bytes[end + 1..]).as_bytes()].concat();
        assert_eq!(bytes[..end].escape_ascii().to_string(), header.escape_ascii().to_string());

        let written = read.encode();
        let again = Generation::decode(&written).expect("we read what we wrote");
        assert_eq!((read.number, fields(&read)), (again.number, fields(&again)));
        assert_eq!(written, again.encode());
    }
}

/// Every login is read as it was written, and with anything changed it is damage, and certainly so.
pub fn record_round_trip(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut records = BTreeMap::new();
    for _ in 0..input.below(4) {
        records.insert(input.text(), login(&mut input));
    }
    let generation = Generation { number: number(&mut input), records };

    let written = generation.encode();
    assert_eq!(written.len() as u64, generation.encoded_len());
    let read = Generation::decode(&written).expect("we read what we wrote");
    assert_eq!((generation.number, fields(&generation)), (read.number, fields(&read)));

    let mut damaged = written.to_vec();
    let at = input.below(damaged.len());
    match input.below(5) {
        0 => damaged[at] ^= 1 << input.below(8),
        1 => damaged.truncate(at),
        2 => drop(damaged.splice(at..at, input.bytes().iter().copied())),
        3 => damaged.extend_from_slice(input.bytes()),
        _ => {
            let to = input.below(damaged.len());
            damaged.swap(at, to);
        }
    }
    if damaged != *written {
        let damage = Generation::decode(&damaged).expect_err("it was changed");
        assert!(!matches!(damage, Damage::Newer { .. }), "{damage}");
    }
}

/// The bytes as the content of a store, with the right checksum.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    [format!("cnblogs-proxy store 1 sha256:{}\n", sum(bytes)).as_bytes(), bytes].concat()
}

fn sum(content: &[u8]) -> String {
    let bytes = [&[0, 0, 0, 1], content].concat();
    digest::digest(&digest::SHA256, &bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
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
    fn record_round_trip_notices_every_change() {
        holds("record_round_trip", 1000, record_round_trip);
    }
}
