//! A login's `state` holds all that has to be known of it until its callback comes. So no list of logins in progress is
//! kept, and no number of logins that are begun can push another one out.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{hmac, rand::SystemRandom};

use crate::oauth::{Pending, random};
use crate::token::Moment;

/// 144 bits, written as a whole number of base64 groups.
const RANDOM_BYTES: usize = 18;
const RANDOM_CHARS: usize = 24;

/// Makes logins and knows them again. Its key lives as long as the process, as the boot-time clock does that a login's
/// age is told by, which nobody can set.
pub(super) struct Seal(hmac::Key);

impl Seal {
    pub(super) fn new() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        Self(key.expect("the system has random numbers"))
    }

    /// A login of this account that begins now.
    pub(super) fn begin(&self, account: &str, now: Moment) -> Pending {
        let random = random(RANDOM_BYTES);
        let started_ms = now.boot_ms().to_be_bytes();
        let tag = self.derive("state", account, &random, &started_ms);
        let hidden = self.hidden(account, &random, now.boot_ms()).to_be_bytes();
        let state = format!("{random}{}", URL_SAFE_NO_PAD.encode([&hidden[..], tag.as_ref()].concat()));
        self.pending(account, state, now)
    }

    /// The login of this account that has this `state`, however long ago it began; none for any other `state`.
    pub(super) fn open(&self, account: &str, state: &str, now: Moment) -> Option<Pending> {
        let (random, sealed) = state.split_at_checked(RANDOM_CHARS)?;
        let sealed = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (hidden, tag) = sealed.split_first_chunk()?;
        let started_ms = self.hidden(account, random, i64::from_be_bytes(*hidden));
        let signed = message("state", account, random, &started_ms.to_be_bytes());
        hmac::verify(&self.0, &signed, tag).ok()?;

        let age_ms = now.boot_ms().saturating_sub(started_ms);
        Some(self.pending(account, state.to_owned(), Moment::new(now.wall_ms() - age_ms, started_ms)))
    }

    /// `nonce` and `code_verifier` follow from the `state` for whoever has the key.
    fn pending(&self, account: &str, state: String, started: Moment) -> Pending {
        let derived = |label| URL_SAFE_NO_PAD.encode(self.derive(label, account, &state, &[]));
        let (nonce, code_verifier) = (derived("nonce"), derived("code_verifier").into());
        Pending::new(state, nonce, code_verifier, started)
    }

    /// A time as it is written in a `state`, or the reverse: nobody else is told how long the machine has run.
    fn hidden(&self, account: &str, random: &str, time: i64) -> i64 {
        let mask = self.derive("started", account, random, &[]);
        let mask = mask.as_ref().first_chunk().expect("a tag has 32 bytes");
        time ^ i64::from_be_bytes(*mask)
    }

    fn derive(&self, label: &str, account: &str, text: &str, more: &[u8]) -> hmac::Tag {
        hmac::sign(&self.0, &message(label, account, text, more))
    }
}

/// Neither labels nor names of accounts have a NUL, nor has a text that is not a `state` of ours a meaning.
fn message(label: &str, account: &str, text: &str, more: &[u8]) -> Vec<u8> {
    [label.as_bytes(), account.as_bytes(), text.as_bytes(), more].join(&0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Moment = Moment::new(1_700_000_000_000, 5_000);

    #[test]
    fn a_login_is_known_again_by_its_state_alone() {
        let seal = Seal::new();
        let begun = seal.begin("main", NOW);

        // Somebody set the wall clock meanwhile.
        let later = Moment::new(3_000_000_000_000, NOW.boot_ms() + 1_000);
        let known = seal.open("main", &begun.state, later).unwrap();

        assert_eq!((&known.state, &known.nonce), (&begun.state, &begun.nonce));
        assert_eq!(later.since(known.started), Duration::from_secs(1));
        assert!(begun.nonce.len() == 43 && !begun.state.contains(&begun.nonce));
    }

    #[test]
    fn any_other_state_is_unknown() {
        let seal = Seal::new();
        let state = seal.begin("main", NOW).state;
        let is_known = |account: &str, state: &str| seal.open(account, state, NOW).is_some();
        assert!(is_known("main", &state));

        for at in 0..state.len() {
            let other = if state.as_bytes()[at] == b'A' { "B" } else { "A" };
            assert!(!is_known("main", &format!("{}{other}{}", &state[..at], &state[at + 1..])), "{at}");
            assert!(!is_known("main", &state[..at]), "{at}");
        }
        for other in [format!("{state}A"), format!("{state}="), format!("{state}\u{e9}"), String::new()] {
            assert!(!is_known("main", &other), "{other}");
        }
        assert!(!is_known("other", &state) && Seal::new().open("main", &state, NOW).is_none());
    }
}
