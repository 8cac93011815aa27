//! Every bound of the coordinator, with its unit in its name.

use std::time::Duration;

use holm_model::chunks::MAX_CHUNK_BYTES;
use holm_model::limits::{
    MAX_CONFIGURATION_BYTES, MAX_CONFIGURATION_ENTRIES, MAX_CONFIGURATION_STATEMENT_BYTES,
    MAX_CONTROL_FRAME_BYTES, MAX_LOG_BATCH_BYTES, MAX_LOG_ENTRY_BYTES, MAX_MANIFEST_BYTES,
};

/// Most nodes in the fleet.
pub(crate) const MAX_NODES: usize = 1024;
/// Most QUIC connections at a time; joining and reconnecting nodes need some beside [`MAX_NODES`].
pub(crate) const MAX_QUIC_CONNECTIONS: usize = 2 * MAX_NODES;
/// Most bulk streams of one node at a time.
pub(crate) const MAX_BULK_STREAMS: u32 = 16;
/// Bytes a node may have on the way to the coordinator on all of its streams.
pub(crate) const LINK_WINDOW_BYTES: u32 = 8 << 20;

/// The coordinator's own keep-alive on a link.
pub(crate) const LINK_KEEP_ALIVE: Duration = Duration::from_millis(500);
/// Silence after which a node counts as gone. With the keep-alive before it, a killed node is
/// noticed within three seconds.
pub(crate) const LINK_IDLE: Duration = Duration::from_millis(2500);
/// Time for a peer to finish its handshake, open its first stream and send its first frame.
pub(crate) const LINK_OPENING: Duration = Duration::from_secs(5);
/// Time for a peer to take the last words of a link before it is closed.
pub(crate) const LINK_FAREWELL: Duration = Duration::from_secs(1);
/// Time for a usage batch to arrive in full and be answered.
pub(crate) const BULK_USAGE: Duration = Duration::from_secs(30);
/// Time for an artifact to be sent in full.
pub(crate) const BULK_ARTIFACT: Duration = Duration::from_secs(15 * 60);
/// How often `last seen` of connected nodes is written down.
pub(crate) const LAST_SEEN_EVERY: Duration = Duration::from_secs(30);

/// Most versions in one message of a node.
pub(crate) const MAX_OBSERVED_VERSIONS: usize = 4096;
/// Longest text that a node may say of itself (region, kind of KVM, software).
pub(crate) const MAX_NODE_TEXT_CHARS: usize = 64;
/// Longest URL of a node's ingress.
pub(crate) const MAX_URL_CHARS: usize = 512;
/// Longest reason kept for people; longer ones are cut.
pub(crate) const MAX_REASON_CHARS: usize = 2000;
/// Longest reason in a QUIC close frame, which must fit a packet.
pub(crate) const MAX_CLOSE_BYTES: usize = 512;

/// Most HTTP connections at a time.
pub(crate) const MAX_HTTP_CONNECTIONS: usize = 256;
/// An HTTP connection on which nothing moves for this long is closed.
pub(crate) const HTTP_IDLE: Duration = Duration::from_secs(60);
/// How long a TLS handshake may take.
pub(crate) const HTTP_HANDSHAKE: Duration = Duration::from_secs(10);
/// Largest JSON body; a statement in base64 and its envelope fit.
pub(crate) const MAX_JSON_BODY_BYTES: usize = 512 << 10;
/// Artifacts that may be uploaded at a time.
pub(crate) const MAX_UPLOADS: usize = 4;
/// Most parts of time that usage is told by at once: hours of more than five years.
pub(crate) const MAX_TIME_PARTS: u64 = 50_000;
/// How long an upload waits for its turn.
pub(crate) const UPLOAD_TURN: Duration = Duration::from_secs(30);
/// Most measurements in a route request.
pub(crate) const MAX_PROBES: usize = 256;

/// Longest life of a join token.
pub(crate) const MAX_JOIN_TTL_SECONDS: u64 = 7 * 86_400;
/// Life of a join token whose request does not say.
pub(crate) const DEFAULT_JOIN_TTL_SECONDS: u64 = 600;
/// Most API tokens that are valid at a time, beside administrators'.
pub(crate) const MAX_API_TOKENS: u64 = 10_000;
/// Longest life of an API token that has an end.
pub(crate) const MAX_API_TOKEN_TTL_SECONDS: u64 = 10 * 366 * 86_400;
/// Longest text of an entry in the audit log; longer ones are cut.
pub(crate) const MAX_AUDIT_TEXT_CHARS: usize = 500;
/// Shortest and longest life of a node's certificate; its renewal needs some seconds.
pub const NODE_CERTIFICATE_LIFE: (Duration, Duration) =
    (Duration::from_secs(3), Duration::from_secs(366 * 86_400));
