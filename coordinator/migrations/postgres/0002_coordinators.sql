-- Several coordinators on one database. What only they need is empty where there is one.

-- Rises with everything that is decided about rollouts and desired state, and with every change of a
-- link.
INSERT INTO counters (name, value) VALUES ('revision', 0), ('link_change', 0);

-- The fleet's certificate authority: one row, once there is one.
CREATE TABLE authority (
    fingerprint bytea PRIMARY KEY -- SHA-256 of the certificate's DER
);

-- Coordinators at work.
CREATE TABLE coordinators (
    id         text COLLATE "C" PRIMARY KEY, -- new at every start
    address    text COLLATE "C" NOT NULL,    -- of its API
    started_ms bigint NOT NULL,
    beat       bigint NOT NULL               -- rises while it lives
);

-- What one coordinator does for all. `token` rises with every holder and is compared by whatever is
-- done under the lease, so that a holder that has lost it does nothing more.
CREATE TABLE leases (
    name   text COLLATE "C" PRIMARY KEY,
    holder text COLLATE "C",
    token  bigint NOT NULL
);
INSERT INTO leases (name, token) VALUES ('rollouts', 0);

-- Nodes' links, and what the nodes said over them.
CREATE TABLE links (
    node        text COLLATE "C" PRIMARY KEY,
    coordinator text COLLATE "C" NOT NULL, -- the one it was linked to last
    session     bigint NOT NULL,           -- that coordinator's number for the link
    up          bigint NOT NULL,
    stopping    bigint NOT NULL,
    observed    text COLLATE "C",          -- JSON; none until the node has told over this link
    change      bigint NOT NULL UNIQUE
);

-- Outcomes that nodes reported to coordinators that do not execute rollouts, until the one that does
-- takes them.
CREATE TABLE tallies (
    function    text COLLATE "C" NOT NULL,
    version     bytea NOT NULL,
    invocations bigint NOT NULL,
    errors      bigint NOT NULL,
    crashes     bigint NOT NULL,
    PRIMARY KEY (function, version)
);
