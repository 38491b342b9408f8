//! How it is spelled and moved: wire format, QUIC, TLS identities.
//!
//! ```text
//!   checkpoint's messages and chunks        arbiter's requests
//!              │                                   │
//!          session ◀── endpoint ──▶ register_service
//!              └───────── wire ─────────┘
//!                  QUIC, TLS 1.3 with certificates both ways: identity
//! ```
//!
//! [`wire`] is pure and serves the simulator as it is. Everything else runs in
//! tokio. The layouts and the conversation are in `docs/protocol.md`.

#![forbid(unsafe_code)]

mod doorway;
mod endpoint;
pub mod identity;
mod options;
mod path;
mod register_service;
mod session;
mod socket;
mod tls_fault;
pub mod wire;

pub use doorway::AcceptError;
pub use endpoint::{DialError, Endpoint, Knock};
pub use identity::Identity;
pub use options::{InvalidOptions, Options};
pub use register_service::{ArbiterClient, ArbiterServer, AskError};
pub use session::{
    BackupReceiver, BackupSession, ControlSender, DataSender, Incoming, Link, PrimaryReceiver,
    PrimarySession, SessionError, Stats, TermFloor,
};
pub use socket::BindError;
