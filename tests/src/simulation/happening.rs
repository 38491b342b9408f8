//! Everything that can happen, in one list.
//!
//! Each names whom it happens to. What happens to a process that has died since
//! it was planned does not happen; what happens to one that stands still waits.

use arbiter::Term;
use checkpoint::{Epoch, chunk::Chunk};

use super::{
    guest::{Reply, Request},
    network::{Pipe, SessionId, Side},
    primary::Published,
};

/// A process of a host, in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ProcessId {
    pub(super) host: u8,
    pub(super) life: u32,
}

/// A chunk that a backup's session has read.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) session: u64,
    pub(super) term: Term,
    pub(super) chunk: Chunk,
}

/// To and from the arbiter.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) from: ProcessId,
    pub(super) ask: u32,
    pub(super) octets: Vec<u8>,
}

/// See the module's head.
#[derive(Debug)]
pub(super) enum Happening {
    /// A machine's timeout.
    Wake,
    /// The core thread gets time again.
    StallOver,
    /// The guest does a step.
    GuestWorks,
    /// The outlet looks at its queue again.
    Drain,
    /// The cutter takes its next order.
    Cutter,
    /// Pages may be sent ahead of the end of this epoch.
    Ahead(Epoch),
    /// Pages that were taken before a pause are copied.
    TakenCopied,
    /// The copier takes the next pages.
    Copy,
    /// An encoder takes the next group.
    Encode,
    /// An encoder has finished a chunk.
    Publish(Box<Published>),
    /// A seed's thread goes on.
    SeedStep(u32),
    /// A peer is dialed.
    Dial(u32),
    /// A handshake has taken too long.
    DialGivesUp(SessionId),
    /// A decoder takes a chunk.
    Decode(Box<Arrival>),
    /// The applier has finished an order.
    Applied,
    /// A question is put to the arbiter, again or for the first time.
    AskAttempt(u32),
    /// The arbiter's answer.
    Answered(u32, Vec<u8>),
    /// A claim is made again.
    Claim,
    /// The process goes on in another role, or ends.
    NextRole,
}

/// What happens to the world.
#[derive(Debug)]
pub(super) enum WorldHappening {
    /// To a process.
    Process(ProcessId, Happening),
    /// A frame has come.
    Deliver(SessionId, Pipe),
    /// One end of a session finds that it is over.
    Lost(SessionId, Side),
    /// Whether a session has outlived its idle timeout.
    IdleCheck(SessionId),
    /// Something goes wrong, and will again.
    Fault(usize),
    /// A process goes on.
    Thaw(ProcessId),
    /// A host's process is started.
    Start(u8),
    /// A request reaches the arbiter.
    Asked(Box<Letter>),
    /// The arbiter is started.
    ArbiterStart,
    /// No more faults.
    Heal,
    /// An operator looks after everything.
    OperatorLooks,
    /// A client asks, or asks again.
    ClientAsks(u8),
    /// A request reaches a host's tap.
    Request(u8, Request),
    /// A reply reaches a client.
    Reply(Reply),
}

impl WorldHappening {
    /// A number for the journal's digest.
    pub(super) fn number(&self) -> u64 {
        let of_process = |process: &ProcessId, kind: u64| {
            kind | u64::from(process.host) << 8 | u64::from(process.life) << 16
        };
        match self {
            Self::Process(process, happening) => of_process(process, happening.number()),
            Self::Deliver(session, _) => 0x3e | session.number() << 16,
            Self::Lost(session, _) => 0x3f | session.number() << 16,
            Self::IdleCheck(session) => 0x40 | session.number() << 16,
            Self::Fault(index) => 0x41 | (*index as u64) << 16,
            Self::Thaw(process) => of_process(process, 0x42),
            Self::Start(host) => 0x43 | u64::from(*host) << 8,
            Self::Asked(letter) => of_process(&letter.from, 0x44),
            Self::ArbiterStart => 0x45,
            Self::Heal => 0x47,
            Self::OperatorLooks => 0x48,
            Self::ClientAsks(client) => 0x49 | u64::from(*client) << 8,
            Self::Request(host, request) => 0x4a | u64::from(*host) << 8 | request.number << 16,
            Self::Reply(reply) => 0x4b | reply.number << 16,
        }
    }
}

impl Happening {
    fn number(&self) -> u64 {
        match self {
            Self::Wake => 1,
            Self::StallOver => 2,
            Self::GuestWorks => 3,
            Self::Drain => 4,
            Self::Cutter => 5,
            Self::Ahead(_) => 6,
            Self::TakenCopied => 7,
            Self::Encode => 8,
            Self::Publish(_) => 9,
            Self::SeedStep(_) => 10,
            Self::Dial(_) => 11,
            Self::DialGivesUp(_) => 12,
            Self::Decode(_) => 13,
            Self::Applied => 14,
            Self::AskAttempt(_) => 15,
            Self::Answered(..) => 16,
            Self::Claim => 17,
            Self::NextRole => 18,
            Self::Copy => 19,
        }
    }
}
