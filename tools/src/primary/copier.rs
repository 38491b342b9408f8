//! Captures pages that were write-protected in a pause, while the guest runs.
//!
//! ```text
//!   epoch thread   protect, begin                  (paused)
//!                  go                              (running; the core knows the epoch)
//!   copy-n         take pages ── copy ── release ── submit      until none is pending
//!   rescue         fault ── copy ── release ── submit           ahead of the copiers
//! ```
//!
//! A pending page is taken by exactly one of them, under the lock; whoever took
//! it copies it and then releases it. Whoever faults on a page that is released
//! already has missed that, and is woken (see [`vmm::memory::guard`]): by the
//! rescuer, or, while a copier has the page in hand, by that copier afterwards.
//!
//! What the kernel cannot refuse for a reason of ours (releasing, reading faults)
//! ends the process if it fails, so that a backup takes over from a guest that
//! would hang.
//!
//! One capture at a time: the next checkpoint waits for [`Copier::wait`] before
//! it pauses the guest. None of these threads writes guest memory, or waits for
//! the VM's lock.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use checkpoint::{
    Epoch, PAGE_BYTES, PageNumber, PageRun, PageSet,
    chunk::{CHUNK_PAGES_MAX, Places},
};
use vmm::memory::guard::{GuardError, WriteGuard};

use super::{
    capture::{Batch, BlockPool, copy_runs},
    encoder::{EpochEnd, Group, Intake},
};
use crate::{
    jail::{self, ThreadKind},
    node::Guest,
    telemetry::Metrics,
};

/// How often the rescuer looks up although nobody waits.
const LOOK: Duration = Duration::from_secs(1);

/// What the threads work with.
pub(super) struct Tools {
    pub(super) guest: Arc<Guest>,
    pub(super) guard: WriteGuard,
    pub(super) pool: BlockPool,
    pub(super) intake: Intake,
    pub(super) metrics: Arc<Metrics>,
}

/// See the module's head.
pub(super) struct Copier {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Copier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copier").finish_non_exhaustive()
    }
}

struct Shared {
    tools: Tools,
    state: Mutex<State>,
    /// Signalled when a capture begins, is done or is given up.
    changed: Condvar,
}

struct State {
    /// Protected, and taken by nobody yet.
    pending: PageSet,
    /// In the hands of a copier, which has released them or is about to.
    taken: PageSet,
    /// Those of them with a fault that came meanwhile.
    late: Vec<PageNumber>,
    capture: Option<Capture>,
    /// Pages were released otherwise than one by one.
    in_doubt: bool,
    ended: bool,
}

impl State {
    /// A copier has released `runs`. Returns whom it still has to wake.
    fn put_down(&mut self, runs: &[PageRun]) -> Vec<PageNumber> {
        for page in runs.iter().flat_map(|run| run.pages()) {
            self.taken.remove(page);
        }
        let taken = &self.taken;
        self.late.extract_if(.., |page| !taken.contains(*page)).collect()
    }
}

/// A capture that is not done.
struct Capture {
    epoch: Epoch,
    /// What comes before it has been submitted.
    gone: bool,
    /// Copiers at work.
    copying: usize,
    /// Pages that were copied because somebody waited to write them; all
    /// batches but the last are full.
    rescued: Vec<Batch>,
    end: EpochEnd,
}

impl Capture {
    /// The batch that the next rescued page goes to.
    fn place(&mut self, pool: &BlockPool) -> &mut Batch {
        if self.rescued.last().is_none_or(|batch| batch.runs.len() == CHUNK_PAGES_MAX) {
            let (runs, stale) = (Vec::new(), Places::default());
            self.rescued.push(Batch { runs, block: pool.take(), stale });
        }
        self.rescued.last_mut().expect("pushed above")
    }
}

