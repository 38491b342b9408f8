//! Sessions over loopback, with real TLS.

mod cluster;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arbiter::{ImageId, Term};
use checkpoint::{
    Epoch,
    chunk::ChunkId,
    message::{Refusal, ToBackup, ToPrimary, Welcome},
};
use cluster::{ANYWHERE, Cluster, TERM, chunk, hello, node, welcome, within};
use romulus_transport::{
    AcceptError, DialError, Endpoint, Incoming, Options, SessionError,
    wire::{self, Frame, Header, Kind, WireError},
};

#[tokio::test]
async fn both_sides_are_heard_in_order() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.endpoint("a"), cluster.endpoint("b"));
    let (greeting, to) = (hello(), node("b"));
    let dialled = a.dial(b.local_address(), &to, TERM, &greeting);
    let accepted = async {
        let knock = b.accept().await.unwrap().unwrap();
        assert_eq!((&knock.peer, knock.term, &knock.hello), (&node("a"), TERM, &greeting));
        knock.welcome(Term::new(4), welcome()).unwrap()
    };
    let (dialled, mut backup) = within(async { tokio::join!(dialled, accepted) }).await;
    let (welcomed, mut primary) = dialled.unwrap();
    assert_eq!((welcomed, primary.welcome_term), (welcome(), Term::new(4)));
    assert_eq!(primary.link.peer(), &node("b"));
    for number in 0..1000 {
        let ack = ToPrimary::SeedAck { chunks: number };
        backup.control.send(TERM, ack).unwrap();
        let reason = number.to_string();
        primary.control.send(Term::new(6), ToBackup::Farewell { reason }).unwrap();
    }
    for number in 0..1000 {
        let heard = within(primary.receiver.next()).await;
        assert_eq!(heard, Ok((TERM, ToPrimary::SeedAck { chunks: number })));
        let reason = number.to_string();
        let heard = within(backup.receiver.next()).await;
        assert_eq!(heard, Ok(Incoming::Message(Term::new(6), ToBackup::Farewell { reason })));
    }
    primary.link.close("the drill is over");
    let ended = within(backup.receiver.next()).await.unwrap_err();
    assert_eq!(ended.to_string(), "a ended the session: the drill is over");
    let ended = within(primary.receiver.next()).await;
    assert_eq!(ended, Err(SessionError::Ended { peer: node("b") }));
    assert!(primary.control.send(TERM, ToBackup::Heartbeat { ping: 1 }).is_err());
}

