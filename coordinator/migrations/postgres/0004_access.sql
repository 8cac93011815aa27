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

ALTER TABLE versions ADD COLUMN author text COLLATE "C" NOT NULL DEFAULT '';
-- A version that nobody may need keeps its row, without its statement, and its counter.
ALTER TABLE versions ADD COLUMN removed_ms bigint;

CREATE TABLE tags (
    function text COLLATE "C" NOT NULL REFERENCES functions (name),
    tag      text COLLATE "C" NOT NULL,
    version  bytea NOT NULL REFERENCES versions (id),
    set_ms   bigint NOT NULL,
    PRIMARY KEY (function, tag)
);

-- JSON: what a cordoned node keeps, by function; none if it is not cordoned.
ALTER TABLE nodes ADD COLUMN cordoned text COLLATE "C";
-- JSON, by key.
ALTER TABLE nodes ADD COLUMN labels text COLLATE "C" NOT NULL DEFAULT '{}';
-- Since when its certificate is void.
ALTER TABLE nodes ADD COLUMN revoked_ms bigint;

-- From when on nothing new that it signs gets in; may be yet to come.
ALTER TABLE publisher_keys ADD COLUMN revoked_ms bigint;
