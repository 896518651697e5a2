//! `store init` and `store import`: what is done to a database once.

use super::daemon::runtime;
use super::{Common, Exit, Failure, print_bytes, say};
use crate::config::{Config, Database, Environment};
use crate::store::{self, FileStore, Record, SealKeys, Store, StoreError};

/// Makes the tables, or prints what makes them.
pub(super) fn init(is_to_print: bool, common: &Common, environment: &Environment) -> Result<Exit, Failure> {
    let config = Config::load(common.config.as_deref(), environment)?;
    let database = database(&config)?;
    if is_to_print {
        return print_bytes(store::init_sql(&database.schema).as_bytes());
    }
    let made = runtime()?.block_on(store::init(database));
    say(&made.map_err(|error| Failure::of(&error.into()))?);
    Ok(Exit::Done)
}

/// Takes the logins of this machine's files along, and erases them there: two programs that spend one refresh token
/// lose the login.
pub(super) fn import(common: &Common, environment: &Environment) -> Result<Exit, Failure> {
    let config = Config::load(common.config.as_deref(), environment)?;
    database(&config)?;
    let failed = |error: StoreError| Failure::of(&error.into());
    let keys = || SealKeys::new(&config.store.seal_keys).into();
    let logins: Vec<(String, Vec<Record>)> = {
        let (files, _findings) = FileStore::open(&config.state_dir, keys()).map_err(failed)?;
        files.accounts().into_iter().map(|account| (account.clone(), files.records_of(&account))).collect()
    };
    if logins.is_empty() {
        say("no login is stored in files here");
        return Ok(Exit::Done);
    }
    let imported = runtime()?.block_on(async {
        let (store, _findings) = Store::open(&config).await?;
        tokio::select! {
            imported = import_all(&store, &logins) => imported,
            () = store.clone().follow() => unreachable!("it never ends"),
        }
    });
    imported.map_err(failed)?;
    let (files, _findings) = FileStore::open(&config.state_dir, keys()).map_err(failed)?;
    for (account, _) in &logins {
        let erased = files.reserve(account).and_then(|mut room| files.erase(&mut room, account));
        erased.map_err(failed)?;
        say(&format!("{account}: its login is in the database now, and not in files any more"));
    }
    Ok(Exit::Done)
}

async fn import_all(store: &Store, logins: &[(String, Vec<Record>)]) -> Result<(), StoreError> {
    let all =
        logins.iter().flat_map(|(account, records)| records.iter().map(move |record| (account, record)));
    for (account, record) in all {
        let reservation = store.reserve(account).await?;
        let Some(stored) = store.record(account, &record.binding) else {
            store.commit(reservation, account, record).await.map_err(|(_claim, error)| error)?;
            continue;
        };
        store.give_back(reservation, false).await;
        // It is the same after an import that was cut off.
        if !stored.is_same(record) {
            return Err(StoreError::Database(format!(
                "{account} has another login in the database: log out there first, or delete this machine's files"
            )));
        }
    }
    Ok(())
}

fn database(config: &Config) -> Result<&Database, Failure> {
    config.store.database.as_ref().ok_or_else(|| {
        Failure::new(Exit::Configuration, "no database is configured")
            .with_hint("name it by url in [store], or by CNBLOGS_PROXY_STORE_URL")
    })
}
