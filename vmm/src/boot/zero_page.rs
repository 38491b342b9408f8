//! `boot_params`, Linux's "zero page": what the kernel is told at its entry.
//! (Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`.)

use std::ops::Range;

use linux_loader::loader::bootparam::{
    E820_MAX_ENTRIES_ZEROPAGE, boot_e820_entry, boot_params, setup_header,
};
use vm_memory::{Bytes, GuestAddress};

use super::{BELOW_IMAGE, CMDLINE, memory_map::memory_map};
use crate::memory::GuestRam;

/// Where it lies.
pub(super) const ZERO_PAGE: u64 = 0x7000;
/// "A loader without a number".
const LOADER_UNDEFINED: u8 = 0xff;

/// Writes it for a kernel with `header`.
pub(super) fn write(ram: &GuestRam, header: &setup_header, initrd: Option<Range<u64>>, rsdp: u64) {
    let map = memory_map(ram.layout().regions());
    assert!(map.len() <= E820_MAX_ENTRIES_ZEROPAGE, "the map is a handful of ranges");
    let mut params = boot_params { hdr: *header, acpi_rsdp_addr: rsdp, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    if let Some(place) = initrd {
        params.hdr.ramdisk_image = place.start as u32;
        params.hdr.ramdisk_size = (place.end - place.start) as u32;
    }
    params.e820_entries = map.len() as u8;
    let mut table = params.e820_table;
    for (entry, range) in table.iter_mut().zip(&map) {
        let (addr, size) = (range.start, range.bytes);
        *entry = boot_e820_entry { addr, size, r#type: range.kind as u32 };
    }
    params.e820_table = table;
    ram.memory().write_obj(params, GuestAddress(ZERO_PAGE)).expect(BELOW_IMAGE);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at<const N: usize>(ram: &GuestRam, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        ram.memory().read_slice(&mut bytes[..N], GuestAddress(ZERO_PAGE + offset)).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Offsets are those of the kernel's documents, not of the crate's structure.
    #[test]
    fn fields_lie_where_the_kernel_reads_them() {
        let ram = GuestRam::new(5 << 30, false).unwrap();
        let header = setup_header { header: 0x5372_6448, version: 0x20f, ..Default::default() };
        write(&ram, &header, Some(0x3000_0000..0x3000_0123), 0xe_0000);
        assert_eq!(at::<8>(&ram, 0x070), 0xe_0000);
        assert_eq!(at::<4>(&ram, 0x202), 0x5372_6448);
        assert_eq!(at::<2>(&ram, 0x206), 0x20f);
        assert_eq!(at::<1>(&ram, 0x210), 0xff);
        assert_eq!((at::<4>(&ram, 0x218), at::<4>(&ram, 0x21c)), (0x3000_0000, 0x123));
        assert_eq!(at::<4>(&ram, 0x228), CMDLINE);
        assert_eq!(at::<1>(&ram, 0x1ef), 0, "the sentinel says that fields are to be trusted");
        let entries = at::<1>(&ram, 0x1e8);
        assert_eq!(entries, 5);
        let last = 0x2d0 + (entries - 1) * 20;
        assert_eq!((at::<8>(&ram, last), at::<8>(&ram, last + 8)), (4 << 30, 2 << 30));
        assert_eq!(at::<4>(&ram, last + 16), 1);
    }
}
