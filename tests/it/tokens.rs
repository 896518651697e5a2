//! The walk of a token: refreshed in time, once, and kept, whoever asks and whoever leaves.

pub(crate) mod answers;
mod crowd;
mod ends;
pub(crate) mod faults;
pub(crate) mod rejected;
mod stopping;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::SystemTime;

use serde_json::Value;
use url::form_urlencoded;

use crate::standin::{Endpoint, Fault, Gate, Options, Person, Presented, Rotation};
use crate::support::{Answer, Daemon, Setup, World, eventually};

const CROWD: usize = 1000;

/// A request that was sent and whose answer is read later.
pub(crate) struct Sent {
    stream: TcpStream,
}

impl Sent {
    /// Sends a GET on a connection that is open.
    pub(crate) fn get(stream: TcpStream, daemon: &Daemon, target: &str) -> Self {
        Self::new(stream, daemon, "GET", target)
    }

    /// Sends a request without a body on a connection that is open.
    pub(crate) fn new(mut stream: TcpStream, daemon: &Daemon, method: &str, target: &str) -> Self {
        let fields = format!("Host: {}\r\nConnection: close\r\n", daemon.authority);
        let length = if method == "GET" { "" } else { "Content-Length: 0\r\n" };
        let head = format!("{method} {target} HTTP/1.1\r\n{fields}{length}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        Self { stream }
    }

    /// Asks for a refresh of the account `main`.
    pub(crate) fn refresh(daemon: &Daemon) -> Self {
        Self::refresh_of(daemon, "main")
    }

    /// Asks for a refresh of an account.
    pub(crate) fn refresh_of(daemon: &Daemon, account: &str) -> Self {
        Self::form(daemon, &format!("/-/refresh/{account}"), &[])
    }

    /// Posts a form.
    pub(crate) fn form(daemon: &Daemon, target: &str, form: &[(&str, &str)]) -> Self {
        let mut stream = daemon.connect();
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\n\r\n{body}",
            daemon.authority,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        Self { stream }
    }

    /// The answer, once it is whole.
    #[track_caller]
    pub(crate) fn answer(mut self) -> Answer {
        let mut raw = Vec::new();
        self.stream.read_to_end(&mut raw).unwrap();
        Answer::parse(&raw, "GET").unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(&raw)))
    }
}

/// Asks for a refresh of the account `main` and waits for what comes of it.
#[track_caller]
pub(crate) fn refresh(daemon: &Daemon) -> Answer {
    daemon.post_form("/-/refresh/main", &[])
}

/// What the status says of the account `main`.
#[track_caller]
pub(crate) fn main_account(daemon: &Daemon) -> Value {
    daemon.status()["accounts"]["main"].take()
}

/// The events of the account `main`, in order.
#[track_caller]
pub(crate) fn events(daemon: &Daemon) -> Vec<String> {
    let events = main_account(daemon)["events"].take();
    let names = events.as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap().to_owned());
    names.collect()
}

/// Alice is logged in with an access token that the daemon is told to last so long, and the API takes for longer.
/// The faults meet what comes to the token endpoint after the login.
#[track_caller]
pub(crate) fn logged_in_for(secs: u64, faults: Vec<Fault>, setup: Setup) -> World {
    let world = setup.start();
    world.standin.fault(Endpoint::Token, Fault::alter(move |answer| answer["expires_in"] = secs.into()));
    for fault in faults {
        world.standin.fault(Endpoint::Token, fault);
    }
    world.log_in(Person::Alice);
    world
}

/// Waits until the gate holds a request.
#[track_caller]
pub(crate) fn held(gate: &Gate) {
    eventually("the gate holds a request", || (gate.waiting() > 0).then_some(()));
}

/// Waits until the daemon has no token that can be used.
#[track_caller]
pub(crate) fn expired(daemon: &Daemon) {
    eventually("the access token has expired", || (daemon.get("/-/readyz").status == 503).then_some(()));
}

#[track_caller]
fn assert_serves(world: &World) {
    let answer = world.daemon.get("/api/users");
    assert_eq!(answer.status, 200, "{answer:?}\n{}", world.daemon.output());
}

