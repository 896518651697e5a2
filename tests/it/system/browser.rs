//! Pages in the person's own browser: what a stranger's page, a name that is bound anew, an allowed page and the API's
//! own answers can do there, shown in Chromium by `tests/provider/stranger.mjs`.

use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::forwarding::{key_table, reconfigured};
use crate::standin::{Answer, Person, Scripted};
use crate::support::{Setup, World};
use crate::system::provider::{Program, browser_script};

/// A browser with strangers' pages, in one scenario.
struct Browser {
    program: Program,
    /// Where the strangers' pages are served.
    port: u64,
    _scratch: TempDir,
}

/// What a scenario came to.
struct Report {
    result: Value,
    /// Every request of the browser to the daemon, with its answer.
    heard: Vec<Value>,
}

impl Browser {
    #[track_caller]
    fn start(scenario: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let log = scratch.path().join("browser.log");
        let program = Program::start(browser_script("stranger.mjs").arg(scenario), &log);
        let port = serde_json::from_str::<Value>(&program.line("{")).unwrap()["port"].as_u64().unwrap();
        Self { program, port, _scratch: scratch }
    }

    /// Plays the scenario against this daemon.
    #[track_caller]
    fn play(mut self, world: &World, mut given: Value) -> Report {
        given["daemon"] = json!(world.daemon.authority);
        self.program.tell(&given.to_string());
        let mut report: Value = serde_json::from_str(&self.program.line("{")).unwrap();
        assert!(report["error"].is_null(), "{}", report["error"].as_str().unwrap_or_default());
        let Value::Array(heard) = report["heard"].take() else { panic!("nothing was heard: {report:#}") };
        Report { result: report["result"].take(), heard }
    }
}

impl Report {
    /// The requests to this path, whatever their query.
    fn heard(&self, path: &str) -> impl Iterator<Item = &Value> {
        self.heard.iter().filter(move |entry| {
            let target = entry["target"].as_str().unwrap();
            target.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('?'))
        })
    }

    /// The statuses of the answers to the requests to this path.
    fn statuses(&self, path: &str) -> Vec<u64> {
        self.heard(path).map(|entry| entry["status"].as_u64().unwrap()).collect()
    }
}

/// The daemon's own word, and nothing that lets a page read it.
#[track_caller]
fn assert_refused(entry: &Value, status: u16) {
    assert_eq!(entry["status"], status, "{entry:#}");
    assert_eq!(entry["answer"]["proxy-status"], "cnblogs-proxy; error=http_request_denied", "{entry:#}");
    assert_no_cors(entry);
}

#[track_caller]
fn assert_no_cors(entry: &Value) {
    let answer = entry["answer"].as_object().unwrap_or_else(|| panic!("no answer: {entry:#}"));
    assert!(!answer.keys().any(|name| name.starts_with("access-control-")), "{entry:#}");
}

/// Ways of a stranger that Chromium does not go, or not from every page; what it sends by them is refused as all is.
const NOT_ALWAYS_SENT: [&str; 4] = ["manifest", "prerender", "service-worker", "service-worker-import"];

