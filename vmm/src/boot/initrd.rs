//! The initrd: as high below its limit as there is RAM, as boot loaders put
//! it, so that the kernel has room to unpack itself.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress};

use super::{BootConfig, BootError};
use crate::memory::GuestRam;

const PAGE: u64 = checkpoint::PAGE_BYTES as u64;

/// An initrd and where it goes.
#[derive(Debug)]
pub(super) struct Initrd {
    bytes: Vec<u8>,
    start: u64,
}

impl Initrd {
    /// The initrd of `config`, if it names one, placed in the first region of
    /// RAM: from `from` on, and so that its last byte is not above `last_max`.
    /// Its pages are its own.
    pub(super) fn read(
        config: &BootConfig,
        ram: &GuestRam,
        from: u64,
        last_max: u64,
    ) -> Result<Option<Self>, BootError> {
        let Some(path) = &config.initrd else { return Ok(None) };
        let read = |source| BootError::Read { path: path.clone(), source };
        let bytes = std::fs::read(path).map_err(read)?;
        if bytes.is_empty() {
            return Err(BootError::InitrdEmpty { path: path.clone() });
        }
        let start = place(ram, bytes.len() as u64, from, last_max)?;
        Ok(Some(Self { bytes, start }))
    }

    /// Where it lies.
    pub(super) fn range(&self) -> Range<u64> {
        self.start..self.start + self.bytes.len() as u64
    }

    /// Copies it to its place.
    pub(super) fn write(&self, ram: &GuestRam) {
        let at = GuestAddress(self.start);
        ram.memory().write_slice(&self.bytes, at).expect("its place was found to be RAM");
    }
}

fn place(ram: &GuestRam, bytes: u64, from: u64, last_max: u64) -> Result<u64, BootError> {
    let ram_end = ram.layout().regions()[0].end() * PAGE;
    let to = ram_end.min(last_max.saturating_add(1));
    let from = from.next_multiple_of(PAGE);
    let start = to.checked_sub(bytes).map(|start| start & !(PAGE - 1));
    start.filter(|start| *start >= from).ok_or(BootError::Initrd { bytes, from, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn placed(ram_mib: u64, bytes: u64, from: u64, last_max: u64) -> Option<u64> {
        let ram = GuestRam::new(ram_mib * MIB, false).unwrap();
        match place(&ram, bytes, from, last_max) {
            Ok(start) => Some(start),
            Err(BootError::Initrd { .. }) => None,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn it_ends_below_its_limit_and_begins_above_the_kernel() {
        let top = 64 * MIB;
        assert_eq!(placed(64, 5, MIB, u64::MAX), Some(top - 4096));
        assert_eq!(placed(64, 4096, MIB, 32 * MIB - 1), Some(32 * MIB - 4096));
        // Never above 3 GiB, whatever the guest has there.
        assert_eq!(placed(5 << 10, 4097, MIB, u64::MAX), Some((3 << 30) - 8192));
        assert_eq!(placed(64, 2 * MIB, 62 * MIB, u64::MAX), Some(62 * MIB));
        assert_eq!(placed(64, 2 * MIB, 62 * MIB + 1, u64::MAX), None);
        assert_eq!(placed(64, 65 * MIB, MIB, u64::MAX), None);
    }
}