#[tokio::test]
async fn refusals_come_with_their_reason() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.endpoint("a"), cluster.endpoint("b"));
    let refusals = [
        Refusal::Version { spoken: vec!["romulus/3".into()] },
        Refusal::Machine { difference: "vCPUs differ: 1 here, 2 there".into() },
        Refusal::Stale { current: Term::new(9) },
        Refusal::Promoting,
        Refusal::Unready { reason: "no memory".into() },
    ];
    for expected in refusals {
        let (greeting, to) = (hello(), node("b"));
        let dialled = a.dial(b.local_address(), &to, TERM, &greeting);
        let refused = async {
            let knock = b.accept().await.unwrap().unwrap();
            knock.refuse(Term::new(9), expected.clone()).await;
        };
        let (dialled, ()) = within(async { tokio::join!(dialled, refused) }).await;
        match dialled {
            Err(DialError::Refused { term, refusal, .. }) => {
                assert_eq!((term, refusal), (Term::new(9), expected));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_version_that_was_not_offered_is_no_welcome() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.endpoint("a"), cluster.endpoint("b"));
    let (greeting, to) = (hello(), node("b"));
    let dialled = a.dial(b.local_address(), &to, TERM, &greeting);
    let accepted = async {
        let knock = b.accept().await.unwrap().unwrap();
        knock.welcome(TERM, Welcome { version: "romulus/7".into(), ..welcome() }).unwrap()
    };
    let (dialled, _session) = within(async { tokio::join!(dialled, accepted) }).await;
    assert!(matches!(dialled, Err(DialError::Malformed { .. })), "{dialled:?}");
}

#[tokio::test]
async fn an_idle_reader_stops_the_sender_and_loses_nothing() {
    const CHUNKS: u32 = 120;
    let cluster = Cluster::new();
    let (a, b) = (cluster.endpoint("a"), cluster.endpoint("b"));
    let (primary, mut backup) = cluster.session(&a, &b, "b").await;
    let sample = chunk(0, 256);
    let taken = Arc::new(AtomicU32::new(0));
    let sending = tokio::spawn({
        let (data, taken, sample) = (primary.data.clone(), taken.clone(), sample.clone());
        async move {
            for index in 0..CHUNKS {
                let mut chunk = sample.clone();
                chunk.id.index = index;
                data.send(TERM, Arc::new(chunk)).await.unwrap();
                taken.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    // Windows and queues together hold some 50 MiB. Were there no bound, the
    // sender would not come to rest before it has sent all.
    within(async {
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = taken.load(Ordering::Relaxed);
            if now == before && now > 8 {
                break;
            }
            before = now;
        }
    })
    .await;
    let at_rest = taken.load(Ordering::Relaxed);
    assert!(at_rest < 100, "{at_rest} chunks are held for an idle reader");
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < CHUNKS as usize {
        match within(backup.receiver.next()).await {
            Ok(Incoming::Chunk(TERM, got)) => {
                assert!(got.body == sample.body && got.digest == sample.digest);
                assert!(seen.insert(got.id.index));
            }
            other => panic!("{other:?}"),
        }
    }
    within(sending).await.unwrap();
    let stats = primary.link.stats();
    assert!(stats.sent_bytes > 120 << 20 && stats.mtu_bytes >= 1200, "{stats:?}");
}

#[tokio::test]
async fn messages_pass_chunks_that_nobody_takes() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.endpoint("a"), cluster.endpoint("b"));
    let (mut primary, mut backup) = cluster.session(&a, &b, "b").await;
    let data = primary.data.clone();
    let sample = Arc::new(chunk(0, 256));
    let flood = tokio::spawn(async move { while data.send(TERM, sample.clone()).await.is_ok() {} });
    // The first chunk proves that the flood is here, before the message is.
    assert!(matches!(within(backup.receiver.next()).await, Ok(Incoming::Chunk(..))));
    for _ in 0..5 {
        primary.control.send(TERM, ToBackup::Heartbeat { ping: 1 }).unwrap();
        // At most what was read already may come before the message.
        let mut chunks = 0;
        while let Incoming::Chunk(..) = within(backup.receiver.next()).await.unwrap() {
            chunks += 1;
        }
        assert!(chunks < 60, "{chunks} chunks before a message");
        backup.control.send(TERM, ToPrimary::Heartbeat { pong: 1, steps: 0 }).unwrap();
        within(primary.receiver.next()).await.unwrap();
    }
    primary.link.close("enough");
    within(flood).await.unwrap();
}

#[tokio::test]
async fn stale_terms_are_refused_and_named() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.endpoint("a"), cluster.endpoint("b"));
    let (primary, mut backup) = cluster.session(&a, &b, "b").await;
    let (old, new) = (TERM, Term::new(6));
    // The session began under TERM: what is below it is stale from the start.
    primary.control.send(Term::new(4), ToBackup::BeginSeed { image: ImageId::new(5) }).unwrap();
    let heard = within(backup.receiver.next()).await;
    assert_eq!(heard, Ok(Incoming::Stale { term: Term::new(4), chunk: None }));
    backup.floor.raise(new);
    backup.floor.raise(old);
    assert_eq!(backup.floor.get(), new);
    for index in 0..8 {
        primary.data.send(old, Arc::new(chunk(index, 16))).await.unwrap();
    }
    let mut refused = std::collections::BTreeSet::new();
    for _ in 0..8 {
        match within(backup.receiver.next()).await {
            Ok(Incoming::Stale { term, chunk: Some(id) }) if term == old => refused.insert(id),
            other => panic!("{other:?}"),
        };
    }
    let all = (0..8).map(|index| ChunkId { epoch: Epoch::new(3), index });
    assert_eq!(refused, all.collect());
    // The streams go on after what was refused.
    for index in 0..8 {
        primary.data.send(new, Arc::new(chunk(index, 16))).await.unwrap();
    }
    for _ in 0..8 {
        let heard = within(backup.receiver.next()).await;
        assert!(matches!(heard, Ok(Incoming::Chunk(term, _)) if term == new), "{heard:?}");
    }
    assert_eq!(backup.link.stats().stale_frames, 9);
}

#[tokio::test]
async fn a_frame_that_waited_while_the_floor_rose_is_stale() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.endpoint("a"), cluster.endpoint("b"));
    let (mut primary, mut backup) = cluster.session(&a, &b, "b").await;
    let [first, second] = [1, 2].map(|number| ToBackup::Farewell { reason: number.to_string() });
    primary.control.send(TERM, first.clone()).unwrap();
    primary.control.send(TERM, second).unwrap();
    assert_eq!(within(backup.receiver.next()).await, Ok(Incoming::Message(TERM, first)));
    backup.floor.raise(Term::new(6));
    let heard = within(backup.receiver.next()).await;
    assert_eq!(heard, Ok(Incoming::Stale { term: TERM, chunk: None }));
    backup.control.send(Term::new(6), ToPrimary::Heartbeat { pong: 1, steps: 0 }).unwrap();
    let answer = within(primary.receiver.next()).await;
    assert_eq!(answer, Ok((Term::new(6), ToPrimary::Heartbeat { pong: 1, steps: 0 })));
}

