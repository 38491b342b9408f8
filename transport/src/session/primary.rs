//! The primary's side of a session.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arbiter::Term;
use bytes::Bytes;
use checkpoint::{
    chunk::Chunk,
    message::{ToBackup, ToPrimary},
};
use quinn::SendStream;
use tokio::{sync::mpsc, task::AbortHandle};

use super::{ControlSender, FrameReader, Link, ReadFault, SessionError};
use crate::wire::{ChunkHead, Frame, WireError};

/// Messages that were read and wait to be taken.
const RECEIVED_MAX: usize = 256;

/// What a primary holds of a session. Its parts may be moved apart.
#[derive(Debug)]
pub struct PrimarySession {
    /// The term under which the backup welcomed the session.
    pub welcome_term: Term,
    /// Control messages to the backup.
    pub control: ControlSender<ToBackup>,
    /// Chunks to the backup.
    pub data: DataSender,
    /// Messages from the backup.
    pub receiver: PrimaryReceiver,
    /// The connection.
    pub link: Link,
}

impl PrimarySession {
    /// Begins after the Hello was sent and the Welcome was read.
    pub(crate) fn start(
        link: Link,
        welcome_term: Term,
        control: SendStream,
        reader: FrameReader,
        data: Vec<SendStream>,
    ) -> Self {
        Self {
            welcome_term,
            control: ControlSender::start(control, link.clone(), None),
            data: DataSender::start(data, link.clone()),
            receiver: PrimaryReceiver::start(reader, link.clone()),
            link,
        }
    }
}

/// Sends chunks over parallel streams, in turn. Clones share the streams.
///
/// Each stream has one chunk in writing and one waiting; further ones wait in
/// [`DataSender::send`] until QUIC's flow control lets go on.
#[derive(Debug, Clone)]
pub struct DataSender {
    queues: Arc<[mpsc::Sender<Parcel>]>,
    turn: Arc<AtomicUsize>,
    link: Link,
}

/// A frame in pieces, so that the chunk's content is not copied.
type Parcel = [Bytes; 3];

impl DataSender {
    fn start(streams: Vec<SendStream>, link: Link) -> Self {
        let queues = streams.into_iter().map(|stream| {
            let (queue, parcels) = mpsc::channel(1);
            tokio::spawn(write(stream, parcels));
            queue
        });
        Self { queues: queues.collect(), turn: Arc::new(AtomicUsize::new(0)), link }
    }

    /// Sends `chunk` under `term`: returns when a stream has taken it, which is
    /// before the backup has it. May be cancelled: then it was not sent.
    ///
    /// # Errors
    ///
    /// [`SessionError`] if the session has ended, or the chunk is beyond the
    /// protocol's limits.
    pub async fn send(&self, term: Term, chunk: Arc<Chunk>) -> Result<(), SessionError> {
        let (turn, parcel) = match self.offer(term, chunk)? {
            None => return Ok(()),
            Some(refused) => refused,
        };
        self.queues[turn].send(parcel).await.map_err(|_| self.link.error())
    }

    /// As [`DataSender::send`], for threads that are not async.
    ///
    /// # Errors
    ///
    /// As [`DataSender::send`].
    ///
    /// # Panics
    ///
    /// If called within an async task.
    pub fn blocking_send(&self, term: Term, chunk: Arc<Chunk>) -> Result<(), SessionError> {
        let (turn, parcel) = match self.offer(term, chunk)? {
            None => return Ok(()),
            Some(refused) => refused,
        };
        self.queues[turn].blocking_send(parcel).map_err(|_| self.link.error())
    }

    /// Gives the chunk to the next stream that is free; gives it back, with the
    /// stream to wait for, if there is none.
    fn offer(
        &self,
        term: Term,
        chunk: Arc<Chunk>,
    ) -> Result<Option<(usize, Parcel)>, SessionError> {
        let preface = ChunkHead::preface(term, &chunk)?;
        self.link.require_open()?;
        let [head, content] = chunk.body.pieces();
        let mut parcel = [Bytes::from(preface), head.clone(), content.clone()];
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        for offset in 0..self.queues.len() {
            match self.queues[(turn + offset) % self.queues.len()].try_send(parcel) {
                Ok(()) => return Ok(None),
                Err(mpsc::error::TrySendError::Full(back)) => parcel = back,
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(self.link.error()),
            }
        }
        Ok(Some((turn % self.queues.len(), parcel)))
    }
}

async fn write(mut stream: SendStream, mut parcels: mpsc::Receiver<Parcel>) {
    while let Some(mut parcel) = parcels.recv().await {
        if stream.write_all_chunks(&mut parcel).await.is_err() {
            return;
        }
    }
    let _ = stream.finish();
}

/// Messages from the backup. Dropping it ends the session.
#[derive(Debug)]
pub struct PrimaryReceiver {
    messages: mpsc::Receiver<(Term, ToPrimary)>,
    reader: AbortHandle,
    link: Link,
}

impl PrimaryReceiver {
    fn start(reader: FrameReader, link: Link) -> Self {
        let (queue, messages) = mpsc::channel(RECEIVED_MAX);
        let reader = tokio::spawn(read(reader, queue, link.clone())).abort_handle();
        Self { messages, reader, link }
    }

    /// The next message, in the order in which they were sent. May be
    /// cancelled without losing one.
    ///
    /// # Errors
    ///
    /// [`SessionError`] when the session has ended and all was taken.
    pub async fn next(&mut self) -> Result<(Term, ToPrimary), SessionError> {
        self.messages.recv().await.ok_or_else(|| self.link.error())
    }
}

impl Drop for PrimaryReceiver {
    fn drop(&mut self) {
        self.reader.abort();
        self.link.close("the primary let go of the session");
    }
}

async fn read(mut reader: FrameReader, queue: mpsc::Sender<(Term, ToPrimary)>, link: Link) {
    loop {
        let fault = match reader.frame().await {
            Ok(Some((term, Frame::ToPrimary(message)))) => {
                match queue.send((term, message)).await {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            }
            Ok(Some((_, other))) => WireError::Unexpected(other.kind()).into(),
            Ok(None) => ReadFault::Lost,
            Err(fault) => fault,
        };
        return link.end_faulty(fault);
    }
}
