-- Everything the coordinator must not forget. Times are milliseconds since 1970 UTC; digests and
-- keys are raw bytes; a function is written tenant/function.

CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;
-- Generation of desired state, and usage records that were sent again.
INSERT INTO counters (name, value) VALUES ('generation', 0), ('usage_resent', 0);

CREATE TABLE api_tokens (
    digest     BLOB PRIMARY KEY,
    label      TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE join_tokens (
    digest     BLOB PRIMARY KEY,
    node       TEXT,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    used_ms    INTEGER,
    used_by    TEXT
) STRICT;

CREATE TABLE nodes (
    name         TEXT PRIMARY KEY,
    certificate  BLOB NOT NULL, -- SHA-256 of the certificate's DER
    joined_ms    INTEGER NOT NULL,
    hello        TEXT,          -- JSON; none until the node has been connected once
    last_seen_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE tenants (
    name       TEXT PRIMARY KEY,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE publisher_keys (
    tenant   TEXT NOT NULL REFERENCES tenants (name),
    key      BLOB NOT NULL,
    added_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE functions (
    name     TEXT PRIMARY KEY,
    tenant   TEXT NOT NULL REFERENCES tenants (name),
    current  BLOB REFERENCES versions (id), -- what the fleet is on
    fallback BLOB REFERENCES versions (id)  -- what nodes keep beside it
) STRICT;

CREATE TABLE versions (
    id           BLOB PRIMARY KEY,
    function     TEXT NOT NULL REFERENCES functions (name),
    counter      INTEGER NOT NULL,
    artifact     BLOB NOT NULL,
    label        TEXT NOT NULL,
    message      TEXT NOT NULL,
    content      BLOB NOT NULL, -- the same for two versions that do the same
    created_ms   INTEGER NOT NULL,
    statement    BLOB NOT NULL, -- verbatim
    key          BLOB NOT NULL,
    signature    BLOB NOT NULL,
    published_ms INTEGER NOT NULL,
    UNIQUE (function, counter)
) STRICT;
CREATE INDEX versions_by_artifact ON versions (artifact);

CREATE TABLE rollouts (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    function TEXT NOT NULL REFERENCES functions (name),
    version  BLOB NOT NULL REFERENCES versions (id),
    rollback INTEGER NOT NULL, -- started by `rollback`
    state    TEXT NOT NULL,
    plan     TEXT NOT NULL,    -- JSON, the planner's
    ended_ms INTEGER
) STRICT;
CREATE UNIQUE INDEX one_rollout_at_a_time ON rollouts (function) WHERE ended_ms IS NULL;
CREATE INDEX rollouts_by_function ON rollouts (function, id);

-- The ledger. Rows are inserted and never changed. An execution's key is (node, boot_epoch,
-- sequence); `row` is the order in which they were entered.
CREATE TABLE usage (
    row            INTEGER PRIMARY KEY AUTOINCREMENT,
    node           TEXT NOT NULL,
    boot_epoch     INTEGER NOT NULL,
    sequence       INTEGER NOT NULL,
    request        BLOB NOT NULL,
    tenant         TEXT NOT NULL,
    function       TEXT NOT NULL,
    version        BLOB NOT NULL,
    accepted_ms    INTEGER NOT NULL,
    outcome        TEXT NOT NULL,
    status         INTEGER NOT NULL,
    queue_ns       INTEGER NOT NULL,
    restore_ns     INTEGER NOT NULL,
    run_ns         INTEGER NOT NULL,
    cpu_ns         INTEGER NOT NULL,
    memory_bytes   INTEGER NOT NULL,
    request_bytes  INTEGER NOT NULL,
    response_bytes INTEGER NOT NULL,
    cold           INTEGER NOT NULL,
    exits          INTEGER NOT NULL,
    probe          INTEGER NOT NULL,
    UNIQUE (node, boot_epoch, sequence)
) STRICT;
CREATE INDEX usage_by_request ON usage (request);
CREATE INDEX usage_by_function ON usage (tenant, function);
