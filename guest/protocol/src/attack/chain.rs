//! Descriptor chains that a driver must not make (virtio 1.2, section 2.7).
//!
//! Invariant: what a descriptor lets a device write lies in the arena, or nowhere in RAM.

use super::{ARENA_BYTES, BUFFERS, Dice, Ground, SLOTS};

/// Descriptors that a chain is made of.
pub const TABLE: usize = 8;
/// Another descriptor follows.
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
/// It names a table of descriptors.
pub const INDIRECT: u16 = 4;

/// An entry of a queue's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Descriptor {
    /// Where its bytes are.
    pub address: u64,
    /// How many.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The entry that follows.
    pub next: u16,
}

/// What is published at once.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    /// The beginning of the queue's table.
    pub table: [Descriptor; TABLE],
    /// What the available ring names.
    pub head: u16,
    /// How far the available ring's index leaps.
    pub leap: u16,
    /// A request's kind, as a disk's header has it.
    pub request: u32,
    /// The sector that it begins at.
    pub sector: u64,
}

/// A chain, more or less broken.
pub fn chain(dice: &mut Dice, ground: &Ground) -> Chain {
    let mut table = core::array::from_fn(|_| descriptor(dice, ground, 8));
    let buffer = |at: u64, len, flags, next| {
        let address = ground.arena + BUFFERS + at;
        Descriptor { address, len, flags, next }
    };
    match dice.below(8) {
        // A loop: of one, or of two.
        0 => table[0] = buffer(0, 16, NEXT, 0),
        1 => {
            table[0] = buffer(0, 16, NEXT, 1);
            table[1] = buffer(16, 16, NEXT, 0);
        }
        // A disk's request that is sound up to its second descriptor, and what follows is not.
        2 => {
            table[0] = buffer(0, 16, NEXT, 1);
            table[1].flags |= WRITE;
        }
        // All of it sound, for a device that reads, and for one that writes.
        3 => table[0] = buffer(0, 64, 0, 0),
        4 => table[0] = buffer(0x1000, 4096, WRITE, 0),
        // A table that names itself, and one of odd size.
        5 => {
            let address = ground.arena + BUFFERS;
            table[0] = Descriptor { address, len: 64, flags: INDIRECT, next: 0 };
        }
        6 => table[0] = buffer(0, dice.one_of(&[0, 1, 15, 17, 31]), INDIRECT, 0),
        _ => {}
    }
    Chain {
        table,
        head: if dice.once_in(8) { dice.one_of(&[8, 255, 256, 0x7fff, 0xffff]) } else { 0 },
        leap: if dice.once_in(8) { dice.one_of(&[0, 2, 255, 257, 0x8000, 0xffff]) } else { 1 },
        request: dice.one_of(&[0, 1, 4, 8, 11, 13, u32::MAX]),
        sector: dice.one_of(&[0, 1, 1 << 20, u64::MAX, u64::MAX >> 9, 1 << 55]),
    }
}

/// A descriptor that may be read half before and half after another is written over it.
pub fn torn_descriptor(dice: &mut Dice, ground: &Ground) -> Descriptor {
    descriptor(dice, ground, 6)
}

/// `classes` is 6 if the address may be joined with another descriptor's length: then none is so
/// close to the end of RAM that its length decides.
fn descriptor(dice: &mut Dice, ground: &Ground, classes: u64) -> Descriptor {
    let lens = [0, 1, 11, 12, 13, 16, 17, 64, 512, 513, 1526, 4096, 0x8000];
    let mut len = dice.one_of(&lens);
    let in_arena = ground.arena + dice.below(ARENA_BYTES / 2);
    let address = match dice.below(classes) {
        0..=2 => in_arena,
        3 => {
            len = u32::MAX - dice.below(4096) as u32;
            in_arena
        }
        4 => u64::MAX - dice.below(0x10000),
        5 => SLOTS + dice.below(1 << 28),
        // Across the end of RAM.
        _ => {
            let before = 1 + dice.below(0x1000);
            len = len.max(before as u32 + 1);
            ground.ram_end - before
        }
    };
    let next = if dice.once_in(6) { dice.roll() as u16 } else { dice.below(TABLE as u64) as u16 };
    let flags = dice.one_of(&[0, 0, NEXT, NEXT, WRITE, WRITE, WRITE | NEXT, INDIRECT, 7, 0xffff]);
    Descriptor { address, len, flags, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUND: Ground =
        Ground { arena: 0x20_0000, ram_end: 64 << 20, slots_end: SLOTS + 0x3000 };

    fn is_harmless(address: u64, len: u32) -> bool {
        let Some(end) = address.checked_add(len.into()) else { return true };
        let in_arena = address >= GROUND.arena && end <= GROUND.arena + ARENA_BYTES;
        in_arena || address >= SLOTS || end > GROUND.ram_end
    }

    #[test]
    fn no_device_is_led_out_of_the_arena() {
        for seed in 0..2000 {
            let drawn = chain(&mut Dice::new(seed), &GROUND);
            for Descriptor { address, len, .. } in drawn.table {
                assert!(is_harmless(address, len), "seed {seed}: {address:#x} + {len:#x}");
            }
        }
    }

    #[test]
    fn no_two_halves_lead_out_of_the_arena() {
        let mut dice = Dice::new(1);
        let drawn: std::vec::Vec<_> =
            (0..300).map(|_| torn_descriptor(&mut dice, &GROUND)).collect();
        for address in drawn.iter().map(|one| one.address) {
            for len in drawn.iter().map(|other| other.len) {
                assert!(is_harmless(address, len), "{address:#x} + {len:#x}");
            }
        }
    }

    #[test]
    fn chains_are_of_all_sorts() {
        let drawn = |holds: fn(&Chain) -> bool| {
            (0..500).filter(|seed| holds(&chain(&mut Dice::new(*seed), &GROUND))).count()
        };
        assert!(drawn(|chain| chain.table[0].flags & NEXT != 0 && chain.table[0].next == 0) > 20);
        assert!(drawn(|chain| chain.table[0].flags & INDIRECT != 0) > 50);
        assert!(drawn(|chain| chain.head > 7) > 20);
        assert!(drawn(|chain| chain.leap != 1) > 20);
        assert!(drawn(|chain| chain.table[1].address > u64::MAX / 2) > 20);
    }
}
