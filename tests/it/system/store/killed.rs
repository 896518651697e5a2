//! SIGKILL at the system calls between the ask for a refresh and the publishing of what it brought, one after
//! the other, and what the next start makes of what is left.
//!
//! A refresh runs on two threads, the keeper's and the one that writes files. Both are recorded first; then a
//! daemon dies on entering each call that was seen, under a server without grace and under one with.
//!
//! Every call on the store's files and on the connection to the token endpoint is played, and a quarter of the
//! others, which `KILL_SEED` chooses; with `KILL_ALL=1` all of them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::strace::{Strace, threads_named};
use crate::dice::Dice;
use crate::standin::{Options, Person, Presented, Rotation};
use crate::store::damage::sealed;
use crate::store::{current, errors_of, files, next, previous, stored_token};
use crate::support::{Home, PATIENCE, Setup, World, behind, eventually};
use crate::tokens::{events, main_account, refresh};

/// How long the server takes a used refresh token again, where it does.
const GRACE: Duration = Duration::from_secs(3600);
/// What the runtime calls the threads that may block.
const FILES: &str = "tokio-rt-worker";
/// A person is told of a lost rotation within this time.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// A call at which to die.
#[derive(Clone, Debug)]
struct Point {
    thread: Thread,
    call: String,
    /// Of the calls of that name on that thread, from 1.
    nth: usize,
    /// It is on a file of the store, or on the connection to the token endpoint.
    is_near: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Thread {
    /// The main thread, with the keeper.
    Keeper,
    /// The one that may block.
    Files,
}

/// What became of a refresh whose daemon was to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// The call did not come again.
    Survived,
    /// The server had not granted it: the old login serves on.
    Unspent,
    /// The new login had been written, and is used.
    New,
    /// The server had granted it, and nothing of it had been written.
    InDoubt,
}

/// A daemon that dies again and again, and what it talks to.
struct Victim {
    world: World,
    rotation: Rotation,
}

/// What the stand-in had seen before.
struct Before {
    refreshes: usize,
    superseded: usize,
    secrets: usize,
    access_token: String,
}

#[test]
#[expect(
    clippy::print_stdout,
    reason = "how many calls there are is worth telling, and the seed brings them back"
)]
fn a_daemon_killed_at_any_system_call_of_a_refresh_starts_with_the_old_login_or_the_new_one() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (seed, is_full) = (number("KILL_SEED").unwrap_or(1), number("KILL_ALL") == Some(1));
    let points = Victim::start(Rotation::OneTime).record();
    assert_is_plausible(&points);

    let mut dice = Dice(seed);
    let all = points.len();
    let played: Vec<_> =
        points.into_iter().filter(|point| is_full || point.is_near || dice.chance(25)).collect();
    let fates = std::thread::scope(|scope| {
        let strict = scope.spawn(|| Victim::start(Rotation::OneTime).kill_at_each(&played));
        let lenient = scope.spawn(|| Victim::start(Rotation::Grace(GRACE)).kill_at_each(&played));
        [strict.join().unwrap(), lenient.join().unwrap()]
    });

    let planned = 2 * played.len();
    println!("KILL_SEED={seed}: {} of {all} calls; without grace and with: {fates:?}", played.len());
    let count = |fate: Fate| fates.iter().filter_map(|fates| fates.get(&fate)).sum::<usize>();
    assert!(count(Fate::Survived) * 10 <= planned, "{fates:?}");
    assert!(count(Fate::Unspent) > 40 && count(Fate::New) > 10 && count(Fate::InDoubt) > 3, "{fates:?}");
}

#[test]
fn a_start_killed_at_any_call_on_the_store_leaves_the_newest_login_to_the_next() {
    let mut victim = Victim::start(Rotation::OneTime);
    let home = &victim.world.home;
    let before = fs::read(previous(home)).unwrap();
    victim.world.daemon.kill();
    let (token, newest) = (stored_token(home), fs::read(current(home)).unwrap());
    // Another account was saved since then, so that the reservation has no later number.
    let mut kept: Value = serde_json::from_slice(json_of(&before)).unwrap();
    kept["generation"] = serde_json::from_slice::<Value>(json_of(&newest)).unwrap()["generation"].take();
    let merged = sealed(1, kept.to_string().as_bytes());

    for store in [before, merged] {
        let leave = || {
            fs::write(current(home), &store).unwrap();
            fs::write(next(home), [&newest[..], &[0; 4096]].concat()).unwrap();
        };
        let kills: usize = ["openat", "fsync", "unlink", "linkat", "rename"]
            .iter()
            .map(|call| {
                let killed = |nth: &usize| {
                    leave();
                    let is_killed = is_killed_at(home, &["token"], call, *nth);
                    assert_eq!(stored_token(home), token, "{call}, number {nth}");
                    is_killed
                };
                (1..).take_while(killed).count()
            })
            .sum();
        assert!(kills >= 10, "only {kills} calls were seen");
    }
}

