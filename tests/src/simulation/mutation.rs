//! Bugs that are put in on purpose, to prove that the witness finds them.
//!
//! A mutation sits on a seam of a machine: it changes what the machine is told
//! or what is done with its orders, so that machine and mutation together
//! behave as a machine with that bug would. The crates that are shipped know
//! nothing of it: there is no feature that a build of the whole workspace could
//! turn on by accident, and nothing in them to read past.

use std::fmt;

macro_rules! mutations {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// See the module's head.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutation {
            $($(#[doc = $doc])* $name,)*
        }

        impl Mutation {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What is wrong, in words.
            #[must_use]
            pub fn words(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),*).trim_ascii_start(),)*
                }
            }
        }
    };
}

mutations! {
    /// output is released when its epoch is cut, before anybody has committed it
    ReleaseBeforeCommit,
    /// output is released when the first of several followers has committed it
    ReleaseOnFirstAck,
    /// output passes as soon as the last follower's drop is asked for, not when it is granted
    PassBeforeDropped,
    /// output that the guest emits after the cut is sealed with the epoch before it
    SealAfterResume,
    /// pages are copied after the guest was resumed
    CopyAfterResume,
    /// a backup takes over without asking the arbiter
    PromoteWithoutRegister,
    /// a backup whose name the register counts takes over, whichever image is meant
    PromoteByName,
    /// a backup takes over before everything that it committed is applied
    PromoteHalfApplied,
    /// pages of a checkpoint that failed are not dirty any more
    ForgetFailedCut,
    /// pages that the VMM itself wrote are not in the harvest
    ForgetVmmWrites,
    /// pages that a seed's round harvested are not in the epoch of the other backups
    ForgetSeedersHarvest,
    /// a page that was sent ahead is not sent again when it was written after that
    AheadCopyWins,
    /// a page that was copied before the pause is not copied again when it was written after that
    EarlyCopyWins,
    /// a page that waits to be copied after the pause may be written before it is
    WriteBeforeCopied,
    /// chunks of an epoch are applied with those that were sent ahead last
    AheadAppliedLast,
    /// deltas build on what was sent before, also for a backup that joins
    StaleHistory,
    /// a backup believes frames of a stale term, and their sender takes its image for the one that it seeded
    AcceptStaleTerm,
    /// a backup applies a committed epoch before the one that it follows
    ApplyOutOfOrder,
    /// a backup acknowledges an epoch at its close, whatever has come of it
    AckBeforeDigest,
    /// a backup does not check the digests of chunks
    AcceptDamagedChunk,
    /// a backup goes on acknowledging while it asks for a promotion
    AckWhileAsking,
    /// a process that stood still goes on as if nothing had happened
    SkipDoubt,
    /// a backup is admitted before its first checkpoint is committed
    AdmitBeforeCommit,
    /// a successor's output passes until its first epoch is cut, although others are in sync
    PassAfterHandover,
    /// a former primary's guest runs on a little before it is kept
    RunOnAfterHandover,
    /// a node that has lost the right to run says what it still held
    SpeakWhenFenced,
    /// all processes carry the same stamp
    ReuseStamps,
    /// the arbiter does not compare what the caller expects
    SkipCompare,
    /// the arbiter answers before its register is durable
    AnswerBeforeDurable,
    /// the arbiter's file is durable, but not that it is in place
    SkipFolderFlush,
    /// the register is written over the old one, and falls back to nothing if that was torn
    WriteInPlace,
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}
