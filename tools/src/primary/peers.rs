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
    sync::Notify,
    task::{AbortHandle, JoinHandle},
};
use transport::{ControlSender, DataSender, DialError, Endpoint, Link, PrimarySession};

use super::{core::Input, outbox::Outbox};
use crate::node::{Backlog, with_causes};

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
    outbox: Outbox,
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

    /// Where chunks for `name` wait.
    pub(super) fn outbox(&self, name: &NodeId) -> Option<Outbox> {
        self.session(name).map(|session| session.outbox)
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
    let pump = Pump::start(data.clone(), tools.term.clone());
    let parts = Session { control, data, outbox: pump.outbox.clone(), link: link.clone() };
    *slot.lock().expect("no holder panics") = Some(parts);
    let _ = tools.inputs.send(up);
    let backlog = Backlog::default();
    let error = loop {
        let (term, message) = match receiver.next().await {
            Ok(heard) => heard,
            Err(error) => break error,
        };
        let unhandled = tokio::select! {
            biased;
            unhandled = backlog.place() => unhandled,
            error = link.closed() => break error,
        };
        let heard = Input::Heard { backup: name.clone(), term, message, unhandled };
        let _ = tools.inputs.send(heard);
    };
    tracing::debug!(peer = %name, %error, "the session has ended");
    slot.lock().expect("no holder panics").take();
    drop(pump);
    let _ = tools.inputs.send(Input::LinkDown { backup: name.clone() });
}

/// Hands waiting chunks to the streams, as fast as they take them, until it is
/// dropped.
struct Pump {
    outbox: Outbox,
    task: AbortHandle,
}

impl Pump {
    fn start(data: DataSender, term: SharedTerm) -> Self {
        let outbox = Outbox::default();
        let task = tokio::spawn(pump(outbox.clone(), data, term)).abort_handle();
        Self { outbox, task }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.outbox.close();
        self.task.abort();
    }
}

async fn pump(outbox: Outbox, data: DataSender, term: SharedTerm) {
    while let Some(chunk) = outbox.next().await {
        if data.send(term.get(), chunk).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, path::Path};

    use checkpoint::{
        MemoryLayout, PageNumber, PageRun,
        message::{Machine, ToPrimary, Welcome},
    };
    use tokio::runtime::Runtime;
    use transport::{
        Identity, Options,
        identity::pki::{self, Files},
        wire,
    };

    use super::*;
    use crate::node::UNHANDLED_MAX;

    /// A bound on failure, not a measure.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn endpoint(folder: &Path, name: &str) -> Endpoint {
        let node = name.parse().unwrap();
        pki::issue(folder, &node, pki::NODE_DAYS, false).unwrap();
        let (files, ca) = (Files::of_node(folder, &node), Files::of_authority(folder).certificate);
        let identity = Identity::load(&ca, &files.certificate, &files.key).unwrap();
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Endpoint::bind(anywhere, &identity, &Options::default()).unwrap()
    }

    fn hello() -> Hello {
        let ram = PageRun { first: PageNumber::new(0), count: 4096 };
        let layout = MemoryLayout::new(vec![ram]).unwrap();
        Hello {
            versions: wire::VERSIONS.iter().map(|version| (*version).to_owned()).collect(),
            vm: "web".parse().unwrap(),
            machine: Machine { layout, vcpus: 1, traits: [].into() },
        }
    }

    #[test]
    fn a_backup_that_is_faster_than_the_core_waits_for_it() {
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        pki::create_authority(folder.path(), pki::CA_DAYS, false).unwrap();
        let _entered = runtime.enter();
        let [primary, backup] = ["primary", "backup"].map(|name| endpoint(folder.path(), name));
        let (inputs, received) = mpsc::channel();
        let (handle, term) = (runtime.handle().clone(), SharedTerm::default());
        term.set(Term::FIRST);
        let endpoint = Arc::new(primary);
        let mut peers = Peers::new(Tools { handle, endpoint, hello: hello(), term, inputs });
        peers.connect(&"backup".parse().unwrap(), backup.local_address());
        let session = runtime.block_on(async {
            let knock = tokio::time::timeout(PATIENCE, backup.accept()).await.expect("it hangs");
            let (version, image) = (wire::VERSIONS[0].to_owned(), None);
            let welcome = Welcome { version, image, staging_bytes_max: 1 };
            knock.unwrap().unwrap().welcome(Term::FIRST, welcome).unwrap()
        });
        let next = || received.recv_timeout(PATIENCE).expect("it hangs");
        assert!(matches!(next(), Input::LinkUp { .. }));
        for chunks in 0..2 * UNHANDLED_MAX as u32 {
            session.control.send(Term::FIRST, ToPrimary::SeedAck { chunks }).unwrap();
        }
        let mut waiting: Vec<Input> = (0..UNHANDLED_MAX).map(|_| next()).collect();
        let early = received.recv_timeout(Duration::from_millis(200));
        assert!(early.is_err(), "nobody has handled what is there: {early:?}");
        drop(waiting.pop());
        waiting.push(next());
        assert!(waiting.iter().all(|input| matches!(input, Input::Heard { .. })));
        // Its end is heard of though it waits.
        session.link.close("enough");
        assert!(matches!(next(), Input::LinkDown { .. }));
    }
}
