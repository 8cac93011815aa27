//! Every bound of the node, with its unit in its name. Bounds that others must know as well are in
//! [`holm_model::limits`].

use std::time::Duration;

use holm_model::chunks::MAX_CHUNK_BYTES;
use holm_model::limits::{MAX_REQUEST_BODY_BYTES, MAX_USAGE_BATCH};

/// How long a node that starts waits, before it listens, until it has brought up what its disk says.
pub(crate) const RESTORE_PATIENCE: Duration = Duration::from_secs(3);
/// How long the thread that owns a connection runs a vCPU before a worker takes over. Long enough
/// for most requests, short enough that the thread's other connections do not feel it.
pub const FIRST_QUANTUM: Duration = Duration::from_micros(500);
/// The least that this becomes for a tenant whose requests the workers are busy with.
pub const MIN_QUANTUM: Duration = Duration::from_micros(100);
/// What of a quantum is too little to go on for: half of what an exit and the way back cost.
pub const LEAST_TURN: Duration = Duration::from_micros(50);
/// What one request may take of its connection's thread in all, over several sleeps of its guest.
pub const INLINE_BUDGET: Duration = Duration::from_millis(2);
/// How long a worker runs one vCPU before the next one's turn.
pub const SLICE: Duration = Duration::from_millis(2);
/// How long a kept instance (`isolation = "instance"`) may take from its answer to its next wait.
pub const AGAIN_DEADLINE: Duration = Duration::from_millis(50);

/// How long a request waits for a kept instance at work to take it, before it looks for another one.
pub const DOOR_PATIENCE: Duration = Duration::from_millis(10);
/// How long one that was let in there waits until the guest takes it, before it looks for another way. Longer
/// than an instance takes to its next wait.
pub const SEAT_PATIENCE: Duration = Duration::from_millis(100);

