-- The chain of each node's usage. Rows of `usage` are in batches by (node, boot_epoch, sequence).

-- Nodes whose usage is chained. Rows of theirs up to `unchained_upto` are from before that.
CREATE TABLE usage_chains (
    node           TEXT PRIMARY KEY,
    unchained_upto INTEGER NOT NULL
) STRICT;

-- Keys that have signed batches, with the certificates that say whose they are.
CREATE TABLE usage_signers (
    node        TEXT NOT NULL,
    fingerprint BLOB NOT NULL, -- SHA-256 of the certificate's DER
    certificate BLOB NOT NULL, -- DER
    PRIMARY KEY (node, fingerprint)
) STRICT;

-- Batches, inserted and never changed.
CREATE TABLE usage_batches (
    node        TEXT NOT NULL,
    boot_epoch  INTEGER NOT NULL,
    first       INTEGER NOT NULL,
    last        INTEGER NOT NULL,
    previous    BLOB NOT NULL,
    hash        BLOB NOT NULL,
    leaves      BLOB NOT NULL, -- 32 bytes for each record
    signature   BLOB NOT NULL,
    signer      BLOB NOT NULL, -- a fingerprint of usage_signers
    received_ms INTEGER NOT NULL,
    PRIMARY KEY (node, boot_epoch, first)
) STRICT;
