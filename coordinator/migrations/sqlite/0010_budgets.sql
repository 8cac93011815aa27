-- What executions may cost in a calendar month (UTC). `function` is empty for all of a tenant's. `amount` is in
-- billionths of the currency's unit, `alerts` percents with commas between them. `revision` is that of the list of
-- budgets in which the budget became what it is.
CREATE TABLE budgets (
    tenant     TEXT NOT NULL REFERENCES tenants (name),
    function   TEXT NOT NULL,
    amount     INTEGER NOT NULL,
    currency   TEXT NOT NULL,
    cap        TEXT NOT NULL,
    alerts     TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    revision   INTEGER NOT NULL,
    PRIMARY KEY (tenant, function)
) STRICT, WITHOUT ROWID;

-- What each node has of a budget in a month, in thousandths of a billionth: leased in all, spent in all as it says, and
-- spent in all by the ledger's rows. Stays when the budget goes, so that nothing is leased twice.
CREATE TABLE budget_lines (
    tenant     TEXT NOT NULL,
    function   TEXT NOT NULL,
    month_ms   INTEGER NOT NULL,
    node       TEXT NOT NULL,
    granted    INTEGER NOT NULL,
    reported   INTEGER NOT NULL,
    ledger     INTEGER NOT NULL,
    serial     INTEGER NOT NULL,
    beyond     INTEGER NOT NULL,
    need       INTEGER NOT NULL,
    leases     INTEGER NOT NULL,
    asked_ms   INTEGER,
    PRIMARY KEY (tenant, function, month_ms, node)
) STRICT, WITHOUT ROWID;

-- When a node last got too little, and which; and since when no node can get more.
CREATE TABLE budget_months (
    tenant       TEXT NOT NULL,
    function     TEXT NOT NULL,
    month_ms     INTEGER NOT NULL,
    wanted_ms    INTEGER,
    wanted_by    TEXT,
    exhausted_ms INTEGER,
    PRIMARY KEY (tenant, function, month_ms)
) STRICT, WITHOUT ROWID;

-- Thresholds that were crossed, each once in a month, in the order in which that was seen. `told_ms` is when it was
-- written to the audit log.
CREATE TABLE budget_alerts (
    row        INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant     TEXT NOT NULL,
    function   TEXT NOT NULL,
    month_ms   INTEGER NOT NULL,
    percent    INTEGER NOT NULL,
    spent      INTEGER NOT NULL,
    amount     INTEGER NOT NULL,
    crossed_ms INTEGER NOT NULL,
    told_ms    INTEGER,
    UNIQUE (tenant, function, month_ms, percent)
) STRICT;

-- Which list of budgets a node keeps to.
CREATE TABLE budget_nodes (
    node     TEXT PRIMARY KEY NOT NULL,
    revision INTEGER NOT NULL,
    said_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO counters (name, value) VALUES ('budgets_revision', 0);
