//! Puts a guest image into RAM and sets the registers it starts with.
//!
//! | protocol | entry | state |
//! |---|---|---|
//! | PVH | the address in the image's Xen note | 32-bit protected mode, paging off, `%ebx` = `hvm_start_info` |
//! | long mode | the ELF entry | 64-bit, CPL0, first 4 GiB mapped to themselves, `%rsi` = `hvm_start_info` |
//!
//! Both get the same start info with memory map and command line. The Linux
//! boot protocol (bzImage) is to become a third [`BootProtocol`] with a module
//! of its own beside `elf`; `BootRegisters` is what such a module makes.
//!
//! ```text
//!   0x0500 GDT   0x6000 start info, memory map   0x9000 page tables   0x20000 command line
//!   0x100000 the image, at the lowest
//! ```

mod elf;
mod registers;
mod start_info;

use std::{io, path::PathBuf};

use thiserror::Error;

pub(crate) use self::registers::BootRegisters;
use crate::memory::GuestRam;

/// Images lie from here on; below is what this module writes.
pub const IMAGE_START: u64 = 0x10_0000;
/// Longest command line, in bytes.
pub const CMDLINE_BYTES_MAX: usize = 4096;

/// How the guest is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BootProtocol {
    /// PVH if the image has its note, else long mode.
    #[default]
    Auto,
    /// PVH.
    Pvh,
    /// 64-bit at the ELF entry.
    LongMode,
}

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootConfig {
    /// The image, a 64-bit ELF file.
    pub kernel: PathBuf,
    /// The guest's command line; parameters of devices are appended.
    pub cmdline: String,
    /// How it is entered.
    pub protocol: BootProtocol,
}

/// Why a guest cannot boot.
#[derive(Debug, Error)]
pub enum BootError {
    /// The image cannot be read.
    #[error("cannot read the guest image {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The image is none.
    #[error("{} is no 64-bit x86 ELF file ({reason}): give an uncompressed kernel (vmlinux)", path.display())]
    NoElf {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The loader found it damaged.
    #[error("{} is damaged", path.display())]
    Load {
        /// Which file.
        path: PathBuf,
        /// What the loader said.
        source: linux_loader::loader::Error,
    },
    /// A part of it lies where there is no RAM.
    #[error("the guest image needs memory from {start:#x} to {end:#x}: give the guest more memory")]
    DoesNotFit {
        /// First address.
        start: u64,
        /// One past the last.
        end: u64,
    },
    /// A part of it lies where boot data goes.
    #[error("the guest image begins at {0:#x}: link it at 1 MiB or above")]
    TooLow(u64),
    /// PVH was asked for.
    #[error("{} has no PVH note: choose boot protocol `long-mode` or `auto`", path.display())]
    NoPvhNote {
        /// Which file.
        path: PathBuf,
    },
    /// The command line is too long or has a NUL.
    #[error("the guest's command line is longer than {CMDLINE_BYTES_MAX} bytes or has a zero byte")]
    Cmdline,
}

/// Loads the image and the boot data into `ram`.
pub(crate) fn load(
    ram: &GuestRam,
    config: &BootConfig,
    device_cmdline: &str,
) -> Result<BootRegisters, BootError> {
    let cmdline = [config.cmdline.as_str(), device_cmdline].join(" ").trim().to_owned();
    if cmdline.len() > CMDLINE_BYTES_MAX || cmdline.contains('\0') {
        return Err(BootError::Cmdline);
    }
    let image = elf::load(ram, &config.kernel)?;
    let pvh_entry = match config.protocol {
        BootProtocol::LongMode => None,
        BootProtocol::Auto => image.pvh_entry,
        BootProtocol::Pvh => {
            let missing = || BootError::NoPvhNote { path: config.kernel.clone() };
            Some(image.pvh_entry.ok_or_else(missing)?)
        }
    };
    start_info::write(ram, &cmdline);
    Ok(match pvh_entry {
        Some(entry) => BootRegisters::pvh(ram, entry),
        None => BootRegisters::long_mode(ram, image.entry),
    })
}
