//! A network of the test's own: namespaces on one bridge, whose links can be cut.
//!
//! ```text
//!            middle (bridge, callers, relays)
//!     ┌─────────────┼─────────────┐
//!   host          host          host       one namespace and one address each
//! ```
//! Addresses are 10.77.0.0/24, which nobody outside sees.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::namespace::{MOUNTS, NETWORK, Namespace, missing, no_mounts, refused};

/// Why there can be no such network here; none if there can.
pub fn no_network() -> Option<String> {
    if let Some(why) = no_mounts().or_else(|| missing(&[("ip", "iproute2")])) {
        return Some(why);
    }
    let words = ["ip", "link", "add", "type", "bridge"];
    let why = refused(&[NETWORK, MOUNTS], &words)?;
    Some(format!("network namespaces cannot be made: {why}"))
}

/// The network. What runs in it is to end before it is dropped.
#[derive(Debug)]
pub struct Network {
    middle: Namespace,
    hosts: Vec<Host>,
}

/// One address with its own namespace, on a link that can be cut.
#[derive(Debug)]
struct Host {
    last: u8,
    space: Namespace,
}

/// The address that ends in `last`.
pub fn address(last: u8) -> String {
    format!("10.77.0.{last}")
}

impl Network {
    /// One in which callers and relays have these addresses. In `directory` it keeps what its /etc/hosts are.
    pub fn new(middle: &[u8]) -> Network {
        let space = Namespace::new(&[NETWORK, MOUNTS]);
        space.run(&["ip", "link", "set", "lo", "up"]);
        space.run(&["ip", "link", "add", "bridge", "type", "bridge"]);
        space.run(&["ip", "link", "set", "bridge", "up"]);
        for last in middle {
            let address = format!("{}/24", address(*last));
            space.run(&["ip", "address", "add", &address, "dev", "bridge"]);
        }
        Network {
            middle: space,
            hosts: Vec::new(),
        }
    }

    /// Adds a host with this address.
    pub fn add(&mut self, last: u8) {
        let space = Namespace::new(&[NETWORK, MOUNTS]);
        let (link, pid) = (link(last), space.pid().to_string());
        let pair = ["type", "veth", "peer", "name", "eth0", "netns", &pid];
        let middle = &self.middle;
        middle.run(&[&["ip", "link", "add", &link], &pair[..]].concat());
        middle.run(&["ip", "link", "set", &link, "master", "bridge", "up"]);
        let address = format!("{}/24", address(last));
        space.run(&["ip", "link", "set", "lo", "up"]);
        space.run(&["ip", "address", "add", &address, "dev", "eth0"]);
        space.run(&["ip", "link", "set", "eth0", "up"]);
        self.hosts.push(Host { last, space });
    }

    /// Cuts a host off, or takes it back.
    pub fn connect(&self, last: u8, up: bool) {
        let state = if up { "up" } else { "down" };
        let link = link(last);
        self.middle.run(&["ip", "link", "set", &link, state]);
    }

    /// Has a host's names, or with `None` the middle's, be those of this file, which is like /etc/hosts.
    pub fn name(&self, last: Option<u8>, hosts: &Path) {
        let hosts = hosts.to_str().expect("paths are UTF-8 here");
        let bind = ["mount", "--bind", hosts, "/etc/hosts"];
        self.space(last).run(&bind);
    }

    /// A command that will run on a host, or with `None` in the middle.
    pub fn command(&self, last: Option<u8>, program: &Path) -> Command {
        self.space(last).command(program)
    }

    /// Does `work` on a thread whose sockets are a host's, or with `None` the middle's. So are those of threads that
    /// it starts.
    pub fn within<T: Send + 'static>(
        &self,
        last: Option<u8>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = format!("/proc/{}/ns/net", self.space(last).pid());
        let space = File::open(path).expect("the namespace is held");
        std::thread::spawn(move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("a thread of root's may change its network");
            work()
        })
    }

    fn space(&self, last: Option<u8>) -> &Namespace {
        match last {
            None => &self.middle,
            Some(last) => {
                let host = self.hosts.iter().find(|host| host.last == last);
                &host.expect("a host of this network").space
            }
        }
    }
}

/// The middle's end of a host's link.
fn link(last: u8) -> String {
    format!("host{last}")
}
