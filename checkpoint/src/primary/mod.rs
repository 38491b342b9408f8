//! The primary's epoch machine: when to cut, what to release, whom to ask.
//!
//! Sans-IO: [`Primary::handle`] takes an event and the time, and
//! [`Primary::poll_action`] hands out what the shell must do. Page bytes never
//! pass through; epochs are numbers, sizes and digests here.
//!
//! ```text
//!                 ┌──────────────── Running ────────────────┐
//!                 │   no follower: solo, output passes      │
//!                 │   followers: cut, encode, ship, commit, │
//!                 │              release                    │
//!                 └──┬───────────────▲───────────────────┬──┘
//!   hand over, finish│               │successor lost     │the register says otherwise
//!                    ▼               │before asking      ▼
//!                 Draining ──────────┴──────────────▶  Ended
//!       guest paused, last epoch commits       fenced, handed over, finished
//! ```
//!
//! A **follower** is a backup whose commits output waits for: every member of
//! the register's in-sync set, and every backup that has joined and is about
//! to be admitted. So whether a pending admission or drop has happened at the
//! arbiter or not never matters to what is released.
//!
//! Invariants, each held by an assert or by construction:
//!
//! - `Release { through }` is emitted only if every follower has acknowledged
//!   `through` in this term's sessions, and never while in doubt.
//! - `PassOutput` is emitted only with an empty in-sync set in the register
//!   and no follower.
//! - `Forget { through }` never covers an epoch that a follower lacks.
//! - One question to the arbiter at a time; an unanswered one is repeated with
//!   the same stamp until it is answered.
//!
//! **Doubt.** A process that stood still (SIGSTOP, a stalled host) may have
//! been replaced. When an event comes much later than a timeout was due, the machine releases nothing
//! until either the arbiter confirms the register or every follower answers a
//! ping sent after the gap; a backup that asks for promotion stops answering
//! first. This is not what safety rests on (held output needs acknowledgements
//! anyway); it keeps a former primary from saying even what is known.

mod drain;
mod epochs;
mod flight;
mod link;
mod machine;
mod questions;
mod seeds;

use std::time::Duration;

use arbiter::{NodeId, Register};

pub use link::Stage;
pub use machine::Primary;

use crate::{
    Answer, Epoch, Note, Question,
    message::{Close, HeldImage, Refusal, ToBackup, ToPrimary},
    pacing::Pace,
};

/// What the machine is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// When epochs end.
    pub pace: Pace,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// A follower that is silent for so long is asked to be dropped.
    pub drop_after: Duration,
    /// A follower that speaks, but gets nothing done for so long while an epoch
    /// waits for it, is asked to be dropped.
    pub lag_max: Duration,
    /// Waking so much later than asked for means that this process stood still.
    pub freeze_gap: Duration,
    /// Between two tries at the arbiter.
    pub ask_retry: Duration,
    /// Epochs that may be cut and not committed.
    pub epochs_in_flight_max: usize,
    /// Captured bytes that may be cut and not committed, before another cut.
    pub bytes_in_flight_max: u64,
    /// The guest is paused while more output than this waits, in bytes.
    pub held_output_bytes_max: u64,
    /// A seed ends with a checkpoint when so few pages are still owed …
    pub seed_pages_left_max: u64,
    /// … or after so many rounds.
    pub seed_rounds_max: u32,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The time of [`Primary::poll_timeout`] has come.
    Timeout,
    /// The cut that was ordered is done.
    CutDone {
        /// The epoch that it ended.
        epoch: Epoch,
        /// Captured page content, in bytes.
        bytes: u64,
        /// The time in which no vCPU ran.
        pause: Duration,
    },
    /// The cut that was ordered failed; the guest is as it was before.
    CutFailed {
        /// The epoch that it would have ended.
        epoch: Epoch,
        /// Why, in words.
        why: String,
    },
    /// Something released was not said in time: this process stood still.
    Stalled,
    /// Every chunk of an epoch is encoded and on its way to its followers.
    Encoded {
        /// As for a follower that has the epoch before; the machine fills in
        /// `seed_chunks`.
        close: Close,
        /// Bytes of it on the wire.
        wire_bytes: u64,
    },
    /// A handshake with a backup is done.
    LinkUp {
        /// Which backup.
        backup: NodeId,
        /// The image that it holds, if it is whole.
        image: Option<HeldImage>,
        /// Largest epoch that it stages, in bytes of page content.
        staging_bytes_max: u64,
    },
    /// A backup refused the handshake.
    LinkRefused {
        /// Which backup.
        backup: NodeId,
        /// Why.
        refusal: Refusal,
    },
    /// The session with a backup is over.
    LinkDown {
        /// Which backup.
        backup: NodeId,
    },
    /// A message of a backup, in the order of its control stream.
    Heard {
        /// From whom.
        backup: NodeId,
        /// The term of its frame.
        term: arbiter::Term,
        /// What it says.
        message: ToPrimary,
    },
    /// A round of a seed has been handed to the transport.
    SeedRoundSent {
        /// For which backup.
        backup: NodeId,
        /// Chunks sent since the seed began.
        chunks: u32,
        /// Pages that were dirtied meanwhile.
        pages_left: u64,
    },
    /// The arbiter's answer to the question that is asked.
    Answered(Answer),
    /// The first output of the epoch that runs waits for its end.
    OutputWaits,
    /// So much output waits for commits.
    OutputHeld {
        /// Payload bytes.
        bytes: u64,
    },
    /// What an operator, or the guest, wants.
    Commanded(Command),
}

