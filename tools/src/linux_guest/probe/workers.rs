//! Threads that dirty the working set and check it, one for every vCPU but the
//! first, which serves; a lone vCPU does both.
//!
//! The working set is divided by page number modulo the number of workers. A
//! worker does its work in slices and sleeps when nothing is due; what it
//! counts can only rise.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use romulus_probe::{
    Pattern, VCPUS_MAX,
    message::{PatternAnswer, VcpuCounters, VerifyAnswer, VerifyScope, VerifyState},
    pace::{Pace, RATE_PER_S_MAX},
};

use super::working_set::WorkingSet;

/// Pages written or checked in one slice.
const SLICE_PAGES: u64 = 32;
/// Shortest sleep of a worker with a pattern to hold.
const ACTIVE_TICK_MS_MIN: u64 = 2;

/// What the workers are to do. `number` rises with every order.
#[derive(Debug, Clone, Copy)]
struct Orders {
    number: u64,
    pattern: Pattern,
    pattern_changes: u64,
    check: Check,
    stop: bool,
}

/// The check of all memory that was started last.
#[derive(Debug, Clone, Copy)]
struct Check {
    /// How many were started.
    started: u64,
    run: u64,
    scope: VerifyScope,
    /// Workers that are not done with it.
    working: usize,
    checked_pages: u64,
    bad_pages: u64,
    digest: u64,
}

/// What a vCPU counts.
#[derive(Debug, Default)]
struct Counters {
    progress: AtomicU64,
    /// Times that its timer woke it.
    ticks: AtomicU64,
    written: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    vcpus: usize,
    working_set: WorkingSet,
    orders: Mutex<Orders>,
    ordered: Condvar,
    counters: [Counters; VCPUS_MAX],
    began: Instant,
}

/// The workers; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts the workers of a machine with `vcpus`, on a working set of so
    /// many pages. Without a pattern they wake every `tick_ms`.
    ///
    /// # Errors
    ///
    /// If there can be no more threads.
    pub(super) fn start(vcpus: usize, pages: usize, tick_ms: u64) -> io::Result<Self> {
        let check = Check {
            started: 0,
            run: 0,
            scope: VerifyScope { working_set: false, fill: false },
            working: 0,
            checked_pages: 0,
            bad_pages: 0,
            digest: 0,
        };
        let pattern = Pattern::default();
        let orders = Orders { number: 0, pattern, pattern_changes: 0, check, stop: false };
        let shared = Arc::new(Shared {
            vcpus,
            working_set: WorkingSet::new(pages),
            orders: Mutex::new(orders),
            ordered: Condvar::new(),
            counters: Default::default(),
            began: Instant::now(),
        });
        let mut workers = Self { shared, threads: Vec::new() };
        for index in 0..workers.shared.workers() {
            let worker = Worker::new(&workers.shared, index, tick_ms);
            let name = format!("worker-{index}");
            workers.threads.push(thread::Builder::new().name(name).spawn(|| worker.work())?);
        }
        Ok(workers)
    }

    /// Gives the workers a pattern, bounded by what there is.
    pub(super) fn set_pattern(&self, pattern: Pattern) {
        let pages = pattern.pages.min(self.shared.working_set.pages());
        let rate_per_s = pattern.rate_per_s.min(RATE_PER_S_MAX);
        self.shared.order(|orders| {
            orders.pattern = Pattern { pages, rate_per_s, ..pattern };
            orders.pattern_changes += 1;
        });
    }

    /// The pattern that runs.
    pub(super) fn pattern(&self) -> PatternAnswer {
        let Orders { pattern, pattern_changes: changes, .. } = *self.shared.orders();
        PatternAnswer { pattern, pages_max: self.shared.working_set.pages(), changes }
    }

    /// Starts a check of all memory, unless this very one was started last or
    /// another is going on.
    pub(super) fn start_check(&self, run: u64, scope: VerifyScope) {
        let workers = self.shared.workers();
        let old = self.shared.orders().check;
        if old.working > 0 || (old.started > 0 && old.run == run) {
            return;
        }
        // There is no fill area here: its check is done at once.
        let working = if scope.working_set { workers } else { 0 };
        let started = old.started + 1;
        self.shared.order(|orders| {
            let (checked_pages, bad_pages, digest) = (0, 0, 0);
            orders.check = Check { started, run, scope, working, checked_pages, bad_pages, digest };
        });
    }

    /// How far it is.
    pub(super) fn check(&self) -> VerifyAnswer {
        let check = self.shared.orders().check;
        VerifyAnswer {
            state: match check {
                Check { started: 0, .. } => VerifyState::Idle,
                Check { working: 0, .. } => VerifyState::Done,
                Check { .. } => VerifyState::Running,
            },
            scope: check.scope,
            run: check.run,
            checked_pages: check.checked_pages,
            fill_pages: 0,
            bad_pages: check.bad_pages,
            first_bad: self.corruption().1,
            digest: check.digest,
        }
    }

    /// Pages found corrupt so far, and the address of the first, or 0.
    pub(super) fn corruption(&self) -> (u64, u64) {
        self.shared.working_set.corruption()
    }

    /// vCPUs that run.
    pub(super) fn vcpus(&self) -> u32 {
        self.shared.vcpus as u32
    }

    /// Pages written so far.
    pub(super) fn written_pages(&self) -> u64 {
        self.shared.counters.iter().map(|counters| counters.written.load(Relaxed)).sum()
    }

    /// The counters of all vCPUs.
    pub(super) fn counters(&self) -> [VcpuCounters; VCPUS_MAX] {
        self.shared.counters.each_ref().map(|counters| VcpuCounters {
            progress: counters.progress.load(Relaxed),
            ticks: counters.ticks.load(Relaxed),
        })
    }

    /// Counts a step of the first vCPU, which serves.
    pub(super) fn count_served(&self, timer: bool) {
        let counters = &self.shared.counters[0];
        counters.progress.fetch_add(1, Relaxed);
        counters.ticks.fetch_add(u64::from(timer), Relaxed);
    }

    /// Damages pages: see [`WorkingSet::damage`].
    #[cfg(test)]
    pub(super) fn damager(&self) -> impl Fn(u64, usize) + use<> {
        let shared = Arc::clone(&self.shared);
        move |page, word| shared.working_set.damage(page, word)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.order(|orders| orders.stop = true);
        for thread in self.threads.drain(..) {
            // A panic of it has been told.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn workers(&self) -> usize {
        (self.vcpus - 1).max(1)
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        let mut orders = self.orders();
        change(&mut orders);
        orders.number += 1;
        self.ordered.notify_all();
    }

    /// Sleeps until there is another order than `number`, or for `period`.
    /// Whether it was the timer.
    fn sleep(&self, number: u64, period: Duration) -> bool {
        let orders = self.orders();
        let woken =
            self.ordered.wait_timeout_while(orders, period, |orders| orders.number == number);
        woken.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }
}

