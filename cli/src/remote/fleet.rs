//! `holm nodes`, `holm tenants` and `holm login`.

use std::time::Duration;

use clap::Subcommand;

use holm_model::api::{
    Health, JoinTokenAnswer, JoinTokenRequest, NodeView, OwnToken, TenantRequest, TenantView,
};
use holm_model::ids::Name;
use holm_model::manifest::units::parse_millis;

use crate::exit::Failure;
use crate::output::Output;
use crate::remote::client::Client;
use crate::remote::key::{KeyFile, public_base64};
use crate::remote::settings::{ConfigFile, Connection, DEFAULT_HTTP, config_file, read_token};
use crate::remote::table::{moment, table, time};

/// `holm nodes …`.
#[derive(Debug, clap::Args)]
pub(crate) struct NodesArgs {
    #[command(subcommand)]
    action: NodesAction,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum NodesAction {
    /// List the nodes.
    List,
    /// Have a node finish what it has and take no new requests, also after a restart.
    Drain {
        /// Its name.
        node: Name,
    },
    /// Let it take requests again.
    #[command(alias = "uncordon")]
    Undrain {
        /// Its name.
        node: Name,
    },
    /// Make a token with which one machine may join as a node, once.
    Token {
        /// How long it may be used, for example 10m.
        #[arg(long, value_name = "TIME", value_parser = parse_millis)]
        ttl: Option<u64>,
        /// The only node name it is good for.
        #[arg(long, value_name = "NAME")]
        node: Option<Name>,
    },
}

/// `holm tenants …`.
#[derive(Debug, clap::Args)]
pub(crate) struct TenantsArgs {
    #[command(subcommand)]
    action: TenantsAction,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum TenantsAction {
    /// Make a tenant that trusts your publisher key, or add the key to one that exists.
    Create {
        /// The tenant's name.
        name: Name,
        #[command(flatten)]
        key: KeyFile,
    },
}

/// Options of `holm login`.
#[derive(Debug, clap::Args)]
pub(crate) struct LoginArgs {
    #[command(flatten)]
    connection: Connection,
}

/// `holm nodes`.
pub(crate) async fn nodes(args: NodesArgs, output: Output) -> Result<(), Failure> {
    let client = args.connection.client()?;
    match args.action {
        NodesAction::List => {
            let nodes: Vec<NodeView> = client.get("/v1/nodes").await?;
            output.result(&nodes, || list(&nodes))
        }
        NodesAction::Drain { node } => {
            let view: NodeView = client
                .post_empty(&format!("/v1/nodes/{node}/drain"))
                .await?;
            output.result(&view, || {
                format!("{node} takes no new requests; what it has goes on")
            })
        }
        NodesAction::Undrain { node } => {
            let view: NodeView = client
                .post_empty(&format!("/v1/nodes/{node}/undrain"))
                .await?;
            output.result(&view, || format!("{node} takes requests"))
        }
        NodesAction::Token { ttl, node } => {
            let answer = join_token(&client, ttl, node).await?;
            output.note(format!(
                "good for one node until {}; on that machine: holm node join TOKEN --name NAME",
                moment(answer.expires_ms)
            ));
            output.result(&answer, || answer.token.clone())
        }
    }
}

/// Asks for a token with which one node may join.
pub(crate) async fn join_token(
    client: &Client,
    ttl_ms: Option<u64>,
    node: Option<Name>,
) -> Result<JoinTokenAnswer, Failure> {
    let ttl_seconds = ttl_ms.map(|ms| ms.div_ceil(1000));
    client
        .post("/v1/join-tokens", &JoinTokenRequest { ttl_seconds, node })
        .await
}

/// `holm tenants`.
pub(crate) async fn tenants(args: TenantsArgs, output: Output) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let TenantsAction::Create { name, key } = args.action;
    let tenant = create_tenant(&client, &name, &key, output).await?;
    output.result(&tenant, || {
        format!(
            "tenant {}, {} publisher key(s)",
            tenant.name,
            tenant.publisher_keys.len()
        )
    })
}

/// Makes the tenant, trusting `key`.
pub(crate) async fn create_tenant(
    client: &Client,
    name: &Name,
    key: &KeyFile,
    output: Output,
) -> Result<TenantView, Failure> {
    let key = key.load_or_create(output)?;
    let request = TenantRequest {
        publisher_keys: vec![public_base64(&key)],
    };
    client.put(&format!("/v1/tenants/{name}"), &request).await
}

/// `holm login`.
pub(crate) async fn login(args: LoginArgs, output: Output) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let health: Health = client.get("/v1/health").await?;
    // Answers only who shows a token that is good.
    let own: OwnToken = client.get("/v1/token").await?;
    let path = config_file()?;
    let mut settings = ConfigFile::read(&path)?;
    let default = format!("http://{DEFAULT_HTTP}");
    settings.coordinator = Some(
        args.connection
            .coordinator
            .or(settings.coordinator)
            .unwrap_or(default),
    );
    settings.token = match (args.connection.token, args.connection.token_file) {
        (Some(token), _) => Some(token),
        (None, Some(file)) => Some(read_token(&file)?),
        (None, None) => settings.token,
    };
    settings.write(&path)?;
    let told = serde_json::json!({
        "coordinator": client.url(), "software": health.software, "settings": path,
        "token": own,
    });
    output.result(&told, || {
        format!(
            "{} (Holm {}), as `{}`, remembered in {}",
            client.url(),
            health.software,
            own.name,
            path.display()
        )
    })
}

fn list(nodes: &[NodeView]) -> String {
    let rows: Vec<[String; 8]> = nodes
        .iter()
        .map(|node| {
            let rtt = node.rtt_us.map(|us| time(Duration::from_micros(us)));
            let versions: Vec<String> = node
                .versions
                .iter()
                .map(|version| {
                    let routed = if version.routed { "*" } else { "" };
                    format!(
                        "{}@{}{routed} {}",
                        version.function, version.label, version.state
                    )
                })
                .collect();
            [
                node.name.to_string(),
                node.region.clone(),
                node.coordinates.to_string(),
                node.ingress_url.clone(),
                match node.connected {
                    true if node.drained => "connected, drained".into(),
                    true => "connected".into(),
                    false if node.drained => {
                        format!("drained, away since {}", moment(node.last_seen_ms))
                    }
                    false => format!("away since {}", moment(node.last_seen_ms)),
                },
                rtt.unwrap_or_else(|| "-".into()),
                node.kvm.clone(),
                versions.join(", "),
            ]
        })
        .collect();
    table(
        [
            "NODE",
            "REGION",
            "PLACE",
            "URL",
            "LINK",
            "RTT",
            "KVM",
            "VERSIONS (* takes requests)",
        ],
        &rows,
    )
}