/// web-022, web-023, and what the guard's tests say of single fields, as a browser really sends them.
#[test]
fn a_page_of_a_stranger_gets_nothing_through_and_learns_nothing() {
    let world = World::logged_in();
    let token_requests = world.standin.token_requests().len();
    world.standin.clear_api_requests();
    let browser = Browser::start("attack");
    let origins = ["http://127.0.0.1", "http://localhost", "http://evil.test"];
    let origins = origins.map(|origin| format!("{origin}:{}", browser.port));

    let given = json!({ "origins": origins, "not_always_sent": NOT_ALWAYS_SENT });
    let report = browser.play(&world, given);

    for (origin, learned) in origins.iter().zip(report.result["learned"].as_array().unwrap()) {
        let ways = learned.as_object().unwrap();
        assert!(ways.len() >= 50, "only {} ways were tried", ways.len());
        for (way, learned) in ways {
            assert_eq!(learned, "", "{origin} learned something by {way}");
        }
    }
    let speculated = report.heard.iter().filter(|entry| !entry["fields"]["sec-purpose"].is_null());
    assert!(speculated.count() >= origins.len(), "a prefetch from each page");
    let (typed, attacks): (Vec<_>, Vec<_>) =
        report.heard.iter().partition(|entry| entry["target"] == "/echo/typed");
    attacks.iter().for_each(|entry| assert_refused(entry, 403));
    typed.iter().for_each(|entry| assert_no_cors(entry));
    assert_eq!(report.statuses("/echo/typed"), [200], "what the person types is served");
    let asked: Vec<_> = world.standin.api_requests().into_iter().map(|request| request.target).collect();
    assert_eq!(asked, ["/echo/typed"]);
    assert_eq!(
        (world.standin.token_requests().len(), world.standin.revocations().len()),
        (token_requests, 0)
    );
    assert_eq!(world.daemon.state(), "ready");
}

#[test]
fn a_name_that_is_bound_anew_to_the_daemon_is_another_host() {
    let world = World::logged_in();
    world.standin.clear_api_requests();
    let targets = [
        ("GET", "/echo"),
        ("POST", "/echo"),
        ("GET", "/-/"),
        ("GET", "/-/login"),
        ("GET", "/-/status"),
        ("GET", "/-/metrics"),
        ("GET", "/-/callback"),
        ("POST", "/-/login/main/start"),
        ("POST", "/-/login/main"),
        ("POST", "/-/logout/main"),
    ];

    let report = Browser::start("rebind").play(&world, json!({ "targets": targets }));

    assert_eq!(report.result["before"], "stranger", "the page was the stranger's own");
    let seen = report.result["seen"].as_array().unwrap();
    assert_eq!(seen.len(), targets.len());
    for answer in seen {
        assert_eq!(answer["status"], 421, "{answer}");
        let problem: Value = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
        assert_eq!(problem["type"], "urn:cnblogs-proxy:wrong-host", "{answer}");
    }
    assert_eq!((&report.result["socket"], &report.result["loaded"]), (&json!(""), &json!(421)));
    assert_eq!(world.standin.api_requests().len(), 0);
    assert_eq!((world.standin.revocations().len(), world.daemon.state().as_str()), (0, "ready"));
}

const KEY: &str = "key-of-everything-5d1c";
const READER: &str = "key-of-a-reader-90ee";

/// What a page's `fetch` is given, with a field of its own, and with a key unless that is empty.
fn call(origin: &str, target: &str, method: &str, key: &str, more: &Value) -> Value {
    let mut options = json!({ "method": method, "headers": { "X-Own": "1" } });
    if !key.is_empty() {
        options["headers"]["Authorization"] = json!(format!("Bearer {key}"));
    }
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "origin": origin, "target": target, "options": options })
}

