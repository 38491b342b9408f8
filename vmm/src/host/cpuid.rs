//! CPUID as a table: of KVM's offer, and of a guest.
//!
//! KVM fills some leaves from whichever CPU asks (APIC ids, the topology); all
//! of those are written over by [`CpuTable::of_vcpu`], so that the same host
//! always gives the same table. The guest has one package, one thread per core
//! and APIC id = vCPU index.
//!
//! Leaf numbers: Intel SDM volume 2A, CPUID; AMD64 manual volume 3, appendix E.

use std::collections::BTreeMap;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::feature::{Features, REPEATED_BITS, Register};

/// `[eax, ebx, ecx, edx]`.
pub(crate) type Registers = [u32; 4];

/// The leaf of processor state components (XSAVE).
pub(crate) const XSAVE_LEAF: u32 = 0xd;
/// Bytes of x87, SSE and the header, which every area has.
const XSAVE_BYTES_MIN: u32 = 576;

const LEAF1_EBX_LOGICAL_SHIFT: u32 = 16;
const LEAF1_EBX_APIC_ID_SHIFT: u32 = 24;
const LEAF1_EDX_HTT: u32 = 1 << 28;
/// Leaves of which each index is a leaf of its own.
const INDEXED: [u32; 4] = [4, 7, 0xb, 0x8000_001d];

/// State components and the features that have them.
const COMPONENTS: [(u32, &str); 6] =
    [(2, "avx"), (5, "avx512f"), (6, "avx512f"), (7, "avx512f"), (9, "pku"), (17, "amx_tile")];
/// x87 and SSE; the second part of AMX comes with the first.
const COMPONENTS_ALWAYS: u32 = 0b11;
const COMPONENT_AMX_DATA: u32 = 18;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leaf {
    registers: Registers,
    indexed: bool,
}

/// Leaves by function and index. What is not there is zero.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct CpuTable(BTreeMap<(u32, u32), Leaf>);

impl CpuTable {
    pub(crate) fn from_kvm(cpuid: &CpuId) -> Self {
        let leaves = cpuid.as_slice().iter().map(|entry| {
            let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
            let indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
            ((entry.function, entry.index), Leaf { registers, indexed })
        });
        Self(leaves.collect())
    }

    pub(crate) fn to_kvm(&self) -> CpuId {
        let entries = self.0.iter().map(|(&(function, index), leaf)| {
            let [eax, ebx, ecx, edx] = leaf.registers;
            let flags = if leaf.indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
        });
        let entries: Vec<_> = entries.collect();
        CpuId::from_entries(&entries).expect("as many leaves as KVM offered, and a few")
    }

    pub(crate) fn get(&self, function: u32, index: u32) -> Registers {
        self.0.get(&(function, index)).map_or([0; 4], |leaf| leaf.registers)
    }

    pub(crate) fn set(&mut self, function: u32, index: u32, registers: Registers) {
        let known = self.0.range((function, 0)..=(function, u32::MAX)).next();
        let indexed =
            known.map_or(INDEXED.contains(&function) || function == XSAVE_LEAF, |(_, l)| l.indexed);
        self.0.insert((function, index), Leaf { registers, indexed });
    }

    /// Takes a leaf away, with all its indices.
    pub(crate) fn remove(&mut self, function: u32) {
        self.0.retain(|(other, _), _| *other != function);
    }

