//! The same bytes through the daemon, nginx and haproxy: what reaches the upstream and what the caller gets.
//!
//! The cases of `tests/cases/attacks.json` are played as they are and with a request behind them on the same
//! connection, then mutated at random. What reached the upstream through the daemon has to be a part of what the
//! strict reading of the caller's bytes finds, whatever the others do. Where the others differ from the daemon, one
//! of [`classes::CLASSES`] has to explain it, and every class has to occur in the cases: a difference that nothing
//! explains fails the test, and so does an explanation that nothing needs any more.
//!
//! A difference that is new is a fault of ours, of a peer, or of the reading, and is looked at with the bytes that
//! the test prints. Only when the daemon is right, or as strict as the peer, does it become a class.
//!
//! `ATTACK_MUTATIONS=20000 cargo test --all-features --test it differential` plays so many mutations; `ATTACK_SEED` and
//! `ATTACK_FIRST` say which, as for the mutations of `mutate.rs`. nginx and haproxy have to be installed;
//! `tests/run` does so.

mod classes;
mod compare;
mod exchange;
mod peers;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use self::classes::CLASSES;
use self::compare::{Difference, Kind};
use self::exchange::{Outcome, Play, SENTINEL, exchange};
use self::peers::{Lane, Peers, TOKEN};
use crate::attacks::case::{self, Case, Names};
use crate::attacks::line::{find, latin1};
use crate::attacks::{mutate, reading};

/// Played when `ATTACK_MUTATIONS` says nothing.
const MUTATIONS: u64 = 500;
/// So many are played at once; most of the time each waits.
const LANES: usize = 6;
const GRACE: Duration = Duration::from_millis(20);
/// So long that a peer which has not gone on by then waits for more bytes.
const LONG_GRACE: Duration = Duration::from_millis(1500);
/// No more failures are looked for than these.
const FAILURES: usize = 20;

