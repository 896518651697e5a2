//! The sandbox of the README: `cargo run --example sandbox`, by itself and as a person would use it.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{PROGRAM, eventually};

#[test]
fn the_sandbox_shows_a_login_that_outlives_its_access_token() {
    let program_before = std::fs::metadata(PROGRAM).unwrap().ino();

    let output = sandbox().args(["--login", "--once", "--expires-in", "6"]).output().unwrap();

    let printed = String::from_utf8_lossy(&output.stdout);
    let said = format!("{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}");
    let address = between(&printed, "daemon: listening on ", "\n");
    assert!(printed.contains(&format!("the daemon            {address}\n")), "{said}");
    let in_order = [
        "This is a sandbox",
        "logged in as alice",
        "token endpoint, authorization_code: answered 200",
        "GET /api/users\n  -> 200 {",
        "爱丽丝 Alice",
        "GET /api/blogposts/@sitehome?pageIndex=1&pageSize=2\n  -> 200 [{",
        "POST /api/statuses\n  -> 200 {",
        "你好, sandbox",
        "waiting 7 s",
        "token endpoint, refresh_token: answered 200",
        "GET /api/users\n  -> 200 {",
        "the login outlived its first access token; refreshes: ",
        "stopping ...",
    ];
    let mut rest = &*printed;
    for wanted in in_order {
        let found = rest.split_once(wanted);
        rest = found.unwrap_or_else(|| panic!("{wanted:?} is missing: {said}")).1;
    }
    assert!(!said.contains("error:") && !said.contains("ERROR"), "{said}");
    assert!(!config_of(&printed).exists(), "the sandbox removes what it made: {said}");
    assert_eq!(std::fs::metadata(PROGRAM).unwrap().ino(), program_before, "the program was built again");
}

#[test]
fn every_command_that_the_sandbox_proposes_works_until_ctrl_c_ends_it() {
    let mut sandbox = Ended(sandbox().arg("--login").stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(sandbox.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let printed: Vec<_> = lines.by_ref().take_while(|line| line != "POST /api/statuses").collect();

    let commands: Vec<_> = printed.iter().filter_map(|line| proposed(line)).collect();
    assert_eq!(commands.len(), 7, "{printed:#?}");
    for command in commands {
        let command = command.replace("curl ", "curl --silent --show-error --fail ");
        let output = Command::new("bash").args(["-c", &command]).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{command}: {output:?}");
    }

    let pid = Pid::from_child(&sandbox.0);
    kill_process(pid, Signal::INT).unwrap();
    let status = eventually("the sandbox ends", || sandbox.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    assert!(!config_of(&printed.join("\n")).exists(), "the sandbox removes what it made");
}

/// The command that a line proposes, without the remark behind it.
fn proposed(line: &str) -> Option<&str> {
    let command = line.strip_prefix("     ")?;
    let is_command = command.starts_with("curl ") || command.ends_with(" status");
    is_command.then(|| command.split("  ").next().unwrap_or_default())
}

/// The configuration file that the sandbox made.
#[track_caller]
fn config_of(printed: &str) -> PathBuf {
    PathBuf::from(between(printed, " --config ", " "))
}

#[track_caller]
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let found = text.split_once(start).and_then(|(_, rest)| rest.split_once(end));
    found.unwrap_or_else(|| panic!("no {start:?} in {text}")).0
}

/// The built example, as `cargo run --example sandbox` starts it.
#[track_caller]
fn sandbox() -> Command {
    let example = Path::new(PROGRAM).with_file_name("examples").join("sandbox");
    assert!(
        example.exists(),
        "{} is missing: `cargo test` and `cargo build --examples` build it",
        example.display()
    );
    let mut command = Command::new(example);
    // The port of the README is one for the whole machine.
    command.args(["--port", "0"]).stdin(Stdio::null());
    command
}

/// Ends a sandbox that a failed test leaves, as a terminal would, so that its daemon ends as well.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _gone = kill_process(Pid::from_child(&self.0), Signal::INT);
            let _ended = self.0.wait();
        }
    }
}
