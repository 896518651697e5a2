//! The adversary: `tests/cases/attacks.json`, byte for byte against the real daemon over TCP and over a unix
//! socket, then the same bytes mutated, then the local adversary of `tests/cases/local-cases.json`.
//!
//! Whatever a case asks for, [`stage::Stage`] holds the invariants after it: no token for the caller, exactly
//! one Authorization and the API's Host upstream, nothing malformed there, nobody at the trap, a clean request
//! answered at once, no panic, no growth.

pub(crate) mod case;
mod judge;
pub(crate) mod line;
pub(crate) mod local;
pub(crate) mod mutate;
pub(crate) mod reading;
pub(crate) mod stage;

use case::{Case, Needs};
use line::Transport;
use stage::Stage;

/// What one pass over all cases found.
#[derive(Default)]
struct Pass {
    played: usize,
    failures: Vec<String>,
    only_lenient: Vec<String>,
}

#[test]
fn every_attack_over_tcp_meets_its_rules() {
    meets_its_rules(Transport::Tcp);
}

#[test]
fn every_attack_over_a_unix_socket_meets_its_rules() {
    meets_its_rules(Transport::Unix);
}

/// Plays every case twice: for callers without keys and for callers with one.
/// Requests with both framings: hyper takes the length out, reads chunks, and ends the connection behind them, as RFC
/// 9112, section 6.1, asks for. That there was a length is not seen any more.
const TWO_FRAMINGS: [&str; 2] = ["frm-001", "frm-002"];

#[track_caller]
#[expect(clippy::print_stdout, reason = "how many passed is worth telling")]
fn meets_its_rules(transport: Transport) {
    let cases = case::load();
    assert!(cases.len() > 100, "only {} cases were read", cases.len());

    let open = pass(&Stage::open(), transport, &cases);
    let keyed = pass(&Stage::keyed(), transport, &cases);

    let passed = |pass: &Pass| pass.played - pass.failures.len();
    println!(
        "{transport:?}: {} of {} without keys, {} of {} with them",
        passed(&open),
        open.played,
        passed(&keyed),
        keyed.played
    );
    assert_eq!(keyed.played, cases.len(), "every case is played");
    assert!(open.played > 100, "only {} cases were played", open.played);
    let failures = [open.failures, keyed.failures].concat();
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
    for pass in [open.only_lenient, keyed.only_lenient] {
        assert_eq!(pass, TWO_FRAMINGS, "the stricter verdict is missed");
    }
}

fn pass(stage: &Stage, transport: Transport, cases: &[Case]) -> Pass {
    let mut pass = Pass::default();
    for case in cases.iter().filter(|case| stage.has_key() || case.check.needs != Some(Needs::Cap)) {
        pass.played += 1;
        let (seen, mut wrong) = stage.play(case, transport);
        let rules = judge::rules(case, transport).named(&stage.names);
        wrong.extend(judge::judge(&rules, &seen));
        if judge::strictly(&rules).is_some_and(|strict| !judge::judge(&strict, &seen).is_empty()) {
            pass.only_lenient.push(case.id.clone());
        }
        if !wrong.is_empty() {
            let keys = if stage.has_key() { "with keys" } else { "without keys" };
            let (id, expect) = (&case.id, &case.expect);
            let wrong = wrong.join("; ");
            pass.failures
                .push(format!("{id} over {transport:?} {keys}: {wrong}\n    expected: {expect}\n    {seen}"));
        }
    }
    pass
}
