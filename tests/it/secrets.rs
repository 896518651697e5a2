//! Secrets as they come: from Windows, from a note, from a chat; and files of theirs that others can read.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use crate::support::{Home, Setup};

pub(crate) const SECRET: &str = "s3cret-0123456789";
/// What is wrong with a secret, and the words for it. `S` stands for the secret.
const WRONG: &[(&str, &str)] = &[
    ("\"S\"\n", "has quotes around what it holds"),
    ("'S'", "has quotes around what it holds"),
    ("`S`", "has quotes around what it holds"),
    ("\u{feff}\"S\"\r\n", "has quotes around what it holds"),
    ("\u{201c}S\u{201d}", "has quotes around what it holds"),
    ("S\nS\n", "has more than one line"),
    ("S\n# note", "has more than one line"),
    ("S\rS", "has more than one line"),
    ("S\u{200b}\n", "can't be seen (U+200B)"),
    ("\u{a0}S", "can't be seen (U+00A0)"),
    ("S\u{3000}", "can't be seen (U+3000)"),
    ("S\u{7f}", "can't be seen (U+007F)"),
    ("S\tS", "can't be seen (U+0009)"),
    ("\u{202a}S\u{202c}", "can't be seen (U+202A)"),
    ("\u{feff}\u{feff}S", "can't be seen (U+FEFF)"),
    ("S\u{fe0f}", "can't be seen (U+FE0F)"),
    ("S\u{e0041}", "can't be seen (U+E0041)"),
    ("\u{feff}\r\n", "is empty"),
];
/// What is taken off.
const RIGHT: &[&str] = &["S", "S\n", "S\r\n", "\u{feff}S\r\n", " S \n\n", "\"S", "S'"];

#[test]
fn what_is_no_part_of_a_secret_is_taken_off_and_nobody_guesses_at_the_rest() {
    for key in ["client_secret_file", "token_file", "file"] {
        for (content, says) in WRONG {
            let (home, file) = with_file(key, content.replace('S', SECRET).as_bytes());
            refused(&home.run(&["check"], ""), &[&file, says, &format!(".{key}: ")], content);
        }
        for content in RIGHT.iter().filter(|content| key != "token_file" || !content.contains(['"', '\''])) {
            let (home, _) = with_file(key, content.replace('S', SECRET).as_bytes());
            let output = home.run(&["check"], "");
            assert!(output.status.success(), "{key} {content:?}: {output:?}");
        }
    }
}

/// A secret goes out as it was meant.
#[test]
fn a_byte_order_mark_is_not_sent_along() {
    let home = Home::new(Vec::new());
    let file = home.secret("marked", "\u{feff}p4t-0123\r\n");
    let home = Home::new(vec![("CNBLOGS_PAT_FILE".to_owned(), file.display().to_string())]);
    assert_eq!(home.run(&["token"], "").stdout, b"p4t-0123\n");
}

#[test]
fn what_windows_powershell_writes_is_named() {
    let wide = |text: &str| text.encode_utf16().collect::<Vec<_>>();
    let little = |text: &str| wide(text).iter().flat_map(|unit| unit.to_le_bytes()).collect::<Vec<_>>();
    let big = |text: &str| wide(text).iter().flat_map(|unit| unit.to_be_bytes()).collect::<Vec<_>>();
    let marked = format!("\u{feff}{SECRET}\r\n");
    for content in [little(&marked), big(&marked), little(SECRET), big(SECRET)] {
        let (home, file) = with_file("client_secret_file", &content);
        refused(&home.run(&["check"], ""), &[&file, "is in UTF-16", "PowerShell"], "UTF-16");
    }
    for content in [&b"s3cret\xff\xff"[..], b"s3\0cret", b"\xb2\xe2\xca\xd4"] {
        let (home, file) = with_file("client_secret_file", content);
        refused(&home.run(&["check"], ""), &[&file], "no text");
    }
}

