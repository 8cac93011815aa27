//! Objects in an S3-compatible store.
//!
//! Endpoint, region and credentials are in the environment, under the names that AWS SDKs have for them
//! (`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and so on); where there are no
//! keys, the machine's own role is used. Plain HTTP is spoken only to an endpoint that says `http://`.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ClientOptions, Error, ObjectStore as _, ObjectStoreExt as _, RetryConfig};

use super::{FLEET, PACKS, is_pack};
use crate::limits::{MAX_S3_RETRIES, S3_CONNECT, S3_PATIENCE, S3_TIMEOUT};
use crate::registry::ArtifactError;

/// Longest prefix.
const MAX_PREFIX_CHARS: usize = 512;

/// A bucket and a prefix in it, and how to get there.
#[derive(Clone)]
pub struct S3Place {
    bucket: String,
    prefix: String,
    /// Names as in the environment, `AWS_…`.
    settings: Vec<(String, String)>,
}

/// A text is not the URL of a place in an S3-compatible store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no place for artifacts: {why}; give s3://BUCKET or s3://BUCKET/PREFIX, and the endpoint and \
     credentials in the environment (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
)]
pub struct S3PlaceError {
    text: String,
    why: &'static str,
}

impl S3Place {
    /// The same place, with settings of these names in place of those of the environment.
    pub fn with_settings(mut self, settings: impl IntoIterator<Item = (String, String)>) -> Self {
        self.settings = settings.into_iter().collect();
        self
    }
}

/// With the settings that the environment has.
impl FromStr for S3Place {
    type Err = S3PlaceError;
    fn from_str(text: &str) -> Result<Self, S3PlaceError> {
        let wrong = |why| S3PlaceError {
            text: text.chars().take(MAX_PREFIX_CHARS).collect(),
            why,
        };
        let rest = text.strip_prefix("s3://");
        let rest = rest.ok_or_else(|| wrong("it does not begin with s3://"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
        if !(1..=63).contains(&bucket.len()) || !bucket.chars().all(part) {
            return Err(wrong(
                "the bucket is to be 1 to 63 of a-z, 0-9, `.`, `-` and `_`",
            ));
        }
        let prefix = prefix.trim_end_matches('/');
        if prefix.len() > MAX_PREFIX_CHARS
            || prefix.starts_with('/')
            || Path::parse(prefix).is_err()
        {
            return Err(wrong("the prefix cannot be one"));
        }
        let settings = std::env::vars().filter(|(name, _)| name.starts_with("AWS_"));
        Ok(S3Place {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            settings: settings.collect(),
        })
    }
}

impl fmt::Display for S3Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix.as_str() {
            "" => write!(f, "s3://{}", self.bucket),
            prefix => write!(f, "s3://{}/{prefix}", self.bucket),
        }
    }
}

/// Without the settings, which are secrets.
impl fmt::Debug for S3Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Place({self})")
    }
}

/// The store.
#[derive(Clone, Debug)]
pub(crate) struct S3 {
    store: Arc<AmazonS3>,
    prefix: String,
    place: String,
}

