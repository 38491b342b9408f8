//! CPU models: what a guest sees of a CPU, so that several hosts can show the
//! same.
//!
//! `host` is all that this host's KVM offers, less what is never shown. A named
//! model is the same table on every host that can provide it, whatever else
//! the host's CPU can do: its features, a signature, caches and addresses of
//! fixed sizes, and the state components (XSAVE) of its features. A host that
//! lacks any of it is refused, with what is missing.
//!
//! | model | is |
//! |---|---|
//! | `x86-64-v1` to `x86-64-v4` | the levels of the x86-64 psABI, with what every server CPU of that level has |
//! | `amd-zen2` to `amd-zen4`, `intel-haswell` to `intel-icelake` | what all CPUs of that kind and later ones of the vendor have |
//!
//! Three rules beside the lists:
//!
//! - **Never shown**, by no model: features whose state is not saved (a
//!   hypervisor in the guest, enclaves, control-flow enforcement, ...).
//! - **Passed on**, if the host has them: what guests need to protect
//!   themselves from speculative execution. Two hosts that differ in them (in
//!   microcode, mostly) are told apart at the handshake, never silently
//!   weakened. What says that a CPU is immune is not passed on: the next host
//!   may not be.
//! - **Invariant TSC** is shown by `host` only, and only where KVM can set the
//!   guest's TSC. Guests of other models keep time by kvm-clock, which KVM
//!   corrects for each host's frequency.
//!
//! Levels: x86-64 psABI, section 3.1.1. Vendors do not mix: a guest patches
//! itself for one.

use std::{fmt, str::FromStr};

use thiserror::Error;

use super::{
    Capabilities,
    cpuid::{CpuTable, Registers, XSAVE_LEAF},
    feature::{Feature, Features},
};

/// What a guest is to see of the CPU.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuConfig {
    /// The model.
    pub model: CpuModel,
    /// Features that it is to go without.
    pub without: Vec<Feature>,
}

/// A CPU model.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuModel(Option<&'static Template>);

/// A text that names no model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no cpu model: use one of {}", names())]
pub struct UnknownModel;

/// Why this host cannot show a model to a guest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ModelError {
    /// The model is another vendor's, or no vendor's that is known.
    #[error(
        "cpu model {model} is not for a CPU of {vendor}: choose a model that `romulus doctor` lists"
    )]
    Vendor {
        /// The model.
        model: CpuModel,
        /// The host's.
        vendor: String,
    },
    /// The host lacks some of it.
    #[error(
        "this host cannot provide cpu model {model}, it lacks {}: choose a model that `romulus doctor` lists", lacking.join(" ")
    )]
    Lacking {
        /// The model.
        model: CpuModel,
        /// What the host lacks.
        lacking: Vec<String>,
    },
}

#[derive(Debug, PartialEq, Eq)]
struct Template {
    name: &'static str,
    /// The model that this one is more than.
    base: Option<&'static Self>,
    adds: &'static str,
    amd: Option<Signature>,
    intel: Option<Signature>,
}

/// Leaf 1, eax: family, model and stepping.
type Signature = u32;

const ZEN1: Signature = 0x0080_0f12;
const WESTMERE: Signature = 0x0002_06c2;
const HASWELL: Signature = 0x0003_06f2;
const SKYLAKE: Signature = 0x0005_0654;

