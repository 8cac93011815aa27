//! HTTP/1.1 between the library OS and a program that is a server.
//!
//! A request from the host is turned into text for the program to read; what the program writes is
//! read as one response and turned back into a structured one. Because this happens in the guest,
//! the host never parses what a tenant wrote.

mod reply;
mod request;

pub use reply::{Output, Reply};
pub use request::write_request;
