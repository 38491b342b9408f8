//! Takes checkpoints: the only thread that pauses and resumes the guest.
//!
//! ```text
//!   while it runs   harvest cold pages ── copy ── encode, ahead of the epoch's end
//!   before its end  harvest ── copy, again and again while that leaves less to the pause
//!   at its end      pause ── harvest ── seal output ── save state ── copy pages ── resume
//!                   └───────────────────── the pause, measured ──────────────────────┘
//! ```
//!
//! It also restarts a guest that wants to be restarted: between two cuts, so
//! that an epoch has all of a restart or nothing of it. And it tells the ledger
//! who is seeded: whoever did would wait until a pause is over, and a pause that
//! takes a digest of all memory is longer than a primary may be silent.
//!
//! What is copied before the pause and written again is copied again, and only
//! the last copy is sent. Pages are sent ahead only when the epoch before left many to its pause. A
//! page that is written after it was sent ahead is dirty again and comes once
//! more; the later copy counts.
//!
//! On any failure the pages go back to the ledger, the guest runs on, and the
//! core hears of it.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arbiter::NodeId;
use checkpoint::{
    Epoch, PAGE_BYTES, PageSet, Sections,
    chunk::Digest,
    plan::{CopyCost, Plan},
    primary::CutOrder,
};
use vmm::vm::{Vm, VmError};

use super::{
    capture::{Batch, BlockPool, batches, mark_stale},
    copier::Copier,
    core::Input,
    encoder::{EpochEnd, Group, Intake},
    seeder::FirstRound,
    tracker::{self, Tracker},
};
use crate::{
    config::VmConfig,
    control::EpochRecord,
    jail::{self, ThreadKind},
    node::{
        Audit, Guest,
        crash_point::{self, Moment},
        with_causes,
    },
    telemetry::monotonic_us,
};

/// A pause with so few pages to copy is short enough.
const EARLY_PAGES_MIN: u64 = 192;
/// Most copies before a pause; each must leave at most two thirds of the pages
/// to the next.
const EARLY_ROUNDS_MAX: u32 = 6;
/// Pages that an epoch must have for the next to send ahead.
const AHEAD_PAGES_MIN: u64 = 1024;
/// Sends ahead within an epoch.
const AHEAD_ROUNDS: u32 = 4;
/// Shortest time between two of them.
const AHEAD_INTERVAL_MIN: Duration = Duration::from_millis(4);

/// What the thread is told.
#[derive(Debug)]
enum Order {
    Cut(CutOrder),
    Hold,
    Free,
    /// Restart the guest, if it still wants to be.
    Restart,
    Track(Track),
    /// Pause for good and end the thread.
    Stop,
}

/// What the tracker is told.
#[derive(Debug)]
enum Track {
    /// The backup is owed every page from now on.
    BeginSeed(NodeId, FirstRound),
    /// The backup is owed nothing.
    EndSeed(NodeId),
    /// Nobody follows.
    Rest,
}

/// How long the parts of a pause took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Timings {
    pub(super) pause: Duration,
    pub(super) stop: Duration,
    pub(super) harvest: Duration,
    /// What saving the state took longer than the harvest.
    pub(super) save: Duration,
    pub(super) capture: Duration,
    pub(super) resume: Duration,
    /// Pages copied within `capture`.
    pub(super) copied: u64,
}

/// A checkpoint that was taken; its pages are on their way to the encoders.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) epoch: Epoch,
    /// Captured in the pause.
    pub(super) pages: u64,
    /// Captured just before it, and not written since.
    pub(super) pages_early: u64,
    /// Sent ahead of it.
    pub(super) pages_ahead: u64,
    /// BLAKE3 of all guest memory, if it was asked for.
    pub(super) digest: Option<Digest>,
    pub(super) timings: Timings,
    /// When the guest went on.
    pub(super) resumed: Instant,
}

impl Cut {
    /// Page content of the epoch, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        (self.pages + self.pages_early + self.pages_ahead) * PAGE_BYTES as u64
    }

    /// For operators; what the wire and the backup do to it comes later.
    pub(super) fn record(&self) -> EpochRecord {
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let Timings { pause, stop, harvest, save, capture, resume, copied } = self.timings;
        EpochRecord {
            epoch: self.epoch.get(),
            resumed_monotonic_us: monotonic_us().saturating_sub(us(self.resumed.elapsed())),
            pages: self.pages,
            pages_copied: copied,
            pages_early: self.pages_early,
            pages_ahead: self.pages_ahead,
            pause_us: us(pause),
            stop_us: us(stop),
            harvest_us: us(harvest),
            save_us: us(save),
            capture_us: us(capture),
            resume_us: us(resume),
            wire_bytes: None,
            commit_us: None,
        }
    }
}

