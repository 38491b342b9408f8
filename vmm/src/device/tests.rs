//! All devices together, on KVM and a real tap.

use checkpoint::output::Mode;

use super::*;
use fixture::{in_new_network, ip, require_tun};

fn require_kvm() -> Option<kvm_ioctls::Kvm> {
    let kvm = kvm_ioctls::Kvm::new();
    if let Err(error) = &kvm {
        let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|word| word == "kvm"), "kvm is required: {error}");
        eprintln!("skipped: needs /dev/kvm: {error}");
    }
    kvm.ok()
}

fn devices(kvm: &kvm_ioctls::Kvm, mac: u8) -> Devices {
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let network = |n: u8| NetworkConfig {
        tap: format!("tap{mac}{n}"),
        create: true,
        mac: [0x52, 0x54, 0, 0, mac, n],
    };
    let config = DeviceConfig { networks: vec![network(1), network(2)] };
    let outlet = fixture::outlet(Mode::Passing);
    Devices::new(&config, Arc::new(vm), fixture::memory(), outlet).unwrap()
}

#[test]
fn devices_are_found_saved_and_restored() {
    let Some(kvm) = require_kvm() else { return };
    if !require_tun() {
        return;
    }
    in_new_network(move || {
        let devices = devices(&kvm, 1);
        assert_eq!(
            devices.cmdline(),
            "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"
        );
        devices.unpark();
        let mut magic = [0; 4];
        devices.mmio_read(0xd000_1000, &mut magic);
        assert_eq!(&magic, b"virt");
        devices.mmio_write(0xd000_1070, &[1, 0, 0, 0]);
        devices.pio_write(0x3ff, &[0x5a]);
        devices.mmio_read(0xd000_2000, &mut magic);
        assert_eq!(magic, [0xff; 4]);
        devices.pio_write(0x80, &[1]);
        assert_eq!(devices.stats().unknown_accesses, 2);
        assert!(matches!(devices.announce(), Err(DeviceError::Announce(SpeakError::Lost))));
        ip("link set tap11 up");
        ip("link set tap12 up");
        devices.announce().unwrap();

        devices.park();
        let saved = devices.save();
        let names: Vec<_> = saved.iter().map(|section| section.name.clone()).collect();
        assert_eq!(names, devices.section_names());
        assert_eq!(names, ["power", "pvpanic", "serial", "virtio-net.0", "virtio-net.1"]);
        let sections = Sections::new(saved.clone()).unwrap();
        let other = self::devices(&kvm, 2);
        assert!(matches!(other.restore(&sections), Err(DeviceError::State(_))), "another mac");
        assert_ne!(other.save(), saved, "a refused restore changed something");
        devices.mmio_write(0xd000_1070, &[0; 4]);
        devices.restore(&sections).unwrap();
        assert_eq!(devices.save(), saved);
        devices.stop();
    });
}

#[test]
fn impossible_configurations_are_refused() {
    let Some(kvm) = require_kvm() else { return };
    let vm = Arc::new(kvm.create_vm().unwrap());
    vm.create_irq_chip().unwrap();
    let network = NetworkConfig { tap: "none".into(), create: false, mac: [3; 6] };
    let attempt = |networks| {
        let config = DeviceConfig { networks };
        let outlet = fixture::outlet(Mode::Passing);
        Devices::new(&config, Arc::clone(&vm), fixture::memory(), outlet).unwrap_err()
    };
    assert!(matches!(attempt(vec![network.clone(); 7]), DeviceError::TooMany(7)));
    assert!(matches!(attempt(vec![network]), DeviceError::Mac(_)));
}
