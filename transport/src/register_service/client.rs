//! Asking the arbiter, or one of several with the same registers.
//!
//! What matters about a failure is whether the request may have happened. A
//! node that does not know keeps holding its output and asks again, with the
//! same stamp.
//!
//! Several arbiters are asked one after the other, beginning with the one that
//! answered last. A copy that went to one of them and was not answered may have
//! happened, whatever the others say of theirs: only an outcome ends the doubt.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arbiter::{NodeId, Outcome, Record, Request, Term, VmId};
use thiserror::Error;
use tokio::time::Instant;

use super::way::{Fault, Way};
use crate::{
    DialError, Endpoint,
    wire::{self, Answer, Ask, Frame, WireError},
};

/// How long one arbiter's answer is waited for before the connection is thought
/// dead and the request repeated on another, as a part of the request's time.
const ATTEMPT_PART: u32 = 4;
/// Between rounds on failing paths.
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
}

/// A node's way to its arbiters. Keeps one connection to each warm.
#[derive(Debug)]
pub struct ArbiterClient {
    endpoint: Arc<Endpoint>,
    ways: Vec<Way>,
    /// Who answered last.
    preferred: AtomicUsize,
}

/// What was said instead of an answer, over one request.
#[derive(Debug, Default)]
struct Vain {
    /// Of the last copy that may have happened.
    doubt: Option<AskError>,
    /// Of the last copy.
    last: Option<AskError>,
}

impl Vain {
    fn note(&mut self, error: AskError) {
        if error.may_have_happened() {
            self.doubt = Some(error);
        } else {
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
        let way = |(arbiter, address)| Way::new(arbiter, address, registers.clone());
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
    /// # Errors
    ///
    /// [`AskError`]; see there what each means for the register.
    pub async fn execute(&self, vm: &VmId, request: &Request) -> Result<Outcome, AskError> {
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
        let bytes = wire::encode(term, &Frame::Ask(ask))?;
        let time = self.endpoint.options().request_timeout;
        let deadline = Instant::now() + time;
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.ways.len();
        let mut vain = Vain::default();
        let mut given_up = vec![false; count];
        for turn in 0.. {
            let index = (first + turn) % count;
            if !given_up[index] {
                let way = &self.ways[index];
                let part = deadline.min(Instant::now() + time / ATTEMPT_PART);
                // A new path takes longer; with others to try it is not waited for.
                let dial_deadline = if count == 1 { deadline } else { part };
                match way.attempt(&self.endpoint, &bytes, part, dial_deadline).await {
                    Ok(Answer::Denied(words)) => return Err(AskError::Denied { words }),
                    Ok(answer) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Ok((way, answer));
                    }
                    Err(Fault { error, is_final }) => {
                        given_up[index] = is_final;
                        vain.note(error);
                    }
                }
            }
            let out_of_time = Instant::now() + PAUSE >= deadline;
            if out_of_time || given_up.iter().all(|given_up| *given_up) {
                break;
            }
            if turn % count == count - 1 {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Err(vain.into_error())
    }
}

fn unexpected(way: &Way, answer: Answer) -> AskError {
    let kind = Frame::Answer(answer).kind();
    way.unknown(WireError::Unexpected(kind).to_string())
}
