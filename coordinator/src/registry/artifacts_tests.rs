//! What the artifacts promise, whichever database they are in and wherever their bytes are.

use holm_model::chunks::Index;
use holm_model::ids::Digest;
use holm_test_support::{S3Server, noise};
use tokio::sync::Semaphore;

use super::artifacts::Assembled;
use super::{ArtifactError, Artifacts, Objects, S3Place};
use crate::clock::Clock;
use crate::limits::ORPHAN_ARTIFACT_AGE;
use crate::store::testing::TestDatabase;

/// Artifacts of a test's own.
struct Place {
    artifacts: Artifacts,
    objects: Objects,
    database: TestDatabase,
    check: Semaphore,
    _dir: tempfile::TempDir,
}

impl Place {
    async fn in_directory(database: TestDatabase) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::in_directory(dir.path().join("artifacts"))
            .await
            .unwrap();
        Place::new(objects, database, dir)
    }

    async fn in_s3(database: TestDatabase, server: &S3Server) -> Self {
        let place: S3Place = format!("s3://{}/a/prefix", server.bucket())
            .parse()
            .unwrap();
        let objects = Objects::in_s3(&place.with_settings(server.settings())).unwrap();
        Place::new(objects, database, tempfile::tempdir().unwrap())
    }

    fn new(objects: Objects, database: TestDatabase, dir: tempfile::TempDir) -> Self {
        let store = database.store.clone();
        Place {
            artifacts: Artifacts::new(objects.clone(), store, Clock::start()),
            objects,
            database,
            check: Semaphore::new(1),
            _dir: dir,
        }
    }

    async fn put(&self, artifact: &[u8]) -> Result<bool, ArtifactError> {
        let mut whole = self.artifacts.receive_whole();
        for piece in artifact.chunks(100_000) {
            whole.write(piece).await?;
        }
        whole.finish(Digest::of(artifact)).await
    }

    async fn assemble(&self, artifact: &[u8]) -> Result<Assembled, ArtifactError> {
        let (digest, index) = (Digest::of(artifact), Index::of(artifact));
        self.artifacts.assemble(digest, &index, &self.check).await
    }

    /// Sends chunks by their places.
    async fn send(&self, artifact: &[u8], places: &[u32]) {
        let placed: Vec<_> = Index::of(artifact).placed().collect();
        let mut incoming = self.artifacts.receive();
        for place in places {
            let (at, chunk) = placed[*place as usize];
            let chunk = &artifact[at as usize..][..chunk.bytes as usize];
            incoming.add(chunk).await.unwrap();
        }
        incoming.keep().await.unwrap();
    }

    async fn missing(&self, artifact: &[u8]) -> Vec<u32> {
        match self.assemble(artifact).await.unwrap() {
            Assembled::Missing(missing) => missing,
            Assembled::Here { .. } => Vec::new(),
        }
    }

    async fn packs(&self) -> usize {
        self.objects.list().await.unwrap().len()
    }
}

/// Makes a test of each function, once for each kind of place.
macro_rules! in_every_place {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite_in_a_directory {
            $(
                #[tokio::test]
                async fn $name() {
                    let database = super::TestDatabase::sqlite().await;
                    super::$name(super::Place::in_directory(database).await).await;
                }
            )*
        }
        mod on_postgres_in_a_directory {
            $(
                #[tokio::test]
                async fn $name() {
                    let database = super::TestDatabase::postgres().await;
                    super::$name(super::Place::in_directory(database).await).await;
                }
            )*
        }
        mod on_sqlite_in_s3 {
            $(
                #[tokio::test]
                async fn $name() {
                    let Some(server) = super::S3Server::shared() else { return };
                    let database = super::TestDatabase::sqlite().await;
                    super::$name(super::Place::in_s3(database, server).await).await;
                }
            )*
        }
    };
}

in_every_place! {
    an_artifact_comes_back_as_it_was,
    chunks_of_two_artifacts_are_kept_once,
    what_is_missing_is_told_by_its_first_place,
    a_chunk_that_nobody_needs_any_more_goes_and_its_room_with_it,
    a_chunk_that_goes_during_an_upload_is_asked_for_once_more,
    a_damaged_chunk_is_never_given_out_and_can_be_sent_again,
    what_was_sent_and_never_used_goes_when_it_is_old,
    objects_of_another_fleet_are_left_alone,
}

