//! The simulated authorization server: what it knows, what the daemon has been told, and what must not happen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Response;

use super::clocks::Clocks;
use super::stored_refresh_token;
use crate::oauth::{GrantError, Loss, Transport};
use crate::session::NoToken;
use crate::store::Store;
use crate::testing::dice::Dice;
use crate::token::Moment;

/// The client gives up that long after it asked.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The parameters of a request.
type Form = BTreeMap<String, String>;

const WINDOW: Duration = Duration::from_secs(600);
/// `promises.md`: a server that is down is asked that often in ten minutes.
const MOST_TRIES: usize = 12;

/// What may happen to a request, in percent; what is left over goes well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Weather {
    unreachable: usize,
    lost_on_the_way: usize,
    lost_on_the_way_back: usize,
    broken: usize,
    broken_afterwards: usize,
    misconfigured: usize,
    slowest_ms: usize,
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Unreachable,
    LostOnTheWay,
    LostOnTheWayBack,
    /// Answered by something that did not look at it.
    Broken,
    /// Carried out, and answered with something useless.
    BrokenAfterwards,
    Misconfigured,
    Fine,
}

/// The server's books, and the daemon's as the test keeps them.
pub(super) struct Books {
    pub(super) weather: Weather,
    pub(super) lifetime: Duration,
    /// The refresh token that the daemon must present next.
    pub(super) held: u64,
    /// The refresh token of a login that another one may replace, as long as nobody has said yes to it: it is in use.
    pub(super) replaceable: Option<u64>,
    pub(super) violation: Option<String>,
    pub(super) lines: Vec<String>,
    clocks: Arc<Clocks>,
    dice: Dice,
    grace: Duration,
    kills_family: bool,
    rotates: bool,
    /// Refuses to refresh while the access token has long to live.
    refuses_early: bool,
    /// Calls a dead refresh token something else than `invalid_grant`.
    mumbles: bool,
    current: u64,
    previous: Option<(u64, Moment)>,
    is_dead: bool,
    /// How often the daemon was told that a refresh token is dead.
    refused: BTreeMap<u64, u32>,
    /// Until when the server works on the last request, whether or not anybody waits for it.
    works_until: Moment,
    works_on: u64,
    access: Vec<Access>,
    held_access: Option<usize>,
    held_since: Moment,
    tries: Vec<Moment>,
}

struct Access {
    received: Moment,
    forward_ms: i64,
    was_set_back: bool,
    /// Its age is known to the process by a wall clock that was set back.
    is_young: bool,
    is_revoked: bool,
}

impl Weather {
    pub(super) const fn clear() -> Self {
        Self {
            unreachable: 0,
            lost_on_the_way: 0,
            lost_on_the_way_back: 0,
            broken: 0,
            broken_afterwards: 0,
            misconfigured: 0,
            slowest_ms: 200,
        }
    }

    pub(super) const fn unreachable() -> Self {
        Self { unreachable: 100, ..Self::clear() }
    }

    pub(super) const fn misconfigured() -> Self {
        Self { misconfigured: 100, ..Self::clear() }
    }

    pub(super) fn is_clear(&self) -> bool {
        *self == Self::clear()
    }

    pub(super) fn any(dice: &mut Dice) -> Self {
        let clear = Self { slowest_ms: dice.pick(&[10, 1000, 20_000, 55_000]), ..Self::clear() };
        match dice.below(8) {
            0 | 1 => clear,
            2 => Self { unreachable: 100, ..clear },
            3 => Self { broken: 100, ..clear },
            4 => Self { lost_on_the_way: 50, unreachable: 30, ..clear },
            5 => Self { lost_on_the_way_back: dice.below(60), lost_on_the_way: dice.below(40), ..clear },
            6 => Self { slowest_ms: clear.slowest_ms, ..Self::misconfigured() },
            _ => Self {
                unreachable: dice.below(20),
                lost_on_the_way: dice.below(20),
                lost_on_the_way_back: dice.below(10),
                broken: dice.below(20),
                broken_afterwards: dice.below(10),
                ..clear
            },
        }
    }

