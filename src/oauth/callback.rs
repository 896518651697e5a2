//! The address that the browser ends at, as a person pastes it or a browser brings it: parsed strictly, since
//! anybody may have made it.

mod pasted;

use std::collections::BTreeMap;

use secrecy::{ExposeSecret as _, SecretString};
use url::{Url, form_urlencoded};

use crate::config::ResponseMode;

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
    #[error("the part behind the {0} is missing: copy the whole address from the address bar")]
    NoParameters(char),
    /// Repeated, or both in query and fragment.
    #[error("the parameter `{0}` is there more than once")]
    Repeated(String),
    /// Far too many.
    #[error("this has too many parameters to be the address of the redirect page")]
    TooMany,
    /// Callbacks that are not the same.
    #[error("this has more than one address of the redirect page, and they differ: paste only the newest")]
    Several,
    /// A parameter that must be there.
    #[error("the parameter `{0}` is missing: copy the whole address from the address bar")]
    Missing(&'static str),
}

/// What stands in front of the parameters in the redirect page's address.
pub const fn mark(mode: ResponseMode) -> char {
    match mode {
        ResponseMode::Fragment => '#',
        ResponseMode::Query | ResponseMode::FormPost => '?',
    }
}

/// Finds and parses what a person pasted: the whole address, or only its query or fragment, in whatever surrounds
/// it. Where the text leaves open how far it goes, `is_ours` tells a callback that belongs to a login from others.
///
/// # Errors
/// [`CallbackError`], in words for the person.
pub fn parse_pasted(
    text: &str,
    redirect_uri: &Url,
    mode: ResponseMode,
    is_ours: &dyn Fn(&Callback) -> bool,
) -> Result<Callback, CallbackError> {
    pasted::Finder::new(redirect_uri, mode, is_ours).find(text)
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

impl Callback {
    /// True when only this one has an `id_token`.
    fn brings_more_than(&self, other: &Self) -> bool {
        let has_id_token =
            |outcome: &Outcome| matches!(outcome, Outcome::Code(Code { id_token: Some(_), .. }));
        has_id_token(&self.outcome) && !has_id_token(&other.outcome)
    }

    fn is_same(&self, other: &Self) -> bool {
        let id_token = |code: &Code| code.id_token.as_ref().map(|token| token.expose_secret().to_owned());
        (&self.state, &self.iss) == (&other.state, &other.iss)
            && match (&self.outcome, &other.outcome) {
                (Outcome::Code(a), Outcome::Code(b)) => {
                    a.code.expose_secret() == b.code.expose_secret() && id_token(a) == id_token(b)
                }
                (Outcome::Denied { error: a, .. }, Outcome::Denied { error: b, .. }) => a == b,
                _ => false,
            }
    }
}

/// What no parameter has: control characters, or bytes that are not UTF-8.
fn is_foreign(c: char) -> bool {
    c.is_control() || c == char::REPLACEMENT_CHARACTER
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use ring::digest::{SHA256, digest};
    use secrecy::ExposeSecret;

    use super::*;

    const SAMPLE: &str = include_str!("../testing/sample-callback.txt");

    fn redirect_uri() -> Url {
        Url::parse("https://oauth.cnblogs.com/auth/callback").unwrap()
    }

    const AT: &str = "https://oauth.cnblogs.com/auth/callback";
    const STATE: &str = "c3RhdGU_LW9m-YS1sb2dpbg";
    const CODE: &str = "c38fee53637dea29";
    const ID_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl-b2Y_aXQ";

    /// As a login would find it whose `state` is [`STATE`].
    fn pasted(text: &str) -> Result<Callback, CallbackError> {
        parse_pasted(text, &redirect_uri(), ResponseMode::Fragment, &|callback| callback.state == STATE)
    }

    /// In the order of Cnblogs, with spaces in `scope` written like this.
    fn parameters(space: &str) -> String {
        let scope = ["openid", "profile", "CnBlogsApi"].join(space);
        format!("code={CODE}&id_token={ID_TOKEN}&scope={scope}&state={STATE}")
    }

    fn address() -> String {
        format!("{AT}#{}", parameters("%20"))
    }

    fn wrapped(text: &str, column: usize, with: &str) -> String {
        text.as_bytes()
            .chunks(column)
            .map(|line| String::from_utf8_lossy(line))
            .collect::<Vec<_>>()
            .join(with)
    }

    /// The `state` and the code that are found.
    #[track_caller]
    fn found(text: &str) -> (String, Code) {
        let callback = pasted(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let Outcome::Code(code) = callback.outcome else { panic!("no code: {text}") };
        (callback.state, code)
    }

    #[track_caller]
    fn assert_found(text: &str) {
        let (state, code) = found(text);
        let id_token = code.id_token.as_ref().map(SecretString::expose_secret);
        let found = (state.as_str(), code.code.expose_secret(), id_token);
        assert_eq!(found, (STATE, CODE, Some(ID_TOKEN)), "{text}");
    }

    #[test]
    fn the_sample_of_the_specification_parses() {
        for text in [SAMPLE, SAMPLE.split_once('#').unwrap().1, &format!("  <{}>\n", SAMPLE.trim())] {
            let callback = pasted(text).unwrap();

            let Outcome::Code(code) = callback.outcome else { panic!("no code") };
            assert_eq!(callback.state, "abc");
            assert!(code.code.expose_secret().starts_with("c38fee53"));
            assert!(code.id_token.unwrap().expose_secret().starts_with("eyJhbGciOiJSUzI1NiIs"));
        }
    }

    /// What stands around an address.
    const AROUND: &[&str] = &[
        "{}",
        " {} ",
        "Here it is: {} thanks",
        "Here it is:\n{}\nThanks!\n",
        "{}\n\nRegards,\nBob",
        "{}.",
        "({})",
        "<{}>",
        "\"{}\"",
        "'{}'",
        "`{}`",
        "```\n{}\n```",
        "「{}」",
        "“{}”",
        "‘{}’",
        "『{}』",
        "《{}》",
        "＜{}＞",
        "**{}**",
        "地址：{}。",
        "地址是{}，谢谢",
        "请看{}！",
        "({})，",
        "<a href=\"{}\" data-x=\"a&b=c\">here</a>",
        "[here]({})",
        "[here]({} \"title\") and more",
        "view-source:{}",
        "curl '{}' -o x",
        "{\"url\":\"{}\",\"a\":1}",
        "\u{feff}{}\r\n",
        "{}\u{200b}",
        "\u{202a}{}\u{202c}",
        "{}\n{}",
        "{} {}",
        "{}{}",
        "[{}]({})",
        "{}, see https://a.b/?x=1&y=2",
        "> {}\n>\n> Bob wrote",
        "{}\nR&D",
        "It begins with https://oauth.cnblogs.com/auth/callback: {}",
        "\t{}\t",
        "https://www.cnblogs.com/ is what I see, then {}",
        "URL:{}",
        "{};",
        "{}\u{3000}谢谢",
        "“{}”，两天前",
    ];

    #[test]
    fn an_address_is_found_whatever_is_put_around_it() {
        assert!(AROUND.len() > 40);
        for around in AROUND {
            assert_found(&around.replace("{}", &address()));
        }
    }

    #[test]
    fn an_address_is_found_however_it_is_written() {
        let address = address();
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        for text in [
            address.replace('&', "&amp;"),
            address.replace('&', "&amp;amp;"),
            address.replace('&', "&#38;").replace('#', "&#x23;"),
            address.replace('&', "\\u0026"),
            address.replace('/', "\\/").replace('&', "\\u0026").replace('#', "\\u0023"),
            address.replace('&', "\\&").replace('#', "\\#").replace('=', "\\="),
            address.replace('&', "^&"),
            address.replace('&', "`&"),
            address.replacen('#', "%23", 1),
            address.replace('_', "\\_"),
            address.replace("%20", " "),
            address.replace("%20", "+"),
            address.replace("https", "HTTPS").replace("oauth", "OAuth"),
            address.replacen('#', "?", 1),
            address.replacen("https://", "", 1),
            encoded(&address),
            encoded(&address).replace("%2F", "/"),
            encoded(&address)
                .to_lowercase()
                .replace(&encoded(&parameters("%20")).to_lowercase(), &encoded(&parameters("%20"))),
            format!("https://link.example/?target={}&from=chat", encoded(&address)),
            format!("https://link.example/?target={}#top", encoded(&encoded(&address))),
            format!("https://link.example/?target={AT}%23{}&x=1", encoded(&parameters("%20"))),
            parameters("%20"),
            parameters(" "),
            format!("#{}", parameters("%20")),
            format!("?{}\n", parameters("+")),
            format!("It is: #{}, I think", parameters("%20")),
            format!("片段：{}。", parameters("%20")),
            encoded(&parameters("%20")),
            parameters("%20").replace('&', "&amp;"),
            format!("{address}&session_state=abc.def&iss=https://oauth.cnblogs.com and words"),
            format!("{address}&iss=https%3A%2F%2Foauth.cnblogs.com"),
            format!("#{}&iss=https://oauth.cnblogs.com", parameters("%20")),
            format!("{AT}?code={CODE}#id_token={ID_TOKEN}&state={STATE}"),
            format!("{AT}#state={STATE}&code={CODE}&id_token={ID_TOKEN} thanks"),
        ] {
            assert_found(&text);
        }
    }

    #[test]
    fn an_address_is_found_however_it_is_wrapped() {
        let mail = address().replace('=', "=3D");
        for column in 1..=address().len() {
            for with in [
                "\n",
                "\r\n",
                "\n    ",
                "\n> ",
                " \n\t",
                "=\n",
                "\\\n",
                "\\\u{85}",
                "\u{2028}",
                "\\\u{2028}",
                "\n\n",
                " │\n│ ",
            ] {
                let text = wrapped(&address(), column, with);
                assert_found(&text);
                assert_found(&format!("See\n{text}\nThanks"));
            }
            for text in [parameters("%20"), format!("#{}", parameters("%20"))] {
                assert_found(&wrapped(&text, column, "\n"));
            }
            let encoded: String = form_urlencoded::byte_serialize(address().as_bytes()).collect();
            assert_found(&wrapped(&format!("https://link.example/?target={encoded}&x=1"), column, "\n"));
            let lines = mail.split_inclusive("=3D").flat_map(|part| {
                let (plain, escape) = part.split_at(part.len() - part.ends_with("=3D") as usize * 3);
                [wrapped(plain, column, "=\n"), escape.to_owned()]
            });
            assert_found(&lines.collect::<String>());
        }
    }

    /// What stands behind a code that comes last must not be spent with it.
    #[test]
    fn a_code_at_the_end_is_told_from_the_words_behind_it() {
        let claims = r#"{"sub":"1","aud":"a","exp":1,"c_hash":"<hash>"}"#;
        let hash = URL_SAFE_NO_PAD.encode(&digest(&SHA256, CODE.as_bytes()).as_ref()[..16]);
        let claims = URL_SAFE_NO_PAD.encode(claims.replace("<hash>", &hash));
        let id_token = format!("eyJhbGciOiJSUzI1NiJ9.{claims}.c2ln");
        for (parameters, is_hybrid) in [
            (format!("code={CODE}"), false),
            (format!("id_token={id_token}&code={CODE}"), true),
            (format!("code={CODE}&id_token={id_token}"), true),
        ] {
            let address = format!("{AT}?state={STATE}&session_state=a.b&{parameters}");
            let mut texts: Vec<_> = AROUND.iter().map(|around| around.replace("{}", &address)).collect();
            texts.extend((1..address.len()).map(|column| wrapped(&address, column, "\n")));
            texts.extend(["Thanks", "Best regards\nBob", "谢谢"].map(|words| format!("{address}\n{words}")));
            texts.retain(|text| is_hybrid || !["**", "R&D"].iter().any(|odd| text.contains(odd)));
            for text in texts {
                let (state, code) = found(&text);
                assert_eq!((state.as_str(), code.code.expose_secret()), (STATE, CODE), "{text}");
                let found = code.id_token.as_ref().map(SecretString::expose_secret);
                let is_odd = ["**", "R&D"].iter().any(|odd| text.contains(odd));
                assert!(is_odd || found == is_hybrid.then_some(id_token.as_str()), "{text}");
            }
        }
    }

    #[test]
    fn of_two_callbacks_none_is_guessed() {
        let other = address().replace(CODE, "another-code");
        for text in [
            format!("{} {other}", address()),
            format!("{other}\n{}", address()),
            format!("{}{}", address(), address().replace(STATE, "another-state")),
            format!("{}\n{AT}#error=access_denied&state={STATE}", address()),
        ] {
            assert_eq!(pasted(&text).unwrap_err(), CallbackError::Several, "{text}");
        }
    }

    /// What is cut off the end of an address must not be what makes it wrong.
    #[test]
    fn what_is_wrong_with_an_address_is_not_taken_for_words_behind_it() {
        for (more, words) in [
            ("&state=x", "`state` is there more than once"),
            ("&session_state=a.b&code=x", "`code` is there more than once"),
            ("&session_state=a,b\n&id_token=x", "`id_token` is there more than once"),
            ("\n&sc\nope=x", "`scope` is there more than once"),
            (" more&scope=x", "`scope` is there more than once"),
            ("&x=\0", "characters"),
        ] {
            let found = pasted(&format!("{}{more}", address()));
            let error = found.map(drop).expect_err(more).to_string();
            assert!(error.contains(words), "{more:?}: {error}");
        }
        for text in [
            format!("https://evil.example/#{}", parameters("%20")),
            format!("https://evil.example/auth/callback\n#{}", parameters("%20")),
            format!("evil.example/auth/callback#{}", parameters("%20")),
            format!("https://oauth.cnblogs.com.evil.example/auth/callback#{}", parameters("%20")),
            format!("https%3A%2F%2Fevil.example%2F%23code%3Da%26state%3D{STATE}"),
            format!("https://oauth.cnblogs.com/connect/authorize?redirect_uri={AT}&{}", parameters("%20")),
        ] {
            let error = pasted(&text).unwrap_err().to_string();
            assert!(error.contains("not the address"), "{text}: {error}");
        }
    }

    #[test]
    fn a_text_that_was_made_to_have_many_readings_is_refused_soon() {
        let https = "https:".repeat(10_000);
        let texts = [
            https.clone(),
            format!("{}#", "https://oauth.cnblogs.com/auth/callback%".repeat(1500)),
            "https%3A%2F%2F%25".repeat(3500),
            format!("{AT}#code=a&state=b{}", ".".repeat(60_000)),
            format!("{}code=a&state=b{}", "a=1 ".repeat(8000), ".".repeat(30_000)),
            "\n".repeat(65_000),
            "a\n=".repeat(20_000),
            format!("{AT}#code=a&state=b").repeat(1000),
            "&amp;".repeat(13_000),
        ];
        for text in texts {
            assert!(text.len() <= 64 * 1024, "{}", text.len());
            let started = std::time::Instant::now();
            drop(pasted(&text));
            // A shared machine with an unoptimised build: it is much less elsewhere.
            assert!(started.elapsed().as_secs() < 20, "{:?}: {text:.60}", started.elapsed());
        }
    }

    #[test]
    fn anything_else_is_told_in_words() {
        let at = AT;
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
            (format!("{at}#code=a b&state=c"), "characters"),
            (format!("{at}#{}state=c", "x=1&".repeat(10_000)), "too long"),
            (format!("{at}#{}state=c", (0..100).map(|n| format!("x{n}=1&")).collect::<String>()), "too many"),
            (format!("{at}#code=a&state=c&scope=x&scope=y"), "`scope` is there more than once"),
            ("a".repeat(1 << 20), "too long"),
        ];
        for (text, expected) in cases {
            let error = pasted(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:.80}: {error}");
        }
    }

    #[test]
    fn what_is_missing_is_called_by_the_sign_of_the_flow() {
        for (mode, words) in [
            (ResponseMode::Fragment, "behind the # is missing"),
            (ResponseMode::Query, "behind the ? is missing"),
            (ResponseMode::FormPost, "behind the ? is missing"),
        ] {
            let error = parse_pasted(AT, &redirect_uri(), mode, &|_| true).unwrap_err().to_string();
            assert!(error.contains(words), "{mode:?}: {error}");
        }
    }

    #[test]
    fn an_address_has_32_kib_and_32_parameters_at_most() {
        let at = "https://oauth.cnblogs.com/auth/callback#state=a&code=";
        let padded = |text: &str, length: usize| format!("{text}{}", "x".repeat(length - text.len()));
        let pasted = |length| pasted(&padded(at, length)).map(drop);
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
