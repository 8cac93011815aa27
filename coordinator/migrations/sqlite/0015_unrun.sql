-- What never ran is not billed: a caller that went away from the queue.
UPDATE usage_sums SET
    billed_requests     = billed_requests - unrun.requests,
    billed_cpu_ns       = billed_cpu_ns - unrun.cpu_ns,
    billed_egress_bytes = billed_egress_bytes - unrun.egress_bytes
FROM (SELECT grains.grain_ms AS grain_ms, accepted_ms - accepted_ms % grains.grain_ms AS start_ms, tenant, function,
             version, node, COUNT(*) AS requests, SUM(cpu_ns) AS cpu_ns,
             SUM(response_bytes + egress_bytes) AS egress_bytes
      FROM usage, (SELECT 60000 AS grain_ms UNION ALL SELECT 3600000 UNION ALL SELECT 86400000) AS grains
      WHERE probe = 0 AND run_ns = 0 AND outcome NOT IN ('shed', 'platform_fault')
      GROUP BY grains.grain_ms, accepted_ms - accepted_ms % grains.grain_ms, tenant, function, version, node) AS unrun
WHERE usage_sums.grain_ms = unrun.grain_ms AND usage_sums.start_ms = unrun.start_ms
  AND usage_sums.tenant = unrun.tenant AND usage_sums.function = unrun.function
  AND usage_sums.version = unrun.version AND usage_sums.node = unrun.node;
