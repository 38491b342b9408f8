//! Threads of this crate: named, and known to whoever owns the process before
//! they do anything, so that it can take from each what it does not need.

use std::{
    io,
    sync::OnceLock,
    thread::{Builder, JoinHandle},
};

/// What a thread does, and so what it needs of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a vCPU: `vcpu-n`.
    Vcpu,
    /// Serves a device: `net-n`, `blk-n`, `rng-0`.
    Device,
    /// Writes what the guest says: `outlet`, `console`.
    Output,
}

static ON_START: OnceLock<fn(ThreadKind)> = OnceLock::new();

/// Has every thread that this crate starts from now on call `look` first. What
/// was set once stays.
pub fn on_start(look: fn(ThreadKind)) {
    let _ = ON_START.set(look);
}

/// Starts a thread.
pub(crate) fn spawn(
    kind: ThreadKind,
    name: String,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name).spawn(move || {
        if let Some(look) = ON_START.get() {
            look(kind);
        }
        work();
    })
}
