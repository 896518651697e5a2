//! Replicas that share one login through PostgreSQL.

mod database;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::standin::{Endpoint, Fault, Gate, Options, Person, Standin};
use crate::support::{Daemon, Home, PATIENCE, World, config, eventually};
use database::{Database, Pooler, Relay};

/// Daemons with one login.
struct Fleet {
    replicas: Vec<Replica>,
    standin: Standin,
    database: Database,
}

struct Replica {
    daemon: Daemon,
    home: Home,
}

impl Fleet {
    /// So many replicas; nobody is logged in.
    fn start(count: usize) -> Self {
        let database = Database::start();
        let url = database.url("postgres");
        Self::over(database, &url, count, "")
    }

    fn over(database: Database, url: &str, count: usize, tables: &str) -> Self {
        let standin = Standin::start(Options::default());
        let homes: Vec<_> = (0..count).map(|_| home(&standin, url, tables)).collect();
        let replicas = homes.into_iter().map(|home| Replica { daemon: home.serve(), home }).collect();
        Self { replicas, standin, database }
    }

    fn logged_in(count: usize) -> Self {
        let fleet = Self::start(count);
        fleet.log_in(0);
        fleet.all_serve();
        fleet
    }

    /// A whole login at one of the replicas.
    #[track_caller]
    fn log_in(&self, at: usize) {
        let daemon = &self.replicas[at].daemon;
        let started = daemon.post_form("/-/login/main/start", &[]);
        let callback = self.standin.authorize(started.field("location").unwrap(), Person::Alice);
        let answer = daemon.post_form("/-/login/main", &[("callback", &callback)]);
        assert_eq!((answer.status, &answer.json()["outcome"]), (200, &"logged-in".into()), "{answer:?}");
    }

    /// Every replica serves requests with the newest token.
    #[track_caller]
    fn all_serve(&self) {
        let newest = self.token(0);
        for replica in &self.replicas {
            eventually("every replica serves the newest token", || {
                (replica.daemon.get("/api/users").status == 200 && replica.token() == newest).then_some(())
            });
        }
    }

    /// All replicas are asked to refresh at the same time, and serve with one token then.
    #[track_caller]
    fn refresh_at_once(&self) {
        std::thread::scope(|scope| {
            for replica in &self.replicas {
                let home = &replica.home;
                scope.spawn(move || assert!(home.run(&["refresh"], "").status.success()));
            }
        });
        self.all_serve();
    }

    fn token(&self, at: usize) -> String {
        self.replicas[at].token()
    }

    /// How many refreshes there were, none of which presented a token that was spent.
    #[track_caller]
    fn refreshes(&self) -> usize {
        assert_eq!(self.standin.superseded_presentations(), 0, "a spent refresh token was presented");
        self.standin.refreshes().len()
    }

    /// Claims look as old as a day.
    fn age_claims(&self) {
        self.database.ask("update cnblogs_proxy.logins set claimed_at = claimed_at - interval '1 day'");
    }
}

/// What its daemon serves with; empty when there is nothing.
fn token_of(home: &Home) -> String {
    let output = home.run(&["token"], "");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Replica {
    fn token(&self) -> String {
        token_of(&self.home)
    }

    fn refresh(&self) -> Output {
        self.home.run(&["refresh"], "")
    }

    #[track_caller]
    fn refreshes(&self) {
        let output = self.refresh();
        assert!(output.status.success(), "{output:?}\n{}", self.daemon.output());
    }
}

/// A home whose daemon shares its login.
fn home(standin: &Standin, url: &str, tables: &str) -> Home {
    let home = Home::new(Vec::new());
    let key = home.secret("seal.key", &STANDARD.encode([7; 32]));
    let store = format!("[store]\nurl = \"{url}\"\nseal_key_files = [\"{}\"]\n{tables}", key.display());
    fs::write(home.config(), config(standin, &home, "workers = 1", "", "", &store)).unwrap();
    home
}

#[test]
fn a_login_in_the_database_outlives_the_process_and_is_sealed() {
    let mut fleet = Fleet::logged_in(1);
    let before = fleet.token(0);
    fleet.replicas[0].refreshes();
    let token = fleet.token(0);
    assert_ne!(before, token);

    assert_eq!(fleet.replicas[0].daemon.stop().code(), Some(0));
    fleet.replicas[0].daemon = fleet.replicas[0].home.serve();

    assert_eq!(fleet.token(0), token);
    assert_eq!(fleet.refreshes(), 1);
    assert_eq!(fleet.database.ask("select generation, claim is null from cnblogs_proxy.logins"), "2|t");
    let kept = fleet.database.ask("select encode(record, 'escape') from cnblogs_proxy.logins");
    assert!(!fleet.standin.issued_secrets().iter().any(|secret| kept.contains(secret)));
    let left: Vec<_> =
        fs::read_dir(fleet.replicas[0].home.state()).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("store")), "{left:?}");
}

