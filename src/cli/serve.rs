//! `serve`: the daemon in the foreground, as service managers and terminals want it.

use listenfd::ListenFd;

use super::check::at_start;
use super::{Common, Exit, Failure, in_bounded_time, log, say};
use crate::config::{Config, Environment, Listen};
use crate::server::listen::Inherited;
use crate::server::{self, Ended, Reread};

pub(super) fn serve(config: Config, common: Common, environment: Environment) -> Result<Exit, Failure> {
    let (filter, _log) = log::start(&config, &common, &environment)?;
    warn(&config, &environment);
    let read = move || {
        let config = Config::load(common.config.as_deref(), &environment)?;
        warn(&config, &environment);
        let swap_log = filter.prepare(&config, &common)?;
        Ok(Reread { config, swap_log })
    };
    match server::run(config, inherited()?, announce, read)? {
        Ended::Drained => Ok(Exit::Done),
        Ended::CutOff => Ok(Exit::Failed),
    }
}

fn warn(config: &Config, environment: &Environment) {
    for lint in at_start(config, environment) {
        tracing::warn!("{lint}");
    }
}

fn announce(listening: &[Listen], login_required: &[(String, Option<String>)]) {
    let listening = listening.iter().map(|listen| format!("listening on {listen}"));
    let login_required = login_required.iter().map(|(account, url)| match url {
        Some(url) => format!("login required: {url}"),
        None => format!("login required: run `cnblogs-proxy login {account}`"),
    });
    let lines: Vec<_> = listening.chain(login_required).collect();
    in_bounded_time(move || lines.iter().for_each(|line| say(line)));
}

/// Sockets that the service manager gave (`LISTEN_FDS`, `sd_listen_fds(3)`).
fn inherited() -> Result<Inherited, Failure> {
    let mut given = ListenFd::from_env();
    let mut inherited = Inherited::default();
    for index in 0..given.len() {
        let unusable = |error| Failure::new(Exit::Failed, format!("socket {index} of LISTEN_FDS: {error}"));
        if let Ok(Some(listener)) = given.take_tcp_listener(index) {
            inherited.tcp.push(listener);
        } else if let Some(listener) = given.take_unix_listener(index).map_err(unusable)? {
            inherited.unix.push(listener);
        }
    }
    Ok(inherited)
}
