//! `run` is not to be noticed: streams, exit status, signals and limits are the program's. It leaves nothing behind.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{Named, Running, STAYS, with_hosts};
use crate::support::{Daemon, Home, PROGRAM, eventually};

#[test]
fn the_exit_status_is_the_programs_as_a_shell_tells_it() {
    let named = Named::start();
    let text = named.world.home.path().join("text");
    fs::write(&text, "no program\n").unwrap();
    let text = text.display().to_string();
    for (command, status) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "kill -TERM $$"], 128 + 15),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9),
        (&["there-is-no-such-program"], 127),
        (&["/there/is/no/such/program"], 127),
        (&[text.as_str()], 126),
        (&["/"], 126),
    ] {
        let output = named.output(&[&["--"], command].concat());

        assert_eq!(output.status.code(), Some(status), "{command:?}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.starts_with("error: "), [126, 127].contains(&status), "{command:?}: {said}");
        assert_eq!(named.left_over(), Vec::<std::path::PathBuf>::new(), "{command:?}");
    }
}

#[test]
fn in_a_pipe_only_the_program_is_heard() {
    let named = Named::start();
    let mut command = named.run(&["sh", "-c", "cat; echo 'an error' >&2", "--config", "nothing"]);
    let mut process =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all(b"through\n\0bytes").unwrap();

    let output = process.wait_with_output().unwrap();

    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"through\n\0bytes"[..], &b"an error\n"[..]));
}

#[test]
fn without_a_daemon_the_program_is_not_started() {
    let home = Home::new(vec![("CNBLOGS_PAT".to_owned(), "a-token".to_owned())]);
    let started = home.path().join("started");
    let output = home.run(&["run", "--", "touch", started.to_str().unwrap()], "");

    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: no daemon is running") && said.contains("hint: start it with"), "{said}");
    assert!(!started.exists());
}

#[test]
fn signals_are_passed_on_to_the_program() {
    let named = Named::start();
    for signal in ["TERM", "HUP", "USR1", "USR2", "INT", "QUIT"] {
        let script =
            format!("trap 'exit 9' {signal}; echo; echo; echo $$; while :; do read -r _ || sleep 1; done");
        // No terminal is controlling here, so that nobody else tells the program.
        let mut command = Command::new("setsid");
        let run = named.run(&["--", "sh", "-c", &script]);
        command.arg("--wait").arg(run.get_program()).args(run.get_args());
        command.env_clear().envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut running = Running::start(command);
        let parent = parent_of(&running.pid);

        kill_process(parent, signal_named(signal)).unwrap();

        let status = eventually("it ends", || running.process.try_wait().unwrap());
        assert_eq!(status.code(), Some(9), "{signal}");
    }
}

/// The terminal itself tells its whole foreground group.
#[test]
fn an_interrupt_typed_at_a_terminal_reaches_the_program_once() {
    let named = Named::start();
    let trace = named.world.home.path().join("trace");
    // What is sent to `run` behind the interrupt is passed on behind it. Of two interrupts the program may see one, so
    // that what `run` sends is looked at.
    let script = "
import os, signal, sys
signal.signal(signal.SIGINT, lambda *_: os.write(1, b'<int>'))
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(os.write(1, b'<end>') - 5))
os.write(1, b'<%d>' % os.getppid())
while True:
    signal.pause()";
    let run = named.run(&["--", "python3", "-c", script]);
    let strace = ["strace", "-qq", "-e", "trace=kill", "-e", "signal=none", "-o"].map(AsRef::as_ref);
    let line = strace.into_iter().chain([trace.as_os_str(), run.get_program()]).chain(run.get_args());
    let line: Vec<_> =
        line.map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''"))).collect();
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line.join(" "), "/dev/null"]);
    command.env_clear().envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut keys, mut screen) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
    let mut seen = Vec::new();
    let mut until = |wanted: &str| -> String {
        while !String::from_utf8_lossy(&seen).contains(wanted) {
            let mut byte = [0];
            assert_eq!(screen.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&seen));
            seen.push(byte[0]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    };

    let parent = until(">").trim_matches(['<', '>']).to_owned();
    keys.write_all(b"\x03").unwrap();
    until("<int>");
    kill_process(Pid::from_raw(parent.parse().unwrap()).unwrap(), Signal::USR1).unwrap();

    until("<end>");
    eventually("it ends", || process.try_wait().unwrap());
    let sent = fs::read_to_string(trace).unwrap();
    assert!(sent.contains("SIGUSR1") && !sent.contains("SIGINT"), "{sent}");
}