    /// The leaves that are not all zero.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = ((u32, u32), Registers)> {
        let leaves = self.0.iter().map(|(place, leaf)| (*place, leaf.registers));
        leaves.filter(|(_, registers)| *registers != [0; 4])
    }

    /// The CPU's vendor, e.g. `AuthenticAMD`.
    pub(crate) fn vendor(&self) -> String {
        let [_, b, c, d] = self.get(0, 0);
        String::from_utf8_lossy(&[b, d, c].map(u32::to_le_bytes).concat()).into_owned()
    }

    pub(crate) fn is_amd(&self) -> bool {
        self.vendor() == "AuthenticAMD"
    }

    pub(crate) fn features(&self) -> Features {
        Features::read(|function, index, register| self.get(function, index)[register as usize])
    }

    /// Makes `features` those of the table. What is no feature stays.
    pub(crate) fn set_features(&mut self, features: &Features) {
        features.write(|function, index, register, bits, mask| {
            let mut registers = self.get(function, index);
            let old = registers[register as usize];
            registers[register as usize] = old & !mask | bits;
            if registers != [0; 4] || self.0.contains_key(&(function, index)) {
                self.set(function, index, registers);
            }
        });
        let mut extended = self.get(0x8000_0001, 0);
        let repeated = if self.is_amd() { self.get(1, 0)[Register::Edx as usize] } else { 0 };
        extended[Register::Edx as usize] &= !REPEATED_BITS;
        extended[Register::Edx as usize] |= repeated & REPEATED_BITS;
        self.set(0x8000_0001, 0, extended);
    }

    /// The table without the bits that are features: what else a guest sees.
    pub(crate) fn without_features(&self) -> Self {
        let mut rest = self.clone();
        rest.set_features(&Features::default());
        rest
    }

    /// Writes the leaves of state components anew: those that `offered` has
    /// and the features of this table need. Supervisor components are left
    /// out: their state is not saved.
    pub(crate) fn set_xsave(&mut self, offered: &Self) {
        let features = self.features();
        let instructions = self.get(XSAVE_LEAF, 1)[0];
        self.remove(XSAVE_LEAF);
        if !features.contain(&Features::named("xsave")) {
            return;
        }
        let mut components = COMPONENTS_ALWAYS;
        for (component, feature) in COMPONENTS {
            if features.contain(&Features::named(feature)) {
                components |= 1 << component;
            }
        }
        if components >> (COMPONENT_AMX_DATA - 1) & 1 != 0 {
            components |= 1 << COMPONENT_AMX_DATA;
        }
        let components = components & offered.get(XSAVE_LEAF, 0)[0];
        let mut bytes = XSAVE_BYTES_MIN;
        for component in (2..32).filter(|component| components >> component & 1 != 0) {
            let leaf = offered.get(XSAVE_LEAF, component);
            bytes = bytes.max(leaf[0] + leaf[1]);
            self.set(XSAVE_LEAF, component, leaf);
        }
        // KVM keeps ebx: the bytes of what is enabled at the moment.
        self.set(XSAVE_LEAF, 0, [components, XSAVE_BYTES_MIN, bytes, 0]);
        self.set(XSAVE_LEAF, 1, [instructions, 0, 0, 0]);
    }

    /// The state components that `features` need and this table does not offer.
    pub(crate) fn lacking_components(&self, features: &Features) -> Vec<u32> {
        let offered = self.get(XSAVE_LEAF, 0)[0];
        let needed = COMPONENTS
            .iter()
            .filter(|(_, feature)| features.contain(&Features::named(feature)))
            .map(|(component, _)| *component);
        needed.filter(|component| offered >> component & 1 == 0).collect()
    }

    /// Bytes of a guest's extended state.
    pub(crate) fn xsave_bytes(&self) -> u32 {
        self.get(XSAVE_LEAF, 0)[Register::Ecx as usize]
    }

    /// Components of a guest's extended state, a bit each.
    pub(crate) fn xsave_components(&self) -> u64 {
        let [low, _, _, high] = self.get(XSAVE_LEAF, 0);
        u64::from(high) << 32 | u64::from(low | COMPONENTS_ALWAYS)
    }

    /// The table of vCPU `index` of `vcpus`.
    pub(crate) fn of_vcpu(&self, index: u8, vcpus: u8) -> Self {
        let (index, vcpus) = (u32::from(index), u32::from(vcpus));
        let amd = self.is_amd();
        let mut table = self.clone();
        // Extended topology: threads of a core, then cores of the package.
        let cores = [bits_of(vcpus), vcpus, 2 << 8 | 1, index];
        for function in [0xb, 0x1f] {
            table.remove(function);
        }
        table.set(0xb, 0, [0, 1, 1 << 8, index]);
        table.set(0xb, 1, cores);
        table.set(0xb, 2, [0, 0, 2, index]);
        for ((function, _), leaf) in &mut table.0 {
            set_topology(*function, &mut leaf.registers, index, vcpus, amd);
        }
        table
    }
}

