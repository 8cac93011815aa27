//! What Holm costs on the machine at hand, as ratios to its floor, beside its goals and its peers.
//!
//! Everything is measured with the real binaries or the real crates. Run it by `cargo xtask bench`,
//! `cargo xtask peers`, `cargo xtask soak` and `cargo xtask scale`, which build what it needs.
#![forbid(unsafe_code)]

mod client;
mod command;
mod cores;
mod density;
mod latency;
mod memory;
mod neighbours;
mod peers;
mod readme;
mod report;
mod sample;
mod scale;
mod server;
mod soak;
mod stand;
mod subjects;

pub use command::main;
