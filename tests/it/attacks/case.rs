//! The cases as they stand in the file. A rule that is not known here does not parse, so none is passed over.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

const FILE: &str = include_str!("../../cases/attacks.json");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "meta")]
    _meta: Value,
    cases: Vec<Case>,
}

/// Bytes, and what has to become of them.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) category: String,
    pub(crate) raw: String,
    pub(crate) upstream_raw: Option<String>,
    pub(crate) expect: String,
    pub(crate) check: Check,
    #[serde(rename = "ref")]
    _reference: String,
}

/// What the bytes may come to.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Reject,
    Forward,
    Either,
}

/// What the case needs configured.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Needs {
    Cap,
}

/// The rules of a case; `meta.check` in the file explains them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Check {
    pub(crate) verdict: Option<Verdict>,
    pub(crate) strict: Option<Verdict>,
    pub(crate) upstream: Upstream,
    pub(crate) status: Option<Vec<u16>>,
    pub(crate) not_status: Vec<u16>,
    pub(crate) close: bool,
    pub(crate) half_close: bool,
    pub(crate) incomplete: bool,
    pub(crate) body_in: Option<Vec<String>>,
    pub(crate) no_body: bool,
    pub(crate) html_inert: bool,
    pub(crate) never_bytes: Vec<String>,
    pub(crate) resp: Resp,
    pub(crate) needs: Option<Needs>,
    pub(crate) trap: usize,
}

/// What may arrive at the API.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Upstream {
    pub(crate) max: Option<usize>,
    pub(crate) max_complete: Option<usize>,
    pub(crate) target: Option<String>,
    pub(crate) target_in: Option<Vec<String>>,
    pub(crate) target_len: Option<usize>,
    pub(crate) method_in: Option<Vec<String>>,
    pub(crate) body: Option<String>,
    pub(crate) body_in: Option<Vec<String>>,
    pub(crate) absent: Vec<String>,
    pub(crate) present: BTreeMap<String, String>,
    pub(crate) no_bytes: Vec<String>,
    pub(crate) cl0: bool,
    pub(crate) te_ok: bool,
    pub(crate) never_target: Option<String>,
    pub(crate) no_raw: bool,
}

/// What the caller may get.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Resp {
    pub(crate) absent: Vec<String>,
    pub(crate) present: BTreeMap<String, String>,
    pub(crate) no_bytes: Vec<String>,
    pub(crate) no_token: bool,
}

/// What the placeholders stand for.
#[derive(Clone)]
pub(crate) struct Names {
    pub(crate) host: String,
    pub(crate) cap: String,
    pub(crate) bad_cap: String,
    pub(crate) path: String,
    pub(crate) trap: String,
    pub(crate) api_host: String,
    pub(crate) token: String,
}

/// All cases of the file.
pub(crate) fn load() -> Vec<Case> {
    let file: File = serde_json::from_str(FILE).expect("every rule of the file is known");
    file.cases
}

impl Check {
    /// The rules with the placeholders of targets filled in.
    pub(crate) fn named(mut self, names: &Names) -> Self {
        let upstream = &mut self.upstream;
        let targets = upstream.target_in.iter_mut().flatten();
        for target in targets.chain(&mut upstream.target).chain(&mut upstream.never_target) {
            *target = names.expand(target);
        }
        self
    }
}

impl Names {
    /// The bytes of a text of the file: placeholders filled in, then a code point a byte.
    pub(crate) fn bytes(&self, text: &str) -> Vec<u8> {
        let text = self.expand(text);
        text.chars().map(|char| u8::try_from(u32::from(char)).expect("the file is latin-1")).collect()
    }

    /// The text with the placeholders filled in.
    pub(crate) fn expand(&self, text: &str) -> String {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once("{{") {
            let (name, after) = behind.split_once("}}").expect("a placeholder ends");
            expanded += before;
            expanded += &self.value(name);
            rest = after;
        }
        expanded + rest
    }

    fn value(&self, name: &str) -> String {
        let repeated = |rest: &str| {
            let (text, times) = rest.rsplit_once(':').expect("a text and a number");
            (text.to_owned(), times.parse::<usize>().expect("a number"))
        };
        if let Some(rest) = name.strip_prefix("REPEAT:") {
            let (text, times) = repeated(rest);
            return text.repeat(times);
        }
        if let Some(rest) = name.strip_prefix("REPEATN:") {
            let (text, times) = repeated(rest);
            return (0..times).map(|number| text.replace("%d", &number.to_string())).collect();
        }
        match name {
            "HOST" => self.host.clone(),
            "PORT" => self.host.rsplit(':').next().unwrap_or_default().to_owned(),
            "CAP" => self.cap.clone(),
            "BADCAP" => self.bad_cap.clone(),
            "P" => self.path.clone(),
            "Pn" => self.path.trim_start_matches('/').to_owned(),
            "TRAP" => self.trap.clone(),
            "UPHOST" => self.api_host.clone(),
            "TOKEN" => self.token.clone(),
            _ => panic!("an unknown placeholder: {name}"),
        }
    }
}
