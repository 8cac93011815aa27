-- Sums of the ledger by minute, hour and day, made with its rows and never changed but by adding. `grain`
-- is how long the time is that begins at `start_ms`, in milliseconds. Probes are in none of them. Of the
-- columns, `billed_` ones are what a price plan is applied to.
CREATE TABLE usage_sums (
    grain_ms             bigint NOT NULL,
    start_ms             bigint NOT NULL,
    tenant               text COLLATE "C" NOT NULL,
    function             text COLLATE "C" NOT NULL,
    version              bytea NOT NULL,
    node                 text COLLATE "C" NOT NULL,
    answered             bigint NOT NULL,
    function_error       bigint NOT NULL,
    crash                bigint NOT NULL,
    timeout              bigint NOT NULL,
    cancelled            bigint NOT NULL,
    shed                 bigint NOT NULL,
    platform_fault       bigint NOT NULL,
    cold                 bigint NOT NULL,
    run_ns               bigint NOT NULL,
    cpu_ns               bigint NOT NULL,
    memory_kib_ms        bigint NOT NULL,
    request_bytes        bigint NOT NULL,
    response_bytes       bigint NOT NULL,
    egress_bytes         bigint NOT NULL,
    ingress_bytes        bigint NOT NULL,
    billed_requests      bigint NOT NULL,
    billed_memory_kib_ms bigint NOT NULL,
    billed_cpu_ns        bigint NOT NULL,
    billed_egress_bytes  bigint NOT NULL,
    PRIMARY KEY (grain_ms, start_ms, tenant, function, version, node)
);

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
       CAST(SUM(cold) AS bigint), CAST(SUM(run_ns) AS bigint), CAST(SUM(cpu_ns) AS bigint),
       CAST(SUM((memory_bytes + 1023) / 1024 * ((run_ns + 999999) / 1000000)) AS bigint),
       CAST(SUM(request_bytes) AS bigint), CAST(SUM(response_bytes) AS bigint),
       CAST(SUM(egress_bytes) AS bigint), CAST(SUM(ingress_bytes) AS bigint), CAST(SUM(billed) AS bigint),
       CAST(SUM(billed * ((memory_bytes + 1023) / 1024 * ((run_ns + 999999) / 1000000))) AS bigint),
       CAST(SUM(billed * cpu_ns) AS bigint), CAST(SUM(billed * (response_bytes + egress_bytes)) AS bigint)
FROM (SELECT *, CASE WHEN outcome IN ('shed', 'platform_fault') THEN 0 ELSE 1 END AS billed FROM usage WHERE probe = 0) AS rows_of,
     (SELECT 60000 AS grain_ms UNION ALL SELECT 3600000 UNION ALL SELECT 86400000) AS grains
GROUP BY grain_ms, started_ms, tenant, function, version, node;

-- Prices are in billionths of the currency's unit. A version of a plan is never changed.
CREATE TABLE price_plans (
    name             text COLLATE "C" NOT NULL,
    version          bigint NOT NULL,
    from_ms          bigint NOT NULL,
    currency         text COLLATE "C" NOT NULL,
    million_requests bigint NOT NULL,
    million_gib_ms   bigint NOT NULL,
    million_cpu_ms   bigint NOT NULL,
    gib_egress       bigint NOT NULL,
    created_ms       bigint NOT NULL,
    PRIMARY KEY (name, version)
);

-- From which hour on a tenant has which plan.
CREATE TABLE plan_assignments (
    tenant     text COLLATE "C" NOT NULL REFERENCES tenants (name),
    from_ms    bigint NOT NULL,
    plan       text COLLATE "C" NOT NULL,
    created_ms bigint NOT NULL,
    PRIMARY KEY (tenant, from_ms)
);