/// The state of a guest that stands still since a checkpoint.
#[derive(Debug)]
pub(super) struct Still {
    pub(super) epoch: Epoch,
    pub(super) sections: Sections,
}

/// A handle of the thread.
#[derive(Debug)]
pub(super) struct Cutter {
    orders: mpsc::Sender<Order>,
    thread: Option<JoinHandle<Option<Still>>>,
}

/// What the thread works with.
pub(super) struct Tools {
    pub(super) guest: Arc<Guest>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) pool: BlockPool,
    pub(super) intake: Intake,
    /// For pages that are not copied in the pause; without it all are.
    pub(super) copier: Option<Arc<Copier>>,
    /// How long copying may take of a pause, if there is one.
    pub(super) copy_max: Duration,
    /// From one cut to the next, at the longest.
    pub(super) interval: Duration,
    /// Output of an epoch goes along with it.
    pub(super) send_outputs: bool,
    /// Digests are taken of every epoch.
    pub(super) audit: Arc<Audit>,
    /// What boots when the guest restarts.
    pub(super) config: VmConfig,
    pub(super) inputs: mpsc::Sender<Input>,
}

impl Cutter {
    /// Starts the thread. The guest may be running or paused.
    pub(super) fn start(tools: Tools) -> std::io::Result<Self> {
        let (orders, received) = mpsc::channel();
        let copy_cost = CopyCost::default();
        let later = PageSet::new(tools.guest.layout().frame_end());
        let worker = Worker {
            tools,
            held: false,
            still: None,
            open: None,
            pages_ahead: 0,
            ahead_pages_max: 0,
            pages_last: 0,
            later,
            copy_cost,
        };
        let thread = jail::spawn(ThreadKind::Epoch, "epoch", move || worker.work(&received))?;
        Ok(Self { orders, thread: Some(thread) })
    }

    pub(super) fn cut(&self, order: CutOrder) {
        self.tell(Order::Cut(order));
    }

    /// Pauses the guest until [`Cutter::free`].
    pub(super) fn hold(&self) {
        self.tell(Order::Hold);
    }

    pub(super) fn free(&self) {
        self.tell(Order::Free);
    }

    /// Restarts the guest; [`Input::Restarted`] tells how that went.
    pub(super) fn restart(&self) {
        self.tell(Order::Restart);
    }

    /// Logs writes, owes `backup` every page, and has the first round sent.
    pub(super) fn begin_seed(&self, backup: NodeId, first: FirstRound) {
        self.tell(Order::Track(Track::BeginSeed(backup, first)));
    }

    pub(super) fn end_seed(&self, backup: NodeId) {
        self.tell(Order::Track(Track::EndSeed(backup)));
    }

    /// No longer logs writes, unless a backup is being seeded.
    pub(super) fn rest(&self) {
        self.tell(Order::Track(Track::Rest));
    }

    /// Pauses the guest for good and waits until it is. Returns, the first time,
    /// its state if it has not run since its last checkpoint.
    pub(super) fn stop(&mut self) -> Option<Still> {
        self.tell(Order::Stop);
        self.thread.take()?.join().ok()?
    }