/// Least time between two renewals of one node's certificate, or a 16th of its life if that is less.
pub(crate) const MIN_RENEWAL_PAUSE: Duration = Duration::from_secs(60);
/// Largest certificate signing request.
pub(crate) const MAX_CSR_BYTES: usize = 8 << 10;
/// Most publisher keys of a tenant.
pub(crate) const MAX_PUBLISHER_KEYS: usize = 32;
/// Most publisher keys that a tenant has ever had.
pub(crate) const MAX_KEYS_EVER: usize = 1000;
/// Longest time until a key's revocation holds.
pub(crate) const MAX_KEY_GRACE_SECONDS: u64 = 366 * 86_400;
/// Longest label of a version.
pub(crate) const MAX_LABEL_CHARS: usize = 64;
/// Longest author of a version.
pub(crate) const MAX_AUTHOR_CHARS: usize = 200;
/// Most configurations of a function that are listed.
pub(crate) const MAX_CONFIGURATIONS: i64 = 100;
/// Most tags of a function.
pub(crate) const MAX_TAGS: u64 = 100;
/// Longest tag.
pub(crate) const MAX_TAG_CHARS: usize = 64;
/// Longest message of a version.
pub(crate) const MAX_MESSAGE_CHARS: usize = 1000;
/// Most versions of one function that an answer lists, newest first.
pub(crate) const MAX_LISTED_VERSIONS: i64 = 1000;
/// Longest object in the artifact store; what an upload holds in memory.
pub(crate) const MAX_PACK_BYTES: usize = 8 << 20;
/// Chunks that are read at once.
pub(crate) const MAX_RUN_CHUNKS: usize = 64;
/// Reads of so many chunks that go on at a time.
pub(crate) const MAX_READING_RUNS: usize = 4;
/// Reads whose bytes are kept for whoever wants the same next: 16 MiB as chunks are on the average.
pub(crate) const MAX_RECENT_RUNS: usize = 16;
/// Chunks, in all, of artifacts whose lists of chunks are kept for whoever wants the same next: some 16 MiB.
pub(crate) const MAX_RECENT_CHUNKS: usize = 128 << 10;
/// How long. An artifact may be removed and its chunks be moved meanwhile.
pub(crate) const RECENT_LIST_AGE: Duration = Duration::from_secs(2);
/// Longest wait for a connection to the S3-compatible store.
pub(crate) const S3_CONNECT: Duration = Duration::from_secs(5);
/// Time for one answer of its, a pack's bytes included.
pub(crate) const S3_TIMEOUT: Duration = Duration::from_secs(60);
/// How often what failed there is tried again.
pub(crate) const MAX_S3_RETRIES: usize = 5;
/// How long.
pub(crate) const S3_PATIENCE: Duration = Duration::from_secs(30);
/// Most rollouts of one function that an answer lists, newest first.
pub(crate) const MAX_LISTED_ROLLOUTS: i64 = 50;
/// How often artifacts and chunks that nobody needs are looked for, beside at start.
pub(crate) const SWEEP_EVERY: Duration = Duration::from_secs(86_400);
/// Age after which an artifact that no version names is removed.
pub(crate) const ORPHAN_ARTIFACT_AGE: Duration = Duration::from_secs(86_400);

/// So far ahead of this coordinator's a node's generation may be for it to be believed: what a fleet decides in years.
pub(crate) const MAX_GENERATION_JUMP: u64 = 1 << 20;
/// Least time between two such leaps, so that a node that lies keeps nobody busy, and between two of them in the audit
/// log.
pub(crate) const OVERTAKE_EVERY: Duration = Duration::from_secs(10);
pub(crate) const OVERTAKE_TOLD_EVERY: Duration = Duration::from_secs(3600);

/// Largest desired state of one node, so that it fits a control frame.
pub(crate) const MAX_DESIRED_BYTES: usize = MAX_CONTROL_FRAME_BYTES - (64 << 10);
/// How often what was counted for a rollout's gates is stored, if nothing else about it has changed.
pub(crate) const GATE_COUNTS_EVERY: Duration = Duration::from_secs(1);
/// How often a rollout is looked at while one is running.
pub(crate) const ROLLOUT_TICK: Duration = Duration::from_millis(100);

