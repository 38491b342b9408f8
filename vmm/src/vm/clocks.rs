//! The guest's time, as its VM keeps it: what `state::clock` does with one
//! clock, done with all of them in the right order.

use std::time::Instant;

use checkpoint::Sections;
use kvm_ioctls::VmFd;

use super::VmError;
use crate::{
    host::Capabilities,
    state::{
        self, StateError,
        clock::{self, Moment, Rate, Tsc, TscShift},
    },
    vcpu::{VcpuError, Vcpus},
};

/// The clocks of one VM.
#[derive(Debug)]
pub(super) struct Clocks {
    capabilities: Capabilities,
    rate: Rate,
    /// Since when the guest does not run.
    stopped: Instant,
}

impl Clocks {
    /// Of a shell, which runs at the host's frequency.
    pub(super) fn new(capabilities: Capabilities) -> Self {
        let rate = Rate::new(capabilities.tsc_khz, &capabilities);
        Self { capabilities, rate, stopped: Instant::now() }
    }

    /// How fast the guest's TSCs run.
    pub(super) fn rate(&self) -> Rate {
        self.rate
    }

    /// The guest stops.
    pub(super) fn stop(&mut self) {
        self.stopped = Instant::now();
    }

    /// Whether clocks of a checkpoint can go on here.
    pub(super) fn check(&self, sections: &Sections) -> Result<SavedClocks, StateError> {
        let (moment, guest_khz) = clock::saved(sections)?;
        let (least, most) = self.capabilities.tsc_khz_possible();
        if !(least..=most).contains(&guest_khz) {
            return Err(StateError::TscFrequency { guest_khz, least, most });
        }
        let first = Tsc::saved(sections, &state::tsc_section(0))?;
        Ok(SavedClocks { moment, guest_khz, first })
    }

    /// Sets kvm-clock and the frequency of the TSCs, which belong to the guest
    /// from then on, and tells how each vCPU sets its TSC. vCPUs must be
    /// parked.
    pub(super) fn restore(
        &mut self,
        vm: &VmFd,
        vcpus: &Vcpus,
        saved: &SavedClocks,
    ) -> Result<TscShift, VmError> {
        self.set_rate(vcpus, Rate::new(saved.guest_khz, &self.capabilities))?;
        clock::set(vm, saved.moment.kvm_ns)?;
        let now = Moment::now(vm)?;
        let shell = vcpus.first_tsc(now.host_tsc, self.rate)?;
        Ok(TscShift::new(self.rate, saved.moment, saved.first, now, shell))
    }

    fn set_rate(&mut self, vcpus: &Vcpus, rate: Rate) -> Result<(), VcpuError> {
        let scaled_to = |rate: &Rate| if rate.native { rate.host_khz } else { rate.guest_khz };
        if scaled_to(&rate) != scaled_to(&self.rate) {
            vcpus.set_tsc_khz(scaled_to(&rate))?;
        }
        self.rate = rate;
        Ok(())
    }

    /// After a long pause, lets all clocks go on from where they stopped. vCPUs
    /// must be parked.
    pub(super) fn resume(&self, vm: &VmFd, vcpus: &Vcpus) -> Result<(), VmError> {
        let stopped = self.stopped.elapsed();
        if stopped < clock::LONG_PAUSE {
            return Ok(());
        }
        tracing::info!(?stopped, "the guest's clocks go on from where they stopped");
        let ns = u64::try_from(stopped.as_nanos()).unwrap_or(u64::MAX);
        let now = Moment::now(vm)?;
        clock::set(vm, now.kvm_ns.saturating_sub(ns))?;
        Ok(vcpus.wind_back(self.rate.cycles(ns), self.rate)?)
    }
}

/// What a checkpoint has of clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SavedClocks {
    /// When it was taken.
    pub(super) moment: Moment,
    guest_khz: u32,
    /// vCPU 0's TSC.
    first: Tsc,
}

impl SavedClocks {
    /// The same clocks, with TSCs as fast as `rate` says.
    pub(super) fn at(self, rate: Rate) -> Self {
        Self { guest_khz: rate.guest_khz, ..self }
    }
}
