//! Models on made-up hosts.

use super::*;
use crate::host::Backend;

/// What every KVM of today offers.
const KVM: &str = "kvm_clocksource kvm_nop_io_delay kvm_clocksource2 kvm_async_pf kvm_steal_time \
     kvm_pv_eoi kvm_pv_unhalt kvm_pv_tlb_flush kvm_pv_send_ipi kvm_poll_control \
     kvm_pv_sched_yield kvm_async_pf_int kvm_clocksource_stable";
/// `/proc/cpuinfo` of a Milan host, as far as KVM passes it on.
const MILAN: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 \
     clflush mmx fxsr sse sse2 syscall nx mmxext fxsr_opt pdpe1gb rdtscp lm pni pclmulqdq ssse3 \
     fma cx16 pcid sse4_1 sse4_2 x2apic movbe popcnt aes xsave avx f16c rdrand lahf_lm cmp_legacy \
     svm cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw topoext perfctr_core fsgsbase \
     tsc_adjust bmi1 avx2 smep bmi2 erms invpcid rdseed adx smap clflushopt clwb sha_ni umip pku \
     vaes vpclmulqdq rdpid fsrm xsaveopt xsavec xgetbv1 xsaves clzero xsaveerptr wbnoinvd arat \
     ibpb ibrs stibp amd_ssbd lfence_rdtsc null_sel_clr_base srso_no invariant_tsc";
/// What a Genoa host has more.
const GENOA: &str = "avx512f avx512bw avx512cd avx512dq avx512vl avx512ifma avx512vbmi \
     avx512_vbmi2 avx512_vnni avx512_bitalg avx512_vpopcntdq avx512_bf16 gfni autoibrs";

fn host(vendor: &[u8; 12], features: &[&str], signature: u32) -> CpuTable {
    let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
    let mut table = CpuTable::default();
    table.set(0, 0, [0x20, word(0), word(8), word(4)]);
    table.set(1, 0, [signature, 0x0502_0800, LEAF1_ECX_OSXSAVE, 0]);
    table.set(4, 0, [0x121, 1, 2, 3]);
    table.set(0xf, 0, [0, 255, 0, 2]);
    table.set(0x14, 0, [1, 2, 3, 4]);
    table.set(0x15, 0, [2, 200, 24_000_000, 0]);
    table.set(0x8000_0008, 0, [0x3030, 0, 0x7001, 0]);
    table.set(0x8000_000a, 0, [1, 2, 3, 4]);
    table.set(0x4000_0000, 0, [0x4000_0001, 1, 2, 3]);
    table.set(XSAVE_LEAF, 0, [0x2e7, 576, 2440, 0]);
    table.set(XSAVE_LEAF, 1, [0, 900, 0x1800, 0]);
    for (component, bytes, at) in
        [(2, 256, 576), (5, 64, 832), (6, 512, 896), (7, 1024, 1408), (9, 8, 2432)]
    {
        table.set(XSAVE_LEAF, component, [bytes, at, 0, 0]);
    }
    let features = features.iter().map(|names| Features::named(names));
    table.set_features(&features.fold(Features::named(KVM), |all, some| all | some));
    table
}

fn milan() -> CpuTable {
    host(b"AuthenticAMD", &[MILAN], 0x00a0_0f11)
}

fn genoa() -> CpuTable {
    host(b"AuthenticAMD", &[MILAN, GENOA], 0x00a1_0f11)
}

fn icelake() -> CpuTable {
    let amd = "mmxext fxsr_opt cmp_legacy svm cr8_legacy sse4a misalignsse osvw topoext \
         perfctr_core clzero xsaveerptr ibpb ibrs stibp amd_ssbd lfence_rdtsc null_sel_clr_base \
         srso_no autoibrs avx512_bf16";
    let mut table = host(
        b"GenuineIntel",
        &[MILAN, GENOA, "vmx shstk ibt intel_pt arch_capabilities spec_ctrl pdcm"],
        0x0006_06a6,
    );
    table.set_features(&(table.features() - Features::named(amd)));
    table
}

fn capabilities() -> Capabilities {
    Capabilities {
        backend: Backend::Svm,
        dirty_ring_entries_max: 0,
        dirty_ring_acq_rel: false,
        manual_protect: 3,
        sregs2: true,
        xsave_bytes: 4096,
        xsave2: true,
        clock_flags: 0xe,
        tsc_control: true,
        tsc_deadline: true,
        tsc_khz: 2_000_000,
        tsc_offset: true,
        cpuid_masks: true,
        vcpus_max: 64,
    }
}

