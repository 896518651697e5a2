//! The file system refuses, or takes its time, under a running daemon: faults put into its system calls, and
//! what a person is told.

use std::fs;
use std::time::{Duration, Instant};

use super::reserved;
use super::strace::Strace;
use crate::standin::{Endpoint, Fault, Options, Person, Standin};
use crate::store::{current, files};
use crate::support::{Daemon, Home, World, behind, config, eventually};
use crate::tokens::{Sent, events, main_account, refresh};

/// A call on a file that fails, and how.
struct Refusal {
    /// In the state directory; empty for the directory itself.
    file: &'static str,
    call: &'static str,
    error: &'static str,
    /// What a person reads.
    text: &'static str,
}

const fn refusal(file: &'static str, call: &'static str, error: &'static str, text: &'static str) -> Refusal {
    Refusal { file, call, error, text }
}

const NEXT: &str = "store.next.main";
const NO_SPACE: &str = "No space left on device";
const NO_QUOTA: &str = "Disk quota exceeded";
const INPUT_OUTPUT: &str = "Input/output error";
const DENIED: &str = "Permission denied";
const TOO_MANY: &str = "Too many open files";

/// What is done before a refresh token is spent.
const OF_A_RESERVATION: [Refusal; 11] = [
    refusal("store", "openat", "EACCES", DENIED),
    refusal("store", "openat", "EMFILE", TOO_MANY),
    refusal("store", "read", "EIO", INPUT_OUTPUT),
    refusal(NEXT, "openat", "EACCES", DENIED),
    refusal(NEXT, "openat", "EMFILE", TOO_MANY),
    refusal(NEXT, "openat", "EROFS", "Read-only file system"),
    refusal(NEXT, "write", "ENOSPC", NO_SPACE),
    refusal(NEXT, "write", "EDQUOT", NO_QUOTA),
    refusal(NEXT, "write", "EIO", INPUT_OUTPUT),
    refusal(NEXT, "fsync", "EIO", INPUT_OUTPUT),
    refusal("", "fsync", "EIO", INPUT_OUTPUT),
];

/// What is done once its successor is there.
const OF_A_COMMIT: [Refusal; 11] = [
    refusal(NEXT, "pwrite64", "ENOSPC", NO_SPACE),
    refusal(NEXT, "pwrite64", "EDQUOT", NO_QUOTA),
    refusal(NEXT, "pwrite64", "EIO", INPUT_OUTPUT),
    refusal(NEXT, "ftruncate", "EIO", INPUT_OUTPUT),
    refusal(NEXT, "fdatasync", "EIO", INPUT_OUTPUT),
    refusal("store.previous", "unlink", "EACCES", DENIED),
    refusal(NEXT, "rename", "EXDEV", "Invalid cross-device link"),
    refusal(NEXT, "rename", "EACCES", DENIED),
    refusal(NEXT, "rename", "EIO", INPUT_OUTPUT),
    refusal(NEXT, "rename", "ENOSPC", NO_SPACE),
    refusal("", "fsync", "EIO", INPUT_OUTPUT),
];

impl Refusal {
    fn begin(&self, world: &World) -> Strace {
        let path = world.home.state().join(self.file).display().to_string();
        let path = path.trim_end_matches('/');
        let inject = format!("inject={}:error={}", self.call, self.error);
        Strace::attach(world.daemon.pid(), &["-f", "-P", path, "-e", &inject])
    }

    fn name(&self) -> String {
        format!("{} of {:?} with {}", self.call, self.file, self.error)
    }
}

/// The last event, and the message of it.
fn last_told(world: &World) -> (String, String) {
    let events = main_account(&world.daemon)["events"].take();
    let last = events.as_array().unwrap().last().unwrap();
    (last["event"].as_str().unwrap().to_owned(), last["message"].as_str().unwrap().to_owned())
}

#[track_caller]
fn assert_told(world: &World, event: &str, text: &str, what: &str) {
    let (told, message) = last_told(world);
    assert!(told == event && message.contains(text), "{what}: {told}: {message}");
}

/// What the API gets with a request, which is answered.
#[track_caller]
fn token_in_use(world: &World) -> String {
    let answer = world.daemon.get("/api/users");
    assert_eq!(answer.status, 200, "{answer:?}\n{}", world.daemon.output());
    world.standin.api_requests().last().unwrap().fields_named("authorization").pop().unwrap()
}

