//! Logins and long sessions with an OpenID provider that nobody here wrote, by a real browser: `tests/provider`.

mod relay;
mod spoiled;

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/provider");
const SHORT_LIFETIME_SECS: u32 = 6;
const LONG_LIFETIME_SECS: u32 = 3600;
const PATIENCE: Duration = Duration::from_secs(240);

#[test]
fn a_pasted_login_goes_on_through_three_expired_access_tokens_and_a_restart() {
    let provider = Provider::start(SHORT_LIFETIME_SECS);
    let application = provider.paste_application();
    let daemon = Daemon::start(&application);
    let page = log_in("paste", &daemon);
    assert!(page.contains("alice"), "the page names the user: {page}");

    let calls = call_until(&daemon.base, || provider.count("used_access_tokens_expired") >= 3);
    assert_eq!(calls.failures, Vec::<String>::new(), "of {} calls", calls.made);
    assert!(calls.made > 100, "only {} calls were made", calls.made);

    assert!(daemon.stop().success(), "the daemon's end");
    wait_until("every access token has expired", || {
        let stats = provider.stats();
        stats["used_access_tokens_expired"] == stats["access_tokens_used"]
    });
    let daemon = Daemon::start(&application);
    assert_calls_as_alice(&daemon);
    let refreshes = provider.count("refreshes");
    let calls = call_until(&daemon.base, || provider.count("refreshes") > refreshes);
    assert_eq!(calls.failures, Vec::<String>::new(), "of {} calls", calls.made);
    provider.assert_content_with(1);
}

#[test]
fn a_form_post_to_the_callback_logs_in() {
    let provider = Provider::start(LONG_LIFETIME_SECS);
    let application = provider.callback_application("code id_token", "response_mode = \"form_post\"");

    let daemon = Daemon::start(&application);
    log_in("callback", &daemon);

    assert_calls_as_alice(&daemon);
    provider.assert_content_with(1);
}

#[test]
fn a_fragment_that_reaches_the_callback_logs_in_and_leaves_the_address_bar() {
    let provider = Provider::start(LONG_LIFETIME_SECS);
    let application = provider.callback_application("code id_token", "");

    let daemon = Daemon::start(&application);
    let page = log_in("callback", &daemon);

    assert!(!page.contains("code="), "the page's address or text shows the code: {page}");
    assert_calls_as_alice(&daemon);
    provider.assert_content_with(1);
}

#[test]
fn a_code_in_the_callback_s_query_logs_in() {
    let provider = Provider::start(LONG_LIFETIME_SECS);
    let settings = format!("client_auth = \"basic\"\nissuer = {:?}", provider.text("issuer"));
    let application = provider.callback_application("code", &settings);

    let daemon = Daemon::start(&application);
    log_in("callback", &daemon);

    assert_calls_as_alice(&daemon);
    provider.assert_content_with(1);
}

/// Three lines say it all: issuer, application, secret.
#[test]
fn an_issuer_that_is_all_that_is_known_of_the_provider_logs_in_refreshes_and_logs_out() {
    let provider = Provider::start(LONG_LIFETIME_SECS);
    let settings = format!("issuer = {:?}", provider.text("issuer"));
    let application = provider.callback_application("code id_token", &settings);
    let config = fs::read_to_string(&application.config).expect("the configuration");
    let is_kept = |line: &&str| !line.contains("_url = ");
    let config: Vec<_> = config.lines().filter(is_kept).collect();
    fs::write(&application.config, config.join("\n")).expect("a file for the configuration");

    let daemon = Daemon::start(&application);
    log_in("callback", &daemon);
    assert_calls_as_alice(&daemon);
    assert!(daemon.stop().success(), "the daemon's end");
    let daemon = Daemon::start(&application);
    for (path, done) in [("/-/refresh/main", "refreshed"), ("/-/logout/main", "logged-out")] {
        let answer = request(&daemon.base, "POST", path, "").expect("the daemon answers");
        assert!(answer.status == 200 && answer.body.contains(done), "{path}: {}", answer.body);
    }

    assert_eq!((provider.count("refreshes"), provider.count("revocations")), (1, 1));
    provider.assert_content_with(1);
}