#[test]
fn what_a_person_does_at_one_replica_holds_for_all() {
    let fleet = Fleet::start(2);
    let login_required = |at: usize| {
        eventually("a login is required", || {
            (fleet.replicas[at].daemon.state() == "login-required").then_some(())
        });
    };
    login_required(1);
    fleet.log_in(0);
    fleet.all_serve();

    fleet.replicas[1].refreshes();
    fleet.all_serve();
    assert_eq!(fleet.refreshes(), 1);

    assert!(fleet.replicas[1].home.run(&["logout"], "").status.success());
    login_required(0);
    fleet.log_in(1);
    fleet.all_serve();
}

#[test]
fn replicas_that_refresh_at_once_present_each_refresh_token_once() {
    let fleet = Fleet::logged_in(3);
    for _ in 0..5 {
        fleet.refresh_at_once();
    }
    assert!(fleet.refreshes() >= 5);
}

#[test]
fn replicas_share_a_login_through_a_pooler_in_transaction_mode() {
    let database = Database::start();
    let pooler = Pooler::start(&database);
    let fleet = Fleet::over(database, &pooler.url(), 3, "");
    fleet.log_in(0);
    fleet.all_serve();
    for _ in 0..3 {
        fleet.refresh_at_once();
    }
    assert!(fleet.refreshes() >= 3);
}

#[test]
fn a_slow_token_endpoint_is_asked_by_one_replica() {
    let fleet = Fleet::logged_in(2);
    let gate = Gate::default();
    fleet.standin.fault(Endpoint::Token, Fault::HoldAfter(gate.clone()));
    let [one, two] = [0, 1].map(|at: usize| &fleet.replicas[at].home);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| one.run(&["refresh"], ""));
        eventually("the request waits", || (gate.waiting() > 0).then_some(()));
        let other = scope.spawn(|| two.run(&["refresh"], ""));
        // It waits for the other replica and does not ask the server.
        eventually("the other knows of it", || {
            (fleet.replicas[1].daemon.state() == "refreshing").then_some(())
        });
        assert_eq!(fleet.standin.refreshes().len(), 1);
        gate.open();
        assert!(first.join().unwrap().status.success() && other.join().unwrap().status.success());
    });
    fleet.all_serve();
    assert_eq!(fleet.refreshes(), 1);
}

#[test]
fn a_replica_that_is_killed_before_its_request_was_carried_out_is_replaced() {
    let mut fleet = Fleet::logged_in(2);
    let gate = Gate::default();
    fleet.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));
    let refreshing = fleet.replicas[0].home.command(&["refresh"]).spawn();
    eventually("the request waits", || (gate.waiting() > 0).then_some(()));
    fleet.replicas[0].daemon.kill();
    refreshing.unwrap().wait().unwrap();

    let refused = fleet.replicas[1].refresh();
    assert!(!refused.status.success(), "the claim is young: {refused:?}");
    assert_eq!(fleet.standin.refreshes().len(), 1);
    fleet.age_claims();
    fleet.replicas[1].refreshes();

    fleet.replicas[1].daemon.says("takes over a refresh");
    assert_eq!(fleet.replicas[1].daemon.get("/api/users").status, 200);
}

