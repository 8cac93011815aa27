-- Sums of the ledger by minute, hour and day, made with its rows and never changed but by adding. `grain`
-- is how long the time is that begins at `start_ms`, in milliseconds. Probes are in none of them. Of the
-- columns, `billed_` ones are what a price plan is applied to.
CREATE TABLE usage_sums (
    grain_ms             INTEGER NOT NULL,
    start_ms             INTEGER NOT NULL,
    tenant               TEXT NOT NULL,
    function             TEXT NOT NULL,
    version              BLOB NOT NULL,
    node                 TEXT NOT NULL,
    answered             INTEGER NOT NULL,
    function_error       INTEGER NOT NULL,
    crash                INTEGER NOT NULL,
    timeout              INTEGER NOT NULL,
    cancelled            INTEGER NOT NULL,
    shed                 INTEGER NOT NULL,
    platform_fault       INTEGER NOT NULL,
    cold                 INTEGER NOT NULL,
    run_ns               INTEGER NOT NULL,
    cpu_ns               INTEGER NOT NULL,
    memory_kib_ms        INTEGER NOT NULL,
    request_bytes        INTEGER NOT NULL,
    response_bytes       INTEGER NOT NULL,
    egress_bytes         INTEGER NOT NULL,
    ingress_bytes        INTEGER NOT NULL,
    billed_requests      INTEGER NOT NULL,
    billed_memory_kib_ms INTEGER NOT NULL,
    billed_cpu_ns        INTEGER NOT NULL,
    billed_egress_bytes  INTEGER NOT NULL,
    PRIMARY KEY (grain_ms, start_ms, tenant, function, version, node)
) STRICT, WITHOUT ROWID;

-- What is in the ledger already.
INSERT INTO usage_sums
SELECT grain_ms, accepted_ms - accepted_ms % grain_ms AS started_ms, tenant, function, version, node,
       COUNT(*) FILTER (WHERE outcome = 'answered'),
       COUNT(*) FILTER (WHERE outcome = 'function_error'),
       COUNT(*) FILTER (WHERE outcome = 'crash'),
       COUNT(*) FILTER (WHERE outcome = 'timeout'),
       COUNT(*) FILTER (WHERE outcome = 'cancelled'),
       COUNT(*) FILTER (WHERE outcome = 'shed'),
       COUNT(*) FILTER (WHERE outcome = 'platform_fault'),
       SUM(cold), SUM(run_ns), SUM(cpu_ns), SUM((memory_bytes + 1023) / 1024 * ((run_ns + 999999) / 1000000)),
       SUM(request_bytes), SUM(response_bytes), SUM(egress_bytes), SUM(ingress_bytes), SUM(billed),
       SUM(billed * ((memory_bytes + 1023) / 1024 * ((run_ns + 999999) / 1000000))),
       SUM(billed * cpu_ns), SUM(billed * (response_bytes + egress_bytes))
FROM (SELECT *, CASE WHEN outcome IN ('shed', 'platform_fault') THEN 0 ELSE 1 END AS billed FROM usage WHERE probe = 0) AS rows_of,
     (SELECT 60000 AS grain_ms UNION ALL SELECT 3600000 UNION ALL SELECT 86400000) AS grains
GROUP BY grain_ms, started_ms, tenant, function, version, node;

-- Prices are in billionths of the currency's unit. A version of a plan is never changed.
CREATE TABLE price_plans (
    name             TEXT NOT NULL,
    version          INTEGER NOT NULL,
    from_ms          INTEGER NOT NULL,
    currency         TEXT NOT NULL,
    million_requests INTEGER NOT NULL,
    million_gib_ms   INTEGER NOT NULL,
    million_cpu_ms   INTEGER NOT NULL,
    gib_egress       INTEGER NOT NULL,
    created_ms       INTEGER NOT NULL,
    PRIMARY KEY (name, version)
) STRICT, WITHOUT ROWID;

-- From which hour on a tenant has which plan.
CREATE TABLE plan_assignments (
    tenant     TEXT NOT NULL REFERENCES tenants (name),
    from_ms    INTEGER NOT NULL,
    plan       TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, from_ms)
) STRICT, WITHOUT ROWID;
