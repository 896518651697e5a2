//! The checks of an `id_token` before the code that came with it is spent (OpenID Connect Core, sections 3.1.3.7
//! and 3.3.2.10 to 3.3.2.12). Pure: keys and clock come in as arguments.

use std::sync::Once;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::signature::{Error as SignatureError, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Validation};
use ring::{digest, signature};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::keys::PublicKey;
use crate::token::Moment;

/// How far the server's clock may be off, and how long after its end an `id_token` still vouches: it lives
/// 300 s at Cnblogs while its code lives 600 s.
pub const LEEWAY_SECS: i64 = 300;
/// The `sub` that Cnblogs gives to everybody: it tells nobody from anybody.
pub const NOBODY: &str = "00000000-0000-0000-0000-000000000000";
/// Asymmetric algorithms only: a secret that both sides know vouches for nothing.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// What an `id_token` says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Claims {
    /// Who issued it.
    pub iss: Option<String>,
    /// Whom it is about. At Cnblogs it is the same for everybody.
    pub sub: String,
    /// Whom it is for.
    pub aud: Audience,
    /// The party it was issued to, when it is for several.
    pub azp: Option<String>,
    /// Seconds since the Unix epoch.
    pub exp: f64,
    /// Seconds since the Unix epoch.
    pub nbf: Option<f64>,
    /// Seconds since the Unix epoch.
    pub iat: Option<f64>,
    /// Binds it to a login.
    pub nonce: Option<String>,
    /// Binds it to a code.
    pub c_hash: Option<String>,
}

/// One audience or several (RFC 7519, section 4.1.3).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// A single string.
    One(String),
    /// An array.
    Several(Vec<String>),
}

/// What an `id_token` has to be for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    /// The application.
    pub(super) client_id: &'a str,
    /// The only issuer, when one is configured.
    pub(super) issuer: Option<&'a str>,
    /// The login.
    pub(super) nonce: &'a str,
    /// The code that came with it.
    pub(super) code: &'a SecretString,
}

/// Why an `id_token` does not vouch for a login.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdTokenError {
    /// The hybrid flow must bring one.
    #[error("the callback has no id_token")]
    Missing,
    /// Not a JWT, or without a claim that it must have.
    #[error("the id_token can't be read: {0}")]
    Unreadable(String),
    /// Unsigned, or signed with a shared secret.
    #[error("the id_token is not signed with a public key algorithm")]
    Algorithm,
    /// The server publishes no key that could have signed it.
    #[error("the id_token is signed with a key that the authorization server does not publish")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the id_token's signature does not verify")]
    Signature,
    /// It was made for another application.
    #[error("the id_token is for another application (aud, azp)")]
    Audience,
    /// Its issuer is not the configured one.
    #[error("the id_token's issuer (iss) is not the configured one")]
    Issuer,
    /// It belongs to another login.
    #[error("the id_token's nonce is not the one of this login")]
    Nonce,
    /// It belongs to another code.
    #[error("the id_token does not belong to this code (c_hash)")]
    CodeHash,
    /// It ended too long ago.
    #[error("the id_token has expired: please start the login again")]
    Expired,
    /// It begins too far in the future.
    #[error("the id_token is not valid yet: is this machine's clock right?")]
    NotYetValid,
    /// The token answer is about somebody else.
    #[error("the tokens are for another subject (sub) than the login")]
    Subject,
}

