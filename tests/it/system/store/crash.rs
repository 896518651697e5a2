//! The machine goes down at any point of a first start, a login, refreshes and a logout: the calls of a real
//! daemon on its state directory are recorded, all that a crash may leave of them is built ([`super::images`]),
//! and each is opened as the next start would.
//!
//! `CRASH_GRAIN` says at how many bytes a write can be torn (64; 8 leaves some ten thousand images), `CRASH_SEED`
//! which of them the built program opens as well.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use cnblogs_proxy::config::SealKey;
use cnblogs_proxy::store::SealKeys;
use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::images::{Image, Op, images};
use super::strace::Recording;
use crate::dice::Dice;
use crate::standin::{Endpoint, Fault, Gate, Options, Person, Standin};
use crate::store::current;
use crate::store::damage::{PLAYGROUND, open_with};
use crate::store::sealing::store_table;
use crate::support::{Daemon, Home, World, behind, config};
use crate::tokens::{Sent, held};

/// What a sealed life is sealed with.
const KEY: [u8; 32] = [b'a'; 32];
/// How many images the built program opens.
const BY_THE_PROGRAM: usize = 12;
/// What a person or a server knows, and since which call.
#[derive(Debug)]
struct Epoch {
    /// How many calls had been made when it was told.
    told_at: usize,
    /// How many had been made when the refresh token before it was spent.
    spent_at: Option<usize>,
    /// Nothing plain may be left since then.
    is_sealed: bool,
    login: Option<Login>,
}

/// When a life gets its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sealed {
    Never,
    FromTheStart,
    /// Behind the first refresh, by a reload.
    Later,
}

/// The access token and the refresh token.
type Login = (String, String);

/// What a start makes of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Loaded {
    login: Option<Login>,
    is_in_flight: bool,
    warnings: Vec<String>,
}

/// The calls of a daemon's life, and what they were for.
struct Life {
    ops: Vec<Op>,
    sealed: Sealed,
    epochs: Vec<Epoch>,
    world: World,
}

#[test]
#[expect(
    clippy::print_stdout,
    reason = "how many images there are is worth telling, and the seed brings them back"
)]
fn a_crash_at_any_point_leaves_what_was_told_or_what_comes_next_and_nothing_else() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<usize>().expect("a number"));
    let grain = number("CRASH_GRAIN").unwrap_or(64);
    let mut dice = Dice(number("CRASH_SEED").unwrap_or(1) as u64);
    let mut life = Life::record(Sealed::Never);

    let found = life.opened(0..life.ops.len(), grain);

    println!("{} calls leave {} different images", life.ops.len(), found.len());
    assert!(life.ops.len() > 60 && found.len() > 150, "{} calls, {} images", life.ops.len(), found.len());
    let violations = life.violations(&found);
    assert!(violations.is_empty(), "{} of {}\n{}", violations.len(), found.len(), violations.join("\n"));
    life.world.daemon.kill();
    for _ in 0..BY_THE_PROGRAM {
        let (image, (loaded, counts)) = dice.one_of(&found.iter().collect::<Vec<_>>()).to_owned();
        life.program_agrees(image, loaded, counts);
    }
}

/// Coarser: how a write is torn does not depend on what is in it.
#[test]
fn a_crash_at_any_point_of_a_life_that_is_sealed_leaves_the_same_and_nothing_plain() {
    for sealed in [Sealed::FromTheStart, Sealed::Later] {
        let mut life = Life::record(sealed);

        let found = life.opened(0..life.ops.len(), 512);

        assert!(life.ops.len() > 60 && found.len() > 100, "{} calls, {}", life.ops.len(), found.len());
        let violations = life.violations(&found);
        assert!(violations.is_empty(), "{} of {}\n{}", violations.len(), found.len(), violations.join("\n"));
        life.world.daemon.kill();
        for (image, (loaded, counts)) in found.iter().step_by(found.len() / BY_THE_PROGRAM) {
            life.program_agrees(image, loaded, counts);
        }
    }
}

