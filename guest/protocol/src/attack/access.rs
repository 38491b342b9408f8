//! Accesses to ports and addresses that no driver makes.

use super::{ARENA_BYTES, Dice, Ground, SLOTS, SPACE_END};

/// A port's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// The first port.
    pub port: u16,
    /// Bytes of an item: 1, 2 or 4.
    pub width: u8,
    /// Whether it is written.
    pub is_write: bool,
    /// What is written.
    pub value: u32,
    /// Items of a string instruction; 0: a plain one.
    pub items: u16,
}

/// A memory access outside RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceAccess {
    /// Its address.
    pub address: u64,
    /// 1, 2, 4, 8 or 16 bytes.
    pub width: u8,
    /// Whether it is written.
    pub is_write: bool,
    /// What is written (twice, of 16 bytes).
    pub value: u64,
}

/// Ports at which something is worth meeting.
const PORTS: [u16; 22] = [
    0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd,
    0x505, 0x600, 0x601, 0x602, 0xcf8, 0xcf9, 0xcfc,
];
/// Interrupt controllers, which a guest would deafen itself with, and the port that ends it:
/// first and last.
const SPARED: [(u16, u16); 4] = [(0x20, 0x21), (0xa0, 0xa1), (0xf4, 0xf4), (0x4d0, 0x4d1)];
/// Bits of each byte that is written: without those that restart the guest (0xcf9, 0x64) or turn it
/// off (0x600).
const HARMLESS: u32 = 0x4343_4343;

/// Any port, but for what ends the guest by right.
pub fn port_access(dice: &mut Dice) -> PortAccess {
    let width = dice.one_of(&[1, 2, 4]);
    let is_write = dice.once_in(2);
    let port = loop {
        let port = if dice.once_in(2) { dice.one_of(&PORTS) } else { dice.roll() as u16 };
        let last = port.saturating_add(3);
        if !is_write || SPARED.iter().all(|spared| port > spared.1 || last < spared.0) {
            break port;
        }
    };
    let items = if dice.once_in(4) { 1 + dice.below(64) as u16 } else { 0 };
    PortAccess { port, width, is_write, value: dice.roll() as u32 & HARMLESS, items }
}

/// Between RAM and devices, between devices and interrupt controllers, and across edges.
pub fn space_access(dice: &mut Dice, ground: &Ground) -> SpaceAccess {
    let hole = SLOTS.saturating_sub(ground.ram_end);
    let address = match dice.below(4) {
        0 if hole > 0x1000 => ground.ram_end + dice.below(hole - 16),
        1 if hole > 0x1000 => SLOTS - 1 - dice.below(16),
        2 => ground.slots_end + dice.below(0x100),
        _ => ground.slots_end + dice.below(SPACE_END - 16 - ground.slots_end),
    };
    SpaceAccess {
        address,
        width: dice.one_of(&[1, 2, 4, 8, 16]),
        is_write: dice.once_in(2),
        value: dice.roll(),
    }
}

/// A register of the device at `slot`, or what is beside it: any width, aligned or not.
pub fn register_access(dice: &mut Dice, ground: &Ground, slot: u64) -> SpaceAccess {
    let offset = match dice.below(8) {
        0 => dice.below(0x1000),
        1 => dice.below(0x110),
        2 => 0xff0 + dice.below(16),
        _ => 4 * dice.below(0x44),
    };
    let width = if dice.once_in(4) { dice.one_of(&[1, 2, 8, 16]) } else { 4 };
    // Where a queue lies: never in memory that is somebody's.
    let names_memory = (0x71..0xb0).contains(&offset);
    let value = if names_memory {
        address_half(dice, ground) | address_half(dice, ground) << 32
    } else {
        dice.one_of(&[0, 1, 2, 3, 7, 11, 15, 0x80, 256, u64::MAX]) ^ u64::from(dice.once_in(8))
    };
    SpaceAccess { address: slot + offset, width, is_write: !dice.once_in(4), value }
}

/// Half of an address that leads into the arena or out of RAM, whatever it is joined with that is
/// not less than 2^32.
fn address_half(dice: &mut Dice, ground: &Ground) -> u64 {
    match dice.below(4) {
        0 | 1 => ground.arena + dice.below(ARENA_BYTES / 2),
        2 => SLOTS + dice.below(1 << 28),
        _ => u64::from(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUND: Ground =
        Ground { arena: 0x20_0000, ram_end: 64 << 20, slots_end: SLOTS + 0x3000 };

    #[test]
    fn no_port_that_ends_the_guest_is_written() {
        let (mut dice, mut strings) = (Dice::new(5), 0);
        for _ in 0..100_000 {
            let PortAccess { port, width, is_write, value, items } = port_access(&mut dice);
            assert!(matches!(width, 1 | 2 | 4));
            strings += u32::from(items > 0);
            if is_write {
                let ports = u32::from(port)..u32::from(port) + u32::from(width);
                assert!(![0x20, 0xa1, 0xf4, 0x4d0].iter().any(|port| ports.contains(port)));
                // Restart, pulse of the reset line, and sleep.
                let bytes = value.to_le_bytes();
                assert!(bytes.iter().all(|byte| byte & 4 == 0 && *byte < 0xf0 && byte & 0x20 == 0));
            }
        }
        assert!(strings > 10_000);
    }

    #[test]
    fn space_is_no_memory() {
        let mut dice = Dice::new(6);
        for _ in 0..100_000 {
            let SpaceAccess { address, .. } = space_access(&mut dice, &GROUND);
            assert!(address >= GROUND.ram_end && address + 16 <= SPACE_END, "{address:#x}");
        }
    }

    #[test]
    fn a_queue_is_put_into_the_arena_or_nowhere() {
        let mut dice = Dice::new(7);
        for _ in 0..100_000 {
            let access = register_access(&mut dice, &GROUND, SLOTS);
            let offset = access.address - SLOTS;
            if (0x71..0xb0).contains(&offset) {
                for half in [access.value & 0xffff_ffff, access.value >> 32] {
                    let in_arena = (GROUND.arena..GROUND.arena + ARENA_BYTES).contains(&half);
                    assert!(in_arena || half >= SLOTS, "{half:#x}");
                }
            }
        }
    }
}
