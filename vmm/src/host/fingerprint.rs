//! What two hosts must have in common before one takes over the other's guest.

use std::fmt;

use kvm_bindings::CpuId;

use super::{Host, HostError};
use crate::state::VcpuShape;

/// TSC frequencies within this many parts per million are the same: the kernel
/// itself does not scale below it (`tsc_tolerance_ppm`).
pub const TSC_TOLERANCE_PPM: u64 = 250;

/// What must match at the handshake. Compare with [`Fingerprint::mismatch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// The CPU's vendor, e.g. `AuthenticAMD`.
    pub cpu_vendor: String,
    /// BLAKE3 of the CPUID leaves that the guest sees.
    pub cpuid_digest: [u8; 32],
    /// Bytes of the extended state.
    pub xsave_bytes: u32,
    /// The model-specific registers that are saved.
    pub msrs: Vec<u32>,
    /// The guest's TSC frequency.
    pub tsc_khz: u32,
    /// KVM's backend.
    pub backend: &'static str,
}

impl Fingerprint {
    /// The first difference that keeps a guest of `self` from going on at
    /// `other`, in words.
    #[must_use]
    pub fn mismatch(&self, other: &Self) -> Option<String> {
        if self.cpu_vendor != other.cpu_vendor {
            return Some(format!("cpu vendor {} and {}", self.cpu_vendor, other.cpu_vendor));
        }
        if self.backend != other.backend {
            return Some(format!("kvm backend {} and {}", self.backend, other.backend));
        }
        if self.cpuid_digest != other.cpuid_digest {
            return Some("cpu features differ (compare `romulus doctor` of both hosts)".into());
        }
        if self.xsave_bytes != other.xsave_bytes {
            return Some(format!("xsave sizes {} and {}", self.xsave_bytes, other.xsave_bytes));
        }
        if let Some(msr) = self.msrs.iter().find(|msr| !other.msrs.contains(msr)) {
            return Some(format!("msr {msr:#x} cannot be restored there"));
        }
        if !tsc_matches(self.tsc_khz, other.tsc_khz) {
            return Some(format!("tsc frequencies {} and {} kHz", self.tsc_khz, other.tsc_khz));
        }
        None
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} tsc {} kHz, cpuid ", self.backend, self.cpu_vendor, self.tsc_khz)?;
        self.cpuid_digest[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Whether two TSC frequencies are the same to a guest.
#[must_use]
pub fn tsc_matches(a_khz: u32, b_khz: u32) -> bool {
    u64::from(a_khz.abs_diff(b_khz)) * 1_000_000 <= u64::from(a_khz) * TSC_TOLERANCE_PPM
}

/// What a guest of `vcpus` vCPUs gets on this host, without making its VM: for
/// `romulus doctor` and for comparing hosts.
///
/// # Errors
///
/// [`HostError`] if KVM is not there or does not answer.
pub fn host_fingerprint(vcpus: u8) -> Result<Fingerprint, HostError> {
    let host = Host::open()?;
    let (shape, tsc_khz) = VcpuShape::probe(&host)?;
    Ok(host.fingerprint(&host.cpuid(0, vcpus)?, &shape.msrs, tsc_khz))
}

impl Host {
    pub(crate) fn fingerprint(&self, cpuid: &CpuId, msrs: &[u32], tsc_khz: u32) -> Fingerprint {
        Fingerprint {
            cpu_vendor: vendor(cpuid),
            cpuid_digest: digest(cpuid),
            xsave_bytes: self.capabilities().xsave_bytes as u32,
            msrs: msrs.to_vec(),
            tsc_khz,
            backend: self.capabilities().backend.name(),
        }
    }
}

fn vendor(cpuid: &CpuId) -> String {
    let leaf = cpuid.as_slice().iter().find(|entry| entry.function == 0);
    leaf.map_or_else(String::new, |leaf| {
        let bytes = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn digest(cpuid: &CpuId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for entry in cpuid.as_slice() {
        let words =
            [entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx];
        words.iter().for_each(|word| {
            hasher.update(&word.to_le_bytes());
        });
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_named() {
        let ours = Fingerprint {
            cpu_vendor: "AuthenticAMD".into(),
            cpuid_digest: [1; 32],
            xsave_bytes: 4096,
            msrs: vec![0x10, 0x1b],
            tsc_khz: 2_000_000,
            backend: "svm",
        };
        assert_eq!(ours.mismatch(&ours), None);
        let near = Fingerprint { tsc_khz: 2_000_400, ..ours.clone() };
        assert_eq!(ours.mismatch(&near), None);
        let far = Fingerprint { tsc_khz: 2_001_000, ..ours.clone() };
        assert_eq!(ours.mismatch(&far).unwrap(), "tsc frequencies 2000000 and 2001000 kHz");
        let fewer = Fingerprint { msrs: vec![0x10], ..ours.clone() };
        assert_eq!(ours.mismatch(&fewer).unwrap(), "msr 0x1b cannot be restored there");
        assert_eq!(fewer.mismatch(&ours), None);
    }
}
