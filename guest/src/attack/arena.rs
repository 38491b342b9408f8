//! The only memory that attacked devices are let write: rings first, then buffers.

use core::cell::UnsafeCell;

use romulus_probe::attack::{ARENA_BYTES, Descriptor};

#[repr(C, align(4096))]
struct Arena(UnsafeCell<[u8; ARENA_BYTES as usize]>);

// SAFETY: only vCPU 0 uses it, by volatile accesses: devices write there at any time.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new([0; ARENA_BYTES as usize]));

/// Where it is.
pub(super) fn address() -> u64 {
    ARENA.0.get() as u64
}

/// A place for a `T` at `offset`; `T` is a plain number or a descriptor.
fn place<T>(offset: u64) -> *mut T {
    assert!(
        offset + size_of::<T>() as u64 <= ARENA_BYTES
            && offset.is_multiple_of(align_of::<T>() as u64)
    );
    (address() + offset) as *mut T
}

pub(super) fn put_u16(offset: u64, value: u16) {
    // SAFETY: `place` is in the arena and aligned.
    unsafe { place::<u16>(offset).write_volatile(value) };
}

pub(super) fn put_u32(offset: u64, value: u32) {
    // SAFETY: as for `put_u16`.
    unsafe { place::<u32>(offset).write_volatile(value) };
}

pub(super) fn put_u64(offset: u64, value: u64) {
    // SAFETY: as for `put_u16`.
    unsafe { place::<u64>(offset).write_volatile(value) };
}

pub(super) fn put_descriptor(offset: u64, descriptor: Descriptor) {
    // SAFETY: as for `put_u16`.
    unsafe { place::<Descriptor>(offset).write_volatile(descriptor) };
}

pub(super) fn get_u16(offset: u64) -> u16 {
    // SAFETY: as for `put_u16`.
    unsafe { place::<u16>(offset).read_volatile() }
}

pub(super) fn get_u8(offset: u64) -> u8 {
    // SAFETY: as for `put_u16`.
    unsafe { place::<u8>(offset).read_volatile() }
}

/// Fills all of it with `word`.
pub(super) fn fill(word: u64) {
    (0..ARENA_BYTES).step_by(8).for_each(|offset| put_u64(offset, word));
}

/// The first place that does not hold `word`.
pub(super) fn find_other_than(word: u64) -> Option<u64> {
    // SAFETY: as for `put_u16`.
    let other = |offset: &u64| unsafe { place::<u64>(*offset).read_volatile() } != word;
    (0..ARENA_BYTES).step_by(8).find(other)
}
