//! Keys that are changed while processes are killed and disks refuse.

use std::collections::BTreeSet;
use std::fs;

use super::killed::is_killed_at;
use crate::store::sealing::{configure, content, plain_files, said, world};
use crate::store::{current, files, stored_token};
use crate::support::behind;

/// Also where the generation before is the only one.
#[test]
fn a_rekey_that_is_killed_at_any_call_leaves_the_login_and_the_next_one_ends_it() {
    let mut world = world(&[]);
    world.daemon.stop();
    let home = &world.home;
    let token = stored_token(home);
    let plain = fs::read(current(home)).unwrap();
    configure(&world.standin, home, &["a.key"]);
    for generations in [&["store", "store.previous"][..], &["store.previous"]] {
        let is_killed = |call: &str, nth: usize| {
            for name in content(home).into_keys() {
                fs::remove_file(home.state().join(name)).unwrap();
            }
            for name in generations {
                fs::write(home.state().join(name), &plain).unwrap();
            }
            let is_killed = is_killed_at(home, &["store", "rekey"], call, nth);
            assert_eq!(stored_token(home), token, "{call}, number {nth}");
            is_killed
        };
        let calls = ["openat", "pwrite64", "fdatasync", "fsync", "ftruncate", "unlink", "linkat", "rename"];
        let kills = calls.map(|call| (1..).take_while(|nth| is_killed(call, *nth)).count());
        assert!(kills.iter().sum::<usize>() > 12 && kills[7] >= 2, "{kills:?}");

        assert_eq!(plain_files(&world), BTreeSet::new(), "the last one was not killed");
        is_killed("rename", 2);
        said(&home.run(&["store", "rekey"], ""), 0);
        assert_eq!(plain_files(&world), BTreeSet::new());
        assert_eq!(content(home).keys().collect::<Vec<_>>(), ["store", "store.previous"]);
    }
}

#[test]
fn a_rekey_on_a_disk_that_refuses_says_so_and_leaves_the_login() {
    let mut world = world(&[]);
    world.daemon.stop();
    let home = &world.home;
    let token = stored_token(home);
    configure(&world.standin, home, &["a.key"]);
    let taken = home.state().join("store.taken").display().to_string();
    for (call, error) in [("pwrite64", "ENOSPC"), ("fdatasync", "EIO"), ("rename", "ENOSPC")] {
        let left = fs::read(current(home)).unwrap();
        let line =
            format!("exec strace -f -o /dev/null -P '{taken}' -e inject={call}:error={error}:when=1 --");

        let told = said(&behind(&line, &home.command(&["store", "rekey"])).output().unwrap(), 1);

        assert!(told.starts_with("error: ") && told.contains("store.taken"), "{call}: {told}");
        assert_eq!((fs::read(current(home)).unwrap(), stored_token(home)), (left, token.clone()), "{call}");
        assert!(!files(home).contains("store.taken"), "{call}");
    }
    said(&home.run(&["store", "rekey"], ""), 0);
    assert_eq!((plain_files(&world), stored_token(&world.home)), (BTreeSet::new(), token));
}
