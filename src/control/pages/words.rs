//! The languages of the pages: which one a reader wants, the words of `words.toml`, and templates filled with them.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::ACCEPT_LANGUAGE;
use toml::de::{DeTable, DeValue};

use crate::token::At;

const WORDS: &str = include_str!("words.toml");
/// Words that the pages' script needs have keys below this.
const FOR_SCRIPTS: &str = "js.";
/// What events are told with has keys below this.
const SAID: &str = "said.";

static BY_KEY: LazyLock<BTreeMap<String, [String; 2]>> = LazyLock::new(|| {
    let mut words = BTreeMap::new();
    collect("", DeTable::parse(WORDS).expect("words.toml is TOML").get_ref(), &mut words);
    words
});

/// A language that the pages speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) enum Language {
    /// For everybody who asks for no other.
    English,
    /// Simplified.
    Chinese,
}

/// Who reads a page, and when.
#[derive(Clone, Copy, Debug)]
pub(in crate::control) struct Viewer {
    /// What is asked for.
    pub(in crate::control) language: Language,
    /// When the page is made.
    pub(in crate::control) now: At,
}

/// A template's values. They are never looked at for placeholders again.
#[derive(Clone)]
pub(super) struct Fill {
    viewer: Viewer,
    values: Vec<(&'static str, String)>,
}

impl Language {
    /// The best of what a reader takes (RFC 9110, section 12.5.4).
    pub(in crate::control) fn asked_for(fields: &HeaderMap) -> Self {
        let asked = fields.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut best = (Self::English, 0.0);
        for range in asked.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let tag = parts.next().unwrap_or_default().to_ascii_lowercase();
            let language = match tag.split('-').next() {
                Some("zh") => Self::Chinese,
                Some("en" | "*") => Self::English,
                _ => continue,
            };
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
            if weight > best.1 {
                best = (language, weight);
            }
        }
        best.0
    }

    const fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Chinese => "zh-CN",
        }
    }

    fn word(self, key: &str) -> Option<&'static str> {
        let [english, chinese] = BY_KEY.get(key)?;
        Some(match self {
            Self::English => english,
            Self::Chinese => chinese,
        })
    }
}

impl Viewer {
    /// The words that the pages' script needs, as JSON.
    pub(super) fn words_for_scripts(self) -> String {
        let ours = BY_KEY.keys().filter(|key| key.starts_with(FOR_SCRIPTS));
        let words = ours.map(|key| (&key[FOR_SCRIPTS.len()..], self.language.word(key)));
        serde_json::to_string(&words.collect::<BTreeMap<_, _>>()).unwrap_or_default()
    }

    /// A word without values.
    pub(super) fn word(self, key: &str) -> String {
        Fill::new(self).word(key)
    }

    /// Our own English words of an event, in the reader's language.
    pub(super) fn said(self, english: &'static str) -> &'static str {
        let mut said = BY_KEY.iter().filter(|(key, _)| key.starts_with(SAID));
        let known = said.find(|(_, [words, _])| words == english);
        debug_assert!(known.is_some(), "words.toml does not know {english:?}");
        known.and_then(|(key, _)| self.language.word(key)).unwrap_or(english)
    }

    /// A time of day, which the script shows in the reader's own zone.
    pub(super) fn time(self, at: At) -> String {
        let text = at.to_string();
        let shown = text.get(..16).unwrap_or_default().replace('T', " ");
        format!("<time datetime=\"{text}\">{shown} UTC</time>")
    }

    /// How far away a moment is, in either direction; the script goes on counting.
    pub(super) fn distance(self, at: At) -> String {
        let key = if at.0 > self.now.0 { "js.in" } else { "js.ago" };
        self.counted(at, "distance", key)
    }

    /// How much is left until a moment; the script goes on counting.
    pub(super) fn left(self, at: At) -> String {
        let key = if at.0 > self.now.0 { "js.left" } else { "js.over" };
        self.counted(at, "left", key)
    }

    fn counted(self, at: At, kind: &str, key: &str) -> String {
        let span = self.span(Duration::from_millis(at.0.abs_diff(self.now.0)));
        let text = Fill::new(self).text("span", &span).word(key);
        format!("<span data-at=\"{}\" data-count=\"{kind}\">{text}</span>", at.0)
    }

    /// The two largest units of a duration.
    pub(super) fn span(self, span: Duration) -> String {
        let secs = span.as_secs();
        let units = [("day", secs / 86_400), ("hour", secs / 3600 % 24), ("minute", secs / 60 % 60)];
        let all = units.into_iter().chain([("second", secs % 60)]);
        let shown: Vec<_> = all.skip_while(|(_, number)| *number == 0).take(2).collect();
        let shown = if shown.is_empty() { vec![("second", 0)] } else { shown };
        let several = shown.len() > 1;
        let shown =
            shown.into_iter().enumerate().filter(|(at, (_, number))| !several || *at == 0 || *number > 0);
        shown.map(|(_, (unit, number))| self.counted_unit(unit, number)).collect::<Vec<_>>().join(" ")
    }

    fn counted_unit(self, unit: &str, number: u64) -> String {
        let word = self.language.word(&format!("js.unit.{unit}")).unwrap_or_default();
        let (one, more) = word.split_once('|').unwrap_or((word, word));
        format!("{number} {}", if number == 1 { one } else { more })
    }
}

impl Fill {
    pub(super) fn new(viewer: Viewer) -> Self {
        Self { viewer, values: vec![("language", viewer.language.tag().to_owned())] }
    }

