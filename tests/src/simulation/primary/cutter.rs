//! Takes checkpoints: the only thread that pauses and resumes the guest.
//! Mirrors `tools/src/primary/cutter.rs`. A pause is a moment here: nothing
//! else happens within it.

use std::{collections::VecDeque, time::Duration};

use checkpoint::{Epoch, PAGE_BYTES, PageSet, chunk::Digest, primary::CutOrder};

use super::{
    encoder::{Batch, EpochEnd, Group, batches_of},
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

/// What the thread is told.
#[derive(Debug)]
enum Order {
    Cut(CutOrder),
    Hold,
    Free,
}

/// A checkpoint that was taken.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) epoch: Epoch,
    pages: u64,
    pub(super) pages_ahead: u64,
    pub(super) digest: Option<Digest>,
}

impl Cut {
    pub(super) fn bytes(&self) -> u64 {
        (self.pages + self.pages_ahead) * PAGE_BYTES as u64
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
    /// Harvested, and about to be copied.
    taken: Option<PageSet>,
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
            taken: None,
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

    fn checkpoint(&mut self, tools: &mut Tools<'_>, order: &CutOrder) -> Done {
        let Some((group, digest)) = self.capture(tools, order) else {
            return Done::CutFailed(order.epoch);
        };
        self.held |= order.stay_paused;
        let epoch = order.epoch;
        let pages = group.batches.iter().map(Batch::pages).sum();
        tools.tracker.end_epoch();
        let pages_ahead = std::mem::take(&mut self.pages_ahead);
        let worth = pages + pages_ahead >= tools.world.plan.shape.ahead_pages_min;
        self.open = (!self.held && worth).then(|| epoch.next());
        self.plan_ahead(tools.world);
        Done::Cut(Cut { epoch, pages, pages_ahead, digest }, group)
    }

    fn capture(&self, tools: &mut Tools<'_>, order: &CutOrder) -> Option<(Group, Option<Digest>)> {
        let Tools { world, guest, tracker, outlet } = tools;
        let (sections, pages) = tracker.cut(world, guest, order)?;
        world.witness.captures(self.me, order.epoch.get(), guest, &sections);
        world.report.epochs += 1;
        let digest = order.digest.then(|| guest.memory.digest());
        if world.mutated(Mutation::CopyAfterResume) {
            guest.work();
        }
        let batches = batches_of(pages, world.plan.shape.chunk_pages);
        let batches = batches.into_iter().map(|runs| Batch::copy(runs, &guest.memory)).collect();
        if world.mutated(Mutation::SealAfterResume)
            && let Some(output) = guest.work()
        {
            outlet.emit(world, output);
        }
        let outputs = outlet.seal(order.epoch);
        outlet.hold(world);
        let end = EpochEnd {
            sections,
            outputs: if world.plan.shape.resend_outputs { outputs } else { Vec::new() },
            fresh: !order.joins.is_empty(),
        };
        Some((Group { epoch: order.epoch, batches, end: Some(end) }, digest))
    }

    fn plan_ahead(&self, world: &mut World) {
        if let Some(epoch) = self.open {
            let interval = world.plan.timing.interval / (AHEAD_ROUNDS + 1);
            world.process_later(self.me, interval, Happening::Ahead(epoch));
        }
    }

    /// Takes dirty pages that look final, ahead of their epoch's end.
    pub(super) fn take_ahead(&mut self, tools: &mut Tools<'_>, epoch: Epoch) {
        if self.open != Some(epoch) || self.taken.is_some() || self.planned {
            if self.planned && self.open == Some(epoch) {
                self.plan_ahead(tools.world);
            }
            return;
        }
        match tools.tracker.take_ahead(tools.guest) {
            Some(pages) => {
                self.taken = Some(pages);
                tools.world.process_later(
                    self.me,
                    Duration::from_micros(100),
                    Happening::AheadCopied,
                );
            }
            None => self.open = None,
        }
    }

    /// Copies what was taken, while the guest runs.
    pub(super) fn copy_ahead(&mut self, tools: &mut Tools<'_>) -> Option<Group> {
        let pages = self.taken.take()?;
        tools.tracker.unlock();
        self.plan(tools.world);
        self.plan_ahead(tools.world);
        let epoch = self.open?;
        let batches = batches_of(&pages, tools.world.plan.shape.chunk_pages);
        let batches: Vec<Batch> =
            batches.into_iter().map(|runs| Batch::copy(runs, &tools.guest.memory)).collect();
        let taken: u64 = batches.iter().map(Batch::pages).sum();
        self.pages_ahead += taken;
        tools.world.report.pages_ahead += taken;
        (!batches.is_empty()).then_some(Group { epoch, batches, end: None })
    }
}
