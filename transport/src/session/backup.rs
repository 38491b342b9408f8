//! The backup's side of a session.
//!
//! ```text
//!   control stream ─▶ reader ─▶ control queue ─┐ first
//!   data stream ───▶ reader ─▶ ┐               ├─▶ BackupReceiver::next
//!   data stream ───▶ reader ─▶ ┴ data queue ───┘ then
//! ```
//!
//! A full data queue stops its readers, and with them QUIC's flow control stops
//! the primary; the control stream has its own queue and goes on.

use arbiter::Term;
use checkpoint::{
    chunk::{Chunk, ChunkId},
    message::{ToBackup, ToPrimary},
};
use quinn::{Connection, RecvStream, SendStream};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use super::{ControlSender, FrameReader, Link, ReadFault, SessionError, TermFloor};
use crate::wire::{Frame, WireError};

/// Control messages that were read and wait to be taken.
const CONTROL_RECEIVED_MAX: usize = 256;
/// Chunks that were read and wait to be taken; each data stream holds one more.
const CHUNKS_RECEIVED_MAX: usize = 4;

/// What a backup holds of a session. Its parts may be moved apart.
#[derive(Debug)]
pub struct BackupSession {
    /// Control messages to the primary.
    pub control: ControlSender<ToPrimary>,
    /// Messages and chunks from the primary.
    pub receiver: BackupReceiver,
    /// The lowest term that is heard; it begins at that of the Hello.
    pub floor: TermFloor,
    /// The connection.
    pub link: Link,
}

impl BackupSession {
    /// Begins with `welcome`, an encoded frame.
    pub(crate) fn start(
        link: Link,
        control: SendStream,
        reader: FrameReader,
        welcome: Vec<u8>,
    ) -> Self {
        Self {
            control: ControlSender::start(control, link.clone(), Some(welcome)),
            receiver: BackupReceiver::start(reader, link.clone()),
            floor: TermFloor::of(&link),
            link,
        }
    }
}

/// What comes from a primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A control message and its term.
    Message(Term, ToBackup),
    /// A chunk and its term. Its digest is not checked yet.
    Chunk(Term, Chunk),
    /// A frame below the term floor; it was not read.
    Stale {
        /// Its term.
        term: Term,
        /// Which chunk it was, if it was one.
        chunk: Option<ChunkId>,
    },
}

/// Messages and chunks from the primary. Dropping it ends the session.
#[derive(Debug)]
pub struct BackupReceiver {
    control: mpsc::Receiver<Incoming>,
    data: mpsc::Receiver<Incoming>,
    readers: [AbortHandle; 2],
    link: Link,
}

impl BackupReceiver {
    fn start(reader: FrameReader, link: Link) -> Self {
        let (control_queue, control) = mpsc::channel(CONTROL_RECEIVED_MAX);
        let (data_queue, data) = mpsc::channel(CHUNKS_RECEIVED_MAX);
        let readers = [
            tokio::spawn(read_control(reader, control_queue, link.clone())).abort_handle(),
            tokio::spawn(accept_data(data_queue, link.clone())).abort_handle(),
        ];
        Self { control, data, readers, link }
    }

    /// What comes next: control messages first and in order, chunks in any. May
    /// be cancelled without losing anything.
    ///
    /// # Errors
    ///
    /// [`SessionError`] when the session has ended and all was taken.
    pub async fn next(&mut self) -> Result<Incoming, SessionError> {
        let incoming = tokio::select! {
            biased;
            Some(incoming) = self.control.recv() => incoming,
            Some(incoming) = self.data.recv() => incoming,
            else => return Err(self.link.error()),
        };
        Ok(self.sift(incoming))
    }

    /// As [`BackupReceiver::next`], but leaves chunks where they are: for a
    /// reader that has no room for another one. May be cancelled.
    ///
    /// # Errors
    ///
    /// As [`BackupReceiver::next`].
    pub async fn next_control(&mut self) -> Result<Incoming, SessionError> {
        let incoming = self.control.recv().await.ok_or_else(|| self.link.error())?;
        Ok(self.sift(incoming))
    }

    /// The floor may have been raised since the frame was read.
    fn sift(&self, incoming: Incoming) -> Incoming {
        match incoming {
            Incoming::Message(term, _) if self.link.is_stale(term) => {
                Incoming::Stale { term, chunk: None }
            }
            Incoming::Chunk(term, chunk) if self.link.is_stale(term) => {
                Incoming::Stale { term, chunk: Some(chunk.id) }
            }
            Incoming::Message(..) | Incoming::Chunk(..) | Incoming::Stale { .. } => incoming,
        }
    }
}

impl Drop for BackupReceiver {
    fn drop(&mut self) {
        for reader in &self.readers {
            reader.abort();
        }
        self.link.close("the backup let go of the session");
    }
}

async fn read_control(mut reader: FrameReader, queue: mpsc::Sender<Incoming>, link: Link) {
    loop {
        let fault = match next_message(&mut reader, &link).await {
            Ok(Some(incoming)) => match queue.send(incoming).await {
                Ok(()) => continue,
                Err(_) => return,
            },
            Ok(None) => ReadFault::Lost,
            Err(fault) => fault,
        };
        return link.end_faulty(fault);
    }
}

async fn next_message(
    reader: &mut FrameReader,
    link: &Link,
) -> Result<Option<Incoming>, ReadFault> {
    let Some(header) = reader.header().await? else { return Ok(None) };
    if header.chunk.is_some() {
        return Err(WireError::Unexpected(header.kind).into());
    }
    if link.is_stale(header.term) {
        reader.pass(&header).await?;
        return Ok(Some(Incoming::Stale { term: header.term, chunk: None }));
    }
    match reader.body(&header).await? {
        Frame::ToBackup(message) => Ok(Some(Incoming::Message(header.term, message))),
        other => Err(WireError::Unexpected(other.kind()).into()),
    }
}

/// Reads every data stream in a task of its own; they end with this one.
async fn accept_data(queue: mpsc::Sender<Incoming>, link: Link) {
    let connection: Connection = link.connection().clone();
    let mut readers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_uni() => match accepted {
                Ok(stream) => {
                    readers.spawn(read_data(stream, queue.clone(), link.clone()));
                }
                Err(_) => break,
            },
            Some(_) = readers.join_next() => {}
        }
    }
    // What QUIC has received is still read and handed out.
    while readers.join_next().await.is_some() {}
}

async fn read_data(stream: RecvStream, queue: mpsc::Sender<Incoming>, link: Link) {
    let mut reader = FrameReader::new(stream);
    loop {
        match next_chunk(&mut reader, &link).await {
            Ok(Some(incoming)) => {
                if queue.send(incoming).await.is_err() {
                    return;
                }
            }
            Err(ReadFault::Malformed(error)) => return link.end_malformed(error),
            Ok(None) | Err(ReadFault::Lost) => return,
        }
    }
}

async fn next_chunk(reader: &mut FrameReader, link: &Link) -> Result<Option<Incoming>, ReadFault> {
    let Some(header) = reader.header().await? else { return Ok(None) };
    if header.chunk.is_none() {
        return Err(WireError::Unexpected(header.kind).into());
    }
    if link.is_stale(header.term) {
        reader.pass(&header).await?;
        return Ok(Some(Incoming::Stale { term: header.term, chunk: header.chunk }));
    }
    let chunk = reader.chunk(&header).await?;
    Ok(Some(Incoming::Chunk(header.term, chunk)))
}
