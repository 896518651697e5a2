//! A reload whose files can't be read to an end, or whose account is busy: nothing else waits for it.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use rustix::process::Signal;

use crate::rereading::whole::{hang_up, status};
use crate::standin::{Endpoint, Fault, Gate};
use crate::support::{Setup, World, eventually};
use crate::tokens::{Sent, held};

const KEY: &str = "key-of-a-caller";

/// A daemon that needs no login, whose callers show [`KEY`].
fn world(environment: Vec<(String, String)>) -> World {
    let account = "grant = \"client_credentials\"".to_owned();
    let mut world = Setup { account, environment, ..Setup::default() }.start();
    let key = world.home.secret("key", KEY);
    let file = fs::read_to_string(world.home.config()).unwrap();
    let table = format!("[[callers.key]]\nname = \"k\"\nfile = \"{}\"\n", key.display());
    fs::write(world.home.config(), format!("{file}\n{table}")).unwrap();
    world.restart();
    world
}

/// Puts a pipe in the place of a file.
fn pipe(path: &Path) {
    let _replaced = fs::remove_file(path);
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// How many readings of the daemon have a file open.
fn readings(world: &World, path: &Path) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", world.daemon.pid())).unwrap();
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    targets.filter(|target| target == path).count()
}

#[test]
fn a_pipe_that_nobody_writes_to_is_told_and_the_next_reload_is_as_any() {
    let directory = tempfile::tempdir().unwrap();
    let (manager, environment) = Manager::at(&directory.path().join("notify"));
    let world = world(environment);
    manager.hears("READY=1");
    let config = fs::read_to_string(world.home.config()).unwrap();
    let ca_file = format!("ca_file = \"{}\"\nupstream", world.home.path().join("pipe").display());
    let with_ca = config.replace("upstream", &ca_file);
    assert_ne!(config, with_ca);
    let mut told = 0;

    for (name, text) in
        [("key", &config), ("client_secret", &config), ("pipe", &with_ca), ("config.toml", &config)]
    {
        let path = world.home.path().join(name);
        let before = fs::read(&path).unwrap_or_default();
        fs::write(world.home.config(), text).unwrap();
        pipe(&path);

        world.daemon.signal(Signal::HUP);
        manager.hears("RELOADING=1");
        for _ in 0..10 {
            world.daemon.signal(Signal::HUP);
        }
        assert_eq!(status(&world, KEY), 200);
        eventually("one reading is under way", || (readings(&world, &path) == 1).then_some(()));
        manager.hears("READY=1");
        // What came meanwhile is one reading more.
        manager.hears("RELOADING=1");
        manager.hears("READY=1");
        told += 2;
        eventually("both are told", || (outcomes(&world) == told).then_some(()));
        let output = world.daemon.output();
        assert_eq!(output.matches("nobody writes to this pipe").count(), told, "{output}");

        fs::remove_file(&path).unwrap();
        fs::write(world.home.config(), &config).unwrap();
        if name != "pipe" {
            fs::write(&path, before).unwrap();
        }
        assert!(hang_up(&world).contains("took over"), "{name}");
        manager.hears("RELOADING=1");
        manager.hears("READY=1");
        assert_eq!((status(&world, KEY), outcomes(&world)), (200, told), "{name}");
    }
}

/// How often it was told that nothing was taken over.
fn outcomes(world: &World) -> usize {
    world.daemon.output().matches("not taken over").count()
}

#[test]
fn a_pipe_whose_writer_is_silent_holds_up_neither_the_watchdog_nor_an_asker_nor_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let (manager, environment) = Manager::at(&directory.path().join("notify"));
    let mut world = world(environment);
    let secret = world.home.path().join("client_secret");
    let good = fs::read(&secret).unwrap();
    pipe(&secret);
    let writer = File::options().read(true).write(true).open(&secret).unwrap();

    world.daemon.signal(Signal::HUP);

    manager.hears("RELOADING=1");
    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }
    let reload = || world.home.run(&["reload"], "");
    let told = reload();
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.code() == Some(1) && said.contains("reading it has not ended within 10 s"), "{said}");
    world.daemon.says("not taken over: reading it has not ended");
    manager.hears("READY=1");
    assert_eq!(status(&world, KEY), 200);
    let again = reload();
    assert!(String::from_utf8_lossy(&again.stderr).contains("has not ended"), "{again:?}");

    // Whoever asked meanwhile is served by one reading more, when this one ends.
    fs::remove_file(&secret).unwrap();
    fs::write(&secret, good).unwrap();
    drop(writer);
    eventually("it is taken over", || world.daemon.output().contains("took over").then_some(()));
    world.daemon.says("too old to be used");

    pipe(&secret);
    let _writer = File::options().read(true).write(true).open(&secret).unwrap();
    world.daemon.signal(Signal::HUP);
    manager.hears("RELOADING=1");
    assert_eq!(world.daemon.stop().code(), Some(0), "while the pipe is being read");
}

/// What the daemon tells its service manager.
struct Manager {
    said: Arc<Mutex<String>>,
    seen: Cell<usize>,
}

impl Manager {
    /// Listens, and the environment that says so.
    fn at(path: &Path) -> (Self, Vec<(String, String)>) {
        let socket = UnixDatagram::bind(path).unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut message = [0; 4096];
            while let Ok(length) = socket.recv(&mut message) {
                *heard.lock().unwrap() += &format!("{}\n", String::from_utf8_lossy(&message[..length]));
            }
        });
        let path = path.display().to_string();
        let environment = [("NOTIFY_SOCKET", path.as_str()), ("WATCHDOG_USEC", "1500000")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        (Self { said, seen: Cell::new(0) }, environment)
    }

    /// Waits until it says this, once more than before.
    #[track_caller]
    fn hears(&self, state: &str) {
        let found = eventually(state, || {
            let said = self.said.lock().unwrap();
            said[self.seen.get()..].find(state).map(|at| self.seen.get() + at + state.len())
        });
        self.seen.set(found);
    }
}

#[test]
fn an_account_that_is_busy_holds_up_nothing_and_takes_over_its_secret() {
    let mut world =
        Setup { account: "grant = \"client_credentials\"".to_owned(), ..Setup::default() }.start();
    let gate = Gate::default();
    world.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));
    let asking: Vec<_> = (0..40).map(|_| Sent::refresh(&world.daemon)).collect();
    held(&gate);
    eventually("all of them wait", || (open_connections(&world) > asking.len()).then_some(()));

    world.home.secret("client_secret", "another-secret");
    assert!(hang_up(&world).contains("took over"));
    assert!(hang_up(&world).contains("took over"), "and once more");

    gate.open();
    let answered: Vec<_> = asking.into_iter().map(Sent::answer).collect();
    assert_eq!(answered.len(), 40);
    let sent = || {
        let requests = world.standin.token_requests();
        requests.last().unwrap().form_field("client_secret").unwrap().to_owned()
    };
    eventually("the new secret is used", || {
        let _refused = world.home.run(&["refresh"], "");
        (sent() == "another-secret").then_some(())
    });
    assert_eq!(world.daemon.stop().code(), Some(0));
}

fn open_connections(world: &World) -> usize {
    let text = world.daemon.get("/-/metrics").text();
    let value = text.lines().find_map(|line| line.split_once("caller_connections_open ")?.1.parse().ok());
    value.unwrap()
}
