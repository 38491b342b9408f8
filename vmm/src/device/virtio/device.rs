//! What every kind of virtio-mmio device has: registers behind a lock, parking,
//! saved state, and a worker. What it does with its queues is its [`Backend`]'s.
//!
//! **Parking.** The worker touches queues, guest memory and the interrupt only
//! within [`Device::enter`]: under the device's lock and after seeing that it
//! is not parked; it looks at the flag between requests. So `park` is: set the
//! flag, take the lock, and wait until the backend is quiet. What the worker
//! notices while parked is noted in `missed`, and `unpark` wakes it then; after
//! a restore always, for the notifications that the old process consumed.
//!
//! The saved state is the registers': a backend counts a request as taken only
//! when it is done, so none is ever half done in it.

use std::{
    fmt, io,
    os::fd::RawFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use checkpoint::{Section, SectionError, Sections};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::{
    chain::{QueueFault, has_next},
    transport::{
        Effect, Identity, Transport,
        state::{Restored, VERSION},
    },
};
use crate::device::GuestMemory;

/// What a kind of device does between its queues and the host.
pub(crate) trait Backend: fmt::Debug + Send + Sized + 'static {
    /// What it is called in its slot and section, e.g. `virtio-net`.
    const KIND: &'static str;
    /// What its worker is called, e.g. `net`.
    const WORKER: &'static str;
    /// What its worker has in hand between two calls, outside of the lock.
    type Hand: Default + Send;

    /// What the guest sees of it.
    fn identity(&self) -> Identity;

    /// Serves the queues, for one batch. Called by the worker without the lock.
    fn serve(device: &Device<Self>, hand: &mut Self::Hand) -> Served;

    /// What the worker waits for beside the guest, when [`Served::watch`] says so.
    fn source(&self) -> Option<RawFd>;

    /// Whether nothing is under way that may change the host's side of the
    /// device, as long as it is parked.
    fn is_quiet(&self) -> bool;

    /// The device is about to be unparked.
    fn wake(&mut self);

    /// The registers are others than before: the guest has reset the device,
    /// or [`Backend::adopted`].
    fn forget(&mut self);

    /// Saved state was taken over, and with it perhaps another guest's place:
    /// [`Backend::forget`], and more where the host's side has a past.
    fn adopted(&mut self);
}

/// What the worker should do after a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Served {
    /// There is more to do at once.
    pub(crate) more: bool,
    /// What comes from [`Backend::source`] could be taken.
    pub(crate) watch: bool,
    /// Nothing can be taken from the guest now: look again soon.
    pub(crate) stalled: bool,
    /// [`Backend::source`] is gone.
    pub(crate) source_lost: bool,
}

/// What the lock protects.
#[derive(Debug)]
pub(crate) struct State<B> {
    pub(crate) transport: Transport,
    pub(crate) backend: B,
    /// Work was noticed while parked.
    pub(crate) missed: bool,
    /// Registers came from saved state and have not been acted upon.
    restored: bool,
}

/// A virtio-mmio device.
#[derive(Debug)]
pub(crate) struct Device<B> {
    /// Which of its kind.
    index: u8,
    state: Mutex<State<B>>,
    /// The backend may have become quiet.
    quiet: Condvar,
    parked: AtomicBool,
    pub(super) stopping: AtomicBool,
    pub(super) woken: EventFd,
    /// Notifications by queue; KVM writes them too.
    pub(super) kicks: Vec<EventFd>,
    pub(crate) memory: GuestMemory,
}

impl<B: Backend> Device<B> {
    /// Device `index` of its kind as after power-on, parked; `irq` raises its
    /// interrupt.
    pub(crate) fn new(
        index: u8,
        backend: B,
        irq: Arc<EventFd>,
        memory: GuestMemory,
    ) -> io::Result<Self> {
        let identity = backend.identity();
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let kicks: io::Result<Vec<EventFd>> = (0..identity.queues).map(|_| event()).collect();
        let transport = Transport::new(identity, irq);
        Ok(Self {
            index,
            state: Mutex::new(State { transport, backend, missed: true, restored: false }),
            quiet: Condvar::new(),
            parked: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            woken: event()?,
            kicks: kicks?,
            memory,
        })
    }

    /// The worker's name.
    pub(super) fn worker_name(&self) -> String {
        format!("{}-{}", B::WORKER, self.index)
    }

