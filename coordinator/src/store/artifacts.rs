//! What artifacts are made of, and where the bytes are.
//!
//! ```text
//! artifacts ── artifact_chunks ──▶ chunks ──▶ packs
//! ```
//! An artifact is here if each of its chunks is. A chunk is in one pack, an object of the artifact store that
//! belongs to it from the moment on at which the row is there: bytes are stored before their row, and removed
//! after it. So nothing has to be held while bytes move, and what a crash leaves is a pack without a row.
//!
//! A publish, an upload's end and a removal take the same turn: an artifact or chunk that somebody has just been
//! told is here is still here when he relies on it, or he is told that it is not.

use std::collections::HashMap;

use holm_model::chunks::{Chunk, Index};
use holm_model::ids::Digest;

use super::error::During as _;
use super::sql::{On, Transaction, Value, query};
use super::{Store, StoreError, Turn, bytes32, catalogue, uint};
use crate::limits::LOOKUP_CHUNK_ROWS;

/// Where a chunk's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) chunk: Chunk,
    /// The pack's name.
    pub(crate) pack: String,
    /// Where in the pack it begins.
    pub(crate) start: u64,
}

/// What came of putting an artifact together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ArtifactOutcome {
    /// It was not here.
    New,
    /// It was.
    Known,
    /// Chunks went meanwhile, and have to be sent once more.
    ChunksGone,
}

/// A pack with rows, and those chunks of it that are still wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SparsePack {
    pub(crate) pack: String,
    /// In the order in which they are in the pack.
    pub(crate) chunks: Vec<Located>,
}

/// A chunk, and where it begins in its pack.
pub(crate) type Placed = (Chunk, u64);

/// A row of chunks: digest, bytes, pack, start.
type ChunkColumns = (Vec<u8>, i64, String, i64);

impl Store {
    /// Where those of `chunks` are that are here. They count as used now, so that a deploy which has been told
    /// that they are here finds them still.
    pub(crate) async fn use_chunks(
        &self,
        chunks: impl Iterator<Item = Digest>,
        now_ms: u64,
    ) -> Result<HashMap<Digest, Located>, StoreError> {
        const DOING: &str = "look up chunks";
        let chunks: Vec<Digest> = chunks.collect();
        let mut found = HashMap::new();
        let mut tx = self.write(Turn::Registry).await?;
        for some in chunks.chunks(LOOKUP_CHUNK_ROWS) {
            let mut use_them = query("UPDATE chunks SET used_ms = ");
            use_them.push_bind(now_ms).push(" WHERE digest IN ");
            use_them.push_row(some.iter().map(|digest| (*digest).into()));
            use_them.push(" RETURNING digest, bytes, pack, start");
            let rows: Vec<ChunkColumns> = use_them.all(&mut tx).await.during(DOING)?;
            for row in rows {
                let located = located(row)?;
                found.insert(located.chunk.digest, located);
            }
        }
        tx.commit(DOING).await?;
        Ok(found)
    }

    /// Enters a pack whose bytes are stored. A chunk that has come in another one meanwhile stays there.
    pub(crate) async fn add_pack(
        &self,
        pack: &str,
        bytes: u64,
        chunks: &[Placed],
        now_ms: u64,
    ) -> Result<(), StoreError> {
        const DOING: &str = "enter chunks";
        let mut tx = self.write(Turn::Registry).await?;
        insert_pack(&mut tx, pack, bytes).await?;
        for some in chunks.chunks(LOOKUP_CHUNK_ROWS) {
            let mut insert =
                query("INSERT INTO chunks (digest, bytes, pack, start, used_ms) VALUES ");
            insert.push_rows(some.iter().map(|(chunk, start)| {
                [
                    chunk.digest.into(),
                    chunk.bytes.into(),
                    pack.into(),
                    (*start).into(),
                    now_ms.into(),
                ] as [Value; 5]
            }));
            insert.push(" ON CONFLICT (digest) DO UPDATE SET used_ms = excluded.used_ms");
            insert.execute(&mut tx).await.during(DOING)?;
        }
        tx.commit(DOING).await
    }

    /// Enters an artifact that was verified to be made of these chunks, if they are all here.
    pub(crate) async fn add_artifact(
        &self,
        digest: Digest,
        index: &Index,
        now_ms: u64,
    ) -> Result<ArtifactOutcome, StoreError> {
        const DOING: &str = "enter an artifact";
        let mut tx = self.write(Turn::Registry).await?;
        if is_complete(&mut tx, digest).await? {
            touch(&mut tx, digest, now_ms).await?;
            tx.commit(DOING).await?;
            return Ok(ArtifactOutcome::Known);
        }
        // One whose chunks were lost is entered anew.
        delete_artifact(&mut tx, digest).await?;
        query("INSERT INTO artifacts (digest, bytes, used_ms) VALUES (?, ?, ?)")
            .bind(digest)
            .bind(index.bytes())
            .bind(now_ms)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        let places: Vec<(u64, Digest)> = (0..)
            .zip(index.chunks().iter().map(|chunk| chunk.digest))
            .collect();
        for some in places.chunks(LOOKUP_CHUNK_ROWS) {
            let mut insert = query("INSERT INTO artifact_chunks (artifact, place, chunk) VALUES ");
            insert.push_rows(some.iter().map(|(place, chunk)| {
                [digest.into(), (*place).into(), (*chunk).into()] as [Value; 3]
            }));
            insert.execute(&mut tx).await.during(DOING)?;
        }
        if !is_complete(&mut tx, digest).await? {
            return Ok(ArtifactOutcome::ChunksGone);
        }
        tx.commit(DOING).await?;
        Ok(ArtifactOutcome::New)
    }

