-- Tokens with verbs, tenants and an end. Their secrets follow from the CA's key and the id.
CREATE TABLE tokens (
    id         BLOB PRIMARY KEY,
    name       TEXT NOT NULL,
    caveats    TEXT NOT NULL,    -- those that it was made with, a line each
    created_ms INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_ms INTEGER,
    revoked_ms INTEGER
) STRICT;
CREATE UNIQUE INDEX one_valid_token_of_a_name ON tokens (name) WHERE revoked_ms IS NULL;

-- Who did what. Rows are inserted and never changed; `hash` is over the row and the hash before.
CREATE TABLE audit_log (
    row        INTEGER PRIMARY KEY,
    at_ms      INTEGER NOT NULL,
    actor_kind TEXT NOT NULL,
    actor      TEXT NOT NULL,
    actor_id   TEXT NOT NULL,
    action     TEXT NOT NULL,
    object     TEXT NOT NULL,
    outcome    TEXT NOT NULL,
    detail     TEXT NOT NULL,
    begun      INTEGER,          -- the row with which it began
    hash       BLOB NOT NULL
) STRICT;
-- Against mistakes; against intent there are the hashes.
CREATE TRIGGER audit_log_is_not_changed BEFORE UPDATE ON audit_log
BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
CREATE TRIGGER audit_log_is_not_deleted BEFORE DELETE ON audit_log
BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;

ALTER TABLE versions ADD COLUMN author TEXT NOT NULL DEFAULT '';
-- A version that nobody may need keeps its row, without its statement, and its counter.
ALTER TABLE versions ADD COLUMN removed_ms INTEGER;

CREATE TABLE tags (
    function TEXT NOT NULL REFERENCES functions (name),
    tag      TEXT NOT NULL,
    version  BLOB NOT NULL REFERENCES versions (id),
    set_ms   INTEGER NOT NULL,
    PRIMARY KEY (function, tag)
) STRICT, WITHOUT ROWID;

-- JSON: what a cordoned node keeps, by function; none if it is not cordoned.
ALTER TABLE nodes ADD COLUMN cordoned TEXT;
-- JSON, by key.
ALTER TABLE nodes ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
-- Since when its certificate is void.
ALTER TABLE nodes ADD COLUMN revoked_ms INTEGER;

-- From when on nothing new that it signs gets in; may be yet to come.
ALTER TABLE publisher_keys ADD COLUMN revoked_ms INTEGER;
