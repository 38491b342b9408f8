//! What is wrong with a configuration file, where, and what to do about it.

use std::{fmt, io, path::PathBuf};

use arbiter::NodeId;
use thiserror::Error;
use transport::identity::IdentityError;

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}: name an existing, readable TOML file", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something in the file is wrong.
    #[error("{path}:{fault}", path = path.display())]
    Faulty {
        /// The file.
        path: PathBuf,
        /// What, and where.
        fault: Fault,
    },
    /// The certificate, its key or the authority do not serve.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate is another node's.
    #[error(
        "{certificate} is the certificate of `{certified}`, not of `{configured}`, which the configuration names: issue one with `romulus pki issue {configured}`, or correct `name`",
        certificate = certificate.display()
    )]
    Misnamed {
        /// The certificate's file.
        certificate: PathBuf,
        /// Whose it is.
        certified: NodeId,
        /// Whose it should be.
        configured: NodeId,
    },
}

/// One thing that is wrong in a configuration text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Fault {
    /// Line in the file, from 1.
    pub line: usize,
    /// Full name of the key, as in `replication.epoch_ms`; empty for a syntax error.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, ": {}", self.remedy) }
    }
}
