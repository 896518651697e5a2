//! [`World`]: the built program on port 0 between a stand-in of Cnblogs and a caller. Dropping it stops everything.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use url::form_urlencoded;

use crate::standin::{Options, Person, Standin};

/// Longer than anything takes on a slow and shared machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The built program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_cnblogs-proxy");

/// What a [`World`] is made of, before it starts.
#[derive(Default)]
pub(crate) struct Setup {
    /// Of the stand-in.
    pub(crate) options: Options,
    /// Lines for `[account.main]`, behind those that every world has: addresses only when it is not `<discovered>`.
    pub(crate) account: String,
    /// Lines for `[[route]]`, behind those that every world has.
    pub(crate) route: String,
    /// Keys at the top of the file.
    pub(crate) top: String,
    /// Tables at the end of the file.
    pub(crate) tables: String,
    /// Environment variables of the daemon and of commands.
    pub(crate) environment: Vec<(String, String)>,
}

/// A daemon between a stand-in and a caller.
pub(crate) struct World {
    /// The daemon; dropped before what it talks to.
    pub(crate) daemon: Daemon,
    /// The authorization server and the API.
    pub(crate) standin: Standin,
    /// Configuration, secret and state.
    pub(crate) home: Home,
}

/// Configuration, secret and state of a daemon, which may be started on them again and again.
pub(crate) struct Home {
    directory: TempDir,
    environment: Vec<(String, String)>,
}

/// A running daemon.
pub(crate) struct Daemon {
    child: Child,
    /// The first TCP address it listens on, as `host:port`.
    pub(crate) authority: String,
    output: Arc<Mutex<String>>,
    lines: Receiver<String>,
}

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In order, names in lower case.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Setup {
    /// Starts the stand-in and the daemon; nobody is logged in.
    pub(crate) fn start(self) -> World {
        let standin = Standin::start(self.options);
        let home = Home::new(self.environment);
        let config = config(&standin, &home, &self.top, &self.account, &self.route, &self.tables);
        std::fs::write(home.config(), config).unwrap();
        let daemon = home.serve();
        World { daemon, standin, home }
    }

    /// Starts everything and logs Alice in.
    pub(crate) fn logged_in(self) -> World {
        let world = self.start();
        world.log_in(Person::Alice);
        world
    }
}

impl World {
    /// A world where nobody is logged in.
    pub(crate) fn start() -> Self {
        Setup::default().start()
    }

    /// A world where Alice is logged in.
    pub(crate) fn logged_in() -> Self {
        Setup::default().logged_in()
    }

    /// Begins a login and returns the authorization URL.
    #[track_caller]
    pub(crate) fn begin_login(&self) -> String {
        let started = self.daemon.post_form("/-/login/main/start", &[]);
        assert_eq!(started.status, 303, "{started:?}");
        started.field("location").expect("a 303 has a Location").to_owned()
    }

    /// Pastes an address into the login page's field.
    pub(crate) fn paste(&self, callback: &str) -> Answer {
        self.daemon.post_form("/-/login/main", &[("callback", callback)])
    }

    /// The whole login of a person, by paste.
    #[track_caller]
    pub(crate) fn log_in(&self, person: Person) {
        let callback = self.standin.authorize(&self.begin_login(), person);
        let answer = self.paste(&callback);
        assert_eq!((answer.status, &answer.json()["outcome"]), (200, &"logged-in".into()), "{answer:?}");
    }

    /// Stops the daemon as a service manager would and starts it again on the same state.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        assert_eq!(self.daemon.stop().code(), Some(0), "{}", self.daemon.output());
        self.daemon = self.home.serve();
    }

    /// Starts a daemon in place of one that was killed.
    pub(crate) fn start_again(&mut self) {
        self.daemon.kill();
        self.daemon = self.home.serve();
    }
}

impl Home {
    /// An empty home.
    pub(crate) fn new(environment: Vec<(String, String)>) -> Self {
        Self { directory: TempDir::new().unwrap(), environment }
    }

