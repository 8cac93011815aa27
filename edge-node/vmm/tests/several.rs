//! Several requests at a time in one instance, and bodies that come and go in parts.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Function, config};
use holm_test_support::{guest, musl_guest, patience, require_kvm};
use holm_vmm::{Failure, GuestConfig, Limits, Request, RequestPlace, Response, Slot, Step};

/// An instance that is given several requests at a time, and what others than the one that was waited for came
/// to meanwhile: its threads may have their turns in any order.
struct Instance(Function, Vec<(RequestPlace, Answer)>);

/// What became of a request.
type Answer = Result<String, Failure>;

fn text(response: Response) -> String {
    String::from_utf8(response.body).unwrap()
}

impl Instance {
    fn new(path: &Path) -> Self {
        let config = GuestConfig {
            shared: true,
            ..config(&[])
        };
        Instance(Function::with(path, &config), Vec::new())
    }

    fn slot(&mut self) -> &mut Slot {
        &mut self.0.slot
    }

    fn limits(&self) -> Limits {
        Limits {
            deadline: Instant::now() + self.0.deadline,
            cpu: self.0.cpu,
            response_body_bytes: 1 << 20,
            streams: false,
        }
    }

    fn begin(&mut self, target: &str) -> RequestPlace {
        let limits = self.limits();
        self.begin_with(target, b"", Some(0), limits)
    }

    fn begin_with(
        &mut self,
        target: &str,
        body: &[u8],
        length: Option<u64>,
        limits: Limits,
    ) -> RequestPlace {
        let request = Request {
            method: "POST",
            target,
            headers: &[(b"host", b"guest.test")],
            body,
        };
        self.slot().begin_with(&request, length, limits).unwrap()
    }

    /// Runs until a request comes to its end.
    fn ended(&mut self) -> (RequestPlace, Answer) {
        match self.1.pop() {
            Some(ended) => ended,
            None => self.next_ended(),
        }
    }

    fn next_ended(&mut self) -> (RequestPlace, Answer) {
        loop {
            match self.slot().run(Duration::from_millis(50)) {
                Step::Answered(response) => return (response.place, Ok(text(response))),
                Step::Dropped(place, failure) => return (place, Err(failure)),
                Step::Failed(failure) => panic!("the instance failed: {failure}"),
                Step::Yielded => {}
                Step::Parked(until) => self.slot().wait(until),
            }
        }
    }

    /// Runs until every thread of the guest waits, with nothing answered.
    fn settle(&mut self) {
        loop {
            match self.slot().run(Duration::from_millis(50)) {
                Step::Parked(_) => return,
                Step::Yielded => {}
                step => panic!("{step:?}"),
            }
        }
    }

    /// Begins a request, and runs until it waits for something.
    fn settled(&mut self, target: &str) -> RequestPlace {
        let place = self.begin(target);
        self.settle();
        assert!(self.slot().can_begin(), "{target}: no room for another");
        place
    }

    /// A request that is answered while the others wait.
    fn get(&mut self, target: &str) -> String {
        let place = self.begin(target);
        loop {
            match self.next_ended() {
                (ended, answer) if ended == place => return answer.unwrap(),
                other => self.1.push(other),
            }
        }
    }

    /// Asks how many callers have gone until it is this many: whoever asks may have its turn before the thread
    /// that counts.
    fn counts_gone(&mut self, expected: &str) {
        let given_up = Instant::now() + patience(Duration::from_secs(10));
        loop {
            let counted = self.get("/gone");
            if counted == expected {
                return;
            }
            assert!(
                Instant::now() < given_up,
                "{counted} have gone, not {expected}"
            );
            self.again();
        }
    }

    /// Goes on to where it can be given a request, after an answer that left others open or none.
    fn again(&mut self) {
        let deadline = Instant::now() + self.0.deadline;
        match self.slot().again(deadline) {
            Ok(()) => {}
            Err(Failure::Host(_)) => self.settle(),
            Err(failure) => panic!("{failure}"),
        }
    }
}

fn each_libc(mut test: impl FnMut(Instance)) {
    if !require_kvm() {
        return;
    }
    test(Instance::new(&guest("several_requests")));
    if let Some(path) = musl_guest("several_requests") {
        test(Instance::new(&path));
    }
}

