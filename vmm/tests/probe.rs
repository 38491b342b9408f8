//! The probe guest's computation, with vectors, interrupts and several vCPUs,
//! comes to the same result wherever and however often it is interrupted.

mod guest;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use checkpoint::PageRun;
use guest::{Rig, config, require_kvm};
use romulus_vmm::{
    boot::{BootConfig, BootProtocol},
    dirty::DirtyTracking,
    event::VmEvent,
};

/// What the guest says when it has computed.
const DONE: VmEvent = VmEvent::GuestExit { code: 0x10 };

#[test]
fn a_computation_survives_moves_of_changed_pages() {
    if !require_kvm() {
        return;
    }
    let image = probe();
    for (vcpus, protocol) in [(1, BootProtocol::Pvh), (2, BootProtocol::LongMode)] {
        let undisturbed = undisturbed(&image, vcpus, protocol);
        assert_eq!(undisturbed.len(), usize::from(vcpus), "{undisturbed:?}");
        let (moves, moved) = moved(&image, vcpus, protocol);
        assert!(moves >= 10, "only {moves} moves: make the computation longer");
        assert_eq!(moved, undisturbed, "after {moves} moves of {vcpus} vcpus");
    }
}

fn undisturbed(image: &Path, vcpus: u8, protocol: BootProtocol) -> Vec<String> {
    let mut rig = boot(image, vcpus, protocol);
    rig.vm.resume().unwrap();
    assert_eq!(rig.event(), DONE);
    rig.vm.pause().unwrap();
    digests(&console(&rig, vcpus))
}

/// Moves the guest between two VMs until it is done. After the first move
/// only harvested pages are copied.
fn moved(image: &Path, vcpus: u8, protocol: BootProtocol) -> (u32, Vec<String>) {
    let mut here = boot(image, vcpus, protocol);
    let outlet = Arc::clone(&here.outlet);
    let mut there = Rig::speaking_to(outlet, &config(vcpus, DirtyTracking::Auto)).unwrap();
    let mut pages = here.vm.memory().layout().all_pages();
    here.vm.start_dirty_log().unwrap();
    there.vm.start_dirty_log().unwrap();
    let mut moves = 0;
    loop {
        here.vm.resume().unwrap();
        if let Ok(event) = here.events.recv_timeout(Duration::from_millis(5)) {
            assert_eq!(event, DONE);
            here.vm.pause().unwrap();
            return (moves, digests(&console(&here, vcpus)));
        }
        here.vm.pause().unwrap();
        let captured = here.vm.capture(&mut pages).unwrap();
        let mut buffer = vec![0; 16 * 4096];
        for run @ PageRun { count, .. } in pages.runs(16) {
            let buffer = &mut buffer[..count as usize * 4096];
            here.vm.memory().copy_out(run, buffer);
            there.vm.memory().copy_in(run, buffer);
        }
        pages.clear();
        let differing = guest::differing_pages(&here.image(), &there.image());
        assert!(differing.is_empty(), "{differing:?} differ after move {moves}");
        // Restoring makes KVM write its clock page, which the log has.
        there.vm.restore(&captured.sections).unwrap();
        std::mem::swap(&mut here, &mut there);
        moves += 1;
    }
}

fn boot(image: &Path, vcpus: u8, protocol: BootProtocol) -> Rig {
    let mut rig = Rig::new(&config(vcpus, DirtyTracking::Auto));
    let cmdline = format!("probe.vcpus={vcpus} probe.tick=5 probe.compute=26000000");
    rig.vm.boot(&BootConfig { kernel: image.to_owned(), initrd: None, cmdline, protocol }).unwrap();
    rig
}

fn console(rig: &Rig, vcpus: u8) -> String {
    rig.outlet.seal(checkpoint::Epoch::FIRST);
    // Console bytes pass through a thread of the outlet; these are its last lines.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let said = String::from_utf8_lossy(&rig.outlet.console_since(0).0).into_owned();
        let whole = said.matches("digest").count() == usize::from(vcpus);
        if whole && said.contains("clocks compared") || Instant::now() > deadline {
            return said;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn digests(said: &str) -> Vec<String> {
    let mut lines: Vec<String> =
        said.lines().filter(|line| line.contains("digest")).map(str::to_owned).collect();
    lines.sort();
    // The guest itself compares the clocks of its vCPUs, and ends if one goes
    // back.
    let compared = said.lines().find(|line| line.contains("clocks compared"));
    println!("{}", compared.expect("the guest says which clocks it has compared"));
    lines
}

/// Builds the probe guest as its README says.
fn probe() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("probe-guest");
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest/Cargo.toml");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--locked", "--manifest-path", manifest, "--target-dir"])
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", "")
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the probe guest does not build");
    target.join("release/probe-guest")
}
