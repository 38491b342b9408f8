//! The registers against drivers that do things in every order.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::transport::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, Effect, FAILED, FEATURES_OK, Identity, Transport,
};
use crate::device::{GuestMemory, fixture};

const STATUS: u64 = 0x70;
const FEATURES: u64 = 1 << 32 | 1 << 5;

struct Rig {
    transport: Transport,
    memory: GuestMemory,
}

impl Rig {
    fn new() -> Self {
        let irq = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let identity = Identity {
            device_id: 1,
            features: FEATURES,
            config: vec![1, 2, 3, 4, 5, 6],
            queues: 2,
        };
        Self { transport: Transport::new(identity, irq), memory: fixture::memory() }
    }

    fn get(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&mut self, offset: u64, value: u32) -> Effect {
        self.transport.write(offset, &value.to_le_bytes(), &self.memory)
    }

    /// Writes a status and returns what became of it.
    fn status(&mut self, value: u8) -> u8 {
        self.set(STATUS, u32::from(value));
        self.get(STATUS) as u8
    }

    fn accept(&mut self, features: u64) {
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set(0x24, select);
            self.set(0x20, half);
        }
    }
}

#[test]
fn a_driver_finds_the_device() {
    let mut rig = Rig::new();
    assert_eq!((rig.get(0), rig.get(4), rig.get(8)), (0x7472_6976, 2, 1));
    assert_eq!(rig.get(0x10), 1 << 5);
    rig.set(0x14, 1);
    assert_eq!(rig.get(0x10), 1);
    rig.set(0x14, 2);
    assert_eq!(rig.get(0x10), 0);
    assert_eq!(rig.get(0x34), 256);
    rig.set(0x30, 2);
    assert_eq!((rig.get(0x34), rig.get(0x44)), (0, 0));
    let mut config = [0; 4];
    rig.transport.read(0x104, &mut config);
    assert_eq!(config, [5, 6, 0xff, 0xff]);
    assert_eq!(rig.get(0xb0), u32::MAX);
    assert_eq!(rig.transport.violations(), 0);
}

#[test]
fn the_status_rises_in_order() {
    let mut rig = Rig::new();
    assert_eq!(rig.status(DRIVER), 0);
    assert_eq!(rig.status(ACKNOWLEDGE), 1);
    assert_eq!(rig.status(ACKNOWLEDGE | FEATURES_OK), 1);
    assert_eq!(rig.status(ACKNOWLEDGE | DRIVER), 3);
    assert_eq!(rig.status(DRIVER), 3, "a bit was taken back");
    assert_eq!(rig.status(ACKNOWLEDGE | DRIVER | DRIVER_OK), 3);
    assert_eq!(rig.transport.violations(), 4);
    assert_eq!(rig.status(ACKNOWLEDGE | DRIVER | FEATURES_OK), 3, "no VERSION_1 was accepted");
    rig.accept(FEATURES | 1 << 15);
    assert_eq!(rig.status(ACKNOWLEDGE | DRIVER | FEATURES_OK), 3, "not offered");
    rig.accept(FEATURES);
    assert_eq!(rig.status(ACKNOWLEDGE | DRIVER | FEATURES_OK), 11);
    assert_eq!(rig.set(STATUS, 15), Effect::Start);
    assert!(rig.transport.is_live());
    rig.accept(0);
    assert!(rig.transport.is_live(), "features changed after FEATURES_OK");
    assert_eq!(rig.status(15 | FAILED), 15 | FAILED);
    assert!(!rig.transport.is_live());
    assert_eq!(rig.status(0), 0);
}

#[test]
fn queues_are_configured_only_between_features_and_start() {
    let mut rig = Rig::new();
    rig.set(0x38, 64);
    rig.set(0x44, 1);
    assert_eq!((rig.get(0x44), rig.transport.violations()), (0, 2));
    rig.status(1);
    rig.status(3);
    rig.accept(FEATURES);
    rig.status(11);
    for absurd in [0, 3, 512, u32::MAX] {
        rig.set(0x38, absurd);
    }
    assert_eq!(rig.transport.violations(), 6);
    rig.set(0x44, 1);
    assert_eq!(rig.get(0x44), 0, "a queue without rings");
    rig.set(0x38, 64);
    for (register, address) in [(0x80, 0x1000), (0x90, 0x2000), (0xa0, 0xffff_fff0_u32)] {
        rig.set(register, address);
    }
    rig.set(0x44, 1);
    assert_eq!(rig.get(0x44), 0, "a ring outside ram");
    rig.set(0xa0, 0x3000);
    rig.set(0x44, 1);
    assert_eq!(rig.get(0x44), 1);
    let before = rig.transport.violations();
    rig.set(0x80, 0x5000);
    assert_eq!(rig.transport.violations(), before + 1, "a running queue was moved");
    rig.set(0x44, 0);
    assert_eq!(rig.get(0x44), 0);
    assert_eq!(rig.set(0x50, 2), Effect::None);
    assert_eq!(rig.set(0x50, 1), Effect::Notify(1));
}

#[test]
fn any_access_is_survived() {
    let mut rig = Rig::new();
    let mut seed = 1_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..200_000 {
        let offset = if random(4) == 0 { random(0x1000) } else { 4 * random(0x44) };
        let len = if random(8) == 0 { random(9) as usize } else { 4 };
        let value = match random(4) {
            0 => random(16),
            1 => 1 << random(33),
            2 => random(1 << 20) & !0xf,
            _ => random(u64::MAX),
        };
        let mut data = value.to_le_bytes();
        if random(2) == 0 {
            rig.transport.read(offset, &mut data[..len.min(8)]);
        } else {
            rig.transport.write(offset, &data[..len.min(8)], &rig.memory);
        }
        let bytes = rig.transport.encode();
        assert!(rig.transport.decode(&bytes, &rig.memory).is_ok(), "own state is refused");
    }
}
