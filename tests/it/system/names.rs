//! Users by name on a machine whose list of users is another one.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::names::named;
use crate::support::PROGRAM;

/// Puts a file over `/etc/passwd` where nobody else sees it, and runs the program there: `$1` is the file, `$2` the
/// `PATH`.
const WITH_PASSWD: &str = r#"mount --bind "$1" /etc/passwd && shift && PATH="$1" && shift && exec "$@""#;

#[test]
fn a_name_in_another_character_set_hides_no_other_one() {
    let home = named("alice");
    let passwd = [
        &fs::read("/etc/passwd").unwrap()[..],
        b"\xd6\xd0\xce\xc4:x:64001:64001:\xc0\xc9:/:/bin/sh\nalice:x:64002:64002:\xc0\xc9:/:/bin/sh\n",
    ];
    let file = home.path().join("passwd");
    fs::write(&file, passwd.concat()).unwrap();
    let without_getent = home.path().join("empty");
    fs::create_dir(&without_getent).unwrap();

    for path in [Path::new("/usr/bin:/bin"), &without_getent] {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", WITH_PASSWD, "sh"]).args([&file, path]).arg(PROGRAM);
        let output = command.args(["check", "--config"]).arg(home.config()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("users 64002,"), "{path:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    }
}
