//! API tokens. None is here that could be shown: of administrators' there are digests, of all others
//! the ids.

use holm_model::ids::Digest;
use holm_model::token::TokenId;

use super::error::During as _;
use super::sql::query;
use super::{Store, StoreError, Turn, bytes32, uint};
use crate::limits::MAX_API_TOKENS;

/// An API token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenRow {
    pub(crate) id: TokenId,
    pub(crate) name: String,
    /// Those that it was made with, a line each.
    pub(crate) caveats: String,
    pub(crate) created_ms: u64,
    pub(crate) created_by: String,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) revoked_ms: Option<u64>,
}

/// What became of a token that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenOutcome {
    Stored,
    /// There is a valid one of this name.
    NameTaken,
    TooMany,
}

type Columns = (
    Vec<u8>,
    String,
    String,
    i64,
    String,
    Option<i64>,
    Option<i64>,
);

fn row(columns: Columns) -> Result<TokenRow, StoreError> {
    let (id, name, caveats, created_ms, created_by, expires_ms, revoked_ms) = columns;
    let id = id
        .try_into()
        .map_err(|_| StoreError::corrupt("a token's id", "it does not have 16 bytes"))?;
    Ok(TokenRow {
        id: TokenId(id),
        name,
        caveats,
        created_ms: uint(created_ms),
        created_by,
        expires_ms: expires_ms.map(uint),
        revoked_ms: revoked_ms.map(uint),
    })
}

const SELECT: &str =
    "SELECT id, name, caveats, created_ms, created_by, expires_ms, revoked_ms FROM tokens";

impl Store {
    /// The label of the administrator's token with this digest, if it is valid.
    pub(crate) async fn admin_token(&self, digest: Digest) -> Result<Option<String>, StoreError> {
        let row: Option<(String,)> = query("SELECT label FROM api_tokens WHERE digest = ?")
            .bind(digest)
            .optional(self.reader())
            .await
            .during("look up an administrator's token")?;
        Ok(row.map(|(label,)| label))
    }

    /// Makes `digest` the administrator's token called `label`, in place of the one before.
    pub(crate) async fn set_admin_token(
        &self,
        label: &str,
        digest: Digest,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        query(
            "INSERT INTO api_tokens (digest, label, created_ms) VALUES (?, ?, ?)
             ON CONFLICT (label) DO UPDATE SET digest = excluded.digest,
                                               created_ms = excluded.created_ms",
        )
        .bind(digest)
        .bind(label)
        .bind(now_ms)
        .execute(self.writer())
        .await
        .during("store an administrator's token")?;
        Ok(())
    }

    /// Digest, label and time of every administrator's token.
    pub(crate) async fn admin_tokens(&self) -> Result<Vec<(Digest, String, u64)>, StoreError> {
        let rows: Vec<(Vec<u8>, String, i64)> =
            query("SELECT digest, label, created_ms FROM api_tokens ORDER BY label")
                .all(self.reader())
                .await
                .during("list administrators' tokens")?;
        let row = |(digest, label, created_ms): (Vec<u8>, String, i64)| {
            let digest = Digest(bytes32("a token's digest", &digest)?);
            Ok((digest, label, uint(created_ms)))
        };
        rows.into_iter().map(row).collect()
    }

    /// Voids the administrator's token called `label`, or all of them. Returns how many.
    pub(crate) async fn void_admin_tokens(&self, label: Option<&str>) -> Result<u64, StoreError> {
        let mut delete = query("DELETE FROM api_tokens");
        if let Some(label) = label {
            delete.push(" WHERE label = ").push_bind(label);
        }
        delete
            .execute(self.writer())
            .await
            .during("void administrators' tokens")
    }

    /// Stores a token.
    pub(crate) async fn add_token(&self, token: &TokenRow) -> Result<TokenOutcome, StoreError> {
        const DOING: &str = "store a token";
        let mut tx = self.write(Turn::Fleet).await?;
        // One that has expired leaves its name to others.
        query(
            "UPDATE tokens SET revoked_ms = expires_ms WHERE expires_ms <= ? AND revoked_ms IS NULL",
        )
        .bind(token.created_ms)
        .execute(&mut tx)
        .await
        .during(DOING)?;
        let taken = query(
            "SELECT 1 FROM tokens WHERE name = ? AND revoked_ms IS NULL
             UNION ALL SELECT 1 FROM api_tokens WHERE label = ?",
        )
        .bind(token.name.as_str())
        .bind(token.name.as_str())
        .found(&mut tx)
        .await
        .during(DOING)?;
        if taken {
            return Ok(TokenOutcome::NameTaken);
        }
        let (valid,): (i64,) = query("SELECT COUNT(*) FROM tokens WHERE revoked_ms IS NULL")
            .one(&mut tx)
            .await
            .during(DOING)?;
        if uint(valid) >= MAX_API_TOKENS {
            return Ok(TokenOutcome::TooMany);
        }
        query(
            "INSERT INTO tokens (id, name, caveats, created_ms, created_by, expires_ms)
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(&token.id.0[..])
        .bind(token.name.as_str())
        .bind(token.caveats.as_str())
        .bind(token.created_ms)
        .bind(token.created_by.as_str())
        .bind(token.expires_ms)
        .execute(&mut tx)
        .await
        .during(DOING)?;
        tx.commit(DOING).await?;
        Ok(TokenOutcome::Stored)
    }

    /// One token, valid or not.
    pub(crate) async fn token(&self, id: TokenId) -> Result<Option<TokenRow>, StoreError> {
        let found: Option<Columns> = query(format!("{SELECT} WHERE id = ?"))
            .bind(&id.0[..])
            .optional(self.reader())
            .await
            .during("look up a token")?;
        found.map(row).transpose()
    }

    /// Every token, valid or not, in the order of their names and times.
    pub(crate) async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        let rows: Vec<Columns> = query(format!("{SELECT} ORDER BY name, created_ms, id"))
            .all(self.reader())
            .await
            .during("list tokens")?;
        rows.into_iter().map(row).collect()
    }

    /// Voids the valid token of this name; none if there is none.
    pub(crate) async fn revoke_token(
        &self,
        name: &str,
        now_ms: u64,
    ) -> Result<Option<TokenRow>, StoreError> {
        let revoked: Option<Columns> = query(
            "UPDATE tokens SET revoked_ms = ? WHERE name = ? AND revoked_ms IS NULL
             RETURNING id, name, caveats, created_ms, created_by, expires_ms, revoked_ms",
        )
        .bind(now_ms)
        .bind(name)
        .optional(self.writer())
        .await
        .during("revoke a token")?;
        revoked.map(row).transpose()
    }
}
