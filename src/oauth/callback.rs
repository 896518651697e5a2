//! The address that the browser ends at, as a person pastes it or a browser brings it: parsed strictly, since
//! anybody may have made it.

use std::collections::BTreeMap;

use secrecy::SecretString;
use url::{Url, form_urlencoded};

/// A real callback has some 1,500 bytes.
const LONGEST: usize = 32 * 1024;
const MOST_PARAMETERS: usize = 32;

/// A callback that belongs to the login with its `state`, if there is one.
#[derive(Debug)]
pub struct Callback {
    /// The login that it claims to belong to.
    pub state: String,
    /// The issuer that it names (RFC 9207).
    pub iss: Option<String>,
    /// What it brings.
    pub outcome: Outcome,
}

/// What a callback brings.
#[derive(Debug)]
pub enum Outcome {
    /// A code to spend.
    Code(Code),
    /// The server's own no (RFC 6749, section 4.1.2.1).
    Denied {
        /// The error code, cut to printable characters.
        error: String,
        /// The server's words, cut to printable characters.
        description: Option<String>,
    },
}

/// A code, and what vouches for it.
#[derive(Debug)]
pub struct Code {
    /// The authorization code.
    pub code: SecretString,
    /// The `id_token`, in the hybrid flow.
    pub id_token: Option<SecretString>,
}

/// Why a text is not a callback. Says what to copy instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallbackError {
    /// Nothing there.
    #[error("nothing was pasted: copy the whole address of the page where the browser ended")]
    Empty,
    /// Far too long.
    #[error("this is too long to be the address of the redirect page")]
    TooLong,
    /// Control characters.
    #[error("this contains characters that no address has")]
    Characters,
    /// An address, but not that of the redirect.
    #[error("this is not the address of the redirect page, which begins with {expected}")]
    Address {
        /// The registered address.
        expected: String,
    },
    /// The address alone.
    #[error("the part behind the # is missing: copy the whole address from the address bar")]
    NoParameters,
    /// Repeated, or both in query and fragment.
    #[error("the parameter `{0}` is there more than once")]
    Repeated(String),
    /// Far too many.
    #[error("this has too many parameters to be the address of the redirect page")]
    TooMany,
    /// A parameter that must be there.
    #[error("the parameter `{0}` is missing: copy the whole address from the address bar")]
    Missing(&'static str),
}

/// Parses what a person pasted: the whole address, or only its query or fragment.
///
/// # Errors
/// [`CallbackError`], in words for the person.
pub fn parse_pasted(text: &str, redirect_uri: &Url) -> Result<Callback, CallbackError> {
    let text = text.trim().trim_matches(['"', '\'', '<', '>']).trim();
    if text.is_empty() {
        return Err(CallbackError::Empty);
    }
    if text.len() > LONGEST {
        return Err(CallbackError::TooLong);
    }
    if text.chars().any(|c| c.is_control() || c == ' ') {
        return Err(CallbackError::Characters);
    }
    if !text.contains("://") {
        let parameters = text.trim_start_matches(['#', '?']);
        return if parameters.contains('=') {
            parse_parameters(&[parameters])
        } else {
            Err(CallbackError::Address { expected: redirect_uri.to_string() })
        };
    }

    let expected = || CallbackError::Address { expected: redirect_uri.to_string() };
    let url = Url::parse(text).map_err(|_invalid| expected())?;
    let same = url.scheme() == redirect_uri.scheme()
        && url.host() == redirect_uri.host()
        && url.port_or_known_default() == redirect_uri.port_or_known_default()
        && url.path() == redirect_uri.path()
        && url.username().is_empty()
        && url.password().is_none();
    if !same {
        return Err(expected());
    }
    match (url.query(), url.fragment()) {
        (None | Some(""), None | Some("")) => Err(CallbackError::NoParameters),
        (query, fragment) => parse_parameters(&[query.unwrap_or_default(), fragment.unwrap_or_default()]),
    }
}

/// Parses the parameters of a query, a fragment or a form.
///
/// # Errors
/// [`CallbackError`], in words for the person.
pub fn parse_parameters(encoded: &[&str]) -> Result<Callback, CallbackError> {
    let mut seen = BTreeMap::new();
    for part in encoded {
        if part.len() > LONGEST {
            return Err(CallbackError::TooLong);
        }
        for (name, value) in form_urlencoded::parse(part.as_bytes()) {
            if seen.len() >= MOST_PARAMETERS {
                return Err(CallbackError::TooMany);
            }
            if [&name, &value].iter().any(|text| text.chars().any(is_foreign)) {
                return Err(CallbackError::Characters);
            }
            if seen.contains_key(&*name) {
                return Err(CallbackError::Repeated(name.chars().take(40).collect()));
            }
            seen.insert(name.into_owned(), value.into_owned());
        }
    }
    let [state, iss, code, id_token, error, description] =
        ["state", "iss", "code", "id_token", "error", "error_description"].map(|name| seen.remove(name));
    let state = state.filter(|state| !state.is_empty()).ok_or(CallbackError::Missing("state"))?;
    if let Some(error) = error {
        let short = |text: String| text.chars().take(300).collect();
        return Ok(Callback {
            state,
            iss,
            outcome: Outcome::Denied { error: short(error), description: description.map(short) },
        });
    }
    let code = code.filter(|code| !code.is_empty()).ok_or(CallbackError::Missing("code"))?;
    let code = Code { code: code.into(), id_token: id_token.filter(|t| !t.is_empty()).map(Into::into) };
    Ok(Callback { state, iss, outcome: Outcome::Code(code) })
}

