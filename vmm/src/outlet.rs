//! Where the guest's output leaves (skeleton: the signatures are final).

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use romulus_checkpoint::{
    Epoch,
    output::{Mode, Output},
};

/// Bounds of an [`Outlet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutletConfig {
    /// How old a decision to release may be when it is acted upon.
    pub release_age_max: Duration,
    /// Held bytes at which network devices stop taking frames from the guest.
    pub held_bytes_max: usize,
}

impl Default for OutletConfig {
    fn default() -> Self {
        Self { release_age_max: Duration::from_millis(100), held_bytes_max: 64 << 20 }
    }
}

/// What an [`Outlet`] has done and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutletStats {
    /// What happens to output now.
    pub mode: Mode,
    /// Payload bytes that wait for a commit.
    pub held_bytes: usize,
    /// Packets and console pieces that wait for a commit.
    pub held_frames: u64,
    /// Packets and console pieces that left.
    pub released_frames: u64,
    /// Packets and console pieces that were dropped.
    pub dropped_frames: u64,
    /// How often a release was found too old to act upon.
    pub stale_releases: u64,
    /// Whether output waits for [`Outlet::confirm`].
    pub stale: bool,
}

/// Called, from any thread and under no lock, when a release was too old.
pub type StaleRelease = Box<dyn Fn() + Send + Sync>;

/// The way out of the VM.
#[derive(Debug)]
pub struct Outlet {}

impl Outlet {
    /// An outlet in `mode`; console bytes go to `console`.
    ///
    /// # Errors
    ///
    /// If its thread cannot be started.
    pub fn new(
        _config: OutletConfig,
        _mode: Mode,
        _console: Box<dyn Write + Send>,
        _stale_release: StaleRelease,
    ) -> io::Result<Self> {
        Ok(Self {})
    }
    /// Takes what the guest says.
    pub fn emit(&self, _output: Output) {}
    /// Ends `epoch`; devices are parked. Returns what it said.
    pub fn seal(&self, _epoch: Epoch) -> Vec<Output> {
        Vec::new()
    }
    /// Every in-sync backup has committed `through`, which was found at `decided`.
    pub fn release(&self, _through: Epoch, _decided: Instant) {}
    /// This node still has the right to speak, as the arbiter said at `now`.
    pub fn confirm(&self, _now: Instant) {}
    /// From now on output waits for its epoch's commit.
    pub fn hold(&self) {}
    /// The arbiter has said that this node runs alone.
    pub fn pass(&self) {}
    /// Nothing is written any more once this returns.
    pub fn fence(&self) {}
    /// Says again what the last committed epoch said.
    pub fn inject(&self, _outputs: Vec<Output>) {}
    /// Figures.
    pub fn stats(&self) -> OutletStats {
        OutletStats {
            mode: Mode::Fenced,
            held_bytes: 0,
            held_frames: 0,
            released_frames: 0,
            dropped_frames: 0,
            stale_releases: 0,
            stale: false,
        }
    }
    /// Released console bytes from `offset` on (or the oldest still there),
    /// and the offset that follows them.
    pub fn console_since(&self, offset: u64) -> (Vec<u8>, u64) {
        (Vec::new(), offset)
    }
}
