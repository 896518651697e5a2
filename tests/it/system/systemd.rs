//! The units and the Debian package, in a real systemd: a small Debian boots in a container, on a loopback of its own,
//! and is used as its administrator would.

mod load;
mod machine;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use load::Load;
use machine::{Machine, account, get, try_get};
use rustix::process::{Pid, Signal, kill_process};

use crate::standin::{Options, Person, Standin};
use crate::support::eventually;
use crate::system::network::space::alone;
use crate::system::store::strace::{Strace, threads_named};

/// Where the service listens.
const PORT: u16 = 8262;
/// As the daemon is told to, instead of the 30 s of the units: what is not stuck gets a turn in it on a busy machine.
const WATCHED: &str = "[Service]\nWatchdogSec=8\n";
const GUIDE: &str = include_str!("../../../deploy/README.md");
/// As an administrator hands a secret over.
const KEEP_SECRET: &str = "install -D -m 600 /dev/stdin /etc/credstore/cnblogs-proxy.client_secret";
const TARGET: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/..");
/// Each has another part that gets stuck.
const INSTANCES: [&str; 4] = ["keeper", "worker", "control", "whole"];
/// Longer than a test runs, in microseconds.
const FOR_EVER: &str = "delay_enter=1000000000";

/// Writes down the account of the stand-in for the service, and the secret for systemd.
fn configure(machine: &Machine, standin: &Standin) {
    let state = "state_dir = \"/var/lib/cnblogs-proxy\"\n";
    machine.write("/etc/cnblogs-proxy/config.toml", &format!("{state}{}", account(standin)));
    keep_secret(machine, standin);
}

fn keep_secret(machine: &Machine, standin: &Standin) {
    machine.done_with(told(KEEP_SECRET), &pasted_secret(standin));
}

/// The secret as it comes from a terminal.
fn pasted_secret(standin: &Standin) -> String {
    format!("{}\n", standin.options().client_secret)
}

/// What `deploy/README.md` tells to do or to write, to the letter.
#[track_caller]
fn told(words: &str) -> &str {
    assert!(GUIDE.contains(words), "deploy/README.md does not tell this: {words}");
    words
}

#[test]
fn the_package_is_installed_configured_upgraded_removed_and_purged() {
    alone(|| {
        let standin = Standin::start(Options { expires_in_secs: 86_400, ..Options::default() });
        let machine = Machine::boot();
        package("0.1.0-1", &machine);
        package("0.1.0-2", &machine);

        assert_eq!(complaints(&machine, "0.1.0-1"), "");

        machine.done("apt install --yes /exchange/cnblogs-proxy_0.1.0-1_*.deb");
        for unit in ["cnblogs-proxy.socket", "cnblogs-proxy.service"] {
            let state = [machine.show(unit, "ActiveState"), machine.show(unit, "UnitFileState")];
            assert_eq!(state, ["inactive", "disabled"], "{unit}: installing starts nothing");
        }
        assert_is_whole(&machine);
        assert_unconfigured_says_what_to_do(&machine);

        keep_secret(&machine, &standin);
        machine.done("sed -i -E 's/^#(\\[account|client_id)/\\1/' /etc/cnblogs-proxy/config.toml");
        let check =
            "CNBLOGS_CLIENT_SECRET_FILE=/etc/credstore/cnblogs-proxy.client_secret cnblogs-proxy check";
        assert!(machine.done(told(check)).ends_with("ok\n"));
        machine.done(&format!("grep '^#   {check}$' /etc/cnblogs-proxy/config.toml"));
        machine.done(told("systemctl enable --now cnblogs-proxy"));
        assert_eq!(machine.show("cnblogs-proxy", "UnitFileState"), "enabled");
        configure(&machine, &standin);
        machine.done("systemctl restart cnblogs-proxy");
        let login = "main: login-required, open http://127.0.0.1:8262/-/login/main";
        assert_eq!(machine.show("cnblogs-proxy", "StatusText"), login);
        assert_eq!(machine.run("cnblogs-proxy status", "").status.code(), Some(3));
        machine.log_in(&standin, "cnblogs-proxy login");
        assert_eq!(get(PORT, "/echo/x").status, 200);
        machine.done("cnblogs-proxy status");
        assert_only_named_users_may_call(&machine);
        assert_manager_and_journal_are_told(&machine);

        assert_upgrade_loses_nothing(&machine);

        machine.done("apt remove --yes cnblogs-proxy");
        assert!(try_get(PORT, "/-/healthz").is_none(), "the socket is closed");
        machine.done("test -e /etc/cnblogs-proxy/config.toml");
        machine
            .done("apt install --yes /exchange/cnblogs-proxy_0.1.0-2_*.deb && systemctl start cnblogs-proxy");
        assert_eq!(get(PORT, "/echo/x").status, 200, "the login was kept");

        machine.done("apt purge --yes cnblogs-proxy");
        let left = "find / -xdev -path /proc -prune -o -name '*cnblogs-proxy*' -print";
        assert_eq!(machine.done(left), "/etc/credstore/cnblogs-proxy.client_secret\n", "only what we wrote");
    });
}

