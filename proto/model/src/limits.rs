//! Every bound of Holm that more than one crate must know, with its unit in its name.

/// Most caveats of an API token.
pub const MAX_CAVEATS: usize = 16;
/// Longest of them; some dozens of tenants fit.
pub const MAX_CAVEAT_BYTES: usize = 1024;
/// Longest tenant or function name, in bytes. Names are DNS labels.
pub const MAX_NAME_BYTES: usize = 63;
/// Largest artifact.
pub const MAX_ARTIFACT_BYTES: u64 = 256 << 20;
/// Largest manifest file.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 10;
/// Most invocations that a rollout's gate may be told to wait for.
pub const MAX_GATE_REQUESTS: u64 = 1_000_000_000;
/// Longest time that a usage record may tell, in nanoseconds: a day, far above every limit of a function and low
/// enough that sums of products stay exact.
pub const MAX_RECORD_NS: u64 = 86_400_000_000_000;
/// Most bytes of a kind that a usage record may tell: 1 PiB, so that sums stay exact.
pub const MAX_RECORD_BYTES: u64 = 1 << 50;
/// Smallest memory a function may ask for.
pub const MIN_MEMORY_BYTES: u64 = 1 << 20;
/// Largest memory a function may ask for.
pub const MAX_MEMORY_BYTES: u64 = 4 << 30;
/// Memory of a function whose manifest does not say.
pub const DEFAULT_MEMORY_BYTES: u64 = 64 << 20;
/// Longest wall deadline.
pub const MAX_DEADLINE_MS: u64 = 15 * 60 * 1000;
/// Wall deadline of a function whose manifest does not say.
pub const DEFAULT_DEADLINE_MS: u64 = 10_000;
/// Largest request body a manifest may allow.
pub const MAX_REQUEST_BODY_BYTES: u64 = 32 << 20;
/// Largest response body a manifest may allow.
pub const MAX_RESPONSE_BODY_BYTES: u64 = 64 << 20;
/// Request body of a function whose manifest does not say.
pub const DEFAULT_REQUEST_BODY_BYTES: u64 = 1 << 20;
/// Response body of a function whose manifest does not say.
pub const DEFAULT_RESPONSE_BODY_BYTES: u64 = 8 << 20;
/// Largest head (method, target and headers) of a request or a response.
pub const MAX_HEAD_BYTES: usize = 64 << 10;
/// Most headers of a request or a response.
pub const MAX_HEADERS: usize = 128;
/// Largest concurrency a manifest may ask for on one node.
pub const MAX_CONCURRENCY: u32 = 1024;
/// Concurrency on one node of a function whose manifest does not say.
pub const DEFAULT_CONCURRENCY: u32 = 32;

/// Largest number of requests at a time that a manifest may ask for in one instance: as many as a guest has places.
pub const MAX_REQUESTS_PER_INSTANCE: u32 = holm_hostcall::MAX_REQUESTS as u32;
/// Requests at a time in one instance that is kept, if the manifest does not say.
pub const DEFAULT_REQUESTS_PER_INSTANCE: u32 = 16;

/// Most slots a manifest may ask to keep holding its snapshot on every node.
pub const MAX_SCALE_MIN: u32 = 256;
/// Most instances at a time on one node that a manifest may allow.
pub const MAX_SCALE_MAX: u32 = 1024;
/// Shortest time after which a manifest may have slots that are not needed given back.
pub const MIN_COOLDOWN_MS: u64 = 1000;
/// Longest such time.
pub const MAX_COOLDOWN_MS: u64 = 24 * 60 * 60 * 1000;
/// Most environment variables of a function.
pub const MAX_ENV_VARIABLES: usize = 128;
/// Most bytes of all names and values of a function's environment together.
pub const MAX_ENV_BYTES: usize = 16 << 10;
/// Most entries of a configuration.
pub const MAX_CONFIGURATION_ENTRIES: usize = 128;
/// Most bytes of all names and values of a configuration together.
pub const MAX_CONFIGURATION_BYTES: usize = 64 << 10;
/// Largest signed statement of a configuration: its plain entries as JSON, which can double them, and a commitment for
/// each secret.
pub const MAX_CONFIGURATION_STATEMENT_BYTES: usize =
    2 * MAX_CONFIGURATION_BYTES + MAX_CONFIGURATION_ENTRIES * 128 + (16 << 10);
