-- The chain of each node's usage. Rows of `usage` are in batches by (node, boot_epoch, sequence).

-- Nodes whose usage is chained. Rows of theirs up to `unchained_upto` are from before that.
CREATE TABLE usage_chains (
    node           text COLLATE "C" PRIMARY KEY,
    unchained_upto bigint NOT NULL
);

-- Keys that have signed batches, with the certificates that say whose they are.
CREATE TABLE usage_signers (
    node        text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL, -- SHA-256 of the certificate's DER
    certificate bytea NOT NULL, -- DER
    PRIMARY KEY (node, fingerprint)
);

-- Batches, inserted and never changed.
CREATE TABLE usage_batches (
    node        text COLLATE "C" NOT NULL,
    boot_epoch  bigint NOT NULL,
    first       bigint NOT NULL,
    last        bigint NOT NULL,
    previous    bytea NOT NULL,
    hash        bytea NOT NULL,
    leaves      bytea NOT NULL, -- 32 bytes for each record
    signature   bytea NOT NULL,
    signer      bytea NOT NULL, -- a fingerprint of usage_signers
    received_ms bigint NOT NULL,
    PRIMARY KEY (node, boot_epoch, first)
);