impl S3 {
    pub(super) fn new(place: &S3Place) -> Result<Self, ArtifactError> {
        let mut builder = AmazonS3Builder::new();
        let mut http = false;
        for (name, value) in &place.settings {
            // There are others, for other programs.
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                http |= name.starts_with("AWS_ENDPOINT") && value.starts_with("http://");
                builder = builder.with_config(key, value);
            }
        }
        let client = ClientOptions::new()
            .with_allow_http(http)
            .with_connect_timeout(S3_CONNECT)
            .with_timeout(S3_TIMEOUT);
        let retry = RetryConfig {
            max_retries: MAX_S3_RETRIES,
            retry_timeout: S3_PATIENCE,
            ..RetryConfig::default()
        };
        // Last, so that no AWS_BUCKET of another program is taken for it.
        let builder = builder.with_bucket_name(&place.bucket);
        let store = builder.with_client_options(client).with_retry(retry);
        let store = store
            .build()
            .map_err(failed("opening", place.to_string()))?;
        Ok(S3 {
            store: Arc::new(store),
            prefix: place.prefix.clone(),
            place: place.to_string(),
        })
    }

    pub(super) fn place(&self) -> String {
        self.place.clone()
    }

    pub(super) async fn owner(&self) -> Result<Option<Vec<u8>>, ArtifactError> {
        let path = self.path(FLEET);
        let read = async { self.store.get(&path).await?.bytes().await };
        let owner = if_there(read.await).map_err(self.failed("reading", &path))?;
        Ok(owner.map(|owner| owner.to_vec()))
    }

    pub(super) async fn own(&self, fleet: &str) -> Result<(), ArtifactError> {
        self.write(&self.path(FLEET), fleet.as_bytes().to_vec())
            .await
    }

    pub(super) async fn put(&self, pack: &str, bytes: Vec<u8>) -> Result<(), ArtifactError> {
        self.write(&self.pack(pack), bytes).await
    }

    pub(super) async fn put_file(&self, name: &str, bytes: Vec<u8>) -> Result<(), ArtifactError> {
        self.write(&self.path(name), bytes).await
    }

    pub(super) async fn read_file(&self, name: &str) -> Result<Option<Vec<u8>>, ArtifactError> {
        let path = self.path(name);
        let read = async { self.store.get(&path).await?.bytes().await };
        let read = if_there(read.await).map_err(self.failed("reading", &path))?;
        Ok(read.map(|bytes| bytes.to_vec()))
    }

    pub(super) async fn read(
        &self,
        pack: &str,
        range: Range<u64>,
    ) -> Result<Option<Vec<u8>>, ArtifactError> {
        let path = self.pack(pack);
        let want = range.end - range.start;
        let read = self.store.get_range(&path, range.clone()).await;
        let error = match if_there(read) {
            Ok(read) => {
                let whole = read.filter(|bytes| bytes.len() as u64 == want);
                return Ok(whole.map(|bytes| bytes.to_vec()));
            }
            Err(error) => error,
        };
        // Servers have different words for a range that is not there.
        match self.store.head(&path).await {
            Ok(about) if about.size < range.end => Ok(None),
            _ => Err(self.failed("reading", &path)(error)),
        }
    }

    pub(super) async fn remove(&self, pack: &str) -> Result<(), ArtifactError> {
        let path = self.pack(pack);
        if_there(self.store.delete(&path).await).map_err(self.failed("removing", &path))?;
        Ok(())
    }

    pub(super) async fn list(&self) -> Result<Vec<(String, Duration)>, ArtifactError> {
        let path = self.path(PACKS);
        let listed = self.store.list_with_delimiter(Some(&path)).await;
        let listed = listed.map_err(self.failed("listing", &path))?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let packs = listed.objects.into_iter().filter_map(|object| {
            let name = object.location.filename().filter(|name| is_pack(name))?;
            let then = u64::try_from(object.last_modified.timestamp_millis()).unwrap_or(0);
            let age = now.saturating_sub(Duration::from_millis(then));
            Some((name.to_owned(), age))
        });
        Ok(packs.collect())
    }

    async fn write(&self, path: &Path, bytes: Vec<u8>) -> Result<(), ArtifactError> {
        let stored = self.store.put(path, bytes.into()).await;
        stored.map_err(self.failed("storing", path)).map(|_| ())
    }

    fn pack(&self, name: &str) -> Path {
        self.path(&format!("{PACKS}/{name}"))
    }

    fn path(&self, name: &str) -> Path {
        Path::from(format!("{}/{name}", self.prefix))
    }

    fn failed(
        &self,
        operation: &'static str,
        path: &Path,
    ) -> impl Fn(Error) -> ArtifactError + use<> {
        failed(operation, format!("{path} in {}", self.place))
    }
}

fn failed(operation: &'static str, object: String) -> impl Fn(Error) -> ArtifactError {
    move |source| ArtifactError::S3 {
        operation,
        object: object.clone(),
        source,
    }
}

fn if_there<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Err(Error::NotFound { .. }) => Ok(None),
        found => found.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_bucket_and_a_prefix() {
        for (text, read) in [
            ("s3://holm", "s3://holm"),
            ("s3://holm/", "s3://holm"),
            ("s3://holm.example-1/a/b/", "s3://holm.example-1/a/b"),
        ] {
            assert_eq!(text.parse::<S3Place>().unwrap().to_string(), read);
        }
        for text in [
            "",
            "holm",
            "s3:/holm",
            "s3://",
            "s3://Holm",
            "s3://a b",
            "s3://a//b",
            "s3://a/../b",
        ] {
            let error = text.parse::<S3Place>().unwrap_err().to_string();
            assert!(error.contains("s3://BUCKET"), "{text}: {error}");
        }
    }

    #[test]
    fn no_secret_of_a_place_is_printed() {
        let place: S3Place = "s3://holm".parse().unwrap();
        let settings = [
            ("AWS_ACCESS_KEY_ID".into(), "somebody".into()),
            ("AWS_SECRET_ACCESS_KEY".into(), "hush".into()),
        ];
        let place = place.with_settings(settings);
        let store = S3::new(&place).unwrap();
        assert!(!format!("{place:?} {place} {}", store.place()).contains("hush"));
    }
}
