//! The CPUID leaves that guests see.
//!
//! They are what KVM supports here, with the topology of this guest: one
//! package, one thread per core, APIC id = vCPU index. KVM fills some leaves
//! from whichever CPU asks; all of those are overwritten, so that the same
//! host always gives the same leaves (they are part of the fingerprint).
//!
//! Leaf numbers: Intel SDM volume 2A, CPUID; AMD64 manual volume 3, appendix E;
//! KVM's own from 0x4000_0000 on are kept (kvm-clock).

use std::io;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

use super::{Host, HostError};

const LEAF1_EBX_LOGICAL_SHIFT: u32 = 16;
const LEAF1_EBX_APIC_ID_SHIFT: u32 = 24;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;

impl Host {
    /// The leaves of vCPU `index` of `vcpus`.
    ///
    /// # Errors
    ///
    /// [`HostError::Ask`] if KVM does not tell what it supports.
    pub(crate) fn cpuid(&self, index: u8, vcpus: u8) -> Result<CpuId, HostError> {
        let asked = self.kvm().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let mut cpuid = asked.map_err(|error| HostError::Ask {
            call: "KVM_GET_SUPPORTED_CPUID",
            source: io::Error::from(error),
        })?;
        let tsc_deadline = self.capabilities().tsc_deadline;
        for entry in cpuid.as_mut_slice() {
            set_topology(entry, u32::from(index), u32::from(vcpus));
            if entry.function == 1 && tsc_deadline {
                entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
            }
        }
        Ok(cpuid)
    }
}

/// Writes the guest's topology over the host's.
fn set_topology(entry: &mut kvm_cpuid_entry2, index: u32, vcpus: u32) {
    // Bits that hold an APIC id below `vcpus`.
    let id_bits = vcpus.next_power_of_two().trailing_zeros();
    match entry.function {
        1 => {
            entry.ebx &= 0xffff;
            entry.ebx |= vcpus << LEAF1_EBX_LOGICAL_SHIFT | index << LEAF1_EBX_APIC_ID_SHIFT;
            entry.ecx |= LEAF1_ECX_HYPERVISOR;
            if vcpus > 1 {
                entry.edx |= LEAF1_EDX_HTT;
            } else {
                entry.edx &= !LEAF1_EDX_HTT;
            }
        }
        // Caches: no sharing between cores below level 3.
        4 | 0x8000_001d => {
            let sharing = if entry.eax >> 5 & 7 >= 3 { vcpus - 1 } else { 0 };
            let cores = if entry.function == 4 { (vcpus - 1) << 26 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | cores;
        }
        // Extended topology: threads of a core, then cores of the package.
        0xb | 0x1f => {
            let (shift, count, kind) = match entry.index {
                0 => (0, 1, 1),
                1 => (id_bits, vcpus, 2),
                _ => (0, 0, 0),
            };
            (entry.eax, entry.ebx, entry.ecx) = (shift, count, kind << 8 | entry.index);
            entry.edx = index;
        }
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | id_bits << 12 | (vcpus - 1),
        // AMD: extended APIC id; one thread per core, one node.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (index, index, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        let all = u32::MAX;
        kvm_cpuid_entry2 {
            function,
            index,
            eax: all,
            ebx: all,
            ecx: all,
            edx: all,
            ..Default::default()
        }
    }

    #[test]
    fn leaves_name_their_cpu() {
        let mut first = leaf(1, 0);
        set_topology(&mut first, 3, 4);
        assert_eq!(first.ebx >> 16, 0x0304);
        let mut cores = leaf(0xb, 1);
        set_topology(&mut cores, 3, 4);
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 4, 0x201, 3));
        let mut amd = leaf(0x8000_0008, 0);
        set_topology(&mut amd, 3, 5);
        assert_eq!(amd.ecx & 0xffff, 0xf00 | 3 << 12 | 4);
    }
}