#[test]
fn without_any_one_of_the_syncs_that_matter_a_crash_does_harm_and_that_is_seen() {
    let mut life = Life::record(Sealed::Never);
    let refreshed = &life.epochs[3];
    let (spent_at, told_at) = (refreshed.spent_at.unwrap(), refreshed.told_at);
    let is_sync = |op: &Op| matches!(op, Op::Sync { .. });
    let last = |range: Range<usize>, wanted: &dyn Fn(&Op) -> bool| {
        range.rev().find(|index| wanted(&life.ops[*index])).unwrap()
    };
    let of_the_record = last(spent_at..told_at, &is_sync);
    let of_the_reservation = last(0..spent_at, &|op| *op == Op::SyncDirectory);
    let of_the_logout = last(0..life.epochs[4].told_at, &|op| *op == Op::SyncDirectory);

    for omitted in [of_the_record, of_the_reservation, of_the_logout] {
        let kept = std::mem::replace(&mut life.ops[omitted], Op::Other);
        let found = life.opened(omitted..life.ops.len().min(omitted + 10), 256);
        assert!(!life.violations(&found).is_empty(), "{kept:?}, number {omitted}, is of no use");
        life.ops[omitted] = kept;
    }
}

#[test]
fn the_name_of_a_new_state_directory_is_durable_before_a_login_is() {
    let life = Life::record(Sealed::Never);

    let told_at = life.epochs[1].told_at;
    let made = life.ops.iter().position(|op| *op == Op::MakeDirectory).unwrap();
    let synced = life.ops[made..told_at].iter().position(|op| *op == Op::SyncParent);
    assert!(synced.is_some(), "a crash may take the directory away: {:?}", &life.ops[..made + 8]);
}

impl Loaded {
    /// Opens an image, twice: what the first start repairs does not change what the second finds.
    fn of(image: &Image, sealed: Sealed) -> Self {
        let directory = TempDir::new_in(PLAYGROUND).unwrap();
        put(image, directory.path());
        let first = Self::from(directory.path(), sealed);
        let second = Self::from(directory.path(), sealed);
        let files: Vec<_> = image.keys().collect();
        let told = |loaded: &Self| (loaded.login.is_some(), loaded.is_in_flight);
        assert!(first.login == second.login && told(&first) == told(&second), "{files:?}");
        first
    }

    fn from(directory: &Path, sealed: Sealed) -> Self {
        let key = SealKey { from: "file a.key".to_owned(), bytes: Box::new(KEY).into() };
        let keys = if sealed == Sealed::Never { SealKeys::default() } else { SealKeys::new(&[key]) };
        let (store, findings) = open_with(directory, &Arc::new(keys));
        let login = store.records_of("main").pop().map(|record| {
            let refresh_token = record.refresh_token.unwrap();
            (record.access_token.expose_secret().to_owned(), refresh_token.expose_secret().to_owned())
        });
        Self { login, is_in_flight: findings.in_flight.contains("main"), warnings: findings.warnings }
    }
}