/// Checks everything an `id_token` vouches for. `keys` is none when the server publishes none; the signature
/// is not checked then.
///
/// # Errors
/// The first check that fails.
pub(super) fn check(
    id_token: &SecretString,
    keys: Option<&[PublicKey]>,
    expected: Expected<'_>,
    now: Moment,
) -> Result<Claims, IdTokenError> {
    let text = id_token.expose_secret();
    let header = jsonwebtoken::decode_header(text).map_err(|error| match error.kind() {
        ErrorKind::Json(_) => IdTokenError::Algorithm,
        _ => IdTokenError::Unreadable(error.to_string()),
    })?;
    if !ALGORITHMS.contains(&header.alg) {
        return Err(IdTokenError::Algorithm);
    }
    if header.crit.is_some() {
        return Err(IdTokenError::Unreadable(
            "it has an extension that has to be understood (crit)".to_owned(),
        ));
    }
    let claims = match keys {
        Some(keys) => verified_claims(text, header.kid.as_deref(), header.alg, keys)?,
        None => claims(text)?,
    };
    check_claims(&claims, expected, now)?;
    if claims.nonce.is_none() {
        return Err(IdTokenError::Nonce);
    }
    if claims.c_hash.as_deref() != Some(code_hash(header.alg, expected.code.expose_secret()).as_str()) {
        return Err(IdTokenError::CodeHash);
    }
    Ok(claims)
}

/// Checks the `id_token` of a token answer, which may come after a first one (OpenID Connect Core, sections 3.1.3.7
/// and 3.3.3.6): it may leave out the nonce, and is about the same person.
///
/// # Errors
/// The first check that fails.
pub(super) fn check_later(
    later: &Claims,
    first: Option<&Claims>,
    expected: Expected<'_>,
    now: Moment,
) -> Result<(), IdTokenError> {
    check_claims(later, expected, now)?;
    if first.is_none_or(|first| first.sub == later.sub) { Ok(()) } else { Err(IdTokenError::Subject) }
}

/// Checks the `id_token` of the answer to a refresh (OpenID Connect Core, section 12.2): it is for the same application
/// and about the same person. Its times say nothing, since some servers send the first one again.
///
/// # Errors
/// The first check that fails.
pub(super) fn check_renewed(
    claims: &Claims,
    client_id: &str,
    subject: Option<&str>,
) -> Result<(), IdTokenError> {
    check_audience(claims, client_id)?;
    let says_nothing = |subject: &str| subject == NOBODY;
    let same = |subject: &str| subject == claims.sub || says_nothing(subject) || says_nothing(&claims.sub);
    if subject.is_none_or(same) { Ok(()) } else { Err(IdTokenError::Subject) }
}

/// True when a token names this code, or none, by what is not verified yet.
pub(super) fn names_code(id_token: &SecretString, code: &SecretString) -> bool {
    let text = id_token.expose_secret();
    let header = jsonwebtoken::decode_header(text);
    header.ok().zip(claims(text).ok()).is_some_and(|(header, claims)| {
        claims.c_hash.is_none_or(|hash| hash == code_hash(header.alg, code.expose_secret()))
    })
}

/// The claims as they stand, for a token that came from the token endpoint itself over TLS.
///
/// # Errors
/// When it is not a JWT with the claims that one must have.
pub(super) fn claims(id_token: &str) -> Result<Claims, IdTokenError> {
    jsonwebtoken::dangerous::insecure_decode::<Claims>(id_token)
        .map(|token| token.claims)
        .map_err(|error| IdTokenError::Unreadable(reason(&error)))
}

/// Checks audience, times and, when one is configured or the token has one, issuer and nonce.
fn check_claims(claims: &Claims, expected: Expected<'_>, now: Moment) -> Result<(), IdTokenError> {
    check_audience(claims, expected.client_id)?;
    if expected.issuer.is_some() && expected.issuer != claims.iss.as_deref() {
        return Err(IdTokenError::Issuer);
    }
    if claims.nonce.as_ref().is_some_and(|nonce| nonce != expected.nonce) {
        return Err(IdTokenError::Nonce);
    }
    let now_secs = now.wall_secs() as f64;
    let leeway = LEEWAY_SECS as f64;
    if !claims.exp.is_finite() || claims.exp + leeway < now_secs {
        return Err(IdTokenError::Expired);
    }
    let begins = claims.nbf.unwrap_or(f64::MIN).max(claims.iat.unwrap_or(f64::MIN));
    if begins - leeway > now_secs { Err(IdTokenError::NotYetValid) } else { Ok(()) }
}

