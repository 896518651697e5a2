//! What Prometheus reads: every family tells what happened, no label what a request said, and the files of
//! `deploy/prometheus` ask for nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::dice::Dice;
use crate::forwarding::{key_table, reconfigured};
use crate::standin::{Endpoint, Fault};
use crate::support::{Answer, World, eventually};
use crate::tokens::{main_account, refresh};

const PREFIX: &str = "cnblogs_proxy_";
pub(crate) const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus");
/// Longer than the buffer for a replay.
const STREAMED: usize = 200_000;
const WHOLE: usize = 10_000;
const SLOW_SECS: f64 = 0.3;
/// What Prometheus itself adds.
const ADDED: [&str; 2] = ["instance", "job"];

/// A scrape: the families with their kinds, and the samples by name and labels.
#[derive(Debug)]
struct Scrape {
    text: String,
    kinds: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

/// A series as an expression names it: its name, and what it says of labels.
type Named = (String, Vec<(String, String)>);

#[test]
fn every_family_has_what_happened_and_nothing_else() {
    let world = World::logged_in();
    let (before, logins_own) = (Scrape::of(&world), world.standin.api_connection_count());
    assert_eq!(before.value("requests_total{code=\"2xx\"}"), 0.0, "own pages are not forwarded");

    let answers = forwarded(&world);
    refreshed_with_every_outcome(&world);
    let (after, scrapes) = settled(&world);

    for (class, number) in [("1xx", 0.0), ("2xx", 7.0), ("3xx", 0.0), ("4xx", 2.0), ("5xx", 1.0)] {
        assert_eq!(after.value(&format!("requests_total{{code=\"{class}\"}}")), number, "{class}");
    }
    let local = |class: &str| {
        let series = format!("local_requests_total{{code=\"{class}\"}}");
        after.value(&series) - before.value(&series)
    };
    // The scrape before is counted since, and the one after is not yet.
    assert_eq!((local("2xx"), local("5xx")), (scrapes as f64, 3.0));
    let given: usize = answers.iter().map(|answer| answer.body.len()).sum();
    let connections = (answers.len() + 3 + scrapes) as f64;
    let accepted = "caller_connections_accepted_total";
    for (series, number) in [
        ("requests_refused_total", 1.0),
        ("requests_replayed_total", 1.0),
        ("requests_in_flight", 0.0),
        ("request_body_bytes_total", (WHOLE + STREAMED) as f64),
        ("response_body_bytes_total", given as f64),
        ("caller_connections_open", 1.0),
        (accepted, before.value(accepted) + connections),
        ("caller_connections_turned_away_total", 0.0),
        ("upstream_connections_opened_total", (world.standin.api_connection_count() - logins_own) as f64),
    ] {
        assert_eq!(after.value(series), number, "{series}");
    }
    let open = after.value("upstream_connections_open");
    assert!((1.0..=after.value("upstream_connections_opened_total")).contains(&open), "{open} are open");
    after.assert_histograms();
    assert_main_account(&world, &after);
}

/// Ten requests that are forwarded or should be; one is refused, and the last one's token is.
pub(crate) fn forwarded(world: &World) -> Vec<Answer> {
    let daemon = &world.daemon;
    let mut answers: Vec<_> =
        ["/echo", "/echo?x", "/bytes/100000", "/status/404", "/status/503", "/slow?ms=300"]
            .iter()
            .map(|target| daemon.get(target))
            .collect();
    answers.push(daemon.request("GET", "/echo", &[("Host", "evil.example")], b""));
    answers.push(daemon.request("POST", "/echo", &[], &vec![b'x'; WHOLE]));
    answers.push(daemon.request("POST", "/echo", &[], &vec![b'x'; STREAMED]));
    world.standin.expire_access_tokens();
    answers.push(daemon.get("/echo"));
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 200, 200, 404, 503, 200, 421, 200, 200, 200]);
    answers
}

/// The one after the 401 was ok.
pub(crate) fn refreshed_with_every_outcome(world: &World) {
    world.standin.fault(Endpoint::Token, Fault::status(503));
    assert_eq!(refresh(&world.daemon).status, 503);
    for _ in 0..2 {
        world.standin.fault(Endpoint::Token, Fault::DropBefore);
    }
    assert_eq!(refresh(&world.daemon).status, 503);
    world.standin.fault(Endpoint::Token, Fault::error(400, "invalid_grant"));
    assert_eq!(refresh(&world.daemon).status, 503);
}

