//! The same properties without a fuzzer, as tests.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::panic::catch_unwind;
use std::path::Path;

use crate::testing::dice::Dice;

const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/testing/seeds");

/// Plays a property: its seeds as they are, then `runs` damaged ones, or random bytes where there are none.
pub(crate) fn holds(target: &str, runs: u64, property: fn(&[u8])) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("FUZZ_SEED").unwrap_or_else(|| RandomState::new().hash_one(target) >> 16);
    let first = number("FUZZ_FIRST").unwrap_or(0);
    let runs = number("FUZZ_RUNS").unwrap_or(runs);
    let seeds = seeds(target);

    seeds.iter().for_each(|seed| play(property, seed, "a seed as it is"));
    for number in first..first + runs {
        let mut dice = Dice(seed.wrapping_add(number.wrapping_mul(0x2545_f491_4f6c_dd1d)));
        let replay = format!("FUZZ_SEED={seed} FUZZ_FIRST={number} FUZZ_RUNS=1 cargo test --lib {target}");
        play(property, &input(&seeds, &mut dice), &replay);
    }
}

#[track_caller]
fn play(property: fn(&[u8]), bytes: &[u8], replay: &str) {
    if catch_unwind(|| property(bytes)).is_err() {
        panic!("again with: {replay}\nof: \"{}\"", bytes.escape_ascii());
    }
}

/// None for properties whose bytes are choices and nothing that can be read.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(Path::new(SEEDS).join(target)) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// A seed with one to four damages, or random bytes.
fn input(seeds: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    if seeds.is_empty() || dice.chance(20) {
        return (0..dice.below(400)).map(|_| byte(dice)).collect();
    }
    let mut bytes = dice.one_of(seeds).clone();
    for _ in 0..=dice.below(4) {
        let other = &seeds[dice.below(seeds.len())];
        damage(&mut bytes, other, dice);
    }
    bytes
}

fn damage(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    let at = dice.below(bytes.len() + 1);
    let end = (at + dice.below(24)).min(bytes.len());
    match dice.below(6) {
        0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
        1 if at < bytes.len() => bytes[at] = byte(dice),
        2 => drop(bytes.drain(at..end)),
        3 => {
            let repeated = bytes[at..end].to_vec();
            let to = dice.below(bytes.len() + 1);
            drop(bytes.splice(to..to, repeated));
        }
        4 => {
            let from = dice.below(other.len() + 1);
            let to = (from + dice.below(200)).min(other.len());
            drop(bytes.splice(at..at, other[from..to].iter().copied()));
        }
        _ => drop(bytes.splice(at..at, (0..=dice.below(4)).map(|_| byte(dice)).collect::<Vec<_>>())),
    }
}

/// Often one that means something.
fn byte(dice: &mut Dice) -> u8 {
    if dice.chance(30) {
        dice.pick(b"\r\n\t\0 %&=#?/\\.:;,\"'{}[]-+0123456789")
    } else {
        u8::try_from(dice.below(256)).expect("below 256")
    }
}
