//! The daemon that serves the register.
//!
//! With a register file it holds the file's lock as long as it lives. With etcd
//! it keeps nothing, so that several arbiters may serve the same registers, and
//! starts whether etcd answers or not. It answers nodes by `transport`, and ends
//! at SIGTERM or SIGINT; every answer it gave is on disk, its own or that of
//! etcd's majority, by then.

mod control;
mod figures;
mod registers;

use std::sync::Arc;

use arbiter::{FileError, Store, StoreError};
use etcd::SettingsError;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use transport::{ArbiterServer, BindError, Identity, Options, identity::IdentityError};

use self::{
    control::Surface,
    figures::{Counted, Figures},
    registers::Registers,
};
use crate::{
    config::ArbiterConfig,
    control::{ControlSocket, SocketError, make_folder},
    daemon::{Serving, ShellError, runtime},
    exit::Exit,
    jail::{self, JailError, Needs, ThreadKind},
};

/// Why the arbiter could not do its work.
#[derive(Debug, Error)]
pub enum ArbiterError {
    /// The register file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The registers cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// etcd cannot be reached with these settings.
    #[error(transparent)]
    Etcd(#[from] SettingsError),
    /// The certificate or key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate is another node's.
    #[error(
        "the certificate is that of {certified}, the configuration names {configured}: give the arbiter its own certificate (`romulus pki issue {configured}`)"
    )]
    Name {
        /// Whose it is.
        certified: arbiter::NodeId,
        /// Whose it should be.
        configured: arbiter::NodeId,
    },
    /// No threads or no signals.
    #[error(transparent)]
    Shell(#[from] ShellError),
    /// There is no control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// It could not be jailed.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The address cannot be served.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// Serves until a signal ends it.
///
/// # Errors
///
/// [`ArbiterError`].
///
/// # Panics
///
/// If this process has other threads already.
pub fn run(config: ArbiterConfig) -> Result<Exit, ArbiterError> {
    let paths = &config.identity;
    let identity = Identity::load(&paths.ca, &paths.cert, &paths.key)?;
    if *identity.node() != config.name {
        let certified = identity.node().clone();
        return Err(ArbiterError::Name { certified, configured: config.name });
    }
    if let Some(control) = &config.control {
        make_folder(control)?;
    }
    let jail = jail::enter(config.jail, &Needs::of_arbiter(&config))?;
    let runtime = runtime(ThreadKind::Process)?;
    let registers = Registers::open(&config.store, runtime.handle())?;
    let figures = Arc::new(Figures::default());
    runtime.block_on(async {
        let caught = |source| ShellError::System { action: "catch signals", source };
        let mut terminate = signal(SignalKind::terminate()).map_err(caught)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(caught)?;
        let counted = |store| Box::new(Counted { store, figures: figures.clone() });
        let stores =
            registers.handles().into_iter().map(|store| counted(store) as Box<dyn Store + Send>);
        let options = Options::default();
        let server = ArbiterServer::serve(config.listen, &identity, &options, stores.collect())?;
        let address = server.local_address();
        let name = config.name.clone();
        let surface = Surface { name, address, registers, figures, jail };
        let control = config.control.as_deref().map(ControlSocket::bind).transpose()?;
        let serving =
            control.map(|socket| Serving::start(socket, control::routes(surface.clone())));
        let watch = tokio::spawn(surface.watch());
        tracing::info!(name = %config.name, %address, "the register is open");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("the arbiter ends");
        watch.abort();
        server.shutdown().await;
        if let Some(serving) = serving {
            serving.finish().await;
        }
        Ok(Exit::Done)
    })
}
