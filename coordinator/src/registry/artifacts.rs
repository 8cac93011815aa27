//! Artifacts by the SHA-256 of their bytes, kept as chunks, each once whoever's artifact it is part of.
//!
//! Chunks that come together go into one object, a *pack*; the database says which chunk is where and which
//! artifact is made of which (`store/artifacts.rs`). Bytes come before their rows and go after them. An artifact
//! is here only when all of it was read back and has its digest.
//!
//! A pack of which less than half is needed any more is written anew with what is.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Bytes;
use holm_model::chunks::{Chunk, Chunker, Index, IndexError, MAX_CHUNK_BYTES};
use holm_model::ids::Digest;
use holm_model::limits::MAX_ARTIFACT_BYTES;
use sha2::{Digest as _, Sha256};
use tokio::fs;
use tokio::sync::Semaphore;

use super::objects::{Objects, disk, if_there};
use super::recent::{Recent, Recipe};
use crate::ca::random;
use crate::clock::{Clock, millis};
use crate::limits::{MAX_PACK_BYTES, MAX_RUN_CHUNKS, ORPHAN_ARTIFACT_AGE};
use crate::store::{ArtifactOutcome, Located, Store, StoreError};

/// Why an artifact cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The disk failed.
    #[error(
        "{operation} artifact file {path} failed: {source}; look at the state directory's disk"
    )]
    Disk {
        /// What was to be done.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The S3-compatible store failed.
    #[error(
        "{operation} {object} failed: {source}; look at the store, and at its endpoint and credentials in the \
         coordinator's environment (AWS_…)"
    )]
    S3 {
        /// What was to be done.
        operation: &'static str,
        /// With which object.
        object: String,
        /// The client's words, or the store's.
        source: object_store::Error,
    },
    /// The database knows of artifacts, and they are not here.
    #[error(
        "the database has artifacts whose bytes are not in {place}; copy `packs` and `fleet` there from where they \
         were, or, if they are lost, put an object `fleet` there that contains {fleet}, and deploy once more"
    )]
    Elsewhere {
        /// Where they were looked for.
        place: String,
        /// What the object `fleet` is to contain.
        fleet: String,
    },
    /// The artifacts are somebody else's.
    #[error(
        "the artifacts in {0} are those of another fleet, with another certificate authority; give each fleet a \
         place of its own"
    )]
    OtherFleet(String),
    /// The place is not there at the moment.
    #[error(
        "the artifacts are not to be found in {0}, where they were: it has no object `fleet`; see to its mount, or to \
         the bucket; nothing is given up meanwhile"
    )]
    Away(String),
    /// Too long.
    #[error("the artifact has more than the {MAX_ARTIFACT_BYTES} bytes allowed; make it smaller")]
    TooLarge,
    /// Its bytes are not what was announced.
    #[error(
        "the bytes received have the digest {found}, not {announced}: they were altered or mixed \
         up on the way; send them again"
    )]
    WrongDigest {
        /// In the request.
        announced: Digest,
        /// Of the bytes.
        found: Digest,
    },
    /// The list of its chunks is not one.
    #[error("the list of the artifact's chunks cannot be used: {0}")]
    BadIndex(#[from] IndexError),
    /// There is no such artifact.
    #[error("there is no artifact {0} here")]
    Missing(Digest),
    /// Some of it is not what was stored.
    #[error(
        "the chunk {chunk} is damaged or gone from the pack {pack} of the coordinator's artifact store, whose \
         operator is to look into it; deploy what has it once more, with `holm deploy --force`, and it is sent again"
    )]
    Lost {
        /// Which.
        chunk: Digest,
        /// Where it was to be.
        pack: String,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What came of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Assembled {
    /// The artifact is here; whether it was not before.
    Here { new: bool },
    /// These chunks, by their places in the index, have to be sent first; of equal ones the first.
    Missing(Vec<u32>),
}

/// The artifacts. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Artifacts {
    objects: Objects,
    store: Store,
    clock: Clock,
    recent: Arc<Recent>,
}

/// Chunks being received. What was received is kept, by [`Incoming::keep`], whatever becomes of the rest.
pub(crate) struct Incoming {
    artifacts: Artifacts,
    pack: Vec<u8>,
    chunks: Vec<(Chunk, u64)>,
    held: HashSet<Digest>,
}

