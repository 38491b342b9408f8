//! The CPU of one guest on this host: its table, and what of its state there
//! is to save.

use std::{io, ops::RangeInclusive};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};

use super::{
    Host, HostError,
    cpuid::CpuTable,
    feature::Features,
    model::{CpuConfig, CpuModel, ModelError},
    scratch::Scratch,
};

/// Bytes of `kvm_xsave`, the least that KVM reads and writes.
const XSAVE_BYTES_MIN: usize = 4096;
/// The TSC is saved as a clock, not as a register: see `state::clock`.
const MSR_TSC: u32 = 0x10;

/// Registers that a guest can change and `KVM_GET_MSR_INDEX_LIST` may leave out:
/// memory types by range (variable ranges, fixed ranges, the default), and what
/// is debugged (`DEBUGCTL`). Intel SDM volume 4, table 2-2.
const UNLISTED_MSRS: [RangeInclusive<u32>; 6] =
    [0x1d9..=0x1d9, 0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];

/// Registers that say what a CPU can do, and the feature that has them.
const FEATURE_MSRS: [(u32, &str); 4] =
    [(0x10a, "arch_capabilities"), (0x345, "pdcm"), (0xce, ""), (0xcf, "core_capabilities")];

/// What vCPUs of a guest are on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestCpu {
    pub(crate) model: CpuModel,
    pub(crate) table: CpuTable,
    /// Bytes of extended state that a guest can have.
    pub(crate) xsave_bytes: usize,
    /// Components of that state, a bit each.
    pub(crate) xsave_components: u64,
    /// Registers that are saved, rising.
    pub(crate) msrs: Vec<u32>,
    /// Registers that say what the CPU can do, with their values.
    pub(crate) feature_msrs: Vec<(u32, u64)>,
}

/// A model, and whether a host can provide it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelOffer {
    /// The model.
    pub model: CpuModel,
    /// What the host lacks, if it cannot.
    pub provided: Result<(), ModelError>,
}

impl GuestCpu {
    /// CPUID of vCPU `index` of `vcpus`.
    pub(crate) fn cpuid(&self, index: u8, vcpus: u8) -> CpuId {
        self.table.of_vcpu(index, vcpus).to_kvm()
    }
}

impl Host {
    /// The CPU of a guest with RAM up to `memory_end`.
    ///
    /// # Errors
    ///
    /// [`HostError::Model`] if this host cannot provide it.
    pub(crate) fn guest_cpu(
        &self,
        config: &CpuConfig,
        memory_end: u64,
    ) -> Result<GuestCpu, HostError> {
        let table = CpuModel::resolve(config, &self.offered()?, self.capabilities(), memory_end)?;
        let scratch = Scratch::with_cpu(self.kvm(), &table)?;
        let ask =
            |call| move |error: kvm_ioctls::Error| HostError::Ask { call, source: error.into() };
        let list = self.kvm().get_msr_index_list().map_err(ask("KVM_GET_MSR_INDEX_LIST"))?;
        let mut msrs = list.as_slice().to_vec();
        msrs.extend(UNLISTED_MSRS.into_iter().flatten());
        msrs.retain(|msr| *msr != MSR_TSC && scratch.can_restore(*msr));
        msrs.sort_unstable();
        msrs.dedup();
        let features = table.features();
        let feature_msrs = FEATURE_MSRS
            .iter()
            .filter(|(_, feature)| features.contain(&Features::named(feature)))
            .filter_map(|(msr, _)| Some((*msr, scratch.msr(*msr)?)));
        // Where masks do not hold, programs may use all that the host has.
        let (xsave_bytes, xsave_components) = if self.capabilities().cpuid_masks {
            (table.xsave_bytes() as usize, table.xsave_components())
        } else {
            (self.capabilities().xsave_bytes, u64::MAX)
        };
        Ok(GuestCpu {
            model: config.model,
            xsave_bytes: xsave_bytes.max(XSAVE_BYTES_MIN),
            xsave_components,
            msrs,
            feature_msrs: feature_msrs.collect(),
            table,
        })
    }

    /// All models, and whether this host can provide them.
    ///
    /// # Errors
    ///
    /// [`HostError::Ask`] if KVM does not tell what it supports.
    pub fn models(&self) -> Result<Vec<ModelOffer>, HostError> {
        let offered = self.offered()?;
        let offer = |model| {
            let config = CpuConfig { model, without: Vec::new() };
            let provided = CpuModel::resolve(&config, &offered, self.capabilities(), 0);
            ModelOffer { model, provided: provided.map(drop) }
        };
        Ok(CpuModel::all().map(offer).collect())
    }

    /// The features that KVM offers and no guest is shown.
    ///
    /// # Errors
    ///
    /// [`HostError::Ask`] if KVM does not tell what it supports.
    pub fn masked(&self) -> Result<Features, HostError> {
        let offered = self.offered()?;
        let shown = CpuModel::resolve(&CpuConfig::default(), &offered, self.capabilities(), 0)?;
        Ok(offered.features() - shown.features())
    }

    fn offered(&self) -> Result<CpuTable, HostError> {
        let cpuid = self.kvm().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.map_err(|error| HostError::Ask {
            call: "KVM_GET_SUPPORTED_CPUID",
            source: io::Error::from(error),
        })?;
        Ok(CpuTable::from_kvm(&cpuid))
    }
}
