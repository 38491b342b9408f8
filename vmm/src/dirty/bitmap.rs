//! The dirty bitmap: one bit for each page of a slot.
//!
//! With manual protection (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`) reading and
//! clearing are two calls, and only stretches that have dirty pages are
//! cleared. Pages written between the two calls are either set when cleared,
//! and then copied later than that, or set again afterwards.

use std::ops::Range;

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
/// Words that are looked at together: 16 MiB of RAM.
const BLOCK_WORDS: usize = 64;
/// Zeros that are cheaper cleared along than left out with a call of their own.
const GAP_WORDS: usize = 2048;

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

    /// `hot` pages stay in the log, if reading it has not cleared them already.
    pub(super) fn harvest(
        &mut self,
        vm: &VmFd,
        slots: &[Slot],
        pages: &mut PageSet,
        hot: Option<&PageSet>,
    ) -> Result<u64, DirtyLogError> {
        let hot = hot.filter(|hot| self.manual != 0 && !hot.is_empty());
        let mut found = 0;
        for (slot, words) in slots.iter().zip(&mut self.words) {
            // SAFETY: `enable` made a bitmap for each slot, of its size.
            unsafe { ioctl::get_dirty_log(vm, slot.number, words) }
                .map_err(DirtyLogError::at("KVM_GET_DIRTY_LOG"))?;
            for span in spans(words) {
                for index in span.clone() {
                    if let Some(hot) = hot {
                        words[index] &= !hot.word(slot.first_word() + index);
                    }
                    found += u64::from(words[index].count_ones());
                    pages.insert_word(slot.first_word() + index, words[index]);
                }
                if self.manual != 0 {
                    let first_page = span.start as u64 * 64;
                    let count = (span.end as u64 * 64).min(slot.run.count) - first_page;
                    ioctl::clear_dirty_log(vm, slot.number, first_page, count, &mut words[span])
                        .map_err(DirtyLogError::at("KVM_CLEAR_DIRTY_LOG"))?;
                }
            }
        }
        Ok(found)
    }
}

/// The parts of `words` that have all that is not zero, without long stretches
/// of zeros: what reading and clearing cost for large guests.
fn spans(words: &[u64]) -> Vec<Range<usize>> {
    let mut spans: Vec<Range<usize>> = Vec::new();
    for (index, block) in words.chunks(BLOCK_WORDS).enumerate() {
        if block.iter().fold(0, |all, word| all | word) == 0 {
            continue;
        }
        let start = index * BLOCK_WORDS;
        let end = start + block.len();
        match spans.last_mut() {
            Some(last) if start - last.end <= GAP_WORDS => last.end = end,
            _ => spans.push(start..end),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_all_bits_and_no_long_gap() {
        let mut words = vec![0; 10 * GAP_WORDS + 7];
        assert!(spans(&words).is_empty());
        let last = words.len() - 1;
        for index in [3, BLOCK_WORDS + 1, 5 * GAP_WORDS, last] {
            words[index] = 1 << 63;
        }
        let first = 5 * GAP_WORDS / BLOCK_WORDS * BLOCK_WORDS;
        assert_eq!(
            spans(&words),
            [
                0..2 * BLOCK_WORDS,
                first..first + BLOCK_WORDS,
                last / BLOCK_WORDS * BLOCK_WORDS..last + 1
            ]
        );
    }
}