/// Most arguments of a program.
pub const MAX_ARGS: usize = 128;
/// Most bytes of all arguments of a program together.
pub const MAX_ARGS_BYTES: usize = 8 << 10;
/// Most lines of a manifest's `[files]`.
pub const MAX_FILES_LINES: usize = 128;
/// Most bytes of all paths in a manifest's `[files]` together.
pub const MAX_FILES_BYTES: usize = 8 << 10;
/// Most regions a manifest may list.
pub const MAX_REGIONS: usize = 64;
/// Longest name of a region.
pub const MAX_REGION_BYTES: usize = 63;
/// Most labels of a node, and most that a manifest may ask for.
pub const MAX_LABELS: usize = 64;
/// Longest key or value of a label.
pub const MAX_LABEL_BYTES: usize = 63;
/// Most places that a manifest may allow connections to.
pub const MAX_ALLOWED: usize = 64;
/// Longest of them.
pub const MAX_ALLOWED_BYTES: usize = 280;
/// Longest description, build command or path in a manifest.
pub const MAX_MANIFEST_TEXT_BYTES: usize = 4096;
/// Longest path of a probe.
pub const MAX_PROBE_PATH_BYTES: usize = 1024;
/// Most waves of a rollout.
pub const MAX_WAVES: usize = 20;
/// Highest number of percent by which a manifest may allow a version to be worse than the one before.
pub const MAX_WORSE_PERCENT: u32 = 10_000;
/// Longest time by which a version may run longer without counting as slower.
pub const MAX_SLOWER_MS: u64 = MAX_DEADLINE_MS;
/// Smallest share of false alarms that a manifest may ask for, in parts per million.
pub const MIN_FALSE_ALARM_PPM: u32 = 1;
/// Longest text of a wave.
pub const MAX_WAVE_BYTES: usize = 1024;
/// Longest time that a rollout may be told to wait for a node that is away.
pub const MAX_SKIP_AFTER_MS: u64 = 24 * 60 * 60 * 1000;
/// Waves of a rollout whose manifest does not say: percent of the nodes after each.
pub const DEFAULT_WAVES_PERCENT: [u8; 3] = [10, 50, 100];
/// Longest time a wave may be watched.
pub const MAX_BAKE_MS: u64 = 24 * 60 * 60 * 1000;
/// Time a wave is watched if the manifest does not say.
pub const DEFAULT_BAKE_MS: u64 = 5_000;
/// Failed invocations that a rollout's gate lets pass if the manifest does not say: 1 %.
pub const DEFAULT_MAX_ERROR_PPM: u32 = 10_000;
/// All of them, in parts per million.
pub const MAX_ERROR_PPM: u32 = 1_000_000;

/// Most program headers of a program's ELF file.
pub const MAX_PROGRAM_HEADERS: usize = 64;

