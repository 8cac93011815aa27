//! Objects as files of a directory. Where there are several coordinators, it is on a file system that all of them
//! mount.

use std::fs::Metadata;
use std::io::{self, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

use super::{FLEET, PACKS, is_pack};
use crate::ca::random;
use crate::registry::ArtifactError;

/// Linux's number for a failed read or write of a device.
const EIO: i32 = 5;

/// A directory of objects.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    dir: PathBuf,
}

impl Directory {
    /// Opens the directory, or makes it.
    pub(super) async fn open(dir: PathBuf) -> Result<Self, ArtifactError> {
        let packs = dir.join(PACKS);
        fs::create_dir_all(&packs)
            .await
            .map_err(disk("making", &packs))?;
        Ok(Directory { dir })
    }

    pub(super) fn place(&self) -> String {
        self.dir.display().to_string()
    }

    pub(super) async fn owner(&self) -> Result<Option<Vec<u8>>, ArtifactError> {
        let path = self.dir.join(FLEET);
        if_there(fs::read(&path).await).map_err(disk("reading", &path))
    }

    pub(super) async fn own(&self, fleet: &str) -> Result<(), ArtifactError> {
        // Whole or not there: what is cut short would be another fleet's.
        self.replace(&self.dir.join(FLEET), fleet.as_bytes()).await
    }

    pub(super) async fn put_file(&self, name: &str, bytes: Vec<u8>) -> Result<(), ArtifactError> {
        let path = self.dir.join(name);
        let parent = path.parent().unwrap_or(&self.dir);
        fs::create_dir_all(parent)
            .await
            .map_err(disk("making", parent))?;
        self.replace(&path, &bytes).await?;
        // The directories may be new.
        let mut dir = parent;
        while dir != self.dir
            && let Some(above) = dir.parent()
        {
            let synced = async { File::open(above).await?.sync_all().await };
            synced.await.map_err(disk("syncing", above))?;
            dir = above;
        }
        Ok(())
    }

    pub(super) async fn read_file(&self, name: &str) -> Result<Option<Vec<u8>>, ArtifactError> {
        let path = self.dir.join(name);
        if_there(fs::read(&path).await).map_err(disk("reading", &path))
    }

    /// Writes a file beside this one, and puts it in its place.
    async fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), ArtifactError> {
        let beside = path.with_added_extension(hex::encode(random::<8>()));
        self.write(&beside, bytes).await?;
        let renamed = async {
            fs::rename(&beside, path).await?;
            let parent = path.parent().unwrap_or(&self.dir);
            File::open(parent).await?.sync_all().await
        };
        let renamed = renamed.await.map_err(disk("writing", path));
        if renamed.is_err() {
            let _ = fs::remove_file(&beside).await;
        }
        renamed
    }

    pub(super) async fn put(&self, pack: &str, bytes: Vec<u8>) -> Result<(), ArtifactError> {
        self.write(&self.pack(pack), &bytes).await
    }

    pub(super) async fn read(
        &self,
        pack: &str,
        range: Range<u64>,
    ) -> Result<Option<Vec<u8>>, ArtifactError> {
        let path = self.pack(pack);
        let Some(mut file) = if_there(File::open(&path).await).map_err(disk("opening", &path))?
        else {
            return Ok(None);
        };
        let want = range.end - range.start;
        file.seek(SeekFrom::Start(range.start))
            .await
            .map_err(disk("reading", &path))?;
        let mut bytes = Vec::new();
        match file.take(want).read_to_end(&mut bytes).await {
            // A bad sector: what was there has to be sent again.
            Err(error) if error.raw_os_error() == Some(EIO) => {
                tracing::error!(path = %path.display(), %error, "a pack of the artifact store cannot be read");
                return Ok(None);
            }
            read => read.map_err(disk("reading", &path))?,
        };
        Ok(Some(bytes).filter(|bytes| bytes.len() as u64 == want))
    }

    pub(super) async fn remove(&self, pack: &str) -> Result<(), ArtifactError> {
        let path = self.pack(pack);
        if_there(fs::remove_file(&path).await).map_err(disk("removing", &path))?;
        Ok(())
    }

    pub(super) async fn list(&self) -> Result<Vec<(String, Duration)>, ArtifactError> {
        let dir = self.dir.join(PACKS);
        let failed = |operation| disk(operation, &dir);
        let mut packs = Vec::new();
        let mut entries = fs::read_dir(&dir).await.map_err(failed("listing"))?;
        while let Some(entry) = entries.next_entry().await.map_err(failed("listing"))? {
            // Another coordinator may be done with it by now.
            let Some(metadata) = if_there(entry.metadata().await).map_err(failed("measuring"))?
            else {
                continue;
            };
            if let Ok(name) = entry.file_name().into_string()
                && is_pack(&name)
            {
                packs.push((name, age(&metadata)));
            }
        }
        Ok(packs)
    }

    fn pack(&self, name: &str) -> PathBuf {
        self.dir.join(PACKS).join(name)
    }

    async fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), ArtifactError> {
        let mut file = File::create_new(path).await.map_err(disk("making", path))?;
        let written = async {
            file.write_all(bytes).await?;
            // Without it the last write goes on behind, and nobody hears of its failure.
            file.flush().await?;
            file.sync_all().await?;
            let parent = path.parent().unwrap_or(&self.dir);
            File::open(parent).await?.sync_all().await
        };
        let written = written.await.map_err(disk("writing", path));
        if written.is_err() {
            // What is left of it has no row, and goes at the next start.
            let _ = fs::remove_file(path).await;
        }
        written
    }
}

/// None where there is nothing any more.
pub(in crate::registry) fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// How long ago the file was last written to.
fn age(metadata: &Metadata) -> Duration {
    let then = metadata.modified().ok();
    then.and_then(|then| SystemTime::now().duration_since(then).ok())
        .unwrap_or_default()
}

pub(in crate::registry) fn disk(
    operation: &'static str,
    path: &Path,
) -> impl Fn(io::Error) -> ArtifactError + use<> {
    let path = path.to_owned();
    move |source| ArtifactError::Disk {
        operation,
        path: path.clone(),
        source,
    }
}
