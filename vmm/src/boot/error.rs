//! Why a guest cannot boot.

use std::{io, path::PathBuf};

use thiserror::Error;

/// Why a guest cannot boot.
#[derive(Debug, Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel is compressed as a whole.
    #[error(
        "{} is compressed with {format}: unpack it first (`{command}`), or give the bzImage (`vmlinuz`)",
        path.display()
    )]
    Compressed {
        /// Which file.
        path: PathBuf,
        /// By what.
        format: &'static str,
        /// What unpacks it.
        command: &'static str,
    },
    /// The kernel is an EFI program without Linux's setup header.
    #[error(
        "{} is an EFI program, not a bzImage: take the kernel out of it (`objcopy -O binary --only-section=.linux` for a unified kernel image)",
        path.display()
    )]
    Efi {
        /// Which file.
        path: PathBuf,
    },
    /// The kernel is none.
    #[error(
        "{} is neither a bzImage nor an ELF file: give a kernel for x86-64 (`vmlinuz` or `vmlinux`)",
        path.display()
    )]
    NoKernel {
        /// Which file.
        path: PathBuf,
    },
    /// A bzImage that cannot be entered.
    #[error("{} cannot boot: {reason}", path.display())]
    BzImage {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, and what helps.
        reason: &'static str,
    },
    /// A bzImage is shorter than its header says.
    #[error(
        "{} has {found} bytes, its header says {expected}: it is cut off, copy it again",
        path.display()
    )]
    Truncated {
        /// Which file.
        path: PathBuf,
        /// Bytes that are there.
        found: u64,
        /// Bytes that should be.
        expected: u64,
    },
    /// The ELF file is none that can boot.
    #[error("{} is no 64-bit x86 ELF file ({reason}): give another kernel", path.display())]
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
    #[error("the kernel needs memory from {start:#x} to {end:#x}: give the guest more memory")]
    DoesNotFit {
        /// First address.
        start: u64,
        /// One past the last.
        end: u64,
    },
    /// A part of it lies where boot data goes.
    #[error("the kernel begins at {0:#x}: link it at 1 MiB or above")]
    TooLow(u64),
    /// PVH was asked for.
    #[error("{} has no PVH note: choose boot protocol `long-mode` or `auto`", path.display())]
    NoPvhNote {
        /// Which file.
        path: PathBuf,
    },
    /// Linux's protocol was asked for.
    #[error("{} is an ELF file: choose boot protocol `pvh` or `auto`", path.display())]
    ElfByLinux {
        /// Which file.
        path: PathBuf,
    },
    /// Another protocol than Linux's was asked for.
    #[error("{} is a bzImage: choose boot protocol `linux` or `auto`", path.display())]
    BzImageByOther {
        /// Which file.
        path: PathBuf,
    },
    /// The initrd has no room.
    #[error(
        "the initrd of {bytes} bytes does not fit between the kernel's end at {from:#x} and {to:#x}: give the guest more memory, or a smaller initrd"
    )]
    Initrd {
        /// Its size.
        bytes: u64,
        /// First address that is free.
        from: u64,
        /// One past the last address that it may have.
        to: u64,
    },
    /// The initrd has nothing in it.
    #[error("the initrd {} is empty: make it again, or leave it out", path.display())]
    InitrdEmpty {
        /// Which file.
        path: PathBuf,
    },
    /// The command line is too long or has a NUL.
    #[error(
        "the guest's command line has {bytes} bytes, or a zero byte: this kernel takes {bytes_max} without"
    )]
    Cmdline {
        /// Its length.
        bytes: usize,
        /// The longest that this kernel takes.
        bytes_max: usize,
    },
}
