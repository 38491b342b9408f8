//! A session: one primary and one backup, one VM, one QUIC connection.
//!
//! ```text
//!   primary                                         backup
//!     ControlSender ══ control stream, prioritised ══▶ ┐
//!     DataSender    ══ data streams, 1 to 16 ════════▶ ┴─ BackupReceiver
//!     PrimaryReceiver ◀══ control stream, other way ══════ ControlSender
//! ```
//!
//! Invariants:
//! - control messages arrive in the order in which they were sent, and never
//!   wait for a chunk; chunks arrive in any order;
//! - whoever does not take chunks stops their sender through QUIC's flow
//!   control; no queue grows without bound;
//! - a frame below the term floor is not handed out, and its body is passed
//!   over unread;
//! - a malformed frame ends the session, and both sides are told why.

mod backup;
mod control;
mod frames;
mod primary;

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arbiter::{NodeId, Term};
use quinn::{Connection, ConnectionError, VarInt};
use thiserror::Error;

use crate::wire::WireError;

pub use backup::{BackupReceiver, BackupSession, Incoming};
pub use control::ControlSender;
pub use primary::{DataSender, PrimaryReceiver, PrimarySession};

pub(crate) use frames::{FrameReader, ReadFault};

/// Why a connection was closed, as the other side is told; see
/// `docs/protocol.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum CloseCode {
    Done = 0,
    Refused = 1,
    Malformed = 2,
    Backlog = 3,
    Busy = 4,
    Silent = 5,
}

/// Closes `connection` with a code and words for the other side's operator. One
/// that is closed already keeps its reason.
pub(crate) fn close(connection: &Connection, code: CloseCode, words: &str) {
    if connection.close_reason().is_none() {
        connection.close(VarInt::from_u32(code as u32), words.as_bytes());
    }
}

/// Why a session ended, or something could not be sent in it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SessionError {
    /// The peer sent what the protocol does not know; the session was ended.
    #[error("{peer} sent a malformed frame: are both nodes of the same version?")]
    Malformed {
        /// The other node.
        peer: NodeId,
        /// What was wrong with it.
        source: WireError,
    },
    /// The peer ended the session.
    #[error("{peer} ended the session: {reason}")]
    Closed {
        /// The other node.
        peer: NodeId,
        /// Why, in its words.
        reason: String,
    },
    /// This node ended the session.
    #[error("this node ended the session with {peer}")]
    Ended {
        /// The other node.
        peer: NodeId,
    },
    /// The connection broke.
    #[error("connection to {peer} was lost: check the node and the network")]
    Lost {
        /// The other node.
        peer: NodeId,
        /// How.
        source: ConnectionError,
    },
    /// The peer does not read its control stream; the session was ended.
    #[error("{peer} does not read what it is sent: it may be overloaded or stopped")]
    Backlog {
        /// The other node.
        peer: NodeId,
    },
    /// What was to be sent is beyond the protocol's limits; nothing was sent.
    #[error("cannot send this message")]
    Unsendable(#[from] WireError),
}

/// What a connection measured of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets lost, of those sent.
    pub lost_packets: u64,
    /// UDP payload sent, in bytes.
    pub sent_bytes: u64,
    /// UDP payload received, in bytes.
    pub received_bytes: u64,
    /// UDP payload of the largest packets, in bytes.
    pub mtu_bytes: u16,
    /// Frames refused for their stale term.
    pub stale_frames: u64,
}

/// A handle to a session's connection; clones are the same one.
#[derive(Debug, Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connection: Connection,
    peer: NodeId,
    cause: OnceLock<SessionError>,
    floor: AtomicU64,
    stale_frames: AtomicU64,
}

impl Link {
    pub(crate) fn new(connection: Connection, peer: NodeId, floor: Term) -> Self {
        let shared = Shared {
            connection,
            peer,
            cause: OnceLock::new(),
            floor: AtomicU64::new(floor.get()),
            stale_frames: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The node at the other end, as its certificate says.
    #[must_use]
    pub fn peer(&self) -> &NodeId {
        &self.shared.peer
    }

    /// Where the other node is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.connection.remote_address()
    }

    /// What the connection measured of itself.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let stats = self.shared.connection.stats();
        Stats {
            rtt: stats.path.rtt,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            mtu_bytes: stats.path.current_mtu,
            stale_frames: self.shared.stale_frames.load(Ordering::Relaxed),
        }
    }

