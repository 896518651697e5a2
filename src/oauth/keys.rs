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

use super::{LoginError, answer};
use crate::notify::with_causes;
use crate::token::{Moment, now};

/// An unknown key id leads to another look at most this often.
const REFETCH_AFTER: Duration = Duration::from_secs(60);
/// Keys are looked at again after this long in any case: servers change them.
const KEEP_FOR: Duration = Duration::from_secs(3600);

/// One public key for signatures.
#[derive(Debug)]
pub(super) struct Key {
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
    keys: Option<Arc<Vec<Key>>>,
}

impl Key {
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
    ) -> Result<Option<Arc<Vec<Key>>>, LoginError> {
        let Some(url) = url else { return Ok(None) };
        let kid = jsonwebtoken::decode_header(id_token.expose_secret()).ok().and_then(|header| header.kid);
        let cached = self.cache.lock().expect("no thread panics while it holds the keys").clone();
        let looked_at = now();
        if let Some(fetched) = &cached
            && !fetched.needs_another_look(kid.as_deref(), looked_at)
        {
            return Ok(fetched.keys.clone());
        }

        let keys = download(http, url).await.map_err(LoginError::Keys)?.map(Arc::new);
        let is_unknown = keys.as_ref().is_some_and(|keys| !knows(keys, kid.as_deref()));
        let unknown_at =
            if is_unknown { Some(looked_at) } else { cached.and_then(|fetched| fetched.unknown_at) };
        *self.cache.lock().expect("no thread panics while it holds the keys") =
            Some(Fetched { at: looked_at, unknown_at, keys: keys.clone() });
        Ok(keys)
    }
}

impl Fetched {
    fn needs_another_look(&self, kid: Option<&str>, now: Moment) -> bool {
        let Some(keys) = &self.keys else { return now.since(self.at) >= REFETCH_AFTER };
        let is_old = now.since(self.at) >= KEEP_FOR;
        let has_looked = self.unknown_at.is_some_and(|at| now.since(at) < REFETCH_AFTER);
        is_old || (!knows(keys, kid) && !has_looked)
    }
}

fn knows(keys: &[Key], kid: Option<&str>) -> bool {
    kid.is_none() || keys.iter().any(|key| key.jwk.common.key_id.as_deref() == kid)
}

async fn download(http: &reqwest::Client, url: &Url) -> Result<Option<Vec<Key>>, String> {
    let answer = http.get(url.clone()).send().await.map_err(|error| with_causes(&error))?;
    match answer.status() {
        StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
        status if !status.is_success() => return Err(format!("{url} answered {status}")),
        _ => {}
    }
    let body = answer::small_body(answer).await?;
    let set: Value = serde_json::from_slice(&body).map_err(|_invalid| format!("{url} answered no JSON"))?;
    let keys =
        set.get("keys").and_then(Value::as_array).ok_or_else(|| format!("{url} answered no key set"))?;
    // A key of a kind that we do not know is no reason to refuse the others.
    Ok(Some(keys.iter().filter_map(key).collect()))
}

/// One key of a set; none when it is not public, not for signatures, or of a kind that we do not know.
pub(super) fn key(value: &Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return None;
    }
    let is_public = !matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_));
    let decoding = is_public.then(|| DecodingKey::from_jwk(&jwk).ok()).flatten()?;
    Some(Key { jwk, decoding })
}
