//! `login` on a terminal of its own: what is pasted into it, what it says, and how it leaves the terminal.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::standin::Person;
use crate::support::{Setup, World, eventually};

/// The command on a terminal, which the test holds the other end of.
struct Sitting {
    child: Child,
    keys: File,
    terminal: OwnedFd,
    shown: Arc<Mutex<String>>,
}

impl Sitting {
    /// Up to where an address is awaited.
    #[track_caller]
    fn start(world: &World, environment: &[(&str, &str)]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let terminal = rustix::fs::open(ptsname(&master, Vec::new()).unwrap(), flags, Mode::empty()).unwrap();

        let login = world.home.command(&["login"]);
        let mut command = Command::new("setsid");
        command.env_clear().envs(login.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("TERM", "xterm").envs(environment.iter().copied());
        command.arg("--ctty").arg(login.get_program()).args(login.get_args());
        let end = || terminal.try_clone().unwrap();
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();

        let keys = File::from(master);
        let (shown, mut screen) = (Arc::new(Mutex::new(String::new())), keys.try_clone().unwrap());
        let written = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = screen.read(&mut buffer) {
                written.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        let sitting = Self { child, keys, terminal, shown };
        sitting.shows("10 ");
        assert!(!sitting.has_lines());
        sitting
    }

    fn screen(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    #[track_caller]
    fn shows(&self, words: &str) {
        eventually(words, || self.screen().contains(words).then_some(()));
    }

    /// The address that it printed.
    #[track_caller]
    fn url(&self, world: &World) -> String {
        let start = format!("{}/connect/authorize?", world.standin.auth_url());
        let screen = self.screen();
        let at = screen.find(&start).unwrap_or_else(|| panic!("no address in {screen}"));
        screen[at..].split_whitespace().next().unwrap().to_owned()
    }

    fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// True while the kernel edits lines and shows what is typed.
    fn has_lines(&self) -> bool {
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        assert_eq!(modes.contains(LocalModes::ICANON), modes.contains(LocalModes::ECHO));
        modes.contains(LocalModes::ICANON)
    }

    /// The exit code; the terminal is as it was before.
    #[track_caller]
    fn ends(mut self) -> Option<i32> {
        let status = eventually("the command ends", || self.child.try_wait().unwrap());
        assert!(self.has_lines(), "{}", self.screen());
        let told = Command::new("stty").arg("-a").stdin(self.terminal.try_clone().unwrap()).output().unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        assert!([" icanon", " echo"].iter().all(|mode| told.contains(mode)), "{told}");
        // Whatever came on the way is on the screen by now.
        self.shows("\x1b[?2004l");
        assert!(self.screen().contains("\x1b[?2004h"));
        status.code()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Sitting {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// An address that has so many bytes at least, in lines of that width.
fn address(world: &World, sitting: &Sitting, length: usize, width: usize, with: &str) -> String {
    let mut address = world.standin.authorize(&sitting.url(world), Person::Alice);
    if address.len() < length {
        address = address.replacen("&id_token", &format!("&more={}&id_token", "x".repeat(length)), 1);
    }
    address.as_bytes().chunks(width).map(String::from_utf8_lossy).collect::<Vec<_>>().join(with)
}

#[test]
fn an_address_of_any_length_is_taken_and_the_terminal_left_as_it_was() {
    for with_daemon in [true, false] {
        let mut world = World::start();
        if !with_daemon {
            assert_eq!(world.daemon.stop().code(), Some(0));
        }
        let mut sitting = Sitting::start(&world, &[]);
        let address = address(&world, &sitting, 20_000, usize::MAX, "");

        sitting.types(&format!("{address}\r"));

        sitting.shows(&format!("main is logged in as {}.", Person::Alice.display_name()));
        assert!(sitting.screen().contains(&address), "what is typed is shown");
        assert_eq!(sitting.ends(), Some(0));
        assert_eq!(world.standin.token_requests().len(), 1);
    }
}

#[test]
fn an_address_in_several_lines_is_one_paste() {
    // A terminal that marks what is pasted, and one that does not.
    for [before, behind] in
        [["\x1b[200~", "\x1b[201~"], ["\x1b[200~See\r", "\rThanks\x1b[201~\r"], ["", "\r"]]
    {
        let world = World::start();
        let mut sitting = Sitting::start(&world, &[]);
        let address = address(&world, &sitting, 0, 79, "\r  ");

        sitting.types(&format!("{before}{address}{behind}"));

        sitting.shows("main is logged in as");
        assert_eq!(sitting.ends(), Some(0), "{before:?}");
        assert_eq!(world.standin.token_requests().len(), 1);
    }
}

#[test]
fn a_wrong_paste_asks_again_and_can_be_erased() {
    let world = World::start();
    let other = world.standin.authorize(&world.begin_login(), Person::Bob).replace("state=", "state=x");
    let mut sitting = Sitting::start(&world, &[]);
    let address = address(&world, &sitting, 0, usize::MAX, "");

    for (pasted, words) in [
        ("https://www.cnblogs.com/\r", "not the address of the redirect page"),
        (&*format!("{other}\r"), "is unknown"),
        (&format!("{}\r", &address[..address.find("&state").unwrap()]), "`state` is missing"),
    ] {
        sitting.types(pasted);
        sitting.shows(words);
        let asked = sitting.screen().matches("Paste the address again").count();
        sitting.shows("Paste the address again");
        assert!(asked <= 3);
    }
    sitting.types(&format!("mistyped\x15{address}yx\x7f\x7f\r"));

    sitting.shows("main is logged in as");
    assert_eq!(sitting.screen().matches("Paste the address again").count(), 3);
    assert_eq!(sitting.ends(), Some(0));
}

/// However it ends before an address came.
#[test]
fn the_terminal_is_left_as_it_was_when_nothing_came() {
    let world = World::start();
    type End = fn(&mut Sitting);
    let ends: [(&str, End, i32); 5] = [
        ("control C", |sitting| sitting.types("half an addr\x03"), 130),
        ("control backslash", |sitting| sitting.types("\x1c"), 131),
        ("SIGTERM", |sitting| sitting.signal(Signal::TERM), 143),
        ("SIGHUP", |sitting| sitting.signal(Signal::HUP), 129),
        ("control D", |sitting| sitting.types("\x04"), 1),
    ];
    for (what, end, code) in ends {
        let mut sitting = Sitting::start(&world, &[]);
        end(&mut sitting);
        assert_eq!(sitting.ends(), Some(code), "{what}");
    }
}

/// A shell sets its own modes while the command is stopped.
#[test]
fn a_command_that_was_stopped_sets_the_terminal_again() {
    let world = World::start();
    let mut sitting = Sitting::start(&world, &[]);
    sitting.signal(Signal::STOP);
    let mut modes = tcgetattr(&sitting.terminal).unwrap();
    modes.local_modes.insert(LocalModes::ICANON | LocalModes::ECHO);
    tcsetattr(&sitting.terminal, OptionalActions::Now, &modes).unwrap();

    sitting.signal(Signal::CONT);

    eventually("lines are edited here again", || (!sitting.has_lines()).then_some(()));
    let address = address(&world, &sitting, 8_000, usize::MAX, "");
    sitting.types(&format!("{address}\r"));
    sitting.shows("main is logged in as");
    assert_eq!(sitting.ends(), Some(0));
}

#[test]
fn the_terminal_speaks_of_the_flow_in_the_language_of_the_locale() {
    for (settings, english, chinese) in [
        ("", "everything behind the #", "包括 # 后面"),
        ("response_type = \"code\"", "everything behind the ?", "包括 ? 后面"),
    ] {
        let world = Setup { account: settings.to_owned(), ..Setup::default() }.start();
        let sitting = Sitting::start(&world, &[("LANG", "zh_CN.UTF-8"), ("LC_ALL", "C")]);
        assert!(sitting.screen().contains(english), "{}", sitting.screen());

        let mut sitting = Sitting::start(&world, &[("LANG", "zh_CN.UTF-8")]);
        let screen = sitting.screen();
        assert!(screen.contains(chinese) && screen.contains("还剩 10 分钟"), "{screen}");
        assert!(
            !screen.contains("Open this") && screen.contains("id_token") == settings.is_empty(),
            "{screen}"
        );
        sitting.types("hello\r");
        sitting.shows("请重新粘贴地址");
        let address = address(&world, &sitting, 0, usize::MAX, "");
        sitting.types(&format!("{address}\r"));
        sitting.shows(&format!("main 已登录为 {}。", Person::Alice.display_name()));
        assert_eq!(sitting.ends(), Some(0));
    }
}

#[test]
fn a_daemon_that_ended_meanwhile_is_named() {
    let mut world = World::start();
    let mut sitting = Sitting::start(&world, &[]);
    let address = address(&world, &sitting, 0, usize::MAX, "");
    assert_eq!(world.daemon.stop().code(), Some(0));

    sitting.types(&format!("{address}\r"));

    sitting.shows("error: the daemon is not running any more");
}

/// The browser posts what it brings: no address has it.
#[test]
fn where_a_form_is_posted_a_terminal_asks_for_no_address() {
    let local = "redirect_uri = \"http://127.0.0.1:8262/-/callback\"\n";
    for (redirect_uri, is_running, cure) in [
        (local, false, "hint: start the daemon"),
        ("redirect_uri = \"https://app.example/callback\"\n", true, "hint: set another response_mode"),
        ("redirect_uri = \"https://app.example/callback\"\n", false, "hint: set another response_mode"),
    ] {
        let account = format!("{redirect_uri}response_mode = \"form_post\"");
        let mut world = Setup { account, ..Setup::default() }.start();
        if !is_running {
            assert_eq!(world.daemon.stop().code(), Some(0));
        }

        let told = world.home.run(&["login"], "");

        let said = String::from_utf8_lossy(&told.stderr);
        assert_eq!((told.status.code(), told.stdout.len()), (Some(1), 0), "{told:?}");
        assert!(said.contains("can't be finished in a terminal") && said.contains(cure), "{said}");
    }
}

/// A script may write all its lines at once; each is one, of any length.
#[test]
fn a_script_writes_a_line_for_each_answer() {
    let world = World::logged_in();
    let mut command = world.home.command(&["login"]);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut lines = lines.skip_while(|line| !line.starts_with("http"));
    let address = world.standin.authorize(&lines.next().unwrap(), Person::Bob);
    let address = address.replacen("&id_token", &format!("&more={}&id_token", "x".repeat(20_000)), 1);

    child.stdin.take().unwrap().write_all(format!("\r\n{address}\r\nyes\n").as_bytes()).unwrap();

    let told = lines.collect::<Vec<_>>().join("\n");
    assert!(told.contains(&format!("main is logged in as {}.", Person::Bob.display_name())), "{told}");
    assert!(child.wait().unwrap().success(), "{told}");
}

/// An Enter behind a paste that was taken already is no answer to the question that follows.
#[test]
fn another_person_is_asked_about_and_remarks_are_told() {
    let world = World::logged_in();
    world.standin.leave_out_refresh_token(true);
    let mut sitting = Sitting::start(&world, &[]);
    let address = world.standin.authorize(&sitting.url(&world), Person::Bob);

    sitting.types(&format!("\x1b[200~{address}\x1b[201~\r"));
    sitting.shows("Write yes to replace the login");
    sitting.types("\ryes\r");

    sitting.shows(&format!("main is logged in as {}.", Person::Bob.display_name()));
    sitting.shows("warning: the authorization server gave no refresh token");
    assert_eq!(sitting.ends(), Some(0));
}
