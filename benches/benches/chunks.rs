//! Encoding and decoding chunks, beside what bounds them: a copy, BLAKE3 and
//! zstd's work is the difference.
//!
//! A chunk of 256 pages is 1 MiB; of 16 pages, 64 KiB.

#![forbid(unsafe_code)]

use checkpoint::{
    Epoch, MemoryLayout, PAGE_BYTES,
    chunk::{ChunkId, Compression, Content, Encoder, Places},
    history::History,
    image::apply_pages,
};
use divan::{Bencher, black_box, counter::BytesCount};
use romulus_benches::{Fill, Flat, run_of};

const PAGES: [usize; 2] = [16, 256];
const ZSTD: Compression = Compression::Zstd { level: 1 };

fn main() {
    divan::main();
}

fn id() -> ChunkId {
    ChunkId { epoch: Epoch::new(1), index: 0 }
}

#[divan::bench(args = Fill::ALL, consts = PAGES)]
fn encode<const N: usize>(bencher: Bencher<'_, '_>, fill: Fill) {
    let (runs, content) = ([run_of(N)], fill.content(N));
    let mut encoder = Encoder::new(ZSTD);
    bencher
        .counter(BytesCount::of_slice(&content))
        .with_inputs(|| content.clone())
        .bench_local_values(|block| encoder.pages(id(), black_box(&runs), block));
}

#[divan::bench(args = Fill::ALL, consts = PAGES)]
fn decode<const N: usize>(bencher: Bencher<'_, '_>, fill: Fill) {
    let content = fill.content(N);
    let chunk = Encoder::new(ZSTD).pages(id(), &[run_of(N)], content.clone());
    let layout = MemoryLayout::new(vec![run_of(N)]).expect("one region");
    bencher
        .counter(BytesCount::of_slice(&content))
        .with_inputs(|| chunk.clone())
        .bench_values(|chunk| chunk.decode(&layout).expect("a sound chunk"));
}

#[divan::bench(args = Fill::ALL)]
fn apply(bencher: Bencher<'_, '_>, fill: Fill) {
    let content = fill.content(256);
    let chunk = Encoder::new(ZSTD).pages(id(), &[run_of(256)], content.clone());
    let layout = MemoryLayout::new(vec![run_of(256)]).expect("one region");
    let Ok(Content::Pages(decoded)) = chunk.decode(&layout) else { panic!("a chunk of pages") };
    let image = Flat::of_pages(256);
    bencher
        .counter(BytesCount::of_slice(&content))
        .bench_local(|| apply_pages(black_box(&decoded), &image).expect("no delta"));
}

/// Pages of which one word each has changed since they were sent.
#[divan::bench]
fn encode_deltas(bencher: Bencher<'_, '_>) {
    let content = Fill::Random.content(256);
    let mut history = History::new(256, content.len());
    let mut encoder = Encoder::new(ZSTD);
    let mut word = 0;
    bencher
        .counter(BytesCount::of_slice(&content))
        .with_inputs(|| {
            let mut block = content.clone();
            word += 1;
            for page in block.chunks_mut(PAGE_BYTES) {
                page[word % 512 * 8] ^= 1;
            }
            block
        })
        .bench_local_values(|mut block| {
            let scan =
                encoder.scan(&[run_of(256)], &mut block, &Places::default(), Some(&mut history));
            encoder.finish(id(), scan, block)
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
