-- What nodes reported to coordinators that do not execute rollouts, until the one that does takes it. It takes the
-- place of `tallies`, which told neither of nodes nor of run times.
CREATE TABLE gate_counts (
    function TEXT NOT NULL,
    version  BLOB NOT NULL,
    node     TEXT NOT NULL,
    counted  TEXT NOT NULL -- JSON
) STRICT;

-- Rollouts that begin when the one that is going on has ended: at most one of a function.
CREATE TABLE queued_rollouts (
    function TEXT PRIMARY KEY,
    version  BLOB NOT NULL,
    request  TEXT NOT NULL, -- JSON
    asked_ms INTEGER NOT NULL
) STRICT;
