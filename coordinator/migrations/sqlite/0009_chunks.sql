-- Artifacts as chunks. Packs are objects in the artifact store, each with the bytes of some chunks.

CREATE TABLE packs (
    name  TEXT PRIMARY KEY,
    bytes INTEGER NOT NULL
) STRICT;

CREATE TABLE chunks (
    digest  BLOB PRIMARY KEY, -- SHA-256
    bytes   INTEGER NOT NULL,
    pack    TEXT NOT NULL,
    start   INTEGER NOT NULL, -- where it begins in its pack
    used_ms INTEGER NOT NULL -- when it was last put or asked for
) STRICT;
CREATE INDEX chunks_by_pack ON chunks (pack);

CREATE TABLE artifacts (
    digest  BLOB PRIMARY KEY, -- SHA-256
    bytes   INTEGER NOT NULL,
    used_ms INTEGER NOT NULL -- when it was last put or asked for
) STRICT;

CREATE TABLE artifact_chunks (
    artifact BLOB NOT NULL,
    place    INTEGER NOT NULL, -- from 0
    chunk    BLOB NOT NULL, -- a digest of chunks, unless it was lost
    PRIMARY KEY (artifact, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX artifact_chunks_by_chunk ON artifact_chunks (chunk);
