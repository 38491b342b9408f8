//! The guest's clocks: kvm-clock and the TSCs of its vCPUs.
//!
//! ```text
//!   vm.clock    := kvm_ns:u64  host_tsc:u64  tsc_khz:u32
//!   vcpu.NN.tsc := value:u64   offset:u64
//! ```
//!
//! **One moment.** All clocks of a checkpoint are those of one [`Moment`],
//! which is taken once, after the last vCPU is out of the guest and before
//! anything is saved: what kvm-clock and the host's TSC were. A vCPU's `value`
//! is its TSC at that moment, not at the moment when its own thread got around
//! to saving it. `offset` is KVM's (guest's TSC = scaled host's TSC + offset).
//!
//! **Restoring** follows Linux `Documentation/virt/kvm/devices/vcpu.rst`
//! (KVM_VCPU_TSC_CTRL), but for one thing: time stands still while nobody runs
//! the guest. kvm-clock is set to what it was, then read with the host's TSC;
//! vCPU 0's TSC is to have its old value at the old time of kvm-clock, which
//! gives the one number that is added to *all* offsets. So
//!
//! - the TSCs of a restored guest differ from each other by exactly what they
//!   differed before, to the cycle, however long each vCPU takes to restore;
//! - TSC and kvm-clock agree as they did;
//! - neither goes back, and neither leaps by the time that the failover took
//!   or by what two hosts' clocks differ. The guest's wall clock is late by
//!   the length of the failover until its NTP client sees it. The alternative,
//!   a leap, would fire all timers at once, and watchdogs with them.
//!
//! A guest on kvm-clock is also told that it was stopped (`KVM_KVMCLOCK_CTRL`),
//! so that watchdogs that were due look again. It is told too after the whole
//! process was stopped (SIGSTOP, the freezer of control groups): nobody winds
//! its clocks back then, and they leap.
//!
//! **A long pause** of a primary (output that cannot be released) counts like
//! a failover: beyond [`LONG_PAUSE`] time is wound back by its length. An
//! ordinary checkpoint's pause is not touched: its clocks go on, and nothing
//! in saving writes to one.
//!
//! **Why not the register.** IA32_TSC read on each vCPU is each another
//! moment. Written back, KVM guesses which writes were meant to be the same,
//! and before Linux 6.7 takes a value within a second of a shell's own TSC for
//! a mistake. It is used where KVM lacks the attribute or setting it has no
//! effect; on PVM neither has, and guests see the host's TSC.
//!
//! **Frequency.** The guest's stays what it was where it was booted. If the
//! host's is another one (beyond what the kernel tolerates), KVM scales the
//! TSC, or the state is refused. `KVM_SET_TSC_KHZ` is not even tried without
//! scaling: it fails, and changes what `KVM_GET_TSC_KHZ` tells.

use std::time::Duration;

use checkpoint::{Section, Sections};
use kvm_bindings::{KVM_CLOCK_HOST_TSC, Msrs, kvm_clock_data, kvm_msr_entry};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{StateError, VERSION};
use crate::{host::Capabilities, ioctl};

/// A pause after which the guest's time goes on from where it stopped. Below,
/// the guest sees that it did not run, and no watchdog minds.
pub(crate) const LONG_PAUSE: Duration = Duration::from_secs(1);

const MSR_TSC: u32 = 0x10;
/// The deadline of the local APIC's timer, in guest TSC.
pub(super) const MSR_TSC_DEADLINE: u32 = 0x6e0;
pub(super) const CLOCK: &str = "vm.clock";
const CLOCK_BYTES: usize = 20;
const TSC_BYTES: usize = 16;

/// When a checkpoint was taken, by all clocks that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// kvm-clock, in ns.
    pub(crate) kvm_ns: u64,
    /// The host's TSC at the same time.
    pub(crate) host_tsc: u64,
}

impl Moment {
    /// Now.
    pub(crate) fn now(vm: &VmFd) -> Result<Self, StateError> {
        let before = ioctl::host_tsc();
        let clock = vm.get_clock().map_err(machine_error("KVM_GET_CLOCK"))?;
        let between = midpoint(before, ioctl::host_tsc());
        let exact = clock.flags & KVM_CLOCK_HOST_TSC != 0;
        Ok(Self { kvm_ns: clock.clock, host_tsc: if exact { clock.host_tsc } else { between } })
    }

