//! Which coordinator to speak to, and with which token.
//!
//! In this order: the command line, the environment, the file `~/.config/holm/config.toml` that
//! `holm login` writes, and for a coordinator of this user on this machine its own admin token.
//! Nothing here asks anybody anything.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use holm_model::ids::Name;
use holm_tls::client::Trust;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::exit::Failure;
use crate::remote::client::Client;

/// Where a coordinator listens for people unless it is told otherwise.
pub(crate) const DEFAULT_HTTP: &str = "127.0.0.1:7700";
/// Largest token file or configuration file that is read.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Options of every verb that speaks to a coordinator.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Connection {
    /// The coordinator's URL [default: from `holm login`, else http://127.0.0.1:7700].
    #[arg(long, env = "HOLM_COORDINATOR", value_name = "URL", global = true)]
    pub(crate) coordinator: Option<String>,
    /// The token to show to it; better given by HOLM_TOKEN or --token-file, which others on the
    /// machine do not see.
    #[arg(
        long,
        env = "HOLM_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        global = true
    )]
    pub(crate) token: Option<String>,
    /// A file that holds the token.
    #[arg(long, env = "HOLM_TOKEN_FILE", value_name = "FILE", global = true)]
    pub(crate) token_file: Option<PathBuf>,
    /// A file of the certificates to trust (PEM) in https:// URLs of the coordinator and of nodes [default: from
    /// `holm login`, else those that the system trusts].
    #[arg(long, env = "HOLM_CA_FILE", value_name = "FILE", global = true)]
    pub(crate) ca_file: Option<PathBuf>,
}

/// Options of verbs that list what tenants have.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Of this tenant alone.
    #[arg(long)]
    tenant: Option<Name>,
    #[command(flatten)]
    connection: Connection,
}

impl ListArgs {
    /// The list that `path` of the API has.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let client = self.connection.client()?;
        match &self.tenant {
            None => client.get(path).await,
            Some(tenant) => client.get(&format!("{path}?tenant={tenant}")).await,
        }
    }
}

/// What `config.toml` holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigFile {
    /// The coordinator's URL.
    pub(crate) coordinator: Option<String>,
    /// The token to show to it.
    pub(crate) token: Option<String>,
    /// A file of the certificates to trust.
    pub(crate) ca_file: Option<PathBuf>,
}

/// URL, token, file of whom to trust.
type Resolved = (String, Option<String>, Option<PathBuf>);

impl Connection {
    /// A client for the coordinator that these options mean.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let file = ConfigFile::read(&config_file()?)?;
        let (url, token, ca_file) = self.resolve(file)?;
        let trust = Trust::new(ca_file);
        let token = match token {
            None => own_coordinator_token(&url)?,
            some => some,
        };
        Client::new(&url, token, trust)
    }

    /// The token that these options or `holm login` give.
    pub(crate) fn given_token(&self) -> Result<Option<String>, Failure> {
        let (_, token, _) = self.resolve(ConfigFile::read(&config_file()?)?)?;
        Ok(token)
    }

    /// The coordinator's URL, and the token and the file of whom to trust for it, if any were given or remembered.
    fn resolve(&self, file: ConfigFile) -> Result<Resolved, Failure> {
        let url = self
            .coordinator
            .clone()
            .or_else(|| file.coordinator.clone());
        let url = url.unwrap_or_else(|| format!("http://{DEFAULT_HTTP}"));
        // Both are for the coordinator that they were remembered for.
        let remembered = file.coordinator.as_deref() == Some(url.as_str());
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(path)) => Some(read_token(path)?),
            (None, None) if remembered => file.token,
            (None, None) => None,
        };
        let ca_file = file.ca_file.filter(|_| remembered);
        Ok((url, token, self.ca_file.clone().or(ca_file)))
    }
}

impl ConfigFile {
    /// Reads `path`; a file that is not there is an empty one.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        match read_small(path) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                Failure::usage(format!(
                    "the settings in {} cannot be read: {error}",
                    path.display()
                ))
                .hint("correct the file, or write it anew with `holm login`")
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Failure::usage(format!(
                "the settings {} cannot be read: {error}",
                path.display()
            ))),
        }
    }

    /// Writes `path`, readable by its owner alone.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = toml::to_string(self)
            .map_err(|error| Failure::other(format!("the settings cannot be written: {error}")))?;
        write_private(path, text.as_bytes(), true).map_err(|error| {
            Failure::other(format!("{} cannot be written: {error}", path.display()))
        })
    }
}

/// Writes `bytes` to `path` with mode 0600, making its directory; refuses to replace a file unless
/// `replace`.
pub(crate) fn write_private(path: &Path, bytes: &[u8], replace: bool) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        match replace {
            true => std::fs::rename(&temporary, path),
            // Unlike a rename, a link fails if somebody else was faster.
            false => std::fs::hard_link(&temporary, path),
        }
    };
    let result = write();
    // After a rename there is nothing left to remove.
    let _ = std::fs::remove_file(&temporary);
    result
}

