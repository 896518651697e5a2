//! What an administrator does to the database: making the tables, and looking what is there.

use std::sync::Arc;

use tokio_postgres::Client;

use super::link::{Fresh, Link, LinkError, run};
use super::sql::{self, Sql};
use super::{Generation, SealKeys, SealedFor, number_of, text};
use crate::config::Database;
use crate::notify::with_causes;
use crate::store::StoreError;

/// What makes the tables of a schema, for an administrator of the database.
pub fn init_sql(schema: &str) -> String {
    format!(
        "-- Run by an administrator of the database. Then let the role that the replicas connect as use it:\n\
         --   grant usage on schema {schema} to ROLE;\n\
         --   grant select, insert, update on all tables in schema {schema} to ROLE;\n\
         begin;\n{}commit;\n",
        Sql::new(schema).init(true)
    )
}

/// Makes the tables where they are not there yet. Says so in words.
///
/// # Errors
/// When the database can't be reached, the role may not, or the tables are a newer program's.
pub async fn init(database: &Database) -> Result<String, StoreError> {
    let sql = Sql::new(&database.schema);
    let (fresh, client) = connect(database).await?;
    asked(database, fresh, async {
        make_missing(&client, &sql).await?;
        version(&client, &sql).await
    })
    .await
    .and_then(|version| is_ours(database, version))?;
    Ok(format!("{}: the tables are in schema {}", database.shown, database.schema))
}

/// What is to be said of a database, and how the keys fit to what is in it. Changes nothing.
///
/// # Errors
/// What prevents a daemon from using it.
pub async fn inspect(database: &Database, keys: &SealKeys) -> Result<Vec<String>, StoreError> {
    let sql = Sql::new(&database.schema);
    let (fresh, client) = connect(database).await?;
    let found = asked(database, fresh, async {
        let server = run(&client, &sql.server()).await?;
        let has_tables = has_tables(&client, &sql).await?;
        let rights = if has_tables { run(&client, &sql.rights()).await? } else { Vec::new() };
        let version = if has_tables { version(&client, &sql).await? } else { Some(sql::VERSION) };
        let rows = if has_tables { run(&client, &sql.rows(None)).await? } else { Vec::new() };
        Ok((server, has_tables, rights, version, rows))
    });
    let (server, has_tables, rights, version, rows) = found.await?;
    is_ours(database, version)?;
    let said = |name: &str| server.first().and_then(|row| text(row, name)).unwrap_or_default();
    let mut words = vec![format!("PostgreSQL {}, schema {}", said("version"), database.schema)];
    if !has_tables {
        words.push(
            "the tables are not there yet: the daemon makes them, or `cnblogs-proxy store init`".to_owned(),
        );
    }
    let lacking: Vec<_> = rights.iter().filter_map(|row| text(row, "lacking")).collect();
    if !lacking.is_empty() {
        let lacking = lacking.join(", ");
        let reason =
            format!("{}: the role lacks {lacking} on the tables of {}", database.shown, database.schema);
        return Err(StoreError::Database(reason));
    }
    if ["off", "local", "remote_write"].contains(&said("durability").as_str()) {
        words.push("synchronous_commit is off here: it is set for each statement".to_owned());
    }
    for row in &rows {
        let (Some(account), Some(generation)) = (text(row, "account"), number_of(row, "generation")) else {
            continue;
        };
        let Some(sealed) = text(row, "record").and_then(|hex| sql::unhex(&hex)) else { continue };
        let place = SealedFor { schema: &database.schema, account: &account, generation };
        let plain = keys.open(&place, &sealed).map_err(|source| StoreError::SealedRow {
            database: database.shown.clone(),
            account: account.clone(),
            source,
        })?;
        let is_whole = Generation::decode(&plain, &SealKeys::default()).is_ok();
        let state = if is_whole { "can be opened" } else { "is damaged" };
        words.push(format!("the login of {account}, generation {generation}, {state}"));
    }
    Ok(words)
}

/// Makes the tables where they are not there.
pub(super) async fn make_missing(client: &Client, sql: &Sql) -> Result<(), LinkError> {
    let found = run(client, &sql.looked_for()).await?;
    let is_there = |name: &str| found.first().and_then(|row| text(row, name)).as_deref() == Some("t");
    if !is_there("has_tables") {
        run(client, &sql.init(!is_there("has_schema"))).await?;
    }
    Ok(())
}

/// The version of the tables.
pub(super) async fn version(client: &Client, sql: &Sql) -> Result<Option<u32>, LinkError> {
    let rows = run(client, &sql.version()).await?;
    Ok(rows.first().and_then(|row| text(row, "version")?.parse().ok()))
}

/// True when the tables are of a version that this program understands.
pub(super) fn is_ours(database: &Database, version: Option<u32>) -> Result<(), StoreError> {
    let place = || format!("{}, schema {},", database.shown, database.schema);
    match version {
        Some(sql::VERSION) => Ok(()),
        Some(version) => Err(StoreError::NewerTables { database: place(), version }),
        None => Err(StoreError::Database(format!("{} has no version", place()))),
    }
}

async fn has_tables(client: &Client, sql: &Sql) -> Result<bool, LinkError> {
    let found = run(client, &sql.looked_for()).await?;
    Ok(found.first().and_then(|row| text(row, "has_tables")).as_deref() == Some("t"))
}

async fn connect(database: &Database) -> Result<(Fresh, Arc<Client>), StoreError> {
    let link = Link::new(database).map_err(|error| StoreError::Database(with_causes(&error)))?;
    let fresh = link.connect().await.map_err(|error| unusable(database, &error))?;
    let client = Arc::clone(&fresh.0);
    Ok((fresh, client))
}

async fn asked<T>(
    database: &Database,
    mut fresh: Fresh,
    answer: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, StoreError> {
    let answer = Link::ask_once(&mut fresh, answer).await.and_then(|answer| answer);
    answer.map_err(|error| unusable(database, &error))
}

fn unusable(database: &Database, error: &LinkError) -> StoreError {
    StoreError::Database(format!("{}: {error}", database.shown))
}
