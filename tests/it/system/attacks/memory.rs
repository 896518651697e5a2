//! The local adversary by way of memory: another program of the same user, a crash, a dump by root.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::support::{Daemon, PROGRAM, Setup, World, eventually};
use crate::tokens::refresh;

/// `nobody`.
const STRANGER: u32 = 65534;
/// How many refreshes there are before memory is looked through.
const REFRESHES: &str = "MEMORY_REFRESHES";
const REFRESHES_BY_DEFAULT: usize = 100;
/// Buffers of the HTTP client that were freed while their connection still closed. Before ours were wiped, one of
/// three tokens was left.
const MOST_LEFT: usize = 6;
/// So much of a secret says which one it is.
const KNOWN_BY: usize = 16;

#[test]
fn the_allocator_gives_back_what_is_free_after_a_second() {
    let said = Command::new(PROGRAM).arg("--version").env("_RJEM_MALLOC_CONF", "confirm_conf:true").output();

    let said = String::from_utf8(said.unwrap().stderr).unwrap();
    for setting in ["dirty_decay_ms:1000", "muzzy_decay_ms:0", "slab_sizes:2049-14336:16"] {
        assert!(said.contains(&format!("-- Set conf value: {setting}\n")), "{setting}: {said}");
    }
}

/// loc-007
#[test]
fn another_program_of_the_same_user_sees_nothing_and_a_crash_leaves_no_core() {
    for signal in [Signal::ABORT, Signal::SEGV] {
        let mut world = World::logged_in();
        let directory = as_nobody(&mut world);
        let other = Other(as_user(Command::new("sleep").arg("600").stdout(Stdio::null())).spawn().unwrap());
        let (victim, control) = (world.daemon.pid(), other.0.id());

        for file in ["environ", "mem", "maps", "auxv", "fd/0"] {
            let read = |pid| peer(&["head", "-c", "1", &format!("/proc/{pid}/{file}")]);
            let refused = read(victim);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && said.contains("ermission denied"), "{file}: {refused:?}");
            let is_file = ["environ", "maps", "auxv"].contains(&file);
            assert!(!is_file || read(control).status.success(), "{file} of other programs can be read");
        }
        let attached = peer(&["timeout", "10", "strace", "-p", &victim.to_string()]);
        let said = String::from_utf8_lossy(&attached.stderr).into_owned();
        assert!(!attached.status.success() && said.contains("Operation not permitted"), "{attached:?}");
        assert!(
            limits(victim).contains("Max core file size        0                    0"),
            "{}",
            limits(victim)
        );
        // The first SIGSEGV that nothing caused only meets the handler that looks for stack overflows.
        eventually("it ends", || {
            world.daemon.signal(signal);
            let stat = fs::read_to_string(format!("/proc/{victim}/stat")).unwrap();
            stat.contains(") Z ").then_some(())
        });
        let ended = world.daemon.wait();

        assert_eq!((ended.signal(), ended.core_dumped()), (Some(signal.as_raw()), false), "{ended}");
        let names: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!names.iter().any(|name| name.to_string_lossy().contains("core")), "{names:?}");
    }
}

/// loc-011
#[test]
fn a_panic_and_a_crash_tell_no_secret_however_much_they_tell() {
    let mut world = Setup {
        // A warning starts a thread that counts its like, and when that has ended, another one gets its stack.
        top: "log = \"trace,cnblogs_proxy::notify=off\"\nworkers = 1".to_owned(),
        environment: vec![("RUST_BACKTRACE".to_owned(), "full".to_owned())],
        ..Setup::default()
    }
    .logged_in();
    assert_eq!(world.daemon.get("/echo").status, 200);
    let victim = world.daemon.pid();
    // Threads for files end after a while, and then memory for a new one can't be had.
    eventually("only the worker, the log and the main thread are left", || {
        (threads(victim) == 3).then_some(())
    });
    let limit = Some(virtual_bytes(victim) + (1 << 20));
    prlimit(pid(victim), Resource::As, Rlimit { current: limit, maximum: limit }).unwrap();

    let _cut_off = world.daemon.raw(
        format!("POST /-/refresh/main HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", world.daemon.authority).as_bytes(),
    );
    world.daemon.says("panicked at");
    // A daemon that can't refresh any more is no good: the service manager shall start another.
    assert_eq!(world.daemon.wait().code(), Some(1), "{}", world.daemon.output());
    let mut output = world.daemon.output();
    assert!(output.contains("error: the keeper of an account has failed"), "{output}");
    world.daemon = world.home.serve();
    assert_eq!(refresh(&world.daemon).status, 200);
    world.daemon.signal(Signal::ABORT);
    assert_eq!(world.daemon.wait().signal(), Some(Signal::ABORT.as_raw()));

    output += &world.daemon.output();
    let mut secrets = world.standin.issued_secrets();
    secrets.push(world.standin.options().client_secret.clone());
    assert!(secrets.len() > 3, "a login brings several secrets");
    let told = secrets.iter().filter(|secret| output.contains(&secret[..KNOWN_BY])).count();
    assert_eq!(told, 0, "{told} secrets are told: {output}");
}

