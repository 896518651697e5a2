//! The status document for people: what is good, what is not and what to do, with times from now on.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, stdout};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use crate::config::Environment;
use crate::token::now;

/// How many events are shown, the newest first.
const EVENTS: usize = 3;

/// How a person sees it.
pub(super) struct StatusLine {
    is_coloured: bool,
    now_ms: i64,
}

/// What a colour says.
#[derive(Clone, Copy)]
enum Mood {
    Good,
    Doubtful,
    Bad,
}

impl StatusLine {
    /// Coloured on a terminal that can, unless the person does not want it (`NO_COLOR`).
    pub(super) fn new(environment: &Environment) -> Self {
        let is_wanted = environment.var("NO_COLOR").is_none() && environment.var("TERM") != Some("dumb");
        Self { is_coloured: is_wanted && stdout().is_terminal(), now_ms: now().wall_ms() }
    }

    /// The whole document.
    pub(super) fn at(&self, status: &Value) -> String {
        let mut text = String::new();
        let accounts = status.get("accounts").and_then(Value::as_object);
        for (name, account) in accounts.into_iter().flatten() {
            self.account(&mut text, name, account);
        }
        let requests = &status["requests"];
        let [total, client_errors, server_errors, refused] =
            ["total", "client_errors", "server_errors", "refused"].map(|name| &requests[name]);
        let _written = writeln!(
            text,
            "requests: {total} answered, {client_errors} client errors, {server_errors} server errors, \
             {refused} refused"
        );
        if let Some(database) = word(&status["store"], "database") {
            let mood = if status["store"]["is_up"] == true { Mood::Good } else { Mood::Bad };
            let state = self.coloured(if status["store"]["is_up"] == true { "up" } else { "down" }, mood);
            let _written = writeln!(text, "store: {database}, {state}");
        }
        let uptime = Duration::from_secs(status["uptime_secs"].as_u64().unwrap_or_default());
        let listening = status["listening"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let _written = write!(
            text,
            "daemon: version {}, up {}, on {}",
            word(status, "version").unwrap_or("unknown"),
            about(uptime),
            listening.collect::<Vec<_>>().join(", ")
        );
        text
    }

    fn account(&self, text: &mut String, name: &str, account: &Value) {
        let state = word(account, "state").unwrap_or_default();
        let person = word(account, "person").map(|person| format!(" as {person}")).unwrap_or_default();
        let mood = match state {
            "ready" => Mood::Good,
            "login-required" => Mood::Bad,
            _ => Mood::Doubtful,
        };
        let _written = writeln!(text, "{name}: {}{person}", self.coloured(state, mood));
        let mut row = |label: &str, value: Option<String>| {
            let _written = value.map(|value| writeln!(text, "  {label:<15}{value}"));
        };
        row("token expires", word(account, "expires_at").map(|at| self.time(at)));
        row("next refresh", word(account, "next_refresh_at").map(|at| self.time(at)));
        row("login ends", word(account, "login_expires_at").map(|at| self.time(at)));
        let last = &account["last_refresh"];
        row(
            "last refresh",
            word(last, "at").zip(word(last, "outcome")).map(|(at, outcome)| {
                let mood = if outcome == "ok" { Mood::Good } else { Mood::Doubtful };
                format!("{}, {}", self.coloured(outcome, mood), self.time(at))
            }),
        );
        row("because", word(last, "error").map(str::to_owned));
        let shared = &account["shared"];
        row(
            "shared",
            shared["generation"].as_u64().map(|generation| {
                let by = word(shared, "refreshed_by").unwrap_or("nobody");
                format!("generation {generation}, last refreshed by {by}")
            }),
        );
        let events = account["events"].as_array().into_iter().flatten().rev().take(EVENTS);
        for (index, event) in events.enumerate() {
            let words = [word(event, "event"), word(event, "message")].map(Option::unwrap_or_default);
            let when = word(event, "at").map(|at| self.time(at)).unwrap_or_default();
            row(if index == 0 { "events" } else { "" }, Some(format!("{}: {}, {when}", words[0], words[1])));
        }
        if state == "login-required" {
            row("to do", Some(self.coloured(&format!("cnblogs-proxy login {name}"), Mood::Bad)));
        }
    }

    /// A time as it is seen from now, and as it is.
    fn time(&self, at: &str) -> String {
        let Ok(time) = humantime::parse_rfc3339(at) else { return at.to_owned() };
        let ms = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let left = i64::try_from(ms).unwrap_or(i64::MAX).saturating_sub(self.now_ms);
        let distance = about(Duration::from_millis(left.unsigned_abs()));
        if left > 0 { format!("in {distance} ({at})") } else { format!("{distance} ago ({at})") }
    }

    fn coloured(&self, words: &str, mood: Mood) -> String {
        if !self.is_coloured {
            return words.to_owned();
        }
        let code = match mood {
            Mood::Good => 32,
            Mood::Doubtful => 33,
            Mood::Bad => 31,
        };
        format!("\u{1b}[{code}m{words}\u{1b}[0m")
    }
}

fn word<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

/// A duration as people say it: its two largest units at most.
pub(super) fn about(duration: Duration) -> String {
    let secs = duration.as_secs();
    let (days, hours, minutes) = (secs / 86_400, secs / 3600 % 24, secs / 60 % 60);
    let (large, small) = match secs {
        0..60 => return format!("{secs} s"),
        60..3600 => return format!("{minutes} min"),
        3600..86_400 => (format!("{hours} h"), (minutes, "min")),
        _ => (if days == 1 { "1 day".to_owned() } else { format!("{days} days") }, (hours, "h")),
    };
    if small.0 == 0 { large } else { format!("{large} {} {}", small.0, small.1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_people_say_them() {
        for (secs, words) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3599, "59 min"),
            (3600, "1 h"),
            (9000, "2 h 30 min"),
            (86_399, "23 h 59 min"),
            (86_400, "1 day"),
            (90_000, "1 day 1 h"),
            (2_592_000, "30 days"),
        ] {
            assert_eq!(about(Duration::from_secs(secs)), words);
        }
        let line = StatusLine { is_coloured: false, now_ms: 1_700_000_000_000 };
        assert_eq!(line.time("2023-11-14T22:25:20Z"), "in 12 min (2023-11-14T22:25:20Z)");
        assert_eq!(line.time("2023-11-14T22:13:00Z"), "20 s ago (2023-11-14T22:13:00Z)");
        assert_eq!(line.time("never"), "never");
    }
}