/// Most requests of one version that wait for room on this node.
pub const MAX_QUEUED_PER_VERSION: usize = 256;
/// Most requests of all of a tenant's versions that do.
pub const MAX_QUEUED_PER_TENANT: usize = 1024;
/// Most requests that other ingress threads hand to one, for a version whose instances are there, and that it
/// has not taken yet.
pub const MAX_HANDED_OVER: usize = 1024;
/// How often the slots that hold a version are compared with its requests.
pub const WARM_LOOK: Duration = Duration::from_secs(1);
/// What a caller that was turned away for lack of room is told to wait.
pub const RETRY_AFTER_SECONDS: u32 = 1;
/// Most connections of one ingress thread; more are closed at once.
pub const MAX_CONNECTIONS_PER_THREAD: usize = 4096;
/// Most concurrent streams of one HTTP/2 connection.
pub const MAX_STREAMS_PER_CONNECTION: u32 = 256;
/// Bytes of an answer that one HTTP/2 stream takes in before they can be sent. Each part of one, however small,
/// takes room beside its bytes.
pub const MAX_SEND_BYTES_PER_STREAM: usize = 64 << 10;
/// Most bytes of request bodies that one ingress thread holds at a time.
pub const MAX_BODY_BYTES_PER_THREAD: usize = 256 << 20;
/// Bytes of answers that callers have not taken, over which an ingress thread runs no new request.
/// What is under way then still comes on top.
pub const MAX_ANSWER_BYTES_PER_THREAD: usize = 256 << 20;
/// Bytes of an answer in parts that its caller has not taken, over which the function is made to wait.
pub const PART_WINDOW_BYTES: usize = 256 << 10;
/// Bytes of a request's body that are gathered before the function gets the request; of a longer one it gets
/// the rest as it comes.
pub const GATHERED_BODY_BYTES: usize = 1 << 20;
/// How long a body of unknown length is gathered. Most such are short, and a function gets those whole.
pub const GATHER_TIME: Duration = Duration::from_millis(20);
/// Bytes of a body that the function has not read, over which no more is taken from the caller.
pub const BODY_WINDOW_BYTES: usize = 256 << 10;
/// How long a caller may take to receive one answer; then its connection is closed.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// The same while the thread holds [`MAX_ANSWER_BYTES_PER_THREAD`] and turns others away for it.
pub const PRESSED_ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a caller may take to send a request's head; an idle connection is closed after it.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a caller may take to send a request's body.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a function may wait for the rest of a body in all, beyond what [`MIN_BODY_BYTES_PER_SECOND`] allows,
/// before its place is for others that want one.
pub const BODY_PATIENCE: Duration = Duration::from_millis(250);
/// How fast a body is to come.
pub const MIN_BODY_BYTES_PER_SECOND: u32 = 64 << 10;
/// How often it is looked whether somebody wants the place of a caller that is slower.
pub const PLACE_LOOK: Duration = Duration::from_millis(20);
/// How long a connection is kept after its last answer for what its caller still sends, so that the answer
/// arrives.
pub const LINGER: Duration = Duration::from_secs(10);
/// How long a caller may be silent meanwhile.
pub const LINGER_SILENCE: Duration = Duration::from_secs(2);
/// Most bytes that are read and thrown away meanwhile: any body that some function would have taken.
pub const MAX_LINGER_BYTES: u64 = MAX_REQUEST_BODY_BYTES;
/// How long requests under way may take to end when the node stops.
pub const DRAIN: Duration = Duration::from_secs(10);
/// How long callers whose requests are not over by then may take to receive that.
pub const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// How long an instance that was kept may take to end after SIGTERM.
pub const TERMINATE_DEADLINE: Duration = Duration::from_secs(5);
/// Most instances that are told to end and are not there yet; while there are as many, others are dropped.
pub const MAX_ENDINGS: usize = 8;
/// How long a stopping ingress thread waits for slots behind answers: for kept instances to get to their next
/// wait, and a little for their turn.
pub const LAST_RETURN: Duration = AGAIN_DEADLINE.saturating_add(Duration::from_millis(200));
/// Slots that each ingress thread makes ahead at least, when the operator does not say how many.
pub const MIN_DEFAULT_SLOTS_PER_THREAD: usize = 2;
/// The same at most.
pub const MAX_DEFAULT_SLOTS_PER_THREAD: usize = 16;
/// Memory of the node's for one of them: what most functions' instances may take, and as much for all else.
pub const BYTES_PER_SLOT: u64 = 128 << 20;
/// How often it is looked how much memory is left.
pub const MEMORY_LOOK: Duration = Duration::from_secs(1);
/// With less than this part of it left, instances that nobody uses are given back.
pub const LOW_MEMORY_SHARE: u64 = 16;
/// Most of them that a thread gives back at each look at its slots.
pub const MAX_RELIEVED: usize = 4;
/// Most slots of one ingress thread.
pub const MAX_SLOTS_PER_THREAD: usize = 1024;
/// Pause before another attempt to make a slot that could not be made.
pub const SLOT_RETRY: Duration = Duration::from_secs(1);
/// Most bytes of what a program wrote during one invocation that go to the node's log.
pub const MAX_LOGGED_BYTES: usize = 4 << 10;
/// Most bytes of entries of the log that wait for the coordinator.
pub const MAX_LOG_QUEUE_BYTES: usize = 512 << 10;

/// Threads that resolve names for functions, at most.
pub const MAX_RESOLVER_THREADS: usize = 16;
/// Those for one tenant's functions.
pub const MAX_RESOLVER_THREADS_PER_TENANT: usize = MAX_RESOLVER_THREADS / 4;
/// Most names of one tenant that are being resolved or wait for it.
pub const MAX_ASKED_NAMES_PER_TENANT: usize = 64;
/// Most names whose addresses are remembered.
pub const MAX_KNOWN_NAMES: usize = 1024;
/// Most addresses of one name.
pub const MAX_ADDRESSES_PER_NAME: usize = 16;
/// Most instances that wait for one name.
pub const MAX_WAITING_PER_NAME: usize = 1024;
/// Most addresses that one instance may reach because a name resolved to them.
pub const MAX_RESOLVED_PER_INSTANCE: usize = 256;
/// How long the addresses of a name are used.
pub const NAME_KEPT: Duration = Duration::from_secs(30);
/// How long it is taken for true that a name has none.
pub const NO_NAME_KEPT: Duration = Duration::from_secs(3);

