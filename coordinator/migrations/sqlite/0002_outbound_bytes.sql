-- What functions sent and received over connections of their own. Nodes did not say so before.
ALTER TABLE usage ADD COLUMN egress_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN ingress_bytes INTEGER NOT NULL DEFAULT 0;
