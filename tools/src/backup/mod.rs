//! The daemon that stands by, and takes over.
//!
//! ```text
//!   door (task) ── Knock ──▶ core (thread main) ── Apply ──▶ applier (thread "apply")
//!                              │  ▲                              │ image: guest memory
//!   session (task) ─ messages ─┘  │ Staged, Refused              ▼
//!        └─ chunks ─▶ decoders (threads "decode-n") ──▶ staging (chunks, verified)
//! ```
//!
//! The VM shell stands ready from the start: memory mapped, vCPUs created, the
//! tap opened. A promotion finishes applying, sets the state, announces the
//! guest's place on the network, and becomes a [`crate::primary`] core.

mod applier;
mod core;
mod decoder;
mod session;
mod staging;
mod status;

use arbiter::Register;
use checkpoint::{Epoch, Sections, image::Image};

pub use self::core::End;

use self::core::Standing;
use crate::{
    config::VmConfig,
    exit::Exit,
    node::{Guest, Host, NodeError},
    roles::{self, Turn},
};

/// What the daemon needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The VM's configuration on this node.
    pub config: VmConfig,
}

/// Stands by until it is stopped or promoted; once promoted, runs the guest.
///
/// # Errors
///
/// [`NodeError`], when the daemon could not start or the promotion failed.
pub fn run(settings: Settings) -> Result<Exit, NodeError> {
    roles::play(Turn::StandBy(Box::new(Host::start(settings.config)?), None))
}

/// A guest as its former primary has handed it over: an image like that of any
/// backup in sync.
#[derive(Debug)]
pub struct KeptGuest {
    /// Its memory, and the VM that it ran in, which is the shell now.
    pub guest: Box<Guest>,
    /// The state of vCPUs, machine and devices.
    pub sections: Sections,
    /// The epoch at which it stands.
    pub epoch: Epoch,
    /// The register, which counts this node as in sync.
    pub register: Register,
}

/// Stands by until it is stopped or promoted; with a guest that this node has
/// handed over, it is in sync from the start.
///
/// # Errors
///
/// [`NodeError`], when there can be no guest or the promotion failed.
pub fn stand_by(host: Host, kept: Option<KeptGuest>) -> Result<End, NodeError> {
    let Some(KeptGuest { guest, sections, epoch, register }) = kept else {
        let guest = Guest::new(&host.config, &host.openings, host.telemetry.console.clone())?;
        guest.touch();
        return core::stand_by(host, guest, None);
    };
    guest.stand_by()?;
    core::stand_by(host, *guest, Some(Standing { image: Image::of(sections), epoch, register }))
}

#[cfg(test)]
mod tests;