#[test]
fn kvm_requests_of_one_instance_see_each_other() {
    each_libc(|mut instance| {
        let first = instance.settled("/meet");
        let second = instance.begin("/meet");
        assert_ne!(first, second);
        let mut places = [instance.ended(), instance.ended()].map(|(place, answer)| {
            assert_eq!(answer.unwrap(), "2 met\n");
            place
        });
        places.sort();
        assert_eq!(places, [first, second]);
        instance.again();
        assert_eq!(instance.get("/ok"), "ok\n");
    });
}

#[test]
fn kvm_an_instance_holds_as_many_requests_as_there_are_places() {
    each_libc(|mut instance| {
        let mut places: Vec<_> = (0..63).map(|_| instance.settled("/peer")).collect();
        places.push(instance.begin("/release"));
        let mut ports = Vec::new();
        for _ in 0..64 {
            let (place, answer) = instance.ended();
            let answer = answer.unwrap();
            places.retain(|one| *one != place);
            match answer.trim().parse::<u16>() {
                Ok(port) => ports.push(port),
                Err(_) => assert_eq!(answer, "done\n"),
            }
        }
        assert!(places.is_empty());
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 63, "each caller has a port of its own");
        instance.again();
        assert_eq!(instance.get("/ok"), "ok\n");
    });
}

#[test]
fn kvm_what_requests_take_together_is_divided_among_them() {
    each_libc(|mut instance| {
        let places = [instance.settled("/wait"), instance.settled("/wait")];
        let before = places.map(|place| instance.slot().stats_of(place));
        let release = instance.begin("/release");
        (0..3).for_each(|_| assert!(instance.ended().1.is_ok()));
        let after = places.map(|place| instance.slot().stats_of(place));
        let release = instance.slot().stats_of(release);
        let all = instance.slot().stats();
        assert!(after[0].cpu > before[0].cpu && release.cpu > Duration::ZERO);
        assert_eq!(after[0].cpu + after[1].cpu + release.cpu, all.cpu);
        assert_eq!(after[0].exits + after[1].exits + release.exits, all.exits);
    });
}

#[test]
fn kvm_a_caller_that_goes_is_told_to_the_program_and_the_others_stay() {
    each_libc(|mut instance| {
        let waiting = instance.settled("/wait");
        let reader = instance.settled("/until_gone");
        let writer = instance.settled("/writes_until_gone");
        instance.slot().abandon(reader);
        instance.settle();
        instance.counts_gone("1\n");
        instance.settle();
        instance.slot().abandon(writer);
        instance.counts_gone("2\n");
        instance.settle();
        assert_eq!(instance.get("/release"), "done\n");
        let (place, answer) = instance.ended();
        assert_eq!((place, answer.unwrap().as_str()), (waiting, "released\n"));
        // The last caller goes: the instance comes to rest by itself.
        instance.again();
        let last = instance.settled("/until_gone");
        instance.slot().abandon(last);
        instance.again();
        instance.counts_gone("3\n");
    });
}

#[test]
fn kvm_a_request_that_cannot_be_answered_does_no_harm_to_the_others() {
    each_libc(|mut instance| {
        let waiting = instance.settled("/wait");
        for (target, why) in [
            ("/malformed", "is not an HTTP/1.1 response"),
            ("/unanswered", "closed the connection without answering"),
        ] {
            let place = instance.begin(target);
            let (ended, answer) = instance.ended();
            assert_eq!(ended, place);
            let failure = answer.unwrap_err().to_string();
            assert!(failure.contains(why), "{target}: {failure}");
            instance.settle();
        }
        assert_eq!(instance.get("/release"), "done\n");
        let (place, answer) = instance.ended();
        assert_eq!((place, answer.unwrap().as_str()), (waiting, "released\n"));
    });
}

#[test]
fn kvm_each_request_has_its_own_deadline_and_cpu_limit() {
    each_libc(|mut instance| {
        let waiting = instance.settled("/wait");
        let late = Limits {
            deadline: Instant::now() + patience(Duration::from_millis(300)),
            ..instance.limits()
        };
        let sleeper = instance.begin_with("/wait", b"", Some(0), late);
        let (place, answer) = instance.ended();
        assert_eq!(place, sleeper);
        assert!(matches!(answer.unwrap_err(), Failure::Deadline(_)));
        instance.settle();
        let busy = Limits {
            cpu: patience(Duration::from_millis(100)),
            ..instance.limits()
        };
        let looping = instance.begin_with("/loop", b"", Some(0), busy);
        let (place, answer) = instance.ended();
        assert_eq!(place, looping);
        assert!(matches!(answer.unwrap_err(), Failure::CpuLimit(_)));
        // It still loops, beside the other.
        assert!(instance.slot().stats_of(waiting).cpu >= Duration::from_millis(90));
        assert!(!instance.slot().can_begin());
    });
}

