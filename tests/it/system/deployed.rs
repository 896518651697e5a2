//! What `deploy/README.md` tells to do, done to the letter. The part of Windows is played by a network of its own: the
//! daemon's kernel knows none of its sockets.

use std::fs;
use std::process::Command;

use crate::support::{Home, Setup, config};
use crate::system::attacks::network::{FOREIGN_LISTENER, personal};
use crate::system::in_a_network_of_its_own;
use crate::system::release::done;

const GUIDE: &str = include_str!("../../../deploy/README.md");

/// The code blocks of a section in one language.
#[track_caller]
pub(crate) fn blocks(section: &str, language: &str) -> Vec<String> {
    let (_, text) = GUIDE.split_once(&format!("\n## {section}\n")).expect("the section is there");
    let text = text.split("\n## ").next().unwrap();
    let code = text.split("\n```").skip(1).step_by(2);
    code.filter_map(|code| code.strip_prefix(&format!("{language}\n")))
        .map(|code| format!("{code}\n"))
        .collect()
}

#[test]
fn programs_of_windows_call_with_a_key_as_the_guide_says() {
    let section = "Programs of Windows, through WSL 2";
    let ([make, call], [callers]) = (&blocks(section, "sh")[..], &blocks(section, "toml")[..]) else {
        panic!("other blocks are in {section}");
    };
    let home = personal("self", "\"127.0.0.1:0\"");
    let unchanged = in_a_network_of_its_own(&format!("{FOREIGN_LISTENER}{WITHOUT_PROXY}{call}true"), &home);
    assert!(unchanged.contains("urn:cnblogs-proxy:forbidden-user"), "{unchanged}");

    // The next daemon's is waited for.
    fs::remove_file(home.path().join("output")).unwrap();

    done(&Command::new("sh").args(["-euc", make]).env("HOME", home.path()).output().unwrap());
    let before = fs::read_to_string(home.config()).unwrap();
    let before = before.split("[callers]").next().unwrap();
    let callers = callers.replace("/home/me", &home.path().display().to_string());
    fs::write(home.config(), format!("{before}{callers}")).unwrap();
    let key = |name: &str| {
        let file = home.path().join(format!(".config/cnblogs-proxy/{name}.key"));
        fs::read_to_string(file).unwrap().trim_end().to_owned()
    };
    let with_key = call.replace("KEY", &key("programs"));
    let script = format!(
        "{FOREIGN_LISTENER}{WITHOUT_PROXY}ask() {{ curl --silent --output /dev/null --write-out '%{{http_code}}\\n' \"$@\"; }}\n\
         {call}echo\n{with_key}echo\n\
         ask --user me:{person} http://localhost:8262/-/login\n\
         ask --user me:{programs} --request POST http://localhost:8262/-/logout/main\n\
         \"$1\" --config \"$2/config.toml\" status >/dev/null; echo status $?\n",
        person = key("person"),
        programs = key("programs"),
    );
    let said = in_a_network_of_its_own(&script, &home);

    let lines: Vec<_> = said.lines().collect();
    let [stranger, program, login, logout, status] = lines[..] else { panic!("{said}") };
    assert!(stranger.contains("urn:cnblogs-proxy:key-required"), "{stranger}");
    // It has no API.
    assert!(program.contains("urn:cnblogs-proxy:upstream-unreachable"), "{program}");
    assert_eq!((login, logout, status), ("200", "403", "status 0"), "{said}");
}

/// What this machine may have for its own ways out.
const WITHOUT_PROXY: &str = "unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY\n";

#[test]
fn replicas_of_an_application_s_account_do_not_disturb_each_other() {
    assert!(GUIDE.contains("| `client_credentials` | as many as you like"));
    let account = "grant = \"client_credentials\"";
    let world = Setup { account: account.to_owned(), ..Setup::default() }.start();
    let other = Home::new(Vec::new());
    fs::write(other.config(), config(&world.standin, &other, "", account, "", "")).unwrap();
    let replica = other.serve();

    for _ in 0..2 {
        for daemon in [&world.daemon, &replica] {
            assert_eq!(daemon.get("/echo").status, 200, "{}", daemon.output());
            assert_eq!(daemon.post_form("/-/refresh/main", &[]).status / 100, 2);
            assert_eq!(world.daemon.get("/echo").status, 200);
            assert_eq!(replica.get("/echo").status, 200);
        }
    }
}

#[test]
fn a_replica_with_a_personal_access_token_starts_on_an_empty_directory() {
    assert!(GUIDE.contains("| `personal_access_token` | as many as you like"));
    let home = personal("self", "\"127.0.0.1:0\"");

    for _ in 0..2 {
        let mut daemon = home.serve();
        assert_eq!(daemon.get("/x").problem(), "upstream-unreachable", "{}", daemon.output());
        assert!(daemon.stop().success());
        fs::remove_dir_all(home.state()).unwrap();
    }
}
