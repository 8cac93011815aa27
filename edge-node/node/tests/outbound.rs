//! Programs that connect to elsewhere: what the manifest allows works, and nothing else does. "Elsewhere"
//! is 192.0.2.0/24, of which every address is dialled on this machine's loopback interface.
#![allow(clippy::unwrap_used, reason = "this is only ever part of tests")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use holm_model::program::Program;
use holm_node::outbound::{Allowed, Means, Outside};
use holm_test_support::{guest, musl_guest, patience, require_kvm};
use holm_vmm::{
    Failure, GuestConfig, Hypervisor, Limits, Prepared, Request, RunStats, Slot, Step, prepare,
};

/// Names in a table; addresses on the loopback interface.
#[derive(Debug)]
struct Loopback;

impl Means for Loopback {
    fn resolve(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        // As a name server that is some way off.
        thread::sleep(Duration::from_millis(20));
        match name {
            "api.example.com" => Ok(vec![Ipv4Addr::new(192, 0, 2, 1).into()]),
            "evil.example.com" => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
            "metadata.example.com" => Ok(vec![Ipv4Addr::new(169, 254, 169, 254).into()]),
            _ => Err(std::io::Error::other("there is no such name")),
        }
    }

    fn dial(&self, address: SocketAddr) -> SocketAddr {
        assert!(address.to_string().starts_with("192.0.2."), "{address}");
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
    }
}

struct Function {
    slot: Slot,
    prepared: Prepared,
    allowed: Allowed,
    deadline: Duration,
    stats: RunStats,
    log: String,
}

impl Function {
    fn new(path: &Path, places: &[String]) -> Self {
        let hypervisor = Hypervisor::open().unwrap();
        let bytes = std::fs::read(path).unwrap();
        let config = GuestConfig {
            name: "tests/guest".into(),
            memory_bytes: 64 << 20,
            env: Vec::new(),
            port: 8080,
            args: Vec::new(),
            files: Default::default(),
            inetd: false,
            shared: false,
        };
        let program = Program::parse(&bytes).unwrap();
        let prepared = prepare(
            &hypervisor,
            &program,
            &config,
            patience(Duration::from_secs(5)),
        )
        .unwrap();
        let mut slot = Slot::new(&hypervisor).unwrap();
        slot.load(&prepared.snapshot).unwrap();
        let places = places.iter().map(|place| place.parse().unwrap()).collect();
        Function {
            slot,
            prepared,
            allowed: Allowed::of(places, &Outside::with(Vec::new(), Arc::new(Loopback))),
            deadline: patience(Duration::from_secs(10)),
            stats: RunStats::default(),
            log: String::new(),
        }
    }

    /// One request to a pristine instance, which stays as the request left it.
    fn send(&mut self, target: &str) -> Result<String, Failure> {
        let limits = Limits {
            deadline: Instant::now() + self.deadline,
            cpu: self.deadline,
            response_body_bytes: 1 << 20,
            streams: false,
        };
        let request = Request {
            method: "GET",
            target,
            headers: &[(b"host", b"guest.test")],
            body: b"",
        };
        self.slot.set_outbound(self.allowed.outbound());
        self.slot.begin(&request, limits).unwrap();
        let result = loop {
            match self.slot.run(Duration::from_millis(50)) {
                Step::Answered(response) => break Ok(String::from_utf8(response.body).unwrap()),
                Step::Failed(failure) | Step::Dropped(_, failure) => break Err(failure),
                Step::Yielded => {}
                Step::Parked(until) => self.slot.wait(until),
            }
        };
        self.stats = self.slot.stats();
        self.log = String::from_utf8_lossy(&self.slot.take_log()).into_owned();
        result
    }

    fn get(&mut self, target: &str) -> String {
        let text = match self.send(target) {
            Ok(text) => text,
            Err(failure) => panic!("GET {target}: {failure}\n{}", self.log),
        };
        self.slot.reset().unwrap();
        text
    }

