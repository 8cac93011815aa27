-- Configurations: environment and secrets, with numbers of their own. Like versions they never change.
CREATE TABLE configurations (
    id           BLOB PRIMARY KEY, -- SHA-256 of the statement
    function     TEXT NOT NULL REFERENCES functions (name),
    number       INTEGER NOT NULL,
    statement    BLOB NOT NULL,    -- verbatim; of secrets it has commitments
    key          BLOB NOT NULL,
    signature    BLOB NOT NULL,
    published_ms INTEGER NOT NULL,
    UNIQUE (function, number)
) STRICT;

-- Values of secrets, encrypted. The configurations of a function share them.
CREATE TABLE secrets (
    function   TEXT NOT NULL REFERENCES functions (name),
    commitment BLOB NOT NULL,
    number     INTEGER NOT NULL, -- of the configuration that it came with
    ciphertext BLOB NOT NULL,
    PRIMARY KEY (function, commitment)
) STRICT, WITHOUT ROWID;

-- The key that they are encrypted with: one row, once there is one.
CREATE TABLE secrets_key (
    fingerprint BLOB PRIMARY KEY
) STRICT;

-- By what name nodes know a version with a configuration.
CREATE TABLE releases (
    id            BLOB PRIMARY KEY,
    version       BLOB NOT NULL REFERENCES versions (id),
    configuration BLOB NOT NULL REFERENCES configurations (id)
) STRICT;

-- Empty where there is none.
ALTER TABLE functions ADD COLUMN current_configuration BLOB NOT NULL DEFAULT x'';
ALTER TABLE functions ADD COLUMN fallback_configuration BLOB NOT NULL DEFAULT x'';
ALTER TABLE rollouts ADD COLUMN configuration BLOB NOT NULL DEFAULT x'';
