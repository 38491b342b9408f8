//! Where the guest's output leaves: held per epoch, released on commit.
//!
//! ```text
//!   devices ──emit──▶ HeldOutput ──release / pass──▶ ready ──drain──▶ taps, console
//!                        │ seal(e)                     ▲  │ too old: stays, until
//!                        ▼                             └──┘ confirm(now)
//!                     clones, for replication
//! ```
//!
//! Whoever makes output ready also writes it, on its own thread: there is no
//! hand-over between a release and the wire. One thread at a time drains (the
//! *drain lock*), so order is kept; a thread that finds the lock taken leaves,
//! and the one that has it looks again after giving it back. Only a full
//! interface queue is waited for by a thread of the outlet's own (`outlet`),
//! and only for [`BLOCKED_MAX`]; then that frame is dropped. Console bytes go
//! to readers at once and to their sink through a thread (`console`), so that
//! order holds per channel, not between packets and the console.
//!
//! Invariants:
//! - Nothing is written before [`HeldOutput`] says that it is ready.
//! - Nothing is written once [`Outlet::fence`] has returned, until a guest is set
//!   in this VM again ([`Outlet::reopen`]).
//! - **Freeze guard.** Nothing is written on the strength of a decision older
//!   than `release_age_max`: a process that was frozen between deciding and
//!   writing finds out, reports it and keeps the output until
//!   [`Outlet::confirm`]. `decided` must therefore be read from the clock
//!   *before* what the decision rests on was received. What this cannot catch
//!   is a freeze within the write call itself: one frame, which the network
//!   could have delayed just as long.
//!
//! Lock order: a device's lock, drain, queue. Nothing here calls a device.

mod console;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use checkpoint::{
    Epoch,
    output::{Channel, HeldOutput, Mode, Output},
};
use thiserror::Error;

use self::console::Console;
use crate::{
    device::virtio::tap::{Sent, Tap},
    thread::{self, ThreadKind},
};

pub use self::console::CONSOLE_BYTES_MAX;

/// How long a frame waits for a full interface queue before it is dropped.
pub const BLOCKED_MAX: Duration = Duration::from_secs(1);
/// Console bytes without a line end that become one piece of output.
const CONSOLE_PIECE_BYTES: usize = 1024;
/// How long the `outlet` thread waits for a full interface queue at a time.
const RETRY_MS: i32 = 10;

/// Bounds of an [`Outlet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutletConfig {
    /// How old a decision to release may be when it is acted upon.
    pub release_age_max: Duration,
    /// Bytes, held or ready, at which network devices stop taking frames from
    /// the guest.
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
    /// Bytes of what waits for a commit.
    pub held_bytes: usize,
    /// Packets and console pieces that wait for a commit.
    pub held_frames: u64,
    /// Packets and console pieces that may leave and have not yet.
    pub ready_frames: u64,
    /// Packets and console pieces that left.
    pub released_frames: u64,
    /// Packets and console pieces that were dropped: by a fence, or because
    /// their interface is down, gone or stuck.
    pub dropped_frames: u64,
    /// Released console bytes that the sink did not take (readers of
    /// [`Outlet::console_since`] get them all the same).
    pub console_bytes_dropped: u64,
    /// How often a release was found too old to act upon.
    pub stale_releases: u64,
    /// Whether output waits for [`Outlet::confirm`].
    pub stale: bool,
}

/// This node may not speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SpeakError {
    /// It is fenced.
    #[error("this node is fenced and may not send: start it again as a backup")]
    Fenced,
    /// The interface did not take the frame.
    #[error("the tap did not take a frame: is the interface up? (`ip link set TAP up`)")]
    Lost,
}

/// Called when a release was too old, from the thread that found out, under
/// none of the outlet's locks but perhaps a device's: it must only pass the
/// news on.
pub type StaleRelease = Box<dyn Fn() + Send + Sync>;

/// Called when the first packet of an epoch is held, by whoever sent it: it must
/// only pass the news on.
pub type FirstHeld = Box<dyn Fn() + Send + Sync>;

struct Queue {
    held: HeldOutput,
    held_frames: u64,
    /// Console bytes of the open epoch that have no line end yet.
    console_tail: Vec<u8>,
    ready: VecDeque<Output>,
    ready_bytes: usize,
    /// The oldest decision by which something in `ready` may leave; `None`
    /// when no decision is needed.
    decided: Option<Instant>,
    stale: bool,
    blocked_since: Option<Instant>,
    released_frames: u64,
    dropped_frames: u64,
    stale_releases: u64,
    stopping: bool,
}

