-- What is left of records of usage that are no longer kept: one row for each node and boot epoch, signed by the fleet's
-- authority. `last` is the highest sequence that went.
CREATE TABLE usage_checkpoints (
    node       TEXT NOT NULL,
    boot_epoch INTEGER NOT NULL,
    last       INTEGER NOT NULL,
    checkpoint TEXT NOT NULL, -- JSON
    signature  BLOB NOT NULL,
    PRIMARY KEY (node, boot_epoch)
) STRICT, WITHOUT ROWID;

-- How many rows went, the highest number among them, and when the newest of them was entered.
INSERT INTO counters (name, value) VALUES ('usage_dropped', 0), ('usage_dropped_row', 0), ('usage_dropped_ms', 0);
