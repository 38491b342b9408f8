//! The check of all memory: every page of the working set that was ever written, and the fill
//! area, which holds a function of its page numbers. Each worker checks its share in slices.
//!
//! ```text
//! boot --probe.fill=1--> filling --> idle --run changes--> working set --> fill area --> idle
//! ```
//! A worker that is still filling starts a requested run when it is done with that.

use core::sync::atomic::{AtomicU64, Ordering};

use romulus_probe::content::{content_word, fill_seed};
use romulus_probe::message::{VerifyAnswer, VerifyScope, VerifyState};
use romulus_probe::{Content, PAGE_WORDS, VCPUS_MAX};

use crate::memory::Memory;
use crate::work::{self, report_corrupt};

/// Pages filled or checked in one slice.
const SLICE_PAGES: u64 = 16;
/// Unwritten pages that count like one checked page.
const SLICE_RECORDS: u64 = 2048;

/// The run that is asked for; `started` is bumped last.
static STARTED: AtomicU64 = AtomicU64::new(0);
static RUN: AtomicU64 = AtomicU64::new(0);
static SCOPE: AtomicU64 = AtomicU64::new(0);

/// One worker's counts of the latest run, on cache lines of its own.
#[repr(align(64))]
struct Share {
    finished: AtomicU64,
    checked: AtomicU64,
    fill_checked: AtomicU64,
    bad: AtomicU64,
    digest: AtomicU64,
    filled: AtomicU64,
}

static SHARES: [Share; VCPUS_MAX] = [const {
    Share {
        finished: AtomicU64::new(0),
        checked: AtomicU64::new(0),
        fill_checked: AtomicU64::new(0),
        bad: AtomicU64::new(0),
        digest: AtomicU64::new(0),
        filled: AtomicU64::new(0),
    }
}; VCPUS_MAX];

/// Starts a run, unless this very run was started already or another is going on.
pub(crate) fn start(run: u64, scope: VerifyScope, workers: usize) {
    if state(workers) == VerifyState::Running
        || (state(workers) == VerifyState::Done && RUN.load(Ordering::Relaxed) == run)
    {
        return;
    }
    for share in &SHARES {
        for counter in [&share.checked, &share.fill_checked, &share.bad, &share.digest] {
            counter.store(0, Ordering::Relaxed);
        }
    }
    RUN.store(run, Ordering::Relaxed);
    SCOPE.store(u64::from(scope.working_set) | u64::from(scope.fill) << 1, Ordering::Relaxed);
    STARTED.fetch_add(1, Ordering::Release);
    work::wake_all();
}

/// How far the latest run is.
pub(crate) fn answer(workers: usize) -> VerifyAnswer {
    // The state first: counts read after it was seen done are final.
    let state = state(workers);
    let sum = |field: fn(&Share) -> &AtomicU64| {
        SHARES
            .iter()
            .fold(0_u64, |sum, share| sum.wrapping_add(field(share).load(Ordering::Relaxed)))
    };
    VerifyAnswer {
        state,
        scope: scope(),
        run: RUN.load(Ordering::Relaxed),
        checked_pages: sum(|share| &share.checked),
        fill_pages: sum(|share| &share.fill_checked),
        bad_pages: sum(|share| &share.bad),
        first_bad: work::corruption().1,
        digest: sum(|share| &share.digest),
    }
}

/// Pages of the fill area that hold their content by now.
pub(crate) fn filled_pages() -> u64 {
    SHARES.iter().map(|share| share.filled.load(Ordering::Relaxed)).sum()
}

fn scope() -> VerifyScope {
    let bits = SCOPE.load(Ordering::Relaxed);
    VerifyScope { working_set: bits & 1 != 0, fill: bits & 2 != 0 }
}

fn state(workers: usize) -> VerifyState {
    let started = STARTED.load(Ordering::Relaxed);
    if started == 0 {
        return VerifyState::Idle;
    }
    let all_finished =
        SHARES[..workers].iter().all(|share| share.finished.load(Ordering::Acquire) == started);
    if all_finished { VerifyState::Done } else { VerifyState::Running }
}

#[derive(Clone, Copy)]
enum Phase {
    Filling { next: u64 },
    Idle,
    WorkingSet { next: u64 },
    Fill { next: u64 },
}