    /// Whether the artifact is here; if so, it counts as used now.
    pub(crate) async fn use_artifact(
        &self,
        digest: Digest,
        now_ms: u64,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write(Turn::Registry).await?;
        let here = is_complete(&mut tx, digest).await?;
        if here {
            touch(&mut tx, digest, now_ms).await?;
            tx.commit("use an artifact").await?;
        }
        Ok(here)
    }

    /// Its length; 0 if it is not here.
    pub(crate) async fn artifact_bytes(&self, digest: Digest) -> Result<u64, StoreError> {
        let row: Option<(i64,)> = query("SELECT bytes FROM artifacts WHERE digest = ?")
            .bind(digest)
            .optional(self.reader())
            .await
            .during("look up an artifact")?;
        Ok(row.map_or(0, |(bytes,)| uint(bytes)))
    }

    /// Where the artifact's chunks are, in their order; none if it is not here, or not all of it.
    pub(crate) async fn artifact_chunks(
        &self,
        digest: Digest,
    ) -> Result<Option<Vec<Located>>, StoreError> {
        let mut tx = self.read().await?;
        if !is_complete(&mut tx, digest).await? {
            return Ok(None);
        }
        let rows: Vec<ChunkColumns> = query(
            "SELECT c.digest, c.bytes, c.pack, c.start
             FROM artifact_chunks AS a JOIN chunks AS c ON c.digest = a.chunk
             WHERE a.artifact = ? ORDER BY a.place",
        )
        .bind(digest)
        .all(&mut tx)
        .await
        .during("look up an artifact's chunks")?;
        let chunks: Result<_, _> = rows.into_iter().map(located).collect();
        chunks.map(Some)
    }

    /// The chunk is not where it should be, or not what it should be: it has to be sent once more.
    pub(crate) async fn lose_chunk(&self, lost: &Located) -> Result<(), StoreError> {
        query("DELETE FROM chunks WHERE digest = ? AND pack = ?")
            .bind(lost.chunk.digest)
            .bind(lost.pack.as_str())
            .execute(self.writer())
            .await
            .during("give up a chunk")?;
        Ok(())
    }

    /// Removes the artifact, unless a version names it, and every chunk that no other one needs. Whether it is
    /// gone. The bytes go by [`Store::sparse_packs`].
    pub(crate) async fn remove_artifact(&self, digest: Digest) -> Result<bool, StoreError> {
        const DOING: &str = "remove an artifact";
        let mut tx = self.write(Turn::Registry).await?;
        if catalogue::names_artifact(&mut tx, digest).await? {
            return Ok(false);
        }
        query(
            "DELETE FROM chunks
             WHERE digest IN (SELECT chunk FROM artifact_chunks WHERE artifact = ?)
               AND NOT EXISTS (SELECT 1 FROM artifact_chunks AS other
                               WHERE other.chunk = chunks.digest AND other.artifact <> ?)",
        )
        .bind(digest)
        .bind(digest)
        .execute(&mut tx)
        .await
        .during(DOING)?;
        delete_artifact(&mut tx, digest).await?;
        tx.commit(DOING).await?;
        Ok(true)
    }

    /// Removes artifacts that no version names and chunks that no artifact needs, if nobody has asked for them
    /// since `before_ms`. Returns how many artifacts.
    pub(crate) async fn remove_orphans(&self, before_ms: u64) -> Result<usize, StoreError> {
        const DOING: &str = "remove unused artifacts";
        let mut tx = self.write(Turn::Registry).await?;
        let orphans: Vec<(Vec<u8>,)> = query(
            "SELECT digest FROM artifacts WHERE used_ms < ? AND NOT EXISTS
                (SELECT 1 FROM versions WHERE artifact = digest AND removed_ms IS NULL)",
        )
        .bind(before_ms)
        .all(&mut tx)
        .await
        .during(DOING)?;
        for (orphan,) in &orphans {
            let orphan = Digest(bytes32("an artifact's digest", orphan)?);
            delete_artifact(&mut tx, orphan).await?;
        }
        query(
            "DELETE FROM chunks WHERE used_ms < ? AND NOT EXISTS
                (SELECT 1 FROM artifact_chunks WHERE chunk = digest)",
        )
        .bind(before_ms)
        .execute(&mut tx)
        .await
        .during(DOING)?;
        tx.commit(DOING).await?;
        Ok(orphans.len())
    }

