//! What the control API asks of a daemon's core.
//!
//! ```text
//!   HTTP handler ── ControlRequest (bounded channel) ──▶ core
//!        ▲                                                │
//!        └──────────── oneshot reply ◀────────────────────┘
//! ```
//!
//! The core may be a blocking thread (`blocking_recv`, `try_recv`) or a task. It
//! answers quickly, with [`Accepted`] for what takes long; only a handover and a
//! comparison of memory are answered at their end. A request whose reply
//! is dropped is answered to the operator as 503.

use std::net::SocketAddr;

use arbiter::NodeId;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::types::{Accepted, EventKind, Severity, Status, Typed, VerifyReport};
use crate::telemetry::EventLog;

/// Requests that wait for the core at most; more are refused with 503.
pub const WAITING_MAX: usize = 16;

/// Where the core puts its answer. Sending never blocks.
pub type Reply<T> = oneshot::Sender<Result<T, Refused>>;

/// What the daemon's core receives from.
pub type ControlRequests = mpsc::Receiver<ControlRequest>;

/// One thing that an operator wants.
#[derive(Debug)]
pub enum ControlRequest {
    /// How is the VM?
    Status(Reply<Status>),
    /// Hand over to a backup, by plan and without loss; or, of a backup, take
    /// over.
    Failover {
        /// To whom; `None`: the best in sync.
        to: Option<NodeId>,
        /// Whether a backup is to take over although its primary may live.
        take_over: bool,
        /// Answered when it is done, or given up. By a backup that is to take
        /// over although its primary lives: when the arbiter is asked.
        reply: Reply<Accepted>,
    },
    /// Take a backup.
    Protect {
        /// Which; `None`: every configured peer.
        backup: Option<NodeId>,
        /// Where it listens, if not as configured.
        address: Option<SocketAddr>,
        /// Answered when the seeding has begun.
        reply: Reply<Accepted>,
    },
    /// Let a backup go.
    Unprotect {
        /// Which; `None`: all.
        backup: Option<NodeId>,
        /// Answered when the arbiter has been asked.
        reply: Reply<Accepted>,
    },
    /// Compare memory on all sides.
    Verify(Reply<VerifyReport>),
    /// Bytes for the guest's console.
    ConsoleInput {
        /// As typed.
        bytes: Vec<u8>,
        /// Answered when the console has taken what it has room for.
        reply: Reply<Typed>,
    },
    /// Shut the guest down: press its power button, or turn it off.
    Shutdown {
        /// Turn it off without asking it.
        force: bool,
        /// Answered when the button is pressed, or the end has begun.
        reply: Reply<Accepted>,
    },
    /// End the process in good order: an operator's `/stop`, or a signal.
    Stop {
        /// Who wants it, for the log.
        reason: String,
        /// Answered when the end has begun.
        reply: Reply<Accepted>,
    },
}

impl ControlRequest {
    /// Records what an operator wants, unless it is only to look or to type.
    pub fn record(&self, events: &EventLog) {
        let named = |node: &Option<NodeId>| node.as_ref().map_or("any".into(), NodeId::to_string);
        let text = match self {
            Self::Status(_) | Self::ConsoleInput { .. } => return,
            Self::Failover { to, take_over, .. } => {
                let how = if *take_over { ", take over" } else { "" };
                format!("failover (to: {}{how})", named(to))
            }
            Self::Protect { backup, .. } => format!("protect (backup: {})", named(backup)),
            Self::Unprotect { backup, .. } => format!("unprotect (backup: {})", named(backup)),
            Self::Verify(_) => "verify".to_owned(),
            Self::Shutdown { force, .. } => format!("shutdown (force: {force})"),
            Self::Stop { reason, .. } => format!("stop ({reason})"),
        };
        events.record(Severity::Info, EventKind::CommandReceived, text, serde_json::Value::Null);
    }
}

/// A request that the core does not take up.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{error}: {remedy}")]
pub struct Refused {
    /// Why.
    pub kind: RefusedKind,
    /// In words, lower case.
    pub error: String,
    /// What the operator can do.
    pub remedy: String,
}

/// What stands in the way of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedKind {
    /// It does not go with the state of the VM or the role of the node (409).
    State,
    /// It names something that is not there (404).
    Unknown,
    /// It was tried and failed (500).
    Failed,
    /// Not now; the same request may be granted later (503).
    Unavailable,
}

impl Refused {
    /// A refusal from its words.
    pub fn new(kind: RefusedKind, error: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind, error: error.into(), remedy: remedy.into() }
    }
}
