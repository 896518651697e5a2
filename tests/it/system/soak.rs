//! Everything at once for a while: mixed load, tokens of five seconds, faults on both servers, callers that hang up,
//! SIGHUPs and restarts. Each request says what goes wrong with it, so each failure is one that was ordered.
//!
//! `SOAK_SECS=1800 cargo test --all-features --test it soak -- --nocapture` says how long, and `SOAK_SEED` repeats a
//! run's dice.

mod ask;
mod faults;
mod line;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use faults::Ledger;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::dice::Dice;
use crate::standin::{Endpoint, Fault, Options, Presented, Rotation};
use crate::support::{Setup, World, eventually};

/// How long, when `SOAK_SECS` says nothing.
const SECS: u64 = 60;
/// Callers at a time, and how long each pauses at most between two requests: some 50 to 100 requests a second.
const CALLERS: usize = 8;
const LONGEST_PAUSE_MS: usize = 60;
/// Of access tokens, as the daemon is told. The API takes them for longer: how long an answer was on its way is
/// no fault of the daemon's.
const TOKEN_SECS: u64 = 5;
const TOKEN_SECS_AT_THE_API: u64 = 20;
/// From one fault at the token endpoint to the next: it must not meet the back-off of the one before.
const TOKEN_FAULT_EVERY: Duration = Duration::from_secs(6);
/// A daemon's life counts as begun after this part of it: threads, pools and buffers are there.
const WARM_UP_PART: u32 = 4;
const RESTARTS: u32 = 3;
const MOST_GROWTH_KIB: u64 = 8 * 1024;
const MOST_MORE_DESCRIPTORS: usize = 40;

/// What the callers and the one who makes trouble share.
pub(super) struct Stage {
    authority: Mutex<String>,
    socket: PathBuf,
    ledger: Arc<Ledger>,
    /// Odd from before a daemon is told to stop until the next one serves.
    generation: AtomicU64,
    is_over: AtomicBool,
    requests: AtomicUsize,
    ordered_failures: AtomicUsize,
    met_a_restart: AtomicUsize,
    unexplained: Mutex<Vec<String>>,
}

/// What a daemon takes of the machine.
#[derive(Clone, Copy)]
struct Footprint {
    resident_kib: u64,
    descriptors: usize,
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KiB, {} descriptors", self.resident_kib, self.descriptors)
    }
}

