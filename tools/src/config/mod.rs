//! Configuration: TOML read once into types that cannot be wrong.
//!
//! Unknown keys are refused, relations between settings are checked, and files
//! are looked for, before anything is started. Every complaint names the file,
//! the line, the key, what is wrong and what to do ([`ConfigError`]). Relative
//! paths are taken from the folder of the file.

mod arbiter_file;
mod disks;
mod error;
mod host_files;
mod pace;
mod section;
mod types;
mod vm_file;

use std::{fs, path::Path};

use serde::Serialize;

pub use self::vm_file::ZSTD_LEVEL;
pub use self::{
    error::{ConfigError, Fault},
    types::{
        ArbiterConfig, ArbiterPeer, BootProtocol, Capture, Codec, Console, DirtyTracking, Disk,
        DiskDigest, DiskSerial, IdentityFiles, InterfaceName, InvalidDiskSerial,
        InvalidInterfaceName, InvalidMac, JailMode, Kernel, MacAddress, Network, Node, OnPanic,
        OnReboot, Peer, Replication, StoreConfig, Vm, VmConfig,
    },
};
use self::{
    host_files::HostFiles,
    section::{Kind, Source},
};

/// Largest configuration file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Either kind of configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum AnyConfig {
    /// A VM on a node.
    Vm(Box<VmConfig>),
    /// The arbiter.
    Arbiter(Box<ArbiterConfig>),
}

impl AnyConfig {
    /// Whether the certificates that it names are those of its node.
    ///
    /// # Errors
    ///
    /// As [`IdentityFiles::check`].
    pub fn check_identity(&self) -> Result<(), ConfigError> {
        match self {
            Self::Vm(config) => config.node.identity.check(&config.node.name),
            Self::Arbiter(config) => config.identity.check(&config.name),
        }
    }
}

/// Reads the configuration of a VM on a node.
///
/// # Errors
///
/// [`ConfigError`], naming the line and the remedy.
pub fn read_vm(path: &Path) -> Result<VmConfig, ConfigError> {
    let text = read_text(path)?;
    let files = HostFiles::beside(path);
    vm_file::parse(&text, &files).map_err(|fault| faulty(path, fault))
}

/// Reads the configuration of an arbiter.
///
/// # Errors
///
/// [`ConfigError`], naming the line and the remedy.
pub fn read_arbiter(path: &Path) -> Result<ArbiterConfig, ConfigError> {
    let text = read_text(path)?;
    let files = HostFiles::beside(path);
    arbiter_file::parse(&text, &files).map_err(|fault| faulty(path, fault))
}

/// Reads a configuration of either kind: one with `[vm]` or `[node]` is a VM's.
///
/// # Errors
///
/// [`ConfigError`], naming the line and the remedy.
pub fn read_any(path: &Path) -> Result<AnyConfig, ConfigError> {
    let text = read_text(path)?;
    let files = HostFiles::beside(path);
    let root = Source::new(&text).parse().map_err(|fault| faulty(path, fault))?;
    let parsed = match Kind::of(&root) {
        Kind::Arbiter => {
            arbiter_file::parse(&text, &files).map(|config| AnyConfig::Arbiter(Box::new(config)))
        }
        Kind::Vm | Kind::Neither => {
            vm_file::parse(&text, &files).map(|config| AnyConfig::Vm(Box::new(config)))
        }
    };
    parsed.map_err(|fault| faulty(path, fault))
}

fn faulty(path: &Path, fault: Fault) -> ConfigError {
    ConfigError::Faulty { path: path.to_owned(), fault }
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let fail = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(fail)?.len();
    if bytes > FILE_BYTES_MAX {
        let too_large = format!("{bytes} bytes are more than a configuration has");
        return Err(fail(std::io::Error::other(too_large)));
    }
    fs::read_to_string(path).map_err(fail)
}

#[cfg(test)]
mod tests;
