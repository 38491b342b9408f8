//! Time: kvm-clock where there is one, else the TSC measured against the local APIC timer.
//!
//! Every vCPU compares its clocks with the latest that any vCPU has read. One that went back, also
//! across a move to another host, ends the run.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use romulus_probe::VCPUS_MAX;

use crate::{apic, cpu};

const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
const FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
/// PVCLOCK_TSC_STABLE_BIT of the flags.
const FLAG_STABLE: u64 = 1;
const CALIBRATION_NS: u32 = 5_000_000;

/// What KVM writes for a vCPU (Linux: Documentation/virt/kvm/x86/msr.rst).
#[repr(C, align(64))]
struct KvmClock {
    version: AtomicU32,
    _pad: u32,
    tsc: AtomicU64,
    system_ns: AtomicU64,
    /// Multiplier in the low half; shift (signed) in the next byte, flags above.
    scale: AtomicU64,
}

static KVM_CLOCKS: [KvmClock; VCPUS_MAX] = [const {
    KvmClock {
        version: AtomicU32::new(0),
        _pad: 0,
        tsc: AtomicU64::new(0),
        system_ns: AtomicU64::new(0),
        scale: AtomicU64::new(0),
    }
}; VCPUS_MAX];
static TSC_KHZ: AtomicU64 = AtomicU64::new(0);

/// CPUID promises a TSC that goes on everywhere; else only kvm-clock is compared.
static TSC_IS_INVARIANT: AtomicBool = AtomicBool::new(false);
/// The latest that any vCPU has read.
static LATEST_TSC: AtomicU64 = AtomicU64::new(0);
static LATEST_KVM_NS: AtomicU64 = AtomicU64::new(0);

/// Measures the TSC; once, on the first vCPU, with its local APIC on.
pub(crate) fn calibrate() {
    apic::start_stopwatch();
    let (first_ns, first_tsc) = (apic::stopwatch_ns(), cpu::tsc());
    loop {
        let (ns, tsc) = (apic::stopwatch_ns(), cpu::tsc());
        let passed = ns.saturating_sub(first_ns);
        if passed >= CALIBRATION_NS {
            let khz = (tsc - first_tsc) * 1_000_000 / u64::from(passed);
            return TSC_KHZ.store(khz.max(1), Ordering::Relaxed);
        }
    }
}

/// Asks KVM to keep this vCPU's clock.
pub(crate) fn init(cpu: usize) {
    if cpu == 0 {
        let invariant = cpu::cpuid(0x8000_0007, 0)[3] >> 8 & 1 == 1;
        TSC_IS_INVARIANT.store(invariant, Ordering::Relaxed);
    }
    if has_kvm_clock() {
        let address = (&raw const KVM_CLOCKS[cpu]) as u64;
        cpu::write_msr(MSR_KVM_SYSTEM_TIME_NEW, address | 1);
    }
}

fn has_kvm_clock() -> bool {
    let [_, b, c, d] = cpu::cpuid(0x4000_0000, 0);
    (b, c, d) == (0x4b4d_564b, 0x564b_4d56, 0x4d)
        && cpu::cpuid(0x4000_0001, 0)[0] & FEATURE_CLOCKSOURCE2 != 0
}

/// Measured TSC rate.
pub(crate) fn tsc_khz() -> u64 {
    TSC_KHZ.load(Ordering::Relaxed)
}

/// kvm-clock of the calling vCPU in ns; 0 where there is none.
pub(crate) fn kvm_clock_ns(cpu: usize) -> u64 {
    let clock = &KVM_CLOCKS[cpu];
    loop {
        let version = clock.version.load(Ordering::Acquire);
        let scale = clock.scale.load(Ordering::Relaxed);
        let (tsc_then, system_ns) =
            (clock.tsc.load(Ordering::Relaxed), clock.system_ns.load(Ordering::Relaxed));
        let tsc = cpu::ordered_tsc();
        fence(Ordering::Acquire);
        if version % 2 == 1 || version != clock.version.load(Ordering::Relaxed) {
            continue;
        }
        if version == 0 {
            return 0;
        }
        let delta = u128::from(tsc.wrapping_sub(tsc_then));
        let shift = (scale >> 32) as u8 as i8;
        let shifted = if shift >= 0 { delta << shift } else { delta >> -shift };
        return system_ns.wrapping_add(((shifted * u128::from(scale as u32)) >> 32) as u64);
    }
}

/// Compares this vCPU's clocks with the latest that any vCPU has read.
pub(crate) fn check_order(cpu: usize) {
    if TSC_IS_INVARIANT.load(Ordering::Relaxed) {
        compare("tsc", cpu, &LATEST_TSC, cpu::ordered_tsc);
    }
    // Without this flag only Linux's lock keeps vCPUs apart by less than a microsecond.
    if KVM_CLOCKS[cpu].scale.load(Ordering::Relaxed) >> 40 & FLAG_STABLE != 0 {
        compare("kvm-clock", cpu, &LATEST_KVM_NS, || kvm_clock_ns(cpu));
    }
}

fn compare(name: &str, cpu: usize, latest: &AtomicU64, read: impl Fn() -> u64) {
    let before = latest.load(Ordering::SeqCst);
    let now = read();
    assert!(now >= before, "{name} of vCPU {cpu} went back by {}: {before} to {now}", before - now);
    latest.fetch_max(now, Ordering::SeqCst);
}

/// Whether clocks were compared: the TSC, and kvm-clock.
pub(crate) fn compared() -> (bool, bool) {
    let read = |latest: &AtomicU64| latest.load(Ordering::Relaxed) != 0;
    (read(&LATEST_TSC), read(&LATEST_KVM_NS))
}

/// Nanoseconds of a clock that is good for differences on one vCPU.
pub(crate) fn now_ns(cpu: usize) -> u64 {
    match kvm_clock_ns(cpu) {
        0 => (u128::from(cpu::tsc()) * 1_000_000 / u128::from(tsc_khz())) as u64,
        ns => ns,
    }
}

/// Waits without sleeping, by the TSC.
pub(crate) fn delay_us(us: u64) {
    let start = cpu::tsc();
    while cpu::tsc().wrapping_sub(start) < us * tsc_khz() / 1000 {
        core::hint::spin_loop();
    }
}
