//! A VM on real KVM: pausing, saving and restoring elsewhere, errors.

mod guest;

use guest::{Rig, elf, elf_at, require_kvm};
use romulus_vmm::{
    boot::{BootError, BootProtocol},
    event::VmEvent,
    host::{Backend, Host},
    vm::VmError,
};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn a_guest_is_paused_and_goes_on() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    rig.boot(&elf(guest::counting(), false), BootProtocol::Auto);
    for _ in 0..300 {
        let before = rig.counter();
        rig.vm.resume().unwrap();
        if before == 0 {
            rig.await_count(0);
        }
        rig.vm.pause().unwrap();
        let paused = rig.counter();
        assert!(paused >= before);
        std::thread::yield_now();
        assert_eq!(rig.counter(), paused, "a paused guest counts");
    }
    let last = rig.counter();
    rig.vm.resume().unwrap();
    rig.await_count(last);
    assert!(rig.events.try_recv().is_err());
}

#[test]
fn a_guest_goes_on_in_another_vm() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    rig.boot(&elf(guest::counting(), false), BootProtocol::Auto);
    rig.vm.resume().unwrap();
    rig.await_count(0);
    for _ in 0..10 {
        rig.vm.pause().unwrap();
        let (sections, image) = (rig.vm.save().unwrap(), rig.image());
        let count = rig.counter();
        let mut next = Rig::small();
        next.set_image(&image);
        next.vm.restore(&sections).unwrap();
        assert_eq!(next.counter(), count);
        let again = next.vm.save().unwrap();
        for (old, new) in sections.as_slice().iter().zip(again.as_slice()) {
            // Clocks go on; everything else is as it was.
            let runs = ["vm.clock", "vm.pit2", "vcpu.00.tsc"].contains(&old.name.as_str());
            assert!(runs || old == new, "section {} changed", old.name);
        }
        next.vm.resume().unwrap();
        // The guest compares register and memory itself.
        next.await_count(count + 1000);
        rig = next;
    }
}

#[test]
fn output_is_neither_lost_nor_doubled_by_pauses_and_moves() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    rig.boot(&elf(guest::speaking(), false), BootProtocol::Auto);
    let mut said = 0_u64;
    for hop in 0..60 {
        rig.vm.resume().unwrap();
        rig.await_count(said);
        rig.vm.pause().unwrap();
        if hop % 6 == 5 {
            let mut next = Rig::small();
            next.set_image(&rig.image());
            next.vm.restore(&rig.vm.save().unwrap()).unwrap();
            said = check_said(&rig, said);
            rig = next;
        }
    }
}

