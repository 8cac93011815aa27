//! The coordinator: registry, rollouts, nodes, nearest node, ledger, and the HTTP API over them.
//!
//! One process with everything embedded: SQLite for state, a directory for artifacts. Nodes dial
//! its QUIC endpoint, people and CI its HTTP API. Start with [`start`]; the state directory makes
//! the coordinator, and whoever has it is the coordinator. Or several on one PostgreSQL database,
//! each with a state directory of its own, in which `artifacts` is one file system for all:
//!
//! ```text
//! admin-token      for the HTTP API; made at the first start, or again when lost
//! ca.key, ca.der   the fleet's certificate authority
//! secrets.key      what the database's secrets are encrypted with; made at the first start
//! coordinator.db   everything else, if it is not in PostgreSQL; digests of tokens, never tokens
//! artifacts/       programs by SHA-256
//! lock             held while the coordinator runs
//! ```
//!
//! It never runs or parses tenant code beyond checking that an artifact is a program, and no
//! request of a function's caller passes through it.
#![forbid(unsafe_code)]

mod api;
mod bill;
mod budget;
mod ca;
mod clock;
mod exports;
mod ledger;
mod limits;
mod logs;
mod nodes;
mod peers;
mod registry;
mod retention;
mod rollout;
mod route;
mod sealed;
mod start;
mod store;
mod vault;

pub use bill::{UnverifiedBill, authority_of, verify as verify_bill};
pub use ca::{CaError, TokenError};
pub use exports::parquet::{RecordsFile, RecordsFileError};
pub use limits::{LEAST_KEEP_RECORDS, NODE_CERTIFICATE_LIFE};
pub use nodes::ServerError;
pub use registry::{ArtifactError, S3Place, S3PlaceError};
pub use start::{
    Config, Running, StartError, export, import, renew_admin_token, renew_secrets_key, start,
};
pub use store::{DatabaseUrl, StoreError, TransferError};
pub use vault::VaultError;
