//! What an operator wants to read in the event log.

use std::{fmt, time::Duration};

use arbiter::{NodeId, Register, Term};

use crate::Epoch;

/// Something that happened, worth a line. [`fmt::Display`] writes that line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the lines of `Display` say what each one means")]
pub enum Note {
    BackupConnected { backup: NodeId },
    BackupLost { backup: NodeId },
    BackupSilent { backup: NodeId, millis: u64 },
    BackupRefused { backup: NodeId, why: String },
    BackupOutdated { backup: NodeId },
    BackupLags { backup: NodeId, epoch: Epoch, since: Duration, alone: Duration },
    SeedBegun { backup: NodeId },
    SeedResent { backup: NodeId, chunks: usize },
    SeedStuck { backup: NodeId, millis: u64 },
    Joining { backup: NodeId, epoch: Epoch },
    Resumed { backup: NodeId, after: Epoch, resent: usize },
    Admitted { backup: NodeId, term: Term },
    Dropped { backup: NodeId, term: Term, solo: bool },
    ChunksResent { backup: NodeId, epoch: Epoch, chunks: usize },
    StaleFrame { peer: NodeId, term: Term },
    Doubt { millis: u64 },
    DoubtResolved,
    ArbiterUnreachable,
    ArbiterRefused { why: String },
    ArbiterForgot { known: Term, found: Option<Register> },
    GuestHeld { bytes: u64 },
    GuestSlowed { epochs: usize },
    GuestFreed,
    CutFailed { epoch: Epoch, why: String },
    HandOverBegun { to: NodeId },
    HandOverAborted { to: NodeId, why: String },
    HandedOver { to: NodeId, term: Term },
    GoesOnUnder { primary: NodeId, term: Term },
    PrimaryConnected { primary: NodeId, term: Term },
    PrimaryLost { primary: NodeId },
    PrimarySilent { primary: NodeId, millis: u64 },
    PrimaryRefused { primary: NodeId, why: String },
    SeedReceiving { primary: NodeId },
    ImageComplete { epoch: Epoch },
    InSync { term: Term },
    ChunkRefused { epoch: Epoch, index: u32 },
    EpochRefused { epoch: Epoch },
    ImageBroken { why: String },
    Asking { committed: Epoch },
    NotPromoted { register: Register, namesake: bool },
    SuccessorOf { primary: NodeId },
    HandOverRefuted { register: Register },
    Promoting { register: Register, epoch: Epoch },
    StoodDown { why: String },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BackupConnected { backup } => write!(f, "backup {backup} is connected"),
            Self::BackupLost { backup } => write!(f, "the connection to backup {backup} is lost"),
            Self::BackupSilent { backup, millis } => {
                write!(
                    f,
                    "backup {backup} has been silent for {millis} ms: asking to go on without it"
                )
            }
            Self::BackupRefused { backup, why } => write!(f, "backup {backup} refused: {why}"),
            Self::BackupOutdated { backup } => {
                write!(f, "backup {backup} has lost its image: asking to drop it and seed it again")
            }
            Self::BackupLags { backup, epoch, since, alone } => {
                write!(
                    f,
                    "backup {backup} speaks, but got nothing done for {} ms though more than epoch {epoch} waits for it: asking to go on without it; it is seeded again after {:.1} s",
                    since.as_millis(),
                    alone.as_secs_f64()
                )
            }
            Self::SeedBegun { backup } => write!(f, "seeding backup {backup}"),
            Self::SeedResent { backup, chunks } => {
                write!(
                    f,
                    "backup {backup} lacked {chunks} chunks of its seed: their pages go again"
                )
            }
            Self::SeedStuck { backup, millis } => {
                write!(
                    f,
                    "nothing of the seed went on at backup {backup} for {millis} ms: seeding it again"
                )
            }
            Self::Joining { backup, epoch } => {
                write!(f, "backup {backup} joins with epoch {epoch}; output is held from here on")
            }
            Self::Resumed { backup, after, resent } => {
                write!(f, "backup {backup} goes on after epoch {after}: {resent} epochs sent again")
            }
            Self::Admitted { backup, term } => {
                write!(f, "backup {backup} is in sync as of term {term}: the guest is protected")
            }
            Self::Dropped { backup, term, solo: true } => {
                write!(
                    f,
                    "backup {backup} is dropped as of term {term}: solo, the guest is not protected"
                )
            }
            Self::Dropped { backup, term, solo: false } => {
                write!(f, "backup {backup} is dropped as of term {term}")
            }
            Self::ChunksResent { backup, epoch, chunks } => {
                write!(f, "backup {backup} lacked {chunks} chunks of epoch {epoch}: sent again")
            }
            Self::StaleFrame { peer, term } => {
                write!(f, "a frame of stale term {term} from {peer} was refused")
            }
            Self::Doubt { millis } => {
                write!(
                    f,
                    "this process stood still for {millis} ms: no held output is released before its right to run is confirmed"
                )
            }
            Self::DoubtResolved => f.write_str("the right to run is confirmed"),
            Self::ArbiterUnreachable => f.write_str("the arbiter does not answer: asking again"),
            Self::ArbiterRefused { why } => write!(f, "the arbiter refused: {why}"),
            Self::ArbiterForgot { known, found: Some(register) } => {
                write!(
                    f,
                    "the arbiter's register went back ({register}) though term {known} is known: it is not believed"
                )
            }
            Self::ArbiterForgot { known, found: None } => {
                write!(
                    f,
                    "the arbiter has no register though term {known} is known: it is not believed"
                )
            }
            Self::GuestHeld { bytes } => {
                write!(f, "{bytes} bytes of output wait for a commit: the guest is paused")
            }
            Self::GuestSlowed { epochs } => {
                write!(f, "backups lag by {epochs} epochs: the guest is paused until there is room")
            }
            Self::GuestFreed => f.write_str("the backups have caught up: the guest runs again"),
            Self::CutFailed { epoch, why } => {
                write!(f, "the checkpoint of epoch {epoch} failed and is tried again: {why}")
            }
            Self::HandOverBegun { to } => write!(f, "handing over to {to}: the guest is paused"),
            Self::HandOverAborted { to, why } => {
                write!(f, "the handover to {to} is given up ({why}): the guest runs on here")
            }
            Self::GoesOnUnder { primary, term } => {
                write!(f, "the guest is {primary}'s as of term {term}: its image is kept")
            }
            Self::HandedOver { to, term } => write!(f, "{to} is primary as of term {term}"),
            Self::PrimaryConnected { primary, term } => {
                write!(f, "primary {primary} is connected, term {term}")
            }
            Self::PrimaryLost { primary } => {
                write!(f, "the connection to primary {primary} is lost")
            }
            Self::PrimarySilent { primary, millis } => {
                write!(f, "primary {primary} has been silent for {millis} ms")
            }
            Self::PrimaryRefused { primary, why } => {
                write!(f, "primary {primary} was refused: {why}")
            }
            Self::SeedReceiving { primary } => write!(f, "receiving a seed from {primary}"),
            Self::ImageComplete { epoch } => write!(f, "the image is whole as of epoch {epoch}"),
            Self::InSync { term } => write!(f, "in sync as of term {term}"),
            Self::ChunkRefused { epoch, index } => {
                write!(f, "chunk {index} of epoch {epoch} was refused: asked for again")
            }
            Self::EpochRefused { epoch } => {
                write!(f, "the digest of epoch {epoch} does not match: the session is begun again")
            }
            Self::ImageBroken { why } => {
                write!(f, "the image is given up, the primary will seed it again: {why}")
            }
            Self::Asking { committed } => {
                write!(
                    f,
                    "asking the arbiter for a promotion at epoch {committed}; nothing is acknowledged any more"
                )
            }
            Self::NotPromoted { register, namesake: false } => {
                write!(f, "not promoted, the register holds: {register}; the image is given up")
            }
            Self::NotPromoted { register, namesake: true } => {
                write!(
                    f,
                    "not promoted, the register counts on another process of this node's name: {register}; the image is given up"
                )
            }
            Self::SuccessorOf { primary } => {
                write!(
                    f,
                    "{primary} says that it has handed the guest over to this node: asking the arbiter"
                )
            }
            Self::HandOverRefuted { register } => {
                write!(f, "no handover to this node has happened, the register holds: {register}")
            }
            Self::Promoting { register, epoch } => {
                write!(f, "promoted at epoch {epoch}: {register}")
            }
            Self::StoodDown { why } => write!(f, "the guest has ended ({why}): standing down"),
        }
    }
}
