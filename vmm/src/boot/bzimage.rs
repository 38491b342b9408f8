//! Linux's bzImage: its setup header, and where the kernel behind it goes.
//! (Linux `Documentation/arch/x86/boot.rst`; offsets are into the file.)
//!
//! ```text
//!   0 ── boot sector, setup code (with the header at 0x1f1) ── (setup_sects + 1) * 512
//!   from there: the kernel, syssize * 16 bytes, then perhaps a signature
//! ```
//!
//! The kernel goes where it prefers to be: relocated elsewhere it would unpack
//! itself to that address all the same, or higher.

use std::{io::Cursor, path::Path};

use linux_loader::loader::{
    BzImage, KernelLoader,
    bootparam::{LOADED_HIGH, XLF_KERNEL_64, setup_header},
};
use vm_memory::{ByteValued, GuestAddress};

use super::{BootError, CMDLINE_BYTES_MAX, IMAGE_START, is_ram};
use crate::memory::GuestRam;

const HEADER_AT: usize = 0x1f1;
/// The header ends so many bytes after here, as the byte before says.
const HEADER_END_FROM: usize = 0x202;
/// The first protocol that tells whether there is a 64-bit entry.
const VERSION_MIN: u16 = 0x20c;
/// The 64-bit entry, from the loaded kernel's begin.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;

/// A kernel that can be loaded.
#[derive(Debug)]
pub(super) struct Kernel {
    header: setup_header,
}

/// Reads the header of `file`, which has its magic.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Kernel, BootError> {
    let bad = |reason| BootError::BzImage { path: path.to_owned(), reason };
    let mut header = setup_header::default();
    let bytes = size_of::<setup_header>();
    let there = file.get(HEADER_AT..HEADER_AT + bytes).ok_or_else(|| BootError::Truncated {
        path: path.to_owned(),
        found: file.len() as u64,
        expected: (HEADER_AT + bytes) as u64,
    })?;
    // Behind an older, shorter header is code.
    let len = (HEADER_END_FROM + usize::from(file[HEADER_END_FROM - 1]))
        .saturating_sub(HEADER_AT)
        .min(bytes);
    header.as_mut_slice()[..len].copy_from_slice(&there[..len]);
    if header.version < VERSION_MIN {
        return Err(bad("its boot protocol is older than 2.12 (Linux 3.8): give a newer kernel"));
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(bad("it is a zImage, which loads below 1 MiB: give a bzImage"));
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(bad("it has no 64-bit entry: give a kernel for x86-64"));
    }
    let kernel = Kernel { header };
    let expected = kernel.setup_bytes() + u64::from(header.syssize) * 16;
    if (file.len() as u64) < expected {
        return Err(BootError::Truncated {
            path: path.to_owned(),
            found: file.len() as u64,
            expected,
        });
    }
    Ok(kernel)
}

impl Kernel {
    /// The header, for `boot_params`.
    pub(super) fn header(&self) -> &setup_header {
        &self.header
    }

    /// Where it is entered.
    pub(super) fn entry(&self) -> u64 {
        self.start() + ENTRY_64
    }

    /// One past the memory that it needs to unpack itself and to begin.
    pub(super) fn end(&self) -> u64 {
        let loaded = u64::from(self.header.syssize) * 16;
        self.start().saturating_add(loaded.max(u64::from(self.header.init_size)))
    }

    /// The highest address that the initrd may have a byte at.
    pub(super) fn initrd_last_max(&self) -> u64 {
        u64::from(self.header.initrd_addr_max)
    }

    /// The longest command line that it reads.
    pub(super) fn cmdline_bytes_max(&self) -> usize {
        (self.header.cmdline_size as usize).min(CMDLINE_BYTES_MAX)
    }

    /// Whether there is RAM where it wants to be.
    pub(super) fn check_place(&self, ram: &GuestRam) -> Result<(), BootError> {
        let (start, end) = (self.start(), self.end());
        if start < IMAGE_START {
            return Err(BootError::TooLow(start));
        }
        // Boot data and entry have to be in the first 4 GiB.
        let fits = end <= u64::from(u32::MAX) && is_ram(ram, start, end);
        if fits { Ok(()) } else { Err(BootError::DoesNotFit { start, end }) }
    }

    /// Copies it to its place, which was checked.
    pub(super) fn load(&self, ram: &GuestRam, path: &Path, file: &[u8]) -> Result<(), BootError> {
        let len = self.setup_bytes() + u64::from(self.header.syssize) * 16;
        // What follows (a signature) is no part of the kernel.
        let mut image = Cursor::new(&file[..len as usize]);
        BzImage::load(ram.memory(), Some(GuestAddress(self.start())), &mut image, None)
            .map_err(|source| BootError::Load { path: path.to_owned(), source })?;
        Ok(())
    }

