//! Rings against a guest that stores less than they hold: so they are tested
//! on PVM, too, where larger guests may not use them.

use std::sync::Arc;

use checkpoint::{PageNumber, PageSet};
use kvm_ioctls::VcpuExit;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::host::Host;

/// Real mode at 0x1000: increments a byte in each of 100 pages from 64 KiB on,
/// writes to port 0xf4, and starts again.
const GUEST: [u8; 22] = [
    0xb9, 100, 0, // mov cx, 100
    0xb8, 0x00, 0x10, // mov ax, 0x1000
    0x8e, 0xd8, // 1: mov ds, ax
    0xfe, 0x06, 0, 0, // inc byte [0]
    0x05, 0x00, 0x01, // add ax, 0x100
    0xe2, 0xf5, // loop 1b
    0xe6, 0xf4, // out 0xf4, al
    0xeb, 0xeb, // jmp 0x1000
    0x90,
];

struct Rig {
    // The descriptors close before the memory goes.
    vcpu: VcpuFd,
    log: DirtyLog,
    ram: Arc<GuestRam>,
}

impl Rig {
    /// `None`, with a printed reason, where there are no rings.
    fn new(entries: u32) -> Option<Self> {
        let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
        let host = match Host::open() {
            Ok(host) => host,
            Err(error) => {
                assert!(!required.split(',').any(|word| word == "kvm"), "kvm is required: {error}");
                eprintln!("skipped: {error}");
                return None;
            }
        };
        let mut capabilities = *host.capabilities();
        if capabilities.dirty_ring_entries_max < entries {
            eprintln!("skipped: this KVM has no dirty rings");
            return None;
        }
        capabilities.backend = Backend::Unknown;
        capabilities.dirty_ring_entries_max = entries;
        let ram = Arc::new(GuestRam::new(64 << 20, false).unwrap());
        let vm = Arc::new(host.kvm().create_vm().unwrap());
        vm.set_tss_address(0xfffb_d000).unwrap();
        let log = DirtyLog::new(Arc::clone(&vm), &ram, &capabilities, DirtyTracking::Ring).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        log.add_vcpu(&vcpu).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        let regs = kvm_bindings::kvm_regs { rip: 0x1000, rflags: 2, ..Default::default() };
        vcpu.set_regs(&regs).unwrap();
        ram.memory().write_slice(&GUEST, GuestAddress(0x1000)).unwrap();
        Some(Self { vcpu, log, ram })
    }

    /// Lets the guest write its pages once; returns how often its ring was
    /// full.
    fn round(&mut self) -> u32 {
        let mut full = 0;
        loop {
            match self.vcpu.run().unwrap() {
                VcpuExit::IoOut(0xf4, _) => return full,
                VcpuExit::Unsupported(kvm_bindings::KVM_EXIT_DIRTY_RING_FULL) => {
                    full += 1;
                    assert!(!self.log.empty_full_ring().unwrap(), "a storm");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn harvest(&self) -> Vec<u64> {
        let mut pages = PageSet::new(self.ram.layout().frame_end());
        self.log.harvest(&mut pages).unwrap();
        pages.pages().map(PageNumber::get).collect()
    }
}

#[test]
fn a_ring_has_what_was_written_and_nothing_else() {
    let Some(mut rig) = Rig::new(4096) else { return };
    rig.round();
    assert!(rig.harvest().is_empty(), "harvested without logging");
    rig.log.start().unwrap();
    assert!(rig.harvest().is_empty(), "pages from before the start");
    let expected: Vec<u64> = (16..116).collect();
    // More rounds than the ring has entries for: it wraps.
    for _ in 0..100 {
        rig.round();
        assert_eq!(rig.harvest(), expected);
        assert!(rig.harvest().is_empty());
    }
    rig.round();
    rig.log.stop().unwrap();
    rig.log.start().unwrap();
    assert!(rig.harvest().is_empty(), "pages from before the start");
    rig.round();
    assert_eq!(rig.harvest(), expected);
}

#[test]
fn what_full_rings_spill_is_harvested() {
    let Some(mut rig) = Rig::new(4096) else { return };
    rig.log.start().unwrap();
    rig.round();
    assert!(!rig.log.empty_full_ring().unwrap());
    let expected: Vec<u64> = (16..116).collect();
    assert_eq!(rig.harvest(), expected);
    rig.round();
    let storms = (0..2 * STORM_FULLS).filter(|_| rig.log.empty_full_ring().unwrap()).count();
    assert_eq!(storms, 1, "a storm is told once");
    assert_eq!(rig.harvest(), expected);
}
