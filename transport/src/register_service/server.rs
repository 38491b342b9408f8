//! Serving a register store to nodes.
//!
//! ```text
//!   connection task (one per node) ─▶ stream task (one per request) ─┐ bounded queue
//!                                                                    ▼
//!                        threads `register-n`: each a handle of the same registers
//! ```
//!
//! A store that waits for a network has several handles, so that one request
//! that waits does not hold up the others. It orders requests for the same VM
//! itself. What one node may take of all this is bounded in `clientele`.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use arbiter::{NodeId, Store, StoreError};
use quinn::{Connection, RecvStream, SendStream, ServerConfig, VarInt};
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::timeout,
};

use crate::{
    Options,
    doorway::{self, AcceptError, Caller},
    identity::{ALPN_ARBITER, Identity},
    session::{CloseCode, FrameReader, ReadFault, close},
    socket::{self, BindError},
    wire::{self, Answer, Ask, Frame, LIST_RECORDS_MAX, WireError},
};

use super::clientele::{Clientele, Turn, Visit};

/// Requests that wait for the store.
const JOBS_MAX: usize = 256;

struct Job {
    ask: Ask,
    answer: oneshot::Sender<Answer>,
    /// Given back when the store has done it.
    _turn: Turn,
}

/// An arbiter that serves until it is dropped. Must be made within a tokio
/// runtime.
#[derive(Debug)]
pub struct ArbiterServer {
    quinn: quinn::Endpoint,
    local: SocketAddr,
    door: AbortHandle,
}

impl ArbiterServer {
    /// Binds `address` and serves `stores`, handles of the same registers, to
    /// every node of the cluster: as many requests at once as there are handles.
    ///
    /// # Errors
    ///
    /// [`BindError`].
    ///
    /// # Panics
    ///
    /// If there is no handle.
    pub fn serve(
        address: SocketAddr,
        identity: &Identity,
        options: &Options,
        stores: Vec<Box<dyn Store + Send>>,
    ) -> Result<Self, BindError> {
        assert!(!stores.is_empty(), "an arbiter without registers");
        options.check()?;
        let options = Arc::new(options.clone());
        let mut config = ServerConfig::with_crypto(Arc::new(identity.server(ALPN_ARBITER)?));
        config.transport_config(options.register());
        let (quinn, local) = socket::bind(address, identity, &options, config)?;
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let queue = Arc::new(Mutex::new(queue));
        for (number, store) in stores.into_iter().enumerate() {
            let queue = queue.clone();
            thread::Builder::new()
                .name(format!("register-{number}"))
                .spawn(move || work(store, &queue))
                .map_err(BindError::Thread)?;
        }
        let clientele = Arc::new(Clientele::default());
        let door = tokio::spawn(doorway::keep(quinn.clone(), options.clone(), move |admitted| {
            attend(admitted, clientele.clone(), jobs.clone(), options.clone())
        }));
        Ok(Self { quinn, local, door: door.abort_handle() })
    }

    /// Where it is bound.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Stops serving: requests whose answers are not out yet stay unanswered.
    /// Waits until the nodes have been told.
    pub async fn shutdown(self) {
        self.hang_up();
        self.quinn.wait_idle().await;
    }

    fn hang_up(&self) {
        self.quinn.close((CloseCode::Done as u32).into(), b"the arbiter is shutting down");
    }
}

impl Drop for ArbiterServer {
    fn drop(&mut self) {
        self.door.abort();
        self.hang_up();
    }
}

/// Owns a handle of the store. Ends with the last connection and the door.
fn work(mut store: Box<dyn Store + Send>, queue: &Mutex<mpsc::Receiver<Job>>) {
    // Whoever holds the lock waits for the next job, the others for the lock.
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
    while let Some(Job { ask, answer, _turn }) = next() {
        // Nobody waits any more: a node that asks again does so with a new job.
        if !answer.is_closed() {
            let _ = answer.send(decide(store.as_mut(), &ask));
        }
    }
}