/// How often a coordinator looks whether budgets have changed, and for alerts.
pub(crate) const BUDGETS_TICK: Duration = Duration::from_secs(1);
/// Most alert thresholds of one budget.
pub(crate) const MAX_BUDGET_ALERTS: usize = 10;
/// Most alerts in one page.
pub(crate) const MAX_ALERTS_PAGE: usize = 1000;

/// How often a coordinator tells the others that it lives, and looks what they have decided.
pub(crate) const COORDINATOR_TICK: Duration = Duration::from_millis(500);
/// Silence after which the others take a coordinator for dead.
pub(crate) const COORDINATOR_SILENCE: Duration = Duration::from_secs(3);

/// Most bytes of one function's log that are kept.
pub(crate) const MAX_LOG_BYTES_OF_FUNCTION: usize = 1 << 20;
/// Most bytes of all functions' logs that are kept.
pub(crate) const MAX_LOG_BYTES: usize = 64 << 20;
/// What nodes count for an entry of a log beside its text.
pub(crate) const LOG_BATCH_ENTRY_BYTES: usize = 256;
/// Most bytes of a node's batch of entries of logs, with [`LOG_BATCH_ENTRY_BYTES`] for each. A node may go over
/// the size of a batch by one entry; this bounds their number as well.
pub(crate) const MAX_LOG_BATCH_COUNTED_BYTES: usize =
    MAX_LOG_BATCH_BYTES + LOG_BATCH_ENTRY_BYTES + MAX_LOG_ENTRY_BYTES;
/// Latest time, in milliseconds since 1970, at which sequences of logs begin, so that they stay below 2^53.
pub(crate) const MAX_LOG_CLOCK_MS: u64 = 1 << 42;
/// Rows of the ledger in one page, if the request does not say.
pub(crate) const DEFAULT_PAGE_ROWS: usize = 1000;
/// Time for PostgreSQL to answer when the coordinator starts.
pub(crate) const DATABASE_CONNECT: Duration = Duration::from_secs(10);
/// Longest wait for a connection to the database.
pub(crate) const MAX_DATABASE_WAIT: Duration = Duration::from_secs(30);
/// Longest wait for SQLite's lock, which only tools of the operator's may hold beside us.
pub(crate) const DATABASE_BUSY: Duration = Duration::from_secs(5);
/// Most connections to an SQLite database that read.
pub(crate) const MAX_DATABASE_READERS: u32 = 4;
/// Memory for pages of the SQLite database in the connection that writes.
pub(crate) const SQLITE_CACHE_KIB: u32 = 64 << 10;
/// Pages, of 4 KiB, of its log after which they are moved into the database: 32 MiB.
pub(crate) const SQLITE_LOG_PAGES: u32 = 8192;
/// Most connections of one coordinator to PostgreSQL.
pub(crate) const MAX_DATABASE_CONNECTIONS: u32 = 12;
/// Longest line of an export of the database.
pub(crate) const MAX_EXPORT_LINE_BYTES: u64 = 64 << 20;
/// Keys in one SQL statement that looks up several.
pub(crate) const LOOKUP_CHUNK_ROWS: usize = 500;
/// Batches that an audit reads at a time; each has at most 128 KiB of leaves.
pub(crate) const AUDIT_PAGE_BATCHES: u64 = 64;
/// Most problems that an audit lists.
pub(crate) const MAX_AUDIT_PROBLEMS: usize = 1000;
/// Most rows of usage that are removed at once, if a batch has not more.
pub(crate) const MAX_DROPPED_ROWS: u64 = 4096;
/// How often usage that is no longer kept is looked for, at least.
pub(crate) const RETENTION_EVERY: Duration = Duration::from_secs(60);
/// How often a node's records are looked at anew in a row because others have come to the ledger meanwhile.
pub(crate) const MAX_RETENTION_BUSY: u32 = 5;
/// How far the clock may be ahead of when old usage was last looked for, as a part of the time that usage is kept, and
/// at least: beyond that nothing is removed until a person says that it is right.
pub(crate) const RETENTION_JUMP_PART: u32 = 10;
/// See there.
pub(crate) const LEAST_RETENTION_JUMP: Duration = Duration::from_secs(86_400);
/// Least pause between two removals.
pub(crate) const RETENTION_PAUSE: Duration = Duration::from_millis(20);
/// Shortest time that usage records may be kept, so that a node has heard that they are there.
pub const LEAST_KEEP_RECORDS: Duration = Duration::from_secs(1);
/// How long after a day's end its files are written, so that what nodes upload meanwhile is in them.
pub(crate) const EXPORT_FILES_GRACE: Duration = Duration::from_secs(3600);
/// Rows of one file, at most twice as many with what is not written yet of all days: some 25 MB.
pub(crate) const EXPORT_PART_ROWS: usize = 32_768;
/// Rows that are read at a time for files.
pub(crate) const EXPORT_PAGE_ROWS: usize = 4096;
/// Most exports of a fleet, and of one tenant.
pub(crate) const MAX_EXPORTS: usize = 1000;
pub(crate) const MAX_EXPORTS_OF_TENANT: usize = 8;
/// Events in one batch to a webhook: some 500 KiB.
pub(crate) const EXPORT_BATCH_EVENTS: usize = 500;
/// How long one export sends before others have their turn; what is under way then is finished.
pub(crate) const EXPORT_TURN: Duration = Duration::from_secs(10);
/// Exports that are sent or written at a time, each with a batch or a file and its rows in memory; and of one tenant.
pub(crate) const MAX_SENDING: usize = 8;
pub(crate) const MAX_SENDING_OF_TENANT: usize = 2;
/// How often it is looked whether a day is over.
pub(crate) const EXPORT_FILES_LOOK: Duration = Duration::from_secs(30);
/// How often exports are looked at.
pub(crate) const EXPORTS_TICK: Duration = Duration::from_millis(500);
/// Longest URL of a webhook.
pub(crate) const MAX_WEBHOOK_URL_CHARS: usize = 2000;
/// How long a webhook's secret is, in bytes, as Standard Webhooks have it.
pub(crate) const WEBHOOK_SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Longest file of certificates for a webhook.
pub(crate) const MAX_AUTHORITIES_BYTES: usize = 64 << 10;
/// Time for a connection to a webhook.
pub(crate) const WEBHOOK_CONNECT: Duration = Duration::from_secs(5);
/// Time for a batch to be sent and answered.
pub(crate) const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a first failure of a webhook, and the longest.
pub(crate) const MIN_WEBHOOK_PAUSE: Duration = Duration::from_secs(1);
pub(crate) const MAX_WEBHOOK_PAUSE: Duration = Duration::from_secs(300);
/// Longest time for which a receiver may ask to be left alone.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Records that are counted at most of those that wait for an export.
pub(crate) const MAX_COUNTED_BEHIND: u64 = 100_000;
/// Most files of exports in one answer.
pub(crate) const MAX_EXPORT_FILES_PAGE: u64 = 1000;
/// Rows in one SQL statement of the ledger.
pub(crate) const LEDGER_CHUNK_ROWS: usize = 500;

