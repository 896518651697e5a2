//! The authorization server's public keys (RFC 7517): fetched when a login needs them, from the configured
//! address only, whatever a token's header says.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::Url;

use super::{LoginError, METADATA_TIMEOUT, body};
use crate::token::Moment;

/// An unknown key id leads to another look at most this often.
const REFETCH_AFTER: Duration = Duration::from_secs(60);
/// Keys are looked at again after this long in any case: servers change them.
const KEEP_FOR: Duration = Duration::from_secs(3600);

/// One public key for signatures.
#[derive(Debug)]
pub(super) struct PublicKey {
    jwk: Jwk,
    decoding: DecodingKey,
}

/// What was fetched last. `None` inside says that the server publishes nothing.
#[derive(Debug, Default)]
pub(super) struct Keys {
    cache: Mutex<Option<Fetched>>,
}

#[derive(Clone, Debug)]
struct Fetched {
    at: Moment,
    /// When a key id was looked for in vain.
    unknown_at: Option<Moment>,
    keys: Option<Arc<Vec<PublicKey>>>,
}

impl PublicKey {
    pub(super) const fn decoding(&self) -> &DecodingKey {
        &self.decoding
    }

    /// True when neither key id nor algorithm speak against it.
    pub(super) fn may_have_signed(&self, kid: Option<&str>, algorithm: Algorithm) -> bool {
        let common = &self.jwk.common;
        let same_id = kid.is_none() || common.key_id.is_none() || common.key_id.as_deref() == kid;
        let fits_algorithm = common
            .key_algorithm
            .is_none_or(|own| own.to_string().eq_ignore_ascii_case(&format!("{algorithm:?}")));
        let fits_kind = match algorithm {
            Algorithm::ES256 | Algorithm::ES384 => {
                matches!(self.jwk.algorithm, AlgorithmParameters::EllipticCurve(_))
            }
            Algorithm::EdDSA => matches!(self.jwk.algorithm, AlgorithmParameters::OctetKeyPair(_)),
            _ => matches!(self.jwk.algorithm, AlgorithmParameters::RSA(_)),
        };
        same_id && fits_algorithm && fits_kind
    }
}

impl Keys {
    /// The keys that may have signed `id_token`; none when the server publishes none.
    pub(super) async fn fetch(
        &self,
        http: &reqwest::Client,
        url: Option<&Url>,
        id_token: &SecretString,
        now: Moment,
    ) -> Result<Option<Arc<Vec<PublicKey>>>, LoginError> {
        let Some(url) = url else { return Ok(None) };
        let kid = jsonwebtoken::decode_header(id_token.expose_secret()).ok().and_then(|header| header.kid);
        let cached = self.cache.lock().expect("no thread panics while it holds the keys").clone();
        if let Some(fetched) = &cached
            && !fetched.needs_another_look(kid.as_deref(), now)
        {
            return Ok(fetched.keys.clone());
        }

        let keys = download(http, url).await.map_err(LoginError::Keys)?.map(Arc::new);
        let is_unknown = keys.as_ref().is_some_and(|keys| !knows(keys, kid.as_deref()));
        let unknown_at = if is_unknown { Some(now) } else { cached.and_then(|fetched| fetched.unknown_at) };
        *self.cache.lock().expect("no thread panics while it holds the keys") =
            Some(Fetched { at: now, unknown_at, keys: keys.clone() });
        Ok(keys)
    }

    /// Forgets keys by which a signature did not verify: a server may give a new key the old one's id, or none. False
    /// when they were fetched just now.
    pub(super) fn forget_older(&self, now: Moment) -> bool {
        let mut cache = self.cache.lock().expect("no thread panics while it holds the keys");
        cache.take_if(|fetched| now.since(fetched.at) >= REFETCH_AFTER).is_some()
    }
}

/// How many keys there are now; none when the server publishes none.
pub(super) async fn count(http: &reqwest::Client, url: &Url) -> Result<Option<usize>, LoginError> {
    let keys = download(http, url).await.map_err(LoginError::Keys)?;
    Ok(keys.map(|keys| keys.len()))
}

impl Fetched {
    fn needs_another_look(&self, kid: Option<&str>, now: Moment) -> bool {
        let Some(keys) = &self.keys else { return now.since(self.at) >= REFETCH_AFTER };
        let is_old = now.since(self.at) >= KEEP_FOR;
        let has_looked = self.unknown_at.is_some_and(|at| now.since(at) < REFETCH_AFTER);
        is_old || (!knows(keys, kid) && !has_looked)
    }
}

fn knows(keys: &[PublicKey], kid: Option<&str>) -> bool {
    kid.is_none() || keys.iter().any(|key| key.jwk.common.key_id.as_deref() == kid)
}

async fn download(http: &reqwest::Client, url: &Url) -> Result<Option<Vec<PublicKey>>, String> {
    let asked = http.get(url.clone()).timeout(METADATA_TIMEOUT).send();
    let answer = asked.await.map_err(|error| body::why(&error))?;
    match answer.status() {
        StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
        status if !status.is_success() => return Err(format!("{url} answered {status}")),
        _ => {}
    }
    let set = body::json(answer).await.map_err(|reason| format!("{url}: {reason}"))?;
    let keys = set.0.get("keys").and_then(Value::as_array);
    let keys = keys.ok_or_else(|| format!("{url} answered no key set"))?;
    // A key of a kind that we do not know is no reason to refuse the others.
    Ok(Some(keys.iter().filter_map(key).collect()))
}

