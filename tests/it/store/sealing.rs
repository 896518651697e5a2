//! Logins that are sealed: with which key, when, and what happens without it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::damage::sealed;
use super::{current, errors_of, failing_start, files, next, previous, stored_token};
use crate::standin::{Options, Person, Standin};
use crate::support::{Home, World, config, eventually};
use crate::tokens::{events, refresh};

/// The files that keys are in, each with the byte that its key is made of.
const KEYS: [(&str, u8); 3] = [("a.key", b'a'), ("b.key", b'b'), ("c.key", b'c')];

/// A key as its file holds it.
fn key(byte: u8) -> String {
    STANDARD.encode([byte; 32])
}

/// The `[store]` table with these keys.
pub(crate) fn store_table(home: &Home, keys: &[&str]) -> String {
    for (name, byte) in KEYS {
        home.secret(name, &format!("{}\n", key(byte)));
    }
    let files: Vec<_> = keys.iter().map(|name| format!("{:?}", home.path().join(name))).collect();
    format!("[store]\nseal_key_files = [{}]\n", files.join(", "))
}

/// Writes the configuration with these keys.
pub(crate) fn configure(standin: &Standin, home: &Home, keys: &[&str]) {
    let table = store_table(home, keys);
    fs::write(home.config(), config(standin, home, "", "", "", &table)).unwrap();
}

/// A world with these keys in which Alice is logged in and her token was refreshed.
pub(crate) fn world(keys: &[&str]) -> World {
    let standin = Standin::start(Options::default());
    let home = Home::new(Vec::new());
    configure(&standin, &home, keys);
    let daemon = home.serve();
    let world = World { daemon, standin, home };
    world.log_in(Person::Alice);
    assert_eq!(refresh(&world.daemon).status, 200);
    world
}

/// What is in the files of the state directory, but for who holds it.
pub(crate) fn content(home: &Home) -> BTreeMap<String, Vec<u8>> {
    let names = files(home).into_iter().filter(|name| name != "lock" && name != "control.sock");
    names.map(|name| (name.clone(), fs::read(home.state().join(name)).unwrap())).collect()
}

/// The files that hold a token which the server ever gave, or anything that is called one.
pub(crate) fn plain_files(world: &World) -> BTreeSet<String> {
    let secrets = world.standin.issued_secrets();
    assert!(secrets.len() > 2, "{secrets:?}");
    let is_plain = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        text.contains("_token") || secrets.iter().any(|secret| text.contains(secret))
    };
    content(&world.home).into_iter().filter(|(_, bytes)| is_plain(bytes)).map(|(name, _)| name).collect()
}

/// The key ids that the records in a file begin with.
fn sealed_with(bytes: &[u8]) -> BTreeSet<Vec<u8>> {
    let sealed = json_of(bytes);
    let records = sealed["accounts"].as_object().unwrap().values();
    records.map(|record| STANDARD.decode(record.as_str().unwrap()).unwrap()[..5].to_vec()).collect()
}

fn json_of(bytes: &[u8]) -> Value {
    let start = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    serde_json::from_slice(&bytes[start..]).unwrap()
}

/// SIGHUP, and the line that says what came of it.
#[track_caller]
fn reloaded(world: &World) -> String {
    let lines = || -> Vec<String> {
        let output = world.daemon.output();
        let says = |line: &&str| line.contains("took over keys") || line.contains("not taken over");
        output.lines().filter(says).map(str::to_owned).collect()
    };
    let before = lines().len();
    world.daemon.signal(Signal::HUP);
    eventually("it is said what came of it", || lines().get(before).cloned())
}

