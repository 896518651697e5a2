//! Secrets of a service, which root looks at.

use std::fs::{self};
use std::os::unix::fs::chown;
use std::path::PathBuf;

use crate::secrets::{SECRET, with_file};

/// What belongs to the user of the service is right as it is, whoever looks.
#[test]
fn root_s_check_warns_of_nothing_that_is_the_service_s_own() {
    assert!(rustix::process::geteuid().is_root(), "this test gives files away: it needs root");
    let (home, file) = with_file("client_secret_file", SECRET.as_bytes());
    fs::create_dir(home.state()).unwrap();
    let warnings = || {
        let said = String::from_utf8(home.run(&["check"], "").stdout).unwrap();
        let ours =
            |line: &&str| line.starts_with("warning: ") && line.contains(&home.path().display().to_string());
        said.lines().filter(ours).map(str::to_owned).collect::<Vec<_>>()
    };

    for path in [home.state(), PathBuf::from(&file), home.config()] {
        chown(path, Some(64_999), Some(64_999)).unwrap();
    }
    assert_eq!(warnings(), Vec::<String>::new());

    chown(&file, Some(64_998), None).unwrap();
    let found = warnings();
    assert!(found.len() == 1 && found[0].contains("belongs to user 64998"), "{found:?}");
}