fn reservations(world: &World) -> Vec<String> {
    files(&world.home).into_iter().filter(|name| name.starts_with("store.next")).collect()
}

/// Asks for health and status for `span`: no answer waits for a call that a disk holds up for `delay`.
#[track_caller]
fn assert_answers_while_held_up(world: &World, span: Duration, delay: Duration) {
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    while began.elapsed() < span {
        let asked_at = Instant::now();
        assert_eq!(world.daemon.get("/-/healthz").status, 200);
        assert_eq!(world.home.run(&["status"], "").status.code(), Some(0), "the control runtime answers");
        slowest = slowest.max(asked_at.elapsed());
    }
    assert!(slowest < delay / 2, "one ask took {slowest:?}");
}

/// Lets a refresh go on under a refusal to save what it brings.
#[track_caller]
fn unsaved(world: &World, refusal: &Refusal) -> Strace {
    let (asked, gate) = reserved(world);
    let fault = refusal.begin(world);
    gate.open();
    assert_eq!(asked.answer().status, 200, "{}", refusal.name());
    fault
}

#[test]
fn when_room_is_refused_nothing_is_spent_and_a_person_is_told_why() {
    let mut world = World::logged_in();
    assert_eq!(refresh(&world.daemon).status, 200);
    for refusal in &OF_A_RESERVATION {
        let what = refusal.name();
        let (stored, in_use) = (fs::read(current(&world.home)).unwrap(), token_in_use(&world));
        let spent = world.standin.refreshes().len();
        let fault = refusal.begin(&world);

        assert_eq!(refresh(&world.daemon).problem(), "token-unavailable", "{what}");

        assert_eq!(token_in_use(&world), in_use, "{what}");
        assert_told(&world, "store-failing", refusal.text, &what);
        assert_eq!(world.daemon.state(), "degraded", "{what}");
        assert_eq!(world.standin.refreshes().len(), spent, "{what}");
        assert_eq!(reservations(&world), Vec::<String>::new(), "{what}");
        assert!(fault.detach().contains("INJECTED"), "{what}");
        assert_eq!(fs::read(current(&world.home)).unwrap(), stored, "{what}");
        assert_eq!(refresh(&world.daemon).status, 200, "{what}");
        assert_told(&world, "recovered", "can be saved again", &what);
        assert_eq!(world.daemon.state(), "ready", "{what}");
    }
    world.restart();
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn when_saving_is_refused_the_new_login_is_used_and_saved_once_it_can_be() {
    let mut world = World::logged_in();
    assert_eq!(refresh(&world.daemon).status, 200);
    for refusal in &OF_A_COMMIT {
        let what = refusal.name();
        let before = token_in_use(&world);

        let fault = unsaved(&world, refusal);

        let spent = world.standin.refreshes().len();
        let in_use = token_in_use(&world);
        assert!(in_use != before, "{what}: the new access token is used");
        assert_told(&world, "store-failing", refusal.text, &what);
        assert_eq!(world.daemon.state(), "degraded", "{what}");
        assert_eq!(refresh(&world.daemon).problem(), "token-unavailable", "{what}");
        assert_eq!(world.standin.refreshes().len(), spent, "{what}: nothing more is spent");
        assert!(fault.detach().contains("INJECTED"), "{what}");
        assert_eq!(refresh(&world.daemon).status, 200, "{what}: {}", last_told(&world).1);
        assert_told(&world, "recovered", "is saved again", &what);
        assert_eq!((world.daemon.state(), reservations(&world)), ("ready".to_owned(), Vec::new()), "{what}");
    }
    world.restart();
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn a_login_that_was_not_saved_to_the_last_is_found_by_the_next_start() {
    let written = ["fdatasync", "ftruncate", "unlink", "rename", "fsync"];
    let refusals = OF_A_COMMIT.iter().filter(|refusal| written.contains(&refusal.call));
    let mut played = 0;
    let mut world = World::logged_in();
    assert_eq!(refresh(&world.daemon).status, 200);
    for refusal in refusals.filter(|refusal| refusal.error == "EIO" || refusal.error == "EACCES") {
        let what = refusal.name();
        let fault = unsaved(&world, refusal);
        let in_use = token_in_use(&world);

        world.daemon.stop();

        assert!(fault.detach().contains("INJECTED"), "{what}");
        world.daemon = world.home.serve();
        assert_eq!(token_in_use(&world), in_use, "{what}: {}", world.daemon.output());
        assert_eq!(refresh(&world.daemon).status, 200, "{what}");
        assert_eq!(reservations(&world), Vec::<String>::new(), "{what}");
        assert_eq!(world.standin.superseded_presentations(), 0, "{what}");
        played += 1;
    }
    assert_eq!(played, 6);
}

#[test]
fn a_login_that_can_have_no_generation_before_is_saved_all_the_same() {
    let mut world = World::logged_in();
    let fault = refusal("store.previous", "linkat", "EPERM", "").begin(&world);

    assert_eq!(refresh(&world.daemon).status, 200);

    assert!(fault.detach().contains("INJECTED"));
    assert_eq!(events(&world.daemon), ["login-required", "recovered"]);
    world.restart();
    assert_eq!(refresh(&world.daemon).status, 200);
}

#[test]
fn an_erasure_that_fails_is_told_and_does_not_stand_in_the_way_of_a_login() {
    for refusal in OF_A_COMMIT.iter().filter(|refusal| ["EIO", "ENOSPC"].contains(&refusal.error)) {
        let what = refusal.name();
        let world = World::logged_in();
        let fault = Strace::attach(
            world.daemon.pid(),
            // The room for it is taken in the same breath.
            &["-f", "-e", &format!("inject={}:error={}:when={}", refusal.call, refusal.error, nth(refusal))],
        );

        let answer = world.daemon.post_form("/-/logout/main", &[]);

        assert!(fault.detach().contains("INJECTED"), "{what}");
        assert!(answer.status >= 400 && answer.text().contains(refusal.text), "{what}: {answer:?}");
        assert_eq!(world.daemon.get("/api/users").problem(), "login-required", "{what}");
        world.log_in(Person::Alice);
        assert_eq!(refresh(&world.daemon).status, 200, "{what}");
        assert_eq!(world.standin.superseded_presentations(), 0, "{what}");
    }
}

/// Which call of that name an erasure makes after its room was taken.
fn nth(refusal: &Refusal) -> usize {
    if refusal.call == "fsync" { 3 } else { 1 }
}

#[test]
fn a_disk_that_takes_five_seconds_holds_up_no_request_and_no_token_gets_ahead_of_it() {
    const SYNC: Duration = Duration::from_secs(5);
    let world = World::logged_in();
    let (before, stored) = (token_in_use(&world), fs::read(current(&world.home)).unwrap());
    let (asked, gate) = reserved(&world);
    let next = world.home.state().join(NEXT).display().to_string();
    let inject = format!("inject=fdatasync:delay_exit={}", SYNC.as_micros());
    let fault = Strace::attach(world.daemon.pid(), &["-f", "-P", &next, "-e", &inject]);
    gate.open();

    let started = Instant::now();
    let (mut served, mut slowest) = (0, Duration::ZERO);
    let saved_after = loop {
        let asked_at = Instant::now();
        let in_use = token_in_use(&world);
        slowest = slowest.max(asked_at.elapsed());
        if in_use != before {
            break started.elapsed();
        }
        served += 1;
    };

    assert!(fs::read(current(&world.home)).unwrap() != stored, "what is used is durable");
    assert!(saved_after >= SYNC.mul_f64(0.9), "the new access token was used after {saved_after:?}");
    assert!(served > 50 && slowest < SYNC / 2, "{served} requests, the slowest took {slowest:?}");
    assert_eq!(asked.answer().status, 200);
    drop(fault);
    assert_eq!((world.daemon.state(), events(&world.daemon).len()), ("ready".to_owned(), 2));
}

#[test]
fn nobody_waits_for_the_disk_but_the_account_that_writes() {
    const ROOM: Duration = Duration::from_secs(2);
    const RECORD: Duration = Duration::from_secs(8);
    let world = with_an_application();
    let (asked, gate) = reserved(&world);
    let delays = [("fsync", ROOM), ("fdatasync", RECORD)]
        .map(|(call, delay)| format!("inject={call}:delay_enter={}", delay.as_micros()));
    let fault = Strace::attach(world.daemon.pid(), &["-f", "-e", &delays[0], "-e", &delays[1]]);

    // One account takes its room, for two syncs, while the other begins to write: it looks at its record meanwhile.
    let other = Sent::refresh_of(&world.daemon, "other");
    let room = world.home.state().join("store.next.other");
    eventually("the other takes its room", || room.exists().then_some(()));
    gate.open();
    assert_answers_while_held_up(&world, RECORD.mul_f64(0.9), RECORD);
    assert_eq!((asked.answer().status, other.answer().status), (200, 200));
    assert!(fault.detach().contains("DELAYED"));
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn nobody_waits_for_room_that_is_given_back() {
    const REMOVAL: Duration = Duration::from_secs(8);
    let world = World::logged_in();
    world.standin.fault(Endpoint::Token, Fault::status(503));
    let inject = format!("inject=unlink:delay_enter={}", REMOVAL.as_micros());
    let next = world.home.state().join(NEXT).display().to_string();
    let fault = Strace::attach(world.daemon.pid(), &["-f", "-P", &next, "-e", &inject]);

    let asked = Sent::refresh(&world.daemon);
    eventually("it is refused", || (world.standin.refreshes().len() == 1).then_some(()));
    assert_answers_while_held_up(&world, REMOVAL.mul_f64(0.8), REMOVAL);
    assert_eq!(asked.answer().problem(), "token-unavailable");
    assert!(fault.detach().contains("DELAYED"));
}

/// Alice is logged in as `main`, and `other` has an application's token.
fn with_an_application() -> World {
    let standin = Standin::start(Options::default());
    let home = Home::new(Vec::new());
    let other = format!(
        "[account.other]\ngrant = \"client_credentials\"\nclient_id = \"{}\"\nclient_secret_file = \"{}\"\n\
         token_url = \"{}/connect/token\"\n",
        standin.options().client_id,
        home.path().join("client_secret").display(),
        standin.auth_url(),
    );
    fs::write(home.config(), config(&standin, &home, "", "", "account = \"main\"", &other)).unwrap();
    let daemon = home.serve();
    let world = World { daemon, standin, home };
    world.log_in(Person::Alice);
    eventually("the application has its token", || {
        (world.daemon.status()["accounts"]["other"]["state"] == "ready").then_some(())
    });
    world
}

#[test]
fn a_file_system_that_cannot_sync_directories_holds_logins_and_that_is_said_once() {
    for error in ["EINVAL", "EOPNOTSUPP", "EBADF"] {
        let directory = Home::new(Vec::new());
        let state = directory.state().display().to_string();
        let line = format!("exec strace -D -f -o /dev/null -P '{state}' -e inject=fsync:error={error} --");
        let standin = Standin::start(Options::default());
        let text = config(&standin, &directory, "", "", "", "");
        fs::write(directory.config(), text).unwrap();
        fs::create_dir(directory.state()).unwrap();
        let daemon = Daemon::spawn(behind(&line, &directory.command(&["serve"])));
        let mut world = World { daemon, standin, home: directory };
        world.log_in(Person::Alice);
        for _ in 0..2 {
            assert_eq!(refresh(&world.daemon).status, 200, "{error}");
        }

        world.daemon.says("can't sync directories");
        let output = world.daemon.output();
        assert_eq!(output.matches("can't sync directories").count(), 1, "{error}: {output}");
        assert!(output.contains(&state) && output.contains("power cut"), "{error}: {output}");
        assert_eq!(events(&world.daemon), ["login-required", "recovered"], "{error}");
        world.restart();
        assert_eq!(refresh(&world.daemon).status, 200, "{error}");
        assert!(!world.daemon.output().contains("can't sync directories"), "{error}");
    }
}

#[test]
fn a_file_that_cannot_be_synced_is_an_error_whatever_the_reason() {
    let world = World::logged_in();
    for error in ["EINVAL", "EOPNOTSUPP"] {
        let refused = refusal(NEXT, "fsync", error, "store.next.main");
        let fault = refused.begin(&world);

        assert_eq!(refresh(&world.daemon).problem(), "token-unavailable", "{error}");

        assert_told(&world, "store-failing", refused.text, error);
        drop(fault);
        assert_eq!(refresh(&world.daemon).status, 200, "{error}");
    }
}
