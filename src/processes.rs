//! The processes of this machine (`proc_pid_stat(5)`), and how the end of one that could not be started is told.

use std::fs;
use std::io::{Error, ErrorKind};

/// The status of shells and `env(1)` for a program that is not there.
pub const NOT_FOUND: u8 = 127;
/// The same for one that can't be executed.
pub const NOT_EXECUTABLE: u8 = 126;

/// A process, with numbers of our PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its own number.
    pub id: i32,
    /// It has ended, and its parent has not asked how.
    pub is_zombie: bool,
    /// Its parent's number.
    pub parent: i32,
    /// Its process group; 0 when that is none of our namespace.
    pub group: i32,
}

impl Process {
    /// All that can be seen.
    pub fn all() -> impl Iterator<Item = Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.parse::<i32>().ok().and_then(|_number| Self::named(&name))
        })
    }

    /// The one that asks.
    pub fn own() -> Option<Self> {
        Self::named("self")
    }

    fn named(name: &str) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{name}/stat")).ok()?;
        let id = stat.split(' ').next()?.parse().ok()?;
        // The name of the program is in parentheses, and may hold anything.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let is_zombie = fields.next()? == "Z";
        Some(Self {
            id,
            is_zombie,
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
        })
    }
}

/// The status for a program that could not be started.
pub fn unstarted_status(error: &Error) -> u8 {
    if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_asks_is_among_all() {
        let own = Process::own().unwrap();

        assert_eq!(own.id, std::process::id().cast_signed());
        assert_eq!(own.parent, std::os::unix::process::parent_id().cast_signed());
        assert!(!own.is_zombie && Process::all().any(|process| process == own));
    }
}