    fn fate(self, dice: &mut Dice) -> Fate {
        let mut thrown = dice.below(100);
        let chances = [
            (self.unreachable, Fate::Unreachable),
            (self.lost_on_the_way, Fate::LostOnTheWay),
            (self.lost_on_the_way_back, Fate::LostOnTheWayBack),
            (self.broken, Fate::Broken),
            (self.broken_afterwards, Fate::BrokenAfterwards),
            (self.misconfigured, Fate::Misconfigured),
        ];
        for (percent, fate) in chances {
            if thrown < percent {
                return fate;
            }
            thrown -= percent;
        }
        Fate::Fine
    }
}

/// A network to that server.
pub(super) fn network(books: &Arc<Mutex<Books>>) -> Transport {
    let books = Arc::clone(books);
    Box::new(move |request| {
        let body = request.body().and_then(reqwest::Body::as_bytes).expect("a form");
        let form = url::form_urlencoded::parse(body).into_owned().collect();
        Box::pin(carry(Arc::clone(&books), form))
    })
}

/// The number in `rt-17` or `at-17`.
pub(super) fn number_of(text: &str) -> u64 {
    text[3..].parse().expect("a token of this server")
}

async fn carry(books: Arc<Mutex<Books>>, form: Form) -> Result<Response, GrantError> {
    let (fate, there, back) = books.lock().unwrap().begin(&form);
    let unreachable = |reason: &str| GrantError::Unavailable {
        reason: reason.to_owned(),
        was_sent: false,
        retry_after: None,
    };
    if fate == Fate::Unreachable {
        tokio::time::sleep(there.min(Duration::from_secs(5))).await;
        return Err(unreachable("unreachable"));
    }
    let lost = |loss| GrantError::InDoubt { reason: "lost".to_owned(), loss };
    tokio::time::sleep(there).await;
    if fate == Fate::LostOnTheWay {
        return Err(lost(Loss::Broken));
    }
    let answer = books.lock().unwrap().answer(fate, &form);
    let is_late = there + back >= ANSWER_TIMEOUT;
    tokio::time::sleep(if is_late { ANSWER_TIMEOUT - there } else { back }).await;
    if fate == Fate::LostOnTheWayBack || is_late {
        books.lock().unwrap().tell("the answer is lost");
        return Err(lost(if is_late { Loss::TimedOut } else { Loss::Broken }));
    }
    books.lock().unwrap().deliver(&answer);
    let mut response = http::Response::builder().status(answer.status);
    if let Some(secs) = answer.retry_after {
        response = response.header("retry-after", secs);
    }
    Ok(response.body(answer.body).unwrap().into())
}

/// What is in a store: the refresh token, and how often the server had refused which.
pub(super) struct Known {
    held: u64,
    refused: BTreeMap<u64, u32>,
}

struct Answer {
    status: u16,
    retry_after: Option<u64>,
    body: String,
    granted: Option<(u64, Option<usize>)>,
    refuses: Option<u64>,
}

impl Answer {
    fn new(status: u16, body: &str) -> Self {
        Self { status, retry_after: None, body: body.to_owned(), granted: None, refuses: None }
    }

