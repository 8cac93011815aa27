//! What a run found out, and how it stands to what Holm is to reach.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::density::Density;
use crate::neighbours::Neighbours;
use crate::sample::Figures;

/// Everything that a run measured. Times are in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) kvm: String,
    /// Cores that there are; latencies are measured on one of them.
    pub(crate) cores: usize,
    pub(crate) rounds: u32,
    pub(crate) floor_us: Figures,
    pub(crate) posix_spawn_us: Figures,
    pub(crate) fresh_invoke_us: Figures,
    pub(crate) fresh_invoke_c_us: Figures,
    pub(crate) http_fresh_us: Figures,
    pub(crate) hyper_us: Figures,
    pub(crate) cold_start_us: Figures,
    pub(crate) cold_verified_us: Figures,
    pub(crate) restart_first_us: Figures,
    /// How often the restarted node booted the program again.
    pub(crate) restart_boots: usize,
    /// Round trips a second of bare guests on all cores at once.
    pub(crate) floor_rps: f64,
    pub(crate) http_fresh_rps: f64,
    pub(crate) hyper_rps: f64,
    #[serde(flatten)]
    pub(crate) density: Density,
    /// Only of a long run.
    #[serde(flatten)]
    pub(crate) neighbours: Option<Neighbours>,
}

/// A row of the table.
struct Row {
    what: &'static str,
    figures: Figures,
    /// What it is to reach.
    goal: &'static str,
}

/// Something that is to hold.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Goal {
    pub(crate) what: &'static str,
    /// How much of what is allowed was taken: at most 1 is good.
    pub(crate) share: f64,
}

impl Goal {
    pub(crate) fn at_most(what: &'static str, value: f64, bound: f64) -> Self {
        Goal {
            what,
            share: crate::sample::rounded(value / bound),
        }
    }

    pub(crate) fn at_least(what: &'static str, value: f64, bound: f64) -> Self {
        Goal::at_most(what, bound, value)
    }

    /// One line.
    pub(crate) fn line(&self) -> String {
        let verdict = match self.share <= 1.0 {
            true => "met   ",
            false => "missed",
        };
        format!("{verdict}  {:>6.2}  {}", self.share, self.what)
    }
}

impl Report {
    fn rows(&self) -> Vec<Row> {
        let row = |what, figures: &Figures, goal| Row {
            what,
            figures: *figures,
            goal,
        };
        let mut rows = vec![
            row("floor: exit and return of a bare guest", &self.floor_us, ""),
            row(
                "a fresh machine for a request, SDK function, reset included",
                &self.fresh_invoke_us,
                "2 × floor, and less than a process",
            ),
            row(
                "the same for an unmodified C server",
                &self.fresh_invoke_c_us,
                "",
            ),
            row(
                "the SDK function through a node, one kept connection",
                &self.http_fresh_us,
                "2 × floor + hyper",
            ),
            row("a bare hyper server, the same caller", &self.hyper_us, ""),
            row(
                "first request of a version that no machine holds",
                &self.cold_start_us,
                "10 × floor; p99 50 ×",
            ),
            row(
                "the same, reading and verifying the snapshot included",
                &self.cold_verified_us,
                "",
            ),
            row(
                "first answer of a node that was killed and started again",
                &self.restart_first_us,
                "10 × floor; p99 50 ×",
            ),
            row(
                "`posix_spawn` of a static hello until its end",
                &self.posix_spawn_us,
                "",
            ),
        ];
        if let Some(neighbours) = &self.neighbours {
            rows.extend([
                row(
                    "hello through a node, 200 requests a second, alone",
                    &neighbours.alone_us,
                    "",
                ),
                row(
                    "the same beside a tenant that loops",
                    &neighbours.beside_loops_us,
                    "p99 3 × alone",
                ),
                row(
                    "the same beside a tenant that exhausts its memory",
                    &neighbours.beside_memory_us,
                    "p99 3 × alone",
                ),
                row(
                    "the same beside a tenant that crashes at each request",
                    &neighbours.beside_crashes_us,
                    "p99 3 × alone",
                ),
                row(
                    "from a runaway's deadline until its caller has its 504",
                    &neighbours.runaway_us,
                    "p99 5 ms",
                ),
            ]);
        }
        rows
    }

