//! Events as the examples in `deploy/notify` pass them on, and a command that fails.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{PATIENCE, Setup, World, eventually};

/// Stands in for a program on the PATH: writes its arguments, one a line, and what it is given.
const RECORDER: &str =
    "#!/bin/sh\nprintf '%s\\n' \"$@\" > \"$0.new\"\ncat >> \"$0.new\"\nmv \"$0.new\" \"$0.heard\"\n";

#[test]
fn the_desktop_example_shows_the_event() {
    let programs = Programs::with("notify-send");

    let world = told_by("desktop", &[], &programs);

    let heard = programs.heard("notify-send", &world);
    let lines: Vec<_> = heard.lines().collect();
    let (options, texts) = lines.split_at(lines.len() - 2);
    assert_eq!(options, ["--app-name", "cnblogs-proxy", "--urgency", "critical", "--"]);
    assert_eq!(texts, ["cnblogs-proxy, main: login-required", "a person has to log in"]);
}

#[test]
fn the_mail_example_sends_a_message_that_begins_with_its_fields() {
    let programs = Programs::with("sendmail");

    let world = told_by("mail", &["me@example.com"], &programs);

    let heard = programs.heard("sendmail", &world);
    let message = heard.strip_prefix("-i\n--\nme@example.com\n").unwrap();
    let (fields, text) = message.split_once("\n\n").unwrap();
    assert!(
        fields.starts_with("To: me@example.com\nSubject: cnblogs-proxy, main: login-required\n"),
        "{heard}"
    );
    assert!(text.starts_with("a person has to log in\n\n"), "{heard}");
}

#[test]
fn the_webhook_example_posts_json_to_an_address_that_no_argument_shows() {
    let programs = Programs::with("nothing-of-ours");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = programs.0.path().join("webhook.curl");
    fs::write(&file, format!("url = \"http://{}/hook\"\nnoproxy = \"*\"\n", listener.local_addr().unwrap()))
        .unwrap();

    let _world = told_by("webhook", &[file.to_str().unwrap()], &programs);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (head, body) = posted(&stream);
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();

    assert!(head.starts_with("POST /hook HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("\r\ncontent-type: application/json\r\n"), "{head}");
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["text"], "cnblogs-proxy, main: login-required: a person has to log in");
}

#[test]
fn the_webhook_example_writes_valid_json_whatever_the_message() {
    let programs = Programs::with("curl");
    let message = "a \"quoted\" \\ path,\tand\na line 园子";

    let mut command = std::process::Command::new(example("webhook"));
    command.arg("file").env("PATH", programs.path()).env("CNBLOGS_PROXY_MESSAGE", message);
    command.env("CNBLOGS_PROXY_ACCOUNT", "main").env("CNBLOGS_PROXY_EVENT", "recovered");
    assert!(command.status().unwrap().success());

    let heard = fs::read_to_string(programs.0.path().join("curl.heard")).unwrap();
    let json = heard.lines().last().unwrap();
    let body: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
    assert_eq!(body["text"], "cnblogs-proxy, main: recovered: a \"quoted\" \\ path, and a line 园子");
}

#[test]
fn a_notify_command_that_fails_or_is_not_there_is_in_the_log_and_harms_nothing() {
    for (command, says) in [
        ("[\"sh\", \"-c\", \"exit 3\"]", "the notify command failed"),
        ("[\"/nonexistent/tell-me\"]", "the notify command can't be run"),
    ] {
        let world =
            Setup { tables: format!("[notify]\ncommand = {command}"), ..Setup::default() }.logged_in();

        eventually(says, || (world.daemon.output().matches(says).count() >= 2).then_some(()));

        assert_eq!(world.daemon.get("/echo/x").status, 200, "{command}");
    }
}

/// A directory of programs that come first on the PATH.
struct Programs(TempDir);

impl Programs {
    fn with(name: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let program = directory.path().join(name);
        fs::write(&program, RECORDER).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self(directory)
    }

    fn path(&self) -> String {
        format!("{}:{}", self.0.path().display(), std::env::var("PATH").unwrap())
    }

    fn heard(&self, name: &str, world: &World) -> String {
        let file = self.0.path().join(format!("{name}.heard"));
        eventually(&format!("{name} was run: {}", world.daemon.output()), || fs::read_to_string(&file).ok())
    }
}

/// A daemon that tells an example, first of all, that nobody is logged in.
fn told_by(name: &str, arguments: &[&str], programs: &Programs) -> World {
    let program = example(name).display().to_string();
    let command: Vec<_> =
        [program.as_str()].iter().chain(arguments).map(|part| format!("{part:?}")).collect();
    let tables = format!("[notify]\ncommand = [{}]", command.join(", "));
    Setup { tables, environment: vec![("PATH".to_owned(), programs.path())], ..Setup::default() }.start()
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/notify").join(name)
}

/// The head of a request, and its body.
fn posted(stream: impl Read) -> (String, Vec<u8>) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut head).unwrap(), 0, "{head}");
    }
    let field =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    let mut body = vec![0; field.unwrap().parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (head, body)
}