impl Copier {
    /// Starts `copy-0` … and `rescue`.
    pub(super) fn start(tools: Tools, threads: u16) -> std::io::Result<Self> {
        let none = PageSet::new(tools.guest.layout().frame_end());
        let (pending, taken, late) = (none.clone(), none, Vec::new());
        let state = State { pending, taken, late, capture: None, in_doubt: false, ended: false };
        let state = Mutex::new(state);
        let shared = Arc::new(Shared { tools, state, changed: Condvar::new() });
        let mut copier = Self { shared, threads: Vec::new() };
        for index in 0..threads {
            let shared = copier.shared.clone();
            copier.spawn(format!("copy-{index}"), move || shared.copy())?;
        }
        let shared = copier.shared.clone();
        copier.spawn("rescue".to_owned(), move || shared.rescue())?;
        Ok(copier)
    }

    fn spawn(&mut self, name: String, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        self.threads.push(jail::spawn(ThreadKind::Pages, name, work)?);
        Ok(())
    }

    /// Write-protects `pages`; the guest is paused, and no capture is under way.
    ///
    /// # Errors
    ///
    /// [`GuardError`]; then nothing is protected, unless releasing fails, too.
    pub(super) fn protect(&self, pages: &PageSet) -> Result<(), GuardError> {
        let guard = &self.shared.tools.guard;
        let protected = pages.runs(u64::MAX).try_for_each(|run| guard.protect(run));
        if protected.is_err() {
            self.shared.lock().in_doubt = true;
            guard.release_all()?;
        }
        protected
    }

    /// Captures `pages`, which are protected, from [`Copier::go`] on, but rescues
    /// them from now on; the guest is still paused. `end` ends the epoch's chunks.
    pub(super) fn begin(&self, epoch: Epoch, pages: &PageSet, end: EpochEnd) {
        let mut state = self.shared.lock();
        assert!(state.capture.is_none(), "one capture after the other");
        state.pending.union(pages);
        let (gone, rescued) = (false, Vec::new());
        state.capture = Some(Capture { epoch, gone, copying: 0, rescued, end });
    }

    /// What was captured in the pause is submitted: the rest may follow.
    pub(super) fn go(&self) {
        if let Some(capture) = &mut self.shared.lock().capture {
            capture.gone = true;
        }
        self.shared.changed.notify_all();
    }

