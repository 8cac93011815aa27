//! `holm config` and `holm secrets`: what a function finds in its environment, apart from its code.
//!
//! Each change makes the function's next configuration of its newest one, signs it, and rolls it out like code. The
//! one before is read from the coordinator, so its signature is checked here first: nobody gets something signed
//! that the publisher did not say. Values of secrets that stay are not known here; the statement that is signed has
//! commitments to them.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Subcommand;
use ed25519_dalek::SigningKey;
use serde::Serialize;

use holm_model::api::{
    ConfigurationRequest, ConfigurationView, FunctionView, QueuedView, RolloutState, RolloutView,
};
use holm_model::artifact::PublisherKey;
use holm_model::configuration::{
    ConfigurationStatement, Secret, Secrets, SignedConfiguration, check_entry,
};
use holm_model::ids::FunctionName;
use holm_model::limits::MAX_CONFIGURATION_BYTES;

use crate::exit::Failure;
use crate::output::Output;
use crate::remote::client::{Client, function_path};
use crate::remote::deploy::user;
use crate::remote::key::KeyFile;
use crate::remote::rollout::{Pace, Started, describe, start, status, waits, watch};
use crate::remote::settings::Connection;
use crate::remote::table::{moment, table};
use crate::remote::when::now_ms;

/// Options of `holm config`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    action: ConfigAction,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum ConfigAction {
    /// Set entries of a function's environment, as its next configuration, and roll that out.
    Set {
        /// The function, as tenant/function.
        function: FunctionName,
        /// Entries; they come before those of the manifest's [env].
        #[arg(value_name = "NAME=VALUE", required_unless_present = "unset")]
        entries: Vec<Entry>,
        /// Take an entry away; may be given several times.
        #[arg(long, value_name = "NAME")]
        unset: Vec<String>,
        #[command(flatten)]
        how: Box<How>,
    },
    /// List a function's configurations, the newest first, without values.
    List {
        /// The function, as tenant/function.
        function: FunctionName,
    },
    /// Show a configuration with its plain values.
    Show {
        /// The function, as tenant/function.
        function: FunctionName,
        /// Which, for example c3 [default: the one that the fleet is on, or else the newest].
        configuration: Option<Number>,
    },
}

/// Options of `holm secrets`.
#[derive(Debug, clap::Args)]
pub(crate) struct SecretsArgs {
    #[command(subcommand)]
    action: SecretsAction,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum SecretsAction {
    /// Set a secret entry of a function's environment, as its next configuration, and roll that out. The value is
    /// read from a file or from stdin, never from the command line; a newline at its end is left out.
    Set {
        /// The function, as tenant/function.
        function: FunctionName,
        /// Its name.
        name: String,
        /// The file that has the value [default: stdin].
        #[arg(long, value_name = "FILE")]
        from_file: Option<PathBuf>,
        #[command(flatten)]
        how: Box<How>,
    },
    /// Take secrets away, as the next configuration, and roll that out.
    Unset {
        /// The function, as tenant/function.
        function: FunctionName,
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        how: Box<How>,
    },
    /// List names of secrets, and since which configuration each has its value. Nothing tells the values.
    List {
        /// The function, as tenant/function.
        function: FunctionName,
    },
}

/// How a configuration is made and rolled out.
#[derive(Debug, clap::Args)]
struct How {
    /// What is new, for people.
    #[arg(long, short, value_name = "TEXT", default_value = "")]
    message: String,
    /// Who makes it, for people [default: the name of the user].
    #[arg(long, env = "HOLM_AUTHOR", value_name = "TEXT")]
    author: Option<String>,
    /// The configuration of which the next one is made, for example c3 [default: the newest, if the fleet is on it or
    /// on none].
    #[arg(long)]
    from: Option<Number>,
    /// Only make the configuration; `holm rollout start --config` rolls it out.
    #[arg(long)]
    no_rollout: bool,
    #[command(flatten)]
    pace: Pace,
    /// Do not wait for the rollout's end.
    #[arg(long)]
    no_wait: bool,
    /// A publisher's public key, base64, beside one's own, that the configuration before may be signed with: what
    /// stays of it is signed anew. May be given several times.
    #[arg(long = "trust", value_name = "KEY")]
    trusted: Vec<PublisherKey>,
    #[command(flatten)]
    key: KeyFile,
}

/// An entry on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    value: String,
}

