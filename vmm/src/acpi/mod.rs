//! ACPI tables: how a guest finds its CPUs, interrupts and devices, and how it
//! is turned off, restarted and asked to shut down.
//!
//! ```text
//!   0xe0000  RSDP ─▶ XSDT ─▶ FADT ─▶ DSDT: devices, \_S5, power button
//!                      └───▶ MADT: local APICs, IOAPIC
//! ```
//!
//! The tables lie where a PC's firmware has them, so a guest also finds them by
//! searching; the memory map says "reserved".
//!
//! **Hardware-reduced.** There is no PM1 block, no SCI and no PM timer: sleep
//! and reset registers are single ports, and the power button is an interrupt
//! of a Generic Event Device. What a PM1 block would have is status bits and a
//! level-triggered interrupt, both state to be replicated and both for nothing;
//! Linux also skips its search for a PIT interrupt, which costs it a second.
//! The price: without kvm-clock (`no-kvmclock`) such a kernel has nothing to
//! measure its TSC with; and Linux with EFI compiled in restarts by EFI, which
//! is not there, and then by the BIOS (see `boot::BIOS_ENTRY`). Kernels from
//! 3.4 on know hardware-reduced ACPI.
//!
//! **Interrupts** of our devices are pulses of an irqfd, so every interrupt is
//! described as edge-triggered, active high. That is what an ISA interrupt is
//! without an override, so the MADT has none: GSI, ISA interrupt and IOAPIC
//! pin have the same number, as in KVM's own routing.
//!
//! There is no PCI: Linux looks at ports 0xcf8 and 0xcfa, reads ones, and says
//! that it found no way to configure it. There is no CMOS clock: a kernel with
//! kvm-clock does not look for one, and one without reads zeros (see
//! [`crate::device`]).

mod dsdt;
mod fixed;

use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestRam;

/// Where the tables begin, with the RSDP.
const RSDP: u64 = 0xe_0000;
/// They end here at the latest.
const TABLES_END: u64 = 0xf_0000;
const ALIGNMENT: u64 = 16;

const OEM: [u8; 6] = *b"ROMULU";
const OEM_TABLE: [u8; 8] = *b"ROMULUS ";
const OEM_REVISION: u32 = 1;

/// A virtio-mmio device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Where its registers begin.
    pub address: u64,
    /// How long they are.
    pub bytes: u64,
    /// Its interrupt, edge-triggered.
    pub gsi: u32,
}

/// What the tables tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Platform {
    /// vCPUs; APIC ids are their numbers.
    pub(crate) vcpus: u8,
    /// virtio-mmio devices.
    pub(crate) slots: Vec<Slot>,
}

/// Writes the tables for `platform`; returns where the RSDP is.
pub(crate) fn write(ram: &GuestRam, platform: &Platform) -> u64 {
    for (address, table) in tables(platform) {
        let end = address + table.len() as u64;
        assert!(end <= TABLES_END, "tables of {} slots need too much room", platform.slots.len());
        ram.memory().write_slice(&table, GuestAddress(address)).expect("the first MiB is RAM");
    }
    RSDP
}

/// Every table and its address, rising: the RSDP first.
fn tables(platform: &Platform) -> Vec<(u64, Vec<u8>)> {
    let dsdt = dsdt::table(platform);
    let mut at = (RSDP + fixed::RSDP_BYTES).next_multiple_of(ALIGNMENT);
    let mut place = |table: Vec<u8>| {
        let address = at;
        at = (at + table.len() as u64).next_multiple_of(ALIGNMENT);
        (address, table)
    };
    let dsdt = place(dsdt);
    let fadt = place(fixed::fadt(dsdt.0));
    let madt = place(fixed::madt(platform.vcpus));
    let xsdt = place(fixed::xsdt(&[fadt.0, madt.0]));
    let rsdp = (RSDP, fixed::rsdp(xsdt.0));
    vec![rsdp, dsdt, fadt, madt, xsdt]
}

#[cfg(test)]
mod tests;
