//! The sandbox: a stand-in of Cnblogs with the real daemon in front of it, to try everything by hand without an
//! account.
//!
//! `cargo run --example sandbox [-- --login [--once]] [--expires-in SECS] [--port PORT]`

#[path = "../standin/mod.rs"]
mod standin;

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use standin::{Options, Person, Standin};
use tokio::signal::unix::{Signal, SignalKind, signal};
use url::form_urlencoded;

const USAGE: &str = "\
usage: sandbox [--login [--once]] [--expires-in SECS] [--port PORT]
  --login            log in as alice at once, and show three requests
  --once             with --login: wait for the access token to expire, show one more request, and end
  --expires-in SECS  how long access tokens live (30)
  --port PORT        where the daemon listens (8262, or any that is free when something listens there)";
const PREFERRED_PORT: u16 = 8262;
const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(200);

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let choice = match Choice::from_arguments(std::env::args().skip(1)) {
        Ok(choice) => choice,
        Err(what) => {
            say(&format!("{what}\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    match run(&choice).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(choice: &Choice) -> Outcome<()> {
    let program = build_program()?;
    let standin = Standin::start(Options { expires_in_secs: choice.expires_in_secs, ..Options::default() });
    let config = write_config(&standin, choice.port.unwrap_or_else(preferred_port))?;
    // Asked for before there is anything to leave behind: a signal that comes early is found later.
    let interrupted = signal(SignalKind::interrupt())?;
    let terminated = signal(SignalKind::terminate())?;
    let mut daemon = Daemon::start(&program, &config)?;
    say(&welcome(&standin, &program, &config, &daemon.url, choice));

    let mut watch = Watch { standin: &standin, daemon: &mut daemon, seen: 0, interrupted, terminated };
    let shown = if choice.login { show(&mut watch, choice).await } else { watch.until_stopped(None).await };
    say("stopping ...");
    let stopped = daemon.stop();
    shown.and(stopped)
}

/// What the arguments say.
struct Choice {
    login: bool,
    once: bool,
    expires_in_secs: u64,
    port: Option<u16>,
}

impl Choice {
    fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut choice = Self { login: false, once: false, expires_in_secs: 30, port: None };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--login" => choice.login = true,
                "--once" => choice.once = true,
                "--expires-in" => {
                    let secs = arguments.next().and_then(|secs| secs.parse().ok()).filter(|secs| *secs > 0);
                    choice.expires_in_secs = secs.ok_or("--expires-in needs a number of seconds")?;
                }
                "--port" => {
                    let port = arguments.next().and_then(|port| port.parse().ok());
                    choice.port = Some(port.ok_or("--port needs the number of a port")?);
                }
                other => return Err(format!("unknown argument {other}")),
            }
        }
        if choice.once && !choice.login {
            return Err("--once goes with --login".to_owned());
        }
        Ok(choice)
    }
}

/// The daemon's process.
struct Daemon {
    process: Child,
    url: String,
}

impl Daemon {
    /// Starts it, and waits until it says where it listens.
    fn start(program: &Path, config: &Path) -> Outcome<Self> {
        let mut command = Command::new(program);
        command.arg("--config").arg(config).arg("serve").stdin(Stdio::null()).stdout(Stdio::piped());
        // Ctrl-C in the terminal is ours to pass on: a second signal would cut the daemon off.
        command.process_group(0);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CNBLOGS_") {
                command.env_remove(name);
            }
        }
        let mut process =
            command.spawn().map_err(|error| format!("starting {}: {error}", program.display()))?;
        let output = process.stdout.take().ok_or("the daemon has no standard output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                say(&format!("daemon: {line}"));
                sender.send(line).ok();
            }
        });
        let mut daemon = Self { process, url: String::new() };
        let until = Instant::now() + START_LIMIT;
        while daemon.url.is_empty() {
            let line = lines.recv_timeout(until.saturating_duration_since(Instant::now()));
            let line = line.map_err(|error| format!("the daemon did not say where it listens: {error}"))?;
            if let Some(url) = line.strip_prefix("listening on ") {
                daemon.url = url.trim().to_owned();
            }
        }
        Ok(daemon)
    }

    /// `127.0.0.1:PORT`.
    fn authority(&self) -> &str {
        self.url.trim_start_matches("http://").trim_end_matches('/')
    }

    /// Asks it to stop, and waits until it has.
    fn stop(&mut self) -> Outcome<()> {
        let process_id = self.process.id().to_string();
        if self.process.try_wait()?.is_none() {
            Command::new("kill").args(["-TERM", &process_id]).status()?;
        }
        let until = Instant::now() + STOP_LIMIT;
        loop {
            match self.process.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("the daemon ended with {status}").into()),
                None if Instant::now() > until => return Err("the daemon does not stop".into()),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Tells what the stand-in sees.
struct Watch<'a> {
    standin: &'a Standin,
    daemon: &'a mut Daemon,
    seen: usize,
    interrupted: Signal,
    terminated: Signal,
}

