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
pub(super) struct Case {
    pub(super) id: String,
    pub(super) category: String,
    pub(super) raw: String,
    pub(super) upstream_raw: Option<String>,
    pub(super) expect: String,
    pub(super) check: Check,
    #[serde(rename = "ref")]
    _reference: String,
}

/// What the bytes may come to.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Reject,
    Forward,
    Either,
}

/// What the case needs configured.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Needs {
    Cap,
}

/// The rules of a case; `meta.check` in the file explains them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Check {
    pub(super) verdict: Option<Verdict>,
    pub(super) strict: Option<Verdict>,
    pub(super) upstream: Upstream,
    pub(super) status: Option<Vec<u16>>,
    pub(super) not_status: Vec<u16>,
    pub(super) close: bool,
    pub(super) half_close: bool,
    pub(super) incomplete: bool,
    pub(super) body_in: Option<Vec<String>>,
    pub(super) no_body: bool,
    pub(super) html_inert: bool,
    pub(super) never_bytes: Vec<String>,
    pub(super) resp: Resp,
    pub(super) needs: Option<Needs>,
    pub(super) trap: usize,
}

/// What may arrive at the API.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Upstream {
    pub(super) max: Option<usize>,
    pub(super) max_complete: Option<usize>,
    pub(super) target: Option<String>,
    pub(super) target_in: Option<Vec<String>>,
    pub(super) target_len: Option<usize>,
    pub(super) method_in: Option<Vec<String>>,
    pub(super) body: Option<String>,
    pub(super) body_in: Option<Vec<String>>,
    pub(super) absent: Vec<String>,
    pub(super) present: BTreeMap<String, String>,
    pub(super) no_bytes: Vec<String>,
    pub(super) cl0: bool,
    pub(super) te_ok: bool,
    pub(super) never_target: Option<String>,
    pub(super) no_raw: bool,
}

/// What the caller may get.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Resp {
    pub(super) absent: Vec<String>,
    pub(super) present: BTreeMap<String, String>,
    pub(super) no_bytes: Vec<String>,
    pub(super) no_token: bool,
}

/// What the placeholders stand for.
#[derive(Clone)]
pub(super) struct Names {
    pub(super) host: String,
    pub(super) cap: String,
    pub(super) bad_cap: String,
    pub(super) path: String,
    pub(super) trap: String,
    pub(super) api_host: String,
    pub(super) token: String,
}

/// All cases of the file.
pub(super) fn load() -> Vec<Case> {
    let file: File = serde_json::from_str(FILE).expect("every rule of the file is known");
    file.cases
}

impl Check {
    /// The rules with the placeholders of targets filled in.
    pub(super) fn named(mut self, names: &Names) -> Self {
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
    pub(super) fn bytes(&self, text: &str) -> Vec<u8> {
        let text = self.expand(text);
        text.chars().map(|char| u8::try_from(u32::from(char)).expect("the file is latin-1")).collect()
    }

    /// The text with the placeholders filled in.
    pub(super) fn expand(&self, text: &str) -> String {
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
