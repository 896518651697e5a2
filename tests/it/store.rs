//! Where a login outlives the process: who may read it, who may use it, and what a killed process leaves.

mod binding;
pub(crate) mod damage;
pub(crate) mod sealing;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use self::damage::sealed;
use crate::standin::{Endpoint, Fault, Gate, Options, Person, Rotation, Standin};
use crate::support::{Daemon, Home, Setup, World, behind, config, eventually};
use crate::tokens::{Sent, events, held, main_account, refresh};

/// The names in the state directory.
pub(crate) fn files(home: &Home) -> BTreeSet<String> {
    let entries = fs::read_dir(home.state()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The current generation on disk.
pub(crate) fn current(home: &Home) -> PathBuf {
    home.state().join("store")
}

/// The generation before it.
pub(crate) fn previous(home: &Home) -> PathBuf {
    home.state().join("store.previous")
}

/// The room taken for the successor of the account `main`.
pub(crate) fn next(home: &Home) -> PathBuf {
    home.state().join("store.next.main")
}

/// What `token` prints, without a daemon.
pub(crate) fn stored_token(home: &Home) -> String {
    let output = home.run(&["token"], "");
    assert_eq!(output.status.code(), Some(0), "{}", errors_of(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The standard error of a command.
pub(crate) fn errors_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What comes of a start that is to fail.
pub(crate) fn failing_start(home: &Home) -> Output {
    behind("exec timeout 20", &home.command(&["serve"])).output().unwrap()
}

/// A world whose daemon starts behind a line of shell; nobody is logged in.
fn world_behind(line: &str) -> World {
    let standin = Standin::start(Options::default());
    let home = Home::new(Vec::new());
    fs::write(home.config(), config(&standin, &home, "", "", "", "")).unwrap();
    let daemon = Daemon::spawn(behind(line, &home.command(&["serve"])));
    World { daemon, standin, home }
}

#[test]
fn whatever_the_umask_nobody_else_can_read_a_login_at_any_instant() {
    for umask in ["000", "077", "022"] {
        let world = world_behind(&format!("umask {umask}; exec"));
        let is_over = AtomicBool::new(false);

        let (looks, open) = std::thread::scope(|scope| {
            let watching = scope.spawn(|| watch(&world.home.state(), &is_over));
            world.log_in(Person::Alice);
            for _ in 0..10 {
                assert_eq!(refresh(&world.daemon).status, 200);
            }
            is_over.store(true, Ordering::Relaxed);
            watching.join().unwrap()
        });

        assert!(looks > 100, "only {looks} looks");
        assert_eq!(open, BTreeSet::new(), "umask {umask}");
        assert_eq!(mode(&world.home.state()), 0o700, "umask {umask}");
        for name in ["store", "store.previous", "lock"] {
            assert_eq!(mode(&world.home.state().join(name)), 0o600, "umask {umask}: {name}");
        }
        assert_eq!(mode(&world.home.state().join("control.sock")), 0o600, "umask {umask}");
    }
}

/// Looks again and again which files others could read, until it is over. Also says how often it looked.
fn watch(state: &Path, is_over: &AtomicBool) -> (usize, BTreeSet<String>) {
    let (mut looks, mut open) = (0, BTreeSet::new());
    while !is_over.load(Ordering::Relaxed) {
        looks += 1;
        let entries = fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
        for path in entries.chain([state.to_owned()]) {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.mode() & 0o077 != 0 {
                open.insert(format!("{} {:o}", path.display(), metadata.mode()));
            }
        }
    }
    (looks, open)
}

#[test]
fn a_store_that_others_could_reach_is_closed_and_that_is_said() {
    let mut world = World::logged_in();
    let state = world.home.state();
    refresh(&world.daemon);
    world.daemon.stop();
    set_mode(&state, 0o777);
    for name in ["store", "store.previous"] {
        set_mode(&state.join(name), 0o644);
    }

    world.daemon = world.home.serve();

    assert_eq!((mode(&state), mode(&state.join("store"))), (0o700, 0o600));
    assert_eq!(mode(&state.join("store.previous")), 0o600);
    for name in ["state could be reached by others", "store could be reached by others (mode 0644)"] {
        world.daemon.says(name);
    }
    assert_eq!(world.daemon.get("/api/users").status, 200);
}

#[test]
fn a_login_outlives_restarts_without_a_person() {
    let mut world = World::logged_in();
    for _ in 0..3 {
        world.restart();
        assert_eq!(world.daemon.get("/api/users").status, 200, "{}", world.daemon.output());
        assert!(!world.daemon.output().contains("login required"), "{}", world.daemon.output());
        assert_eq!(main_account(&world.daemon)["person"], Person::Alice.display_name());
    }
    assert_eq!(world.standin.token_requests().len(), 1, "the stored access token serves on");
    assert_eq!(refresh(&world.daemon).status, 200);
}

#[test]
fn a_process_killed_before_the_server_saw_its_refresh_loses_nothing() {
    let mut world = World::logged_in();
    let gate = Gate::default();
    world.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));
    let asked = Sent::refresh(&world.daemon);
    held(&gate);
    assert!(next(&world.home).exists(), "room is taken before the refresh token is spent");

    world.start_again();
    drop(asked);

    eventually("the same refresh was tried again", || (world.standin.refreshes().len() == 2).then_some(()));
    eventually("it is ready", || (world.daemon.state() == "ready").then_some(()));
    assert_eq!(events(&world.daemon), Vec::<String>::new());
    assert!(!next(&world.home).exists());
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn a_process_killed_before_it_read_the_answer_says_that_the_login_is_lost() {
    let mut world = killed_with_the_answer_on_its_way(Rotation::OneTime);

    eventually("it is told", || (events(&world.daemon).len() == 2).then_some(()));
    assert_eq!(events(&world.daemon), ["rotation-in-doubt", "login-required"]);
    assert_eq!(world.home.run(&["status"], "").status.code(), Some(3));
    assert_eq!(world.daemon.get("/api/users").status, 200, "the last access token still serves");
    assert_eq!(world.standin.refreshes().len(), 2);

    world.restart();
    assert_eq!(world.daemon.state(), "login-required");
    world.log_in(Person::Alice);
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.standin.refreshes().len(), 3, "what was refused was presented once");
}

#[test]
fn a_process_killed_before_it_read_the_answer_recovers_where_the_server_grants_some_grace() {
    let mut world = killed_with_the_answer_on_its_way(Rotation::Grace(Duration::from_secs(60)));

    eventually("it is ready", || {
        let account = main_account(&world.daemon);
        (account["state"] == "ready" && account["last_refresh"]["outcome"] == "ok").then_some(())
    });
    assert_eq!(events(&world.daemon), Vec::<String>::new());
    assert!(!next(&world.home).exists());
    world.restart();
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

/// A daemon that was started again after its refresh was granted and the answer never read.
fn killed_with_the_answer_on_its_way(rotation: Rotation) -> World {
    let mut world =
        Setup { options: Options { rotation, ..Options::default() }, ..Setup::default() }.logged_in();
    let gate = Gate::default();
    world.standin.fault(Endpoint::Token, Fault::HoldAfter(gate.clone()));
    let asked = Sent::refresh(&world.daemon);
    held(&gate);
    world.start_again();
    drop(asked);
    world
}

#[test]
fn a_process_killed_after_the_new_record_was_durable_uses_it() {
    for has_current in [true, false] {
        let mut world = World::logged_in();
        for _ in 0..3 {
            assert_eq!(refresh(&world.daemon).status, 200);
        }
        let before = fs::read(previous(&world.home)).unwrap();
        world.daemon.kill();
        let newest = stored_token(&world.home);
        // As a process leaves it that is killed between the sync of the new record and its renaming.
        fs::rename(current(&world.home), next(&world.home)).unwrap();
        if has_current {
            fs::write(current(&world.home), before).unwrap();
        }

        assert_eq!(stored_token(&world.home), newest, "with a current record: {has_current}");
        world.daemon = world.home.serve();
        assert_eq!(refresh(&world.daemon).status, 200, "{}", world.daemon.output());
        assert_eq!(world.standin.superseded_presentations(), 0);
        assert!(!next(&world.home).exists());
    }
}

#[test]
fn a_durable_record_is_used_although_the_one_before_it_is_damaged() {
    let mut world = World::logged_in();
    for _ in 0..3 {
        assert_eq!(refresh(&world.daemon).status, 200);
    }
    world.daemon.kill();
    let newest = stored_token(&world.home);
    fs::rename(current(&world.home), next(&world.home)).unwrap();
    fs::write(current(&world.home), b"damaged").unwrap();
    fs::write(previous(&world.home), b"damaged").unwrap();

    assert_eq!(stored_token(&world.home), newest);
    world.daemon = world.home.serve();
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn a_durable_record_is_used_although_the_clock_was_set_back() {
    let mut world = World::logged_in();
    assert_eq!(refresh(&world.daemon).status, 200);
    let before = fs::read(previous(&world.home)).unwrap();
    world.daemon.kill();
    let newest = stored_token(&world.home);
    let bytes = fs::read(current(&world.home)).unwrap();
    let start = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let mut json: Value = serde_json::from_slice(&bytes[start..]).unwrap();
    let obtained_at_ms = json["accounts"]["main"]["obtained_at_ms"].as_i64().unwrap();
    json["accounts"]["main"]["obtained_at_ms"] = (obtained_at_ms - 3_600_000).into();
    fs::write(next(&world.home), sealed(1, json.to_string().as_bytes())).unwrap();
    fs::write(current(&world.home), before).unwrap();

    assert_eq!(stored_token(&world.home), newest);
    world.daemon = world.home.serve();
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn what_killed_processes_left_is_cleaned_up_and_never_read_as_the_store() {
    let mut world = World::logged_in();
    world.daemon.stop();
    let old = fs::read(current(&world.home)).unwrap();
    world.daemon = world.home.serve();
    assert_eq!(refresh(&world.daemon).status, 200);
    world.daemon.stop();
    let token = stored_token(&world.home);
    let state = world.home.state();
    for number in 0..1000 {
        let path = state.join(format!("store.next.gone-{number}"));
        fs::write(path, if number % 2 == 0 { &old[..] } else { b"" }).unwrap();
    }
    fs::write(next(&world.home), &old).unwrap();

    assert_eq!(stored_token(&world.home), token);
    world.daemon = world.home.serve();

    let expected = ["control.sock", "lock", "store", "store.previous"].map(str::to_owned);
    assert_eq!(files(&world.home), expected.into());
    assert_eq!(world.daemon.get("/api/users").status, 200);
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn a_second_daemon_on_the_same_state_ends_at_once_and_names_the_first() {
    let world = World::logged_in();

    let started = Instant::now();
    let output = failing_start(&world.home);
    let took = started.elapsed();

    let errors = errors_of(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(took < Duration::from_secs(1), "it took {took:?}");
    assert!(errors.contains(&format!("process {}", world.daemon.pid())), "{errors}");
    assert!(errors.contains(&world.daemon.authority), "{errors}");
    assert_eq!(world.daemon.get("/api/users").status, 200, "the first goes on");
    assert_eq!(world.home.run(&["status"], "").status.code(), Some(0), "and is still found");
}

#[test]
fn the_store_of_an_older_version_is_used_and_that_of_a_newer_one_is_refused_and_left_alone() {
    let released: &[u8] = include_bytes!("../../src/testing/store-1");
    let mut world = World::start();
    assert_eq!(world.daemon.stop().code(), Some(0));
    let store = world.home.state().join("store");

    fs::write(&store, released).unwrap();
    let told = world.home.run(&["token"], "");
    assert_eq!(String::from_utf8_lossy(&told.stdout), "access-token-of-main\n", "{told:?}");

    let json = br#"{"generation":42,"accounts":{}}"#;
    let hashed = [&7_u32.to_be_bytes()[..], json].concat();
    let sum: String = ring::digest::digest(&ring::digest::SHA256, &hashed)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let newer = [format!("cnblogs-proxy store 7 sha256:{sum}\n").as_bytes(), json].concat();
    fs::write(&store, &newer).unwrap();
    for arguments in [["serve"], ["token"], ["login"]] {
        let told = world.home.run(&arguments, "");
        let said = String::from_utf8_lossy(&told.stderr);
        assert_eq!(told.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(
            said.contains("was written by a newer version of this program (format 7)"),
            "{arguments:?}: {said}"
        );
        assert!(said.contains("\nhint: use the newer program again"), "{arguments:?}: {said}");
        assert_eq!(fs::read(&store).unwrap(), newer, "{arguments:?}");
    }
}

#[test]
fn a_killed_daemon_leaves_no_lock() {
    let mut world = World::logged_in();
    world.daemon.kill();
    assert!(files(&world.home).contains("lock"));

    let started = Instant::now();
    world.daemon = world.home.serve();

    assert!(started.elapsed() < Duration::from_secs(5), "it took {:?}", started.elapsed());
    assert_eq!(world.daemon.get("/api/users").status, 200);
    assert_eq!(world.home.run(&["status"], "").status.code(), Some(0), "the old socket is not in the way");
}

#[test]
fn a_second_daemon_is_refused_although_the_lock_file_was_deleted() {
    let world = World::logged_in();
    fs::remove_file(world.home.state().join("lock")).unwrap();

    let output = failing_start(&world.home);

    assert_eq!(output.status.code(), Some(1), "{}", errors_of(&output));
    assert!(errors_of(&output).contains("in use by another cnblogs-proxy"), "{}", errors_of(&output));
    assert_eq!(refresh(&world.daemon).status, 200);
}

#[test]
fn commands_without_a_daemon_hold_the_same_lock() {
    let mut world = World::logged_in();
    world.daemon.stop();
    let first = stored_token(&world.home);

    assert_eq!(world.home.run(&["refresh"], "").status.code(), Some(0));

    assert!(stored_token(&world.home) != first);
    world.daemon = world.home.serve();
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!((world.standin.refreshes().len(), world.standin.superseded_presentations()), (2, 0));
}

#[test]
fn a_state_directory_may_have_any_name() {
    let long = "x".repeat(200);
    for name in ["with spaces and 'quotes'", "园子", &long, "a/b/c/d"] {
        let standin = Standin::start(Options::default());
        let home = Home::new(Vec::new());
        let state = home.path().join(name);
        let text = config(&standin, &home, "", "", "", "");
        let own = format!("state_dir = \"{}\"", home.state().display());
        let text = text.replace(&own, &format!("state_dir = \"{}\"", state.display()));
        fs::write(home.config(), text).unwrap();
        let daemon = home.serve();
        let mut world = World { daemon, standin, home };
        world.log_in(Person::Alice);

        assert_eq!(world.home.run(&["status"], "").status.code(), Some(0), "{name}");
        world.restart();

        assert_eq!(world.daemon.get("/api/users").status, 200, "{name}");
        assert_eq!((mode(&state), mode(&state.join("store"))), (0o700, 0o600), "{name}");
    }
}