static V1: Template = Template {
    name: "x86-64-v1",
    base: None,
    adds: "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr \
           sse sse2 syscall nx lm x2apic tsc_deadline_timer tsc_adjust arat hypervisor \
           kvm_clocksource kvm_nop_io_delay kvm_clocksource2 kvm_steal_time kvm_pv_eoi \
           kvm_pv_unhalt kvm_pv_tlb_flush kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield \
           kvm_clocksource_stable",
    amd: Some(ZEN1),
    intel: Some(WESTMERE),
};
static V2: Template = Template {
    name: "x86-64-v2",
    base: Some(&V1),
    adds: "pni ssse3 sse4_1 sse4_2 popcnt cx16 lahf_lm",
    amd: Some(ZEN1),
    intel: Some(WESTMERE),
};
static V3: Template = Template {
    name: "x86-64-v3",
    base: Some(&V2),
    adds: "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave xsaveopt aes pclmulqdq rdrand fsgsbase \
           smep rdtscp pdpe1gb",
    amd: Some(ZEN1),
    intel: Some(HASWELL),
};
static V4: Template = Template {
    name: "x86-64-v4",
    base: Some(&V3),
    adds: "avx512f avx512bw avx512cd avx512dq avx512vl smap adx rdseed clflushopt clwb xsavec \
           xgetbv1 xsaves erms pcid invpcid pku 3dnowprefetch",
    amd: Some(0x00a1_0f11),
    intel: Some(SKYLAKE),
};
static ZEN2: Template = Template {
    name: "amd-zen2",
    base: Some(&V3),
    adds: "mmxext fxsr_opt cr8_legacy sse4a misalignsse 3dnowprefetch topoext smap adx rdseed \
           clflushopt clwb sha_ni umip rdpid xsavec xgetbv1 xsaves clzero xsaveerptr",
    amd: Some(0x0083_0f10),
    intel: None,
};
static ZEN3: Template = Template {
    name: "amd-zen3",
    base: Some(&ZEN2),
    adds: "erms fsrm pcid invpcid pku vaes vpclmulqdq",
    amd: Some(0x00a0_0f11),
    intel: None,
};
static ZEN4: Template = Template {
    name: "amd-zen4",
    base: Some(&ZEN3),
    adds: "avx512f avx512bw avx512cd avx512dq avx512vl avx512ifma avx512vbmi avx512_vbmi2 \
           avx512_vnni avx512_bitalg avx512_vpopcntdq avx512_bf16 gfni",
    amd: Some(0x00a1_0f11),
    intel: None,
};
static INTEL_HASWELL: Template = Template {
    name: "intel-haswell",
    base: Some(&V3),
    adds: "erms pcid invpcid",
    amd: None,
    intel: Some(HASWELL),
};
static INTEL_SKYLAKE: Template =
    Template { name: "intel-skylake", base: Some(&V4), adds: "", amd: None, intel: Some(SKYLAKE) };
static INTEL_ICELAKE: Template = Template {
    name: "intel-icelake",
    base: Some(&V4),
    adds: "avx512ifma avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg avx512_vpopcntdq gfni \
           vaes vpclmulqdq sha_ni umip rdpid fsrm",
    amd: None,
    intel: Some(0x0006_06a6),
};

static TEMPLATES: [&Template; 10] =
    [&V1, &V2, &V3, &V4, &ZEN2, &ZEN3, &ZEN4, &INTEL_HASWELL, &INTEL_SKYLAKE, &INTEL_ICELAKE];
/// Features whose state is not saved, or which only hypervisors of hosts use.
const NEVER: &str = "vmx svm skinit smx sgx sgx_keys sgx_lc intel_pt shstk ibt cet_sss arch_lbr \
     amd_lbr_v2 mpx cqm rdt_a uintr fred enqcmd pks lwp ibs monitor hybrid_cpu";
/// What guests need to protect themselves from speculative execution.
const PASSED_ON: &str = "spec_ctrl intel_stibp ssbd md_clear ibpb ibrs stibp amd_ssbd virt_ssbd \
     lfence_rdtsc sbpb ibpb_brtype";
/// Leaves that come with features never shown, or name the host's topology.
const NEVER_LEAVES: [u32; 14] = [
    5,
    0xf,
    0x10,
    0x12,
    0x14,
    0x1a,
    0x1b,
    0x1c,
    0x1f,
    0x8000_000a,
    0x8000_001b,
    0x8000_001f,
    0x8000_0020,
    0x8000_0026,
];

/// Bits of a physical address, of named models: what all have.
const PHYSICAL_BITS: u32 = 40;
const VIRTUAL_BITS: u32 = 48;
const LEAF1_ECX_OSXSAVE: u32 = 1 << 27;
const LEAF1_EBX_CLFLUSH_64: u32 = 8 << 8;

