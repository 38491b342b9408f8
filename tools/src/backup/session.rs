//! Sessions with a primary: the door that they come in by, and their reader.

use std::sync::{Arc, mpsc};

use arbiter::Term;
use checkpoint::{chunk::Chunk, message::ToPrimary};
use tokio::{runtime::Handle, sync::mpsc::Permit};
use transport::{
    BackupReceiver, BackupSession, ControlSender, Endpoint, Incoming, Link, SessionError, TermFloor,
};

use super::{
    core::Input,
    decoder::{Arrival, Arrivals},
};
use crate::node::{Backlog, Unhandled};

/// The session that was taken last.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) number: u64,
    control: ControlSender<ToPrimary>,
    floor: TermFloor,
    link: Link,
}

impl Session {
    /// Begins to read `session` on the runtime's threads.
    pub(super) fn start(
        number: u64,
        session: BackupSession,
        handle: &Handle,
        arrivals: Arrivals,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        let BackupSession { control, receiver, floor, link } = session;
        handle.spawn(read(number, receiver, link.clone(), arrivals, inputs));
        Self { number, control, floor, link }
    }

    pub(super) fn send(&self, term: Term, message: ToPrimary) {
        if let Err(error) = self.control.send(term, message) {
            tracing::debug!(%error, "a control message was not sent");
        }
    }

    pub(super) fn raise(&self, floor: Term) {
        self.floor.raise(floor);
    }

    pub(super) fn close(&self, reason: &str) {
        self.link.close(reason);
    }
}

/// Passes everybody who knocks on to the core.
pub(super) async fn keep_door(endpoint: Arc<Endpoint>, inputs: mpsc::Sender<Input>) {
    while let Some(knock) = endpoint.accept().await {
        match knock {
            Ok(knock) => {
                if inputs.send(Input::Knock(Box::new(knock))).is_err() {
                    return;
                }
            }
            // The transport has warned of it, though not every time.
            Err(error) => tracing::debug!(%error, "a caller was turned away"),
        }
    }
}

/// What comes next; only control messages while a chunk is waiting already.
async fn next(receiver: &mut BackupReceiver, chunk_waits: bool) -> Result<Incoming, SessionError> {
    if chunk_waits { receiver.next_control().await } else { receiver.next().await }
}

/// Waits until a decoder takes a chunk, and the core hears of it.
async fn room<'a>(
    backlog: &Backlog,
    arrivals: &'a Arrivals,
) -> Option<(Unhandled, Permit<'a, Arrival>)> {
    let unhandled = backlog.place().await;
    Some((unhandled, arrivals.reserve().await.ok()?))
}

async fn read(
    session: u64,
    mut receiver: BackupReceiver,
    link: Link,
    arrivals: Arrivals,
    inputs: mpsc::Sender<Input>,
) {
    // A chunk that waits for a decoder must not hold up control messages.
    let mut waiting: Option<(Term, Chunk)> = None;
    let (messages, chunks) = (Backlog::default(), Backlog::default());
    let mut place: Option<Unhandled> = None;
    let error = loop {
        tokio::select! {
            biased;
            room = room(&chunks, &arrivals), if waiting.is_some() => {
                let (Some(room), Some((term, chunk))) = (room, waiting.take()) else { return };
                let (unhandled, permit) = room;
                permit.send(Arrival { session, term, chunk, unhandled });
            }
            free = messages.place(), if place.is_none() => place = Some(free),
            error = link.closed(), if place.is_none() => break error,
            incoming = next(&mut receiver, waiting.is_some()), if place.is_some() => match incoming {
                Ok(Incoming::Message(term, message)) => {
                    let unhandled = place.take().expect("there is one");
                    let _ = inputs.send(Input::Heard { session, term, message, unhandled });
                }
                Ok(Incoming::Chunk(term, chunk)) => waiting = Some((term, chunk)),
                Ok(Incoming::Stale { term: _, chunk: Some(id) }) => {
                    let unhandled = place.take().expect("there is one");
                    let _ = inputs.send(Input::PassedOver { session, id, unhandled });
                }
                Ok(Incoming::Stale { term, chunk: None }) => {
                    tracing::debug!(%term, "a stale control frame was refused");
                }
                Err(error) => break error,
            },
        }
    };
    tracing::debug!(%error, "the session has ended");
    let _ = inputs.send(Input::LinkDown { session });
}
