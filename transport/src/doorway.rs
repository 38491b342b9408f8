//! Accepting callers: TLS handshakes, each in a task of its own.
//!
//! ```text
//!   packet ─▶ place free? ──no──▶ refused
//!                │ yes, but half are taken: the caller proves its address first
//!                ▼
//!             TLS handshake, within `connect_timeout` ─▶ NodeId of its certificate
//! ```
//!
//! No caller can keep another waiting: the loop never waits for one, the number
//! of handshakes is bounded, and each has its time. The place is given up when
//! the caller has been greeted.

use std::{net::SocketAddr, sync::Arc};

use arbiter::NodeId;
use quinn::{Connection, ConnectionError, Incoming};
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{
    Options,
    identity::{CertificateError, node_of},
    tls_fault,
    wire::WireError,
};

/// Why a caller was not admitted. None of these concerns other callers.
#[derive(Debug, Error)]
pub enum AcceptError {
    /// A certificate was not accepted, on either side.
    #[error("no conversation with {address}: {reason}")]
    Certificate {
        /// Where the caller is.
        address: SocketAddr,
        /// Which certificate and why, in words.
        reason: String,
    },
    /// The certificate is of this cluster, but no node's.
    #[error("the certificate of {address} is no node's: make one with `romulus pki`")]
    NoNode {
        /// Where the caller is.
        address: SocketAddr,
        /// What is wrong with it.
        source: CertificateError,
    },
    /// The caller took too long.
    #[error("caller at {address} took too long to introduce itself")]
    Silent {
        /// Where the caller is.
        address: SocketAddr,
    },
    /// The caller said something else than a Hello.
    #[error("{peer} at {address} did not say hello properly")]
    Malformed {
        /// The node that called.
        peer: NodeId,
        /// Where it is.
        address: SocketAddr,
        /// What was wrong with it.
        source: WireError,
    },
    /// The connection was lost on the way.
    #[error("caller at {address} was lost before it introduced itself")]
    Lost {
        /// Where the caller is.
        address: SocketAddr,
        /// How.
        source: ConnectionError,
    },
}

/// A caller with a certificate of the cluster.
pub(crate) struct Caller {
    pub(crate) connection: Connection,
    pub(crate) peer: NodeId,
    /// Its place among the handshakes; dropped when it has been greeted.
    pub(crate) place: OwnedSemaphorePermit,
}

/// Accepts callers until `endpoint` closes; `greet` gets each of them, or why
/// it was not admitted, in a task of its own.
pub(crate) async fn keep<Greeting>(
    endpoint: quinn::Endpoint,
    options: Arc<Options>,
    greet: impl Fn(Result<Caller, AcceptError>) -> Greeting + Clone + Send + 'static,
) where
    Greeting: Future<Output = ()> + Send,
{
    let places = Arc::new(Semaphore::new(options.handshakes_max));
    while let Some(incoming) = endpoint.accept().await {
        let address = incoming.remote_address();
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%address, "caller refused: too many handshakes at once");
            incoming.refuse();
            continue;
        };
        let crowded = places.available_permits() < options.handshakes_max / 2;
        if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            // Costs an honest caller one round trip, and a forger everything.
            let _ = incoming.retry();
            continue;
        }
        let (options, greet) = (options.clone(), greet.clone());
        tokio::spawn(async move {
            let admitted = admit(incoming, place, &options).await;
            if let Err(error) = &admitted {
                tracing::warn!(%address, %error, "caller not admitted");
            }
            greet(admitted).await;
        });
    }
}

async fn admit(
    incoming: Incoming,
    place: OwnedSemaphorePermit,
    options: &Options,
) -> Result<Caller, AcceptError> {
    let address = incoming.remote_address();
    let fail = |source: ConnectionError| match tls_fault::certificate(&source) {
        Some(reason) => AcceptError::Certificate { address, reason },
        None => AcceptError::Lost { address, source },
    };
    let connecting = incoming.accept().map_err(fail)?;
    let connection = timeout(options.connect_timeout, connecting)
        .await
        .map_err(|_| AcceptError::Silent { address })?
        .map_err(fail)?;
    let peer = peer_of(&connection).map_err(|source| AcceptError::NoNode { address, source })?;
    Ok(Caller { connection, peer, place })
}

/// The node that the other side of `connection` proved to be.
pub(crate) fn peer_of(connection: &Connection) -> Result<NodeId, CertificateError> {
    let identity = connection.peer_identity().ok_or(CertificateError::NoNode)?;
    let chain = identity
        .downcast::<Vec<CertificateDer<'static>>>()
        .map_err(|_| CertificateError::NoNode)?;
    node_of(chain.first().ok_or(CertificateError::NoNode)?)
}