#[tokio::test]
async fn finishing_delivers_everything() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.endpoint("a"), cluster.endpoint("b"));
    let (primary, mut backup) = cluster.session(&a, &b, "b").await;
    for _ in 0..500 {
        primary.control.send(TERM, ToBackup::Heartbeat { ping: 1 }).unwrap();
    }
    let farewell = ToBackup::Farewell { reason: "powered off".into() };
    primary.control.send(TERM, farewell.clone()).unwrap();
    let reading = async {
        for _ in 0..500 {
            assert!(backup.receiver.next().await.is_ok());
        }
        let last = backup.receiver.next().await;
        (last, backup.receiver.next().await)
    };
    let (finished, (last, end)) =
        within(async { tokio::join!(primary.control.finish(), reading) }).await;
    assert_eq!(finished, Ok(()));
    assert_eq!(last, Ok(Incoming::Message(TERM, farewell)));
    assert!(matches!(end, Err(SessionError::Closed { .. })), "{end:?}");
}

/// Bytes that are no frame, and what the error says.
fn garbage() -> Vec<(Vec<u8>, &'static str)> {
    let sound = Header { kind: Kind::BeginSeed, body_bytes: 8, term: TERM, chunk: None };
    let with = |at: usize, bytes: &[u8]| {
        let mut header = sound.encode().to_vec();
        header[at..at + bytes.len()].copy_from_slice(bytes);
        header
    };
    vec![
        (b"GET / HTTP/1.1\r\nHost: romulus\r\n\r\n".to_vec(), "does not speak"),
        (with(2, &[0x7f]), "unknown kind 0x7f"),
        (with(4, &[9, 0, 0, 0]), "beyond its limit of 8"),
        (with(4, &[0xff; 4]), "beyond its limit"),
        (with(16, &[1]), "reserved"),
        (
            wire::encode(TERM, &Frame::ToPrimary(ToPrimary::Heartbeat { pong: 1, steps: 0 }))
                .unwrap(),
            "a backup's heartbeat frame has no place here",
        ),
    ]
}