fn decide(store: &mut dyn Store, ask: &Ask) -> Answer {
    let answered = match ask {
        Ask::Load(vm) => store.load(vm).map(Answer::Record),
        Ask::Execute(vm, request) => store.execute(vm, request).map(Answer::Outcome),
        Ask::List(after) => store.list().map(|records| {
            let mut after: Vec<_> = records
                .into_iter()
                .filter(|(vm, _)| after.as_ref().is_none_or(|after| vm > after))
                .collect();
            let more = after.len() > LIST_RECORDS_MAX;
            after.truncate(LIST_RECORDS_MAX);
            Answer::Records { records: after, more }
        }),
        Ask::Identify => store.id().map(Answer::Registers),
    };
    answered.unwrap_or_else(|error| match &error {
        StoreError::Illegal(_) => Answer::Denied(error.to_string()),
        StoreError::Untouched { .. } => {
            tracing::error!(%error, "the register store cannot be asked, nothing happened");
            Answer::Unavailable(error.to_string())
        }
        StoreError::Unknown { .. } => {
            tracing::error!(%error, "the register store failed, what was asked may have happened");
            Answer::Failed(error.to_string())
        }
    })
}

async fn attend(
    admitted: Result<Caller, AcceptError>,
    clientele: Arc<Clientele>,
    jobs: mpsc::Sender<Job>,
    options: Arc<Options>,
) {
    // The doorway has logged who was not admitted.
    let Ok(Caller { connection, peer, place }) = admitted else { return };
    drop(place);
    let visit = clientele.admit(&peer, &connection);
    while let Ok((answers, asks)) = connection.accept_bi().await {
        let answering = Answering {
            connection: connection.clone(),
            peer: peer.clone(),
            visit: visit.clone(),
            jobs: jobs.clone(),
            options: options.clone(),
        };
        let connection = connection.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = answering.run(answers, asks) => {}
                // Nobody is there any more to be answered.
                _ = connection.closed() => {}
            }
        });
    }
}

/// One request of one node.
struct Answering {
    connection: Connection,
    peer: NodeId,
    visit: Arc<Visit>,
    jobs: mpsc::Sender<Job>,
    options: Arc<Options>,
}

impl Answering {
    async fn run(self, mut answers: SendStream, asks: RecvStream) {
        let mut reader = FrameReader::new(asks);
        let Ok(asked) = timeout(self.options.answer_timeout, reader.frame()).await else { return };
        let (term, ask) = match asked {
            Ok(Some((term, Frame::Ask(ask)))) => (term, ask),
            Ok(Some((_, other))) => return self.refuse(&WireError::Unexpected(other.kind())),
            Ok(None) => return self.refuse(&WireError::Early),
            Err(ReadFault::Malformed(error)) => return self.refuse(&error),
            Err(ReadFault::Lost) => return,
        };
        let answer = match impostor(&self.peer, &ask) {
            Some(words) => Answer::Denied(words),
            None => match self.decided(ask).await {
                Some(answer) => answer,
                None => return,
            },
        };
        let bytes = wire::encode(term, &Frame::Answer(answer)).or_else(|error| {
            let words = format!("the arbiter's answer cannot be sent: {error}");
            wire::encode(term, &Frame::Answer(Answer::Failed(words)))
        });
        if let Ok(bytes) = bytes {
            match timeout(self.options.answer_timeout, answers.write_all(&bytes)).await {
                Ok(_) => drop(answers.finish()),
                // It does not read what it asked for.
                Err(_) => drop(answers.reset(VarInt::from_u32(CloseCode::Backlog as u32))),
            }
        }
    }

    async fn decided(&self, ask: Ask) -> Option<Answer> {
        let _turn = self.visit.turn().await;
        let (answer, decided) = oneshot::channel();
        self.jobs.send(Job { ask, answer, _turn }).await.ok()?;
        decided.await.ok()
    }

    fn refuse(&self, error: &WireError) {
        tracing::warn!(peer = %self.peer, %error, "malformed request");
        close(&self.connection, CloseCode::Malformed, &error.to_string());
    }
}

/// Why `peer` may not ask this, if it speaks for another node.
fn impostor(peer: &NodeId, ask: &Ask) -> Option<String> {
    match ask {
        Ask::Execute(_, request) if request.caller != *peer => {
            Some(format!("{peer} asked in the name of {}", request.caller))
        }
        Ask::Execute(..) | Ask::Load(_) | Ask::List(_) | Ask::Identify => None,
    }
}
