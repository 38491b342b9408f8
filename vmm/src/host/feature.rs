//! Features of CPUs: bits of CPUID, and their names.
//!
//! A [`Feature`] is one bit of a feature word; a [`Features`] is a set of them
//! and nothing else of CPUID. Names are those of Linux's `/proc/cpuinfo` where
//! it has one; a bit without a name is called by its place, `0x7.0.edx.21`.
//!
//! Bits: Intel SDM volume 2A, CPUID; AMD64 manual volume 3, appendix E; Linux
//! `Documentation/virt/kvm/x86/cpuid.rst` for KVM's own.

use std::{
    arch::x86_64::{__cpuid, __cpuid_count},
    fmt,
    ops::{BitAnd, BitOr, Sub},
    str::FromStr,
};

use thiserror::Error;

/// A register that CPUID writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A register of a leaf whose bits are features.
struct Word {
    function: u32,
    index: u32,
    register: Register,
    /// From bit 0: a name, `-` for a bit without one, `=` for a bit that AMD
    /// repeats from leaf 1, `.` for a bit that is no feature.
    names: &'static str,
}

use Register::{Eax, Ebx, Ecx, Edx};

const fn word(function: u32, index: u32, register: Register, names: &'static str) -> Word {
    Word { function, index, register, names }
}

