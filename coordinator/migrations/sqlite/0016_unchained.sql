-- Rows from before a node's usage was chained: those of the node up to this number. Written here, once, and by nothing
-- else: what comes later is in a batch that its node signed. A new ledger has none.
CREATE TABLE usage_unchained (
    node TEXT PRIMARY KEY,
    upto INTEGER NOT NULL
) STRICT;
INSERT INTO usage_unchained (node, upto)
SELECT node, unchained_upto FROM usage_chains WHERE unchained_upto > 0;
INSERT INTO usage_unchained (node, upto)
SELECT node, MAX(row) FROM usage WHERE node NOT IN (SELECT node FROM usage_chains) GROUP BY node;
