//! HTTP clients that programs really use, with nothing but their base URL set: what they send and what they see is the
//! same with the proxy between as without it. `tests/run` installs them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use ring::digest;
use tokio::sync::watch;
use url::form_urlencoded::byte_serialize;

use crate::standin::{Answer, RecordedRequest, Scripted, Standin, pattern, pieces};
use crate::support::World;

/// Where `tests/run` puts Python with the packages.
const PYTHON: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../test-tools/venv/bin/python");
/// What each script prints a line of, in order; then comes a line for each of [`ODD_TARGETS`].
const STEPS: [&str; 10] =
    ["get", "head", "post-json", "post-form", "upload", "patch", "delete", "download", "redirect", "events"];
const UPLOAD_BYTES: usize = 16 * 1024 * 1024;
const EVENTS: u64 = 5;
/// Each client sends these in its own way, to which the proxy must add nothing.
const ODD_TARGETS: [&str; 12] = [
    "/echo/https%3A%2F%2Fwww.cnblogs.com%2Fcmt%2Fp%2F1.html%3Fa%3Db",
    "/echo/https://www.cnblogs.com/cmt",
    "/echo//two//slashes//",
    "//echo/in/front",
    "/echo/q?empty=&&twice=%252541&plus=+%2B+&a=1&a=2;b=3",
    "/echo/?",
    "/echo/a/../b/./c",
    "/echo/%2e%2e/%2E/d",
    "/echo/%E5%8D%9A%E5%AE%A2%E5%9B%AD?q=%e5%8d%9a",
    "/echo/%41%7e~;v=1,2:3!$'()*@",
    "/echo/%5C%5c%00%0d%0a%7F%ff",
    "/echo/-/status?q=https://oauth.cnblogs.com/",
];
/// Hop-by-hop fields, what the proxy puts itself, and the content type, which is compared without its boundary.
const NOT_COMPARED: [&str; 9] = [
    "authorization",
    "connection",
    "content-type",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "transfer-encoding",
    "upgrade",
];
/// After so many seconds, a script that waits for something that does not come is ended.
const TIME_LIMIT_SECS: &str = "240";

#[test]
fn curl_sends_and_sees_the_same_as_without_the_proxy() {
    assert_the_same_as_without_the_proxy("bash", "curl.sh", "curl --version");
}

#[test]
fn wget_sends_and_sees_the_same_as_without_the_proxy() {
    assert_the_same_as_without_the_proxy("bash", "wget.sh", "wget --version");
}

#[test]
fn requests_for_python_sends_and_sees_the_same_as_without_the_proxy() {
    assert_the_same_as_without_the_proxy(PYTHON, "python-requests.py", "import requests");
}

#[test]
fn httpx_for_python_sends_and_sees_the_same_as_without_the_proxy() {
    assert_the_same_as_without_the_proxy(PYTHON, "python-httpx.py", "import httpx");
}

#[test]
fn aiohttp_for_python_sends_and_sees_the_same_as_without_the_proxy() {
    assert_the_same_as_without_the_proxy(PYTHON, "python-aiohttp.py", "import aiohttp");
}

#[test]
fn fetch_of_node_sends_and_sees_the_same_as_without_the_proxy() {
    let old_ones_fail = "fetch.name + require('node:fs').openAsBlob.name";
    assert_the_same_as_without_the_proxy("node", "node-fetch.mjs", old_ones_fail);
}

#[test]
fn the_http_client_of_java_sends_and_sees_the_same_and_its_upgrade_offer_goes_no_further() {
    let (without, with) =
        assert_the_same_as_without_the_proxy("java", "JavaHttpClient.java", "javac --version");

    let offers = |requests: &[RecordedRequest]| {
        requests.iter().filter(|request| request.fields_named("upgrade") == ["h2c"]).count()
    };
    assert!(offers(&without) > 20, "{} of {} offered h2c", offers(&without), without.len());
    assert_eq!(offers(&with), 0);
}

/// Runs a script first at the stand-in itself, then through the daemon; returns what arrived, without and with it.
#[track_caller]
fn assert_the_same_as_without_the_proxy(
    program: &str,
    script: &str,
    check: &str,
) -> (Vec<RecordedRequest>, Vec<RecordedRequest>) {
    assert_installed(program, check);
    let world = World::logged_in();
    let token = world.standin.issue_application_token();
    std::fs::write(world.home.path().join("upload.bin"), pattern(UPLOAD_BYTES)).unwrap();

    let (printed_without, without) = run(program, script, &world, &world.standin.api_url(), Some(&token));
    let daemon = format!("http://{}", world.daemon.authority);
    let (printed_with, with) = run(program, script, &world, &daemon, None);

    let steps: Vec<_> = printed_with.iter().map(|line| line.split(' ').next().unwrap_or_default()).collect();
    assert_eq!(steps, [&STEPS[..], &["odd"; ODD_TARGETS.len()]].concat(), "{script}");
    assert_eq!(printed_with, printed_without, "what {script} saw");
    assert_eq!(sent(&with), sent(&without), "what {script} sent");
    assert_eq!(world.standin.api_violations(), Vec::<String>::new(), "{script}");
    for request in &with {
        assert_carries_the_token(request, &world.standin);
    }
    (without, with)
}

