//! Every bound of Holm that more than one crate must know, with its unit in its name.

/// Longest tenant or function name, in bytes. Names are DNS labels.
pub const MAX_NAME_BYTES: usize = 63;
/// Largest artifact.
pub const MAX_ARTIFACT_BYTES: u64 = 256 << 20;
/// Largest manifest file.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 10;
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

/// Largest control message on the wire.
pub const MAX_CONTROL_FRAME_BYTES: usize = 4 << 20;
/// Most usage records in a batch.
pub const MAX_USAGE_BATCH: usize = 4096;

const _: () = {
    assert!(MIN_MEMORY_BYTES <= DEFAULT_MEMORY_BYTES && DEFAULT_MEMORY_BYTES <= MAX_MEMORY_BYTES);
    assert!(DEFAULT_DEADLINE_MS <= MAX_DEADLINE_MS);
    assert!(DEFAULT_REQUEST_BODY_BYTES <= MAX_REQUEST_BODY_BYTES);
    assert!(DEFAULT_RESPONSE_BODY_BYTES <= MAX_RESPONSE_BODY_BYTES);
    assert!(MAX_USAGE_BATCH * 512 <= MAX_CONTROL_FRAME_BYTES);
};
