//! Workers: they dirty the working set, fill memory and check both.
//!
//! The working set is divided by page number modulo the number of workers, so a page has one
//! writer and one checker and no locks. vCPUs 1.. are workers; a lone vCPU 0 is one between its
//! network polls. A worker never holds the vCPU for more than one slice.
//!
//! Invariant: a record is updated right after its page, by the same vCPU. Whenever a checkpoint is
//! taken, memory and registers together are consistent; a page or table page that alone went back
//! (or forward) in time disagrees with the other and is counted before it is rewritten.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use romulus_probe::content::{content_word, page_seed};
use romulus_probe::pace::{Pace, RATE_PER_S_MAX};
use romulus_probe::{Content, PAGE_WORDS, Pattern, Record, VCPUS_MAX, Write};

use crate::memory::Memory;
use crate::verify::Checker;
use crate::{apic, clock};

/// Page writes in one slice.
const SLICE_PAGES: u64 = 32;
/// Shortest timer period of a vCPU with a pattern to hold.
const ACTIVE_TICK_MS_MIN: u64 = 2;

/// What the first vCPU wants of the workers. The change count is bumped last.
struct Orders {
    changes: AtomicU64,
    pages: AtomicU64,
    rate_per_s: AtomicU64,
    /// Write | content << 8.
    kinds: AtomicU64,
}

static ORDERS: Orders = Orders {
    changes: AtomicU64::new(0),
    pages: AtomicU64::new(0),
    rate_per_s: AtomicU64::new(0),
    kinds: AtomicU64::new(0x202),
};

/// What a vCPU counts, on a cache line of its own.
#[repr(align(64))]
pub(crate) struct WorkCounters {
    /// Steps of its loop and pages written: only rises.
    pub(crate) progress: AtomicU64,
    /// Pages written by the pattern.
    pub(crate) written: AtomicU64,
}

pub(crate) static COUNTERS: [WorkCounters; VCPUS_MAX] =
    [const { WorkCounters { progress: AtomicU64::new(0), written: AtomicU64::new(0) } }; VCPUS_MAX];

static CORRUPT_PAGES: AtomicU64 = AtomicU64::new(0);
static FIRST_BAD: AtomicU64 = AtomicU64::new(0);
static WORKERS: AtomicUsize = AtomicUsize::new(0);

/// Gives the workers a pattern; answers what it became.
pub(crate) fn set_pattern(pattern: Pattern) -> Pattern {
    let pages = pattern.pages.min(Memory::get().working_set_pages());
    ORDERS.pages.store(pages, Ordering::Relaxed);
    ORDERS.rate_per_s.store(pattern.rate_per_s.min(RATE_PER_S_MAX), Ordering::Relaxed);
    ORDERS.kinds.store(pattern.write as u64 | (pattern.content as u64) << 8, Ordering::Relaxed);
    ORDERS.changes.fetch_add(1, Ordering::Release);
    wake_all();
    pattern_now()
}

/// The pattern that runs.
pub(crate) fn pattern_now() -> Pattern {
    let kinds = ORDERS.kinds.load(Ordering::Relaxed);
    Pattern {
        pages: ORDERS.pages.load(Ordering::Relaxed),
        rate_per_s: ORDERS.rate_per_s.load(Ordering::Relaxed),
        write: Write::from_u8(kinds as u8).expect("only valid ones are stored"),
        content: Content::from_u8((kinds >> 8) as u8).expect("only valid ones are stored"),
    }
}

/// Patterns set since boot.
pub(crate) fn pattern_changes() -> u64 {
    ORDERS.changes.load(Ordering::Relaxed)
}

/// Pages found corrupt, and the address of the first.
pub(crate) fn corruption() -> (u64, u64) {
    (CORRUPT_PAGES.load(Ordering::Relaxed), FIRST_BAD.load(Ordering::Relaxed))
}

/// Counts a page that does not hold what was written.
pub(crate) fn report_corrupt(address: u64) {
    CORRUPT_PAGES.fetch_add(1, Ordering::Relaxed);
    let first = FIRST_BAD.compare_exchange(0, address, Ordering::Relaxed, Ordering::Relaxed);
    if first.is_ok() {
        crate::say!("corrupt page at {address:#x}");
    }
}

/// How many workers there are with so many vCPUs.
pub(crate) fn workers_of(vcpus: usize) -> usize {
    (vcpus - 1).max(1)
}

/// Lets [`set_pattern`] wake them.
pub(crate) fn set_vcpus(vcpus: usize) {
    WORKERS.store(vcpus, Ordering::Relaxed);
}

/// Interrupts every other vCPU's sleep; only vCPU 0 calls this.
pub(crate) fn wake_all() {
    for cpu in 1..WORKERS.load(Ordering::Relaxed) {
        apic::wake(cpu);
    }
}

