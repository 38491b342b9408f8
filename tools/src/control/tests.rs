//! Server and client over a real socket, with a scripted core behind it.

use std::{
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener as StdListener},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{sync::mpsc, sync::oneshot, task::JoinHandle};

use super::*;
use crate::{
    config::JailMode,
    telemetry::{ConsoleTail, EventLog, Metrics},
};

pub(crate) fn sample_status() -> Status {
    Status {
        protection: Protection::Protected,
        vm: "web-1".parse().unwrap(),
        node: "node-a".parse().unwrap(),
        role: Role::Primary,
        guest: GuestState::Running,
        term: 3,
        epoch: 100,
        committed: 98,
        applied: 97,
        behind: Behind { epochs: 1, ms: 12 },
        in_sync: vec!["node-b".parse().unwrap()],
        peers: vec![PeerStatus {
            name: "node-b".parse().unwrap(),
            address: "10.1.0.2:7700".parse().unwrap(),
            state: PeerState::InSync,
            reason: None,
            seed: None,
        }],
        held_bytes: 640,
        arbiter: ArbiterState::Reachable,
        pause_us: Percentiles { p50: 300, p99: 800, max: 1200 },
        commit_us: Percentiles { p50: 1300, p99: 2800, max: 9200 },
        wire_bytes_per_epoch: 4096,
        epochs: 99,
        refused: RefusedCounts { stale_frames: 1, corrupt_chunks: 0 },
        features: Features {
            dirty_tracking: "bitmap".into(),
            kvm_backend: "pvm".into(),
            jail: Jail {
                mode: JailMode::Strict,
                capabilities: Vec::new(),
                landlock: 6,
                refused_calls: 0,
            },
        },
    }
}