const WORDS: [Word; 18] = [
    word(
        1,
        0,
        Ecx,
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm \
         - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave . avx f16c \
         rdrand hypervisor",
    ),
    word(
        1,
        0,
        Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush \
         - dts acpi mmx fxsr sse sse2 ss . tm ia64 pbe",
    ),
    word(6, 0, Eax, "dtherm ida arat"),
    word(
        7,
        0,
        Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm \
         zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt \
         clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    word(
        7,
        0,
        Ecx,
        "prefetchwt1 avx512vbmi umip pku . waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq \
         avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 . . . . . rdpid aeskle \
         bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    ),
    word(
        7,
        0,
        Edx,
        "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl \
         md_clear rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig \
         arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d \
         arch_capabilities core_capabilities ssbd",
    ),
    word(
        7,
        1,
        Eax,
        "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs \
         fsrc - - - - fred lkgs wrmsrns nmi_src amx_fp16 hreset avx_ifma - - lam msrlist",
    ),
    word(
        7,
        1,
        Edx,
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchiti \
         user_msr - uiret_uif cet_sss avx10",
    ),
    word(
        7,
        2,
        Edx,
        "intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no uclock_disable monitor_mitg_no",
    ),
    word(0xd, 1, Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    word(0x4000_0001, 0, Eax, KVM_NAMES),
    word(
        0x8000_0001,
        0,
        Ecx,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs \
         xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext \
         ptsc perfctr_llc mwaitx addr_mask_ext",
    ),
    word(
        0x8000_0001,
        0,
        Edx,
        "= = = = = = = = = = - syscall = = = = = = - mp nx - mmxext = = fxsr_opt pdpe1gb rdtscp \
         - lm 3dnowext 3dnow",
    ),
    word(0x8000_0007, 0, Edx, "ts fid vid ttp tm_amd stc mul100 hwpstate invariant_tsc cpb"),
    word(
        0x8000_0008,
        0,
        Ebx,
        "clzero irperf xsaveerptr invlpgb rdpru - mba - mcommit wbnoinvd - - ibpb int_wbinvd ibrs \
         stibp ibrs_always_on stibp_always_on prefer_ibrs ibrs_same_mode no_efer_lmsle \
         invlpgb_nested - ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no ibpb_ret brs",
    ),
    word(
        0x8000_0021,
        0,
        Eax,
        "no_nested_data_bp fs_gs_not_serialising lfence_rdtsc smm_pgcfg_lock - verw_clear \
         null_sel_clr_base upper_addr_ignore autoibrs no_smm_ctl amd_fsrs amd_fsrc - \
         prefetch_ctl - - - cpuid_user_dis epsf - - - - - - - - sbpb ibpb_brtype srso_no \
         srso_user_kernel_no",
    ),
    word(0x8000_0021, 0, Ecx, "- tsa_sq_no tsa_l1_no"),
    word(0x8000_0022, 0, Eax, "perfmon_v2 amd_lbr_v2"),
];

const KVM_NAMES: &str = "kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvm_clocksource2 \
     kvm_async_pf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush \
     kvm_async_pf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield kvm_async_pf_int \
     kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control - - - - - - \
     kvm_clocksource_stable";

/// The bits of leaf 1 that AMD repeats in leaf 0x8000_0001.
pub(crate) const REPEATED_BITS: u32 = 0x0183_f3ff;

/// A text that names no feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no feature of this name is known: `romulus doctor` and /proc/cpuinfo have the names")]
pub struct UnknownFeature;

/// One bit of CPUID that says what a CPU can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Feature {
    word: u8,
    bit: u8,
}

impl Feature {
    fn token(self) -> &'static str {
        let names = WORDS[usize::from(self.word)].names;
        names.split_ascii_whitespace().nth(usize::from(self.bit)).unwrap_or("-")
    }

    fn all() -> impl Iterator<Item = Self> {
        let words = 0..WORDS.len() as u8;
        let bits = words.flat_map(|word| (0..32).map(move |bit| Self { word, bit }));
        bits.filter(|feature| !matches!(feature.token(), "." | "="))
    }
}

impl FromStr for Feature {
    type Err = UnknownFeature;

    fn from_str(name: &str) -> Result<Self, UnknownFeature> {
        for (word, Word { names, .. }) in WORDS.iter().enumerate() {
            let mut tokens = names.split_ascii_whitespace();
            if let Some(bit) = tokens.position(|token| token == name && !"-=.".contains(token)) {
                return Ok(Self { word: word as u8, bit: bit as u8 });
            }
        }
        // A bit without a name.
        let placed = |feature: &Self| feature.token() == "-" && feature.to_string() == name;
        Self::all().find(placed).ok_or(UnknownFeature)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = &WORDS[usize::from(self.word)];
        match self.token() {
            "-" => {
                let register = format!("{:?}", word.register).to_lowercase();
                write!(f, "{:#x}.{}.{register}.{}", word.function, word.index, self.bit)
            }
            name => f.write_str(name),
        }
    }
}

/// A set of features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features([u32; WORDS.len()]);

impl Features {
    /// The features of these names, separated by spaces.
    ///
    /// # Panics
    ///
    /// If one is unknown: names come from tables of ours.
    pub(crate) fn named(names: &str) -> Self {
        let known = |name: &str| name.parse().unwrap_or_else(|_| panic!("no feature {name}"));
        names.split_ascii_whitespace().map(known).collect()
    }

    /// The features that leaves have; `register` reads one.
    pub(crate) fn read(register: impl Fn(u32, u32, Register) -> u32) -> Self {
        let mut features = Self::default();
        for (bits, word) in features.0.iter_mut().zip(&WORDS) {
            *bits = register(word.function, word.index, word.register);
        }
        features & Feature::all().collect()
    }

    /// What any program on this host sees.
    pub(crate) fn of_this_cpu() -> Self {
        Self::read(|function, index, register| {
            // Beyond the last leaf of a range, CPUID answers with another one.
            if function > __cpuid(function & 0xf000_0000).eax {
                return 0;
            }
            let leaf = __cpuid_count(function, index);
            [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx][register as usize]
        })
    }

    /// Hands every feature word to `set`, with the bits that are features.
    pub(crate) fn write(&self, mut set: impl FnMut(u32, u32, Register, u32, u32)) {
        let all: Self = Feature::all().collect();
        for ((bits, mask), word) in self.0.iter().zip(all.0).zip(&WORDS) {
            set(word.function, word.index, word.register, *bits, mask);
        }
    }

    /// Whether all of `other` are here.
    #[must_use]
    pub fn contain(&self, other: &Self) -> bool {
        (*other - *self).is_empty()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS.len()]
    }

    /// All of them, in the order of CPUID.
    pub fn iter(&self) -> impl Iterator<Item = Feature> {
        let bits = self.0;
        Feature::all()
            .filter(move |feature| bits[usize::from(feature.word)] >> feature.bit & 1 != 0)
    }

    /// Without `removed`, and without what cannot be there without them.
    pub(crate) fn without(self, removed: &Self) -> Self {
        let mut left = self - *removed;
        for (needed, needing) in NEEDED {
            let needed = Self::named(needed);
            if self.contain(&needed) && !left.contain(&needed) {
                left = left - Self::named(needing);
            }
        }
        left
    }
}