/// One worker, owned by its vCPU.
pub(crate) struct Worker {
    cpu: usize,
    index: u64,
    workers: u64,
    tick_ms_idle: u64,
    changes_seen: u64,
    pattern: Pattern,
    next_page: u64,
    pace: Pace,
    checker: Checker,
}

impl Worker {
    pub(crate) fn new(cpu: usize, vcpus: usize, tick_ms_idle: u64) -> Self {
        let (index, workers) = (cpu.saturating_sub(1) as u64, workers_of(vcpus) as u64);
        Self {
            cpu,
            index,
            workers,
            tick_ms_idle,
            changes_seen: 0,
            pattern: Pattern::default(),
            next_page: index,
            pace: Pace::new(0, 0),
            checker: Checker::new(index, workers),
        }
    }

    /// Does a bounded piece of work. True if more could be done at once.
    pub(crate) fn run_slice(&mut self) -> bool {
        self.refresh_orders();
        let checks_more = self.checker.run_slice();
        let writes_more = self.write_what_is_due();
        checks_more || writes_more
    }

    fn refresh_orders(&mut self) {
        let changes = ORDERS.changes.load(Ordering::Acquire);
        if changes == self.changes_seen {
            return;
        }
        // A change in between only means another refresh at the next slice.
        self.changes_seen = changes;
        self.pattern = pattern_now();
        self.pace = Pace::new(self.rate_share(), clock::now_ns(self.cpu));
        // A tick for every write that is due, within reason.
        let period_ms = match self.pace.rate_per_s() {
            0 => self.tick_ms_idle,
            rate => (1000 / rate).max(ACTIVE_TICK_MS_MIN).min(self.tick_ms_idle),
        };
        apic::set_timer_ms(period_ms);
    }

    /// This worker's part of the rate; workers without a page have none.
    fn rate_share(&self) -> u64 {
        let active = self.workers.min(self.pattern.pages);
        if self.index >= active {
            return 0;
        }
        let rate = self.pattern.rate_per_s;
        rate / active + u64::from(self.index < rate % active)
    }

    fn write_what_is_due(&mut self) -> bool {
        if self.pace.rate_per_s() == 0 {
            return false;
        }
        let due = self.pace.take_due(clock::now_ns(self.cpu), SLICE_PAGES);
        for _ in 0..due {
            self.write_next();
        }
        let counters = &COUNTERS[self.cpu];
        counters.written.fetch_add(due, Ordering::Relaxed);
        counters.progress.fetch_add(due, Ordering::Relaxed);
        self.pace.is_behind()
    }

    fn write_next(&mut self) {
        if self.next_page >= self.pattern.pages {
            self.next_page = self.index;
        }
        write_page(self.next_page, &self.pattern);
        self.next_page += self.workers;
    }
}

fn write_page(page: u64, pattern: &Pattern) {
    let memory = Memory::get();
    let (words, record) = (memory.page(page), memory.record(page));
    let before = record.load();
    if before.version != 0 {
        check_before_write(page, words, &before);
    }
    let version = before.version + 1;
    // SAFETY: the page is in the working set and this worker is its only writer.
    unsafe {
        match (pattern.content, pattern.write) {
            (Content::Same, Write::Sparse) if before.version != 0 => {
                words.write_volatile(words.read_volatile())
            }
            (Content::Same, Write::Page) if before.last_whole().is_some() => {
                for index in 0..PAGE_WORDS {
                    words.add(index).write_volatile(words.add(index).read_volatile());
                }
            }
            (_, Write::Sparse) => {
                let after = Record { version, ..before };
                words.write_volatile(after.header(page));
                record.store(after);
            }
            (class, Write::Page) => {
                let after = Record::of_whole(class, version);
                write_whole(page, words, class, &after);
                record.store(after);
            }
        }
    }
}

/// # Safety
/// `words` is the page's memory and the caller its only writer.
unsafe fn write_whole(page: u64, words: *mut u64, class: Content, record: &Record) {
    let seed = page_seed(page, record.version);
    for index in 1..PAGE_WORDS {
        // SAFETY: within the page.
        unsafe { words.add(index).write(content_word(class, seed, index)) };
    }
    // SAFETY: the page's first word.
    unsafe { words.write_volatile(record.header(page)) };
}

/// Cheap enough for every write. `verify` checks all of a page.
fn check_before_write(page: u64, words: *mut u64, record: &Record) {
    // SAFETY: within the page.
    let word = |index: usize| unsafe { words.add(index).read_volatile() };
    if !record.agrees_at_a_glance(page, word) {
        report_corrupt(words as u64);
    }
}