#[test]
fn an_allowed_page_reads_answers_and_problems_and_sends_no_credentials_but_its_key() {
    let mut world = World::logged_in();
    let browser = Browser::start("call");
    let page = format!("http://127.0.0.1:{}", browser.port);
    let keys =
        key_table(&world, "all", KEY, "") + &key_table(&world, "reader", READER, "methods = [\"GET\"]");
    reconfigured(&mut world, &format!("[callers]\nallowed_origins = [\"{page}\"]\n{keys}"));
    world.standin.clear_api_requests();
    let (none, body) = (json!({}), json!({ "body": "{\"a\":1}" }));

    let methods = ["GET", "POST", "PUT", "PATCH", "DELETE"];
    let with_body = |method| if ["GET", "DELETE"].contains(&method) { &none } else { &body };
    let mut calls: Vec<_> =
        methods.iter().map(|method| call(&page, "/echo", method, KEY, with_body(*method))).collect();
    calls.extend([
        call(&page, "/fields?X-Shown=yes", "GET", KEY, &none),
        call(&page, "/echo/keyless", "GET", "", &none),
        call(&page, "/echo/limited", "DELETE", READER, &none),
        call(&page, "/echo/credentials", "GET", KEY, &json!({ "credentials": "include" })),
        call(&page, "/-/status", "GET", KEY, &none),
        call(&format!("http://localhost:{}", browser.port), "/echo/other", "GET", KEY, &none),
        call("http://app.test", "/echo/other", "GET", KEY, &none),
    ]);
    let report = browser.play(&world, json!({ "calls": calls }));

    let answers = report.result.as_array().unwrap();
    for (answer, method) in answers.iter().zip(methods) {
        assert_eq!((&answer["status"], &answer["type"]), (&json!(200), &json!("cors")), "{answer}");
        let echo: Value = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
        assert_eq!(echo["method"], method);
        assert!(echo["fields"].to_string().to_ascii_lowercase().contains("[\"x-own\",\"1\"]"), "{echo}");
    }
    assert_eq!(answers[5]["fields"]["x-shown"], "yes", "{}", answers[5]);
    for (answer, code) in [(&answers[6], "key-required"), (&answers[7], "forbidden-by-key")] {
        let body = answer["body"].as_str().unwrap_or_default();
        assert!(body.contains(&format!("\"urn:cnblogs-proxy:{code}\"")), "{answer}");
    }
    for answer in &answers[8..] {
        assert_eq!(answer["refused"], "TypeError: Failed to fetch", "{answer}");
    }
    assert_eq!(world.standin.api_requests().len(), 6);
    assert_little_is_allowed(&report);
}

/// The preflights in a report give no credentials and no private network away, and what is refused nothing at all.
#[track_caller]
fn assert_little_is_allowed(report: &Report) {
    let refused: Vec<_> = report.heard("/-/status").chain(report.heard("/echo/other")).collect();
    assert_eq!(refused.len(), 3);
    refused.into_iter().for_each(|entry| assert_refused(entry, 403));
    assert_eq!(report.statuses("/echo/credentials"), [204], "after its preflight the browser gives up");
    for entry in &report.heard {
        let answer = entry["answer"].as_object().unwrap();
        for name in ["access-control-allow-credentials", "access-control-allow-private-network"] {
            assert!(!answer.contains_key(name), "{entry:#}");
        }
    }
}

/// Whether a public page gets at this machine's own ports is between the browser and the person.
#[test]
fn a_preflight_grants_no_way_into_a_private_network() {
    let page = "https://app.example";
    let tables = format!("[callers]\nallowed_origins = [\"{page}\"]");
    let world = Setup { tables, ..Setup::default() }.start();
    for name in ["Access-Control-Request-Private-Network", "Access-Control-Request-Local-Network"] {
        let fields = [("Origin", page), ("Access-Control-Request-Method", "GET"), (name, "true")];

        let answer = world.daemon.request("OPTIONS", "/api/users", &fields, b"");

        assert_eq!((answer.status, answer.field("access-control-allow-origin")), (204, Some(page)));
        let grants =
            |(name, _): &&(String, String)| name.ends_with("-network") || name.ends_with("-credentials");
        assert_eq!(answer.fields.iter().find(grants), None, "{answer:?}");
    }
}