    /// A value that is somebody's text.
    pub(super) fn text(mut self, name: &'static str, text: &str) -> Self {
        self.values.push((name, escape(text)));
        self
    }

    /// A value that is markup of our own.
    pub(super) fn markup(mut self, name: &'static str, markup: impl Into<String>) -> Self {
        self.values.push((name, markup.into()));
        self
    }

    /// A number.
    pub(super) fn number(self, name: &'static str, number: u64) -> Self {
        self.markup(name, number.to_string())
    }

    /// A template or a word with everything put in.
    pub(super) fn fill(&self, template: &str) -> String {
        let mut filled = String::with_capacity(template.len() * 2);
        let mut rest = template;
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").unwrap_or((after, ""));
            filled.push_str(before);
            match self.values.iter().rev().find(|(known, _)| known == &name) {
                Some((_, value)) => filled.push_str(value),
                None => filled.push_str(&self.word(name)),
            }
            rest = after;
        }
        filled.push_str(rest);
        filled
    }

    /// A word with everything put in.
    pub(super) fn word(&self, key: &str) -> String {
        let word = self.viewer.language.word(key);
        debug_assert!(word.is_some(), "no word and no value {key}");
        self.fill(word.unwrap_or_default())
    }
}

/// Somebody's text in markup, in an attribute as well.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// A table with both languages is a word; one below it belongs to a longer key.
fn collect(key: &str, table: &DeTable<'_>, words: &mut BTreeMap<String, [String; 2]>) {
    let text = |language| table.get(language).and_then(|value| value.get_ref().as_str()).map(str::to_owned);
    if let (Some(english), Some(chinese)) = (text("en"), text("zh")) {
        words.insert(key.to_owned(), [english, chinese]);
    }
    for (name, value) in table {
        if let DeValue::Table(table) = value.get_ref() {
            let separator = if key.is_empty() { "" } else { "." };
            collect(&format!("{key}{separator}{}", name.get_ref()), table, words);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(languages: &str) -> Language {
        let mut fields = HeaderMap::new();
        fields.insert(ACCEPT_LANGUAGE, languages.parse().unwrap());
        Language::asked_for(&fields)
    }

    fn viewer(language: Language) -> Viewer {
        Viewer { language, now: At(1_000_000_000_000) }
    }

    #[test]
    fn the_language_is_the_one_that_a_reader_likes_best() {
        for english in ["", "*", "en", "fr", "en-GB,zh;q=0.9", "zh;q=0.3, en;q=0.8", "zh;q=0", "zhq", "\u{1}"]
        {
            if let Ok(value) = english.parse() {
                let fields = HeaderMap::from_iter([(ACCEPT_LANGUAGE, value)]);
                assert_eq!(Language::asked_for(&fields), Language::English, "{english:?}");
            }
        }
        for chinese in ["zh", "zh-CN,zh;q=0.9,en;q=0.8", "ZH-Hans", "fr, zh-TW;q=0.5, en;q=0.4", "zh,en"] {
            assert_eq!(asked(chinese), Language::Chinese, "{chinese:?}");
        }
    }

    #[test]
    fn every_word_is_there_in_both_languages_and_holds_the_same_values() {
        assert!(BY_KEY.len() > 150, "only {} words", BY_KEY.len());
        assert_eq!(WORDS.matches("\nen = ").count(), BY_KEY.len(), "a word lacks a language");
        let held = |word: &str| {
            let mut names: Vec<_> =
                word.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        for (key, [english, chinese]) in BY_KEY.iter() {
            assert!(!english.is_empty() && !chinese.is_empty(), "{key}");
            assert_eq!(held(english), held(chinese), "{key}");
        }
    }

    #[test]
    fn a_duration_is_said_by_its_two_largest_units() {
        for (secs, english, chinese) in [
            (0, "0 s", "0 秒"),
            (59, "59 s", "59 秒"),
            (61, "1 min 1 s", "1 分钟 1 秒"),
            (3600, "1 h", "1 小时"),
            (86_400 + 3 * 3600 + 59, "1 day 3 h", "1 天 3 小时"),
            (29 * 86_400 + 59, "29 days", "29 天"),
        ] {
            let span = Duration::from_secs(secs);
            assert_eq!(viewer(Language::English).span(span), english);
            assert_eq!(viewer(Language::Chinese).span(span), chinese);
        }
    }

    #[test]
    fn values_are_text_and_are_not_filled_again() {
        let fill = Fill::new(viewer(Language::English)).text("account", "<b>{{brand}}</b>'\"&");

        assert_eq!(fill.fill("[{{account}}]"), "[&lt;b&gt;{{brand}}&lt;/b&gt;&#39;&quot;&amp;]");
        assert_eq!(fill.fill("{{brand}}, {{language}}"), "cnblogs-proxy, en");
    }
}
