//! `check`: says what would be used, and what looks wrong. The configuration was read when this begins, so
//! every file that it names could be read.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{Exit, Failure, say};
use crate::config::{Account, Config, Grant, User};

pub(super) fn check(config: &Config) -> Result<Exit, Failure> {
    let file = config.file.as_ref().map_or_else(
        || "built-in defaults and the environment".to_owned(),
        |file| file.display().to_string(),
    );
    say(&format!("configuration  {file}"));
    for listen in &config.listen {
        say(&format!("listen         {listen}"));
    }
    let state = if config.state_dir.exists() { "" } else { " (will be made)" };
    say(&format!("state          {}{state}", config.state_dir.display()));
    say(&format!("workers        {}", config.workers));
    for account in config.accounts.values() {
        describe(account);
    }
    for route in &config.routes {
        say(&format!(
            "route          {} -> {}{} with account {}",
            route.prefix,
            route.upstream.origin(),
            route.upstream.base_path,
            route.account
        ));
    }
    for key in &config.callers.keys {
        say(&format!("key            {} from {}", key.name, key.secret.from));
    }
    let users = config.callers.users.iter().map(|user| match user {
        User::Myself => "self".to_owned(),
        User::Anyone => "*".to_owned(),
        User::Uid(uid) => uid.to_string(),
    });
    let keys = if config.callers.keys.is_empty() { "no key needed" } else { "with a key" };
    say(&format!("callers        users {}, {keys}", users.collect::<Vec<_>>().join(", ")));
    for warning in warnings(config) {
        say(&format!("warning: {warning}"));
    }
    say("ok");
    Ok(Exit::Done)
}

fn describe(account: &Account) {
    let name = &account.name;
    let grant = account.grant.as_str();
    match account.grant {
        Grant::PersonalAccessToken => {
            say(&format!("account        {name}: {grant}, token from {}", account.secret.from));
        }
        _ => say(&format!(
            "account        {name}: {grant}, client {}, secret from {}, token endpoint {}",
            account.client_id, account.secret.from, account.token_url
        )),
    }
}

/// What works, and had better be otherwise.
fn warnings(config: &Config) -> Vec<String> {
    let secrets = config.accounts.values().map(|account| &account.secret);
    let secrets = secrets.chain(config.callers.keys.iter().map(|key| &key.secret));
    let mut warnings = Vec::new();
    for secret in secrets {
        let Some(path) = secret.from.strip_prefix("file ") else { continue };
        let mode = Path::new(path).metadata().map(|metadata| metadata.mode() & 0o777).unwrap_or(0);
        if mode & 0o077 != 0 {
            warnings.push(format!("{path} can be read by others (mode {mode:04o}): chmod 600 it"));
        }
    }
    let unused = config.accounts.keys().filter(|name| config.first_route_of(name).is_none());
    warnings.extend(unused.map(|name| format!("no route uses account {name}")));
    warnings
}