/// What a VM said, after `before` bytes that others had said, are all bytes in
/// turn. Returns how many were said in total.
fn check_said(rig: &Rig, before: u64) -> u64 {
    rig.outlet.seal(checkpoint::Epoch::FIRST);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let counted = rig.counter() - before;
    let bytes = loop {
        let (bytes, _) = rig.outlet.console_since(0);
        // Between the write and the count there may be one more.
        if bytes.len() as u64 >= counted {
            break bytes;
        }
        assert!(std::time::Instant::now() < end, "{} of {counted} bytes came", bytes.len());
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    for (index, byte) in bytes.iter().enumerate() {
        assert_eq!(*byte, (before + index as u64) as u8, "byte {index} after {before}");
    }
    before + bytes.len() as u64
}

#[test]
fn both_protocols_hand_over_the_command_line() {
    if !require_kvm() {
        return;
    }
    let long = elf(guest::reading_start_info(), false);
    let pvh = elf(guest::reading_start_info_32(), true);
    for (image, protocol) in [
        (&long, BootProtocol::Auto),
        (&long, BootProtocol::LongMode),
        (&pvh, BootProtocol::Auto),
        (&pvh, BootProtocol::Pvh),
    ] {
        let mut rig = Rig::small();
        rig.boot(image, protocol);
        rig.vm.resume().unwrap();
        let code = u32::from_le_bytes(*b"prob");
        assert_eq!(rig.event(), VmEvent::GuestExit { code }, "{protocol:?}");
        rig.vm.pause().unwrap();
    }
}

#[test]
fn images_that_cannot_boot_are_refused() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    let code = guest::counting();
    let mut try_boot = |image: &[u8], protocol| {
        let config = rig.boot_config(image, protocol);
        match rig.vm.boot(&config) {
            Err(VmError::Boot(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let auto = BootProtocol::Auto;
    assert!(matches!(try_boot(b"#!/bin/sh\n", auto), BootError::NoKernel { .. }));
    assert!(matches!(try_boot(b"", auto), BootError::NoKernel { .. }));
    let whole = elf(code, false);
    for cut in [5, 63, 100] {
        assert!(matches!(try_boot(&whole[..cut], auto), BootError::NoElf { .. }), "cut at {cut}");
    }
    let cut = &whole[..whole.len() - 1];
    assert!(matches!(try_boot(cut, auto), BootError::Load { .. }));
    let large = elf_at(code, guest::IMAGE, 64 << 20, false);
    assert!(matches!(try_boot(&large, auto), BootError::DoesNotFit { .. }));
    let far = elf_at(code, 65 << 20, code.len() as u64, false);
    assert!(matches!(try_boot(&far, auto), BootError::DoesNotFit { .. }));
    let low = elf_at(code, 0x8000, code.len() as u64, false);
    assert!(matches!(try_boot(&low, auto), BootError::TooLow(0x8000)));
    assert!(matches!(try_boot(&whole, BootProtocol::Pvh), BootError::NoPvhNote { .. }));
    assert!(matches!(rig.vm.resume(), Err(VmError::Phase { act: "resume", .. })));
    rig.boot(&whole, auto);
}

#[test]
fn calls_at_the_wrong_time_are_refused() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    assert!(matches!(rig.vm.save(), Err(VmError::Phase { act: "save", .. })));
    assert!(matches!(rig.vm.pause(), Err(VmError::Phase { .. })));
    rig.boot(&elf(guest::counting(), false), BootProtocol::Auto);
    let sections = rig.vm.save().unwrap();
    rig.vm.resume().unwrap();
    assert!(matches!(rig.vm.save(), Err(VmError::Phase { .. })));
    assert!(matches!(rig.vm.restore(&sections), Err(VmError::Phase { .. })));
    assert!(matches!(rig.vm.resume(), Err(VmError::Phase { .. })));
    let mut pages = rig.page_set();
    assert!(matches!(rig.vm.capture(&mut pages), Err(VmError::Phase { .. })));
}

#[test]
fn state_with_other_sections_is_refused() {
    if !require_kvm() {
        return;
    }
    use checkpoint::{Section, SectionError, Sections};
    use romulus_vmm::state::StateError;
    let mut rig = Rig::small();
    rig.boot(&elf(guest::counting(), false), BootProtocol::Auto);
    let sections = rig.vm.save().unwrap();
    let all = sections.as_slice();
    for (index, left_out) in all.iter().enumerate() {
        let mut fewer = all.to_vec();
        fewer.remove(index);
        match rig.vm.restore(&Sections::new(fewer).unwrap()) {
            Err(VmError::State(StateError::Section(SectionError::Missing(name)))) => {
                assert_eq!(name, left_out.name);
            }
            other => panic!("without {}: {other:?}", left_out.name),
        }
    }
    let more = Section { name: "vcpu.07.regs".into(), version: 1, bytes: vec![] };
    let more = Sections::new([all, &[more]].concat()).unwrap();
    assert!(matches!(
        rig.vm.restore(&more),
        Err(VmError::State(StateError::Section(SectionError::Unknown(_))))
    ));
    // Nothing was set: the guest goes on.
    rig.vm.resume().unwrap();
    rig.await_count(0);
    rig.vm.pause().unwrap();
    rig.vm.check(&sections).unwrap();
    for (index, section) in all.iter().enumerate() {
        let mut damaged = all.to_vec();
        damaged[index] = Section { bytes: vec![1; section.bytes.len() + 1], ..section.clone() };
        let damaged = Sections::new(damaged).unwrap();
        assert!(rig.vm.check(&damaged).is_err(), "{} with a byte too many", section.name);
        let count = rig.counter();
        assert!(rig.vm.restore(&damaged).is_err(), "{} with a byte too many", section.name);
        // It was noticed before anything was set.
        rig.vm.resume().unwrap();
        rig.await_count(count);
        rig.vm.pause().unwrap();
    }
    rig.vm.restore(&sections).unwrap();
}

/// Hosts before Linux 5.14 save special registers as an older structure, which
/// differs only in its end.
#[test]
fn a_guest_of_an_older_host_goes_on() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    rig.boot(&elf(guest::counting(), false), BootProtocol::Auto);
    rig.vm.resume().unwrap();
    rig.await_count(0);
    rig.vm.pause().unwrap();
    let count = rig.counter();
    let mut sections = rig.vm.save().unwrap().as_slice().to_vec();
    let sregs = sections.iter_mut().find(|section| section.name == "vcpu.00.sregs").unwrap();
    assert!([312, 320].contains(&sregs.bytes.len()), "{} bytes", sregs.bytes.len());
    sregs.bytes.truncate(280);
    sregs.bytes.extend([0; 32]);
    let mut next = Rig::small();
    next.set_image(&rig.image());
    next.vm.restore(&checkpoint::Sections::new(sections).unwrap()).unwrap();
    next.vm.resume().unwrap();
    next.await_count(count + 1000);
}

#[test]
fn what_stops_a_guest_is_told() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    rig.boot(&elf(guest::unknown_instruction(), false), BootProtocol::Auto);
    rig.vm.resume().unwrap();
    let event = rig.event();
    // Without an IDT the exception becomes a triple fault, where ud2 is
    // emulated at all.
    let stopped =
        matches!(event, VmEvent::Reset { vcpu: 0, .. } | VmEvent::Emulation { vcpu: 0, .. });
    assert!(stopped, "{event}");
    rig.vm.pause().unwrap();

    // Between RAM and the devices: reads are all ones, nothing stops.
    let mut rig = Rig::small();
    rig.boot(&elf(guest::touching_nothing(), false), BootProtocol::Auto);
    rig.vm.resume().unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while rig.vm.devices().stats().unknown_accesses < 2 {
        assert!(std::time::Instant::now() < end, "the access reached no bus");
        std::thread::yield_now();
    }
    rig.vm.pause().unwrap();
}

/// A kick for the next HLT is no state that KVM tells of.
#[test]
fn a_vcpu_that_halts_after_a_move_is_kicked() {
    if !require_kvm() {
        return;
    }
    const WOKEN: u64 = 1_000_000_000;
    let mut rig = Rig::small();
    rig.boot(&elf(guest::halting_when_told(), false), BootProtocol::Auto);
    rig.vm.resume().unwrap();
    rig.await_count(0);
    rig.vm.pause().unwrap();
    let mut next = Rig::small();
    next.set_image(&rig.image());
    next.vm.restore(&rig.vm.save().unwrap()).unwrap();
    let count = next.counter();
    next.vm.resume().unwrap();
    next.await_count(count);
    next.vm.memory().memory().write_obj(1_u8, GuestAddress(guest::WORD)).unwrap();
    next.await_count(WOKEN);
}

#[test]
fn an_instruction_that_kvm_cannot_emulate_is_told_with_bytes_and_address() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    rig.boot(&elf(guest::beyond_the_emulator(), false), BootProtocol::Auto);
    rig.vm.resume().unwrap();
    let event = rig.event();
    rig.vm.pause().unwrap();
    if Host::open().unwrap().capabilities().backend != Backend::Pvm {
        assert_eq!(event, VmEvent::GuestExit { code: 1 }, "the processor knows it");
        return;
    }
    let VmEvent::Emulation { vcpu: 0, ref instruction, rip, .. } = event else { panic!("{event}") };
    assert!(instruction.starts_with(&[0x48, 0x0f, 0xc7, 0x0b]), "{event}");
    assert!(event.to_string().contains(&format!("at {rip:#x}, bytes 48 0f c7 0b")), "{event}");
}

