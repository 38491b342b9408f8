//! Sessions with a primary: the door that they come in by, and their reader.

use std::sync::{Arc, mpsc};

use checkpoint::message::ToPrimary;
use tokio::runtime::Handle;
use transport::{
    BackupReceiver, BackupSession, ControlSender, Endpoint, Incoming, Link, SessionError, TermFloor,
};

use super::{
    core::Input,
    decoder::{Arrival, Arrivals},
};

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
        handle.spawn(read(number, receiver, arrivals, inputs));
        Self { number, control, floor, link }
    }

    pub(super) fn send(&self, term: arbiter::Term, message: ToPrimary) {
        if let Err(error) = self.control.send(term, message) {
            tracing::debug!(%error, "a control message was not sent");
        }
    }

    pub(super) fn raise(&self, floor: arbiter::Term) {
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
            Err(error) => tracing::warn!(%error, "a caller was turned away"),
        }
    }
}

/// What comes next; only control messages while a chunk is waiting already.
async fn next(receiver: &mut BackupReceiver, chunk_waits: bool) -> Result<Incoming, SessionError> {
    if chunk_waits { receiver.next_control().await } else { receiver.next().await }
}

async fn read(
    session: u64,
    mut receiver: BackupReceiver,
    arrivals: Arrivals,
    inputs: mpsc::Sender<Input>,
) {
    // A chunk that waits for a decoder must not hold up control messages.
    let mut waiting: Option<Arrival> = None;
    loop {
        tokio::select! {
            biased;
            permit = arrivals.reserve(), if waiting.is_some() => {
                let (Ok(permit), Some(arrival)) = (permit, waiting.take()) else { return };
                permit.send(arrival);
            }
            incoming = next(&mut receiver, waiting.is_some()) => match incoming {
                Ok(Incoming::Message(term, message)) => {
                    let _ = inputs.send(Input::Heard { session, term, message });
                }
                Ok(Incoming::Chunk(term, chunk)) => {
                    waiting = Some(Arrival { session, term, chunk });
                }
                Ok(Incoming::Stale { term: _, chunk: Some(id) }) => {
                    let _ = inputs.send(Input::PassedOver { session, id });
                }
                Ok(Incoming::Stale { term, chunk: None }) => {
                    tracing::debug!(%term, "a stale control frame was refused");
                }
                Err(error) => {
                    tracing::debug!(%error, "the session has ended");
                    break;
                }
            },
        }
    }
    let _ = inputs.send(Input::LinkDown { session });
}
