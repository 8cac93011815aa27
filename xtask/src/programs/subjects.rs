//! The programs, and what each is asked.

use super::build::Source;
use super::site;

/// A request of the comparison.
pub(crate) struct Ask {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// So many bytes of body, which are all different from their neighbours.
    pub(crate) body_bytes: usize,
}

pub(crate) const fn get(path: &'static str) -> Ask {
    Ask {
        method: "GET",
        path,
        body_bytes: 0,
    }
}

const fn post(path: &'static str, body_bytes: usize) -> Ask {
    Ask {
        method: "POST",
        path,
        body_bytes,
    }
}

impl Ask {
    pub(crate) fn body(&self) -> Vec<u8> {
        (0..self.body_bytes).map(|n| (n % 251) as u8).collect()
    }
}

/// A program and what it is asked. The first request is the one that is timed, and the probe of a deploy.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) source: Source,
    /// Those for which the program connects to elsewhere come last, [`ELSEWHERE`] first.
    pub(crate) asks: &'static [Ask],
}

const ELSEWHERE: &str = "/upstream";

impl Subject {
    /// How many of the requests the program can answer alone.
    pub(crate) fn asked_alone(&self) -> usize {
        let elsewhere = self.asks.iter().position(|ask| ask.path == ELSEWHERE);
        elsewhere.unwrap_or(self.asks.len())
    }
}

/// All of them; each is expected to work.
pub(crate) const SUBJECTS: &[Subject] = &[
    Subject {
        name: "rust-threads",
        source: Source::Rust("rust-threads"),
        asks: &[
            get("/"),
            get("/channel"),
            get("/locks"),
            get("/panic"),
            get(ELSEWHERE),
        ],
    },
    Subject {
        name: "tokio-current",
        source: Source::Rust("tokio-current"),
        asks: AXUM,
    },
    Subject {
        name: "tokio-multi",
        source: Source::Rust("tokio-multi"),
        asks: AXUM,
    },
    Subject {
        name: "go",
        source: Source::Go,
        asks: &[
            get("/"),
            get("/goroutines"),
            get("/gc"),
            get("/timers"),
            get("/nil"),
            get("/tight"),
            post("/echo", 100_000),
            get("/stream"),
            get("/signal"),
            get("/interfaces"),
            get("/heap"),
            get(ELSEWHERE),
            post("/proxy/x", 100_000),
        ],
    },
    Subject {
        name: "c-glibc",
        source: Source::Guest("glibc", "file_system"),
        asks: &[get("/ok"), get("/run")],
    },
    Subject {
        name: "c-musl",
        source: Source::Guest("musl", "file_system"),
        asks: &[get("/ok"), get("/run")],
    },
    Subject {
        name: "c-signals",
        source: Source::Guest("glibc", "signals"),
        asks: &[
            get("/ok"),
            get("/raised"),
            get("/stepped_over"),
            get("/overflow"),
            get("/threads"),
        ],
    },
    Subject {
        name: "c-threads",
        source: Source::Guest("musl", "threads"),
        asks: &[get("/ok"), get("/join")],
    },
    Subject {
        name: "c-threads-glibc",
        source: Source::Guest("glibc", "threads"),
        asks: &[get("/ok"), get("/join")],
    },
    Subject {
        name: "c-poll",
        source: Source::Guest("glibc", "poll_server"),
        asks: &[get("/ok"), get("/x")],
    },
    Subject {
        name: "c-epoll",
        source: Source::Guest("glibc", "epoll_server"),
        asks: &[get("/ok"), post("/x", 5000)],
    },
    Subject {
        name: "c-epoll-musl",
        source: Source::Guest("musl", "epoll_server"),
        asks: &[get("/ok"), post("/x", 5000)],
    },
    Subject {
        name: "zig",
        source: Source::Zig,
        asks: &[get("/"), get("/map"), get("/threads")],
    },
    Subject {
        name: "sqlite",
        source: Source::C("sqlite", &["-lsqlite3", "-lm", "-lpthread", "-ldl"]),
        asks: &[
            get("/"),
            get("/memory"),
            get("/tmp"),
            get("/wal"),
            get("/shm"),
        ],
    },
    Subject {
        name: "lua",
        source: Source::C("lua", &["-I/usr/include/lua5.4", "-llua5.4", "-lm", "-ldl"]),
        asks: &[
            get("/"),
            get("/fib"),
            get("/strings"),
            get("/error"),
            get("/coroutine"),
        ],
    },
    Subject {
        name: "quickjs",
        source: Source::Rust("quickjs"),
        asks: &[
            get("/"),
            get("/prime"),
            get("/json"),
            get("/garbage"),
            get("/throw"),
        ],
    },
    Subject {
        name: "busybox-httpd",
        source: Source::Busybox,
        asks: site::ASKS,
    },
];

const AXUM: &[Ask] = &[
    get("/"),
    get("/tasks/50"),
    get("/timers"),
    get("/stream/20"),
    post("/echo", 100_000),
    post("/count", 300_000),
    get("/panic"),
    post(ELSEWHERE, 300_000),
];
