//! Asking the arbiter.
//!
//! What matters about a failure is whether the request may have happened:
//! [`AskError::Unsent`] and [`AskError::Denied`] say that it did not,
//! [`AskError::Unknown`] that it may have. A node that does not know keeps
//! holding its output and asks again, with the same stamp.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arbiter::{NodeId, Outcome, Record, Request, Term, VmId};
use quinn::{Connection, ConnectionError};
use thiserror::Error;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use crate::{
    DialError, Endpoint,
    endpoint::dial_error,
    session::{CloseCode, FrameReader, ReadFault, close},
    wire::{self, Answer, Ask, Frame, WireError},
};

/// How long an answer is waited for before the connection is thought dead and
/// the request repeated on another, as a part of the request's whole time.
const ATTEMPT_PART: u32 = 4;
/// Between attempts on a failing path.
const PAUSE: Duration = Duration::from_millis(20);

/// Why the arbiter gave no answer.
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
    /// The arbiter denies the request: nothing happened, and never will.
    #[error("the arbiter denies the request: {words}")]
    Denied {
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
            Self::Unsent { .. } | Self::Unsendable(_) | Self::Denied { .. } => false,
        }
    }
}

/// A node's way to its arbiter. Keeps one connection warm.
#[derive(Debug)]
pub struct ArbiterClient {
    endpoint: Arc<Endpoint>,
    address: SocketAddr,
    arbiter: NodeId,
    warm: Mutex<Option<Connection>>,
}

/// How one attempt failed.
enum Fault {
    /// Before the request was written.
    Unsent(DialError),
    /// Afterwards.
    Unknown(String),
}

impl ArbiterClient {
    /// A client of `arbiter`, which is at `address`; dials when first asked.
    #[must_use]
    pub fn new(endpoint: Arc<Endpoint>, address: SocketAddr, arbiter: NodeId) -> Self {
        Self { endpoint, address, arbiter, warm: Mutex::new(None) }
    }

    /// The record of `vm`.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub async fn load(&self, vm: &VmId) -> Result<Option<Record>, AskError> {
        match self.ask(Term::ZERO, Ask::Load(vm.clone())).await? {
            Answer::Record(record) => Ok(record),
            other => Err(self.unexpected(other)),
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
            Answer::Outcome(outcome) => Ok(outcome),
            other => Err(self.unexpected(other)),
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
                Answer::Records { records, more } => {
                    let rises = records.first().is_some_and(|(vm, _)| Some(vm) > after.as_ref());
                    all.extend(records);
                    if !(more && rises) {
                        return Ok(all);
                    }
                }
                other => return Err(self.unexpected(other)),
            }
        }
    }

    async fn ask(&self, term: Term, ask: Ask) -> Result<Answer, AskError> {
        let bytes = wire::encode(term, &Frame::Ask(ask))?;
        let time = self.endpoint.options().request_timeout;
        let deadline = Instant::now() + time;
        let mut unknown: Option<String> = None;
        loop {
            let attempt_deadline = deadline.min(Instant::now() + time / ATTEMPT_PART);
            let fault = match self.attempt(&bytes, attempt_deadline, deadline).await {
                Ok(Answer::Denied(words)) => return Err(AskError::Denied { words }),
                Ok(Answer::Failed(words)) => return Err(self.unknown(words)),
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            let out_of_time = Instant::now() + PAUSE >= deadline;
            match fault {
                Fault::Unknown(words) => {
                    if out_of_time {
                        return Err(self.unknown(words));
                    }
                    unknown = Some(words);
                }
                Fault::Unsent(source) if out_of_time || is_final(&source) => {
                    return Err(match unknown {
                        Some(words) => self.unknown(words),
                        None => AskError::Unsent { source },
                    });
                }
                Fault::Unsent(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks once. An answer is waited for until `deadline`, a connection, which
    /// takes longer on a new path, until `dial_deadline`.
    async fn attempt(
        &self,
        bytes: &[u8],
        deadline: Instant,
        dial_deadline: Instant,
    ) -> Result<Answer, Fault> {
        let lost = |error| Fault::Unsent(dial_error(&self.arbiter, self.address, error));
        let connection = timeout_at(dial_deadline, self.connection())
            .await
            .map_err(|_| lost(ConnectionError::TimedOut))?
            .map_err(Fault::Unsent)?;
        let deadline = deadline.max(Instant::now() + PAUSE);
        let (mut asks, answers) = connection.open_bi().await.map_err(lost)?;
        let mut reader = FrameReader::new(answers);
        let exchanged = timeout_at(deadline, async {
            // What was written in part may be sent in full by QUIC.
            asks.write_all(bytes).await.map_err(|_| ReadFault::Lost)?;
            let _ = asks.finish();
            reader.frame().await
        });
        let Ok(answered) = exchanged.await else {
            close(&connection, CloseCode::Silent, "no answer to a request");
            return Err(Fault::Unknown("no answer in time".to_owned()));
        };
        match answered {
            Ok(Some((_, Frame::Answer(answer)))) => return Ok(answer),
            Ok(Some((_, other))) => self.hang_up(&connection, &WireError::Unexpected(other.kind())),
            Ok(None) => {}
            Err(ReadFault::Malformed(error)) => self.hang_up(&connection, &error),
            Err(ReadFault::Lost) => {}
        }
        if let Some(reason) = connection.close_reason() {
            // The certificate of a client is judged after its handshake.
            let error = dial_error(&self.arbiter, self.address, reason);
            return Err(match error {
                DialError::Certificate { .. } => Fault::Unsent(error),
                error => Fault::Unknown(error.to_string()),
            });
        }
        Err(Fault::Unknown("it did not answer this request".to_owned()))
    }

    fn hang_up(&self, connection: &Connection, error: &WireError) {
        tracing::warn!(arbiter = %self.arbiter, %error, "malformed answer");
        close(connection, CloseCode::Malformed, &error.to_string());
    }

    async fn connection(&self) -> Result<Connection, DialError> {
        let mut warm = self.warm.lock().await;
        if let Some(connection) = &*warm
            && connection.close_reason().is_none()
        {
            return Ok(connection.clone());
        }
        let connection = self.endpoint.connect_arbiter(self.address, &self.arbiter).await?;
        *warm = Some(connection.clone());
        Ok(connection)
    }

    fn unexpected(&self, answer: Answer) -> AskError {
        let kind = Frame::Answer(answer).kind();
        self.unknown(WireError::Unexpected(kind).to_string())
    }

    fn unknown(&self, words: String) -> AskError {
        AskError::Unknown { arbiter: self.arbiter.clone(), address: self.address, words }
    }
}

/// Whether dialling again cannot help.
fn is_final(error: &DialError) -> bool {
    match error {
        DialError::Certificate { .. }
        | DialError::Address { .. }
        | DialError::OtherProtocol { .. }
        | DialError::Unsendable(_) => true,
        DialError::Refused { .. }
        | DialError::Unreachable { .. }
        | DialError::Silent { .. }
        | DialError::Closed { .. }
        | DialError::Malformed { .. } => false,
    }
}
