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

pub use self::core::End;

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
    roles::play(Turn::StandBy(Box::new(Host::start(settings.config)?)))
}

/// Stands by until it is stopped or promoted.
///
/// # Errors
///
/// [`NodeError`], when there can be no guest or the promotion failed.
pub fn stand_by(host: Host) -> Result<End, NodeError> {
    let guest = Guest::new(
        &host.config,
        &host.openings,
        checkpoint::output::Mode::Passing,
        host.telemetry.console.clone(),
    )?;
    guest.touch();
    core::stand_by(host, guest)
}

#[cfg(test)]
mod tests;
