//! Asking the arbiter, or one of several with the same registers.
//!
//! What matters about a failure is whether the request may have happened. A
//! node that does not know keeps holding its output and asks again, with the
//! same stamp. So a read goes ahead of every change: an arbiter that does not
//! answer it is not asked to change anything.
//!
//! Several arbiters are asked one after the other, beginning with the one that
//! answered last; who takes its time is listened to all the while, for a late
//! "nothing happened" ends a doubt as well as an outcome does. A copy that was
//! never answered may have happened, whatever the others say of theirs.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arbiter::{NodeId, Outcome, Record, Request, Term, VmId};
use bytes::Bytes;
use thiserror::Error;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::way::{Fault, Way};
use crate::{
    DialError, Endpoint,
    wire::{self, Answer, Ask, Frame, WireError},
};

/// How long one arbiter's answer is waited for before the next arbiter is asked,
/// too, as a part of the request's time.
const TURN_PART: u32 = 4;
/// Between copies to an arbiter on a failing path.
const PAUSE: Duration = Duration::from_millis(20);

/// Why no arbiter gave an answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// The arbiter was not asked.
    #[error("the arbiter was not asked")]
    Unsent {
        /// Why it could not be.
        source: DialError,
    },
    /// The request is beyond the protocol's limits; the arbiter was not asked.
    #[error("the arbiter was not asked")]
    Unsendable(#[from] WireError),
    /// The arbiter was not asked, because it decides about other registers.
    #[error("the arbiter {arbiter} at {address} was not asked: {words}")]
    Foreign {
        /// Whom we did not ask.
        arbiter: NodeId,
        /// Where it is.
        address: SocketAddr,
        /// Why, in words.
        words: String,
    },
    /// The arbiter denies the request: nothing happened, and never will.
    #[error("the arbiter denies the request: {words}")]
    Denied {
        /// Why, in words.
        words: String,
    },
    /// The arbiter's store cannot be asked now: nothing happened.
    #[error("the arbiter {arbiter} at {address} cannot decide now, nothing happened: {words}")]
    Unavailable {
        /// Whom we asked.
        arbiter: NodeId,
        /// Where.
        address: SocketAddr,
        /// Why, in words.
        words: String,
    },
    /// Whether the request happened is not known.
    #[error(
        "the arbiter {arbiter} at {address} gave no usable answer, the request may have happened: {words}"
    )]
    Unknown {
        /// Whom we asked.
        arbiter: NodeId,
        /// Where.
        address: SocketAddr,
        /// What came instead, in words.
        words: String,
    },
}

impl AskError {
    /// Whether the request may have happened.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        match self {
            Self::Unknown { .. } => true,
            Self::Unsent { .. }
            | Self::Unsendable(_)
            | Self::Foreign { .. }
            | Self::Denied { .. }
            | Self::Unavailable { .. } => false,
        }
    }

    /// A read changes nothing, answered or not.
    fn of_a_read(self) -> Self {
        match self {
            Self::Unknown { arbiter, address, words } => {
                Self::Unavailable { arbiter, address, words }
            }
            other => other,
        }
    }
}

/// A node's way to its arbiters. Keeps one connection to each warm.
#[derive(Debug)]
pub struct ArbiterClient {
    endpoint: Arc<Endpoint>,
    ways: Vec<Arc<Way>>,
    /// Who answered last.
    preferred: AtomicUsize,
}

/// What was said instead of an answer, over one request.
#[derive(Debug, Default)]
struct Vain {
    /// Of the last copy that may have happened.
    doubt: Option<AskError>,
    /// Of the last copy, or of the one that was denied.
    last: Option<AskError>,
}

impl Vain {
    fn note(&mut self, error: AskError) {
        if error.may_have_happened() {
            self.doubt = Some(error);
        } else if !matches!(self.last, Some(AskError::Denied { .. })) {
            self.last = Some(error);
        }
    }

    fn into_error(self) -> AskError {
        self.doubt.or(self.last).expect("somebody was asked in vain")
    }
}

impl ArbiterClient {
    /// A client of `arbiters`, by name and address, the nearest first. Dials
    /// when first asked. Several must have the same registers: one that has
    /// others than the first that told is never asked.
    ///
    /// # Panics
    ///
    /// If there is no arbiter.
    #[must_use]
    pub fn new(endpoint: Arc<Endpoint>, arbiters: Vec<(NodeId, SocketAddr)>) -> Self {
        assert!(!arbiters.is_empty(), "a client of no arbiter");
        let registers = (arbiters.len() > 1).then(|| Arc::new(OnceLock::new()));
        let way = |(arbiter, address)| Arc::new(Way::new(arbiter, address, registers.clone()));
        let ways = arbiters.into_iter().map(way).collect();
        Self { endpoint, ways, preferred: AtomicUsize::new(0) }
    }

