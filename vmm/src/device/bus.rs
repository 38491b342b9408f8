//! Which device answers at which address.
//!
//! A bus is built once and never changes, so vCPU threads look up without a
//! lock; each device has its own lock and is entered by one thread at a time.
//! Nothing holds two devices' locks.

use std::sync::Arc;

/// Devices by address, on ports or in memory.
#[derive(Debug)]
pub(crate) struct Bus<D: ?Sized> {
    /// Rising and apart: first address, length, device.
    ranges: Vec<(u64, u64, Arc<D>)>,
}

impl<D: ?Sized> Bus<D> {
    /// A bus of `ranges`: first address, length, device.
    ///
    /// # Panics
    ///
    /// If two overlap: the addresses are ours to choose.
    pub(crate) fn new(mut ranges: Vec<(u64, u64, Arc<D>)>) -> Self {
        ranges.sort_by_key(|range| range.0);
        let apart = ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0);
        assert!(apart, "two devices claim one address");
        Self { ranges }
    }

    /// The device that answers to all `len` bytes from `address`, and the
    /// offset in its range.
    pub(crate) fn find(&self, address: u64, len: usize) -> Option<(&D, u64)> {
        let index = self.ranges.partition_point(|range| range.0 <= address).checked_sub(1)?;
        let (first, range_len, device) = &self.ranges[index];
        let offset = address - first;
        let end = offset.checked_add(len as u64)?;
        (end <= *range_len).then_some((&**device, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_lies_within_one_device() {
        let bus = Bus::new(vec![(0x2000, 0x1000, Arc::new('b')), (0x1000, 0x10, Arc::new('a'))]);
        assert_eq!(bus.find(0x1000, 4), Some((&'a', 0)));
        assert_eq!(bus.find(0x100c, 4), Some((&'a', 12)));
        assert_eq!(bus.find(0x2ff8, 8), Some((&'b', 0xff8)));
        for (address, len) in
            [(0, 1), (0xfff, 2), (0x100d, 4), (0x1010, 1), (0x2ffc, 8), (0x3000, 1), (u64::MAX, 8)]
        {
            assert_eq!(bus.find(address, len), None, "{address:#x}");
        }
    }

    #[test]
    #[should_panic(expected = "claim one address")]
    fn two_devices_at_one_address_are_our_bug() {
        Bus::new(vec![(0, 2, Arc::new(())), (1, 2, Arc::new(()))]);
    }
}