/// Differences that mutations have shown, as small as they get.
const FOUND: [(&str, &str); 16] = [
    ("a local route", "GET /-/nothing HTTP/1.1\r\nHost: {{HOST}}\r\n\r\n"),
    ("many fields", "GET {{P}} HTTP/1.1\r\nHost: {{HOST}}\r\n{{REPEATN:X-%d: v\r\n:129}}\r\n"),
    ("an asterisk", "OPTHONS * HTTP/1.1\r\nHost: {{HOST}}\r\n\r\n"),
    ("a scheme that is none", "GET *ttp://api.example:1/x HTTP/1.1\r\nHost: {{HOST}}\r\n\r\n"),
    ("a CR before CRLF", "GET {{P}} HTTP/1.1\r\nHost: {{HOST}}\r\nX: a\r\r\n\r\n"),
    (
        "a LF in the place of trailers",
        "POST {{P}} HTTP/1.1\r\nHost: {{HOST}}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\n\r\n",
    ),
    (
        "a request in the place of trailers, and one in its body",
        "POST {{P}} HTTP/1.1\r\nHost: {{HOST}}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\n\
         POST {{P}} HTTP/1.1\r\nHost: {{HOST}}\r\nContent-Length: 1000\r\n\r\n\
         GET /smuggled HTTP/1.1\r\nHost: {{HOST}}\r\n\r\n",
    ),
    (
        "a length that is none beside chunks",
        "POST {{P}} HTTP/1.1\r\nHost: {{HOST}}\r\nTransfer-Encoding: chunked\r\nContent-Length: x\r\n\r\n\
         5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "a size and something else",
        "POST {{P}} HTTP/1.1\r\nHost: {{HOST}}\r\nTransfer-Encoding: chunked\r\n\r\n5 x\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "an offer of WebSocket without a key",
        "GET {{P}} HTTP/1.1\r\nHost: {{HOST}}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ),
    ("a rare name", "GET {{P}} HTTP/1.1\r\nHost: {{HOST}}\r\nX+Y: 1\r\n\r\n"),
    ("half a head", "GET {{P}} HTTP/1.1\r\nHost: :=\r\n"),
    ("HTTP/1.0", "GET {{P}} HTTP/1.0\r\n\r\n"),
    ("a tab", "GET {{P}} HTTP/1.1\r\nHost: \t{{HOST}}\r\n\r\n"),
    ("a port too large", "GET {{P}} HTTP/1.1\r\nHost: 127.0.0.1:70000\r\n\r\n"),
    (
        "close among bytes that are no text",
        "GET {{P}} HTTP/1.1\r\nHost: {{HOST}}\r\nConnection: close, \u{e9}\r\n\r\n",
    ),
];

/// How often each class occurred, and what was wrong.
#[derive(Default)]
struct Findings {
    classes: BTreeMap<&'static str, usize>,
    failures: Vec<String>,
}

#[test]
#[expect(clippy::print_stdout, reason = "how the peers differ is worth reading")]
fn what_differs_from_nginx_and_haproxy_is_known_and_explained() {
    let mut peers = Peers::start(1);
    let lane = &mut peers.lanes[0];
    let names = names(lane);
    let mut findings = Findings::default();

    let cases = case::load();
    let known = cases.iter().map(|case| (case.id.as_str(), case.raw.as_str(), case.upstream_raw.as_deref()));
    let found = FOUND.iter().map(|(name, raw)| (*name, *raw, None));
    for (name, raw, upstream_raw) in known.chain(found) {
        let said = upstream_raw.map(|raw| said(raw, &names));
        let followed = Play::followed(&names, names.bytes(raw), said.clone());
        findings.add(lane, name, &followed);
        // What follows may be read as a part of the case, or hide how a connection ended.
        let is_read =
            reading::read(&followed.bytes).requests.iter().any(|request| request.target == SENTINEL);
        if !is_read || said.is_some() {
            findings.add(lane, name, &Play { bytes: names.bytes(raw), said, grace: GRACE });
        }
    }

    for class in CLASSES {
        let count = findings.classes.get(class.name).copied().unwrap_or(0);
        println!("{count:4} {}: {}", class.name, class.why);
        if count == 0 {
            findings.failures.push(format!("the class {:?} does not occur any more", class.name));
        }
    }
    assert!(cases.len() > 100, "only {} cases were read", cases.len());
    findings.assert_none_failed("");
}

#[test]
#[expect(clippy::print_stdout, reason = "the seed is what brings a failure back")]
fn what_mutated_attacks_do_differently_is_explained() {
    let which = mutate::Which::from_environment(MUTATIONS);
    println!("{which}");
    let mut cases = case::load();
    cases.retain(|case| case.upstream_raw.is_none());
    let next = AtomicU64::new(which.numbers.start);
    let findings = Mutex::new(Findings::default());

    let mut peers = Peers::start(LANES.min(which.count()));
    std::thread::scope(|scope| {
        for lane in &mut peers.lanes {
            scope.spawn(|| play_mutations(lane, &cases, &which, &next, &findings));
        }
    });

    let findings = findings.into_inner().unwrap();
    println!("{:?}", findings.classes);
    findings.assert_none_failed(&which.to_string());
}

/// Plays mutations until all are played.
fn play_mutations(
    lane: &mut Lane,
    cases: &[Case],
    which: &mutate::Which,
    next: &AtomicU64,
    findings: &Mutex<Findings>,
) {
    let names = names(lane);
    let written: Vec<Vec<u8>> = cases.iter().map(|case| names.bytes(&case.raw)).collect();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= which.numbers.end || findings.lock().unwrap().failures.len() > FAILURES {
            return;
        }
        let mut dice = which.dice(number);
        let at = dice.below(cases.len());
        let (case, mut bytes) = (&cases[at], written[at].clone());
        mutate::damage(&mut bytes, &mut dice);
        let play = match dice.below(4) {
            0 => Play { bytes, said: None, grace: GRACE },
            _ => Play::followed(&names, bytes, None),
        };
        let mut found = Findings::default();
        found.add(lane, &format!("{} (number {number})", case.id), &play);
        findings.lock().unwrap().merge(found);
    }
}

