//! Providers that nobody here wrote, by configuration alone: what each of them is takes an issuer, an application and
//! its secret. See also `provider`, where a browser logs in.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::standin::{Answer, Options, Scripted, Standin};
use crate::support::{Daemon, Home};
use crate::system::provider::{Program, script};
use crate::tokens::{events, refresh};

const PYTHON: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../test-tools/venv/bin/python");
const REDIRECT_URI: &str = "https://app.example/callback";

/// A provider, and a person who logs in there. Dropped before its log.
struct Provider {
    program: Program,
    says: Value,
    _directory: TempDir,
}

/// A daemon for one of its applications, in front of an API that takes every token.
struct World {
    daemon: Daemon,
    api: Standin,
    _home: Home,
}

impl Provider {
    #[track_caller]
    fn canaille() -> Self {
        let mut command = python(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/provider/alice_at_canaille.py"));
        command.arg(REDIRECT_URI);
        Self::start(command, TempDir::new().unwrap())
    }

    #[track_caller]
    fn glewlwyd() -> Self {
        let directory = TempDir::new().unwrap();
        let mut command = python(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/provider/alice_at_glewlwyd.py"));
        command.arg(directory.path()).arg(REDIRECT_URI);
        Self::start(command, directory)
    }

    #[track_caller]
    fn mock() -> Self {
        Self::start(script("mock.mjs"), TempDir::new().unwrap())
    }

    #[track_caller]
    fn start(mut command: Command, directory: TempDir) -> Self {
        let program = Program::start(&mut command, &directory.path().join("provider.log"));
        let says = serde_json::from_str(&program.line("{")).unwrap();
        Self { program, says, _directory: directory }
    }

    /// Starts a daemon with the issuer, this application and these lines.
    #[track_caller]
    fn daemon_for(&self, client_id: &str, client_secret: &str, lines: &str) -> World {
        let api = Standin::start(Options::default());
        api.on_api(|_| Some(Scripted::Answer(Answer::json(200, &serde_json::json!({})))));
        let home = Home::new(Vec::new());
        let secret = match client_secret {
            "" => String::new(),
            secret => home.secret("client_secret", secret).display().to_string(),
        };
        let config = format!(
            "listen = [\"127.0.0.1:0\"]\nstate_dir = {:?}\n\n[account.main]\nissuer = {}\nclient_id = {client_id:?}\n\
             client_secret_file = {secret:?}\nredirect_uri = {REDIRECT_URI:?}\nscope = \"openid profile\"\n{lines}\n\n\
             [[route]]\nupstream = {:?}\n",
            home.state(),
            self.says["issuer"],
            api.api_url()
        );
        fs::write(home.config(), config).unwrap();
        World { daemon: home.serve(), api, _home: home }
    }

    /// What it answers to a line: to an authorization URL where a browser ends that starts there.
    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        self.program.tell(line);
        self.program.line("")
    }
}

impl World {
    #[track_caller]
    fn post(&self, path: &str, form: &[(&str, &str)]) -> Value {
        let answer = self.daemon.post_form(path, form);
        assert_eq!(answer.status, 200, "{path}: {answer:?}\n{}", self.daemon.output());
        answer.json()
    }

