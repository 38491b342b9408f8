//! A VM that never runs: what KVM tells only of one that is there.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::{HostError, cpuid::CpuTable};
use crate::ioctl;

/// IA32_TIME_STAMP_COUNTER (Intel SDM volume 4, table 2-2).
const MSR_TSC: u32 = 0x10;
/// An offset that no measurement takes for noise: minutes on any host.
const TSC_OFFSET_TRIED: u64 = 1 << 40;

/// One vCPU in a VM of its own.
pub(crate) struct Scratch {
    vcpu: VcpuFd,
    /// Held for as long as its vCPU.
    _vm: VmFd,
}

impl Scratch {
    pub(crate) fn new(kvm: &Kvm) -> Result<Self, HostError> {
        let vm = kvm.create_vm().map_err(ask("KVM_CREATE_VM"))?;
        vm.create_irq_chip().map_err(ask("KVM_CREATE_IRQCHIP"))?;
        let vcpu = vm.create_vcpu(0).map_err(ask("KVM_CREATE_VCPU"))?;
        Ok(Self { vcpu, _vm: vm })
    }

    /// Makes it a CPU with `table`.
    pub(crate) fn with_cpu(kvm: &Kvm, table: &CpuTable) -> Result<Self, HostError> {
        let scratch = Self::new(kvm)?;
        let cpuid = table.of_vcpu(0, 1).to_kvm();
        scratch.vcpu.set_cpuid2(&cpuid).map_err(ask("KVM_SET_CPUID2"))?;
        Ok(scratch)
    }

    /// The host's TSC frequency as KVM has it, in kHz.
    pub(crate) fn tsc_khz(&self) -> Result<u32, HostError> {
        self.vcpu.get_tsc_khz().map_err(ask("KVM_GET_TSC_KHZ"))
    }

    /// Whether KVM has the attribute for the TSC's offset, and setting it
    /// moves the TSC: on PVM the call succeeds and does nothing.
    pub(crate) fn tsc_offset_works(&self) -> bool {
        let moved = || {
            let before = self.msr(MSR_TSC)?;
            let offset = ioctl::tsc_offset(&self.vcpu).ok()?;
            let tried = offset.wrapping_add(TSC_OFFSET_TRIED);
            ioctl::set_tsc_offset(&self.vcpu, tried).ok()?;
            Some(self.msr(MSR_TSC)?.wrapping_sub(before))
        };
        moved().is_some_and(|moved| (TSC_OFFSET_TRIED..2 * TSC_OFFSET_TRIED).contains(&moved))
    }

    /// A model-specific register, if KVM gives it.
    pub(crate) fn msr(&self, msr: u32) -> Option<u64> {
        let entry = kvm_msr_entry { index: msr, ..Default::default() };
        let mut one = Msrs::from_entries(&[entry]).ok()?;
        let count = self.vcpu.get_msrs(&mut one).ok()?;
        (count == 1).then(|| one.as_slice()[0].data)
    }

    /// Whether a register can be read and written back: KVM lists some that it
    /// refuses.
    pub(crate) fn can_restore(&self, msr: u32) -> bool {
        let Some(data) = self.msr(msr) else { return false };
        let entry = kvm_msr_entry { index: msr, data, ..Default::default() };
        let Ok(one) = Msrs::from_entries(&[entry]) else { return false };
        matches!(self.vcpu.set_msrs(&one), Ok(1))
    }
}

fn ask(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> HostError {
    move |error| HostError::Ask { call, source: error.into() }
}