#[test]
fn what_was_to_be_ignored_still_is() {
    let named = Named::start();
    let run = named.run(&["--", "sh", "-c", "kill -HUP $$; echo alive; grep SigIgn /proc/self/status"]);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(run.get_program()).args(run.get_args());
    command.env_clear().envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));

    let output = command.output().unwrap();

    assert!(String::from_utf8_lossy(&output.stdout).starts_with("alive\n"), "{output:?}");
}

#[test]
fn limits_are_those_that_it_was_started_with() {
    let named = Named::start();
    let limits = "grep -E 'core|open files' /proc/self/limits";
    let direct = Command::new("sh").args(["-c", limits]).output().unwrap();

    assert_eq!(named.printed(&["--", "sh", "-c", limits]), String::from_utf8_lossy(&direct.stdout));
}

#[test]
fn the_files_are_for_their_owner_and_go_away_also_after_run_was_killed() {
    let named = Named::start();
    let mut killed = Running::start(named.run(&STAYS));
    let directory = Path::new(&killed.bundle).parent().unwrap().to_owned();
    assert_eq!(named.left_over(), vec![directory.clone()]);
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);

    let _gone = killed.process.kill();
    killed.process.wait().unwrap();
    assert!(directory.exists(), "nobody could remove it yet");
    let mut alive = Running::start(named.run(&STAYS));
    assert!(!directory.exists(), "the next one removes it");
    named.printed(&["--", "true"]);
    assert!(Path::new(&alive.bundle).exists(), "and not that of one that lives");

    drop(alive.process.stdin.take());
    let status = eventually("it ends", || alive.process.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    assert_eq!(named.left_over(), Vec::<std::path::PathBuf>::new());
}

