//! Which control socket is meant by a name, a file, or a path.

use std::path::{Path, PathBuf};

use arbiter::VmId;
use thiserror::Error;

use crate::{
    config::{self, AnyConfig, ConfigError},
    control::Client,
};

/// Where a VM's control socket lies if only its name is given.
pub const RUN_DIR: &str = "/run/romulus";
/// Replaces [`RUN_DIR`].
pub const ENV_RUN_DIR: &str = "ROMULUS_RUN_DIR";

/// An argument that leads to no control socket.
#[derive(Debug, Error)]
pub enum TargetError {
    /// The file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An arbiter without a control socket.
    #[error("{given} has no control socket: add the key `control` to its section [arbiter]")]
    Mute {
        /// What was typed.
        given: String,
    },
    /// Neither a file nor a name.
    #[error(
        "`{given}` is neither a configuration, nor a control socket, nor a VM's name: try `/etc/romulus/web-1.toml` or `web-1`"
    )]
    Unclear {
        /// What was typed.
        given: String,
    },
}

/// The client of the control API that `given` means.
pub(super) fn client(given: &str) -> Result<Client, TargetError> {
    let folder = std::env::var_os(ENV_RUN_DIR).map_or_else(|| RUN_DIR.into(), PathBuf::from);
    socket_of(given, &folder).map(Client::new)
}

fn socket_of(given: &str, folder: &Path) -> Result<PathBuf, TargetError> {
    let path = Path::new(given);
    if path.extension().is_some_and(|ending| ending == "toml") {
        return match config::read_any(path)? {
            AnyConfig::Vm(config) => Ok(config.node.control),
            AnyConfig::Arbiter(config) => {
                config.control.ok_or_else(|| TargetError::Mute { given: given.to_owned() })
            }
        };
    }
    if given.contains('/') || path.extension().is_some_and(|ending| ending == "sock") {
        return Ok(path.to_owned());
    }
    match given.parse::<VmId>() {
        Ok(name) => Ok(folder.join(format!("{name}.sock"))),
        Err(_) => Err(TargetError::Unclear { given: given.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths() {
        let folder = Path::new("/run/x");
        assert_eq!(socket_of("web-1", folder).unwrap(), Path::new("/run/x/web-1.sock"));
        assert_eq!(socket_of("./a", folder).unwrap(), Path::new("./a"));
        assert_eq!(socket_of("a.sock", folder).unwrap(), Path::new("a.sock"));
        assert!(matches!(socket_of("Web 1", folder), Err(TargetError::Unclear { .. })));
        assert!(matches!(socket_of("gone.toml", folder), Err(TargetError::Config(_))));
    }
}
