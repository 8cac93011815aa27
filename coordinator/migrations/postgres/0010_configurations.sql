-- Configurations: environment and secrets, with numbers of their own. Like versions they never change.
CREATE TABLE configurations (
    id           bytea PRIMARY KEY, -- SHA-256 of the statement
    function     text COLLATE "C" NOT NULL REFERENCES functions (name),
    number       bigint NOT NULL,
    statement    bytea NOT NULL,    -- verbatim; of secrets it has commitments
    key          bytea NOT NULL,
    signature    bytea NOT NULL,
    published_ms bigint NOT NULL,
    UNIQUE (function, number)
);

-- Values of secrets, encrypted. The configurations of a function share them.
CREATE TABLE secrets (
    function   text COLLATE "C" NOT NULL REFERENCES functions (name),
    commitment bytea NOT NULL,
    number     bigint NOT NULL, -- of the configuration that it came with
    ciphertext bytea NOT NULL,
    PRIMARY KEY (function, commitment)
);

-- The key that they are encrypted with: one row, once there is one.
CREATE TABLE secrets_key (
    fingerprint bytea PRIMARY KEY
);

-- By what name nodes know a version with a configuration.
CREATE TABLE releases (
    id            bytea PRIMARY KEY,
    version       bytea NOT NULL REFERENCES versions (id),
    configuration bytea NOT NULL REFERENCES configurations (id)
);

-- Empty where there is none.
ALTER TABLE functions ADD COLUMN current_configuration bytea NOT NULL DEFAULT '';
ALTER TABLE functions ADD COLUMN fallback_configuration bytea NOT NULL DEFAULT '';
ALTER TABLE rollouts ADD COLUMN configuration bytea NOT NULL DEFAULT '';