#[test]
fn a_token_is_refreshed_at_about_half_of_its_lifetime() {
    let options = Options { expires_in_secs: 4, ..Options::default() };
    let world = Setup { options, ..Setup::default() }.logged_in();

    let requests = eventually("two refreshes came", || {
        let requests = world.standin.token_requests();
        (requests.len() >= 3).then_some(requests)
    });

    assert!(requests[0].grant_type == "authorization_code" && requests[1].grant_type == "refresh_token");
    for pair in requests.windows(2) {
        let after = pair[1].at - pair[0].at;
        assert!(after.as_millis() >= 1800, "after {after:?} of 4 s");
    }
    // How much later depends on the machine; when it is due does not.
    world.standin.set_expires_in(3600);
    eventually("there is a token that lasts", || {
        assert_eq!(refresh(&world.daemon).status, 200);
        let [obtained, due, end] = ["obtained_at", "next_refresh_at", "expires_at"].map(|name| {
            let text = main_account(&world.daemon)[name].as_str().unwrap().to_owned();
            humantime::parse_rfc3339(&text).unwrap()
        });
        let secs = |from, to: SystemTime| to.duration_since(from).unwrap().as_secs();
        let (whole, part) = (secs(obtained, end), secs(obtained, due));
        (whole > 3000).then(|| assert!((1709..=1800).contains(&part), "after {part} s of {whole} s"))
    });
}

#[test]
fn constant_requests_meet_only_good_tokens_over_many_refreshes_and_a_refresh_token_is_used_once() {
    let options = Options { expires_in_secs: 3, ..Options::default() };
    let account = "refresh_at = 0.05".to_owned();
    let mut world = Setup { options, account, ..Setup::default() }.logged_in();

    let (mut asked, mut failed) = (0, Vec::new());
    while world.standin.refreshes().len() < 30 || asked <= 30 {
        let answer = world.daemon.get("/api/users");
        asked += 1;
        if answer.status != 200 {
            failed.push(answer);
        }
    }

    assert!(failed.is_empty(), "{} of {asked}: {:?}", failed.len(), failed[0]);
    // No refresh is under way that came but was not judged yet.
    world.daemon.stop();
    let refreshes = world.standin.refreshes();
    assert!(refreshes.iter().all(|refresh| refresh.presented == Presented::Current), "{refreshes:?}");
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn a_thousand_requests_that_meet_an_expired_token_share_one_refresh() {
    let gate = Gate::default();
    // The connections wait for all of them, too.
    let tables = "[limits]\ntoken_wait = \"60s\"\nheader_timeout = \"60s\"".to_owned();
    let world = Setup { tables, ..Setup::default() }.start();
    let connections: Vec<_> = (0..CROWD).map(|_| world.daemon.connect()).collect();
    world.standin.fault(Endpoint::Token, Fault::alter(|answer| answer["expires_in"] = 1.into()));
    world.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));
    world.log_in(Person::Alice);
    held(&gate);
    expired(&world.daemon);
    world.standin.clear_api_requests();

    let sent = connections.into_iter().map(|stream| Sent::get(stream, &world.daemon, "/api/users"));
    let sent: Vec<_> = sent.collect();
    eventually("all of them wait", || {
        let waiting = world.daemon.status()["requests"]["in_flight"].as_u64().unwrap();
        (waiting > CROWD as u64).then_some(())
    });
    assert_eq!(world.standin.api_requests().len(), 0, "nothing is sent with an expired token");
    gate.open();
    let answers: Vec<_> = sent.into_iter().map(Sent::answer).collect();

    assert_eq!(answers.len(), CROWD);
    let failed = answers.iter().find(|answer| answer.status != 200);
    assert!(failed.is_none(), "{failed:?}");
    assert_eq!(world.standin.refreshes().len(), 1);
    assert_eq!(world.standin.api_requests().len(), CROWD);
}