/// What no parameter has: control characters, or bytes that are not UTF-8.
fn is_foreign(c: char) -> bool {
    c.is_control() || c == char::REPLACEMENT_CHARACTER
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    const SAMPLE: &str = include_str!("../../tests/vectors/sample-callback.txt");

    fn redirect_uri() -> Url {
        Url::parse("https://oauth.cnblogs.com/auth/callback").unwrap()
    }

    #[test]
    fn the_sample_of_the_specification_parses() {
        for text in [SAMPLE, SAMPLE.split_once('#').unwrap().1, &format!("  <{}>\n", SAMPLE.trim())] {
            let callback = parse_pasted(text, &redirect_uri()).unwrap();

            let Outcome::Code(code) = callback.outcome else { panic!("no code") };
            assert_eq!(callback.state, "abc");
            assert!(code.code.expose_secret().starts_with("c38fee53"));
            assert!(code.id_token.unwrap().expose_secret().starts_with("eyJhbGciOiJSUzI1NiIs"));
        }
    }

    #[test]
    fn anything_else_is_told_in_words() {
        let at = "https://oauth.cnblogs.com/auth/callback";
        let cases = [
            (String::new(), "nothing was pasted"),
            ("hello".to_owned(), "not the address"),
            (at.to_owned(), "behind the #"),
            (format!("{at}#state=a"), "`code` is missing"),
            (format!("{at}#code=a"), "`state` is missing"),
            (format!("{at}#code=a&code=b&state=c"), "`code` is there more than once"),
            (format!("{at}?code=a#code=a&state=c"), "`code` is there more than once"),
            (format!("{at}#code=a&state=c&state=c"), "`state` is there more than once"),
            ("https://evil.example/auth/callback#code=a&state=c".to_owned(), "not the address"),
            ("https://oauth.cnblogs.com/auth/callback/x#code=a&state=c".to_owned(), "not the address"),
            ("https://u@oauth.cnblogs.com/auth/callback#code=a&state=c".to_owned(), "not the address"),
            (format!("{at}#code=a%00b&state=c"), "characters"),
            (format!("{at}#code=a%ffb&state=c"), "characters"),
            (format!("{at}#code=a\0b&state=c"), "characters"),
            (format!("{at}#code=a\nb&state=c"), "characters"),
            (format!("{at}#code=a b&state=c"), "characters"),
            (format!("{at}#{}state=c", "x=1&".repeat(10_000)), "too long"),
            (format!("{at}#{}state=c", (0..100).map(|n| format!("x{n}=1&")).collect::<String>()), "too many"),
            (format!("{at}#code=a&state=c&scope=x&scope=y"), "`scope` is there more than once"),
            ("a".repeat(1 << 20), "too long"),
        ];
        for (text, expected) in cases {
            let error = parse_pasted(&text, &redirect_uri()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:.80}: {error}");
        }
    }

    #[test]
    fn an_address_has_32_kib_and_32_parameters_at_most() {
        let at = "https://oauth.cnblogs.com/auth/callback#state=a&code=";
        let padded = |text: &str, length: usize| format!("{text}{}", "x".repeat(length - text.len()));
        let pasted = |length| parse_pasted(&padded(at, length), &redirect_uri()).map(drop);
        let posted = |length| parse_parameters(&[&padded("state=a&code=", length)]).map(drop);
        let numbered = |count: usize| {
            let more: String = (2..count).map(|number| format!("&x{number}=")).collect();
            parse_parameters(&[&format!("state=a&code=b{more}")]).map(drop)
        };

        assert_eq!((pasted(32 * 1024), pasted(32 * 1024 + 1)), (Ok(()), Err(CallbackError::TooLong)));
        assert_eq!((posted(32 * 1024), posted(32 * 1024 + 1)), (Ok(()), Err(CallbackError::TooLong)));
        assert_eq!((numbered(32), numbered(33)), (Ok(()), Err(CallbackError::TooMany)));
    }

    #[test]
    fn a_no_of_the_server_is_a_callback() {
        let callback =
            parse_parameters(&["error=access_denied&error_description=%3Cscript%3E&state=s"]).unwrap();

        let Outcome::Denied { error, description } = callback.outcome else { panic!("a code") };
        assert_eq!((error.as_str(), description.as_deref()), ("access_denied", Some("<script>")));
    }
}