    /// Whether no capture is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.shared.lock().capture.is_none()
    }

    /// Waits until no capture is under way.
    pub(super) fn wait(&self) {
        let busy = |state: &mut State| state.capture.is_some();
        let idle = self.shared.changed.wait_while(self.shared.lock(), busy);
        drop(idle.expect("no holder panics"));
    }

    /// Gives up what is being captured: nobody needs it any more, and whoever
    /// waits to write must not wait longer.
    pub(super) fn abandon(&self) {
        let mut state = self.shared.lock();
        state.pending.clear();
        state.capture = None;
        state.in_doubt = true;
        drop(state);
        self.shared.changed.notify_all();
        if let Err(error) = self.shared.tools.guard.release_all() {
            tracing::error!(%error, "pages stay protected until the process ends");
        }
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        self.shared.tools.guard.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let state = self.shared.lock();
        if state.pending.is_empty() && state.taken.is_empty() && !state.in_doubt {
            self.shared.tools.guard.rest();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn copy(&self) {
        while let Some((epoch, runs)) = self.take() {
            let batch = copy_runs(runs, self.tools.guest.memory(), self.tools.pool.take());
            for run in &batch.runs {
                self.release(*run);
            }
            let late = self.lock().put_down(&batch.runs);
            late.into_iter().for_each(|page| self.wake(page));
            self.submit(epoch, batch);
            let mut state = self.lock();
            if let Some(capture) = state.capture.as_mut().filter(|c| c.epoch == epoch) {
                capture.copying -= 1;
            }
            self.finish(&mut state);
        }
    }

    /// Takes pending pages for one chunk; `None` at the end.
    fn take(&self) -> Option<(Epoch, Vec<PageRun>)> {
        let mut state = self.lock();
        loop {
            let State { pending, taken, capture, ended, .. } = &mut *state;
            if *ended {
                return None;
            }
            let capture = capture.as_mut().filter(|capture| capture.gone);
            if let Some(capture) = capture.filter(|_| !pending.is_empty()) {
                capture.copying += 1;
                let runs = pending.take_runs(CHUNK_PAGES_MAX as u64);
                runs.iter().for_each(|run| taken.insert_run(*run));
                return Some((capture.epoch, runs));
            }
            // There may be nothing to copy at all, or the rescuer was faster.
            self.finish(&mut state);
            state = self.changed.wait(state).expect("no holder panics");
        }
    }

    /// Ends the capture if nothing is left of it.
    fn finish(&self, state: &mut State) {
        let at_work = |capture: &Capture| !capture.gone || capture.copying > 0;
        if !state.pending.is_empty() || state.capture.as_ref().is_none_or(at_work) {
            return;
        }
        let capture = state.capture.take().expect("looked at above");
        let Capture { epoch, rescued: batches, end, .. } = capture;
        // With the lock: the next epoch's pages must not come before these.
        self.tools.intake.submit(Group { epoch, batches, fresh: false, end: Some(end) });
        self.changed.notify_all();
    }

    fn rescue(&self) {
        loop {
            match self.tools.guard.next_fault(LOOK) {
                Ok(Some(page)) => self.rescue_page(page),
                Ok(None) if self.lock().ended => return,
                Ok(None) => {}
                // Whoever waits to write would wait for ever.
                Err(error) => panic!("faults of guest memory are not heard of: {error}"),
            }
        }
    }

    fn rescue_page(&self, page: PageNumber) {
        let begun = Instant::now();
        let mut state = self.lock();
        if !state.pending.remove(page) {
            if state.taken.contains(page) {
                state.late.push(page);
            } else {
                drop(state);
                self.wake(page);
            }
            return;
        }
        let capture = state.capture.as_mut().expect("pending pages belong to a capture");
        let run = PageRun { first: page, count: 1 };
        let batch = capture.place(&self.tools.pool);
        let filled = batch.runs.len() * PAGE_BYTES;
        let place = &mut batch.block.as_mut()[filled..filled + PAGE_BYTES];
        self.tools.guest.memory().copy_out(run, place);
        batch.runs.push(run);
        let last = state.pending.is_empty();
        drop(state);
        self.release(run);
        self.tools.metrics.stall.record(begun.elapsed());
        if last {
            self.changed.notify_all();
        }
    }

    fn submit(&self, epoch: Epoch, batch: Batch) {
        self.tools.intake.submit(Group { epoch, batches: vec![batch], fresh: false, end: None });
    }

    fn wake(&self, page: PageNumber) {
        if let Err(error) = self.tools.guard.wake(page) {
            // It would sleep for ever.
            panic!("userfaultfd does not wake who writes guest memory: {error}");
        }
    }

    fn release(&self, run: PageRun) {
        if let Err(error) = self.tools.guard.release(run) {
            // Its writers would wait for ever.
            panic!("userfaultfd does not release guest memory: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_late_for_a_page_in_hand_is_woken_by_its_copier() {
        let none = PageSet::new(64);
        let (pending, taken, late) = (none.clone(), none, Vec::new());
        let mut state =
            State { pending, taken, late, capture: None, in_doubt: false, ended: false };
        let run = |first, count| PageRun { first: PageNumber::new(first), count };
        for run in [run(1, 2), run(8, 1), run(9, 4)] {
            state.taken.insert_run(run);
        }
        let pages = |numbers: &[u64]| numbers.iter().map(|n| PageNumber::new(*n)).collect();
        state.late = pages(&[2, 9, 2]);
        let woken: Vec<PageNumber> = pages(&[2, 2]);
        assert_eq!(state.put_down(&[run(1, 2), run(8, 1)]), woken);
        assert_eq!(state.late, [PageNumber::new(9)], "another copier has it in hand");
        assert_eq!(state.put_down(&[run(9, 4)]), [PageNumber::new(9)]);
        assert!(state.taken.is_empty() && state.late.is_empty());
    }
}
