//! Encoding and decoding chunks, beside what bounds them: a copy, BLAKE3 and
//! zstd's work is the difference.
//!
//! A chunk of 256 pages is 1 MiB; of 16 pages, 64 KiB.

#![forbid(unsafe_code)]

use checkpoint::{
    Epoch, MemoryLayout,
    chunk::{Chunk, ChunkId, Content},
};
use divan::{Bencher, black_box, counter::BytesCount};
use romulus_benches::{Fill, run_of};

const PAGES: [usize; 2] = [16, 256];

fn main() {
    divan::main();
}

fn id() -> ChunkId {
    ChunkId { epoch: Epoch::new(1), index: 0 }
}

#[divan::bench(args = Fill::ALL, consts = PAGES)]
fn encode<const N: usize>(bencher: Bencher<'_, '_>, fill: Fill) {
    let (runs, content) = ([run_of(N)], fill.content(N));
    bencher
        .counter(BytesCount::of_slice(&content))
        .bench(|| Chunk::of_pages(id(), black_box(&runs), black_box(&content)));
}

#[divan::bench(args = Fill::ALL, consts = PAGES)]
fn decode<const N: usize>(bencher: Bencher<'_, '_>, fill: Fill) {
    let content = fill.content(N);
    let chunk = Chunk::of_pages(id(), &[run_of(N)], &content);
    let layout = MemoryLayout::new(vec![run_of(N)]).expect("one region");
    bencher
        .counter(BytesCount::of_slice(&content))
        .bench(|| black_box(&chunk).decode(&layout).expect("a sound chunk"));
}

#[divan::bench(args = Fill::ALL)]
fn apply(bencher: Bencher<'_, '_>, fill: Fill) {
    let content = fill.content(256);
    let chunk = Chunk::of_pages(id(), &[run_of(256)], &content);
    let layout = MemoryLayout::new(vec![run_of(256)]).expect("one region");
    let Ok(Content::Pages(decoded)) = chunk.decode(&layout) else { panic!("a chunk of pages") };
    let mut image = vec![0; content.len()];
    bencher.counter(BytesCount::of_slice(&content)).bench_local(|| {
        let places = |run: checkpoint::PageRun| {
            run.first.address() as usize..run.end() as usize * checkpoint::PAGE_BYTES
        };
        for run in decoded.zero_runs() {
            image[places(*run)].fill(0);
        }
        for (run, bytes) in decoded.data_runs() {
            image[places(run)].copy_from_slice(bytes);
        }
        black_box(&mut image);
    });
}

#[divan::bench(consts = PAGES)]
fn baseline_copy<const N: usize>(bencher: Bencher<'_, '_>) {
    let content = Fill::Random.content(N);
    let mut place = vec![0; content.len()];
    bencher.counter(BytesCount::of_slice(&content)).bench_local(|| {
        place.copy_from_slice(black_box(&content));
        black_box(&mut place);
    });
}

#[divan::bench(consts = PAGES)]
fn baseline_blake3<const N: usize>(bencher: Bencher<'_, '_>) {
    let content = Fill::Random.content(N);
    bencher.counter(BytesCount::of_slice(&content)).bench(|| blake3::hash(black_box(&content)));
}
