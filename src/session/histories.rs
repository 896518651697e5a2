//! Random histories: the keeper and its store against a simulated authorization server, in simulated time, with
//! lost answers, outages, crashes, restarts, suspends and clock jumps. What must hold in each of them:
//!
//! - a refresh token that is known to be superseded or dead is never presented,
//! - a request never fails while a usable access token exists, and no expired token is put on one,
//! - a durable login survives every end of the process,
//! - a server that is down is asked at most 12 times in 10 minutes,
//! - when the weather clears, the account is ready, unless only a person can help; then it says so.
//!
//! `HISTORIES=10000 cargo test --lib histories` plays so many; a failure names its seed, and
//! `HISTORY_SEED=17 cargo test --lib histories` plays that one and prints what happened.

mod clocks;
mod server;

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::clocks::Clocks;
use self::server::{ANSWER_TIMEOUT, Books, Known, Weather, network};
use super::{AskError, LoginOutcome, Session, State, TokenSource};
use crate::config::{
    Account, Address, BrowserLogin, Client, ClientAuth, Endpoints, Grant, RedirectUri, ResponseMode,
    ResponseType, Secret,
};
use crate::notify::{self, Event, Notice};
use crate::oauth::callback::Code;
use crate::oauth::{Oauth, Pending};
use crate::store::Store;
use crate::testing::dice::Dice;
use crate::token::Moment;

/// Played when `HISTORIES` says nothing.
const HISTORIES: u64 = 100;
const START: Moment = Moment::new(1_790_000_000_000, 90_000_000);
const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
/// How long a request waits for a token.
const PATIENCE: Duration = Duration::from_secs(10);
const ACCOUNT: &str = "main";

#[test]
#[expect(clippy::print_stdout, reason = "what was played is worth telling")]
fn no_history_loses_a_login_or_fails_a_request_that_could_succeed() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    if let Some(seed) = number("HISTORY_SEED") {
        println!("{}", play(seed).unwrap_or_else(|failure| panic!("{failure}")));
        return;
    }
    let first = RandomState::new().hash_one(std::process::id()) >> 16;
    let count = number("HISTORIES").unwrap_or(HISTORIES);
    let seeds = Mutex::new(first..first + count);
    let granted: usize = std::thread::scope(|scope| {
        let players = [scope.spawn(|| play_all(&seeds)), scope.spawn(|| play_all(&seeds))];
        players
            .map(|player| player.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .iter()
            .sum()
    });
    println!("{count} histories from seed {first}: {granted} tokens granted");
    assert!(granted > 100, "histories in which nothing happens show nothing: {granted} tokens granted");
}

/// Plays what is left, and counts the tokens that were granted.
fn play_all(seeds: &Mutex<Range<u64>>) -> usize {
    let mut granted = 0;
    loop {
        let seed = seeds.lock().unwrap().next();
        let Some(seed) = seed else { return granted };
        match play(seed) {
            Ok(told) => granted += told.matches("granted").count(),
            Err(failure) => panic!("{failure}\nreplay: HISTORY_SEED={seed} cargo test --lib histories"),
        }
    }
}

/// Plays one history to its end and tells it, or tells what went wrong.
fn play(seed: u64) -> Result<String, String> {
    in_simulated_time(seed, async |history| {
        for _ in 0..history.length {
            history.step().await;
            if history.books().violation.is_some() {
                break;
            }
        }
    })
}

/// Runs a history until the weather clears for good, and then to its end.
fn in_simulated_time(seed: u64, history: impl AsyncFnOnce(&mut History)) -> Result<String, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let told = runtime.block_on(async {
        let mut played = History::begin(seed).await;
        history(&mut played).await;
        played.end().await;
        let books = played.books();
        let lines = books.lines.join("\n");
        match &books.violation {
            Some(violation) => Err(format!("{lines}\nhistory {seed}: {violation}")),
            None => Ok(lines),
        }
    });
    runtime.shutdown_background();
    told
}

#[test]
fn a_server_that_is_down_for_11_of_24_hours_fails_no_request() {
    let told = in_simulated_time(11, async |history| {
        history.has_tokens_for(24 * HOUR).await;
        for minute in 0..5 * 24 * 60 {
            let is_down = minute % (24 * 60) < 11 * 60;
            history.books().weather = if is_down { Weather::unreachable() } else { Weather::clear() };
            history.is_served_within(Duration::ZERO).await;
            tokio::time::sleep(MINUTE).await;
        }
    });
    assert!(told.unwrap_or_else(|failure| panic!("{failure}")).contains("Unreachable"));
}

