//! The jail: what a daemon gives up once everything that takes rights is open.
//!
//! ```text
//!   read configuration and keys, open /dev/kvm, taps, userfaultfd     (one thread)
//!   enter ── no core dumps, nobody looks in
//!         ── no capabilities
//!         ── landlock: files and networks of the configuration only
//!         ── seccomp: the process's filter
//!   threads begin, inherit all that, and each adds the filter of its kind
//! ```
//!
//! Capabilities, landlock and seccomp belong to threads, so the jail is entered
//! before there is a second one. Nothing of it can be undone. A process that goes
//! on in another role (a promotion, a handover) therefore does so with what it
//! has open, and never by starting a program.
//!
//! A refused call fails with `EPERM`, is told on stderr by thread and name, and
//! counted; it ends the process only if nobody but an intruder would make it
//! (`calls::judge`). A guest is worth more than the difference.

mod attempt;
mod calls;
mod filter;
mod folders;
mod needs;
mod rights;

use std::{
    io,
    thread::{Builder, JoinHandle},
};

use thiserror::Error;

pub use self::{
    attempt::{Attempt, attempt},
    needs::Needs,
};
use crate::{config::JailMode, control::Jail};

/// Why a process could not be jailed.
#[derive(Debug, Error)]
pub enum JailError {
    /// Capabilities cannot be given up.
    #[error("capabilities cannot be given up: see `romulus doctor`, or set jail = \"off\"")]
    Capabilities(#[from] caps::errors::CapsError),
    /// Landlock is there and refuses the rules.
    #[error("files and networks cannot be restricted: see `romulus doctor`, or set jail = \"off\"")]
    Landlock(#[from] landlock::RulesetError),
    /// The kernel has no seccomp filters, or refuses ours.
    #[error("system calls cannot be filtered: see `romulus doctor`, or set jail = \"off\"")]
    Seccomp(#[from] seccompiler::Error),
    /// Something else was refused.
    #[error("cannot {action}: see `romulus doctor`, or set jail = \"off\"")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// What a thread does, and so what it needs of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ThreadKind {
    /// `main`, and what has no kind of its own: all that the others may.
    Process,
    /// `romulus-net`: sockets, the control API.
    Network,
    /// `vcpu-n`.
    Vcpu,
    /// `net-n`, `blk-n`, `rng-0`.
    Device,
    /// `outlet`, `console`, `announce`: what the guest says.
    Output,
    /// `encode-n`, `copy-n`, `rescue`, `seed-NODE`, `decode-n`, `apply`, `vm-events`.
    Pages,
    /// `epoch`: checkpoints, and restarts of the guest.
    Epoch,
}

impl ThreadKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Process,
        Self::Network,
        Self::Vcpu,
        Self::Device,
        Self::Output,
        Self::Pages,
        Self::Epoch,
    ];
}

impl From<vmm::thread::ThreadKind> for ThreadKind {
    fn from(kind: vmm::thread::ThreadKind) -> Self {
        match kind {
            vmm::thread::ThreadKind::Vcpu => Self::Vcpu,
            vmm::thread::ThreadKind::Device => Self::Device,
            vmm::thread::ThreadKind::Output => Self::Output,
        }
    }
}

/// What is in force in this process.
#[derive(Debug, Clone)]
pub struct InForce {
    mode: JailMode,
    capabilities: Vec<String>,
    landlock: u32,
}

impl InForce {
    /// As `status` tells it.
    #[must_use]
    pub fn status(&self) -> Jail {
        Jail {
            mode: self.mode,
            capabilities: self.capabilities.clone(),
            landlock: self.landlock,
            refused_calls: vmm::refusal::refused_calls(),
        }
    }
}

/// Jails this process: there is no other thread yet. `Log` restricts nothing, and
/// has the kernel log the system calls that would be refused.
///
/// # Errors
///
/// [`JailError`]; the process may be half jailed then, and should end.
///
/// # Panics
///
/// If there are other threads: they would stay outside.
pub fn enter(mode: JailMode, needs: &Needs) -> Result<InForce, JailError> {
    let mut landlock = 0;
    if mode != JailMode::Off {
        let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        assert_eq!(threads, 1, "the jail is entered before threads begin");
        rights::keep_to_itself()?;
    }
    if mode == JailMode::Strict {
        rights::drop_capabilities(needs)?;
        landlock = folders::restrict(needs)?;
        if landlock == 0 {
            tracing::warn!("this kernel has no landlock: files are guarded by their owners only");
        }
        vmm::refusal::judge_refused_calls(calls::judge)
            .map_err(|source| JailError::System { action: "handle SIGSYS", source })?;
    }
    let capabilities = rights::capabilities()?;
    filter::install(mode)?;
    vmm::thread::on_start(|kind| narrow(kind.into()));
    tracing::debug!(%mode, landlock, "jailed");
    Ok(InForce { mode, capabilities, landlock })
}

/// Adds to this thread the restrictions of its kind.
pub fn narrow(kind: ThreadKind) {
    if let Err(error) = filter::narrow(kind) {
        tracing::error!(%error, ?kind, "a thread has only the restrictions of its process");
    }
}

/// Starts a thread of `kind`.
///
/// # Errors
///
/// If the system has no more.
pub fn spawn<T: Send + 'static>(
    kind: ThreadKind,
    name: impl Into<String>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.into()).spawn(move || {
        narrow(kind);
        work()
    })
}

/// The version of landlock that has all that is used.
pub const LANDLOCK_MAX: u32 = folders::WANTED as u32;

/// How much of landlock this kernel offers, up to [`LANDLOCK_MAX`]; 0 for none.
#[must_use]
pub fn landlock_available() -> u32 {
    folders::available()
}
