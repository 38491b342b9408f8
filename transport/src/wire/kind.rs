//! The kinds of frames, their codes and the longest body of each.

use std::fmt;

use checkpoint::{chunk::BODY_BYTES_MAX, message::NACK_CHUNKS_MAX};

use super::{WireError, chunk::CHUNK_HEAD_BYTES};

/// Room for a register with as many members as it may have, an id or two and
/// words for an operator.
const SMALL_BYTES_MAX: u32 = 8 << 10;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $words:literal, $max:expr;)*) => {
        /// What a frame is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            /// Every kind, by rising code.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The code that stands for it in a header.
            #[must_use]
            pub const fn code(self) -> u8 {
                match self {
                    $(Self::$name => $code,)*
                }
            }

            /// The kind that `code` stands for.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The longest body of a frame of this kind, in bytes.
            #[must_use]
            pub const fn body_bytes_max(self) -> u32 {
                match self {
                    $(Self::$name => $max,)*
                }
            }
        }

        impl fmt::Display for Kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $words,)*
                })
            }
        }
    };
}

kinds! {
    /// The primary asks for a session.
    Hello = 0x01, "hello", 256 << 10;
    /// The backup takes it.
    Welcome = 0x02, "welcome", 128;
    /// The backup does not.
    Refusal = 0x03, "refusal", SMALL_BYTES_MAX;
    /// The primary lives.
    PrimaryHeartbeat = 0x10, "primary's heartbeat", 8;
    /// A seed begins.
    BeginSeed = 0x11, "begin-seed", 8;
    /// An epoch is whole.
    Close = 0x12, "close", 57;
    /// The register changed.
    Membership = 0x13, "membership", SMALL_BYTES_MAX;
    /// The backup is primary now.
    HandOver = 0x14, "hand-over", SMALL_BYTES_MAX;
    /// The guest has ended.
    Farewell = 0x15, "farewell", SMALL_BYTES_MAX;
    /// The digest of the image at an epoch is wanted.
    Verify = 0x16, "verify", 8;
    /// The backup lives.
    BackupHeartbeat = 0x20, "backup's heartbeat", 16;
    /// Seed chunks are verified.
    SeedAck = 0x21, "seed-ack", 4;
    /// Epochs are committed.
    Ack = 0x22, "ack", 16;
    /// Chunks are missing or damaged.
    Nack = 0x23, "nack", 10 + 4 * NACK_CHUNKS_MAX as u32;
    /// The digest of the image at an epoch.
    Verified = 0x24, "verified", 40;
    /// A part of an epoch or a seed.
    Chunk = 0x30, "chunk", CHUNK_HEAD_BYTES as u32 + BODY_BYTES_MAX as u32;
    /// To the arbiter: what is the record of a VM?
    Load = 0x40, "load", 64;
    /// To the arbiter: a compare-and-set.
    Execute = 0x41, "execute", SMALL_BYTES_MAX;
    /// To the arbiter: which VMs are there?
    List = 0x42, "list", 65;
    /// To the arbiter: which registers does it have?
    Identify = 0x43, "identify", 0;
    /// From the arbiter: the record of a VM.
    Record = 0x50, "record", SMALL_BYTES_MAX;
    /// From the arbiter: how a compare-and-set ended.
    Outcome = 0x51, "outcome", SMALL_BYTES_MAX;
    /// From the arbiter: some VMs and their records.
    Records = 0x52, "records", 1 << 20;
    /// From the arbiter: that request will never be granted.
    Denied = 0x53, "denied", SMALL_BYTES_MAX;
    /// From the arbiter: its store failed.
    Failed = 0x54, "failed", SMALL_BYTES_MAX;
    /// From the arbiter: its store cannot be asked now; nothing happened.
    Unavailable = 0x55, "unavailable", SMALL_BYTES_MAX;
    /// From the arbiter: which registers it has.
    Registers = 0x56, "registers", 9;
}

impl Kind {
    /// Checks the length of a body against this kind's limit.
    pub(super) fn require_fits(self, bytes: u64) -> Result<u32, WireError> {
        let max = self.body_bytes_max();
        match u32::try_from(bytes) {
            Ok(fitting) if fitting <= max => Ok(fitting),
            _ => Err(WireError::TooLong { kind: self, bytes, max }),
        }
    }
}
