//! Clocks that somebody sets, and weeks that pass: libfaketime beneath the real program. Suspends, which move the
//! boot-time clock as well, are part of the histories in simulated time (`src/session/histories.rs`).

use std::path::PathBuf;

use tempfile::TempDir;

use crate::standin::{Options, Presented};
use crate::support::{Setup, World};
use crate::tokens::rejected::with_personal_token;
use crate::tokens::{events, main_account};

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// The wall clock of a daemon; the boot-time clock goes on as it does.
pub(super) struct WallClock {
    directory: TempDir,
}

impl WallClock {
    pub(super) fn new() -> Self {
        assert!(std::path::Path::new(LIBRARY).exists(), "{LIBRARY} is missing: tests/run installs it");
        let clock = Self { directory: TempDir::new().unwrap() };
        clock.set(0);
        clock
    }

    /// Moves it so far from the real one.
    pub(super) fn set(&self, by_secs: i64) {
        let next = self.directory.path().join("next");
        std::fs::write(&next, format!("{by_secs:+}\n")).unwrap();
        std::fs::rename(&next, self.file()).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("offset")
    }

    /// Variables of a program whose wall clock is this one.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let file = self.file().display().to_string();
        let variables = [
            ("LD_PRELOAD", LIBRARY),
            ("FAKETIME_TIMESTAMP_FILE", &*file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_DISABLE_SHM", "1"),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// Alice is logged in with a token of an hour, and the daemon's wall clock is this one.
    fn world(&self, options: Options) -> World {
        let environment = self.environment();
        Setup { options, environment, ..Setup::default() }.logged_in()
    }
}

/// The clock that the daemon shows in its status.
fn expires_at(world: &World) -> String {
    main_account(&world.daemon)["expires_at"].as_str().unwrap().to_owned()
}

#[track_caller]
fn assert_serves(world: &World) {
    let answer = world.daemon.get("/api/users");
    assert_eq!(answer.status, 200, "{answer:?}\n{}", world.daemon.output());
}

#[test]
fn a_clock_that_jumps_by_25_hours_costs_one_refresh_at_most_and_no_request() {
    for by in [25 * HOUR, -25 * HOUR] {
        let clock = WallClock::new();
        let world = clock.world(Options { expires_in_secs: 3600, ..Options::default() });
        assert_serves(&world);
        let before = expires_at(&world);

        clock.set(by);
        for _ in 0..50 {
            assert_serves(&world);
        }
        assert!(world.standin.refreshes().len() <= 1, "by {by} s: {:?}", world.standin.refreshes());
        // Forwards the token has ended for all that the daemon can know; backwards it hasn't.
        assert_eq!(world.standin.refreshes().len(), usize::from(by > 0), "by {by} s");
        assert_eq!(by > 0, expires_at(&world) > before);

        clock.set(0);
        for _ in 0..50 {
            assert_serves(&world);
        }
        assert!(world.standin.refreshes().len() <= 1, "and back: {:?}", world.standin.refreshes());
        assert_eq!(world.daemon.state(), "ready");
    }
}

#[test]
fn a_daemon_that_starts_after_a_week_refreshes_and_serves() {
    let clock = WallClock::new();
    let mut world = clock.world(Options { expires_in_secs: 3600, ..Options::default() });
    world.daemon.stop();

    clock.set(7 * DAY);
    world.daemon = world.home.serve();
    assert_serves(&world);

    let presented: Vec<_> = world.standin.refreshes().iter().map(|refresh| refresh.presented).collect();
    assert_eq!(presented, [Presented::Current]);
    assert_eq!(world.daemon.state(), "ready");
    assert!(!events(&world.daemon).contains(&"login-expiring".to_owned()));
}

#[test]
fn a_login_that_ends_in_three_days_is_told_once_by_every_process() {
    let clock = WallClock::new();
    let mut world = clock.world(Options { expires_in_secs: 3600, ..Options::default() });
    world.daemon.stop();

    for _ in 0..2 {
        clock.set(28 * DAY);
        world.daemon = world.home.serve();
        assert_serves(&world);
        let told = events(&world.daemon);
        assert_eq!(told.iter().filter(|event| *event == "login-expiring").count(), 1, "{told:?}");
        world.daemon.says("the server ends this login at");
        world.daemon.stop();
    }
}

#[test]
fn the_last_day_of_a_personal_access_token_is_warned_of_and_kept() {
    const DAY: i64 = 24 * 3600;
    let clock = WallClock::new();
    let in_ten_days = humantime::format_rfc3339(
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(wall_secs() + 10 * DAY.unsigned_abs()),
    );
    let last_day = &in_ten_days.to_string()[.."2027-01-31".len()];
    let account = format!("expires = \"{last_day}\"");
    let (_standin, home, mut daemon) = with_personal_token(&account, clock.environment());
    assert_eq!((daemon.get("/api/users").status, events(&daemon).len()), (200, 0));
    assert!(main_account(&daemon)["expires_at"].is_string());
    daemon.kill();

    clock.set(5 * DAY);
    daemon = home.serve();
    assert_eq!(daemon.get("/api/users").status, 200);
    assert_eq!(events(&daemon), ["login-expiring"]);
    daemon.kill();

    clock.set(12 * DAY);
    daemon = home.serve();
    assert_eq!(daemon.get("/api/users").problem(), "login-required");
    assert_eq!(events(&daemon)[0], "login-required");
}

fn wall_secs() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    u64::try_from(now.tv_sec).unwrap()
}
