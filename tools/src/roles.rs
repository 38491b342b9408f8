//! A node's roles, one after the other, in one process.
//!
//! ```text
//!   romulus run ────▶ Run ──── handed over ───▶ StandBy ◀──── romulus backup
//!                      ▲  │                      │  │
//!                      └──┼────── promoted ──────┘  │
//!                         └─▶ the process ends ◀────┘
//! ```
//!
//! A change of role never starts a program and opens nothing that takes rights:
//! the process is in its jail. Sockets, the control API, what happened so far and
//! the figures stay; the guest and its machine's memory are made anew.

use crate::{
    backup,
    exit::Exit,
    node::{Guest, Host, NodeError},
    primary::{self, Promoted},
};

/// What comes next.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Running the guest, which is ready to run.
    Run(Box<Host>, Box<Guest>, Promoted),
    /// Standing by.
    StandBy(Box<Host>),
}

/// Plays `turn`, and what follows from it, until the process is to end.
///
/// # Errors
///
/// [`NodeError`], when a role could not be begun.
pub(crate) fn play(mut turn: Turn) -> Result<Exit, NodeError> {
    loop {
        turn = match turn {
            Turn::Run(host, guest, promoted) => match primary::run_core(*host, *guest, promoted)? {
                primary::Ended::Exit(exit) => return Ok(exit),
                primary::Ended::HandedOver(host) => {
                    tracing::info!("going on as a backup");
                    Turn::StandBy(host)
                }
            },
            Turn::StandBy(host) => match backup::stand_by(*host)? {
                backup::End::Stopped => return Ok(Exit::Done),
                backup::End::Promoted(host, guest, promoted) => Turn::Run(host, guest, promoted),
            },
        }
    }
}