#[track_caller]
pub(crate) fn said(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &errors_of(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for (_, byte) in KEYS {
        assert!(!text.contains(&key(byte)), "{text}");
    }
    text
}

/// The warnings of `check` that speak of a login.
fn warnings(home: &Home) -> Vec<String> {
    let text = said(&home.run(&["check"], ""), 0);
    text.lines().filter(|line| line.starts_with("warning: the login")).map(str::to_owned).collect()
}

#[test]
fn a_sealed_login_is_on_disk_for_nobody_without_the_key_and_serves_after_a_restart() {
    let mut world = world(&["a.key"]);
    assert_eq!(content(&world.home).keys().collect::<Vec<_>>(), ["store", "store.previous"]);
    for file in [current(&world.home), previous(&world.home)] {
        assert!(fs::read(file).unwrap().starts_with(b"cnblogs-proxy store 2 sha256:"));
    }
    assert_eq!(plain_files(&world), BTreeSet::new());
    assert_eq!(warnings(&world.home), Vec::<String>::new());
    let checked = said(&world.home.run(&["check"], ""), 0);
    assert!(checked.contains("\nlogin          main, sealed with file "), "{checked}");

    world.restart();

    assert_eq!(world.daemon.get("/api/users").status, 200);
    assert_eq!(refresh(&world.daemon).status, 200);
    world.start_again();
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!((plain_files(&world), world.standin.superseded_presentations()), (BTreeSet::new(), 0));
    world.daemon.stop();
    let token = stored_token(&world.home);
    assert!(world.standin.issued_secrets().contains(&token));
    assert_eq!(said(&world.home.run(&["refresh"], ""), 0), "main has a fresh token.\n");
    assert!(stored_token(&world.home) != token);
}

#[test]
fn a_plain_login_is_sealed_at_the_next_save_and_no_plain_copy_stays() {
    let mut world = world(&[]);
    world.daemon.stop();
    let plain = fs::read(current(&world.home)).unwrap();
    assert!(plain.starts_with(b"cnblogs-proxy store 1 ") && !plain_files(&world).is_empty());
    assert!(said(&world.home.run(&["check"], ""), 0).contains("\nlogin          main, not sealed\n"));
    let state = world.home.state();
    for name in ["store.damaged", "store.previous.damaged", "store.taken"] {
        fs::write(state.join(name), &plain[1..]).unwrap();
    }
    configure(&world.standin, &world.home, &["a.key"]);

    let before = content(&world.home);
    let found = warnings(&world.home);
    assert!(found.len() == 1 && found[0].contains("the login of main is not sealed: "), "{found:?}");
    world.daemon = world.home.serve();
    assert_eq!(world.daemon.get("/api/users").status, 200);
    assert_eq!(content(&world.home), before, "nothing is done before something is saved");

    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(plain_files(&world), BTreeSet::new());
    assert_eq!(content(&world.home).keys().collect::<Vec<_>>(), ["store"]);
    assert_eq!(warnings(&world.home), Vec::<String>::new());
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(content(&world.home).keys().collect::<Vec<_>>(), ["store", "store.previous"]);
    assert_eq!((plain_files(&world), world.standin.superseded_presentations()), (BTreeSet::new(), 0));
}

/// The generation that is used may be the one before; what the store was is beside it, and what an earlier process had
/// half written for an account has all accounts.
#[test]
fn a_plain_generation_before_that_took_the_place_of_a_damaged_one_does_not_stay_either() {
    let mut world = world(&[]);
    world.daemon.stop();
    let mut json = json_of(&fs::read(current(&world.home)).unwrap());
    json["accounts"]["other"] = json["accounts"]["main"].clone();
    let plain = sealed(1, json.to_string().as_bytes());
    let half_written = [&plain[..plain.len() - 20], &[0; 100]].concat();
    fs::write(previous(&world.home), &plain).unwrap();
    fs::write(current(&world.home), &plain[..plain.len() - 9]).unwrap();
    let mark = next(&world.home).with_file_name("store.next.other");
    fs::write(&mark, &half_written).unwrap();
    configure(&world.standin, &world.home, &["a.key"]);

    world.daemon = world.home.serve();
    world.log_in(Person::Alice);

    assert_eq!(plain_files(&world), BTreeSet::new());
    assert_eq!(content(&world.home).keys().collect::<Vec<_>>(), ["store", "store.next.other"]);
    assert_eq!(fs::read(mark).unwrap(), b"", "it says that a refresh was in flight, and nothing else");
}

#[test]
fn without_its_key_nothing_starts_and_nothing_is_touched() {
    let mut world = world(&["a.key"]);
    world.daemon.kill();
    let home = &world.home;
    let (now, before) = (fs::read(current(home)).unwrap(), fs::read(previous(home)).unwrap());
    let sealed_room = [&now[..], &[0; 4096]].concat();
    let damaged = &now[..now.len() - 1];
    let half = [&now[..now.len() / 2], &[0; 4096]].concat();
    let states: [&[(&str, &[u8])]; 5] = [
        &[("store", &now), ("store.previous", &before)],
        &[("store.previous", &before)],
        &[("store", damaged), ("store.previous", &before), ("store.damaged", b"x")],
        &[("store.next.main", &sealed_room)],
        &[("store", &now), ("store.next.main", &half), ("store.taken", &now)],
    ];
    for state in states {
        for name in content(home).into_keys() {
            fs::remove_file(home.state().join(name)).unwrap();
        }
        for (name, bytes) in state {
            fs::write(home.state().join(name), bytes).unwrap();
            fs::set_permissions(home.state().join(name), Permissions::from_mode(0o600)).unwrap();
        }
        for keys in [&[][..], &["b.key"], &["b.key", "c.key"]] {
            configure(&world.standin, home, keys);
            refuse_without_a_trace(home, keys, &format!("{:?}", content(home).keys()));
        }
    }
    configure(&world.standin, home, &[]);
    let found = warnings(home);
    assert!(found.len() == 1 && found[0].contains("with a key that is not here"), "{found:?}");

    configure(&world.standin, home, &["b.key", "a.key"]);
    world.daemon = home.serve();
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

/// Every command that opens the store, with these keys and none that opens it.
#[track_caller]
fn refuse_without_a_trace(home: &Home, keys: &[&str], what: &str) {
    let left = content(home);
    for command in ["serve", "token", "refresh", "login", "logout", "store rekey"] {
        let words: Vec<_> = command.split(' ').collect();
        let output = if command == "serve" { failing_start(home) } else { home.run(&words, "") };
        let says = said(&output, 78);
        assert!(says.contains("the login of main in ") && says.contains("hint: "), "{command}: {says}");
        for (name, _) in KEYS {
            assert_eq!(says.contains(name), keys.contains(&name), "{command}: {says}");
        }
        assert!(!keys.is_empty() || says.contains("no key is configured"), "{command}: {says}");
        assert_eq!(content(home), left, "{command} with {keys:?} on {what}");
    }
}

#[test]
fn keys_are_rotated_without_a_restart_and_the_login_survives() {
    let mut world = world(&["a.key"]);
    let home = &world.home;
    let first = sealed_with(&fs::read(current(home)).unwrap());

    // Not without the key that sealed it: nothing is taken over, and it is said why.
    configure(&world.standin, home, &["b.key"]);
    let refused = reloaded(&world);
    assert!(refused.contains("not taken over: store.seal_key_files: the login of main in "), "{refused}");
    assert!(refused.contains("b.key") && !refused.contains("a.key"), "{refused}");
    configure(&world.standin, home, &[]);
    assert!(reloaded(&world).contains("no key is configured"));
    assert_eq!(refresh(&world.daemon).status, 200, "with the key that runs");
    assert_eq!(sealed_with(&fs::read(current(home)).unwrap()), first);

    configure(&world.standin, home, &["b.key", "a.key"]);
    assert!(reloaded(&world).contains("took over"));
    assert!(warnings(home)[0].contains("a.key") && warnings(home)[0].contains("not with the first key"));
    let before = refreshed_at(&world);
    let rekeyed = said(&home.run(&["store", "rekey"], ""), 0);
    let says = (rekeyed.starts_with("sealed with file "), rekeyed.contains("/b.key (key "));
    assert!(says == (true, true) && rekeyed.ends_with("): main\n"), "{rekeyed}");
    for file in [current(home), previous(home)] {
        assert!(sealed_with(&fs::read(file).unwrap()).is_disjoint(&first));
    }
    assert_eq!((refreshed_at(&world), warnings(home)), (before, Vec::new()), "no token was spent for it");

    configure(&world.standin, home, &["b.key"]);
    assert!(reloaded(&world).contains("took over"));
    assert_eq!(refresh(&world.daemon).status, 200);
    world.restart();
    assert_eq!((world.daemon.get("/api/users").status, refresh(&world.daemon).status), (200, 200));
    assert_eq!(world.standin.superseded_presentations(), 0);
    assert!(
        !events(&world.daemon).iter().any(|event| event.contains("store")),
        "{:?}",
        events(&world.daemon)
    );
}

fn refreshed_at(world: &World) -> usize {
    world.standin.refreshes().len()
}

/// A save does what `rekey` does, as soon as there is another first key.
#[test]
fn the_next_save_seals_with_the_key_that_is_first_by_then() {
    let world = world(&["a.key"]);
    let first = sealed_with(&fs::read(current(&world.home)).unwrap());

    configure(&world.standin, &world.home, &["b.key", "a.key"]);
    assert!(reloaded(&world).contains("took over"));
    assert_eq!(refresh(&world.daemon).status, 200);

    assert_eq!(content(&world.home).keys().collect::<Vec<_>>(), ["store"], "none that the old key opens");
    assert!(sealed_with(&fs::read(current(&world.home)).unwrap()).is_disjoint(&first));
    configure(&world.standin, &world.home, &["b.key"]);
    assert!(reloaded(&world).contains("took over"));
    assert_eq!(refresh(&world.daemon).status, 200);
}

#[test]
fn the_first_key_of_all_comes_by_a_reload_and_rekey_seals_at_once_with_a_daemon_or_without() {
    let mut world = world(&[]);
    let rekey = |home: &Home| home.run(&["store", "rekey"], "");
    assert!(said(&rekey(&world.home), 1).starts_with("error: no seal key is in use: "));

    configure(&world.standin, &world.home, &["a.key"]);
    assert!(said(&rekey(&world.home), 1).contains("no seal key is in use"), "not before it is read");
    assert!(reloaded(&world).contains("took over"));
    assert!(said(&rekey(&world.home), 0).ends_with("): main\n"));
    assert_eq!(plain_files(&world), BTreeSet::new());
    assert_eq!(content(&world.home).keys().collect::<Vec<_>>(), ["store", "store.previous"]);

    world.daemon.stop();
    let token = stored_token(&world.home);
    configure(&world.standin, &world.home, &["c.key", "a.key"]);
    assert!(said(&rekey(&world.home), 0).contains("/c.key (key "));
    configure(&world.standin, &world.home, &["c.key"]);
    assert_eq!(stored_token(&world.home), token);
    assert_eq!(said(&world.home.run(&["logout"], ""), 0), "main is logged out.\n");
    assert!(said(&rekey(&world.home), 0).ends_with("): no login is stored\n"));
    // Nothing is sealed any more, so an older program may read it, and no key is needed.
    configure(&world.standin, &world.home, &[]);
    world.daemon = world.home.serve();
    world.log_in(Person::Bob);
}

#[test]
fn a_login_that_was_put_in_another_s_place_or_changed_does_not_open() {
    let mut world = world(&["a.key"]);
    world.daemon.stop();
    let home = &world.home;
    let now = fs::read(current(home)).unwrap();
    let json = json_of(&now);
    let number = json["generation"].as_u64().unwrap();
    let record = &json["accounts"]["main"];
    let changes = [
        json!({ "generation": number, "accounts": { "other": record } }),
        json!({ "generation": number, "accounts": { "main": record, "other": record } }),
        json!({ "generation": number + 1, "accounts": { "main": record } }),
        json!({ "generation": number - 1, "accounts": { "main": record } }),
    ];
    for changed in changes {
        let put = sealed(2, changed.to_string().as_bytes());
        fs::write(current(home), &put).unwrap();
        let left = content(home);

        let says = said(&failing_start(home), 78);

        assert!(says.contains("a.key") && says.contains("it was changed, or belongs to another"), "{says}");
        assert_eq!(content(home), left);
    }

    // As a whole it is what it was: whoever can replace the file can put an older login back.
    fs::write(current(home), fs::read(previous(home)).unwrap()).unwrap();
    world.daemon = home.serve();
    assert_eq!(world.daemon.get("/api/users").status, 200);
}

#[test]
fn a_store_under_an_unknown_key_that_appears_while_the_daemon_runs_is_not_overwritten() {
    let world = world(&["a.key"]);
    let ours = fs::read(current(&world.home)).unwrap();
    let other = self::world(&["b.key"]);
    let theirs = fs::read(current(&other.home)).unwrap();
    fs::write(current(&world.home), &theirs).unwrap();

    let refused = refresh(&world.daemon);

    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(fs::read(current(&world.home)).unwrap(), theirs);
    assert_eq!(world.daemon.get("/api/users").status, 200);
    let rekeyed = said(&world.home.run(&["store", "rekey"], ""), 1);
    assert!(rekeyed.contains("sealed with key ") && rekeyed.contains("a.key"), "{rekeyed}");
    fs::write(current(&world.home), &ours).unwrap();
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

/// A copy that somebody puts back is older, and is replaced: without staying as the generation before.
#[test]
fn a_plain_backup_that_is_put_back_while_the_daemon_runs_does_not_stay() {
    let world = world(&[]);
    let plain = fs::read(current(&world.home)).unwrap();
    configure(&world.standin, &world.home, &["a.key"]);
    assert!(reloaded(&world).contains("took over"));
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(plain_files(&world), BTreeSet::new());

    fs::write(current(&world.home), &plain).unwrap();
    assert_eq!(refresh(&world.daemon).status, 200);

    assert_eq!(plain_files(&world), BTreeSet::new());
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn a_new_key_is_random_and_can_be_used_as_it_is_printed() {
    let home = Home::new(Vec::new());
    let print = || said(&home.run(&["seal-key"], ""), 0);
    let printed: BTreeSet<_> = (0..3).map(|_| print()).collect();
    assert_eq!(printed.len(), 3);
    for text in &printed {
        assert_eq!(STANDARD.decode(text.trim_end()).unwrap().len(), 32, "{text}");
    }

    let world = world(&["a.key"]);
    world.home.secret("new.key", printed.first().unwrap());
    let file = fs::read_to_string(world.home.config()).unwrap();
    fs::write(
        world.home.config(),
        file.replace("a.key\"", "new.key\", \"<a>\"").replace("<a>", &at(&world.home, "a.key")),
    )
    .unwrap();
    assert!(reloaded(&world).contains("took over"));
    assert!(said(&world.home.run(&["store", "rekey"], ""), 0).contains("/new.key (key "));
}

fn at(home: &Home, name: &str) -> String {
    home.path().join(name).display().to_string()
}

#[test]
fn a_key_comes_from_the_variable_else_the_files_else_the_credential() {
    let from = |home: &Home| {
        let text = said(&home.run(&["check"], ""), 0);
        let rows = text.lines().filter_map(|line| line.strip_prefix("seal key "));
        rows.map(|row| row.trim().split(" (key ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let credentials = Home::new(Vec::new());
    credentials.secret("seal_key", &key(b'c'));
    let directory = ("CREDENTIALS_DIRECTORY".to_owned(), credentials.path().display().to_string());
    let pat = ("CNBLOGS_PAT".to_owned(), "p4t".to_owned());
    let variable =
        ("CNBLOGS_PROXY_SEAL_KEY_FILE".to_owned(), credentials.secret("v", &key(b'v')).display().to_string());
    let credential = format!("file {}", at(&credentials, "seal_key"));

    let home = Home::new(vec![pat.clone(), directory.clone()]);
    assert_eq!(from(&home), [credential.as_str()]);
    fs::write(home.config(), "[store]\nseal_key_files = []\n").unwrap();
    assert_eq!(from(&home), [credential.as_str()]);
    fs::write(home.config(), store_table(&home, &["b.key", "a.key"])).unwrap();
    assert_eq!(from(&home), ["b.key", "a.key"].map(|name| format!("file {}", at(&home, name))));

    let home = Home::new(vec![pat, directory, variable]);
    fs::write(home.config(), store_table(&home, &["b.key"])).unwrap();
    assert_eq!(from(&home), [format!("file {}", at(&credentials, "v"))]);
}

#[test]
fn what_is_no_key_is_refused_wherever_it_comes_from_and_is_not_shown() {
    let canary = "c4n4ryc4n4ryc4n4ry";
    let short = STANDARD.encode([b'k'; 31]);
    let long = STANDARD.encode([b'k'; 33]);
    let hex = "ab".repeat(32);
    let wrong = [
        (canary, "holds no key of 32 bytes in base64"),
        (&short, "holds no key of 32 bytes in base64"),
        (&long, "holds no key of 32 bytes in base64"),
        (&hex, "holds no key of 32 bytes in base64"),
        ("", "is empty"),
        (&format!("{}\n{}", key(b'a'), key(b'b')), "has more than one line"),
        (&format!("\"{}\"", key(b'a')), "has quotes around"),
    ];
    for (content, says) in wrong {
        let pat = ("CNBLOGS_PAT".to_owned(), "p4t".to_owned());
        let file = Home::new(Vec::new());
        let path = file.secret("seal_key", content).display().to_string();
        let refused = |home: &Home, place: &str| {
            let text = said(&home.run(&["check"], ""), 78);
            assert!(text.contains(place) && text.contains(says), "{place}: {text}");
            assert!(content.is_empty() || !text.contains(content.trim()), "{text}");
        };
        let home = Home::new(vec![pat.clone()]);
        fs::write(home.config(), format!("[store]\nseal_key_files = [\"{path}\"]\n")).unwrap();
        refused(&home, ":2:19: store.seal_key_files[0]: ");
        let variable = ("CNBLOGS_PROXY_SEAL_KEY_FILE".to_owned(), path);
        refused(&Home::new(vec![pat.clone(), variable]), "error: CNBLOGS_PROXY_SEAL_KEY_FILE: ");
        let directory = ("CREDENTIALS_DIRECTORY".to_owned(), file.path().display().to_string());
        refused(&Home::new(vec![pat, directory]), "error: CREDENTIALS_DIRECTORY: ");
    }
    // Without its padding it is the same key.
    let home = Home::new(vec![("CNBLOGS_PAT".to_owned(), "p4t".to_owned())]);
    home.secret("unpadded", key(b'a').trim_end_matches('='));
    fs::write(home.config(), store_table(&home, &["a.key", "unpadded"])).unwrap();
    let text = said(&home.run(&["check"], ""), 78);
    assert!(text.contains("store.seal_key_files[1]: another file holds the same key"), "{text}");
}

#[test]
fn a_key_that_others_can_read_or_that_lies_beside_the_login_is_told() {
    let mut world = world(&["a.key"]);
    let warned = "a.key can be read by others (mode 0644): chmod 600 it";
    assert!(!world.daemon.output().contains("can be read by others"));
    fs::set_permissions(world.home.path().join("a.key"), Permissions::from_mode(0o644)).unwrap();
    world.restart();
    world.daemon.says(warned);
    assert!(said(&world.home.run(&["check"], ""), 0).contains(&format!("{warned}\n")));

    let beside = world.home.state().join("a.key");
    fs::rename(world.home.path().join("a.key"), &beside).unwrap();
    let file = fs::read_to_string(world.home.config()).unwrap();
    fs::write(world.home.config(), file.replace(&at(&world.home, "a.key"), &beside.display().to_string()))
        .unwrap();
    let text = said(&world.home.run(&["check"], ""), 0);
    assert!(text.contains("a.key lies beside the logins that it seals"), "{text}");
}

/// Callers of the API are nobody to change how logins are stored.
#[test]
fn only_commands_rekey() {
    let world = world(&["a.key"]);
    let asked = world.daemon.post_form("/-/store/rekey", &[]);
    assert_eq!((asked.status, asked.problem().as_str()), (404, "not-found"));
}
