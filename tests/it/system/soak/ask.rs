//! One caller: draws a request and what shall go wrong with it, and judges what came of it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use serde_json::Value;

use super::faults::{Ordered, proxy_error};
use super::line::{Line, Outcome, Request};
use super::{LONGEST_PAUSE_MS, Stage, until_served};
use crate::dice::Dice;
use crate::standin::pattern;
use crate::support::Answer;

/// Requests whose caller hangs up, in percent; requests with a fault, of the others; and connections that are new.
const HANG_UPS: usize = 5;
const FAULTS: usize = 20;
const NEW_CONNECTIONS: usize = 20;
const OVER_THE_SOCKET: usize = 40;
/// Larger bodies are sent once, whatever the method.
const REPLAY_BUFFER: usize = 64 * 1024;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Get,
    Head,
    Post,
    Upload,
    Download,
    Events,
    Api,
}

/// A request, and what shall go wrong with it.
struct Plan {
    kind: Kind,
    id: u64,
    fault: Option<Ordered>,
    request: Request,
    length: usize,
}

/// Asks until all is over.
pub(super) fn again_and_again(stage: &Stage, caller: u64, mut dice: Dice) {
    let (mut line, mut generation) = (None, 0);
    let mut id = caller << 40;
    while !stage.is_over.load(Ordering::SeqCst) {
        id += 1;
        let plan = Plan::draw(&mut dice, id);
        let before = std::mem::replace(&mut generation, stage.generation.load(Ordering::SeqCst));
        if before != generation || dice.chance(NEW_CONNECTIONS) {
            line = None;
        }
        let outcome = plan.run(stage, &mut line, &mut dice);
        if let Some(outcome) = outcome {
            plan.judge(stage, generation, &outcome, &mut line);
        }
        std::thread::sleep(Duration::from_millis(dice.below(LONGEST_PAUSE_MS) as u64));
    }
}

impl Plan {
    fn draw(dice: &mut Dice, id: u64) -> Self {
        let kinds = [Kind::Get, Kind::Get, Kind::Head, Kind::Post, Kind::Post];
        let kinds = [&kinds[..], &[Kind::Upload, Kind::Download, Kind::Events, Kind::Api]].concat();
        let kind = dice.pick(&kinds);
        let method = match kind {
            Kind::Get | Kind::Download | Kind::Events | Kind::Api => "GET",
            Kind::Head => "HEAD",
            Kind::Post => "POST",
            Kind::Upload => "PUT",
        };
        let fault = dice.chance(FAULTS).then(|| Ordered::draw(dice, method));
        let length = match kind {
            Kind::Post => dice.below(3_000),
            Kind::Upload | Kind::Download => dice.below(400_000),
            _ => 0,
        };
        let path = match kind {
            Kind::Get | Kind::Head | Kind::Post | Kind::Upload => format!("/echo/{id}?"),
            Kind::Download if dice.chance(50) => format!("/bytes/{length}?chunked&"),
            Kind::Download => format!("/bytes/{length}?"),
            Kind::Events => "/events?n=5&every_ms=10&".to_owned(),
            Kind::Api => "/api/users?".to_owned(),
        };
        let fault_name = fault.map(|fault| format!("&fault={fault:?}")).unwrap_or_default();
        let target = format!("{path}id={id}{fault_name}");
        let body = if matches!(kind, Kind::Post | Kind::Upload) { pattern(length) } else { Vec::new() };
        let is_chunked = !body.is_empty() && dice.chance(50);
        Self { kind, id, fault, request: Request { method, target, body, is_chunked }, length }
    }

    /// None when the caller has hung up: it does not know what came of it.
    fn run(&self, stage: &Stage, line: &mut Option<Line>, dice: &mut Dice) -> Option<Outcome> {
        let mut open = match line.take().map_or_else(|| connect(stage, dice), Ok) {
            Ok(open) => open,
            Err(error) => return Some(Outcome::Unanswered(error.to_string())),
        };
        stage.requests.fetch_add(1, Ordering::SeqCst);
        if dice.chance(HANG_UPS) {
            open.send(&self.request, dice.below(100_000));
            std::thread::sleep(Duration::from_millis(dice.below(20) as u64));
            return None;
        }
        open.send(&self.request, usize::MAX);
        let outcome = open.outcome(self.request.method, |answer| self.is_right(answer));
        if let Outcome::Right(answer) | Outcome::Wrong(answer) = &outcome
            && answer.field("connection") != Some("close")
            && !self.may_be_untaken()
        {
            *line = Some(open);
        }
        Some(outcome)
    }

    fn is_right(&self, answer: &Answer) -> bool {
        if answer.status != 200 {
            return false;
        }
        match self.kind {
            Kind::Head => answer.body.is_empty(),
            Kind::Get | Kind::Post | Kind::Upload => {
                let echo: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                let sum = digest(&SHA256, &self.request.body);
                let sum: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
                echo["target"] == *self.request.target
                    && echo["method"] == self.request.method
                    && echo["body_sha256"] == *sum
            }
            Kind::Download => answer.body == pattern(self.length),
            Kind::Events => {
                let text = answer.text();
                let ids: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
                ids == ["0", "1", "2", "3", "4"]
            }
            Kind::Api => answer.json()["DisplayName"].is_string(),
        }
    }

    /// A request may fail as it was ordered to, or because the daemon was on its way out.
    fn judge(&self, stage: &Stage, generation: u64, outcome: &Outcome, line: &mut Option<Line>) {
        if matches!(outcome, Outcome::Right(_)) {
            return;
        }
        if self.fault.is_some_and(|fault| fault.explains(outcome)) || self.met_a_closing(stage, outcome) {
            stage.ordered_failures.fetch_add(1, Ordering::SeqCst);
            return;
        }
        let is_stopping = match outcome {
            Outcome::Unanswered(_) => true,
            Outcome::Wrong(answer) => {
                (answer.status, proxy_error(answer)) == (503, Some("proxy_internal_response"))
            }
            _ => false,
        };
        if is_stopping && stage.has_restarted_since(generation) {
            stage.met_a_restart.fetch_add(1, Ordering::SeqCst);
            *line = None;
            return until_served(stage);
        }
        let what = format!(
            "{:?} {} {}, tried {} times: {outcome:?}",
            self.kind,
            self.request.method,
            self.request.target,
            stage.ledger.tries(self.id)
        );
        stage.unexplained.lock().unwrap().push(what);
    }

    /// True when the answer may have come before all of the body was read. Whether the connection goes on then, a
    /// caller can't know.
    fn may_be_untaken(&self) -> bool {
        matches!(self.fault, Some(Ordered::Early | Ordered::Unauthorized)) && !self.request.body.is_empty()
    }

    /// A request that can't be sent again met an idle connection on its end: it never came to the API, and that
    /// is said.
    fn met_a_closing(&self, stage: &Stage, outcome: &Outcome) -> bool {
        let Outcome::Wrong(answer) = outcome else { return false };
        (self.request.method == "POST" || self.request.body.len() > REPLAY_BUFFER)
            && (answer.status, proxy_error(answer)) == (502, Some("connection_terminated"))
            && stage.ledger.tries(self.id) == 0
    }
}

fn connect(stage: &Stage, dice: &mut Dice) -> std::io::Result<Line> {
    if dice.chance(OVER_THE_SOCKET) {
        Line::unix(&stage.socket)
    } else {
        let authority = stage.authority.lock().unwrap().clone();
        Line::tcp(&authority)
    }
}