/// A whole artifact being received.
pub(crate) struct Whole {
    incoming: Incoming,
    chunker: Chunker,
    chunks: Vec<Chunk>,
    digest: Sha256,
    bytes: u64,
}

impl Artifacts {
    /// The artifacts whose bytes are in `objects`.
    pub(crate) fn new(objects: Objects, store: Store, clock: Clock) -> Self {
        Artifacts {
            objects,
            store,
            clock,
            recent: Arc::default(),
        }
    }

    /// Whether it is here; if so, it counts as new, so that a deploy that has been told so finds it still.
    pub(crate) async fn has_for_deploy(&self, digest: Digest) -> Result<bool, ArtifactError> {
        Ok(self.store.use_artifact(digest, self.clock.now_ms()).await?)
    }

    /// Its length; 0 if it is not here.
    pub(crate) async fn bytes(&self, digest: Digest) -> Result<u64, ArtifactError> {
        Ok(self.store.artifact_bytes(digest).await?)
    }

    /// Its chunks and where they are, in their order.
    pub(crate) async fn chunks(&self, digest: Digest) -> Result<Vec<Located>, ArtifactError> {
        let chunks = self.store.artifact_chunks(digest).await?;
        chunks.ok_or(ArtifactError::Missing(digest))
    }

    /// The same for somebody who wants the artifact, whose chunks may have been somewhere else a moment ago:
    /// [`Artifacts::share_run`] finds them.
    pub(crate) async fn recipe(&self, digest: Digest) -> Result<Arc<Recipe>, ArtifactError> {
        if let Some(recipe) = self.recent.recipe(digest) {
            return Ok(recipe);
        }
        // Of those that want the same at once one looks it up.
        let _turn = self.recent.looking.acquire().await;
        if let Some(recipe) = self.recent.recipe(digest) {
            return Ok(recipe);
        }
        let recipe = Arc::new(Recipe::new(self.chunks(digest).await?)?);
        self.recent.put_recipe(digest, recipe.clone());
        Ok(recipe)
    }

    /// The whole artifact, for checks. At most [`MAX_ARTIFACT_BYTES`].
    pub(crate) async fn read(&self, digest: Digest) -> Result<Vec<u8>, ArtifactError> {
        let chunks = self.chunks(digest).await?;
        let mut bytes = Vec::new();
        let mut lost = Ok(());
        for run in runs(&chunks) {
            match self.read_run(run).await {
                Ok(more) => bytes.extend_from_slice(&more),
                // So that all that is damaged is sent again, and not one chunk of it at a time.
                Err(error @ ArtifactError::Lost { .. }) => lost = Err(error),
                Err(error) => return Err(error),
            }
        }
        lost.map(|()| bytes)
    }

    /// The bytes of one of [`runs`], verified, for somebody who wants them. What was read a moment ago is not read
    /// again: in a rollout all nodes want the same.
    pub(crate) async fn share_run(&self, run: &[Located]) -> Result<Bytes, ArtifactError> {
        let key: Vec<Digest> = run.iter().map(|located| located.chunk.digest).collect();
        if let Some(bytes) = self.recent.run(&key) {
            return Ok(bytes);
        }
        // Of those that want the same at once one reads it.
        let _turn = self.recent.reading.acquire().await;
        if let Some(bytes) = self.recent.run(&key) {
            return Ok(bytes);
        }
        let bytes = Bytes::from(self.read_run(run).await?);
        self.recent.put_run(key, bytes.clone());
        Ok(bytes)
    }

    /// The bytes of one of [`runs`], as they are stored, verified.
    async fn read_run(&self, run: &[Located]) -> Result<Vec<u8>, ArtifactError> {
        if let Some(bytes) = self.try_run(run).await? {
            return Ok(bytes);
        }
        // The pack was replaced meanwhile, or some of the chunks are not what they were.
        let digests = run.iter().map(|old| old.chunk.digest);
        let found = self.store.use_chunks(digests, self.clock.now_ms()).await?;
        let mut bytes = Vec::new();
        let mut lost = Ok(());
        for old in run {
            let chunk = old.chunk.digest;
            let now = found.get(&chunk).unwrap_or(old);
            match self.sure_chunk(now).await? {
                Some(more) => bytes.extend_from_slice(&more),
                None => {
                    self.recent.forget_recipes();
                    self.store.lose_chunk(now).await?;
                    let pack = now.pack.clone();
                    lost = Err(ArtifactError::Lost { chunk, pack });
                }
            }
        }
        lost.map(|()| bytes)
    }