/// A scrape once nothing is in flight and no other connection is open, and how many it took.
fn settled(world: &World) -> (Scrape, usize) {
    let mut scrapes = 0;
    let scrape = eventually("everything has ended", || {
        scrapes += 1;
        let scrape = Scrape::of(world);
        let is_settled =
            scrape.value("requests_in_flight") == 0.0 && scrape.value("caller_connections_open") == 1.0;
        is_settled.then_some(scrape)
    });
    (scrape, scrapes)
}

fn assert_main_account(world: &World, scrape: &Scrape) {
    for (family, label, expected) in [
        (
            "account_state",
            "state",
            [("ready", 0), ("refreshing", 0), ("degraded", 0), ("login-required", 1)].as_slice(),
        ),
        ("refreshes_total", "outcome", &[("ok", 1), ("refused", 1), ("unavailable", 1), ("in-doubt", 1)]),
        (
            "events_total",
            "event",
            &[
                ("login-required", 2),
                ("login-expiring", 0),
                ("refresh-failing", 0),
                ("rotation-in-doubt", 1),
                ("recovered", 1),
                ("store-failing", 0),
            ],
        ),
    ] {
        let of_family =
            scrape.samples.keys().filter(|series| series.starts_with(&format!("{PREFIX}{family}{{")));
        assert_eq!(of_family.count(), expected.len(), "{family}");
        for (value, number) in expected {
            let series = format!("{family}{{account=\"main\",{label}=\"{value}\"}}");
            assert_eq!(scrape.value(&series), f64::from(*number), "{series}");
        }
    }
    assert_eq!(scrape.value("access_token_usable{account=\"main\"}"), 1.0, "it still serves");
    let (status, account) = (world.daemon.status(), main_account(&world.daemon));
    for (family, member) in [
        ("access_token_expiry_timestamp_seconds", "expires_at"),
        ("login_expiry_timestamp_seconds", "login_expires_at"),
    ] {
        let seconds = scrape.value(&format!("{family}{{account=\"main\"}}"));
        assert_eq!(seconds.floor(), unix_seconds(&account[member]), "{family}");
    }
    let is_planned = scrape.text.contains(&format!("{PREFIX}access_token_refresh_timestamp_seconds{{"));
    assert!(!is_planned, "nothing is left to refresh");
    let started = unix_seconds(&status["now"]) - status["uptime_secs"].as_f64().unwrap();
    assert!((scrape.value("start_time_seconds") - started).abs() <= 2.0);
    let build = format!("{PREFIX}build_info{{version=\"{}\",commit=\"", env!("CARGO_PKG_VERSION"));
    assert!(scrape.samples.iter().any(|(series, value)| series.starts_with(&build) && *value == 1.0));
}

fn unix_seconds(rfc3339: &Value) -> f64 {
    let at = humantime::parse_rfc3339(rfc3339.as_str().unwrap()).unwrap();
    at.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64().floor()
}

#[test]
fn no_path_makes_a_label_and_no_secret_is_told() {
    let mut world = World::logged_in();
    let limited = key_table(&world, "scraper", "the-key-of-the-scraper", "");
    reconfigured(&mut world, &limited);
    let key = [("Authorization", "Bearer the-key-of-the-scraper")];
    let scrape = || Scrape::parse(world.daemon.request("GET", "/-/metrics", &key, b"").text());
    assert_eq!(world.daemon.get("/-/metrics").status, 401);
    let before = scrape();

    let mut dice = Dice(7);
    for number in 0..200 {
        let target = format!(
            "/{}/{:x}?{number}",
            ["status", "echo", "-/x", "\"}"][dice.below(4)],
            dice.below(1 << 30)
        );
        let method = ["GET", "DELETE", "BREW"][dice.below(3)];
        world.daemon.request(method, &target, &[key[0], ("User-Agent", &format!("agent-{number}"))], b"");
    }
    let after = scrape();

    let series = |scrape: &Scrape| scrape.samples.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(series(&before), series(&after));
    assert!(after.value("requests_total{code=\"2xx\"}") > 20.0, "{}", after.text);
    let mut secrets = world.standin.issued_secrets();
    secrets.extend([world.standin.options().client_secret.clone(), "the-key-of-the-scraper".to_owned()]);
    assert!(secrets.len() > 3, "{secrets:?}");
    for secret in secrets {
        assert!(!after.text.contains(&secret), "a secret is told");
    }
}

