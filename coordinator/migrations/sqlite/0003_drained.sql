-- Nodes that take no requests because an operator says so.
ALTER TABLE nodes ADD COLUMN drained INTEGER NOT NULL DEFAULT 0;