    /// Where everything is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.path().join("config.toml")
    }

    /// The state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    /// Writes a file that only we can read and returns its path.
    pub(crate) fn secret(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path().join(name);
        let _replaced = std::fs::remove_file(&path);
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        file.write_all(content.as_bytes()).unwrap();
        path
    }

    /// A command of the program with this home's configuration and a clean environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.path()).envs(self.environment.clone());
        if self.config().exists() {
            command.arg("--config").arg(self.config());
        }
        command.args(arguments);
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let _read = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Starts the daemon and waits until it listens.
    #[track_caller]
    pub(crate) fn serve(&self) -> Daemon {
        Daemon::spawn(self.command(&["serve"]))
    }
}

impl Daemon {
    /// Starts the daemon and waits until it listens on everything.
    #[track_caller]
    pub(crate) fn spawn(command: Command) -> Self {
        let (mut daemon, stderr) = Self::spawn_unread(command);
        daemon.read(stderr);
        daemon.await_listening();
        daemon
    }

    /// Starts the daemon, whose standard error nobody reads until [`Self::read`] does.
    #[track_caller]
    pub(crate) fn spawn_unread(mut command: Command) -> (Self, ChildStderr) {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        let (sender, lines) = channel();
        let stderr = child.stderr.take().unwrap();
        collect(child.stdout.take().unwrap(), Arc::clone(&output), Some(sender));
        (Self { child, authority: String::new(), output, lines }, stderr)
    }

    /// Takes what comes into [`Self::output`].
    pub(crate) fn read(&self, stderr: ChildStderr) {
        collect(stderr, Arc::clone(&self.output), None);
    }

    /// Waits until it says where it listens.
    #[track_caller]
    pub(crate) fn await_listening(&mut self) {
        while self.authority.is_empty() {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                panic!("the daemon does not listen: {}", self.output());
            };
            let address = line.strip_prefix("listening on ").unwrap_or_default();
            self.authority = address.strip_prefix("http://").unwrap_or(address).to_owned();
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it printed so far, on both streams.
    pub(crate) fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Waits until it says something: its log goes through a queue.
    #[track_caller]
    pub(crate) fn says(&self, words: &str) {
        let said = self.output();
        eventually(&format!("it says {words:?}: {said}"), || self.output().contains(words).then_some(()));
    }

    /// The next line on its standard output.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line came: {}", self.output()))
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        eventually("the daemon ends", || self.child.try_wait().unwrap())
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        let _gone = self.child.kill();
        let _waited = self.child.wait();
    }

    /// A GET.
    #[track_caller]
    pub(crate) fn get(&self, target: &str) -> Answer {
        self.request("GET", target, &[], b"")
    }

    /// A POST of a form.
    #[track_caller]
    pub(crate) fn post_form(&self, target: &str, form: &[(&str, &str)]) -> Answer {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let fields = [("Content-Type", "application/x-www-form-urlencoded")];
        self.request("POST", target, &fields, body.as_bytes())
    }

    /// A request on a connection of its own, with the right Host unless one is given.
    #[track_caller]
    pub(crate) fn request(&self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
        if !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += &format!("Host: {}\r\n", self.authority);
        }
        for (name, value) in fields {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() || ["POST", "PUT", "PATCH"].contains(&method) {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        let raw = self.raw(&[head.as_bytes(), b"\r\n", body].concat());
        Answer::parse(&raw, method).unwrap_or_else(|| {
            panic!("no answer to {method} {target}: {:?}\n{}", String::from_utf8_lossy(&raw), self.output())
        })
    }

    /// Writes bytes on a connection of their own and returns all that comes back until it is closed.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // A daemon that refuses may have closed before all was written.
        let _written = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _read = stream.read_to_end(&mut answer);
        answer
    }

