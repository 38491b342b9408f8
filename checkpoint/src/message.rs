//! What primary and backup say to each other, as meaning; `transport` spells it.
//!
//! Messages go over one ordered control stream per session; [`Chunk`]s go over
//! data streams beside it. Every frame carries the sender's term.
//!
//! ```text
//!   primary                                             backup
//!     │ ── Hello ──────────────────────────────────────▶ │
//!     │ ◀───────────────────────────── Welcome / Refusal │
//!     │ ── BeginSeed, seed chunks ─────────────────────▶ │  guest runs on
//!     │ ◀─────────────────────────────────────── SeedAck │
//!     │ ── chunks, Close (joining) ────────────────────▶ │  first checkpoint
//!     │ ◀─────────────────────────────────────────── Ack │  ─▶ arbiter: admit
//!     │ ── Membership ─────────────────────────────────▶ │  in sync
//!     │ ── chunks, Close ──────────────────────────────▶ │  epoch after epoch
//!     │ ◀─────────────────────────────────── Ack or Nack │
//!     │ ── HandOver or Farewell ───────────────────────▶ │
//! ```
//!
//! [`Chunk`]: crate::chunk::Chunk

use std::fmt;

use arbiter::{ImageId, Register, Term, VmId};

pub use crate::shape::{Machine, Trait, Traits, difference};
use crate::{Epoch, chunk::Digest};

/// Most chunk indices in one [`ToPrimary::Nack`].
pub const NACK_CHUNKS_MAX: usize = 1024;

/// What must agree before a guest is touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Protocol versions that the primary speaks, newest first.
    pub versions: Vec<String>,
    /// The VM of this session.
    pub vm: VmId,
    /// The shape of the machine.
    pub machine: Machine,
}

/// The backup takes the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The protocol version of this session: the newest that both speak.
    pub version: String,
    /// The image that the backup holds, if it is whole.
    pub image: Option<HeldImage>,
    /// Largest epoch that the backup stages, in bytes of page content.
    pub staging_bytes_max: u64,
}

/// A whole image of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldImage {
    /// As the primary named it that seeded it, or that handed its guest over
    /// and stands by with it.
    pub id: ImageId,
    /// The committed epoch that it is.
    pub committed: Epoch,
}

/// The backup does not take the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No protocol version in common.
    Version {
        /// What the backup speaks, newest first.
        spoken: Vec<String>,
    },
    /// The machines differ, or the VM is another one.
    Machine {
        /// What differs, in words for an operator.
        difference: String,
    },
    /// The caller's term is stale: it may have lost the right to run.
    Stale {
        /// The highest term that the backup knows.
        current: Term,
    },
    /// The backup is taking over, or has.
    Promoting,
    /// The backup is shutting down or cannot serve.
    Unready {
        /// Why, in words for an operator.
        reason: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { spoken } => {
                write!(f, "no protocol version in common, it speaks {}", spoken.join(", "))
            }
            Self::Machine { difference } => f.write_str(difference),
            Self::Stale { current } => {
                write!(f, "the term of this node is stale, term {current} is known")
            }
            Self::Promoting => f.write_str("it is taking over"),
            Self::Unready { reason } => f.write_str(reason),
        }
    }
}

/// The message that ends an epoch on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// The epoch that ends.
    pub epoch: Epoch,
    /// `Some(n)`: this epoch joins onto a seed of `n` chunks; `None`: it
    /// follows the epoch before it.
    pub seed_chunks: Option<u32>,
    /// How many chunks the epoch has, indices `0..chunks`.
    pub chunks: u32,
    /// How many pages are in them.
    pub pages: u64,
    /// BLAKE3 over the chunks' digests in the order of their indices.
    pub digest: Digest,
}

/// From the primary, on the control stream, after the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToBackup {
    /// The primary lives. The backup answers at once with the same number.
    Heartbeat {
        /// Rises with every heartbeat of a session.
        ping: u64,
    },
    /// A seed begins: forget the image.
    BeginSeed {
        /// What the register will call the one that begins.
        image: ImageId,
    },
    /// An epoch is whole.
    Close(Close),
    /// The register changed by the primary's hand.
    Membership(Register),
    /// The register names another primary now: this backup, or one that it
    /// stands by for from now on with the image that it has. The guest is paused
    /// on this side, and everything up to `epoch` is committed.
    HandOver {
        /// The last epoch of the old primary.
        epoch: Epoch,
        /// The register, with the backup as primary or in sync.
        register: Register,
    },
    /// Tell the digest of the image at this epoch, which is about to be closed.
    Verify {
        /// Which epoch.
        epoch: Epoch,
    },
    /// The guest has ended by itself or by its operator: stand down.
    Farewell {
        /// Why, in words for an operator.
        reason: String,
    },
}

/// From the backup, on the control stream, after the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToPrimary {
    /// The backup lives, and has not asked for a promotion.
    Heartbeat {
        /// The last ping heard.
        pong: u64,
        /// Chunks that its process has staged, and epochs that it has applied:
        /// the number changes while it gets on.
        steps: u64,
    },
    /// So many seed chunks, from index 0 without a gap, are verified.
    SeedAck {
        /// How many.
        chunks: u32,
    },
    /// Everything up to `committed` would be in a promotion.
    Ack {
        /// The last committed epoch.
        committed: Epoch,
        /// The last epoch that is in the image.
        applied: Epoch,
    },
    /// The digest that was asked for.
    Verified {
        /// The epoch that the image was.
        epoch: Epoch,
        /// BLAKE3 over all of guest memory, regions rising.
        digest: Digest,
    },
    /// These chunks of the epoch are damaged or did not come: send them again.
    Nack {
        /// Which epoch; [`Epoch::ZERO`] for the seed.
        epoch: Epoch,
        /// Which chunks, at most [`NACK_CHUNKS_MAX`].
        chunks: Vec<u32>,
    },
}