fn check_audience(claims: &Claims, client_id: &str) -> Result<(), IdTokenError> {
    let same = |one: &String| one.eq_ignore_ascii_case(client_id);
    let (is_for_us, is_one) = match &claims.aud {
        Audience::One(aud) => (same(aud), true),
        Audience::Several(all) => (all.iter().any(same), all.len() == 1),
    };
    let azp_fits = claims.azp.as_ref().map_or(is_one, same);
    if is_for_us && azp_fits { Ok(()) } else { Err(IdTokenError::Audience) }
}

fn verified_claims(
    text: &str,
    kid: Option<&str>,
    algorithm: Algorithm,
    keys: &[PublicKey],
) -> Result<Claims, IdTokenError> {
    install_verifier();
    let mut validation = Validation::new(algorithm);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();

    let mut failure = IdTokenError::UnknownKey;
    for key in keys.iter().filter(|key| key.may_have_signed(kid, algorithm)) {
        match jsonwebtoken::decode::<Claims>(text, key.decoding(), &validation) {
            Ok(token) => return Ok(token.claims),
            Err(error) => {
                failure = match error.kind() {
                    ErrorKind::Json(_) => IdTokenError::Unreadable(reason(&error)),
                    _ => IdTokenError::Signature,
                };
            }
        }
    }
    Err(failure)
}

/// The left half of the code's digest (OpenID Connect Core, section 3.3.2.11).
fn code_hash(algorithm: Algorithm, code: &str) -> String {
    let digest = match algorithm {
        Algorithm::RS384 | Algorithm::PS384 | Algorithm::ES384 => &digest::SHA384,
        Algorithm::RS512 | Algorithm::PS512 | Algorithm::EdDSA => &digest::SHA512,
        _ => &digest::SHA256,
    };
    let hash = digest::digest(digest, code.as_bytes());
    URL_SAFE_NO_PAD.encode(&hash.as_ref()[..hash.as_ref().len() / 2])
}

/// A JSON error quotes what it read; its kind is enough.
fn reason(error: &jsonwebtoken::errors::Error) -> String {
    match error.kind() {
        ErrorKind::Json(_) => "a claim is missing or has the wrong type".to_owned(),
        ErrorKind::Base64(_) | ErrorKind::Utf8(_) | ErrorKind::InvalidToken => "it is not a JWT".to_owned(),
        _ => "it is malformed".to_owned(),
    }
}

/// One public key of ring, for jsonwebtoken: the program has one crypto provider.
struct RingVerifier {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        let verified = match self.key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                let parameters = rsa_parameters(self.algorithm).ok_or_else(SignatureError::new)?;
                signature::RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            DecodingKeyKind::SecretOrDer(point) => {
                let parameters: &dyn signature::VerificationAlgorithm = match self.algorithm {
                    Algorithm::ES256 => &signature::ECDSA_P256_SHA256_FIXED,
                    Algorithm::ES384 => &signature::ECDSA_P384_SHA384_FIXED,
                    Algorithm::EdDSA => &signature::ED25519,
                    _ => return Err(SignatureError::new()),
                };
                signature::UnparsedPublicKey::new(parameters, point).verify(message, signature)
            }
        };
        verified.map_err(SignatureError::from_source)
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

fn rsa_parameters(algorithm: Algorithm) -> Option<&'static signature::RsaParameters> {
    match algorithm {
        Algorithm::RS256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
        Algorithm::PS512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
        _ => None,
    }
}