#[tokio::test]
async fn garbage_ends_a_session_and_says_so() {
    let cluster = Cluster::new();
    let backup = cluster.endpoint("b");
    let greeting = wire::encode(TERM, &Frame::Hello(hello())).unwrap();
    for on_data_stream in [false, true] {
        for (bytes, expected) in garbage() {
            let raw = cluster.raw(&cluster.files("a"), backup.local_address(), "b").await;
            let (mut send, _recv) = raw.open_bi().await.unwrap();
            send.write_all(&greeting).await.unwrap();
            let knock = within(backup.accept()).await.unwrap().unwrap();
            let mut session = knock.welcome(TERM, welcome()).unwrap();
            let mut stream = if on_data_stream { raw.open_uni().await.unwrap() } else { send };
            stream.write_all(&bytes).await.unwrap();
            match within(session.receiver.next()).await {
                Err(SessionError::Malformed { source, .. }) => {
                    assert!(source.to_string().contains(expected), "{source}");
                }
                other => panic!("{other:?}"),
            }
            match within(raw.closed()).await {
                quinn::ConnectionError::ApplicationClosed(close) => {
                    let reason = String::from_utf8_lossy(&close.reason).into_owned();
                    assert_eq!(close.error_code, quinn::VarInt::from_u32(2));
                    assert!(reason.contains(expected), "{reason}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn garbage_instead_of_a_hello_is_told_and_others_are_served() {
    let cluster = Cluster::new();
    let backup = cluster.endpoint("b");
    for (bytes, expected) in garbage() {
        let raw = cluster.raw(&cluster.files("a"), backup.local_address(), "b").await;
        let (mut send, _recv) = raw.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        let told = within(backup.accept()).await.unwrap();
        match told {
            Err(AcceptError::Malformed { peer, source, .. }) => {
                assert_eq!(peer, node("a"));
                assert!(source.to_string().contains(expected), "{source}");
            }
            other => panic!("{other:?}"),
        }
    }
    let a = cluster.endpoint("a");
    cluster.session(&a, &backup, "b").await;
}

#[tokio::test]
async fn silent_callers_keep_nobody_waiting() {
    let cluster = Cluster::new();
    let backup = cluster.endpoint("b");
    let mut silent = Vec::new();
    for _ in 0..20 {
        let files = cluster.files("c");
        silent.push(cluster.raw(&files, backup.local_address(), "b").await);
    }
    let a = cluster.endpoint("a");
    let (_primary, _backup) = cluster.session(&a, &backup, "b").await;
    assert!(silent.iter().all(|raw| raw.close_reason().is_none()), "one was not silent to us");
}

#[tokio::test]
async fn a_silent_caller_is_let_go() {
    let cluster = Cluster::new();
    let options = Options { answer_timeout: Duration::from_millis(50), ..Options::default() };
    let backup = cluster.endpoint_at("b", ANYWHERE, &options);
    let raw = cluster.raw(&cluster.files("a"), backup.local_address(), "b").await;
    let told = within(backup.accept()).await.unwrap();
    assert!(matches!(told, Err(AcceptError::Silent { .. })), "{told:?}");
    assert!(matches!(within(raw.closed()).await, quinn::ConnectionError::ApplicationClosed(_)));
}

#[tokio::test]
async fn nobody_at_the_address() {
    let cluster = Cluster::new();
    let options = Options { connect_timeout: Duration::from_millis(100), ..Options::default() };
    let a = cluster.endpoint_at("a", ANYWHERE, &options);
    let free = std::net::UdpSocket::bind(ANYWHERE).unwrap();
    let address = free.local_addr().unwrap();
    let dialled = within(a.dial(address, &node("b"), TERM, &hello())).await;
    assert!(matches!(dialled, Err(DialError::Unreachable { .. })), "{dialled:?}");
}

/// A node in a runtime of its own, which can be taken from it like a killed
/// process: nothing is said to anybody.
struct Process {
    runtime: tokio::runtime::Runtime,
    endpoint: Endpoint,
}

impl Process {
    async fn start(cluster: &Cluster, name: &str, at: std::net::SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let identity = cluster.identity(name);
        let bound = within(async {
            loop {
                let _inside = runtime.enter();
                match Endpoint::bind(at, &identity, &long_lived()) {
                    Ok(endpoint) => break endpoint,
                    Err(error) => assert_ne!(at.port(), 0, "{error}"),
                }
                tokio::task::yield_now().await;
            }
        });
        let endpoint = bound.await;
        Self { runtime, endpoint }
    }

    fn kill(self) {
        // Until its threads have ended they could still say goodbye.
        let runtime = self.runtime;
        std::thread::spawn(|| runtime.shutdown_timeout(Duration::from_secs(10))).join().unwrap();
        drop(self.endpoint);
    }
}

fn long_lived() -> Options {
    Options { idle_timeout: Duration::from_secs(600), ..Options::default() }
}

#[tokio::test]
async fn after_a_killed_peer_came_back_the_old_session_ends_and_a_new_one_stands() {
    let cluster = Cluster::new();
    let a = cluster.endpoint_at("a", ANYWHERE, &long_lived());
    let first = Process::start(&cluster, "b", ANYWHERE).await;
    let address = first.endpoint.local_address();
    let (mut primary, backup) = cluster.session(&a, &first.endpoint, "b").await;
    backup.control.send(TERM, ToPrimary::Heartbeat { pong: 1, steps: 0 }).unwrap();
    within(primary.receiver.next()).await.unwrap();
    first.kill();
    drop(backup);
    let second = Process::start(&cluster, "b", address).await;
    let (mut again, backup) = cluster.session(&a, &second.endpoint, "b").await;
    backup.control.send(TERM, ToPrimary::Heartbeat { pong: 1, steps: 0 }).unwrap();
    assert_eq!(
        within(again.receiver.next()).await,
        Ok((TERM, ToPrimary::Heartbeat { pong: 1, steps: 0 }))
    );
    // The successor does not know the old connection and says so to the next
    // packet of it, long before its idle timeout.
    let _ = primary.control.send(TERM, ToBackup::Heartbeat { ping: 1 });
    match within(primary.receiver.next()).await {
        Err(SessionError::Lost { source, .. }) => assert_eq!(source, quinn::ConnectionError::Reset),
        other => panic!("{other:?}"),
    }
    second.kill();
}

#[tokio::test]
async fn packets_grow_to_what_the_path_carries() {
    let cluster = Cluster::new();
    let options = Options::default();
    let a = cluster.endpoint_at("a", ANYWHERE, &options);
    let b = cluster.endpoint_at("b", ANYWHERE, &options);
    let (primary, mut backup) = cluster.session(&a, &b, "b").await;
    let sample = Arc::new(chunk(1, 256));
    let moving = async {
        // Loopback carries 64 KiB: see `path`.
        while primary.link.stats().mtu_bytes < 64_000 {
            let sending = primary.data.send(TERM, sample.clone());
            let (sent, heard) = tokio::join!(sending, backup.receiver.next());
            sent.unwrap();
            assert_eq!(heard, Ok(Incoming::Chunk(TERM, (*sample).clone())));
        }
    };
    within(moving).await;
}

#[tokio::test]
async fn a_wire_error_is_kept_as_the_source() {
    let error = SessionError::Malformed { peer: node("a"), source: WireError::Early };
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "frame ends early");
}