struct Daemon {
    folder: TempDir,
    client: Client,
    requests: ControlRequests,
    surface: Surface,
    shutdown: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

fn daemon() -> Daemon {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/web-1.sock");
    let socket = ControlSocket::bind(&path).unwrap();
    let (sender, requests) = mpsc::channel(2);
    let surface = Surface {
        requests: sender,
        events: Arc::new(EventLog::default()),
        epochs: Arc::default(),
        metrics: Arc::new(Metrics::default()),
        console: Arc::new(ConsoleTail::default()),
    };
    let (shutdown, ended) = oneshot::channel::<()>();
    let serving = tokio::spawn(serve(socket, routes(surface.clone()), async {
        let _ = ended.await;
    }));
    Daemon { folder, client: Client::new(path), requests, surface, shutdown, serving }
}

fn accepted(message: &str) -> Accepted {
    Accepted { message: message.to_owned() }
}

/// A core on a blocking thread, as the daemons may have it.
fn obliging_core(mut requests: ControlRequests) {
    std::thread::spawn(move || {
        while let Some(request) = requests.blocking_recv() {
            match request {
                ControlRequest::Status(reply) => drop(reply.send(Ok(sample_status()))),
                ControlRequest::Failover { take_over: true, reply, .. } => {
                    let _ = reply.send(Ok(accepted("taken over")));
                }
                ControlRequest::Failover { to, reply, .. } => {
                    let answer = match to {
                        Some(to) => Ok(accepted(to.as_str())),
                        None => Err(Refused::new(RefusedKind::State, "nobody in sync", "wait")),
                    };
                    let _ = reply.send(answer);
                }
                ControlRequest::Protect { backup, address, reply } => {
                    let _ = reply.send(Ok(accepted(&format!("{backup:?} {address:?}"))));
                }
                ControlRequest::Unprotect { reply, .. } => drop(reply),
                ControlRequest::Verify(reply) => {
                    let refused = Refused::new(RefusedKind::Failed, "no backup", "add one");
                    let _ = reply.send(Err(refused));
                }
                ControlRequest::ConsoleInput { bytes, reply } => {
                    let typed = Typed { taken: 2, message: String::from_utf8(bytes).unwrap() };
                    let _ = reply.send(Ok(typed));
                }
                ControlRequest::Shutdown { force, reply } => {
                    let _ = reply.send(Ok(accepted(&format!("force {force}"))));
                }
                ControlRequest::Stop { reason, reply } => drop(reply.send(Ok(accepted(&reason)))),
            }
        }
    });
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (u16, String) {
    let ClientError::Refused { status, body } = result.unwrap_err() else {
        panic!("not refused in words");
    };
    (status, format!("{}: {}", body.error, body.remedy))
}

#[tokio::test]
async fn every_route_round_trip() {
    let daemon = daemon();
    obliging_core(daemon.requests);
    let client = daemon.client;
    assert_eq!(client.status().await.unwrap(), sample_status());
    let to = Some("node-b".parse().unwrap());
    let to = FailoverBody { to, ..FailoverBody::default() };
    assert_eq!(client.failover(&to).await.unwrap(), accepted("node-b"));
    let take_over = FailoverBody { to: None, take_over: true };
    assert_eq!(client.failover(&take_over).await.unwrap(), accepted("taken over"));
    let refused = refusal(client.failover(&FailoverBody::default()).await);
    assert_eq!(refused, (409, "nobody in sync: wait".to_owned()));
    assert!(client.protect(&ProtectBody::default()).await.unwrap().message.contains("None"));
    assert_eq!(refusal(client.unprotect(&UnprotectBody::default()).await).0, 503);
    assert_eq!(refusal(client.verify().await), (500, "no backup: add one".to_owned()));
    let typed = Typed { taken: 2, message: "ls\n".to_owned() };
    assert_eq!(client.console_input(b"ls\n".to_vec()).await.unwrap(), typed);
    daemon.surface.console.push(b"login:");
    assert_eq!(client.console(0, Duration::ZERO).await.unwrap().bytes, b"login:");
    assert!(client.metrics().await.unwrap().contains("romulus_epochs_total 0"));
    for force in [false, true] {
        let answer = client.shutdown(&ShutdownBody { force }).await.unwrap();
        assert_eq!(answer, accepted(&format!("force {force}")));
    }
    assert!(client.stop().await.unwrap().message.contains("control API"));
}

#[tokio::test]
async fn events_follow_by_long_poll() {
    let daemon = daemon();
    let events = daemon.surface.events.clone();
    let record = move |text: &str| {
        events.record(Severity::Info, EventKind::BackupAdmitted, text, serde_json::Value::Null);
    };
    record("first");
    let page = daemon.client.events(0, Duration::ZERO).await.unwrap();
    assert_eq!((page.events.len(), page.next_after), (1, 1));
    let client = daemon.client.clone();
    let waiting = tokio::spawn(async move { client.events(1, Duration::from_secs(20)).await });
    tokio::task::yield_now().await;
    record("second");
    let page = waiting.await.unwrap().unwrap();
    assert_eq!(page.events[0].text, "second");
    assert_eq!(page.events[0].sequence, 2);
}

#[tokio::test]
async fn the_console_follows_by_long_poll() {
    let daemon = daemon();
    let console = daemon.surface.console.clone();
    console.push(b"boot ");
    let page = daemon.client.console(0, Duration::from_secs(20)).await.unwrap();
    assert_eq!((page.from, page.next, &page.bytes[..]), (0, 5, &b"boot "[..]));
    let client = daemon.client.clone();
    let waiting = tokio::spawn(async move { client.console(5, Duration::from_secs(20)).await });
    tokio::task::yield_now().await;
    console.push(b"login:");
    let next = waiting.await.unwrap().unwrap();
    assert_eq!((next.process, next.from, next.next), (page.process, 5, 11));
    assert_eq!(next.bytes, b"login:");
    // A number of another process's is answered at once.
    let beyond = daemon.client.console(999, Duration::from_secs(20)).await.unwrap();
    assert_eq!((beyond.next, beyond.bytes.len()), (11, 0));
}

#[tokio::test]
async fn a_core_that_is_gone_or_full_is_503() {
    let mut daemon = daemon();
    for _ in 0..2 {
        let client = daemon.client.clone();
        tokio::spawn(async move { client.status().await });
    }
    let first = daemon.requests.recv().await.unwrap();
    drop(first);
    drop(daemon.requests);
    let (status, words) = refusal(daemon.client.status().await);
    assert_eq!(status, 503);
    assert!(words.contains("the process is ending"), "{words}");
}

/// What an operator without our client sends.
fn raw(daemon: &Daemon, request: &str) -> String {
    let mut stream = std::os::unix::net::UnixStream::connect(daemon.client.path()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_answered_in_json() {
    let daemon = daemon();
    let tail = "HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    for (request, status, words) in [
        (format!("GET /nothing {tail}\r\n"), "404", "no such route"),
        (format!("GET /failover {tail}\r\n"), "405", "wrong method"),
        (format!("GET /events?afer=1 {tail}\r\n"), "400", "/events?after=0&wait_ms=1000"),
        (format!("GET /console?afer=1 {tail}\r\n"), "400", "/console?after=0&wait_ms=1000"),
        (format!("POST /failover {tail}content-length: 9\r\n\r\n{{\"to\":1}}\n"), "400", "remedy"),
    ] {
        let answer = raw(&daemon, &request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(answer.contains(words) && answer.contains("\"remedy\""), "{answer}");
    }
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_the_daemon() {
    let daemon = daemon();
    let path = daemon.client.path().to_owned();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(ControlSocket::bind(&path), Err(SocketError::InUse { .. })));
    daemon.shutdown.send(()).unwrap();
    daemon.serving.await.unwrap().unwrap();
    assert!(!path.exists());
    assert!(matches!(daemon.client.status().await, Err(ClientError::Absent { .. })));
    drop(daemon.folder);
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    drop(StdListener::bind(&path).unwrap());
    assert!(path.exists());
    let bound = ControlSocket::bind(&path).unwrap();
    assert_eq!(bound.path(), path);
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "precious").unwrap();
    assert!(matches!(ControlSocket::bind(&plain), Err(SocketError::NotASocket { .. })));
}
