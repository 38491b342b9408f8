//! Local APIC (x2APIC, or xAPIC where that is missing), IOAPIC, and starting other vCPUs.
//!
//! Assumed, and true of KVM and QEMU: the APIC id of vCPU *n* is *n*, and the timer counts
//! nanoseconds (1 GHz bus, divisor 1).

use core::sync::atomic::{AtomicBool, Ordering};

use crate::clock;
use crate::cpu::{self, VECTOR_DEVICE, VECTOR_SPURIOUS, VECTOR_TIMER, VECTOR_WAKE};

const MSR_APIC_BASE: u32 = 0x1b;
const BASE_ENABLED: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
const XAPIC_ADDRESS: u64 = 0xfee0_0000;
const IOAPIC_ADDRESS: u64 = 0xfec0_0000;
/// QEMU's microvm has a second one, for GSIs from 24 on.
const IOAPIC2_ADDRESS: u64 = 0xfec1_0000;
const IOAPIC_PINS: u32 = 24;
const TRAMPOLINE: u64 = 0x8000;

// Registers, by x2APIC number (MSR 0x800 + n; xAPIC offset 16 n).
const TASK_PRIORITY: u32 = 0x08;
const SPURIOUS: u32 = 0x0f;
const COMMAND: u32 = 0x30;
const COMMAND_HIGH: u32 = 0x31;
const TIMER: u32 = 0x32;
const LINT0: u32 = 0x35;
const LINT1: u32 = 0x36;
const ERROR: u32 = 0x37;
const TIMER_INITIAL: u32 = 0x38;
const TIMER_CURRENT: u32 = 0x39;
const TIMER_DIVISOR: u32 = 0x3e;

const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DIVIDE_BY_1: u32 = 0b1011;

static X2APIC: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    static ap_start: u8;
    static ap_start_end: u8;
    static mut ap_cpu: u32;
}

/// Turns this vCPU's local APIC on, timer stopped.
pub(crate) fn init() {
    let has_x2apic = cpu::cpuid(1, 0)[2] & (1 << 21) != 0;
    let base = cpu::read_msr(MSR_APIC_BASE) | BASE_ENABLED;
    // x2APIC may only be entered from enabled xAPIC.
    cpu::write_msr(MSR_APIC_BASE, base);
    if has_x2apic {
        cpu::write_msr(MSR_APIC_BASE, base | BASE_X2APIC);
    }
    X2APIC.store(has_x2apic, Ordering::SeqCst);
    cpu::set_uses_x2apic(has_x2apic);
    for masked in [TIMER, LINT0, LINT1, ERROR] {
        write(masked, MASKED);
    }
    write(TASK_PRIORITY, 0);
    write(TIMER_DIVISOR, DIVIDE_BY_1);
    write(SPURIOUS, 0x100 | u32::from(VECTOR_SPURIOUS));
}

/// Whether x2APIC is on.
pub(crate) fn uses_x2apic() -> bool {
    X2APIC.load(Ordering::Relaxed)
}

/// Periodic timer interrupts on this vCPU from now on.
pub(crate) fn set_timer_ms(period_ms: u64) {
    write(TIMER, PERIODIC | u32::from(VECTOR_TIMER));
    write(TIMER_INITIAL, (period_ms * 1_000_000) as u32);
}

/// Counts the timer down once without an interrupt, for measuring: `(count at, ns passed)`.
pub(crate) fn start_stopwatch() {
    write(TIMER, MASKED);
    write(TIMER_INITIAL, u32::MAX);
}

/// Nanoseconds since [`start_stopwatch`].
pub(crate) fn stopwatch_ns() -> u32 {
    u32::MAX - read(TIMER_CURRENT)
}

/// Interrupts another vCPU's sleep.
pub(crate) fn wake(cpu: usize) {
    command(cpu, 0x4000 | u32::from(VECTOR_WAKE));
}

/// Starts another vCPU; it will set `online`. False if it did not come.
pub(crate) fn start_cpu(cpu: usize, online: &AtomicBool) -> bool {
    let start = &raw const ap_start;
    let len = (&raw const ap_start_end) as usize - start as usize;
    // SAFETY: the page at 0x8000 is conventional memory that only the trampoline uses, and no
    // other vCPU is starting at this time.
    unsafe {
        core::ptr::copy_nonoverlapping(start, TRAMPOLINE as *mut u8, len);
        (&raw mut ap_cpu).write_volatile(cpu as u32);
    }
    command(cpu, 0x4500);
    clock::delay_us(1000);
    // Twice, as the manual says; one that already runs ignores the second.
    for wait_ms in [2, 1000] {
        command(cpu, 0x4600 | (TRAMPOLINE >> 12) as u32);
        for _ in 0..wait_ms * 10 {
            if online.load(Ordering::Acquire) {
                return true;
            }
            clock::delay_us(100);
        }
    }
    false
}

/// Routes a GSI to vCPU 0, edge-triggered, active high. False if no IOAPIC has it.
pub(crate) fn route_gsi(gsi: u32) -> bool {
    let (address, pin) = match gsi {
        0..IOAPIC_PINS => (IOAPIC_ADDRESS, gsi),
        _ => (IOAPIC2_ADDRESS, gsi - IOAPIC_PINS),
    };
    let pins = (ioapic_read(address, 1) >> 16 & 0xff) + 1;
    if pin >= pins {
        return false;
    }
    ioapic_write(address, 0x11 + 2 * pin, 0);
    ioapic_write(address, 0x10 + 2 * pin, u32::from(VECTOR_DEVICE));
    true
}

/// Masks every pin of the first IOAPIC, whatever firmware left there.
pub(crate) fn mask_ioapic() {
    for pin in 0..IOAPIC_PINS {
        ioapic_write(IOAPIC_ADDRESS, 0x10 + 2 * pin, MASKED);
    }
}

fn command(cpu: usize, value: u32) {
    if uses_x2apic() {
        cpu::write_msr(0x800 + COMMAND, (cpu as u64) << 32 | u64::from(value));
    } else {
        write(COMMAND_HIGH, (cpu as u32) << 24);
        write(COMMAND, value);
    }
}

fn write(register: u32, value: u32) {
    if uses_x2apic() {
        cpu::write_msr(0x800 + register, u64::from(value));
    } else {
        cpu::mmio_write32(XAPIC_ADDRESS + u64::from(register) * 16, value);
    }
}

fn read(register: u32) -> u32 {
    if uses_x2apic() {
        cpu::read_msr(0x800 + register) as u32
    } else {
        cpu::mmio_read32(XAPIC_ADDRESS + u64::from(register) * 16)
    }
}

fn ioapic_read(address: u64, register: u32) -> u32 {
    cpu::mmio_write32(address, register);
    cpu::mmio_read32(address + 0x10)
}

fn ioapic_write(address: u64, register: u32, value: u32) {
    cpu::mmio_write32(address, register);
    cpu::mmio_write32(address + 0x10, value);
}