#[test]
fn the_oddest_names_that_accounts_can_have_are_whole_labels() {
    let (world, names) = oddly_named();

    let scrape = Scrape::of(&world);

    for name in names.iter().map(String::as_str).chain(["main"]) {
        assert_eq!(scrape.value(&format!("access_token_usable{{account=\"{name}\"}}")), 1.0);
        assert_eq!(scrape.value(&format!("account_state{{account=\"{name}\",state=\"ready\"}}")), 1.0);
        let ends = format!("{PREFIX}access_token_expiry_timestamp_seconds{{account=\"{name}\"}}");
        assert_eq!(scrape.samples.contains_key(&ends), name == "main", "{ends}");
    }
}

/// A world whose accounts have the oddest names that they can have, the last one among them as long as can be.
pub(crate) fn oddly_named() -> (World, [String; 3]) {
    let mut world = World::logged_in();
    let names = ["0".to_owned(), "-".to_owned(), "-_".repeat(32)];
    let token = world.home.secret("pat", "a-personal-access-token");
    let account = |name: &str| {
        format!(
            "[account.\"{name}\"]\ngrant = \"personal_access_token\"\ntoken_file = \"{}\"\n",
            token.display()
        )
    };
    let route = |name: &str| {
        let upstream = world.standin.api_url();
        format!("[[route]]\nprefix = \"/to{name}\"\nupstream = \"{upstream}\"\naccount = \"{name}\"\n")
    };
    let tables: String = names.iter().flat_map(|name| [account(name), route(name)]).collect();
    let config = fs::read_to_string(world.home.config()).unwrap();
    let config = config.replace("[[route]]\n", "[[route]]\nprefix = \"/\"\naccount = \"main\"\n");
    fs::write(world.home.config(), config).unwrap();
    reconfigured(&mut world, &tables);

    (world, names)
}

#[test]
fn dashboard_and_rules_ask_for_what_a_scrape_has() {
    let scrape = Scrape::of(&World::logged_in());
    let expressions = dashboard_expressions();

    for (name, text, least) in [
        ("dashboard.json", expressions.join("\n"), 18),
        ("alerts.yaml", file("alerts.yaml"), 8),
        ("alerts.test.yaml", file("alerts.test.yaml"), 8),
    ] {
        let named = named(&text);
        let names: BTreeSet<_> = named.iter().map(|(name, _)| name).collect();
        assert!(names.len() >= least, "{name} has only {names:?}");
        for series in &named {
            assert!(scrape.has(series), "{name} asks for {series:?}");
        }
        for label in grouped(&text) {
            let is_there = scrape.text.contains(&format!("{label}=\"")) || ADDED.contains(&label);
            assert!(is_there, "{name} groups by {label}");
        }
    }
}

pub(crate) fn dashboard_expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&file("dashboard.json")).unwrap();
    let targets =
        dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let expressions: Vec<_> = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    assert!(expressions.len() > 15, "{expressions:?}");
    expressions
}

#[test]
fn the_readme_lists_every_family() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/README.md")).unwrap();
    let (_, section) = readme.split_once("\n## Metrics\n").expect("a section about metrics");
    let section = section.split("\n##").next().unwrap();
    let listed: BTreeSet<_> = section.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();

    for family in Scrape::of(&World::start()).kinds.keys() {
        let name = family.strip_prefix(PREFIX).unwrap();
        assert!(listed.contains(name), "{name} is not in the table");
    }
}