#[test]
fn a_caller_that_goes_away_does_not_lose_the_granted_token() {
    let gate = Gate::default();
    let mut world = logged_in_for(1, vec![Fault::HoldAfter(gate.clone())], Setup::default());
    held(&gate);
    expired(&world.daemon);

    let waiting = Sent::get(world.daemon.connect(), &world.daemon, "/api/users");
    eventually("it waits", || {
        (world.daemon.status()["requests"]["in_flight"].as_u64().unwrap() > 1).then_some(())
    });
    drop(waiting);
    gate.open();

    eventually("there is a token", || (world.daemon.get("/-/readyz").status == 200).then_some(()));
    assert_serves(&world);
    world.restart();
    assert_serves(&world);
    assert_eq!(refresh(&world.daemon).status, 200, "the new refresh token is the one that is stored");
    assert_eq!((world.standin.refreshes().len(), world.standin.superseded_presentations()), (2, 0));
}

#[test]
fn a_person_who_goes_away_does_not_lose_the_granted_token() {
    let mut world = World::logged_in();
    let gate = Gate::default();
    world.standin.fault(Endpoint::Token, Fault::HoldAfter(gate.clone()));

    let asked = Sent::refresh(&world.daemon);
    held(&gate);
    drop(asked);
    gate.open();

    eventually("the refresh is over", || (world.daemon.state() == "ready").then_some(()));
    world.restart();
    assert_eq!(refresh(&world.daemon).status, 200, "the new refresh token is the one that is stored");
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn a_refresh_that_hangs_does_not_hold_up_requests_while_the_token_is_good() {
    let world = World::logged_in();
    let gate = Gate::default();
    world.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));

    let asked = Sent::refresh(&world.daemon);
    held(&gate);
    for _ in 0..50 {
        assert_serves(&world);
    }

    assert_eq!(world.daemon.state(), "refreshing", "it hangs to this day");
    gate.open();
    assert_eq!(asked.answer().status, 200);
    assert_eq!(world.daemon.state(), "ready");
}

#[test]
fn an_ask_for_a_refresh_brings_another_token_and_says_so() {
    let world = World::logged_in();
    let token = |world: &World| String::from_utf8(world.home.run(&["token"], "").stdout).unwrap();
    let first = token(&world);

    let answer = refresh(&world.daemon);

    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &"refreshed".into()));
    let second = token(&world);
    assert!(first != second && second.len() > 40, "the same token");
    assert_eq!(main_account(&world.daemon)["last_refresh"]["outcome"], "ok");
    assert_eq!(world.home.run(&["refresh"], "").status.code(), Some(0));
    assert_eq!(world.standin.refreshes().len(), 2);
}

#[test]
fn an_ask_for_a_refresh_needs_no_content_type() {
    let world = World::logged_in();

    let answer = world.daemon.request("POST", "/-/refresh/main", &[], b"");

    assert_eq!((answer.status, world.standin.refreshes().len()), (200, 1), "{answer:?}");
}

#[test]
fn a_server_that_keeps_the_refresh_token_is_asked_with_it_again() {
    for rotation in [Rotation::Silent, Rotation::Same] {
        let options = Options { rotation, ..Options::default() };
        let mut world = Setup { options, ..Setup::default() }.logged_in();

        for _ in 0..3 {
            assert_eq!(refresh(&world.daemon).status, 200, "{rotation:?}");
        }
        world.restart();
        assert_eq!(refresh(&world.daemon).status, 200, "{rotation:?}");

        let refreshes = world.standin.refreshes();
        assert_eq!(refreshes.len(), 4);
        let all_the_same = refreshes
            .windows(2)
            .all(|pair| pair[0].form_field("refresh_token") == pair[1].form_field("refresh_token"));
        assert!(all_the_same, "{rotation:?}");
        assert_serves(&world);
    }
}

