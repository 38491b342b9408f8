//! One hot loop, so many times: what `scripts/count-instructions` counts.
//!
//!     loops                names the loops
//!     loops NAME ROUNDS    runs one on 256 pages (1 MiB) in each round
//!
//! The work before the rounds is the same for any number of them, so the difference of
//! two runs is what the rounds cost, to the instruction.

#![forbid(unsafe_code)]

use std::{hint::black_box, process::ExitCode};

use checkpoint::{
    Epoch, MemoryLayout, PAGE_BYTES,
    chunk::{Chunk, ChunkId, Compression, Content, Encoder, Places},
    history::History,
    image::apply_pages,
};
use romulus_benches::{Fill, Flat, run_of, spread};

const PAGES: usize = 256;
const ID: ChunkId = ChunkId { epoch: Epoch::FIRST, index: 0 };

/// A round; made with everything that it needs.
type Round = Box<dyn FnMut()>;

/// Makes a round.
type Make = fn() -> Round;

const LOOPS: [(&str, Make); 9] = [
    ("scan-zero", || scan(Fill::Zero)),
    ("scan-random", || scan(Fill::Random)),
    ("scan-deltas", deltas),
    ("encode-raw", || encode(Fill::Random, Compression::Off)),
    ("encode-zstd", || encode(Fill::Compressible, Compression::Zstd { level: 1 })),
    ("decode-raw", || decode(Fill::Random)),
    ("decode-zstd", || decode(Fill::Compressible)),
    ("apply", apply),
    ("dirty-pages", dirty_pages),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some(name) = words.first() else {
        LOOPS.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    };
    let found = LOOPS.iter().find(|(known, _)| known == name);
    let rounds = words.get(1).and_then(|word| word.parse::<u32>().ok());
    let (Some((_, make)), Some(rounds)) = (found, rounds) else {
        eprintln!("usage: loops NAME ROUNDS; without arguments it names the loops");
        return ExitCode::from(2);
    };
    let mut round = make();
    // What happens once, such as the growth of buffers, is not in the difference.
    round();
    (0..rounds).for_each(|_| round());
    ExitCode::SUCCESS
}

fn scan(fill: Fill) -> Round {
    let (mut encoder, mut content) = (Encoder::new(Compression::Off), fill.content(PAGES));
    Box::new(move || {
        let scan = encoder.scan(&[run_of(PAGES)], &mut content, &Places::default(), None);
        black_box(scan);
    })
}

/// One word of every page changes.
fn deltas() -> Round {
    let (mut encoder, mut content) = (Encoder::new(Compression::Off), Fill::Random.content(PAGES));
    let mut history = History::new(PAGES as u64, content.len());
    let mut scan = move |content: &mut [u8]| {
        let past = Some(&mut history);
        black_box(encoder.scan(&[run_of(PAGES)], content, &Places::default(), past));
    };
    // Pages are kept when they are offered for the second time.
    scan(&mut content);
    scan(&mut content);
    Box::new(move || {
        for page in content.chunks_exact_mut(PAGE_BYTES) {
            page[8 * 77] ^= 1;
        }
        scan(&mut content);
    })
}

fn encode(fill: Fill, compression: Compression) -> Round {
    let (mut encoder, content) = (Encoder::new(compression), fill.content(PAGES));
    Box::new(move || {
        black_box(encoder.pages(ID, &[run_of(PAGES)], content.clone()));
    })
}

fn chunk(fill: Fill) -> (Chunk, MemoryLayout) {
    let mut encoder = Encoder::new(Compression::Zstd { level: 1 });
    let mut chunk = encoder.pages(ID, &[run_of(PAGES)], fill.content(PAGES));
    // As it is when it has been received: in one piece.
    chunk.body = chunk.body.clone().into_contiguous().to_vec().into();
    (chunk, MemoryLayout::new(vec![run_of(PAGES)]).expect("one region"))
}

fn decode(fill: Fill) -> Round {
    let (chunk, layout) = chunk(fill);
    Box::new(move || {
        black_box(chunk.clone().decode(&layout).expect("a sound chunk"));
    })
}

fn apply() -> Round {
    let (chunk, layout) = chunk(Fill::Random);
    let Ok(Content::Pages(pages)) = chunk.decode(&layout) else { panic!("a chunk of pages") };
    let image = Flat::of_pages(PAGES);
    Box::new(move || apply_pages(black_box(&pages), &image).expect("no delta"))
}

/// The dirty pages of an epoch into a set of 4 GiB, out of it in runs, and cleared.
fn dirty_pages() -> Round {
    let dirty = spread(1 << 20, 10_000);
    let mut owed = checkpoint::PageSet::new(1 << 20);
    Box::new(move || {
        owed.union(black_box(&dirty));
        black_box(owed.runs(256).map(|run| run.count).sum::<u64>());
        owed.clear();
    })
}