/// Bits that hold an APIC id below `vcpus`.
fn bits_of(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

/// Writes the guest's topology over the host's.
fn set_topology(function: u32, registers: &mut Registers, index: u32, vcpus: u32, amd: bool) {
    let [eax, ebx, ecx, edx] = registers;
    let last_id = vcpus.next_power_of_two() - 1;
    match function {
        1 => {
            *ebx &= 0xffff;
            *ebx |= vcpus << LEAF1_EBX_LOGICAL_SHIFT | index << LEAF1_EBX_APIC_ID_SHIFT;
            if vcpus > 1 {
                *edx |= LEAF1_EDX_HTT;
            } else {
                *edx &= !LEAF1_EDX_HTT;
            }
        }
        // Caches, if there is one: no sharing between cores below level 3.
        4 | 0x8000_001d if *eax & 0x1f != 0 => {
            let sharing = if *eax >> 5 & 7 >= 3 { last_id } else { 0 };
            let cores = if function == 4 { last_id << 26 } else { 0 };
            *eax = *eax & 0x3fff | sharing << 14 | cores;
        }
        0x8000_0008 if amd => *ecx = *ecx & !0xf0ff | bits_of(vcpus) << 12 | (vcpus - 1),
        // AMD: extended APIC id; one thread per core, one node.
        0x8000_001e => (*eax, *ebx, *ecx) = (index, index, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(leaves: &[(u32, u32)]) -> CpuTable {
        let mut table = CpuTable::default();
        for (function, index) in leaves {
            table.set(*function, *index, [u32::MAX; 4]);
        }
        table
    }

    fn amd(mut table: CpuTable) -> CpuTable {
        let [b, d, c] = [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes);
        table.set(0, 0, [0x10, b, c, d]);
        table
    }

    #[test]
    fn leaves_name_their_cpu() {
        let all = amd(table(&[(1, 0), (4, 0), (0xb, 0), (0x1f, 0), (0x8000_0008, 0)]));
        let third = all.of_vcpu(3, 5);
        assert_eq!(third.get(1, 0)[1] >> 16, 0x0305);
        assert_eq!(third.get(0xb, 0), [0, 1, 0x100, 3]);
        assert_eq!(third.get(0xb, 1), [3, 5, 0x201, 3]);
        assert_eq!(third.get(0x1f, 0), [0; 4]);
        assert_eq!(third.get(0x8000_0008, 0)[2] & 0xffff, 0xf00 | 3 << 12 | 4);
        assert_eq!(third.get(4, 0)[0] >> 26, 7, "ids of cores");
        // Whatever the host's CPU was that answered.
        let other = amd(table(&[(1, 0), (4, 0), (0xb, 0), (0xb, 1), (0x8000_0008, 0)]));
        assert_eq!(other.of_vcpu(3, 5), third);
        assert_eq!(third.of_vcpu(1, 5), all.of_vcpu(1, 5));
    }

    #[test]
    fn a_table_comes_back_from_kvm_as_it_was() {
        let all = amd(table(&[(1, 0), (7, 0), (7, 1), (0xd, 0), (0x8000_0001, 0)]));
        assert_eq!(CpuTable::from_kvm(&all.to_kvm()), all);
        assert_eq!(all.vendor(), "AuthenticAMD");
    }

    #[test]
    fn state_components_are_those_of_the_features() {
        let mut offered = CpuTable::default();
        offered.set(XSAVE_LEAF, 0, [0x2e7, 0, 0, 0]);
        offered.set(XSAVE_LEAF, 1, [0xf, 0, 0x1800, 0]);
        let sizes = [(2, 256, 576), (5, 64, 832), (6, 512, 896), (7, 1024, 1408), (9, 8, 2432)];
        for (component, bytes, at) in sizes {
            offered.set(XSAVE_LEAF, component, [bytes, at, 0, 0]);
        }
        let cases = [
            ("", 0, 0),
            ("xsave", 0b11, 576),
            ("xsave avx xsaveopt", 0b111, 832),
            ("xsave avx pku", 0x207, 2440),
            ("xsave avx avx512f", 0xe7, 2432),
        ];
        for (features, components, bytes) in cases {
            let mut table = CpuTable::default();
            table.set_features(&Features::named(features));
            table.set_xsave(&offered);
            assert_eq!(table.get(XSAVE_LEAF, 0)[0], components, "{features}");
            assert_eq!(table.xsave_bytes(), bytes, "{features}");
            assert_eq!(table.xsave_components(), u64::from(components.max(0b11)), "{features}");
            assert_eq!(table.get(XSAVE_LEAF, 1)[2], 0, "supervisor state is not saved");
            let there = table.get(XSAVE_LEAF, 9) != [0; 4];
            assert_eq!(there, features.contains("pku"));
            assert_eq!(table.features(), Features::named(features));
        }
    }

    #[test]
    fn features_and_the_rest_are_the_whole() {
        let all = amd(table(&[(1, 0), (7, 0), (0x8000_0001, 0), (0x8000_0008, 0)]));
        let (features, rest) = (all.features(), all.without_features());
        assert!(rest.features().is_empty());
        assert_eq!(rest.get(1, 0)[0], u32::MAX, "the signature is no feature");
        let mut again = rest.clone();
        again.set_features(&features);
        assert_eq!(again.features(), features);
        let repeated = again.get(0x8000_0001, 0)[3] & REPEATED_BITS;
        assert_eq!(repeated, again.get(1, 0)[3] & REPEATED_BITS);
    }
}