    /// A chunk's bytes; none if it is damaged or gone while the place where it was is there.
    async fn sure_chunk(&self, located: &Located) -> Result<Option<Vec<u8>>, ArtifactError> {
        let run = std::slice::from_ref(located);
        if let Some(bytes) = self.try_run(run).await? {
            return Ok(Some(bytes));
        }
        self.objects.look().await?;
        self.try_run(run).await
    }

    /// None if it is not there, or not what it was.
    async fn try_run(&self, run: &[Located]) -> Result<Option<Vec<u8>>, ArtifactError> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            return Ok(Some(Vec::new()));
        };
        let range = first.start..end(last);
        let Some(bytes) = self.objects.read(&first.pack, range).await? else {
            return Ok(None);
        };
        let chunks: Vec<Chunk> = run.iter().map(|located| located.chunk).collect();
        let checked = blocking(move || {
            let mut left = &bytes[..];
            let good = chunks.iter().all(|chunk| {
                let Some((own, rest)) = left.split_at_checked(chunk.bytes as usize) else {
                    return false;
                };
                left = rest;
                Digest::of(own) == chunk.digest
            });
            good.then_some(bytes)
        });
        Ok(checked.await)
    }

    /// Begins to receive chunks.
    pub(crate) fn receive(&self) -> Incoming {
        Incoming {
            artifacts: self.clone(),
            pack: Vec::new(),
            chunks: Vec::new(),
            held: HashSet::new(),
        }
    }

    /// Begins to receive a whole artifact.
    pub(crate) fn receive_whole(&self) -> Whole {
        Whole {
            incoming: self.receive(),
            chunker: Chunker::default(),
            chunks: Vec::new(),
            digest: Sha256::new(),
            bytes: 0,
        }
    }

    /// Has the artifact be made of these chunks, if they are here and its digest is theirs. One `check` at a time
    /// reads a whole artifact.
    pub(crate) async fn assemble(
        &self,
        digest: Digest,
        index: &Index,
        check: &Semaphore,
    ) -> Result<Assembled, ArtifactError> {
        if self.has_for_deploy(digest).await? {
            return Ok(Assembled::Here { new: false });
        }
        let chunks = match self.located(index).await? {
            Ok(chunks) => chunks,
            Err(missing) => return Ok(Assembled::Missing(missing)),
        };
        // With the lengths that the chunks have, whatever the sender's list says.
        let real = chunks.iter().map(|located| located.chunk).collect();
        let real = Index::from_chunks(real)?;
        let _turn = check.acquire().await;
        let mut whole = Sha256::new();
        let mut lost = false;
        for run in runs(&chunks) {
            match self.read_run(run).await {
                Ok(bytes) => whole = blocking(move || whole.chain_update(&bytes)).await,
                Err(ArtifactError::Lost { .. }) => lost = true,
                Err(error) => return Err(error),
            }
        }
        if lost {
            let missing = self.located(index).await?.err().unwrap_or_default();
            return Ok(Assembled::Missing(missing));
        }
        let found = Digest(whole.finalize().into());
        if found != digest {
            let announced = digest;
            return Err(ArtifactError::WrongDigest { announced, found });
        }
        self.enter(digest, &real).await
    }

    /// Where the chunks of `index` are, in its order; or those that are not here, by their places, of equal ones the
    /// first.
    async fn located(
        &self,
        index: &Index,
    ) -> Result<Result<Vec<Located>, Vec<u32>>, ArtifactError> {
        let digests = index.chunks().iter().map(|chunk| chunk.digest);
        let here = self.store.use_chunks(digests, self.clock.now_ms()).await?;
        let mut asked = HashSet::new();
        let missing = (0..)
            .zip(index.chunks())
            .filter(|(_, chunk)| !here.contains_key(&chunk.digest) && asked.insert(chunk.digest));
        let missing: Vec<u32> = missing.map(|(place, _)| place).collect();
        if !missing.is_empty() {
            return Ok(Err(missing));
        }
        let chunks = index.chunks().iter();
        Ok(Ok(chunks
            .map(|chunk| here[&chunk.digest].clone())
            .collect()))
    }

    async fn enter(&self, digest: Digest, index: &Index) -> Result<Assembled, ArtifactError> {
        let entered = self.store.add_artifact(digest, index, self.clock.now_ms());
        Ok(match entered.await? {
            ArtifactOutcome::New => Assembled::Here { new: true },
            ArtifactOutcome::Known => Assembled::Here { new: false },
            ArtifactOutcome::ChunksGone => Assembled::Missing(Vec::new()),
        })
    }

    /// Removes the artifact, unless a version names it. Whether it is gone. What it took is free after
    /// [`Artifacts::tidy`].
    pub(crate) async fn remove(&self, digest: Digest) -> Result<bool, ArtifactError> {
        let gone = self.store.remove_artifact(digest).await?;
        self.recent.forget_recipes();
        Ok(gone)
    }

    /// Frees what chunks took that are no more.
    pub(crate) async fn tidy(&self) -> Result<(), ArtifactError> {
        for sparse in self.store.sparse_packs().await? {
            let old = &sparse.pack;
            let mut bytes = Vec::new();
            let mut chunks = Vec::new();
            for run in runs(&sparse.chunks) {
                // One request for what lies together, unless some of it is damaged.
                if let Some(own) = self.try_run(run).await? {
                    for located in run {
                        let start = bytes.len() as u64 + located.start - run[0].start;
                        chunks.push((located.chunk, start));
                    }
                    bytes.extend_from_slice(&own);
                    continue;
                }
                for located in run {
                    let Some(own) = self.sure_chunk(located).await? else {
                        tracing::error!(chunk = %located.chunk.digest, pack = old, "a chunk of the artifact store is damaged or gone");
                        self.store.lose_chunk(located).await?;
                        continue;
                    };
                    chunks.push((located.chunk, bytes.len() as u64));
                    bytes.extend_from_slice(&own);
                }
            }
            let gone = if chunks.is_empty() {
                self.store.replace_pack(old, None).await?
            } else {
                let (new, length) = (hex::encode(random::<16>()), bytes.len() as u64);
                self.objects.put(&new, bytes).await?;
                let new = Some((&new[..], length, &chunks[..]));
                self.store.replace_pack(old, new).await?
            };
            self.recent.forget_recipes();
            if gone {
                self.objects.remove(old).await?;
            }
        }
        Ok(())
    }

    /// Removes artifacts that no version names, chunks that no artifact needs and packs that nobody knows, if they
    /// are old enough not to be part of a deploy under way. Returns how many artifacts. At start and from time
    /// to time.
    pub(crate) async fn sweep(&self) -> Result<usize, ArtifactError> {
        let before_ms = self
            .clock
            .now_ms()
            .saturating_sub(millis(ORPHAN_ARTIFACT_AGE));
        let removed = self.store.remove_orphans(before_ms).await?;
        self.tidy().await?;
        for (pack, age) in self.objects.list().await? {
            if age > ORPHAN_ARTIFACT_AGE && !self.store.has_pack(&pack).await? {
                self.objects.remove(&pack).await?;
            }
        }
        Ok(removed)
    }

    /// Takes in artifacts that an earlier Holm left in `dir` whole, each a file with its digest for a name.
    pub(crate) async fn take_in(&self, dir: &Path) -> Result<(), ArtifactError> {
        let failed = |operation| disk(operation, dir);
        let entries = if_there(fs::read_dir(dir).await).map_err(failed("listing"))?;
        let Some(mut entries) = entries else {
            return Ok(());
        };
        while let Some(entry) = entries.next_entry().await.map_err(failed("listing"))? {
            let name = entry.file_name();
            let digest = name
                .to_str()
                .map(|name| format!("sha256:{name}").parse::<Digest>());
            let Some(Ok(digest)) = digest else { continue };
            let path = entry.path();
            let bytes = if_there(fs::read(&path).await).map_err(disk("reading", &path))?;
            // Another coordinator has taken it in.
            let Some(bytes) = bytes else { continue };
            let mut whole = self.receive_whole();
            whole.write(&bytes).await?;
            match whole.finish(digest).await {
                Ok(_) => tracing::info!(%digest, "an artifact is kept in chunks now"),
                Err(error @ ArtifactError::WrongDigest { .. }) => {
                    tracing::error!(path = %path.display(), %error, "a damaged artifact is removed");
                }
                Err(error) => return Err(error),
            }
            if_there(fs::remove_file(&path).await).map_err(disk("removing", &path))?;
        }
        Ok(())
    }
}

