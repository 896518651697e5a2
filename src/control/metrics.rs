//! `GET /-/metrics`: all that is counted, and how the accounts are, for Prometheus. Labels have no value that a
//! request could choose.

use std::fmt::Display;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::{Control, ControlState};
use crate::metrics::Totals;
use crate::metrics::text::{self, Kind, Text};
use crate::notify::Event;
use crate::session::{RefreshOutcome, Session, State as AccountState, Status};
use crate::store::PostgresStore;
use crate::token::At;

/// As `--version` says it: the version and, in a release, the commit and its day in parentheses.
const VERSION: &str = env!("CNBLOGS_PROXY_VERSION");

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// An account at one point.
struct Account<'a> {
    name: &'a str,
    session: &'a Session,
    status: Arc<Status>,
}

pub(super) async fn metrics(State(control): ControlState) -> Response {
    ([(CONTENT_TYPE, text::CONTENT_TYPE)], written(&control)).into_response()
}

fn written(control: &Control) -> String {
    let totals = control.metrics.totals();
    let accounts: Vec<_> = control
        .sessions
        .iter()
        .map(|(name, session)| Account { name, session, status: session.status() })
        .collect();
    let mut text = Text::default();
    about_the_program(&mut text, control);
    about_requests(&mut text, &totals);
    about_times_and_bytes(&mut text, &totals);
    about_connections(&mut text, &totals);
    about_states(&mut text, &accounts);
    about_ends(&mut text, &accounts);
    about_refreshes_and_events(&mut text, &accounts);
    if let Some(database) = control.logins.database() {
        about_the_store(&mut text, database, &accounts);
    }
    text.into_string()
}

fn about_the_program(text: &mut Text, control: &Control) {
    let commit = VERSION.split_once('(').and_then(|(_, commit)| commit.split([' ', ')']).next());
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("commit", commit.unwrap_or("unknown"))];
    text.family("build_info", Kind::Gauge, "The program that runs: always 1.").sample(&labels, 1);
    let started = seconds(At(control.started.wall_ms()));
    gauge(text, "start_time_seconds", "When the daemon started, since the Unix epoch.", started);
}

fn about_requests(text: &mut Text, totals: &Totals) {
    let mut by_class = |name, help, counts: &[u64; 5]| {
        let mut family = text.family(name, Kind::Counter, help);
        for (class, number) in CLASSES.iter().zip(counts) {
            family.sample(&[("code", class)], number);
        }
    };
    let help = "Requests for an upstream that were answered, by it or by the proxy.";
    by_class("requests_total", help, &totals.answered);
    let help = "Requests for the proxy's own pages (/-/) that were answered.";
    by_class("local_requests_total", help, &totals.local_answered);
    counter(text, "requests_refused_total", "Requests that the proxy refused with a 4xx.", totals.refused);
    let help = "Requests sent to the upstream once more, after a 401 or on a fresh connection.";
    counter(text, "requests_replayed_total", help, totals.replayed);
    let help = "Requests for an upstream whose answers are not complete.";
    gauge(text, "requests_in_flight", help, totals.in_flight);
}

fn about_times_and_bytes(text: &mut Text, totals: &Totals) {
    let help =
        "From the head of a request for an upstream to the end of its answer, or until it was given up.";
    text.family("request_duration_seconds", Kind::Histogram, help).histogram(&totals.durations);
    let help = "From sending a request to the head of the upstream's first answer to it.";
    let mut family = text.family("upstream_response_duration_seconds", Kind::Histogram, help);
    family.histogram(&totals.upstream_durations);
    let help = "Bytes that came in bodies of requests for an upstream.";
    counter(text, "request_body_bytes_total", help, totals.request_bytes);
    let help = "Bytes that went out in bodies of answers to requests for an upstream.";
    counter(text, "response_body_bytes_total", help, totals.response_bytes);
}

