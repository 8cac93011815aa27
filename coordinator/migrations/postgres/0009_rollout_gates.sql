-- What nodes reported to coordinators that do not execute rollouts, until the one that does takes it. It takes the
-- place of `tallies`, which told neither of nodes nor of run times.
CREATE TABLE gate_counts (
    function text COLLATE "C" NOT NULL,
    version  bytea NOT NULL,
    node     text COLLATE "C" NOT NULL,
    counted  text COLLATE "C" NOT NULL -- JSON
);

-- Rollouts that begin when the one that is going on has ended: at most one of a function.
CREATE TABLE queued_rollouts (
    function text COLLATE "C" PRIMARY KEY,
    version  bytea NOT NULL,
    request  text COLLATE "C" NOT NULL, -- JSON
    asked_ms bigint NOT NULL
);
