//! The product's own transport: a session between two endpoints over loopback, with
//! runtimes of their own as two daemons have.

use std::sync::Arc;

use arbiter::{NodeId, Term};
use checkpoint::message::{Hello, Machine, Welcome};
use tokio::runtime::Runtime;
use transport::{BackupSession, Endpoint, Incoming, Options, PrimarySession, wire};

use super::{
    AHEAD_BYTES, WireError,
    certificates::{Certificates, RECEIVER},
    contest::{Contender, Stage},
    meter::{Meter, Sample},
    work::{self, Chunks},
};

pub(super) const TERM: Term = Term::FIRST;
/// As a daemon's: `romulus-net` has two threads.
const NETWORK_THREADS: usize = 2;
/// Largest UDP payloads that are tried beside the default: Ethernet, jumbo frames,
/// loopback.
const MTUS: [u16; 3] = [1452, 8952, 65000];

/// The name of the contender with default options.
pub(super) const DEFAULT_QUIC: &str = "QUIC, default options";

/// Two ends that sessions are made between.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) sender: Runtime,
    pub(super) receiver: Runtime,
    certificates: Arc<Certificates>,
}

impl Ends {
    pub(super) fn new(certificates: &Arc<Certificates>) -> Result<Self, WireError> {
        let runtime = |name: &str| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(NETWORK_THREADS)
                .thread_name(name)
                .enable_all()
                .build()
        };
        let certificates = certificates.clone();
        Ok(Self {
            sender: runtime("net-sender")?,
            receiver: runtime("net-receiver")?,
            certificates,
        })
    }

    /// A new session with `options` on both sides, and what keeps it alive.
    pub(super) fn connect(&self, options: &Options) -> Result<Connected, WireError> {
        let Certificates { sender, receiver, .. } = &*self.certificates;
        let bind = |runtime: &Runtime, files| -> Result<Endpoint, WireError> {
            let identity = self.certificates.identity(files)?;
            let _entered = runtime.enter();
            let address = "127.0.0.1:0".parse().expect("an address");
            Ok(Endpoint::bind(address, &identity, options)?)
        };
        let from = bind(&self.sender, sender)?;
        let to = Arc::new(bind(&self.receiver, receiver)?);
        let address = to.local_address();
        let accepting = self.receiver.spawn({
            let to = to.clone();
            async move {
                let knock = to.accept().await.ok_or(WireError::Unanswered)??;
                let version = wire::VERSIONS[0].to_owned();
                let welcome = Welcome { version, image: None, staging_bytes_max: 0 };
                Ok::<_, WireError>(knock.welcome(TERM, welcome)?)
            }
        });
        let peer: NodeId = RECEIVER.parse().expect("a node's name");
        let (_, primary) = self.sender.block_on(from.dial(address, &peer, TERM, &hello()))?;
        let backup = self.receiver.block_on(accepting).expect("accepting does not panic")?;
        Ok(Connected { primary, backup, _endpoints: (from, to) })
    }
}

/// A session, both ends of it.
pub(super) struct Connected {
    pub(super) primary: PrimarySession,
    pub(super) backup: BackupSession,
    pub(super) _endpoints: (Endpoint, Arc<Endpoint>),
}

fn hello() -> Hello {
    let machine = Machine { layout: work::layout(), vcpus: 1, traits: [].into() };
    let version = wire::VERSIONS[0].to_owned();
    Hello { versions: vec![version], vm: "bench".parse().expect("a VM's name"), machine }
}

/// Sessions with the default options, and with bounds on the packets' size.
pub(super) fn contenders(
    certificates: &Arc<Certificates>,
    chunks: &Chunks,
) -> Result<Vec<Contender>, WireError> {
    let mut all = vec![(DEFAULT_QUIC.to_owned(), Options::default())];
    all.extend(MTUS.map(|mtu_bytes_max| {
        let options = Options { mtu_bytes_max, ..Options::default() };
        (format!("QUIC, packets of {mtu_bytes_max} at most"), options)
    }));
    let contender = |(name, options): (String, Options)| {
        let (ends, chunks) = (Ends::new(certificates)?, chunks.clone());
        let run = move |bytes| ship(&ends, &options, &chunks, Meter::new(AHEAD_BYTES, bytes));
        Ok(Contender::new(Stage::Ship, name, run))
    };
    all.into_iter().map(contender).collect()
}

/// Sends `chunks` over and over until `meter` has what it wants.
fn ship(
    ends: &Ends,
    options: &Options,
    chunks: &Chunks,
    mut meter: Meter,
) -> Result<Sample, WireError> {
    let Connected { primary, backup, _endpoints } = ends.connect(options)?;
    let sending = ends.sender.spawn({
        let (chunks, mut left) = (chunks.clone(), meter.total_bytes());
        async move {
            for chunk in chunks.iter().cycle() {
                primary.data.send(TERM, chunk.clone()).await?;
                left = left.saturating_sub(chunk.body.len() as u64);
                if left == 0 {
                    break;
                }
            }
            // The session must not end before all of it is there.
            Ok::<_, WireError>(primary)
        }
    });
    let BackupSession { mut receiver, .. } = backup;
    let receiving = ends.receiver.spawn(async move {
        loop {
            let Incoming::Chunk(_, chunk) = receiver.next().await? else { continue };
            if let Some(sample) = meter.arrived(chunk.body.len() as u64) {
                return Ok::<_, WireError>(sample);
            }
        }
    });
    let sample = ends.receiver.block_on(receiving).expect("receiving does not panic")?;
    drop(ends.sender.block_on(sending).expect("sending does not panic")?);
    Ok(sample)
}
