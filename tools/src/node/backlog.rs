//! What a session has passed on and the core has not handled.
//!
//! Invariant: at most [`UNHANDLED_MAX`] frames of a session wait for the core.
//! Its reader waits then, QUIC's flow control stops the peer, and frames of
//! other sessions wait behind no more than these.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most frames of one session that wait for the core: seconds of a busy one.
pub const UNHANDLED_MAX: usize = 256;

/// The frames of one session.
#[derive(Debug)]
pub struct Backlog(Arc<Semaphore>);

/// One frame of them, until it is dropped.
#[derive(Debug)]
pub struct Unhandled(#[allow(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Default for Backlog {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(UNHANDLED_MAX)))
    }
}

impl Backlog {
    /// Waits for the place of one more frame. May be cancelled.
    pub async fn place(&self) -> Unhandled {
        let place = self.0.clone().acquire_owned().await;
        Unhandled(place.expect("it is never closed"))
    }
}
