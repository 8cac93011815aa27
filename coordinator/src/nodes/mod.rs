//! The nodes: their links, what they say, and what is known of them.
//!
//! [`server`] accepts QUIC connections and tells joining machines from nodes, [`link`] is one
//! node's life on the wire, [`bulk`] its artifact and usage streams, [`frames`] how messages are
//! read within bounds, and [`fleet`] what all of it adds up to, in memory.

mod bulk;
mod fleet;
mod frames;
mod link;
mod server;

pub(crate) use fleet::{Fleet, Tallies};
pub(crate) use link::overtake;
pub use server::ServerError;
pub(crate) use server::{Server, Services};