/// Caches of named models (leaves 4 and 0x8000_001d): 32 KiB of data and of
/// instructions, 1 MiB, 16 MiB, lines of 64 bytes.
const CACHES: [Registers; 4] = [
    [0x121, 0x01c0_003f, 0x3f, 0],
    [0x122, 0x01c0_003f, 0x3f, 0],
    [0x143, 0x03c0_003f, 0x3ff, 0],
    [0x163, 0x03c0_003f, 0x3fff, 0],
];
/// The same as AMD's older leaves have it, with TLBs.
const CACHES_L1: Registers = [0xff48_ff40, 0xff48_ff40, 0x2008_0140, 0x2008_0140];
const CACHES_L2: Registers = [0x5c00_2200, 0x6c00_4200, 0x0400_8140, 0x0080_9140];
/// Intel's leaf 2: "ask leaf 4".
const CACHES_IN_LEAF_4: u32 = 0xff01;

impl CpuModel {
    /// All that this host's KVM offers.
    pub const HOST: Self = Self(None);

    /// All models, the smaller ones first.
    pub fn all() -> impl Iterator<Item = Self> {
        let named = TEMPLATES.into_iter().map(|template| Self(Some(template)));
        std::iter::once(Self::HOST).chain(named)
    }

    /// The table of a guest with RAM up to `memory_end`, of what a host with
    /// `capabilities` offers.
    pub(crate) fn resolve(
        config: &CpuConfig,
        offered: &CpuTable,
        capabilities: &Capabilities,
        memory_end: u64,
    ) -> Result<CpuTable, ModelError> {
        let offered = offered_to_guests(offered, capabilities);
        let mut table = match config.model.0 {
            None => offered.clone(),
            Some(template) => template.fill(&offered, memory_end, config)?,
        };
        let without = config.without.iter().copied().collect();
        let features = table.features().without(&without);
        table.set_features(&features);
        if capabilities.cpuid_masks {
            table.set_xsave(&offered);
        } else {
            // Programs use the host's CPU as it is: all of its state is saved.
            for (place, registers) in
                offered.leaves().filter(|((function, _), _)| *function == XSAVE_LEAF)
            {
                table.set(place.0, place.1, registers);
            }
        }
        Ok(table)
    }
}

/// What is never shown is taken away, and what KVM does not tell is added.
fn offered_to_guests(offered: &CpuTable, capabilities: &Capabilities) -> CpuTable {
    let mut table = offered.clone();
    NEVER_LEAVES.into_iter().for_each(|function| table.remove(function));
    let mut features = table.features().without(&Features::named(NEVER));
    features = features | Features::named("hypervisor");
    if capabilities.tsc_deadline {
        features = features | Features::named("tsc_deadline_timer");
    }
    if !capabilities.tsc_offset {
        features = features - Features::named("invariant_tsc");
    }
    table.set_features(&features);
    let mut leaf = table.get(1, 0);
    leaf[2] &= !LEAF1_ECX_OSXSAVE;
    table.set(1, 0, leaf);
    table
}

impl Template {
    fn features(&self) -> Features {
        let base = self.base.map(Self::features).unwrap_or_default();
        base | Features::named(self.adds)
    }

