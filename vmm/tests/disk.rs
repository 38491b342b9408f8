//! A disk on real KVM: a guest reads it while it is paused and moved.

mod guest;

use guest::{Rig, elf, require_kvm};
use romulus_vmm::{
    boot::BootProtocol,
    device::{DeviceConfig, DiskConfig},
    dirty::DirtyTracking,
    vm::VmConfig,
};

/// Blocks of 4 KiB, each beginning with its number.
fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = vec![0; 256 * 4096];
    for (number, block) in (0_u64..).zip(bytes.chunks_exact_mut(4096)) {
        block[..8].copy_from_slice(&number.to_le_bytes());
    }
    std::fs::write(file.path(), bytes).unwrap();
    file
}

#[test]
fn a_guest_reads_its_disk_through_pauses_and_moves() {
    if !require_kvm() {
        return;
    }
    let image = image();
    let disk = DiskConfig { path: image.path().into(), read_only: true, serial: "blocks".into() };
    let devices = DeviceConfig { disks: vec![disk], ..DeviceConfig::default() };
    let config = VmConfig { devices, ..guest::config(1, DirtyTracking::Auto) };
    let mut here = Rig::new(&config);
    let mut there = Rig::new(&config);
    here.boot(&elf(guest::reading_disk(), false), BootProtocol::Auto);
    here.drive_disk();
    here.vm.start_dirty_log().unwrap();
    there.vm.start_dirty_log().unwrap();
    let mut pages = here.vm.memory().layout().all_pages();
    let mut read = 0;
    for hop in 0..40 {
        here.vm.resume().unwrap();
        here.await_count(read);
        here.vm.pause().unwrap();
        read = here.counter();
        let captured = here.vm.capture(&mut pages).unwrap();
        if hop % 4 < 3 {
            continue;
        }
        // Only pages that changed move, those that the disk wrote among them.
        let mut buffer = [0; 4096];
        for run in pages.runs(1) {
            here.vm.memory().copy_out(run, &mut buffer);
            there.vm.memory().copy_in(run, &buffer);
        }
        pages.clear();
        let differing = guest::differing_pages(&here.image(), &there.image());
        assert!(differing.is_empty(), "{differing:?} differ after {hop} pauses");
        there.vm.restore(&captured.sections).unwrap();
        std::mem::swap(&mut here, &mut there);
    }
    let stats = here.vm.devices().stats();
    assert_eq!((stats.disks[0].errors, stats.disks[0].refused, stats.unknown_accesses), (0, 0, 0));
}
