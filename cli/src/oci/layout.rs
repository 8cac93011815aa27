//! An OCI image layout on disk (image specification 1.1, `image-layout.md`).
//!
//! ```text
//! oci-layout            the layout's version
//! index.json            its manifests, by tag
//! blobs/sha256/HEX      manifests, statements and artifacts, each once
//! ```
//! What others have put in it stays. Files are whole or not there.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use holm_model::ids::Digest;

use super::{Descriptor, FUNCTION, MANIFEST, MAX_DOCUMENT_BYTES, Package, PackageError, Parts};
use crate::exit::{Exit, Failure};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The annotation of an index's entry that is its tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const LAYOUT_VERSION: &str = "1.0.0";

/// The layout in a directory.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The one in `dir`, whether it is there or not.
    pub(crate) fn at(dir: &Path) -> Self {
        Layout {
            dir: dir.to_owned(),
        }
    }

    /// Puts a version in; `tag` names it from now on, and nothing else. Returns the manifest's digest.
    pub(crate) fn put(&self, package: &Package, tag: &str) -> Result<Digest, Failure> {
        let mut index = match self.index()? {
            Some(index) => index,
            None => {
                self.write(
                    "oci-layout",
                    &to_json(&json!({ "imageLayoutVersion": LAYOUT_VERSION })),
                )?;
                json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] })
            }
        };
        let manifest = package.manifest();
        for blob in [&package.signed.statement, &package.artifact, &manifest] {
            let name = blob_name(Digest::of(blob));
            // One that was cut short is written anew.
            let there = std::fs::read(self.dir.join(&name)).is_ok_and(|there| there == *blob);
            if !there {
                self.write(&name, blob)?;
            }
        }
        let mut entry = Descriptor::of(MANIFEST, &manifest);
        entry.artifact_type = Some(FUNCTION.to_owned());
        entry
            .annotations
            .insert(REF_NAME.to_owned(), tag.to_owned());
        let digest = entry.digest;
        let entries = index.get_mut("manifests").and_then(Value::as_array_mut);
        let entries = entries.ok_or_else(|| self.wrong("its index.json lists no manifests"))?;
        entries.retain(|entry| tag_of(entry) != Some(tag));
        entries.push(json!(entry));
        self.write("index.json", &to_json(&index))?;
        Ok(digest)
    }

    /// The version that `tag` names; without a tag the only one.
    pub(crate) fn get(&self, tag: Option<&str>) -> Result<Package, Failure> {
        let Some(index) = self.index()? else {
            let dir = self.dir.display();
            return Err(
                Failure::usage(format!("there is no OCI image layout in {dir}"))
                    .hint("give the directory that `holm push`, skopeo or oras has written"),
            );
        };
        let entries = index["manifests"].as_array();
        let entries = entries.ok_or_else(|| self.wrong("its index.json lists no manifests"))?;
        let tags: Vec<&str> = entries.iter().filter_map(tag_of).collect();
        let found: Vec<&Value> = entries
            .iter()
            .filter(|entry| tag.is_none() || tag_of(entry) == tag)
            .collect();
        let entry = match found[..] {
            [entry] => entry,
            _ => {
                let dir = self.dir.display();
                let what = match tag {
                    Some(tag) => {
                        format!("the OCI image layout in {dir} has no one manifest `{tag}`")
                    }
                    None => format!(
                        "the OCI image layout in {dir} has {} manifests",
                        found.len()
                    ),
                };
                let tags = tags.join(", ");
                let hint = format!("give oci:PATH:TAG with one of its tags: {tags}");
                return Err(Failure::new(Exit::Refused, what).hint(hint));
            }
        };
        let entry: Descriptor = serde_json::from_value(entry.clone()).map_err(|error| {
            self.wrong(&format!(
                "an entry of its index.json is no descriptor: {error}"
            ))
        })?;
        let bad = |error: PackageError| self.wrong(&error.to_string());
        let manifest = self.blob(&entry, MAX_DOCUMENT_BYTES)?;
        entry.check("manifest", &manifest).map_err(bad)?;
        let parts = Parts::read(&manifest).map_err(bad)?;
        let statement = self.blob(&parts.statement, parts.statement.size)?;
        let artifact = self.blob(&parts.bundle, parts.bundle.size)?;
        parts.package(statement, artifact).map_err(bad)
    }

    /// `index.json`, if there is a layout.
    fn index(&self) -> Result<Option<Value>, Failure> {
        let Some(layout) = self.read("oci-layout", MAX_DOCUMENT_BYTES)? else {
            return Ok(None);
        };
        let layout: Value = serde_json::from_slice(&layout)
            .map_err(|error| self.wrong(&format!("its file oci-layout cannot be read: {error}")))?;
        let version = layout["imageLayoutVersion"].as_str().unwrap_or_default();
        if !version.starts_with("1.") {
            return Err(self.wrong(&format!(
                "it is one of version `{version}`, not {LAYOUT_VERSION}"
            )));
        }
        let index = self.read("index.json", MAX_DOCUMENT_BYTES)?;
        let index = index.ok_or_else(|| self.wrong("it has no index.json"))?;
        serde_json::from_slice(&index)
            .map(Some)
            .map_err(|error| self.wrong(&format!("its index.json cannot be read: {error}")))
    }

    fn blob(&self, of: &Descriptor, most: u64) -> Result<Vec<u8>, Failure> {
        let name = blob_name(of.digest);
        let blob = self.read(&name, most)?;
        blob.ok_or_else(|| self.wrong(&format!("it lacks {name}")))
    }

    /// A file of at most `most` bytes; none if it is not there.
    fn read(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, Failure> {
        let path = self.dir.join(name);
        let file = match fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file,
        };
        let mut bytes = Vec::new();
        let read = file.and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
        read.map_err(|error| {
            Failure::usage(format!("{} cannot be read: {error}", path.display()))
        })?;
        match bytes.len() as u64 > most {
            true => Err(self.wrong(&format!(
                "its {name} has more than the {most} bytes expected"
            ))),
            false => Ok(Some(bytes)),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.dir.join(name);
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        let write = || {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o644)
                .open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error| {
            // After a rename there is nothing left to remove.
            let _ = fs::remove_file(&temporary);
            Failure::usage(format!("{} cannot be written: {error}", path.display()))
                .hint("look at the disk and at who owns the directory")
        })
    }

    /// It is not as it should be.
    fn wrong(&self, why: &str) -> Failure {
        let dir = self.dir.display();
        Failure::new(
            Exit::Refused,
            format!("the OCI image layout in {dir} cannot be used: {why}"),
        )
        .hint("get it once more from whoever made it, with `holm push` or a copy of that")
    }
}

fn tag_of(entry: &Value) -> Option<&str> {
    entry["annotations"][REF_NAME].as_str()
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn to_json(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("a JSON value is JSON")
}
