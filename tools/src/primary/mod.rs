//! The daemon that runs the guest and replicates it.

use thiserror::Error;

use crate::{config::VmConfig, daemon::ShellError, exit::Exit};

/// What the daemon needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The VM's configuration on this node.
    pub config: VmConfig,
}

/// Why the daemon could not do its work.
#[derive(Debug, Error)]
pub enum Error {
    /// Its control socket or threads are missing.
    #[error(transparent)]
    Shell(#[from] ShellError),
    /// This build has no engine yet.
    #[error("the primary's engine is not built yet: use a version of romulus that has it")]
    NotBuiltYet,
}

/// Runs until the guest ends, an operator stops it, or this node is fenced.
///
/// # Errors
///
/// [`Error`], when the daemon could not go on.
pub fn run(settings: Settings) -> Result<Exit, Error> {
    let _ = settings;
    Err(Error::NotBuiltYet)
}