#[test]
fn a_long_run_of_mixed_load_and_faults_fails_only_what_was_ordered_to_fail() {
    let lasts = Duration::from_secs(number_from("SOAK_SECS").unwrap_or(SECS));
    let seed = number_from("SOAK_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let started = Instant::now();
    let directory = TempDir::new().unwrap();
    let mut world = world(&directory.path().join("proxy.sock"));
    let stage = Stage::new(&world, directory.path().join("proxy.sock"));
    let hook = Arc::clone(&stage.ledger);
    world.standin.on_api(move |request| hook.meet(request));

    let mut trouble = Trouble::new(Dice(seed));
    std::thread::scope(|scope| {
        for id in 0..CALLERS as u64 {
            let (stage, dice) = (&stage, Dice(seed.wrapping_mul(31).wrapping_add(id)));
            scope.spawn(move || ask::again_and_again(stage, id, dice));
        }
        for life in 0..=RESTARTS {
            trouble.make(&mut world, &stage, lasts / (RESTARTS + 1));
            if life < RESTARTS {
                restart(&mut world, &stage);
            }
        }
        stage.is_over.store(true, Ordering::SeqCst);
    });
    trouble.note_refreshes(&world);

    let report = trouble.report(&stage, seed, started.elapsed());
    println(&report);
    stage.assert_explained(&report);
    trouble.assert_plenty(&stage, lasts, &report);
    trouble.assert_flat(&report);
    assert_eq!(world.daemon.get("/-/readyz").status, 200, "{report}");
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Standard output of a test, kept with it.
#[expect(clippy::print_stdout, reason = "a run that somebody asked for says what it did")]
fn println(report: &str) {
    println!("{report}");
}

/// Alice is logged in.
fn world(socket: &std::path::Path) -> World {
    let world = Setup {
        options: Options {
            tls: true,
            expires_in_secs: TOKEN_SECS_AT_THE_API,
            rotation: Rotation::Grace(Duration::from_secs(60)),
            ..Options::default()
        },
        top: format!("listen = [\"127.0.0.1:0\", \"unix:{}\"]", socket.display()),
        tables: format!("[limits]\nresponse_timeout = \"{}s\"", faults::RESPONSE_TIMEOUT_SECS),
        ..Setup::default()
    }
    .start();
    let told = || Fault::alter(|answer| answer["expires_in"] = TOKEN_SECS.into());
    world.standin.fault_always(Endpoint::Token, told);
    world.standin.close_idle_within(Some(Duration::from_millis(400)));

    world.log_in(crate::standin::Person::Alice);
    world
}

/// As a service manager does it: what has begun is finished, and what comes meanwhile finds nobody.
fn restart(world: &mut World, stage: &Stage) {
    stage.generation.fetch_add(1, Ordering::SeqCst);
    world.restart();
    stage.authority.lock().unwrap().clone_from(&world.daemon.authority);
    stage.generation.fetch_add(1, Ordering::SeqCst);
}

impl Stage {
    fn new(world: &World, socket: PathBuf) -> Self {
        Self {
            authority: Mutex::new(world.daemon.authority.clone()),
            socket,
            ledger: Arc::new(Ledger::default()),
            generation: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
            ordered_failures: AtomicUsize::new(0),
            met_a_restart: AtomicUsize::new(0),
            unexplained: Mutex::default(),
        }
    }

    /// True when the daemon was, or is, on its way out since then.
    fn has_restarted_since(&self, generation: u64) -> bool {
        !generation.is_multiple_of(2) || self.generation.load(Ordering::SeqCst) != generation
    }

    #[track_caller]
    fn assert_explained(&self, report: &str) {
        let unexplained = self.unexplained.lock().unwrap();
        let first: Vec<_> = unexplained.iter().take(5).collect();
        assert!(unexplained.is_empty(), "{} unexplained: {first:#?}\n{report}", unexplained.len());
        let sent_too_often = self.ledger.sent_too_often();
        assert!(sent_too_often.is_empty(), "{sent_too_often:?}\n{report}");
    }
}

/// Makes trouble from outside, and watches what it costs.
struct Trouble {
    dice: Dice,
    token_faults: usize,
    last_token_fault: Instant,
    hang_ups: usize,
    refreshes: usize,
    /// After the warm-up and at the end of each daemon.
    lives: Vec<(Footprint, Footprint)>,
}

impl Trouble {
    fn new(dice: Dice) -> Self {
        let last_token_fault = Instant::now();
        Self { dice, token_faults: 0, last_token_fault, hang_ups: 0, refreshes: 0, lives: Vec::new() }
    }

    /// For the rest of a daemon's life.
    fn make(&mut self, world: &mut World, stage: &Stage, lasts: Duration) {
        let (born, mut warm, mut next_hang_up) = (Instant::now(), None, Duration::from_secs(1));
        while born.elapsed() < lasts {
            std::thread::sleep(Duration::from_millis(50));
            if warm.is_none() && born.elapsed() > lasts / WARM_UP_PART {
                warm = Some(Footprint::of(world));
            }
            if world.standin.pending_faults(Endpoint::Token) > 0 {
                self.last_token_fault = Instant::now();
            } else if self.last_token_fault.elapsed() > TOKEN_FAULT_EVERY {
                world.standin.fault(Endpoint::Token, faults::at_the_token_endpoint(&mut self.dice));
                self.token_faults += 1;
            }
            if born.elapsed() > next_hang_up {
                world.daemon.signal(Signal::HUP);
                self.hang_ups += 1;
                next_hang_up += Duration::from_millis(1000 + self.dice.below(4000) as u64);
                self.note_refreshes(world);
            }
        }
        assert!(!stage.is_over.load(Ordering::SeqCst));
        self.lives.push((warm.expect("a life is longer than its warm-up"), Footprint::of(world)));
    }

    /// Counts refreshes and forgets what the stand-in remembers of the traffic.
    fn note_refreshes(&mut self, world: &World) {
        let refreshes = world.standin.refreshes();
        assert!(refreshes.iter().all(|refresh| refresh.presented != Presented::Unknown), "{refreshes:?}");
        self.refreshes = refreshes.len();
        world.standin.forget_traffic();
    }

    fn report(&self, stage: &Stage, seed: u64, took: Duration) -> String {
        let read = |number: &AtomicUsize| number.load(Ordering::SeqCst);
        let lives: Vec<_> = self.lives.iter().map(|(warm, end)| format!("{warm} -> {end}")).collect();
        format!(
            "soak with SOAK_SEED={seed}: {took:.0?}, {} requests, {} with an ordered failure, {} met a restart, {} \
             unexplained; {} faults met the API: {:?}; {} token faults, {} refreshes, {} SIGHUPs; lives: {lives:#?}",
            read(&stage.requests),
            read(&stage.ordered_failures),
            read(&stage.met_a_restart),
            stage.unexplained.lock().unwrap().len(),
            stage.ledger.met().values().sum::<usize>(),
            stage.ledger.met(),
            self.token_faults,
            self.refreshes,
            self.hang_ups,
        )
    }

    /// A run that did little has shown little.
    #[track_caller]
    fn assert_plenty(&self, stage: &Stage, lasts: Duration, report: &str) {
        let secs = usize::try_from(lasts.as_secs()).unwrap();
        assert!(stage.requests.load(Ordering::SeqCst) > secs * 10, "{report}");
        assert!(stage.ordered_failures.load(Ordering::SeqCst) > secs / 2, "{report}");
        assert!(self.refreshes > secs / 6, "{report}");
        assert!(self.token_faults > secs / 20, "{report}");
        assert!(stage.ledger.met().len() > faults::KINDS / 2, "{report}");
    }

    #[track_caller]
    fn assert_flat(&self, report: &str) {
        for (warm, end) in &self.lives {
            assert!(end.resident_kib < warm.resident_kib + MOST_GROWTH_KIB, "{report}");
            assert!(end.descriptors < warm.descriptors + MOST_MORE_DESCRIPTORS, "{report}");
        }
    }
}

impl Footprint {
    fn of(world: &World) -> Self {
        let process = PathBuf::from(format!("/proc/{}", world.daemon.pid()));
        let status = std::fs::read_to_string(process.join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel says it");
        let resident_kib = line.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        Self { resident_kib, descriptors: std::fs::read_dir(process.join("fd")).unwrap().count() }
    }
}

/// Waits until a daemon serves, or all is over.
fn until_served(stage: &Stage) {
    eventually("a daemon serves again", || {
        let is_served = stage.generation.load(Ordering::SeqCst).is_multiple_of(2);
        (is_served || stage.is_over.load(Ordering::SeqCst)).then_some(())
    });
}
