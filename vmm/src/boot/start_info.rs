//! The PVH start info: memory map and command line for the guest.
//!
//! Layout: Xen `docs/misc/pvh.pandoc` and `xen/include/public/arch-x86/hvm/start_info.h`.

use checkpoint::{PAGE_BYTES, PageRun};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

use super::IMAGE_START;
use crate::memory::GuestRam;

/// Where the start info lies.
pub(super) const START_INFO: u64 = 0x6000;
const MEMORY_MAP: u64 = 0x6100;
const CMDLINE: u64 = 0x2_0000;
/// From here to 1 MiB is no RAM on a PC.
const LOW_RAM_END: u64 = 0x9_fc00;

const MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
const RESERVED: u32 = 2;

const BELOW_IMAGE: &str = "boot data lies in the first MiB of RAM";

pub(super) fn write(ram: &GuestRam, cmdline: &str) {
    let memory = ram.memory();
    let map = memory_map(ram.layout().regions());
    for (index, entry) in map.iter().enumerate() {
        let at = MEMORY_MAP + (index * size_of::<hvm_memmap_table_entry>()) as u64;
        memory.write_obj(*entry, GuestAddress(at)).expect(BELOW_IMAGE);
    }
    let line = [cmdline.as_bytes(), &[0]].concat();
    memory.write_slice(&line, GuestAddress(CMDLINE)).expect(BELOW_IMAGE);
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: CMDLINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory.write_obj(info, GuestAddress(START_INFO)).expect(BELOW_IMAGE);
}

fn memory_map(regions: &[PageRun]) -> Vec<hvm_memmap_table_entry> {
    let entry =
        |addr, end, type_| hvm_memmap_table_entry { addr, size: end - addr, type_, reserved: 0 };
    let mut map = vec![entry(0, LOW_RAM_END, RAM), entry(LOW_RAM_END, IMAGE_START, RESERVED)];
    for region in regions {
        let start = region.first.address().max(IMAGE_START);
        map.push(entry(start, region.end() * PAGE_BYTES as u64, RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HIGH_START, LOW_END};

    #[test]
    fn the_map_tells_all_ram() {
        let ram = GuestRam::new(4 << 30, false).unwrap();
        write(&ram, "a=1");
        let read: hvm_start_info = ram.memory().read_obj(GuestAddress(START_INFO)).unwrap();
        assert_eq!((read.magic, read.version, read.memmap_entries), (MAGIC, 1, 4));
        let mut line = [0; 4];
        ram.memory().read_slice(&mut line, GuestAddress(read.cmdline_paddr)).unwrap();
        assert_eq!(&line, b"a=1\0");
        let map = memory_map(ram.layout().regions());
        assert_eq!((map[2].addr, map[2].addr + map[2].size), (IMAGE_START, LOW_END));
        assert_eq!((map[3].addr, map[3].size), (HIGH_START, 1 << 30));
    }
}
