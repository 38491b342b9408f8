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
//! the figures stay. So does the VM of a guest that was handed over: its memory is
//! the image that the former primary stands by with, and it is the shell.

use crate::{
    backup::{self, KeptGuest},
    exit::Exit,
    node::{Guest, Host, NodeError},
    primary::{self, Promoted},
};

/// What comes next.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Running the guest, which is ready to run.
    Run(Box<Host>, Box<Guest>, Promoted),
    /// Standing by, perhaps with the guest that was handed over.
    StandBy(Box<Host>, Option<KeptGuest>),
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
                primary::Ended::HandedOver(host, kept) => {
                    tracing::info!(in_sync = kept.is_some(), "going on as a backup");
                    Turn::StandBy(host, kept)
                }
            },
            Turn::StandBy(host, kept) => match backup::stand_by(*host, kept)? {
                backup::End::Stopped => return Ok(Exit::Done),
                backup::End::Promoted(host, guest, promoted) => Turn::Run(host, guest, promoted),
            },
        }
    }
}
