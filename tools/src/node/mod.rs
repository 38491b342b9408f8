//! What primary and backup have in common: one process per VM on a host.
//!
//! ```text
//!   Host ── runtime (network, control API), endpoint, arbiter client, telemetry
//!     │
//!     ├── primary::core   thread `main`: the primary's machine and its shell
//!     └── backup::core    thread `main`: the backup's machine and its shell,
//!                         which becomes a primary::core when it is promoted
//! ```

mod arbiter_view;
mod arbiter_watch;
mod asker;
mod audit;
mod backlog;
mod causes;
mod console_log;
pub mod crash_point;
mod devices;
mod guest;
mod guest_event;
mod notes;
mod openings;
mod requests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arbiter::NodeId;
use thiserror::Error;
use tokio::runtime::Runtime;
use transport::{ArbiterClient, BindError, Endpoint, Identity, Options, identity::IdentityError};

pub use arbiter_view::ArbiterView;
pub use arbiter_watch::{ArbiterWatch, Sight};
pub use asker::Asker;
pub use audit::Audit;
pub use backlog::{Backlog, UNHANDLED_MAX, Unhandled};
pub use causes::with_causes;
pub use guest::{Guest, GuestError};
pub use guest_event::GuestEvent;
pub use notes::record_note;
pub use openings::Openings;
pub use requests::Requests;

use crate::{
    config::VmConfig,
    control::{self, ControlRequests, EventKind, Severity, SocketError},
    daemon::{Serving, Shell, ShellError, Telemetry, runtime},
    jail::{self, InForce, JailError, Needs, ThreadKind},
};

/// Why a daemon could not start or go on.
#[derive(Debug, Error)]
pub enum NodeError {
    /// Its control socket or threads are missing.
    #[error(transparent)]
    Shell(#[from] ShellError),
    /// The control socket has no place.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// It could not be jailed.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// Its certificate or key does not serve.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its certificate is another node's.
    #[error(
        "the certificate is that of `{certified}`, but node.name is `{configured}`: issue one with `romulus pki issue {configured}`"
    )]
    Misnamed {
        /// Whose certificate it is.
        certified: NodeId,
        /// What the configuration says.
        configured: NodeId,
    },
    /// Its UDP socket could not be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The guest could not be made.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// What a promotion was to go on from is not sound.
    #[error("this node cannot take over: start the guest's last primary again, if it is there")]
    Image(#[from] checkpoint::image::BrokenImage),
    /// The register does not let this node run the guest.
    #[error("{0}")]
    Claim(String),
    /// A thread could not be started.
    #[error("cannot start a thread: raise the limit of processes (`romulus doctor`)")]
    Thread(#[source] std::io::Error),
    /// Another process of this node serves the VM.
    #[error("another romulus process on this host serves `{0}`: stop it first")]
    Running(String),
    /// The state folder cannot be used.
    #[error("cannot use state folder {path}: check that it exists and is writable", path = .path.display())]
    State {
        /// Which.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Monotonic time since this process began, as the machines count it.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    begun: Instant,
}

impl Clock {
    /// The time of `instant`.
    #[must_use]
    pub fn at(self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.begun)
    }
}

/// Everything around the machines that outlives a change of role.
pub struct Host {
    /// What the operator configured.
    pub config: VmConfig,
    /// Network and control API.
    pub runtime: Runtime,
    /// The node's UDP socket.
    pub endpoint: Arc<Endpoint>,
    /// The arbiters, from here.
    pub arbiter: Arc<ArbiterClient>,
    /// Events, figures, console.
    pub telemetry: Telemetry,
    /// What operators ask for.
    pub requests: ControlRequests,
    /// Memory digests, if they are wanted.
    pub audit: Arc<Audit>,
    /// Time.
    pub clock: Clock,
    /// What guests are made of.
    pub openings: Openings,
    /// What this process has given up.
    pub jail: InForce,
    serving: Serving,
    /// Held so that no second process serves the VM on this host.
    _lock: std::fs::File,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("node", &self.config.node.name).finish_non_exhaustive()
    }
}

impl Host {
    /// Opens what takes rights, enters the jail, and binds everything that
    /// `config` names.
    ///
    /// # Errors
    ///
    /// [`NodeError`], before any guest is touched.
    ///
    /// # Panics
    ///
    /// If this process has other threads already.
    pub fn start(config: VmConfig) -> Result<Self, NodeError> {
        let lock = lock_state(&config)?;
        let audit = Audit::open(&config)
            .map_err(|source| NodeError::State { path: config.node.state_dir.clone(), source })?;
        let files = &config.node.identity;
        let identity = Identity::load(&files.ca, &files.cert, &files.key)?;
        if *identity.node() != config.node.name {
            return Err(NodeError::Misnamed {
                certified: identity.node().clone(),
                configured: config.node.name.clone(),
            });
        }
        control::make_folder(&config.node.control)?;
        let openings = Openings::open(&config)?;
        let jail = jail::enter(config.node.jail, &Needs::of_node(&config))?;
        let runtime = runtime(ThreadKind::Network)?;
        let shell = Shell::start(&runtime, &config.node.control)?;
        let entered = runtime.enter();
        let options = Options {
            mtu_bytes_max: config.replication.mtu_max.get(),
            data_streams: usize::from(config.replication.data_streams.get()).min(16),
            request_timeout: config.replication.arbiter_timeout,
            connect_timeout: Duration::from_millis(500),
            callers: config.peers.iter().map(|peer| peer.address.ip()).collect(),
            ..Options::default()
        };
        let endpoint = Arc::new(Endpoint::bind(config.node.listen, &identity, &options)?);
        let arbiters = config.arbiters.iter().map(|peer| (peer.name.clone(), peer.address));
        let arbiter = Arc::new(ArbiterClient::new(endpoint.clone(), arbiters.collect()));
        drop(entered);
        let (requests, telemetry, serving) = shell.into_parts();
        let (name, vm) = (&config.node.name, &config.vm.name);
        let text = format!("`{name}` serves `{vm}` at {}", endpoint.local_address());
        record(&telemetry, EventKind::ProcessStarted, text);
        Ok(Self {
            config,
            runtime,
            endpoint,
            arbiter,
            telemetry,
            requests,
            audit: Arc::new(audit),
            clock: Clock { begun: Instant::now() },
            openings,
            jail,
            serving,
            _lock: lock,
        })
    }

    /// Ends sessions and the control API in good order.
    pub fn finish(self) {
        record(&self.telemetry, EventKind::ProcessStopping, "the process ends".to_owned());
        let endpoint = self.endpoint.clone();
        let _ = self.runtime.block_on(async {
            endpoint.close();
            tokio::time::timeout(Duration::from_millis(500), async {
                endpoint.closed().await;
                self.serving.finish().await;
            })
            .await
        });
        // Tasks that still wait for a peer are not waited for.
        self.runtime.shutdown_timeout(Duration::from_millis(200));
    }
}

fn record(telemetry: &Telemetry, kind: EventKind, text: String) {
    telemetry.events.record(Severity::Info, kind, text, serde_json::Value::Null);
}

fn lock_state(config: &VmConfig) -> Result<std::fs::File, NodeError> {
    let folder = &config.node.state_dir;
    let path = folder.join(format!("{}.{}.lock", config.vm.name, config.node.name));
    let state = |source| NodeError::State { path: folder.clone(), source };
    std::fs::create_dir_all(folder).map_err(state)?;
    let file = std::fs::File::create(path).map_err(state)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(NodeError::Running(config.vm.name.to_string()))
        }
        Err(std::fs::TryLockError::Error(source)) => Err(state(source)),
    }
}