/// A worker's part of filling and checking.
pub(crate) struct Checker {
    index: u64,
    workers: u64,
    phase: Phase,
    run: u64,
}

impl Checker {
    pub(crate) fn new(index: u64, workers: u64) -> Self {
        let mut checker = Self { index, workers, phase: Phase::Idle, run: 0 };
        checker.phase = Phase::Filling { next: checker.fill_share().0 };
        checker
    }

    /// A bounded piece; true if more is to do.
    pub(crate) fn run_slice(&mut self) -> bool {
        self.phase = match self.phase {
            Phase::Filling { next } => self.fill_slice(next),
            Phase::Idle => {
                let started = STARTED.load(Ordering::Acquire);
                if started == self.run {
                    return false;
                }
                self.run = started;
                if scope().working_set {
                    Phase::WorkingSet { next: self.index }
                } else {
                    self.after_working_set()
                }
            }
            Phase::WorkingSet { next } => self.check_working_set_slice(next),
            Phase::Fill { next } => self.check_fill_slice(next),
        };
        true
    }

    fn share(&self) -> &'static Share {
        &SHARES[self.index as usize]
    }

    /// First and end ordinal of the fill pages of this worker.
    fn fill_share(&self) -> (u64, u64) {
        let pages = Memory::get().fill_pages();
        (pages * self.index / self.workers, pages * (self.index + 1) / self.workers)
    }

    fn fill_slice(&self, next: u64) -> Phase {
        let end = self.fill_share().1.min(next + SLICE_PAGES);
        for ordinal in next..end {
            fill_page(Memory::get().fill_page(ordinal));
        }
        self.share().filled.fetch_add(end - next, Ordering::Relaxed);
        if end == next { Phase::Idle } else { Phase::Filling { next: end } }
    }

    fn check_working_set_slice(&self, mut next: u64) -> Phase {
        let (memory, share) = (Memory::get(), self.share());
        let mut checked = 0;
        for _ in 0..SLICE_RECORDS {
            if next >= memory.working_set_pages() {
                return self.after_working_set();
            }
            if memory.record(next).version.load(Ordering::Relaxed) != 0 {
                let (good, digest) = check_page(next);
                self.count(good, memory.page(next) as u64);
                share.digest.fetch_add(digest, Ordering::Relaxed);
                checked += 1;
            }
            next += self.workers;
            if checked == SLICE_PAGES {
                break;
            }
        }
        Phase::WorkingSet { next }
    }

    fn after_working_set(&self) -> Phase {
        if scope().fill { Phase::Fill { next: self.fill_share().0 } } else { self.finish() }
    }

    fn check_fill_slice(&self, next: u64) -> Phase {
        let end = self.fill_share().1.min(next + SLICE_PAGES);
        for ordinal in next..end {
            let address = Memory::get().fill_page(ordinal);
            self.count(check_fill_page(address), address);
        }
        self.share().fill_checked.fetch_add(end - next, Ordering::Relaxed);
        if end == next { self.finish() } else { Phase::Fill { next: end } }
    }

    fn count(&self, good: bool, address: u64) {
        self.share().checked.fetch_add(1, Ordering::Relaxed);
        if !good {
            self.share().bad.fetch_add(1, Ordering::Relaxed);
            report_corrupt(address);
        }
    }

    fn finish(&self) -> Phase {
        self.share().finished.store(self.run, Ordering::Release);
        Phase::Idle
    }
}

fn fill_page(address: u64) {
    let (words, seed) = (address as *mut u64, fill_seed(address / 4096));
    for index in 0..PAGE_WORDS {
        // SAFETY: fill pages are RAM that nothing else uses.
        unsafe { words.add(index).write(content_word(Content::Random, seed, index)) };
    }
}

fn check_fill_page(address: u64) -> bool {
    let (words, seed) = (address as *const u64, fill_seed(address / 4096));
    (0..PAGE_WORDS).all(|index| {
        // SAFETY: within the page.
        let word = unsafe { words.add(index).read_volatile() };
        word == content_word(Content::Random, seed, index)
    })
}

/// Whether a page holds what its record says, and its part of the digest.
fn check_page(page: u64) -> (bool, u64) {
    let memory = Memory::get();
    let words = memory.page(page);
    // SAFETY: within the page; its writer is this vCPU.
    let word = |index: usize| unsafe { words.add(index).read_volatile() };
    memory.record(page).load().check(page, word)
}
