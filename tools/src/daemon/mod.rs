//! What every daemon has around its core: control socket, signals, telemetry.
//!
//! ```text
//!   SIGTERM, SIGINT ─┐
//!   control socket ──┴─▶ ControlRequests (bounded) ─▶ core (thread or task)
//!                                                       │
//!        /events, /metrics, /console ◀── Telemetry ◀────┘   /status: asked of the core
//! ```
//!
//! A signal is a [`ControlRequest::Stop`]; a second one ends the process at once.

use std::{io, path::Path, sync::Arc};

use axum::Router;
use thiserror::Error;
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    control::{
        self, ControlRequest, ControlRequests, ControlSocket, SocketError, Surface, WAITING_MAX,
    },
    exit::Exit,
    jail::{self, ThreadKind},
    telemetry::{ConsoleTail, EpochLog, EventLog, Metrics},
};

/// Why a daemon has no shell.
#[derive(Debug, Error)]
pub enum ShellError {
    /// No control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No threads or no signals.
    #[error("cannot {action}: {source}: check the limits of this process (`romulus doctor`)")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// What a core publishes to. Clones share.
#[derive(Debug, Clone, Default)]
pub struct Telemetry {
    /// What happened.
    pub events: Arc<EventLog>,
    /// What the last epochs cost.
    pub epochs: Arc<EpochLog>,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Released console bytes.
    pub console: Arc<ConsoleTail>,
}

/// A running shell. Dropping it ends the control API.
#[derive(Debug)]
pub struct Shell {
    /// What operators and signals ask for: the core takes this.
    pub requests: ControlRequests,
    /// What the core publishes to.
    pub telemetry: Telemetry,
    serving: Serving,
}

/// The control API, as long as it is served.
#[derive(Debug)]
pub struct Serving {
    shutdown: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<io::Result<()>>>,
}

impl Shell {
    /// Serves the control API at `control` and catches signals, on `runtime`.
    ///
    /// # Errors
    ///
    /// [`ShellError`] if the socket is in use or the system refuses.
    pub fn start(runtime: &Runtime, control: &Path) -> Result<Self, ShellError> {
        let _entered = runtime.enter();
        let system = |action| move |source| ShellError::System { action, source };
        let terminate = signal(SignalKind::terminate()).map_err(system("catch SIGTERM"))?;
        let interrupt = signal(SignalKind::interrupt()).map_err(system("catch SIGINT"))?;
        let socket = ControlSocket::bind(control)?;
        let (sender, requests) = mpsc::channel(WAITING_MAX);
        let telemetry = Telemetry::default();
        let surface = Surface {
            requests: sender.clone(),
            events: telemetry.events.clone(),
            epochs: telemetry.epochs.clone(),
            metrics: telemetry.metrics.clone(),
            console: telemetry.console.clone(),
        };
        let serving = Serving::start(socket, control::routes(surface));
        runtime.spawn(pass_signals(terminate, interrupt, sender));
        Ok(Self { requests, telemetry, serving })
    }

    /// Takes the shell apart: requests and telemetry for the core, and what
    /// keeps the control API alive.
    #[must_use]
    pub fn into_parts(self) -> (ControlRequests, Telemetry, Serving) {
        (self.requests, self.telemetry, self.serving)
    }
}

impl Serving {
    /// Serves `routes` at `socket` until this is dropped. Needs a tokio runtime.
    #[must_use]
    pub fn start(socket: ControlSocket, routes: Router) -> Self {
        let (shutdown, ended) = oneshot::channel::<()>();
        let task = tokio::spawn(control::serve(socket, routes, async {
            let _ = ended.await;
        }));
        Self { shutdown: Some(shutdown), task: Some(task) }
    }

    /// Ends the control API after answering what is under way.
    pub async fn finish(mut self) {
        drop(self.shutdown.take());
        if let Some(task) = self.task.take() {
            match task.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the control API ended badly"),
                Err(error) => tracing::warn!(%error, "the control API was lost"),
            }
        }
    }
}

/// The runtime of a daemon: network and control only, so few threads, of `kind`.
///
/// # Errors
///
/// [`ShellError::System`] if there can be no threads.
pub fn runtime(kind: ThreadKind) -> Result<Runtime, ShellError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("romulus-net")
        .on_thread_start(move || jail::narrow(kind))
        .enable_all()
        .build()
        .map_err(|source| ShellError::System { action: "start threads", source })
}

async fn pass_signals(
    mut terminate: Signal,
    mut interrupt: Signal,
    core: mpsc::Sender<ControlRequest>,
) {
    let mut asked = false;
    loop {
        let name = tokio::select! {
            Some(()) = terminate.recv() => "SIGTERM",
            Some(()) = interrupt.recv() => "SIGINT",
            else => return,
        };
        if asked {
            tracing::warn!("{name} again: ending at once");
            std::process::exit(Exit::Failed.code().into());
        }
        asked = true;
        let (reply, _) = oneshot::channel();
        let request = ControlRequest::Stop { reason: name.to_owned(), reply };
        // A core that is gone or stuck leaves it to the second signal.
        if core.try_send(request).is_err() {
            tracing::warn!("{name}: the core does not listen; send it again to end at once");
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal as Raised, raise};

    use super::*;
    use crate::control::{Accepted, Client, ClientError};

    #[test]
    fn operators_and_signals_reach_the_core() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.sock");
        let runtime = runtime(ThreadKind::Network).unwrap();
        let mut shell = Shell::start(&runtime, &path).unwrap();
        let client = Client::new(&path);
        let asked = runtime.spawn({
            let client = client.clone();
            async move { client.stop().await }
        });
        let Some(ControlRequest::Stop { reply, .. }) = shell.requests.blocking_recv() else {
            panic!("the operator's wish got lost");
        };
        reply.send(Ok(Accepted { message: "ending".to_owned() })).unwrap();
        assert_eq!(runtime.block_on(asked).unwrap().unwrap().message, "ending");

        raise(Raised::SIGTERM).unwrap();
        let Some(ControlRequest::Stop { reason, .. }) = shell.requests.blocking_recv() else {
            panic!("the signal got lost");
        };
        assert_eq!(reason, "SIGTERM");
        runtime.block_on(shell.into_parts().2.finish());
        let answer = runtime.block_on(client.status());
        assert!(matches!(answer, Err(ClientError::Absent { .. })), "{answer:?}");
    }
}
