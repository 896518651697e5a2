//! The users of this machine by name, as the system itself looks them up (NSS, `nsswitch.conf(5)`).

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::ioctl_fionbio;
use zeroize::Zeroizing;

use super::{SECRET_VARIABLES, files};

/// A directory service that does not answer holds up no start and no reload.
const FOUND_WITHIN: Duration = Duration::from_secs(5);
/// A line of passwd(5) is shorter.
const LONGEST_LINE: usize = 64 * 1024;

/// The uid of a user. `getent` asks whatever holds the users of this machine, LDAP as well; a static program can't,
/// since glibc loads what asks. Where there is no `getent`, there is `/etc/passwd`, whatever else its lines hold.
pub(super) fn uid_of(name: &str) -> Result<u32, String> {
    let found = match getent(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let passwd = fs::read("/etc/passwd").unwrap_or_default();
            passwd
                .split(|byte| *byte == b'\n')
                .find(|line| field(line, 0) == Some(name.as_bytes()))
                .and_then(uid_in)
        }
        Err(error) => {
            return Err(format!("can't be looked up (`getent passwd`): {error}; a number always works"));
        }
        Ok(line) => uid_in(&line),
    };
    found.ok_or_else(|| {
        "this machine knows no user of that name now; a number always works, even while a directory service is down"
            .to_owned()
    })
}

/// What it prints, which is nothing when there is no such user.
fn getent(name: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut command = Command::new("getent");
    for secret in SECRET_VARIABLES {
        command.env_remove(secret);
    }
    command.args(["passwd", "--", name]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let output = OwnedFd::from(child.stdout.take().expect("it is piped"));
    ioctl_fionbio(&output, true)?;
    let line = files::read_to_end(File::from(output), LONGEST_LINE, Duration::ZERO, FOUND_WITHIN);
    if line.is_err() {
        let _killed = child.kill();
    }
    // How it ended says nothing beyond what it printed.
    let _reaped = child.wait();
    line.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => io::Error::new(error.kind(), "no answer within 5 s"),
        _ => io::Error::other(error),
    })
}

fn uid_in(line: &[u8]) -> Option<u32> {
    std::str::from_utf8(field(line, 2)?).ok()?.parse().ok()
}

fn field(line: &[u8], index: usize) -> Option<&[u8]> {
    line.split(|byte| *byte == b':').nth(index)
}