    fn tell(&self, order: Order) {
        // The thread ends only by our order, or by a panic, which is reported.
        let _ = self.orders.send(order);
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

struct Worker {
    tools: Tools,
    /// The guest stays paused between cuts.
    held: bool,
    /// Its state, if it stands as it was captured last.
    still: Option<Still>,
    /// The epoch that runs, if pages of it are sent ahead.
    open: Option<Epoch>,
    /// Pages of it that were.
    pages_ahead: u64,
    /// Most that may be, so that backups have room for the epoch.
    ahead_pages_max: u64,
    /// Pages of the last epoch.
    pages_last: u64,
    /// Scratch for telling which copies count.
    later: PageSet,
    copy_cost: CopyCost,
}

impl Worker {
    fn work(mut self, orders: &mpsc::Receiver<Order>) -> Option<Still> {
        loop {
            let order = match self.open {
                None => orders.recv().ok(),
                Some(_) => match orders.recv_timeout(self.ahead_interval()) {
                    Ok(order) => Some(order),
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        self.send_ahead();
                        continue;
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => None,
                },
            };
            let done = match order {
                Some(Order::Cut(order)) => {
                    self.cut(&order);
                    Ok(())
                }
                Some(Order::Hold) => self.hold(),
                Some(Order::Free) => self.free(),
                Some(Order::Restart) => self.restart(),
                Some(Order::Track(change)) => {
                    self.track(change);
                    Ok(())
                }
                Some(Order::Stop) | None => {
                    let _ = self.hold();
                    return self.still.take();
                }
            };
            if let Err(error) = done {
                let _ = self.tools.inputs.send(Input::GuestLost(error.to_string()));
            }
        }
    }

    fn ahead_interval(&self) -> Duration {
        (self.tools.interval / (AHEAD_ROUNDS + 1)).max(AHEAD_INTERVAL_MIN)
    }

    fn hold(&mut self) -> Result<(), VmError> {
        if !self.held {
            self.tools.guest.vm().pause()?;
            self.held = true;
        }
        Ok(())
    }

    fn free(&mut self) -> Result<(), VmError> {
        if self.held {
            self.still = None;
            self.tools.guest.vm().resume()?;
            self.held = false;
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<(), VmError> {
        self.still = None;
        let Tools { guest, tracker, config, inputs, .. } = &self.tools;
        let _tracked = tracker.lock();
        if !self.held {
            guest.vm().pause()?;
        }
        let outcome = match guest.restart(config) {
            Ok(true) => Ok(()),
            Ok(false) if self.held => return Ok(()),
            Ok(false) => return guest.vm().resume(),
            Err(error) => Err(with_causes(&error)),
        };
        // A guest that did not restart has no more to do.
        let lost = outcome.is_err();
        if lost {
            self.held = true;
        } else if !self.held {
            guest.vm().resume()?;
        }
        let _ = inputs.send(Input::Restarted(outcome));
        Ok(())
    }

    fn track(&self, change: Track) {
        let tracker = &self.tools.tracker;
        match change {
            Track::BeginSeed(backup, first) => match tracker.begin_seed(backup.clone()) {
                Ok(()) => first.go(),
                Err(error) => tracing::error!(%backup, %error, "the seed could not be begun"),
            },
            Track::EndSeed(backup) => tracker.end_seed(&backup),
            Track::Rest => {
                if let Err(error) = tracker.rest() {
                    tracing::warn!(%error, "dirty tracking goes on");
                }
            }
        }
    }

    /// Sends dirty pages that look final ahead of their epoch's end.
    fn send_ahead(&mut self) {
        let Some(epoch) = self.open else { return };
        // Pages of the last epoch come first.
        if self.tools.copier.as_ref().is_some_and(|copier| !copier.is_idle()) {
            return;
        }
        let Tools { guest, tracker, pool, intake, .. } = &self.tools;
        let mut tracked = tracker.lock();
        let room = self.ahead_pages_max.saturating_sub(self.pages_ahead);
        let taken = tracked.take_ahead(&guest.vm(), room);
        let batches: Vec<Batch> = match taken {
            Ok(Some(pages)) => batches(pages, guest.memory(), || pool.take()).collect(),
            Ok(None) => {
                self.open = None;
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "pages are not sent ahead");
                self.open = None;
                return;
            }
        };
        self.pages_ahead += batches.iter().map(Batch::pages).sum::<u64>();
        if !batches.is_empty() {
            intake.submit(Group { epoch, batches, fresh: false, end: None });
        }
    }

    fn cut(&mut self, order: &CutOrder) {
        if let Some(copier) = &self.tools.copier {
            copier.wait();
        }
        let input = match self.checkpoint(order) {
            Ok(Ok((cut, group))) => {
                // The core hears of the cut before it hears of its chunks.
                let _ = self.tools.inputs.send(Input::CutDone(cut));
                self.tools.intake.submit(group);
                if let Some(copier) = &self.tools.copier {
                    copier.go();
                }
                return;
            }
            Ok(Err(error)) => Input::CutFailed { epoch: order.epoch, why: error.to_string() },
            Err(error) => Input::GuestLost(error.to_string()),
        };
        let _ = self.tools.inputs.send(input);
    }

    /// The outer error means that the guest neither runs nor can be resumed.
    fn checkpoint(&mut self, order: &CutOrder) -> Result<Result<(Cut, Group), VmError>, VmError> {
        let mut early = self.copy_early();
        let Tools { guest, tracker, .. } = &self.tools;
        let mut timings = Timings::default();
        let mut tracked = tracker.lock();
        let mut vm = guest.vm();
        let begun = Instant::now();
        if !self.held {
            vm.pause()?;
        }
        timings.stop = begun.elapsed();
        let captured = self.capture(&mut tracked, &vm, order, &mut timings);
        let held = self.held || order.stay_paused && captured.is_ok();
        let resuming = Instant::now();
        if !held {
            vm.resume()?;
        }
        timings.resume = resuming.elapsed();
        timings.pause = begun.elapsed();
        let resumed = Instant::now();
        crash_point::reached(Moment::Resumed);
        drop(vm);
        self.held = held;
        let (mut group, digest) = match captured {
            Ok((group, digest, still)) => {
                self.still = still;
                (group, digest)
            }
            Err(error) => {
                tracked.forget_early();
                return Ok(Err(error));
            }
        };
        let pages = tracked.end_epoch();
        mark_stale(&mut early, tracked.early(), &mut self.later);
        let pages_early = self.later.len();
        tracked.forget_early();
        drop(tracked);
        early.append(&mut group.batches);
        group.batches = early;
        self.copy_cost.record(timings.copied, timings.capture);
        let pages_ahead = std::mem::take(&mut self.pages_ahead);
        self.pages_last = pages + pages_early + pages_ahead;
        self.open = (!held && self.pages_last >= AHEAD_PAGES_MIN).then(|| order.epoch.next());
        self.ahead_pages_max = order.ahead_bytes_max / PAGE_BYTES as u64;
        let epoch = order.epoch;
        Ok(Ok((Cut { epoch, pages, pages_early, pages_ahead, digest, timings, resumed }, group)))
    }

    /// Copies dirty pages while the guest still runs, until few are left to the
    /// pause or copying does not gain on the guest.
    fn copy_early(&self) -> Vec<Batch> {
        let mut early = Vec::new();
        if self.held || self.pages_last < EARLY_PAGES_MIN {
            return early;
        }
        let Tools { guest, tracker, pool, .. } = &self.tools;
        let mut last = u64::MAX;
        for _ in 0..EARLY_ROUNDS_MAX {
            let mut tracked = tracker.lock();
            let pages = match tracked.take_early(&guest.vm()) {
                Ok(pages) => pages,
                Err(error) => {
                    tracing::warn!(%error, "pages are not copied before the pause");
                    break;
                }
            };
            early.extend(batches(pages, guest.memory(), || pool.take()));
            if pages.len() < EARLY_PAGES_MIN || pages.len() > last / 3 * 2 {
                break;
            }
            last = pages.len();
        }
        early
    }

    fn capture(
        &self,
        tracked: &mut tracker::Inner,
        vm: &Vm,
        order: &CutOrder,
        timings: &mut Timings,
    ) -> Result<(Group, Option<Digest>, Option<Still>), VmError> {
        let Tools { guest, send_outputs, audit, .. } = &self.tools;
        crash_point::reached(Moment::Paused);
        let copy_pages_max = match &self.tools.copier {
            Some(_) => self.copy_cost.pages_in(self.tools.copy_max),
            None => u64::MAX,
        };
        let (state, plan) = tracked.cut(vm, order, copy_pages_max)?;
        timings.harvest = state.harvest;
        timings.save = state.total.saturating_sub(state.harvest);
        let begun = Instant::now();
        // Nothing below can fail: from here on the epoch is sealed.
        let outputs = guest.outlet().seal(order.epoch);
        guest.outlet().hold();
        let fresh = !order.joins.is_empty();
        let outputs = if *send_outputs { outputs } else { Vec::new() };
        let sections = state.sections;
        let still = order.stay_paused.then(|| sections.clone());
        let still = still.map(|sections| Still { epoch: order.epoch, sections });
        let end = EpochEnd { sections, outputs, fresh };
        let (batches, end) = self.take_pages(order.epoch, plan, end);
        timings.capture = begun.elapsed();
        timings.copied = plan.copied().len();
        let digest = (order.digest || audit.wanted()).then(|| guest.digest());
        if let Some(digest) = &digest {
            audit.record("cut", order.epoch, digest);
        }
        crash_point::reached(Moment::Captured);
        let group = Group { epoch: order.epoch, batches, fresh, end };
        Ok((group, digest.filter(|_| order.digest), still))
    }

    /// Copies the pages that are to be copied, and protects the others. If some
    /// are, the epoch's end is left to the copier.
    fn take_pages(
        &self,
        epoch: Epoch,
        plan: &Plan,
        end: EpochEnd,
    ) -> (Vec<Batch>, Option<EpochEnd>) {
        let Tools { guest, pool, copier, .. } = &self.tools;
        let copy = |pages| batches(pages, guest.memory(), || pool.take());
        let mut batches: Vec<Batch> = copy(plan.copied()).collect();
        if plan.protected().is_empty() {
            return (batches, Some(end));
        }
        let copier = copier.as_ref().expect("pages are protected only for a copier");
        match copier.protect(plan.protected()) {
            Ok(()) => {
                copier.begin(epoch, plan.protected(), end);
                (batches, None)
            }
            Err(error) => {
                tracing::warn!(%error, "pages are copied instead");
                batches.extend(copy(plan.protected()));
                (batches, Some(end))
            }
        }
    }
}
