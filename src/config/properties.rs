//! The configuration: a file that a person wrote, in which a secret may stand in the wrong place.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use rustls::pki_types::ServerName;

use super::accounts::ACCOUNT;
use super::callers::{CALLERS, KEY};
use super::reader::{Source, TableReader};
use super::routes::ROUTE;
use super::store::STORE;
use super::{Config, ConfigError, Environment, Known, LIMITS, Listen, NOTIFY, ROOT};
use crate::testing::fuzz::Input;

const FILE: &str = "config.toml";
const CANARY: &str = "canary-of-a-secret";
/// Where a value may stand: a table's header, the keys below it, and some that are none.
const KEYS: [(&str, Known, &[&str]); 9] = [
    ("", ROOT, &["lsten"]),
    ("[account.main]", ACCOUNT, &["client_secret", "token", "password"]),
    (
        "[account.other]",
        &["grant", "client_id", "client_secret_file", "token_file", "scope", "refresh_at"],
        &[],
    ),
    ("[[route]]", ROUTE, &["upstraem"]),
    ("[callers]", CALLERS, &[]),
    ("[[callers.key]]", KEY, &["secret"]),
    ("[limits]", LIMITS, &[]),
    ("[notify]", NOTIFY, &["comand"]),
    ("[store]", STORE, &["seal_key"]),
];
/// Values with a place for the secret.
const VALUES: [&str; 24] = [
    "\"?\"",
    "'?'",
    "\"\"\"\n?\"\"\"",
    "'''?'''",
    "[\"?\"]",
    "[[\"?\"], 1]",
    "{ x = \"?\" }",
    "{ file = '?' }",
    "\"https://?\"",
    "\"https://?@api.example\"",
    "\"https://api.example/#?\"",
    "\"http://?.example\"",
    "\"/?\"",
    "\"/?\\\\x\"",
    "\"unix:?\"",
    "\"unix:/?\"",
    "\"127.0.0.1:?\"",
    "\"?s\"",
    "\"info,?=debug,x=?=\"",
    "\"*?\"",
    "1",
    "true",
    "1979-05-27",
    "0.5",
];

/// A configuration is refused with the place of what is wrong, or what it holds can be used.
pub fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    if names_files(&text) {
        return;
    }
    match load(&text) {
        Err(error) => has_a_place(&error, &text),
        Ok(config) => {
            let again = load(&text).expect("what was read once is read again");
            assert_eq!(format!("{config:?}"), format!("{again:?}"));
            can_be_used(&config);
        }
    }
}

/// A secret that stands in the wrong place is in no message.
pub fn misplaced_secret(bytes: &[u8]) {
    let text = with_canary(&mut Input::new(bytes));
    if let Err(error) = load(&text) {
        keeps_the_secret(&error, &text);
        has_a_place(&error, &text);
    }
}

