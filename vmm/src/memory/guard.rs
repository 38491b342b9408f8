//! Write protection of guest pages with userfaultfd: what is captured need not
//! be copied while the guest is paused.
//!
//! ```text
//!   paused   protect(run)
//!   running  copy ── release(run)            whoever captures, in its own time
//!            write ─▶ fault ─▶ next_fault ─▶ copy ── release(page) ─▶ the write goes on
//! ```
//!
//! A write to a protected page waits, whoever makes it: a vCPU, a device, this
//! crate. So whoever calls [`WriteGuard::next_fault`] must never write guest
//! memory, and protected pages must be released whatever happens;
//! [`WriteGuard::release_all`] and dropping the guard do it. Who knows that none is
//! protected says so with [`WriteGuard::rest`].
//!
//! A release wakes who waits at that moment. A writer that met the protection
//! and was not yet asleep when its page was released sleeps after it: the kernel
//! looks again before it lets a writer sleep, but at whether the page can be
//! written without a fault, and the release leaves that to the fault. Its fault
//! is heard of like all others, so **every** fault of a page that is released
//! already must be answered with [`WriteGuard::wake`].
//!
//! Kernel: `Documentation/admin-guide/mm/userfaultfd.rst`, write protection of
//! anonymous memory (Linux 5.7).

use std::{
    io,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use checkpoint::{PAGE_BYTES, PageNumber, PageRun};
use thiserror::Error;
use userfaultfd::{Event, FeatureFlags, RegisterMode, Uffd, UffdBuilder};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::EventFd,
};

use super::GuestRam;

/// Why pages cannot be write-protected.
#[derive(Debug, Error)]
pub enum GuardError {
    /// There is no userfaultfd for this process, or one without write protection.
    #[error(
        "userfaultfd with write protection is not available: use Linux 5.7 or later, and run as root, with CAP_SYS_PTRACE, or with vm.unprivileged_userfaultfd = 1"
    )]
    Unavailable(#[source] userfaultfd::Error),
    /// Guest memory was not taken.
    #[error("userfaultfd did not take the guest's memory: pages are copied instead")]
    Register(#[source] userfaultfd::Error),
    /// A call failed that had worked before.
    #[error("userfaultfd failed to {act} pages from {first} on")]
    Change {
        /// What was to be done.
        act: &'static str,
        /// The first page.
        first: PageNumber,
        /// What the kernel said.
        source: userfaultfd::Error,
    },
    /// Faults cannot be waited for.
    #[error("faults cannot be waited for: raise the limit of open files")]
    Wait(#[source] io::Error),
    /// Faults cannot be read.
    #[error("faults cannot be read from userfaultfd")]
    Read(#[source] userfaultfd::Error),
}

/// What the stop event is called among those that are waited for.
const STOP: u64 = 1;
const FAULT: u64 = 0;

/// An open userfaultfd of this process, which may take rights to open: guards
/// are made of it one after the other.
#[derive(Clone)]
pub struct Userfault(Arc<Uffd>);

impl std::fmt::Debug for Userfault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Userfault").finish_non_exhaustive()
    }
}

impl Userfault {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// [`GuardError::Unavailable`]
    pub fn open() -> Result<Self, GuardError> {
        let uffd = UffdBuilder::new()
            .close_on_exec(true)
            .non_blocking(true)
            // KVM and the VMM write from within the kernel.
            .user_mode_only(false)
            .require_features(FeatureFlags::PAGEFAULT_FLAG_WP)
            .create()
            .map_err(GuardError::Unavailable)?;
        Ok(Self(Arc::new(uffd)))
    }
}

/// See the module's head.
pub struct WriteGuard {
    uffd: Arc<Uffd>,
    ram: Arc<GuestRam>,
    stop: EventFd,
    epoll: Epoll,
    at_rest: AtomicBool,
}

impl std::fmt::Debug for WriteGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteGuard").finish_non_exhaustive()
    }
}

