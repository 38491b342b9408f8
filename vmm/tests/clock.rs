//! Clocks on real KVM: neither back nor ahead, across moves and pauses.

mod guest;

use std::time::{Duration, Instant};

use checkpoint::Sections;
use guest::{Rig, config, elf, require_capability, require_kvm};
use romulus_vmm::{boot::BootProtocol, dirty::DirtyTracking, state::StateError, vm::VmError};
use vm_memory::{Bytes, GuestAddress};

/// How long nobody runs a guest here: longer than what counts as a long pause.
const OUTAGE: Duration = Duration::from_millis(1300);
const VCPUS: u8 = 2;

/// What a checkpoint says of clocks.
#[derive(Debug, Clone, PartialEq)]
struct Clocks {
    kvm_ns: u64,
    tsc_khz: u32,
    /// Of each vCPU: its TSC at this moment, and KVM's offset.
    tscs: Vec<(u64, u64)>,
}

impl Clocks {
    fn of(sections: &Sections) -> Self {
        let number =
            |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let clock = sections.body("vm.clock", 1).unwrap();
        let tsc = |index| sections.body(&format!("vcpu.{index:02}.tsc"), 1).unwrap();
        Self {
            kvm_ns: number(clock, 0),
            tsc_khz: u32::from_le_bytes(clock[16..].try_into().unwrap()),
            tscs: (0..VCPUS).map(|index| (number(tsc(index), 0), number(tsc(index), 8))).collect(),
        }
    }

    /// How far each vCPU's TSC is ahead of the first one's.
    fn apart(&self) -> Vec<u64> {
        self.tscs.iter().map(|(value, _)| value.wrapping_sub(self.tscs[0].0)).collect()
    }

    fn cycles(&self, time: Duration) -> u64 {
        (time.as_nanos() * u128::from(self.tsc_khz) / 1_000_000) as u64
    }
}

fn running() -> Rig {
    let mut rig = Rig::new(&config(VCPUS, DirtyTracking::Auto));
    rig.boot(&elf(guest::counting(), false), BootProtocol::Auto);
    rig.vm.resume().unwrap();
    rig.await_count(0);
    rig
}

fn moved(rig: &Rig) -> (Rig, Clocks) {
    let sections = rig.vm.save().unwrap();
    let mut next = Rig::new(&config(VCPUS, DirtyTracking::Auto));
    next.set_image(&rig.image());
    std::thread::sleep(OUTAGE);
    next.vm.restore(&sections).unwrap();
    (next, Clocks::of(&sections))
}

#[test]
fn kvm_clock_stands_still_while_nobody_runs_the_guest() {
    if !require_kvm() {
        return;
    }
    let mut rig = running();
    for _ in 0..3 {
        rig.vm.pause().unwrap();
        let before_restore = Instant::now();
        let (next, saved) = moved(&rig);
        let restored = Clocks::of(&next.vm.save().unwrap());
        let since = before_restore.elapsed() - OUTAGE;
        let passed = Duration::from_nanos(restored.kvm_ns.checked_sub(saved.kvm_ns).unwrap());
        assert!(passed <= since, "the clock leapt by {passed:?} in {since:?} without the outage");
        rig = next;
        let count = rig.counter();
        rig.vm.resume().unwrap();
        rig.await_count(count);
    }
}

#[test]
fn tscs_stand_still_and_stay_as_far_apart_as_they_were() {
    if !require_capability("tsc-offset") {
        return;
    }
    let mut rig = running();
    for _ in 0..3 {
        rig.vm.pause().unwrap();
        let before_restore = Instant::now();
        let (next, saved) = moved(&rig);
        let restored = Clocks::of(&next.vm.save().unwrap());
        let since = saved.cycles(before_restore.elapsed() - OUTAGE);
        assert_eq!(restored.apart(), saved.apart());
        let passed = restored.tscs[0].0.checked_sub(saved.tscs[0].0).unwrap();
        assert!(passed <= since, "the tsc leapt by {passed} in {since} cycles");
        // And it agrees with kvm-clock: within a microsecond, as two
        // calibrations of one clock differ.
        let by_clock = saved.cycles(Duration::from_nanos(restored.kvm_ns - saved.kvm_ns));
        let microsecond = u64::from(saved.tsc_khz / 1000);
        assert!(passed.abs_diff(by_clock) <= microsecond, "{passed} and {by_clock} cycles");
        rig = next;
        let count = rig.counter();
        rig.vm.resume().unwrap();
        rig.await_count(count);
    }
}

