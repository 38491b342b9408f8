//! ELF images: checked first, so that errors are about the file and not about
//! what copying it ran into; then loaded by `linux-loader`.

use std::{io::Cursor, path::Path};

use checkpoint::{PageNumber, PageRun};
use linux_loader::loader::{Elf, KernelLoader, elf::PvhBootCapability};

use super::{BootError, IMAGE_START};
use crate::memory::GuestRam;

const PT_LOAD: u32 = 1;
const EM_X86_64: u16 = 62;

/// A loaded image.
pub(super) struct Image {
    /// The ELF entry.
    pub(super) entry: u64,
    /// The entry in the Xen note, if it has one.
    pub(super) pvh_entry: Option<u64>,
}

pub(super) fn load(ram: &GuestRam, path: &Path) -> Result<Image, BootError> {
    let read = |source| BootError::Read { path: path.to_owned(), source };
    let file = std::fs::read(path).map_err(read)?;
    let no_elf = |reason| BootError::NoElf { path: path.to_owned(), reason };
    for (start, end) in segments(&file).map_err(no_elf)? {
        check_place(ram, start, end)?;
    }
    let loaded = Elf::load(ram.memory(), None, &mut Cursor::new(&file), None)
        .map_err(|source| BootError::Load { path: path.to_owned(), source })?;
    let pvh_entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Some(entry.0),
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => None,
    };
    Ok(Image { entry: loaded.kernel_load.0, pvh_entry })
}

fn check_place(ram: &GuestRam, start: u64, end: u64) -> Result<(), BootError> {
    if start < IMAGE_START {
        return Err(BootError::TooLow(start));
    }
    let first = PageNumber::of_address(start);
    let count = end.div_ceil(checkpoint::PAGE_BYTES as u64) - first.get();
    if ram.layout().contains(PageRun { first, count }) {
        return Ok(());
    }
    Err(BootError::DoesNotFit { start, end })
}

/// The physical ranges of what is to be loaded. (System V ABI, "Object
/// Files"; offsets of `Elf64_Ehdr` and `Elf64_Phdr`.)
fn segments(file: &[u8]) -> Result<Vec<(u64, u64)>, &'static str> {
    if file.get(..4) != Some(b"\x7fELF") {
        return Err("it does not begin with the ELF magic");
    }
    if file.get(4..6) != Some(&[2, 1]) {
        return Err("it is not 64-bit little-endian");
    }
    let header = file.get(..64).ok_or("it ends within its header")?;
    if u16_at(header, 18) != EM_X86_64 {
        return Err("it is for another processor");
    }
    let (offset, size) = (u64_at(header, 32), usize::from(u16_at(header, 54)));
    if size < 56 {
        return Err("its program headers are too small");
    }
    let table = usize::try_from(offset).ok().and_then(|offset| file.get(offset..));
    let mut headers = table.ok_or("its program headers are missing")?.chunks_exact(size);
    let mut ranges = Vec::new();
    for _ in 0..u16_at(header, 56) {
        let entry = headers.next().ok_or("it ends within its program headers")?;
        let (start, len) = (u64_at(entry, 24), u64_at(entry, 40));
        if u32::from_le_bytes(entry[..4].try_into().expect("four bytes")) == PT_LOAD && len > 0 {
            ranges.push((start, start.checked_add(len).ok_or("a segment has no end")?));
        }
    }
    if ranges.is_empty() { Err("it has nothing to load") } else { Ok(ranges) }
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes[offset..offset + 2].try_into().expect("two bytes"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}
