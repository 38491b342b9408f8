//! The dirty logs and the ledger of what is owed, changed only together.
//! Mirrors `tools/src/primary/tracker.rs`, with the real ledger and heat.

use arbiter::NodeId;
use checkpoint::{MemoryLayout, PageSet, Sections, heat::Heat, ledger::Ledger, primary::CutOrder};

use crate::simulation::{guest::Guest, mutation::Mutation, world::World};

/// How the pages of a cut are captured.
#[derive(Debug)]
pub(super) struct Plan {
    /// Within the pause.
    pub(super) copied: PageSet,
    /// After it: write-protected, and copied when the guest runs.
    pub(super) protected: PageSet,
}

impl Plan {
    /// Pages that were dirty in the epoch `before`, too, are copied first.
    fn make(&mut self, left: &PageSet, before: &PageSet, copy_pages_max: u64) {
        let Self { copied, protected } = self;
        copied.clear();
        protected.clear();
        if left.len() <= copy_pages_max {
            copied.union(left);
            return;
        }
        for recurring in [true, false] {
            for page in left.pages().filter(|page| before.contains(*page) == recurring) {
                let room = copied.len() < copy_pages_max;
                let place = if room { &mut *copied } else { &mut *protected };
                place.insert(page);
            }
        }
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Tracker {
    ledger: Ledger,
    on: bool,
    followed: bool,
    harvested: PageSet,
    /// Pages that were copied before the pause of the cut that comes, and not
    /// written since.
    early: PageSet,
    /// The pages of the last cut, and of the one before it.
    cut: PageSet,
    before: PageSet,
    plan: Plan,
    heat: Heat,
    /// Sent ahead in the epoch that runs.
    ahead: PageSet,
    /// Pages are being sent ahead: nobody else may harvest.
    locked: bool,
}

impl Tracker {
    pub(super) fn new(layout: &MemoryLayout) -> Self {
        let empty = || PageSet::new(layout.frame_end());
        Self {
            ledger: Ledger::new(layout.clone()),
            on: false,
            followed: false,
            harvested: empty(),
            early: empty(),
            cut: empty(),
            before: empty(),
            plan: Plan { copied: empty(), protected: empty() },
            heat: Heat::new(layout.frame_end()),
            ahead: empty(),
            locked: false,
        }
    }

    /// Logs writes from now on.
    pub(super) fn log_writes(&mut self, guest: &mut Guest) {
        if !self.on {
            guest.log.start();
            self.on = true;
        }
    }

    pub(super) fn begin_seed(&mut self, guest: &mut Guest, backup: NodeId) {
        self.log_writes(guest);
        self.ledger.begin_seed(backup);
    }

    pub(super) fn end_seed(&mut self, backup: &NodeId) {
        self.ledger.end_seed(backup);
    }

    pub(super) fn is_locked(&self) -> bool {
        self.locked
    }

    pub(super) fn take_round(
        &mut self,
        world: &World,
        guest: &mut Guest,
        backup: &NodeId,
    ) -> Option<PageSet> {
        if world.mutated(Mutation::ForgetSeedersHarvest) {
            let mut round = self.ledger.take_round(backup)?;
            self.harvested.clear();
            guest.log.harvest(&mut self.harvested, true);
            round.union(&self.harvested);
            return Some(round);
        }
        self.harvest(world, guest);
        self.ledger.take_round(backup)
    }

    pub(super) fn owed(&mut self, world: &World, guest: &mut Guest, backup: &NodeId) -> u64 {
        self.harvest(world, guest);
        self.ledger.owed_pages(backup)
    }

    pub(super) fn give_back(&mut self, backup: &NodeId, pages: &PageSet) {
        self.ledger.give_back(backup, pages);
    }

    pub(super) fn rest(&mut self, guest: &mut Guest) {
        self.followed = false;
        self.heat.forget_ahead();
        self.ahead.clear();
        if self.on && !self.ledger.any_seed() {
            guest.log.stop();
            self.on = false;
        }
    }

    fn harvest(&mut self, world: &World, guest: &mut Guest) {
        if !self.on {
            return;
        }
        self.harvested.clear();
        guest.log.harvest(&mut self.harvested, !world.mutated(Mutation::ForgetVmmWrites));
        self.record(world);
    }

    /// What was harvested is dirty, and no copy of it is current.
    fn record(&mut self, world: &World) {
        self.ledger.record(&self.harvested);
        if !world.mutated(Mutation::EarlyCopyWins) {
            self.early.subtract(&self.harvested);
        }
    }

    /// Takes what is dirty while the guest runs, for a copy that the next cut
    /// may use. Nobody else may harvest until it is copied.
    pub(super) fn take_early(&mut self, world: &World, guest: &mut Guest) -> PageSet {
        self.harvested.clear();
        self.harvest(world, guest);
        self.early.union(&self.harvested);
        self.locked = true;
        self.harvested.clone()
    }

    /// The pages whose early copies are current, as of the last cut.
    pub(super) fn early(&self) -> &PageSet {
        &self.early
    }

    /// Copies that were taken early are used, or given up.
    pub(super) fn forget_early(&mut self) {
        self.early.clear();
    }

    /// The state and the pages of a checkpoint; `None` if it failed. The pages
    /// stay dirty then.
    pub(super) fn cut(
        &mut self,
        world: &mut World,
        guest: &mut Guest,
        order: &CutOrder,
    ) -> Option<(Sections, &Plan)> {
        self.harvested.clear();
        let fails = world.faulty && world.chance.hits(world.plan.rates.capture);
        guest.log.harvest(&mut self.harvested, !world.mutated(Mutation::ForgetVmmWrites));
        if !(fails && world.mutated(Mutation::ForgetFailedCut)) {
            self.record(world);
        }
        if fails {
            return None;
        }
        std::mem::swap(&mut self.cut, &mut self.before);
        self.ledger.cut(order.followers, &order.joins, &mut self.cut);
        self.followed = true;
        if world.mutated(Mutation::AheadCopyWins) {
            self.cut.subtract(&self.ahead);
        }
        let mut left = self.cut.clone();
        left.subtract(&self.early);
        self.plan.make(&left, &self.before, world.plan.shape.copy_pages_max);
        Some((guest.save(), &self.plan))
    }

    /// The guest runs again: what it takes to judge what was sent ahead.
    pub(super) fn end_epoch(&mut self) {
        self.ahead.clear();
        self.heat.end_epoch(&self.cut);
    }

    /// Takes pages that are dirty and look final, for the epoch that runs; none
    /// if nothing may be sent ahead now, or they are more than `pages_max`. Nobody
    /// else may harvest until they are copied.
    pub(super) fn take_ahead(
        &mut self,
        world: &World,
        guest: &mut Guest,
        pages_max: u64,
    ) -> Option<PageSet> {
        if !self.on || !self.followed || self.ledger.any_seed() || pages_max == 0 {
            return None;
        }
        self.harvested.clear();
        guest.log.harvest_cold(&mut self.harvested, self.heat.hot());
        if self.harvested.len() > pages_max {
            self.record(world);
            return None;
        }
        self.early.subtract(&self.harvested);
        self.heat.sent_ahead(&self.harvested);
        self.ahead.union(&self.harvested);
        self.locked = true;
        Some(self.harvested.clone())
    }

    pub(super) fn unlock(&mut self) {
        self.locked = false;
    }
}