/// What cannot be used without something else: what is needed comes before
/// what needs it.
const NEEDED: [(&str, &str); 5] = [
    ("xsave", "xsaveopt xsavec xgetbv1 xsaves xfd avx pku mpx amx_tile xsaveerptr"),
    (
        "avx",
        "avx2 fma f16c vaes vpclmulqdq avx_vnni avx_ifma avx_vnni_int8 avx_vnni_int16 \
         avx_ne_convert xop fma4",
    ),
    ("avx2", "avx512f"),
    (
        "avx512f",
        "avx512dq avx512ifma avx512pf avx512er avx512cd avx512bw avx512vl avx512vbmi \
         avx512_vbmi2 avx512_vnni avx512_bitalg avx512_vpopcntdq avx512_4vnniw avx512_4fmaps \
         avx512_vp2intersect avx512_fp16 avx512_bf16 avx10",
    ),
    ("amx_tile", "amx_bf16 amx_int8 amx_fp16 amx_complex"),
];

impl FromIterator<Feature> for Features {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        let mut set = Self::default();
        for Feature { word, bit } in features {
            set.0[usize::from(word)] |= 1 << bit;
        }
        set
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }
}

impl BitAnd for Features {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }
}

impl Sub for Features {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_feature_has_one_name_and_is_found_by_it() {
        let names: BTreeSet<_> = Feature::all().map(|feature| feature.to_string()).collect();
        assert_eq!(names.len(), Feature::all().count());
        for feature in Feature::all() {
            assert_eq!(feature.to_string().parse(), Ok(feature));
        }
        assert_eq!("no_such".parse::<Feature>(), Err(UnknownFeature));
        assert!(WORDS.iter().all(|word| word.names.split_ascii_whitespace().count() <= 32));
    }

    /// Places by the manuals, so that a name lost from a list is noticed.
    #[test]
    fn names_are_at_their_places() {
        let places = [
            ("aes", 1, Ecx, 25),
            ("hypervisor", 1, Ecx, 31),
            ("pbe", 1, Edx, 31),
            ("arat", 6, Eax, 2),
            ("avx2", 7, Ebx, 5),
            ("avx512vl", 7, Ebx, 31),
            ("rdpid", 7, Ecx, 22),
            ("pks", 7, Ecx, 31),
            ("ibt", 7, Edx, 20),
            ("ssbd", 7, Edx, 31),
            ("msrlist", 7, Eax, 27),
            ("xsaves", 0xd, Eax, 3),
            ("kvm_clocksource_stable", 0x4000_0001, Eax, 24),
            ("topoext", 0x8000_0001, Ecx, 22),
            ("addr_mask_ext", 0x8000_0001, Ecx, 30),
            ("rdtscp", 0x8000_0001, Edx, 27),
            ("3dnow", 0x8000_0001, Edx, 31),
            ("invariant_tsc", 0x8000_0007, Edx, 8),
            ("ibpb", 0x8000_0008, Ebx, 12),
            ("amd_psfd", 0x8000_0008, Ebx, 28),
            ("srso_no", 0x8000_0021, Eax, 29),
        ];
        for (name, function, register, bit) in places {
            let feature: Feature = name.parse().unwrap();
            let word = &WORDS[usize::from(feature.word)];
            let found = (word.function, word.register, feature.bit);
            assert_eq!(found, (function, register, bit), "{name}");
        }
    }

    #[test]
    fn what_needs_a_feature_goes_with_it() {
        let all = Features::named("xsave avx avx2 avx512f avx512bw vaes aes pku");
        let left = all.without(&Features::named("avx"));
        assert_eq!(left, Features::named("xsave aes pku"));
        assert_eq!(all.without(&Features::default()), all);
        assert_eq!(all.without(&Features::named("xsave")), Features::named("aes"));
    }
}