/// Most other nodes that one is told of, for its callers.
pub const MAX_OTHER_NODES: usize = 3;
/// Largest control message on the wire.
pub const MAX_CONTROL_FRAME_BYTES: usize = 4 << 20;
/// Most hard budgets of a fleet: all of them go to every node in one message.
pub const MAX_HARD_BUDGETS: usize = 4096;
/// Most asks for leases in one message of a node.
pub const MAX_LEASE_ASKS: usize = 256;
/// Most times from which on there are other prices that a budget is sent with.
pub const MAX_PRICE_SPANS: usize = 8;
/// Into how many slices a budget is cut at least, as long as one slice pays for what a node may have under way.
pub const SLICES_OF_A_BUDGET: u64 = 32;
/// Largest budget of a month, in whole units of its currency, so that sums of thousandths of a billionth fit 63 bits.
pub const MAX_BUDGET_UNITS: u64 = 9_000_000;
/// How long before a month ends nodes lease for the next, so that one that is cut off then goes on.
pub const NEXT_MONTH_MS: u64 = 6 * 60 * 60 * 1000;
/// How long a node keeps what it does not spend before it gives it back.
pub const LEASE_IDLE_MS: u64 = 60_000;
/// How often a node says at least what it has spent.
pub const LEASE_REPORT_MS: u64 = 5_000;
/// How often a node that has leased something says so, which is when it hears that others lack it.
pub const LEASE_HELD_MS: u64 = 15_000;
/// How soon a node that got nothing asks again.
pub const LEASE_AGAIN_MS: u64 = 1_000;
/// The same once no node has anything that another could get.
pub const LEASE_AGAIN_SPENT_MS: u64 = 5_000;
/// How long others are asked for what they do not need after a node got too little.
pub const LEASE_WANTED_MS: u64 = 20_000;
/// How far an execution may go over its deadline or its CPU limit before it is over and on record: what is beyond is
/// the only part that a node has not reserved.
pub const OVERRUN_MS: u64 = 1_000;
/// Most counts of run times in one message of a node, so that it fits a frame.
pub const MAX_TOLD_RUN_TIMES: usize = 64 << 10;
/// Most usage records in a batch.
pub const MAX_USAGE_BATCH: usize = 4096;
/// Longest text of one entry of the log.
pub const MAX_LOG_ENTRY_BYTES: usize = 4 << 10;
/// Texts in one batch of entries of the log, together.
pub const MAX_LOG_BATCH_BYTES: usize = 64 << 10;

const _: () = {
    assert!(MIN_MEMORY_BYTES <= DEFAULT_MEMORY_BYTES && DEFAULT_MEMORY_BYTES <= MAX_MEMORY_BYTES);
    assert!(DEFAULT_DEADLINE_MS <= MAX_DEADLINE_MS);
    assert!(DEFAULT_REQUEST_BODY_BYTES <= MAX_REQUEST_BODY_BYTES);
    assert!(DEFAULT_RESPONSE_BODY_BYTES <= MAX_RESPONSE_BODY_BYTES);
    assert!(DEFAULT_BAKE_MS <= MAX_BAKE_MS && DEFAULT_MAX_ERROR_PPM <= MAX_ERROR_PPM);
    assert!(DEFAULT_WAVES_PERCENT.len() <= MAX_WAVES);
    // Even if JSON doubles them, the largest texts of a manifest fit a signed statement, which may have
    // twice a manifest's bytes.
    assert!(
        (MAX_ENV_BYTES + MAX_ARGS_BYTES + MAX_FILES_BYTES + 3 * MAX_MANIFEST_TEXT_BYTES) as u64
            <= MAX_MANIFEST_BYTES
    );
    assert!(MAX_USAGE_BATCH * 512 <= MAX_CONTROL_FRAME_BYTES);
    // A budget has two names, and of each time four prices of at most 22 bytes.
    assert!(
        MAX_HARD_BUDGETS * (2 * (MAX_NAME_BYTES + 1) + 8 + MAX_PRICE_SPANS * (9 + 4 * 22)) + 16
            <= MAX_CONTROL_FRAME_BYTES
    );
    assert!(MAX_LEASE_ASKS * 256 <= MAX_CONTROL_FRAME_BYTES);
    assert!(MAX_BUDGET_UNITS <= i64::MAX as u64 / 1_000_000_000_000);
    assert!(LEASE_REPORT_MS <= LEASE_HELD_MS && LEASE_HELD_MS < LEASE_WANTED_MS);
    assert!(LEASE_HELD_MS < LEASE_IDLE_MS && LEASE_IDLE_MS < NEXT_MONTH_MS);
};