    fn last_word(number: u64) -> Self {
        Self { refuses: Some(number), ..Self::new(400, r#"{"error": "invalid_grant"}"#) }
    }
}

impl Books {
    /// Of a daemon's random numbers.
    pub(super) fn seed(&mut self) -> u64 {
        self.dice.next()
    }

    pub(super) fn new(dice: &mut Dice, clocks: &Arc<Clocks>) -> Self {
        Self {
            weather: Weather::clear(),
            lifetime: Duration::from_secs(dice.pick(&[60, 600, 600, 3600, 3600, 3600, 3600, 7200])),
            held: 0,
            replaceable: None,
            violation: None,
            lines: Vec::new(),
            grace: Duration::from_secs(dice.pick(&[0, 0, 30])),
            kills_family: dice.chance(30),
            rotates: dice.chance(90),
            refuses_early: dice.chance(10),
            mumbles: dice.chance(20),
            dice: Dice(dice.next()),
            current: 0,
            previous: None,
            is_dead: true,
            refused: BTreeMap::new(),
            works_until: clocks.now(),
            works_on: 0,
            access: Vec::new(),
            held_access: None,
            held_since: clocks.now(),
            clocks: Arc::clone(clocks),
            tries: Vec::new(),
        }
    }

    pub(super) fn tell(&mut self, what: &str) {
        let at_ms = self.clocks.now().wall_ms() - super::START.wall_ms();
        self.lines.push(format!("{:>10}.{:03} {what}", at_ms.div_euclid(1000), at_ms.rem_euclid(1000)));
    }

    pub(super) fn violate(&mut self, what: String) {
        self.tell(&what);
        self.violation.get_or_insert(what);
    }

    /// How many access tokens the server has granted.
    pub(super) fn granted(&self) -> usize {
        self.access.len()
    }

    /// A person did something: what was counted before says nothing any more.
    pub(super) fn forgive(&mut self) {
        self.tries.clear();
    }

    fn begin(&mut self, form: &Form) -> (Fate, Duration, Duration) {
        let is_refresh = parameter(form, "grant_type") == Some("refresh_token");
        let fate = self.weather.fate(&mut self.dice);
        let slowest = self.weather.slowest_ms;
        let mut delay = || Duration::from_millis(self.dice.below(slowest.max(1)) as u64);
        let (there, back) = (delay(), delay());
        if let Some(refresh_token) = parameter(form, "refresh_token").filter(|_| is_refresh) {
            self.presented(number_of(refresh_token), fate);
            let works_for = match fate {
                Fate::Unreachable => Duration::ZERO,
                Fate::LostOnTheWay => there,
                _ => there + back,
            };
            (self.works_on, self.works_until) = (number_of(refresh_token), self.clocks.now().plus(works_for));
        }
        (fate, there, back)
    }

    fn presented(&mut self, number: u64, fate: Fate) {
        self.tell(&format!("rt-{number} is presented: {fate:?}"));
        if number != self.held && Some(number) != self.replaceable {
            self.violate(format!("rt-{number} was presented, but rt-{} has superseded it", self.held));
        }
        if self.refused.get(&number).is_some_and(|times| *times > 1) {
            self.violate(format!("rt-{number} was presented again after the server had refused it twice"));
        }
        if self.works_on == number && self.works_until.since(self.clocks.now()) > Duration::ZERO {
            self.violate(format!("rt-{number} was presented while the server works on an earlier request"));
        }
        if fate == Fate::Unreachable {
            return;
        }
        self.tries.retain(|at| self.clocks.now().since(*at) < WINDOW);
        self.tries.push(self.clocks.now());
        if self.tries.len() > MOST_TRIES {
            self.violate(format!("{} tries in ten minutes", self.tries.len()));
        }
    }

    fn answer(&mut self, fate: Fate, form: &Form) -> Answer {
        let answer = match fate {
            Fate::Misconfigured => return Answer::new(401, r#"{"error": "invalid_client"}"#),
            Fate::Broken => {
                let mut answer = self.useless();
                answer.retry_after = self.dice.chance(30).then(|| self.dice.below(300) as u64);
                return answer;
            }
            _ => match (parameter(form, "grant_type"), parameter(form, "token")) {
                (Some("refresh_token"), _) => {
                    self.refresh(number_of(parameter(form, "refresh_token").unwrap()))
                }
                (Some("authorization_code"), _) => {
                    self.current += 1;
                    self.previous = None;
                    self.is_dead = false;
                    self.grant(self.current)
                }
                (_, Some(token)) => {
                    if number_of(token) == self.current {
                        self.is_dead = true;
                    }
                    Answer::new(200, "")
                }
                other => panic!("what is {other:?}?"),
            },
        };
        if fate == Fate::BrokenAfterwards && answer.granted.is_some() {
            return self.spoilt(answer);
        }
        answer
    }

    /// What stands in the way of the server says.
    fn useless(&mut self) -> Answer {
        let answers = [
            (500, ""),
            (503, "<html>busy</html>"),
            (429, "{}"),
            (200, "<html>log in to the hotel</html>"),
            (404, ""),
            (400, ""),
            (401, "<html>who are you?</html>"),
            (400, r#"{"error": "internal_error"}"#),
            (400, r#"{"error": {"code": "token_expired"}}"#),
            (403, r#"{"error": "invalid_grant"}"#),
            (200, "{}"),
            (200, "nonsense"),
        ];
        let (status, body) = self.dice.pick(&answers);
        if body.starts_with("<html>log in") { Answer::new(302, body) } else { Answer::new(status, body) }
    }

    /// The server has rotated, and its answer is no good.
    fn spoilt(&mut self, mut answer: Answer) -> Answer {
        let successor = answer.granted.map(|(successor, _)| successor);
        match self.dice.below(3) {
            0 => Answer { granted: None, ..Answer::new(200, &answer.body[..answer.body.len() / 2]) },
            1 => Answer::new(502, ""),
            _ => {
                answer.body = answer.body.replace("\"Bearer\"", "\"mac\"");
                answer.granted = successor.map(|successor| (successor, None));
                answer
            }
        }
    }

    fn refresh(&mut self, number: u64) -> Answer {
        let in_grace = self
            .previous
            .is_some_and(|(previous, at)| previous == number && self.clocks.now().since(at) < self.grace);
        if self.is_dead || !(number == self.current || in_grace) {
            self.is_dead |= self.kills_family && number != self.current && Some(number) != self.replaceable;
            self.tell(&format!("rt-{number} is refused"));
            return if self.mumbles {
                Answer::new(400, r#"{"error": "invalid_request"}"#)
            } else {
                Answer::last_word(number)
            };
        }
        if self.refuses_early && self.access_has_long_to_live() {
            self.tell(&format!("rt-{number} is refused early"));
            return Answer::last_word(number);
        }
        if number == self.current && self.rotates {
            self.previous = Some((number, self.clocks.now()));
            self.current += 1;
        }
        self.grant(self.current)
    }

    fn access_has_long_to_live(&self) -> bool {
        let age = self.access.last().map_or(Duration::MAX, |access| self.clocks.now().since(access.received));
        self.lifetime.saturating_sub(age) > (self.lifetime / 10).min(Duration::from_secs(120))
    }

    fn grant(&mut self, refresh_token: u64) -> Answer {
        let access = self.access.len();
        self.access.push(Access {
            received: self.clocks.now(),
            forward_ms: 0,
            was_set_back: false,
            is_young: false,
            is_revoked: false,
        });
        self.tell(&format!("granted at-{access} and rt-{refresh_token}"));
        let body = format!(
            r#"{{"access_token": "at-{access}", "token_type": "Bearer", "expires_in": {}, "refresh_token": "rt-{refresh_token}"}}"#,
            self.lifetime.as_secs()
        );
        Answer { granted: Some((refresh_token, Some(access))), ..Answer::new(200, &body) }
    }

    /// The daemon learns of it now.
    fn deliver(&mut self, answer: &Answer) {
        if let Some(number) = answer.refuses {
            *self.refused.entry(number).or_default() += 1;
        }
        let Some((refresh_token, access)) = answer.granted else { return };
        self.held = refresh_token;
        self.held_since = self.clocks.now();
        self.refused.remove(&refresh_token);
        if let Some(access) = access {
            self.access[access].received = self.clocks.now();
            self.held_access = Some(access);
            self.tries.clear();
        }
    }

    /// The newest access token that the daemon was given, if no clock can say that it has expired.
    pub(super) fn usable_access(&self) -> Option<usize> {
        let number = self.held_access?;
        let access = &self.access[number];
        let forward = Duration::from_millis(u64::try_from(access.forward_ms).unwrap_or(0));
        let is_settled = self.clocks.now().since(self.held_since) > Duration::ZERO;
        (is_settled && self.clocks.now().since(access.received) + forward < self.lifetime).then_some(number)
    }

    /// What the API says to a token.
    pub(super) fn accepts(&mut self, token: &[u8]) -> bool {
        let number = number_of(std::str::from_utf8(token).unwrap());
        let access = &self.access[usize::try_from(number).unwrap()];
        let is_expired = self.clocks.now().since(access.received) >= self.lifetime;
        let (is_young, is_revoked) = (access.is_young, access.is_revoked);
        if is_expired && !is_young {
            self.violate(format!("at-{number} was used after its end"));
        }
        !is_expired && !is_revoked
    }

    /// A request got no token. `usable` is the one that there was when it came.
    pub(super) fn turned_away(&mut self, why: NoToken, usable: Option<usize>, waited: Duration) {
        if let Some(usable) = usable {
            self.violate(format!("a request failed with {why:?} while at-{usable} was usable"));
        }
        let is_late = waited > super::PATIENCE + Duration::from_secs(1);
        if is_late || why == (NoToken::Unavailable { retry_after_secs: 0 }) {
            self.violate(format!("a request was told {why:?} after {waited:?}"));
        }
    }

    pub(super) fn jumped(&mut self, by_ms: i64) {
        self.tell(&format!("the wall clock jumps by {} h", by_ms / 3_600_000));
        for access in &mut self.access {
            access.forward_ms += by_ms.max(0);
            access.was_set_back |= by_ms < 0;
        }
    }

    pub(super) fn revoke_access(&mut self) {
        self.tell("the access tokens are revoked");
        self.access.iter_mut().for_each(|access| access.is_revoked = true);
    }

    /// The next process does not know what the last one had sent: it tries at once.
    pub(super) fn process_ended(&mut self) {
        self.works_until = self.clocks.now();
    }

    /// Tokens last that long, and are refreshed at any time.
    pub(super) fn lasts(&mut self, lifetime: Duration) {
        self.lifetime = lifetime;
        self.refuses_early = false;
        self.mumbles = false;
    }

    /// Whether the server calls a dead refresh token something else than that.
    pub(super) fn mumbles(&mut self, mumbles: bool) {
        self.mumbles = mumbles;
    }

    /// The server honours the login again.
    pub(super) fn revive(&mut self) {
        self.tell("the server honours the login again");
        self.is_dead = false;
    }

    /// The server ends the login by itself.
    pub(super) fn end_login(&mut self) {
        self.tell("the server ends the login");
        self.is_dead = true;
    }

    pub(super) fn logged_out(&mut self) {
        self.tell("logged out");
        self.is_dead = true;
        self.held = 0;
        self.held_access = None;
    }

    /// What a copy of the store knows.
    pub(super) fn known(&self) -> Known {
        Known { held: self.held, refused: self.refused.clone() }
    }

    pub(super) fn restored(&mut self, known: Known) {
        self.tell(&format!("a store with rt-{} is restored", known.held));
        (self.held, self.refused) = (known.held, known.refused);
        self.held_access = None;
        self.process_ended();
    }

    /// True when the refresh token that the daemon has is good.
    pub(super) fn is_login_alive(&self) -> bool {
        self.held != 0 && self.held == self.current && !self.is_dead
    }

    /// True when the server said of the refresh token that the daemon has that it is dead.
    pub(super) fn is_login_refused(&self) -> bool {
        self.refused.contains_key(&self.held)
    }

    /// What a process that starts finds must be what the one before knew.
    pub(super) fn check_stored(&mut self, store: &Store) {
        self.tries.clear();
        self.access.iter_mut().for_each(|access| access.is_young = access.was_set_back);
        let stored = stored_refresh_token(store);
        let number = stored.map_or(0, |(number, _)| number);
        let is_refused = stored.is_some_and(|(_, is_refused)| is_refused);
        if number == self.held {
            return;
        }
        // What arrived at the very instant of the crash was not promised to anybody.
        if self.held_since == self.clocks.now() {
            self.tell(&format!("rt-{} did not reach the disk", self.held));
            self.held = number;
            self.held_access = None;
        } else {
            self.violate(format!("rt-{} was held, rt-{number} (refused: {is_refused}) is stored", self.held));
        }
    }
}

fn parameter<'a>(form: &'a Form, name: &str) -> Option<&'a str> {
    form.get(name).map(String::as_str)
}
