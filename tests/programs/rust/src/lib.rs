//! What the programs of this package share.
#![forbid(unsafe_code)]

pub mod app;
pub mod plain;

/// `$PORT`, or 8080.
pub fn port() -> u16 {
    std::env::var("PORT")
        .ok()
        .and_then(|port| port.parse().ok())
        .unwrap_or(8080)
}
