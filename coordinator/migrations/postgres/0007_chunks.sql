-- Artifacts as chunks. Packs are objects in the artifact store, each with the bytes of some chunks.

CREATE TABLE packs (
    name  text COLLATE "C" PRIMARY KEY,
    bytes bigint NOT NULL
);

CREATE TABLE chunks (
    digest  bytea PRIMARY KEY, -- SHA-256
    bytes   bigint NOT NULL,
    pack    text COLLATE "C" NOT NULL,
    start   bigint NOT NULL, -- where it begins in its pack
    used_ms bigint NOT NULL -- when it was last put or asked for
);
CREATE INDEX chunks_by_pack ON chunks (pack);

CREATE TABLE artifacts (
    digest  bytea PRIMARY KEY, -- SHA-256
    bytes   bigint NOT NULL,
    used_ms bigint NOT NULL -- when it was last put or asked for
);

CREATE TABLE artifact_chunks (
    artifact bytea NOT NULL,
    place    bigint NOT NULL, -- from 0
    chunk    bytea NOT NULL, -- a digest of chunks, unless it was lost
    PRIMARY KEY (artifact, place)
);
CREATE INDEX artifact_chunks_by_chunk ON artifact_chunks (chunk);
