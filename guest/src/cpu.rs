//! The vCPU as CPL3 sees it: ports, system calls into the CPL0 stubs, per-CPU blocks.
//!
//! All Rust code runs at CPL3: on KVM's PVM backend CPL0 is interpreted, slowly and without SSE.
//! The stubs in `boot.s` and `stubs.s` are the only CPL0 code.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use romulus_probe::VCPUS_MAX;

global_asm!(include_str!("boot.s"), options(att_syntax));
global_asm!(include_str!("stubs.s"), options(att_syntax));

/// Timer interrupts of the local APIC.
pub(crate) const VECTOR_TIMER: u8 = 0x40;
/// Wake-up from another vCPU.
pub(crate) const VECTOR_WAKE: u8 = 0x41;
/// Interrupts of devices.
pub(crate) const VECTOR_DEVICE: u8 = 0x42;
/// Spurious interrupts of the local APIC.
pub(crate) const VECTOR_SPURIOUS: u8 = 0x4f;

/// The start of a vCPU's page; the layout is fixed by `stubs.s`, which writes all of it.
#[repr(C)]
pub(crate) struct PerCpu {
    events: AtomicU64,
    ticks: AtomicU64,
    devices: AtomicU64,
}

unsafe extern "C" {
    static kernel_pages: [[u8; 4096]; VCPUS_MAX];
    static uses_x2apic: AtomicU32;
    fn system_call();
}

impl PerCpu {
    pub(crate) fn of(cpu: usize) -> &'static Self {
        assert!(cpu < VCPUS_MAX);
        // SAFETY: the page exists for every index below VCPUS_MAX, is aligned, begins with this
        // block and is only accessed atomically.
        unsafe { &*(&raw const kernel_pages[cpu]).cast::<Self>() }
    }

    /// Interrupts of any kind.
    pub(crate) fn events(&self) -> u64 {
        self.events.load(Ordering::Acquire)
    }

    /// Timer interrupts.
    pub(crate) fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// Device interrupts.
    pub(crate) fn devices(&self) -> u64 {
        self.devices.load(Ordering::Relaxed)
    }
}

/// Tells the interrupt stubs how to end an interrupt.
pub(crate) fn set_uses_x2apic(uses: bool) {
    // SAFETY: a 32-bit word of the image, only accessed atomically or by single loads in stubs.
    unsafe { &uses_x2apic }.store(u32::from(uses), Ordering::SeqCst);
}

fn syscall(number: u64, first: u64, second: u64, third: u64) -> u64 {
    let result;
    // SAFETY: the stubs clobber what is listed; memory is clobbered by default.
    unsafe {
        asm!(
            "call {system_call}",
            system_call = sym system_call,
            inlateout("rax") number => result,
            in("rdi") first,
            in("rsi") second,
            inlateout("rdx") third => _,
            lateout("rcx") _,
            lateout("r8") _,
            lateout("r11") _,
        );
    }
    result
}

/// Sleeps until the next interrupt, unless one came after `events` was read from this vCPU's
/// [`PerCpu::events`]: an event between the check for work and the sleep is not slept through.
pub(crate) fn wait(events: u64) {
    syscall(0, events, 0, 0);
}

pub(crate) fn read_msr(register: u32) -> u64 {
    syscall(1, u64::from(register), 0, 0)
}

pub(crate) fn write_msr(register: u32, value: u64) {
    syscall(2, u64::from(register), value, 0);
}

/// `[eax, ebx, ecx, edx]` of a CPUID leaf, as the VMM configured it.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut answer = [0_u32; 4];
    syscall(3, u64::from(leaf), u64::from(subleaf), (&raw mut answer) as u64);
    answer
}

/// Makes new page-table entries effective.
pub(crate) fn reload_page_tables() {
    syscall(4, 0, 0, 0);
}

/// Stops this vCPU for good.
pub(crate) fn stop() -> ! {
    loop {
        syscall(5, 0, 0, 0);
    }
}

