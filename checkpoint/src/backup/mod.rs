//! The backup's epoch machine: what to commit, when to ask, when to take over.
//!
//! Sans-IO, like [`crate::primary`]: chunks come in as ids and digests that the
//! shell has verified, and go out as orders to apply.
//!
//! ```text
//!              BeginSeed              joining epoch whole
//!   Waiting ─────────────▶ Seeding ───────────────────────▶ Standing ◀──────┐
//!      ▲                     │ session lost                    │ silence    │ never sent
//!      ├─────────────────────┘                                 ▼            │
//!      ├──────────────── dropped, or another won ─────────── Asking ────────┘
//!      │                                                       │ the register names us
//!      └─ farewell                                             ▼
//!                                                          Promoting ──▶ primary
//! ```
//!
//! Invariants:
//!
//! - An epoch is acknowledged only when all of its chunks are staged, its
//!   digest matches, and every epoch before it is committed.
//! - In `Asking` and after it nothing is acknowledged and no session is taken:
//!   whoever promotes has stopped speaking for its old term first.
//! - A promotion needs a whole image and the register's word; a timeout only
//!   decides when to ask.
//! - A frame of a term below the highest that this node knows changes nothing.

mod machine;
mod stage;
#[cfg(test)]
mod tests;

use std::time::Duration;

use arbiter::{NodeId, Register, Term};

pub use machine::Backup;

use crate::{
    Answer, Epoch, Note, Question,
    chunk::{ChunkId, Digest},
    message::{Hello, Machine, Refusal, ToBackup, ToPrimary, Welcome},
};

/// What the machine is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// The VM that it stands by for.
    pub vm: arbiter::VmId,
    /// The shape of the machine that it could run.
    pub machine: Machine,
    /// Protocol versions that it speaks, newest first.
    pub versions: Vec<String>,
    /// A primary that is silent for so long is taken for dead, and the arbiter
    /// is asked.
    pub detection: Duration,
    /// Waking so much later than asked for means that this process stood still.
    pub freeze_gap: Duration,
    /// Between two tries at the arbiter.
    pub ask_retry: Duration,
    /// When no chunk of a closed epoch has come for so long, those that are
    /// missing are asked for again.
    pub nack_after: Duration,
    /// Largest epoch that is staged, in bytes of page content.
    pub staging_bytes_max: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The time of [`Backup::poll_timeout`] has come.
    Timeout,
    /// A node with a valid certificate wants a session.
    Knock {
        /// Who.
        peer: NodeId,
        /// The term of its frame.
        term: Term,
        /// What it says.
        hello: Hello,
    },
    /// The session is over.
    LinkDown,
    /// A message of the primary, in the order of its control stream.
    Heard {
        /// The term of its frame.
        term: Term,
        /// What it says.
        message: ToBackup,
    },
    /// A chunk came, was verified and decoded, and is staged.
    Staged {
        /// The term of its frame.
        term: Term,
        /// Which chunk.
        id: ChunkId,
        /// Its digest.
        digest: Digest,
        /// Its pages.
        pages: u64,
    },
    /// A chunk came and was refused: damaged or malformed.
    Refused {
        /// Which chunk.
        id: ChunkId,
    },
    /// A chunk was passed over unread, because its term is stale: it had been on
    /// its way when the term changed.
    PassedOver {
        /// Which chunk.
        id: ChunkId,
    },
    /// More came than may be staged: the primary completes nothing of it.
    Excess,
    /// An epoch is in the image.
    Applied {
        /// Which.
        epoch: Epoch,
    },
    /// The image is not what the primary takes it for: it must be given up.
    ImageBroken {
        /// What was found, in words.
        why: String,
    },
    /// The digest of the image at `epoch`, as [`Action::DigestImage`] asked.
    ImageDigest {
        /// The epoch that the image was.
        epoch: Epoch,
        /// The digest.
        digest: Digest,
    },
    /// The arbiter's answer to the question that is asked.
    Answered(Answer),
    /// An operator wants this node to take over although the primary lives.
    TakeOver,
}

/// What the shell must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Take the session that knocked; it replaces any other.
    Welcome(Welcome),
    /// Do not take the session that knocked.
    Refuse(Refusal),
    /// End the session.
    Disconnect {
        /// Why, in words.
        reason: String,
    },
    /// Refuse frames below this term before their body is read.
    Floor(Term),
    /// Send a control message.
    Send(ToPrimary),
    /// Give up image, staged and unapplied epochs.
    Discard,
    /// Apply the seed's chunks below this index, in order.
    ApplySeed {
        /// One past the last.
        chunks: u32,
    },
    /// Staged chunks of this epoch are no longer wanted.
    Unstage {
        /// Which epoch.
        epoch: Epoch,
    },
    /// This epoch is committed: apply it after those before it.
    Apply {
        /// Which epoch.
        epoch: Epoch,
    },
    /// Take the digest of the image once this epoch is applied and before a
    /// later one is.
    DigestImage {
        /// Which epoch.
        epoch: Epoch,
    },
    /// Ask the arbiter. Exactly one answer must come back.
    Ask(Question),
    /// Finish applying, then run the guest as its primary. Nothing follows.
    Promote {
        /// What the register holds.
        register: Register,
        /// The epoch to go on from.
        epoch: Epoch,
    },
    /// For the event log.
    Note(Note),
}

/// What the machine is doing, for a status line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No image, no seed.
    Waiting,
    /// A seed is coming in.
    Seeding,
    /// The image is whole.
    Whole,
    /// The arbiter is asked for a promotion.
    Asking,
    /// The register names this node.
    Promoting,
}
