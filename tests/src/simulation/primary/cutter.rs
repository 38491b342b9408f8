//! Takes checkpoints: the only thread that pauses and resumes the guest.
//! Mirrors `tools/src/primary/cutter.rs`. A pause is a moment here: nothing
//! else happens within it.

use std::{collections::VecDeque, time::Duration};

use checkpoint::{Epoch, PAGE_BYTES, PageSet, chunk::Digest, output::Output, primary::CutOrder};

use super::{
    copier::Copier,
    encoder::{Batch, EpochEnd, Group, mark_stale},
    outlet::Outlet,
    tracker::Tracker,
};
use crate::simulation::{
    guest::Guest,
    happening::{Happening, ProcessId},
    mutation::Mutation,
    world::World,
};

/// Sends ahead within an epoch.
const AHEAD_ROUNDS: u32 = 2;
/// Most copies before a pause.
const EARLY_ROUNDS_MAX: u32 = 3;
/// How long a harvest while the guest runs takes, with its copies.
const TAKING: Duration = Duration::from_micros(100);

/// What a pause is said to have taken, and for each of its pages.
const PAUSE: Duration = Duration::from_micros(80);
const PAUSE_PER_PAGE: Duration = Duration::from_micros(20);

/// What the thread is told.
#[derive(Debug)]
enum Order {
    Cut(CutOrder),
    Hold,
    Free,
}

/// Pages that are harvested while the guest runs, and about to be copied.
#[derive(Debug)]
enum Taken {
    /// To be sent ahead of their epoch's end.
    Ahead(PageSet),
    /// For the cut that comes.
    Early(PageSet),
}

/// A checkpoint that was taken.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) epoch: Epoch,
    pages: u64,
    pub(super) digest: Option<Digest>,
    /// How long the guest stood still, as the pacer is told: nothing else
    /// happens meanwhile here.
    pub(super) pause: Duration,
}

impl Cut {
    pub(super) fn bytes(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }
}

/// What an order came to.
#[derive(Debug)]
pub(super) enum Done {
    /// The guest was paused or resumed, or there was no order.
    Nothing,
    Cut(Cut, Group),
    CutFailed(Epoch),
}

/// What the thread works with.
pub(super) struct Tools<'a> {
    pub(super) world: &'a mut World,
    pub(super) guest: &'a mut Guest,
    pub(super) tracker: &'a mut Tracker,
    pub(super) outlet: &'a mut Outlet,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Cutter {
    me: ProcessId,
    orders: VecDeque<Order>,
    /// The next order's turn is planned.
    planned: bool,
    held: bool,
    /// The epoch that runs, if pages of it are sent ahead.
    open: Option<Epoch>,
    pages_ahead: u64,
    /// Most of them that there may be.
    ahead_pages_max: u64,
    /// Pages of the last epoch.
    pages_last: u64,
    taken: Option<Taken>,
    /// Copies before the pause that comes.
    early: Vec<Batch>,
    /// Rounds of them that may follow, and pages of the last one.
    early_rounds: u32,
    early_last: u64,
    pub(super) copier: Copier,
}

impl Cutter {
    /// The guest runs, or is about to.
    pub(super) fn new(me: ProcessId) -> Self {
        Self {
            me,
            orders: VecDeque::new(),
            planned: false,
            held: false,
            open: None,
            pages_ahead: 0,
            ahead_pages_max: 0,
            pages_last: 0,
            taken: None,
            early: Vec::new(),
            early_rounds: EARLY_ROUNDS_MAX,
            early_last: u64::MAX,
            copier: Copier::new(me),
        }
    }

    /// Whether the guest is paused.
    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    pub(super) fn cut(&mut self, world: &mut World, order: CutOrder) {
        self.order(world, Order::Cut(order));
    }

    pub(super) fn hold(&mut self, world: &mut World) {
        self.order(world, Order::Hold);
    }

    pub(super) fn free(&mut self, world: &mut World) {
        self.order(world, Order::Free);
    }

    fn order(&mut self, world: &mut World, order: Order) {
        self.orders.push_back(order);
        self.plan(world);
    }

    fn plan(&mut self, world: &mut World) {
        if !self.planned && self.taken.is_none() && !self.orders.is_empty() {
            self.planned = true;
            world.work_later(self.me, 20..900, Happening::Cutter);
        }
    }

    /// Carries out the next order.
    pub(super) fn step(&mut self, tools: &mut Tools<'_>) -> Done {
        self.planned = false;
        if self.taken.is_some() {
            return Done::Nothing;
        }
        if matches!(self.orders.front(), Some(Order::Cut(_))) && !self.is_prepared(tools) {
            self.plan(tools.world);
            return Done::Nothing;
        }
        let done = match self.orders.pop_front() {
            Some(Order::Cut(order)) => self.checkpoint(tools, &order),
            Some(Order::Hold) => {
                self.held = true;
                Done::Nothing
            }
            Some(Order::Free) => {
                self.held = false;
                Done::Nothing
            }
            None => Done::Nothing,
        };
        self.plan(tools.world);
        done
    }

