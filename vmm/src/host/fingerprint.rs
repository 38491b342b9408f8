//! What two hosts must have in common before one takes over the other's guest.
//!
//! All of it is what the *guest* sees: a host may have more. It goes to the
//! other host as [`Traits`], word by word, so that whoever refuses can name
//! what differs.

use std::{collections::BTreeSet, fmt};

use checkpoint::message::{Trait, Traits, difference};

use super::{
    Host, HostError, cpuid::CpuTable, feature::Features, guest_cpu::GuestCpu, model::CpuConfig,
};

/// What must match at the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// The guest's TSC frequency. It stays with the guest, wherever it goes.
    pub tsc_khz: u32,
    /// KVM's backend.
    pub backend: &'static str,
    /// Bytes of the extended state.
    pub xsave_bytes: u32,
    model: String,
    /// CPUID of vCPU 0.
    table: CpuTable,
    /// The model-specific registers that are saved.
    msrs: Vec<u32>,
    feature_msrs: Vec<(u32, u64)>,
    tsc_khz_possible: (u32, u32),
    /// What programs see where CPUID cannot be masked.
    unmasked: Option<Features>,
}

impl Fingerprint {
    /// The CPU's vendor, e.g. `AuthenticAMD`.
    #[must_use]
    pub fn cpu_vendor(&self) -> String {
        self.table.vendor()
    }

    /// The features that the guest sees.
    #[must_use]
    pub fn features(&self) -> Features {
        self.table.features()
    }

    /// The model-specific registers that are saved, rising.
    #[must_use]
    pub fn msrs(&self) -> &[u32] {
        &self.msrs
    }

    /// BLAKE3 of the CPUID leaves that the guest sees.
    #[must_use]
    pub fn cpuid_digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for ((function, index), registers) in self.table.leaves() {
            for word in [function, index].into_iter().chain(registers) {
                hasher.update(&word.to_le_bytes());
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// Why a guest of `primary` cannot go on here, in words, or `None`.
    #[must_use]
    pub fn mismatch(&self, primary: &Self) -> Option<String> {
        difference(&self.traits(), &primary.traits())
    }

    /// All of it, for the handshake.
    #[must_use]
    pub fn traits(&self) -> Traits {
        let (least, most) = self.tsc_khz_possible;
        let mut traits: Traits = [
            ("cpu vendor".to_owned(), self.cpu_vendor().into()),
            ("cpu model".to_owned(), self.model.clone().into()),
            ("cpu features".to_owned(), names(&self.features())),
            ("kvm backend".to_owned(), self.backend.into()),
            ("xsave bytes".to_owned(), self.xsave_bytes.to_string().into()),
            (
                "msrs".to_owned(),
                Trait::Needs(self.msrs.iter().map(|msr| format!("{msr:#x}")).collect()),
            ),
            (
                "tsc frequency (kHz)".to_owned(),
                Trait::Number {
                    value: self.tsc_khz.into(),
                    least: least.into(),
                    most: most.into(),
                },
            ),
        ]
        .into();
        for ((function, index), [a, b, c, d]) in self.table.without_features().leaves() {
            let name = format!("cpuid {function:#010x}.{index}");
            traits.insert(name, format!("{a:08x} {b:08x} {c:08x} {d:08x}").into());
        }
        for (msr, value) in &self.feature_msrs {
            traits.insert(format!("msr {msr:#x}"), format!("{value:#x}").into());
        }
        if let Some(unmasked) = &self.unmasked {
            traits.insert("cpu features that cannot be masked".to_owned(), names(unmasked));
        }
        traits
    }
}

fn names(features: &Features) -> Trait {
    let names: BTreeSet<_> = features.iter().map(|feature| feature.to_string()).collect();
    Trait::Words(names)
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (vendor, model) = (self.cpu_vendor(), &self.model);
        write!(f, "{} {vendor} {model} tsc {} kHz, cpuid ", self.backend, self.tsc_khz)?;
        self.cpuid_digest()[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a guest of `vcpus` vCPUs gets on this host, without making its VM: for
/// `romulus doctor` and for comparing hosts.
///
/// # Errors
///
/// [`HostError`] if KVM is not there, does not answer, or cannot provide the
/// CPU.
pub fn host_fingerprint(config: &CpuConfig, vcpus: u8) -> Result<Fingerprint, HostError> {
    let host = Host::open()?;
    let cpu = host.guest_cpu(config, 0)?;
    Ok(host.fingerprint(&cpu, vcpus))
}

impl Host {
    pub(crate) fn fingerprint(&self, cpu: &GuestCpu, vcpus: u8) -> Fingerprint {
        let capabilities = self.capabilities();
        let tsc_khz = capabilities.tsc_khz;
        Fingerprint {
            tsc_khz,
            backend: capabilities.backend.name(),
            xsave_bytes: cpu.xsave_bytes as u32,
            model: cpu.model.to_string(),
            table: cpu.table.of_vcpu(0, vcpus),
            msrs: cpu.msrs.clone(),
            feature_msrs: cpu.feature_msrs.clone(),
            tsc_khz_possible: capabilities.tsc_khz_possible(),
            unmasked: (!capabilities.cpuid_masks).then(Features::of_this_cpu),
        }
    }
}
