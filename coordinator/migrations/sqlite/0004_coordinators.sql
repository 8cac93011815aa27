-- Several coordinators on one database. What only they need is empty where there is one.

-- Rises with everything that is decided about rollouts and desired state, and with every change of a
-- link.
INSERT INTO counters (name, value) VALUES ('revision', 0), ('link_change', 0);

-- The fleet's certificate authority: one row, once there is one.
CREATE TABLE authority (
    fingerprint BLOB PRIMARY KEY -- SHA-256 of the certificate's DER
) STRICT;

-- Coordinators at work.
CREATE TABLE coordinators (
    id         TEXT PRIMARY KEY, -- new at every start
    address    TEXT NOT NULL,    -- of its API
    started_ms INTEGER NOT NULL,
    beat       INTEGER NOT NULL  -- rises while it lives
) STRICT;

-- What one coordinator does for all. `token` rises with every holder and is compared by whatever is
-- done under the lease, so that a holder that has lost it does nothing more.
CREATE TABLE leases (
    name   TEXT PRIMARY KEY,
    holder TEXT,
    token  INTEGER NOT NULL
) STRICT;
INSERT INTO leases (name, token) VALUES ('rollouts', 0);

-- Nodes' links, and what the nodes said over them.
CREATE TABLE links (
    node        TEXT PRIMARY KEY,
    coordinator TEXT NOT NULL,    -- the one it was linked to last
    session     INTEGER NOT NULL, -- that coordinator's number for the link
    up          INTEGER NOT NULL,
    stopping    INTEGER NOT NULL,
    observed    TEXT,             -- JSON; none until the node has told over this link
    change      INTEGER NOT NULL UNIQUE
) STRICT;

-- Outcomes that nodes reported to coordinators that do not execute rollouts, until the one that does
-- takes them.
CREATE TABLE tallies (
    function    TEXT NOT NULL,
    version     BLOB NOT NULL,
    invocations INTEGER NOT NULL,
    errors      INTEGER NOT NULL,
    crashes     INTEGER NOT NULL,
    PRIMARY KEY (function, version)
) STRICT, WITHOUT ROWID;