    fn fill(
        &'static self,
        offered: &CpuTable,
        memory_end: u64,
        config: &CpuConfig,
    ) -> Result<CpuTable, ModelError> {
        let (model, vendor) = (CpuModel(Some(self)), offered.vendor());
        let signature = match vendor.as_str() {
            "AuthenticAMD" => self.amd,
            "GenuineIntel" => self.intel,
            _ => None,
        };
        let Some(signature) = signature else {
            return Err(ModelError::Vendor { model, vendor });
        };
        let without = config.without.iter().copied().collect();
        let features = self.features().without(&without);
        let memory_bits = u64::BITS - memory_end.saturating_sub(1).leading_zeros();
        let physical_bits = PHYSICAL_BITS.max(memory_bits);
        let lacking = lacking(&features, offered, physical_bits);
        if !lacking.is_empty() {
            return Err(ModelError::Lacking { model, lacking });
        }
        let mut table = frame(offered, signature, self.name, physical_bits);
        let passed_on = offered.features() & Features::named(PASSED_ON);
        table.set_features(&(features | passed_on));
        if table.get(7, 1) != [0; 4] {
            let [_, b, c, d] = table.get(7, 0);
            table.set(7, 0, [1, b, c, d]);
        }
        if !table.features().contain(&Features::named("topoext")) {
            [0x8000_001d, 0x8000_001e].into_iter().for_each(|function| table.remove(function));
        }
        Ok(table)
    }
}

/// What of the features and addresses of a model `offered` has not.
fn lacking(features: &Features, offered: &CpuTable, physical_bits: u32) -> Vec<String> {
    let mut lacking: Vec<_> =
        (*features - offered.features()).iter().map(|feature| feature.to_string()).collect();
    if lacking.is_empty() {
        let components = offered.lacking_components(features);
        lacking.extend(components.iter().map(|it| format!("xsave-component-{it}")));
    }
    let [sizes, ..] = offered.get(0x8000_0008, 0);
    if sizes & 0xff < physical_bits {
        lacking.push(format!("physical-addresses-of-{physical_bits}-bits"));
    }
    if sizes >> 8 & 0xff < VIRTUAL_BITS {
        lacking.push(format!("virtual-addresses-of-{VIRTUAL_BITS}-bits"));
    }
    lacking
}

/// A table without features: everything else that a CPU has.
fn frame(offered: &CpuTable, signature: Signature, name: &str, physical_bits: u32) -> CpuTable {
    let amd = offered.is_amd();
    let [_, b, c, d] = offered.get(0, 0);
    let mut table = CpuTable::default();
    table.set(0, 0, [XSAVE_LEAF, b, c, d]);
    table.set(1, 0, [signature, LEAF1_EBX_CLFLUSH_64, 0, 0]);
    table.set(7, 0, [0; 4]);
    table.set(0x4000_0000, 0, offered.get(0x4000_0000, 0));
    let last = if amd { 0x8000_0021 } else { 0x8000_0008 };
    let [b, c, d] = if amd { [b, c, d] } else { [0; 3] };
    table.set(0x8000_0000, 0, [last, b, c, d]);
    table.set(0x8000_0008, 0, [VIRTUAL_BITS << 8 | physical_bits, 0, 0, 0]);
    let brand = format!("{:48}", format!("Romulus {name}"));
    for (leaf, words) in (0x8000_0002..).zip(brand.as_bytes().chunks(16)) {
        let word = |at: usize| u32::from_le_bytes(words[at..at + 4].try_into().expect("four"));
        table.set(leaf, 0, [word(0), word(4), word(8), word(12)]);
    }
    if amd {
        table.set(0x8000_0005, 0, CACHES_L1);
        table.set(0x8000_0006, 0, CACHES_L2);
        table.set(0x8000_001e, 0, [0; 4]);
    } else {
        table.set(2, 0, [CACHES_IN_LEAF_4, 0, 0, 0]);
    }
    let caches = if amd { 0x8000_001d } else { 4 };
    (0..).zip(CACHES).for_each(|(index, cache)| table.set(caches, index, cache));
    table.set(caches, CACHES.len() as u32, [0; 4]);
    table
}

fn names() -> String {
    CpuModel::all().map(|model| model.to_string()).collect::<Vec<_>>().join(", ")
}

impl fmt::Debug for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.map_or("host", |template| template.name))
    }
}

impl FromStr for CpuModel {
    type Err = UnknownModel;

    fn from_str(name: &str) -> Result<Self, UnknownModel> {
        Self::all().find(|model| model.to_string() == name).ok_or(UnknownModel)
    }
}

#[cfg(test)]
mod tests;
