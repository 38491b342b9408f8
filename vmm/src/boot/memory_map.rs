//! Where the guest may keep things: the map that every protocol hands over.
//!
//! ```text
//!   0 ── RAM ── 0x9fc00 ── reserved, ACPI tables in it ── 1 MiB ── RAM ── 3 GiB at most
//!        (devices: not in the map)  0xfffbc000 ── reserved, KVM's ── 0xfffc0000
//!   4 GiB ── RAM that does not fit below
//! ```

use checkpoint::{PAGE_BYTES, PageRun};

use super::{IMAGE_START, LOW_RAM_END};
use crate::vm::KVM_PAGES;

/// What a range is for; the numbers are those of e820, which PVH has taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// Memory.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// A range of guest-physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) kind: Kind,
}

/// The map of a guest with RAM in `regions`; rising, without overlaps.
pub(super) fn memory_map(regions: &[PageRun]) -> Vec<Range> {
    let range = |start, end, kind| Range { start, bytes: end - start, kind };
    let mut map = vec![
        range(0, LOW_RAM_END, Kind::Ram),
        range(LOW_RAM_END, IMAGE_START, Kind::Reserved),
        range(KVM_PAGES.start, KVM_PAGES.end, Kind::Reserved),
    ];
    for region in regions {
        let start = region.first.address().max(IMAGE_START);
        map.push(range(start, region.end() * PAGE_BYTES as u64, Kind::Ram));
    }
    map.sort_unstable_by_key(|range| range.start);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{GuestRam, HIGH_START, LOW_END};

    #[test]
    fn all_ram_is_in_the_map_and_nothing_twice() {
        for mib in [64, 512, 3 << 10, (3 << 10) + 2, 4 << 10, 17 << 10] {
            let ram = GuestRam::new(mib << 20, false).unwrap();
            let map = memory_map(ram.layout().regions());
            assert!(map.windows(2).all(|pair| pair[0].start + pair[0].bytes <= pair[1].start));
            let bytes: u64 =
                map.iter().filter(|range| range.kind == Kind::Ram).map(|range| range.bytes).sum();
            assert_eq!(bytes, (mib << 20) - (IMAGE_START - LOW_RAM_END), "{mib} MiB");
            let holed = |range: &&Range| range.start < HIGH_START && range.kind == Kind::Ram;
            let below = map.iter().filter(holed).map(|range| range.start + range.bytes).max();
            assert_eq!(below, Some((mib << 20).min(LOW_END)));
        }
    }
}
