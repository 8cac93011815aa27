-- Tokens with verbs, tenants and an end. Their secrets follow from the CA's key and the id.
CREATE TABLE tokens (
    id         bytea PRIMARY KEY,
    name       text COLLATE "C" NOT NULL,
    caveats    text COLLATE "C" NOT NULL,    -- those that it was made with, a line each
    created_ms bigint NOT NULL,
    created_by text COLLATE "C" NOT NULL,
    expires_ms bigint,
    revoked_ms bigint
);
CREATE UNIQUE INDEX one_valid_token_of_a_name ON tokens (name) WHERE revoked_ms IS NULL;

-- Who did what. Rows are inserted and never changed; `hash` is over the row and the hash before.
CREATE TABLE audit_log (
    row        bigint PRIMARY KEY,
    at_ms      bigint NOT NULL,
    actor_kind text COLLATE "C" NOT NULL,
    actor      text COLLATE "C" NOT NULL,
    actor_id   text COLLATE "C" NOT NULL,
    action     text COLLATE "C" NOT NULL,
    object     text COLLATE "C" NOT NULL,
    outcome    text COLLATE "C" NOT NULL,
    detail     text COLLATE "C" NOT NULL,
    begun      bigint,          -- the row with which it began
    hash       bytea NOT NULL
);
-- Against mistakes; against intent there are the hashes.
CREATE FUNCTION audit_log_is_only_added_to() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is only added to';
END $$;
CREATE TRIGGER audit_log_is_not_changed BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION audit_log_is_only_added_to();