#[test]
fn a_successor_that_cannot_be_saved_outlives_the_process_beside_the_database() {
    let mut fleet = Fleet::logged_in(2);
    let gate = Gate::default();
    fleet.standin.fault(Endpoint::Token, Fault::HoldAfter(gate.clone()));
    let refreshing = fleet.replicas[0].home.command(&["refresh"]).spawn();
    eventually("the request waits", || (gate.waiting() > 0).then_some(()));
    fleet.database.stop();
    gate.open();
    refreshing.unwrap().wait().unwrap();
    fleet.replicas[0].daemon.says("can't be saved, and a restart would lose it");
    let token = fleet.token(0);
    fleet.replicas[0].daemon.kill();
    fleet.replicas[0].daemon = fleet.replicas[0].home.serve();
    assert_eq!(fleet.token(0), token, "what could not be saved serves");

    fleet.database.start_again();

    eventually("the other serves it", || (fleet.token(1) == token).then_some(()));
    fleet.replicas[1].refreshes();
    fleet.all_serve();
    assert_eq!(fleet.refreshes(), 2);
}

#[test]
fn without_the_database_the_token_serves_and_nobody_refreshes() {
    let mut fleet = Fleet::logged_in(2);
    fleet.database.stop();
    for replica in &fleet.replicas {
        let refused = replica.refresh();
        assert!(!refused.status.success(), "{refused:?}");
        replica.daemon.says("nothing is spent");
        assert_eq!(replica.daemon.get("/api/users").status, 200);
        assert_eq!(replica.daemon.get("/-/readyz").status, 200);
    }
    assert_eq!(fleet.refreshes(), 0);

    fleet.database.start_again();

    for replica in &fleet.replicas {
        eventually("it comes back by itself", || replica.refresh().status.success().then_some(()));
    }
    fleet.all_serve();
    fleet.refreshes();
}

#[test]
fn a_database_that_does_not_answer_is_none() {
    let fleet = Fleet::logged_in(1);
    fleet.database.freeze(true);

    let refused = fleet.replicas[0].refresh();

    assert!(!refused.status.success(), "{refused:?}");
    fleet.replicas[0].daemon.says("does not answer");
    assert_eq!(fleet.refreshes(), 0);
    assert_eq!(fleet.replicas[0].daemon.get("/api/users").status, 200);
    fleet.database.freeze(false);
    eventually("it comes back by itself", || fleet.replicas[0].refresh().status.success().then_some(()));
}

#[test]
fn a_daemon_that_starts_without_the_database_gets_its_login_when_that_is_there() {
    let mut fleet = Fleet::logged_in(1);
    let token = fleet.token(0);
    fleet.replicas[0].daemon.stop();
    fleet.database.stop();

    fleet.replicas[0].daemon = fleet.replicas[0].home.serve();

    assert_eq!(fleet.replicas[0].daemon.state(), "degraded");
    assert_eq!(fleet.replicas[0].daemon.get("/api/users").problem(), "token-unavailable");
    fleet.database.start_again();
    eventually("it serves", || (fleet.replicas[0].daemon.get("/api/users").status == 200).then_some(()));
    assert_eq!(fleet.token(0), token);
    assert_eq!(fleet.refreshes(), 0);
}

#[test]
fn a_refusal_that_another_replica_has_overtaken_is_none() {
    let fleet = Fleet::logged_in(2);
    let gate = Gate::default();
    fleet.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));
    let home = &fleet.replicas[0].home;
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| home.run(&["refresh"], ""));
        eventually("the request waits", || (gate.waiting() > 0).then_some(()));
        fleet.age_claims();
        fleet.replicas[1].refreshes();
        gate.open();
        // Its refresh token is spent by now, by the other.
        let outcome = slow.join().unwrap();
        assert!(outcome.status.success(), "{outcome:?}\n{}", fleet.replicas[0].daemon.output());
    });
    fleet.all_serve();
    assert_ne!(fleet.replicas[0].daemon.state(), "login-required");
}

#[test]
fn what_a_slow_refresh_brings_after_a_logout_elsewhere_is_revoked() {
    let fleet = Fleet::logged_in(2);
    let gate = Gate::default();
    fleet.standin.fault(Endpoint::Token, Fault::HoldAfter(gate.clone()));
    let home = &fleet.replicas[0].home;
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| home.run(&["refresh"], ""));
        eventually("the request waits", || (gate.waiting() > 0).then_some(()));
        fleet.age_claims();
        assert!(fleet.replicas[1].home.run(&["logout"], "").status.success());
        assert_eq!(fleet.standin.revocations().len(), 1);
        gate.open();
        slow.join().unwrap();
    });

    for replica in &fleet.replicas {
        eventually("nobody is logged in", || (replica.daemon.state() == "login-required").then_some(()));
        assert_eq!(replica.token(), "");
    }
    assert_eq!(fleet.standin.revocations().len(), 2);
    assert_eq!(fleet.database.ask("select generation, record is null from cnblogs_proxy.logins"), "2|t");
}

