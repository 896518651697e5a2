//! Something that is no file of the program's own stands in the place of one: it is named, and neither followed,
//! waited for nor changed.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::NOBODY;
use super::reserved;
use crate::store::{current, errors_of, failing_start, mode, next, previous, set_mode, stored_token};
use crate::support::{World, behind, eventually};
use crate::tokens::{main_account, refresh};

const PRECIOUS: &[u8] = b"not to be lost\n";
const FILES: [&str; 7] = [
    "store",
    "store.previous",
    "store.damaged",
    "store.previous.damaged",
    "store.taken",
    "store.next.main",
    "lock",
];

/// What stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stranger {
    Pipe,
    Link,
    LinkToNothing,
    Directory,
    Socket,
    Device,
    Foreign,
}

impl Stranger {
    const ALL: [Self; 7] = [
        Self::Pipe,
        Self::Link,
        Self::LinkToNothing,
        Self::Directory,
        Self::Socket,
        Self::Device,
        Self::Foreign,
    ];

    /// Puts one there. A link leads to what is precious.
    #[track_caller]
    fn put(self, path: &Path, precious: &Path) {
        match self {
            Self::Pipe => run("mkfifo", &[path]),
            Self::Link => symlink(precious, path).unwrap(),
            Self::LinkToNothing => symlink(precious.with_extension("missing"), path).unwrap(),
            Self::Directory => fs::create_dir(path).unwrap(),
            Self::Socket => drop(UnixListener::bind(path).unwrap()),
            Self::Device => run("mknod", &[path, Path::new("c"), Path::new("1"), Path::new("3")]),
            Self::Foreign => {
                fs::write(path, PRECIOUS).unwrap();
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
    }

    fn remove(self, path: &Path) {
        if self == Self::Directory { fs::remove_dir(path) } else { fs::remove_file(path) }.unwrap();
    }

    /// What a person reads.
    const fn text(self) -> &'static str {
        match self {
            Self::Pipe => "is a named pipe",
            Self::Link | Self::LinkToNothing => "is a symbolic link",
            Self::Directory => "is a directory",
            Self::Socket => "is a socket",
            Self::Device => "is a device",
            Self::Foreign => "belongs to user 65534",
        }
    }
}

#[track_caller]
fn run(program: &str, arguments: &[&Path]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

/// A file of ours outside of the state directory.
struct Precious(PathBuf);

impl Precious {
    fn beside(world: &World) -> Self {
        let path = world.home.path().join("precious");
        fs::write(&path, PRECIOUS).unwrap();
        set_mode(&path, 0o644);
        Self(path)
    }

    #[track_caller]
    fn assert_untouched(&self, what: &str) {
        assert_eq!((fs::read(&self.0).unwrap(), mode(&self.0)), (PRECIOUS.to_vec(), 0o644), "{what}");
        assert!(!self.0.with_extension("missing").exists(), "{what}");
    }
}

#[test]
fn a_start_names_what_stands_in_the_place_of_a_file_and_leaves_it_alone() {
    let mut world = World::logged_in();
    assert_eq!(refresh(&world.daemon).status, 200);
    world.daemon.stop();
    let precious = Precious::beside(&world);
    let aside = world.home.path().join("aside");
    for name in FILES {
        for stranger in Stranger::ALL {
            let (what, path) = (format!("{stranger:?} as {name}"), world.home.state().join(name));
            let was_there = fs::rename(&path, &aside).is_ok();
            stranger.put(&path, &precious.0);
            let before = fs::symlink_metadata(&path).unwrap();

            let output = failing_start(&world.home);

            let errors = errors_of(&output);
            assert_eq!(output.status.code(), Some(1), "{what}: {errors}");
            let said = format!("{} {}", path.display(), stranger.text());
            assert!(errors.contains(&said) && errors.contains("\nhint: "), "{what}: {errors}");
            let after = fs::symlink_metadata(&path).unwrap();
            assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()), "{what}");
            precious.assert_untouched(&what);
            stranger.remove(&path);
            if was_there {
                fs::rename(&aside, &path).unwrap();
            }
        }
    }
    world.daemon = world.home.serve();
    assert_eq!(refresh(&world.daemon).status, 200);
}

