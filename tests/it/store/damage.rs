//! A store that is damaged, foreign, too new or too old is told from a good one, and never makes things worse.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cnblogs_proxy::store::{FileStore, Findings, SealKeys, StoreError};
use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::{behind, current, errors_of, previous, stored_token};
use crate::standin::{Options, Person, Standin};
use crate::support::{Home, Setup, World, config, eventually};
use crate::tokens::{events, refresh};

/// In memory, since a crash is only played.
pub(crate) const PLAYGROUND: &str = "/dev/shm";

const LARGEST_STORE: u64 = 100 << 20;

/// A state directory as a daemon left it, for commands without a daemon, on which nothing listens.
struct Left {
    home: Home,
    current: Vec<u8>,
    previous: Vec<u8>,
    current_token: String,
    previous_token: String,
}

impl Left {
    fn behind(world: &mut World) -> Vec<Self> {
        assert_eq!(refresh(&world.daemon).status, 200);
        world.daemon.stop();
        let (now, before) =
            (fs::read(current(&world.home)).unwrap(), fs::read(previous(&world.home)).unwrap());
        (0..2).map(|_| Self::new(&world.standin, now.clone(), before.clone())).collect()
    }

    fn new(standin: &Standin, current: Vec<u8>, previous: Vec<u8>) -> Self {
        let home = Home::new(Vec::new());
        fs::write(home.config(), config(standin, &home, "", "", "", "")).unwrap();
        fs::create_dir(home.state()).unwrap();
        let token_of = |bytes: &[u8]| {
            fs::write(super::current(&home), bytes).unwrap();
            stored_token(&home)
        };
        let (current_token, previous_token) = (token_of(&current), token_of(&previous));
        Self { home, current, previous, current_token, previous_token }
    }

    /// What `token` does with this in place of the store.
    fn token_with(&self, store: &[u8], previous: Option<&[u8]>) -> Output {
        fs::write(current(&self.home), store).unwrap();
        match previous {
            Some(bytes) => fs::write(super::previous(&self.home), bytes).unwrap(),
            None => drop(fs::remove_file(super::previous(&self.home))),
        }
        self.home.run(&["token"], "")
    }

    #[track_caller]
    fn assert_uses_the_one_before(&self, damaged: &[u8], what: &str) {
        let output = self.token_with(damaged, Some(&self.previous));

        let errors = errors_of(&output);
        let shown = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert_eq!((output.status.code(), shown), (Some(0), self.previous_token.clone()), "{what}: {errors}");
        assert!(!errors.contains("panicked") && errors.contains("store"), "{what}: {errors}");
        assert!(!errors.contains(&self.current_token) && !errors.contains(&self.previous_token), "{what}");
        assert_eq!(fs::read(previous(&self.home)).unwrap(), self.previous, "{what}");
    }

    #[track_caller]
    fn assert_needs_a_login(&self, damaged: &[u8], previous: Option<&[u8]>, what: &str) {
        let output = self.token_with(damaged, previous);

        let errors = errors_of(&output);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(3), 0), "{what}: {errors}");
        assert!(!errors.contains("panicked") && errors.contains("hint: "), "{what}: {errors}");
    }
}

#[test]
fn a_store_cut_at_any_length_is_replaced_by_the_one_before() {
    let mut world = World::logged_in();
    let left = Left::behind(&mut world);

    let whole = left[0].current.len();
    // Every length of the header, where the kinds of damage differ, and of the end; a sixth of the rest.
    let lengths: Vec<_> =
        (0..whole).filter(|length| *length < 100 || *length + 8 > whole || length % 6 == 0).collect();
    assert!(lengths.len() > 150, "{}", lengths.len());
    std::thread::scope(|scope| {
        for (number, left) in left.iter().enumerate() {
            let own = lengths.iter().skip(number).step_by(2);
            let check = |length: &usize| {
                left.assert_uses_the_one_before(&left.current[..*length], &format!("{length} bytes"));
            };
            scope.spawn(move || own.for_each(check));
        }
    });
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let mut world = World::logged_in();
    let left = Left::behind(&mut world).remove(0);

    let bits = left.current.len() * 8;
    let sample: Vec<_> = (0..bits).step_by(bits / 80).chain(0..64).collect();
    assert!(sample.len() > 120, "{}", sample.len());
    for bit in sample {
        let mut damaged = left.current.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        left.assert_uses_the_one_before(&damaged, &format!("bit {bit}"));
    }
}

