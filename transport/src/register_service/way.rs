//! The way to one arbiter: its connection, and one attempt to ask.
//!
//! A node with several arbiters asks each of them on every new connection which
//! registers it has, before anything else. Two arbiters with registers of their
//! own would grant one VM to two nodes.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arbiter::{NodeId, StoreId, Term};
use quinn::{Connection, ConnectionError};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::client::AskError;
use crate::{
    DialError, Endpoint,
    endpoint::dial_error,
    session::{CloseCode, FrameReader, ReadFault, close},
    wire::{self, Answer, Ask, Frame, WireError},
};

/// The least time that an answer is waited for, however late the dialling.
const ANSWER_TIME_MIN: Duration = Duration::from_millis(20);

/// An arbiter by name and address.
#[derive(Debug)]
pub(super) struct Way {
    arbiter: NodeId,
    address: SocketAddr,
    /// Which registers all arbiters must have, once one has told; `None` with
    /// a single arbiter.
    registers: Option<Arc<OnceLock<StoreId>>>,
    warm: Mutex<Option<Connection>>,
}

/// How one attempt failed.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) error: AskError,
    /// Whether asking this arbiter again soon cannot help.
    pub(super) is_final: bool,
}

impl Fault {
    fn unsent(source: DialError) -> Self {
        let is_final = is_final(&source);
        Self { error: AskError::Unsent { source }, is_final }
    }

    fn passing(error: AskError) -> Self {
        Self { error, is_final: false }
    }

    fn lasting(error: AskError) -> Self {
        Self { error, is_final: true }
    }
}

impl Way {
    pub(super) fn new(
        arbiter: NodeId,
        address: SocketAddr,
        registers: Option<Arc<OnceLock<StoreId>>>,
    ) -> Self {
        Self { arbiter, address, registers, warm: Mutex::new(None) }
    }

    /// Asks once, and has been answered, or not, by `deadline`.
    pub(super) async fn attempt(
        &self,
        endpoint: &Endpoint,
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let connection = timeout_at(deadline, self.connection(endpoint))
            .await
            .unwrap_or_else(|_| Err(self.lost(ConnectionError::TimedOut)))?;
        match self.exchange(&connection, bytes, deadline).await? {
            Answer::Failed(words) => Err(Fault::lasting(self.unknown(words))),
            Answer::Unavailable(words) => Err(Fault::lasting(self.unavailable(words))),
            answer => Ok(answer),
        }
    }

    /// That it answered in a way that leaves open what happened.
    pub(super) fn unknown(&self, words: String) -> AskError {
        AskError::Unknown { arbiter: self.arbiter.clone(), address: self.address, words }
    }

    fn unavailable(&self, words: String) -> AskError {
        AskError::Unavailable { arbiter: self.arbiter.clone(), address: self.address, words }
    }

    fn lost(&self, error: ConnectionError) -> Fault {
        Fault::unsent(dial_error(&self.arbiter, self.address, error))
    }

    async fn connection(&self, endpoint: &Endpoint) -> Result<Connection, Fault> {
        let mut warm = self.warm.lock().await;
        if let Some(connection) = &*warm
            && connection.close_reason().is_none()
        {
            return Ok(connection.clone());
        }
        let connecting = endpoint.connect_arbiter(self.address, &self.arbiter).await;
        let connection = connecting.map_err(Fault::unsent)?;
        if let Some(registers) = &self.registers {
            self.require_same(registers, &connection).await?;
        }
        *warm = Some(connection.clone());
        Ok(connection)
    }

    /// Whatever comes of it, nothing but the question who is there was sent.
    async fn require_same(
        &self,
        registers: &OnceLock<StoreId>,
        connection: &Connection,
    ) -> Result<(), Fault> {
        let question = wire::encode(Term::ZERO, &Frame::Ask(Ask::Identify));
        let question = question.map_err(|error| Fault::lasting(error.into()))?;
        // The attempt's own time bounds this.
        let far = Instant::now() + Duration::from_secs(60);
        let foreign = |words| {
            close(connection, CloseCode::Done, "other registers");
            let arbiter = self.arbiter.clone();
            Err(Fault::lasting(AskError::Foreign { arbiter, address: self.address, words }))
        };
        match self.exchange(connection, &question, far).await {
            Ok(Answer::Registers(StoreId::Own)) => foreign(
                "its registers are its own, and several arbiters must share theirs: configure only this one, or give all of them one etcd cluster"
                    .to_owned(),
            ),
            Ok(Answer::Registers(id)) => {
                let known = registers.get_or_init(|| id);
                if id == *known {
                    return Ok(());
                }
                foreign(format!(
                    "it has the registers {id}, another arbiter has {known}: give all of them the same etcd cluster and prefix"
                ))
            }
            Ok(Answer::Unavailable(words) | Answer::Failed(words) | Answer::Denied(words)) => {
                Err(Fault::lasting(self.unavailable(words)))
            }
            Ok(other @ (Answer::Record(_) | Answer::Records { .. } | Answer::Outcome(_))) => {
                let kind = Frame::Answer(other).kind();
                let words = WireError::Unexpected(kind).to_string();
                Err(Fault::lasting(self.unavailable(words)))
            }
            Err(Fault { error: AskError::Unknown { words, .. }, is_final }) => {
                Err(Fault { error: self.unavailable(words), is_final })
            }
            Err(fault) => Err(fault),
        }
    }

    async fn exchange(
        &self,
        connection: &Connection,
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let deadline = deadline.max(Instant::now() + ANSWER_TIME_MIN);
        let opened = connection.open_bi().await;
        let (mut asks, answers) = opened.map_err(|error| self.lost(error))?;
        let mut reader = FrameReader::new(answers);
        let exchanged = timeout_at(deadline, async {
            // What was written in part may be sent in full by QUIC.
            asks.write_all(bytes).await.map_err(|_| ReadFault::Lost)?;
            let _ = asks.finish();
            reader.frame().await
        });
        let Ok(answered) = exchanged.await else {
            close(connection, CloseCode::Silent, "no answer to a request");
            return Err(Fault::passing(self.unknown("no answer in time".to_owned())));
        };
        match answered {
            Ok(Some((_, Frame::Answer(answer)))) => return Ok(answer),
            Ok(Some((_, other))) => self.hang_up(connection, &WireError::Unexpected(other.kind())),
            Ok(None) => {}
            Err(ReadFault::Malformed(error)) => self.hang_up(connection, &error),
            Err(ReadFault::Lost) => {}
        }
        let Some(reason) = connection.close_reason() else {
            let words = "it did not answer this request".to_owned();
            return Err(Fault::passing(self.unknown(words)));
        };
        // The certificate of a client is judged after its handshake.
        match dial_error(&self.arbiter, self.address, reason) {
            error @ DialError::Certificate { .. } => Err(Fault::unsent(error)),
            error => Err(Fault::passing(self.unknown(error.to_string()))),
        }
    }

    fn hang_up(&self, connection: &Connection, error: &WireError) {
        tracing::warn!(arbiter = %self.arbiter, %error, "malformed answer");
        close(connection, CloseCode::Malformed, &error.to_string());
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