#[test]
fn an_application_token_is_fetched_and_renewed_without_a_person() {
    let options = Options { expires_in_secs: 2, ..Options::default() };
    let account = "grant = \"client_credentials\"".to_owned();
    let mut world = Setup { options, account, ..Setup::default() }.start();

    let is_served = |world: &World| world.daemon.get("/status/200").status == 200;
    eventually("it is served", || is_served(&world).then_some(()));
    eventually("it was renewed twice", || (world.standin.token_requests().len() >= 3).then_some(()));
    assert!(is_served(&world));
    world.standin.set_expires_in(3600);
    // The first may be told of a refresh that was under way.
    for _ in 0..2 {
        assert_eq!(refresh(&world.daemon).status, 200);
    }
    let asked = world.standin.token_requests().len();

    world.restart();
    assert!(is_served(&world), "{}", world.daemon.output());
    let requests = world.standin.token_requests();
    assert_eq!(requests.len(), asked, "the stored one still serves");
    assert!(requests.iter().all(|request| request.grant_type == "client_credentials"), "{requests:?}");
    assert!(requests.iter().all(|request| request.form_field("scope").is_none()), "{requests:?}");
    assert!(main_account(&world.daemon)["login_expires_at"].is_null());
}

#[test]
fn a_refresh_token_that_comes_with_an_application_token_is_not_used() {
    let account = "grant = \"client_credentials\"".to_owned();
    let world = Setup { account, ..Setup::default() }.start();
    eventually("there is a token", || (world.daemon.state() == "ready").then_some(()));
    let with_refresh_token = || Fault::alter(|answer| answer["refresh_token"] = "of-an-application".into());
    world.standin.fault_always(Endpoint::Token, with_refresh_token);

    for _ in 0..3 {
        assert_eq!(refresh(&world.daemon).status, 200);
    }

    assert!(world.standin.refreshes().is_empty(), "{:?}", world.standin.refreshes());
    assert_eq!(world.daemon.state(), "ready");
}

#[test]
fn a_personal_access_token_is_never_refreshed() {
    let pat = "pat-0123456789abcdefghijklmnopqrstuvwxyz";
    let options =
        Options { personal_access_tokens: vec![(pat.to_owned(), Person::Alice)], ..Options::default() };
    let standin = crate::standin::Standin::start(options);
    let home = crate::support::Home::new(Vec::new());
    let token_file = home.secret("pat", pat);
    let config = format!(
        "listen = [\"127.0.0.1:0\"]\nstate_dir = \"{}\"\n[account.main]\ngrant = \"personal_access_token\"\n\
         token_file = \"{}\"\ntoken_url = \"{}/connect/token\"\n[[route]]\nupstream = \"{}\"\n",
        home.state().display(),
        token_file.display(),
        standin.auth_url(),
        standin.api_url()
    );
    std::fs::write(home.config(), config).unwrap();
    let daemon = home.serve();

    assert_eq!(daemon.get("/api/users").status, 200, "{}", daemon.output());
    standin.refuse_next(1);
    assert_eq!(daemon.get("/api/users").status, 401);
    assert_eq!(refresh(&daemon).problem(), "token-unavailable");

    assert_eq!(daemon.get("/api/users").status, 200);
    assert_eq!(daemon.state(), "ready");
    assert!(main_account(&daemon)["expires_at"].is_null());
    assert_eq!(standin.auth_requests().len(), 0, "nothing is asked of the authorization server");
}

#[test]
fn accounts_do_not_wait_for_each_other() {
    let world = two_accounts();
    let gate = Gate::default();
    world.standin.fault(Endpoint::Token, Fault::HoldBefore(gate.clone()));

    let main = Sent::refresh(&world.daemon);
    held(&gate);
    let other = Sent::refresh_of(&world.daemon, "other").answer();

    assert_eq!(other.status, 200, "{other:?}");
    let accounts = world.daemon.status()["accounts"].take();
    assert_eq!(
        (&accounts["main"]["state"], &accounts["other"]["state"]),
        (&"refreshing".into(), &"ready".into())
    );
    assert_eq!(world.daemon.get("/other/api/users").json()["DisplayName"], Person::Bob.display_name());
    assert_eq!(world.daemon.get("/api/users").json()["DisplayName"], Person::Alice.display_name());
    gate.open();
    assert_eq!(main.answer().status, 200);
}

