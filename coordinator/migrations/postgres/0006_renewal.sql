-- Digest of the certificate that a node was given in place of its own and has not shown yet.
ALTER TABLE nodes ADD COLUMN next_certificate BYTEA;
-- When the certificate that it showed last ends.
ALTER TABLE nodes ADD COLUMN certificate_until_ms BIGINT;