fn install_verifier() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
        verifier_factory: |algorithm, key| {
            Ok(Box::new(RingVerifier { algorithm: *algorithm, key: key.clone() }))
        },
        key_utils: KeyUtils::new_unimplemented(),
    };
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        PROVIDER.install_default().expect("nobody else installs a provider");
    });
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair};
    use serde_json::{Value, json};

    use super::super::keys::key;
    use super::*;

    /// In the sample of the specification.
    const CODE: &str = "c38fee53637dea2967f123e1c92184d854b03db03dcd87323ea60675b8125b2e";
    /// A million seconds after 1970.
    const NOW: Moment = Moment::new(1_000_000_000, 0);
    const RSA_KEY: &[u8] = include_bytes!("../testing/key-1.pk8");

    fn claims_of(json: Value) -> Claims {
        serde_json::from_value(json).unwrap()
    }

    /// What a login expects, of any issuer or of one only, and with this code.
    fn expected<'a>(issuer: Option<&'a str>, code: &'a SecretString) -> Expected<'a> {
        Expected { client_id: "me", issuer, nonce: "the-nonce", code }
    }

    /// The claims with these changes, at [`NOW`].
    fn claims_checked(issuer: Option<&str>, changes: Value) -> Result<(), IdTokenError> {
        check_claims(&claims_of(with(changes)), expected(issuer, &CODE.into()), NOW)
    }

    /// A key as a key set has it, and a token that it signed.
    fn signed(by: Algorithm, header: &Value, claims: &Value) -> (PublicKey, String) {
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let message = format!("{header}.{claims}");
        let (jwk, signature) = match by {
            Algorithm::RS256 => rsa(&signature::RSA_PKCS1_SHA256, &message),
            Algorithm::RS384 => rsa(&signature::RSA_PKCS1_SHA384, &message),
            Algorithm::RS512 => rsa(&signature::RSA_PKCS1_SHA512, &message),
            Algorithm::PS256 => rsa(&signature::RSA_PSS_SHA256, &message),
            Algorithm::PS384 => rsa(&signature::RSA_PSS_SHA384, &message),
            Algorithm::PS512 => rsa(&signature::RSA_PSS_SHA512, &message),
            Algorithm::ES256 => ec("P-256", &signature::ECDSA_P256_SHA256_FIXED_SIGNING, &message),
            Algorithm::ES384 => ec("P-384", &signature::ECDSA_P384_SHA384_FIXED_SIGNING, &message),
            Algorithm::EdDSA => ed25519(&message),
            other => panic!("{other:?} is not asymmetric"),
        };
        (key(&jwk).unwrap(), format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn rsa(encoding: &'static dyn signature::RsaEncoding, message: &str) -> (Value, Vec<u8>) {
        let pair = RsaKeyPair::from_pkcs8(RSA_KEY).unwrap();
        let public: ring::rsa::PublicKeyComponents<Vec<u8>> = pair.public().into();
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(encoding, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
        let [n, e] = [public.n, public.e].map(|number| URL_SAFE_NO_PAD.encode(number));
        (json!({ "kty": "RSA", "n": n, "e": e }), signature)
    }

    fn ec(
        curve: &str,
        algorithm: &'static signature::EcdsaSigningAlgorithm,
        message: &str,
    ) -> (Value, Vec<u8>) {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let signature = pair.sign(&random, message.as_bytes()).unwrap();
        let (_uncompressed, point) = pair.public_key().as_ref().split_first().unwrap();
        let (x, y) = point.split_at(point.len() / 2);
        let [x, y] = [x, y].map(|number| URL_SAFE_NO_PAD.encode(number));
        (json!({ "kty": "EC", "crv": curve, "x": x, "y": y }), signature.as_ref().to_vec())
    }

    fn ed25519(message: &str) -> (Value, Vec<u8>) {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let x = URL_SAFE_NO_PAD.encode(pair.public_key());
        let signature = pair.sign(message.as_bytes());
        (json!({ "kty": "OKP", "crv": "Ed25519", "x": x }), signature.as_ref().to_vec())
    }

    fn header(algorithm: Algorithm) -> Value {
        json!({ "alg": format!("{algorithm:?}") })
    }

    /// Claims that are right at [`NOW`], with some of them changed; a null takes one out.
    fn with(changes: Value) -> Value {
        let c_hash = code_hash(Algorithm::EdDSA, CODE);
        let mut claims =
            json!({ "sub": "s", "aud": "me", "exp": 1_000_000, "nonce": "the-nonce", "c_hash": c_hash });
        let Value::Object(changes) = changes else { panic!("{changes} is no object") };
        let members = claims.as_object_mut().unwrap();
        members.extend(changes);
        members.retain(|_name, value| !value.is_null());
        claims
    }

    /// The whole check of a token, at [`NOW`].
    fn checked(token: String, keys: Option<&[PublicKey]>) -> Result<Claims, IdTokenError> {
        check(&token.into(), keys, expected(None, &CODE.into()), NOW)
    }

    #[test]
    fn a_right_token_vouches_for_its_login_with_and_without_published_keys() {
        let (key, token) = signed(Algorithm::EdDSA, &header(Algorithm::EdDSA), &with(json!({})));
        let published = [key];

        for (keys, expected) in [
            (Some(&published[..]), Ok("s".to_owned())),
            (None, Ok("s".to_owned())),
            (Some(&[]), Err(IdTokenError::UnknownKey)),
        ] {
            let subject = checked(token.clone(), keys).map(|claims| claims.sub);
            assert_eq!(subject, expected, "keys: {keys:?}");
        }
    }

    #[test]
    fn each_thing_that_is_wrong_with_a_token_is_told() {
        let unreadable = || IdTokenError::Unreadable("a claim is missing or has the wrong type".to_owned());
        for (changes, expected) in [
            (json!({ "aud": "another" }), IdTokenError::Audience),
            (json!({ "nonce": "another" }), IdTokenError::Nonce),
            (json!({ "nonce": null }), IdTokenError::Nonce),
            (json!({ "c_hash": "another" }), IdTokenError::CodeHash),
            (json!({ "c_hash": null }), IdTokenError::CodeHash),
            (json!({ "exp": 0 }), IdTokenError::Expired),
            (json!({ "exp": -1.5 }), IdTokenError::Expired),
            (json!({ "exp": "soon" }), unreadable()),
            (json!({ "sub": null }), unreadable()),
        ] {
            let (key, token) = signed(Algorithm::EdDSA, &header(Algorithm::EdDSA), &with(changes.clone()));
            for keys in [None, Some(&[key][..])] {
                let came = checked(token.clone(), keys);
                assert_eq!(came, Err(expected.clone()), "{changes}, keys: {}", keys.is_some());
            }
        }
    }

    #[test]
    fn only_a_public_key_of_a_known_algorithm_signs() {
        for alg in ["HS256", "none", "nOnE", "ES512", ""] {
            let (key, token) = signed(Algorithm::EdDSA, &json!({ "alg": alg }), &with(json!({})));
            for keys in [None, Some(&[key][..])] {
                let came = checked(token.clone(), keys);
                assert_eq!(came, Err(IdTokenError::Algorithm), "{alg}, keys: {}", keys.is_some());
            }
        }
        let unreadable = checked("x".to_owned(), None);
        assert!(matches!(unreadable, Err(IdTokenError::Unreadable(_))), "{unreadable:?}");
    }

    #[test]
    fn a_configured_issuer_is_the_only_one() {
        let check = |own, iss: Option<&str>| claims_checked(own, json!({ "iss": iss }));
        assert_eq!((check(None, None), check(None, Some("any"))), (Ok(()), Ok(())));
        assert_eq!(check(Some("ours"), Some("ours")), Ok(()));
        assert_eq!(check(Some("ours"), Some("any")), Err(IdTokenError::Issuer));
        assert_eq!(check(Some("ours"), None), Err(IdTokenError::Issuer));
    }

    #[test]
    fn a_later_token_is_of_the_same_login_and_person_whoever_issued_it() {
        let first = claims_of(with(json!({ "iss": "i" })));
        for (changes, right) in [
            (json!({ "iss": "i" }), Ok(())),
            (json!({ "iss": "another" }), Ok(())),
            (json!({ "nonce": null, "c_hash": null }), Ok(())),
            (json!({ "nonce": "another" }), Err(IdTokenError::Nonce)),
            (json!({ "sub": "another" }), Err(IdTokenError::Subject)),
            (json!({ "aud": "another" }), Err(IdTokenError::Audience)),
            (json!({ "exp": 0 }), Err(IdTokenError::Expired)),
        ] {
            let later = claims_of(with(changes.clone()));
            let came = check_later(&later, Some(&first), expected(None, &CODE.into()), NOW);
            assert_eq!(came, right, "{changes}");
        }
    }

    #[test]
    fn a_signature_of_each_algorithm_verifies_under_its_own_name_only() {
        for (by, named) in ALGORITHMS.iter().flat_map(|by| ALGORITHMS.map(|named| (*by, named))) {
            let (key, token) = signed(by, &header(named), &with(json!({})));
            let verified = verified_claims(&token, None, named, &[key]);
            assert_eq!(verified.is_ok(), by == named, "{by:?} as {named:?}: {verified:?}");
        }
    }

    #[test]
    fn a_signature_of_each_algorithm_is_of_its_claims_only() {
        for algorithm in ALGORITHMS {
            let (key, token) = signed(algorithm, &header(algorithm), &with(json!({})));
            let parts: Vec<_> = token.split('.').collect();
            let another = URL_SAFE_NO_PAD.encode(with(json!({ "sub": "another" })).to_string());
            let changed = format!("{}.{another}.{}", parts[0], parts[2]);

            let verified = verified_claims(&changed, None, algorithm, &[key]);

            assert_eq!(verified, Err(IdTokenError::Signature), "{algorithm:?}");
        }
    }

    /// The first is the specification's own.
    #[test]
    fn the_code_hash_is_of_the_digest_that_the_algorithm_signs() {
        use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        for (algorithms, expected) in [
            ([RS256, PS256, ES256], "SmFwmFTxanH8jku7UnWxlQ"),
            ([RS384, PS384, ES384], "l4VuMJGthnTviaBEDh_RftzKRk8QEXDi"),
            ([RS512, PS512, EdDSA], "IAvfhEGbPc2hVx1FB7LOGlIUbu7zq6ZD6f8SoLzZxYk"),
        ] {
            for algorithm in algorithms {
                assert_eq!(code_hash(algorithm, CODE), expected, "{algorithm:?}");
            }
        }
    }

    #[test]
    fn times_have_five_minutes_of_leeway_and_not_a_second_more() {
        for (times, expected) in [
            (json!({ "exp": 999_700 }), Ok(())),
            (json!({ "exp": 999_699 }), Err(IdTokenError::Expired)),
            (json!({ "exp": -1e300 }), Err(IdTokenError::Expired)),
            (json!({ "nbf": 1_000_300, "iat": 1_000_300 }), Ok(())),
            (json!({ "nbf": 1_000_301, "iat": 0 }), Err(IdTokenError::NotYetValid)),
            (json!({ "nbf": 0, "iat": 1_000_301 }), Err(IdTokenError::NotYetValid)),
        ] {
            assert_eq!(claims_checked(None, times.clone()), expected, "{times}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_without_quoting_it() {
        let jwt = |claims: &str| {
            let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
            format!("{}.{}.x", encode(r#"{"alg":"RS256"}"#), encode(claims))
        };
        for (text, expected) in [
            (String::new(), "it is not a JWT"),
            ("secret".to_owned(), "it is not a JWT"),
            ("sec!.r.et".to_owned(), "it is not a JWT"),
            (jwt("secret"), "a claim is missing or has the wrong type"),
            (jwt(r#"{"sub":"s","aud":"me","exp":"secret"}"#), "a claim is missing or has the wrong type"),
        ] {
            assert_eq!(claims(&text), Err(IdTokenError::Unreadable(expected.to_owned())), "{text}");
        }
    }

    #[test]
    fn the_audience_is_us_alone_or_us_by_name() {
        let fits = |aud: Value, azp: Option<&str>| {
            let claims = claims_of(json!({"sub": "s", "exp": 1, "aud": aud, "azp": azp}));
            check_audience(&claims, "me").is_ok()
        };
        assert!(fits("me".into(), None) && fits(vec!["me"].into(), None) && fits("me".into(), Some("me")));
        assert!(fits(vec!["me", "you"].into(), Some("me")));
        assert!(!fits("you".into(), None) && !fits(vec!["me", "you"].into(), None));
        assert!(!fits(vec!["me", "you"].into(), Some("you")) && !fits("me".into(), Some("you")));
    }
}