    /// This moment as `vm.clock`, of a guest with a TSC of `tsc_khz`.
    pub(crate) fn save(&self, tsc_khz: u32) -> Section {
        let mut bytes = Vec::with_capacity(CLOCK_BYTES);
        for number in [self.kvm_ns, self.host_tsc] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(tsc_khz.to_le_bytes());
        Section { name: CLOCK.to_owned(), version: VERSION, bytes }
    }
}

/// A moment on the host that saved it, and the guest's TSC frequency in kHz.
pub(crate) fn saved(sections: &Sections) -> Result<(Moment, u32), StateError> {
    let bytes = body(sections, CLOCK, CLOCK_BYTES)?;
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
    let moment = Moment { kvm_ns: number(0), host_tsc: number(8) };
    let tsc_khz = u32::from_le_bytes(bytes[16..].try_into().expect("four"));
    if tsc_khz == 0 {
        return Err(StateError::Shape("tsc frequency"));
    }
    Ok((moment, tsc_khz))
}

/// Sets kvm-clock. No flags: it goes on from `kvm_ns`, whatever the wall clock
/// says.
pub(crate) fn set(vm: &VmFd, kvm_ns: u64) -> Result<(), StateError> {
    let clock = kvm_clock_data { clock: kvm_ns, ..Default::default() };
    vm.set_clock(&clock).map_err(machine_error("KVM_SET_CLOCK"))
}

/// How fast TSCs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) guest_khz: u32,
    pub(crate) host_khz: u32,
    /// The host's TSC reaches the guest as it is, but for an offset.
    pub(crate) native: bool,
    /// The offset can be set.
    pub(crate) offset: bool,
}

impl Rate {
    pub(crate) fn new(guest_khz: u32, capabilities: &Capabilities) -> Self {
        Self {
            guest_khz,
            host_khz: capabilities.tsc_khz,
            native: capabilities.tsc_is_native(guest_khz),
            offset: capabilities.tsc_offset,
        }
    }

    /// The guest's cycles in `ns`.
    pub(crate) fn cycles(&self, ns: u64) -> u64 {
        (u128::from(ns) * u128::from(self.guest_khz) / 1_000_000) as u64
    }

    /// The guest's cycles from the host's TSC `from` until `until`, which may
    /// be before it.
    fn between(&self, from: u64, until: u64) -> u64 {
        let host = until.wrapping_sub(from) as i64;
        if self.native {
            return host as u64;
        }
        let guest = i128::from(host) * i128::from(self.guest_khz) / i128::from(self.host_khz);
        guest as u64
    }
}

/// The TSC of a vCPU at a [`Moment`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tsc {
    pub(crate) value: u64,
    pub(crate) offset: u64,
}

impl Tsc {
    /// The TSC of `vcpu` when the host's was `host_tsc`.
    pub(crate) fn at(
        vcpu: &VcpuFd,
        index: u8,
        host_tsc: u64,
        rate: &Rate,
    ) -> Result<Self, StateError> {
        if rate.native && rate.offset {
            let offset = ioctl::tsc_offset(vcpu).map_err(error("KVM_GET_DEVICE_ATTR", index))?;
            return Ok(Self { value: host_tsc.wrapping_add(offset), offset });
        }
        // Scaled, or not set by its offset: only the register tells.
        let before = ioctl::host_tsc();
        let read = register(vcpu, index, MSR_TSC)?;
        let when = midpoint(before, ioctl::host_tsc());
        let value = read.wrapping_sub(rate.between(host_tsc, when));
        let offset = if rate.offset {
            ioctl::tsc_offset(vcpu).map_err(error("KVM_GET_DEVICE_ATTR", index))?
        } else {
            value.wrapping_sub(host_tsc)
        };
        Ok(Self { value, offset })
    }

    /// The host's TSC as KVM scales it for the guest.
    fn scaled(&self) -> u64 {
        self.value.wrapping_sub(self.offset)
    }

