//! Holm's vocabulary, shared by the command, the coordinator and the nodes.
//!
//! Nothing here does I/O. What comes from outside (a manifest, a program, a message from a peer, a
//! token) is parsed here into types that cannot be wrong, and the error says who is to blame.
#![forbid(unsafe_code)]

pub mod api;
pub mod artifact;
pub mod budget;
pub mod bundle;
pub mod chain;
pub mod chunks;
pub mod codec;
pub mod configuration;
pub mod control;
pub mod ids;
pub mod join;
pub mod limits;
pub mod manifest;
pub mod place;
pub mod price;
pub mod program;
pub mod protocol;
pub mod run_times;
pub mod token;
pub mod usage;
pub mod usage_batch;