    /// A request with a token, a refresh, and a request. Canaille's tokens are the same within a second.
    #[track_caller]
    fn call_refresh_and_call(&self) {
        assert_eq!(self.daemon.get("/x").status, 200);
        self.post("/-/refresh/main", &[]);
        let last = self.daemon.status()["accounts"]["main"]["last_refresh"]["outcome"].clone();
        assert_eq!((last.as_str(), self.daemon.get("/x").status), (Some("ok"), 200));
        let requests = self.api.api_requests();
        let tokens = requests.iter().filter_map(|request| request.field("authorization"));
        assert!(tokens.filter(|token| token.starts_with("Bearer ")).count() >= 2);
    }
}

#[track_caller]
fn python(script: &str) -> Command {
    assert!(Path::new(PYTHON).exists(), "{PYTHON} is missing: run `tests/run --set-up-only`");
    let mut command = Command::new(PYTHON);
    command.arg(script);
    command
}

/// What the daemon says of a login.
#[track_caller]
fn log_in(provider: &mut Provider, world: &World) -> Value {
    let started = world.daemon.post_form("/-/login/main/start", &[]);
    assert_eq!(started.status, 303, "{started:?}");
    let callback = provider.ask(started.field("location").unwrap());
    assert!(callback.starts_with(REDIRECT_URI), "{callback}");
    world.post("/-/login/main", &[("callback", &callback)])
}

/// A login, a refresh and a logout; returns who logged in, and what was remarked.
#[track_caller]
fn live(provider: &mut Provider, world: &World) -> (String, Value) {
    let done = log_in(provider, world);
    world.call_refresh_and_call();
    world.post("/-/logout/main", &[]);

    assert_eq!(world.daemon.get("/x").status, 503);
    (done["person"].as_str().unwrap_or_default().to_owned(), done["remarks"].clone())
}

#[test]
fn canaille_takes_its_application_by_code_and_hybrid_flow() {
    for flow in ["code", "code id_token"] {
        let mut provider = Provider::canaille();
        let lines = format!("response_type = \"{flow}\"\nclient_auth = \"basic\"");
        let world = provider.daemon_for("web", "secret-of-web", &lines);

        let (person, remarks) = live(&mut provider, &world);

        assert_eq!((person.as_str(), remarks.to_string().as_str()), ("Alice 爱丽丝", "[]"), "{flow}");
    }
}

#[test]
fn canaille_gives_an_application_its_own_token() {
    let provider = Provider::canaille();
    let lines = "grant = \"client_credentials\"\nclient_auth = \"basic\"";
    let world = provider.daemon_for("machine", "secret-of-machine", lines);

    world.call_refresh_and_call();
}

#[test]
fn glewlwyd_takes_its_application_by_code_and_hybrid_flow() {
    for (flow, client_auth) in [("code", "basic"), ("code id_token", "body")] {
        let mut provider = Provider::glewlwyd();
        let lines = format!("response_type = \"{flow}\"\nclient_auth = \"{client_auth}\"");
        let world = provider.daemon_for("web", "secret-of-web", &lines);

        let (person, remarks) = live(&mut provider, &world);

        assert_eq!((person.as_str(), remarks.to_string().as_str()), ("Alice 爱丽丝", "[]"), "{flow}");
        assert_eq!(provider.ask("end sessions"), "0", "{flow}: the logout revoked the refresh token");
    }
}

/// It answers 400 without a body, which may be anybody's: nothing is lost by it.
#[test]
fn a_refresh_token_that_glewlwyd_refuses_without_a_word_ends_no_login_before_the_access_token_does() {
    let mut provider = Provider::glewlwyd();
    let world = provider.daemon_for("web", "secret-of-web", "");
    log_in(&mut provider, &world);
    assert_eq!(provider.ask("end sessions"), "1");

    for last_event in ["recovered", "recovered", "refresh-failing"] {
        let refused = refresh(&world.daemon);
        assert_eq!(refused.problem(), "token-unavailable", "{refused:?}");
        assert!(refused.text().contains("400 Bad Request"), "{refused:?}");
        assert_eq!((world.daemon.get("/x").status, world.daemon.state().as_str()), (200, "degraded"));
        assert_eq!(events(&world.daemon).last().map(String::as_str), Some(last_event));
    }

    log_in(&mut provider, &world);
    world.call_refresh_and_call();
    assert_eq!(world.daemon.state(), "ready");
    assert_eq!(events(&world.daemon).last().map(String::as_str), Some("recovered"));
}

#[test]
fn the_mock_server_takes_a_client_without_a_secret() {
    let mut provider = Provider::mock();
    let world = provider.daemon_for("anything", "", "response_type = \"code\"");

    let (person, remarks) = live(&mut provider, &world);

    assert_eq!((person.as_str(), remarks.to_string().as_str()), ("johndoe", "[]"));
}
