//! The status page.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Html;

use super::{FOLLOWED, Mood, NavLink, Viewer, exactly, layout};
use crate::control::pages::words::{Fill, escape};
use crate::metrics::{Counts, MINUTES, Minute};
use crate::notify::{Event, Notice, Piece, Text};
use crate::session::{Refresh, RefreshOutcome, State, Status, WARN_BEFORE};
use crate::store::SharedLogin;
use crate::token::At;

const STATUS: &str = include_str!("status.html");
const ACCOUNT: &str = include_str!("account.html");
const LOGOUT: &str = include_str!("logout.html");
const HOUR: &str = include_str!("hour.html");
/// Of refreshes and of events each.
const LINES_SHOWN: usize = 5;
/// The width of a minute in a chart, and of what is drawn of it.
const COLUMN: usize = 600 / MINUTES;
const BAR: usize = COLUMN - 2;

/// What the status page tells.
pub(in crate::control) struct Overview {
    pub(in crate::control) accounts: Vec<(String, Arc<Status>)>,
    pub(in crate::control) counts: Counts,
    pub(in crate::control) hour: Vec<Minute>,
    pub(in crate::control) uptime: Duration,
    pub(in crate::control) listening: String,
    pub(in crate::control) secret: String,
}

/// All accounts with their states, and the last hour.
pub(in crate::control) fn status(viewer: Viewer, overview: &Overview) -> Html<String> {
    let accounts =
        overview.accounts.iter().map(|(name, status)| account(viewer, name, status, &overview.secret));
    let worst = overview.accounts.iter().map(|(_, status)| mood(status, viewer.now)).max();
    let worst = worst.unwrap_or(Mood::Good);
    let is_well = matches!(worst, Mood::Good | Mood::Start);
    let remedies = Event::ALL.into_iter().filter(|event| *event != Event::Recovered);
    let about = Fill::new(viewer)
        .markup("version", env!("CARGO_PKG_VERSION"))
        .markup("uptime", viewer.span(Duration::from_secs(overview.uptime.as_secs())))
        .text("listening", &overview.listening)
        .word("about");
    let body = Fill::new(viewer)
        .markup("summary", summary(viewer, worst))
        .markup("accounts", accounts.collect::<String>())
        .markup("hour", hour(viewer, &overview.hour, &overview.counts))
        .markup("remedies_open", if is_well { "" } else { " open" })
        .markup("all_remedies", remedies.map(|event| remedy(viewer, event)).collect::<String>())
        .markup("about", about)
        .fill(STATUS);
    layout(viewer, "status.title", Some(NavLink::Status), FOLLOWED, body)
}

/// The worst of all accounts.
fn summary(viewer: Viewer, worst: Mood) -> String {
    let mood = worst.as_str();
    let (words, text) = (viewer.word(&format!("status.{mood}")), viewer.word(&format!("status.{mood}.text")));
    format!("<div class=\"summary {mood}\"><p><b>{words}</b></p><p>{text}</p></div>")
}

fn mood(status: &Status, now: At) -> Mood {
    match status.state {
        State::LoginRequired if has_no_login(status) => Mood::Start,
        State::LoginRequired => Mood::Bad,
        State::Degraded if !is_usable(status, now) => Mood::Bad,
        State::Degraded => Mood::Mild,
        State::Ready | State::Refreshing if ends_soon(status, now) => Mood::Mild,
        State::Ready | State::Refreshing => Mood::Good,
    }
}

/// True when there is no login that could be lost.
fn has_no_login(status: &Status) -> bool {
    status.grant == "authorization_code" && status.obtained_at.is_none()
}

/// True while requests are served, for a personal access token for ever.
fn is_usable(status: &Status, now: At) -> bool {
    status.obtained_at.is_some() && status.expires_at.is_none_or(|at| at > now)
}

fn ends_soon(status: &Status, now: At) -> bool {
    let warn_ms = i64::try_from(WARN_BEFORE.as_millis()).unwrap_or(i64::MAX);
    status.login_expires_at.is_some_and(|at| at.0.saturating_sub(now.0) < warn_ms)
}

fn account(viewer: Viewer, name: &str, status: &Status, secret: &str) -> String {
    let state = match mood(status, viewer.now) {
        Mood::Start => Mood::Start.as_str(),
        _ => status.state.as_str(),
    };
    Fill::new(viewer)
        .text("account", name)
        .markup("state", state)
        .markup("state_word", viewer.word(&format!("state.{state}")))
        .markup("grant", viewer.word(&format!("grant.{}", status.grant)))
        .markup("advice", advice(viewer, status))
        .markup("life", life(viewer, status))
        .markup("facts", facts(viewer, status))
        .markup("buttons", buttons(viewer, name, status, secret))
        .markup("history", history(viewer, status))
        .fill(ACCOUNT)
}

