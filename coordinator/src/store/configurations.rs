//! Configurations, the ciphertexts of their secrets, and the releases that they are part of.

use std::collections::BTreeMap;

use holm_model::artifact::PublisherKey;
use holm_model::configuration::{
    ConfigurationId, ConfigurationStatement, Release, ReleaseId, SignedConfiguration,
};
use holm_model::ids::{Digest, FunctionName, VersionId};

use super::catalogue::keys_of;
use super::error::During as _;
use super::sql::{On, Transaction, Value, query};
use super::{Store, StoreError, Turn, bytes32, text, uint};
use crate::limits::{LOOKUP_CHUNK_ROWS, MAX_CONFIGURATIONS};

/// A configuration as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct ConfigurationRow {
    pub(crate) id: ConfigurationId,
    pub(crate) signed: SignedConfiguration,
    pub(crate) statement: ConfigurationStatement,
}

/// A secret as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct SecretRow {
    pub(crate) commitment: Digest,
    pub(crate) ciphertext: Vec<u8>,
}

/// A configuration to be stored, already verified.
#[derive(Debug)]
pub(crate) struct NewConfiguration<'a> {
    pub(crate) signed: &'a SignedConfiguration,
    pub(crate) statement: &'a ConfigurationStatement,
    /// Ciphertexts of the secrets that the function does not have yet, by their commitments.
    pub(crate) secrets: Vec<(Digest, Vec<u8>)>,
}

/// What became of a configuration that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConfigureOutcome {
    Stored,
    /// Its number does not follow on the newest one's.
    OutOfTurn {
        newest: u64,
    },
    /// The key that signed it was revoked meanwhile.
    KeyRevoked,
    /// The database's secrets are encrypted with another key.
    OtherSecretsKey,
}

/// What people are told of a release.
#[derive(Clone, Debug)]
pub(crate) struct ReleaseRow {
    pub(crate) version: VersionId,
    pub(crate) label: String,
    /// Of its configuration.
    pub(crate) number: u64,
}

/// Statement, key, signature.
type Columns = (Vec<u8>, Vec<u8>, Vec<u8>);

fn row((statement, key, signature): Columns) -> Result<ConfigurationRow, StoreError> {
    let parsed = serde_json::from_slice(&statement)
        .map_err(|error| StoreError::corrupt("a configuration's statement", error))?;
    let signed = SignedConfiguration {
        statement,
        key: PublisherKey(bytes32("a publisher's key", &key)?),
        signature,
    };
    Ok(ConfigurationRow {
        id: signed.id(),
        signed,
        statement: parsed,
    })
}

/// What stands in a column for a configuration: empty if there is none.
pub(super) fn column(configuration: Option<ConfigurationId>) -> Vec<u8> {
    configuration.map_or_else(Vec::new, |configuration| configuration.0.to_vec())
}

/// What stands in two columns.
pub(super) fn release(version: &[u8], configuration: &[u8]) -> Result<Release, StoreError> {
    Ok(Release {
        version: Digest(bytes32("a version's id", version)?),
        configuration: match configuration {
            [] => None,
            configuration => Some(Digest(bytes32("a configuration's id", configuration)?)),
        },
    })
}

/// Notes by what name nodes know a release that is rolled out.
pub(super) async fn save_release(tx: &mut Transaction, of: Release) -> Result<(), StoreError> {
    if let Some(configuration) = of.configuration {
        query(
            "INSERT INTO releases (id, version, configuration) VALUES (?, ?, ?)
             ON CONFLICT DO NOTHING",
        )
        .bind(of.id())
        .bind(of.version)
        .bind(configuration)
        .execute(tx)
        .await
        .during("store a release")?;
    }
    Ok(())
}

/// The number of a function's newest configuration; 0 if it has none.
async fn newest(on: impl Into<On<'_>>, function: &FunctionName) -> Result<u64, StoreError> {
    let (newest,): (Option<i64>,) =
        query("SELECT MAX(number) FROM configurations WHERE function = ?")
            .bind(function.to_string())
            .one(on)
            .await
            .during("look up the newest configuration")?;
    Ok(newest.map_or(0, uint))
}