impl Play {
    /// With the sentinel behind it.
    fn followed(names: &Names, mut bytes: Vec<u8>, said: Option<(Vec<u8>, bool)>) -> Self {
        let host = &names.host;
        let sentinel = format!("GET {SENTINEL} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        bytes.extend_from_slice(sentinel.as_bytes());
        Self { bytes, said, grace: GRACE }
    }
}

fn said(raw: &str, names: &Names) -> (Vec<u8>, bool) {
    (names.bytes(&raw.replace("{{CLOSE}}", "")), raw.contains("{{CLOSE}}"))
}

impl Findings {
    /// Plays it, and holds what came of it against the rules and the classes.
    fn add(&mut self, lane: &mut Lane, name: &str, play: &Play) {
        let reading = reading::read(&play.bytes);
        let mut outcomes = exchange(lane, play, |_proxy| true);
        let mut wrong = compare::broken(play, &reading, &outcomes[0]);
        if find(&outcomes[0].got, TOKEN.as_bytes()).is_some() {
            wrong.push("THE CALLER GOT THE TOKEN".to_owned());
        }
        if lane.daemon.output().contains("panicked") {
            wrong.push("the daemon panicked".to_owned());
        }
        if !self.explain(play, &reading, &outcomes).is_empty() {
            // It may have been a peer's lack of time.
            outcomes = exchange(lane, &Play { grace: LONG_GRACE, ..play.clone() }, |_proxy| true);
            wrong.extend(self.explain(play, &reading, &outcomes));
        }
        if !wrong.is_empty() {
            self.failures.push(report(name, play, &reading, &outcomes, &wrong));
        }
    }

    /// Counts the classes; what none explains.
    fn explain(&mut self, play: &Play, reading: &reading::Reading, outcomes: &[Outcome]) -> Vec<String> {
        let mut unexplained = Vec::new();
        for difference in compare::differences(play, reading, outcomes) {
            match CLASSES.iter().find(|class| class.explains(&difference)) {
                Some(class) => *self.classes.entry(class.name).or_default() += 1,
                None => unexplained.push(unexplained_text(&difference)),
            }
        }
        unexplained
    }

    fn merge(&mut self, other: Self) {
        for (name, count) in other.classes {
            *self.classes.entry(name).or_default() += count;
        }
        self.failures.extend(other.failures);
    }

    #[track_caller]
    fn assert_none_failed(&self, replay: &str) {
        let (count, all) = (self.failures.len(), self.failures.join("\n"));
        assert!(self.failures.is_empty(), "{count} failures {replay}\n{all}");
    }
}

fn names(lane: &Lane) -> Names {
    Names {
        host: lane.host.clone(),
        cap: String::new(),
        bad_cap: String::new(),
        path: "/api/blogposts/1".to_owned(),
        trap: "127.0.0.1:9".to_owned(),
        api_host: "api.example".to_owned(),
        token: TOKEN.to_owned(),
    }
}

fn unexplained_text(difference: &Difference<'_>) -> String {
    let peer = difference.theirs.proxy;
    match difference.kind {
        Kind::Fewer(request) => format!("only {peer:?} sent up {}", text(request)),
        Kind::More(request) => format!("{peer:?} did not send up {}", text(request)),
        Kind::Begun { is_ours } => format!("one begun request went up, ours: {is_ours}, and not by {peer:?}"),
        Kind::Field { name, ours, theirs } => {
            format!(
                "{name} went up as {:?}, through {peer:?} as {:?}",
                short(ours.as_bytes()),
                short(theirs.as_bytes())
            )
        }
        Kind::Status => format!("the statuses differ from those of {peer:?}"),
    }
}

fn report(
    name: &str,
    play: &Play,
    reading: &reading::Reading,
    outcomes: &[Outcome],
    wrong: &[String],
) -> String {
    let mut report = format!("{name}: {}\n    wrote {:?}", wrong.join("; "), short(&play.bytes));
    let requests: Vec<String> = reading.requests.iter().map(text).collect();
    write!(report, "\n    strictly {requests:?}, then {:?}", reading.end).unwrap();
    for outcome in outcomes {
        let (proxy, statuses, violations) = (outcome.proxy, &outcome.statuses, &outcome.violations);
        let sent_up = short(&outcome.sent_up);
        write!(report, "\n    {proxy:?} {statuses:?} {violations:?} sent up {sent_up:?}").unwrap();
    }
    report
}

fn text(request: &reading::Request) -> String {
    format!("{} {} {:?}", request.method, short(request.target.as_bytes()), short(&request.body))
}

fn short(bytes: &[u8]) -> String {
    latin1(&bytes[..bytes.len().min(1000)])
}