impl Incoming {
    /// Takes a chunk of at most [`MAX_CHUNK_BYTES`].
    pub(crate) async fn add(&mut self, bytes: &[u8]) -> Result<Chunk, ArtifactError> {
        let chunk = Chunk::of(bytes);
        if self.held.insert(chunk.digest) {
            self.chunks.push((chunk, self.pack.len() as u64));
            self.pack.extend_from_slice(bytes);
            if self.pack.len() + MAX_CHUNK_BYTES > MAX_PACK_BYTES {
                self.keep().await?;
            }
        }
        Ok(chunk)
    }

    /// Stores durably what was received, but for what is here already.
    pub(crate) async fn keep(&mut self) -> Result<(), ArtifactError> {
        let Artifacts {
            objects,
            store,
            clock,
            ..
        } = &self.artifacts;
        self.held.clear();
        let received = std::mem::take(&mut self.chunks);
        let bytes = std::mem::take(&mut self.pack);
        let digests = received.iter().map(|(chunk, _)| chunk.digest);
        let here = store.use_chunks(digests, clock.now_ms()).await?;
        let (mut pack, mut chunks) = (Vec::new(), Vec::new());
        for (chunk, start) in received {
            if !here.contains_key(&chunk.digest) {
                chunks.push((chunk, pack.len() as u64));
                let start = usize::try_from(start).expect("it is a place in memory");
                pack.extend_from_slice(&bytes[start..start + chunk.bytes as usize]);
            }
        }
        if chunks.is_empty() {
            return Ok(());
        }
        let (name, length) = (hex::encode(random::<16>()), pack.len() as u64);
        objects.put(&name, pack).await?;
        let added = store.add_pack(&name, length, &chunks, clock.now_ms());
        Ok(added.await?)
    }
}