struct Shared {
    config: OutletConfig,
    queue: Mutex<Queue>,
    blocked: Condvar,
    /// The drain lock: whoever has it may write.
    taps: Mutex<Vec<Option<Arc<Tap>>>>,
    console: Console,
    stale_release: StaleRelease,
    first_held: Mutex<Option<FirstHeld>>,
}

/// The way out of the VM.
pub struct Outlet {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Takes a lock. A thread that panicked under it has been reported; what it
/// left is whole, since nothing here is changed in steps that can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outlet {
    /// An outlet in `mode`; console bytes go to `console`.
    ///
    /// # Errors
    ///
    /// If its threads cannot be started.
    pub fn new(
        config: OutletConfig,
        mode: Mode,
        console: Box<dyn Write + Send>,
        stale_release: StaleRelease,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            config,
            queue: Mutex::new(Queue::new(mode)),
            blocked: Condvar::new(),
            taps: Mutex::new(Vec::new()),
            console: Console::new(console)?,
            stale_release,
            first_held: Mutex::default(),
        });
        let of_thread = Arc::clone(&shared);
        let retry = move || of_thread.retry_blocked();
        let thread = thread::spawn(ThreadKind::Output, "outlet".into(), retry)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// From now on, what network device `index` says leaves by `tap`.
    pub fn attach(&self, index: u8, tap: Arc<Tap>) {
        let mut taps = lock(&self.shared.taps);
        let index = usize::from(index);
        if taps.len() <= index {
            taps.resize(index + 1, None);
        }
        taps[index] = Some(tap);
    }

    /// Calls `first_held` from now on, and nobody else.
    pub fn on_first_held(&self, first_held: FirstHeld) {
        *lock(&self.shared.first_held) = Some(first_held);
    }

    /// Takes what the guest says.
    pub fn emit(&self, output: Output) {
        let first = self.change(|queue| {
            let silent = queue.held.is_silent();
            queue.emit(output);
            silent && !queue.held.is_silent()
        });
        if first && let Some(tell) = &*lock(&self.shared.first_held) {
            tell();
        }
    }

    /// Takes what the guest says on the console. While output is held, bytes
    /// are gathered to lines; the rest follows at the next [`Outlet::seal`].
    pub fn emit_console(&self, bytes: &[u8]) {
        self.change(|queue| {
            if queue.held.mode() == Mode::Fenced {
                return;
            }
            queue.console_tail.extend(bytes);
            let piece = queue.console_tail.last() == Some(&b'\n')
                || queue.console_tail.len() >= CONSOLE_PIECE_BYTES;
            if piece || queue.held.mode() == Mode::Passing {
                queue.flush_console();
            }
        });
    }

    /// Whether so much waits that devices should take nothing from the guest.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let queue = lock(&self.shared.queue);
        queue.held.held_bytes() + queue.ready_bytes >= self.shared.config.held_bytes_max
    }

    /// Ends `epoch`; vCPUs are paused and devices parked. Returns what it said:
    /// nothing, if output passes.
    ///
    /// # Panics
    ///
    /// If epochs do not rise.
    pub fn seal(&self, epoch: Epoch) -> Vec<Output> {
        // Not `change`: a pause is no time to write for others.
        let mut queue = lock(&self.shared.queue);
        queue.flush_console();
        match queue.held.mode() {
            Mode::Holding => queue.held.seal(epoch).to_vec(),
            Mode::Passing | Mode::Fenced => Vec::new(),
        }
    }

    /// Every in-sync backup has committed `through`. `decided` is when the
    /// owner last knew that it may speak: read it from the clock before
    /// reading what the decision rests on.
    pub fn release(&self, through: Epoch, decided: Instant) {
        self.change(|queue| {
            if queue.ready.is_empty() && queue.held.mode() == Mode::Holding {
                queue.decided = Some(decided);
            }
            queue.held.release(through);
            queue.take_released();
        });
    }

    /// This node had the right to speak at `now`, as the arbiter said: what
    /// was found too old may leave.
    pub fn confirm(&self, now: Instant) {
        self.change(|queue| {
            queue.stale = false;
            queue.decided = queue.decided.map(|decided| decided.max(now));
        });
    }

    /// From now on output waits for its epoch's commit.
    pub fn hold(&self) {
        self.change(|queue| {
            if queue.held.mode() == Mode::Passing {
                queue.decided = Some(Instant::now());
            }
            queue.held.hold();
        });
    }

    /// The arbiter has said that this node runs alone: all that is held
    /// leaves, and what comes leaves at once.
    pub fn pass(&self) {
        self.change(|queue| {
            if queue.held.mode() != Mode::Fenced {
                queue.held.pass();
                queue.take_released();
                queue.flush_console();
                queue.decided = None;
                queue.stale = false;
            }
        });
    }

    /// Drops everything, until [`Outlet::reopen`]. Nothing is written any more once
    /// this returns (bytes that a stuck console sink had already been given are
    /// the exception).
    pub fn fence(&self) {
        lock(&self.shared.queue).fence();
        // Whoever took a frame before that has the drain lock until it is written.
        drop(lock(&self.shared.taps));
        self.shared.console.fence();
    }

    /// Says again what the last committed epoch said, after a promotion.
    /// While output is held, it waits for the open epoch like the guest's.
    pub fn inject(&self, outputs: Vec<Output>) {
        self.change(|queue| outputs.into_iter().for_each(|output| queue.emit(output)));
    }

    /// A guest is going to be set in the VM of one that was taken away: from now on
    /// output passes. Not before that: whoever still speaks for the guest before, as
    /// who announces its place, would speak beside the node that has it now.
    pub fn reopen(&self) {
        let reopened = self.change(|queue| {
            let fenced = queue.held.mode() == Mode::Fenced;
            if fenced {
                queue.held = HeldOutput::new(Mode::Passing);
            }
            fenced
        });
        if reopened {
            self.shared.console.reopen();
        }
    }

    /// Sends `frame`: for announcements, which the guest did not say. While output
    /// passes it is sent at once; once there is a backup, nothing says whether
    /// that has taken over meanwhile, and the frame is held like the guest's own.
    ///
    /// # Errors
    ///
    /// [`SpeakError`] if this node is fenced, or the interface refuses.
    pub fn speak(&self, index: u8, frame: &[u8]) -> Result<(), SpeakError> {
        let taps = lock(&self.shared.taps);
        let mode = lock(&self.shared.queue).held.mode();
        match mode {
            Mode::Passing => {}
            Mode::Holding => {
                drop(taps);
                let payload = frame.to_vec().into();
                self.emit(Output { channel: Channel::Network(index), payload });
                return Ok(());
            }
            Mode::Fenced => return Err(SpeakError::Fenced),
        }
        let tap = taps.get(usize::from(index)).and_then(Option::as_ref).ok_or(SpeakError::Lost)?;
        match tap.send(frame) {
            Sent::Taken => Ok(()),
            Sent::Blocked | Sent::Lost => Err(SpeakError::Lost),
        }
    }

    /// Figures.
    #[must_use]
    pub fn stats(&self) -> OutletStats {
        let console_bytes_dropped = self.shared.console.sink_dropped();
        let queue = lock(&self.shared.queue);
        OutletStats {
            mode: queue.held.mode(),
            held_bytes: queue.held.held_bytes() + queue.console_tail.len(),
            held_frames: queue.held_frames,
            ready_frames: queue.ready.len() as u64,
            released_frames: queue.released_frames,
            dropped_frames: queue.dropped_frames,
            console_bytes_dropped,
            stale_releases: queue.stale_releases,
            stale: queue.stale,
        }
    }

    /// Released console bytes from `offset` on (or the oldest still there, of
    /// the last [`CONSOLE_BYTES_MAX`]), and the offset that follows them.
    #[must_use]
    pub fn console_since(&self, offset: u64) -> (Vec<u8>, u64) {
        self.shared.console.since(offset)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = lock(&self.shared.queue);
        let result = change(&mut queue);
        let idle = queue.ready.is_empty() || queue.blocked_since.is_some();
        drop(queue);
        if !idle {
            self.shared.drain();
        }
        result
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        lock(&self.shared.queue).stopping = true;
        self.shared.blocked.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outlet").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Queue {
    fn new(mode: Mode) -> Self {
        Self {
            held: HeldOutput::new(mode),
            held_frames: 0,
            console_tail: Vec::new(),
            ready: VecDeque::new(),
            ready_bytes: 0,
            decided: None,
            stale: false,
            blocked_since: None,
            released_frames: 0,
            dropped_frames: 0,
            stale_releases: 0,
            stopping: false,
        }
    }

    fn emit(&mut self, output: Output) {
        match self.held.mode() {
            Mode::Holding => self.held_frames += 1,
            Mode::Fenced => self.dropped_frames += 1,
            Mode::Passing => {}
        }
        self.held.emit(output);
        while let Some(output) = self.held.take_ready() {
            self.make_ready(output);
        }
    }

    fn flush_console(&mut self) {
        if !self.console_tail.is_empty() {
            let payload = std::mem::take(&mut self.console_tail).into();
            self.emit(Output { channel: Channel::Console, payload });
        }
    }

    fn take_released(&mut self) {
        while let Some(output) = self.held.take_ready() {
            self.held_frames -= 1;
            self.make_ready(output);
        }
    }

    fn make_ready(&mut self, output: Output) {
        self.ready_bytes += output.held_bytes();
        self.ready.push_back(output);
    }

    fn fence(&mut self) {
        self.dropped_frames += self.held_frames + self.ready.len() as u64;
        self.held.fence();
        self.held_frames = 0;
        self.console_tail.clear();
        self.ready.clear();
        self.ready_bytes = 0;
        self.decided = None;
        self.stale = false;
        self.blocked_since = None;
    }

    /// The next output that may be written now.
    fn next(&mut self, age_max: Duration) -> Next {
        if self.ready.is_empty() || self.stale {
            return Next::Nothing;
        }
        let age = self.decided.map(|decided| decided.elapsed());
        if age.is_some_and(|age| age > age_max) {
            self.stale = true;
            self.stale_releases += 1;
            return Next::TooOld;
        }
        let output = self.ready.pop_front().expect("looked at above");
        self.ready_bytes -= output.held_bytes();
        Next::Write(output)
    }

    /// The interface's queue is full: `output` is put back, or dropped if it
    /// has waited for too long.
    fn put_back(&mut self, output: Output) {
        let since = *self.blocked_since.get_or_insert_with(Instant::now);
        if self.held.mode() == Mode::Fenced || since.elapsed() > BLOCKED_MAX {
            self.dropped_frames += 1;
            self.blocked_since = None;
        } else {
            self.ready_bytes += output.held_bytes();
            self.ready.push_front(output);
        }
    }
}

