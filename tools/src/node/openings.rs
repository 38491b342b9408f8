//! What guests are made of and cannot be opened again in the jail.

use vmm::memory::guard::Userfault;

use super::{GuestError, console_log::ConsoleLog, devices::device_config};
use crate::config::{Capture, VmConfig};

/// Open for the life of the process, whatever its role.
#[derive(Debug)]
pub struct Openings {
    pub(super) vm: vmm::openings::Openings,
    /// For protecting pages; `None` if that is not wanted or not there.
    pub(super) userfault: Option<Userfault>,
    pub(super) console_log: Option<ConsoleLog>,
}

impl Openings {
    /// Opens what the guest of `config` needs.
    ///
    /// # Errors
    ///
    /// [`GuestError::Vm`] or [`GuestError::Console`]
    pub fn open(config: &VmConfig) -> Result<Self, GuestError> {
        let vm = vmm::openings::Openings::open(&device_config(config))?;
        let userfault = match config.replication.capture {
            Capture::Copy => None,
            Capture::Protect => match Userfault::open() {
                Ok(userfault) => Some(userfault),
                Err(error) => {
                    tracing::info!(%error, "pages are not write-protected, but copied");
                    None
                }
            },
        };
        Ok(Self { vm, userfault, console_log: console_log(config)? })
    }
}

fn console_log(config: &VmConfig) -> Result<Option<ConsoleLog>, GuestError> {
    let Some(path) = &config.console.log else { return Ok(None) };
    let log = ConsoleLog::open(path, u64::from(config.console.log_mib_max.get()) << 20);
    let console = |source| GuestError::Console { path: path.clone(), source };
    log.map(Some).map_err(console)
}
