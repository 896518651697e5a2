//! The short commands: each asks the running daemon, or, where that makes sense, does it here.

use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use zeroize::Zeroizing;

use super::daemon::{Daemon, login_required, printable, runtime};
use super::login::open;
use super::status_line::StatusLine;
use super::{Common, Doer, Exit, Failure, log, print_bytes, say, say_error};
use crate::config::{Config, Environment};
use crate::server::Accounts;
use crate::session::{AskError, NoToken};
use crate::store::Store;

/// How long a script waits for a token.
const TOKEN_WAIT: Duration = Duration::from_secs(20);

pub(super) fn status(daemon: &Daemon, json: bool, environment: &Environment) -> Result<Exit, Failure> {
    let status = daemon.get("/-/status")?.success()?.json();
    let accounts = status.get("accounts").and_then(Value::as_object);
    let needs_login = accounts
        .into_iter()
        .flat_map(|accounts| accounts.values())
        .any(|account| account.get("state").and_then(Value::as_str) == Some("login-required"));
    if json {
        say(&serde_json::to_string_pretty(&status).unwrap_or_default());
    } else {
        say(&StatusLine::new(environment).at(&printable(status)));
    }
    Ok(if needs_login { Exit::LoginRequired } else { Exit::Done })
}

/// Whether callers are answered, and can be served unless it is only asked whether the daemon is `live`.
pub(super) fn health(state_dir: &Path, live: bool) -> Result<Exit, Failure> {
    let answer = Daemon::find(state_dir)?.ok_or_else(|| Daemon::none(state_dir))?.ask_listeners(if live {
        "/-/healthz"
    } else {
        "/-/readyz"
    })?;
    if answer.status == StatusCode::OK {
        return Ok(Exit::Done);
    }
    let detail = answer.json().get("detail").and_then(Value::as_str).unwrap_or("not ready").to_owned();
    Err(Failure::new(Exit::Failed, detail))
}

pub(super) fn reload(daemon: &Daemon) -> Result<Exit, Failure> {
    let outcome = daemon.post("/-/reload", &[])?.success()?.json();
    say(outcome.get("outcome").and_then(Value::as_str).unwrap_or_default());
    Ok(Exit::Done)
}

/// Seals all that is stored with the first key.
pub(super) fn rekey(doer: &Doer) -> Result<Exit, Failure> {
    let words = match doer {
        Doer::Daemon(daemon) => {
            let outcome = daemon.post("/-/store/rekey", &[])?.success()?.json();
            outcome.get("outcome").and_then(Value::as_str).unwrap_or_default().to_owned()
        }
        Doer::Here(config) => {
            let runtime = runtime()?;
            let rekeyed = runtime.block_on(async {
                let (store, _findings) = Store::open(config).await?;
                tokio::select! {
                    rekeyed = store.rekey() => rekeyed,
                    () = store.clone().follow() => unreachable!("it never ends"),
                }
            });
            rekeyed.map_err(|error| Failure::of(&error.into()))?
        }
    };
    say(&words);
    Ok(Exit::Done)
}

/// What a command changes at an account, in the daemon or here.
#[derive(Clone, Copy)]
pub(super) enum Change {
    Refresh,
    LogOut,
}

pub(super) fn change(
    change: Change,
    doer: &Doer,
    account: &str,
    common: &Common,
    environment: &Environment,
) -> Result<Exit, Failure> {
    let (route, done) = match change {
        Change::Refresh => ("refresh", "has a fresh token"),
        Change::LogOut => ("logout", "is logged out"),
    };
    let remark = match doer {
        Doer::Daemon(daemon) => {
            let answer = daemon.post(&format!("/-/{route}/{account}"), &[])?.success()?.json();
            answer.get("remark").and_then(Value::as_str).map(str::to_owned)
        }
        Doer::Here(config) => here(config, common, environment, async |accounts| {
            match (change, accounts.sessions.get(account)) {
                (Change::Refresh, session) => {
                    session.expect("it is configured").refresh().await.map(|()| None)
                }
                (Change::LogOut, Some(session)) => session.log_out().await,
                (Change::LogOut, None) => accounts.logins.log_out_unconfigured(account).await,
            }
        })?,
    };
    say(&format!("{account} {done}."));
    if let Some(remark) = remark {
        say_error(&format!("warning: {remark}"));
    }
    Ok(Exit::Done)
}

pub(super) fn token(
    doer: &Doer,
    account: &str,
    common: &Common,
    environment: &Environment,
) -> Result<Exit, Failure> {
    let config = match doer {
        Doer::Daemon(daemon) => {
            return print_token(&daemon.get(&format!("/-/token/{account}"))?.success()?.body);
        }
        Doer::Here(config) => config,
    };
    let secret = &config.accounts[account].secret;
    if config.accounts[account].client().is_none() && !secret.is_missing() {
        return print_token(secret.value.expose_secret().as_bytes());
    }
    let token = here(config, common, environment, async |accounts| {
        accounts.sessions[account].token(TOKEN_WAIT).await.map_err(|reason| match reason {
            NoToken::LoginRequired => AskError::LoginRequired("a person has to log in".to_owned()),
            NoToken::Unavailable { .. } => AskError::Failed("there is no token now".to_owned()),
        })
    })?;
    print_token(token.access_token())
}

/// Does something with sessions of our own, since no daemon is running.
fn here<T>(
    config: &Config,
    common: &Common,
    environment: &Environment,
    act: impl AsyncFnOnce(&Accounts) -> Result<T, AskError>,
) -> Result<T, Failure> {
    log::start_quiet(config, common, environment)?;
    let (runtime, accounts) = open(config)?;
    let outcome = runtime.block_on(act(&accounts));
    runtime.block_on(accounts.close());
    outcome.map_err(|error| match error {
        AskError::LoginRequired(message) => login_required(message),
        error => Failure::new(Exit::Failed, error.to_string()),
    })
}

fn print_token(token: &[u8]) -> Result<Exit, Failure> {
    use std::io::IsTerminal as _;
    print_bytes(&Zeroizing::new([token, b"\n"].concat()))?;
    if std::io::stdout().is_terminal() {
        say_error("hint: this token opens your account: it belongs into no file, chat or history");
    }
    Ok(Exit::Done)
}