/// Runs a script and returns the lines that it printed and what arrived.
#[track_caller]
fn run(
    program: &str,
    script: &str,
    world: &World,
    base: &str,
    token: Option<&str>,
) -> (Vec<String>, Vec<RecordedRequest>) {
    serve_events_in_lockstep(&world.standin);
    world.standin.clear_api_requests();
    let elsewhere = format!("{}/bytes/100000", world.standin.api_url());
    let redirect = format!("/redirect?to={}", byte_serialize(elsewhere.as_bytes()).collect::<String>());

    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", TIME_LIMIT_SECS, program]).arg(scripts().join(script));
    command.arg(base).arg(world.home.path().join("upload.bin")).arg(redirect).args(ODD_TARGETS);
    clean(&mut command).env("HOME", world.home.path()).envs(token.map(|token| ("TOKEN", token)));
    let output = command.output().expect("`timeout` is on every machine");

    let what = || format!("{script} at {base}: {output:?}\n{}", world.daemon.output());
    assert!(output.status.success(), "{}", what());
    (lines(&output), world.standin.api_requests())
}

/// `/lockstep` sends an event, and the next one only when a request to `/echo/seen/N` has told that it was seen.
fn serve_events_in_lockstep(standin: &Standin) {
    let seen = watch::Sender::new(0);
    standin.on_api(move |request| {
        if let Some(number) = request.path().strip_prefix("/echo/seen/") {
            seen.send_replace(number.parse().unwrap_or(0) + 1);
        }
        (request.path() == "/lockstep").then(|| Scripted::Answer(lockstep(seen.subscribe())))
    });
}

fn lockstep(mut seen: watch::Receiver<u64>) -> Answer {
    let events = pieces(move |sender| async move {
        for number in 0..EVENTS {
            let _gone = sender.send(format!("data: {number}\n\n").into()).await;
            let _gone = seen.wait_for(|seen| *seen > number).await;
        }
    });
    Answer::stream(200, None, events).with("Content-Type", "text/event-stream")
}

/// What must be the same of each request.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    line: String,
    fields: BTreeMap<String, Vec<String>>,
    content_type: String,
    content: String,
    content_bytes: u64,
}

#[track_caller]
fn sent(requests: &[RecordedRequest]) -> Vec<Sent> {
    let mut all = Vec::new();
    for request in requests {
        let has_content = ["POST", "PATCH", "DELETE"].contains(&request.method.as_str());
        assert_eq!(request.body_length > 0, has_content, "{request:?}");
        let names = request.fields.iter().map(|(name, _)| name.to_ascii_lowercase());
        let compared = names.filter(|name| !NOT_COMPARED.contains(&name.as_str()));
        let fields = compared.map(|name| (name.clone(), request.fields_named(&name))).collect();
        let content_type = request.field("content-type").unwrap_or_default();
        let (content_type, content) = match content_type.split_once("boundary=") {
            Some((kind, boundary)) => {
                (kind.to_owned(), in_front_of_upload(request, boundary.trim_matches('"')))
            }
            None if has_content => (content_type, request.body_sha256.clone()),
            None => (content_type, String::new()),
        };
        let line = format!("{} {}", request.method, request.target);
        all.push(Sent { line, fields, content_type, content, content_bytes: request.body_length });
    }
    all
}

/// Checks a multipart body that ends with the uploaded file, and returns what is in front of the file. Clients choose a
/// boundary at random, so this one is replaced.
#[track_caller]
fn in_front_of_upload(request: &RecordedRequest, boundary: &str) -> String {
    let file = pattern(UPLOAD_BYTES);
    let start = request.body.windows(64).position(|window| window == &file[..64]).expect("the file is there");
    let mut whole = digest::Context::new(&digest::SHA256);
    whole.update(&request.body[..start]);
    whole.update(&file);
    whole.update(format!("\r\n--{boundary}--\r\n").as_bytes());

    let sha256: String = whole.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(request.body_sha256, sha256, "the upload has changed");
    String::from_utf8_lossy(&request.body[..start]).replace(boundary, "BOUNDARY")
}

#[track_caller]
fn assert_carries_the_token(request: &RecordedRequest, standin: &Standin) {
    let authorization = request.field("authorization").unwrap_or_default();
    let token = authorization.strip_prefix("Bearer ").unwrap_or_default().to_owned();
    assert!(
        standin.issued_secrets().contains(&token),
        "{} {}: {authorization}",
        request.method,
        request.target
    );
    assert_eq!(request.field("host"), Some(standin.api_authority()));
}

/// Fails, and says what to do, unless a client is there: nothing is left out in silence.
#[track_caller]
fn assert_installed(program: &str, check: &str) {
    let [program, flag, check] = match program {
        "java" => ["bash", "-c", check],
        "node" => [program, "--eval", check],
        _ => [program, "-c", check],
    };
    let output = clean(Command::new(program).args([flag, check])).output();
    let is_there = output.as_ref().is_ok_and(|output| output.status.success());
    assert!(is_there, "{program} {flag} {check:?} failed; `tests/run` installs what is missing: {output:?}");
}

/// Takes from the environment what would change how a client works.
fn clean(command: &mut Command) -> &mut Command {
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8")
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn scripts() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients"))
}