async fn an_artifact_comes_back_as_it_was(place: Place) {
    // Over the length of a pack, with zeroes in it, of one chunk, and of none.
    let large = [noise(1, 9 << 20), vec![0; 1 << 20], noise(2, 100)].concat();
    for artifact in [large, noise(3, 5), Vec::new()] {
        assert!(place.put(&artifact).await.unwrap(), "it is new");
        assert!(!place.put(&artifact).await.unwrap(), "it is not new");
        let digest = Digest::of(&artifact);
        assert!(place.artifacts.read(digest).await.unwrap() == artifact);
        assert_eq!(
            place.artifacts.bytes(digest).await.unwrap(),
            artifact.len() as u64
        );
        assert!(place.artifacts.has_for_deploy(digest).await.unwrap());
    }
    let error = place.artifacts.read(Digest([9; 32])).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Missing(_)), "{error}");
}

async fn chunks_of_two_artifacts_are_kept_once(place: Place) {
    let one = noise(1, 1 << 20);
    let two = [&one[..], b"and more"].concat();
    place.put(&one).await.unwrap();
    let missing = place.missing(&two).await;
    let chunks = Index::of(&two).chunks().len() as u32;
    assert_eq!(missing, [chunks - 1], "the last chunk is another one");
    place.send(&two, &missing).await;
    assert_eq!(
        place.assemble(&two).await.unwrap(),
        Assembled::Here { new: true }
    );
    assert!(place.artifacts.read(Digest::of(&two)).await.unwrap() == two);
    let mut kept = 0;
    for (pack, _) in place.objects.list().await.unwrap() {
        kept += match place.objects.read(&pack, 0..1 << 20).await.unwrap() {
            Some(first) => first.len(),
            None => 0,
        };
    }
    assert_eq!(kept, 1 << 20, "the second pack is smaller than that");
}

async fn what_is_missing_is_told_by_its_first_place(place: Place) {
    let artifact = [vec![0; 256 << 10], noise(4, 100_000)].concat();
    let index = Index::of(&artifact);
    let missing = place.missing(&artifact).await;
    assert_eq!(missing[0], 0);
    let equal = index
        .chunks()
        .iter()
        .filter(|chunk| **chunk == index.chunks()[0]);
    assert!(equal.count() >= 3);
    assert!(missing.len() + 2 < index.chunks().len(), "{missing:?}");
    place.send(&artifact, &missing).await;
    assert!(place.missing(&artifact).await.is_empty());
    assert!(place.artifacts.read(Digest::of(&artifact)).await.unwrap() == artifact);
}

async fn a_chunk_that_nobody_needs_any_more_goes_and_its_room_with_it(place: Place) {
    let shared = noise(1, 400_000);
    let one = [noise(2, 2 << 20), shared.clone()].concat();
    place.put(&one).await.unwrap();
    // It shares the end of the one, which is less than half of its pack.
    place.put(&shared).await.unwrap();
    assert!(place.artifacts.remove(Digest::of(&one)).await.unwrap());
    place.artifacts.tidy().await.unwrap();
    assert!(place.artifacts.read(Digest::of(&shared)).await.unwrap() == shared);
    let missing = place.missing(&one).await.len();
    let chunks = Index::of(&one).chunks().len();
    assert!(
        missing > chunks / 2 && missing < chunks,
        "{missing} of {chunks}"
    );
    let left = place.database.store.sparse_packs().await.unwrap();
    assert_eq!(left, []);
    let packs = place.packs().await;
    assert!(place.artifacts.remove(Digest::of(&shared)).await.unwrap());
    place.artifacts.tidy().await.unwrap();
    assert!((1..=2).contains(&packs) && place.packs().await == 0);
    assert_eq!(place.missing(&one).await.len(), chunks);
}

async fn a_chunk_that_goes_during_an_upload_is_asked_for_once_more(place: Place) {
    let old = noise(1, 1 << 20);
    let new = [&old[..], b"and more"].concat();
    place.put(&old).await.unwrap();
    let missing = place.missing(&new).await;
    assert_eq!(missing.len(), 1);
    // The upload was told that the rest is here.
    assert!(place.artifacts.remove(Digest::of(&old)).await.unwrap());
    place.artifacts.tidy().await.unwrap();
    place.send(&new, &missing).await;
    let missing = place.missing(&new).await;
    assert_eq!(missing.len(), Index::of(&new).chunks().len() - 1);
    place.send(&new, &missing).await;
    assert!(place.missing(&new).await.is_empty());
    assert!(place.artifacts.read(Digest::of(&new)).await.unwrap() == new);
}

