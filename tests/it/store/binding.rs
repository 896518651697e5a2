//! A login belongs to a client, a grant and a token endpoint. With another of them it is neither used nor lost.

use std::collections::BTreeSet;
use std::fs;

use cnblogs_proxy::store::accounts_in;
use serde_json::Value;

use super::damage::sealed;
use super::{current, files, next, previous};
use crate::standin::{Options, Person, Presented};
use crate::support::{Home, Setup, World};
use crate::tokens::{main_account, refresh};

/// The JSON of the current generation.
fn content(home: &Home) -> Value {
    let bytes = fs::read(current(home)).unwrap();
    let start = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    serde_json::from_slice(&bytes[start..]).unwrap()
}

fn write_content(home: &Home, content: &Value) {
    fs::write(current(home), sealed(1, content.to_string().as_bytes())).unwrap();
}

fn keys(home: &Home) -> Vec<String> {
    content(home)["accounts"].as_object().unwrap().keys().cloned().collect()
}

/// Starts the daemon again with something else in its configuration.
#[track_caller]
fn restart_with(world: &mut World, from: &str, to: &str) {
    let text = fs::read_to_string(world.home.config()).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(world.home.config(), text.replace(from, to)).unwrap();
    world.restart();
}

#[track_caller]
fn assert_is_alices(world: &World, what: &str) {
    assert_eq!(main_account(&world.daemon)["person"], Person::Alice.display_name(), "{what}");
    assert_eq!(world.daemon.get("/api/users").status, 200, "{what}");
    assert_eq!(refresh(&world.daemon).status, 200, "{what}: {}", world.daemon.output());
    assert_eq!(world.standin.refreshes().last().unwrap().presented, Presented::Current, "{what}");
}

#[test]
fn a_login_of_another_client_or_server_is_not_used_and_comes_back_with_the_configuration() {
    let mut world = World::logged_in();
    let client = format!("client_id = \"{}\"", world.standin.options().client_id);
    let token_url = format!("token_url = \"{}/connect/token\"", world.standin.auth_url());
    for (ours, other) in [
        (client.as_str(), "client_id = \"another\"".to_owned()),
        (&token_url, token_url.replace("/connect/token", "/another/token")),
    ] {
        let (spent, stored) = (world.standin.refreshes().len(), fs::read(current(&world.home)).unwrap());

        restart_with(&mut world, ours, &other);

        assert_eq!(world.daemon.get("/api/users").problem(), "login-required", "{other}");
        assert_eq!(refresh(&world.daemon).problem(), "login-required", "{other}");
        assert_eq!(world.standin.refreshes().len(), spent, "{other}");
        assert_eq!(fs::read(current(&world.home)).unwrap(), stored, "{other}");
        restart_with(&mut world, &other, ours);
        assert_is_alices(&world, &other);
    }
}