    /// Another slot, in place of one whose guest failed.
    fn renew(&mut self) {
        self.slot = Slot::new(&Hypervisor::open().unwrap()).unwrap();
        self.slot.load(&self.prepared.snapshot).unwrap();
    }
}

/// A server of one connection after the other, each on a thread of its own.
fn server(serve: fn(std::net::TcpStream)) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    port
}

fn pong(mut stream: std::net::TcpStream) {
    let mut asked = String::new();
    stream.read_to_string(&mut asked).unwrap();
    thread::sleep(Duration::from_millis(30));
    let _ = writeln!(stream, "pong for {asked}");
}

fn echo(mut stream: std::net::TcpStream) {
    let mut bytes = [0; 50_000];
    while let Ok(count) = stream.read(&mut bytes) {
        if count == 0 || stream.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
}

/// Says nothing until the other end goes.
fn silent(mut stream: std::net::TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
    thread::sleep(Duration::from_secs(60));
}

fn resets(stream: std::net::TcpStream) {
    // Bytes that nobody has read make the close a reset.
    thread::sleep(Duration::from_millis(50));
    drop(stream);
}

fn each_libc(mut test: impl FnMut(&Path)) {
    test(&guest("outbound"));
    if let Some(path) = musl_guest("outbound") {
        test(&path);
    }
}

#[test]
fn kvm_a_program_reaches_what_its_manifest_names() {
    if !require_kvm() {
        return;
    }
    let (pongs, echoes) = (server(pong), server(echo));
    each_libc(|path| {
        let mut function = Function::new(
            path,
            &[
                format!("*.example.com:{pongs}"),
                format!("192.0.2.0/24:{echoes}"),
            ],
        );
        let host = format!("api.example.com/{pongs}");
        assert_eq!(function.get(&format!("/fetch/{host}")), "pong for ping\n");
        assert_eq!(
            (function.stats.egress_bytes, function.stats.ingress_bytes),
            (4, 14)
        );
        assert_eq!(function.get(&format!("/epoll/{host}")), "pong for ping\n");
        let six = "pong for ping\n".repeat(6);
        assert_eq!(function.get(&format!("/threads/{host}")), six);
        // A literal address, and more than all buffers on the way hold.
        let text = function.get(&format!("/echo/192.0.2.9/{echoes}/8000000"));
        assert_eq!(text, "sent 8000000, got 8000000, wrong 0\n");
        assert!(function.stats.cpu < patience(Duration::from_secs(5)));
    });
}

#[test]
fn kvm_to_look_at_a_connection_does_not_leave_the_guest_every_time() {
    if !require_kvm() {
        return;
    }
    let port = server(silent);
    let mut function = Function::new(&guest("outbound"), &[format!("192.0.2.1:{port}")]);
    let began = Instant::now();
    let text = function.get(&format!("/looks/192.0.2.1/{port}/5000"));
    let took = began.elapsed();
    assert_eq!(text, "looked 5000 times, found 0\n");
    // Once in half a millisecond at most, and what connecting takes.
    let most = took.as_micros() as u64 / 500 + 20;
    let exits = function.stats.exits;
    assert!(u64::from(exits) <= most, "{exits} exits in {took:?}");
}

#[test]
fn kvm_what_the_manifest_does_not_name_is_refused_and_said_in_the_log() {
    if !require_kvm() {
        return;
    }
    let port = server(pong);
    let other = server(pong);
    each_libc(|path| {
        let mut function = Function::new(path, &[format!("*.example.com:{port}")]);
        let refused = function.send(&format!("/fetch/192.0.2.1/{port}")).unwrap();
        assert_eq!(refused, "connect: EACCES\n");
        assert!(
            function
                .log
                .contains("[network] allow in the manifest does not name it"),
            "{}",
            function.log
        );
        function.slot.reset().unwrap();
        for (target, expected) in [
            // A port that is not named, on a host that is.
            (
                format!("/fetch/api.example.com/{other}"),
                "connect: EACCES\n",
            ),
            // A name that is not there, and one that may not be asked for.
            (
                format!("/fetch/no.example.com/{port}"),
                "getaddrinfo: EAI_NONAME\n",
            ),
            (
                format!("/fetch/api.example.org/{port}"),
                "getaddrinfo: EAI_NONAME\n",
            ),
            // A name that leads to the node's surroundings.
            (
                format!("/fetch/metadata.example.com/{port}"),
                "connect: EACCES\n",
            ),
            // The guest's own loopback interface, where nobody listens; never the node's.
            (
                format!("/fetch/evil.example.com/{port}"),
                "connect: ECONNREFUSED\n",
            ),
            (
                "/udp/".into(),
                "sendto: EACCES\nconnect: EACCES\nsend: another error\n",
            ),
            ("/early/".into(), "early: EACCES\n"),
        ] {
            assert_eq!(function.get(&target), expected, "{target}");
        }
        // Nothing is allowed: nothing is there.
        let mut closed = Function::new(path, &[]);
        let target = format!("/fetch/api.example.com/{port}");
        assert_eq!(closed.get(&target), "getaddrinfo: EAI_NONAME\n");
        assert_eq!(
            closed.get(&format!("/fetch/192.0.2.1/{port}")),
            "connect: EACCES\n"
        );
        let early = String::from_utf8_lossy(&closed.prepared.log);
        assert!(
            early.contains("outbound connections are for requests"),
            "{early}"
        );
    });
}

#[test]
fn kvm_peers_that_say_nothing_reset_or_are_not_there_are_the_programs_to_handle() {
    if !require_kvm() {
        return;
    }
    let (never, broken) = (server(silent), server(resets));
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let places = [never, broken, gone].map(|port| format!("192.0.2.1:{port}"));
    let mut function = Function::new(&guest("outbound"), &places);
    assert_eq!(
        function.get(&format!("/fetch/192.0.2.1/{gone}")),
        "connect: ECONNREFUSED\n"
    );
    assert_eq!(
        function.get(&format!("/epoll/192.0.2.1/{gone}")),
        "error: ECONNREFUSED\n"
    );
    assert_eq!(
        function.get(&format!("/fetch/192.0.2.1/{broken}")),
        "read: ECONNRESET\n"
    );
    // More than there may be: the rest is refused, and the next instance has all of them again.
    for _ in 0..2 {
        let text = function.get(&format!("/many/192.0.2.1/{never}"));
        assert!(text.ends_with("open: 15\n"), "{text}");
    }
    function.deadline = Duration::from_millis(300);
    let failure = function
        .send(&format!("/fetch/192.0.2.1/{never}"))
        .unwrap_err();
    assert!(matches!(failure, Failure::Deadline(_)), "{failure}");
    assert!(
        function.stats.cpu < Duration::from_millis(200),
        "it waits without computing"
    );
}

#[test]
fn kvm_hostcalls_about_connections_that_make_no_sense_harm_only_the_one_who_makes_them() {
    if !require_kvm() {
        return;
    }
    let mut function = Function::new(&guest("outbound"), &["192.0.2.0/24:443".into()]);
    let (mut refused, mut crashed) = (0, 0);
    for n in 0..80 {
        match function.send(&format!("/hostile/x/1/{n}")) {
            Ok(text) => {
                let result: i64 = text.trim().parse().unwrap();
                assert!(result <= 0, "{n}: {result}");
                refused += 1;
                function.slot.reset().unwrap();
            }
            Err(Failure::Crash(report)) => {
                assert!(report.to_string().contains("hostcall"), "{n}: {report}");
                crashed += 1;
                function.renew();
            }
            Err(failure) => panic!("{n}: {failure}"),
        }
        assert_eq!(function.get("/ok"), "ok\n", "the instance after {n}");
    }
    assert!(
        refused > 20 && crashed > 10,
        "{refused} refused, {crashed} crashed"
    );
}