fn about_connections(text: &mut Text, totals: &Totals) {
    gauge(text, "caller_connections_open", "Open connections of callers.", totals.callers_open);
    let help = "Connections of callers that were accepted.";
    counter(text, "caller_connections_accepted_total", help, totals.callers_accepted);
    let help = "Connections of callers that there was no room for (limits.connections).";
    counter(text, "caller_connections_turned_away_total", help, totals.callers_turned_away);
    let help = "Open connections to upstreams, in use or idle.";
    gauge(text, "upstream_connections_open", help, totals.upstreams_open);
    let help = "Connections to upstreams that were made.";
    counter(text, "upstream_connections_opened_total", help, totals.upstreams_opened);
}

fn about_states(text: &mut Text, accounts: &[Account<'_>]) {
    let mut family = text.family("account_state", Kind::Gauge, "1 for the state that the account is in.");
    for account in accounts {
        for state in AccountState::ALL {
            let labels = [("account", account.name), ("state", state.as_str())];
            family.sample(&labels, u8::from(account.status.state == state));
        }
    }
    let help = "Whether the account has an access token that serves.";
    let mut family = text.family("access_token_usable", Kind::Gauge, help);
    for account in accounts {
        let is_usable = u8::from(account.session.current().is_some());
        family.sample(&[("account", account.name)], is_usable);
    }
}

fn about_ends(text: &mut Text, accounts: &[Account<'_>]) {
    let mut timestamps = |name, help, of: fn(&Status) -> Option<At>| {
        let mut family = text.family(name, Kind::Gauge, help);
        for account in accounts {
            if let Some(at) = of(&account.status) {
                family.sample(&[("account", account.name)], seconds(at));
            }
        }
    };
    let help = "When the next refresh is due, since the Unix epoch; absent when none is planned.";
    timestamps("access_token_refresh_timestamp_seconds", help, |status| status.next_refresh_at);
    let help = "When the access token ends, since the Unix epoch; absent without one, or when it never does.";
    timestamps("access_token_expiry_timestamp_seconds", help, |status| status.expires_at);
    let help = "When the server ends the login, since the Unix epoch; absent when it ends none.";
    timestamps("login_expiry_timestamp_seconds", help, |status| status.login_expires_at);
}

fn about_refreshes_and_events(text: &mut Text, accounts: &[Account<'_>]) {
    let mut family =
        text.family("refreshes_total", Kind::Counter, "Refreshes that are over, by how they ended.");
    for account in accounts {
        for outcome in RefreshOutcome::ALL {
            let number = account.status.refresh_counts.get(&outcome).copied().unwrap_or(0);
            family.sample(&[("account", account.name), ("outcome", outcome.as_str())], number);
        }
    }
    let mut family = text.family("events_total", Kind::Counter, "Events that a person was told of.");
    for account in accounts {
        for event in Event::ALL {
            let number = account.status.event_counts.get(&event).copied().unwrap_or(0);
            family.sample(&[("account", account.name), ("event", event.as_str())], number);
        }
    }
}

/// Only where replicas share their logins.
fn about_the_store(text: &mut Text, database: &PostgresStore, accounts: &[Account<'_>]) {
    let help = "Whether there is a connection to the database that replicas share their logins through.";
    gauge(text, "store_up", help, u8::from(database.is_up()));
    let help = "Claims on a login that were tried, each before a refresh token is spent.";
    counter(text, "store_claims_total", help, database.claims());
    let help = "How often the login was replaced, by whichever replica.";
    let mut family = text.family("store_generation", Kind::Gauge, help);
    for account in accounts {
        if let Some(shared) = &account.status.shared {
            family.sample(&[("account", account.name)], shared.generation);
        }
    }
}

fn counter(text: &mut Text, name: &str, help: &str, value: u64) {
    text.family(name, Kind::Counter, help).sample(&[], value);
}

fn gauge(text: &mut Text, name: &str, help: &str, value: impl Display) {
    text.family(name, Kind::Gauge, help).sample(&[], value);
}

fn seconds(at: At) -> f64 {
    at.0 as f64 / 1000.0
}
