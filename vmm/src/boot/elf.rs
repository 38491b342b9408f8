//! ELF images: checked first, so that errors are about the file and not about
//! what copying it ran into; then loaded by `linux-loader`.

use std::{io::Cursor, path::Path};

use checkpoint::PAGE_BYTES;
use linux_loader::loader::{Elf, KernelLoader, elf::PvhBootCapability};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, IMAGE_START, is_ram};
use crate::memory::GuestRam;

const PT_LOAD: u32 = 1;
const EM_X86_64: u16 = 62;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A loaded kernel.
pub(super) struct Kernel {
    /// The ELF entry.
    pub(super) entry: u64,
    /// The entry in the Xen note, if it has one.
    pub(super) pvh_entry: Option<u64>,
}

/// Checks that `file` can be loaded; returns one past its last address.
pub(super) fn check(ram: &GuestRam, path: &Path, file: &[u8]) -> Result<u64, BootError> {
    let (mut last, mut total) = (0, 0_u64);
    for Segment { start, end, .. } in checked_segments(path, file)? {
        if start < IMAGE_START {
            return Err(BootError::TooLow(start));
        }
        if !is_ram(ram, start, end) {
            return Err(BootError::DoesNotFit { start, end });
        }
        // Segments may lie over each other, but not again and again.
        total += end - start;
        if total > ram.layout().page_count() * PAGE_BYTES as u64 {
            return Err(BootError::DoesNotFit { start, end });
        }
        last = last.max(end);
    }
    Ok(last)
}

/// Loads `file`, which was checked.
pub(super) fn load(ram: &GuestRam, path: &Path, file: &[u8]) -> Result<Kernel, BootError> {
    let loaded = Elf::load(ram.memory(), None, &mut Cursor::new(file), None)
        .map_err(|source| BootError::Load { path: path.to_owned(), source })?;
    for Segment { start, end, file_bytes } in checked_segments(path, file)? {
        // A guest that restarts left something there.
        let mut at = start + file_bytes;
        while at < end {
            let zeros = &ZEROS[..(end - at).min(ZEROS.len() as u64) as usize];
            ram.memory().write_slice(zeros, GuestAddress(at)).expect("it was found to be RAM");
            at += zeros.len() as u64;
        }
    }
    let pvh_entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Some(entry.0),
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => None,
    };
    Ok(Kernel { entry: loaded.kernel_load.0, pvh_entry })
}

/// What one program header loads, in physical addresses.
struct Segment {
    start: u64,
    end: u64,
    /// How much of it is in the file; the rest is zero.
    file_bytes: u64,
}

fn checked_segments(path: &Path, file: &[u8]) -> Result<Vec<Segment>, BootError> {
    segments(file).map_err(|reason| BootError::NoElf { path: path.to_owned(), reason })
}

/// What is to be loaded. (System V ABI, "Object
/// Files"; offsets of `Elf64_Ehdr` and `Elf64_Phdr`.)
fn segments(file: &[u8]) -> Result<Vec<Segment>, &'static str> {
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
        let (start, file_bytes, len) = (u64_at(entry, 24), u64_at(entry, 32), u64_at(entry, 40));
        if u32::from_le_bytes(entry[..4].try_into().expect("four bytes")) == PT_LOAD && len > 0 {
            let end = start.checked_add(len).ok_or("a segment has no end")?;
            if file_bytes > len {
                return Err("a segment is larger in the file than in memory");
            }
            ranges.push(Segment { start, end, file_bytes });
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