#[test]
fn an_access_token_that_the_provider_forgot_is_replaced_before_the_caller_sees_it() {
    let provider = Provider::start(LONG_LIFETIME_SECS);
    let application = provider.callback_application("code", "");
    let daemon = Daemon::start(&application);
    log_in("callback", &daemon);
    assert_calls_as_alice(&daemon);

    provider.admin("POST", "/forget-access-tokens", "");
    let answer = request(&daemon.base, "POST", "/echo", "said once").expect("the daemon answers");

    assert_eq!((answer.status, answer.body.as_str()), (200, "said once"));
    assert_eq!(provider.count("api_unauthorized"), 1);
    assert_eq!(provider.count("refreshes"), 1);
    provider.assert_content_with(1);
}

#[track_caller]
fn assert_calls_as_alice(daemon: &Daemon) {
    let answer = request(&daemon.base, "GET", "/api/users", "").expect("the daemon answers");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["UserId"], "id-of-alice");

    let status = request(&daemon.base, "GET", "/-/status", "").expect("the daemon answers").json();
    let state = &status["accounts"]["main"]["state"];
    assert!(state == "ready" || state == "refreshing", "{status}");
}

/// Logs in as a person would and returns what the last page showed, its address included.
#[track_caller]
fn log_in(flow: &str, daemon: &Daemon) -> String {
    let scratch = tempfile::tempdir().expect("a directory for the browser's log");

    let mut browser = Program::start(
        browser_script("browser.mjs").args([flow, &daemon.base]),
        &scratch.path().join("browser.log"),
    );
    let report = json_of(&browser.line("{"));
    browser.wait();

    let outcome = &report["outcome"];
    assert_eq!(outcome["status"], 200, "{report:#}");
    for complaints in ["csp_violations", "console_errors", "failed_requests"] {
        assert_eq!(report[complaints], json!([]), "{complaints}: {report:#}");
    }
    outcome.to_string()
}

struct Calls {
    made: usize,
    failures: Vec<String>,
}

/// Calls the API through the proxy from two threads, without a pause worth the name, until `is_done` or a call fails.
fn call_until(base: &str, is_done: impl Fn() -> bool) -> Calls {
    struct SetOnDrop<'a>(&'a AtomicBool);
    impl Drop for SetOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let is_over = &AtomicBool::new(false);
    thread::scope(|scope| {
        let callers = [("GET", "/api/blogposts/@sitehome"), ("POST", "/echo")].map(|(method, path)| {
            scope.spawn(move || {
                let _ends_the_other = SetOnDrop(is_over);
                call_over_and_over(base, method, path, is_over)
            })
        });
        {
            let _ends_the_callers = SetOnDrop(is_over);
            wait_until("the callers may stop", || is_over.load(Ordering::Relaxed) || is_done());
        }
        let mut calls = Calls { made: 0, failures: Vec::new() };
        for caller in callers {
            let more = caller.join().expect("a caller does not panic");
            calls.made += more.made;
            calls.failures.extend(more.failures);
        }
        calls
    })
}

fn call_over_and_over(base: &str, method: &str, path: &str, is_over: &AtomicBool) -> Calls {
    let mut calls = Calls { made: 0, failures: Vec::new() };
    while calls.failures.is_empty() && !is_over.load(Ordering::Relaxed) {
        calls.made += 1;
        let body = if method == "POST" { format!("call {}", calls.made) } else { String::new() };
        match request(base, method, path, &body) {
            Ok(answer) if answer.status == 200 && (method == "GET" || answer.body == body) => {}
            Ok(answer) => calls.failures.push(format!("{method} {path}: {} {}", answer.status, answer.body)),
            Err(error) => calls.failures.push(format!("{method} {path}: {error}")),
        }
        thread::sleep(Duration::from_millis(5));
    }
    calls
}