    fn start(&self) -> u64 {
        self.header.pref_address
    }

    fn setup_bytes(&self) -> u64 {
        let sectors = match self.header.setup_sects {
            0 => 4,
            sectors => u64::from(sectors),
        };
        (sectors + 1) * SECTOR
    }
}

/// A kernel for tests: `setup_sects` 1, so that setup is 1 KiB, and `code` as
/// the kernel's begin, at `pref_address`.
#[cfg(test)]
pub(super) fn fake(code: &[u8], pref_address: u64, init_size: u32) -> Vec<u8> {
    let code_bytes = code.len().next_multiple_of(16);
    let header = setup_header {
        setup_sects: 1,
        syssize: (code_bytes / 16) as u32,
        boot_flag: 0xaa55,
        // A short jump over the header: its second byte is the header's length.
        jump: 0xeb | 0x6a << 8,
        header: 0x5372_6448,
        version: 0x20f,
        loadflags: LOADED_HIGH,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: 0x20_0000,
        relocatable_kernel: 1,
        xloadflags: XLF_KERNEL_64,
        cmdline_size: 2047,
        pref_address,
        init_size,
        ..Default::default()
    };
    let mut file = vec![0; 2 * SECTOR as usize + code_bytes];
    file[HEADER_AT..HEADER_AT + size_of::<setup_header>()].copy_from_slice(header.as_slice());
    file[2 * SECTOR as usize..][..code.len()].copy_from_slice(code);
    file
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn refused(file: &[u8]) -> String {
        parse(Path::new("k"), file).unwrap_err().to_string()
    }

    fn with(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = fake(&[0x90; 32], 16 * MIB, 1 << 20);
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        file
    }

    #[test]
    fn the_kernel_goes_where_it_wants_to_be() {
        let file = fake(&[7; 100], 16 * MIB, 3 << 20);
        let kernel = parse(Path::new("k"), &file).unwrap();
        assert_eq!((kernel.entry(), kernel.end()), (16 * MIB + 0x200, 19 * MIB));
        assert_eq!((kernel.initrd_last_max(), kernel.cmdline_bytes_max()), (0x7fff_ffff, 2047));
        let ram = GuestRam::new(64 * MIB, false).unwrap();
        kernel.check_place(&ram).unwrap();
        kernel.load(&ram, Path::new("k"), &[&file[..], b"signature"].concat()).unwrap();
        let mut loaded = [0; 113];
        ram.memory().read_slice(&mut loaded, GuestAddress(16 * MIB)).unwrap();
        assert_eq!(&loaded[..100], [7; 100]);
        assert_eq!(&loaded[100..], [0; 13], "the signature is not loaded");
    }

    #[test]
    fn cut_files_are_refused() {
        let file = fake(&[7; 100], 16 * MIB, 0);
        for cut in [0x206, 0x26b, 600, 1024, file.len() - 1] {
            assert!(refused(&file[..cut]).contains("cut off"), "cut at {cut}");
        }
    }

    #[test]
    fn kernels_that_cannot_be_entered_are_refused() {
        assert!(refused(&with(0x206, &[0x0b, 2])).contains("older than 2.12"));
        assert!(refused(&with(0x211, &[0])).contains("zImage"));
        assert!(refused(&with(0x236, &[0, 0])).contains("no 64-bit entry"));
    }

    #[test]
    fn an_older_header_is_shorter() {
        // Protocol 2.13 ends before kernel_info_offset: code is there.
        let mut file = with(0x206, &[0x0d, 2]);
        file[0x201] = 0x66;
        file[0x268..0x26c].copy_from_slice(&[0xcc; 4]);
        let kernel = parse(Path::new("k"), &file).unwrap();
        let kernel_info_offset = kernel.header.kernel_info_offset;
        assert_eq!(kernel_info_offset, 0);
        assert_eq!(kernel.end(), 17 * MIB);
    }

    #[test]
    fn places_without_ram_are_refused() {
        let ram = GuestRam::new(64 * MIB, false).unwrap();
        let place = |at, size| {
            let file = fake(&[0x90; 16], at, size);
            parse(Path::new("k"), &file).unwrap().check_place(&ram)
        };
        assert!(place(16 * MIB, 48 << 20).is_ok());
        assert!(matches!(place(16 * MIB, 49 << 20), Err(BootError::DoesNotFit { .. })));
        assert!(matches!(place(1 << 40, 1), Err(BootError::DoesNotFit { .. })));
        assert!(matches!(place(u64::MAX, 1), Err(BootError::DoesNotFit { .. })));
        assert!(matches!(place(0x8000, 1), Err(BootError::TooLow(0x8000))));
    }
}
