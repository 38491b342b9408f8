//! Restarting, turning off, the power button and panics, on real KVM.

mod guest;

use guest::{Rig, elf, require_kvm};
use romulus_vmm::{
    boot::BootProtocol,
    device::{
        Panic,
        power::{PowerRequest, ResetCause},
    },
    event::VmEvent,
};

const RESET: VmEvent = VmEvent::Reset { vcpu: 0, cause: ResetCause::ResetPort };
const OFF: VmEvent = VmEvent::PowerOff { vcpu: 0 };

#[test]
fn a_guest_restarts_in_its_vm_and_keeps_its_ram() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    let config = rig.boot_config(&elf(guest::restarting(), false), BootProtocol::Auto);
    rig.vm.boot(&config).unwrap();
    let fresh = rig.vm.save().unwrap();
    rig.vm.start_dirty_log().unwrap();
    rig.vm.resume().unwrap();
    for life in 1..3 {
        assert_eq!(rig.event(), RESET);
        rig.vm.pause().unwrap();
        assert_eq!(rig.counter(), life);
        let request = Some(PowerRequest::Reset(ResetCause::ResetPort));
        assert_eq!(rig.vm.devices().requested_power(), request);
        let mut pages = rig.page_set();
        rig.vm.harvest(&mut pages).unwrap();
        pages.clear();
        let before = rig.image();
        rig.vm.reset(&config).unwrap();
        assert_eq!(rig.vm.devices().requested_power(), None);
        assert_state_is_that_of(&rig, &fresh);
        // A backup follows: what the reset changed in RAM is in the log.
        rig.vm.harvest(&mut pages).unwrap();
        for run in guest::differing_pages(&before, &rig.image()) {
            assert!(pages.contains(run.first), "page {:?} changed unnoticed", run.first);
        }
        rig.vm.resume().unwrap();
    }
    assert_eq!(rig.event(), OFF);
    rig.vm.pause().unwrap();
    assert_eq!(rig.counter(), 3);
}

fn assert_state_is_that_of(rig: &Rig, fresh: &checkpoint::Sections) {
    let now = rig.vm.save().unwrap();
    for (old, new) in fresh.as_slice().iter().zip(now.as_slice()) {
        // Clocks go on; everything else is as it was.
        let runs = ["vm.clock", "vm.pit2", "vcpu.00.tsc"].contains(&old.name.as_str());
        assert!(runs || old == new, "section {} is not as after the first boot", old.name);
    }
}

#[test]
fn a_reset_needs_a_paused_guest() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    let config = rig.boot_config(&elf(guest::counting(), false), BootProtocol::Auto);
    assert!(rig.vm.reset(&config).is_err(), "a shell restarts");
    rig.vm.boot(&config).unwrap();
    rig.vm.resume().unwrap();
    assert!(rig.vm.reset(&config).is_err(), "a running guest restarts");
    rig.vm.pause().unwrap();
    rig.vm.reset(&config).unwrap();
    std::fs::remove_file(&config.kernel).unwrap();
    assert!(rig.vm.reset(&config).is_err());
    // It is still there, so that its last words can be committed.
    rig.vm.save().unwrap();
}

#[test]
fn whoever_takes_a_guest_over_learns_what_it_asked_for_and_said() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    rig.boot(&elf(guest::panicking_and_turning_off(), false), BootProtocol::Auto);
    rig.vm.resume().unwrap();
    let panicked = VmEvent::Panicked { panic: Panic::Stopped };
    assert_eq!((rig.event(), rig.event()), (panicked.clone(), OFF));
    rig.vm.pause().unwrap();
    let mut next = Rig::small();
    next.set_image(&rig.image());
    next.vm.restore(&rig.vm.save().unwrap()).unwrap();
    assert!(next.events.try_recv().is_err(), "a standby speaks");
    next.vm.resume().unwrap();
    assert_eq!((next.event(), next.event()), (panicked, OFF));
    next.vm.pause().unwrap();
    next.vm.resume().unwrap();
    assert!(next.events.try_recv().is_err(), "the same is told at every resume");
    next.vm.pause().unwrap();
}

#[test]
fn the_power_button_reaches_the_guest() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    rig.boot(&elf(guest::awaiting_the_button(), false), BootProtocol::Auto);
    rig.vm.resume().unwrap();
    rig.await_count(0);
    rig.vm.devices().press_power_button();
    assert_eq!(rig.event(), VmEvent::GuestExit { code: 1 });
    rig.vm.pause().unwrap();
}
