-- Where a tenant's records of usage are sent or written to, and how far that has got. Out are the rows up to number `row`
-- that were accepted before `day_ms`, which is the end of time where days do not matter.
CREATE TABLE usage_exports (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant      TEXT NOT NULL REFERENCES tenants (name),
    kind        TEXT NOT NULL,
    url         TEXT NOT NULL, -- of a webhook; empty for files
    ca          TEXT NOT NULL, -- certificates in PEM that are trusted beside the system's
    private     INTEGER NOT NULL, -- whether addresses that are not public may be reached
    secret      BLOB,          -- sealed with a key that follows from the fleet's authority's
    created_ms  INTEGER NOT NULL,
    row         INTEGER NOT NULL,
    day_ms      INTEGER NOT NULL,
    from_row    INTEGER NOT NULL, -- below it everything is out
    plan_row    INTEGER,          -- where `row` and `day_ms` will be when what is being written is there
    plan_day_ms INTEGER,
    sent        INTEGER NOT NULL, -- rows
    sent_ms     INTEGER,
    failures    INTEGER NOT NULL, -- since the last success
    failed_ms   INTEGER,          -- the first of them
    error       TEXT,
    lost        INTEGER NOT NULL, -- rows that were no longer kept before they were out
    lost_ms     INTEGER
) STRICT;

-- Files that were written, whole, with their names in the artifact store.
CREATE TABLE usage_export_files (
    export     INTEGER NOT NULL,
    name       TEXT NOT NULL,
    day_ms     INTEGER NOT NULL, -- the beginning of the day on which all of its records were accepted
    rows       INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    digest     BLOB NOT NULL,
    written_ms INTEGER NOT NULL,
    PRIMARY KEY (export, name)
) STRICT;

-- A tenant's rows in the order in which they were entered.
CREATE INDEX usage_by_tenant ON usage (tenant, row);
DROP INDEX usage_by_function;