#[test]
fn other_machines_are_refused() {
    if !require_kvm() {
        return;
    }
    use romulus_vmm::{dirty::DirtyTracking, state::StateError};
    let mut rig = Rig::small();
    rig.boot(&elf(guest::counting(), false), BootProtocol::Auto);
    let sections = rig.vm.save().unwrap();
    let mut two = Rig::new(&guest::config(2, DirtyTracking::Auto));
    let refused = two.vm.restore(&sections);
    assert!(matches!(refused, Err(VmError::State(StateError::Shape("vcpus")))), "{refused:?}");
    for (vcpus, memory_bytes) in [(0, 64 << 20), (65, 64 << 20), (1, 1 << 20)] {
        let config = romulus_vmm::vm::VmConfig {
            vcpus,
            memory_bytes,
            ..guest::config(1, DirtyTracking::Auto)
        };
        let error = Rig::try_new(&config).err().expect("a refusal");
        assert!(matches!(error, VmError::VcpuCount { .. } | VmError::Memory(_)), "{error}");
    }
}

/// What of `section`, of registers, has the number `msr`.
fn msr(sections: &checkpoint::Sections, section: &str, msr: u32) -> Option<u64> {
    let bytes = sections.body(section, 1).unwrap();
    let entry = bytes.chunks(16).find(|entry| entry[..4] == msr.to_le_bytes())?;
    Some(u64::from_le_bytes(entry[8..].try_into().unwrap()))
}

