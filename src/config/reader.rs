//! A TOML table read key by key: what is wrong is told by file, line, column and key, and never by value.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// Keys by other names: what older versions called them, for good, and what similar programs and the standards do.
/// The table, the other name, and what it is here.
const OTHER_NAMES: &[(&str, &str, &str)] = &[
    ("", "address", "listen"),
    ("", "bind", "listen"),
    ("", "keys", "[[callers.key]]"),
    ("", "log_level", "log"),
    ("", "port", "listen"),
    ("", "threads", "workers"),
    ("", "upstream", "upstream of a [[route]]"),
    ("account", "authorization_endpoint", "authorization_url"),
    ("account", "authorize_url", "authorization_url"),
    ("account", "callback_url", "redirect_uri"),
    ("account", "discovery_url", "issuer"),
    ("account", "grant_type", "grant"),
    ("account", "https_proxy", "proxy"),
    ("account", "issuer_url", "issuer"),
    ("account", "jwks_uri", "jwks_url"),
    ("account", "pat_file", "token_file"),
    ("account", "revocation_endpoint", "revocation_url"),
    ("account", "token_endpoint", "token_url"),
    ("account", "token_endpoint_auth_method", "client_auth"),
    ("account", "userinfo_url", "identity_url"),
    ("callers", "cors_origins", "allowed_origins"),
    ("callers", "origins", "allowed_origins"),
    ("callers", "uids", "users"),
    ("callers.key", "key_file", "file"),
    ("callers.key", "verbs", "methods"),
    ("limits", "body_limit", "replay_buffer"),
    ("limits", "max_connections", "connections"),
    ("limits", "shutdown_timeout", "drain_timeout"),
    ("notify", "exec", "command"),
    ("route", "backend", "upstream"),
    ("route", "https_proxy", "proxy"),
    ("route", "path", "prefix"),
    ("route", "target", "upstream"),
    ("route", "url", "upstream"),
];

/// Where the text came from, for messages.
pub(super) struct Source {
    path: PathBuf,
    text: String,
}

/// The keys that a table may have.
pub(super) type Known = &'static [&'static str];

/// One table, whose keys are all known.
pub(super) struct TableReader<'a> {
    source: &'a Source,
    name: String,
    header: Option<Range<usize>>,
    table: &'a DeTable<'a>,
    known: Known,
}

/// A value with the place it came from.
pub(super) struct Entry<'a> {
    source: &'a Source,
    key: String,
    value: &'a Spanned<DeValue<'a>>,
}

impl Source {
    pub(super) fn new(path: &Path, text: String) -> Self {
        Self { path: path.to_owned(), text }
    }

    pub(super) fn parse(&self) -> Result<Spanned<DeTable<'_>>, ConfigError> {
        DeTable::parse(&self.text).map_err(|error| {
            let message = format!("not valid TOML: {}", error.message());
            self.error(error.span(), "", message)
        })
    }

    fn error(&self, span: Option<Range<usize>>, key: &str, message: String) -> ConfigError {
        let place = span.map_or_else(
            || self.path.display().to_string(),
            |span| {
                let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
                let line = before.iter().filter(|b| **b == b'\n').count() + 1;
                let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
                let column = String::from_utf8_lossy(&before[line_start..]).chars().count() + 1;
                format!("{}:{line}:{column}", self.path.display())
            },
        );
        ConfigError::at(&place, key, message)
    }
}

impl<'a> TableReader<'a> {
    /// Refuses keys that are not known, with what was probably meant.
    pub(super) fn new(
        source: &'a Source,
        name: String,
        header: Option<Range<usize>>,
        table: &'a DeTable<'a>,
        known: Known,
    ) -> Result<Self, ConfigError> {
        let reader = Self { source, name, header, table, known };
        let unknown = table.iter().find(|(key, _)| !known.contains(&key.get_ref().as_ref()));
        let Some((key, _)) = unknown else { return Ok(reader) };

        let path = reader.path_of(key.get_ref());
        let error = source.error(Some(key.span()), &path, "unknown key".to_owned());
        Err(error.with_hint(suggestion(reader.kind(), key.get_ref(), known)))
    }

    /// The value of a key, if it is there.
    pub(super) fn entry(&self, key: &'static str) -> Option<Entry<'a>> {
        debug_assert!(self.known.contains(&key), "{key} is not declared as known");
        let value = self.table.get(key)?;
        Some(Entry { source: self.source, key: self.path_of(key), value })
    }

    pub(super) fn string(&self, key: &'static str) -> Result<Option<String>, ConfigError> {
        self.entry(key).map(|entry| entry.string()).transpose()
    }

    /// A string read by `parse`, whose error is told with the key's place.
    pub(super) fn parsed<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        let text = entry.string()?;
        parse(&text).map(Some).map_err(|message| entry.error(message))
    }

    pub(super) fn strings(&self, key: &'static str) -> Result<Option<Vec<Entry<'a>>>, ConfigError> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        let items = entry.items("a list of strings, like [\"...\"]")?;
        for item in &items {
            item.string()?;
        }
        Ok(Some(items))
    }

    /// A table below this one.
    pub(super) fn table(&self, key: &'static str, known: Known) -> Result<Option<Self>, ConfigError> {
        self.entry(key).map(|entry| entry.table(known)).transpose()
    }