#[test]
fn a_persons_login_is_not_used_for_an_application_and_both_are_kept() {
    let mut world = World::logged_in();
    let (persons, applications) = ("redirect_uri = ", "grant = \"client_credentials\"\nredirect_uri = ");
    let alices = content(&world.home)["accounts"]["main"].clone();

    restart_with(&mut world, persons, applications);
    for _ in 0..2 {
        assert_eq!(refresh(&world.daemon).status, 200, "{}", world.daemon.output());
    }

    assert!(main_account(&world.daemon)["person"].is_null());
    assert_eq!(world.standin.refreshes().len(), 0, "her refresh token is not presented");
    assert_eq!(content(&world.home)["accounts"]["main"], alices);
    let beside = keys(&world.home).pop().unwrap();
    let digest = beside.strip_prefix("main@").unwrap_or_else(|| panic!("{beside}"));
    assert!(digest.len() == 8 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{beside}");
    assert_eq!(content(&world.home)["accounts"][&beside]["grant"], "client_credentials");

    restart_with(&mut world, applications, persons);
    assert_is_alices(&world, "again");
    let asked = world.standin.token_requests().len();
    restart_with(&mut world, persons, applications);
    assert_eq!(world.daemon.get("/status/200").status, 200);
    assert_eq!(world.standin.token_requests().len(), asked, "the application's own is found again, too");
    assert_eq!(keys(&world.home), ["main", &beside]);
}

#[test]
fn a_login_of_0_1_0_belongs_to_any_server_until_it_is_refreshed() {
    let mut world = World::logged_in();
    world.daemon.stop();
    let mut old = content(&world.home);
    let login = old["accounts"]["main"].as_object_mut().unwrap();
    assert_eq!(login.remove("grant").unwrap(), "authorization_code");
    let token_url = login.remove("token_url").unwrap();
    assert_eq!(token_url, format!("{}/connect/token", world.standin.auth_url()));
    write_content(&world.home, &old);

    world.daemon = world.home.serve();
    assert_is_alices(&world, "unbound");

    assert_eq!(keys(&world.home), ["main"]);
    assert_eq!(content(&world.home)["accounts"]["main"]["token_url"], token_url);
    // A person's login is known by its refresh token, whatever the file says.
    world.daemon.stop();
    write_content(&world.home, &old);
    world.daemon = world.home.serve();
    restart_with(&mut world, "redirect_uri = ", "grant = \"client_credentials\"\nredirect_uri = ");
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(
        content(&world.home)["accounts"]["main"]["access_token"],
        old["accounts"]["main"]["access_token"]
    );
}

#[test]
fn a_logout_leaves_nothing_that_holds_a_token_of_the_account() {
    let mut world = World::logged_in();
    assert_eq!(refresh(&world.daemon).status, 200);
    world.daemon.stop();
    let mut stored = content(&world.home);
    let mine = stored["accounts"]["main"].clone();
    let mut others = mine.clone();
    others["client_id"] = "another".into();
    others["access_token"] = "access-token-of-another".into();
    stored["accounts"]["main@0badc0de"] = others;
    // Of an account that is not configured any more, whose refresh was half written.
    stored["accounts"]["gone"] = mine.clone();
    stored["accounts"]["gone"]["access_token"] = "access-token-of-gone".into();
    stored["accounts"]["gone"]["refresh_token"] = "refresh-token-of-gone".into();
    write_content(&world.home, &stored);
    let state = world.home.state();
    let whole = fs::read(current(&world.home)).unwrap();
    for name in ["store.damaged", "store.previous.damaged", "store.next.gone"] {
        fs::write(state.join(name), &whole[..whole.len() - 1]).unwrap();
    }
    fs::write(state.join("store.taken"), &whole).unwrap();
    world.daemon = world.home.serve();
    assert_eq!(accounts_in(&state), BTreeSet::from(["gone".to_owned(), "main".to_owned()]));

    assert_eq!(world.daemon.post_form("/-/logout/main", &[]).status, 200, "{}", world.daemon.output());

    let mut secrets = world.standin.issued_secrets();
    secrets.push("access-token-of-another".to_owned());
    for name in files(&world.home) {
        let bytes = fs::read(state.join(&name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!secrets.iter().any(|secret| text.contains(secret)), "{name}");
    }
    assert_eq!(keys(&world.home), ["gone"]);
    assert_eq!(fs::read(state.join("store.next.gone")).unwrap(), b"", "it still says that one was in flight");
    let left = ["control.sock", "lock", "store", "store.next.gone"].map(str::to_owned);
    assert_eq!(files(&world.home), left.into());
    world.restart();
    assert_eq!(world.daemon.state(), "login-required");
}

#[test]
fn which_accounts_have_a_login_is_read_beside_a_daemon_and_changes_nothing() {
    let world = World::start();
    let state = world.home.state();
    assert_eq!(accounts_in(&state), BTreeSet::new());
    world.log_in(Person::Alice);
    assert_eq!(refresh(&world.daemon).status, 200);
    let main = BTreeSet::from(["main".to_owned()]);
    let whole = fs::read(current(&world.home)).unwrap();

    assert_eq!(accounts_in(&state), main);
    fs::write(current(&world.home), b"damaged").unwrap();
    let before = files(&world.home);
    assert_eq!(accounts_in(&state), main, "the generation before says it as well");
    assert_eq!((files(&world.home), fs::read(current(&world.home)).unwrap()), (before, b"damaged".to_vec()));

    fs::remove_file(previous(&world.home)).unwrap();
    fs::write(next(&world.home), &whole).unwrap();
    assert_eq!(accounts_in(&state), BTreeSet::new());
    assert_eq!(accounts_in(&state.join("nowhere")), BTreeSet::new());
}

/// The same configuration without the account `main`, which has a login, and with another one of the same client.
fn without_main(world: &World) {
    let config = fs::read_to_string(world.home.config()).unwrap();
    let config = config.replace("[account.main]", "[account.another]");
    fs::write(world.home.config(), config).unwrap();
}

#[test]
fn an_account_that_is_not_configured_any_more_can_be_logged_out_with_and_without_a_daemon() {
    for has_daemon in [true, false] {
        let mut world = World::logged_in();
        world.daemon.stop();
        without_main(&world);

        let checked = world.home.run(&["check"], "");
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(said.contains("login of account main, which is not configured"), "{said}");
        if has_daemon {
            world.daemon = world.home.serve();
        }
        let output = world.home.run(&["logout", "main"], "");

        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(world.standin.revocations().len(), 1, "the client is the same: {output:?}");
        assert_eq!(accounts_in(&world.home.state()), BTreeSet::new());
        let again = world.home.run(&["logout", "main"], "");
        assert_eq!(again.status.code(), Some(2), "{again:?}");
    }
}

#[test]
fn a_logout_of_an_older_login_leaves_the_personal_access_token_in_use() {
    let pat = "pat-0123456789abcdefghijklmnopqrstuvwxyz";
    let options =
        Options { personal_access_tokens: vec![(pat.to_owned(), Person::Alice)], ..Options::default() };
    let mut world = Setup { options, ..Setup::default() }.logged_in();
    world.daemon.stop();
    let token_file = world.home.secret("pat", pat);
    let config = format!(
        "listen = [\"127.0.0.1:0\"]\nstate_dir = \"{}\"\n[account.main]\ngrant = \"personal_access_token\"\n\
         token_file = \"{}\"\n[[route]]\nupstream = \"{}\"\n",
        world.home.state().display(),
        token_file.display(),
        world.standin.api_url()
    );
    fs::write(world.home.config(), config).unwrap();
    world.daemon = world.home.serve();
    assert_eq!(world.daemon.get("/api/users").status, 200);

    assert_eq!(world.daemon.post_form("/-/logout/main", &[]).status, 200);

    assert_eq!(accounts_in(&world.home.state()), BTreeSet::new());
    assert_eq!(world.daemon.get("/api/users").status, 200, "{}", world.daemon.output());
    assert_eq!(world.daemon.state(), "ready");
}

#[test]
fn a_login_that_no_configured_client_can_revoke_is_erased_and_that_is_said() {
    let mut world = World::logged_in();
    world.daemon.stop();
    without_main(&world);
    let config = fs::read_to_string(world.home.config()).unwrap();
    let client_id = &world.standin.options().client_id;
    fs::write(world.home.config(), config.replace(client_id, "another-client")).unwrap();

    let output = world.home.run(&["logout", "main"], "");

    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("the server was not told"), "{output:?}");
    assert_eq!((world.standin.revocations().len(), accounts_in(&world.home.state())), (0, BTreeSet::new()));
}