    /// Whether requests must wait.
    pub(crate) fn is_parked(&self) -> bool {
        self.parked.load(Ordering::SeqCst)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the worker at queues and guest memory, unless the device is parked
    /// or its driver is not ready.
    pub(crate) fn enter(
        &self,
        serve: impl FnOnce(&mut State<B>) -> Result<Served, QueueFault>,
    ) -> Served {
        let mut state = self.lock();
        if self.is_parked() {
            state.missed = true;
            return Served::default();
        }
        if !state.transport.is_live() {
            return Served::default();
        }
        let served = serve(&mut state).unwrap_or_else(|fault| {
            state.transport.fail(fault);
            Served::default()
        });
        if self.is_parked() {
            state.missed = true;
        }
        served
    }

    /// Changes the backend although the device may be parked; `park` looks
    /// again whether it is quiet.
    pub(crate) fn settle(&self, change: impl FnOnce(&mut B)) {
        change(&mut self.lock().backend);
        self.quiet.notify_all();
    }
}

/// What the rest of the machine does with a device of any kind.
pub(crate) trait MmioDevice: fmt::Debug + Send + Sync {
    /// What it is.
    fn kind(&self) -> &'static str;
    /// The saved state's name.
    fn section(&self) -> String;
    /// What notifications are written to, by queue.
    fn kicks(&self) -> &[EventFd];
    /// A vCPU reads a register.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// A vCPU writes a register.
    fn write(&self, offset: u64, data: &[u8]);
    /// Stops the worker between two requests.
    fn park(&self);
    /// Lets the worker go on.
    fn unpark(&self);
    /// The state.
    fn save(&self) -> Section;
    /// Reads what `save` wrote, without taking it over.
    fn decode(&self, sections: &Sections) -> Result<Restored, SectionError>;
    /// Takes over decoded state; parked only.
    fn adopt(&self, restored: Restored);
}

impl<B: Backend> MmioDevice for Device<B> {
    fn kind(&self) -> &'static str {
        B::KIND
    }

    fn section(&self) -> String {
        format!("{}.{}", B::KIND, self.index)
    }

    fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().transport.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        let effect = state.transport.write(offset, data, &self.memory);
        if effect == Effect::Reset {
            state.backend.forget();
        }
        drop(state);
        match effect {
            Effect::None | Effect::Reset => {}
            Effect::Notify(queue) => signal(&self.kicks[queue]),
            Effect::Start => signal(&self.woken),
        }
    }

    fn park(&self) {
        self.parked.store(true, Ordering::SeqCst);
        let state = self.lock();
        let quiet = self.quiet.wait_while(state, |state| !state.backend.is_quiet());
        drop(quiet.unwrap_or_else(PoisonError::into_inner));
    }

    fn unpark(&self) {
        let mut state = self.lock();
        state.backend.wake();
        if std::mem::take(&mut state.restored) {
            state.transport.interrupt_again();
            state.missed = true;
        }
        self.parked.store(false, Ordering::SeqCst);
        if std::mem::take(&mut state.missed) {
            signal(&self.woken);
        }
    }

    fn save(&self) -> Section {
        let bytes = self.lock().transport.encode();
        Section { name: self.section(), version: VERSION, bytes }
    }

    fn decode(&self, sections: &Sections) -> Result<Restored, SectionError> {
        let body = sections.body(&self.section(), VERSION)?;
        self.lock().transport.decode(body, &self.memory)
    }

    fn adopt(&self, restored: Restored) {
        let mut state = self.lock();
        state.transport.adopt(restored);
        state.backend.adopted();
        state.restored = true;
    }
}

/// Interrupts the guest for `count` used chains of `queue`, if it wants to know.
pub(crate) fn finish(
    transport: &mut Transport,
    memory: &GuestMemory,
    queue: usize,
    count: usize,
) -> Result<(), QueueFault> {
    if count > 0 && transport.queues[queue].needs_notification(memory)? {
        transport.interrupt_used();
    }
    Ok(())
}

/// No chain was there: asks the guest to notify of the next one. `false` if
/// one came meanwhile.
pub(crate) fn arm(
    queue: &mut Queue,
    memory: &GuestMemory,
    armed: &mut bool,
) -> Result<bool, QueueFault> {
    *armed = *armed || !queue.enable_notification(memory)?;
    Ok(*armed)
}

/// Whether `queue` needs no look: the guest will notify of the next chain, and
/// none is there.
pub(crate) fn is_idle(
    queue: &Queue,
    memory: &GuestMemory,
    armed: bool,
) -> Result<bool, QueueFault> {
    Ok(!queue.ready() || (armed && !has_next(queue, memory)?))
}

pub(super) fn signal(event: &EventFd) {
    // It fails only at 2^64 - 1 uncollected events.
    let _ = event.write(1);
}