#[test]
fn a_wrong_key_and_newer_tables_are_refused_at_the_start_and_nothing_is_written() {
    let mut fleet = Fleet::logged_in(1);
    fleet.replicas[0].daemon.stop();
    let home = &fleet.replicas[0].home;
    let rows = || fleet.database.ask("select l::text from cnblogs_proxy.logins l");
    let before = rows();

    home.secret("seal.key", &STANDARD.encode([8; 32]));
    let refused = home.run(&["serve"], "");
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("seal.key"), "{refused:?}");
    assert_eq!(rows(), before);

    home.secret("seal.key", &STANDARD.encode([7; 32]));
    fleet.database.ask("update cnblogs_proxy.version set version = 2");
    let refused = home.run(&["serve"], "");
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("newer"), "{refused:?}");
    assert_eq!(rows(), before);
}

#[test]
fn a_role_without_rights_and_a_standby_are_told_with_their_cure_and_spend_nothing() {
    let mut fleet = Fleet::logged_in(1);
    fleet.database.ask("create role weak login; grant usage on schema cnblogs_proxy to weak");
    fleet.database.ask("grant select on all tables in schema cnblogs_proxy to weak");
    let weak = home(&fleet.standin, &fleet.database.url("weak"), "");
    let daemon = weak.serve();
    assert_eq!(daemon.get("/api/users").status, 200);
    let refused = weak.run(&["refresh"], "");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("store init --print"), "{refused:?}");
    assert_eq!(fleet.refreshes(), 0);

    fleet.database.ask("alter system set default_transaction_read_only = on");
    fleet.database.stop();
    fleet.database.start_again();
    eventually("the standby is told", || {
        let refused = fleet.replicas[0].refresh();
        assert!(!refused.status.success(), "{refused:?}");
        String::from_utf8_lossy(&refused.stderr).contains("read-only standby").then_some(())
    });
    assert_eq!(fleet.refreshes(), 0);
}

/// The successor of one replica can't be saved while another takes the refresh over and is refused.
#[test]
fn a_replica_that_is_cut_off_from_the_database_saves_its_successor_when_the_way_is_back() {
    let database = Database::start();
    let way = Relay::to(&database);
    let standin = Standin::start(Options::default());
    let urls = [way.url(), database.url("postgres")];
    let homes = urls.map(|url| home(&standin, &url, ""));
    let replicas = homes.into_iter().map(|home| Replica { daemon: home.serve(), home }).collect();
    let fleet = Fleet { replicas, standin, database };
    fleet.log_in(0);
    fleet.all_serve();
    let gate = Gate::default();
    fleet.standin.fault(Endpoint::Token, Fault::HoldAfter(gate.clone()));
    let home = &fleet.replicas[0].home;
    std::thread::scope(|scope| {
        let refreshing = scope.spawn(|| home.run(&["refresh"], ""));
        eventually("the request waits", || (gate.waiting() > 0).then_some(()));
        way.cut(true);
        gate.open();
        assert!(refreshing.join().unwrap().status.success());
    });
    let token = fleet.token(0);
    assert_eq!(fleet.replicas[0].daemon.get("/api/users").status, 200);

    fleet.age_claims();
    let refused = fleet.replicas[1].refresh();
    assert!(!refused.status.success(), "its refresh token is spent: {refused:?}");
    eventually("it says so", || (fleet.replicas[1].daemon.state() == "login-required").then_some(()));
    way.cut(false);

    for replica in &fleet.replicas {
        eventually("all are well", || {
            (replica.token() == token && replica.daemon.state() == "ready").then_some(())
        });
    }
    fleet.replicas[1].refreshes();
    fleet.all_serve();
}