/// One key of a set; none when it is not public, not for signatures, or of a kind that we do not know.
pub(super) fn key(value: &Value) -> Option<PublicKey> {
    let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return None;
    }
    let is_public = !matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_));
    let decoding = is_public.then(|| DecodingKey::from_jwk(&jwk).ok()).flatten()?;
    Some(PublicKey { jwk, decoding })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rsa(more: Value) -> Value {
        let mut jwk = json!({ "kty": "RSA", "n": "AQAB", "e": "AQAB" });
        let Value::Object(more) = more else { panic!("{more} is no object") };
        jwk.as_object_mut().unwrap().extend(more);
        jwk
    }

    #[test]
    fn a_key_may_have_signed_unless_its_id_its_algorithm_or_its_kind_speaks_against_it() {
        use Algorithm::{ES256, ES384, EdDSA, PS512, RS256};
        let ec = json!({ "kty": "EC", "crv": "P-256", "x": "AQAB", "y": "AQAB" });
        let okp = json!({ "kty": "OKP", "crv": "Ed25519", "x": "AQAB" });
        let cases = [
            (rsa(json!({ "kid": "a" })), Some("a"), RS256, true),
            (rsa(json!({ "kid": "a" })), None, RS256, true),
            (rsa(json!({ "kid": "a" })), Some("b"), RS256, false),
            (rsa(json!({})), Some("b"), RS256, true),
            (rsa(json!({})), None, PS512, true),
            (rsa(json!({ "alg": "RS256" })), None, RS256, true),
            (rsa(json!({ "alg": "RS256" })), None, PS512, false),
            (rsa(json!({ "kid": "a", "alg": "RS256" })), Some("a"), PS512, false),
            (rsa(json!({})), None, ES256, false),
            (rsa(json!({})), None, EdDSA, false),
            (ec.clone(), None, ES256, true),
            (ec.clone(), None, ES384, true),
            (ec.clone(), None, RS256, false),
            (ec, None, EdDSA, false),
            (okp.clone(), None, EdDSA, true),
            (okp.clone(), None, ES256, false),
            (okp, None, RS256, false),
        ];
        for (jwk, kid, algorithm, expected) in cases {
            let may = key(&jwk).unwrap().may_have_signed(kid, algorithm);
            assert_eq!(may, expected, "{jwk}, {kid:?}, {algorithm:?}");
        }
    }

    #[test]
    fn only_public_keys_for_signatures_are_taken() {
        assert!(key(&rsa(json!({ "use": "sig" }))).is_some());
        for jwk in [
            rsa(json!({ "use": "enc" })),
            rsa(json!({ "n": "not base64!" })),
            json!({ "kty": "oct", "k": "AQAB" }),
            json!({ "kty": "RSA" }),
            json!("garbage"),
        ] {
            assert!(key(&jwk).is_none(), "{jwk}");
        }
    }

    #[test]
    fn keys_that_did_not_verify_are_forgotten_but_not_too_often() {
        let at = |secs: i64| Moment::new(0, secs * 1000);
        let keys = Keys::default();
        assert!(!keys.forget_older(at(1000)));
        *keys.cache.lock().unwrap() = Some(Fetched { at: at(0), unknown_at: None, keys: None });

        assert!(!keys.forget_older(at(59)) && keys.cache.lock().unwrap().is_some());
        assert!(keys.forget_older(at(60)) && keys.cache.lock().unwrap().is_none());
    }

    #[test]
    fn keys_are_looked_at_again_when_old_or_for_an_unknown_id_but_not_too_often() {
        let at = |secs: i64| Moment::new(0, secs * 1000);
        let published = |unknown_at: Option<i64>| Fetched {
            at: at(0),
            unknown_at: unknown_at.map(at),
            keys: Some(Arc::new(vec![key(&rsa(json!({ "kid": "a" }))).unwrap()])),
        };
        let nothing = Fetched { at: at(0), unknown_at: None, keys: None };
        let cases = [
            (&nothing, Some("a"), 59, false),
            (&nothing, None, 60, true),
            (&published(None), Some("a"), 3599, false),
            (&published(None), Some("a"), 3600, true),
            (&published(None), None, 3599, false),
            (&published(None), None, 3600, true),
            (&published(None), Some("b"), 0, true),
            (&published(Some(10)), Some("b"), 10, false),
            (&published(Some(10)), Some("b"), 69, false),
            (&published(Some(10)), Some("b"), 70, true),
            (&published(Some(3590)), Some("b"), 3600, true),
            (&published(Some(10)), Some("a"), 70, false),
        ];
        for (fetched, kid, after_secs, expected) in cases {
            let needs = fetched.needs_another_look(kid, at(after_secs));
            assert_eq!(needs, expected, "{fetched:?}, {kid:?}, {after_secs} s");
        }
    }
}