/// How long a program may take from its start to its first wait for a request.
pub const PREPARE_DEADLINE: Duration = Duration::from_secs(30);
/// How long the choice of how a version is restored may take in all; meanwhile no other version is prepared.
pub const CHOICE_DEADLINE: Duration = Duration::from_secs(2);
/// Shortest and longest pause before a version that failed through no fault of its own is begun again.
pub const MIN_AGAIN: Duration = Duration::from_secs(1);
/// See there.
pub const MAX_AGAIN: Duration = Duration::from_secs(60);
/// How often that is done before the coordinator is told of a failure.
pub const QUIET_TRIES: u32 = 2;
/// Most bytes of a program's last words in the reason of a failed version.
pub const MAX_REASON_LOG_BYTES: usize = 2 << 10;
/// Most bytes of a failed version's reason.
pub const MAX_REASON_BYTES: usize = 8 << 10;
/// Most bytes of all reasons in one message.
pub const MAX_REASONS_BYTES: usize = 1 << 20;
/// Most functions in one desired state.
pub const MAX_FUNCTIONS: usize = 4096;
/// How long one piece of a bulk transfer may take.
pub const BULK_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of an artifact's chunks that are gathered before they are checked and written.
pub const FETCH_PIECE_BYTES: usize = 256 << 10;
/// Pause between two attempts to fetch an artifact.
pub const FETCH_RETRY: Duration = Duration::from_millis(500);
/// Attempts to fetch an artifact that the coordinator refuses or delivers wrongly.
pub const MAX_FETCH_ATTEMPTS: u32 = 5;

/// Least pause between two attempts to have the node's certificate renewed.
pub const MIN_RENEWAL_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between two looks at whether it is to be renewed.
pub const MAX_RENEWAL_PAUSE: Duration = Duration::from_secs(3600);
/// Shortest pause before the node dials the coordinator again.
pub const MIN_RECONNECT: Duration = Duration::from_millis(200);
/// Longest pause before the node dials the coordinator again.
pub const MAX_RECONNECT: Duration = Duration::from_secs(5);
/// How often the link is kept alive.
pub const LINK_KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Silence after which the link counts as lost.
pub const LINK_IDLE: Duration = Duration::from_secs(3);
/// How long dialling, joining or the coordinator's first answer may take.
pub const LINK_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the gauges of budgets are looked at; so long, and the time of one question, a lease is waited for.
pub const BUDGET_LOOK: Duration = Duration::from_millis(100);
/// How long the coordinator may take to answer about leases.
pub const LEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request waits for budget that may come.
pub const LEASE_PATIENCE: Duration = Duration::from_millis(500);
/// How often it looks.
pub const LEASE_POLL: Duration = Duration::from_millis(20);
/// Most bytes that a request under a hard budget may send over connections of its own: so many are reserved.
pub const MAX_EGRESS_BYTES_BUDGETED: u64 = 64 << 20;
/// Most seconds that a caller is told to wait for a budget of the next month.
pub const MAX_RETRY_AFTER_SECONDS: u64 = 31 * 86_400;

