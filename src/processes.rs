//! The processes of this machine (`proc_pid_stat(5)`), and how programs are started that need something done to their
//! process first.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Error, ErrorKind, Write as _, stderr};
use std::os::unix::process::{CommandExt as _, parent_id};
use std::process::{Command, ExitCode};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};

/// The program under this name only does to its process what its first argument says, and becomes the program that the
/// others name. Between fork and exec a process may not do so itself without unsafe code.
pub const LAUNCHER: &str = "cnblogs-proxy-launch";
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

/// What is done to a process before it becomes a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// Its limit of open files is that.
    OpenFiles(u64),
    /// The kernel kills it when the thread that starts it ends, even by SIGKILL.
    EndsWithUs,
}

impl Prepared {
    /// Starts a program so. It ends with [`NOT_FOUND`] or [`NOT_EXECUTABLE`], and says why, when it can't.
    pub fn command(self, program: &OsStr) -> Command {
        // Also when another file is at our path by now.
        let mut command = Command::new("/proc/self/exe");
        let prepared = match self {
            Self::OpenFiles(limit) => format!("files={limit}"),
            Self::EndsWithUs => format!("parent={}", std::process::id()),
        };
        command.arg0(LAUNCHER).arg(prepared).arg(program);
        command
    }
}

/// Becomes the program, as [`LAUNCHER`] says; returns only when that fails.
pub fn launch(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let prepared = prepare(&arguments.next().unwrap_or_default().to_string_lossy());
    let program = arguments.next().unwrap_or_default();
    let error = match prepared {
        Ok(()) => Command::new(&program).args(arguments).exec(),
        Err(error) => error,
    };
    let _written = writeln!(stderr(), "error: {}: {error}", program.display());
    ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE })
}

fn prepare(text: &str) -> io::Result<()> {
    match text.split_once('=') {
        Some(("files", limit)) => {
            let maximum = getrlimit(Resource::Nofile).maximum;
            Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.parse().ok(), maximum })?)
        }
        Some(("parent", id)) => {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // It may have ended before, and then nothing comes.
            let is_alive = id.parse() == Ok(parent_id());
            if is_alive { Ok(()) } else { Err(Error::other("what started it has ended")) }
        }
        _ => Err(ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_asks_is_among_all() {
        let own = Process::own().unwrap();

        assert_eq!(own.id, std::process::id().cast_signed());
        assert_eq!(own.parent, parent_id().cast_signed());
        assert!(!own.is_zombie && Process::all().any(|process| process == own));
    }
}
