//! The daemon that serves the register.
//!
//! It holds the register file's lock as long as it lives, answers nodes by
//! `transport`, and ends at SIGTERM or SIGINT; every answer it gave is on disk
//! by then.

use arbiter::{FileStore, Store, StoreError};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use transport::{ArbiterServer, BindError, Identity, Options, identity::IdentityError};

use crate::{
    config::ArbiterConfig,
    daemon::{ShellError, runtime},
    exit::Exit,
};

/// Why the arbiter could not do its work.
#[derive(Debug, Error)]
pub enum ArbiterError {
    /// The register file cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
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
    let store = FileStore::open(&config.store)?;
    let vms = store.list()?.len();
    runtime()?.block_on(async {
        let caught = |source| ShellError::System { action: "catch signals", source };
        let mut terminate = signal(SignalKind::terminate()).map_err(caught)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(caught)?;
        let options = Options::default();
        let server = ArbiterServer::serve(config.listen, &identity, &options, Box::new(store))?;
        let address = server.local_address();
        tracing::info!(name = %config.name, %address, vms, "the register is open");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("the arbiter ends");
        server.shutdown().await;
        Ok(Exit::Done)
    })
}