const _: () = {
    // A tick may be late without costing a coordinator its life.
    assert!(COORDINATOR_SILENCE.as_millis() >= 5 * COORDINATOR_TICK.as_millis());
    // A statement of the largest size still fits a request body in base64.
    assert!((2 * MAX_MANIFEST_BYTES as usize) * 4 / 3 + 4096 <= MAX_JSON_BODY_BYTES);
    // So does one of a configuration, with secrets beside it, and so do secrets that JSON makes six times as long.
    assert!(
        MAX_CONFIGURATION_STATEMENT_BYTES * 4 / 3 + 2 * MAX_CONFIGURATION_BYTES + 4096
            <= MAX_JSON_BODY_BYTES
    );
    assert!(
        6 * MAX_CONFIGURATION_BYTES + 512 * MAX_CONFIGURATION_ENTRIES + 4096 <= MAX_JSON_BODY_BYTES
    );
    assert!(MAX_DESIRED_BYTES > 16 * MAX_MANIFEST_BYTES as usize);
    assert!(2 * MAX_CHUNK_BYTES <= MAX_PACK_BYTES);
    assert!(LINK_WINDOW_BYTES as usize >= 2 * MAX_CONTROL_FRAME_BYTES);
    // SQLite takes at most 32766 parameters, PostgreSQL twice as many; a usage row has 22.
    assert!(LEDGER_CHUNK_ROWS * 22 < 32_766);
};

/// `text`, cut to `chars` characters, with control characters (but line ends) made visible.
pub(crate) fn cut(text: &str, chars: usize) -> String {
    let show = |c: char| {
        if c.is_control() && c != '\n' {
            '\u{fffd}'
        } else {
            c
        }
    };
    text.chars().take(chars).map(show).collect()
}
