//! Sessions with backups: one dialing task per peer.
//!
//! ```text
//!   dial ──▶ session ──▶ LinkUp, Heard, Heard, … LinkDown ──▶ dial …
//!     ▲                                             │ until not wanted
//!     └──────────────── back-off ◀──────────────────┘
//! ```
//!
//! What the core sees of one peer comes in this order, from one task, so that
//! a message is never taken for one of another session.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use arbiter::{NodeId, Term};
use checkpoint::{
    chunk::Chunk,
    message::{Hello, ToBackup},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc as async_mpsc},
    task::JoinHandle,
};
use transport::{ControlSender, DataSender, DialError, Endpoint, Link, PrimarySession};

use super::{core::Input, flights::ChunkQueue};
use crate::node::with_causes;

const BACK_OFF_MIN: Duration = Duration::from_millis(20);
const BACK_OFF_MAX: Duration = Duration::from_millis(500);

/// The term that frames carry, shared with senders.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedTerm(Arc<AtomicU64>);

impl SharedTerm {
    pub(super) fn set(&self, term: Term) {
        self.0.store(term.get(), Ordering::Release);
    }

    pub(super) fn get(&self) -> Term {
        Term::new(self.0.load(Ordering::Acquire))
    }
}

/// What every dialing task works with.
pub(super) struct Tools {
    pub(super) handle: Handle,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) hello: Hello,
    pub(super) term: SharedTerm,
    pub(super) inputs: mpsc::Sender<Input>,
}

/// The parts of a live session.
#[derive(Debug, Clone)]
struct Session {
    control: ControlSender<ToBackup>,
    data: DataSender,
    chunks: ChunkQueue,
    link: Link,
}

/// One peer.
#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    session: Arc<Mutex<Option<Session>>>,
    redial: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(session) = self.session.lock().expect("no holder panics").take() {
            session.link.close("the backup is not wanted any more");
        }
    }
}

/// All peers that are dialed.
pub(super) struct Peers {
    tools: Arc<Tools>,
    peers: BTreeMap<NodeId, Peer>,
}

/// Sends chunks of a seed, and waits for the network.
#[derive(Debug)]
pub(super) struct ChunkSink {
    data: DataSender,
    term: SharedTerm,
}

impl ChunkSink {
    /// Sends `chunk`; `false` when the session has ended.
    pub(super) fn send(&self, chunk: Chunk) -> bool {
        self.data.blocking_send(self.term.get(), Arc::new(chunk)).is_ok()
    }
}

impl Peers {
    pub(super) fn new(tools: Tools) -> Self {
        Self { tools: Arc::new(tools), peers: BTreeMap::new() }
    }

    /// Keeps dialing `name` at `address` from now on.
    pub(super) fn connect(&mut self, name: &NodeId, address: SocketAddr) {
        if self.peers.get(name).is_some_and(|peer| peer.address == address) {
            return;
        }
        let session = Arc::new(Mutex::new(None));
        let redial = Arc::new(Notify::new());
        let task = self.tools.handle.spawn(keep(
            self.tools.clone(),
            name.clone(),
            address,
            session.clone(),
            redial.clone(),
        ));
        self.peers.insert(name.clone(), Peer { address, session, redial, task });
    }

    /// Ends the session; without `redial`, dialing as well.
    pub(super) fn disconnect(&mut self, name: &NodeId, redial: bool) {
        if let Some(session) = self.session(name) {
            session.link.close("the primary begins again");
        }
        match self.peers.get(name) {
            Some(peer) if redial => peer.redial.notify_one(),
            Some(_) => drop(self.peers.remove(name)),
            None => {}
        }
    }

    /// Sends a control message, if there is a session.
    pub(super) fn send(&self, name: &NodeId, message: ToBackup) {
        if let Some(session) = self.session(name)
            && let Err(error) = session.control.send(self.tools.term.get(), message)
        {
            tracing::debug!(peer = %name, %error, "a control message was not sent");
        }
    }

    /// Where chunks for `name` are queued.
    pub(super) fn chunk_queue(&self, name: &NodeId) -> Option<ChunkQueue> {
        self.session(name).map(|session| session.chunks)
    }

    /// Where chunks of a seed for `name` are sent.
    pub(super) fn chunk_sink(&self, name: &NodeId) -> Option<ChunkSink> {
        let data = self.session(name)?.data;
        Some(ChunkSink { data, term: self.tools.term.clone() })
    }

    pub(super) fn address(&self, name: &NodeId) -> Option<SocketAddr> {
        self.peers.get(name).map(|peer| peer.address)
    }

    /// Waits until `name` has all control messages, at most for `patience`.
    pub(super) fn flush(&self, name: &NodeId, patience: Duration) {
        if let Some(session) = self.session(name) {
            let finish = session.control.finish();
            let _ =
                self.tools.handle.block_on(async { tokio::time::timeout(patience, finish).await });
        }
    }

    fn session(&self, name: &NodeId) -> Option<Session> {
        self.peers.get(name)?.session.lock().expect("no holder panics").clone()
    }
}

async fn keep(
    tools: Arc<Tools>,
    name: NodeId,
    address: SocketAddr,
    slot: Arc<Mutex<Option<Session>>>,
    redial: Arc<Notify>,
) {
    let mut back_off = BACK_OFF_MIN;
    loop {
        match tools.endpoint.dial(address, &name, tools.term.get(), &tools.hello).await {
            Ok((welcome, session)) => {
                back_off = BACK_OFF_MIN;
                let up = Input::LinkUp {
                    backup: name.clone(),
                    image: welcome.image,
                    staging_bytes_max: welcome.staging_bytes_max,
                };
                serve(&tools, &name, session, &slot, up).await;
            }
            Err(DialError::Refused { refusal, .. }) => {
                let refused = Input::LinkRefused { backup: name.clone(), refusal };
                let _ = tools.inputs.send(refused);
                back_off = (back_off * 4).min(BACK_OFF_MAX);
            }
            Err(error) => {
                let unreachable =
                    Input::Unreachable { backup: name.clone(), why: with_causes(&error) };
                let _ = tools.inputs.send(unreachable);
            }
        }
        let _ = tokio::time::timeout(back_off, redial.notified()).await;
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    }
}

async fn serve(
    tools: &Tools,
    name: &NodeId,
    session: PrimarySession,
    slot: &Mutex<Option<Session>>,
    up: Input,
) {
    let PrimarySession { welcome_term: _, control, data, mut receiver, link } = session;
    let (chunks, queued) = async_mpsc::unbounded_channel();
    let pump = tokio::spawn(pump(queued, data.clone(), tools.term.clone()));
    let parts = Session { control, data, chunks, link };
    *slot.lock().expect("no holder panics") = Some(parts);
    let _ = tools.inputs.send(up);
    loop {
        match receiver.next().await {
            Ok((term, message)) => {
                let heard = Input::Heard { backup: name.clone(), term, message };
                let _ = tools.inputs.send(heard);
            }
            Err(error) => {
                tracing::debug!(peer = %name, %error, "the session has ended");
                break;
            }
        }
    }
    slot.lock().expect("no holder panics").take();
    pump.abort();
    let _ = tools.inputs.send(Input::LinkDown { backup: name.clone() });
}

/// Hands queued chunks to the streams, as fast as they take them.
async fn pump(
    mut queued: async_mpsc::UnboundedReceiver<Arc<Chunk>>,
    data: DataSender,
    term: SharedTerm,
) {
    while let Some(chunk) = queued.recv().await {
        if data.send(term.get(), chunk).await.is_err() {
            return;
        }
    }
}
