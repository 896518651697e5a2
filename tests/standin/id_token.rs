//! `id_token`s: signed as Cnblogs signs them, or spoiled on request.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use ring::{digest, hmac};
use serde_json::{Value, json};

/// How an `id_token` is signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Signature {
    /// RS256 with the key that the key set has.
    #[default]
    Right,
    /// RS256 with a key that is in no key set, under the right `kid`.
    WrongKey,
    /// `alg: none` and an empty signature.
    None,
    /// HS256 with the public key as the secret.
    Hs256WithPublicKey,
    /// The right one with one bit flipped.
    Tampered,
}

/// The keys of the authorization server. They are fixed: ring makes none of its own.
pub(crate) struct Keys(Vec<RsaKeyPair>);

/// Which of the keys is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyName {
    First,
    AfterRotation,
    Stranger,
}

impl Keys {
    pub(crate) fn load() -> Self {
        let all = [
            &include_bytes!("../../src/testing/key-1.pk8")[..],
            include_bytes!("../../src/testing/key-2.pk8"),
            include_bytes!("../../src/testing/key-3.pk8"),
        ];
        let load = |key: &[u8]| RsaKeyPair::from_pkcs8(key).expect("the test keys are RSA in PKCS #8");
        Self(all.into_iter().map(load).collect())
    }

    /// The key's entry in a key set; `kid` may be another key's.
    pub(crate) fn jwk(&self, key: KeyName, kid_of: KeyName) -> Value {
        let public: PublicKeyComponents<Vec<u8>> = self.pair(key).public().into();
        let (kid, thumbprint) = self.kid(kid_of);
        json!({
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "x5t": thumbprint,
            "n": base64url(&public.n), "e": base64url(&public.e),
        })
    }

    /// The header that Cnblogs gives its `id_token`s.
    pub(crate) fn header(&self, key: KeyName) -> Value {
        let (kid, thumbprint) = self.kid(key);
        json!({ "alg": "RS256", "kid": kid, "typ": "JWT", "x5t": thumbprint })
    }

    /// Signs; `alg` in the header is set when the signature is none or HS256.
    pub(crate) fn sign(
        &self,
        key: KeyName,
        mut header: Value,
        claims: &Value,
        signature: Signature,
    ) -> String {
        match signature {
            Signature::None => header["alg"] = json!("none"),
            Signature::Hs256WithPublicKey => header["alg"] = json!("HS256"),
            Signature::Right | Signature::WrongKey | Signature::Tampered => {}
        }
        let signed = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
        let mut bytes = match signature {
            Signature::None => Vec::new(),
            Signature::Hs256WithPublicKey => {
                let secret = hmac::Key::new(hmac::HMAC_SHA256, self.pair(key).public_key().as_ref());
                hmac::sign(&secret, signed.as_bytes()).as_ref().to_vec()
            }
            Signature::WrongKey => self.rs256(KeyName::Stranger, &signed),
            Signature::Right | Signature::Tampered => self.rs256(key, &signed),
        };
        if signature == Signature::Tampered {
            bytes[100] ^= 1;
        }
        format!("{signed}.{}", base64url(bytes))
    }

    fn rs256(&self, key: KeyName, signed: &str) -> Vec<u8> {
        let pair = self.pair(key);
        let mut bytes = vec![0; pair.public().modulus_len()];
        let outcome = pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut bytes);
        outcome.expect("the buffer has the length of the modulus");
        bytes
    }

    fn pair(&self, key: KeyName) -> &RsaKeyPair {
        match key {
            KeyName::First => &self.0[0],
            KeyName::AfterRotation => &self.0[1],
            KeyName::Stranger => &self.0[2],
        }
    }

    fn kid(&self, key: KeyName) -> (String, String) {
        let thumbprint =
            digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, self.pair(key).public_key().as_ref());
        let kid = thumbprint.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        (kid, base64url(thumbprint))
    }
}

/// The left half of SHA-256 (`OpenID` Connect Core, section 3.3.2.11).
pub(crate) fn half_hash(of: &str) -> String {
    let whole = digest::digest(&digest::SHA256, of.as_bytes());
    base64url(&whole.as_ref()[..16])
}

/// The claims of a token, unverified.
pub(crate) fn claims_of(id_token: &str) -> Option<Value> {
    let claims = URL_SAFE_NO_PAD.decode(id_token.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&claims).ok()
}

/// Without padding.
pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Seconds since 1970.
pub(crate) fn unix_secs() -> u64 {
    UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).as_secs()
}
