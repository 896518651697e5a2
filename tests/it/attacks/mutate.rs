//! The bytes of the cases, damaged at random: whatever comes of them, the invariants hold.
//!
//! `ATTACK_MUTATIONS=1000000 cargo test --test it mutated` plays so many, in half an hour on two cores. Every
//! mutation depends on a seed and its number alone: a failure names both, and `ATTACK_SEED=17 ATTACK_FIRST=4711
//! ATTACK_MUTATIONS=1` plays that one again.

use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::ops::Range;
use std::sync::Mutex;

use super::case::{self, Case, Verdict};
use super::line::{Heard, Manner, Transport, connect, find, latin1};
use super::stage::{Said, Stage};
use crate::dice::Dice;
use crate::standin::Then;

const MUTATIONS: u64 = 2000;
/// So many are played on one daemon, which may grow by [`GROWTH_KIB`] after the first [`WARM_UP`].
const ON_ONE_STAGE: u64 = 1000;
const WARM_UP: u64 = 200;
const GROWTH_KIB: u64 = 16 * 1024;
/// So many daemons are attacked at once; much of the time each of them waits.
const PLAYERS: usize = 4;
/// No more failures are looked for than these.
const FAILURES: usize = 20;
/// A clean request follows every so many.
const CLEAN_EVERY: u64 = 5;
const INSERTED: [&[u8]; 12] = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b":",
    b" ",
    b"\t",
    b"\xff",
    b"0\r\n\r\n",
    b"HTTP/1.1",
    b"\r\nAuthorization: ",
];

/// What is played: bytes in pieces, and how.
struct Mutation {
    pieces: Vec<Vec<u8>>,
    said: Option<Said>,
    transport: Transport,
    /// The caller goes away without waiting for an answer.
    leaves: bool,
}

/// Which mutations are played.
pub(crate) struct Which {
    seed: u64,
    pub(crate) numbers: Range<u64>,
}

#[test]
#[expect(clippy::print_stdout, reason = "the seed is what brings a failure back")]
fn mutated_attacks_never_break_an_invariant() {
    let which = Which::from_environment(MUTATIONS);
    let cases = case::load();
    println!("{which}");

    let starts = Mutex::new(which.numbers.clone().step_by(usize::try_from(ON_ONE_STAGE).unwrap()));
    let failures = Mutex::new(Vec::new());
    let went_up: u64 = std::thread::scope(|scope| {
        let players: Vec<_> =
            (0..PLAYERS).map(|_| scope.spawn(|| play_stages(&cases, &which, &starts, &failures))).collect();
        let went_up = players.into_iter().map(std::thread::ScopedJoinHandle::join);
        went_up.map(|count| count.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).sum()
    });

    let (count, failures) = (which.count() as u64, failures.into_inner().unwrap());
    println!("{went_up} requests went up");
    assert!(failures.is_empty(), "{which}: {} failures\n{}", failures.len(), failures.join("\n"));
    assert!(count < 100 || went_up > count / 20, "too little reaches the API: {went_up} of {count}");
}

impl Which {
    /// What `ATTACK_SEED`, `ATTACK_FIRST` and `ATTACK_MUTATIONS` say: else a seed of chance, from 0 on, and `count`.
    pub(crate) fn from_environment(count: u64) -> Self {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
        let seed =
            number("ATTACK_SEED").unwrap_or_else(|| RandomState::new().hash_one(std::process::id()) >> 16);
        let first = number("ATTACK_FIRST").unwrap_or(0);
        Self { seed, numbers: first..first + number("ATTACK_MUTATIONS").unwrap_or(count) }
    }

    /// How many they are.
    pub(crate) fn count(&self) -> usize {
        usize::try_from(self.numbers.end - self.numbers.start).unwrap()
    }

    /// What one of them is made by.
    pub(crate) fn dice(&self, number: u64) -> Dice {
        Dice(self.seed.wrapping_add(number.wrapping_mul(0x2545_f491_4f6c_dd1d)))
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seed, first, count) = (self.seed, self.numbers.start, self.count());
        write!(f, "ATTACK_SEED={seed} ATTACK_FIRST={first} ATTACK_MUTATIONS={count}")
    }
}

/// Plays on one daemon after another until all is played or too much fails; how many requests went up.
fn play_stages(
    cases: &[Case],
    which: &Which,
    starts: &Mutex<impl Iterator<Item = u64>>,
    failures: &Mutex<Vec<String>>,
) -> u64 {
    let mut went_up = 0;
    loop {
        let start = starts.lock().unwrap().next();
        let Some(start) = start.filter(|_| failures.lock().unwrap().len() <= FAILURES) else {
            return went_up;
        };
        let end = (start + ON_ONE_STAGE).min(which.numbers.end);
        let is_open = (start / ON_ONE_STAGE).is_multiple_of(2);
        let stage = if is_open { Stage::open() } else { Stage::keyed() };
        let mut found = Vec::new();
        went_up += play_all(&stage, cases, which, start..end, &mut found);
        failures.lock().unwrap().extend(found);
    }
}

