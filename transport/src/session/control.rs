//! Sending control messages: in order, ahead of all chunks, never waiting.
//!
//! ```text
//!   send ─▶ queue, bounded ─▶ writer task ─▶ control stream, priority 1
//! ```
//!
//! The queue holds some ten seconds of a busy session. A peer that lets it fill
//! does not read its control stream, and loses the session.

use std::marker::PhantomData;

use arbiter::Term;
use bytes::Bytes;
use checkpoint::message::{ToBackup, ToPrimary};
use quinn::{ConnectionError, SendStream, StoppedError};
use tokio::sync::{mpsc, oneshot};

use super::{CloseCode, Link, SessionError};
use crate::wire::{self, Frame};

/// Most control messages that wait to be written.
const QUEUE_FRAMES_MAX: usize = 8192;

/// Data streams have priority 0.
const CONTROL_PRIORITY: i32 = 1;

impl From<ToBackup> for Frame {
    fn from(message: ToBackup) -> Self {
        Self::ToBackup(message)
    }
}

impl From<ToPrimary> for Frame {
    fn from(message: ToPrimary) -> Self {
        Self::ToPrimary(message)
    }
}

enum Item {
    Frame(Bytes),
    Finish(oneshot::Sender<bool>),
}

/// Sends `Message`s: [`ToBackup`] or [`ToPrimary`]. Clones send on the same
/// stream; it ends with the last one.
#[derive(Debug)]
pub struct ControlSender<Message> {
    queue: mpsc::Sender<Item>,
    link: Link,
    messages: PhantomData<fn(Message)>,
}

impl<Message> Clone for ControlSender<Message> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), link: self.link.clone(), messages: PhantomData }
    }
}

impl<Message> ControlSender<Message> {
    /// Sends on `stream`, beginning with the frame `first`.
    pub(super) fn start(stream: SendStream, link: Link, first: Option<Vec<u8>>) -> Self {
        let (queue, items) = mpsc::channel(QUEUE_FRAMES_MAX);
        tokio::spawn(write(stream, items, first.map(Bytes::from)));
        Self { queue, link, messages: PhantomData }
    }

    /// Queues `message` under `term`. Never waits; callable from any thread.
    ///
    /// # Errors
    ///
    /// [`SessionError`] if the session has ended, is ended by this because the
    /// peer does not read, or the message cannot be spelled.
    pub fn send(&self, term: Term, message: Message) -> Result<(), SessionError>
    where
        Frame: From<Message>,
    {
        let bytes = wire::encode(term, &Frame::from(message))?;
        self.link.require_open()?;
        match self.queue.try_send(Item::Frame(bytes.into())) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(self.link.error()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.link.end_backlog();
                Err(self.link.error())
            }
        }
    }

    /// Ends the stream after all that was sent, and waits until the peer has
    /// it. Nothing can be sent afterwards. Bound it by a timeout.
    ///
    /// # Errors
    ///
    /// [`SessionError`] if the session ended first.
    pub async fn finish(self) -> Result<(), SessionError> {
        let (done, finished) = oneshot::channel();
        let queued = self.queue.send(Item::Finish(done)).await;
        if queued.is_ok() && finished.await == Ok(true) { Ok(()) } else { Err(self.link.error()) }
    }
}

async fn write(mut stream: SendStream, mut items: mpsc::Receiver<Item>, first: Option<Bytes>) {
    let _ = stream.set_priority(CONTROL_PRIORITY);
    if let Some(bytes) = first
        && stream.write_chunk(bytes).await.is_err()
    {
        return;
    }
    while let Some(item) = items.recv().await {
        match item {
            Item::Frame(bytes) => {
                if stream.write_chunk(bytes).await.is_err() {
                    return;
                }
            }
            Item::Finish(done) => {
                let _ = stream.finish();
                let _ = done.send(was_read(stream.stopped().await));
                return;
            }
        }
    }
    let _ = stream.finish();
}

/// Whether the peer has all of a finished stream. It may close the connection
/// as soon as it has read the end.
fn was_read(stopped: Result<Option<quinn::VarInt>, StoppedError>) -> bool {
    match stopped {
        Ok(code) => code.is_none(),
        Err(StoppedError::ConnectionLost(ConnectionError::ApplicationClosed(close))) => {
            close.error_code.into_inner() == CloseCode::Done as u64
        }
        Err(_) => false,
    }
}