/// A kind of answer of the API, its fields and its content.
type Kind = (&'static str, &'static [(&'static str, &'static str)], &'static str);

/// What a browser would run, were it not the proxy's.
const RUN: [Kind; 5] = [
    ("html", &[("Content-Type", "text/html")], "<script>fetch('/open/ran-html')</script>"),
    (
        "svg",
        &[("Content-Type", "image/svg+xml")],
        "<svg xmlns=\"http://www.w3.org/2000/svg\"><script>fetch('/open/ran-svg')</script></svg>",
    ),
    (
        "xml",
        &[("Content-Type", "application/xml")],
        "<html xmlns=\"http://www.w3.org/1999/xhtml\"><script>fetch('/open/ran-xml')</script></html>",
    ),
    ("untyped", &[], "<!doctype html><script>fetch('/open/ran-untyped')</script>"),
    ("refresh", &[("Content-Type", "text/html"), ("Refresh", "0; url=/open/ran-refresh")], "<p>x</p>"),
];

/// Others, of which a browser keeps something or on which a person could press something.
const KEPT: [Kind; 7] = [
    ("cookie", &[("Content-Type", "text/html"), ("Set-Cookie", "a=b"), ("Set-Cookie", "c=d; Path=/")], "x"),
    ("clear", &[("Content-Type", "text/html"), ("Clear-Site-Data", "\"*\"")], "x"),
    ("text", &[("Content-Type", "text/plain")], "<!doctype html><script>fetch('/open/ran-text')</script>"),
    ("pdf", &[("Content-Type", "application/pdf")], "%PDF-1.1\n%%EOF\n"),
    (
        "meta",
        &[("Content-Type", "text/html"), ("Link", "</open/ran-link>; rel=preload; as=script")],
        "<meta http-equiv=refresh content=\"0; url=/open/ran-meta\"><iframe src=\"/-/login\"></iframe>\
         <img src=/open/ran-image><link rel=stylesheet href=/open/ran-style><object data=/open/ran-object></object>",
    ),
    ("json", &[("Content-Type", "application/json")], "window.ran = 1"),
    (
        "worker",
        &[("Content-Type", "text/javascript"), ("Service-Worker-Allowed", "/")],
        "addEventListener('fetch', () => {})",
    ),
];

const FORM: &str = "<form method=post action=\"/-/logout/main\"><button>Log out</button></form>\
    <a href=\"/-/login\">Log in</a>";

/// What the API says at these addresses, to anybody.
fn opened(target: &str) -> Option<Scripted> {
    let kind = target.strip_prefix("/open/")?;
    if kind == "form" {
        return Some(Scripted::Answer(Answer::html(200, FORM)));
    }
    let (_, fields, content) = RUN.iter().chain(&KEPT).find(|(name, ..)| *name == kind)?;
    let answer = Answer::full(200, *content);
    Some(Scripted::Answer(fields.iter().fold(answer, |answer, (name, value)| answer.with(name, value))))
}

#[test]
fn an_answer_of_the_api_that_is_opened_in_the_browser_is_inert() {
    let world = World::logged_in();
    world.standin.on_api(|request| opened(&request.target));
    let names = |kinds: &[Kind]| kinds.iter().map(|kind| kind.0).collect::<Vec<_>>();
    let given =
        json!({ "kinds": names(&KEPT), "kinds_that_run": names(&RUN), "upstream": world.standin.api_url() });

    let report = Browser::start("open").play(&world, given);

    for (kind, ..) in RUN.iter().chain(&KEPT) {
        assert!(report.heard(&format!("/open/{kind}")).count() > 0, "{kind} was not opened");
    }
    let ran = |entry: &&Value| entry["target"].as_str().unwrap().starts_with("/open/ran-");
    assert_eq!(report.heard.iter().find(ran), None);
    assert_eq!(report.result["cookies"], json!([]));
    assert_eq!(report.result["kept"], "yes");
    assert_eq!(
        (&report.result["as_script"], &report.result["as_worker"]),
        (&json!("refused"), &json!("refused"))
    );
    assert_eq!(report.statuses("/-/login"), [403], "an answer of the API is not a page of ours");
    assert_eq!(report.statuses("/-/logout/main"), [] as [u64; 0]);
    assert_eq!(world.daemon.state(), "ready");
}

#[test]
fn the_pages_for_people_break_none_of_their_own_rules() {
    let world = World::logged_in();
    let bob = || world.standin.authorize(&world.begin_login(), Person::Bob);

    let report = Browser::start("use").play(&world, json!({ "callbacks": [bob(), bob()] }));

    let seen: Vec<_> =
        report.result["seen"].as_array().unwrap().iter().map(|title| title.as_str().unwrap()).collect();
    let titles: Vec<_> = seen.iter().map(|title| title.strip_suffix(" - cnblogs-proxy").unwrap()).collect();
    let expected = [
        "Status",
        "Log in",
        "Not logged in",
        "Log in",
        "Another person",
        "Nothing changed",
        "Log in",
        "Another person",
        "Logged in",
        "Status",
        "Logging in",
    ];
    assert_eq!(titles, expected);
    assert_eq!(report.result["csp_violations"], json!([]));
    let bad =
        report.heard.iter().filter(|entry| entry["status"].as_u64().is_some_and(|status| status >= 400));
    assert_eq!(bad.map(|entry| &entry["target"]).collect::<Vec<_>>(), ["/-/login/main"], "the wrong paste");
    let of_the_wrong_paste =
        "Failed to load resource: the server responded with a status of 400 (Bad Request)";
    assert_eq!(report.result["console_errors"], json!([of_the_wrong_paste]));
    assert_eq!(world.standin.revocations().len(), 3, "of Bob's first login, Alice's and Bob's second");
}

/// Set for the test that runs in a network of its own.
const INSIDE: &str = "CNBLOGS_PROXY_TEST_INSIDE";
/// Of a block for documentation (RFC 5737): on no machine, and not loopback.
const REMOTE: &str = "192.0.2.1";

#[test]
fn an_allowed_page_on_another_machine_needs_a_key_but_its_preflight_none() {
    if std::env::var_os(INSIDE).is_none() {
        let name = "system::browser::an_allowed_page_on_another_machine_needs_a_key_but_its_preflight_none";
        return in_a_network_of_its_own(name);
    }
    let world = remote_world("https://app.example");
    let bearer = format!("Bearer {KEY}");
    let (allowed, other) = (("Origin", "https://app.example"), ("Origin", "https://evil.example"));
    let (host, key) = (("Host", "box.example"), ("Authorization", bearer.as_str()));
    let asks = ("Access-Control-Request-Method", "PUT");

    for (method, fields, status, may_read) in [
        ("OPTIONS", &[host, allowed, asks][..], 204, true),
        ("GET", &[host, allowed, key], 200, true),
        ("GET", &[host, allowed], 401, true),
        ("GET", &[host, key], 200, false),
        ("GET", &[host], 401, false),
        ("OPTIONS", &[host, other, asks], 403, false),
        ("GET", &[host, other, key], 403, false),
        ("GET", &[allowed, key], 421, true),
        ("OPTIONS", &[allowed, asks], 421, false),
    ] {
        let answer = world.daemon.request(method, "/echo", fields, b"");
        assert_eq!(answer.status, status, "{method} {fields:?}: {answer:?}");
        let reader = answer.field("access-control-allow-origin");
        assert_eq!(reader, may_read.then_some(allowed.1), "{method} {fields:?}: {answer:?}");
    }
    assert_eq!(world.standin.api_requests().len(), 2);
}

/// Alice's daemon, which listens for callers of other machines.
#[track_caller]
fn remote_world(page: &str) -> World {
    for arguments in ["link set lo up", &format!("address add {REMOTE}/32 dev lo")] {
        let done = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(done.status.success(), "ip {arguments}: {done:?}");
    }
    let mut world = World::logged_in();
    let config = std::fs::read_to_string(world.home.config()).unwrap();
    let remote = config.replace("listen = [\"127.0.0.1:0\"]", &format!("listen = [\"{REMOTE}:0\"]"));
    assert_ne!(remote, config);
    std::fs::write(world.home.config(), remote).unwrap();
    let key = key_table(&world, "all", KEY, "");
    let callers = format!("allow_remote = true\nhosts = [\"box.example\"]\nallowed_origins = [\"{page}\"]");
    reconfigured(&mut world, &format!("[callers]\n{callers}\n{key}"));
    assert!(world.daemon.authority.starts_with(REMOTE), "{}", world.daemon.authority);
    world.standin.clear_api_requests();
    world
}

/// Runs a test of this program once more, in a network namespace that has nothing yet.
#[track_caller]
fn in_a_network_of_its_own(test: &str) {
    let own = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.arg("--net").arg(own).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = || format!("{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("test result: ok. 1 passed"), "{}", failed());
}
