//! The daemon that runs the guest and replicates it.
//!
//! ```text
//!   core (thread main) ── Cut ─────────▶ cutter (thread "epoch"): pause, harvest, save,
//!     │  ▲                                        capture, resume
//!     │  └── CutDone { captured } ◀──────────┘
//!     ├── batches ──▶ encoders (threads "encode-n") ──▶ flights ──▶ peers' chunk queues
//!     ├── StartSeed ─▶ seeder (thread "seed-x") ─────────────────▶ peers' data streams
//!     ├── Send ─────▶ peers (tasks on the runtime) ◀── messages ── backups
//!     ├── Ask ──────▶ asker (tasks) ◀── answers ── arbiter
//!     └── Release ──▶ the guest's outlet
//! ```
//!
//! The core alone owns the machine; everything else reports to it through one
//! channel of [`core::Input`]s. Cutting, encoding, seeding and waiting for the
//! network never happen on its thread.

mod capture;
mod claim;
mod copier;
mod core;
mod cutter;
mod encoder;
mod flights;
mod guest_events;
mod peers;
mod seeder;
mod status;
mod tracker;

pub use self::core::{End, Promoted, run_core};

use crate::{
    config::VmConfig,
    exit::Exit,
    node::{Guest, Host, NodeError},
};

/// What the daemon needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The VM's configuration on this node.
    pub config: VmConfig,
}

/// Runs until the guest ends, an operator stops it, or this node is fenced.
/// After a planned switchover the process goes on as a backup.
///
/// # Errors
///
/// [`NodeError`], when the daemon could not start.
pub fn run(settings: Settings) -> Result<Exit, NodeError> {
    let host = Host::start(settings.config)?;
    let guest = Guest::new(
        &host.config,
        checkpoint::output::Mode::Passing,
        host.telemetry.console.clone(),
    )?;
    let register = claim::claim(&host)?;
    guest.boot(&host.config)?;
    let promoted = Promoted { register, first: checkpoint::Epoch::FIRST };
    end(run_core(host, guest, promoted)?)
}

/// Turns the end of a primary into the end of its process.
///
/// # Errors
///
/// [`NodeError::Thread`] if the process could not go on as a backup.
pub fn end(end: End) -> Result<Exit, NodeError> {
    match end {
        End::Finished { failed: false } => Ok(Exit::Done),
        End::Finished { failed: true } => Ok(Exit::Failed),
        End::Fenced => Ok(Exit::Fenced),
        End::HandedOver => Err(become_backup()),
    }
}

/// Replaces this process by one that stands by, with the same pid, arguments
/// and standard streams. Returns only if that fails.
fn become_backup() -> NodeError {
    use std::os::unix::process::CommandExt;

    tracing::info!("going on as a backup");
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return NodeError::Thread(error),
    };
    let role = |argument: std::ffi::OsString| {
        if argument == "run" { "backup".into() } else { argument }
    };
    let arguments = std::env::args_os().skip(1).map(role);
    NodeError::Thread(std::process::Command::new(program).args(arguments).exec())
}
