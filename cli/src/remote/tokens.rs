//! `holm tokens` and `holm audit`: who may do what, and who did it.

use std::collections::BTreeSet;

use clap::Subcommand;
use serde::Serialize;

use holm_model::api::{AuditCheck, AuditEntry, AuditPage, TokenAnswer, TokenRequest, TokenView};
use holm_model::ids::{Digest, Name};
use holm_model::manifest::units::parse_millis;
use holm_model::token::{ApiToken, Caveat, Grant, Verb};

use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::remote::settings::Connection;
use crate::remote::table::{moment, table};
use crate::remote::when::{When, now_ms};

/// `holm tokens …`.
#[derive(Debug, clap::Args)]
pub(crate) struct TokensArgs {
    #[command(subcommand)]
    action: TokensAction,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum TokensAction {
    /// Make a token.
    Create {
        /// What to call it.
        name: Name,
        #[command(flatten)]
        limits: Limits,
    },
    /// List the tokens.
    List {
        /// Also those that are void or over.
        #[arg(long)]
        all: bool,
    },
    /// Void a token and all that was weakened from it; what was made with it by `create` is a token of its own.
    Revoke {
        /// Its name.
        name: String,
    },
    /// Make a weaker token from the one that is given, by --token-file or as for other verbs. Nobody is asked.
    Weaken {
        #[command(flatten)]
        limits: Limits,
    },
    /// Tell what the token that is given says that it allows. Nobody is asked.
    Show,
}

/// What a token is to allow.
#[derive(Clone, Debug, clap::Args)]
struct Limits {
    /// What it may do: read, logs, usage, deploy, rollout, nodes, or admin for everything.
    #[arg(long, value_delimiter = ',', value_name = "VERB,…")]
    verbs: Option<Vec<Verb>>,
    /// For which tenants [default: all, and what is nobody's].
    #[arg(long = "tenant", value_delimiter = ',', value_name = "TENANT,…")]
    tenants: Option<Vec<Name>>,
    /// How long it is good, for example 90d.
    #[arg(long, value_name = "TIME", value_parser = days)]
    ttl: Option<u64>,
}

/// Milliseconds of a time such as `90d` or `12h`.
pub(crate) fn days(text: &str) -> Result<u64, String> {
    let days = text
        .strip_suffix('d')
        .and_then(|days| days.parse::<u64>().ok());
    match days {
        Some(days) => days
            .checked_mul(86_400_000)
            .ok_or_else(|| "that is too long".to_owned()),
        None => parse_millis(text).map_err(|error| error.to_string()),
    }
}

/// `holm tokens`.
pub(crate) async fn tokens(args: TokensArgs, output: Output) -> Result<(), Failure> {
    let TokensArgs { action, connection } = args;
    match action {
        TokensAction::Create { name, limits } => {
            let verbs = limits.verbs.ok_or_else(|| {
                Failure::usage("nobody said what the token may do")
                    .hint("give --verbs, for example --verbs read,deploy,rollout")
            })?;
            let request = TokenRequest {
                name,
                verbs: verbs.into_iter().collect(),
                tenants: limits.tenants.map(|tenants| tenants.into_iter().collect()),
                ttl_seconds: limits.ttl.map(|ms| ms.div_ceil(1000)),
            };
            let answer: TokenAnswer = connection.client()?.post("/v1/tokens", &request).await?;
            output.note(format!(
                "{}: {}, {}; it is shown this once",
                answer.view.name,
                allowed(&answer.view.verbs, &answer.view.tenants),
                end(answer.view.expires_ms)
            ));
            output.result(&answer, || answer.token.clone())
        }
        TokensAction::List { all } => {
            let mut views: Vec<TokenView> = connection.client()?.get("/v1/tokens").await?;
            let now_ms = now_ms();
            let over = |view: &TokenView| view.expires_ms.is_some_and(|ms| ms <= now_ms);
            views.retain(|view| all || (view.revoked_ms.is_none() && !over(view)));
            output.result(&views, || list(&views, now_ms))
        }
        TokensAction::Revoke { name } => {
            let path = format!("/v1/tokens/{}/revoke", segment(&name));
            let view: TokenView = connection.client()?.post_empty(&path).await?;
            output.result(&view, || {
                let more = match view.administrator {
                    true => "; its coordinator makes a new one when it starts",
                    false => ", and with it all that was weakened from it",
                };
                format!("{name} is void{more}")
            })
        }
        TokensAction::Weaken { limits } => {
            let token = weaken(given(&connection)?, limits)?;
            let answer = Weaker {
                token: token.to_string(),
                allows: allows(&token)?,
            };
            output.note(format!("it allows {}", answer.allows.text));
            output.result(&answer, || answer.token.clone())
        }
        TokensAction::Show => {
            let allows = allows(&given(&connection)?)?;
            output.result(&allows, || format!("id {}: {}", allows.id, allows.text))
        }
    }
}

/// What `holm tokens weaken --json` prints.
#[derive(Debug, Serialize)]
struct Weaker {
    token: String,
    allows: Allows,
}

/// What `holm tokens show --json` prints.
#[derive(Debug, Serialize)]
struct Allows {
    id: String,
    verbs: Option<BTreeSet<Verb>>,
    tenants: Option<BTreeSet<Name>>,
    expires_ms: Option<u64>,
    #[serde(skip)]
    text: String,
}

fn allows(token: &ApiToken) -> Result<Allows, Failure> {
    let grant = token.grant().map_err(Failure::usage)?;
    let text = format!("{grant}, {}", end(grant.before_ms));
    Ok(Allows {
        id: token.id().to_string(),
        verbs: grant.verbs,
        tenants: grant.tenants,
        expires_ms: grant.before_ms,
        text,
    })
}

fn given(connection: &Connection) -> Result<ApiToken, Failure> {
    let token = connection.given_token()?.ok_or_else(|| {
        Failure::usage("no token is given")
            .hint("give it with --token-file or HOLM_TOKEN, or once with `holm login`")
    })?;
    token.parse().map_err(Failure::usage)
}

fn weaken(token: ApiToken, limits: Limits) -> Result<ApiToken, Failure> {
    let before_ms = limits.ttl.map(|ms| now_ms().saturating_add(ms));
    let caveats = [
        limits
            .verbs
            .map(|verbs| Caveat::Verbs(verbs.into_iter().collect())),
        limits
            .tenants
            .map(|tenants| Caveat::Tenants(tenants.into_iter().collect())),
        before_ms.map(Caveat::Before),
    ];
    let mut caveats = caveats.into_iter().flatten().peekable();
    if caveats.peek().is_none() {
        return Err(
            Failure::usage("nobody said in what the token is to be weaker")
                .hint("give --verbs, --tenant or --ttl"),
        );
    }
    caveats
        .try_fold(token, |token, caveat| token.weaken(&caveat))
        .map_err(Failure::usage)
}

fn allowed(verbs: &Option<BTreeSet<Verb>>, tenants: &Option<BTreeSet<Name>>) -> String {
    let grant = Grant {
        verbs: verbs.clone(),
        tenants: tenants.clone(),
        before_ms: None,
    };
    grant.to_string()
}

fn end(expires_ms: Option<u64>) -> String {
    match expires_ms {
        Some(ms) => format!("until {}", moment(ms)),
        None => "until it is revoked".to_owned(),
    }
}

fn list(views: &[TokenView], now_ms: u64) -> String {
    let row = |view: &TokenView| {
        let state = match (view.revoked_ms, view.expires_ms) {
            (Some(ms), _) => format!("void since {}", moment(ms)),
            (None, Some(ms)) if ms <= now_ms => format!("over since {}", moment(ms)),
            (None, Some(ms)) => format!("until {}", moment(ms)),
            (None, None) => "valid".to_owned(),
        };
        [
            view.name.clone(),
            allowed(&view.verbs, &view.tenants),
            state,
            moment(view.created_ms),
            view.created_by.clone(),
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    table(["TOKEN", "ALLOWS", "STATE", "MADE", "BY"], &rows)
}

/// A text as one segment of a path.
pub(crate) fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// `holm audit …`.
#[derive(Debug, clap::Args)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    action: AuditAction,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum AuditAction {
    /// Tell who did what to what, the oldest first.
    Log {
        /// Only what was done since: a day or time, or how long ago, for example 2h.
        #[arg(long, value_name = "TIME")]
        since: Option<When>,
    },
    /// Compute every hash of the log anew: whether an entry was changed or is missing.
    Check {
        /// The newest hash of an earlier check: also whether what was there then is there still.
        #[arg(long, value_name = "HASH")]
        head: Option<Digest>,
    },
}

/// `holm audit`.
pub(crate) async fn audit(args: AuditArgs, output: Output) -> Result<(), Failure> {
    let client = args.connection.client()?;
    match args.action {
        AuditAction::Log { since } => {
            let since = since.map_or(0, When::ms);
            let (mut entries, mut after) = (Vec::<AuditEntry>::new(), Some(0));
            while let Some(from) = after {
                let path = format!("/v1/audit?since={since}&after={from}");
                let page: AuditPage = client.get(&path).await?;
                entries.extend(page.entries);
                after = page.next;
            }
            output.result(&entries, || log(&entries))
        }
        AuditAction::Check { head } => {
            let path = match head {
                Some(head) => format!("/v1/audit/check?head={head}"),
                None => "/v1/audit/check".to_owned(),
            };
            let check: AuditCheck = client.get(&path).await?;
            let lost = head.is_some() && check.found.is_none();
            let human = match (check.broken_at, &check.head) {
                (Some(row), _) => format!(
                    "the audit log is not as it was written: entry {row} was changed, or is missing"
                ),
                (None, _) if lost => {
                    "the audit log is not as it was: no entry has that hash, its end was cut off"
                        .to_owned()
                }
                (None, Some(head)) => format!("{} entries, whole, newest {head}", check.entries),
                (None, None) => "there are no entries".to_owned(),
            };
            output.result(&check, || human.clone())?;
            match check.whole && !lost {
                true => Ok(()),
                false => Err(Failure::reported(Exit::Failure, human)),
            }
        }
    }
}

/// What came of it, and what has only begun if nothing did.
fn log(entries: &[AuditEntry]) -> String {
    let ended: BTreeSet<u64> = entries.iter().filter_map(|entry| entry.begun).collect();
    let rows: Vec<[String; 6]> = entries
        .iter()
        .filter(|entry| !ended.contains(&entry.row))
        .map(|entry| {
            [
                moment(entry.at_ms),
                format!("{} {}", entry.actor_kind, entry.actor),
                entry.action.clone(),
                entry.object.clone(),
                entry.outcome.clone(),
                entry.detail.replace('\n', " "),
            ]
        })
        .collect();
    table(["WHEN", "WHO", "WHAT", "TO", "OUTCOME", "DETAIL"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_may_be_in_days() {
        assert_eq!(days("2d"), Ok(172_800_000));
        assert_eq!(days("90m"), Ok(5_400_000));
        assert!(days("d").is_err() && days("99999999999999999d").is_err());
    }

    #[test]
    fn a_name_is_one_segment_whatever_is_in_it() {
        assert_eq!(segment("ci-1"), "ci-1");
        assert_eq!(segment("admin a:/b"), "admin%20a%3A%2Fb");
    }
}