/// Ends the run by the VMM's exit port (also QEMU's isa-debug-exit); stops where there is none.
pub(crate) fn exit(code: u8) -> ! {
    out8(0xf4, code);
    stop()
}

/// Ports 0 to 0x3ff are open to CPL3 by the I/O bitmap.
pub(crate) fn out8(port: u16, value: u8) {
    // SAFETY: port output touches no memory of ours.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    };
}

pub(crate) fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: port input touches no memory of ours.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// What is added to a width to write.
const PORT_WRITE: u64 = 8;

/// One access of `width` bytes (1, 2 or 4) to any port; `value` is written, if it is given.
pub(crate) fn access_port(port: u16, width: u8, value: Option<u32>) -> u32 {
    let write = value.map_or(0, |_| PORT_WRITE);
    syscall(6, port.into(), value.unwrap_or(0).into(), u64::from(width) | write) as u32
}

/// A string instruction that moves `items` of `width` bytes between any port and `memory`.
pub(crate) fn access_port_string(port: u16, width: u8, is_write: bool, memory: u64, items: u16) {
    let write = if is_write { PORT_WRITE } else { 0 };
    syscall(7, port.into(), memory, u64::from(width) | write | u64::from(items) << 8);
}

/// An access of 1, 2, 4, 8 or 16 bytes outside RAM, aligned or not; `value` is written, if it is
/// given.
pub(crate) fn access_space(address: u64, width: u8, value: Option<u64>) {
    // SAFETY: callers pass addresses that are no RAM; they are mapped, and reads change nothing.
    unsafe {
        match (width, value) {
            (1, None) => asm!("mov {:l}, [{}]", out(reg_abcd) _, in(reg) address),
            (1, Some(value)) => asm!("mov [{}], {:l}", in(reg) address, in(reg_abcd) value),
            (2, None) => asm!("mov {:x}, [{}]", out(reg) _, in(reg) address),
            (2, Some(value)) => asm!("mov [{}], {:x}", in(reg) address, in(reg) value),
            (4, None) => asm!("mov {:e}, [{}]", out(reg) _, in(reg) address),
            (4, Some(value)) => asm!("mov [{}], {:e}", in(reg) address, in(reg) value),
            (8, None) => asm!("mov {}, [{}]", out(reg) _, in(reg) address),
            (8, Some(value)) => asm!("mov [{}], {}", in(reg) address, in(reg) value),
            (_, None) => asm!("movups {}, [{}]", out(xmm_reg) _, in(reg) address),
            (_, Some(value)) => {
                let value = core::arch::x86_64::_mm_set1_epi64x(value as i64);
                asm!("movups [{}], {}", in(reg) address, in(xmm_reg) value);
            }
        }
    }
}

/// Runs what is at `address`.
pub(crate) fn jump(address: u64) -> ! {
    // SAFETY: nothing of ours is there; callers want to see what becomes of it.
    unsafe { asm!("jmp {}", in(reg) address, options(noreturn)) }
}

/// A device register: a plain `mov`, which every instruction emulator knows.
pub(crate) fn mmio_read32(address: u64) -> u32 {
    let value;
    // SAFETY: callers pass addresses of device registers, which are mapped and not ours to alias.
    unsafe {
        asm!("mov {:e}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags))
    };
    value
}

pub(crate) fn mmio_write32(address: u64, value: u32) {
    // SAFETY: as for reads; what a device does to memory is covered by the default memory clobber.
    unsafe {
        asm!("mov [{}], {:e}", in(reg) address, in(reg) value, options(nostack, preserves_flags))
    };
}

pub(crate) fn mmio_read8(address: u64) -> u8 {
    let value;
    // SAFETY: as for 32 bits.
    unsafe {
        asm!("mov {}, [{}]", out(reg_byte) value, in(reg) address, options(nostack, preserves_flags))
    };
    value
}

/// The TSC after everything that was read before.
pub(crate) fn ordered_tsc() -> u64 {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { core::arch::x86_64::_mm_lfence() };
    tsc()
}

pub(crate) fn tsc() -> u64 {
    // SAFETY: CR4.TSD is clear, so CPL3 may read it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
