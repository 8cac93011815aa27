-- SHA-256 of the node's public key: any certificate of the fleet's authority for that key and name is the node's.
-- None of nodes that joined before and have not had a certificate renewed: they are known by their certificate.
ALTER TABLE nodes ADD COLUMN node_key BYTEA;
-- When it had its certificate renewed last.
ALTER TABLE nodes ADD COLUMN renewed_ms BIGINT;
-- When the last certificate that it was given ends.
ALTER TABLE nodes ADD COLUMN certificate_until_ms BIGINT;
