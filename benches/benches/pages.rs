//! Sets of dirty pages: what a pause does with them must depend on how many
//! there are, not on how much RAM there is.

#![forbid(unsafe_code)]

use checkpoint::PageSet;
use divan::{Bencher, black_box, counter::ItemsCount};
use romulus_benches::spread;

/// Frames of 1 GiB and of 16 GiB.
const FRAMES: [u64; 2] = [1 << 18, 1 << 22];
const DIRTY: [u64; 2] = [1_000, 10_000];

fn main() {
    divan::main();
}

#[divan::bench(args = FRAMES, consts = DIRTY)]
fn union_and_clear<const N: u64>(bencher: Bencher<'_, '_>, frames: u64) {
    let dirty = spread(frames, N);
    let mut owed = PageSet::new(frames);
    bencher.counter(ItemsCount::new(N)).bench_local(|| {
        owed.union(black_box(&dirty));
        black_box(&mut owed).clear();
    });
}

#[divan::bench(args = FRAMES, consts = DIRTY)]
fn iterate<const N: u64>(bencher: Bencher<'_, '_>, frames: u64) {
    let dirty = spread(frames, N);
    bencher
        .counter(ItemsCount::new(N))
        .bench(|| black_box(&dirty).pages().map(|page| page.get()).fold(0, u64::wrapping_add));
}

#[divan::bench(args = FRAMES, consts = DIRTY)]
fn runs<const N: u64>(bencher: Bencher<'_, '_>, frames: u64) {
    let dirty = spread(frames, N);
    bencher
        .counter(ItemsCount::new(N))
        .bench(|| black_box(&dirty).runs(256).map(|run| run.count).sum::<u64>());
}

/// As from KVM's bitmap: every word of the log is looked at.
#[divan::bench(args = FRAMES)]
fn insert_from_bitmap(bencher: Bencher<'_, '_>, frames: u64) {
    let mut words = vec![0_u64; frames as usize / 64];
    for page in spread(frames, 10_000).pages() {
        words[page.get() as usize / 64] |= 1 << (page.get() % 64);
    }
    let mut set = PageSet::new(frames);
    bencher.counter(ItemsCount::new(10_000_u64)).bench_local(|| {
        for (index, bits) in black_box(&words).iter().enumerate() {
            set.insert_word(index, *bits);
        }
        black_box(&mut set).clear();
    });
}
