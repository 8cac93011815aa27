//! From an artifact on disk to a snapshot that took a probe. Blocks; runs on a thread for that.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use holm_model::bundle::Bundle;
use holm_model::ids::RequestId;
use holm_model::manifest::Isolation;
use holm_model::usage::{Outcome, UsageRecord};
use holm_vmm::{
    Choice, Failure, GuestConfig, Hypervisor, Limits, Place, Request, Response, Slot, Snapshot,
    SnapshotError, Step, VmmError,
};

use super::core::{Fault, VerifiedRelease};
use super::routes::Live;
use super::store::DeployStore;
use crate::files;
use crate::limits::{CHOICE_DEADLINE, MAX_REASON_LOG_BYTES, PREPARE_DEADLINE, SLICE};

/// `$PORT` of every function.
const PORT: u16 = 8080;

/// A snapshot of the release: from disk if there is a good one, else by booting the program. Its environment is a part
/// of it.
pub(crate) fn snapshot(
    hypervisor: &Hypervisor,
    store: &DeployStore,
    release: &VerifiedRelease,
) -> Result<Arc<Snapshot>, Fault> {
    let (statement, label) = (&release.version.statement, release.label());
    let path = store.snapshot(release.id);
    if path.exists() {
        match Snapshot::load(hypervisor, &path) {
            Ok(snapshot) => {
                tracing::info!(function = %statement.function, label, "snapshot read from disk");
                return Ok(snapshot);
            }
            Err(error) => {
                tracing::warn!(function = %statement.function, label, %error, "the snapshot on disk is of no use; booting anew");
                // What has a file is not written again. An error of the disk says nothing of what is in it.
                let useless = |error: &SnapshotError| !matches!(error, SnapshotError::Io { .. });
                if matches!(&error, VmmError::Snapshot(error) if useless(error))
                    && let Err(error) = files::remove_if_there(&path)
                {
                    tracing::warn!(function = %statement.function, label, %error, "each start will have to boot it anew");
                }
            }
        }
    }
    let bytes = store.verified_artifact(statement).map_err(Fault::ours)?;
    let vanished = || Fault::ours("the artifact has vanished from the node's disk");
    let bytes = bytes.ok_or_else(vanished)?;
    let Bundle { program, files } = Bundle::parse(&bytes).map_err(Fault::of_function)?;
    // Up to 256 MiB, of which there is a copy now.
    drop(bytes);
    let config = GuestConfig {
        name: statement.function.to_string(),
        memory_bytes: statement.manifest.limits.memory_bytes,
        args: statement.manifest.function.args.clone(),
        files,
        inetd: statement.manifest.function.inetd,
        shared: statement.manifest.scale.isolation == Isolation::Instance,
        env: release.env().into_iter().collect(),
        port: PORT,
    };
    match holm_vmm::prepare(hypervisor, &program, &config, PREPARE_DEADLINE) {
        Ok(prepared) => {
            let ready_us = prepared.ready.as_micros() as u64;
            tracing::info!(function = %statement.function, label, ready_us, "booted and snapshotted");
            Ok(prepared.snapshot)
        }
        Err(error) => {
            let what = format!(
                "before it was ready: {}{}",
                error.failure,
                last_words(&error.log)
            );
            Err(blame(&error.failure, &what))
        }
    }
}

/// Sends one request to a fresh instance. The record tells what it cost, whatever came of it.
pub(crate) fn probe(hypervisor: &Hypervisor, live: &Live) -> (UsageRecord, Result<(), Fault>) {
    let accepted_ms = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64);
    let mut request = RequestId([0; 16]);
    // The id only has to tell probes apart; without randomness the clock does.
    if getrandom::fill(&mut request.0).is_err() {
        request.0[..8].copy_from_slice(&accepted_ms.to_le_bytes());
    }
    let mut record = UsageRecord {
        boot_epoch: 0,
        sequence: 0,
        request,
        function: live.function.clone(),
        version: live.version,
        accepted_ms,
        outcome: Outcome::PlatformFault,
        status: 0,
        queue_ns: 0,
        restore_ns: 0,
        run_ns: 0,
        cpu_ns: 0,
        memory_bytes: live.limits.memory_bytes,
        request_bytes: 0,
        response_bytes: 0,
        egress_bytes: 0,
        ingress_bytes: 0,
        cold: true,
        exits: 0,
        probe: true,
    };
    let result = send(hypervisor, live, &mut record);
    (record, result)
}