/// After `su`, `XDG_RUNTIME_DIR` is another user's; root is refused by /proc alone.
#[test]
fn where_the_runtime_directory_is_of_no_use_the_temporary_one_is_taken() {
    let named = Named::start();
    let home = named.world.home.path();
    for (runtime, temporary) in [("/proc", named.runtime.to_str().unwrap()), ("runtime", "runtime")] {
        let mut command = named.run(&["--", "sh", "-c", "cd / && wc -c \"$SSL_CERT_FILE\""]);
        command.current_dir(home).env("XDG_RUNTIME_DIR", runtime).env("TMPDIR", temporary);
        let output = command.output().unwrap();

        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(printed.contains(&format!(" {}/", named.runtime.display())), "{runtime}: {output:?}");
        assert_eq!(named.left_over(), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn settings_of_the_programs_own_are_kept_in_whatever_encoding() {
    let named = Named::start();
    let own = named.world.home.path().join("own");
    fs::write(&own, b"# caf\xe9\n").unwrap();
    let mut command = named.run(&["--", "sh", "-c", "cat \"$WGETRC\""]);
    let output = command.env("WGETRC", &own).output().unwrap();

    assert!(output.stdout.starts_with(b"# caf\xe9\n"), "{output:?}");
}

/// To go on would be to trust more than before, or nothing at all.
#[test]
fn a_variable_that_leads_to_no_certificate_is_named_before_the_program_starts() {
    let named = Named::start();
    let home = named.world.home.path();
    let (started, empty, directory) = (home.join("started"), home.join("empty"), home.join("directory"));
    fs::write(&empty, "# no certificate\n").unwrap();
    fs::create_dir(&directory).unwrap();
    let missing = home.join("missing");
    let directories = format!("{}:{}", directory.display(), missing.display());
    let (empty, missing, directory) = (empty.display(), missing.display(), directory.display());
    for (variable, value) in [
        ("SSL_CERT_FILE", missing.to_string()),
        ("SSL_CERT_FILE", empty.to_string()),
        ("SSL_CERT_FILE", String::new()),
        ("SSL_CERT_FILE", "/dev/null".to_owned()),
        ("SSL_CERT_DIR", directories),
        ("CURL_CA_BUNDLE", missing.to_string()),
        ("REQUESTS_CA_BUNDLE", directory.to_string()),
        ("PIP_CERT", empty.to_string()),
        ("NODE_EXTRA_CA_CERTS", missing.to_string()),
        ("DENO_CERT", empty.to_string()),
        ("GIT_SSL_CAINFO", missing.to_string()),
        ("AWS_CA_BUNDLE", directory.to_string()),
        ("WGETRC", missing.to_string()),
    ] {
        let mut command = named.run(&["--", "touch", started.to_str().unwrap()]);
        let output = command.env(variable, &value).output().unwrap();

        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{variable}={value}: {said}");
        assert!(said.starts_with(&format!("error: {variable}: ")), "{value}: {said}");
        assert!(!started.exists(), "{variable}={value}");
    }
    assert_eq!(named.left_over(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_proxy_that_is_not_spoken_to_is_named_before_the_program_starts() {
    let named = Named::start();
    let started = named.world.home.path().join("started");
    for (variables, refused) in [
        (&[("HTTPS_PROXY", "socks5h://me:a-password@127.0.0.1:1")][..], Some("HTTPS_PROXY")),
        (&[("https_proxy", "https://127.0.0.1:1")], Some("https_proxy")),
        (&[("all_proxy", "socks4://127.0.0.1:1"), ("NO_PROXY", "*")], Some("all_proxy")),
        (&[("ALL_PROXY", "no address")], Some("ALL_PROXY")),
        (&[("HTTPS_PROXY", "http://127.0.0.1:1"), ("ALL_PROXY", "socks5://127.0.0.1:1")], None),
        (&[("HTTPS_PROXY", "127.0.0.1:1")], None),
        (&[("HTTP_PROXY", "socks5://127.0.0.1:1")], None),
    ] {
        let mut command = named.run(&["--", "touch", started.to_str().unwrap()]);
        let output = command.envs(variables.iter().copied()).output().unwrap();

        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), refused.is_none(), "{variables:?}: {said}");
        let begin = refused.map_or_else(String::new, |name| format!("error: {name} names a proxy "));
        assert!(said.starts_with(&begin) && !said.contains("a-password"), "{variables:?}: {said}");
        assert_eq!(fs::remove_file(&started).is_ok(), refused.is_none(), "{variables:?}");
    }
}

/// `CNBLOGS_PAT=... cnblogs-proxy` in one terminal, and `cnblogs-proxy run` in another.
#[test]
fn the_running_daemon_says_where_its_routes_lead() {
    let named = Named::start();
    let mut command = Command::new(PROGRAM);
    command.args(["run", "--", "curl", "-sSf", &named.url("/api/users")]).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap()).env("TMPDIR", &named.runtime);
    let output = command.env("CNBLOGS_PROXY_STATE_DIR", named.world.home.state()).output().unwrap();

    assert!(String::from_utf8_lossy(&output.stdout).contains("DisplayName"), "{output:?}");
    named.assert_answered_with_the_token();
}

#[test]
fn a_daemon_that_stops_is_told_of_and_one_that_comes_back_is_used() {
    let mut named = Named::start();
    let running = Running::start(named.run(&STAYS));
    let url = named.url("/api/users");
    let curl = || {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--proxy", &running.proxy, "--cacert", &running.bundle, &url]);
        String::from_utf8(curl.output().unwrap().stdout).unwrap()
    };
    assert!(curl().contains("DisplayName"));

    let config = fs::read_to_string(named.world.home.config()).unwrap();
    let again = config.replace("127.0.0.1:0\"", &format!("{}\"", named.world.daemon.authority));
    fs::write(named.world.home.config(), again).unwrap();
    named.world.daemon.stop();
    let said = curl();
    assert!(said.contains("upstream-unreachable") && said.contains("the daemon does not answer"), "{said}");

    named.world.daemon = Daemon::spawn(with_hosts(&named.world));
    assert!(curl().contains("DisplayName"));
    named.assert_answered_with_the_token();
}

#[test]
fn run_ends_when_its_program_is_killed() {
    let named = Named::start();
    let mut running = Running::start(named.run(&STAYS));
    kill_process(Pid::from_raw(running.pid.parse().unwrap()).unwrap(), Signal::KILL).unwrap();

    let status = eventually("it ends", || running.process.try_wait().unwrap());
    assert_eq!(status.code(), Some(128 + 9));
    assert_eq!(named.left_over(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn the_program_is_killed_with_run() {
    let named = Named::start();
    let mut running = Running::start(named.run(&STAYS));
    let pid = Pid::from_raw(running.pid.parse().unwrap()).unwrap();
    // It would end with its standard input, too.
    let _open = running.process.stdin.take();

    running.process.kill().unwrap();
    running.process.wait().unwrap();

    eventually("the program ends", || kill_process(pid, Signal::CONT).is_err().then_some(()));
}

fn parent_of(pid: &str) -> Pid {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap();
    Pid::from_raw(parent.parse().unwrap()).unwrap()
}

fn signal_named(name: &str) -> Signal {
    match name {
        "TERM" => Signal::TERM,
        "HUP" => Signal::HUP,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "INT" => Signal::INT,
        _ => Signal::QUIT,
    }
}
