//! All devices together, on KVM and a real tap.

use std::path::Path;

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

fn disk(path: &Path) -> DiskConfig {
    DiskConfig { path: path.into(), read_only: true, serial: "disk-0".into() }
}

fn image(sectors: usize) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![1; 512 * sectors]).unwrap();
    file
}

fn devices(kvm: &kvm_ioctls::Kvm, mac: u8, image: &Path) -> Devices {
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let network = |n: u8| NetworkConfig {
        tap: format!("tap{mac}{n}"),
        create: true,
        mac: [0x52, 0x54, 0, 0, mac, n],
    };
    let config = DeviceConfig {
        networks: vec![network(1), network(2)],
        disks: vec![disk(image)],
        rng: true,
    };
    let outlet = fixture::outlet(Mode::Passing);
    let taps = config.open_taps().unwrap();
    Devices::new(&config, &taps, Arc::new(vm), fixture::memory(), outlet).unwrap()
}

#[test]
fn devices_are_found_saved_and_restored() {
    let Some(kvm) = require_kvm() else { return };
    if !require_tun() {
        return;
    }
    in_new_network(move || {
        let image = image(8);
        let devices = devices(&kvm, 1, image.path());
        assert_eq!(
            devices.cmdline(),
            "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 \
             virtio_mmio.device=4K@0xd0002000:7 virtio_mmio.device=4K@0xd0003000:10"
        );
        assert_eq!(
            devices.inventory(),
            "virtio-net at 0xd0000000:5, virtio-net at 0xd0001000:6, \
             virtio-blk at 0xd0002000:7, virtio-rng at 0xd0003000:10"
        );
        for (slot, id) in [(0, 1), (1, 1), (2, 2), (3, 4)] {
            let mut device_id = [0; 4];
            devices.mmio_read(0xd000_0008 + slot * 0x1000, &mut device_id);
            assert_eq!(u32::from_le_bytes(device_id), id, "slot {slot}");
        }
        devices.unpark();
        let mut magic = [0; 4];
        devices.mmio_read(0xd000_1000, &mut magic);
        assert_eq!(&magic, b"virt");
        devices.mmio_write(0xd000_1070, &[1, 0, 0, 0]);
        devices.pio_write(0x3ff, &[0x5a]);
        devices.mmio_read(0xd000_4000, &mut magic);
        assert_eq!(magic, [0xff; 4]);
        devices.pio_write(0x80, &[1]);
        // Linux waits for ever on a CMOS clock that is being updated.
        let mut register_a = [0xff];
        devices.pio_read(0x71, &mut register_a);
        assert_eq!(register_a, [0]);
        assert_eq!(devices.stats().unknown_accesses, 2);
        assert!(matches!(devices.announce(), Err(DeviceError::Announce(SpeakError::Lost))));
        ip("link set tap11 up");
        ip("link set tap12 up");
        devices.announce().unwrap();

        devices.park();
        let saved = devices.save();
        let names: Vec<_> = saved.iter().map(|section| section.name.clone()).collect();
        assert_eq!(names, devices.section_names());
        let in_slots = ["virtio-net.0", "virtio-net.1", "virtio-blk.0", "virtio-rng.0"];
        assert_eq!(names, [&["power", "pvpanic", "serial"], &in_slots[..]].concat());
        let sections = Sections::new(saved.clone()).unwrap();
        let other = self::devices(&kvm, 2, image.path());
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
    let attempt = |config: DeviceConfig| {
        let outlet = fixture::outlet(Mode::Passing);
        let made = config.open_taps().and_then(|taps| {
            Devices::new(&config, &taps, Arc::clone(&vm), fixture::memory(), outlet)
        });
        made.unwrap_err()
    };
    let networks = |count| vec![network.clone(); count];
    let full =
        DeviceConfig { networks: networks(12), disks: vec![disk(Path::new("x"))], rng: true };
    assert!(matches!(attempt(full), DeviceError::TooMany(14)));
    let config = DeviceConfig { networks: networks(1), ..DeviceConfig::default() };
    assert!(matches!(attempt(config), DeviceError::Mac(_)));
    let image = image(1);
    for serial in ["", "a disk", "a-serial-of-21-bytes-"] {
        let disk = DiskConfig { serial: serial.into(), ..disk(image.path()) };
        let config = DeviceConfig { disks: vec![disk], ..DeviceConfig::default() };
        assert!(matches!(attempt(config), DeviceError::Serial(_)), "{serial}");
    }
    let config = DeviceConfig { disks: vec![disk(Path::new("/nowhere/x"))], ..Default::default() };
    assert!(matches!(attempt(config), DeviceError::Image(ImageError::Open { .. })));
}

#[test]
fn a_disk_of_another_size_does_not_take_over() {
    let Some(kvm) = require_kvm() else { return };
    let devices = |image: &Path| {
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let config = DeviceConfig { disks: vec![disk(image)], ..DeviceConfig::default() };
        let outlet = fixture::outlet(Mode::Passing);
        let taps = config.open_taps().unwrap();
        Devices::new(&config, &taps, Arc::new(vm), fixture::memory(), outlet).unwrap()
    };
    let (small, large) = (image(8), image(16));
    let sections = Sections::new(devices(small.path()).save()).unwrap();
    devices(small.path()).restore(&sections).unwrap();
    let refused = devices(large.path()).restore(&sections);
    assert!(matches!(refused, Err(DeviceError::State(SectionError::Malformed(_)))), "{refused:?}");
}
