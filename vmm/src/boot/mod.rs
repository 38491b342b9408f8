//! Puts a guest into RAM and sets the registers that it starts with.
//!
//! | protocol | image | entry | state |
//! |---|---|---|---|
//! | Linux | bzImage | 0x200 into the loaded kernel | 64-bit, CPL0, `%rsi` = `boot_params` |
//! | PVH | ELF | the address in the Xen note | 32-bit protected mode, paging off, `%ebx` = `hvm_start_info` |
//! | long mode | ELF | the ELF entry | 64-bit, CPL0, `%rsi` = `hvm_start_info` |
//!
//! 64-bit entries have the first 4 GiB mapped to themselves. All get memory
//! map, command line, initrd and the address of the ACPI tables ([`crate::acpi`]).
//!
//! ```text
//!   0x0500 GDT   0x6000 start info, memory map   0x7000 boot_params   0x9000 page tables
//!   0x20000 command line    0xe0000 ACPI tables    0xffff0 what a PC's reset vector jumps to
//!   0x100000 the kernel, at the lowest ......... the initrd, as high as it may be
//! ```
//!
//! A guest that restarts finds the RAM that it left, but for what is written
//! here, as after a warm start of a PC. Files are checked before the first byte
//! is written, as far as that can be seen from their headers.

mod bzimage;
mod elf;
mod error;
mod image;
mod initrd;
mod memory_map;
mod registers;
mod start_info;
mod zero_page;

use std::{ops::Range, path::PathBuf};

use vm_memory::{Bytes, GuestAddress};

pub use self::error::BootError;
pub(crate) use self::registers::BootRegisters;
use self::{image::Image, initrd::Initrd};
use crate::{
    acpi::{self, Platform},
    memory::GuestRam,
};

/// Kernels lie from here on; below is what this module writes.
pub const IMAGE_START: u64 = 0x10_0000;
/// Longest command line, in bytes; a kernel may want a shorter one.
pub const CMDLINE_BYTES_MAX: usize = 4096;
/// Where the command line lies.
const CMDLINE: u64 = 0x2_0000;
/// From here to 1 MiB is no RAM on a PC.
const LOW_RAM_END: u64 = 0x9_fc00;
const BELOW_IMAGE: &str = "boot data lies in the first MiB of RAM";

/// Where a PC's BIOS begins, in real mode. Kernels restart by going there when
/// all else fails, and Linux on hardware-reduced ACPI without EFI tries nothing
/// else (`efi_reboot_required` in `arch/x86/platform/efi/quirks.c`).
const BIOS_ENTRY: u64 = 0xf_fff0;
/// Asks for a restart: `mov al, 6; mov dx, 0xcf9; out dx, al; hlt; jmp` to the `hlt`.
const RESTART_CODE: [u8; 9] = [0xb0, 0x06, 0xba, 0xf9, 0x0c, 0xee, 0xf4, 0xeb, 0xfd];

/// How the guest is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BootProtocol {
    /// As the image's content says: Linux for a bzImage; for an ELF file PVH if
    /// it has the note, else long mode.
    #[default]
    Auto,
    /// Linux's 64-bit boot protocol.
    Linux,
    /// PVH.
    Pvh,
    /// 64-bit at the ELF entry.
    LongMode,
}

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootConfig {
    /// The kernel: a bzImage or a 64-bit ELF file.
    pub kernel: PathBuf,
    /// The guest's first file system.
    pub initrd: Option<PathBuf>,
    /// The guest's command line. Parameters of devices are appended for ELF
    /// files; a bzImage finds its devices by ACPI.
    pub cmdline: String,
    /// How it is entered.
    pub protocol: BootProtocol,
}

/// Loads kernel, initrd and boot data into `ram`. `device_cmdline` is for
/// guests without ACPI.
pub(crate) fn load(
    ram: &GuestRam,
    config: &BootConfig,
    platform: &Platform,
    device_cmdline: &str,
) -> Result<BootRegisters, BootError> {
    let image = Image::read(&config.kernel)?;
    match (config.protocol, image) {
        (BootProtocol::Auto | BootProtocol::Linux, Image::BzImage(file)) => {
            load_linux(ram, config, platform, &file)
        }
        (BootProtocol::Linux, Image::Elf(_)) => {
            Err(BootError::ElfByLinux { path: config.kernel.clone() })
        }
        (BootProtocol::Pvh | BootProtocol::LongMode, Image::BzImage(_)) => {
            Err(BootError::BzImageByOther { path: config.kernel.clone() })
        }
        (_, Image::Elf(file)) => load_elf(ram, config, platform, device_cmdline, &file),
    }
}

