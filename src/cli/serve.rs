//! `serve`: the daemon in the foreground, as service managers and terminals want it.

use listenfd::ListenFd;

use super::log::{self, LogFilter};
use super::{Common, Exit, Failure, say};
use crate::config::{Config, Environment, Listen};
use crate::server::listen::Inherited;
use crate::server::{self, Ended, Surroundings};

struct Terminal<'a> {
    common: &'a Common,
    environment: &'a Environment,
    filter: LogFilter,
}

pub(super) fn serve(config: Config, common: &Common, environment: &Environment) -> Result<Exit, Failure> {
    let filter = log::start(&config, common, environment)?;
    let inherited = inherited()?;
    let mut terminal = Terminal { common, environment, filter };
    match server::run(config, inherited, &mut terminal)? {
        Ended::Drained => Ok(Exit::Done),
        Ended::CutOff => Ok(Exit::Failed),
    }
}

impl Surroundings for Terminal<'_> {
    fn accepting(&mut self, listening: &[Listen], login_required: &[(String, Option<String>)]) {
        for listen in listening {
            say(&format!("listening on {listen}"));
        }
        for (account, url) in login_required {
            match url {
                Some(url) => say(&format!("login required: {url}")),
                None => say(&format!("login required: run `cnblogs-proxy login {account}`")),
            }
        }
    }

    fn reread(&mut self) -> anyhow::Result<Config> {
        let config = Config::load(self.common.config.as_deref(), self.environment)?;
        self.filter.change(&config, self.common)?;
        Ok(config)
    }
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
