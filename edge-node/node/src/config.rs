//! What the operator says of a node.

use std::net::SocketAddr;
use std::path::PathBuf;

use holm_model::place::Coordinates;
use holm_tls::server::TlsFiles;

use crate::outbound::Outside;

/// Settings of a node that has joined.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where the node keeps its identity, artifacts, snapshots and journal.
    pub state_dir: PathBuf,
    /// Where it takes requests; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where callers reach it; `http://`, or `https://`, and the listening address if `None`.
    pub public_url: Option<String>,
    /// Its region, for example `eu-central`.
    pub region: String,
    /// Where it stands.
    pub coordinates: Coordinates,
    /// The domain under which functions have host names `{function}.{tenant}.{domain}`.
    pub domain: Option<String>,
    /// What it speaks TLS with; plain HTTP if `None`.
    pub tls: Option<TlsFiles>,
    /// Where functions' connections lead.
    pub outside: Outside,
    /// Host and UDP port of the coordinator; the one it joined if `None`.
    pub coordinator: Option<String>,
    /// Ingress threads; as many as there are cores if 0.
    pub threads: usize,
    /// VM shells, divided among the threads; some per thread if 0.
    pub slots: usize,
    /// How large the journal of usage may get before the node takes no request; half of its disk if `None`.
    pub journal_limit_bytes: Option<u64>,
}

impl NodeConfig {
    /// A node with defaults for everything that has one.
    pub fn new(
        state_dir: impl Into<PathBuf>,
        listen: SocketAddr,
        region: impl Into<String>,
        coordinates: Coordinates,
    ) -> Self {
        NodeConfig {
            state_dir: state_dir.into(),
            listen,
            public_url: None,
            region: region.into(),
            coordinates,
            domain: None,
            tls: None,
            outside: Outside::default(),
            coordinator: None,
            threads: 0,
            slots: 0,
            journal_limit_bytes: None,
        }
    }
}
