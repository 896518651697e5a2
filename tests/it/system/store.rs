//! A login on a machine where disks fill up, processes are killed at any call, and other users are about.

mod crash;
mod faults;
mod images;
mod killed;
mod running;
mod sealing;
pub(crate) mod strace;
mod strangers;

use std::fs;
use std::os::unix::fs::chown;
use std::process::{Command, Stdio};

use crate::standin::{Endpoint, Fault, Gate};
use crate::store::{errors_of, set_mode};
use crate::support::{Home, PROGRAM, World, behind};
use crate::tokens::refresh;
use crate::tokens::{Sent, held};

/// Neither root nor anybody else in particular.
const NOBODY: u32 = 65534;

#[test]
fn a_store_of_somebody_else_is_refused() {
    for foreign in ["state", "state/store"] {
        let mut world = World::logged_in();
        world.daemon.stop();
        let home = world.home.path().to_owned();
        for path in ["", "client_secret", "config.toml", "state", "state/store", "state/lock"] {
            chown(home.join(path), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        chown(home.join(foreign), Some(0), Some(0)).unwrap();
        set_mode(&home, 0o755);
        set_mode(&home.join("state"), 0o777);
        let drop_rights = format!("exec timeout 20 setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups");
        let mut command = behind(&drop_rights, &as_anybody(&world.home));
        command.stdin(Stdio::null());

        let output = command.output().unwrap();

        let errors = errors_of(&output);
        assert_eq!(output.status.code(), Some(1), "{foreign}: {errors}");
        assert!(errors.contains("belongs to user 0") && errors.contains("error: "), "{foreign}: {errors}");
    }
}

#[test]
fn a_store_that_cannot_be_read_is_not_taken_for_a_damaged_one() {
    let mut world = World::logged_in();
    refresh(&world.daemon);
    world.daemon.stop();
    let home = world.home.path().to_owned();
    for path in ["", "client_secret", "config.toml", "state", "state/lock", "state/store.previous"] {
        chown(home.join(path), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    chown(home.join("state/store"), Some(NOBODY), Some(NOBODY)).unwrap();
    set_mode(&home.join("state/store"), 0);
    let drop_rights = format!("exec timeout 20 setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups");
    let before = fs::read(home.join("state/store")).unwrap();

    let output = behind(&drop_rights, &as_anybody_does(&world.home, "token")).output().unwrap();

    let errors = errors_of(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("error: ") && errors.contains("store"), "{errors}");
    assert_eq!(fs::read(home.join("state/store")).unwrap(), before);
}

/// `serve` by a copy of the program that every user may run.
fn as_anybody(home: &Home) -> Command {
    as_anybody_does(home, "serve")
}

fn as_anybody_does(home: &Home, what: &str) -> Command {
    let program = home.path().join("program");
    fs::copy(PROGRAM, &program).unwrap();
    set_mode(&program, 0o755);
    let mut command = Command::new(program);
    command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", home.path());
    command.arg("--config").arg(home.config()).arg(what);
    command
}

/// A refresh that has taken its room and waits for the server.
pub(super) fn reserved(world: &World) -> (Sent, Gate) {
    let gate = Gate::default();
    world.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));
    let asked = Sent::refresh(&world.daemon);
    held(&gate);
    (asked, gate)
}