    /// Ends the session at once; what is still queued is not sent. The peer is
    /// told `reason`. See [`ControlSender::finish`] for having all sent first.
    pub fn close(&self, reason: &str) {
        let ended = SessionError::Ended { peer: self.peer().clone() };
        self.end(ended, CloseCode::Done, reason);
    }

    /// Waits until the session has ended, and says why.
    pub async fn closed(&self) -> SessionError {
        self.shared.connection.closed().await;
        self.error()
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.shared.connection
    }

    /// Ends the session because of `cause`, unless it has ended already.
    fn end(&self, cause: SessionError, code: CloseCode, words: &str) {
        // A connection that is lost already has its own reason.
        if self.shared.connection.close_reason().is_none() {
            let _ = self.shared.cause.set(cause);
        }
        close(&self.shared.connection, code, words);
    }

    /// Ends the session because the peer sent something malformed.
    pub(crate) fn end_malformed(&self, source: WireError) {
        tracing::warn!(peer = %self.peer(), error = %source, "malformed frame");
        let words = source.to_string();
        let cause = SessionError::Malformed { peer: self.peer().clone(), source };
        self.end(cause, CloseCode::Malformed, &words);
    }

    fn end_backlog(&self) {
        let cause = SessionError::Backlog { peer: self.peer().clone() };
        self.end(cause, CloseCode::Backlog, "control messages are not read");
    }

    /// The peer has said all that it had to say.
    fn end_finished(&self) {
        let reason = "it has nothing more to say".to_owned();
        let cause = SessionError::Closed { peer: self.peer().clone(), reason };
        self.end(cause, CloseCode::Done, "finished");
    }

    /// Acts on a fault of reading.
    fn end_faulty(&self, fault: ReadFault) {
        match fault {
            ReadFault::Malformed(source) => self.end_malformed(source),
            ReadFault::Lost => self.end_finished(),
        }
    }

    /// What is queued now would never be sent, if the session has ended.
    fn require_open(&self) -> Result<(), SessionError> {
        match self.shared.connection.close_reason() {
            None => Ok(()),
            Some(_) => Err(self.error()),
        }
    }

    /// Why the session has ended.
    pub(crate) fn error(&self) -> SessionError {
        let peer = self.peer().clone();
        if let Some(cause) = self.shared.cause.get() {
            return cause.clone();
        }
        match self.shared.connection.close_reason() {
            Some(ConnectionError::ApplicationClosed(close)) => {
                SessionError::Closed { peer, reason: words_of(&close.reason) }
            }
            Some(ConnectionError::LocallyClosed) => SessionError::Ended { peer },
            Some(source) => SessionError::Lost { peer, source },
            None => SessionError::Closed { peer, reason: "its stream ended".to_owned() },
        }
    }

    fn is_stale(&self, term: Term) -> bool {
        let stale = term.get() < self.shared.floor.load(Ordering::Acquire);
        if stale {
            self.shared.stale_frames.fetch_add(1, Ordering::Relaxed);
        }
        stale
    }
}

/// The lowest term whose frames are handed out; clones are the same one.
#[derive(Debug, Clone)]
pub struct TermFloor {
    link: Link,
}

impl TermFloor {
    pub(crate) fn of(link: &Link) -> Self {
        Self { link: link.clone() }
    }

    /// Raises the floor to `term`; it never falls. Once this has returned, no
    /// frame below it is handed out, not even one that came before.
    pub fn raise(&self, term: Term) {
        self.link.shared.floor.fetch_max(term.get(), Ordering::AcqRel);
    }

    /// The floor.
    #[must_use]
    pub fn get(&self) -> Term {
        Term::new(self.link.shared.floor.load(Ordering::Acquire))
    }
}

/// A peer's words, made harmless for a terminal.
pub(crate) fn words_of(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "it gave no reason".to_owned();
    }
    let text = String::from_utf8_lossy(bytes);
    text.chars().filter(|character| !character.is_control()).take(512).collect()
}
