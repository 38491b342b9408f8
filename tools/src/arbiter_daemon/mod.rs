//! The daemon that serves the register.
//!
//! It holds the register file's lock as long as it lives, answers nodes by
//! `transport`, and ends at SIGTERM or SIGINT; every answer it gave is on disk
//! by then.

use thiserror::Error;

use arbiter::{FileStore, Store, StoreError};
use transport::identity::{Identity, IdentityError};

use crate::{config::ArbiterConfig, daemon::ShellError, exit::Exit};

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
    /// This build has no way to answer nodes yet.
    #[error("the arbiter's service is not built yet: use a version of romulus that has it")]
    NotBuiltYet,
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
    tracing::info!(name = %config.name, listen = %config.listen, vms, "the register is open");
    Err(ArbiterError::NotBuiltYet)
}