    /// The record of `vm`.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub async fn load(&self, vm: &VmId) -> Result<Option<Record>, AskError> {
        let answer = self.ask(Term::ZERO, Ask::Load(vm.clone())).await?;
        match answer {
            (_, Answer::Record(record)) => Ok(record),
            (way, other) => Err(unexpected(way, other)),
        }
    }

    /// Asks for a compare-and-set, again and again within the request's time.
    ///
    /// A read goes ahead. Where nobody answers that in time, nothing is asked
    /// for, so a store that is away or an arbiter that stands still leaves no
    /// doubt.
    ///
    /// # Errors
    ///
    /// [`AskError`]; see there what each means for the register.
    pub async fn execute(&self, vm: &VmId, request: &Request) -> Result<Outcome, AskError> {
        self.load(vm).await.map_err(AskError::of_a_read)?;
        let term = request.expected.as_ref().map_or(Term::ZERO, |register| register.term);
        match self.ask(term, Ask::Execute(vm.clone(), request.clone())).await? {
            (_, Answer::Outcome(outcome)) => Ok(outcome),
            (way, other) => Err(unexpected(way, other)),
        }
    }

    /// Every VM that has a register, in the order of their ids.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub async fn list(&self) -> Result<Vec<(VmId, Record)>, AskError> {
        let mut all: Vec<(VmId, Record)> = Vec::new();
        loop {
            let after = all.last().map(|(vm, _)| vm.clone());
            match self.ask(Term::ZERO, Ask::List(after.clone())).await? {
                (_, Answer::Records { records, more }) => {
                    let rises = records.first().is_some_and(|(vm, _)| Some(vm) > after.as_ref());
                    all.extend(records);
                    if !(more && rises) {
                        return Ok(all);
                    }
                }
                (way, other) => return Err(unexpected(way, other)),
            }
        }
    }

    async fn ask(&self, term: Term, ask: Ask) -> Result<(&Way, Answer), AskError> {
        let bytes = Bytes::from(wire::encode(term, &Frame::Ask(ask))?);
        let time = self.endpoint.options().request_timeout;
        let deadline = Instant::now() + time;
        let (first, count) = (self.preferred.load(Ordering::Relaxed), self.ways.len());
        let mut turns: VecDeque<usize> = (first..first + count).map(|turn| turn % count).collect();
        let mut asked = 0;
        let mut next_turn = Instant::now();
        let mut asking = JoinSet::new();
        let mut vain = Vain::default();
        loop {
            let is_more = !turns.is_empty() && next_turn < deadline;
            if asking.is_empty() && !is_more {
                return Err(vain.into_error());
            }
            tokio::select! {
                biased;
                Some(attempted) = asking.join_next() => {
                    let (index, attempted): (usize, _) = attempted.expect("an attempt fell");
                    match attempted {
                        // Another's copy may have happened all the same.
                        Ok(Answer::Denied(words)) => vain.note(AskError::Denied { words }),
                        Ok(answer) => {
                            self.preferred.store(index, Ordering::Relaxed);
                            return Ok((&self.ways[index], answer));
                        }
                        Err(Fault { error, is_final }) => {
                            vain.note(error);
                            turns.extend((!is_final).then_some(index));
                            let pause = if asked < count { Duration::ZERO } else { PAUSE };
                            next_turn = next_turn.min(Instant::now() + pause);
                        }
                    }
                }
                () = sleep_until(next_turn), if is_more => {
                    let index = turns.pop_front().expect("it is not empty");
                    let (way, bytes) = (self.ways[index].clone(), bytes.clone());
                    let endpoint = self.endpoint.clone();
                    asking.spawn(async move {
                        (index, way.attempt(&endpoint, &bytes, deadline).await)
                    });
                    asked += 1;
                    next_turn = Instant::now() + time / TURN_PART;
                }
            }
        }
    }
}

fn unexpected(way: &Way, answer: Answer) -> AskError {
    let kind = Frame::Answer(answer).kind();
    way.unknown(WireError::Unexpected(kind).to_string())
}