impl Scrape {
    /// What the daemon says.
    #[track_caller]
    fn of(world: &World) -> Self {
        let answer = world.daemon.get("/-/metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.field("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        Self::parse(answer.text())
    }

    /// Stricter than Prometheus: HELP, TYPE and samples of a family in this order, and no sample twice.
    #[track_caller]
    fn parse(text: String) -> Self {
        let (mut kinds, mut samples, mut helped) = (BTreeMap::new(), BTreeMap::new(), String::new());
        let mut family = String::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                helped = help
                    .split_once(' ')
                    .filter(|(_, help)| help.ends_with('.') || help.len() > 20)
                    .unwrap()
                    .0
                    .to_owned();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert!(name == helped && name.starts_with(PREFIX), "{line}");
                assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} comes twice");
                name.clone_into(&mut family);
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                let suffix =
                    name.strip_prefix(&family).unwrap_or_else(|| panic!("{line} is not of {family}"));
                let is_histogram = kinds[&family] == "histogram";
                assert_eq!(["_bucket", "_sum", "_count"].contains(&suffix), is_histogram, "{line}");
                assert!(
                    samples.insert(series.to_owned(), value.parse().unwrap()).is_none(),
                    "{series} comes twice"
                );
            }
        }
        assert!(kinds.len() >= 20, "only {kinds:?}");
        Self { text, kinds, samples }
    }

    /// The value of a series, which is named without the prefix.
    #[track_caller]
    fn value(&self, series: &str) -> f64 {
        let series = format!("{PREFIX}{series}");
        *self.samples.get(&series).unwrap_or_else(|| panic!("{series} is not in\n{}", self.text))
    }

    /// Ten requests, nine of which the upstream answered, and one slowly.
    fn assert_histograms(&self) {
        for (name, count) in [("request_duration_seconds", 10.0), ("upstream_response_duration_seconds", 9.0)]
        {
            let bucket = |le: &str| self.value(&format!("{name}_bucket{{le=\"{le}\"}}"));
            let bounds: Vec<f64> = self
                .samples
                .keys()
                .filter_map(|series| {
                    series.strip_prefix(&format!("{PREFIX}{name}_bucket{{le=\""))?.strip_suffix("\"}")
                })
                .filter_map(|bound| bound.parse().ok())
                .filter(|bound: &f64| bound.is_finite())
                .collect();
            let mut sorted = bounds.clone();
            sorted.sort_by(f64::total_cmp);
            let counts: Vec<_> = sorted.iter().map(|bound| bucket(&bound.to_string())).collect();
            assert!(sorted.len() == 14 && counts.is_sorted(), "{sorted:?} {counts:?}");
            assert_eq!((bucket("+Inf"), self.value(&format!("{name}_count"))), (count, count), "{name}");
            assert_eq!(bucket("60"), count, "nothing took a minute");
            assert!(bucket("0.25") < count, "{name}: one took {SLOW_SECS} s");
            let sum = self.value(&format!("{name}_sum"));
            assert!((SLOW_SECS..60.0 * count).contains(&sum), "{name}: {sum} s");
        }
        let sum = |name: &str| self.value(&format!("{name}_duration_seconds_sum"));
        assert!(sum("upstream_response") < sum("request"), "the upstream is a part of it");
    }

    /// True when there is a sample with that name, those labels and, unless everybody chooses them, their values.
    fn has(&self, (name, matchers): &Named) -> bool {
        self.samples.keys().any(|series| {
            let (own, labels) = series.split_once('{').unwrap_or((series, ""));
            let is_there = |(label, value): &(String, String)| {
                let chosen = ["account", "instance", "le"].contains(&label.as_str());
                ADDED.contains(&label.as_str())
                    || labels.contains(&format!("{label}=\"{}", if chosen { "" } else { value }))
            };
            own == name && matchers.iter().all(is_there)
        })
    }
}

/// The series of ours that a text names, with the labels in braces behind them.
fn named(text: &str) -> Vec<Named> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(PREFIX) {
        let rest = &text[at..];
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_').unwrap();
        let braces = rest[end..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let matchers = braces.map_or(Vec::new(), |(inside, _)| inside.split(',').map(matcher).collect());
        found.push((rest[..end].to_owned(), matchers));
    }
    found
}

/// The labels by which a text groups and joins.
fn grouped(text: &str) -> Vec<&str> {
    let lists = ["by (", "on (", "group_left ("].iter().flat_map(|before| text.split(before).skip(1));
    let lists = lists.filter_map(|rest| rest.split_once(')').map(|(inside, _)| inside));
    lists.flat_map(|inside| inside.split(',').map(str::trim)).collect()
}

/// A label and the value it is compared with.
fn matcher(text: &str) -> (String, String) {
    let end = text.find(['=', '!']).unwrap();
    let value = text[end..].trim_start_matches(['=', '!', '~']).trim_matches('"');
    (text[..end].trim().to_owned(), value.to_owned())
}

pub(crate) fn file(name: &str) -> String {
    fs::read_to_string(PathBuf::from(FILES).join(name)).unwrap()
}