fn config(model: &str, without: &str) -> CpuConfig {
    CpuConfig { model: model.parse().unwrap(), without: Features::named(without).iter().collect() }
}

fn resolve(model: &str, offered: &CpuTable) -> Result<CpuTable, ModelError> {
    CpuModel::resolve(&config(model, ""), offered, &capabilities(), 1 << 30)
}

#[test]
fn models_have_names_and_are_found_by_them() {
    for model in CpuModel::all() {
        assert_eq!(model.to_string().parse(), Ok(model));
    }
    let told = "x86-64-v9".parse::<CpuModel>().unwrap_err().to_string();
    assert!(told.contains("use one of host, x86-64-v1, "), "{told}");
    for template in TEMPLATES {
        let features = template.features();
        assert!((features & Features::named(NEVER)).is_empty(), "{}", template.name);
        assert_eq!(features.without(&Features::named("pks")), features, "{}", template.name);
        let base = template.base.map(Template::features).unwrap_or_default();
        assert!(features.contain(&base));
    }
}

/// The psABI's table 3.1, word for word.
#[test]
fn levels_have_what_the_psabi_wants() {
    let wanted = [
        (&V1, "cmov cx8 fpu fxsr mmx syscall sse sse2"),
        (&V2, "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"),
        (&V3, "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"),
        (&V4, "avx512f avx512bw avx512cd avx512dq avx512vl"),
    ];
    for (template, features) in wanted {
        assert!(template.features().contain(&Features::named(features)), "{}", template.name);
    }
    for (template, beyond) in [(&V1, "pni"), (&V2, "avx"), (&V3, "avx512f")] {
        assert!(!template.features().contain(&Features::named(beyond)), "{}", template.name);
    }
}

/// The point of it all: unlike hosts, one guest.
#[test]
fn a_named_model_is_the_same_on_all_hosts_of_a_vendor() {
    for model in ["x86-64-v1", "x86-64-v2", "x86-64-v3", "amd-zen2", "amd-zen3"] {
        let (old, new) = (resolve(model, &milan()).unwrap(), resolve(model, &genoa()).unwrap());
        assert_eq!(old, new, "{model}");
        assert_eq!(old.of_vcpu(2, 4), new.of_vcpu(2, 4));
    }
    assert_ne!(resolve("host", &milan()), resolve("host", &genoa()));
    for model in ["x86-64-v4", "intel-haswell", "intel-skylake", "intel-icelake"] {
        let table = resolve(model, &icelake()).unwrap();
        assert!(table.features().contain(&model_features(model)), "{model}");
    }
}

fn model_features(model: &str) -> Features {
    TEMPLATES.iter().find(|template| template.name == model).unwrap().features()
}

/// Exact: what the model has, and what is passed on, and not a bit more.
#[test]
fn a_named_model_has_its_features_and_no_others() {
    for template in TEMPLATES {
        let offered = if template.amd.is_some() { genoa() } else { icelake() };
        let table = resolve(template.name, &offered).unwrap();
        let expected = template.features() | offered.features() & Features::named(PASSED_ON);
        assert_eq!(table.features(), expected, "{}", template.name);
        assert!(!table.features().contain(&Features::named("srso_no")));
        assert_eq!(table.get(7, 0)[0], u32::from(table.get(7, 1) != [0; 4]));
        assert_eq!(table.get(0x8000_0008, 0)[0], 0x3028, "{}", template.name);
        assert_eq!(table.get(0x15, 0), [0; 4], "the host's frequencies are the host's");
        let brand: Vec<u8> = (0x8000_0002..=0x8000_0004)
            .flat_map(|leaf| table.get(leaf, 0))
            .flat_map(u32::to_le_bytes)
            .collect();
        let brand = String::from_utf8(brand).unwrap();
        assert_eq!(brand.trim_end(), format!("Romulus {}", template.name));
    }
}

#[test]
fn state_components_are_those_of_the_model() {
    let cases = [
        ("x86-64-v2", 0, 0),
        ("x86-64-v3", 0x7, 832),
        ("amd-zen2", 0x7, 832),
        ("amd-zen3", 0x207, 2440),
        ("amd-zen4", 0x2e7, 2440),
        ("host", 0x2e7, 2440),
    ];
    for (model, components, bytes) in cases {
        let table = resolve(model, &genoa()).unwrap();
        assert_eq!(table.get(XSAVE_LEAF, 0)[0], components, "{model}");
        assert_eq!(table.xsave_bytes(), bytes, "{model}");
    }
}