#[test]
fn a_store_cut_at_any_length_or_with_any_bit_flipped_is_never_used_and_the_one_before_is() {
    let mut world = World::logged_in();
    let left = Left::behind(&mut world).remove(0);
    let whole = left.current.len();
    let cut = (0..whole).map(|length| left.current[..length].to_vec());
    let flipped = (0..whole * 8).map(|bit| {
        let mut bytes = left.current.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    });

    let mut tried = 0;
    for damaged in cut.chain(flipped) {
        // As the store, with the generation before; and as what a process had written when it was killed.
        let as_store = Opened::with(&[("store", &damaged), ("store.previous", &left.previous)]);
        assert_eq!(as_store.token.as_ref(), Some(&left.previous_token), "damage {tried}");
        assert_eq!(as_store.left["store.previous"], left.previous, "damage {tried}");
        assert_eq!(as_store.left["store.damaged"], damaged, "damage {tried}");

        let as_next = Opened::with(&[("store", &left.previous), ("store.next.main", &damaged)]);
        assert_eq!(as_next.token.as_ref(), Some(&left.previous_token), "damage {tried}");
        assert!(as_next.is_in_flight, "damage {tried}");
        tried += 1;
    }
    assert_eq!(tried, whole * 9);
}

#[test]
fn two_damaged_generations_are_both_kept_and_told_apart() {
    for newest in [&b"damaged last"[..], b""] {
        let found = Opened::with(&[
            ("store", newest),
            ("store.previous", b"damaged before"),
            ("store.damaged", b"damaged long ago"),
        ]);

        assert_eq!(found.token, None);
        assert_eq!(found.left["store.damaged"], newest, "the newest may be the only copy of a login");
        assert_eq!(found.left["store.previous.damaged"], b"damaged before");
    }
}

/// What the program makes of files, and what it leaves of them.
struct Opened {
    token: Option<String>,
    is_in_flight: bool,
    left: BTreeMap<String, Vec<u8>>,
}

impl Opened {
    fn with(files: &[(&str, &[u8])]) -> Self {
        let directory = TempDir::new_in(PLAYGROUND).unwrap();
        for (name, bytes) in files {
            fs::write(directory.path().join(name), bytes).unwrap();
        }
        let (store, findings) = open(directory.path());
        let token =
            store.records_of("main").pop().map(|record| record.access_token.expose_secret().to_owned());
        let entries = fs::read_dir(directory.path()).unwrap().map(Result::unwrap);
        let left = entries.map(|entry| {
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap_or_default())
        });
        Self { token, is_in_flight: findings.in_flight.contains("main"), left: left.collect() }
    }
}

#[test]
fn a_damaged_store_without_a_good_one_before_needs_a_login() {
    let mut world = World::logged_in();
    let left = Left::behind(&mut world).remove(0);
    let whole = left.current.clone();

    for length in (0..whole.len()).step_by(whole.len() / 10) {
        left.assert_needs_a_login(&whole[..length], None, &format!("{length} bytes and nothing"));
        left.assert_needs_a_login(&whole[..length], Some(&whole[..length]), &format!("{length} bytes twice"));
    }
    for garbage in [&b"\xff\xfe\0\0"[..], b"{}", b"cnblogs-proxy store ", b"\n\n\n"] {
        left.assert_needs_a_login(garbage, Some(garbage), &String::from_utf8_lossy(garbage));
    }
    let intact = left.token_with(&whole, Some(b""));
    assert_eq!(String::from_utf8_lossy(&intact.stdout).trim(), left.current_token);
}

#[test]
fn a_daemon_on_a_damaged_store_asks_for_a_login_and_keeps_it() {
    let mut world = World::logged_in();
    world.daemon.stop();
    fs::write(current(&world.home), b"cnblogs-proxy store 1 sha256:00\n{}").unwrap();

    world.daemon = world.home.serve();
    assert_eq!(world.daemon.get("/api/users").problem(), "login-required");
    world.daemon.says("damaged");
    world.log_in(Person::Alice);
    world.restart();

    assert_eq!(world.daemon.get("/api/users").status, 200);
    assert_eq!(refresh(&world.daemon).status, 200);
}

#[test]
fn the_one_before_is_kept_until_something_newer_is_saved() {
    let mut world = World::logged_in();
    assert_eq!(refresh(&world.daemon).status, 200);
    world.daemon.stop();
    let before = fs::read(previous(&world.home)).unwrap();
    let damaged = b"damaged".to_vec();
    fs::write(current(&world.home), &damaged).unwrap();

    world.daemon = world.home.serve();
    assert_eq!(world.daemon.get("/-/readyz").status, 200);
    assert_eq!(fs::read(previous(&world.home)).unwrap(), before);
    assert_eq!(refresh(&world.daemon).problem(), "login-required", "its refresh token is spent");
    assert_eq!(world.standin.superseded_presentations(), 1);

    // What was good is never replaced by what was damaged.
    assert!(fs::read(previous(&world.home)).unwrap() != damaged);
    assert_eq!(refresh(&world.daemon).problem(), "login-required");
    assert_eq!(world.standin.superseded_presentations(), 1);
}

