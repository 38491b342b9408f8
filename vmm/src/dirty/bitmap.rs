//! The dirty bitmap: one bit for each page of a slot.
//!
//! With manual protection (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`) reading and
//! clearing are two calls, and only the words between the first and the last
//! dirty one are cleared. Pages written between the two calls are either set
//! when cleared, and then copied later than that, or set again afterwards.

use checkpoint::PageSet;
use kvm_bindings::{KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, kvm_enable_cap};
use kvm_ioctls::VmFd;

use super::{DirtyLogError, Slot};
use crate::ioctl;

/// `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`.
const MANUAL: u32 = 1;
/// `KVM_DIRTY_LOG_INITIALLY_SET`.
const INITIALLY_SET: u32 = 2;
/// Pages that arming protects in one call (1 GiB), so that the guest's faults
/// do not wait for all of RAM.
const ARM_PAGES: u64 = 1 << 18;

#[derive(Debug)]
pub(super) struct Bitmaps {
    /// The flags of manual protection in force.
    manual: u32,
    /// One for each slot.
    words: Vec<Vec<u64>>,
}

impl Bitmaps {
    pub(super) fn enable(vm: &VmFd, supported: u32, slots: &[Slot]) -> Result<Self, DirtyLogError> {
        let manual = if supported & MANUAL == 0 { 0 } else { supported & (MANUAL | INITIALLY_SET) };
        if manual != 0 {
            let mut cap =
                kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
            cap.args[0] = u64::from(manual);
            vm.enable_cap(&cap).map_err(|error| DirtyLogError::Kvm {
                call: "KVM_ENABLE_CAP(MANUAL_DIRTY_LOG_PROTECT2)",
                source: error.into(),
            })?;
        }
        let words = slots.iter().map(|slot| vec![0; slot.run.count.div_ceil(64) as usize]);
        Ok(Self { manual, words: words.collect() })
    }

    pub(super) fn is_manual(&self) -> bool {
        self.manual != 0
    }

    /// Logging has just been turned on. Where KVM starts with all bits set
    /// and nothing protected, clears all of them.
    pub(super) fn arm(&mut self, vm: &VmFd, slots: &[Slot]) -> Result<(), DirtyLogError> {
        if self.manual & INITIALLY_SET == 0 {
            return Ok(());
        }
        for (slot, words) in slots.iter().zip(&mut self.words) {
            words.fill(u64::MAX);
            let mut first = 0;
            while first < slot.run.count {
                let count = ARM_PAGES.min(slot.run.count - first);
                let from = &mut words[(first / 64) as usize..];
                ioctl::clear_dirty_log(vm, slot.number, first, count, from)
                    .map_err(DirtyLogError::at("KVM_CLEAR_DIRTY_LOG"))?;
                first += count;
            }
        }
        Ok(())
    }

    pub(super) fn harvest(
        &mut self,
        vm: &VmFd,
        slots: &[Slot],
        pages: &mut PageSet,
    ) -> Result<u64, DirtyLogError> {
        let mut found = 0;
        for (slot, words) in slots.iter().zip(&mut self.words) {
            ioctl::get_dirty_log(vm, slot.number, words)
                .map_err(DirtyLogError::at("KVM_GET_DIRTY_LOG"))?;
            let Some(first) = words.iter().position(|word| *word != 0) else { continue };
            let last = words.iter().rposition(|word| *word != 0).unwrap_or(first);
            for (index, word) in words[first..=last].iter().enumerate() {
                found += u64::from(word.count_ones());
                pages.insert_word(slot.first_word() + first + index, *word);
            }
            if self.manual != 0 {
                let first_page = first as u64 * 64;
                let count = ((last + 1) as u64 * 64).min(slot.run.count) - first_page;
                ioctl::clear_dirty_log(vm, slot.number, first_page, count, &mut words[first..])
                    .map_err(DirtyLogError::at("KVM_CLEAR_DIRTY_LOG"))?;
            }
        }
        Ok(found)
    }
}