#[track_caller]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain waited until {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The provider and the API that its access tokens protect; ends on drop.
struct Provider {
    addresses: Value,
    _program: Program,
    dir: TempDir,
}

impl Provider {
    fn start(access_token_lifetime_secs: u32) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the provider");
        let mut provider = script("provider.mjs");
        provider.arg("--dir").arg(dir.path());
        provider.args(["--access-token-lifetime", &access_token_lifetime_secs.to_string()]);

        let program = Program::start(&mut provider, &dir.path().join("provider.log"));
        Self { addresses: json_of(&program.line("{")), _program: program, dir }
    }

    fn text(&self, key: &str) -> &str {
        self.addresses[key].as_str().expect("the provider tells all its addresses")
    }

    fn admin(&self, method: &str, path: &str, body: &str) -> Value {
        let answer = request(self.text("admin"), method, path, body).expect("the provider answers");
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    fn stats(&self) -> Value {
        self.admin("GET", "/stats", "")
    }

    fn count(&self, what: &str) -> u64 {
        self.stats()[what].as_u64().expect("a count")
    }

    /// One code was spent for each login, no refresh token was presented twice, and nothing was refused.
    #[track_caller]
    fn assert_content_with(&self, logins: u64) {
        let stats = self.stats();
        assert_eq!(stats["token_requests"]["authorization_code"], logins, "{stats:#}");
        assert_eq!(stats["old_refresh_tokens_presented"], 0, "{stats:#}");
        assert_eq!(stats["errors"], json!([]), "{stats:#}");
    }

    /// The application whose redirect page, the provider's own, only shows its address.
    fn paste_application(&self) -> Application {
        self.application("127.0.0.1:0", self.text("redirect_uri"), &self.addresses, "")
    }

    /// An application registered with the daemon's `/-/callback`.
    fn callback_application(&self, response_type: &str, settings: &str) -> Application {
        let listen = free_address();
        let redirect_uri = format!("http://{listen}/-/callback");
        let client_auth = if settings.contains("basic") { "basic" } else { "body" };
        let registration = json!({ "redirect_uri": redirect_uri, "response_type": response_type, "client_auth": client_auth });
        let client = self.admin("POST", "/clients", &registration.to_string());

        let settings = format!("response_type = {response_type:?}\n{settings}");
        self.application(&listen, &redirect_uri, &client, &settings)
    }

    fn application(&self, listen: &str, redirect_uri: &str, client: &Value, settings: &str) -> Application {
        let dir = tempfile::tempdir_in(self.dir.path()).expect("a directory for the daemon");
        let secret_file = dir.path().join("client_secret");
        let secret = client["client_secret"].as_str().expect("a client_secret");
        fs::write(&secret_file, secret).expect("a file for the client_secret");
        restrict(&secret_file);

        let mut config =
            format!("listen = [{listen:?}]\nstate_dir = {:?}\n\n[account.main]\n", dir.path().join("state"));
        let mut set =
            |key: &str, value: &str| writeln!(config, "{key} = {value:?}").expect("a String takes all");
        set("client_id", client["client_id"].as_str().expect("a client_id"));
        set("client_secret_file", secret_file.to_str().expect("a path in UTF-8"));
        set("redirect_uri", redirect_uri);
        for key in ["authorization_url", "token_url", "revocation_url", "jwks_url", "ca_file"] {
            set(key, self.text(key));
        }
        let (api, ca_file) = (self.text("api"), self.text("ca_file"));
        write!(
            config,
            "{settings}\n\n[[route]]\nprefix = \"/\"\nupstream = {api:?}\nca_file = {ca_file:?}\n"
        )
        .expect("a String takes all");
        let file = dir.path().join("config.toml");
        fs::write(&file, config).expect("a file for the configuration");
        Application { config: file, log: dir.path().join("daemon.log"), _dir: dir }
    }
}

