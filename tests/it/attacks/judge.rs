//! What was seen, held against the rules of a case.

use std::fmt;

use super::case::{Case, Check, Resp, Upstream, Verdict};
use super::line::{Heard, Reply, Transport, find, latin1};
use crate::standin::RecordedRequest;

/// What became of a case.
pub(crate) struct Seen {
    /// What the caller got.
    pub(super) heard: Heard,
    /// What the next caller got.
    pub(super) next: Vec<u8>,
    /// What arrived at the API.
    pub(super) requests: Vec<RecordedRequest>,
    /// Every byte that was sent to the API.
    pub(super) sent_up: Vec<u8>,
    /// How many connections the trap had.
    pub(super) caught: usize,
}

/// The rules over this transport.
///
/// They are the case's own but where `interface.md` differs: "over a unix socket any valid Host will do". There,
/// a case that is refused for which host it names is forwarded, as long as the one Host is well-formed; so is
/// a second request in the pipeline that names another host than the first (frm-039).
pub(super) fn rules(case: &Case, transport: Transport) -> Check {
    let mut check = case.check.clone();
    if transport == Transport::Tcp {
        return check;
    }
    let names_a_host = case.category == "host-header" && check.verdict == Some(Verdict::Reject);
    if names_a_host && has_one_valid_host(&case.raw) {
        check.verdict = Some(Verdict::Forward);
    }
    if case.id == "frm-039" {
        check.upstream = Upstream { max: Some(2), ..Upstream::default() };
    }
    check
}

/// The rules with the stricter verdict, where the case has one.
pub(super) fn strictly(check: &Check) -> Option<Check> {
    let verdict = Some(check.strict?);
    Some(Check { verdict, ..check.clone() })
}

fn has_one_valid_host(raw: &str) -> bool {
    let hosts: Vec<&str> = raw.split("\r\n").filter_map(|line| line.strip_prefix("Host: ")).collect();
    let &[host] = hosts.as_slice() else { return false };
    let name = host.trim_end_matches(":{{PORT}}").trim_end_matches(":1").replace("{{UPHOST}}", "a");
    !name.is_empty() && name.chars().all(|char| char.is_ascii_alphanumeric() || ".-".contains(char))
}

/// Everything that is not as the rules say.
pub(super) fn judge(check: &Check, seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    judge_verdict(check, seen, &mut wrong);
    judge_upstream(&check.upstream, seen, &mut wrong);
    judge_connection(check, seen, &mut wrong);
    judge_answer(check, seen, &mut wrong);
    judge_resp(&check.resp, &seen.heard, &mut wrong);
    if seen.caught != check.trap {
        wrong.push(format!("the trap was contacted {} times", seen.caught));
    }
    wrong
}

fn judge_verdict(check: &Check, seen: &Seen, wrong: &mut Vec<String>) {
    let came = seen.requests.len();
    let max = check.upstream.max.unwrap_or(1);
    match check.verdict {
        None => {}
        Some(Verdict::Reject) if came > 0 => wrong.push(format!("{came} requests went up")),
        Some(Verdict::Forward) if came != 1 => wrong.push(format!("{came} requests went up, not one")),
        Some(Verdict::Reject) => judge_refusal(seen, wrong),
        Some(Verdict::Either) if came == 0 => judge_refusal(seen, wrong),
        Some(Verdict::Forward | Verdict::Either) if came > max => {
            wrong.push(format!("{came} requests went up, more than {max}"));
        }
        Some(Verdict::Forward | Verdict::Either) => {}
    }
}

/// A refusal is a problem of the proxy's own, or the end of the connection.
fn judge_refusal(seen: &Seen, wrong: &mut Vec<String>) {
    match seen.heard.reply() {
        None if seen.heard.was_closed => {}
        None => wrong.push("no answer, and not closed".to_owned()),
        Some(reply) if reply.status < 400 => wrong.push(format!("refused with {}", reply.status)),
        Some(reply) if reply.is_complete && reply.problem().is_none() => {
            wrong.push(format!("{} is not a problem of the proxy's own", reply.status));
        }
        Some(_) => {}
    }
}

fn judge_upstream(rules: &Upstream, seen: &Seen, wrong: &mut Vec<String>) {
    let complete = seen.requests.iter().filter(|request| request.complete).count();
    if rules.max_complete.is_some_and(|max| complete > max) {
        wrong.push(format!("{complete} complete requests went up"));
    }
    if let Some(bytes) = rules.no_bytes.iter().find(|bytes| find(&seen.sent_up, &bytes_of(bytes)).is_some()) {
        wrong.push(format!("{bytes:?} went up"));
    }
    for request in &seen.requests {
        judge_target(rules, &request.target, wrong);
        if rules.method_in.as_ref().is_some_and(|known| !known.contains(&request.method)) {
            wrong.push(format!("the method is {:?}", request.method));
        }
        judge_fields(rules, request, wrong);
        judge_body(rules, request, wrong);
    }
}

fn judge_target(rules: &Upstream, target: &str, wrong: &mut Vec<String>) {
    let is_exact = rules.target.as_ref().is_none_or(|exact| exact == target);
    let is_one = rules.target_in.as_ref().is_none_or(|known| known.iter().any(|one| one == target));
    let is_long = rules.target_len.is_none_or(|length| length == target.len());
    let is_never = rules.never_target.as_ref().is_some_and(|never| target.starts_with(never.as_str()));
    if !is_exact || !is_one || !is_long || is_never {
        wrong.push(format!("the target is {:?}", &target[..target.len().min(200)]));
    }
}

