//! Events as the examples in `deploy/notify` pass them on, commands that fail, what commands leave behind, and
//! webhooks.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::standin::Person;
use crate::support::with_descriptors;
use crate::support::{Daemon, PATIENCE, Setup, World, eventually};

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
fn a_notify_command_that_fails_or_is_not_there_is_in_the_log_and_harms_nothing() {
    let commands = [
        ("[\"sh\", \"-c\", \"exit 3\"]", "the notify command failed"),
        ("[\"/nonexistent/tell-me\"]", "the notify command can't be run"),
    ];
    let told = commands.map(|(command, says)| {
        let tables = format!("[notify]\ncommand = {command}");
        (Setup { tables, ..Setup::default() }.logged_in(), says)
    });
    for (world, says) in told {
        eventually(says, || (world.daemon.output().matches(says).count() >= 2).then_some(()));

        assert_eq!(world.daemon.get("/echo/x").status, 200, "{says}");
    }
}

#[test]
fn a_notify_command_has_the_limits_that_the_daemon_was_started_with() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("limits");
    let script =
        format!("echo $(ulimit -Sn) $(ulimit -Hn) > '{0}.new' && mv '{0}.new' '{0}'", file.display());
    let tables = format!("[notify]\ncommand = [\"sh\", \"-c\", {script:?}]");
    let mut world = Setup { tables, ..Setup::default() }.start();
    for (soft, hard) in [(256, 4096), (4096, 4096)] {
        // It outlives the daemon.
        eventually("the command has run", || file.exists().then_some(()));
        world.daemon.kill();
        fs::remove_file(&file).unwrap();
        let command = with_descriptors(soft, hard, &world.home.command(&["serve"]));
        world.daemon = Daemon::spawn(command);

        let told = eventually("the command has run", || fs::read_to_string(&file).ok());

        assert_eq!(told.trim(), format!("{soft} {hard}"), "{}", world.daemon.output());
    }
}

#[test]
fn a_webhook_is_told_as_json_and_once_more_when_that_fails() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook/s3cret", listener.local_addr().unwrap());
    let world = Setup { tables: format!("[notify]\nwebhook = \"{url}\""), ..Setup::default() }.start();

    let (broken, _) = listener.accept().unwrap();
    drop(broken);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (head, body) = posted(&stream);
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();

    assert!(head.starts_with("POST /hook/s3cret HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("\r\ncontent-type: application/json\r\n"), "{head}");
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&body["event"], &body["account"]), (&"login-required".into(), &"main".into()));
    assert_eq!(body["message"], "a person has to log in");
    assert_eq!(body["text"], "cnblogs-proxy, main: login-required: a person has to log in");
    assert!(body["at"].as_str().unwrap().ends_with('Z'), "{body}");

    drop(listener);
    world.log_in(Person::Alice);
    eventually("it is said that it fails", || {
        world.daemon.output().contains("the webhook was not told").then_some(())
    });
    let check = world.home.run(&["check"], "");
    let check = String::from_utf8(check.stdout).unwrap();
    assert!(
        check.contains(&format!("a webhook at {}\n", url.strip_suffix("/hook/s3cret").unwrap())),
        "{check}"
    );
    assert!(!world.daemon.output().contains("s3cret") && !check.contains("s3cret"));
}

#[test]
fn a_command_and_a_webhook_are_both_told() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("told");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let tables =
        format!("[notify]\ncommand = [\"touch\", {:?}]\nwebhook = \"{url}\"", file.display().to_string());
    let _world = Setup { tables, ..Setup::default() }.start();

    let (stream, _) = listener.accept().unwrap();
    let (_, body) = posted(&stream);

    assert!(!body.is_empty());
    eventually("the command has run", || file.exists().then_some(()));
}

/// A directory of programs that come first on the PATH.
pub(crate) struct Programs(pub(crate) TempDir);

impl Programs {
    pub(crate) fn with(name: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let program = directory.path().join(name);
        fs::write(&program, RECORDER).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self(directory)
    }

    pub(crate) fn path(&self) -> String {
        format!("{}:{}", self.0.path().display(), std::env::var("PATH").unwrap())
    }

    fn heard(&self, name: &str, world: &World) -> String {
        let file = self.0.path().join(format!("{name}.heard"));
        eventually(&format!("{name} was run: {}", world.daemon.output()), || fs::read_to_string(&file).ok())
    }
}

/// A daemon that tells an example, first of all, that nobody is logged in.
pub(crate) fn told_by(name: &str, arguments: &[&str], programs: &Programs) -> World {
    let program = example(name).display().to_string();
    let command: Vec<_> =
        [program.as_str()].iter().chain(arguments).map(|part| format!("{part:?}")).collect();
    let tables = format!("[notify]\ncommand = [{}]", command.join(", "));
    Setup { tables, environment: vec![("PATH".to_owned(), programs.path())], ..Setup::default() }.start()
}

pub(crate) fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/notify").join(name)
}

/// The head of a request, and its body.
pub(crate) fn posted(stream: impl Read) -> (String, Vec<u8>) {
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
