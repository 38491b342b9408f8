//! Sessions over lines that are worse than loopback: a relay between the two ends
//! delays, loses, swallows what is too large and carries only so much in a second.

mod cluster;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arbiter::NodeId;
use checkpoint::{
    Epoch,
    chunk::Chunk,
    message::{Close, ToBackup, ToPrimary},
};
use cluster::{ANYWHERE, Cluster, TERM, chunk, hello, node, welcome, within};
use romulus_transport::{BackupSession, Incoming, Options, PrimarySession};
use tokio::{net::UdpSocket, task::JoinSet};

/// What a line does to packets.
#[derive(Debug, Clone, Copy)]
struct Impairment {
    /// In each direction.
    delay: Duration,
    /// One of so many is lost; 0: none.
    loses_one_of: u64,
    /// Larger UDP payloads are swallowed, and nobody is told.
    payload_bytes_max: usize,
    /// The line carries so much, and lets packets fall for which its buffer has no
    /// room.
    narrow: Option<Narrow>,
}

#[derive(Debug, Clone, Copy)]
struct Narrow {
    bytes_per_second: u64,
    buffer_bytes: u64,
}

const ETHERNET: Impairment =
    Impairment { delay: Duration::ZERO, loses_one_of: 0, payload_bytes_max: 1472, narrow: None };

impl Narrow {
    /// How long a packet waits that comes when the line is free in `busy`; `None`
    /// if there is no room for it.
    fn wait(self, busy: Duration, length: usize) -> Option<Duration> {
        let takes =
            |bytes: u64| Duration::from_secs(1) * bytes as u32 / self.bytes_per_second as u32;
        (busy <= takes(self.buffer_bytes)).then(|| busy + takes(length as u64))
    }
}

