//! The dirty log is exact: compared with the memory itself.

mod guest;

use checkpoint::{PageNumber, PageRun};
use guest::{Rig, config, differing_pages, elf, require_kvm};
use romulus_vmm::{
    boot::BootProtocol,
    dirty::{DirtyLogError, DirtyLogKind, DirtyTracking},
    host::{Backend, Host},
    vm::VmError,
};
use vm_memory::{Bytes, GuestAddress};

/// Runs the scattering guest; after each pause, what differs from the last
/// image must be what was harvested (while it ran or now).
fn check_exact(tracking: DirtyTracking, while_running: bool) {
    let mut rig = Rig::new(&config(1, tracking));
    rig.boot(&elf(guest::scattering(), false), BootProtocol::Auto);
    rig.vm.resume().unwrap();
    rig.await_count(1000);
    rig.vm.pause().unwrap();
    rig.vm.start_dirty_log().unwrap();
    let mut shadow = rig.image();
    for round in 0..25_u64 {
        let mut pages = rig.page_set();
        let before = rig.counter();
        rig.vm.resume().unwrap();
        rig.await_count(before + 500 * (round % 3));
        if while_running {
            rig.vm.harvest(&mut pages).unwrap();
            rig.await_count(rig.counter() + 100);
        }
        rig.vm.pause().unwrap();
        let own = 0x80_0000 + round * 0x3000;
        rig.vm.memory().memory().write_obj(round + 1, GuestAddress(own)).unwrap();
        let captured = rig.vm.capture(&mut pages).unwrap();
        assert_eq!(captured.vmm_pages, 1);
        assert!(pages.contains(PageNumber::of_address(own)));
        let now = rig.image();
        let changed = differing_pages(&shadow, &now);
        assert!(changed.len() as u64 > 1, "the guest wrote nothing");
        for run in &changed {
            assert!(pages.contains(run.first), "page {} was forgotten", run.first);
        }
        // KVM may set accessed and dirty bits in the guest's page tables again.
        assert!(pages.len() <= changed.len() as u64 + 8, "{} of {}", pages.len(), changed.len());
        shadow = now;
    }
    // Nothing runs: nothing is dirty.
    assert_eq!(rig.vm.harvest(&mut rig.page_set()).unwrap(), 0);
    rig.vm.stop_dirty_log().unwrap();
    rig.vm.resume().unwrap();
    rig.await_count(rig.counter() + 1000);
    rig.vm.pause().unwrap();
    let mut pages = rig.page_set();
    rig.vm.harvest(&mut pages).unwrap();
    assert!(pages.is_empty(), "harvested without a log");
    // And again, exactly from here on.
    rig.vm.start_dirty_log().unwrap();
    let shadow = rig.image();
    rig.vm.harvest(&mut pages).unwrap();
    assert!(pages.is_empty(), "{} pages from before the start", pages.len());
    let before = rig.counter();
    rig.vm.resume().unwrap();
    rig.await_count(before);
    rig.vm.pause().unwrap();
    rig.vm.harvest(&mut pages).unwrap();
    let changed = differing_pages(&shadow, &rig.image());
    assert!(changed.iter().all(|PageRun { first, .. }| pages.contains(*first)));
}

#[test]
fn the_bitmap_is_exact() {
    if require_kvm() {
        check_exact(DirtyTracking::Bitmap, false);
    }
}

#[test]
fn the_bitmap_is_exact_when_harvested_while_running() {
    if require_kvm() {
        check_exact(DirtyTracking::Bitmap, true);
    }
}

#[test]
fn the_ring_is_exact_or_refused() {
    if !require_kvm() {
        return;
    }
    let capabilities = *Host::open().unwrap().capabilities();
    if capabilities.backend != Backend::Pvm && capabilities.dirty_ring_entries_max > 0 {
        check_exact(DirtyTracking::Ring, true);
        return;
    }
    let error = Rig::try_new(&config(1, DirtyTracking::Ring)).err().expect("a refusal");
    assert!(matches!(error, VmError::Dirty(DirtyLogError::LossyRing | DirtyLogError::NoRing)));
}

#[test]
fn auto_takes_what_works_here() {
    if !require_kvm() {
        return;
    }
    let rig = Rig::small();
    let capabilities = *Host::open().unwrap().capabilities();
    let ring = matches!(rig.vm.dirty_log().kind(), DirtyLogKind::Ring { .. });
    let expected = capabilities.backend != Backend::Pvm && capabilities.dirty_ring_entries_max > 0;
    assert_eq!(ring, expected, "{capabilities:?}");
}