/// As [`Config::load`], without the disk.
fn load(text: &str) -> Result<Config, ConfigError> {
    let variables = [("HOME", "/nonexistent"), ("CNBLOGS_CLIENT_SECRET", "secret")];
    let environment = Environment::new(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let source = Source::new(Path::new(FILE), text.to_owned());
    let root = source.parse()?;
    let reader = TableReader::new(&source, String::new(), None, root.get_ref(), ROOT)?;
    Config::read(Some(FILE.into()), &reader, &environment.without_secrets())
}

/// What a fuzzer thinks of is not opened.
fn names_files(text: &str) -> bool {
    ["file", "\\u", "\\U", "\\x"].iter().any(|word| text.contains(word))
}

/// A configuration with a secret in a few wrong places, and perhaps without its end.
fn with_canary(input: &mut Input<'_>) -> String {
    let (mut top, mut tables) = (String::new(), "[account.good]\nclient_id = \"id\"\n".to_owned());
    for _ in 0..=input.below(4) {
        let (header, known, unknown) = input.one_of(&KEYS);
        let key = input.one_of(&[known, unknown].concat());
        let value = input.one_of(&VALUES).replace('?', CANARY);
        let behind = input.one_of(&["", "", "", "", "\"", " x", "]", ","]);
        let needed = if header == "[account.main]" && key != "client_id" { "client_id = 'id'\n" } else { "" };
        let text = if header.is_empty() { &mut top } else { &mut tables };
        text.push_str(&format!("{header}\n{needed}{key} = {value}{behind}\n"));
    }
    let mut text = top + &tables;
    let cut = input.below(8);
    text.truncate(text.len() - cut);
    text
}

fn keeps_the_secret(error: &ConfigError, text: &str) {
    let shown = format!("{error} {}", error.hint().unwrap_or_default());
    let leaked =
        CANARY.as_bytes().windows(8).any(|part| shown.as_bytes().windows(8).any(|seen| seen == part));
    assert!(!leaked, "{shown}\n{text}");
}

/// A message that begins with the file and, where it stands in the file, with line and column.
fn has_a_place(error: &ConfigError, text: &str) {
    let shown = error.to_string();
    let is_of_nothing =
        ["no account is configured", "state_dir: "].iter().any(|start| shown.starts_with(start));
    if is_of_nothing {
        return;
    }
    let behind = shown.strip_prefix(FILE).unwrap_or_else(|| panic!("no place in: {shown}"));
    let Some(place) = behind.strip_prefix(':').filter(|rest| !rest.starts_with(' ')) else { return };
    let mut numbers = place.splitn(3, ':').map(str::parse::<usize>);
    let (Some(Ok(line)), Some(Ok(column))) = (numbers.next(), numbers.next()) else {
        panic!("no line and column in: {shown}");
    };
    let lines: Vec<_> = text.split('\n').collect();
    assert!((1..=lines.len()).contains(&line), "{shown}\n{text}");
    assert!((1..=lines[line - 1].chars().count() + 1).contains(&column), "{shown}\n{text}");
}

/// What the rest of the program takes for granted.
fn can_be_used(config: &Config) {
    assert!(!config.listen.is_empty() && !config.accounts.is_empty() && !config.routes.is_empty());
    assert!((1..=64).contains(&config.worker_threads()) && config.state_dir.is_absolute());
    let is_public = |listen: &Listen| match listen {
        Listen::Tcp(address) => !address.ip().to_canonical().is_loopback(),
        Listen::Unix(_) => false,
    };
    let is_open = config.listen.iter().any(is_public);
    assert!(!is_open || config.callers.allow_remote && !config.callers.keys.is_empty());

    for account in config.accounts.values() {
        let identity = account.login().and_then(|login| login.identity.as_ref());
        let identity_url = identity.and_then(|identity| identity.url.as_ref());
        assert!(identity_url.is_none_or(|url| url.scheme().starts_with("http")));
        let Some(client) = account.client() else { continue };
        assert!(!client.client_id.is_empty());
        assert!((0.01..=0.95).contains(&client.refresh_at));
        for url in client.endpoints.all().into_iter().filter_map(|address| address.url()) {
            assert!(url.scheme() == "https" || is_here(url.host_str().unwrap_or_default()), "{url}");
        }
    }
    let prefixes: BTreeSet<_> = config.routes.iter().map(|route| &route.prefix).collect();
    assert_eq!(prefixes.len(), config.routes.len());
    for route in &config.routes {
        assert!(route.prefix == "/" || route.prefix.starts_with('/') && !route.prefix.ends_with('/'));
        assert!(config.accounts.contains_key(&route.account));
        let upstream = &route.upstream;
        assert!(upstream.tls || is_here(&upstream.host));
        assert!(http::HeaderValue::from_str(&upstream.authority).is_ok(), "{}", upstream.authority);
        assert!(upstream.origin().parse::<http::Uri>().is_ok(), "{}", upstream.origin());
        assert!(format!("{}/x", upstream.base_path).parse::<http::Uri>().is_ok(), "{}", upstream.base_path);
        assert!(!upstream.tls || ServerName::try_from(upstream.host.clone()).is_ok(), "{}", upstream.host);
    }
}

fn is_here(host: &str) -> bool {
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fuzz::holds;

    #[test]
    fn configuration_is_refused_in_words_or_can_be_used() {
        holds("configuration", 2000, configuration);
    }

    #[test]
    fn misplaced_secret_is_in_no_message() {
        holds("misplaced_secret", 3000, misplaced_secret);
    }
}
