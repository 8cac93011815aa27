//! `holm nodes`, `holm tenants` and `holm login`.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Subcommand;

use holm_model::api::{
    Health, JoinTokenAnswer, JoinTokenRequest, LabelsRequest, NodeVersionView, NodeView, OwnToken,
    RevokeKeyRequest, TenantRequest, TenantView,
};
use holm_model::configuration::release_label;
use holm_model::ids::Name;
use holm_model::manifest::units::parse_millis;

use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::remote::client::Client;
use crate::remote::key::{KeyFile, public_base64};
use crate::remote::settings::{ConfigFile, Connection, DEFAULT_HTTP, config_file, read_token};
use crate::remote::table::{moment, table, time};
use crate::remote::tokens::days;

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
    /// Tell all that is known of a node.
    Show {
        /// Its name.
        node: Name,
    },
    /// Have a node finish what it has and take no new requests, also after a restart.
    Drain {
        /// Its name.
        node: Name,
    },
    /// Let it take requests again.
    Undrain {
        /// Its name.
        node: Name,
    },
    /// Have a node keep what it has and get nothing new: no versions, no rollouts, no callers that ask for the
    /// nearest node. Requests that reach it all the same it serves.
    Cordon {
        /// Its name.
        node: Name,
    },
    /// Let it be like others again.
    Uncordon {
        /// Its name.
        node: Name,
    },
    /// Set labels of a node, by which manifests place functions ([placement] labels).
    Label {
        /// Its name.
        node: Name,
        /// KEY=VALUE sets a label, KEY- takes it off.
        #[arg(
            required = true,
            value_name = "KEY=VALUE|KEY-",
            allow_hyphen_values = true
        )]
        labels: Vec<String>,
    },
    /// Void a node's certificate: its link ends, and it is let in again only after it joins with a new token. What
    /// it serves without a coordinator it goes on serving.
    Revoke {
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
    /// Tell which publisher keys a tenant trusts, and which it did.
    Show {
        /// The tenant's name.
        name: Name,
    },
    /// Trust a publisher key no more: nothing new that it signs gets in, what runs keeps running. Add the next key
    /// first, with `create --key`.
    RevokeKey {
        /// The tenant's name.
        name: Name,
        /// The public key, as `show` tells it.
        key: String,
        /// How long it is still good, for example 7d [default: not at all].
        #[arg(long, value_name = "TIME", value_parser = days)]
        after: Option<u64>,
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
        NodesAction::Show { node } => {
            let nodes: Vec<NodeView> = client.get("/v1/nodes").await?;
            let Some(view) = nodes.into_iter().find(|view| view.name == node) else {
                let none = format!("there is no node called `{node}`");
                return Err(Failure::new(Exit::Refused, none).hint("`holm nodes list` shows them"));
            };
            output.result(&view, || show(&view))
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
        NodesAction::Cordon { node } => {
            let path = format!("/v1/nodes/{node}/cordon");
            let view: NodeView = client.post_empty(&path).await?;
            output.result(&view, || {
                format!("{node} keeps what it has and gets nothing new")
            })
        }
        NodesAction::Uncordon { node } => {
            let path = format!("/v1/nodes/{node}/uncordon");
            let view: NodeView = client.post_empty(&path).await?;
            output.result(&view, || format!("{node} is like others again"))
        }
        NodesAction::Label { node, labels } => {
            let labels = labels
                .iter()
                .map(|text| label(text))
                .collect::<Result<_, _>>()?;
            let path = format!("/v1/nodes/{node}/labels");
            let view: NodeView = client.put(&path, &LabelsRequest { labels }).await?;
            output.result(&view, || match view.labels.is_empty() {
                true => format!("{node} has no labels"),
                false => format!("{node} has {}", shown(&view.labels)),
            })
        }
        NodesAction::Revoke { node } => {
            client
                .post_nothing(&format!("/v1/nodes/{node}/revoke"))
                .await?;
            let told = serde_json::json!({ "node": node });
            output.result(&told, || {
                format!(
                    "{node} is let in no more; usage that it has not sent is lost to the ledger unless it joins \
                     again under its name: `holm nodes token --node {node}`"
                )
            })
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

/// `KEY=VALUE`, or `KEY-` for none.
fn label(text: &str) -> Result<(String, Option<String>), Failure> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) => Ok((key.to_owned(), Some(value.to_owned()))),
        (None, Some(key)) => Ok((key.to_owned(), None)),
        (None, None) => Err(Failure::usage(format!("`{text}` is not a label"))
            .hint("give KEY=VALUE to set one, KEY- to take it off")),
    }
}

fn shown(labels: &BTreeMap<String, String>) -> String {
    let labels: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.join(" ")
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
    match args.action {
        TenantsAction::Create { name, key } => {
            let tenant = create_tenant(&client, &name, &key, output).await?;
            output.result(&tenant, || {
                format!(
                    "tenant {}, {} publisher key(s)",
                    tenant.name,
                    tenant.publisher_keys.len()
                )
            })
        }
        TenantsAction::Show { name } => {
            let tenant: TenantView = client.get(&format!("/v1/tenants/{name}")).await?;
            output.result(&tenant, || keys(&tenant))
        }
        TenantsAction::RevokeKey { name, key, after } => {
            let request = RevokeKeyRequest {
                key,
                after_seconds: after.map(|ms| ms.div_ceil(1000)),
            };
            let path = format!("/v1/tenants/{name}/keys/revoke");
            let tenant: TenantView = client.post(&path, &request).await?;
            if tenant.publisher_keys.is_empty() {
                output.warn(format!(
                    "{name} has no valid key left; add one with `holm tenants create {name} --key FILE`"
                ));
            }
            output.result(&tenant, || keys(&tenant))
        }
    }
}

fn keys(tenant: &TenantView) -> String {
    let revoked = |key: &String| {
        tenant
            .revoked_keys
            .iter()
            .find(|revoked| revoked.key == *key)
    };
    let over = tenant.revoked_keys.iter().map(|revoked| &revoked.key);
    let over = over.filter(|key| !tenant.publisher_keys.contains(key));
    let row = |key: &String| {
        let state = match revoked(key) {
            None => "valid".to_owned(),
            Some(revoked) => format!("revoked from {}", moment(revoked.from_ms)),
        };
        [key.clone(), state]
    };
    let rows: Vec<_> = tenant.publisher_keys.iter().chain(over).map(row).collect();
    table(["PUBLISHER KEY", "STATE"], &rows)
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
    let before = settings.coordinator.clone();
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
    // Like the token it is for one coordinator.
    if before != settings.coordinator {
        settings.ca_file = None;
    }
    if let Some(file) = args.connection.ca_file {
        // It is read from wherever a later command is given.
        settings.ca_file = Some(std::path::absolute(&file).map_err(|error| {
            Failure::usage(format!(
                "the path {} cannot be told: {error}",
                file.display()
            ))
        })?);
    }
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

/// Whether a node is there, and what an operator has said of it.
fn link(node: &NodeView) -> String {
    let there = match node.connected {
        true => "connected".to_owned(),
        false if node.never_connected => "never connected".to_owned(),
        false => format!("away since {}", moment(node.last_seen_ms)),
    };
    let drained = node.drained.then_some(", drained");
    let cordoned = node.cordoned.then_some(", cordoned");
    [Some(there.as_str()), drained, cordoned]
        .into_iter()
        .flatten()
        .collect()
}

/// A version on a node, with a star if it takes requests.
fn version(version: &NodeVersionView) -> String {
    let routed = if version.routed { "*" } else { "" };
    let label = release_label(&version.label, version.configuration);
    format!("{}@{label}{routed} {}", version.function, version.state)
}

fn show(node: &NodeView) -> String {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let mut lines = vec![
        ["node", node.name.as_str()].map(str::to_owned),
        ["link".into(), link(node)],
        ["coordinator".into(), or_none(node.coordinator.clone())],
        [
            "round trip".into(),
            or_none(node.rtt_us.map(|us| time(Duration::from_micros(us)))),
        ],
        [
            "certificate until".into(),
            or_none(node.certificate_until_ms.map(moment)),
        ],
        ["region".into(), node.region.clone()],
        ["place".into(), node.coordinates.to_string()],
        ["url".into(), node.ingress_url.clone()],
        ["kvm".into(), node.kvm.clone()],
        ["labels".into(), shown(&node.labels)],
    ];
    let versions = node.versions.iter().map(|one| {
        let failed = one.reason.as_ref().map(|reason| format!(": {reason}"));
        [
            "version".into(),
            version(one) + failed.as_deref().unwrap_or_default(),
        ]
    });
    lines.extend(versions);
    let lines = lines.iter().map(|[what, is]| format!("{what:18} {is}"));
    lines.collect::<Vec<_>>().join("\n")
}

fn list(nodes: &[NodeView]) -> String {
    let rows: Vec<[String; 9]> = nodes
        .iter()
        .map(|node| {
            let rtt = node.rtt_us.map(|us| time(Duration::from_micros(us)));
            let versions: Vec<String> = node.versions.iter().map(version).collect();
            [
                node.name.to_string(),
                node.region.clone(),
                node.coordinates.to_string(),
                node.ingress_url.clone(),
                link(node),
                rtt.unwrap_or_else(|| "-".into()),
                node.kvm.clone(),
                shown(&node.labels),
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
            "LABELS",
            "VERSIONS (* takes requests)",
        ],
        &rows,
    )
}