/// Plays these numbers and returns how many requests went up.
fn play_all(
    stage: &Stage,
    cases: &[Case],
    which: &Which,
    numbers: Range<u64>,
    failures: &mut Vec<String>,
) -> u64 {
    let (mut went_up, mut may_go_up, mut warm) = (0, 0, None);
    let forwarded: Vec<Case> =
        cases.iter().filter(|case| case.check.verdict != Some(Verdict::Reject)).cloned().collect();
    let start = numbers.start;
    for number in numbers {
        let mut dice = which.dice(number);
        let case = if dice.below(2) == 0 { dice.one_of(cases) } else { dice.one_of(&forwarded) };
        let mutation = Mutation::of(case, stage, &mut dice);
        let (count, mut wrong) = play(stage, &mutation);
        went_up += count;
        may_go_up += mutation.may_go_up();
        if went_up > may_go_up {
            wrong.push(format!("{went_up} requests went up, of {may_go_up}"));
            may_go_up = went_up;
        }
        if number % CLEAN_EVERY == 0 {
            wrong.extend(stage.clean(mutation.transport).1);
        }
        if number == start + WARM_UP {
            warm = Some(stage.resident_kib());
        }
        if !wrong.is_empty() {
            let (id, wrong) = (&case.id, wrong.join("; "));
            failures.push(format!("number {number}, of {id}: {wrong}\n    {mutation}"));
        }
        if failures.len() > FAILURES {
            break;
        }
    }
    let growth = warm.map_or(0, |warm| stage.resident_kib().saturating_sub(warm));
    if growth > GROWTH_KIB {
        failures.push(format!("from number {start} on, the daemon grew by {growth} KiB"));
    }
    went_up
}

/// Plays one; the count of requests that went up, and which invariants are broken.
fn play(stage: &Stage, mutation: &Mutation) -> (u64, Vec<String>) {
    let mark = stage.mark();
    stage.set_script(mutation.said.clone());
    let heard = mutation.play(stage);
    stage.set_script(None);
    let (requests, _sent_up) = stage.settled(&mark);

    let mut wrong = stage.broken(&heard.raw, &requests);
    let bytes = mutation.pieces.concat();
    if !mutation.leaves {
        if !heard.has_ended {
            wrong.push("the connection never ended".to_owned());
        }
        let may_be_bodiless = find(&bytes, b"HEAD").is_some();
        if let Some(what) = heard.malformed.filter(|_| !may_be_bodiless) {
            wrong.push(format!("the caller got {what}"));
        }
    }
    (u64::try_from(requests.len()).unwrap(), wrong)
}

impl Mutation {
    fn of(case: &Case, stage: &Stage, dice: &mut Dice) -> Self {
        let transport = if dice.below(2) == 0 { Transport::Tcp } else { Transport::Unix };
        let mut bytes = stage.names.bytes(&case.raw);
        let mut said = case.upstream_raw.as_ref().map(|raw| stage.names.bytes(&raw.replace("{{CLOSE}}", "")));
        match &mut said {
            Some(said) if dice.below(4) > 0 => damage(said, dice),
            _ => damage(&mut bytes, dice),
        }
        // The end of an answer is the end of the connection: what is damaged may have no other.
        let said = said.map(|bytes| Said { bytes, then: Then::Close, is_early: false });
        Self { pieces: split(&bytes, dice), said, transport, leaves: dice.below(10) == 0 }
    }

    /// How many requests may come of it, now or later: one that got no answer is sent twice at most.
    fn may_go_up(&self) -> u64 {
        let heads = memchr::memmem::find_iter(&self.pieces.concat(), b"HTTP/1").count();
        u64::try_from(heads * if self.said.is_some() { 2 } else { 1 }).unwrap()
    }

    fn play(&self, stage: &Stage) -> Heard {
        let pieces: Vec<&[u8]> = self.pieces.iter().map(Vec::as_slice).collect();
        if self.leaves {
            let mut socket = connect(self.transport, &stage.world.daemon.authority, &stage.socket());
            // The daemon may be the first to close.
            let _written = pieces.iter().try_for_each(|piece| socket.write_all(piece));
            return Heard::default();
        }
        stage.exchange(self.transport, &pieces, Manner { half_close: true, ..Manner::default() })
    }
}

/// One to four damages.
pub(crate) fn damage(bytes: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        match dice.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 if at < bytes.len() => bytes[at] = u8::try_from(dice.below(256)).unwrap(),
            2 => {
                let end = (at + dice.below(20)).min(bytes.len());
                let repeated = bytes[at..end].to_vec();
                bytes.splice(at..at, repeated);
            }
            3 => drop(bytes.drain(at..(at + dice.below(8)).min(bytes.len()))),
            4 => swap_lines(bytes, dice),
            5 => repeat_line(bytes, dice),
            _ => drop(bytes.splice(at..at, dice.one_of(&INSERTED).iter().copied())),
        }
    }
}

fn swap_lines(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    if lines.len() > 1 {
        let (one, other) = (dice.below(lines.len()), dice.below(lines.len()));
        lines.swap(one, other);
        *bytes = lines.concat();
    }
}

fn repeat_line(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    if !lines.is_empty() {
        let (from, to) = (dice.below(lines.len()), dice.below(lines.len()));
        let mut line = lines[from].clone();
        if dice.below(2) == 0 {
            damage(&mut line, &mut Dice(dice.next()));
        }
        lines.insert(to, line);
        *bytes = lines.concat();
    }
}

/// Up to four writes.
fn split(bytes: &[u8], dice: &mut Dice) -> Vec<Vec<u8>> {
    let mut ends: Vec<usize> =
        (0..dice.below(4)).map(|_| dice.below(bytes.len() + 1)).chain([bytes.len()]).collect();
    ends.sort_unstable();
    let starts = [0].into_iter().chain(ends.clone());
    starts
        .zip(&ends)
        .map(|(start, end)| bytes[start..*end].to_vec())
        .filter(|piece| !piece.is_empty())
        .collect()
}

impl std::fmt::Display for Mutation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short = |bytes: &[u8]| latin1(bytes).chars().take(1000).collect::<String>();
        let pieces: Vec<_> = self.pieces.iter().map(|piece| short(piece)).collect();
        write!(f, "over {:?}: {pieces:?}", self.transport)?;
        match &self.said {
            Some(said) => write!(f, "\n    the API said {:?}", short(&said.bytes)),
            None => Ok(()),
        }
    }
}
