//! Users by name, as the machine knows them: by `getent`, which asks directories as well, or in `/etc/passwd`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::support::Home;

/// Directories may answer with another spelling of the name, and they have more users than `/etc/passwd`.
#[test]
fn users_of_a_directory_are_known_by_the_system_s_own_look_up() {
    let home = named("alice");
    getent(
        &home,
        "[ \"$*\" = 'passwd -- alice' ] && [ -z \"$CNBLOGS_PAT\" ] && echo 'EXAMPLE\\alice:*:64003:1::/:/bin/sh'",
    );

    let (code, said) = check(&home);

    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("users 64003,"), "{said}");
}

#[test]
fn a_name_that_nobody_knows_now_is_an_error_that_tells_of_numbers() {
    let home = named("alice");
    getent(&home, "exit 2");

    let (code, said) = check(&home);

    assert_eq!(code, Some(78), "{said}");
    for words in ["callers.users[0]: ", "no user of that name", "a number always works", "directory service"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("alice"), "{said}");
}

/// The look-up hangs as long as the directory's network does.
#[test]
fn a_directory_that_does_not_answer_is_not_waited_for_and_numbers_need_none() {
    let home = named("alice");
    getent(&home, "exec sleep 600");

    let started = Instant::now();
    let (code, said) = check(&home);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("can't be looked up (`getent passwd`): no answer within 5 s; a number"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(60));

    write(&home, "64004");
    assert!(check(&home).1.contains("users 64004,"));
}

pub(crate) fn named(user: &str) -> Home {
    let home = Home::new(vec![("CNBLOGS_PAT".to_owned(), "p4t".to_owned())]);
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    write(&home, user);
    home
}

fn write(home: &Home, user: &str) {
    let pat = home.secret("pat", "p4t");
    let (state, pat) = (home.state().display().to_string(), pat.display());
    fs::write(
        home.config(),
        format!("state_dir = \"{state}\"\n[account.main]\ntoken_file = \"{pat}\"\n[callers]\nusers = [\"{user}\"]\n"),
    )
    .unwrap();
}

/// What stands for the system's `getent` from now on.
fn getent(home: &Home, script: &str) {
    let directory = home.path().join("bin");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("getent"), format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(directory.join("getent"), fs::Permissions::from_mode(0o755)).unwrap();
}

fn check(home: &Home) -> (Option<i32>, String) {
    let mut command = home.command(&["check"]);
    command.env("PATH", format!("{}:/usr/bin:/bin", home.path().join("bin").display()));
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}