impl Whole {
    /// Takes the next bytes.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), ArtifactError> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes > MAX_ARTIFACT_BYTES {
            return Err(ArtifactError::TooLarge);
        }
        self.digest.update(bytes);
        let mut complete = Vec::new();
        self.chunker
            .push(bytes, |chunk| complete.push(chunk.to_vec()));
        for chunk in complete {
            self.chunks.push(self.incoming.add(&chunk).await?);
        }
        Ok(())
    }

    /// Stores what was received, though the rest does not come: it need not be sent again.
    pub(crate) async fn keep(&mut self) -> Result<(), ArtifactError> {
        self.incoming.keep().await
    }

    /// Checks the digest and has the artifact, durably. Whether it was new.
    pub(crate) async fn finish(mut self, announced: Digest) -> Result<bool, ArtifactError> {
        let found = Digest(self.digest.finalize().into());
        if found != announced {
            return Err(ArtifactError::WrongDigest { announced, found });
        }
        let mut last = Vec::new();
        let chunker = std::mem::take(&mut self.chunker);
        chunker.finish(|chunk| last.push(chunk.to_vec()));
        for chunk in last {
            self.chunks.push(self.incoming.add(&chunk).await?);
        }
        self.incoming.keep().await?;
        let index = Index::from_chunks(self.chunks)?;
        match self.incoming.artifacts.enter(found, &index).await? {
            Assembled::Here { new } => Ok(new),
            // They went between two steps: a removal that came right then.
            Assembled::Missing(_) => Err(ArtifactError::Missing(found)),
        }
    }
}

/// Chunks that are read at once: neighbours in one pack, at most [`MAX_RUN_CHUNKS`].
pub(crate) fn runs(chunks: &[Located]) -> impl Iterator<Item = &[Located]> {
    let neighbours = chunks.chunk_by(|one, next| one.pack == next.pack && end(one) == next.start);
    neighbours.flat_map(|run| run.chunks(MAX_RUN_CHUNKS))
}

fn end(located: &Located) -> u64 {
    located.start.saturating_add(u64::from(located.chunk.bytes))
}

/// Hashing is no work for a thread that serves others.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
