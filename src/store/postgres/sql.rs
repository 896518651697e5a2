//! What the database is asked. Each text is one message of the simple query protocol and so one transaction: nothing is
//! prepared and nothing outlives it, which a pooler in transaction mode asks for.

use std::fmt::Write as _;
use std::time::Duration;

use crate::store::record::hex;

/// The version of the tables that this program makes and understands.
pub(super) const VERSION: u32 = 1;

/// The texts for one schema.
#[derive(Debug)]
pub(super) struct Sql {
    schema: String,
}

impl Sql {
    /// `schema` is a name that needs no quotes.
    pub(super) fn new(schema: &str) -> Self {
        Self { schema: schema.to_owned() }
    }

    /// Makes what is not there yet. With `makes_schema` the schema as well, which asks for a right on the database even
    /// where it is there.
    pub(super) fn init(&self, makes_schema: bool) -> String {
        let Self { schema } = self;
        let mut text = format!("select pg_advisory_xact_lock(hashtext('{schema}'));\n");
        if makes_schema {
            let _written = writeln!(text, "create schema if not exists {schema};");
        }
        text += &format!(
            "create table if not exists {schema}.version (version integer not null);\n\
             insert into {schema}.version select {VERSION} where not exists (select from {schema}.version);\n\
             create table if not exists {schema}.logins (\n    \
                 account text primary key,\n    \
                 generation bigint not null,\n    \
                 record bytea,\n    \
                 claim text,\n    \
                 claimed_by text,\n    \
                 claimed_at timestamptz\n\
             );\n"
        );
        text
    }

    /// Which of the tables are there.
    pub(super) fn looked_for(&self) -> String {
        let Self { schema } = self;
        format!(
            "select to_regnamespace('{schema}') is not null as has_schema, \
             to_regclass('{schema}.version') is not null and to_regclass('{schema}.logins') is not null as has_tables"
        )
    }

    /// The version of the tables.
    pub(super) fn version(&self) -> String {
        format!("select version from {}.version", self.schema)
    }

    /// What is to be known of the server.
    pub(super) fn server(&self) -> String {
        "select current_setting('server_version') as version, \
         current_setting('synchronous_commit') as durability"
            .to_owned()
    }

    /// The rights that the role lacks.
    pub(super) fn rights(&self) -> String {
        format!(
            "select r as lacking from unnest(array['select', 'insert', 'update']) r \
             where not has_table_privilege('{0}.logins', r)",
            self.schema
        )
    }

    /// From now on the connection is told of changes.
    pub(super) fn listen(&self) -> String {
        format!("listen {}", self.schema)
    }

    /// All rows, or that of one account.
    pub(super) fn rows(&self, account: Option<&str>) -> String {
        let wanted = account.map(|account| format!(" where account = {}", literal(account)));
        format!(
            "select account, generation, encode(record, 'hex') as record, claim, claimed_by, \
             extract(epoch from clock_timestamp() - claimed_at)::bigint as claimed_secs, \
             (extract(epoch from clock_timestamp()) * 1000)::bigint as now_ms from {}.logins{}",
            self.schema,
            wanted.unwrap_or_default()
        )
    }

    /// Takes an account, when nobody holds it or its holder took it longer than `stale_after` ago. One's own claim is
    /// taken again.
    pub(super) fn claim(&self, account: &str, claim: &str, by: &str, stale_after: Duration) -> String {
        let Self { schema } = self;
        let (name, claim, by) = (literal(account), literal(claim), literal(by));
        let secs = stale_after.as_secs_f64();
        format!(
            "{BEFORE}; {}; \
             update {schema}.logins l set claim = {claim}, claimed_by = {by}, claimed_at = clock_timestamp() \
             from (select claim, claimed_by, claimed_at from {schema}.logins where account = {name} for update) o \
             where l.account = {name} and (o.claim is null or o.claimed_by = {by} \
             or o.claimed_at < clock_timestamp() - make_interval(secs => {secs})) \
             returning case when o.claim is not null and o.claimed_by <> {by} then o.claimed_by end as taken_from; {}",
            self.made(account, 0),
            self.rows(Some(account)),
        )
    }

    /// Puts a record, or nothing, in the place of one generation.
    pub(super) fn keep(&self, account: &str, from: u64, to: u64, record: Option<&[u8]>) -> String {
        let Self { schema } = self;
        let record =
            record.map_or_else(|| "null".to_owned(), |bytes| format!("decode('{}', 'hex')", hex(bytes)));
        format!(
            "{BEFORE}; {}; update {schema}.logins set generation = {to}, record = {record}, claim = null \
             where account = {} and generation = {from}; {}; {}",
            self.made(account, from),
            literal(account),
            self.told(account),
            self.rows(Some(account)),
        )
    }

    /// Writes something beside the tokens of a generation, and gives the claim back.
    pub(super) fn mark(&self, account: &str, generation: u64, record: &[u8], claim: &str) -> String {
        let (name, claim, record) = (literal(account), literal(claim), hex(record));
        format!(
            "{BEFORE}; update {}.logins set record = decode('{record}', 'hex'), claim = nullif(claim, {claim}) \
             where account = {name} and generation = {generation}; {}; {}",
            self.schema,
            self.told(account),
            self.rows(Some(account)),
        )
    }

    /// Gives a claim back.
    pub(super) fn release(&self, account: &str, claim: &str) -> String {
        format!(
            "{BEFORE}; update {}.logins set claim = null where account = {} and claim = {}; {}",
            self.schema,
            literal(account),
            literal(claim),
            self.told(account)
        )
    }

    fn made(&self, account: &str, generation: u64) -> String {
        format!(
            "insert into {}.logins (account, generation) values ({}, {generation}) on conflict do nothing",
            self.schema,
            literal(account)
        )
    }

    fn told(&self, account: &str) -> String {
        format!("select pg_notify('{}', {})", self.schema, literal(account))
    }
}

/// What is acknowledged is durable, whatever role and database say, and nothing takes for ever.
const BEFORE: &str = "set local statement_timeout = 5000; \
    select set_config('synchronous_commit', 'on', true) \
    where current_setting('synchronous_commit') in ('off', 'local', 'remote_write')";

/// A text in a statement.
fn literal(text: &str) -> String {
    let doubled = text.replace('\\', "\\\\").replace('\'', "''");
    // With E the backslash means the same whatever the server's standard_conforming_strings says.
    format!("E'{}'", doubled.replace('\0', ""))
}

/// What [`hex`] wrote.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = (0..text.len()).step_by(2).map(|at| text.get(at..at + 2));
    digits.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_leaves_its_literal() {
        assert_eq!(literal("a'b\\c\0d"), "E'a''b\\\\cd'");
    }

    #[test]
    fn bytes_are_read_as_they_were_written() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        assert!(unhex("0").is_none() && unhex("zz").is_none());
    }
}