#[test]
fn a_running_daemon_names_what_was_put_in_the_place_of_a_file_and_spends_nothing() {
    let world = World::logged_in();
    assert_eq!(refresh(&world.daemon).status, 200);
    let precious = Precious::beside(&world);
    let aside = world.home.path().join("aside");
    for path in [current(&world.home), next(&world.home)] {
        for stranger in Stranger::ALL {
            // Whoever made a reservation that is a file works on the same login.
            if stranger == Stranger::Foreign && path == next(&world.home) {
                continue;
            }
            let (what, spent) = (format!("{stranger:?} as {path:?}"), world.standin.refreshes().len());
            let was_there = fs::rename(&path, &aside).is_ok();
            stranger.put(&path, &precious.0);

            assert_eq!(refresh(&world.daemon).problem(), "token-unavailable", "{what}");

            let events = main_account(&world.daemon)["events"].take();
            let message = events.as_array().unwrap().last().unwrap()["message"].as_str().unwrap().to_owned();
            assert!(message.contains(stranger.text()), "{what}: {message}");
            assert_eq!(world.standin.refreshes().len(), spent, "{what}");
            assert_eq!(world.daemon.get("/api/users").status, 200, "{what}");
            precious.assert_untouched(&what);
            stranger.remove(&path);
            if was_there {
                fs::rename(&aside, &path).unwrap();
            }
            assert_eq!(refresh(&world.daemon).status, 200, "{what}");
        }
    }
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn a_new_login_whose_room_was_taken_away_is_used_and_saved_once_there_is_a_place_for_it() {
    let mut world = World::logged_in();
    assert_eq!(refresh(&world.daemon).status, 200);
    let precious = Precious::beside(&world);
    for stranger in Stranger::ALL {
        let (asked, gate) = reserved(&world);
        fs::remove_file(next(&world.home)).unwrap();
        stranger.put(&next(&world.home), &precious.0);
        gate.open();

        assert_eq!(asked.answer().status, 200, "{stranger:?}");

        let events = main_account(&world.daemon)["events"].take();
        let message = events.as_array().unwrap().last().unwrap()["message"].as_str().unwrap().to_owned();
        assert!(message.contains(stranger.text()), "{stranger:?}: {message}");
        precious.assert_untouched(&format!("{stranger:?}"));
        stranger.remove(&next(&world.home));
        assert_eq!(refresh(&world.daemon).status, 200, "{stranger:?}: it was saved first");
    }
    world.restart();
    assert_eq!(refresh(&world.daemon).status, 200, "{}", world.daemon.output());
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn a_new_login_whose_room_was_removed_is_saved_all_the_same() {
    let mut world = World::logged_in();
    let (asked, gate) = reserved(&world);
    fs::remove_file(next(&world.home)).unwrap();
    gate.open();

    assert_eq!(asked.answer().status, 200);

    world.start_again();
    assert_eq!(refresh(&world.daemon).status, 200, "{}", world.daemon.output());
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn what_was_put_in_the_place_of_the_generation_before_is_replaced_and_not_followed() {
    let mut world = World::logged_in();
    assert_eq!(refresh(&world.daemon).status, 200);
    let precious = Precious::beside(&world);
    for stranger in [Stranger::Pipe, Stranger::Link, Stranger::LinkToNothing, Stranger::Socket] {
        fs::remove_file(previous(&world.home)).unwrap();
        stranger.put(&previous(&world.home), &precious.0);
        let stored = fs::read(current(&world.home)).unwrap();

        assert_eq!(refresh(&world.daemon).status, 200, "{stranger:?}");

        precious.assert_untouched(&format!("{stranger:?}"));
        assert!(fs::symlink_metadata(previous(&world.home)).unwrap().is_file(), "{stranger:?}");
        assert_eq!(fs::read(previous(&world.home)).unwrap(), stored, "{stranger:?}");
    }
    world.restart();
    assert_eq!(refresh(&world.daemon).status, 200);
}

#[test]
fn a_hard_link_to_something_else_is_neither_closed_to_others_nor_written_nor_shown() {
    let mut world = World::logged_in();
    world.daemon.stop();
    let precious = Precious::beside(&world);
    for name in ["lock", "store.damaged"] {
        let path = world.home.state().join(name);
        let _replaced = fs::remove_file(&path);
        fs::hard_link(&precious.0, &path).unwrap();

        let errors = errors_of(&failing_start(&world.home));

        assert!(errors.contains("is a hard link that others can read"), "{name}: {errors}");
        precious.assert_untouched(name);
        fs::remove_file(&path).unwrap();
    }

    // One that only we can read may be a backup's, and locks as well as any.
    set_mode(&precious.0, 0o600);
    let lock = world.home.state().join("lock");
    fs::remove_file(&lock).unwrap();
    fs::hard_link(&precious.0, &lock).unwrap();
    world.daemon = world.home.serve();
    eventually("it is told", || world.daemon.output().contains("does not say who we are").then_some(()));
    let errors = errors_of(&failing_start(&world.home));
    assert!(errors.contains("is in use by another cnblogs-proxy"), "{errors}");
    assert!(!errors.contains("not to be lost"), "{errors}");
    assert_eq!(fs::read(&precious.0).unwrap(), PRECIOUS);
}

#[test]
fn a_backup_of_hard_links_keeps_what_it_has() {
    let mut world = World::logged_in();
    assert_eq!(refresh(&world.daemon).status, 200);
    let backup = world.home.path().join("backup");
    run("cp", &[Path::new("-al"), &world.home.state(), &backup]);
    let kept = ["store", "store.previous"].map(|name| fs::read(backup.join(name)).unwrap());

    world.restart();
    assert_eq!(refresh(&world.daemon).status, 200, "{}", world.daemon.output());

    assert_eq!(["store", "store.previous"].map(|name| fs::read(backup.join(name)).unwrap()), kept);
}

#[test]
fn the_state_directory_may_be_reached_by_a_link_but_must_be_a_directory() {
    let mut world = World::logged_in();
    world.daemon.stop();
    let (state, real) = (world.home.state(), world.home.path().join("private"));
    fs::rename(&state, &real).unwrap();
    symlink(&real, &state).unwrap();
    set_mode(&real, 0o755);

    world.daemon = world.home.serve();
    assert_eq!(refresh(&world.daemon).status, 200, "{}", world.daemon.output());
    assert_eq!(mode(&real), 0o700);
    world.daemon.stop();

    let precious = Precious::beside(&world);
    for stranger in [Stranger::Pipe, Stranger::Link, Stranger::Socket, Stranger::Device] {
        fs::remove_file(&state).unwrap();
        stranger.put(&state, &precious.0);
        fs::set_permissions(
            if stranger == Stranger::Link { &precious.0 } else { &state },
            Permissions::from_mode(0o644),
        )
        .unwrap();

        let output = failing_start(&world.home);

        let errors = errors_of(&output);
        assert_eq!(output.status.code(), Some(1), "{stranger:?}: {errors}");
        assert!(errors.contains(&format!("{}", state.display())), "{stranger:?}: {errors}");
        assert_eq!(mode(&state), 0o644, "{stranger:?}");
    }
    precious.assert_untouched("the state directory");
}

#[test]
fn root_sees_to_the_directory_of_a_service_and_to_what_is_the_services_own_there() {
    let mut world = World::logged_in();
    let token = {
        world.daemon.stop();
        stored_token(&world.home)
    };
    let state = world.home.state();
    for path in [state.clone(), state.join("store"), state.join("lock")] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    assert_eq!(stored_token(&world.home), token);

    chown(state.join("store"), Some(NOBODY - 1), None).unwrap();
    let output = behind("exec timeout 20", &world.home.command(&["token"])).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors_of(&output).contains("belongs to user 65533"), "{}", errors_of(&output));
}