/// Usage records between the request path and the journal.
pub const JOURNAL_QUEUE: usize = 16 << 10;
/// Waiting usage records over which no new request is taken. What is under way then still fits.
pub const JOURNAL_ROOM: usize = JOURNAL_QUEUE / 2;
/// How long the journal gathers records for one commit. A commit with its sync is dear, and takes a core from
/// requests; what a loss of power can take grows with it.
pub const COMMIT_GATHER: Duration = Duration::from_millis(20);
/// Most records in one commit.
pub const MAX_COMMIT_RECORDS: usize = 4096;
/// Size at which a spill segment is left for the other one.
pub const SPILL_SEGMENT_BYTES: u64 = 1 << 20;
/// Largest spill segment. Reached only when the journal cannot commit; then no request is taken.
pub const MAX_SPILL_SEGMENT_BYTES: u64 = 64 << 20;
/// Largest frame in a spill segment.
pub const MAX_SPILL_FRAME_BYTES: usize = 4 << 10;
/// Room that is kept to empty a journal on a full disk: for what SQLite writes before it comes to its database, for
/// that to be brought there, and as much again.
pub const JOURNAL_RESERVE_BYTES: u64 = 16 << 20;
/// Bytes of the journal's file that are kept for what comes next, when others are given back.
pub const JOURNAL_KEPT_BYTES: u64 = 4 << 20;
/// The same while the disk is full.
pub const JOURNAL_TIGHT_BYTES: u64 = 1 << 20;
/// Most bytes of it that are given back at a time.
pub const JOURNAL_SHRINK_BYTES: u64 = 2 << 20;
/// What is kept of the log that SQLite writes before it comes to the journal's database.
pub const JOURNAL_LOG_BYTES: u64 = 4 << 20;
/// Pause before the journal tries a failed commit again.
pub const COMMIT_RETRY: Duration = Duration::from_millis(500);
/// Pause between two uploads of usage while batches are not full.
pub const UPLOAD_PAUSE: Duration = Duration::from_millis(200);
/// The last generation that desired state may have. Nobody counts so far, so a greater one is no state to follow: after
/// it there might be no other.
pub const LAST_GENERATION: u64 = 1 << 62;
/// Pause before a failed upload is tried again.
pub const UPLOAD_RETRY: Duration = Duration::from_secs(1);
/// How long a stopping node tries to hand over its last usage records; the rest stays on disk.
pub const LAST_UPLOAD: Duration = Duration::from_secs(2);

const _: () = {
    assert!(MIN_DEFAULT_SLOTS_PER_THREAD <= MAX_DEFAULT_SLOTS_PER_THREAD);
    assert!(MAX_DEFAULT_SLOTS_PER_THREAD <= MAX_SLOTS_PER_THREAD);
    assert!(MIN_QUANTUM.as_nanos() <= FIRST_QUANTUM.as_nanos());
    assert!(FIRST_QUANTUM.as_nanos() <= INLINE_BUDGET.as_nanos());
    assert!(MAX_REQUEST_BODY_BYTES as usize <= MAX_BODY_BYTES_PER_THREAD);
    assert!(PRESSED_ANSWER_TIMEOUT.as_nanos() <= ANSWER_TIMEOUT.as_nanos());
    assert!(
        LINGER_SILENCE.as_nanos() <= LINGER.as_nanos() && LINGER.as_nanos() <= DRAIN.as_nanos()
    );
    assert!(AGAIN_DEADLINE.as_nanos() < SEAT_PATIENCE.as_nanos());
    assert!(0 < MAX_RESOLVER_THREADS_PER_TENANT);
    assert!(MAX_RESOLVER_THREADS_PER_TENANT < MAX_RESOLVER_THREADS);
    assert!(MAX_ASKED_NAMES_PER_TENANT < MAX_KNOWN_NAMES);
    assert!(MAX_QUEUED_PER_VERSION <= MAX_QUEUED_PER_TENANT);
    assert!(JOURNAL_ROOM < JOURNAL_QUEUE);
    // The log, the database's growth by it, and what one batch adds to both.
    assert!(JOURNAL_RESERVE_BYTES >= 2 * (JOURNAL_LOG_BYTES + JOURNAL_SHRINK_BYTES));
    assert!(JOURNAL_TIGHT_BYTES < JOURNAL_KEPT_BYTES);
    // Time for a look, a question and a look at what came.
    assert!(LEASE_PATIENCE.as_nanos() >= 3 * BUDGET_LOOK.as_nanos());
    assert!(LEASE_POLL.as_nanos() < BUDGET_LOOK.as_nanos());
    assert!(SPILL_SEGMENT_BYTES < MAX_SPILL_SEGMENT_BYTES);
    assert!(MAX_COMMIT_RECORDS <= JOURNAL_QUEUE && MAX_USAGE_BATCH <= JOURNAL_QUEUE);
    assert!(MAX_CHUNK_BYTES <= FETCH_PIECE_BYTES);
    assert!(MIN_AGAIN.as_nanos() <= MAX_AGAIN.as_nanos());
    assert!(MIN_RECONNECT.as_nanos() < MAX_RECONNECT.as_nanos());
    assert!(LINK_KEEP_ALIVE.as_nanos() * 2 < LINK_IDLE.as_nanos());
};
