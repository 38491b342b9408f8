//! The registers that vCPU 0 starts with.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::{BELOW_IMAGE, BootProtocol, start_info::START_INFO, zero_page::ZERO_PAGE};
use crate::{memory::GuestRam, state::StateError};

const GDT: u64 = 0x500;
/// Page-map level 4, one page-directory-pointer table, four page directories.
const PAGE_TABLES: u64 = 0x9000;
const PAGE: u64 = 0x1000;
const LARGE_PAGE: u64 = 0x20_0000;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_ALWAYS: u64 = 2;

const ENTRY_PRESENT_WRITABLE: u64 = 3;
const ENTRY_LARGE: u64 = 1 << 7;

const FLAT_LIMIT: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Protected,
    Long,
}

/// What vCPU 0 is to be set to before it first runs.
#[derive(Debug)]
pub(crate) struct BootRegisters {
    protocol: BootProtocol,
    mode: Mode,
    regs: kvm_regs,
}

impl BootRegisters {
    /// 32-bit protected mode at `entry`.
    pub(super) fn pvh(ram: &GuestRam, entry: u64) -> Self {
        write_gdt(ram, Mode::Protected);
        let regs =
            kvm_regs { rip: entry, rbx: START_INFO, rflags: RFLAGS_ALWAYS, ..Default::default() };
        Self { protocol: BootProtocol::Pvh, mode: Mode::Protected, regs }
    }

    /// 64-bit mode at the ELF `entry`.
    pub(super) fn long_mode(ram: &GuestRam, entry: u64) -> Self {
        Self::in_long_mode(ram, BootProtocol::LongMode, entry, START_INFO)
    }

    /// 64-bit mode at Linux's `entry`.
    pub(super) fn linux(ram: &GuestRam, entry: u64) -> Self {
        Self::in_long_mode(ram, BootProtocol::Linux, entry, ZERO_PAGE)
    }

    fn in_long_mode(ram: &GuestRam, protocol: BootProtocol, rip: u64, rsi: u64) -> Self {
        write_gdt(ram, Mode::Long);
        write_page_tables(ram);
        let regs = kvm_regs { rip, rsi, rflags: RFLAGS_ALWAYS, ..Default::default() };
        Self { protocol, mode: Mode::Long, regs }
    }

    /// How the guest is entered; never `Auto`.
    pub(crate) fn protocol(&self) -> BootProtocol {
        self.protocol
    }

    /// Sets them, keeping what KVM chose (the APIC's base).
    pub(crate) fn apply(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let error = |call| {
            move |error: kvm_ioctls::Error| StateError::Kvm {
                call,
                of: "vcpu 0 at boot".to_owned(),
                source: error.into(),
            }
        };
        let mut sregs = vcpu.get_sregs().map_err(error("KVM_GET_SREGS"))?;
        self.set_mode(&mut sregs);
        vcpu.set_sregs(&sregs).map_err(error("KVM_SET_SREGS"))?;
        vcpu.set_regs(&self.regs).map_err(error("KVM_SET_REGS"))
    }

    fn set_mode(&self, sregs: &mut kvm_sregs) {
        let [_, _, code, data, task] = descriptors(self.mode);
        sregs.cs = segment(2, code);
        let data = segment(3, data);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = segment(4, task);
        sregs.gdt.base = GDT;
        sregs.gdt.limit = 5 * 8 - 1;
        sregs.idt.base = 0;
        sregs.idt.limit = 0;
        sregs.cr0 = CR0_PE | CR0_ET;
        if self.mode == Mode::Long {
            sregs.cr0 |= CR0_PG;
            sregs.cr3 = PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
    }
}

/// Null, unused, code, data, task: flags (descriptor bits 40 to 55) and limit.
/// Linux wants code at selector 0x10 and data at 0x18.
fn descriptors(mode: Mode) -> [(u16, u32); 5] {
    let code = if mode == Mode::Long { 0xa09b } else { 0xc09b };
    [(0, 0), (0, 0), (code, FLAT_LIMIT), (0xc093, FLAT_LIMIT), (0x008b, 0x67)]
}

/// A segment register that holds descriptor `index`. (AMD64 manual volume 2,
/// section 4.7; bits as in the descriptor's second half.)
fn segment(index: u16, (flags, limit): (u16, u32)) -> kvm_segment {
    let bit = |shift: u32| (flags >> shift & 1) as u8;
    kvm_segment {
        base: 0,
        limit,
        selector: index * 8,
        type_: (flags & 0xf) as u8,
        s: bit(4),
        dpl: (flags >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        ..Default::default()
    }
}

fn write_gdt(ram: &GuestRam, mode: Mode) {
    for (index, (flags, limit)) in descriptors(mode).into_iter().enumerate() {
        // With 4 KiB granularity the descriptor has the limit's upper 20 bits.
        let limit = u64::from(if flags >> 15 == 1 { limit >> 12 } else { limit });
        let descriptor = u64::from(flags) << 40 | limit & 0xffff | (limit >> 16 & 0xf) << 48;
        let at = GuestAddress(GDT + index as u64 * 8);
        ram.memory().write_obj(descriptor, at).expect(BELOW_IMAGE);
    }
}

/// Maps the first 4 GiB to themselves, writable, in large pages.
fn write_page_tables(ram: &GuestRam) {
    let write = |table: u64, index: u64, entry: u64| {
        let at = GuestAddress(PAGE_TABLES + table * PAGE + index * 8);
        ram.memory().write_obj(entry, at).expect(BELOW_IMAGE);
    };
    write(0, 0, (PAGE_TABLES + PAGE) | ENTRY_PRESENT_WRITABLE);
    for gib in 0..4 {
        write(1, gib, (PAGE_TABLES + (2 + gib) * PAGE) | ENTRY_PRESENT_WRITABLE);
        for large in 0..512 {
            let address = (gib * 512 + large) * LARGE_PAGE;
            write(2 + gib, large, address | ENTRY_LARGE | ENTRY_PRESENT_WRITABLE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_usual_ones() {
        let ram = GuestRam::new(64 << 20, false).unwrap();
        let read =
            |index: u64| -> u64 { ram.memory().read_obj(GuestAddress(GDT + index * 8)).unwrap() };
        write_gdt(&ram, Mode::Long);
        assert_eq!([read(2), read(3)], [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
        write_gdt(&ram, Mode::Protected);
        assert_eq!([read(0), read(2), read(4)], [0, 0x00cf_9b00_0000_ffff, 0x0000_8b00_0000_0067]);
    }
}
