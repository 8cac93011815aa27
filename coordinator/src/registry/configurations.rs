//! Configurations of functions: accepted like versions, told without their secrets, and read back whole for nodes.
//!
//! A configuration gets in only if a key of its tenant has signed it, its number follows on the newest one's, and each
//! secret that it names came along or is that of an earlier configuration. One that changes nothing does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use holm_model::api::ConfigurationView;
use holm_model::artifact::PublisherKey;
use holm_model::configuration::{
    ConfigurationError, ConfigurationId, ConfigurationStatement, Secret, Secrets,
    SignedConfiguration,
};
use holm_model::ids::{Digest, FunctionName, Name};

use super::printable;
use crate::clock::Clock;
use crate::limits::{MAX_AUTHOR_CHARS, MAX_MESSAGE_CHARS};
use crate::rollout::Configured;
use crate::store::{ConfigurationRow, ConfigureOutcome, NewConfiguration, Store, StoreError};
use crate::vault::{Vault, VaultError};

/// Why a configuration does not get in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigureError {
    #[error("there is no function `{0}`; deploy it first, with `holm deploy`")]
    UnknownFunction(FunctionName),
    #[error(
        "`{function}` has no configuration c{number}; `holm config list {function}` shows those it has"
    )]
    UnknownConfiguration { function: FunctionName, number: u64 },
    #[error(
        "the configuration is signed with a key of tenant `{0}` that was revoked; sign it with one that is valid, \
         `holm tenants show {0}` shows them"
    )]
    KeyRevoked(Name),
    #[error("the configuration is not accepted: {0}")]
    Refused(#[from] ConfigurationError),
    #[error(
        "the signed configuration is for function `{signed}`, but was sent to `{addressed}`; send it to the function \
         that it names"
    )]
    OtherFunction {
        signed: FunctionName,
        addressed: FunctionName,
    },
    #[error("the signed configuration cannot be used: {0}; correct it and sign it again")]
    BadStatement(String),
    #[error(
        "the configuration is c{number}, but the newest of `{function}` is c{newest}: somebody else was quicker; set \
         it again"
    )]
    OutOfTurn {
        function: FunctionName,
        number: u64,
        newest: u64,
    },
    #[error("nothing is changed: `{function}` has these entries already, {}", already(*.number))]
    NothingChanged { function: FunctionName, number: u64 },
    #[error(
        "this coordinator's key for secrets is not the one that the database's are encrypted with any more; start it \
         again with that"
    )]
    OtherSecretsKey,
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn already(number: u64) -> String {
    match number {
        0 => "which are none".to_owned(),
        number => format!("with its newest configuration c{number}"),
    }
}

/// The configurations. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Configurations {
    store: Store,
    vault: Arc<Vault>,
    clock: Clock,
}

impl Configurations {
    pub(crate) fn new(store: Store, vault: Arc<Vault>, clock: Clock) -> Self {
        Configurations {
            store,
            vault,
            clock,
        }
    }