enum Next {
    Nothing,
    TooOld,
    Write(Output),
}

/// Why a drain came to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drained {
    Empty,
    Blocked,
    TooOld,
}

impl Shared {
    /// Writes what is ready, unless another thread is at it.
    fn drain(&self) {
        loop {
            let taps = match self.taps.try_lock() {
                Ok(taps) => taps,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // Its holder looks again after giving it back.
                Err(TryLockError::WouldBlock) => return,
            };
            let drained = self.drain_to(&taps);
            drop(taps);
            match drained {
                Drained::Blocked => return self.blocked.notify_all(),
                Drained::TooOld => {
                    tracing::warn!("a release was acted upon too late: output waits");
                    return (self.stale_release)();
                }
                Drained::Empty => {
                    let queue = lock(&self.queue);
                    if queue.ready.is_empty() || queue.stale {
                        return;
                    }
                }
            }
        }
    }

    fn drain_to(&self, taps: &[Option<Arc<Tap>>]) -> Drained {
        loop {
            let next = lock(&self.queue).next(self.config.release_age_max);
            let output = match next {
                Next::Write(output) => output,
                Next::Nothing => return Drained::Empty,
                Next::TooOld => return Drained::TooOld,
            };
            let sent = match output.channel {
                Channel::Console => {
                    self.console.write(&output.payload);
                    Sent::Taken
                }
                Channel::Network(index) => taps
                    .get(usize::from(index))
                    .and_then(Option::as_ref)
                    .map_or(Sent::Lost, |tap| tap.send(&output.payload)),
            };
            let mut queue = lock(&self.queue);
            match sent {
                Sent::Taken => queue.released_frames += 1,
                Sent::Lost => queue.dropped_frames += 1,
                Sent::Blocked => {
                    queue.put_back(output);
                    if queue.blocked_since.is_some() {
                        return Drained::Blocked;
                    }
                    continue;
                }
            }
            queue.blocked_since = None;
        }
    }

    /// The `outlet` thread: waits for interfaces whose queues are full.
    fn retry_blocked(&self) {
        loop {
            let mut queue = lock(&self.queue);
            while queue.blocked_since.is_none() && !queue.stopping {
                queue = self.blocked.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            if queue.stopping {
                return;
            }
            let channel = queue.ready.front().map(|output| output.channel);
            if queue.stale || channel.is_none() {
                queue.blocked_since = None;
                continue;
            }
            drop(queue);
            let tap = match channel {
                Some(Channel::Network(index)) => {
                    lock(&self.taps).get(usize::from(index)).cloned().flatten()
                }
                Some(Channel::Console) | None => None,
            };
            if let Some(tap) = tap {
                tap.wait_writable(RETRY_MS);
            }
            self.drain();
        }
    }
}