fn load_linux(
    ram: &GuestRam,
    config: &BootConfig,
    platform: &Platform,
    file: &[u8],
) -> Result<BootRegisters, BootError> {
    let kernel = bzimage::parse(&config.kernel, file)?;
    kernel.check_place(ram)?;
    let cmdline = cmdline(&config.cmdline, "", kernel.cmdline_bytes_max())?;
    let initrd = Initrd::read(config, ram, kernel.end(), kernel.initrd_last_max())?;
    clear_low_memory(ram);
    kernel.load(ram, &config.kernel, file)?;
    let initrd = write_common(ram, &cmdline, initrd.as_ref());
    let rsdp = acpi::write(ram, platform);
    zero_page::write(ram, kernel.header(), initrd, rsdp);
    Ok(BootRegisters::linux(ram, kernel.entry()))
}

fn load_elf(
    ram: &GuestRam,
    config: &BootConfig,
    platform: &Platform,
    device_cmdline: &str,
    file: &[u8],
) -> Result<BootRegisters, BootError> {
    let end = elf::check(ram, &config.kernel, file)?;
    let cmdline = cmdline(&config.cmdline, device_cmdline, CMDLINE_BYTES_MAX)?;
    let initrd = Initrd::read(config, ram, end, u64::from(u32::MAX))?;
    clear_low_memory(ram);
    let kernel = elf::load(ram, &config.kernel, file)?;
    let pvh_entry = match config.protocol {
        BootProtocol::LongMode => None,
        BootProtocol::Auto | BootProtocol::Linux => kernel.pvh_entry,
        BootProtocol::Pvh => {
            let missing = || BootError::NoPvhNote { path: config.kernel.clone() };
            Some(kernel.pvh_entry.ok_or_else(missing)?)
        }
    };
    let initrd = write_common(ram, &cmdline, initrd.as_ref());
    let rsdp = acpi::write(ram, platform);
    start_info::write(ram, initrd, rsdp);
    Ok(match pvh_entry {
        Some(entry) => BootRegisters::pvh(ram, entry),
        None => BootRegisters::long_mode(ram, kernel.entry),
    })
}

fn cmdline(own: &str, of_devices: &str, bytes_max: usize) -> Result<String, BootError> {
    let line = [own, of_devices].join(" ").trim().to_owned();
    if line.len() > bytes_max || line.contains('\0') {
        return Err(BootError::Cmdline { bytes: line.len(), bytes_max });
    }
    Ok(line)
}

/// A guest that restarts left its own there; what is written below takes
/// zeros around it for granted.
fn clear_low_memory(ram: &GuestRam) {
    let zeros = vec![0; LOW_RAM_END as usize];
    ram.memory().write_slice(&zeros, GuestAddress(0)).expect(BELOW_IMAGE);
}

/// Writes what all protocols have; returns where the initrd lies.
fn write_common(ram: &GuestRam, cmdline: &str, initrd: Option<&Initrd>) -> Option<Range<u64>> {
    let line = [cmdline.as_bytes(), &[0]].concat();
    ram.memory().write_slice(&line, GuestAddress(CMDLINE)).expect(BELOW_IMAGE);
    let restart = GuestAddress(BIOS_ENTRY);
    ram.memory().write_slice(&RESTART_CODE, restart).expect(BELOW_IMAGE);
    initrd.inspect(|initrd| initrd.write(ram)).map(Initrd::range)
}

/// Whether `start..end` is all RAM in one region.
fn is_ram(ram: &GuestRam, start: u64, end: u64) -> bool {
    use checkpoint::{PAGE_BYTES, PageNumber, PageRun};
    let first = PageNumber::of_address(start);
    let count = end.div_ceil(PAGE_BYTES as u64) - first.get();
    ram.layout().contains(PageRun { first, count })
}

#[cfg(test)]
mod tests;
