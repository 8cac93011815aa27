//! Threads, channels and locks of the standard library; a panic that is caught, and one that aborts; and a
//! client of what $UPSTREAM names.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Barrier, Condvar, Mutex, mpsc};
use std::time::Duration;

fn main() {
    holm_test_programs::plain::serve(|path| match path {
        "/channel" => channel(),
        "/locks" => locks(),
        "/panic" => caught(),
        "/upstream" => upstream(),
        "/abort" => std::process::abort(),
        _ => "hello from threads\n".to_owned(),
    });
}

fn channel() -> String {
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..8u64)
        .map(|number| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for step in 0..100 {
                    sender.send(number * step).expect("the receiver waits");
                }
            })
        })
        .collect();
    drop(sender);
    let sum: u64 = receiver.iter().sum();
    let joined = threads
        .into_iter()
        .map(std::thread::JoinHandle::join)
        .all(|end| end.is_ok());
    format!("{sum} {joined}\n")
}

fn locks() -> String {
    let shared = Arc::new((Mutex::new(0), Condvar::new(), Barrier::new(4)));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                let (number, changed, barrier) = &*shared;
                barrier.wait();
                for _ in 0..50 {
                    *number.lock().expect("nobody panics") += 1;
                    changed.notify_all();
                    std::thread::yield_now();
                }
            })
        })
        .collect();
    let (number, changed, _) = &*shared;
    let mut number = number.lock().expect("nobody panics");
    while *number < 200 {
        let wait = changed.wait_timeout(number, Duration::from_millis(20));
        number = wait.expect("nobody panics").0;
    }
    let total = *number;
    drop(number);
    for thread in threads {
        thread.join().expect("it does not panic");
    }
    format!("{total}\n")
}

fn caught() -> String {
    let result = std::panic::catch_unwind(|| {
        let empty: Vec<u8> = Vec::new();
        empty[std::hint::black_box(7)]
    });
    let thread = std::thread::spawn(|| panic!("on purpose")).join();
    format!("{} {}\n", result.is_err(), thread.is_err())
}

fn upstream() -> String {
    let ask = |number: u32| -> std::io::Result<String> {
        let address = std::env::var("UPSTREAM").unwrap_or_default();
        let mut connection = TcpStream::connect(address)?;
        connection.set_read_timeout(Some(Duration::from_secs(20)))?;
        let body = vec![b'x'; 100_000];
        let head = format!(
            "POST /{number} HTTP/1.1\r\nHost: upstream\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        connection.write_all(head.as_bytes())?;
        connection.write_all(&body)?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let threads: Vec<_> = (0..4)
        .map(|number| std::thread::spawn(move || ask(number)))
        .collect();
    threads
        .into_iter()
        .map(|thread| match thread.join().expect("it does not panic") {
            Ok(answer) => answer,
            Err(error) => format!("{error}\n"),
        })
        .collect()
}