impl Store {
    /// Stores a configuration that follows on the newest one of its function.
    pub(crate) async fn configure(
        &self,
        new: NewConfiguration<'_>,
        encrypted_with: Digest,
        now_ms: u64,
    ) -> Result<ConfigureOutcome, StoreError> {
        const DOING: &str = "store a configuration";
        let NewConfiguration {
            signed,
            statement,
            secrets,
        } = new;
        let function = statement.function.to_string();
        let mut tx = self.write(Turn::Registry).await?;
        let keys = keys_of(&mut tx, &statement.function.tenant).await?;
        let holds = |row: &super::KeyRow| row.key == signed.key && row.holds(now_ms);
        if !keys.iter().any(holds) {
            return Ok(ConfigureOutcome::KeyRevoked);
        }
        let newest = newest(&mut tx, &statement.function).await?;
        if statement.number != newest + 1 {
            return Ok(ConfigureOutcome::OutOfTurn { newest });
        }
        if !secrets.is_empty() && claim_secrets(&mut tx, encrypted_with).await? != encrypted_with {
            return Ok(ConfigureOutcome::OtherSecretsKey);
        }
        query(
            "INSERT INTO configurations (id, function, number, statement, key, signature, published_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(signed.id())
        .bind(function.as_str())
        .bind(statement.number)
        .bind(&signed.statement[..])
        .bind(&signed.key.0[..])
        .bind(&signed.signature[..])
        .bind(now_ms)
        .execute(&mut tx)
        .await
        .during(DOING)?;
        for (commitment, ciphertext) in secrets {
            query(
                "INSERT INTO secrets (function, commitment, number, ciphertext) VALUES (?, ?, ?, ?)
                 ON CONFLICT DO NOTHING",
            )
            .bind(function.as_str())
            .bind(commitment)
            .bind(statement.number)
            .bind(&ciphertext[..])
            .execute(&mut tx)
            .await
            .during(DOING)?;
        }
        tx.commit(DOING).await?;
        Ok(ConfigureOutcome::Stored)
    }

    /// One configuration.
    pub(crate) async fn configuration(
        &self,
        id: ConfigurationId,
    ) -> Result<Option<ConfigurationRow>, StoreError> {
        let found: Option<Columns> =
            query("SELECT statement, key, signature FROM configurations WHERE id = ?")
                .bind(id)
                .optional(self.reader())
                .await
                .during("look up a configuration")?;
        found.map(row).transpose()
    }

    /// The newest configurations of a function, the newest first.
    pub(crate) async fn configurations(
        &self,
        function: &FunctionName,
    ) -> Result<Vec<ConfigurationRow>, StoreError> {
        let rows: Vec<Columns> = query(
            "SELECT statement, key, signature FROM configurations WHERE function = ?
             ORDER BY number DESC LIMIT ?",
        )
        .bind(function.to_string())
        .bind(MAX_CONFIGURATIONS)
        .all(self.reader())
        .await
        .during("list configurations")?;
        rows.into_iter().map(row).collect()
    }

    /// A configuration by its number.
    pub(crate) async fn numbered_configuration(
        &self,
        function: &FunctionName,
        number: u64,
    ) -> Result<Option<ConfigurationRow>, StoreError> {
        let found: Option<Columns> = query(
            "SELECT statement, key, signature FROM configurations WHERE function = ? AND number = ?",
        )
        .bind(function.to_string())
        .bind(number)
        .optional(self.reader())
        .await
        .during("look up a configuration")?;
        found.map(row).transpose()
    }

    /// The newest configuration of a function, if it has any.
    pub(crate) async fn newest_configuration(
        &self,
        function: &FunctionName,
    ) -> Result<Option<ConfigurationRow>, StoreError> {
        match newest(self.reader(), function).await? {
            0 => Ok(None),
            number => self.numbered_configuration(function, number).await,
        }
    }

    /// The numbers of those of `ids` that are known.
    pub(crate) async fn configuration_numbers(
        &self,
        ids: &[ConfigurationId],
    ) -> Result<BTreeMap<ConfigurationId, u64>, StoreError> {
        let mut numbers = BTreeMap::new();
        for some in ids.chunks(LOOKUP_CHUNK_ROWS) {
            let mut rows = query("SELECT id, number FROM configurations WHERE id IN ");
            rows.push_row(some.iter().map(|id| (*id).into()));
            let rows: Vec<(Vec<u8>, i64)> = rows
                .all(self.reader())
                .await
                .during("look up configurations")?;
            for (id, number) in rows {
                numbers.insert(Digest(bytes32("a configuration's id", &id)?), uint(number));
            }
        }
        Ok(numbers)
    }

    /// Those of `ids` that are releases with a configuration.
    pub(crate) async fn releases(
        &self,
        ids: &[ReleaseId],
    ) -> Result<BTreeMap<ReleaseId, ReleaseRow>, StoreError> {
        let mut releases = BTreeMap::new();
        for some in ids.chunks(LOOKUP_CHUNK_ROWS) {
            let mut rows = query(
                "SELECT r.id, r.version, v.label, c.number FROM releases AS r
                 JOIN versions AS v ON v.id = r.version
                 JOIN configurations AS c ON c.id = r.configuration
                 WHERE r.id IN ",
            );
            rows.push_row(some.iter().map(|id| (*id).into()));
            let rows: Vec<(Vec<u8>, Vec<u8>, String, i64)> =
                rows.all(self.reader()).await.during("look up releases")?;
            for (id, version, label, number) in rows {
                let row = ReleaseRow {
                    version: Digest(bytes32("a version's id", &version)?),
                    label,
                    number: uint(number),
                };
                releases.insert(Digest(bytes32("a release's id", &id)?), row);
            }
        }
        Ok(releases)
    }

    /// Which configuration brought each of a function's secrets.
    pub(crate) async fn secret_numbers(
        &self,
        function: &FunctionName,
    ) -> Result<BTreeMap<Digest, u64>, StoreError> {
        let rows: Vec<(Vec<u8>, i64)> =
            query("SELECT commitment, number FROM secrets WHERE function = ?")
                .bind(function.to_string())
                .all(self.reader())
                .await
                .during("look up secrets")?;
        let read = |(commitment, number): (Vec<u8>, i64)| {
            let commitment = Digest(bytes32("a secret's commitment", &commitment)?);
            Ok((commitment, uint(number)))
        };
        rows.into_iter().map(read).collect()
    }

    /// Those of a function's secrets that are there.
    pub(crate) async fn secrets(
        &self,
        function: &FunctionName,
        commitments: impl Iterator<Item = Digest>,
    ) -> Result<Vec<SecretRow>, StoreError> {
        let commitments: Vec<_> = commitments.map(Value::from).collect();
        if commitments.is_empty() {
            return Ok(Vec::new());
        }
        let mut select = query(
            "SELECT commitment, ciphertext FROM secrets WHERE function = ? AND commitment IN ",
        )
        .bind(function.to_string());
        select.push_row(commitments);
        let rows: Vec<(Vec<u8>, Vec<u8>)> =
            select.all(self.reader()).await.during("look up secrets")?;
        let read = |(commitment, ciphertext): (Vec<u8>, Vec<u8>)| {
            Ok(SecretRow {
                commitment: Digest(bytes32("a secret's commitment", &commitment)?),
                ciphertext,
            })
        };
        rows.into_iter().map(read).collect()
    }

    /// The fingerprint of the key that secrets are encrypted with, which is `own` from now on if there was none.
    pub(crate) async fn secrets_key(
        &self,
        own: Option<Digest>,
    ) -> Result<Option<Digest>, StoreError> {
        const DOING: &str = "look up the secrets' key";
        let mut tx = self.write(Turn::Registry).await?;
        let Some(own) = own else {
            return secrets_key(&mut tx).await;
        };
        let found = claim_secrets(&mut tx, own).await?;
        tx.commit(DOING).await?;
        Ok(Some(found))
    }

    /// Encrypts every secret with another key, all or none: `again` makes one ciphertext of another. Returns how many.
    pub(crate) async fn encrypt_again<E: From<StoreError>>(
        &self,
        fingerprint: Digest,
        again: impl Fn(&FunctionName, &SecretRow) -> Result<Vec<u8>, E>,
    ) -> Result<u64, E> {
        const DOING: &str = "encrypt secrets again";
        let mut tx = self.write(Turn::Registry).await?;
        let keys: Vec<(Vec<u8>, String)> =
            query("SELECT commitment, function FROM secrets ORDER BY function, commitment")
                .all(&mut tx)
                .await
                .during(DOING)?;
        let mut count = 0;
        for (commitment, function) in keys {
            let (ciphertext,): (Vec<u8>,) =
                query("SELECT ciphertext FROM secrets WHERE function = ? AND commitment = ?")
                    .bind(function.as_str())
                    .bind(&commitment[..])
                    .one(&mut tx)
                    .await
                    .during(DOING)?;
            let secret = SecretRow {
                commitment: Digest(bytes32("a secret's commitment", &commitment)?),
                ciphertext,
            };
            let name = text("a function's name", &function)?;
            let ciphertext = again(&name, &secret)?;
            query("UPDATE secrets SET ciphertext = ? WHERE function = ? AND commitment = ?")
                .bind(&ciphertext[..])
                .bind(function)
                .bind(&commitment[..])
                .execute(&mut tx)
                .await
                .during(DOING)?;
            count += 1;
        }
        query("DELETE FROM secrets_key")
            .execute(&mut tx)
            .await
            .during(DOING)?;
        query("INSERT INTO secrets_key (fingerprint) VALUES (?)")
            .bind(fingerprint)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        tx.commit(DOING).await?;
        Ok(count)
    }
}

/// The fingerprint of the key that secrets are encrypted with, which is `own` from now on if there was none.
async fn claim_secrets(tx: &mut Transaction, own: Digest) -> Result<Digest, StoreError> {
    if let Some(found) = secrets_key(tx).await? {
        return Ok(found);
    }
    query("INSERT INTO secrets_key (fingerprint) VALUES (?)")
        .bind(own)
        .execute(tx)
        .await
        .during("note the secrets' key")?;
    Ok(own)
}

async fn secrets_key(tx: &mut Transaction) -> Result<Option<Digest>, StoreError> {
    let found: Option<(Vec<u8>,)> = query("SELECT fingerprint FROM secrets_key")
        .optional(tx)
        .await
        .during("look up the secrets' key")?;
    found
        .map(|(bytes,)| bytes32("the secrets' key's fingerprint", &bytes).map(Digest))
        .transpose()
}
