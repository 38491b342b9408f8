//! The blows: what each kind of round does.

use romulus_probe::attack::{
    self, BUFFERS, Descriptor, Dice, Ground, INDIRECT, Kind, NEXT, PortAccess, SpaceAccess, TABLE,
    WRITE,
};

use super::arena;
use super::driver::{Device, descriptors, device_ring, driver_ring};
use crate::{clock, cpu};

/// Interrupt suppression by index, and indirect tables.
const FEATURES: u32 = 1 << 29 | 1 << 28;
/// How long a chain is given, so that some are met by what follows.
const GRACE_US_MAX: u64 = 300;
/// How often memory changes under a device's eyes in a blow.
const REWRITES: u32 = 600;
/// So often a device that has given up is brought up again meanwhile.
const LOOK_EVERY: u32 = 50;
/// What memory holds that nobody may write.
const CANARY: u64 = 0xa5a5_5a5a_c3c3_3c3c;
/// How long a device that was reset is watched.
const WATCH_US: u64 = 300;

pub(super) fn at_device(kind: Kind, dice: &mut Dice, ground: &Ground, device: &mut Device) {
    match kind {
        Kind::Chains => publish(dice, ground, device),
        Kind::Resets => reset_at_work(dice, device),
        Kind::Registers => write_registers(dice, ground, device),
        Kind::Races => rewrite(dice, ground, device),
        Kind::Ports | Kind::Space => at_machine(kind, dice, ground),
    }
}

/// A kind that strikes devices does nothing on a machine without any.
pub(super) fn at_machine(kind: Kind, dice: &mut Dice, ground: &Ground) {
    match kind {
        Kind::Ports => (0..8).for_each(|_| access_port(attack::port_access(dice))),
        Kind::Space => (0..8).for_each(|_| access_space(attack::space_access(dice, ground))),
        Kind::Chains | Kind::Resets | Kind::Registers | Kind::Races => {}
    }
}

fn publish(dice: &mut Dice, ground: &Ground, device: &mut Device) {
    let (features, size) = (FEATURES * dice.below(2) as u32, dice.one_of(&[8, 256]));
    device.start_if_down(features, size);
    let queue = dice.below(device.queues.into()) as u32;
    for _ in 0..1 + dice.below(4) {
        device.publish_chain(queue, &attack::chain(dice, ground));
    }
    device.notify(queue);
    clock::delay_us(dice.below(GRACE_US_MAX));
}

/// What was asked for before a reset must not be written after it.
fn reset_at_work(dice: &mut Dice, device: &mut Device) {
    device.start(FEATURES * dice.below(2) as u32, 8);
    let bytes = dice.one_of(&[512, 1024, 2048]);
    for index in 0..8 {
        device.publish_sound(index, bytes);
    }
    (0..device.queues).for_each(|queue| device.notify(queue));
    clock::delay_us(dice.below(GRACE_US_MAX));
    if dice.once_in(2) {
        device.prove();
    }
    device.reset();
    arena::fill(CANARY);
    clock::delay_us(WATCH_US);
    if let Some(offset) = arena::find_other_than(CANARY) {
        panic!("device {} wrote to {offset:#x} of the arena after its reset", device.id);
    }
}

fn write_registers(dice: &mut Dice, ground: &Ground, device: &mut Device) {
    device.start_if_down(FEATURES, 8);
    device.publish_sound(0, 512);
    device.notify(0);
    for _ in 0..16 {
        access_space(attack::register_access(dice, ground, device.registers));
    }
}

/// Changes tables and rings while the device may be reading them, and lets it write there.
fn rewrite(dice: &mut Dice, ground: &Ground, device: &mut Device) {
    let queue = dice.below(device.queues.into()) as u32;
    for count in 0..REWRITES {
        if count % LOOK_EVERY == 0 {
            device.start_if_down(FEATURES, TABLE as u16);
            device.notify(queue);
        }
        let entry = dice.below(TABLE as u64);
        match dice.below(8) {
            0..=3 => {
                let descriptor = plausible(dice, ground, queue);
                arena::put_descriptor(descriptors(queue) + 16 * entry, descriptor);
            }
            4 => {
                let descriptor = attack::torn_descriptor(dice, ground);
                arena::put_descriptor(descriptors(queue) + 16 * entry, descriptor);
            }
            5 => arena::put_u16(driver_ring(queue) + 4 + 2 * entry, entry as u16),
            6 => arena::put_u64(device_ring(queue) + 8 * entry, dice.roll()),
            _ => device.publish(queue, entry as u16, 1),
        }
    }
}

/// A descriptor that a device takes, of buffers or of its own rings.
fn plausible(dice: &mut Dice, ground: &Ground, queue: u32) -> Descriptor {
    let offset = match dice.below(4) {
        0 => dice.one_of(&[descriptors(queue), driver_ring(queue), device_ring(queue)]),
        _ => BUFFERS + 16 * dice.below(0x400),
    };
    let len = 16 * (1 + dice.below(128)) as u32;
    let flags = dice.one_of(&[0, 0, WRITE, WRITE, WRITE, NEXT, WRITE | NEXT, INDIRECT]);
    let next = dice.below(TABLE as u64) as u16;
    Descriptor { address: ground.arena + offset, len, flags, next }
}

fn access_port(access: PortAccess) {
    let PortAccess { port, width, is_write, value, items } = access;
    if items == 0 {
        cpu::access_port(port, width, is_write.then_some(value));
        return;
    }
    if is_write {
        (0..64).for_each(|item| arena::put_u32(BUFFERS + 4 * item, value));
    }
    cpu::access_port_string(port, width, is_write, arena::address() + BUFFERS, items);
}

fn access_space(access: SpaceAccess) {
    let SpaceAccess { address, width, is_write, value } = access;
    cpu::access_space(address, width, is_write.then_some(value));
}