#[test]
fn after_26_hours_of_suspend_a_request_succeeds_within_3_seconds_of_the_network() {
    for seed in 0..50 {
        let told = in_simulated_time(seed, async |history| {
            history.has_tokens_for(HOUR).await;
            let granted = history.books().granted();

            history.books().weather = Weather::unreachable();
            history.clocks.suspend(26 * HOUR);
            // Somebody asks while there is no network yet, and is told so.
            tokio::time::sleep(Duration::from_millis(700 * seed)).await;
            history.request();
            tokio::time::sleep(PATIENCE + Duration::from_secs(1)).await;

            history.books().weather = Weather::clear();
            history.is_served_within(Duration::from_secs(3)).await;
            let refreshes = history.books().granted() - granted;
            if refreshes != 1 {
                history.books().violate(format!("{refreshes} refreshes after a suspend"));
            }
        });
        told.unwrap_or_else(|failure| panic!("{failure}"));
    }
}

#[test]
fn a_request_that_comes_to_wait_wakes_none_of_those_that_wait() {
    let told = in_simulated_time(7, async |history| {
        history.has_tokens_for(HOUR).await;
        history.books().weather = Weather::misconfigured();
        tokio::time::sleep(HOUR + MINUTE).await;
        let session = history.daemon.session.clone();
        let mut published = session.shared.published.subscribe();
        published.mark_unchanged();

        for _ in 0..2000 {
            assert!(session.token(Duration::ZERO).await.is_err());
            tokio::task::yield_now().await;
            session.shared.mailbox.tell_wanted();
            tokio::task::yield_now().await;
        }

        if published.has_changed().unwrap() {
            history.books().violate("those who wait were woken".to_owned());
        }
        history.books().weather = Weather::clear();
    });
    told.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn a_dead_refresh_token_that_is_called_something_else_asks_for_a_person_after_ten_minutes() {
    let told = in_simulated_time(9, async |history| {
        history.has_tokens_for(HOUR).await;
        history.books().mumbles(true);
        history.books().end_login();
        let before = history.told_since_the_start().len();
        tokio::time::sleep(HOUR).await;
        let state = history.daemon.session.status().state;
        if state == State::LoginRequired {
            history.books().violate("a person was asked for at once".to_owned());
        }

        tokio::time::sleep(14 * MINUTE).await;

        let told = history.told_since_the_start()[before..].to_vec();
        if told != [Event::RefreshFailing, Event::LoginRequired] {
            history.books().violate(format!("told {told:?}"));
        }
        // It was the server that erred.
        history.books().revive();
        history.is_served_within(11 * MINUTE).await;
    });
    told.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn a_401_that_no_token_cures_costs_forty_refreshes_a_day_at_most_and_is_told_once() {
    let told = in_simulated_time(13, async |history| {
        history.has_tokens_for(12 * HOUR).await;
        let before = history.told_since_the_start().len();
        let granted = history.books().granted();
        for _ in 0..24 * 60 * 6 {
            history.is_refused_whatever_the_token().await;
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        let refreshes = history.books().granted() - granted;
        let told = history.told_since_the_start()[before..].to_vec();
        if !(20..=40).contains(&refreshes) || told != [Event::RefreshFailing] {
            history.books().violate(format!("{refreshes} refreshes, told {told:?}"));
        }
    });
    told.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn a_login_begins_anew_with_the_401s_that_no_token_cures() {
    let told = in_simulated_time(17, async |history| {
        history.has_tokens_for(12 * HOUR).await;
        for _ in 0..4 * 60 {
            history.is_refused_whatever_the_token().await;
            tokio::time::sleep(MINUTE).await;
        }
        history.log_in().await;
        let (before, granted) = (history.told_since_the_start().len(), history.books().granted());

        for _ in 0..4 {
            history.is_refused_whatever_the_token().await;
            tokio::time::sleep(MINUTE).await;
        }

        let refreshes = history.books().granted() - granted;
        let told = history.told_since_the_start()[before..].to_vec();
        if refreshes == 0 || told != [Event::RefreshFailing] {
            history.books().violate(format!("{refreshes} refreshes, told {told:?}"));
        }
    });
    told.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn a_yes_after_ten_minutes_comes_too_late() {
    for (early_by, is_taken) in [(Duration::ZERO, false), (MINUTE, true)] {
        let told = in_simulated_time(19, async |history| {
            history.has_tokens_for(HOUR).await;
            let Ok(LoginOutcome::NeedsConfirmation(asked)) = history.present_code().await else {
                panic!("nothing here says who it is, so a person is asked");
            };
            // The keeper's own look at the time comes up to 30 s later.
            tokio::time::sleep(10 * MINUTE - early_by).await;
            let answer = history.daemon.session.confirm(asked.id, true).await;
            if answer.is_ok() != is_taken {
                history.books().violate(format!("{early_by:?} before the end: {answer:?}"));
            }
            history.log_in().await;
        });
        told.unwrap_or_else(|failure| panic!("{failure}"));
    }
}

#[test]
fn a_login_that_only_a_person_can_renew_is_asked_for_once_however_long_it_takes() {
    let told = in_simulated_time(5, async |history| {
        history.has_tokens_for(HOUR).await;
        history.books().end_login();
        let _refused = history.daemon.session.refresh().await;
        let before = history.told_since_the_start();

        // Callers ask, the last token ends, people press buttons, the machine sleeps, clocks are set.
        for minute in 0..3 * 24 * 60 {
            tokio::time::sleep(MINUTE).await;
            history.request();
            match minute % (6 * 60) {
                10 => drop(history.daemon.session.refresh().await),
                20 => history.jump(),
                30 => history.clocks.suspend(2 * HOUR),
                40 => history.books().weather = Weather::unreachable(),
                50 => history.books().weather = Weather::clear(),
                _ => {}
            }
        }
        let after = history.told_since_the_start();
        if before.iter().filter(|event| **event == Event::LoginRequired).count() != 2 || before != after {
            history.books().violate(format!("told {before:?}, and then {after:?}"));
        }

        history.log_in().await;
        history.books().end_login();
        let _refused = history.daemon.session.refresh().await;
        if history.told_since_the_start().last() != Some(&Event::LoginRequired) {
            history.books().violate("the next login's end was not told".to_owned());
        }
    });
    told.unwrap_or_else(|failure| panic!("{failure}"));
}

struct History {
    dice: Dice,
    length: usize,
    clocks: Arc<Clocks>,
    books: Arc<Mutex<Books>>,
    root: tempfile::TempDir,
    directories: usize,
    daemon: Daemon,
    requests: Vec<JoinHandle<()>>,
    backup: Option<(PathBuf, Known)>,
}

struct Daemon {
    session: Session,
    keeper: JoinHandle<()>,
    stop: CancellationToken,
    directory: PathBuf,
    notices: UnboundedReceiver<Notice>,
    told: Vec<Event>,
}

impl History {
    async fn begin(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let clocks = Clocks::start(START);
        let books = Arc::new(Mutex::new(Books::new(&mut dice, &clocks)));
        // Memory where there is some: these stores need not outlive a power cut.
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let daemon = Daemon::start(&books, &clocks, root.path().join("0"));
        let length = 20 + dice.below(60);
        let (directories, requests, backup) = (0, Vec::new(), None);
        let mut history = Self { dice, length, clocks, books, root, directories, daemon, requests, backup };
        history.log_in().await;
        history
    }

    async fn step(&mut self) {
        if self.daemon.session.status().state == State::LoginRequired && self.dice.chance(20) {
            return self.log_in().await;
        }
        match self.dice.below(97) {
            0..35 => self.wait().await,
            35..60 => self.request(),
            60..75 => self.books().weather = Weather::any(&mut self.dice),
            75..79 => self.restart().await,
            79..83 => self.crash(),
            83..86 => self.jump(),
            86..88 => self.suspend().await,
            88..90 => self.books().revoke_access(),
            90..92 => self.ask_for_a_refresh().await,
            92..94 => self.backup(),
            94 => self.restore().await,
            95 => self.books().end_login(),
            _ => self.log_out().await,
        }
    }

    /// What the command was told by this process.
    fn told_since_the_start(&mut self) -> Vec<Event> {
        while let Ok(notice) = self.daemon.notices.try_recv() {
            self.daemon.told.push(notice.event);
        }
        self.daemon.told.clone()
    }

    /// From now on tokens last so long, and the daemon has one that does.
    async fn has_tokens_for(&self, lifetime: Duration) {
        self.books().lasts(lifetime);
        self.daemon.session.refresh().await.expect("the weather is clear");
    }

    /// A try that fails answers all who wait for it, so a caller asks again.
    async fn is_served_within(&self, limit: Duration) {
        let serve = async {
            while self.daemon.session.token(PATIENCE).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(limit, serve).await.is_err() {
            self.books().violate(format!("not served within {limit:?}"));
        }
    }

    /// A request to which the API answers 401, with a fresh token as well.
    async fn is_refused_whatever_the_token(&self) {
        let session = &self.daemon.session;
        let token = session.token(PATIENCE).await.expect("there is one");
        if let Some(newer) = session.refreshed_since(&token, PATIENCE).await {
            session.report_rejected(&newer);
        }
    }

    async fn wait(&mut self) {
        let longest = self.dice.pick(&[5, 60, 600, 3600]);
        let wait = Duration::from_millis(self.dice.below(longest * 1000) as u64);
        tokio::time::sleep(wait).await;
    }

    fn request(&mut self) {
        for _ in 0..self.dice.pick(&[1, 1, 3, 20]) {
            let (session, books) = (self.daemon.session.clone(), Arc::clone(&self.books));
            self.requests.push(tokio::spawn(request(session, books)));
        }
    }

    /// SIGTERM, and a new process.
    async fn restart(&mut self) {
        self.books().tell("restart");
        self.daemon.stop().await;
        self.books().process_ended();
        let directory = self.daemon.directory.clone();
        self.start_again(directory);
    }

    /// SIGKILL: what is on disk at this instant is all that is left.
    fn crash(&mut self) {
        self.books().tell("crash");
        self.books().process_ended();
        let copy = self.copy_of(&self.daemon.directory.clone());
        self.daemon.keeper.abort();
        self.start_again(copy);
    }

    fn backup(&mut self) {
        let copy = self.copy_of(&self.daemon.directory.clone());
        let known = self.books().known();
        self.backup = Some((copy, known));
    }

    /// An older store is put in place of the newest one.
    async fn restore(&mut self) {
        let Some((directory, known)) = self.backup.take() else { return };
        self.daemon.stop().await;
        self.books().restored(known);
        self.start_again(directory);
    }

    fn start_again(&mut self, directory: PathBuf) {
        // Requests end with their process.
        self.requests.drain(..).for_each(|request| request.abort());
        self.daemon = Daemon::start(&self.books, &self.clocks, directory);
    }

    fn jump(&mut self) {
        let hours = self.dice.pick(&[-25, -1, 1, 25]);
        let by_ms = hours * 3_600_000;
        self.clocks.set_wall_clock(by_ms);
        self.books().jumped(by_ms);
    }

    async fn suspend(&mut self) {
        let hours = self.dice.pick(&[1, 26]);
        self.books().tell(&format!("suspend for {hours} h"));
        if self.dice.chance(50) {
            self.books().weather = Weather::clear();
        }
        let was_well = self.daemon.session.status().state == State::Ready && self.books().is_login_alive();
        self.clocks.suspend(HOUR * hours);
        // Nothing sleeps longer than 30 s: so soon it is noticed, without anybody asking.
        tokio::time::sleep(Duration::from_secs(32)).await;
        let is_well = self.daemon.session.current().is_some();
        let mut books = self.books();
        if was_well && books.weather.is_clear() && !is_well {
            books.violate("a suspend was not noticed".to_owned());
        }
    }

    async fn ask_for_a_refresh(&mut self) {
        self.books().forgive();
        let _outcome = self.daemon.session.refresh().await;
    }

    async fn log_out(&mut self) {
        self.books().weather = Weather::clear();
        self.books().forgive();
        let _outcome = self.daemon.session.log_out().await;
        self.books().logged_out();
    }

    async fn log_in(&mut self) {
        let before = self.books().held;
        self.books().replaceable = Some(before);
        let mut outcome = self.present_code().await;
        // Nothing here says who it is, so a person is asked when somebody is logged in.
        if let Ok(LoginOutcome::NeedsConfirmation(asked)) = outcome {
            outcome = self.daemon.session.confirm(asked.id, true).await;
        }
        self.books().replaceable = None;
        let usable = self.daemon.session.current().is_some();
        if outcome.is_err() || !usable {
            self.books().violate(format!("a login in clear weather failed: {outcome:?}"));
        }
    }

    /// A login up to the question whether it shall replace the one that is there.
    async fn present_code(&mut self) -> Result<LoginOutcome, AskError> {
        self.books().weather = Weather::clear();
        self.books().forgive();
        let pending =
            Pending::new("state".to_owned(), "nonce".to_owned(), "verifier".into(), self.clocks.now());
        let code = Code { code: "code".into(), id_token: None };
        let source = self.daemon.session.source();
        let (oauth, login) = source.login().expect("a person logs in");
        let verified = oauth.verify(login, &pending, &code).await.expect("nothing to check");
        self.daemon.session.log_in(pending, code, verified).await
    }

    /// The weather clears for good: everything must end well.
    async fn end(&mut self) {
        self.books().weather = Weather::clear();
        self.books().tell("the weather clears for good");
        let lifetime = self.books().lifetime;
        tokio::time::sleep(lifetime + 20 * MINUTE).await;
        self.request();
        for request in self.requests.drain(..) {
            request.await.expect("a request does not panic");
        }

        while self.daemon.session.status().state == State::Refreshing {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let status = self.daemon.session.status();
        let is_recorded = status.events.iter().any(|notice| notice.event == Event::LoginRequired);
        let (is_alive, is_refused) = {
            let books = self.books();
            (books.is_login_alive(), books.is_login_refused())
        };
        let verdict = match (is_alive, status.state) {
            (true, State::Ready) => None,
            (false, State::LoginRequired) if is_recorded => None,
            // The server honours what it has called dead twice, or once when the last try came too late.
            (true, State::LoginRequired) if is_refused && is_recorded => None,
            (is_alive, state) => {
                Some(format!("at the end the login is alive: {is_alive}, but it is {state:?}"))
            }
        };
        if let Some(violation) = verdict {
            self.books().violate(violation);
        }
        self.daemon.stop().await;
        if self.daemon.keeper.is_finished() {
            let (store, _) = Store::in_dir(&self.daemon.directory, Arc::default()).unwrap();
            self.books().check_stored(&store);
        }
    }

    fn copy_of(&mut self, directory: &Path) -> PathBuf {
        self.directories += 1;
        let copy = self.root.path().join(self.directories.to_string());
        fs::create_dir(&copy).unwrap();
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
        copy
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }
}

impl Daemon {
    fn start(books: &Arc<Mutex<Books>>, clocks: &Arc<Clocks>, directory: PathBuf) -> Self {
        let (store, findings) = Store::in_dir(&directory, Arc::default()).unwrap();
        books.lock().unwrap().check_stored(&store);
        let (notifier, notices) = notify::channel();
        let stop = CancellationToken::new();
        let (account, clock) = (account(), clocks.clock());
        let oauth = Oauth::new(&account, account.client().unwrap(), ANSWER_TIMEOUT).unwrap();
        let oauth = Some(oauth.through(network(books), clock.clone()));
        let seed = books.lock().unwrap().seed();
        let (session, keeper) = super::start(
            TokenSource { account, oauth },
            store,
            findings.in_flight.contains(ACCOUNT),
            notifier,
            clock,
            fastrand::Rng::with_seed(seed),
            stop.clone(),
        );
        Self { session, keeper, stop, directory, notices, told: Vec::new() }
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        (&mut self.keeper).await.expect("the keeper does not panic");
    }
}

/// One request: a token, and another one when the upstream refuses it.
async fn request(session: Session, books: Arc<Mutex<Books>>) {
    let began = tokio::time::Instant::now();
    let usable = books.lock().unwrap().usable_access();
    let token = session.token(PATIENCE).await;
    let waited = began.elapsed();
    let refused = match token {
        Ok(token) => Some(token).filter(|token| !books.lock().unwrap().accepts(token.access_token())),
        Err(why) => {
            books.lock().unwrap().turned_away(why, usable, waited);
            None
        }
    };
    if let Some(refused) = refused {
        // A keeper that never answered would hang here, and the history with it.
        let newer = session.refreshed_since(&refused, PATIENCE).await;
        assert!(newer.is_none_or(|newer| newer.serial() > refused.serial()));
    }
}

fn account() -> Account {
    let url = |path: &str| Url::parse(&format!("https://auth.example{path}")).unwrap();
    let client = Client {
        client_id: "client".to_owned(),
        client_auth: ClientAuth::Body,
        scope: None,
        issuer: None,
        endpoints: Endpoints {
            authorization: Address::At(url("/authorize")),
            token: Address::At(url("/token")),
            revocation: Address::At(url("/revocation")),
            jwks: Address::None,
        },
        refresh_at: 0.5,
    };
    let login = BrowserLogin {
        redirect_uri: RedirectUri { text: url("/callback").to_string(), url: url("/callback") },
        pkce: true,
        response_type: ResponseType::Code,
        response_mode: ResponseMode::Query,
        identity: None,
        lifetime: None,
    };
    Account {
        name: ACCOUNT.to_owned(),
        grant: Grant::AuthorizationCode(client, Box::new(login)),
        secret: Secret { value: "secret".into(), from: "a test".to_owned() },
        ca: None,
        proxy: None,
        required: true,
    }
}

/// The number of the stored refresh token, and whether it is marked as refused.
fn stored_refresh_token(store: &Store) -> Option<(u64, bool)> {
    let record = store.records_of(ACCOUNT).pop()?;
    let refresh_token = record.refresh_token?;
    Some((server::number_of(refresh_token.expose_secret()), record.is_refused))
}
