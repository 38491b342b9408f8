//! CPU models on real KVM: what guests see, what is refused, and that hosts
//! are compared by what guests see.

mod guest;

use guest::{Rig, config, elf, require_capability, require_kvm};
use romulus_vmm::{
    boot::BootProtocol,
    dirty::DirtyTracking,
    host::{
        Host, HostError,
        fingerprint::host_fingerprint,
        model::{CpuConfig, CpuModel, ModelError},
    },
    vm::{VmConfig, VmError},
};
use vm_memory::{Bytes, GuestAddress};

fn cpu(model: &str, without: &[&str]) -> CpuConfig {
    CpuConfig {
        model: model.parse().unwrap(),
        without: without.iter().map(|name| name.parse().unwrap()).collect(),
    }
}

fn machine(cpu: CpuConfig) -> VmConfig {
    VmConfig { cpu, ..config(1, DirtyTracking::Auto) }
}

/// All models that this host can provide.
fn models() -> Vec<CpuConfig> {
    let models = Host::open().unwrap().models().unwrap();
    let provided = models.into_iter().filter(|offer| offer.provided.is_ok());
    provided.map(|offer| CpuConfig { model: offer.model, without: vec![] }).collect()
}

/// What the guest of `rig` read from CPUID.
fn read_cpuid(rig: &Rig) -> Vec<[u32; 4]> {
    let ram = rig.vm.memory().memory();
    let word = |at: u64| ram.read_obj::<u32>(GuestAddress(guest::CPUID + at)).unwrap();
    (0..8).map(|leaf| [0, 4, 8, 12].map(|at| word(leaf * 16 + at))).collect()
}

#[test]
fn a_guest_of_every_model_sees_it_and_goes_on_in_another_vm() {
    if !require_kvm() {
        return;
    }
    let models = models();
    assert!(models.len() > 1, "every x86-64 host of a known vendor has a named model");
    for cpu in models {
        let model = cpu.model;
        let mut rig = Rig::new(&machine(cpu.clone()));
        rig.boot(&elf(guest::reading_cpuid(), false), BootProtocol::Auto);
        rig.vm.resume().unwrap();
        rig.await_count(0);
        rig.vm.pause().unwrap();
        if model != CpuModel::HOST {
            let brand = read_cpuid(&rig)[3..6].concat();
            let brand: Vec<u8> = brand.into_iter().flat_map(u32::to_le_bytes).collect();
            let brand = String::from_utf8_lossy(&brand).into_owned();
            assert_eq!(brand.trim_end(), format!("Romulus {model}"));
        }
        let (sections, image, count) = (rig.vm.save().unwrap(), rig.image(), rig.counter());
        let mut next = Rig::new(&machine(cpu));
        assert_eq!(next.vm.fingerprint(), rig.vm.fingerprint());
        next.set_image(&image);
        next.vm.restore(&sections).unwrap();
        next.vm.resume().unwrap();
        next.await_count(count);
    }
}

#[test]
fn a_guest_does_not_see_what_is_left_out() {
    if !require_capability("cpuid-masks") {
        return;
    }
    const SSE2: u32 = 1 << 26;
    let seen = |without: &[&str]| {
        let mut rig = Rig::new(&machine(cpu("host", without)));
        rig.boot(&elf(guest::reading_cpuid(), false), BootProtocol::Auto);
        rig.vm.resume().unwrap();
        rig.await_count(0);
        rig.vm.pause().unwrap();
        read_cpuid(&rig)[1][3] & SSE2
    };
    assert_eq!((seen(&[]), seen(&["sse2"])), (SSE2, 0));
}

#[test]
fn another_cpu_is_named_and_its_state_is_refused() {
    if !require_kvm() {
        return;
    }
    let ours = host_fingerprint(&cpu("host", &[]), 1).unwrap();
    let fewer = host_fingerprint(&cpu("host", &["sse2"]), 1).unwrap();
    let told = ours.mismatch(&fewer).unwrap();
    assert!(told.starts_with("cpu features differ: sse2 only here: "), "{told}");
    assert!(told.contains("vm.cpu"), "{told}");
    let told = fewer.mismatch(&ours).unwrap();
    assert!(told.starts_with("cpu features differ: sse2 only there: "), "{told}");
    let model = host_fingerprint(&cpu("x86-64-v1", &[]), 1).unwrap();
    let told = ours.mismatch(&model).unwrap();
    assert!(told.contains("cpu model differs: host here, x86-64-v1 there"), "{told}");

    let mut rig = Rig::new(&machine(cpu("host", &["sse2"])));
    rig.boot(&elf(guest::counting(), false), BootProtocol::Auto);
    let sections = rig.vm.save().unwrap();
    let refused = Rig::small().vm.restore(&sections).unwrap_err().to_string();
    assert!(refused.contains("other cpu features"), "{refused}");
}

#[test]
fn a_model_of_another_vendor_is_refused() {
    if !require_kvm() {
        return;
    }
    let vendor = host_fingerprint(&cpu("host", &[]), 1).unwrap().cpu_vendor();
    let other = if vendor == "AuthenticAMD" { "intel-haswell" } else { "amd-zen2" };
    let error = Rig::try_new(&machine(cpu(other, &[]))).err().expect("a refusal");
    let refused = matches!(
        error,
        VmError::Host(HostError::Model(ModelError::Vendor { model, .. }))
            if model.to_string() == other
    );
    assert!(refused, "{error}");
    assert!(error.to_string().contains(&vendor), "{error}");
}

/// Asked on every CPU of the host, over and over.
#[test]
fn a_host_has_one_fingerprint() {
    if !require_kvm() {
        return;
    }
    let ours = Rig::small().vm.fingerprint().clone();
    assert!(!ours.msrs().is_empty());
    let cpus = (0..libc::CPU_SETSIZE as usize).filter(|cpu| pinned(*cpu, || ()).is_some());
    let mut asked = 0;
    for cpu_index in cpus {
        for model in models() {
            let ask = || host_fingerprint(&model, 1).unwrap();
            let first = pinned(cpu_index, ask).unwrap();
            assert_eq!(pinned(cpu_index, ask).unwrap(), first);
            if model.model == CpuModel::HOST {
                assert_eq!(first, ours, "on cpu {cpu_index}");
                assert_eq!(first.cpuid_digest(), ours.cpuid_digest());
            }
            assert_eq!(first.mismatch(&first), None);
            asked += 1;
        }
    }
    assert!(asked > 0);
    let two = host_fingerprint(&CpuConfig::default(), 2).unwrap();
    assert!(two.mismatch(&ours).is_some(), "the number of vcpus is seen by guests");
}

/// What `act` gives on a thread that runs on `cpu` only; `None` without it.
fn pinned<T: Send>(cpu: usize, act: impl FnOnce() -> T + Send) -> Option<T> {
    let pinned = move || {
        // SAFETY: the set is initialised by zeros, and the call reads it.
        let result = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
        };
        (result == 0).then(act)
    };
    std::thread::scope(|scope| scope.spawn(pinned).join().unwrap())
}