#[test]
fn a_store_of_a_newer_version_is_refused_with_advice_and_left_untouched() {
    let mut world = World::logged_in();
    assert_eq!(refresh(&world.daemon).status, 200);
    world.daemon.stop();
    let json = br#"{"generation":9,"accounts":{},"new":[1,2,3]}"#;
    let newer = sealed(3, json);

    let good = fs::read(current(&world.home)).unwrap();
    for name in ["store", "store.previous", "store.next.main"] {
        let path = world.home.state().join(name);
        let store = if name == "store.previous" { &b"damaged"[..] } else { &good };
        fs::write(current(&world.home), store).unwrap();
        fs::write(&path, &newer).unwrap();
        for command in ["token", "refresh", "logout", "serve"] {
            let output = run_briefly(&world.home, command);
            let errors = errors_of(&output);
            assert_eq!(output.status.code(), Some(1), "{command} with {name}: {errors}");
            assert!(errors.contains("newer version") && errors.contains("hint: "), "{command}: {errors}");
            assert_eq!(fs::read(&path).unwrap(), newer, "{command} with {name}");
        }
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_store_of_this_version_with_members_of_a_later_one_is_read() {
    let mut world = World::logged_in();
    world.daemon.stop();
    let token = stored_token(&world.home);
    let bytes = fs::read(current(&world.home)).unwrap();
    let start = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let mut json: serde_json::Value = serde_json::from_slice(&bytes[start..]).unwrap();
    json["later"] = "member".into();
    json["accounts"]["main"]["later"] = "member".into();

    fs::write(current(&world.home), sealed(1, json.to_string().as_bytes())).unwrap();

    assert_eq!(stored_token(&world.home), token);
}

#[test]
fn a_store_of_100_mib_is_refused_without_reading_it() {
    let mut world = World::logged_in();
    world.daemon.stop();
    let start = fs::read(current(&world.home)).unwrap();
    let file = fs::OpenOptions::new().write(true).open(current(&world.home)).unwrap();
    file.set_len(LARGEST_STORE).unwrap();

    for command in ["token", "serve"] {
        let started = Instant::now();
        let output = run_briefly(&world.home, command);
        assert!(started.elapsed() < Duration::from_secs(2), "{command} took {:?}", started.elapsed());
        assert_eq!(output.status.code(), Some(1), "{}", errors_of(&output));
        assert!(errors_of(&output).contains("larger than 1 MiB"), "{}", errors_of(&output));
    }

    assert_eq!(fs::metadata(current(&world.home)).unwrap().len(), LARGEST_STORE);
    assert_eq!(&fs::read(current(&world.home)).unwrap()[..start.len()], &start[..]);
}

#[test]
fn a_backup_that_was_restored_is_refused_once_and_then_needs_a_login() {
    let options = Options { expires_in_secs: 86_400, ..Options::default() };
    let mut world = Setup { options, ..Setup::default() }.logged_in();
    let backup = fs::read(current(&world.home)).unwrap();
    for _ in 0..3 {
        assert_eq!(refresh(&world.daemon).status, 200);
    }
    world.daemon.stop();
    put_back(&world.home.state(), &backup);

    world.daemon = world.home.serve();
    assert_eq!(world.daemon.get("/api/users").status, 200, "its access token still serves");
    assert_eq!(refresh(&world.daemon).problem(), "login-required");
    eventually("it is told", || (events(&world.daemon) == ["login-required"]).then_some(()));
    assert_eq!(refresh(&world.daemon).problem(), "login-required");
    world.restart();

    assert_eq!(refresh(&world.daemon).problem(), "login-required");
    assert_eq!(world.standin.superseded_presentations(), 1, "once, for good");
    world.log_in(Person::Alice);
    assert_eq!(refresh(&world.daemon).status, 200);
}

/// Runs a command that is to fail, even when it is `serve` and does not.
fn run_briefly(home: &Home, command: &str) -> Output {
    behind("exec timeout 20", &home.command(&[command])).output().unwrap()
}

/// The state directory as a backup had it.
fn put_back(state: &Path, backup: &[u8]) {
    fs::remove_file(state.join("store.previous")).unwrap();
    fs::write(state.join("store"), backup).unwrap();
}

/// A store file of that format over this JSON, checksum included.
pub(crate) fn sealed(version: u32, json: &[u8]) -> Vec<u8> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(&version.to_be_bytes());
    context.update(json);
    let sum: String = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut bytes = format!("cnblogs-proxy store {version} sha256:{sum}\n").into_bytes();
    bytes.extend_from_slice(json);
    bytes
}

/// Opens a store in this process. Another test may be starting a child, which holds our files until it runs its
/// program, locks included.
pub(crate) fn open(directory: &Path) -> (FileStore, Findings) {
    open_with(directory, &Arc::default())
}

pub(crate) fn open_with(directory: &Path, keys: &Arc<SealKeys>) -> (FileStore, Findings) {
    eventually("the store is nobody else's", || match FileStore::open(directory, Arc::clone(keys)) {
        Err(StoreError::InUse { .. }) => None,
        opened => Some(opened.unwrap()),
    })
}