fn send(hypervisor: &Hypervisor, live: &Live, record: &mut UsageRecord) -> Result<(), Fault> {
    let node_fault = |error: VmmError| {
        Fault::ours(format!(
            "the node could not probe it: {error}; the operator of the node must look into it"
        ))
    };
    let mut slot = Slot::new(hypervisor).map_err(node_fault)?;
    let began = Instant::now();
    slot.load(&live.snapshot).map_err(node_fault)?;
    record.restore_ns = nanos(began.elapsed());
    slot.set_outbound(live.outbound());
    let began = Instant::now();
    let ended = ask(&mut slot, live, record.request, live.deadline());
    record.run_ns = nanos(began.elapsed()).max(1);
    let stats = slot.stats();
    (record.cpu_ns, record.exits) = (nanos(stats.cpu), stats.exits);
    (record.egress_bytes, record.ingress_bytes) = (stats.egress_bytes, stats.ingress_bytes);
    let (log, target) = (slot.take_log(), &live.probe_path);
    match ended {
        Ok(response) => {
            record.status = response.status;
            record.response_bytes = response.body.len() as u64;
            if response.status < 500 {
                record.outcome = Outcome::Answered;
                return Ok(());
            }
            record.outcome = Outcome::FunctionError;
            Err(Fault::of_function(format!(
                "it answered the probe GET {target} with status {}{}",
                response.status,
                last_words(&log)
            )))
        }
        Err(failure) => {
            record.outcome = outcome(&failure);
            let what = format!("at the probe GET {target}: {failure}{}", last_words(&log));
            Err(blame(&failure, &what))
        }
    }
}

/// Has the probe answered by an instance within `most`.
fn ask(slot: &mut Slot, live: &Live, id: RequestId, most: Duration) -> Result<Response, Failure> {
    let id = id.to_string();
    let host = format!("{}.{}", live.function.function, live.function.tenant);
    let headers: [(&[u8], &[u8]); 4] = [
        (b"host", host.as_bytes()),
        (b"user-agent", b"holm-probe"),
        (b"accept", b"*/*"),
        (b"x-request-id", id.as_bytes()),
    ];
    let request = Request {
        method: "GET",
        target: &live.probe_path,
        headers: &headers,
        body: b"",
    };
    let deadline = Instant::now() + most;
    let limits = Limits {
        deadline,
        cpu: Duration::from_millis(live.limits.cpu_ms),
        response_body_bytes: live.limits.response_body_bytes,
        streams: false,
    };
    slot.begin(&request, limits)?;
    run(slot, deadline)
}

/// Measures by which strategy instances of the version are best restored and reset, unless that is known. It takes
/// the probe for that, some more times, and has no way out meanwhile, so that nobody else notices. `room`: bytes that
/// an instance may keep to itself. That it cannot be measured is no reason not to serve it.
pub(crate) fn choose(hypervisor: &Hypervisor, live: &Live, room: u64) {
    let (function, version) = (&live.function, live.version.short());
    let until = Instant::now() + CHOICE_DEADLINE;
    let measured = Choice::make(hypervisor, &live.snapshot, room, |slot| {
        let left = until.saturating_duration_since(Instant::now());
        ask(slot, live, RequestId::NONE, left.min(live.deadline())).map(drop)
    });
    match measured {
        Ok(choice) => {
            let strategy = choice.strategy.as_str();
            let costs = choice.to_string();
            tracing::info!(%function, version, strategy, costs, "how its instances are restored");
        }
        Err(failure) => {
            tracing::warn!(%function, version, %failure, "how its instances are best restored could not be measured");
        }
    }
}

fn run(slot: &mut Slot, deadline: Instant) -> Result<Response, Failure> {
    loop {
        match slot.run(SLICE) {
            Step::Answered(response) => return Ok(response),
            Step::Failed(failure) | Step::Dropped(_, failure) => return Err(failure),
            Step::Yielded => {}
            Step::Parked(until) => {
                let now = Instant::now();
                if now >= deadline {
                    return Err(Failure::Deadline(Place::default()));
                }
                slot.wait(until.min(deadline));
            }
        }
    }
}

/// How a failure counts.
pub(crate) fn outcome(failure: &Failure) -> Outcome {
    match failure {
        Failure::Crash(_) | Failure::BadResponse(_) => Outcome::Crash,
        Failure::Deadline(_) | Failure::CpuLimit(_) => Outcome::Timeout,
        Failure::Host(_) => Outcome::PlatformFault,
    }
}

fn blame(failure: &Failure, what: &str) -> Fault {
    match failure {
        Failure::Host(_) => Fault::ours(format!("the node failed {what}")),
        _ => Fault::of_function(format!("the function failed {what}")),
    }
}

/// The end of what the program wrote, for the reason of a failure.
fn last_words(log: &[u8]) -> String {
    let tail = &log[log.len().saturating_sub(MAX_REASON_LOG_BYTES)..];
    let text = String::from_utf8_lossy(tail);
    match text.trim() {
        "" => String::new(),
        text => format!("\nthe last it wrote:\n{text}"),
    }
}

/// A duration as a record has it.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_the_end_of_the_log_and_nothing_if_there_is_none() {
        assert_eq!(last_words(b" \n"), "");
        let mut log = vec![b'x'; 10 * MAX_REASON_LOG_BYTES];
        log.extend_from_slice(b"the end\n");
        let words = last_words(&log);
        assert!(words.ends_with("the end") && words.len() < 2 * MAX_REASON_LOG_BYTES);
    }
}