/// Starts the program on what is left, and kills it when it enters that call on the store; says whether it came so far.
pub(super) fn is_killed_at(home: &Home, command: &[&str], call: &str, nth: usize) -> bool {
    let names = ["", "store", "store.previous", "store.next.main", "store.taken"];
    let paths = names.map(|name| home.state().join(name).display().to_string());
    let paths: String = paths.iter().map(|path| format!(" -P '{}'", path.trim_end_matches('/'))).collect();
    let line = format!("exec strace -f -o /dev/null{paths} -e inject={call}:signal=SIGKILL:when={nth} --");
    let output = behind(&line, &home.command(command)).output().unwrap();
    let is_killed = output.status.signal() == Some(9);
    assert!(is_killed || output.status.success(), "{call}, number {nth}: {}", errors_of(&output));
    is_killed
}

fn json_of(store: &[u8]) -> &[u8] {
    &store[store.iter().position(|byte| *byte == b'\n').unwrap() + 1..]
}

/// What must be seen of a refresh for the recording to be one.
#[track_caller]
fn assert_is_plausible(points: &[Point]) {
    let count = |thread: Thread, call: &str| {
        points.iter().filter(|point| (point.thread, point.call.as_str()) == (thread, call)).count()
    };
    let on_files = ["openat", "write", "pwrite64", "fdatasync", "ftruncate", "linkat", "rename"];
    assert!(on_files.iter().all(|call| count(Thread::Files, call) > 0), "{points:#?}");
    assert!(count(Thread::Files, "fsync") >= 3, "two when room is taken, one when it is used: {points:#?}");
    for call in ["connect", "writev", "recvfrom"] {
        assert!(count(Thread::Keeper, call) > 0, "{call}: {points:#?}");
    }
    let near = points.iter().filter(|point| point.is_near).count();
    assert!((40..120).contains(&near), "{near}: {points:#?}");
}

/// The name of the call in a line of the log; none for what is no call, or was under way when strace came.
fn called(line: &str) -> Option<&str> {
    let (call, _) = line.split_once('(')?;
    let is_name = call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (is_name && call != "restart_syscall").then_some(call)
}

impl Victim {
    /// A daemon with a login that has been refreshed, so that `store.previous` is there.
    fn start(rotation: Rotation) -> Self {
        let options = Options { rotation, ..Options::default() };
        let world = Setup { options, ..Setup::default() }.logged_in();
        let mut victim = Self { world, rotation };
        victim.warm_up();
        assert!(previous(&victim.world.home).exists());
        victim
    }

    /// Refreshes once, which works, and leaves one thread for files that waits for the next time.
    #[track_caller]
    fn warm_up(&mut self) {
        loop {
            assert_eq!(refresh(&self.world.daemon).status, 200, "{}", self.world.daemon.output());
            assert_eq!(self.world.standin.refreshes().last().unwrap().presented, Presented::Current);
            if threads_named(self.world.daemon.pid(), FILES).len() == 1 {
                return;
            }
            // Two were busy at the same time once.
            self.world.restart();
        }
    }

    fn id_of(&self, thread: Thread) -> u32 {
        let pid = self.world.daemon.pid();
        match thread {
            Thread::Keeper => pid,
            Thread::Files => threads_named(pid, FILES)[0],
        }
    }

    /// All calls of one refresh, in order on each thread.
    fn record(&mut self) -> Vec<Point> {
        let traced = [Thread::Keeper, Thread::Files]
            .map(|thread| (thread, Strace::attach(self.id_of(thread), &["-y", "-e", "trace=all"])));
        self.warm_up();
        let state = self.world.home.state().display().to_string();
        let mut counts: HashMap<(Thread, String), usize> = HashMap::new();
        let mut points = Vec::new();
        for (thread, strace) in traced {
            let log = strace.detach();
            for (call, line) in log.lines().filter_map(|line| Some((called(line)?.to_owned(), line))) {
                let is_near = line.contains(&state) || line.contains("<socket:");
                let nth = counts.entry((thread, call.clone())).or_default();
                *nth += 1;
                points.push(Point { thread, call, nth: *nth, is_near });
            }
        }
        points
    }

    fn kill_at_each(mut self, points: &[Point]) -> BTreeMap<Fate, usize> {
        let mut fates = BTreeMap::new();
        for point in points {
            *fates.entry(self.kill_at(point)).or_default() += 1;
        }
        fates
    }

    #[track_caller]
    fn kill_at(&mut self, point: &Point) -> Fate {
        self.warm_up();
        let before = self.before();
        let inject = format!("inject={}:signal=SIGKILL:when={}", point.call, point.nth);
        let trace = format!("trace={}", point.call);
        let strace = Strace::attach(self.id_of(point.thread), &["-e", &trace, "-e", &inject]);
        let answered = self.ask();
        drop(strace);
        if self.is_alive() {
            assert!(answered, "{point:?}: the ask was not answered");
            return Fate::Survived;
        }

        self.world.daemon.kill();
        self.let_standin_see_all();
        let fate = self.fate_since(&before);
        let started = Instant::now();
        self.world.daemon = self.world.home.serve();
        self.judge(fate, &before, started, &format!("{point:?} under {:?}: {fate:?}", self.rotation));
        fate
    }