/// A line from one caller to `to`. Ends when it is dropped.
struct Relay {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Relay {
    async fn start(to: SocketAddr, impairment: Impairment) -> Self {
        let near = Arc::new(UdpSocket::bind(ANYWHERE).await.unwrap());
        let far = Arc::new(UdpSocket::bind(ANYWHERE).await.unwrap());
        let address = near.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        let (caller_known, caller) = tokio::sync::watch::channel(None);
        let (out, back) = ((near.clone(), far.clone()), (far, near));
        tasks.spawn(async move {
            let (from, into) = out;
            carry(&from, &into, impairment, |caller| {
                caller_known.send_replace(Some(caller));
                Some(to)
            })
            .await;
        });
        tasks.spawn(async move {
            let (from, into) = back;
            carry(&from, &into, impairment, |_| *caller.borrow()).await;
        });
        Self { address, _tasks: tasks }
    }
}

/// Carries packets from one socket into another, to where `whither` says.
async fn carry(
    from: &UdpSocket,
    into: &Arc<UdpSocket>,
    impairment: Impairment,
    mut whither: impl FnMut(SocketAddr) -> Option<SocketAddr>,
) {
    let Impairment { delay, loses_one_of, payload_bytes_max, narrow } = impairment;
    let mut free_at = Instant::now();
    let mut buffer = vec![0; 65_536];
    let mut chance = 0x2545_f491_4f6c_dd1d_u64;
    // Packets on their way; they go with the line.
    let mut under_way = JoinSet::new();
    loop {
        let Ok((length, caller)) = from.recv_from(&mut buffer).await else { continue };
        while under_way.try_join_next().is_some() {}
        let Some(to) = whither(caller) else { continue };
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        if length > payload_bytes_max || (loses_one_of > 0 && chance.is_multiple_of(loses_one_of)) {
            continue;
        }
        let now = Instant::now();
        let wait = match narrow {
            Some(narrow) => narrow.wait(free_at.saturating_duration_since(now), length),
            None => Some(Duration::ZERO),
        };
        let Some(wait) = wait else { continue };
        free_at = now + wait;
        let (packet, into) = (buffer[..length].to_vec(), into.clone());
        under_way.spawn(async move {
            tokio::time::sleep(wait + delay).await;
            let _ = into.send_to(&packet, to).await;
        });
    }
}

/// A session of default options over a line.
async fn session_over(impairment: Impairment) -> (PrimarySession, BackupSession, Relay) {
    let cluster = Cluster::new();
    let options = Options { connect_timeout: Duration::from_secs(30), ..Options::default() };
    let a = cluster.endpoint_at("a", ANYWHERE, &options);
    let b = cluster.endpoint_at("b", ANYWHERE, &options);
    let relay = Relay::start(b.local_address(), impairment).await;
    let (hello, to): (_, NodeId) = (hello(), node("b"));
    let dialled = a.dial(relay.address, &to, TERM, &hello);
    let accepted = async { b.accept().await.unwrap().unwrap().welcome(TERM, welcome()).unwrap() };
    let (dialled, backup) = within(async { tokio::join!(dialled, accepted) }).await;
    // An endpoint ends its sessions when it goes.
    std::mem::forget((a, b));
    (dialled.unwrap().1, backup, relay)
}

/// Sends `epochs` epochs of a chunk each, at most `in_flight` of them unacknowledged;
/// the backup acknowledges an epoch that is whole.
async fn replicate(
    primary: &mut PrimarySession,
    backup: BackupSession,
    epochs: u64,
    in_flight: u64,
) {
    let committing = tokio::spawn(commit(backup, epochs));
    let mut committed = 0;
    for epoch in 1..=epochs {
        while epoch - committed > in_flight {
            committed = acknowledged(primary).await;
        }
        let mut sent: Chunk = chunk(epoch as u32, 16);
        sent.id.epoch = Epoch::new(epoch);
        sent.digest = sent.expected_digest();
        primary.data.send(TERM, Arc::new(sent)).await.unwrap();
        let close = Close {
            epoch: Epoch::new(epoch),
            seed_chunks: None,
            chunks: 1,
            pages: 16,
            digest: [0; 32],
        };
        primary.control.send(TERM, ToBackup::Close(close)).unwrap();
    }
    while committed < epochs {
        committed = acknowledged(primary).await;
    }
    committing.await.unwrap();
}

async fn acknowledged(primary: &mut PrimarySession) -> u64 {
    match primary.receiver.next().await.unwrap() {
        (TERM, ToPrimary::Ack { committed, .. }) => committed.get(),
        other => panic!("{other:?}"),
    }
}

async fn commit(mut backup: BackupSession, epochs: u64) -> BackupSession {
    let (mut chunks, mut closes) = (std::collections::BTreeSet::new(), 0);
    let mut committed = 0;
    while committed < epochs {
        match backup.receiver.next().await.unwrap() {
            Incoming::Chunk(TERM, chunk) => {
                assert_eq!(chunk.digest, chunk.expected_digest());
                assert!(chunks.insert(chunk.id.epoch.get()), "a chunk came twice");
            }
            Incoming::Message(TERM, ToBackup::Close(close)) => {
                closes += 1;
                assert_eq!(close.epoch.get(), closes, "control messages keep their order");
            }
            other => panic!("{other:?}"),
        }
        let before = committed;
        while committed < closes && chunks.contains(&(committed + 1)) {
            committed += 1;
        }
        if committed > before {
            let (committed, applied) = (Epoch::new(committed), Epoch::ZERO);
            backup.control.send(TERM, ToPrimary::Ack { committed, applied }).unwrap();
        }
    }
    backup
}

/// The first line to the peer is loopback, which carries 64 KiB; what is behind it
/// carries Ethernet's packets, and tells nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_carries_less_than_its_first_line_is_found_out() {
    let (mut primary, backup, _relay) = session_over(ETHERNET).await;
    within(replicate(&mut primary, backup, 200, 4)).await;
    let stats = primary.link.stats();
    assert!((1200..=1472).contains(&stats.mtu_bytes), "{stats:?}");
}

/// A hundred milliseconds there and back, and one packet of two hundred lost: everything
/// comes, whole and in order, with as many epochs on their way as the round trip takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_and_lossy_line_loses_no_epoch() {
    let wide_area = Impairment { delay: Duration::from_millis(50), loses_one_of: 200, ..ETHERNET };
    let (mut primary, backup, _relay) = session_over(wide_area).await;
    within(replicate(&mut primary, backup, 60, 11)).await;
    let stats = primary.link.stats();
    assert!(stats.rtt >= Duration::from_millis(100), "{stats:?}");
    assert!(stats.lost_packets > 0, "{stats:?}");
}

/// 16 Mbit/s behind a buffer of 64 KiB: what is sent in bursts falls at its door,
/// and comes all the same, with no more on the way than the line takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrow_line_with_a_small_buffer_loses_no_epoch() {
    let narrow = Narrow { bytes_per_second: 2 << 20, buffer_bytes: 64 << 10 };
    let line = Impairment { delay: Duration::from_millis(10), narrow: Some(narrow), ..ETHERNET };
    let (mut primary, backup, _relay) = session_over(line).await;
    within(replicate(&mut primary, backup, 60, 8)).await;
    let stats = primary.link.stats();
    assert!(stats.lost_packets > 0, "the buffer was full: {stats:?}");
}
