//! The dirty logs and the ledger of what is owed, changed only together.
//!
//! A harvest clears the log, so its pages must be in the ledger before anybody
//! else can harvest or cut: one lock holds both. Lock order: tracker, then VM.

use std::sync::{Arc, Mutex, MutexGuard};

use arbiter::NodeId;
use checkpoint::{PageSet, heat::Heat, ledger::Ledger, primary::CutOrder};
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
    /// The pages of the last cut.
    cut: PageSet,
    heat: Heat,
}

impl Tracker {
    pub(super) fn new(guest: Arc<Guest>) -> Self {
        let layout = guest.layout();
        let empty = || PageSet::new(layout.frame_end());
        let inner = Inner {
            on: false,
            followed: false,
            harvested: empty(),
            cut: empty(),
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
    /// if it is no longer being seeded.
    pub(super) fn take_round(&self, backup: &NodeId) -> Result<Option<PageSet>, VmError> {
        let mut inner = self.lock();
        inner.harvest(&self.guest.vm())?;
        Ok(inner.ledger.take_round(backup))
    }

    /// Harvests, and tells how many pages `backup` is owed then.
    pub(super) fn owed(&self, backup: &NodeId) -> Result<u64, VmError> {
        let mut inner = self.lock();
        inner.harvest(&self.guest.vm())?;
        Ok(inner.ledger.owed_pages(backup))
    }

    pub(super) fn give_back(&self, backup: &NodeId, pages: &PageSet) {
        self.lock().ledger.give_back(backup, pages);
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
    fn harvest(&mut self, vm: &Vm) -> Result<(), VmError> {
        if !self.on {
            return Ok(());
        }
        self.harvested.clear();
        let harvest = vm.harvest(&mut self.harvested);
        // Pages that were cleared before it failed are dirty all the same.
        self.ledger.record(&self.harvested);
        harvest.map(drop)
    }

    /// The state and the pages of the checkpoint that `order` asks for; `vm` is
    /// paused. On an error the pages stay dirty.
    pub(super) fn cut(
        &mut self,
        vm: &Vm,
        order: &CutOrder,
    ) -> Result<(Captured, &PageSet), VmError> {
        self.harvested.clear();
        let captured = vm.capture(&mut self.harvested);
        self.ledger.record(&self.harvested);
        let captured = captured?;
        self.ledger.cut(order.followers, &order.joins, &mut self.cut);
        self.followed = true;
        Ok((captured, &self.cut))
    }

    /// The guest runs again: what it takes to judge what was sent ahead.
    /// Returns how many pages were sent in vain.
    pub(super) fn end_epoch(&mut self) -> u64 {
        self.heat.end_epoch(&self.cut)
    }

    /// Takes pages that are dirty and look final, for the epoch that runs; none
    /// if nothing may be sent ahead now.
    pub(super) fn take_ahead(&mut self, vm: &Vm) -> Result<Option<&PageSet>, VmError> {
        if !self.on || !self.followed || self.ledger.any_seed() {
            return Ok(None);
        }
        self.harvested.clear();
        if let Err(error) = vm.harvest_cold(&mut self.harvested, self.heat.hot()) {
            // Pages that were cleared before it failed are dirty all the same.
            self.ledger.record(&self.harvested);
            return Err(error);
        }
        self.heat.sent_ahead(&self.harvested);
        Ok(Some(&self.harvested))
    }
}