    /// Whether the pause of a cut may begin: the pages of the one before are
    /// copied, and copying before the pause gains nothing more.
    fn is_prepared(&mut self, tools: &mut Tools<'_>) -> bool {
        if !self.copier.is_idle() {
            return false;
        }
        let worth = self.pages_last >= tools.world.plan.shape.early_pages_min;
        if self.held || !worth || self.early_rounds == 0 {
            return true;
        }
        let pages = tools.tracker.take_early(tools.world, tools.guest);
        let few = pages.len() < tools.world.plan.shape.early_pages_min;
        let gains = !few && pages.len() <= self.early_last / 3 * 2;
        self.early_rounds = if gains { self.early_rounds - 1 } else { 0 };
        self.early_last = pages.len();
        self.take(tools.world, Taken::Early(pages));
        false
    }

    fn take(&mut self, world: &mut World, taken: Taken) {
        self.taken = Some(taken);
        world.process_later(self.me, TAKING, Happening::TakenCopied);
    }

    fn checkpoint(&mut self, tools: &mut Tools<'_>, order: &CutOrder) -> Done {
        (self.early_rounds, self.early_last) = (EARLY_ROUNDS_MAX, u64::MAX);
        let mut early = std::mem::take(&mut self.early);
        let Some((mut group, digest, left)) = self.capture(tools, order) else {
            tools.tracker.forget_early();
            return Done::CutFailed(order.epoch);
        };
        self.held |= order.stay_paused;
        tools.tracker.end_epoch();
        let pages_early = mark_stale(&mut early, tools.tracker.early());
        tools.tracker.forget_early();
        tools.world.report.pages_early += pages_early;
        early.append(&mut group.batches);
        group.batches = early;
        let epoch = order.epoch;
        self.pages_last = left + pages_early + std::mem::take(&mut self.pages_ahead);
        let worth = self.pages_last >= tools.world.plan.shape.ahead_pages_min;
        self.open = (!self.held && worth).then(|| epoch.next());
        self.ahead_pages_max = order.ahead_bytes_max / PAGE_BYTES as u64;
        self.plan_ahead(tools.world);
        let pause = PAUSE + PAUSE_PER_PAGE * left as u32;
        Done::Cut(Cut { epoch, pages: self.pages_last, digest, pause }, group)
    }

    /// Also tells how many pages were left to the pause.
    fn capture(
        &mut self,
        tools: &mut Tools<'_>,
        order: &CutOrder,
    ) -> Option<(Group, Option<Digest>, u64)> {
        let Tools { world, guest, tracker, outlet } = tools;
        let (sections, plan) = tracker.cut(world, guest, order)?;
        let epoch = order.epoch;
        world.witness.captures(self.me, epoch.get(), guest, &sections);
        world.report.epochs += 1;
        let digest = order.digest.then(|| guest.memory.digest());
        if world.mutated(Mutation::CopyAfterResume) {
            guest.work();
        }
        let batches = Batch::all(&plan.copied, &guest.memory, world.plan.shape.chunk_pages);
        let fresh = !order.joins.is_empty();
        let outputs = self.seal(world, guest, outlet, epoch);
        let mut end = Some(EpochEnd { sections, outputs, fresh });
        if !plan.protected.is_empty()
            && let Some(end) = end.take()
        {
            self.copier.begin(world, guest, epoch, &plan.protected, end);
        }
        let left = plan.copied.len() + plan.protected.len();
        Some((Group { epoch, batches, fresh, end }, digest, left))
    }

    /// The output of the epoch is what was said up to here.
    fn seal(
        &self,
        world: &mut World,
        guest: &mut Guest,
        outlet: &mut Outlet,
        epoch: Epoch,
    ) -> Vec<Output> {
        if world.mutated(Mutation::SealAfterResume)
            && let Some(output) = guest.work()
        {
            outlet.emit(world, output);
        }
        let outputs = outlet.seal(epoch);
        outlet.hold(world);
        if world.plan.shape.resend_outputs { outputs } else { Vec::new() }
    }

    fn plan_ahead(&self, world: &mut World) {
        if let Some(epoch) = self.open {
            let interval = world.plan.timing.pace.interval_longest() / (AHEAD_ROUNDS + 1);
            world.process_later(self.me, interval, Happening::Ahead(epoch));
        }
    }

    /// Takes dirty pages that look final, ahead of their epoch's end.
    pub(super) fn take_ahead(&mut self, tools: &mut Tools<'_>, epoch: Epoch) {
        if self.open != Some(epoch) {
            return;
        }
        if self.taken.is_some() || self.planned || !self.copier.is_idle() {
            return self.plan_ahead(tools.world);
        }
        let room = self.ahead_pages_max.saturating_sub(self.pages_ahead);
        match tools.tracker.take_ahead(tools.world, tools.guest, room) {
            Some(pages) => self.take(tools.world, Taken::Ahead(pages)),
            None => self.open = None,
        }
    }

    /// Copies what was taken, while the guest runs.
    pub(super) fn copy_taken(&mut self, tools: &mut Tools<'_>) -> Option<Group> {
        let taken = self.taken.take()?;
        tools.tracker.unlock();
        self.plan(tools.world);
        let copy =
            |pages| Batch::all(pages, &tools.guest.memory, tools.world.plan.shape.chunk_pages);
        match taken {
            Taken::Early(pages) => {
                self.early.extend(copy(&pages));
                None
            }
            Taken::Ahead(pages) => {
                let batches = copy(&pages);
                self.plan_ahead(tools.world);
                let epoch = self.open?;
                self.pages_ahead += pages.len();
                tools.world.report.pages_ahead += pages.len();
                (!batches.is_empty()).then_some(Group { epoch, batches, fresh: false, end: None })
            }
        }
    }
}