#[test]
fn memory_types_come_along() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    rig.boot(&elf(guest::setting_memory_types(), false), BootProtocol::Auto);
    rig.vm.resume().unwrap();
    rig.await_count(0);
    rig.vm.pause().unwrap();
    let sections = rig.vm.save().unwrap();
    let mut next = Rig::small();
    next.boot(&elf(guest::counting(), false), BootProtocol::Auto);
    let fresh = next.vm.save().unwrap();
    next.set_image(&rig.image());
    next.vm.restore(&sections).unwrap();
    let restored = next.vm.save().unwrap();
    for (register, before, after) in [(0x200, 0, 0xc000_0006), (0x2ff, 0x806, 0xc00)] {
        assert_eq!(msr(&fresh, "vcpu.00.msrs", register), Some(before), "{register:#x}");
        assert_eq!(msr(&restored, "vcpu.00.msrs", register), Some(after), "{register:#x}");
    }
}

/// Its place may have become something else, since.
#[test]
fn an_order_for_the_wall_clock_is_not_repeated() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::small();
    rig.boot(&elf(guest::ordering_the_wall_clock(), false), BootProtocol::Auto);
    rig.vm.resume().unwrap();
    rig.await_count(0);
    rig.vm.pause().unwrap();
    let clock = |rig: &Rig| -> [u32; 3] {
        rig.vm.memory().memory().read_obj(GuestAddress(guest::WORD)).unwrap()
    };
    assert_ne!(clock(&rig), [0; 3], "the guest was given no wall clock");
    let sections = rig.vm.save().unwrap();
    assert_eq!(msr(&sections, "vcpu.00.msrs", 0x4b56_4d00), Some(guest::WORD));
    let mut next = Rig::small();
    next.set_image(&rig.image());
    next.vm.memory().memory().write_obj([0_u32; 3], GuestAddress(guest::WORD)).unwrap();
    let count = next.counter();
    next.vm.restore(&sections).unwrap();
    next.vm.resume().unwrap();
    next.await_count(count);
    assert_eq!(clock(&next), [0; 3], "memory of the guest was written over");
}
