//! The PVH start info: memory map, command line, initrd and ACPI tables.
//!
//! Layout: Xen `docs/misc/pvh.pandoc` and `xen/include/public/arch-x86/hvm/start_info.h`.

use std::ops::Range;

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress};

use super::{BELOW_IMAGE, CMDLINE, memory_map::memory_map};
use crate::memory::GuestRam;

/// Where the start info lies.
pub(super) const START_INFO: u64 = 0x6000;
const MODULES: u64 = 0x6080;
const MEMORY_MAP: u64 = 0x6100;

pub(super) fn write(ram: &GuestRam, initrd: Option<Range<u64>>, rsdp: u64) {
    let memory = ram.memory();
    let map = memory_map(ram.layout().regions());
    for (index, range) in map.iter().enumerate() {
        let at = MEMORY_MAP + (index * size_of::<hvm_memmap_table_entry>()) as u64;
        let (addr, size, type_) = (range.start, range.bytes, range.kind as u32);
        let entry = hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
        memory.write_obj(entry, GuestAddress(at)).expect(BELOW_IMAGE);
    }
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(place) = initrd {
        let (paddr, size) = (place.start, place.end - place.start);
        let module = hvm_modlist_entry { paddr, size, ..Default::default() };
        memory.write_obj(module, GuestAddress(MODULES)).expect(BELOW_IMAGE);
        info.nr_modules = 1;
        info.modlist_paddr = MODULES;
    }
    memory.write_obj(info, GuestAddress(START_INFO)).expect(BELOW_IMAGE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_of_map_modules_and_tables() {
        let ram = GuestRam::new(4 << 30, false).unwrap();
        write(&ram, Some(0x3000_0000..0x3000_0123), 0xe_0000);
        let read: hvm_start_info = ram.memory().read_obj(GuestAddress(START_INFO)).unwrap();
        assert_eq!((read.magic, read.version, read.memmap_entries), (0x336e_c578, 1, 5));
        assert_eq!((read.rsdp_paddr, read.cmdline_paddr), (0xe_0000, CMDLINE));
        assert_eq!(read.nr_modules, 1);
        let module: hvm_modlist_entry =
            ram.memory().read_obj(GuestAddress(read.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x3000_0000, 0x123));
        let first: hvm_memmap_table_entry =
            ram.memory().read_obj(GuestAddress(read.memmap_paddr)).unwrap();
        assert_eq!((first.addr, first.size, first.type_), (0, 0x9_fc00, 1));
        write(&ram, None, 0xe_0000);
        let read: hvm_start_info = ram.memory().read_obj(GuestAddress(START_INFO)).unwrap();
        assert_eq!((read.nr_modules, read.modlist_paddr), (0, 0));
    }
}