impl Life {
    /// A daemon's first start, a login, two refreshes and a logout.
    fn record(sealed: Sealed) -> Self {
        let standin = Standin::start(Options::default());
        let home = Home::new(Vec::new());
        let plain = config(&standin, &home, "", "", "", "");
        let with_key = format!("{plain}{}", store_table(&home, &["a.key"]));
        fs::write(home.config(), if sealed == Sealed::FromTheStart { &with_key } else { &plain }).unwrap();
        let recording = Recording::new(home.path(), &home.state());
        let daemon = Daemon::spawn(behind(&recording.command(), &home.command(&["serve"])));
        let world = World { daemon, standin, home };
        let mut is_sealed = sealed == Sealed::FromTheStart;
        let mut epochs = vec![Epoch { told_at: 0, spent_at: None, is_sealed, login: None }];
        let told = |spent_at, is_sealed| {
            let told_at = recording.ops().len();
            Epoch { told_at, spent_at, is_sealed, login: newest(&world, sealed) }
        };

        world.log_in(Person::Alice);
        epochs.push(told(None, is_sealed));
        for _ in 0..2 {
            let gate = Gate::default();
            world.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));
            let asked = Sent::refresh(&world.daemon);
            held(&gate);
            let spent_at = Some(recording.ops().len());
            gate.open();
            assert_eq!(asked.answer().status, 200);
            epochs.push(told(spent_at, is_sealed));
            if sealed == Sealed::Later && !is_sealed {
                fs::write(world.home.config(), &with_key).unwrap();
                assert_eq!(world.home.run(&["reload"], "").status.code(), Some(0));
                is_sealed = true;
            }
        }
        assert_eq!(world.daemon.post_form("/-/logout/main", &[]).status, 200);
        epochs.push(told(None, is_sealed));
        Self { ops: recording.ops(), sealed, epochs, world }
    }

    /// Every image that these of the calls can leave, what comes of opening it, and after which calls it can be there.
    fn opened(&self, range: Range<usize>, grain: usize) -> BTreeMap<Image, (Loaded, Vec<usize>)> {
        let mut found: BTreeMap<Image, (Loaded, Vec<usize>)> = BTreeMap::new();
        let loaded = |image: &Image| (Loaded::of(image, self.sealed), Vec::new());
        for count in range.start..=range.end {
            for image in images(&self.ops[..count], grain) {
                let (_, counts) = found.entry(image).or_insert_with_key(loaded);
                counts.push(count);
            }
        }
        found
    }

    /// What a person was told last before that call, and what may be there already.
    fn acceptable(&self, count: usize) -> (&Epoch, Option<&Epoch>) {
        let told = self.epochs.iter().rposition(|epoch| epoch.told_at <= count).unwrap();
        (&self.epochs[told], self.epochs.get(told + 1))
    }

    fn violations(&self, found: &BTreeMap<Image, (Loaded, Vec<usize>)>) -> Vec<String> {
        let mut violations = Vec::new();
        for (image, (loaded, counts)) in found {
            let wrong = counts.iter().find_map(|count| Some((count, self.violation(image, loaded, *count)?)));
            violations.extend(wrong.map(|(count, what)| {
                let sizes: Vec<_> = image.iter().map(|(name, bytes)| (name, bytes.len())).collect();
                format!("after {count} calls: {what}: {sizes:?} {:?}", loaded.warnings)
            }));
        }
        violations
    }

    fn violation(&self, image: &Image, loaded: &Loaded, count: usize) -> Option<&'static str> {
        let (told, next) = self.acceptable(count);
        let is_next = next.is_some_and(|next| loaded.login == next.login);
        if loaded.login != told.login && !is_next {
            return Some("neither the login that was told of nor the next one");
        }
        if loaded.warnings.iter().any(|warning| warning.contains("damaged")) {
            return Some("something is damaged");
        }
        let is_spent = next.and_then(|next| next.spent_at).is_some_and(|spent_at| spent_at <= count);
        if is_spent && !is_next && !loaded.is_in_flight {
            return Some("a refresh was in flight, and nothing says so");
        }
        let is_in_place =
            image.get("store").is_some_and(|store| store.starts_with(b"cnblogs-proxy store 2 "));
        if (told.is_sealed || is_in_place)
            && image.values().any(|bytes| String::from_utf8_lossy(bytes).contains("_token"))
        {
            return Some("something is there plain");
        }
        let is_logged_out = told.login.is_none() && told.told_at > 0;
        let holds = |(_, refresh_token): &Login| {
            image.values().any(|bytes| String::from_utf8_lossy(bytes).contains(refresh_token))
        };
        let is_left = is_logged_out && self.epochs.iter().filter_map(|epoch| epoch.login.as_ref()).any(holds);
        is_left.then_some("a login that was erased is still there")
    }

    /// The built program finds the same as the library.
    #[track_caller]
    fn program_agrees(&self, image: &Image, loaded: &Loaded, counts: &[usize]) {
        let home = &self.world.home;
        fs::remove_dir_all(home.state()).unwrap();
        fs::create_dir(home.state()).unwrap();
        put(image, &home.state());

        let output = home.run(&["token"], "");

        let shown = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let token = loaded.login.as_ref().map(|(access_token, _)| access_token.clone());
        let code = if token.is_some() { 0 } else { 3 };
        assert_eq!(output.status.code(), Some(code), "after {counts:?} calls: {errors}");
        assert_eq!(shown, token.unwrap_or_default(), "after {counts:?} calls: {errors}");
    }
}

/// The login that is stored.
fn newest(world: &World, sealed: Sealed) -> Option<Login> {
    let directory = TempDir::new_in(PLAYGROUND).unwrap();
    fs::copy(current(&world.home), directory.path().join("store")).unwrap();
    Loaded::from(directory.path(), sealed).login
}

fn put(image: &Image, directory: &Path) {
    for (name, bytes) in image {
        fs::write(directory.join(name), bytes).unwrap();
    }
}