/// Builds the package of the built program, and puts it where the machine finds it.
#[track_caller]
fn package(version: &str, machine: &Machine) {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/debian/build"));
    let tools = Path::new(TARGET).join("test-tools/bin");
    let path = std::env::join_paths(
        [tools].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    command.env("PATH", path.unwrap()).args(["--as-built", "dev", "--fast", "--deb-version", version]);
    let built = command.arg("--output").arg(machine.exchange.path()).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

/// What Debian's own checker has to say about a package.
fn complaints(machine: &Machine, version: &str) -> String {
    let file = format!("cnblogs-proxy_{version}_{}.deb", machine.done("dpkg --print-architecture").trim());
    let mut command = Command::new("lintian");
    command
        .args(["--no-cfg", "--allow-root", "--suppress-tags=initial-upload-closes-no-bugs"])
        .arg(machine.exchange.path().join(file));
    let ended = command.output().expect("lintian runs: tests/run installs it");
    [ended.stdout, ended.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat()
}

/// The installed package has what its texts name, and its one line is not cut.
#[track_caller]
fn assert_is_whole(machine: &Machine) {
    assert!(machine.done("cnblogs-proxy --version").starts_with("cnblogs-proxy "));
    let files = machine.done("dpkg --listfiles cnblogs-proxy");
    for file in [
        "/usr/share/man/man1/cnblogs-proxy.1.gz",
        "/usr/share/man/man5/cnblogs-proxy.toml.5.gz",
        "/usr/share/doc/cnblogs-proxy/config/complete.toml",
        "/usr/share/doc/cnblogs-proxy/deploy/prometheus/alerts.yaml",
        "/usr/share/doc/cnblogs-proxy/config/README.md",
        "/usr/share/doc/cnblogs-proxy/deploy/README.md",
        "/usr/share/doc/cnblogs-proxy/tests/README.md",
    ] {
        assert!(files.lines().any(|line| line == file), "{file} is not in {files}");
    }
    machine.done(&format!("test -x {}", told("/usr/lib/cnblogs-proxy/mail")));
    let synopsis = "dpkg-query --show --showformat='${binary:Synopsis}' cnblogs-proxy";
    assert_eq!(machine.done(synopsis), env!("CARGO_PKG_DESCRIPTION"), "nothing of it is cut");
}

fn assert_unconfigured_says_what_to_do(machine: &Machine) {
    assert!(!machine.run("systemctl start cnblogs-proxy", "").status.success());

    let unit = "cnblogs-proxy.service";
    eventually("it waits for its next try", || {
        let state =
            ["ActiveState", "SubState", "ExecMainStatus"].map(|property| machine.show(unit, property));
        (state == ["activating", "auto-restart", "78"]).then_some(())
    });
    let errors = machine.journal(unit, "err");
    assert!(errors.contains("error: no account is configured\nhint: "), "{errors}");
    assert!(errors.contains("table into /etc/cnblogs-proxy/config.toml\n"), "{errors}");
    machine.done("systemctl stop cnblogs-proxy.socket cnblogs-proxy.service");
}

fn assert_only_named_users_may_call(machine: &Machine) {
    let as_alice = || {
        let mut curl = Command::new("setpriv");
        curl.args(["--reuid=1234", "--clear-groups", "curl", "--silent", "--output", "/dev/null"]);
        curl.args(["--write-out", "%{http_code}", "http://127.0.0.1:8262/echo/x"]);
        String::from_utf8(curl.output().unwrap().stdout).unwrap()
    };
    machine.done("useradd --uid 1234 alice");
    assert_eq!(as_alice(), "403");

    machine.done("printf '[callers]\\nusers = [\"alice\"]\\n' >> /etc/cnblogs-proxy/config.toml");
    machine.done("systemctl restart cnblogs-proxy");

    assert_eq!(as_alice(), "200");
}

fn assert_manager_and_journal_are_told(machine: &Machine) {
    let unit = "cnblogs-proxy.service";
    eventually("the status says that the token is there", || {
        machine.show(unit, "StatusText").starts_with("main: ready until 2").then_some(())
    });
    machine.done("systemctl reload cnblogs-proxy");
    eventually("it is reloaded", || machine.journal(unit, "info").contains("took over").then_some(()));
    assert_eq!(machine.show(unit, "ActiveState"), "active");
    let config = "/etc/cnblogs-proxy/config.toml";
    for (change, says) in [
        ("$a wrong = 1", "callers.wrong: unknown key"),
        ("$a hosts = [\"proxy.example\"]", "these keys need a restart: callers.hosts"),
    ] {
        machine.done(&format!("cp {config} /tmp/config.toml && sed -i '{change}' {config}"));
        let reload = machine.run("systemctl reload cnblogs-proxy", "");
        assert!(!reload.status.success(), "nothing was taken over: {says}");
        // From the daemon, and from the command that asked it.
        eventually("both say why", || {
            let errors = machine.journal(unit, "err");
            let said = errors.lines().filter(|line| line.contains("not taken over") && line.contains(says));
            (said.count() == 2).then_some(())
        });
        assert_eq!(machine.show(unit, "ActiveState"), "active");
        machine.done(&format!("cp /tmp/config.toml {config}"));
    }
    machine.done("systemctl reload cnblogs-proxy");

    let warnings = machine.journal(unit, "warning");
    assert!(warnings.contains("login-required") || warnings.contains("login required"), "{warnings}");
    assert!(!warnings.contains("took over") && !machine.journal(unit, "info").contains("<6>"), "{warnings}");
}

fn assert_upgrade_loses_nothing(machine: &Machine) {
    let before = machine.show("cnblogs-proxy", "MainPID");
    let load = Load::start(2);
    load.goes_on(50);

    machine.done("apt install --yes /exchange/cnblogs-proxy_0.1.0-2_*.deb");
    load.goes_on(50);

    let seen = load.end();
    assert_ne!(machine.show("cnblogs-proxy", "MainPID"), before, "the upgrade restarts what runs");
    assert!(seen.failures.lock().unwrap().is_empty(), "{seen:?}");
    assert_eq!(get(PORT, "/echo/x").status, 200, "the login was kept");
}

/// A service that gave up would take its socket along, and callers would be refused until somebody comes.
#[test]
fn a_caller_that_waits_at_a_misconfigured_service_is_answered_when_it_is_mended() {
    alone(|| {
        let standin = Standin::start(Options { expires_in_secs: 86_400, ..Options::default() });
        let machine = Machine::with_units();
        machine.write("/etc/cnblogs-proxy/config.toml", "state_dir = \"/var/lib/cnblogs-proxy\"\n");
        let restarts = || machine.show("cnblogs-proxy", "NRestarts").parse::<u32>().unwrap();

        machine.done("systemctl start cnblogs-proxy.socket");
        let callers = ["127.0.0.1", "::1"].map(|address| {
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect((address, PORT)).unwrap();
                stream.write_all(b"GET /-/healthz HTTP/1.0\r\nHost: localhost:8262\r\n\r\n").unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            })
        });
        eventually("it is tried again", || (restarts() >= 2).then_some(()));
        assert_eq!(machine.show("cnblogs-proxy.socket", "ActiveState"), "active");
        configure(&machine, &standin);

        for caller in callers {
            let answer = caller.join().unwrap();
            assert!(answer.starts_with("HTTP/1.") && answer.contains(" 200 "), "{answer}");
        }
        assert!(restarts() < 20, "slowly: {}", restarts());
    });
}

#[test]
fn callers_of_a_socket_that_systemd_holds_notice_no_restart() {
    alone(|| {
        let standin = Standin::start(Options { expires_in_secs: 86_400, ..Options::default() });
        let machine = Machine::with_units();
        configure(&machine, &standin);
        machine.done("systemctl enable --now cnblogs-proxy");
        machine.log_in(&standin, "cnblogs-proxy login");
        let load = Load::start(3);

        for _ in 0..5 {
            load.goes_on(50);
            machine.done("systemctl restart cnblogs-proxy");
        }
        load.goes_on(50);
        // Nobody is refused while it is down, either: the first caller starts it.
        machine.run("systemctl stop cnblogs-proxy.service", "");
        load.goes_on(50);

        let seen = load.end();
        assert!(seen.failures.lock().unwrap().is_empty(), "{seen:?}");
        assert!(seen.sent_again.load(Ordering::Relaxed) <= 6 * 3, "at most one a kept connection: {seen:?}");
        assert_eq!(standin.token_requests().len(), 1, "no restart spends a refresh token");
    });
}

#[test]
fn what_is_stuck_in_any_of_its_parts_is_restarted() {
    alone(|| {
        let standin = Standin::start(Options { expires_in_secs: 86_400, ..Options::default() });
        let machine = Machine::with_units();
        machine.write("/etc/systemd/system/cnblogs-proxy@.service.d/watched.conf", WATCHED);
        machine.done("systemctl daemon-reload");
        let [keeper, worker, control, whole] = INSTANCES.map(|name| start_instance(&machine, &standin, name));

        let waits = "epoll_wait,epoll_pwait";
        // The keeper is on the disk, before anything is spent.
        let mut held = vec![("keeper", delayed(keeper, &["-f"], "fsync,fdatasync"))];
        let mut asking = machine.start("cnblogs-proxy --config /etc/cnblogs-proxy/keeper.toml refresh");
        held.push(("control", delayed(control, &[], waits)));
        held.push(("worker", delayed(threads_named(worker, "worker-1")[0], &[], waits)));
        kill_process(Pid::from_raw(i32::try_from(whole).unwrap()).unwrap(), Signal::STOP).unwrap();

        assert_is_restarted(&machine, "whole");
        while let Some((name, strace)) = held.pop() {
            eventually("its end is decided", || timed_out(&machine, name).then_some(()));
            // As long as it delays a call, nothing can end.
            drop(strace);
            assert_is_restarted(&machine, name);
        }
        let _ended = asking.kill();
        let _waited = asking.wait();
    });
}

/// Starts an instance that needs no person, and returns its process.
#[track_caller]
fn start_instance(machine: &Machine, standin: &Standin, name: &str) -> u32 {
    let top = format!("workers = 2\nlisten = [\"127.0.0.1:{}\"]\n", port_of(name));
    let account = account(standin).replace("redirect_uri = ", "grant = \"client_credentials\"\n#");
    let text = format!("{top}state_dir = \"/var/lib/cnblogs-proxy-{name}\"\n{account}");
    machine.write(&format!("/etc/cnblogs-proxy/{name}.toml"), &text);
    let secret = format!("install -D -m 600 /dev/stdin /etc/credstore/cnblogs-proxy-{name}.client_secret");
    machine.done_with(&secret, &standin.options().client_secret);

    machine.done(&format!("systemctl start cnblogs-proxy@{name}"));

    eventually("there is a token", || (try_get(port_of(name), "/echo/x")?.status == 200).then_some(()));
    machine.pid_of(&format!("cnblogs-proxy@{name}"))
}

/// Each instance has its own.
fn port_of(instance: &str) -> u16 {
    let number = INSTANCES.iter().position(|known| *known == instance).unwrap();
    9001 + u16::try_from(number).unwrap()
}

/// These calls of a process or thread do not come back any more.
pub(crate) fn delayed(id: u32, options: &[&str], calls: &str) -> Strace {
    let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:{FOR_EVER}"));
    Strace::attach(id, &[options, &["-e", &trace, "-e", &inject]].concat())
}

fn timed_out(machine: &Machine, name: &str) -> bool {
    machine.journal(&format!("cnblogs-proxy@{name}"), "info").contains("Watchdog timeout")
}

#[track_caller]
fn assert_is_restarted(machine: &Machine, name: &str) {
    let unit = format!("cnblogs-proxy@{name}");
    eventually("it is restarted", || (machine.show(&unit, "NRestarts") != "0").then_some(()));
    eventually("it serves", || (try_get(port_of(name), "/echo/x")?.status == 200).then_some(()));
    assert!(timed_out(machine, name));
    // What still can, says what is stuck.
    let says = match name {
        "worker" => "worker 1 is stuck",
        "keeper" => "the keeper of account main is stuck",
        _ => "",
    };
    let errors = machine.journal(&unit, "err");
    assert!(errors.contains(says), "{name}: {errors}");
}

#[test]
fn the_units_are_sound_and_serve_an_instance_and_a_user_as_well() {
    alone(|| {
        let standin = Standin::start(Options { expires_in_secs: 86_400, ..Options::default() });
        let machine = Machine::with_units();

        for verify in [
            "systemd-analyze verify --man=no /etc/systemd/system/cnblogs-proxy*",
            "XDG_RUNTIME_DIR=/run systemd-analyze --user verify --man=no /deploy/systemd/user/cnblogs-proxy.service",
        ] {
            let verified = machine.run(&format!("{verify} 2>&1"), "");
            assert_eq!(String::from_utf8_lossy(&verified.stdout), "", "an unknown key is only told");
        }
        for unit in ["cnblogs-proxy.service", "cnblogs-proxy@.service"] {
            machine.done(&format!(
                "systemd-analyze security --offline=yes --threshold=15 /etc/systemd/system/{unit}"
            ));
        }
        assert_instance_has_a_login_of_its_own(&machine, &standin);
        assert_user_needs_neither_package_nor_root(&machine, &standin);
    });
}

fn assert_instance_has_a_login_of_its_own(machine: &Machine, standin: &Standin) {
    let state = told("state_dir = \"/var/lib/cnblogs-proxy-work\"");
    let top = format!("listen = [\"127.0.0.1:8263\"]\n{state}\n");
    machine.write(told("/etc/cnblogs-proxy/work.toml"), &format!("{top}{}", account(standin)));
    let secret = told("/etc/credstore/cnblogs-proxy-work.client_secret");
    machine.done_with(&format!("install -D -m 600 /dev/stdin {secret}"), &pasted_secret(standin));

    machine.done(told("systemctl enable --now cnblogs-proxy@work"));

    machine.log_in(standin, told("cnblogs-proxy --config /etc/cnblogs-proxy/work.toml login"));
    assert_eq!(get(8263, "/echo/x").status, 200);
    assert_reload_tells(machine, "systemctl reload cnblogs-proxy@work", "/etc/cnblogs-proxy/work.toml");
    let process = machine.show("cnblogs-proxy@work", "MainPID");
    let user: u32 = machine.done(&format!("stat -c %u /proc/{process}")).trim_end().parse().unwrap();
    // https://systemd.io/UIDS-GIDS/
    assert!((61_184..=65_519).contains(&user), "{user} is no user that exists only while it runs");
}

/// A reload succeeds, and fails when the file needs a restart.
#[track_caller]
fn assert_reload_tells(machine: &Machine, reload: &str, config: &str) {
    machine.done(reload);
    machine.done(&format!("sed -i '1i workers = 3' {config}"));
    assert!(!machine.run(reload, "").status.success(), "{reload}");
    machine.done(&format!("sed -i 1d {config}"));
    machine.done(reload);
}

fn assert_user_needs_neither_package_nor_root(machine: &Machine, standin: &Standin) {
    machine.done("useradd --create-home --uid 1234 alice");
    machine.done(&format!("{} alice", told("loginctl enable-linger")));
    eventually("her manager is up", || {
        machine.run("systemctl is-active user@1234", "").status.success().then_some(())
    });
    let alice = "setpriv --reuid=1234 --regid=1234 --init-groups env HOME=/home/alice XDG_RUNTIME_DIR=/run/user/1234 ";
    let as_alice = |command: &str| format!("{alice} sh -c '{command}'");
    let home = "/home/alice/.config/cnblogs-proxy";
    let secret = format!("[account.main]\nclient_secret_file = \"{home}/client_secret\"\n");
    let config = account(standin).replace("[account.main]\n", &secret);
    let place = "umask 077; mkdir -p ~/.config/cnblogs-proxy; cat >~/.config/cnblogs-proxy/";
    machine.done_with(
        &as_alice(&format!("{place}config.toml")),
        &format!("listen = [\"127.0.0.1:8264\"]\n{config}"),
    );
    machine.done_with(&as_alice(&format!("{place}client_secret")), &pasted_secret(standin));
    // As `cargo install` leaves it, and nowhere else.
    machine.done("systemctl stop cnblogs-proxy@work && rm /usr/local/bin/cnblogs-proxy");
    machine.done(&as_alice("install -D -t ~/.cargo/bin /exchange/cnblogs-proxy"));

    let unit = "install -D -m 644 -t ~/.config/systemd/user deploy/systemd/user/cnblogs-proxy.service";
    machine.done(&as_alice(&format!("cd / && {}", told(unit))));
    machine.done(&as_alice(told("systemctl --user enable --now cnblogs-proxy")));

    let ours = |command: &str| as_alice(&format!("PATH=$PATH:~/.cargo/bin {command}"));
    machine.log_in(standin, &ours("cnblogs-proxy login"));
    assert_eq!(get(8264, "/echo/x").status, 200);
    let reload = as_alice("systemctl --user reload cnblogs-proxy");
    assert_reload_tells(machine, &reload, &format!("{home}/config.toml"));
    machine.done(&as_alice(told("systemctl --user restart cnblogs-proxy")));
    machine.done(&ours("cnblogs-proxy status"));
}

#[test]
fn the_address_and_the_secret_s_keeping_are_changed_as_the_readme_says() {
    alone(|| {
        let standin = Standin::start(Options { expires_in_secs: 86_400, ..Options::default() });
        let machine = Machine::with_units();
        configure(&machine, &standin);
        machine.done("systemctl enable --now cnblogs-proxy");
        machine.log_in(&standin, "cnblogs-proxy login");

        edit(
            &machine,
            "cnblogs-proxy.socket",
            "[Socket]\nListenStream=\nListenStream=127.0.0.1:9000\nListenStream=[::1]:9000\n",
        );
        machine.done(told("systemctl restart cnblogs-proxy.socket"));

        assert_eq!(get(9000, "/echo/x").status, 200);
        assert!(try_get(PORT, "/-/healthz").is_none(), "the old address is free");
        machine.done("cnblogs-proxy status");

        let drop_in = "[Service]\nLoadCredentialEncrypted=client_secret:cnblogs-proxy.client_secret\n";
        edit(&machine, "cnblogs-proxy", drop_in);
        machine.done(told("install -d -m 700 /etc/credstore.encrypted"));
        let encrypted = "/etc/credstore.encrypted/cnblogs-proxy.client_secret";
        let encrypt = format!("systemd-creds encrypt --name=client_secret - {encrypted}");
        machine.done_with(told(&encrypt), &pasted_secret(&standin));
        machine.done(told(
            "rm -f /etc/credstore/cnblogs-proxy.client_secret\nsystemctl restart cnblogs-proxy\n",
        ));

        machine.done("cnblogs-proxy refresh");
        assert_eq!(get(9000, "/echo/x").status, 200);
        let lost = format!("rm {encrypted} && systemctl restart cnblogs-proxy");
        assert!(!machine.run(&lost, "").status.success(), "it was this secret");
    });
}

#[test]
fn a_service_with_a_personal_access_token_needs_no_login() {
    alone(|| {
        let pat = "pat-0123456789abcdefghijklmnopqrstuvwxyz";
        let personal_access_tokens = vec![(pat.to_owned(), Person::Alice)];
        let standin = Standin::start(Options { personal_access_tokens, ..Options::default() });
        let machine = Machine::with_units();
        machine.done("install -D -m 644 -t /etc/cnblogs-proxy /deploy/debian/config.toml");
        let grant = told("grant = \"personal_access_token\"");
        let change = format!("s/^#(\\[account)/\\1/; s/^#client_id.*/{grant}/");
        machine.done(&format!("sed -i -E '{change}' /etc/cnblogs-proxy/config.toml"));
        let route = format!("\n[[route]]\nupstream = \"{}\"\n", standin.api_url());
        machine.done_with("cat >>/etc/cnblogs-proxy/config.toml", &route);
        let file = told("/etc/credstore/cnblogs-proxy.pat");
        machine.done_with(&format!("install -D -m 600 /dev/stdin {file}"), &format!("{pat}\n"));

        machine.done("systemctl enable --now cnblogs-proxy");

        let answer = get(PORT, "/api/users");
        assert_eq!(answer.json()["UserId"], Person::Alice.user_id(), "{answer:?}");
        machine.done("cnblogs-proxy status");
    });
}

/// `systemctl edit`, at a terminal, with an editor that writes what the guide shows.
#[track_caller]
fn edit(machine: &Machine, unit: &str, text: &str) {
    told(&format!("systemctl edit {unit}"));
    machine.write("/tmp/text", told(text));
    let editor = "#!/bin/sh\nfor file; do cat /tmp/text >\"$file\"; done\n";
    machine.done_with("install -m 755 /dev/stdin /usr/local/bin/editor", editor);
    let command = format!("env EDITOR=editor systemctl edit {unit}");
    machine.done(&format!("script --quiet --return --command '{command}' /dev/null"));
}
