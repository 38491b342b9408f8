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
mod outbox;
mod peers;
mod seeder;
mod status;
mod tracker;
mod troubles;

pub use self::core::{Ended, Promoted, run_core};

use self::claim::Claim;
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

/// Runs until the guest ends, an operator stops it, or this node is fenced.
/// After a planned switchover the process goes on as a backup.
///
/// # Errors
///
/// [`NodeError`], when the daemon could not start.
pub fn run(settings: Settings) -> Result<Exit, NodeError> {
    let mut host = Host::start(settings.config)?;
    let guest = Guest::new(&host.config, &host.openings, host.telemetry.console.clone())?;
    let register = match claim::claim(&mut host, &guest)? {
        Claim::Granted(register) => register,
        Claim::Stopped => {
            drop(guest);
            host.finish();
            return Ok(Exit::Done);
        }
    };
    guest.boot(&host.config)?;
    let promoted = Promoted { register, first: checkpoint::Epoch::FIRST };
    roles::play(Turn::Run(Box::new(host), Box::new(guest), promoted))
}