    /// A connection to it.
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.authority).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The status document.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        self.get("/-/status").json()
    }

    /// The state of the account `main`.
    #[track_caller]
    pub(crate) fn state(&self) -> String {
        self.status()["accounts"]["main"]["state"].as_str().unwrap_or_default().to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Answer {
    /// Parses a whole answer to a request with that method; interim answers are passed over.
    pub(crate) fn parse(raw: &[u8], method: &str) -> Option<Self> {
        let end = raw.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = raw[..end].iter().map(|byte| char::from(*byte)).collect::<String>();
        let rest = &raw[end + 4..];
        let mut lines = head.split("\r\n");
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        if status < 200 && status != 101 {
            return Self::parse(rest, method);
        }
        let fields: Vec<_> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let is_chunked = fields.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let body = if is_chunked && method != "HEAD" { unchunked(rest)? } else { rest.to_vec() };
        Some(Self { status, fields, body })
    }

    /// The value of a field, if it is there.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// The code behind `urn:cnblogs-proxy:`, when this is an answer of the proxy's own.
    #[track_caller]
    pub(crate) fn problem(&self) -> String {
        let proxy_status = self.field("proxy-status").unwrap_or_default();
        assert!(proxy_status.starts_with("cnblogs-proxy; error="), "not the proxy's own answer: {self:?}");
        assert_eq!(self.field("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{self:?}");
        let code = problem["type"].as_str().and_then(|code| code.strip_prefix("urn:cnblogs-proxy:"));
        code.unwrap_or_else(|| panic!("a problem without type: {self:?}")).to_owned()
    }
}

/// Waits until something is there; fails when it never comes.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "it never came true that {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The same command behind a line of shell.
pub(crate) fn behind(line: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.arg("-c").arg(format!("{line} \"$@\"")).arg("sh").arg(command.get_program());
    shell.args(command.get_args());
    shell
}

/// The same command where a process may have so many descriptors, softly and at most.
pub(crate) fn with_descriptors(soft: usize, hard: usize, command: &Command) -> Command {
    behind(&format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec"), command)
}

/// The configuration file of a world.
pub(crate) fn config(
    standin: &Standin,
    home: &Home,
    top: &str,
    account: &str,
    route: &str,
    tables: &str,
) -> String {
    let secret = match standin.options().client_secret.as_str() {
        "" => String::new(),
        secret => home.secret("client_secret", secret).display().to_string(),
    };
    let (auth, api) = (standin.auth_url(), standin.api_url());
    let ca = if standin.options().tls {
        format!("ca_file = \"{}\"\n", standin.ca_pem_path().display())
    } else {
        String::new()
    };
    let listen = if top.contains("listen") { "" } else { "listen = [\"127.0.0.1:0\"]\n" };
    let redirect = if account.contains("redirect_uri") {
        String::new()
    } else {
        format!("redirect_uri = \"{auth}/auth/callback\"\n")
    };
    let addresses = format!(
        "authorization_url = \"{auth}/connect/authorize\"\ntoken_url = \"{auth}/connect/token\"\n\
         revocation_url = \"{auth}/connect/revocation\"\n\
         jwks_url = \"{auth}/.well-known/openid-configuration/jwks\"\n{account}"
    );
    let account = match account.strip_prefix("<discovered>") {
        Some(account) => {
            format!("issuer = \"{}\"\n{account}", standin.options().issuer.as_ref().unwrap_or(&auth))
        }
        None => addresses,
    };
    format!(
        "{top}\n{listen}state_dir = \"{state}\"\n\n\
         [account.main]\nclient_id = \"{client}\"\nclient_secret_file = \"{secret}\"\n{redirect}{ca}\
         {account}\n\n\
         [[route]]\nupstream = \"{api}\"\n{ca}{route}\n\n{tables}\n",
        state = home.state().display(),
        client = standin.options().client_id,
    )
}

fn collect(
    stream: impl Read + Send + 'static,
    output: Arc<Mutex<String>>,
    lines: Option<std::sync::mpsc::Sender<String>>,
) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            output.lock().unwrap().push_str(&format!("{line}\n"));
            if let Some(lines) = &lines {
                let _listening = lines.send(line);
            }
        }
    });
}

fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}