/// What to do now, when something is to be done.
fn advice(viewer: Viewer, status: &Status) -> String {
    let is_usable = is_usable(status, viewer.now);
    let (key, at) = match status.state {
        State::LoginRequired if is_usable => ("advice.login.serving", status.expires_at),
        State::LoginRequired => ("advice.login", None),
        State::Degraded if is_usable => ("advice.degraded", None),
        State::Degraded => ("advice.degraded.unusable", None),
        _ if ends_soon(status, viewer.now) => ("advice.expiring", status.login_expires_at),
        _ => return String::new(),
    };
    let distance = at.map(|at| viewer.distance(at)).unwrap_or_default();
    let text = Fill::new(viewer).markup("in", distance).word(key);
    format!("<p class=\"notice {}\">{text}</p>", mood(status, viewer.now).as_str())
}

/// The access token's life as a bar, with the refresh point.
fn life(viewer: Viewer, status: &Status) -> String {
    let (Some(from), Some(until)) = (status.obtained_at, status.expires_at) else { return String::new() };
    let share = |at: At| {
        let (part, whole) = (at.0.saturating_sub(from.0).max(0), until.0.saturating_sub(from.0).max(1));
        (part.saturating_mul(1000) / whole).clamp(0, 1000)
    };
    let spent = share(viewer.now);
    let due = status.next_refresh_at.map(share);
    let label = Fill::new(viewer)
        .markup("spent", (spent / 10).to_string())
        .markup("due", due.map_or_else(|| "100".to_owned(), |due| (due / 10).to_string()))
        .word("life");
    let tick = due
        .map(|due| format!("<rect class=\"due\" x=\"{}\" y=\"0\" width=\"5\" height=\"14\"/>", due.min(995)));
    format!(
        "<svg class=\"life\" viewBox=\"0 0 1000 14\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{label}\">\
         <rect class=\"whole\" y=\"3\" width=\"1000\" height=\"8\"/><rect class=\"rest {}\" x=\"{spent}\" y=\"3\" \
         width=\"{}\" height=\"8\"/>{}</svg>",
        if due.is_some_and(|due| spent > due) { "late" } else { "" },
        1000 - spent,
        tick.unwrap_or_default(),
    )
}

fn facts(viewer: Viewer, status: &Status) -> String {
    let needs_person = status.grant == "authorization_code";
    let person = match (&status.person, status.obtained_at) {
        (Some(person), _) => Some(escape(person)),
        (None, Some(_)) if needs_person => Some(viewer.word("account.unknown")),
        (None, _) => None,
    };
    let facts = [
        ("account.person", "", person),
        ("account.token", "token", Some(token(viewer, status))),
        ("account.next", "due", next_refresh(viewer, status)),
        ("account.login", "", needs_person.then(|| login_end(viewer, status)).flatten()),
        ("account.shared", "", status.shared.as_ref().map(|shared| shared_by(viewer, shared))),
    ];
    // What is drawn in `life` is explained here.
    let is_drawn = status.expires_at.is_some();
    let fact = |(word, drawn, fact): (&str, &str, Option<String>)| {
        let key =
            if drawn.is_empty() || !is_drawn { "" } else { &format!("<span class=\"key {drawn}\"></span>") };
        Some(format!("<div><dt>{key}{}</dt><dd>{}</dd></div>", viewer.word(word), fact?))
    };
    facts.into_iter().filter_map(fact).collect()
}

fn shared_by(viewer: Viewer, shared: &SharedLogin) -> String {
    Fill::new(viewer)
        .markup("generation", shared.generation.to_string())
        .text("replica", shared.refreshed_by.as_deref().unwrap_or("-"))
        .word("account.shared.by")
}

fn token(viewer: Viewer, status: &Status) -> String {
    match (status.obtained_at, status.expires_at) {
        (None, _) => viewer.word("account.token.none"),
        (Some(_), None) => viewer.word("account.token.endless"),
        (Some(_), Some(at)) if at <= viewer.now => {
            Fill::new(viewer).markup("ago", viewer.distance(at)).word("account.token.over")
        }
        (Some(_), Some(at)) => {
            let fill = Fill::new(viewer).markup("left", viewer.left(at)).markup("until", viewer.time(at));
            fill.word("account.token.life")
        }
    }
}