    /// What is to hold of it.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        let floor = self.floor_us.p50;
        let mut goals = vec![
            Goal::at_most(
                "fresh_invoke p50 <= 2 x floor",
                self.fresh_invoke_us.p50_floors,
                2.0,
            ),
            Goal::at_most(
                "fresh_invoke p50 < posix_spawn p50",
                self.fresh_invoke_us.p50,
                self.posix_spawn_us.p50,
            ),
            Goal::at_most(
                "http_fresh p50 <= 2 x floor + hyper p50",
                self.http_fresh_us.p50,
                2.0 * floor + self.hyper_us.p50,
            ),
            Goal::at_most(
                "cold_start p50 <= 10 x floor",
                self.cold_start_us.p50_floors,
                10.0,
            ),
            Goal::at_most(
                "cold_start p99 <= 50 x floor",
                self.cold_start_us.p99_floors,
                50.0,
            ),
            Goal::at_most(
                "restart_first p50 <= 10 x floor",
                self.restart_first_us.p50_floors,
                10.0,
            ),
            Goal::at_most(
                "restart_first p99 <= 50 x floor",
                self.restart_first_us.p99_floors,
                50.0,
            ),
            Goal::at_most(
                "private memory of an instance <= 128 KiB",
                self.density.private_kib_per_instance,
                128.0,
            ),
        ];
        if let Some(neighbours) = &self.neighbours {
            let alone = neighbours.alone_us.p99;
            goals.extend([
                Goal::at_most(
                    "p99 beside a tenant that loops <= 3 x alone",
                    neighbours.beside_loops_us.p99,
                    3.0 * alone,
                ),
                Goal::at_most(
                    "p99 beside one that exhausts memory <= 3 x alone",
                    neighbours.beside_memory_us.p99,
                    3.0 * alone,
                ),
                Goal::at_most(
                    "p99 beside one that crashes <= 3 x alone",
                    neighbours.beside_crashes_us.p99,
                    3.0 * alone,
                ),
                Goal::at_most(
                    "a runaway ends within 5 ms of its deadline, p99",
                    neighbours.runaway_us.p99,
                    5000.0,
                ),
            ]);
        }
        goals
    }

    /// The table of README.md.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from(
            "| what | median | p99 | n | × floor | goal |\n| --- | ---: | ---: | ---: | ---: | --- |\n",
        );
        for Row {
            what,
            figures,
            goal,
        } in self.rows()
        {
            // Writing to a string does not fail.
            let _ = writeln!(
                table,
                "| {what} | {} | {} | {} | {:.1} | {goal} |",
                time(figures.p50),
                time(figures.p99),
                figures.n,
                figures.p50_floors
            );
        }
        let Density {
            private_kib_per_instance,
            kernel_kib_per_instance,
            kvm_kib_per_vm,
            ..
        } = self.density;
        let _ = write!(
            table,
            "\nOver 32 connections on {} cores, the caller's included: {:.0} requests a second; a bare hyper \
             server {:.0}.\nBare guests alone, one on each core, leave and return {:.0} times a second: no machine for each \
             request can do\nmore.\nOf {} resident instances each has {private_kib_per_instance:.0} KiB of its own (goal: \
             128 KiB), {kernel_kib_per_instance:.0} KiB in the kernel's tables, and\n{kvm_kib_per_vm:.0} KiB that \
             KVM takes for a VM.\n",
            self.cores,
            self.http_fresh_rps,
            self.hyper_rps,
            self.floor_rps,
            crate::density::INSTANCES,
        );
        table
    }
}

/// Microseconds, for people.
pub(crate) fn time(micros: f64) -> String {
    match micros {
        micros if micros < 1000.0 => format!("{micros:.0} µs"),
        micros => format!("{:.1} ms", micros / 1000.0),
    }
}