#[test]
fn clocks_go_on_from_where_a_long_pause_stopped_them() {
    if !require_kvm() {
        return;
    }
    let mut rig = running();
    let before_pause = Instant::now();
    rig.vm.pause().unwrap();
    let paused = Clocks::of(&rig.vm.save().unwrap());
    let until_saved = before_pause.elapsed();
    std::thread::sleep(OUTAGE);
    let before_resume = Instant::now();
    rig.vm.resume().unwrap();
    rig.vm.pause().unwrap();
    let resumed = Clocks::of(&rig.vm.save().unwrap());
    let since = before_resume.elapsed();
    // The guest saw nothing after the pause began, which is a little before.
    let seen = paused.kvm_ns - until_saved.as_nanos() as u64;
    assert!(resumed.kvm_ns >= seen, "{} after {seen}", resumed.kvm_ns);
    let passed = Duration::from_nanos(resumed.kvm_ns.saturating_sub(paused.kvm_ns));
    assert!(passed <= since, "the clock leapt by {passed:?} in {since:?}");
    if require_capability("tsc-offset") {
        assert_eq!(resumed.apart(), paused.apart());
        let passed = resumed.tscs[0].0.saturating_sub(paused.tscs[0].0);
        assert!(passed <= paused.cycles(since), "the tsc leapt by {passed} cycles");
    }
}

#[test]
fn an_ordinary_pause_touches_no_clock() {
    if !require_capability("tsc-offset") {
        return;
    }
    let mut rig = running();
    rig.vm.pause().unwrap();
    let first = Clocks::of(&rig.vm.save().unwrap());
    let offsets = |clocks: &Clocks| clocks.tscs.iter().map(|tsc| tsc.1).collect::<Vec<_>>();
    for _ in 0..50 {
        rig.vm.resume().unwrap();
        rig.vm.pause().unwrap();
        let again = Clocks::of(&rig.vm.save().unwrap());
        assert_eq!(offsets(&again), offsets(&first));
    }
}

#[test]
fn another_frequency_is_scaled_or_refused() {
    if !require_kvm() {
        return;
    }
    let mut rig = running();
    rig.vm.pause().unwrap();
    let saved = rig.vm.save().unwrap();
    let khz = Clocks::of(&saved).tsc_khz;
    let scales = require_capability("tsc-control");
    for (tsc_khz, native) in [(khz - khz / 10_000, true), (khz - khz / 10, false)] {
        let mut sections = saved.as_slice().to_vec();
        let clock = sections.iter_mut().find(|section| section.name == "vm.clock").unwrap();
        clock.bytes[16..].copy_from_slice(&tsc_khz.to_le_bytes());
        let sections = Sections::new(sections).unwrap();
        let mut next = Rig::new(&config(VCPUS, DirtyTracking::Auto));
        next.set_image(&rig.image());
        match next.vm.restore(&sections) {
            Ok(()) => {
                assert!(native || scales, "{tsc_khz} kHz on {khz}");
                // It stays the guest's: the next host is asked for it, too.
                assert_eq!(next.vm.fingerprint().tsc_khz, tsc_khz);
                assert_eq!(Clocks::of(&next.vm.save().unwrap()).tsc_khz, tsc_khz);
                next.vm.resume().unwrap();
                next.await_count(rig.counter());
            }
            Err(VmError::State(StateError::TscFrequency { guest_khz, least, most })) => {
                assert!(!native && !scales && guest_khz == tsc_khz);
                assert!((least..=most).contains(&khz));
            }
            Err(other) => panic!("{other}"),
        }
    }
}

/// As when a stop signal's end lets the process go on: KVM has left the guest
/// although nobody paused it.
#[test]
fn a_guest_whose_process_was_stopped_is_told() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    rig.boot(&elf(guest::using_kvm_clock(), false), BootProtocol::Auto);
    rig.vm.resume().unwrap();
    rig.await_count(0);
    let told = || {
        // Byte 29, bit 1: PVCLOCK_GUEST_STOPPED.
        let at = GuestAddress(guest::KVM_CLOCK + 29);
        rig.vm.memory().memory().read_obj::<u8>(at).unwrap() & 2 != 0
    };
    assert!(!told(), "the guest was told of a stop before there was one");
    let end = Instant::now() + Duration::from_secs(20);
    while !told() {
        assert!(Instant::now() < end, "the guest was not told");
        interrupt_vcpus();
        std::thread::sleep(Duration::from_millis(1));
    }
    rig.await_count(rig.counter());
}

/// Interrupts all vCPUs of this process, those of other tests too, with the
/// signal that their threads do not ignore.
fn interrupt_vcpus() {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap();
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.starts_with("vcpu-") {
            let id: libc::pid_t = task.file_name().to_str().unwrap().parse().unwrap();
            // SAFETY: a signal to a thread of this process; it has a handler
            // that does nothing, or the thread has ended.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), id, libc::SIGRTMIN() + 1) };
        }
    }
}