#[test]
fn variables_and_credentials_are_judged_as_files_are() {
    for (content, says) in WRONG {
        let content = content.replace('S', SECRET);
        for (name, account) in [("CNBLOGS_CLIENT_SECRET", Some("id")), ("CNBLOGS_PAT", None)] {
            let id = account.map(|id| ("CNBLOGS_CLIENT_ID".to_owned(), id.to_owned()));
            let home = Home::new([(name.to_owned(), content.clone())].into_iter().chain(id).collect());
            refused(&home.run(&["check"], ""), &[&format!("error: {name}: "), says], &content);
        }
        let credentials = Home::new(Vec::new());
        let file = credentials.secret("pat", &content).display().to_string();
        let directory = credentials.path().display().to_string();
        let home = Home::new(vec![("CREDENTIALS_DIRECTORY".to_owned(), directory)]);
        refused(&home.run(&["check"], ""), &["error: CREDENTIALS_DIRECTORY: ", &file, says], &content);
        let home = Home::new(vec![("CNBLOGS_PAT_FILE".to_owned(), file.clone())]);
        refused(&home.run(&["check"], ""), &["error: CNBLOGS_PAT_FILE: ", &file, says], &content);
    }
}

#[test]
fn a_home_that_no_shell_wrote_out_is_named() {
    for (table, key) in [
        ("account.main", "client_secret_file"),
        ("account.main", "token_file"),
        ("account.main", "ca_file"),
        ("callers.key", "file"),
        ("", "state_dir"),
    ] {
        let (home, file) =
            with_file(if key == "ca_file" || key == "state_dir" { "token_file" } else { key }, b"x");
        let text = fs::read_to_string(home.config()).unwrap();
        let text = match (table, key) {
            ("", _) => text.replace(&home.state().display().to_string(), "~/state"),
            (_, "ca_file") => text.replace("[account.main]\n", "[account.main]\nca_file = \"~/ca.pem\"\n"),
            _ => text.replace(&file, "~/secret"),
        };
        fs::write(home.config(), text).unwrap();
        refused(&home.run(&["check"], ""), &[&format!("{key}: "), "`~` is not expanded here"], key);
    }
    let home = Home::new(vec![("CNBLOGS_PAT_FILE".to_owned(), "~/pat".to_owned())]);
    refused(&home.run(&["check"], ""), &["CNBLOGS_PAT_FILE: ", "`~` is not expanded here"], "variable");
}

#[test]
fn a_secret_that_others_can_read_is_told_when_the_daemon_starts() {
    let mut world = Setup::default().start();
    let warning = "client_secret can be read by others (mode 0644): chmod 600 it";
    assert!(!world.daemon.output().contains("can be read by others"));

    fs::set_permissions(world.home.path().join("client_secret"), Permissions::from_mode(0o644)).unwrap();
    world.restart();

    let output = world.daemon.output();
    assert!(output.contains(warning) && output.contains("WARN"), "{output}");
    assert!(!output.contains(&world.standin.options().client_secret), "{output}");
}

/// A home with an account or a caller's key whose secret is in a file, and the file.
pub(crate) fn with_file(key: &str, content: &[u8]) -> (Home, String) {
    let home = Home::new(Vec::new());
    let file = home.secret("the-file", "");
    fs::write(&file, content).unwrap();
    let file = file.display().to_string();
    let main = match key {
        "client_secret_file" => format!("client_id = \"id\"\nclient_secret_file = \"{file}\"\n"),
        "token_file" => format!("token_file = \"{file}\"\n"),
        _ => format!(
            "token_file = \"{}\"\n[[callers.key]]\nname = \"k\"\nfile = \"{file}\"\n",
            home.secret("pat", "p4t").display()
        ),
    };
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nstate_dir = \"{}\"\n[account.main]\n{main}",
        home.state().display()
    );
    fs::write(home.config(), text).unwrap();
    fs::set_permissions(home.config(), Permissions::from_mode(0o600)).unwrap();
    (home, file)
}

#[track_caller]
fn refused(output: &Output, says: &[&str], row: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{row:?}: {output:?}");
    for words in says {
        assert!(said.contains(words), "{row:?} does not say {words}: {said}");
    }
    assert!(!said.contains(SECRET), "{said}");
}
