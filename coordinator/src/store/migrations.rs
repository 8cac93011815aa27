//! The schema's history, once for each database.
//!
//! Coordinators of the version before may be at work while a new one migrates PostgreSQL, so a
//! migration adds and does not take away or rename; what nobody uses any more goes a version later.

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// Name and SQL of each, in the order in which they are made. One that a coordinator may have made
/// is never changed.
type Migrations = [(&'static str, &'static str)];

pub(super) const SQLITE: &Migrations = &[
    (
        "first",
        include_str!("../../migrations/sqlite/0001_first.sql"),
    ),
    (
        "outbound bytes",
        include_str!("../../migrations/sqlite/0002_outbound_bytes.sql"),
    ),
    (
        "drained",
        include_str!("../../migrations/sqlite/0003_drained.sql"),
    ),
    (
        "coordinators",
        include_str!("../../migrations/sqlite/0004_coordinators.sql"),
    ),
    (
        "prices",
        include_str!("../../migrations/sqlite/0005_prices.sql"),
    ),
    (
        "access",
        include_str!("../../migrations/sqlite/0006_access.sql"),
    ),
    (
        "usage chain",
        include_str!("../../migrations/sqlite/0007_usage_chain.sql"),
    ),
    (
        "renewal",
        include_str!("../../migrations/sqlite/0008_renewal.sql"),
    ),
    (
        "chunks",
        include_str!("../../migrations/sqlite/0009_chunks.sql"),
    ),
    (
        "budgets",
        include_str!("../../migrations/sqlite/0010_budgets.sql"),
    ),
    (
        "rollout gates",
        include_str!("../../migrations/sqlite/0011_rollout_gates.sql"),
    ),
    (
        "configurations",
        include_str!("../../migrations/sqlite/0012_configurations.sql"),
    ),
    (
        "retention",
        include_str!("../../migrations/sqlite/0013_retention.sql"),
    ),
    (
        "exports",
        include_str!("../../migrations/sqlite/0014_exports.sql"),
    ),
    (
        "unrun",
        include_str!("../../migrations/sqlite/0015_unrun.sql"),
    ),
    (
        "unchained",
        include_str!("../../migrations/sqlite/0016_unchained.sql"),
    ),
];

/// PostgreSQL begins where SQLite had got to.
pub(super) const POSTGRES: &Migrations = &[
    (
        "first",
        include_str!("../../migrations/postgres/0001_first.sql"),
    ),
    (
        "coordinators",
        include_str!("../../migrations/postgres/0002_coordinators.sql"),
    ),
    (
        "prices",
        include_str!("../../migrations/postgres/0003_prices.sql"),
    ),
    (
        "access",
        include_str!("../../migrations/postgres/0004_access.sql"),
    ),
    (
        "usage chain",
        include_str!("../../migrations/postgres/0005_usage_chain.sql"),
    ),
    (
        "renewal",
        include_str!("../../migrations/postgres/0006_renewal.sql"),
    ),
    (
        "chunks",
        include_str!("../../migrations/postgres/0007_chunks.sql"),
    ),
    (
        "budgets",
        include_str!("../../migrations/postgres/0008_budgets.sql"),
    ),
    (
        "rollout gates",
        include_str!("../../migrations/postgres/0009_rollout_gates.sql"),
    ),
    (
        "configurations",
        include_str!("../../migrations/postgres/0010_configurations.sql"),
    ),
    (
        "retention",
        include_str!("../../migrations/postgres/0011_retention.sql"),
    ),
    (
        "exports",
        include_str!("../../migrations/postgres/0012_exports.sql"),
    ),
    (
        "unrun",
        include_str!("../../migrations/postgres/0013_unrun.sql"),
    ),
    (
        "unchained",
        include_str!("../../migrations/postgres/0014_unchained.sql"),
    ),
];

pub(super) fn migrator(migrations: &Migrations) -> Migrator {
    let migration = |((name, sql), number): (&(&'static str, &'static str), i64)| {
        let kind = MigrationType::Simple;
        Migration::new(number, (*name).into(), kind, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(migrations.iter().zip(1..).map(migration).collect())
}

#[cfg(test)]
#[path = "migrations_tests.rs"]
mod tests;