fn judge_fields(rules: &Upstream, request: &RecordedRequest, wrong: &mut Vec<String>) {
    for name in rules.absent.iter().filter(|name| !request.fields_named(name).is_empty()) {
        wrong.push(format!("{name} went up"));
    }
    for (name, value) in &rules.present {
        if request.fields_named(name) != [value.as_str()] {
            wrong.push(format!("{name} went up as {:?}", request.fields_named(name)));
        }
    }
    let lengths = request.fields_named("content-length");
    if rules.cl0 && (lengths != ["0"] || !request.fields_named("transfer-encoding").is_empty()) {
        wrong.push(format!("Content-Length went up as {lengths:?}"));
    }
    if rules.te_ok && request.fields_named("te").iter().any(|value| value != "trailers") {
        wrong.push("TE went up".to_owned());
    }
    let upgrade = ["upgrade", "connection"].iter().flat_map(|name| request.fields_named(name));
    if rules.no_raw && upgrade.count() > 0 {
        wrong.push("an offer to upgrade went up".to_owned());
    }
}

fn judge_body(rules: &Upstream, request: &RecordedRequest, wrong: &mut Vec<String>) {
    let body = latin1(&request.body);
    let is_exact = rules.body.as_ref().is_none_or(|exact| request.complete && *exact == body);
    let is_one = rules.body_in.as_ref().is_none_or(|known| !request.complete || known.contains(&body));
    if !is_exact || !is_one {
        wrong.push(format!("the body is {body:?}, complete: {}", request.complete));
    }
}

fn judge_connection(check: &Check, seen: &Seen, wrong: &mut Vec<String>) {
    if check.close && !seen.heard.was_closed {
        wrong.push("the connection was not closed".to_owned());
    }
    if let Some(what) = &seen.heard.malformed {
        wrong.push(format!("the caller got {what}"));
    }
    if !seen.heard.has_ended {
        wrong.push("the connection never ended".to_owned());
    }
    for bytes in &check.never_bytes {
        let bytes = bytes_of(bytes);
        if find(&seen.heard.raw, &bytes).is_some() || find(&seen.next, &bytes).is_some() {
            wrong.push(format!("{:?} reached a caller", latin1(&bytes)));
        }
    }
}

fn judge_answer(check: &Check, seen: &Seen, wrong: &mut Vec<String>) {
    let reply = seen.heard.reply();
    let status = reply.map_or(0, |reply| reply.status);
    if check.status.as_ref().is_some_and(|known| !known.contains(&status))
        || check.not_status.contains(&status)
    {
        wrong.push(format!("the status is {status}"));
    }
    if let Some(known) = &check.body_in {
        let is_ours = reply.is_some_and(|reply| reply.problem().is_some());
        let body = reply.map(|reply| latin1(&reply.body)).unwrap_or_default();
        if !is_ours && !known.contains(&body) {
            wrong.push(format!("the caller's body is {body:?}"));
        }
    }
    if check.incomplete && status < 500 && reply.is_some_and(|reply| reply.is_complete) {
        wrong.push("the truncated body looks whole".to_owned());
    }
    let follows = find(&seen.heard.raw, b"\r\n\r\n").is_some_and(|end| seen.heard.raw.len() > end + 4);
    if check.no_body && (follows || reply.is_none()) {
        wrong.push("a body follows the head".to_owned());
    }
    let inert =
        |reply: &Reply| reply.named("content-security-policy").iter().any(|csp| csp.contains("sandbox"));
    let went_up = !seen.requests.is_empty();
    if (check.html_inert || went_up) && status == 200 && !reply.is_some_and(inert) {
        wrong.push("a 200 is not sandboxed".to_owned());
    }
}

fn judge_resp(rules: &Resp, heard: &Heard, wrong: &mut Vec<String>) {
    for reply in &heard.replies {
        for name in rules.absent.iter().filter(|name| !reply.named(name).is_empty()) {
            wrong.push(format!("the caller got {name}"));
        }
    }
    for (name, value) in &rules.present {
        let values = heard.reply().map(|reply| reply.named(name)).unwrap_or_default();
        if values != [value.as_str()] {
            wrong.push(format!("the caller got {name} as {values:?}"));
        }
    }
    for bytes in rules.no_bytes.iter().filter(|bytes| find(&heard.raw, &bytes_of(bytes)).is_some()) {
        wrong.push(format!("the caller got {bytes:?}"));
    }
    // `no_token` is an invariant: the stage looks for the token in everything that any caller got.
    let _held_for_every_case = rules.no_token;
}

fn bytes_of(text: &str) -> Vec<u8> {
    text.chars().map(|char| u8::try_from(u32::from(char)).expect("the file is latin-1")).collect()
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let got = latin1(&self.heard.raw);
        let got: String = got.chars().take(600).collect();
        write!(f, "caller got, in {:?}: {got:?}", self.heard.took)?;
        for request in &self.requests {
            let head: String = latin1(&request.raw_head).chars().take(600).collect();
            let body: String = latin1(&request.body).chars().take(100).collect();
            write!(f, "\n    went up: {head:?} {body:?} complete: {}", request.complete)?;
        }
        Ok(())
    }
}