#[test]
fn what_a_host_lacks_is_told() {
    let told = resolve("amd-zen4", &milan()).unwrap_err().to_string();
    assert!(told.starts_with("this host cannot provide cpu model amd-zen4, it lacks "), "{told}");
    assert!(told.contains("avx512f") && told.contains("gfni"), "{told}");
    assert!(!told.contains("sha_ni"), "{told}");
    let told = resolve("intel-skylake", &milan()).unwrap_err().to_string();
    assert!(told.contains("intel-skylake is not for a CPU of AuthenticAMD"), "{told}");
    let other = host(b"CentaurHauls", &[MILAN], 0x700);
    assert!(matches!(resolve("x86-64-v2", &other), Err(ModelError::Vendor { .. })));
    assert!(resolve("host", &other).is_ok());

    let mut narrow = milan();
    narrow.set(0x8000_0008, 0, [0x3027, 0, 0, 0]);
    narrow.set_features(&milan().features());
    let told = resolve("x86-64-v3", &narrow).unwrap_err().to_string();
    assert!(told.contains("it lacks physical-addresses-of-40-bits"), "{told}");
    let large =
        CpuModel::resolve(&config("x86-64-v3", ""), &milan(), &capabilities(), (1 << 42) + 1);
    assert_eq!(large.unwrap().get(0x8000_0008, 0)[0] & 0xff, 43);

    let mut componentless = genoa();
    let [_, b, c, d] = componentless.get(XSAVE_LEAF, 0);
    componentless.set(XSAVE_LEAF, 0, [0x207, b, c, d]);
    let told = resolve("amd-zen4", &componentless).unwrap_err().to_string();
    assert!(told.contains("xsave-component-5 xsave-component-6"), "{told}");
}

#[test]
fn host_is_all_but_what_is_never_shown() {
    let (offered, table) = (icelake(), resolve("host", &icelake()).unwrap());
    let masked = offered.features() - table.features();
    assert_eq!(masked, Features::named("vmx shstk ibt intel_pt"));
    assert_eq!(resolve("host", &genoa()).unwrap().get(0x8000_000a, 0), [0; 4]);
    assert_eq!(table.get(0x14, 0), [0; 4]);
    assert_eq!(table.get(0xf, 0), [0; 4]);
    assert_eq!(table.get(1, 0)[2] & LEAF1_ECX_OSXSAVE, 0, "that is the guest's to set");
    assert_eq!(table.get(XSAVE_LEAF, 1)[2], 0, "supervisor components are not saved");
    assert!(table.features().contain(&Features::named("tsc_deadline_timer hypervisor")));
}

#[test]
fn a_feature_can_be_left_out_of_any_model() {
    for model in ["host", "amd-zen4"] {
        let config = config(model, "avx512f ibpb");
        let table = CpuModel::resolve(&config, &genoa(), &capabilities(), 0).unwrap();
        let left = table.features();
        assert!((left & Features::named("avx512f avx512bw avx512_bf16 ibpb")).is_empty());
        assert!(left.contain(&Features::named("avx2 ibrs")));
        assert_eq!(table.get(XSAVE_LEAF, 0)[0], 0x207, "{model}");
    }
    // What is left out need not be there.
    let without = "avx512f gfni";
    let zen4 = CpuModel::resolve(&config("amd-zen4", without), &milan(), &capabilities(), 0);
    assert!(zen4.is_ok(), "{zen4:?}");
}

#[test]
fn invariant_tsc_is_shown_where_the_tsc_can_be_set() {
    let invariant = Features::named("invariant_tsc");
    assert!(resolve("host", &milan()).unwrap().features().contain(&invariant));
    assert!(!resolve("amd-zen2", &milan()).unwrap().features().contain(&invariant));
    let without = Capabilities { tsc_offset: false, ..capabilities() };
    let table = CpuModel::resolve(&config("host", ""), &milan(), &without, 0).unwrap();
    assert!(!table.features().contain(&invariant));
}

/// PVM: programs use what the host has, whatever CPUID says.
#[test]
fn all_state_is_there_where_masks_do_not_hold() {
    let bare = Capabilities { cpuid_masks: false, ..capabilities() };
    for model in ["host", "x86-64-v1", "x86-64-v3"] {
        let table = CpuModel::resolve(&config(model, ""), &genoa(), &bare, 0).unwrap();
        assert_eq!(table.get(XSAVE_LEAF, 0)[0], 0x2e7, "{model}");
    }
}
