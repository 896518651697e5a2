//! What happens to the store under a running daemon: no room, no permission, strangers.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::standin::{Endpoint, Fault, Gate, Options, Person, Standin};
use crate::store::{current, files, next, previous};
use crate::support::{Home, World, config, eventually};
use crate::tokens::{Sent, events, held, main_account, refresh};

/// A small file system of its own, unmounted when dropped.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=128k,mode=700", "tmpfs", &at.display().to_string()]);
        Self { at: at.to_owned() }
    }

    /// Leaves no room at all.
    fn fill(&self) {
        let mut filler = File::create(self.at.join("filler")).unwrap();
        while filler.write_all(&[0; 1024]).is_ok() {}
    }

    fn empty(&self) {
        fs::remove_file(self.at.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the daemon may still hold the lock.
        let _unmounted = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// A directory in which nothing can be made or removed, not even by root, until this is dropped.
struct Immutable {
    at: PathBuf,
}

impl Immutable {
    #[track_caller]
    fn make(at: &Path) -> Self {
        run("chattr", &["+i", &at.display().to_string()]);
        Self { at: at.to_owned() }
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let _undone = Command::new("chattr").arg("-i").arg(&self.at).status();
    }
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Alice is logged in, and the state is on a small disk. The disk is to be dropped after the world.
fn on_a_small_disk() -> (World, SmallDisk) {
    let standin = Standin::start(Options::default());
    let home = Home::new(Vec::new());
    let disk = SmallDisk::mount(&home.state());
    fs::write(home.config(), config(&standin, &home, "", "", "", "")).unwrap();
    let daemon = home.serve();
    let world = World { daemon, standin, home };
    world.log_in(Person::Alice);
    (world, disk)
}

/// The events behind those of the first login.
#[track_caller]
fn told_since_login(world: &World) -> Vec<String> {
    let mut told = events(&world.daemon);
    assert_eq!(told.drain(..2).collect::<Vec<_>>(), ["login-required", "recovered"]);
    told
}

/// While nothing can be saved, nothing is spent, and requests go on; afterwards everything is well by itself.
#[track_caller]
fn assert_spends_nothing_until(world: &mut World, mend: impl FnOnce()) {
    let stored = fs::read(current(&world.home)).unwrap();
    for _ in 0..3 {
        assert_eq!(refresh(&world.daemon).problem(), "token-unavailable");
        assert_eq!(world.daemon.get("/api/users").status, 200);
    }
    assert_eq!(world.standin.refreshes().len(), 0, "the refresh token is not spent");
    assert_eq!(told_since_login(world), ["store-failing"]);
    assert_eq!(world.daemon.state(), "degraded");
    assert_eq!(world.daemon.get("/-/readyz").status, 200);
    assert_eq!(fs::read(current(&world.home)).unwrap(), stored);
    assert!(
        !files(&world.home).iter().any(|name| name.starts_with("store.next")),
        "{:?}",
        files(&world.home)
    );

    mend();
    eventually("it recovers by itself", || (refresh(&world.daemon).status == 200).then_some(()));
    assert_eq!(told_since_login(world), ["store-failing", "recovered"]);
    assert_eq!(world.daemon.state(), "ready");
    world.restart();
    assert_eq!(refresh(&world.daemon).status, 200, "{}", world.daemon.output());
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn on_a_full_disk_nothing_is_spent() {
    let (mut world, disk) = on_a_small_disk();
    disk.fill();

    assert_spends_nothing_until(&mut world, || disk.empty());
    drop(world);
}

#[test]
fn in_a_directory_that_takes_no_files_nothing_is_spent() {
    let mut world = World::logged_in();
    let locked = Immutable::make(&world.home.state());

    assert_spends_nothing_until(&mut world, || drop(locked));
}

#[test]
fn a_refresh_that_is_due_waits_for_room_and_comes_by_itself() {
    let standin = Standin::start(Options::default());
    let home = Home::new(Vec::new());
    let disk = SmallDisk::mount(&home.state());
    fs::write(home.config(), config(&standin, &home, "", "", "", "")).unwrap();
    let daemon = home.serve();
    let world = World { daemon, standin, home };
    world.standin.fault(Endpoint::Token, Fault::alter(|answer| answer["expires_in"] = 3.into()));
    world.log_in(Person::Alice);
    disk.fill();

    eventually("it is told", || (told_since_login(&world) == ["store-failing"]).then_some(()));
    let refused = eventually("the token ends", || {
        let answer = world.daemon.get("/api/users");
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(refused.problem(), "token-unavailable");
    assert!(refused.field("retry-after").is_some(), "{refused:?}");
    assert_eq!(world.standin.refreshes().len(), 0);
    disk.empty();

    eventually("it recovers", || (world.daemon.get("/api/users").status == 200).then_some(()));
    assert_eq!(told_since_login(&world), ["store-failing", "recovered"]);
    assert_eq!(world.standin.refreshes().len(), 1);
    drop(world);
}

#[test]
fn a_login_is_not_begun_without_room_for_it() {
    let (world, disk) = on_a_small_disk();
    let callback = world.standin.authorize(&world.begin_login(), Person::Alice);
    let asked = world.standin.token_requests().len();
    disk.fill();

    for _ in 0..2 {
        let answer = world.paste(&callback);
        let says = |words| answer.text().contains(words);
        assert!(says("the login can't be saved") && says("can be pasted again"), "{answer:?}");
        assert_eq!(answer.status, 400);
    }

    assert_eq!(world.standin.token_requests().len(), asked, "the code is not spent");
    assert_eq!(world.daemon.get("/api/users").status, 200);
    disk.empty();
    assert_eq!(world.paste(&callback).status, 200, "the same address logs in");
    assert_eq!(world.paste(&callback).status, 400, "once");
    drop(world);
}

#[test]
fn a_disk_that_fills_up_during_a_refresh_still_has_the_room_that_was_taken() {
    let (mut world, disk) = on_a_small_disk();
    let gate = Gate::default();
    world.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));
    let asked = Sent::refresh(&world.daemon);
    held(&gate);
    let taken = fs::metadata(world.home.state().join("store.next.main")).unwrap().blocks() * 512;
    assert!(taken >= 16 * 1024, "only {taken} bytes are taken, and the server may send longer tokens");
    disk.fill();
    gate.open();

    assert_eq!(asked.answer().status, 200);
    assert_eq!(told_since_login(&world), Vec::<String>::new());
    world.start_again();
    disk.empty();
    assert_eq!(refresh(&world.daemon).status, 200, "{}", world.daemon.output());
    assert_eq!(world.standin.superseded_presentations(), 0);
    drop(world);
}

#[test]
fn a_login_that_was_durable_when_the_process_was_killed_is_used_although_the_disk_is_full() {
    let (mut world, disk) = on_a_small_disk();
    for _ in 0..2 {
        assert_eq!(refresh(&world.daemon).status, 200);
    }
    world.daemon.kill();
    // As a process leaves it that is killed between the sync of the new record and its renaming.
    let before = fs::read(previous(&world.home)).unwrap();
    let newest = fs::read(current(&world.home)).unwrap();
    fs::write(next(&world.home), [&newest[..], &[0; 4096]].concat()).unwrap();
    fs::write(current(&world.home), before).unwrap();
    disk.fill();

    world.daemon = world.home.serve();

    assert!(!next(&world.home).exists());
    assert!(fs::read(current(&world.home)).unwrap().starts_with(&newest), "{}", world.daemon.output());
    disk.empty();
    assert_eq!(refresh(&world.daemon).status, 200, "{}", world.daemon.output());
    assert_eq!(world.standin.superseded_presentations(), 0);
    drop(world);
}

/// Asks for a refresh whose outcome can't be put in place: when it comes, a directory stands where the store was.
#[track_caller]
fn refreshed_without_a_place(world: &World) -> Sent {
    let gate = Gate::default();
    world.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));
    let asked = Sent::refresh(&world.daemon);
    held(&gate);
    fs::remove_file(current(&world.home)).unwrap();
    fs::create_dir(current(&world.home)).unwrap();
    gate.open();
    asked
}

#[test]
fn a_login_that_cannot_be_put_in_place_is_used_and_saved_later() {
    let mut world = World::logged_in();
    let asked = refreshed_without_a_place(&world);

    assert_eq!(asked.answer().status, 200);
    assert_eq!(told_since_login(&world), ["store-failing"]);
    assert_eq!(world.daemon.get("/api/users").status, 200);
    fs::remove_dir(current(&world.home)).unwrap();
    eventually("it is saved", || (told_since_login(&world) == ["store-failing", "recovered"]).then_some(()));

    world.restart();
    assert_eq!(refresh(&world.daemon).status, 200, "{}", world.daemon.output());
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn a_refusal_that_cannot_be_put_in_place_does_not_stand_in_the_way_of_a_login() {
    let mut world = World::logged_in();
    world.standin.forget_refresh_tokens();
    let asked = refreshed_without_a_place(&world);

    assert_eq!(asked.answer().problem(), "login-required");
    fs::remove_dir(current(&world.home)).unwrap();
    world.log_in(Person::Alice);

    assert_eq!(refresh(&world.daemon).status, 200);
    world.restart();
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn a_login_that_waits_to_be_saved_outlives_a_refresh_that_fails_meanwhile() {
    let mut world = World::logged_in();
    let asked = refreshed_without_a_place(&world);
    assert_eq!(asked.answer().status, 200);

    world.standin.fault(Endpoint::Token, Fault::status(503));
    assert_eq!(refresh(&world.daemon).problem(), "token-unavailable");

    world.standin.clear_faults();
    fs::remove_dir(current(&world.home)).unwrap();
    assert_eq!(refresh(&world.daemon).status, 200);
    world.restart();
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn a_store_that_was_deleted_is_noticed_and_written_again() {
    let mut world = World::logged_in();
    fs::remove_file(current(&world.home)).unwrap();

    assert_eq!(world.daemon.get("/api/users").status, 200);
    assert_eq!(refresh(&world.daemon).status, 200);

    world.daemon.says("store was deleted");
    world.restart();
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!((world.standin.refreshes().len(), world.standin.superseded_presentations()), (2, 0));
}

#[test]
fn an_older_store_in_place_of_ours_is_noticed_and_not_used() {
    let mut world = World::logged_in();
    let backup = fs::read(current(&world.home)).unwrap();
    for _ in 0..2 {
        assert_eq!(refresh(&world.daemon).status, 200);
    }
    fs::write(current(&world.home), backup).unwrap();

    assert_eq!(refresh(&world.daemon).status, 200);

    world.daemon.says("an older store");
    world.restart();
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!((world.standin.refreshes().len(), world.standin.superseded_presentations()), (4, 0));
}

#[test]
fn a_store_that_was_edited_is_noticed_and_written_again() {
    let edits: [fn(&mut Vec<u8>); 3] = [
        |bytes| bytes.push(b'\n'),
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| *bytes = b"hello".to_vec(),
    ];
    for edit in edits {
        let mut world = World::logged_in();
        let mut bytes = fs::read(current(&world.home)).unwrap();
        edit(&mut bytes);
        fs::write(current(&world.home), bytes).unwrap();

        assert_eq!(refresh(&world.daemon).status, 200);

        world.daemon.says("damaged while running");
        world.restart();
        assert_eq!(refresh(&world.daemon).status, 200);
        assert_eq!((world.standin.refreshes().len(), world.standin.superseded_presentations()), (2, 0));
    }
}

#[test]
fn a_newer_login_that_somebody_put_there_is_taken_over_before_ours_is_spent() {
    let mut world = World::logged_in();
    // Another process, on a file system without locks, has refreshed since.
    let elsewhere = Home::new(Vec::new());
    fs::write(elsewhere.config(), config(&world.standin, &elsewhere, "", "", "", "")).unwrap();
    fs::create_dir(elsewhere.state()).unwrap();
    fs::copy(current(&world.home), current(&elsewhere)).unwrap();
    assert_eq!(elsewhere.run(&["refresh"], "").status.code(), Some(0));
    fs::copy(current(&elsewhere), current(&world.home)).unwrap();

    for _ in 0..2 {
        assert_eq!(refresh(&world.daemon).status, 200);
    }

    world.daemon.says("changed by another process");
    assert_eq!(world.standin.superseded_presentations(), 0);
    world.restart();
    assert_eq!(world.daemon.get("/api/users").status, 200);
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn another_process_that_works_on_the_same_login_is_noticed_before_anything_is_spent() {
    let world = World::logged_in();
    let theirs = world.home.state().join("store.next.main");
    fs::write(&theirs, b"").unwrap();

    assert_eq!(refresh(&world.daemon).problem(), "token-unavailable");

    assert_eq!(world.standin.refreshes().len(), 0);
    assert_eq!(told_since_login(&world), ["store-failing"]);
    assert!(theirs.exists(), "what is theirs is left alone");
    fs::remove_file(&theirs).unwrap();
    assert_eq!(refresh(&world.daemon).status, 200);
}

#[test]
fn a_state_directory_that_was_removed_is_told_and_does_not_stop_requests() {
    let world = World::logged_in();
    fs::remove_dir_all(world.home.state()).unwrap();

    assert_eq!(refresh(&world.daemon).problem(), "token-unavailable");
    assert_eq!(world.daemon.get("/api/users").status, 200);

    assert_eq!(told_since_login(&world), ["store-failing"]);
    assert_eq!(world.standin.refreshes().len(), 0);
    assert_eq!(main_account(&world.daemon)["state"], "degraded");
}

#[test]
fn a_logout_leaves_no_generation_behind() {
    let world = World::logged_in();
    assert_eq!(refresh(&world.daemon).status, 200);
    assert!(previous(&world.home).exists());

    assert_eq!(world.daemon.post_form("/-/logout/main", &[]).status, 200);

    let secrets = world.standin.issued_secrets();
    for name in files(&world.home) {
        let text = fs::read(world.home.state().join(&name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!secrets.iter().any(|secret| text.contains(secret)), "{name}");
    }
}
