//! The last epochs of a primary, each with what it cost.
//!
//! Percentiles of a process's whole life hide what an operator has just changed;
//! whoever wants to know about a span of time takes the epochs that ended in it.
//!
//! Invariant: numbers rise; at most [`EPOCHS_KEPT_MAX`] are kept, always the
//! newest.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use crate::control::{EpochPage, EpochRecord};

/// Epochs that are kept.
pub const EPOCHS_KEPT_MAX: usize = 16_384;

/// A bounded log of [`EpochRecord`]s.
#[derive(Debug, Default)]
pub struct EpochLog {
    kept: Mutex<VecDeque<EpochRecord>>,
}

impl EpochLog {
    /// An epoch has ended, and its pages are on their way.
    pub fn cut(&self, record: EpochRecord) {
        let mut kept = self.lock();
        // A number that was given back after a failed cut comes again.
        while kept.back().is_some_and(|last| last.epoch >= record.epoch) {
            kept.pop_back();
        }
        if kept.len() == EPOCHS_KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(record);
    }

    /// All of `epoch` is encoded, in so many bytes.
    pub fn encoded(&self, epoch: u64, wire_bytes: u64) {
        self.change(epoch, |record| record.wire_bytes = Some(wire_bytes));
    }

    /// `epoch` was committed so long after the guest went on.
    pub fn committed(&self, epoch: u64, after: Duration) {
        let us = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        self.change(epoch, |record| record.commit_us = Some(us));
    }

    /// The kept epochs with numbers above `after`.
    #[must_use]
    pub fn after(&self, after: u64) -> EpochPage {
        let kept = self.lock();
        let first = kept.partition_point(|record| record.epoch <= after);
        EpochPage { epochs: kept.range(first..).cloned().collect() }
    }

    fn change(&self, epoch: u64, change: impl FnOnce(&mut EpochRecord)) {
        let mut kept = self.lock();
        if let Ok(index) = kept.binary_search_by_key(&epoch, |record| record.epoch) {
            change(&mut kept[index]);
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<EpochRecord>> {
        self.kept.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(epoch: u64) -> EpochRecord {
        EpochRecord { epoch, pages: 10 * epoch, ..EpochRecord::default() }
    }

    #[test]
    fn the_newest_are_kept_and_completed_later() {
        let log = EpochLog::default();
        (1..=EPOCHS_KEPT_MAX as u64 + 2).for_each(|epoch| log.cut(numbered(epoch)));
        log.encoded(5, 100);
        log.committed(5, Duration::from_micros(7));
        log.committed(1, Duration::from_micros(7));
        let epochs = log.after(0).epochs;
        assert_eq!((epochs.len(), epochs[0].epoch), (EPOCHS_KEPT_MAX, 3));
        assert_eq!((epochs[2].wire_bytes, epochs[2].commit_us), (Some(100), Some(7)));
        assert_eq!((epochs[3].wire_bytes, epochs[3].commit_us), (None, None));
        assert_eq!(log.after(EPOCHS_KEPT_MAX as u64 + 2).epochs, []);
    }

    #[test]
    fn a_number_that_was_given_back_is_there_once() {
        let log = EpochLog::default();
        [1, 2, 3, 2].into_iter().for_each(|epoch| log.cut(numbered(epoch)));
        let numbers: Vec<_> = log.after(0).epochs.iter().map(|record| record.epoch).collect();
        assert_eq!(numbers, [1, 2]);
    }
}