    /// The tables of an array of tables.
    pub(super) fn tables(&self, key: &'static str, known: Known) -> Result<Vec<Self>, ConfigError> {
        let Some(entry) = self.entry(key) else { return Ok(Vec::new()) };
        let items = entry.items(&format!("an array of tables, written [[{key}]]"))?;
        items.iter().map(|item| item.table(known)).collect()
    }

    /// The tables below a key whose names are the person's own.
    pub(super) fn named_tables(
        &self,
        key: &'static str,
        known: Known,
    ) -> Result<Vec<(String, Self)>, ConfigError> {
        let Some(entry) = self.entry(key) else { return Ok(Vec::new()) };
        let DeValue::Table(tables) = entry.value.get_ref() else {
            return Err(entry.wrong_type(&format!("tables, written [{key}.NAME]")));
        };
        let below = |(name, value): (&'a Spanned<Cow<'a, str>>, &'a Spanned<DeValue<'a>>)| {
            let name = name.get_ref().to_string();
            let entry = Entry { source: self.source, key: format!("{}.{name}", entry.key), value };
            Ok((name, entry.table(known)?))
        };
        tables.iter().map(below).collect()
    }

    /// An error about this table as a whole.
    pub(super) fn error(&self, message: impl Into<String>) -> ConfigError {
        self.source.error(self.header.clone(), &self.name, message.into())
    }

    /// An error about a key: at its value when it is written, else at the table.
    pub(super) fn error_at(&self, key: &'static str, message: impl Into<String>) -> ConfigError {
        match self.entry(key) {
            Some(entry) => entry.error(message),
            None => self.error(message),
        }
    }

    /// The table's name without what is the person's own: `account.main` is an `account`.
    fn kind(&self) -> &str {
        let name = self.name.split('[').next().unwrap_or_default();
        if name.starts_with("account.") { "account" } else { name }
    }

    fn path_of(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}

impl<'a> Entry<'a> {
    pub(super) fn string(&self) -> Result<String, ConfigError> {
        match self.value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            _ => Err(self.wrong_type("a string in quotes")),
        }
    }

    pub(super) fn boolean(&self) -> Result<bool, ConfigError> {
        self.value.get_ref().as_bool().ok_or_else(|| self.wrong_type("true or false"))
    }

    pub(super) fn integer(&self) -> Result<u64, ConfigError> {
        let DeValue::Integer(number) = self.value.get_ref() else {
            return Err(self.wrong_type("a whole number"));
        };
        u64::from_str_radix(number.as_str(), number.radix())
            .map_err(|error| self.error(format!("not a whole number from 0 on: {error}")))
    }

    pub(super) fn fraction(&self) -> Result<f64, ConfigError> {
        let text = match self.value.get_ref() {
            DeValue::Float(number) => number.as_str(),
            DeValue::Integer(number) => number.as_str(),
            _ => return Err(self.wrong_type("a number")),
        };
        text.parse().map_err(|error| self.error(format!("not a number: {error}")))
    }

    fn table(&self, known: Known) -> Result<TableReader<'a>, ConfigError> {
        match self.value.get_ref() {
            DeValue::Table(table) => {
                TableReader::new(self.source, self.key.clone(), Some(self.value.span()), table, known)
            }
            _ => Err(self.wrong_type("a table")),
        }
    }

    pub(super) fn items(&self, expected: &str) -> Result<Vec<Self>, ConfigError> {
        let DeValue::Array(array) = self.value.get_ref() else { return Err(self.wrong_type(expected)) };
        let item =
            |(index, value)| Self { source: self.source, key: format!("{}[{index}]", self.key), value };
        Ok(array.iter().enumerate().map(item).collect())
    }

    pub(super) fn error(&self, message: impl Into<String>) -> ConfigError {
        self.source.error(Some(self.value.span()), &self.key, message.into())
    }

    fn wrong_type(&self, expected: &str) -> ConfigError {
        self.error(format!("expected {expected}, found {}", self.value.get_ref().type_str()))
    }
}

/// What the person may have meant by a key that does not exist.
fn suggestion(table: &str, unknown: &str, known: &[&'static str]) -> String {
    let other = OTHER_NAMES.iter().find(|(kind, name, _)| (*kind, *name) == (table, unknown));
    if let Some((_, _, here)) = other {
        return format!("it is called `{here}` here");
    }
    if ["client_secret", "secret", "password"].contains(&unknown) {
        return "secrets never stand in the file: put it in a file of its own and name that in \
                client_secret_file, or use CNBLOGS_CLIENT_SECRET"
            .to_owned();
    }
    if ["token", "pat", "access_token"].contains(&unknown) {
        return "secrets never stand in the file: put it in a file of its own and name that in token_file, or \
                use CNBLOGS_PAT"
            .to_owned();
    }
    let near = known
        .iter()
        .map(|key| (strsim::jaro_winkler(unknown, key), *key))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.75);
    near.map_or_else(
        || format!("known here: {}", known.join(", ")),
        |(_, key)| format!("did you mean `{key}`?"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_name_stands_for_is_a_key() {
        let complete = include_str!("../../config/complete.toml");
        for (table, other, here) in OTHER_NAMES {
            let key = here.split(' ').next().unwrap_or_default();
            let is_key =
                [format!("\n{key} = "), format!("\n#{key} = ")].iter().any(|line| complete.contains(line));
            let is_header = key.starts_with('[') && complete.contains(&key.replace("NAME", "main"));
            assert!(is_key || is_header, "{other} in [{table}] is called {here}, which is no key");
        }
    }
}
