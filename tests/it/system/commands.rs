//! Commands at a terminal, of another user, and beside a daemon that hangs.

use std::fs;
use std::process::{Command, Stdio};

use crate::commands::{Conversation, done, personal, run};
use crate::standin::Person;
use crate::support::{World, eventually};
use crate::system::store::strace::threads_named;
use crate::system::systemd::delayed;

#[test]
fn status_is_readable_at_a_glance_and_coloured_on_a_terminal_alone() {
    let world = World::logged_in();
    done(&run(&world.home, &["refresh"]));

    let plain = run(&world.home, &["status"]);
    let on_terminal = |variables: &str| {
        let command = world.home.command(&["status"]);
        let arguments: Vec<_> = command.get_args().map(|one| one.to_str().unwrap()).collect();
        let line = format!("{variables} {} {}", command.get_program().to_str().unwrap(), arguments.join(" "));
        let output = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output();
        String::from_utf8(output.unwrap().stdout).unwrap().replace("\r\n", "\n")
    };

    assert!(plain.out.starts_with("main: ready as "), "{plain:?}");
    for words in [
        "\n  token expires  in 23 h 59 min (",
        "\n  login ends     in 29 days 23 h (",
        " s ago (",
        "\n  events         ",
    ] {
        assert!(plain.out.contains(words), "{words:?} is not in {}", plain.out);
    }
    let daemon = format!("\ndaemon: version {}, up ", env!("CARGO_PKG_VERSION"));
    assert!(plain.out.contains(&daemon) && plain.out.contains(&world.daemon.authority), "{}", plain.out);
    assert!(!plain.out.contains('\u{1b}'), "{plain:?}");
    let coloured = on_terminal("TERM=xterm");
    assert!(coloured.contains("main: \u{1b}[32mready\u{1b}[0m as "), "{coloured}");
    for variables in ["TERM=xterm NO_COLOR=1", "TERM=dumb"] {
        let shown = on_terminal(variables);
        assert!(shown.contains("main: ready as ") && !shown.contains('\u{1b}'), "{variables}: {shown}");
    }
}

#[test]
fn a_login_on_a_terminal_says_how_much_time_is_left_and_what_it_does() {
    let world = World::start();
    let command = world.home.command(&["login"]);
    let arguments: Vec<_> = command.get_args().map(|one| one.to_str().unwrap()).collect();
    let line = format!("{} {}", command.get_program().to_str().unwrap(), arguments.join(" "));
    let mut script = Command::new("script");
    let mut login = Conversation::of(script.args(["-qec", &line, "/dev/null"]));
    let url = login.line_with(&world.standin.auth_url()).trim_end().to_owned();
    login.line_with("(10 minutes are left)");

    login.say(&world.standin.authorize(&url, Person::Alice));

    login.line_with("Checking the address, and exchanging its code for a token ...");
    login.line_with(&format!("main is logged in as {}.", Person::Alice.display_name()));
    assert_eq!(login.end().code, Some(0));
}

#[test]
fn health_sees_a_worker_that_hangs() {
    for (workers, says) in [(1, "no answer within"), (2, "worker 1 is stuck")] {
        let home = personal(&format!("workers = {workers}"));
        let daemon = home.serve();
        assert_eq!(done(&run(&home, &["health"])), "");
        let worker = threads_named(daemon.pid(), &format!("worker-{}", workers - 1))[0];
        let held = delayed(worker, &[], "epoll_wait,epoll_pwait");

        for arguments in [&["health"][..], &["health", "--live"]] {
            let told = eventually("it is seen", || {
                let told = run(&home, arguments);
                (told.code == Some(1)).then_some(told)
            });
            assert!(told.err.contains(says), "{told:?}");
        }
        // As long as it delays a call, nothing can end.
        drop(held);
    }
}

/// Nobody can become the user of a service that exists only while it runs.
#[test]
fn a_caller_of_another_user_s_daemon_is_told_where_to_look() {
    assert!(rustix::process::geteuid().is_root(), "this test becomes another user: it needs root");
    let home = personal("");
    let _daemon = home.serve();
    for path in [home.path(), &home.config()] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }

    for arguments in [&["status"][..], &["health"], &["token"], &["login"], &["reload"]] {
        let ours = home.command(arguments);
        let mut command = Command::new("setpriv");
        command.args(["--reuid=64999", "--clear-groups"]).arg(ours.get_program()).args(ours.get_args());
        let output = command.env("HOME", home.path()).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        for words in ["may not be entered", "as root", "/-/", "http://127.0.0.1:8262/-/status"] {
            assert!(told.contains(words), "{arguments:?}: {words}: {told}");
        }
    }
}