/// A registered application, and the configuration of the daemon that uses it.
struct Application {
    config: PathBuf,
    log: PathBuf,
    _dir: TempDir,
}

struct Daemon {
    base: String,
    program: Program,
}

impl Daemon {
    fn start(application: &Application) -> Self {
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_cnblogs-proxy"));
        daemon.arg("--config").arg(&application.config);

        let program = Program::start(&mut daemon, &application.log);
        let line = program.line("listening on ");
        let base = line.trim_start_matches("listening on ").to_owned();
        Self { base, program }
    }

    fn stop(mut self) -> ExitStatus {
        let pid = self.program.child.id().to_string();
        let told = Command::new("kill").args(["-TERM", &pid]).status().expect("`kill` runs");
        assert!(told.success(), "SIGTERM did not reach the daemon");
        self.program.wait()
    }
}

/// A child process with its lines of standard output; ends on drop, and shows its log when the test failed.
pub(crate) struct Program {
    child: Child,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Program {
    #[track_caller]
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let log_file = File::options().create(true).append(true).open(log).expect("a log file");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .spawn()
            .unwrap_or_else(|error| panic!("{} did not start: {error}", command.get_program().display()));

        let stdout = child.stdout.take().expect("standard output is piped");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).all(|line| sender.send(line).is_ok());
        });
        Self { child, lines, log: log.to_owned() }
    }

    /// The next line that starts with `wanted`.
    #[track_caller]
    pub(crate) fn line(&self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with(wanted) => return line,
                Ok(_) => {}
                Err(error) => panic!("no line that starts with {wanted:?} came: {error}"),
            }
        }
    }

    /// Writes a line to its standard input.
    #[track_caller]
    pub(crate) fn tell(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("standard input is piped");
        writeln!(stdin, "{line}").expect("the program reads its input");
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                return status;
            }
            assert!(Instant::now() < deadline, "{:?} does not end", self.log.file_stem());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if thread::panicking() {
            let log = fs::read(&self.log).unwrap_or_default();
            drop(io::stderr().write_all(&log));
        }
    }
}

/// A script that starts Chromium.
#[track_caller]
pub(crate) fn browser_script(name: &str) -> Command {
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned());
    assert!(
        Path::new(&chromium).exists(),
        "{chromium} is missing: install Chromium (Debian's package `chromium`) or name it in CHROMIUM"
    );
    script(name)
}

pub(crate) fn script(name: &str) -> Command {
    let dependencies = Path::new(SCRIPTS).join("node_modules");
    assert!(dependencies.exists(), "{} is missing: run `npm ci` in tests/provider", dependencies.display());
    let node = Command::new("node").arg("--version").output();
    assert!(node.is_ok(), "node does not start ({node:?}): install Node.js 20.20 or newer");

    let mut command = Command::new("node");
    command.arg(Path::new(SCRIPTS).join(name));
    command
}

/// A loopback address that was free a moment ago: the application's `redirect_uri` has to name it before the daemon
/// listens.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound address").to_string()
}

fn restrict(file: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("the file is ours");
}

#[track_caller]
fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        json_of(&self.body)
    }
}

/// One request on a connection of its own.
fn request(base: &str, method: &str, path: &str, body: &str) -> io::Result<Answer> {
    let host = base.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;

    let malformed = || io::Error::other(format!("malformed answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(malformed)?;
    let is_chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked");
    let body = if is_chunked { joined_chunks(body).ok_or_else(malformed)? } else { body.to_owned() };
    Ok(Answer { status, body })
}

/// The content of a chunked body, `None` when it is cut short.
fn joined_chunks(mut rest: &str) -> Option<String> {
    let mut content = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(content);
        }
        content.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}
