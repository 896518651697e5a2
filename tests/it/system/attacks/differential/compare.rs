//! What became of the same bytes through the daemon and through another proxy, held against the strict reading and
//! against each other.

use std::collections::BTreeSet;

use super::exchange::{Outcome, Play};
use super::peers::TOKEN;
use crate::attacks::reading::{Reading, Request};

/// One thing that is not the same through the daemon and through another proxy.
pub(super) struct Difference<'a> {
    pub(super) kind: Kind<'a>,
    /// What the caller wrote.
    pub(super) bytes: &'a [u8],
    /// The upstream's answer was scripted.
    pub(super) has_script: bool,
    pub(super) reading: &'a Reading,
    pub(super) ours: &'a Outcome,
    pub(super) theirs: &'a Outcome,
    /// Those two and the third.
    pub(super) all: &'a [Outcome],
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind<'a> {
    /// The other proxy sent up a request that the daemon did not.
    Fewer(&'a Request),
    /// The daemon sent up a request that the other proxy did not.
    More(&'a Request),
    /// Only one of them sent up the beginning of a request that never ended.
    Begun { is_ours: bool },
    /// A field of a request that both sent up: what the daemon made of it, and the other proxy.
    Field { name: &'a str, ours: &'a str, theirs: &'a str },
    /// The same requests went up, and the callers got other statuses.
    Status,
}

/// What must not be, whatever other proxies do: what reached the upstream is some of the requests that the strict
/// reading finds, in order and unchanged, with the one token, none of them one that has to be refused.
pub(super) fn broken(play: &Play, reading: &Reading, ours: &Outcome) -> Vec<String> {
    let mut broken = ours.violations.clone();
    let mut left = reading.requests.iter();
    let mut sent_again = None;
    for request in &ours.requests {
        if request.named("authorization") != [format!("Bearer {TOKEN}")] {
            broken.push(format!("Authorization went up as {:?}", request.named("authorization")));
        }
        let is_this = |known: &&Request| known.refusal.is_none() && is_same(known, request);
        // Without an answer, one may be sent again, once.
        let is_again = |first: &Request| play.said.is_some() && is_same(first, request);
        if sent_again.take().is_some_and(is_again) {
            continue;
        }
        sent_again = Some(request);
        match left.find(is_this) {
            Some(_) => {}
            None => {
                broken
                    .push(format!("{} {} is not a request of the caller's", request.method, request.target));
            }
        }
    }
    if ours.begun.iter().any(|begun| !reading.begun.as_ref().is_some_and(|known| is_same_line(known, begun)))
    {
        broken.push("the beginning of a request went up that is not the caller's".to_owned());
    }
    broken
}

/// Method, target and body; the target in whichever form it is written, without a fragment.
pub(super) fn is_same(known: &Request, request: &Request) -> bool {
    is_same_line(known, request) && known.body == request.body
}

fn is_same_line(known: &Request, request: &Request) -> bool {
    known.method == request.method && origin_form(&known.target) == origin_form(&request.target)
}

/// `http://host/path?query` as `/path?query`.
fn origin_form(target: &str) -> String {
    let target = target.split('#').next().unwrap_or_default();
    let Some((_scheme, rest)) = target.split_once("://").filter(|_| !target.starts_with('/')) else {
        return target.to_owned();
    };
    let path = rest.find(['/', '?']).map_or("", |at| &rest[at..]);
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// Everything that is not the same through the daemon, whose outcome is the first, and the others.
pub(super) fn differences<'a>(
    play: &'a Play,
    reading: &'a Reading,
    all: &'a [Outcome],
) -> Vec<Difference<'a>> {
    let (ours, others) = all.split_first().expect("the daemon is always asked");
    let mut differences = Vec::new();
    for theirs in others {
        let difference = |kind| Difference {
            kind,
            bytes: &play.bytes,
            has_script: play.said.is_some(),
            reading,
            ours,
            theirs,
            all,
        };
        differences.extend(kinds(ours, theirs).into_iter().map(difference));
    }
    differences
}

fn kinds<'a>(ours: &'a Outcome, theirs: &'a Outcome) -> Vec<Kind<'a>> {
    let mut kinds = Vec::new();
    let mut left = ours.requests.as_slice();
    for request in &theirs.requests {
        match left.iter().position(|known| is_same(known, request)) {
            Some(skipped) => {
                kinds.extend(left[..skipped].iter().map(Kind::More));
                compare_fields(&left[skipped], request, &mut kinds);
                left = &left[skipped + 1..];
            }
            None => kinds.push(Kind::Fewer(request)),
        }
    }
    kinds.extend(left.iter().map(Kind::More));
    if ours.begun.is_empty() != theirs.begun.is_empty() {
        kinds.push(Kind::Begun { is_ours: theirs.begun.is_empty() });
    }
    let has_same_requests = kinds.iter().all(|kind| matches!(kind, Kind::Field { .. }));
    if has_same_requests && ours.statuses != theirs.statuses {
        kinds.push(Kind::Status);
    }
    kinds
}

/// Which values a field has, in order; which field comes first is nobody's concern.
fn compare_fields<'a>(ours: &'a Request, theirs: &'a Request, kinds: &mut Vec<Kind<'a>>) {
    let names = ours.fields.iter().chain(&theirs.fields).map(|(name, _)| name.as_str());
    let names: BTreeSet<&str> = names.filter(|name| !OF_THE_CONNECTION.contains(name)).collect();
    for name in names {
        let (our_values, their_values) = (ours.named(name), theirs.named(name));
        let rest = our_values.len().max(their_values.len());
        for at in 0..rest {
            let value = |values: &[&'a str]| values.get(at).copied().unwrap_or(ABSENT);
            let (ours_is, theirs_is) = (value(&our_values), value(&their_values));
            if ours_is != theirs_is {
                kinds.push(Kind::Field { name, ours: ours_is, theirs: theirs_is });
            }
        }
    }
}

/// What each proxy says of its own connection, and of itself; the body is compared as it is read.
const OF_THE_CONNECTION: [&str; 6] =
    ["authorization", "authorization-type", "connection", "content-length", "host", "transfer-encoding"];
/// In place of the value of a field that is not there: no value has a line feed.
pub(super) const ABSENT: &str = "\n";