/// loc-014
#[test]
fn a_dump_has_the_tokens_in_use_and_hardly_any_before() {
    assert!(is_root(), "only root reads the memory of a daemon that is not dumpable");
    let refreshes = std::env::var(REFRESHES).map_or(REFRESHES_BY_DEFAULT, |number| number.parse().unwrap());
    let world = Setup { top: "workers = 1".to_owned(), ..Setup::default() }.logged_in();
    for _ in 0..refreshes {
        assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
        assert_eq!(world.daemon.get("/echo").status, 200);
    }

    let secrets = world.standin.issued_secrets();
    assert!(secrets.len() > 2 * refreshes, "a refresh brings two tokens");
    let found = found_in_memory(world.daemon.pid(), &secrets);

    // Each refresh brings three, and the login a code as well, which is spent.
    let old = found.keys().filter(|at| (1..secrets.len() - 6).contains(*at)).count();
    assert!(found.keys().any(|at| *at >= secrets.len() - 3), "the token in use is not even found");
    assert!(old <= MOST_LEFT, "{old} old ones of {} secrets, by number: {found:?}", secrets.len());
}

/// Which secrets are in a process's memory, by their place in the list, and how often.
pub(crate) fn found_in_memory(victim: u32, secrets: &[String]) -> std::collections::BTreeMap<usize, usize> {
    let known: HashMap<&[u8], usize> =
        secrets.iter().enumerate().map(|(at, secret)| (&secret.as_bytes()[..KNOWN_BY], at)).collect();
    let memory = File::open(format!("/proc/{victim}/mem")).unwrap();
    let mut found = std::collections::BTreeMap::new();
    for line in fs::read_to_string(format!("/proc/{victim}/maps")).unwrap().lines() {
        let Some((range, rest)) = line.split_once(' ') else { continue };
        if !rest.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        if memory.read_exact_at(&mut bytes, from).is_err() {
            continue;
        }
        for window in bytes.windows(KNOWN_BY) {
            if let Some(at) = known.get(window) {
                *found.entry(*at).or_default() += 1;
            }
        }
    }
    found
}

/// A program that does not outlive its test.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _waited = self.0.wait();
    }
}

fn pid(number: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(number).unwrap())
}

fn limits(victim: u32) -> String {
    fs::read_to_string(format!("/proc/{victim}/limits")).unwrap()
}

/// Its threads, but for those of the allocator, which give memory back.
fn threads(victim: u32) -> usize {
    let names = fs::read_dir(format!("/proc/{victim}/task")).unwrap();
    let names = names.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
    names.filter(|name| name.trim() != "jemalloc_bg_thd").count()
}

fn virtual_bytes(victim: u32) -> u64 {
    let pages = fs::read_to_string(format!("/proc/{victim}/statm")).unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    pages * 4096
}

/// Starts the daemon again as nobody, who owns its home then, when we are root; returns where it works.
fn as_nobody(world: &mut World) -> std::path::PathBuf {
    world.daemon.stop();
    let home = world.home.path().to_owned();
    let program = home.join("program");
    fs::copy(PROGRAM, &program).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    if is_root() {
        give_away(&home);
    }
    let mut command = Command::new("prlimit");
    command
        .env_clear()
        .arg("--core=unlimited")
        .arg(program)
        .args(world.home.command(&["serve"]).get_args())
        .current_dir(&home);
    as_user(&mut command);
    world.daemon = Daemon::spawn(command);
    home
}

fn give_away(path: &Path) {
    chown(path, Some(STRANGER), Some(STRANGER)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give_away(&entry.unwrap().path()));
    }
}

/// Another program of the user that the daemon runs as.
fn peer(arguments: &[&str]) -> Output {
    let mut command = Command::new(arguments[0]);
    as_user(command.args(&arguments[1..]).current_dir("/")).output().unwrap()
}

fn as_user(command: &mut Command) -> &mut Command {
    if is_root() { command.uid(STRANGER).gid(STRANGER) } else { command }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
