//! The control API: the input is what a client writes to its socket, from the
//! first byte of the first request on.
//!
//! The core behind it takes up what goes well with a node and refuses the rest.
//! The client hangs up after its last byte, so nothing waits for news.

use std::{future::pending, io, sync::Arc};

use romulus::{
    control::{
        Accepted, ControlRequest, ControlRequests, EventKind, Refused, RefusedKind, Severity,
        Surface, Typed, WAITING_MAX, routes, serve_on,
    },
    telemetry::{ConsoleTail, EventLog, Metrics},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    runtime::Builder,
    sync::mpsc,
};

use super::Verdict;

/// What goes from one end to the other without waiting, in bytes.
const PIPE_BYTES: usize = 64 << 10;
/// How often everybody gets a turn after the last byte.
const TURNS: usize = 64;
/// More than any answer to 64 KiB of requests.
const ANSWER_BYTES_MAX: usize = 16 << 20;

pub(super) fn run(bytes: &[u8]) -> Verdict {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let answer = runtime.block_on(converse(bytes));
    if answer.starts_with(b"HTTP/1.1 2") { Verdict::Taken } else { Verdict::Refused }
}

async fn converse(bytes: &[u8]) -> Vec<u8> {
    let (client, server) = tokio::io::duplex(PIPE_BYTES);
    let (requests, received) = mpsc::channel(WAITING_MAX);
    let surface = Surface {
        requests,
        events: Arc::new(EventLog::default()),
        epochs: Arc::default(),
        metrics: Arc::new(Metrics::default()),
        console: Arc::new(ConsoleTail::default()),
    };
    surface.console.push(b"login: ");
    surface.events.record(
        Severity::Info,
        EventKind::GuestStarted,
        "started".to_owned(),
        serde_json::Value::Null,
    );
    tokio::select! {
        answer = talk(client, bytes) => answer,
        served = serve_on(OneCaller(Some(server)), routes(surface), pending()) => {
            unreachable!("nobody ended it: {served:?}")
        }
        () = core(received) => unreachable!("the server has the sender"),
    }
}

async fn talk(client: DuplexStream, bytes: &[u8]) -> Vec<u8> {
    let (reader, mut writer) = tokio::io::split(client);
    let mut answer = Vec::new();
    let write = async {
        // A server that has heard enough hangs up first.
        let _ = writer.write_all(bytes).await;
        // Requests of who has hung up are dropped: they get their turns first.
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
        let _ = writer.shutdown().await;
    };
    let mut reader = reader.take(ANSWER_BYTES_MAX as u64);
    let (read, ()) = tokio::join!(reader.read_to_end(&mut answer), write);
    assert!(read.is_ok_and(|bytes| bytes < ANSWER_BYTES_MAX), "an answer without an end");
    answer
}

/// A listener that one caller comes by.
struct OneCaller(Option<DuplexStream>);

impl axum::serve::Listener for OneCaller {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.0.take() {
            Some(caller) => (caller, ()),
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(())
    }
}

async fn core(mut requests: ControlRequests) {
    let accepted = || Ok(Accepted { message: "taken up".to_owned() });
    let refused = |kind| Refused::new(kind, "not here", "ask elsewhere");
    while let Some(request) = requests.recv().await {
        match request {
            ControlRequest::Status(reply) => {
                drop(reply.send(Err(refused(RefusedKind::Unavailable))));
            }
            ControlRequest::Failover { to, reply, .. } => {
                drop(reply.send(if to.is_some() {
                    accepted()
                } else {
                    Err(refused(RefusedKind::State))
                }));
            }
            ControlRequest::Protect { reply, .. } => drop(reply.send(accepted())),
            ControlRequest::Unprotect { reply, .. } => {
                drop(reply.send(Err(refused(RefusedKind::Unknown))));
            }
            ControlRequest::Verify(reply) => drop(reply.send(Err(refused(RefusedKind::Failed)))),
            ControlRequest::ConsoleInput { bytes, reply } => {
                let typed = Typed { taken: bytes.len(), message: "typed".to_owned() };
                drop(reply.send(Ok(typed)));
            }
            ControlRequest::Shutdown { force, reply } => {
                drop(reply.send(if force { accepted() } else { Err(refused(RefusedKind::State)) }));
            }
            ControlRequest::Stop { reply, .. } => drop(reply),
        }
    }
}
