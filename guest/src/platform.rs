//! What the loader tells: the hvm_start_info structure (xen/include/public/arch-x86/hvm/start_info.h),
//! its command line and its memory map. All is copied before any other memory is written.

use crate::fatal::refuse;

const MAGIC: u32 = 0x336e_c578;
const TYPE_RAM: u32 = 1;
const COMMAND_LINE_MAX: usize = 2048;
/// The most RAM ranges that are kept.
pub(crate) const RANGES_MAX: usize = 32;

/// A range of physical memory, page-aligned inwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Range {
    pub(crate) fn pages(self) -> u64 {
        (self.end - self.start) / 4096
    }
}

/// The loader's word, copied.
pub(crate) struct Platform {
    command_line: [u8; COMMAND_LINE_MAX],
    command_line_len: usize,
    ram: [Range; RANGES_MAX],
    ram_len: usize,
}

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct MemoryMapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

unsafe extern "C" {
    static start_info_address: u64;
}

impl Platform {
    /// Reads what the loader left.
    pub(crate) fn read() -> Self {
        let mut platform = Self {
            command_line: [0; COMMAND_LINE_MAX],
            command_line_len: 0,
            ram: [Range::default(); RANGES_MAX],
            ram_len: 0,
        };
        // SAFETY: the boot stub stored the address; identity-mapped below 4 GiB by contract.
        let info = unsafe { (start_info_address as *const StartInfo).read_unaligned() };
        if info.magic != MAGIC || info.version < 1 || info.memory_map == 0 {
            refuse(format_args!(
                "no hvm_start_info of version 1 with a memory map (see guest/README.md)"
            ));
        }
        if info.command_line != 0 {
            platform.copy_command_line(info.command_line);
        }
        for index in 0..u64::from(info.memory_map_entries) {
            // SAFETY: the loader says that so many entries are there.
            let entry = unsafe {
                (info.memory_map as *const MemoryMapEntry).add(index as usize).read_unaligned()
            };
            platform.add_range(&entry);
        }
        platform
    }

    pub(crate) fn command_line(&self) -> &str {
        core::str::from_utf8(&self.command_line[..self.command_line_len])
            .unwrap_or_else(|_| refuse(format_args!("the command line is not UTF-8")))
    }

    /// RAM ranges, in the loader's order.
    pub(crate) fn ram(&self) -> &[Range] {
        &self.ram[..self.ram_len]
    }

    fn copy_command_line(&mut self, address: u64) {
        for at in 0..COMMAND_LINE_MAX {
            // SAFETY: a string that ends in a zero byte, by the loader's contract.
            let byte = unsafe { (address as *const u8).add(at).read_volatile() };
            if byte == 0 {
                self.command_line_len = at;
                return;
            }
            self.command_line[at] = byte;
        }
        refuse(format_args!("the command line is longer than {COMMAND_LINE_MAX} bytes"));
    }

    fn add_range(&mut self, entry: &MemoryMapEntry) {
        let range = Range {
            start: entry.address.next_multiple_of(4096),
            end: (entry.address + entry.size) & !4095,
        };
        if entry.kind == TYPE_RAM && range.start < range.end && self.ram_len < RANGES_MAX {
            self.ram[self.ram_len] = range;
            self.ram_len += 1;
        }
    }
}