#[test]
fn a_login_that_is_needed_for_one_account_leaves_the_other_alone() {
    let mut world = two_accounts();
    world.standin.fault(Endpoint::Token, Fault::error(400, "invalid_grant"));

    assert_eq!(refresh(&world.daemon).problem(), "login-required");

    let state = |world: &World, name: &str| world.daemon.status()["accounts"][name]["state"].clone();
    assert_eq!((state(&world, "main"), state(&world, "other")), ("login-required".into(), "ready".into()));
    world.restart();
    assert_eq!((state(&world, "main"), state(&world, "other")), ("login-required".into(), "ready".into()));
    assert_eq!(Sent::refresh_of(&world.daemon, "other").answer().status, 200);
    assert_eq!(world.standin.superseded_presentations(), 0);
}

#[test]
fn the_notify_command_is_told_of_each_event_once() {
    let home = tempfile::TempDir::new().unwrap();
    let (script, heard) = (home.path().join("tell"), home.path().join("heard"));
    let line = "$CNBLOGS_PROXY_EVENT|$CNBLOGS_PROXY_ACCOUNT|$CNBLOGS_PROXY_MESSAGE";
    std::fs::write(&script, format!("echo \"{line}\" >> \"$1\"\n")).unwrap();
    let command = format!("[\"sh\", \"{}\", \"{}\"]", script.display(), heard.display());
    let world = Setup { tables: format!("[notify]\ncommand = {command}"), ..Setup::default() }.logged_in();
    let lines = |count: usize| {
        eventually("the command has run", || {
            let text = std::fs::read_to_string(&heard).unwrap_or_default();
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            (lines.len() >= count).then_some(lines)
        })
    };
    // Nobody was logged in at first.
    lines(2);

    for _ in 0..3 {
        world.standin.fault(Endpoint::Token, Fault::status(500));
    }
    for _ in 0..3 {
        assert_eq!(refresh(&world.daemon).problem(), "token-unavailable");
    }
    assert_eq!(refresh(&world.daemon).status, 200);
    world.standin.forget_refresh_tokens();
    assert_eq!(refresh(&world.daemon).problem(), "login-required");
    assert_eq!(refresh(&world.daemon).problem(), "login-required");
    let heard = lines(5);

    let parts: Vec<Vec<&str>> = heard.iter().map(|line| line.splitn(3, '|').collect()).collect();
    let names: Vec<_> = parts.iter().map(|parts| parts[0]).collect();
    let expected = ["login-required", "recovered", "refresh-failing", "recovered", "login-required"];
    assert_eq!(names, expected, "{heard:?}");
    assert!(parts.iter().all(|parts| parts[1] == "main" && !parts[2].is_empty()), "{heard:?}");
    assert_eq!(events(&world.daemon), expected);
    let secrets = world.standin.issued_secrets();
    assert!(!secrets.iter().any(|secret| heard.iter().any(|line| line.contains(secret))), "{heard:?}");
}

/// Alice as `main` at `/` and Bob as `other` at `/other`.
pub(crate) fn two_accounts() -> World {
    let standin = crate::standin::Standin::start(Options::default());
    let home = crate::support::Home::new(Vec::new());
    let (auth, api) = (standin.auth_url(), standin.api_url());
    let secret = home.path().join("client_secret");
    let other = format!(
        "[account.other]\nclient_id = \"{client}\"\nclient_secret_file = \"{secret}\"\n\
         redirect_uri = \"{auth}/auth/callback\"\nauthorization_url = \"{auth}/connect/authorize\"\n\
         token_url = \"{auth}/connect/token\"\nrevocation_url = \"{auth}/connect/revocation\"\n\
         jwks_url = \"{auth}/.well-known/openid-configuration/jwks\"\n\n\
         [[route]]\nprefix = \"/other\"\nupstream = \"{api}\"\naccount = \"other\"\n",
        client = standin.options().client_id,
        secret = secret.display(),
    );
    let config = crate::support::config(&standin, &home, "", "", "account = \"main\"", &other);
    std::fs::write(home.config(), config).unwrap();
    let daemon = home.serve();
    let world = World { daemon, standin, home };
    world.log_in(Person::Alice);
    let started = world.daemon.post_form("/-/login/other/start", &[]);
    let callback = world.standin.authorize(started.field("location").unwrap(), Person::Bob);
    let answer = world.daemon.post_form("/-/login/other", &[("callback", &callback)]);
    assert_eq!(answer.status, 200, "{answer:?}");
    world
}