/// Reads a text file that has no business being large.
pub(crate) fn read_small(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)?;
    match text.len() as u64 > MAX_FILE_BYTES {
        true => Err(std::io::Error::other(format!(
            "it has more than {MAX_FILE_BYTES} bytes"
        ))),
        false => Ok(text),
    }
}

/// The token in `path`.
pub(crate) fn read_token(path: &Path) -> Result<String, Failure> {
    let text = read_small(path).map_err(|error| {
        Failure::usage(format!(
            "the token file {} cannot be read: {error}",
            path.display()
        ))
    })?;
    match text.trim() {
        "" => Err(Failure::usage(format!(
            "the token file {} is empty",
            path.display()
        ))),
        token => Ok(token.to_owned()),
    }
}

/// `~/.config/holm`, or under `$XDG_CONFIG_HOME`.
pub(crate) fn config_directory() -> Result<PathBuf, Failure> {
    xdg("XDG_CONFIG_HOME", ".config").map(|directory| directory.join("holm"))
}

/// The file that `holm login` writes.
pub(crate) fn config_file() -> Result<PathBuf, Failure> {
    Ok(config_directory()?.join("config.toml"))
}

/// `~/.local/state/holm/WHAT`, or under `$XDG_STATE_HOME`.
pub(crate) fn state_directory(what: &str) -> Result<PathBuf, Failure> {
    xdg("XDG_STATE_HOME", ".local/state").map(|directory| directory.join("holm").join(what))
}

fn xdg(variable: &str, under_home: &str) -> Result<PathBuf, Failure> {
    let absolute = |value: std::ffi::OsString| {
        let path = PathBuf::from(value);
        path.is_absolute().then_some(path)
    };
    if let Some(path) = std::env::var_os(variable).and_then(absolute) {
        return Ok(path);
    }
    std::env::var_os("HOME")
        .and_then(absolute)
        .map(|home| home.join(under_home))
        .ok_or_else(|| {
            Failure::usage(format!(
                "neither {variable} nor HOME is set to an absolute path"
            ))
            .hint("set HOME, or give the paths on the command line")
        })
}

/// The admin token of a coordinator that this user runs here with its default state directory.
fn own_coordinator_token(url: &str) -> Result<Option<String>, Failure> {
    let url = url.trim_end_matches('/');
    let address = url.strip_prefix("https://").or(url.strip_prefix("http://"));
    if address != Some(DEFAULT_HTTP) {
        return Ok(None);
    }
    let path = state_directory("coordinator")?.join(crate::remote::daemon::ADMIN_TOKEN_FILE);
    match path.exists() {
        true => read_token(&path).map(Some),
        false => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn settings_come_back_as_written_and_are_for_the_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("holm/config.toml");
        let written = ConfigFile {
            coordinator: Some("http://192.0.2.1:7700".into()),
            token: Some("secret".into()),
            ca_file: Some("/etc/roots.pem".into()),
        };
        written.write(&path).unwrap();
        assert_eq!(ConfigFile::read(&path).unwrap(), written);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn settings_with_an_unknown_key_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        std::fs::write(&path, "coordinatr = \"http://192.0.2.1\"\n").unwrap();
        let failure = ConfigFile::read(&path).unwrap_err();
        assert_eq!(failure.exit, crate::exit::Exit::Usage);
        assert!(failure.message.contains("coordinatr"), "{failure}");
    }

    #[test]
    fn a_file_that_exists_is_not_replaced_unless_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        write_private(&path, b"first", false).unwrap();
        assert!(write_private(&path, b"second", false).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_remembered_token_is_shown_to_no_other_coordinator() {
        let file = || ConfigFile {
            coordinator: Some("http://192.0.2.1:7700".into()),
            token: Some("remembered".into()),
            ca_file: None,
        };
        let own = Connection::default();
        let (url, token, _) = own.resolve(file()).unwrap();
        assert_eq!(
            (url.as_str(), token.as_deref()),
            ("http://192.0.2.1:7700", Some("remembered"))
        );
        let other = Connection {
            coordinator: Some("http://192.0.2.2:7700".into()),
            ..own
        };
        assert_eq!(other.resolve(file()).unwrap().1, None);
        let given = Connection {
            token: Some("given".into()),
            ..other
        };
        assert_eq!(given.resolve(file()).unwrap().1.as_deref(), Some("given"));
    }

    #[test]
    fn an_empty_token_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, " \n").unwrap();
        assert!(read_token(&path).unwrap_err().message.contains("is empty"));
        std::fs::write(&path, "abc\n").unwrap();
        assert_eq!(read_token(&path).unwrap(), "abc");
    }
}