    pub(crate) fn save(&self) -> Vec<u8> {
        [self.value.to_le_bytes(), self.offset.to_le_bytes()].concat()
    }

    /// The section `name`.
    pub(crate) fn saved(sections: &Sections, name: &str) -> Result<Self, StateError> {
        let bytes = body(sections, name, TSC_BYTES)?;
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        Ok(Self { value: number(0), offset: number(8) })
    }
}

/// How saved TSCs go on at another moment, on another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TscShift {
    rate: Rate,
    /// Added to the offsets of all vCPUs.
    offset: u64,
    /// Added to the values of all vCPUs: what kvm-clock went on.
    passed: u64,
    /// The host's TSC then.
    host_tsc: u64,
}

impl TscShift {
    /// `first` is vCPU 0's TSC as it was `then`; `shell` is what it is without
    /// being set, `now`.
    pub(crate) fn new(rate: Rate, then: Moment, first: Tsc, now: Moment, shell: Tsc) -> Self {
        let passed = rate.cycles(now.kvm_ns.saturating_sub(then.kvm_ns));
        let wanted = first.value.wrapping_add(passed);
        let offset = wanted.wrapping_sub(shell.scaled()).wrapping_sub(first.offset);
        Self { rate, offset, passed, host_tsc: now.host_tsc }
    }

    /// Sets the TSC of `vcpu`, which was `saved`.
    pub(crate) fn apply(&self, vcpu: &VcpuFd, index: u8, saved: Tsc) -> Result<(), StateError> {
        if self.rate.offset {
            return ioctl::set_tsc_offset(vcpu, self.offset_of(saved))
                .map_err(error("KVM_SET_DEVICE_ATTR", index));
        }
        let since = self.rate.between(self.host_tsc, ioctl::host_tsc());
        let value = saved.value.wrapping_add(self.passed).wrapping_add(since);
        set_register(vcpu, index, MSR_TSC, value)
    }

    fn offset_of(&self, saved: Tsc) -> u64 {
        saved.offset.wrapping_add(self.offset)
    }
}

/// Lets the TSC of `vcpu` run at `khz`; only where KVM scales it.
pub(crate) fn set_tsc_khz(vcpu: &VcpuFd, index: u8, khz: u32) -> Result<(), StateError> {
    vcpu.set_tsc_khz(khz).map_err(|e| error("KVM_SET_TSC_KHZ", index)(e.into()))
}

/// Winds the TSC of `vcpu` back by `cycles`, and its timer with it, and tells
/// the guest that it was stopped.
pub(crate) fn wind_back(
    vcpu: &VcpuFd,
    index: u8,
    rate: &Rate,
    cycles: u64,
) -> Result<(), StateError> {
    tell_of_stop(vcpu);
    if !rate.offset {
        return Ok(());
    }
    let offset = ioctl::tsc_offset(vcpu).map_err(error("KVM_GET_DEVICE_ATTR", index))?;
    ioctl::set_tsc_offset(vcpu, offset.wrapping_sub(cycles))
        .map_err(error("KVM_SET_DEVICE_ATTR", index))?;
    // KVM has armed a timer for the deadline by the old offset.
    match register(vcpu, index, MSR_TSC_DEADLINE)? {
        0 => Ok(()),
        deadline => set_register(vcpu, index, MSR_TSC_DEADLINE, deadline),
    }
}

/// Tells a guest with kvm-clock that it was stopped.
pub(crate) fn tell_of_stop(vcpu: &VcpuFd) {
    // Guests without kvm-clock are told nothing (EINVAL): they have no place
    // to look at.
    let _ = vcpu.kvmclock_ctrl();
}

fn register(vcpu: &VcpuFd, index: u8, msr: u32) -> Result<u64, StateError> {
    let entry = kvm_msr_entry { index: msr, ..Default::default() };
    let mut one = Msrs::from_entries(&[entry]).expect("one register fits");
    let count = vcpu.get_msrs(&mut one).map_err(|e| error("KVM_GET_MSRS", index)(e.into()))?;
    match count {
        1 => Ok(one.as_slice()[0].data),
        _ => Err(StateError::Msr { vcpu: index, msr, act: "read" }),
    }
}

