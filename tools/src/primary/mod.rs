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
mod core;
mod cutter;
mod encoder;
mod flights;
mod peers;
mod seeder;
mod status;
mod tracker;

pub use self::core::{End, Promoted, run_core};

use crate::{config::VmConfig, exit::Exit, node::{Guest, Host, NodeError}};

/// What the daemon needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The VM's configuration on this node.
    pub config: VmConfig,
    /// Where it was read from, to go on as a backup after a handover.
    pub path: std::path::PathBuf,
}

/// Runs until the guest ends, an operator stops it, or this node is fenced.
/// After a planned switchover the process goes on as a backup.
///
/// # Errors
///
/// [`NodeError`], when the daemon could not start.
pub fn run(settings: Settings) -> Result<Exit, NodeError> {
    let host = Host::start(settings.config)?;
    let guest = Guest::new(&host.config, checkpoint::output::Mode::Passing)?;
    let register = claim::claim(&host)?;
    guest.boot(&host.config)?;
    let promoted = Promoted { register, first: checkpoint::Epoch::FIRST };
    end(run_core(host, guest, promoted)?, &settings.path)
}

/// Turns the end of a primary into the end of its process.
///
/// # Errors
///
/// [`NodeError::Thread`] if the process could not go on as a backup.
pub fn end(end: End, path: &std::path::Path) -> Result<Exit, NodeError> {
    use std::os::unix::process::CommandExt;

    match end {
        End::Finished { failed: false } => Ok(Exit::Done),
        End::Finished { failed: true } => Ok(Exit::Failed),
        End::Fenced => Ok(Exit::Fenced),
        End::HandedOver => {
            tracing::info!("going on as a backup");
            let program = std::env::current_exe().map_err(NodeError::Thread)?;
            let mut command = std::process::Command::new(program);
            // The new process image keeps pid, log and standard streams.
            Err(NodeError::Thread(command.args(crate::cli::log_arguments()).arg("backup").arg(path).exec()))
        }
    }
}