#[test]
fn a_successor_is_kept_when_the_primary_dies_and_its_standby_is_promoted() {
    let primary = Database::start();
    let standby = primary.synchronous_standby();
    let url = primary.url_with(&standby);
    let mut fleet = Fleet::over(primary, &url, 2, "");
    fleet.log_in(0);
    fleet.all_serve();
    let gate = Gate::default();
    fleet.standin.fault(Endpoint::Token, Fault::HoldAfter(gate.clone()));
    let refreshing = fleet.replicas[0].home.command(&["refresh"]).spawn();
    eventually("the request waits", || (gate.waiting() > 0).then_some(()));

    fleet.database.stop();
    gate.open();
    refreshing.unwrap().wait().unwrap();
    standby.promote();

    let token = fleet.token(0);
    eventually("the other serves it", || (fleet.token(1) == token).then_some(()));
    eventually("it is saved", || {
        (standby.ask("select generation from cnblogs_proxy.logins") == "2").then_some(())
    });
    fleet.replicas[1].refreshes();
    fleet.all_serve();
    assert_eq!(fleet.refreshes(), 2);
}

#[test]
fn of_thirty_replicas_that_start_at_once_one_refreshes() {
    let mut fleet = Fleet::start(1);
    // A refresh is due for all of them, when they start or soon after it.
    fleet.standin.set_expires_in(20);
    fleet.log_in(0);
    let old = fleet.token(0);
    fleet.replicas[0].daemon.stop();
    fleet.standin.set_expires_in(3600);
    let before = fleet.refreshes();
    let url = fleet.database.url("postgres");
    let homes: Vec<_> = (0..30).map(|_| home(&fleet.standin, &url, "")).collect();
    std::thread::scope(|scope| {
        let starting: Vec<_> = homes.iter().map(|home| scope.spawn(|| home.serve())).collect();
        let daemons: Vec<_> = starting.into_iter().map(|one| one.join().unwrap()).collect();
        for (home, daemon) in homes.iter().zip(&daemons) {
            eventually("it has what one of them was given", || {
                let token = token_of(home);
                (!token.is_empty() && token != old).then_some(())
            });
            assert_eq!(daemon.get("/api/users").status, 200);
        }
    });
    assert_eq!(fleet.refreshes(), before + 1);
}

/// Of eight replicas under constant load, with tokens that last seconds.
#[test]
fn no_request_fails_while_replicas_take_turns_to_refresh() {
    through_refreshes("", None);
}

#[test]
fn no_request_fails_while_replicas_take_turns_to_refresh_through_a_pooler() {
    let database = Database::start();
    let pooler = Pooler::start(&database);
    through_refreshes(&pooler.url(), Some(database));
}