impl WriteGuard {
    /// Watches over `ram`; nothing is protected yet. No other guard of
    /// `userfault` may be there.
    ///
    /// # Errors
    ///
    /// [`GuardError`], saying what is missing.
    pub fn new(userfault: &Userfault, ram: &Arc<GuestRam>) -> Result<Self, GuardError> {
        let uffd = userfault.0.clone();
        for (run, address) in ram.host_regions() {
            let len = run.count as usize * PAGE_BYTES;
            uffd.register_with_mode(address as *mut _, len, RegisterMode::WRITE_PROTECT)
                .map_err(GuardError::Register)?;
        }
        let stop =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(GuardError::Wait)?;
        let epoll = Epoll::new().map_err(GuardError::Wait)?;
        for (fd, name) in [(uffd.as_raw_fd(), FAULT), (stop.as_raw_fd(), STOP)] {
            let event = EpollEvent::new(EventSet::IN, name);
            epoll.ctl(ControlOperation::Add, fd, event).map_err(GuardError::Wait)?;
        }
        Ok(Self { uffd, ram: ram.clone(), stop, epoll, at_rest: AtomicBool::new(false) })
    }

    /// From here on a write to a page of `run` waits for its release. The guest
    /// is paused and devices are parked.
    ///
    /// # Errors
    ///
    /// [`GuardError::Change`]: some of the pages may be protected.
    ///
    /// # Panics
    ///
    /// If `run` is not RAM.
    pub fn protect(&self, run: PageRun) -> Result<(), GuardError> {
        let (address, len) = self.place(run);
        let change = |source| GuardError::Change { act: "protect", first: run.first, source };
        self.uffd.write_protect(address, len).map_err(change)
    }

    /// Lets writes to the pages of `run` go on.
    ///
    /// # Errors
    ///
    /// [`GuardError::Change`]
    ///
    /// # Panics
    ///
    /// If `run` is not RAM.
    pub fn release(&self, run: PageRun) -> Result<(), GuardError> {
        let (address, len) = self.place(run);
        let change = |source| GuardError::Change { act: "release", first: run.first, source };
        self.uffd.remove_write_protection(address, len, true).map_err(change)
    }

    /// Lets whoever waits to write `page` try again; of a page that is still
    /// protected, another fault comes.
    ///
    /// # Errors
    ///
    /// [`GuardError::Change`]
    ///
    /// # Panics
    ///
    /// If `page` is not RAM.
    pub fn wake(&self, page: PageNumber) -> Result<(), GuardError> {
        let (address, len) = self.place(PageRun { first: page, count: 1 });
        let change = |source| GuardError::Change { act: "wake writers of", first: page, source };
        self.uffd.wake(address, len).map_err(change)
    }

    /// Releases all pages.
    ///
    /// # Errors
    ///
    /// [`GuardError::Change`]
    pub fn release_all(&self) -> Result<(), GuardError> {
        self.ram.layout().regions().iter().try_for_each(|run| self.release(*run))
    }

    /// The next page that somebody waits to write; `None` when `patience` is
    /// over, or after [`WriteGuard::stop`]. A page may come that was released
    /// meanwhile: [`WriteGuard::wake`] is owed to whoever waits for it.
    ///
    /// # Errors
    ///
    /// [`GuardError::Wait`] or [`GuardError::Read`]
    pub fn next_fault(&self, patience: Duration) -> Result<Option<PageNumber>, GuardError> {
        loop {
            if let Some(Event::Pagefault { addr, .. }) =
                self.uffd.read_event().map_err(GuardError::Read)?
            {
                return Ok(self.page_at(addr as u64));
            }
            let mut events = [EpollEvent::default(); 2];
            let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
            let count = match self.epoll.wait(millis, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(GuardError::Wait)?,
            };
            let events = &events[..count];
            if events.is_empty() || events.iter().any(|event| event.data() == STOP) {
                return Ok(None);
            }
        }
    }

    /// Ends the wait of [`WriteGuard::next_fault`], now and for ever.
    pub fn stop(&self) {
        // Fails only when its counter is full: then it is readable anyway.
        let _ = self.stop.write(1);
    }