fn next_refresh(viewer: Viewer, status: &Status) -> Option<String> {
    let at = status.next_refresh_at?;
    Some(if at > viewer.now { point(viewer, "account.next.at", at) } else { viewer.word("account.next.due") })
}

fn login_end(viewer: Viewer, status: &Status) -> Option<String> {
    if status.obtained_at.is_none() || status.state == State::LoginRequired {
        return None;
    }
    Some(match status.login_expires_at {
        Some(at) => point(viewer, "account.login.at", at),
        None => viewer.word("account.login.never"),
    })
}

fn point(viewer: Viewer, key: &str, at: At) -> String {
    Fill::new(viewer).markup("in", viewer.distance(at)).markup("at", viewer.time(at)).word(key)
}

fn buttons(viewer: Viewer, name: &str, status: &Status, secret: &str) -> String {
    let fill = Fill::new(viewer).text("account", name).text("secret", secret);
    let mut buttons = String::new();
    if status.grant == "authorization_code" {
        let is_urgent = mood(status, viewer.now) != Mood::Good;
        let (class, key) = match status.state {
            State::LoginRequired => ("button", "action.login"),
            _ if is_urgent => ("button", "action.again"),
            _ => ("button plain", "action.again"),
        };
        let link = format!("<a class=\"{class}\" href=\"/-/login/{{{{account}}}}\">{{{{{key}}}}}</a>");
        buttons.push_str(&fill.fill(&link));
    }
    if status.grant != "personal_access_token" && status.state != State::LoginRequired {
        buttons.push_str(&fill.fill(
            "<form method=\"post\" action=\"/-/refresh/{{account}}\"><input type=\"hidden\" name=\"page\" \
             value=\"{{secret}}\"><button type=\"submit\" class=\"plain\">{{action.refresh}}</button></form>",
        ));
    }
    if status.grant == "authorization_code" && status.obtained_at.is_some() {
        buttons.push_str(&fill.fill(LOGOUT));
    }
    buttons
}

fn history(viewer: Viewer, status: &Status) -> String {
    let part = |heading, lines: &str| format!("<div><h4>{}</h4>{lines}</div>", viewer.word(heading));
    let refreshes = match status.grant {
        "personal_access_token" => String::new(),
        _ => part("refreshes", &all_refreshes(viewer, status)),
    };
    refreshes + &part("events", &all_events(viewer, status))
}

fn all_refreshes(viewer: Viewer, status: &Status) -> String {
    let lines = status.refreshes.iter().rev().take(LINES_SHOWN).map(|one| refresh(viewer, one));
    lined(&lines.collect::<String>(), &viewer.word("refreshes.none"))
}

fn refresh(viewer: Viewer, refresh: &Refresh) -> String {
    let (mood, key) = match refresh.outcome {
        RefreshOutcome::Ok => (Mood::Good, "refresh.ok"),
        RefreshOutcome::Refused => (Mood::Bad, "refresh.refused"),
        RefreshOutcome::Unavailable => (Mood::Mild, "refresh.unavailable"),
        RefreshOutcome::InDoubt => (Mood::Mild, "refresh.in-doubt"),
    };
    let why = refresh.error.as_deref().map(|error| format!(": {}", exactly(error))).unwrap_or_default();
    format!(
        "<li class=\"{}\">{} <b>{}</b>{why}</li>",
        mood.as_str(),
        when(viewer, refresh.at),
        viewer.word(key)
    )
}

fn all_events(viewer: Viewer, status: &Status) -> String {
    let mood = mood(status, viewer.now);
    let lines = status.events.iter().rev().take(LINES_SHOWN).map(|notice| event(viewer, notice, mood));
    lined(&lines.collect::<String>(), &viewer.word("events.none"))
}

fn event(viewer: Viewer, notice: &Notice, now: Mood) -> String {
    let name = notice.event.as_str();
    let mood = match notice.event {
        Event::Recovered => Mood::Good,
        Event::LoginExpiring | Event::RefreshFailing => Mood::Mild,
        Event::LoginRequired if now == Mood::Start => Mood::Start,
        Event::LoginRequired | Event::RotationInDoubt | Event::StoreFailing => Mood::Bad,
    };
    let remedy = match notice.event {
        Event::Recovered => String::new(),
        _ => format!(" <a href=\"#remedy-{name}\">{}</a>", viewer.word("events.remedy")),
    };
    format!(
        "<li class=\"{}\">{} <b>{}</b>: {}{remedy}</li>",
        mood.as_str(),
        when(viewer, notice.at),
        viewer.word(&format!("event.{name}")),
        told(viewer, &notice.message),
    )
}