    /// Asks for a refresh and waits for an answer or the end of the daemon; says whether there was one.
    fn ask(&self) -> bool {
        let mut stream = self.world.daemon.connect();
        let head = "POST /-/refresh/main HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n";
        stream.write_all(format!("{head}Host: {}\r\n\r\n", self.world.daemon.authority).as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _read = stream.read_to_end(&mut answer);
        answer.starts_with(b"HTTP/1.1 200 ")
    }

    /// Whoever has been sent SIGKILL answers no more.
    fn is_alive(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(&self.world.daemon.authority) else { return false };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = Vec::new();
        let _sent =
            stream.write_all(b"GET /-/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        let _read = stream.read_to_end(&mut answer);
        !answer.is_empty()
    }

    /// What the dead one wrote to the stand-in has arrived there, and was decided.
    fn let_standin_see_all(&self) {
        let authority = self.world.standin.auth_url().replace("http://", "");
        let mut stream = TcpStream::connect(&authority).unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        // Connections are served in their order, and what is there already is not waited for.
        stream.read_to_end(&mut Vec::new()).unwrap();
    }

    fn before(&self) -> Before {
        let standin = &self.world.standin;
        Before {
            refreshes: standin.refreshes().len(),
            superseded: standin.superseded_presentations(),
            secrets: standin.issued_secrets().len(),
            access_token: self.token_in_use(),
        }
    }

    /// What the API gets with a request.
    #[track_caller]
    fn token_in_use(&self) -> String {
        let answer = self.world.daemon.get("/api/users");
        assert_eq!(answer.status, 200, "{answer:?}\n{}", self.world.daemon.output());
        let requests = self.world.standin.api_requests();
        let field = requests.last().unwrap().fields_named("authorization").pop().unwrap();
        field.strip_prefix("Bearer ").unwrap().to_owned()
    }

    /// The access token and the refresh token that the server granted, if it did.
    fn granted_since(&self, before: &Before) -> Option<[String; 2]> {
        let mut issued = self.world.standin.issued_secrets().split_off(before.secrets).into_iter();
        Some([issued.next()?, issued.next()?])
    }

    /// By what the server has granted, and what of it is in the state directory.
    fn fate_since(&self, before: &Before) -> Fate {
        let Some([_, refresh_token]) = self.granted_since(before) else { return Fate::Unspent };
        let state = self.world.home.state();
        let is_written = files(&self.world.home).iter().any(|name| {
            let bytes = fs::read(state.join(name)).unwrap_or_default();
            bytes.windows(refresh_token.len()).any(|window| window == refresh_token.as_bytes())
        });
        if is_written { Fate::New } else { Fate::InDoubt }
    }

    /// What was started on what the dead one left is as it must be.
    #[track_caller]
    fn judge(&self, fate: Fate, before: &Before, started: Instant, what: &str) {
        let (daemon, standin) = (&self.world.daemon, &self.world.standin);
        let (granted, in_use) = (self.granted_since(before), self.token_in_use());
        match (fate, self.rotation) {
            (Fate::New, _) => {
                let granted = granted.map(|[access_token, _]| access_token);
                assert_eq!(Some(in_use), granted, "{what}: {}", daemon.output());
                assert_eq!(standin.refreshes().len(), before.refreshes + 1, "{what}");
            }
            (Fate::InDoubt, Rotation::OneTime) => {
                eventually(&format!("{what}: it is told"), || (events(daemon).len() == 2).then_some(()));
                assert!(started.elapsed() < TOLD_WITHIN, "{what}: told after {:?}", started.elapsed());
                assert_eq!(events(daemon), ["rotation-in-doubt", "login-required"], "{what}");
                assert_eq!(self.token_in_use(), before.access_token, "{what}");
                self.world.log_in(Person::Alice);
            }
            (Fate::InDoubt, _) => {
                eventually(&format!("{what}: it recovers"), || {
                    (self.token_in_use() != before.access_token).then_some(())
                });
            }
            (Fate::Survived | Fate::Unspent, _) => {}
        }

        eventually(&format!("{what}: it is ready"), || (daemon.state() == "ready").then_some(()));
        let output = daemon.output();
        assert!(!output.contains("panicked") && !output.contains("damaged"), "{what}: {output}");
        let left: Vec<_> = files(&self.world.home).into_iter().filter(|name| name.contains("next")).collect();
        assert!(left.is_empty(), "{what}: {left:?}");
        let told_twice = standin.superseded_presentations() - before.superseded;
        let tolerated = usize::from(fate == Fate::InDoubt);
        assert!(told_twice <= tolerated, "{what}: a superseded refresh token was presented");
        if fate != Fate::InDoubt {
            assert!(main_account(daemon)["events"].as_array().unwrap().is_empty(), "{what}: {output}");
        }
    }
}