    /// Accepts a configuration of `function`; `brought` are the secrets that no earlier one has. Returns what is
    /// told of it, and in words what it changes.
    pub(crate) async fn publish(
        &self,
        function: &FunctionName,
        signed: &SignedConfiguration,
        brought: Secrets,
    ) -> Result<(ConfigurationView, String), ConfigureError> {
        if self.store.function(function).await?.is_none() {
            return Err(ConfigureError::UnknownFunction(function.clone()));
        }
        let rows = self.store.tenant_keys(&function.tenant).await?;
        let rows = rows.unwrap_or_default();
        let now_ms = self.clock.now_ms();
        if rows.iter().any(|row| row.refuses(&signed.key, now_ms)) {
            return Err(ConfigureError::KeyRevoked(function.tenant.clone()));
        }
        let keys: Vec<PublisherKey> = rows.iter().map(|row| row.key).collect();
        let statement = signed.verify(&keys)?;
        check(function, &statement)?;
        let newest = self.store.newest_configuration(function).await?;
        let number = newest.as_ref().map_or(0, |newest| newest.statement.number);
        if statement.number != number + 1 {
            return Err(ConfigureError::OutOfTurn {
                function: function.clone(),
                number: statement.number,
                newest: number,
            });
        }
        let brought_ones = brought.values().map(Secret::commitment);
        let named = statement.secrets.values().copied().chain(brought_ones);
        let stored = self.stored(function, named).await?;
        let new: Vec<(Digest, Vec<u8>)> = brought
            .values()
            .filter(|secret| !stored.contains_key(&secret.commitment()))
            .map(|secret| (secret.commitment(), self.vault.encrypt(function, secret)))
            .collect();
        let mut secrets = brought;
        for (name, commitment) in &statement.secrets {
            if let Some(ciphertext) = stored.get(commitment)
                && !secrets.contains_key(name)
            {
                let secret = self.vault.decrypt(function, *commitment, ciphertext)?;
                secrets.insert(name.clone(), secret);
            }
        }
        statement.check_secrets(&secrets)?;
        let before = match newest {
            Some(row) => match self.read(row).await {
                Ok(before) => Some(before),
                Err(VaultError::Store(error)) => return Err(error.into()),
                // Then there is nothing to compare with, and this one may be what mends it.
                Err(_) => None,
            },
            None => None,
        };
        let mut changes = changes(before.as_ref(), &statement, &secrets);
        if changes.is_empty() {
            // Unless it is signed anew, because the key before is not valid any more.
            let before = before.map(|before| before.signed.key);
            let revoked = before.filter(|key| rows.iter().any(|row| row.refuses(key, now_ms)));
            let Some(revoked) = revoked else {
                return Err(ConfigureError::NothingChanged {
                    function: function.clone(),
                    number,
                });
            };
            changes.push(format!(
                "signed anew, in place of the revoked key {revoked}"
            ));
        }
        let configuration = NewConfiguration {
            signed,
            statement: &statement,
            secrets: new,
        };
        let fingerprint = self.vault.fingerprint();
        match self
            .store
            .configure(configuration, fingerprint, now_ms)
            .await?
        {
            ConfigureOutcome::Stored => {}
            ConfigureOutcome::OutOfTurn { newest } => {
                return Err(ConfigureError::OutOfTurn {
                    function: function.clone(),
                    number: statement.number,
                    newest,
                });
            }
            ConfigureOutcome::KeyRevoked => {
                return Err(ConfigureError::KeyRevoked(function.tenant.clone()));
            }
            ConfigureOutcome::OtherSecretsKey => return Err(ConfigureError::OtherSecretsKey),
        }
        let row = ConfigurationRow {
            id: signed.id(),
            signed: signed.clone(),
            statement,
        };
        let told = format!("c{}: {}", row.statement.number, changes.join(", "));
        let mut views = self.views(function, vec![row]).await?;
        let view = views.pop().expect("there is one view for each row");
        Ok((view, told))
    }

    /// The newest configurations of a function, the newest first, without values.
    pub(crate) async fn list(
        &self,
        function: &FunctionName,
    ) -> Result<Vec<ConfigurationView>, ConfigureError> {
        let rows = self.store.configurations(function).await?;
        if rows.is_empty() && self.store.function(function).await?.is_none() {
            return Err(ConfigureError::UnknownFunction(function.clone()));
        }
        self.views(function, rows).await
    }

    /// A configuration by its number, as it was signed.
    pub(crate) async fn numbered(
        &self,
        function: &FunctionName,
        number: u64,
    ) -> Result<ConfigurationRow, ConfigureError> {
        let found = self.store.numbered_configuration(function, number).await?;
        found.ok_or_else(|| ConfigureError::UnknownConfiguration {
            function: function.clone(),
            number,
        })
    }

    /// A configuration with its secrets, for nodes. One of which a secret cannot be read says so: it is no reason for
    /// all other functions to go without a coordinator.
    pub(crate) async fn whole(&self, id: ConfigurationId) -> Result<Configured, StoreError> {
        const WHAT: &str = "a configuration";
        let row = self.store.configuration(id).await?;
        let row = row.ok_or_else(|| StoreError::corrupt(WHAT, format!("{id} is not there")))?;
        match self.read(row.clone()).await {
            Ok(configured) => Ok(configured),
            Err(VaultError::Store(error)) => Err(error),
            Err(error) => {
                let function = &row.statement.function;
                let number = row.statement.number;
                tracing::error!(%function, number, %error, "a configuration is damaged; its nodes keep what they have");
                Ok(Configured {
                    id: row.id,
                    signed: row.signed,
                    statement: row.statement,
                    secrets: Secrets::new(),
                    damaged: Some(error.to_string()),
                })
            }
        }
    }

