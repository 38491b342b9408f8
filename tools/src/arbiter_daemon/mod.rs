//! The daemon that serves the register.
//!
//! With a register file it holds the file's lock as long as it lives. With etcd
//! it keeps nothing, so that several arbiters may serve the same registers, and
//! starts whether etcd answers or not. It answers nodes by `transport`, and ends
//! at SIGTERM or SIGINT; every answer it gave is on disk, its own or that of
//! etcd's majority, by then.

use arbiter::{FileError, FileStore, Store, StoreError};
use etcd::{EtcdStore, SettingsError};
use thiserror::Error;
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
};
use transport::{ArbiterServer, BindError, Identity, Options, identity::IdentityError};

use crate::{
    config::{ArbiterConfig, StoreConfig},
    daemon::{ShellError, runtime},
    exit::Exit,
};

/// Requests that wait for etcd at once.
const ETCD_HANDLES: usize = 8;

/// Why the arbiter could not do its work.
#[derive(Debug, Error)]
pub enum ArbiterError {
    /// The register file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The registers cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// etcd cannot be reached with these settings.
    #[error(transparent)]
    Etcd(#[from] SettingsError),
    /// The certificate or key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate is another node's.
    #[error(
        "the certificate is that of {certified}, the configuration names {configured}: give the arbiter its own certificate (`romulus pki issue {configured}`)"
    )]
    Name {
        /// Whose it is.
        certified: arbiter::NodeId,
        /// Whose it should be.
        configured: arbiter::NodeId,
    },
    /// No threads or no signals.
    #[error(transparent)]
    Shell(#[from] ShellError),
    /// The address cannot be served.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// Serves until a signal ends it.
///
/// # Errors
///
/// [`ArbiterError`].
pub fn run(config: ArbiterConfig) -> Result<Exit, ArbiterError> {
    let paths = &config.identity;
    let identity = Identity::load(&paths.ca, &paths.cert, &paths.key)?;
    if *identity.node() != config.name {
        let certified = identity.node().clone();
        return Err(ArbiterError::Name { certified, configured: config.name });
    }
    let runtime = runtime()?;
    let stores = open(&config.store, runtime.handle())?;
    runtime.block_on(async {
        let caught = |source| ShellError::System { action: "catch signals", source };
        let mut terminate = signal(SignalKind::terminate()).map_err(caught)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(caught)?;
        let options = Options::default();
        let server = ArbiterServer::serve(config.listen, &identity, &options, stores)?;
        let address = server.local_address();
        tracing::info!(name = %config.name, %address, "the register is open");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("the arbiter ends");
        server.shutdown().await;
        Ok(Exit::Done)
    })
}

/// Handles of the registers, as many as may be asked at once.
fn open(
    config: &StoreConfig,
    runtime: &Handle,
) -> Result<Vec<Box<dyn Store + Send>>, ArbiterError> {
    match config {
        StoreConfig::File(path) => {
            let store = FileStore::open(path)?;
            let vms = store.list()?.len();
            tracing::info!(path = %path.display(), vms, "the register file is read");
            Ok(vec![Box::new(store)])
        }
        StoreConfig::Etcd(settings) => {
            let store = EtcdStore::new(settings, runtime.clone())?;
            let endpoints = settings.endpoints.join(", ");
            match store.id().and_then(|id| Ok((id, store.list()?.len()))) {
                Ok((registers, vms)) => {
                    tracing::info!(endpoints, %registers, vms, "etcd answers");
                }
                // It may come later, and nodes are told until then.
                Err(error) => tracing::warn!(endpoints, %error, "etcd gives no answer yet"),
            }
            Ok((0..ETCD_HANDLES).map(|_| Box::new(store.clone()) as Box<_>).collect())
        }
    }
}
