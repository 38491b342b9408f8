//! A primary with a valid certificate that never completes anything, or says
//! more than is handled, over a real session: what it may cost is known.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use arbiter::Term;
use checkpoint::{
    Epoch, MemoryLayout, PAGE_BYTES, PageNumber, PageRun,
    chunk::{Chunk, ChunkId, Compression, Encoder},
    message::{Hello, Machine, ToBackup, Welcome},
};
use transport::{
    BackupSession, Endpoint, Identity, Options, PrimarySession,
    identity::pki::{self, Files},
    wire,
};

use super::{core::Input, decoder::Decoders, session::Session, staging::SharedStaging};
use crate::node::UNHANDLED_MAX;

const STAGING_BYTES_MAX: usize = 4 << 20;
const CHUNK_PAGES: u64 = 64;
const TERM: Term = Term::FIRST;
/// A bound on failure, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

fn layout() -> MemoryLayout {
    let ram = PageRun { first: PageNumber::new(0), count: 4096 };
    MemoryLayout::new(vec![ram]).unwrap()
}

fn endpoint(folder: &Path, name: &str) -> Endpoint {
    let node = name.parse().unwrap();
    pki::issue(folder, &node, pki::NODE_DAYS, false).unwrap();
    let (files, ca) = (Files::of_node(folder, &node), Files::of_authority(folder).certificate);
    let identity = Identity::load(&ca, &files.certificate, &files.key).unwrap();
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Endpoint::bind(anywhere, &identity, &Options::default()).unwrap()
}

async fn session(primary: &Endpoint, backup: &Endpoint) -> (PrimarySession, BackupSession) {
    let versions: Vec<_> = wire::VERSIONS.iter().map(|version| (*version).to_owned()).collect();
    let version = versions[0].clone();
    let machine = Machine { layout: layout(), vcpus: 1, traits: [].into() };
    let hello = Hello { versions, vm: "web".parse().unwrap(), machine };
    let name = "backup".parse().unwrap();
    let dialled = primary.dial(backup.local_address(), &name, TERM, &hello);
    let accepted = async {
        let knock = backup.accept().await.unwrap().unwrap();
        let staging_bytes_max = STAGING_BYTES_MAX as u64;
        knock.welcome(TERM, Welcome { version, image: None, staging_bytes_max }).unwrap()
    };
    let (dialled, accepted) = tokio::join!(dialled, accepted);
    (dialled.unwrap().1, accepted)
}

/// Chunk `index` of a seed without a beginning, of an epoch that is never
/// closed, or of epochs that nobody waits for.
fn endless(kind: u8, index: u32) -> Chunk {
    let epoch = [0, 1, 2 + u64::from(index % 10)][usize::from(kind)];
    let id = ChunkId { epoch: Epoch::new(epoch), index: index + 1 };
    let run = PageRun { first: PageNumber::new(0), count: CHUNK_PAGES };
    Encoder::new(Compression::Off).pages(id, &[run], vec![7; CHUNK_PAGES as usize * PAGE_BYTES])
}

#[test]
fn a_primary_that_completes_nothing_is_told_off() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    pki::create_authority(folder.path(), pki::CA_DAYS, false).unwrap();
    let _entered = runtime.enter();
    let [primary, backup] = ["primary", "backup"].map(|name| endpoint(folder.path(), name));
    for kind in 0..3 {
        let sessions = runtime.block_on(async {
            tokio::time::timeout(PATIENCE, session(&primary, &backup)).await.expect("it hangs")
        });
        let (hostile, victim) = sessions;
        let staging = Arc::new(SharedStaging::new(STAGING_BYTES_MAX));
        staging.begin(1);
        let (inputs, received) = mpsc::channel();
        let (decoders, arrivals) = Decoders::start(2, &layout(), &staging, &inputs).unwrap();
        let session = Session::start(1, victim, runtime.handle(), arrivals, inputs);
        let data = hostile.data.clone();
        let attack = runtime.spawn(async move {
            for index in 0.. {
                let chunk = Arc::new(endless(kind, index));
                if data.send(TERM, chunk).await.is_err() {
                    return index;
                }
            }
            unreachable!("it never ends by itself")
        });
        let mut staged = 0;
        loop {
            match received.recv_timeout(PATIENCE).expect("it is told off") {
                Input::Staged { pages, .. } => staged += pages as usize * PAGE_BYTES,
                Input::Excess { session: 1, .. } => break,
                other => panic!("{other:?}"),
            }
            assert!(staged <= 2 * STAGING_BYTES_MAX, "kind {kind} staged {staged} bytes");
        }
        assert!(staged > STAGING_BYTES_MAX / 2, "kind {kind} staged {staged} bytes");
        session.close("it sends more than may be staged");
        let ended = runtime.block_on(async { tokio::time::timeout(PATIENCE, attack).await });
        assert!(ended.expect("the session is over").unwrap() > 0);
        drop(session);
        decoders.join();
    }
}

#[test]
fn a_primary_that_is_faster_than_the_core_waits_for_it() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    pki::create_authority(folder.path(), pki::CA_DAYS, false).unwrap();
    let _entered = runtime.enter();
    let [primary, backup] = ["primary", "backup"].map(|name| endpoint(folder.path(), name));
    let (hostile, victim) = runtime.block_on(async {
        tokio::time::timeout(PATIENCE, session(&primary, &backup)).await.expect("it hangs")
    });
    let staging = Arc::new(SharedStaging::new(STAGING_BYTES_MAX));
    staging.begin(1);
    let (inputs, received) = mpsc::channel();
    let (decoders, arrivals) = Decoders::start(1, &layout(), &staging, &inputs).unwrap();
    let session = Session::start(1, victim, runtime.handle(), arrivals, inputs);
    for ping in 0..2 * UNHANDLED_MAX as u64 {
        hostile.control.send(TERM, ToBackup::Heartbeat { ping }).unwrap();
    }
    let next = || received.recv_timeout(PATIENCE).expect("it hangs");
    let mut waiting: Vec<Input> = (0..UNHANDLED_MAX).map(|_| next()).collect();
    let early = received.recv_timeout(Duration::from_millis(200));
    assert!(early.is_err(), "nobody has handled what is there: {early:?}");
    drop(waiting.pop());
    waiting.push(next());
    assert!(waiting.iter().all(|input| matches!(input, Input::Heard { .. })));
    // Its end is heard of though it waits.
    hostile.link.close("enough");
    assert!(matches!(next(), Input::LinkDown { session: 1 }));
    drop(session);
    decoders.join();
}
