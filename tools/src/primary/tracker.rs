//! The dirty logs and the ledger of what is owed, changed only together.
//!
//! A harvest clears the log, so its pages must be in the ledger before anybody
//! else can harvest or cut: one lock holds both. Lock order: tracker, then VM.

use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};

use arbiter::NodeId;
use checkpoint::{PageSet, heat::Heat, ledger::Ledger, plan::Plan, primary::CutOrder};
use vmm::vm::{Captured, Vm, VmError};

use crate::node::Guest;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Tracker {
    guest: Arc<Guest>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    ledger: Ledger,
    /// Whether writes are logged.
    on: bool,
    /// Whether somebody follows the epoch that runs, and nobody is seeded: only
    /// then pages may be sent ahead of its end.
    followed: bool,
    harvested: PageSet,
    /// Pages that were copied before the pause of the cut that comes, and not
    /// written since. Every harvest takes away what it finds.
    early: PageSet,
    /// The pages of the last cut, and of the one before it.
    cut: PageSet,
    before: PageSet,
    /// Pages of the last cut that were left to its pause.
    left: PageSet,
    plan: Plan,
    heat: Heat,
}

impl Tracker {
    /// `on` if writes are logged already.
    pub(super) fn new(guest: Arc<Guest>, on: bool) -> Self {
        let layout = guest.layout();
        let empty = || PageSet::new(layout.frame_end());
        let inner = Inner {
            on,
            followed: false,
            harvested: empty(),
            early: empty(),
            left: empty(),
            cut: empty(),
            before: empty(),
            plan: Plan::new(layout.frame_end()),
            heat: Heat::new(layout.frame_end()),
            ledger: Ledger::new(layout.clone()),
        };
        Self { guest, inner: Mutex::new(inner) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Logs writes from now on, and owes `backup` every page.
    pub(super) fn begin_seed(&self, backup: NodeId) -> Result<(), VmError> {
        let mut inner = self.lock();
        if !inner.on {
            self.guest.vm().start_dirty_log()?;
            inner.on = true;
        }
        inner.ledger.begin_seed(backup);
        Ok(())
    }

    pub(super) fn end_seed(&self, backup: &NodeId) {
        self.lock().ledger.end_seed(backup);
    }

    /// Harvests, then takes the pages of the next round for `backup`; `None`
    /// if it is no longer being seeded, or not by who is stopped.
    ///
    /// What the ledger owes a backup is its present seed's. A thread that was
    /// stopped may go on for a while beside the next one, so it looks at `stopped`
    /// under the lock under which the next seed begins.
    pub(super) fn take_round(
        &self,
        backup: &NodeId,
        stopped: &AtomicBool,
    ) -> Result<Option<PageSet>, VmError> {
        let mut inner = self.lock();
        if stopped.load(Ordering::Relaxed) {
            return Ok(None);
        }
        inner.harvest(&self.guest.vm())?;
        Ok(inner.ledger.take_round(backup))
    }

    /// Harvests, and tells how many pages `backup` is owed then; `None` to who is
    /// stopped.
    pub(super) fn owed(
        &self,
        backup: &NodeId,
        stopped: &AtomicBool,
    ) -> Result<Option<u64>, VmError> {
        let mut inner = self.lock();
        if stopped.load(Ordering::Relaxed) {
            return Ok(None);
        }
        inner.harvest(&self.guest.vm())?;
        Ok(Some(inner.ledger.owed_pages(backup)))
    }

    /// Owes `backup` these pages again, unless whose round they were is stopped.
    pub(super) fn give_back(&self, backup: &NodeId, pages: &PageSet, stopped: &AtomicBool) {
        let mut inner = self.lock();
        if !stopped.load(Ordering::Relaxed) {
            inner.ledger.give_back(backup, pages);
        }
    }

    /// No longer logs writes, unless a backup is being seeded.
    pub(super) fn rest(&self) -> Result<(), VmError> {
        let mut inner = self.lock();
        inner.followed = false;
        inner.heat.forget_ahead();
        if inner.on && !inner.ledger.any_seed() {
            self.guest.vm().stop_dirty_log()?;
            inner.on = false;
        }
        Ok(())
    }
}

impl Inner {
    /// What was harvested is dirty, and no copy of it is current.
    fn record(&mut self) {
        self.ledger.record(&self.harvested);
        self.early.subtract(&self.harvested);
    }

    /// Takes what is dirty while the guest runs, for a copy that the next cut
    /// may use. The pages stay in the ledger: if there is no such cut, nothing
    /// is lost but the copy.
    pub(super) fn take_early(&mut self, vm: &Vm) -> Result<&PageSet, VmError> {
        self.harvest(vm)?;
        self.early.union(&self.harvested);
        Ok(&self.harvested)
    }

    /// The pages whose early copies are current, as of the last cut.
    pub(super) fn early(&self) -> &PageSet {
        &self.early
    }

    /// Copies that were taken early are used, or given up.
    pub(super) fn forget_early(&mut self) {
        self.early.clear();
    }

    fn harvest(&mut self, vm: &Vm) -> Result<(), VmError> {
        self.harvested.clear();
        if !self.on {
            return Ok(());
        }
        let harvest = vm.harvest(&mut self.harvested);
        // Pages that were cleared before it failed are dirty all the same.
        self.record();
        harvest.map(drop)
    }

    /// The state and the pages of the checkpoint that `order` asks for; `vm` is
    /// paused. On an error the pages stay dirty.
    pub(super) fn cut(
        &mut self,
        vm: &Vm,
        order: &CutOrder,
        copy_pages_max: u64,
    ) -> Result<(Captured, &Plan), VmError> {
        self.harvested.clear();
        let captured = vm.capture(&mut self.harvested);
        self.record();
        let captured = captured?;
        std::mem::swap(&mut self.cut, &mut self.before);
        self.ledger.cut(order.followers, &order.joins, &mut self.cut);
        self.followed = true;
        self.left.clear();
        self.left.union(&self.cut);
        self.left.subtract(&self.early);
        self.plan.make(&self.left, &self.before, copy_pages_max);
        Ok((captured, &self.plan))
    }

    /// The guest runs again: what it takes to judge what was sent ahead.
    /// Returns how many pages were left to the pause.
    pub(super) fn end_epoch(&mut self) -> u64 {
        self.heat.end_epoch(&self.cut);
        self.left.len()
    }

    /// Takes pages that are dirty and look final, for the epoch that runs; none
    /// if nothing may be sent ahead now, or they are more than `pages_max`.
    pub(super) fn take_ahead(
        &mut self,
        vm: &Vm,
        pages_max: u64,
    ) -> Result<Option<&PageSet>, VmError> {
        if !self.on || !self.followed || self.ledger.any_seed() || pages_max == 0 {
            return Ok(None);
        }
        self.harvested.clear();
        if let Err(error) = vm.harvest_cold(&mut self.harvested, self.heat.hot()) {
            // Pages that were cleared before it failed are dirty all the same.
            self.record();
            return Err(error);
        }
        if self.harvested.len() > pages_max {
            self.record();
            return Ok(None);
        }
        self.early.subtract(&self.harvested);
        self.heat.sent_ahead(&self.harvested);
        Ok(Some(&self.harvested))
    }
}