async fn a_damaged_chunk_is_never_given_out_and_can_be_sent_again(place: Place) {
    let artifact = noise(1, 1 << 20);
    let digest = Digest::of(&artifact);
    place.put(&artifact).await.unwrap();
    // While the place itself is not there nothing counts as lost.
    let [(pack, _)] = &place.objects.list().await.unwrap()[..] else {
        panic!("one pack is expected");
    };
    let length = artifact.len() as u64;
    let bytes = place.objects.read(pack, 0..length).await.unwrap().unwrap();
    place.objects.remove(pack).await.unwrap();
    for _ in 0..2 {
        let error = place.artifacts.read(digest).await.unwrap_err();
        assert!(matches!(error, ArtifactError::Away(_)), "{error}");
    }
    place.objects.claim("fleet", false).await.unwrap();
    place.objects.put(pack, bytes).await.unwrap();
    assert!(place.artifacts.read(digest).await.unwrap() == artifact);
    for damage in [false, true] {
        let [(pack, _)] = &place.objects.list().await.unwrap()[..] else {
            panic!("one pack is expected");
        };
        let length = artifact.len() as u64;
        let mut bytes = place.objects.read(pack, 0..length).await.unwrap().unwrap();
        place.objects.remove(pack).await.unwrap();
        if damage {
            bytes[500_000] ^= 1;
            place.objects.put(pack, bytes).await.unwrap();
        }
        let error = place.artifacts.read(digest).await.unwrap_err();
        assert!(matches!(error, ArtifactError::Lost { .. }), "{error}");
        assert!(!place.artifacts.has_for_deploy(digest).await.unwrap());
        // All that is damaged is asked for at once, and nothing else.
        let missing = place.missing(&artifact).await;
        let chunks = Index::of(&artifact).chunks().len();
        assert_eq!(missing.len(), if damage { 1 } else { chunks });
        place.send(&artifact, &missing).await;
        assert!(place.missing(&artifact).await.is_empty());
        assert!(place.artifacts.read(digest).await.unwrap() == artifact);
        assert!(place.artifacts.remove(digest).await.unwrap());
        place.artifacts.tidy().await.unwrap();
        assert_eq!(place.packs().await, 0);
        place.put(&artifact).await.unwrap();
    }
}

async fn what_was_sent_and_never_used_goes_when_it_is_old(place: Place) {
    let (forgotten, asked) = (noise(1, 300_000), noise(2, 300_000));
    place.put(&forgotten).await.unwrap();
    place.put(&asked).await.unwrap();
    let halfway = noise(3, 300_000);
    place.send(&halfway, &[0, 1, 2]).await;
    place.artifacts.sweep().await.unwrap();
    assert_eq!(place.packs().await, 3, "nothing of it is old");
    let then = 1 + ORPHAN_ARTIFACT_AGE.as_millis() as u64;
    for table in ["artifacts", "chunks"] {
        let age = format!("UPDATE {table} SET used_ms = used_ms - {then}");
        place.database.execute(&age).await;
    }
    // A deploy asks for one of them, and finds it.
    assert!(
        place
            .artifacts
            .has_for_deploy(Digest::of(&asked))
            .await
            .unwrap()
    );
    assert_eq!(place.artifacts.sweep().await.unwrap(), 1);
    assert_eq!(place.packs().await, 1);
    assert!(place.artifacts.read(Digest::of(&asked)).await.unwrap() == asked);
}

async fn objects_of_another_fleet_are_left_alone(place: Place) {
    let claim = async |fleet, should_be| place.objects.claim(fleet, should_be).await;
    let error = claim("one", true).await.unwrap_err();
    assert!(error.to_string().contains("copy `packs`"), "{error}");
    claim("one", false).await.unwrap();
    claim("one", true).await.unwrap();
    let error = claim("two", false).await.unwrap_err();
    assert!(error.to_string().contains("another fleet"), "{error}");
}