/// What an operator or the guest itself asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Keep a backup in sync from now on.
    Protect {
        /// Which.
        backup: NodeId,
    },
    /// Go on without a backup.
    Unprotect {
        /// Which.
        backup: NodeId,
    },
    /// Planned switchover.
    HandOver {
        /// The successor, which is in sync.
        to: NodeId,
        /// Whether this node goes on as a backup, with the guest as it is then.
        stand_by: bool,
    },
    /// Compare the memory of backups with the guest's, at the next epoch.
    Verify,
    /// The guest has ended: commit its last words, then stand everybody down.
    Finish {
        /// Why, in words for an operator.
        reason: String,
    },
}

/// A checkpoint to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutOrder {
    /// The epoch that it ends.
    pub epoch: Epoch,
    /// Backups whose seeds it completes: everything owed to them is captured.
    pub joins: Vec<NodeId>,
    /// Whether followers need what is dirty since the last cut.
    pub followers: bool,
    /// Leave the guest paused afterwards.
    pub stay_paused: bool,
    /// Take the digest of all guest memory while paused.
    pub digest: bool,
    /// Page content that may be sent ahead of the end of the epoch that begins,
    /// in bytes.
    pub ahead_bytes_max: u64,
}

/// What the shell must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Keep dialing this backup.
    Connect {
        /// Which.
        backup: NodeId,
    },
    /// End the session; dial again if `redial`.
    Disconnect {
        /// With whom.
        backup: NodeId,
        /// Whether a new session is wanted.
        redial: bool,
    },
    /// Send a control message.
    Send {
        /// To whom.
        backup: NodeId,
        /// What.
        message: ToBackup,
    },
    /// Owe `backup` every page and send the first round.
    StartSeed {
        /// Which.
        backup: NodeId,
    },
    /// Send what was dirtied since the last round.
    SeedRound {
        /// To whom.
        backup: NodeId,
    },
    /// Send the pages of chunks of a seed again, in chunks of the same numbers.
    ResendSeed {
        /// To whom.
        backup: NodeId,
        /// Which chunks.
        chunks: Vec<u32>,
    },
    /// Stop sending a seed.
    StopSeed {
        /// To whom.
        backup: NodeId,
    },
    /// Take a checkpoint. Hold output of the epochs after it.
    Cut(CutOrder),
    /// Send the chunks of every later epoch, those that are encoded now and
    /// those that will be, until the session ends.
    Follow {
        /// To whom.
        backup: NodeId,
        /// The last epoch that it has.
        after: Epoch,
        /// It joins with the first of them: what was encoded of that one before
        /// it began anew is not for it.
        joins: bool,
    },
    /// Send encoded chunks again.
    Resend {
        /// To whom.
        backup: NodeId,
        /// Of which epoch.
        epoch: Epoch,
        /// Which.
        chunks: Vec<u32>,
    },
    /// A backup told the digest of its image at an epoch.
    Verified {
        /// Which backup.
        backup: NodeId,
        /// The epoch that its image was.
        epoch: Epoch,
        /// The digest.
        digest: crate::chunk::Digest,
    },
    /// Chunks of these epochs will not be asked for again.
    Forget {
        /// The last such epoch.
        through: Epoch,
    },
    /// Output up to this epoch may leave.
    Release {
        /// The last such epoch.
        through: Epoch,
    },
    /// The right to run is confirmed: what was too old to be said may be said.
    Confirm,
    /// No follower is left: output passes, and dirty pages are not tracked.
    PassOutput,
    /// Pause the guest until [`Action::FreeGuest`].
    HoldGuest,
    /// Run the guest again.
    FreeGuest,
    /// Ask the arbiter. Exactly one answer must come back.
    Ask(Question),
    /// It is over; nothing follows.
    End(Ending),
    /// For the event log.
    Note(Note),
}

/// How a primary ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// This node has lost the right to run: drop all output, stop the vCPUs.
    Fenced {
        /// What the register holds instead, if that is known.
        register: Option<Register>,
    },
    /// Another node is primary, by plan.
    HandedOver {
        /// What the register holds. If it counts this node as in sync, the guest
        /// is kept as it stands: [`crate::backup::Backup::with_image`].
        register: Register,
        /// The epoch at which the guest stands.
        epoch: Epoch,
    },
    /// The guest has ended.
    Finished {
        /// Why.
        reason: String,
    },
}

#[cfg(test)]
mod tests;
