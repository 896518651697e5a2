//! The example that posts with curl, and a daemon that is the first process of a container.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::notices::{Programs, example, posted, told_by};
use crate::standin::Person;
use crate::support::{Daemon, PATIENCE, PROGRAM, Setup, eventually};

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

    let mut command = Command::new(example("webhook"));
    command.arg("file").env("PATH", programs.path()).env("CNBLOGS_PROXY_MESSAGE", message);
    command.env("CNBLOGS_PROXY_ACCOUNT", "main").env("CNBLOGS_PROXY_EVENT", "recovered");
    assert!(command.status().unwrap().success());

    let heard = fs::read_to_string(programs.0.path().join("curl.heard")).unwrap();
    let json = heard.lines().last().unwrap();
    let body: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
    assert_eq!(body["text"], "cnblogs-proxy, main: recovered: a \"quoted\" \\ path, and a line 园子");
}

/// The command fails, so that how it ended is known; what it leaves behind has a group or a session of its own, or its.
#[test]
fn what_a_notify_command_leaves_behind_is_taken_away_by_the_first_process() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().display();
    let stray = |name: &str| format!("sh -c 'sleep 0.2; echo > {path}/{name}' &");
    let script = format!("{} setsid {} exit 7", stray("one"), stray("two"));
    let tables = format!("[notify]\ncommand = [\"sh\", \"-c\", {script:?}]");
    let mut world = Setup { tables, ..Setup::default() }.start();
    let both_have_ended =
        || ["one", "two"].iter().all(|name| directory.path().join(name).exists()).then_some(());
    eventually("both have ended", both_have_ended);
    world.daemon.kill();
    for name in ["one", "two"] {
        fs::remove_file(directory.path().join(name)).unwrap();
    }
    let serve = world.home.command(&["serve"]);
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(PROGRAM).args(serve.get_args());
    world.daemon = Daemon::spawn(command);
    let first = children(world.daemon.pid())[0].0;

    eventually("both have ended", both_have_ended);
    eventually("nothing is left of them", || children(first).is_empty().then_some(()));
    let output = world.daemon.output();
    assert!(output.contains("the notify command failed") && output.contains("exit status: 7"), "{output}");

    world.log_in(Person::Alice);
    eventually("the next one ran as well, and was waited for", || {
        let runs = world.daemon.output().matches("exit status: 7").count();
        (runs >= 2 || world.daemon.output().contains("(1 more")).then_some(())
    });
}

/// The children of a process, with their states.
fn children(parent: u32) -> Vec<(u32, String)> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: u32 = entry.unwrap().file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit(") ").next()?.split(' ').map(str::to_owned);
        let (state, of) = (fields.next()?, fields.next()?);
        (of == parent.to_string()).then_some((pid, state))
    });
    processes.collect()
}