    async fn read(&self, row: ConfigurationRow) -> Result<Configured, VaultError> {
        let function = &row.statement.function;
        let named = row.statement.secrets.values().copied();
        let stored = self.stored(function, named).await?;
        let mut secrets = Secrets::new();
        for (name, commitment) in &row.statement.secrets {
            let ciphertext = stored.get(commitment).ok_or_else(|| VaultError::Gone {
                function: function.clone(),
                name: name.clone(),
            })?;
            let secret = self.vault.decrypt(function, *commitment, ciphertext)?;
            secrets.insert(name.clone(), secret);
        }
        Ok(Configured {
            id: row.id,
            signed: row.signed,
            statement: row.statement,
            secrets,
            damaged: None,
        })
    }

    /// Ciphertexts of those of a function's secrets that are there, by commitment.
    async fn stored(
        &self,
        function: &FunctionName,
        commitments: impl Iterator<Item = Digest>,
    ) -> Result<BTreeMap<Digest, Vec<u8>>, StoreError> {
        let secrets = self.store.secrets(function, commitments).await?;
        Ok(secrets
            .into_iter()
            .map(|row| (row.commitment, row.ciphertext))
            .collect())
    }

    async fn views(
        &self,
        function: &FunctionName,
        rows: Vec<ConfigurationRow>,
    ) -> Result<Vec<ConfigurationView>, ConfigureError> {
        let current = self.store.function(function).await?;
        let current = current.and_then(|row| row.current?.configuration);
        let since = self.store.secret_numbers(function).await?;
        let view = |row: ConfigurationRow| {
            let statement = row.statement;
            let brought = |commitment| since.get(&commitment).copied().unwrap_or_default();
            ConfigurationView {
                function: statement.function,
                number: statement.number,
                configuration: row.id,
                env: statement.env.into_keys().collect(),
                secrets: statement
                    .secrets
                    .into_iter()
                    .map(|(name, commitment)| (name, brought(commitment)))
                    .collect(),
                message: statement.message,
                author: statement.author,
                created_ms: statement.created_ms,
                current: current == Some(row.id),
            }
        };
        Ok(rows.into_iter().map(view).collect())
    }
}

/// What a configuration changes, by names alone: for the audit log.
fn changes(
    before: Option<&Configured>,
    statement: &ConfigurationStatement,
    secrets: &Secrets,
) -> Vec<String> {
    let plain = |name: &String| before?.statement.env.get(name);
    let secret = |name: &String| before?.secrets.get(name).map(|secret| secret.value());
    let mut changes = Vec::new();
    for (name, value) in &statement.env {
        if plain(name) != Some(value) {
            changes.push(format!("sets {name}"));
        }
    }
    for (name, value) in secrets {
        if secret(name) != Some(value.value()) {
            changes.push(format!("sets the secret {name}"));
        }
    }
    let named = |name: &&String| {
        !statement.env.contains_key(*name) && !statement.secrets.contains_key(*name)
    };
    let gone = before.into_iter().flat_map(|before| {
        let plain = before.statement.env.keys();
        plain.chain(before.secrets.keys()).filter(named)
    });
    changes.extend(gone.map(|name| format!("unsets {name}")));
    changes
}

/// What the signature does not vouch for.
fn check(
    function: &FunctionName,
    statement: &ConfigurationStatement,
) -> Result<(), ConfigureError> {
    if statement.function != *function {
        return Err(ConfigureError::OtherFunction {
            signed: statement.function.clone(),
            addressed: function.clone(),
        });
    }
    for (what, text, most) in [
        ("author", &statement.author, MAX_AUTHOR_CHARS),
        ("message", &statement.message, MAX_MESSAGE_CHARS),
    ] {
        if !printable(text, most) {
            return Err(ConfigureError::BadStatement(format!(
                "its {what} is not up to {most} printable characters"
            )));
        }
    }
    Ok(())
}
