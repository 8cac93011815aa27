//! The edge node: takes requests, runs each in its own virtual machine, keeps what the coordinator
//! wants deployed, and meters what everything cost.
//!
//! Start reading at `request`, the life of a request; then `deploy`, the life of a version. What a
//! node refuses: to run what is not signed by the tenant's publisher, to answer what it has not put on
//! record, and to depend on the coordinator for serving what it has.
#![forbid(unsafe_code)]

mod budget;
mod config;
mod credentials;
mod deploy;
mod fair;
mod files;
mod health;
mod identity;
mod ingress;
mod join;
mod lane;
pub mod limits;
mod logs;
mod memory;
mod meter;
mod metrics;
mod node;
pub mod outbound;
mod pool;
mod request;
mod session;
mod tally;
mod tls;
mod wire;
mod worker;

pub use config::NodeConfig;
pub use files::FileError;
pub use holm_tls::TlsFileError;
pub use holm_tls::server::TlsFiles;
pub use identity::{Identity, IdentityError};
pub use join::{JoinConfig, JoinError, join};
pub use meter::journal::JournalError;
pub use node::{Node, RunError, run, start};
pub use session::LinkError;
pub use tls::TlsError;
pub use wire::{DialError, WireError};
