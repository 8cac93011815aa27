//! `holm dev`: a project's function behind a local HTTP server, in the production VMM with the
//! manifest's limits, built anew whenever its sources change.
//!
//! A version that does not build or does not get ready is told about and changes nothing: requests
//! stay with the one before.

mod events;
mod serve;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holm_node::outbound::{Allowed, Outside};
use holm_vmm::{GuestConfig, Hypervisor};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;
use crate::local::build;
use crate::local::machine;
use crate::local::project::Project;
use crate::output::Output;
use events::Events;
use serve::{Server, Version};
use watch::Sources;

/// How often the sources are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Options of `holm dev`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The project's directory.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Where to serve; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
}

/// Builds, serves and watches until it is interrupted.
pub(crate) fn execute(args: Args, output: Output) -> Result<(), Failure> {
    // What no rebuild can mend ends the command at once.
    Project::open(&args.dir)?;
    let hypervisor = machine::hypervisor()?;
    let events = Events(output);
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::other(format!("threads cannot be started: {error}")))?;
    let served = runtime.block_on(async {
        let listener = TcpListener::bind(args.listen).await.map_err(|error| {
            Failure::other(format!("{} cannot be served on: {error}", args.listen))
                .hint("Choose another address with --listen; port 0 takes a free port.")
        })?;
        let address = listener
            .local_addr()
            .map_err(|error| Failure::other(format!("the listener has no address: {error}")))?;
        let server = Arc::new(Server::new(hypervisor.clone(), events));
        let builder = Builder {
            dir: args.dir,
            hypervisor,
            server: Arc::clone(&server),
            output,
        };
        // Ends with the process: a build must not hold up the end of the command.
        std::thread::Builder::new()
            .name("build".to_owned())
            .spawn(move || builder.run())
            .map_err(|error| Failure::other(format!("a thread cannot be started: {error}")))?;
        events.listening(&format!("http://{address}"));
        tokio::select! {
            () = accept(listener, server) => Ok(()),
            result = interrupted() => result,
        }
    });
    runtime.shutdown_background();
    served
}

/// Returns when the user or the system wants the command to end.
async fn interrupted() -> Result<(), Failure> {
    let failed = |error| Failure::other(format!("signals cannot be waited for: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result.map_err(failed),
        _ = terminate.recv() => Ok(()),
    }
}

/// Serves connections for ever.
async fn accept(listener: TcpListener, server: Arc<Server>) {
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            // Out of descriptors, most likely: some will be free again soon.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let service = service_fn(move |request| Arc::clone(&server).answer(request));
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(serve::HEAD_TIMEOUT);
            builder.http2().timer(TokioTimer::new());
            // A connection that breaks is its caller's affair.
            let _ = builder
                .serve_connection(TokioIo::new(connection), service)
                .await;
        });
    }
}

/// Keeps the server at the latest sources.
struct Builder {
    dir: PathBuf,
    hypervisor: Hypervisor,
    server: Arc<Server>,
    output: Output,
}

impl Builder {
    fn run(self) {
        let mut again = true;
        loop {
            let before = Sources::look(&self.dir);
            let program = self.build();
            // What the build wrote is no change, but what was edited meanwhile is not in it. Once:
            // a build that edits its own sources would never end.
            let mut seen = Sources::look(&self.dir);
            if again && seen.edited_since(&before, program.as_deref()) {
                again = false;
                continue;
            }
            again = true;
            loop {
                std::thread::sleep(LOOK_EVERY);
                let now = Sources::look(&self.dir);
                if now.changed_since(&seen, program.as_deref()) {
                    break;
                }
                seen = now;
            }
            Events(self.output).changed();
        }
    }

    /// Builds and prepares a version and switches to it. Gives the program's path if it was built.
    fn build(&self) -> Option<PathBuf> {
        let events = Events(self.output);
        let built = match build::build(&self.dir, self.output) {
            Ok(built) => built,
            Err(failure) => {
                events.failed(&failure.to_string());
                return None;
            }
        };
        let manifest = &built.manifest;
        let config = GuestConfig {
            name: manifest.function.name.to_string(),
            memory_bytes: manifest.limits.memory_bytes,
            args: manifest.function.args.clone(),
            files: built.bundle.files.clone(),
            inetd: manifest.function.inetd,
            shared: manifest.scale.isolation == holm_model::manifest::Isolation::Instance,
            env: manifest.env.clone().into_iter().collect(),
            port: machine::PORT,
        };
        let deadline = Duration::from_millis(manifest.limits.deadline_ms);
        match holm_vmm::prepare(&self.hypervisor, &built.bundle.program, &config, deadline) {
            Ok(prepared) => {
                events.log(&prepared.log);
                self.server.switch_to(Version {
                    snapshot: prepared.snapshot,
                    allowed: Allowed::new(&built.manifest.network, &Outside::default()),
                    manifest: built.manifest.clone(),
                });
                events.serving(&build::describe(&built), prepared.ready);
            }
            Err(error) => {
                events.log(&error.log);
                events.failed(&format!("the program did not get ready: {}", error.failure));
            }
        }
        Some(built.path)
    }
}