fn through_refreshes(url: &str, database: Option<Database>) {
    const REFRESHES: usize = 20;
    let fleet = match database {
        Some(database) => Fleet::over(database, url, 8, ""),
        None => Fleet::start(8),
    };
    fleet.standin.set_expires_in(6);
    fleet.log_in(0);
    for replica in &fleet.replicas {
        eventually("every replica serves", || (replica.daemon.get("/api/users").status == 200).then_some(()));
    }
    let is_over = AtomicBool::new(false);
    let authorities: Vec<_> = fleet.replicas.iter().map(|replica| replica.daemon.authority.clone()).collect();
    let ask = |authority: &str| {
        let mut answered = 0;
        while !is_over.load(Ordering::Relaxed) {
            let status = get(authority);
            assert_eq!(status, 200, "after {answered} answers");
            answered += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        answered
    };

    let answered: usize = std::thread::scope(|scope| {
        let askers: Vec<_> =
            authorities.iter().map(|authority| scope.spawn(move || ask(authority))).collect();
        eventually("all refreshes are over", || (fleet.standin.refreshes().len() >= REFRESHES).then_some(()));
        is_over.store(true, Ordering::Relaxed);
        askers.into_iter().map(|asker| asker.join().unwrap()).sum()
    });

    assert!(answered > 100, "{answered} requests");
    fleet.refreshes();
}

/// The status of an answer, on a connection of its own.
fn get(authority: &str) -> u16 {
    let mut stream = TcpStream::connect(authority).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("GET /api/users HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_replica_whose_clock_is_an_hour_off_changes_nothing() {
    let fleet = Fleet::logged_in(1);
    let url = fleet.database.url("postgres");
    for offset in ["-1h", "+1h"] {
        let home = home(&fleet.standin, &url, "");
        let mut command = Command::new("faketime");
        let serve = home.command(&["serve"]);
        command.args(["-f", offset]).arg(serve.get_program()).args(serve.get_args());
        command.env("HOME", home.path());
        let other = Replica { daemon: Daemon::spawn(command), home };
        let refreshes = fleet.refreshes();
        assert_eq!(other.token(), fleet.token(0));

        other.refreshes();
        eventually("the other serves it", || (other.token() == fleet.token(0)).then_some(()));
        fleet.replicas[0].refreshes();
        eventually("the other serves it", || (other.token() == fleet.token(0)).then_some(()));

        // By another clock the token would be over, or for ever fresh.
        assert_eq!(fleet.refreshes(), refreshes + 2, "{offset}");
        for replica in [&other, &fleet.replicas[0]] {
            assert_eq!(replica.daemon.get("/api/users").status, 200, "{offset}");
        }
        let ends = |replica: &Replica, ahead: i64| {
            let at = replica.daemon.status()["accounts"]["main"]["expires_at"].as_str().unwrap().to_owned();
            let at = humantime::parse_rfc3339(&at).unwrap().duration_since(UNIX_EPOCH).unwrap();
            i64::try_from(at.as_secs()).unwrap() - ahead
        };
        let ahead = if offset == "+1h" { 3600 } else { -3600 };
        let (ours, theirs) = (ends(&fleet.replicas[0], 0), ends(&other, ahead));
        assert!((ours - theirs).abs() < 60, "{offset}: {ours}, {theirs}");
    }
}

#[test]
fn the_tables_are_made_once_and_checked_and_told_of() {
    let fleet = Fleet::logged_in(2);
    let home = &fleet.replicas[0].home;
    let says = |arguments: &[&str]| {
        let output = home.run(arguments, "");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    assert!(says(&["store", "init"]).contains("the tables are in schema cnblogs_proxy"));
    fleet.replicas[1].refreshes();
    fleet.all_serve();

    let checked = says(&["check", "--connect"]);
    assert!(checked.contains("the login of main, generation 2, can be opened"), "{checked}");
    let status = says(&["status"]);
    assert!(status.contains("generation 2, last refreshed by ") && status.contains(", up\n"), "{status}");
    let metrics = fleet.replicas[0].daemon.get("/-/metrics").text();
    for line in ["store_up 1\n", "store_claims_total 1\n", "store_generation{account=\"main\"} 2\n"] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let page = fleet.replicas[0].daemon.get("/-/").text();
    assert!(page.contains("generation 2, last refreshed by "), "{page}");

    fleet.database.ask("drop schema cnblogs_proxy cascade");
    fleet.database.ask(&says(&["store", "init", "--print"]));
    assert_eq!(fleet.database.ask("select version from cnblogs_proxy.version"), "1");
    // What a replica knows is written again at the next refresh, as with files that were deleted.
    fleet.replicas[0].refreshes();
    fleet.all_serve();
    fleet.refreshes();
}

#[test]
fn the_login_of_a_machine_is_taken_along_into_the_database_once() {
    let database = Database::start();
    let url = database.url("postgres");
    let mut world = World::logged_in();
    world.daemon.stop();
    let before = world.home.run(&["token"], "").stdout;
    let files = fs::read_to_string(world.home.config()).unwrap();
    let key = world.home.secret("seal.key", &STANDARD.encode([7; 32]));
    let store = format!("[store]\nurl = \"{url}\"\nseal_key_files = [\"{}\"]\n", key.display());
    fs::write(world.home.config(), format!("{files}{store}")).unwrap();

    let imported = world.home.run(&["store", "import"], "");

    assert!(imported.status.success(), "{imported:?}");
    assert_eq!(world.home.run(&["token"], "").stdout, before);
    let again = world.home.run(&["store", "import"], "");
    assert!(String::from_utf8_lossy(&again.stdout).contains("no login is stored in files here"), "{again:?}");
    // The daemon of before has nothing that it could spend.
    fs::write(world.home.config(), files).unwrap();
    assert_eq!(world.home.run(&["token"], "").status.code(), Some(3));
}

#[test]
fn the_database_is_asked_little_when_nothing_happens() {
    let fleet = Fleet::logged_in(1);
    let before = fleet.database.statements();
    assert!(before > 0, "nothing is seen");

    std::thread::sleep(Duration::from_secs(60));

    let asked = fleet.database.statements() - before;
    assert!((1..5).contains(&asked), "{asked} statements in a minute");
}
