//! The verbs that speak to a coordinator or a node, and the two daemons.
//!
//! | file | verbs |
//! | --- | --- |
//! | [`daemon`] | `coordinator`, `node join`, `node run` |
//! | [`deploy`] | `deploy` |
//! | [`rollout`] | `rollout`, `rollback` |
//! | [`versions`] | `versions` |
//! | [`configuration`] | `config`, `secrets` |
//! | [`fleet`] | `nodes`, `tenants`, `login` |
//! | [`invoke`] | `route`, `invoke` |
//! | [`logs`] | `logs` |
//! | [`tokens`] | `tokens`, `audit` |
//! | [`usage`] | `usage` |
//! | [`exports`] | `usage exports` |
//! | [`prices`] | `prices`, `explain` |
//! | [`budgets`] | `budgets` |
//!
//! The rest serves them: [`settings`] finds the coordinator and the token, [`client`] speaks its API,
//! [`edge`] sends requests to functions, [`key`] keeps the publisher's key, [`when`] reads
//! times.

pub(crate) mod budgets;
pub(crate) mod client;
pub(crate) mod configuration;
pub(crate) mod daemon;
pub(crate) mod deploy;
pub(crate) mod edge;
pub(crate) mod exports;
pub(crate) mod fleet;
pub(crate) mod invoke;
pub(crate) mod key;
pub(crate) mod logs;
pub(crate) mod oci;
pub(crate) mod prices;
pub(crate) mod rollout;
pub(crate) mod settings;
pub(crate) mod table;
pub(crate) mod tokens;
pub(crate) mod usage;
pub(crate) mod versions;
pub(crate) mod when;

use clap::Subcommand;

use crate::exit::Failure;
use crate::output::Output;

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Publish a function and roll it out to the fleet.
    Deploy(deploy::Args),
    /// Put a version into an OCI image layout, to be signed, scanned and copied.
    Push(oci::PushArgs),
    /// Publish a version from an OCI image layout, as it was signed.
    Pull(oci::PullArgs),
    /// List a function's versions, name them, and remove what nobody needs.
    Versions(versions::VersionsArgs),
    /// Set a function's environment, and look at its configurations.
    Config(configuration::ConfigArgs),
    /// Set a function's secrets; nothing tells their values.
    Secrets(configuration::SecretsArgs),
    /// Move the fleet to a version or a configuration, in waves.
    Rollout(rollout::RolloutArgs),
    /// Move the fleet back to the version and configuration before.
    Rollback(rollout::RollbackArgs),
    /// Send a request to a function on the nearest node.
    Invoke(invoke::InvokeArgs),
    /// Tell which node a caller is sent to, and why.
    Route(invoke::RouteArgs),
    /// Print what a function wrote and why it failed, on all nodes.
    Logs(logs::LogsArgs),
    /// Look at the nodes of the fleet, and let new ones join.
    Nodes(fleet::NodesArgs),
    /// Look after tenants and the keys that may publish for them.
    Tenants(fleet::TenantsArgs),
    /// Tell what executions used, what it costs, and whether the ledger is whole.
    Usage(Box<usage::UsageArgs>),
    /// Tell one request's life: where it ran, what it used, what it costs.
    Explain(prices::ExplainArgs),
    /// Look at price plans, set prices, and give them to tenants.
    Prices(prices::PricesArgs),
    /// Set what executions may cost in a month, and look at what is spent.
    Budgets(budgets::BudgetsArgs),
    /// Make tokens for people and programs, weaken them, and revoke them.
    Tokens(tokens::TokensArgs),
    /// Tell who did what, and whether that record is whole.
    Audit(tokens::AuditArgs),
    /// Remember a coordinator and its token.
    Login(fleet::LoginArgs),
    /// Run a coordinator.
    Coordinator(Box<daemon::CoordinatorArgs>),
    /// Make this machine a node, and run it.
    Node(daemon::NodeArgs),
}

/// Does what `command` says.
pub(crate) fn execute(command: Command, output: Output) -> Result<(), Failure> {
    let threads = match command {
        Command::Coordinator(_) => Threads::Daemon,
        // A node brings threads of its own.
        _ => Threads::Client,
    };
    runtime(threads)?.block_on(async {
        match command {
            Command::Deploy(args) => deploy::run(args, output).await,
            Command::Push(args) => oci::push(args, output).await,
            Command::Pull(args) => oci::pull(args, output).await,
            Command::Versions(args) => versions::versions(args, output).await,
            Command::Config(args) => configuration::config(args, output).await,
            Command::Secrets(args) => configuration::secrets(args, output).await,
            Command::Rollout(args) => rollout::run(args, output).await,
            Command::Rollback(args) => rollout::rollback(args, output).await,
            Command::Invoke(args) => invoke::run(args, output).await,
            Command::Route(args) => invoke::route(args, output).await,
            Command::Logs(args) => logs::run(args, output).await,
            Command::Nodes(args) => fleet::nodes(args, output).await,
            Command::Tenants(args) => fleet::tenants(args, output).await,
            Command::Usage(args) => usage::run(*args, output).await,
            Command::Explain(args) => prices::explain(args, output).await,
            Command::Prices(args) => prices::run(args, output).await,
            Command::Budgets(args) => budgets::run(args, output).await,
            Command::Tokens(args) => tokens::tokens(args, output).await,
            Command::Audit(args) => tokens::audit(args, output).await,
            Command::Login(args) => fleet::login(args, output).await,
            Command::Coordinator(args) => daemon::coordinator(*args, output).await,
            Command::Node(args) => daemon::node(args, output).await,
        }
    })
}

/// How many threads a verb needs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Threads {
    /// One: it waits most of the time.
    Client,
    /// As many as there are cores.
    Daemon,
}

/// A runtime for one verb.
pub(crate) fn runtime(threads: Threads) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = match threads {
        Threads::Client => tokio::runtime::Builder::new_current_thread(),
        Threads::Daemon => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.enable_all().build().map_err(|error| {
        Failure::other(format!(
            "the operating system refuses what a runtime needs: {error}"
        ))
    })
}