impl FromStr for Entry {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or("an entry is written NAME=VALUE")?;
        check_entry(name, value).map_err(|error| error.to_string())?;
        Ok(Entry {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// A configuration's number: `c3`, or `3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number(pub(crate) u64);

impl FromStr for Number {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix('c').unwrap_or(text);
        let wrong = || "a configuration is written c and its number, for example c3".to_owned();
        digits.parse().map(Number).map_err(|_| wrong())
    }
}

/// What a change prints as JSON.
#[derive(Debug, Serialize)]
struct Report {
    configuration: ConfigurationView,
    /// None if it was only made.
    rollout: Option<RolloutView>,
    /// If it waits for another one's end.
    queued: Option<QueuedView>,
}

/// `holm config`.
pub(crate) async fn config(args: ConfigArgs, output: Output) -> Result<(), Failure> {
    let client = args.connection.client()?;
    match args.action {
        ConfigAction::Set {
            function,
            entries,
            unset,
            how,
        } => {
            let change = |next: &mut Next| {
                for name in &unset {
                    next.unset(name, false)?;
                }
                for Entry { name, value } in entries {
                    if next.statement.secrets.contains_key(&name) {
                        return Err(Failure::usage(format!("{name} is a secret of {function}"))
                            .hint("take that away first, with `holm secrets unset`"));
                    }
                    next.statement.env.insert(name, value);
                }
                Ok(())
            };
            make(&client, &function, &how, change, output).await
        }
        ConfigAction::List { function } => {
            let views = list(&client, &function).await?;
            output.result(&views, || configurations(&views))
        }
        ConfigAction::Show {
            function,
            configuration,
        } => {
            let number = match configuration {
                Some(Number(number)) => number,
                None => {
                    let views = list(&client, &function).await?;
                    let current = views.iter().find(|view| view.current);
                    let chosen = current.or(views.first()).ok_or_else(|| {
                        Failure::usage(format!("{function} has no configuration yet"))
                            .hint("make one with `holm config set` or `holm secrets set`")
                    });
                    chosen?.number
                }
            };
            let (statement, _) = get(&client, &function, number).await?;
            output.result(&statement, || show(&statement))
        }
    }
}

/// `holm secrets`.
pub(crate) async fn secrets(args: SecretsArgs, output: Output) -> Result<(), Failure> {
    let client = args.connection.client()?;
    match args.action {
        SecretsAction::Set {
            function,
            name,
            from_file,
            how,
        } => {
            check_entry(&name, "").map_err(Failure::usage)?;
            let value = value(&name, from_file.as_deref())?;
            check_entry(&name, &value).map_err(Failure::usage)?;
            let mut salt = [0; 32];
            getrandom::fill(&mut salt)
                .map_err(|error| Failure::other(format!("there is no randomness: {error}")))?;
            let secret = Secret::new(salt, value);
            let change = |next: &mut Next| {
                // What was plain is a secret from now on.
                next.statement.env.remove(&name);
                next.statement
                    .secrets
                    .insert(name.clone(), secret.commitment());
                next.secrets.insert(name, secret);
                Ok(())
            };
            make(&client, &function, &how, change, output).await
        }
        SecretsAction::Unset {
            function,
            names,
            how,
        } => {
            let change = |next: &mut Next| names.iter().try_for_each(|name| next.unset(name, true));
            make(&client, &function, &how, change, output).await
        }
        SecretsAction::List { function } => {
            let views = list(&client, &function).await?;
            let newest = views.first();
            output.result(&newest.map(|newest| &newest.secrets), || {
                newest.map_or_else(|| format!("{function} has no secrets"), names)
            })
        }
    }
}

/// The configuration that is being made.
struct Next {
    statement: ConfigurationStatement,
    /// Secrets that are new in it.
    secrets: Secrets,
}

impl Next {
    fn unset(&mut self, name: &str, secret: bool) -> Result<(), Failure> {
        let ConfigurationStatement {
            function,
            env,
            secrets,
            ..
        } = &mut self.statement;
        let found = match secret {
            true => secrets.remove(name).is_some(),
            false => env.remove(name).is_some(),
        };
        if found {
            return Ok(());
        }
        let kind = if secret { "secret" } else { "plain entry" };
        let failure = Failure::usage(format!("{function} has no {kind} {name}"));
        Err(match secret {
            true if env.contains_key(name) => {
                failure.hint("it is a plain entry: `holm config set --unset` takes it away")
            }
            false if secrets.contains_key(name) => {
                failure.hint("it is a secret: `holm secrets unset` takes it away")
            }
            _ => failure.hint(format!("see `holm config list {function}`")),
        })
    }
}

/// Makes the next configuration of the newest one, and rolls it out.
async fn make(
    client: &Client,
    function: &FunctionName,
    how: &How,
    change: impl FnOnce(&mut Next) -> Result<(), Failure>,
    output: Output,
) -> Result<(), Failure> {
    let key = how.key.load_or_create(output)?;
    let mut next = next(client, function, how, &key).await?;
    change(&mut next)?;
    let signed = SignedConfiguration::sign(&next.statement, &key);
    let request = ConfigurationRequest::from_signed(&signed, next.secrets);
    let path = format!("{}/configurations", function_path(function));
    let made: ConfigurationView = client.post(&path, &request).await?;
    output.note(format!("made configuration c{} of {function}", made.number));

    let view: FunctionView = client.get(&function_path(function)).await?;
    let mut report = Report {
        configuration: made,
        rollout: None,
        queued: None,
    };
    let number = report.configuration.number;
    if how.no_rollout {
        let hint = format!(
            "c{number} is made; `holm rollout start {function} --config c{number}` rolls it out"
        );
        return output.result(&report, || hint);
    }
    if view.current.is_none() {
        let hint = format!("c{number} is made, and goes with the first version that is rolled out");
        return output.result(&report, || hint);
    }
    let rollout = match start(client, function, None, Some(number), &how.pace).await? {
        Started::Now(rollout) => *rollout,
        Started::Queued(queued) => {
            let told = waits(&queued);
            report.queued = Some(*queued);
            return output.result(&report, || told);
        }
    };
    let rollout = match how.no_wait {
        true => rollout,
        false => watch(client, rollout, output).await?,
    };
    let (human, exit) = (describe(&rollout), status(&rollout));
    let good = rollout.state == RolloutState::Completed
        || (how.no_wait && rollout.state == RolloutState::Running);
    report.rollout = Some(rollout);
    output.result(&report, || human.clone())?;
    match good {
        true => Ok(()),
        false => Err(Failure::reported(exit, human)),
    }
}

/// What follows on the configuration before, if nothing is changed.
async fn next(
    client: &Client,
    function: &FunctionName,
    how: &How,
    key: &SigningKey,
) -> Result<Next, Failure> {
    let all = list(client, function).await?;
    let newest = all.first().map(|newest| newest.number);
    let current = all.iter().find(|one| one.current).map(|one| one.number);
    let before = match (how.from, newest, current) {
        (Some(Number(from)), ..) => Some(from),
        (None, Some(newest), Some(current)) if newest != current => {
            let which =
                format!("the fleet is on c{current} of {function}, and the newest is c{newest}");
            return Err(Failure::usage(which).hint(format!(
                "say of which the next one is made: --from c{current} or --from c{newest}"
            )));
        }
        (None, newest, _) => newest,
    };
    let mut statement = ConfigurationStatement {
        function: function.clone(),
        number: newest.map_or(1, |newest| newest + 1),
        env: Default::default(),
        secrets: Default::default(),
        message: how.message.clone(),
        author: how.author.clone().unwrap_or_else(user),
        created_ms: now_ms(),
    };
    if let Some(number) = before {
        let (before, signed) = get(client, function, number).await?;
        let mut trusted = vec![PublisherKey(key.verifying_key().to_bytes())];
        trusted.extend(&how.trusted);
        let verified = signed.verify(&trusted).map_err(|error| {
            Failure::other(format!(
                "c{number} of {function}, of which the next one would be made, is not trusted: {error}"
            ))
            .hint(format!(
                "it is signed with {}: if that is a colleague's key, give it with --trust",
                signed.key
            ))
        });
        verified?;
        statement.env = before.env;
        statement.secrets = before.secrets;
    }
    Ok(Next {
        statement,
        secrets: Secrets::new(),
    })
}

async fn list(client: &Client, function: &FunctionName) -> Result<Vec<ConfigurationView>, Failure> {
    let path = format!("{}/configurations", function_path(function));
    client.get(&path).await
}

async fn get(
    client: &Client,
    function: &FunctionName,
    number: u64,
) -> Result<(ConfigurationStatement, SignedConfiguration), Failure> {
    let path = format!("{}/configurations/{number}", function_path(function));
    let request: ConfigurationRequest = client.get(&path).await?;
    let signed = request.to_signed().map_err(Failure::other)?;
    let statement: ConfigurationStatement = serde_json::from_slice(&signed.statement)
        .map_err(|error| Failure::other(format!("c{number} cannot be read: {error}")))?;
    match statement.function == *function && statement.number == number {
        true => Ok((statement, signed)),
        false => Err(Failure::other(format!(
            "the coordinator gives c{} of {} for c{number} of {function}",
            statement.number, statement.function
        ))),
    }
}

/// The value of a secret, without a newline at its end.
fn value(name: &str, file: Option<&Path>) -> Result<String, Failure> {
    let most = MAX_CONFIGURATION_BYTES as u64 + 2;
    let mut bytes = Vec::new();
    let read = match file {
        Some(path) => std::fs::File::open(path)
            .and_then(|file| file.take(most).read_to_end(&mut bytes))
            .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", path.display()))),
        None if std::io::stdin().is_terminal() => {
            let hint = "pipe it in, or give a file with --from-file";
            return Err(Failure::usage(format!("nobody says the value of {name}")).hint(hint));
        }
        None => std::io::stdin()
            .lock()
            .take(most)
            .read_to_end(&mut bytes)
            .map_err(|error| Failure::usage(format!("stdin cannot be read: {error}"))),
    };
    read?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    if bytes.is_empty() {
        return Err(Failure::usage(format!("the value of {name} is empty"))
            .hint("`holm secrets unset` takes a secret away"));
    }
    if bytes.len() > MAX_CONFIGURATION_BYTES {
        return Err(Failure::usage(format!(
            "the value of {name} has more than the {MAX_CONFIGURATION_BYTES} bytes that a configuration may have"
        )));
    }
    // The error would show the bytes.
    String::from_utf8(bytes).map_err(|_| Failure::usage(format!("the value of {name} is not text")))
}

fn configurations(views: &[ConfigurationView]) -> String {
    let row = |view: &ConfigurationView| {
        let secrets: Vec<&str> = view.secrets.keys().map(String::as_str).collect();
        [
            format!("c{}", view.number),
            moment(view.created_ms),
            if view.current { "current" } else { "" }.to_owned(),
            view.env.join(" "),
            secrets.join(" "),
            view.author.clone(),
            view.message.clone(),
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    let head = [
        "CONFIG", "MADE", "STATE", "PLAIN", "SECRET", "AUTHOR", "MESSAGE",
    ];
    table(head, &rows)
}

fn show(statement: &ConfigurationStatement) -> String {
    let mut lines = vec![format!("{} c{}", statement.function, statement.number)];
    let plain = statement.env.iter();
    lines.extend(plain.map(|(name, value)| format!("{name}={value}")));
    lines.extend(
        statement
            .secrets
            .keys()
            .map(|name| format!("{name} (secret)")),
    );
    lines.join("\n")
}

fn names(view: &ConfigurationView) -> String {
    let row = |(name, since): (&String, &u64)| [name.clone(), format!("c{since}")];
    let rows: Vec<_> = view.secrets.iter().map(row).collect();
    match rows.is_empty() {
        true => format!("{} has no secrets", view.function),
        false => table(["SECRET", "SINCE"], &rows),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_name_and_a_value_that_may_have_more_equals_signs() {
        let entry: Entry = "A=b=c".parse().unwrap();
        assert_eq!((entry.name.as_str(), entry.value.as_str()), ("A", "b=c"));
        assert_eq!("A=".parse::<Entry>().unwrap().value, "");
        for bad in ["A", "=b", "PORT=1", "HOLM_X=1", "a b=c"] {
            assert!(bad.parse::<Entry>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_configuration_is_named_by_its_number() {
        assert_eq!("c3".parse(), Ok(Number(3)));
        assert_eq!("3".parse(), Ok(Number(3)));
        assert!("v3".parse::<Number>().is_err());
    }

    #[test]
    fn a_value_is_what_the_file_has_without_one_newline_at_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("value");
        for (written, read) in [("a\n\n", "a\n"), ("a\r\n", "a"), ("a", "a")] {
            std::fs::write(&path, written).unwrap();
            assert_eq!(value("A", Some(&path)).unwrap(), read);
        }
        std::fs::write(&path, [b'x', 0xff]).unwrap();
        let failure = value("A", Some(&path)).unwrap_err();
        assert_eq!(failure.message, "the value of A is not text");
        std::fs::write(&path, "\n").unwrap();
        assert!(value("A", Some(&path)).is_err());
        std::fs::write(&path, vec![b'x'; MAX_CONFIGURATION_BYTES + 1]).unwrap();
        assert!(value("A", Some(&path)).is_err());
    }
}