impl Watch<'_> {
    /// Until Ctrl-C or, when given, the moment.
    async fn until_stopped(&mut self, end_at: Option<Instant>) -> Outcome<()> {
        while end_at.is_none_or(|end_at| Instant::now() < end_at) {
            tokio::select! {
                _ = self.interrupted.recv() => return Ok(()),
                _ = self.terminated.recv() => return Ok(()),
                () = tokio::time::sleep(TICK) => self.tell(),
            }
            if let Some(status) = self.daemon.process.try_wait()? {
                return Err(format!("the daemon ended by itself with {status}").into());
            }
        }
        Ok(())
    }

    fn tell(&mut self) {
        let requests = self.standin.token_requests();
        for request in requests.iter().skip(self.seen) {
            let answer = match (&request.error, request.status) {
                (Some(error), _) => format!("refused: {error}"),
                (None, Some(status)) => format!("answered {status}"),
                (None, None) => "not answered".to_owned(),
            };
            say(&format!("stand-in: token endpoint, {}: {answer}", request.grant_type));
        }
        self.seen = requests.len();
    }
}

/// Does the browser's part of a login, and shows that requests work.
async fn show(watch: &mut Watch<'_>, choice: &Choice) -> Outcome<()> {
    log_in(watch.standin, watch.daemon)?;
    let logged_in_at = Instant::now();
    watch.tell();
    show_request(watch.daemon, "GET", "/api/users", "")?;
    show_request(watch.daemon, "GET", "/api/blogposts/@sitehome?pageIndex=1&pageSize=2", "")?;
    show_request(watch.daemon, "POST", "/api/statuses", r#"{"Content":"你好, sandbox","IsPrivate":true}"#)?;
    if !choice.once {
        return watch.until_stopped(None).await;
    }

    let end_at = logged_in_at + Duration::from_secs(choice.expires_in_secs + 1);
    say(&format!("waiting {} s, until the first access token has expired ...", choice.expires_in_secs + 1));
    watch.until_stopped(Some(end_at)).await?;
    if Instant::now() < end_at {
        return Err("stopped before the access token had expired".into());
    }
    show_request(watch.daemon, "GET", "/api/users", "")?;
    watch.tell();
    match watch.standin.refreshes().len() {
        0 => Err("the daemon has not refreshed".into()),
        refreshes => {
            say(&format!("the login outlived its first access token; refreshes: {refreshes}"));
            Ok(())
        }
    }
}

fn log_in(standin: &Standin, daemon: &Daemon) -> Outcome<()> {
    let started =
        Exchange::with(daemon, "POST", "/-/login/main/start", "application/x-www-form-urlencoded", "")?;
    let authorization_url =
        started.field("location").ok_or_else(|| format!("no Location: {}", started.head))?;
    if let Some(refusal) = standin.authorize_refusal(authorization_url) {
        return Err(format!("the authorization endpoint refuses: {refusal}").into());
    }
    let callback = standin.authorize(authorization_url, Person::Alice);
    let form = form_urlencoded::Serializer::new(String::new()).append_pair("callback", &callback).finish();
    let ended = Exchange::with(daemon, "POST", "/-/login/main", "application/x-www-form-urlencoded", &form)?;
    if !(200..400).contains(&ended.status) {
        return Err(format!("the login failed: {}\n{}", ended.head, ended.body).into());
    }
    say("logged in as alice");
    Ok(())
}

fn show_request(daemon: &Daemon, method: &str, target: &str, body: &str) -> Outcome<()> {
    let exchange = Exchange::with(daemon, method, target, "application/json", body)?;
    say(&format!("\n{method} {target}\n  -> {} {}\n", exchange.status, exchange.body));
    if exchange.status == 200 {
        Ok(())
    } else {
        Err(format!("{method} {target} failed: {}", exchange.head).into())
    }
}

/// One request to the daemon and its answer. HTTP/1.0, so that the answer ends with the connection.
struct Exchange {
    status: u16,
    head: String,
    body: String,
}

impl Exchange {
    fn with(daemon: &Daemon, method: &str, target: &str, media_type: &str, body: &str) -> Outcome<Self> {
        let mut stream = TcpStream::connect(daemon.authority())?;
        let content = match method {
            "GET" => String::new(),
            _ => format!("Content-Type: {media_type}\r\nContent-Length: {}\r\n", body.len()),
        };
        let host = daemon.authority();
        write!(stream, "{method} {target} HTTP/1.0\r\nHost: {host}\r\n{content}\r\n{body}")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) =
            answer.split_once("\r\n\r\n").ok_or_else(|| format!("no whole answer: {answer:?}"))?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .ok_or("an answer without status")?;
        Ok(Self { status, head: head.to_owned(), body: body.to_owned() })
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// Builds the daemon in the profile of this program, and says where it is.
fn build_program() -> Outcome<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.ancestors().nth(2).ok_or("this program stands in no target directory")?;
    let profile = directory.file_name().unwrap_or_default();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(cargo);
    // Together with ourselves, so that it is the same program as is there already.
    command.args(["build", "--quiet", "--bin", "cnblogs-proxy", "--example", "sandbox", "--manifest-path"]);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    if cfg!(feature = "system-tests") {
        command.args(["--features", "system-tests"]);
    }
    if profile != "debug" {
        command.arg("--profile").arg(profile);
    }
    // `cargo run` says to us which package we are; told to another cargo, it makes build scripts run again.
    const OF_US: [&str; 3] = ["CARGO_MANIFEST_", "CARGO_PKG_", "OUT_DIR"];
    for (name, _) in std::env::vars_os() {
        if OF_US.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    let status = command.status()?;
    let program = directory.join("cnblogs-proxy");
    if !status.success() || !program.exists() {
        return Err(format!("building {} failed", program.display()).into());
    }
    Ok(program)
}

/// The one that the README names, unless something listens there.
fn preferred_port() -> u16 {
    let is_free = TcpListener::bind(("127.0.0.1", PREFERRED_PORT)).is_ok();
    if is_free { PREFERRED_PORT } else { 0 }
}

fn write_config(standin: &Standin, port: u16) -> Outcome<PathBuf> {
    let directory = standin.directory();
    let secret = directory.join("client_secret");
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&secret)?;
    file.write_all(standin.options().client_secret.as_bytes())?;

    let (auth, api) = (standin.auth_url(), standin.api_url());
    let config = directory.join("config.toml");
    let text = format!(
        r#"listen = ["127.0.0.1:{port}"]
state_dir = "{state_dir}"
log = "warn"

[account.main]
client_id = "{client_id}"
client_secret_file = "{secret}"
redirect_uri = "{auth}/auth/callback"
authorization_url = "{auth}/connect/authorize"
token_url = "{auth}/connect/token"
revocation_url = "{auth}/connect/revocation"
jwks_url = "{auth}/.well-known/openid-configuration/jwks"

[[route]]
prefix = "/"
upstream = "{api}"
"#,
        state_dir = directory.join("state").display(),
        client_id = standin.options().client_id,
        secret = secret.display(),
    );
    std::fs::write(&config, text)?;
    Ok(config)
}

fn welcome(standin: &Standin, program: &Path, config: &Path, url: &str, choice: &Choice) -> String {
    let url = url.trim_end_matches('/');
    let command = format!("{} --config {}", program.display(), config.display());
    let login = if choice.login {
        "Logging in as alice for you.".to_owned()
    } else {
        format!(
            "1. Log in: open {url}/-/login in a browser and press the button. A page of the stand-in opens:\n   \
                choose alice or bob, type any password, press Allow. Copy the whole address of the page where\n   \
                you end, and paste it into the field of the first page.\n   \
                Or in a terminal: {command} login"
        )
    };
    format!(
        "
This is a sandbox: a stand-in of Cnblogs on this machine, and the real daemon in front of it.
  authorization server  {auth}
  API                   {api}
  the daemon            {url}

{login}

2. Call the API through the daemon; it adds the token:
     curl {url}/api/users                    (needs a user: who you logged in as)
     curl '{url}/api/blogposts/@sitehome?pageIndex=1&pageSize=2'
     curl -H 'Content-Type: application/json' -d '{{\"Content\":\"hello\",\"IsPrivate\":true}}' {url}/api/statuses
     curl {url}/api/statuses/@my
     curl {url}/echo/what/arrives            (a route of the stand-in: shows the request as it arrived)

3. See how it is: {url}/-/ in a browser, or
     curl {url}/-/status
     {command} status

4. Wait. Access tokens live {secs} s here, and refresh tokens work once: a line appears here whenever the
   daemon asks for a new one, and the calls above go on working.

Ctrl-C stops everything and removes it.
",
        auth = standin.auth_url(),
        api = standin.api_url(),
        secs = choice.expires_in_secs,
    )
}

/// To standard output, unless nobody reads it any more.
fn say(text: &str) {
    let mut output = io::stdout().lock();
    writeln!(output, "{text}").and_then(|()| output.flush()).ok();
}