/// In the reader's language, but for the values.
fn told(viewer: Viewer, text: &Text) -> String {
    let pieces = text.pieces().iter().map(|piece| match piece {
        Piece::Words(words) => viewer.said(words).to_owned(),
        Piece::Value(value) => exactly(value),
    });
    pieces.collect()
}

fn remedy(viewer: Viewer, event: Event) -> String {
    let name = event.as_str();
    format!(
        "<div id=\"remedy-{name}\" tabindex=\"-1\"><dt>{} <code>{name}</code></dt><dd>{}</dd></div>",
        viewer.word(&format!("event.{name}")),
        viewer.word(&format!("remedy.{name}")),
    )
}

/// A time of which the distance is what counts.
fn when(viewer: Viewer, at: At) -> String {
    format!("<span class=\"when\">{}</span>", viewer.distance(at))
}

fn lined(lines: &str, none: &str) -> String {
    if lines.is_empty() {
        format!("<p class=\"note\">{none}</p>")
    } else {
        format!("<ul class=\"lines\">{lines}</ul>")
    }
}

fn hour(viewer: Viewer, minutes: &[Minute], counts: &Counts) -> String {
    let all = minutes.iter().fold(Minute::default(), |all, minute| all.plus(minute));
    if all.answered == 0 {
        return format!("<p class=\"note\">{}</p>", viewer.word("requests.none"));
    }
    let most = minutes.iter().map(|minute| minute.answered).max().unwrap_or(0);
    let slowest = minutes.iter().filter_map(Minute::upstream_mean).max().unwrap_or_default();
    let mean = all.upstream_mean().map_or_else(|| "–".to_owned(), millis);
    let is_bad = |count: u64, mood: Mood| if count > 0 { mood.as_str() } else { "" };
    let fill = Fill::new(viewer)
        .number("answered", all.answered)
        .number("client", all.client_errors)
        .number("server", all.server_errors)
        .number("connections", counts.connections)
        .markup("client_mood", is_bad(all.client_errors, Mood::Mild))
        .markup("server_mood", is_bad(all.server_errors, Mood::Bad))
        .markup("mean", mean);
    let slow = fill.clone().markup("most", millis(slowest));
    let (slowest_word, latency_label) = (slow.word("requests.most"), slow.word("requests.latency.label"));
    fill.number("most", most)
        .markup("slowest", slowest_word)
        .markup("latency_label", latency_label)
        .markup("bars", bars(minutes, most))
        .markup("latencies", latencies(minutes, slowest))
        .fill(HOUR)
}

fn millis(took: Duration) -> String {
    format!("{} ms", took.as_millis().max(1))
}

/// A column a minute: server errors at the bottom, then client errors, then the rest.
fn bars(minutes: &[Minute], most: u64) -> String {
    let mut drawn = String::new();
    for (at, minute) in minutes.iter().enumerate() {
        let errors = minute.client_errors + minute.server_errors;
        let mut bottom = 96;
        for (class, count) in [
            ("server", minute.server_errors),
            ("client", minute.client_errors),
            ("good", minute.answered.saturating_sub(errors)),
        ] {
            let height = height(count, most, 96).min(bottom);
            bottom -= height;
            drawn.push_str(&bar(class, at, bottom, height));
        }
    }
    drawn
}

fn latencies(minutes: &[Minute], slowest: Duration) -> String {
    let micros = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let columns = minutes.iter().enumerate().filter_map(|(at, minute)| {
        let height = height(micros(minute.upstream_mean()?), micros(slowest), 48);
        Some(bar("took", at, 48 - height, height))
    });
    columns.collect()
}

/// What is there is seen, however little it is.
fn height(part: u64, whole: u64, most: u64) -> u64 {
    if part == 0 { 0 } else { (part.saturating_mul(most) / whole.max(1)).clamp(3, most) }
}

fn bar(class: &str, at: usize, y: u64, height: u64) -> String {
    if height == 0 {
        return String::new();
    }
    format!(
        "<rect class=\"{class}\" x=\"{}\" y=\"{y}\" width=\"{BAR}\" height=\"{height}\"/>",
        at * COLUMN + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_never_higher_than_the_chart_and_shows_a_single_error() {
        let minute = Minute { answered: 1_000_000, client_errors: 1, server_errors: 1, ..Minute::default() };

        let drawn = bars(&[minute], minute.answered);

        let heights = drawn
            .split("height=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().parse::<u64>().unwrap());
        assert_eq!(heights.collect::<Vec<_>>(), [3, 3, 90]);
    }
}