#[test]
fn kvm_parts_of_a_response_come_when_they_are_written() {
    each_libc(|mut instance| {
        let limits = Limits {
            streams: true,
            ..instance.limits()
        };
        let place = instance.begin_with("/parts", b"", Some(0), limits);
        let mut parts = Vec::new();
        while parts.len() < 2 {
            match instance.slot().run(Duration::from_millis(50)) {
                Step::Parked(until) => {
                    parts.extend(instance.slot().take_parts());
                    if parts.len() < 2 {
                        instance.slot().wait(until);
                    }
                }
                Step::Yielded => {}
                step => panic!("{step:?}"),
            }
        }
        assert_eq!((parts[0].status, parts[0].continues), (200, false));
        assert_eq!(parts[0].headers.len(), 1, "{:?}", parts[0].headers);
        assert_eq!(parts[0].body, b"one ");
        assert_eq!(
            (&parts[1].body[..], parts[1].continues),
            (&b"two "[..], true)
        );
        assert_eq!(instance.get("/release"), "done\n");
        let (ended, rest) = instance.ended();
        assert_eq!((ended, rest.unwrap().as_str()), (place, "three"));
    });
}

#[test]
fn kvm_after_a_short_read_an_edge_tells_of_the_rest_of_a_body() {
    tells_of_the_rest_of_a_body("2");
}

#[test]
fn kvm_after_a_read_of_what_there_was_an_edge_tells_of_the_rest_of_a_body() {
    tells_of_the_rest_of_a_body("3");
    tells_of_the_rest_of_a_body("4");
}

fn tells_of_the_rest_of_a_body(edge: &str) {
    if !require_kvm() {
        return;
    }
    let config = GuestConfig {
        shared: true,
        ..config(&[("HOLM_EDGE", edge)])
    };
    let mut instance = Instance(Function::with(&guest("epoll_server"), &config), Vec::new());
    // What the host has when the guest reads, and what comes then.
    for (there, later) in [(0, 199_000), (60_000, 139_000), (131_072, 67_928)] {
        let limits = instance.limits();
        let place = instance.begin_with("/x", &[1; 1000], Some(200_000), limits);
        instance.slot().add_body(place, &vec![1; there], false);
        instance.settle();
        instance.slot().add_body(place, &vec![1; later], true);
        let (ended, answer) = instance.ended();
        assert_eq!(
            (ended, answer.unwrap().as_str()),
            (place, "POST /x 200000\n")
        );
        instance.again();
    }
}

#[test]
fn kvm_a_body_can_come_in_parts() {
    each_libc(|mut instance| {
        for length in [Some(200_000), None] {
            let limits = instance.limits();
            let place = instance.begin_with("/body", &[1; 1000], length, limits);
            instance.settle();
            assert_eq!(instance.slot().body_left(place), 0);
            // Others are served meanwhile.
            assert_eq!(instance.get("/ok"), "ok\n");
            instance.settle();
            instance.slot().add_body(place, &[1; 150_000], false);
            assert!(instance.slot().has_body_wanted());
            instance.settle();
            assert_eq!(instance.slot().body_left(place), 0);
            instance.slot().add_body(place, &[1; 49_000], true);
            let (ended, answer) = instance.ended();
            assert_eq!((ended, answer.unwrap().as_str()), (place, "200000 bytes"));
            instance.again();
        }
        // Its end may come alone, and the caller may go in the middle.
        let limits = instance.limits();
        let place = instance.begin_with("/body", b"", None, limits);
        instance.settle();
        instance.slot().add_body(place, b"", true);
        assert_eq!(instance.ended().1.unwrap(), "0 bytes");
        instance.again();
        let limits = instance.limits();
        let place = instance.begin_with("/body", b"abc", Some(10), limits);
        instance.settle();
        instance.slot().abandon(place);
        instance.again();
        instance.counts_gone("1\n");
    });
}