/// Runs this thread on CPU `cpu` only, so that what is counted and told of a
/// vCPU is that vCPU's.
pub(super) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        println!("probe: a thread is not bound to vCPU {cpu}: {error}");
    }
}

/// One worker, on its thread.
struct Worker {
    shared: Arc<Shared>,
    index: u64,
    cpu: usize,
    workers: u64,
    tick_ms_idle: u64,
    pattern_changes: u64,
    pattern: Pattern,
    next_page: u64,
    pace: Pace,
    checks_seen: u64,
    /// The next page to check, while a check is going on.
    checking: Option<u64>,
}

impl Worker {
    fn new(shared: &Arc<Shared>, index: usize, tick_ms_idle: u64) -> Self {
        Self {
            index: index as u64,
            cpu: if shared.vcpus == 1 { 0 } else { index + 1 },
            workers: shared.workers() as u64,
            tick_ms_idle,
            pattern_changes: 0,
            pattern: Pattern::default(),
            next_page: index as u64,
            pace: Pace::new(0, 0),
            checks_seen: 0,
            checking: None,
            shared: Arc::clone(shared),
        }
    }

    fn work(mut self) {
        pin(self.cpu);
        loop {
            let orders = *self.shared.orders();
            if orders.stop {
                return;
            }
            self.obey(&orders);
            let checks_more = self.check_slice();
            let writes_more = self.write_what_is_due();
            self.counters().progress.fetch_add(1, Relaxed);
            if !checks_more && !writes_more && self.shared.sleep(orders.number, self.period()) {
                self.counters().ticks.fetch_add(1, Relaxed);
            }
        }
    }

    fn counters(&self) -> &Counters {
        &self.shared.counters[self.cpu]
    }

    fn obey(&mut self, orders: &Orders) {
        if orders.pattern_changes != self.pattern_changes {
            self.pattern_changes = orders.pattern_changes;
            self.pattern = orders.pattern;
            self.pace = Pace::new(self.rate_share(), self.shared.now_ns());
        }
        if orders.check.started != self.checks_seen {
            self.checks_seen = orders.check.started;
            self.checking = (orders.check.working > 0).then_some(self.index);
        }
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

    /// As long as nothing is due, within reason.
    fn period(&self) -> Duration {
        Duration::from_millis(match self.pace.rate_per_s() {
            0 => self.tick_ms_idle,
            rate => (1000 / rate).max(ACTIVE_TICK_MS_MIN).min(self.tick_ms_idle),
        })
    }

    fn write_what_is_due(&mut self) -> bool {
        if self.pace.rate_per_s() == 0 {
            return false;
        }
        let due = self.pace.take_due(self.shared.now_ns(), SLICE_PAGES);
        for _ in 0..due {
            if self.next_page >= self.pattern.pages {
                self.next_page = self.index;
            }
            self.shared.working_set.write(self.next_page, &self.pattern);
            self.next_page += self.workers;
        }
        self.counters().written.fetch_add(due, Relaxed);
        self.counters().progress.fetch_add(due, Relaxed);
        self.pace.is_behind()
    }

    fn check_slice(&mut self) -> bool {
        let Some(first) = self.checking else { return false };
        let set = &self.shared.working_set;
        let slice = (first..set.pages()).step_by(self.workers as usize);
        let (mut checked, mut bad, mut sum) = (0, 0, 0_u64);
        for (good, digest) in slice.take(SLICE_PAGES as usize).filter_map(|page| set.check(page)) {
            checked += 1;
            bad += u64::from(!good);
            sum = sum.wrapping_add(digest);
        }
        let next = first + SLICE_PAGES * self.workers;
        let done = next >= set.pages();
        self.checking = (!done).then_some(next);
        let check = &mut self.shared.orders().check;
        check.checked_pages += checked;
        check.bad_pages += bad;
        check.digest = check.digest.wrapping_add(sum);
        check.working -= usize::from(done);
        true
    }
}