fn set_register(vcpu: &VcpuFd, index: u8, msr: u32, data: u64) -> Result<(), StateError> {
    let entry = kvm_msr_entry { index: msr, data, ..Default::default() };
    let one = Msrs::from_entries(&[entry]).expect("one register fits");
    let count = vcpu.set_msrs(&one).map_err(|e| error("KVM_SET_MSRS", index)(e.into()))?;
    match count {
        1 => Ok(()),
        _ => Err(StateError::Msr { vcpu: index, msr, act: "written" }),
    }
}

fn body<'a>(sections: &'a Sections, name: &str, expected: usize) -> Result<&'a [u8], StateError> {
    let bytes = sections.body(name, VERSION)?;
    if bytes.len() != expected {
        return Err(StateError::Size { name: name.to_owned(), found: bytes.len(), expected });
    }
    Ok(bytes)
}

fn midpoint(from: u64, until: u64) -> u64 {
    from.wrapping_add(until.wrapping_sub(from) / 2)
}

fn error(call: &'static str, index: u8) -> impl FnOnce(std::io::Error) -> StateError {
    StateError::kvm(call, format!("vcpu {index}"))
}

fn machine_error(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |error| StateError::kvm(call, "the machine")(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(kvm_ns: u64, host_tsc: u64) -> Moment {
        Moment { kvm_ns, host_tsc }
    }

    fn rate(guest_khz: u32, host_khz: u32) -> Rate {
        Rate { guest_khz, host_khz, native: guest_khz == host_khz, offset: true }
    }

    /// What KVM computes.
    fn scale(host_tsc: u64, rate: &Rate) -> u64 {
        rate.between(0, host_tsc)
    }

    #[test]
    fn a_moment_comes_back_as_it_was() {
        let then = Moment { kvm_ns: 1, host_tsc: u64::MAX };
        let sections = Sections::new(vec![then.save(2_596_124)]).unwrap();
        assert_eq!(saved(&sections).unwrap(), (then, 2_596_124));
        let sections = Sections::new(vec![then.save(0)]).unwrap();
        assert!(matches!(saved(&sections), Err(StateError::Shape("tsc frequency"))));
    }

    proptest::proptest! {
        /// Over hosts of other TSCs and other frequencies: time stands still
        /// for the guest, and its TSCs differ by what they differed before.
        #[test]
        fn tscs_go_on_together(
            guest_khz in 1_000_000_u32..4_000_000,
            other_khz in proptest::option::of(1_000_000_u32..4_000_000),
            from_tsc in 0_u64..1 << 50,
            to_tsc in 0_u64..1 << 50,
            kvm_ns in 0_u64..1 << 50,
            passed_ns in 0_u64..1_000_000_000,
            offsets: [u64; 3],
        ) {
            let home = rate(guest_khz, guest_khz);
            let away = rate(guest_khz, other_khz.unwrap_or(guest_khz));
            let tsc = |offset: u64| Tsc { value: from_tsc.wrapping_add(offset), offset };
            let then = moment(kvm_ns, from_tsc);
            let now = moment(kvm_ns + passed_ns, to_tsc);
            let shell = Tsc { value: scale(to_tsc, &away).wrapping_add(7), offset: 7 };
            let shift = TscShift::new(away, then, tsc(offsets[0]), now, shell);
            for offset in offsets {
                let restored = scale(to_tsc, &away).wrapping_add(shift.offset_of(tsc(offset)));
                let expected = tsc(offset).value.wrapping_add(home.cycles(passed_ns));
                proptest::prop_assert_eq!(restored, expected);
            }
        }
    }

    #[test]
    fn cycles_are_counted_in_both_directions() {
        let scaled = rate(1_000_000, 2_000_000);
        assert_eq!(scaled.between(100, 300), 100);
        assert_eq!(scaled.between(300, 100) as i64, -100);
        assert_eq!(rate(5, 5).between(300, 100) as i64, -200);
        assert_eq!(scaled.cycles(1_000), 1_000);
        assert_eq!(rate(4_000_000, 1).cycles(u64::MAX / 8), u64::MAX / 8 * 4);
    }
}