    /// Packs of which less than half is still wanted, with what is.
    pub(crate) async fn sparse_packs(&self) -> Result<Vec<SparsePack>, StoreError> {
        const DOING: &str = "look for packs with few chunks";
        let mut tx = self.read().await?;
        let names: Vec<(String,)> = query(
            "SELECT name FROM packs
             WHERE bytes > 2 * (SELECT CAST(COALESCE(SUM(c.bytes), 0) AS BIGINT)
                                FROM chunks AS c WHERE c.pack = packs.name)
             ORDER BY name",
        )
        .all(&mut tx)
        .await
        .during(DOING)?;
        let mut packs = Vec::new();
        for (pack,) in names {
            let rows: Vec<ChunkColumns> = query(
                "SELECT digest, bytes, pack, start FROM chunks WHERE pack = ? ORDER BY start",
            )
            .bind(pack.as_str())
            .all(&mut tx)
            .await
            .during(DOING)?;
            let chunks: Vec<_> = rows.into_iter().map(located).collect::<Result<_, _>>()?;
            packs.push(SparsePack { pack, chunks });
        }
        Ok(packs)
    }

    /// Has the chunks of `old` be in the pack `new`, where `chunks` says, and `old` be no more, if nothing else
    /// is in it. Whether it is gone, so that its bytes can go.
    pub(crate) async fn replace_pack(
        &self,
        old: &str,
        new: Option<(&str, u64, &[Placed])>,
    ) -> Result<bool, StoreError> {
        const DOING: &str = "replace a pack";
        let mut tx = self.write(Turn::Registry).await?;
        if let Some((new, bytes, chunks)) = new {
            insert_pack(&mut tx, new, bytes).await?;
            for (chunk, start) in chunks {
                query("UPDATE chunks SET pack = ?, start = ? WHERE digest = ? AND pack = ?")
                    .bind(new)
                    .bind(*start)
                    .bind(chunk.digest)
                    .bind(old)
                    .execute(&mut tx)
                    .await
                    .during(DOING)?;
            }
        }
        let gone = query(
            "DELETE FROM packs
             WHERE name = ? AND NOT EXISTS (SELECT 1 FROM chunks WHERE pack = name)",
        )
        .bind(old)
        .execute(&mut tx)
        .await
        .during(DOING)?;
        tx.commit(DOING).await?;
        Ok(gone > 0)
    }

    /// Whether there is any pack.
    pub(crate) async fn has_packs(&self) -> Result<bool, StoreError> {
        query("SELECT 1 FROM packs LIMIT 1")
            .found(self.reader())
            .await
            .during("look for packs")
    }

    /// Whether such a pack was entered.
    pub(crate) async fn has_pack(&self, pack: &str) -> Result<bool, StoreError> {
        query("SELECT 1 FROM packs WHERE name = ?")
            .bind(pack)
            .found(self.reader())
            .await
            .during("look up a pack")
    }
}

/// Whether the artifact is here, and each of its chunks.
pub(super) async fn is_complete(
    on: impl Into<On<'_>>,
    artifact: Digest,
) -> Result<bool, StoreError> {
    query(
        "SELECT 1 FROM artifacts WHERE digest = ? AND NOT EXISTS
            (SELECT 1 FROM artifact_chunks AS a LEFT JOIN chunks AS c ON c.digest = a.chunk
             WHERE a.artifact = artifacts.digest AND c.digest IS NULL)",
    )
    .bind(artifact)
    .found(on)
    .await
    .during("look up an artifact")
}

async fn touch(tx: &mut Transaction, artifact: Digest, now_ms: u64) -> Result<(), StoreError> {
    query("UPDATE artifacts SET used_ms = ? WHERE digest = ?")
        .bind(now_ms)
        .bind(artifact)
        .execute(tx)
        .await
        .during("use an artifact")?;
    Ok(())
}

async fn delete_artifact(tx: &mut Transaction, artifact: Digest) -> Result<(), StoreError> {
    for sql in [
        "DELETE FROM artifact_chunks WHERE artifact = ?",
        "DELETE FROM artifacts WHERE digest = ?",
    ] {
        let deleted = query(sql).bind(artifact).execute(&mut *tx).await;
        deleted.during("remove an artifact")?;
    }
    Ok(())
}

async fn insert_pack(tx: &mut Transaction, pack: &str, bytes: u64) -> Result<(), StoreError> {
    query("INSERT INTO packs (name, bytes) VALUES (?, ?)")
        .bind(pack)
        .bind(bytes)
        .execute(tx)
        .await
        .during("enter a pack")?;
    Ok(())
}

fn located((digest, bytes, pack, start): ChunkColumns) -> Result<Located, StoreError> {
    const WHAT: &str = "a chunk";
    let chunk = Chunk {
        digest: Digest(bytes32(WHAT, &digest)?),
        bytes: u32::try_from(bytes).map_err(|error| StoreError::corrupt(WHAT, error))?,
    };
    Ok(Located {
        chunk,
        pack,
        start: uint(start),
    })
}