    /// Every page is released, as the caller knows, and none is protected any more:
    /// dropping the guard need not walk all of memory. (That took 58 ms for 512 MiB,
    /// between a handover and the former primary's first word as a backup.) The
    /// kernel goes on listening, for the next guard.
    pub fn rest(&self) {
        self.at_rest.store(true, Ordering::Relaxed);
    }

    fn place(&self, run: PageRun) -> (*mut libc::c_void, usize) {
        let slice = self.ram.slice(run);
        (slice.ptr_guard_mut().as_ptr().cast(), slice.len())
    }

    fn page_at(&self, address: u64) -> Option<PageNumber> {
        self.ram.host_regions().find_map(|(run, start)| {
            let offset = address.checked_sub(start)? / PAGE_BYTES as u64;
            (offset < run.count).then(|| PageNumber::new(run.first.get() + offset))
        })
    }
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        let at_rest = self.at_rest.load(Ordering::Relaxed);
        if !at_rest {
            let _ = self.release_all();
        }
        for (run, address) in self.ram.host_regions() {
            let len = run.count as usize * PAGE_BYTES;
            if !at_rest {
                let _ = self.uffd.unregister(address as *mut _, len);
            }
            // Nobody falls asleep any more, and nobody reads the faults of those
            // who did since the release.
            let _ = self.uffd.wake(address as *mut _, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        thread,
        time::Instant,
    };

    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn run(first: u64, count: u64) -> PageRun {
        PageRun { first: PageNumber::new(first), count }
    }

    /// Says why nothing is tested, or fails where `ROMULUS_REQUIRE` wants it.
    fn guard(ram: &Arc<GuestRam>) -> Option<WriteGuard> {
        match Userfault::open().and_then(|userfault| WriteGuard::new(&userfault, ram)) {
            Ok(guard) => Some(guard),
            Err(error) => {
                let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
                assert!(!required.split(',').any(|need| need == "uffd"), "{error}");
                println!("skipped: {error}");
                None
            }
        }
    }

    #[test]
    fn a_write_waits_until_its_page_is_released() {
        let ram = Arc::new(GuestRam::new(64 << 20, false).unwrap());
        ram.copy_in(run(0, 8), &[1; 8 * PAGE_BYTES]);
        let Some(guard) = guard(&ram) else { return };
        guard.protect(run(2, 4)).unwrap();
        let writer = thread::spawn({
            let ram = ram.clone();
            move || ram.memory().write_obj(9_u64, GuestAddress(3 * PAGE_BYTES as u64 + 8)).unwrap()
        });
        let faulted = guard.next_fault(PATIENCE).unwrap();
        assert_eq!(faulted, Some(PageNumber::new(3)));
        let mut page = [0; PAGE_BYTES];
        ram.copy_out(run(3, 1), &mut page);
        assert_eq!(page, [1; PAGE_BYTES], "the old content is there to be copied");
        assert!(!writer.is_finished());
        guard.release(run(3, 1)).unwrap();
        writer.join().unwrap();
        // Pages beside it are still protected, and dropping the guard frees them.
        let writer = thread::spawn({
            let ram = ram.clone();
            move || ram.copy_in(run(5, 1), &[2; PAGE_BYTES])
        });
        assert_eq!(guard.next_fault(PATIENCE).unwrap(), Some(PageNumber::new(5)));
        drop(guard);
        writer.join().unwrap();
    }

    /// Writers that come while the page is being released: some fall asleep
    /// after the release, and their faults are all that is heard of them.
    #[test]
    fn a_writer_that_falls_asleep_after_the_release_is_woken() {
        const ROUNDS: u64 = 20_000;
        let ram = Arc::new(GuestRam::new(64 << 20, false).unwrap());
        ram.copy_in(run(0, 1), &[1; PAGE_BYTES]);
        let Some(guard) = guard(&ram) else { return };
        let (begun, written) = (AtomicU64::new(0), AtomicU64::new(0));
        let page = PageNumber::new(0);
        let mut woken = 0;
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    while begun.load(Ordering::Acquire) < round {
                        std::hint::spin_loop();
                    }
                    ram.memory().write_obj(round, GuestAddress(8)).unwrap();
                    written.store(round, Ordering::Release);
                }
            });
            for round in 1..=ROUNDS {
                guard.protect(run(0, 1)).unwrap();
                begun.store(round, Ordering::Release);
                // From long before the writer sleeps to long after it.
                for _ in 0..round % 512 * 8 {
                    std::hint::spin_loop();
                }
                guard.release(run(0, 1)).unwrap();
                let deadline = Instant::now() + PATIENCE;
                while written.load(Ordering::Acquire) < round {
                    assert!(Instant::now() < deadline, "the writer sleeps for ever");
                    if guard.next_fault(Duration::ZERO).unwrap() == Some(page) {
                        guard.wake(page).unwrap();
                        woken += 1;
                    }
                }
            }
        });
        println!("{woken} of {ROUNDS} writers fell asleep after the release");
    }

    #[test]
    fn guards_follow_each_other() {
        let touched = || {
            let ram = Arc::new(GuestRam::new(64 << 20, false).unwrap());
            ram.copy_in(run(0, 8), &[1; 8 * PAGE_BYTES]);
            ram
        };
        let ram = touched();
        let Some(first) = guard(&ram) else { return };
        let userfault = Userfault(first.uffd.clone());
        first.protect(run(0, 4)).unwrap();
        let waiting = thread::spawn({
            let ram = ram.clone();
            move || ram.copy_in(run(1, 1), &[2; PAGE_BYTES])
        });
        assert_eq!(first.next_fault(PATIENCE).unwrap(), Some(PageNumber::new(1)));
        drop(first);
        waiting.join().unwrap();
        // Of other memory, as of a VM that was made anew; the old faults are over.
        let ram = touched();
        let second = WriteGuard::new(&userfault, &ram).unwrap();
        assert_eq!(second.next_fault(Duration::from_millis(1)).unwrap(), None);
        second.protect(run(7, 1)).unwrap();
        let waiting = thread::spawn({
            let ram = ram.clone();
            move || ram.copy_in(run(7, 1), &[2; PAGE_BYTES])
        });
        assert_eq!(second.next_fault(PATIENCE).unwrap(), Some(PageNumber::new(7)));
        second.release_all().unwrap();
        waiting.join().unwrap();
    }

    #[test]
    fn a_guard_at_rest_leaves_the_same_memory_to_the_next() {
        let ram = Arc::new(GuestRam::new(64 << 20, false).unwrap());
        ram.copy_in(run(0, 8), &[1; 8 * PAGE_BYTES]);
        let Some(first) = guard(&ram) else { return };
        let userfault = Userfault(first.uffd.clone());
        first.protect(run(0, 4)).unwrap();
        first.release(run(0, 4)).unwrap();
        first.rest();
        drop(first);
        // Nobody listens now: a write that waited would wait for ever.
        ram.copy_in(run(0, 8), &[2; 8 * PAGE_BYTES]);
        let second = WriteGuard::new(&userfault, &ram).unwrap();
        second.protect(run(3, 1)).unwrap();
        let waiting = thread::spawn({
            let ram = ram.clone();
            move || ram.copy_in(run(3, 1), &[3; PAGE_BYTES])
        });
        assert_eq!(second.next_fault(PATIENCE).unwrap(), Some(PageNumber::new(3)));
        second.release(run(3, 1)).unwrap();
        waiting.join().unwrap();
    }

    #[test]
    fn waiting_can_be_ended() {
        let ram = Arc::new(GuestRam::new(64 << 20, false).unwrap());
        let Some(guard) = guard(&ram) else { return };
        assert_eq!(guard.next_fault(Duration::from_millis(1)).unwrap(), None);
        guard.stop();
        assert_eq!(guard.next_fault(PATIENCE).unwrap(), None);
        guard.release_all().unwrap();
    }
}
