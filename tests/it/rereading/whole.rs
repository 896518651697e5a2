//! A reload is all or nothing: each key of the contract either may change while the daemon runs, or is named and
//! nothing is taken over.

use std::collections::BTreeSet;
use std::fs;
use std::process::Output;

use rustix::process::Signal;

use crate::configuration::keys_with_values;
use crate::standin::{Options, Person, Standin};
use crate::support::{Daemon, Home, Setup, World, config, eventually};

/// The caller's key that the daemon was started with, and the one that its file holds at every reload.
const RUNS: &str = "key-that-runs";
const WRITTEN: &str = "key-that-is-in-the-file";
const PAT: &str = "p4t-of-bob";
const SEAL_KEY: &str = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";

/// What a reload does with a change.
enum Does {
    /// It is taken over.
    Takes,
    /// This key is named, and nothing is taken over.
    Names(&'static str),
}
use Does::{Names, Takes};

/// Each key, another value than that of [`every_key`]'s file, and what comes of it. A table with a name of its own is
/// added as it stands.
const CHANGES: &[(&str, &str, &str, Does)] = &[
    ("", "listen", "[\"unix:<home>/other.sock\"]", Names("listen")),
    ("", "state_dir", "\"<home>/other\"", Names("state_dir")),
    ("", "workers", "3", Names("workers")),
    ("", "log", "\"debug\"", Takes),
    ("", "log_format", "\"json\"", Names("log_format")),
    ("", "account", "[account.more]\ntoken_file = \"<home>/pat\"", Names("account.more")),
    ("", "route", "[[route]]\nprefix = \"/more\"\naccount = \"main\"", Names("route./more")),
    ("account.main", "grant", "\"client_credentials\"", Names("account.main.grant")),
    ("account.main", "client_id", "\"another\"", Names("account.main.client_id")),
    ("account.main", "client_secret_file", "\"<home>/other_secret\"", Takes),
    ("account.main", "client_secret_file", "\"\"", Names("account.main.client_secret_file")),
    ("account.pat", "token_file", "\"<home>/other_pat\"", Takes),
    ("account.main", "scope", "\"openid\"", Names("account.main.scope")),
    ("account.main", "redirect_uri", "\"https://example.net/callback\"", Names("account.main.redirect_uri")),
    ("account.main", "response_type", "\"code\"", Names("account.main.response_type")),
    ("account.main", "response_mode", "\"form_post\"", Names("account.main.response_mode")),
    ("account.main", "issuer", "\"https://example.net\"", Names("account.main.issuer")),
    (
        "account.main",
        "authorization_url",
        "\"https://example.net/\"",
        Names("account.main.authorization_url"),
    ),
    ("account.main", "token_url", "\"https://example.net/\"", Names("account.main.token_url")),
    ("account.main", "revocation_url", "\"https://example.net/\"", Names("account.main.revocation_url")),
    ("account.main", "jwks_url", "\"\"", Names("account.main.jwks_url")),
    ("account.main", "client_auth", "\"basic\"", Names("account.main.client_auth")),
    ("account.main", "ca_file", "\"<home>/other_ca.pem\"", Takes),
    ("account.main", "proxy", "\"http://127.0.0.1:2\"", Names("account.main.proxy")),
    ("account.main", "proxy_auth_file", "\"<home>/auth\"", Takes),
    ("account.main", "pkce", "\"off\"", Names("account.main.pkce")),
    ("account.main", "refresh_at", "0.6", Names("account.main.refresh_at")),
    ("account.main", "identity_url", "\"\"", Names("account.main.identity_url")),
    ("account.main", "login_lifetime", "\"1d\"", Names("account.main.login_lifetime")),
    ("account.main", "required", "false", Names("account.main.required")),
    ("account.pat", "expires", "\"2099-01-31\"", Takes),
    ("route", "prefix", "\"/moved\"", Names("route./moved")),
    ("route", "name", "\"another\"", Names("route./.name")),
    ("route", "upstream", "\"https://example.net\"", Names("route./.upstream")),
    ("route", "account", "\"pat\"", Names("route./.account")),
    ("route", "ca_file", "\"<home>/other_ca.pem\"", Takes),
    ("route", "proxy", "\"http://127.0.0.1:2\"", Names("route./.proxy")),
    ("route", "proxy_auth_file", "\"<home>/auth\"", Takes),
    ("route", "http", "\"1.1\"", Takes),
    ("callers", "users", "[\"self\", 4711]", Names("callers.users")),
    ("callers", "hosts", "[\"proxy.example\"]", Names("callers.hosts")),
    ("callers", "allowed_origins", "[\"https://page.example\"]", Names("callers.allowed_origins")),
    ("callers", "allow_remote", "true", Names("callers.allow_remote")),
    ("callers", "key", "[[callers.key]]\nname = \"more\"\nfile = \"<home>/other_key\"", Takes),
    ("callers.key", "name", "\"another\"", Takes),
    ("callers.key", "file", "\"<home>/moved_key\"", Takes),
    ("callers.key", "methods", "[\"GET\"]", Takes),
    ("callers.key", "paths", "[\"/api\"]", Takes),
    ("callers.key", "routes", "[\"/\"]", Takes),
    ("limits", "connections", "99", Names("limits.connections")),
    ("limits", "header_timeout", "\"99s\"", Names("limits.header_timeout")),
    ("limits", "connect_timeout", "\"99s\"", Names("limits.connect_timeout")),
    ("limits", "response_timeout", "\"99s\"", Names("limits.response_timeout")),
    ("limits", "stall_timeout", "\"99s\"", Names("limits.stall_timeout")),
    ("limits", "token_timeout", "\"99s\"", Names("limits.token_timeout")),
    ("limits", "token_wait", "\"99s\"", Names("limits.token_wait")),
    ("limits", "idle_timeout", "\"99s\"", Names("limits.idle_timeout")),
    ("limits", "drain_timeout", "\"99s\"", Names("limits.drain_timeout")),
    ("limits", "replay_buffer", "\"99KiB\"", Names("limits.replay_buffer")),
    ("notify", "command", "[\"/bin/true\"]", Names("notify.command")),
    ("notify", "webhook", "\"https://chat.example/x\"", Names("notify.webhook")),
    (
        "store",
        "url",
        "\"postgres://a@127.0.0.1/b\"\nseal_key_files = [\"<home>/seal_key\"]",
        Names("store.url"),
    ),
    // Of no use without a database.
    ("store", "password_file", "\"<home>/other_secret\"", Takes),
    ("store", "ca_file", "\"<home>/other_ca.pem\"", Takes),
    ("store", "schema", "\"another\"", Takes),
    ("store", "seal_key_files", "[\"<home>/seal_key\"]", Takes),
];

#[test]
fn every_key_is_taken_over_or_named_and_then_nothing_is() {
    let (world, file) = every_key();
    let asked: BTreeSet<_> = CHANGES.iter().map(|(table, key, ..)| (of_any_account(table), *key)).collect();
    assert_eq!(asked, keys_with_values().collect(), "a key is taken over or needs a restart: which of them?");

    for (table, key, value, does) in CHANGES {
        let value = value.replace("<home>", &world.home.path().display().to_string());
        world.home.secret("key", WRITTEN);
        fs::write(world.home.config(), changed(&file, table, key, &value)).unwrap();
        let said = hang_up(&world);

        let has_come = (status(&world, RUNS), status(&world, WRITTEN));
        match does {
            Takes => {
                assert!(said.contains("took over"), "{table}.{key}: {said}");
                assert_eq!(has_come, (401, 200), "{table}.{key} came with a key: {said}");
            }
            Names(name) => {
                let (_, named) = said.split_once("not taken over: these keys need a restart: ").expect(&said);
                assert!(named.trim_end().split(", ").any(|one| one == *name), "{table}.{key}: {said}");
                assert!(said.contains("ERROR") && !said.contains("example.net"), "{said}");
                assert_eq!(has_come, (200, 401), "{table}.{key} came with a key: {said}");
            }
        }

        world.home.secret("key", RUNS);
        fs::write(world.home.config(), &file).unwrap();
        assert!(hang_up(&world).contains("took over"), "as it was before {table}.{key}");
        assert_eq!((status(&world, RUNS), status(&world, WRITTEN)), (200, 401));
    }
}

/// A daemon whose file has each table, and that file.
fn every_key() -> (World, String) {
    let personal_access_tokens = vec![(PAT.to_owned(), Person::Bob)];
    let standin = Standin::start(Options { tls: true, personal_access_tokens, ..Options::default() });
    let home = Home::new(Vec::new());
    let key = home.secret("key", RUNS);
    home.secret("moved_key", WRITTEN);
    home.secret("other_key", "another-key-beside-it");
    home.secret("pat", PAT);
    home.secret("other_pat", "p4t-of-somebody");
    home.secret("auth", "user:password");
    home.secret("other_secret", "another-secret");
    home.secret("seal_key", SEAL_KEY);
    fs::copy(standin.ca_pem_path(), home.path().join("other_ca.pem")).unwrap();
    let proxy = "proxy = \"http://127.0.0.1:1\"";
    let pat = format!("{proxy}\n[account.pat]\ntoken_file = \"{}\"", home.path().join("pat").display());
    let tables = format!(
        "[callers]\n[[callers.key]]\nname = \"k\"\nfile = \"{}\"\n\n[limits]\n[notify]\n[store]\n",
        key.display()
    );
    let file = config(&standin, &home, "", &pat, &format!("account = \"main\"\n{proxy}"), &tables);
    fs::write(home.config(), &file).unwrap();
    let daemon = home.serve();
    (World { daemon, standin, home }, file)
}

/// The file with another value of one key, or with one more table.
fn changed(file: &str, table: &str, key: &str, value: &str) -> String {
    if value.starts_with("[account") || value.starts_with("[[") && value.contains('\n') {
        return format!("{file}\n{value}\n");
    }
    let header = match table {
        "" => String::new(),
        "route" | "callers.key" => format!("[[{table}]]"),
        _ => format!("[{table}]"),
    };
    let (mut is_inside, mut changed) = (table.is_empty(), String::new());
    if is_inside {
        changed = format!("{key} = {value}\n");
    }
    for line in file.lines() {
        if line.starts_with('[') {
            is_inside = line == header;
        }
        if !is_inside || line.split('=').next().map(str::trim) != Some(key) {
            changed += &format!("{line}\n");
        }
        if is_inside && line.starts_with('[') {
            changed += &format!("{key} = {value}\n");
        }
    }
    changed
}

fn of_any_account(table: &'static str) -> &'static str {
    if table.starts_with("account.") { "account.main" } else { table }
}

/// SIGHUP, and the line that says what came of it.
#[track_caller]
pub(crate) fn hang_up(world: &World) -> String {
    let lines = || -> Vec<String> {
        let output = world.daemon.output();
        let says = |line: &&str| line.contains("took over") || line.contains("not taken over");
        output.lines().filter(says).map(str::to_owned).collect()
    };
    let before = lines().len();
    world.daemon.signal(Signal::HUP);
    eventually("it is said what came of it", || lines().get(before).cloned())
}

/// What a caller gets who shows a key.
pub(crate) fn status(world: &World, key: &str) -> u16 {
    with_key(&world.daemon, key, "/-/status")
}

fn with_key(daemon: &Daemon, key: &str, target: &str) -> u16 {
    daemon.request("GET", target, &[("Authorization", &format!("Bearer {key}"))], b"").status
}

/// A daemon whose callers show [`RUNS`], from a file called `key`.
fn with_a_key(options: Options, environment: Vec<(String, String)>) -> World {
    let mut world = Setup {
        options,
        account: "grant = \"client_credentials\"".to_owned(),
        environment,
        ..Setup::default()
    }
    .start();
    let key = world.home.secret("key", RUNS);
    append(&world, &format!("[[callers.key]]\nname = \"k\"\nfile = \"{}\"\n", key.display()));
    world.restart();
    world
}

fn append(world: &World, text: &str) {
    let file = fs::read_to_string(world.home.config()).unwrap();
    fs::write(world.home.config(), format!("{file}\n{text}")).unwrap();
}

#[test]
fn the_log_filter_and_the_secret_do_not_come_when_another_key_needs_a_restart() {
    let world = with_a_key(Options::default(), Vec::new());
    let file = fs::read_to_string(world.home.config()).unwrap();
    world.home.secret("client_secret", "another-secret");
    fs::write(world.home.config(), format!("log = \"debug\"\n{file}\n[limits]\nconnections = 9\n")).unwrap();

    let refused = hang_up(&world);

    assert!(refused.ends_with("these keys need a restart: limits.connections"), "{refused}");
    assert!(world.home.run(&["refresh"], "").status.success(), "with the secret that runs");
    assert_eq!(status(&world, RUNS), 200, "a request is a line where the filter says so");
    fs::write(world.home.config(), &file).unwrap();
    assert!(hang_up(&world).contains("took over"));
    assert!(!world.daemon.output().contains("DEBUG"), "{}", world.daemon.output());
    assert!(!world.home.run(&["refresh"], "").status.success(), "with the secret that was taken over");
}

#[test]
fn a_ca_that_can_not_be_used_leaves_everything_as_it_was() {
    let options = Options { tls: true, ..Options::default() };
    let world = with_a_key(options, Vec::new());
    let other_ca = world.home.path().join("ca.pem");
    let file = fs::read_to_string(world.home.config()).unwrap();
    let ca = world.standin.ca_pem_path().display().to_string();
    let (before, after) = file.split_at(file.find("[[route]]").unwrap());
    let at = other_ca.display().to_string();
    for changed in [before.replace(&ca, &at) + after, before.to_owned() + &after.replace(&ca, &at)] {
        // PEM in form, and no certificate.
        fs::write(&other_ca, "-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n")
            .unwrap();
        fs::write(world.home.config(), format!("log = \"debug\"\n{changed}")).unwrap();
        world.home.secret("key", WRITTEN);

        assert!(hang_up(&world).contains("not taken over"));

        assert_eq!((status(&world, RUNS), status(&world, WRITTEN)), (200, 401));
        assert!(!world.daemon.output().contains("DEBUG"), "{}", world.daemon.output());
        eventually("the API is reached", || (with_key(&world.daemon, RUNS, "/echo/x") == 200).then_some(()));
    }
}

#[test]
fn the_system_s_certificates_are_read_again_and_not_when_they_are_gone() {
    let system = Home::new(Vec::new());
    let certificates = system.path().join("system.pem");
    let elsewhere = Standin::start(Options { tls: true, ..Options::default() });
    fs::copy(elsewhere.ca_pem_path(), &certificates).unwrap();
    let environment = vec![("SSL_CERT_FILE".to_owned(), certificates.display().to_string())];
    let options = Options { tls: true, ..Options::default() };
    let mut world = with_a_key(options, environment);
    let ca = format!("ca_file = \"{}\"\n", world.standin.ca_pem_path().display());
    let file = fs::read_to_string(world.home.config()).unwrap();
    fs::write(world.home.config(), file.replace(&ca, "")).unwrap();
    world.restart();
    let refresh = || world.home.run(&["refresh"], "").status.success();
    assert!(!refresh());

    fs::copy(world.standin.ca_pem_path(), &certificates).unwrap();
    assert!(hang_up(&world).contains("took over"));

    assert!(refresh(), "{}", world.daemon.output());
    eventually("the API is reached", || (with_key(&world.daemon, RUNS, "/echo/x") == 200).then_some(()));
    fs::write(&certificates, "").unwrap();
    world.home.secret("key", WRITTEN);
    let refused = hang_up(&world);
    assert!(refused.contains("not taken over: the system's CA certificates"), "{refused}");
    assert_eq!((status(&world, RUNS), status(&world, WRITTEN)), (200, 401));
    assert!(refresh());
}

#[test]
fn what_the_environment_says_is_what_runs() {
    let listen = ("CNBLOGS_PROXY_LISTEN".to_owned(), "127.0.0.1:0".to_owned());
    let world = with_a_key(Options::default(), vec![listen]);
    let file = fs::read_to_string(world.home.config()).unwrap();

    fs::write(world.home.config(), file.replace("127.0.0.1:0", "127.0.0.1:1")).unwrap();

    assert!(hang_up(&world).contains("took over"), "the variable says the same as before");
}

#[test]
fn the_command_says_what_came_of_it() {
    let mut world = with_a_key(Options::default(), Vec::new());
    let file = fs::read_to_string(world.home.config()).unwrap();
    let reload = || told(&world.home.run(&["reload"], ""));
    let asked =
        world.daemon.request("POST", "/-/reload", &[("Authorization", &format!("Bearer {RUNS}"))], b"");
    assert_eq!((asked.status, asked.problem().as_str()), (404, "not-found"), "for commands only");

    world.home.secret("key", WRITTEN);
    let done =
        (Some(0), "took over keys, secrets, certificates and the log filter\n".to_owned(), String::new());
    assert_eq!(reload(), done);
    assert_eq!((status(&world, RUNS), status(&world, WRITTEN)), (401, 200));

    let url = "token_url = \"https://example.net/\"\n#";
    fs::write(world.home.config(), file.replace("token_url =", url).replace("127.0.0.1:0", "127.0.0.1:1"))
        .unwrap();
    let why =
        "the configuration was not taken over: these keys need a restart: listen, account.main.token_url";
    assert_eq!(reload(), (Some(1), String::new(), format!("error: {why}\n")));
    world.daemon.says(why);

    // What is wrong with the file, the daemon says as well.
    fs::write(world.home.config(), format!("{file}\n[limits]\nconections = 1\n")).unwrap();
    let (code, out, err) = reload();
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("not taken over: ") && err.contains("limits.conections: unknown key"), "{err}");
    world.daemon.says("limits.conections");

    world.daemon.stop();
    let (code, _, err) = told(&world.home.run(&["reload"], ""));
    assert!(code == Some(1) && err.starts_with("error: no daemon is running on "), "{err}");
    assert!(err.contains("when `state_dir` has changed, it needs a restart"), "{err}");
}

fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}
