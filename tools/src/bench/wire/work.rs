//! The stages that need no network, each alone, on one thread.
//!
//! All of them work on [`SET_BYTES`] of memory, more than fits a cache, in blocks
//! as captures have them. The bytes that count are those of the guest's pages,
//! whatever becomes of them.

use std::sync::Arc;

use checkpoint::{
    Epoch, MemoryLayout, PAGE_BYTES, PageNumber, PageRun,
    chunk::{CHUNK_PAGES_MAX, Chunk, ChunkId, Compression, Content, Encoder, Places},
    history::History,
    image::{PageStore, apply_pages},
};
use rand::Rng;
use rustls::{
    Side,
    crypto::ring::cipher_suite,
    quic::{Keys, Version},
};
use transport::wire::ChunkHead;
use vmm::memory::GuestRam;

use crate::config::ZSTD_LEVEL;

use super::{
    WireError,
    contest::{Contender, Stage},
    meter::{Sample, Stamp},
};

/// Memory that is gone over.
pub(super) const SET_BYTES: usize = 64 << 20;
/// A block of a capture.
pub(super) const BLOCK_BYTES: usize = CHUNK_PAGES_MAX * PAGE_BYTES;
/// Blocks of the set.
const BLOCKS: usize = SET_BYTES / BLOCK_BYTES;
/// Zstd's level in the product.
const ZSTD: Compression = Compression::Zstd { level: ZSTD_LEVEL };

/// What pages hold.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fill {
    /// Bytes that no codec makes smaller.
    Random,
    /// Short records that differ in a number.
    Records,
}

/// A set of pages, in blocks.
pub(super) fn blocks(fill: Fill) -> Vec<Vec<u8>> {
    let mut random = rand::rng();
    let mut block = |number: usize| {
        let mut bytes = vec![0; BLOCK_BYTES];
        match fill {
            Fill::Random => random.fill_bytes(&mut bytes),
            Fill::Records => {
                for (index, record) in bytes.chunks_exact_mut(32).enumerate() {
                    record[..16].copy_from_slice(b"customer-record ");
                    let word = (number * BLOCK_BYTES + index) as u64;
                    record[16..24].copy_from_slice(&word.wrapping_mul(0x9e37_79b9).to_le_bytes());
                }
            }
        }
        bytes
    };
    (0..BLOCKS).map(&mut block).collect()
}

/// The set as chunks that are sent as they are.
pub(super) type Chunks = Arc<[Arc<Chunk>]>;

/// Encodes [`Chunks`].
pub(super) fn chunks() -> Chunks {
    let mut encoder = Encoder::new(Compression::Off);
    let chunk = |(number, block)| Arc::new(encoder.pages(id(number), &[run_of(number)], block));
    blocks(Fill::Random).into_iter().enumerate().map(chunk).collect()
}

/// The pages of block `number` of the set.
pub(super) fn run_of(number: usize) -> PageRun {
    let first = PageNumber::new((number * CHUNK_PAGES_MAX) as u64);
    PageRun { first, count: CHUNK_PAGES_MAX as u64 }
}

/// Memory that has the set.
pub(super) fn layout() -> MemoryLayout {
    let all = PageRun { first: PageNumber::new(0), count: (SET_BYTES / PAGE_BYTES) as u64 };
    MemoryLayout::new(vec![all]).expect("one region")
}

/// `chunk` as it is when it has come over the network: in one piece.
pub(super) fn received(chunk: &Chunk) -> Chunk {
    let body = chunk.body.clone().into_contiguous();
    ChunkHead::of(chunk).into_chunk(body.to_vec()).expect("a chunk that was encoded")
}

/// Every stage, in the order of an epoch's way.
pub(super) fn contenders() -> Result<Vec<Contender>, WireError> {
    let mut all = vec![copy(), scan(), deltas()];
    all.extend([encode(Fill::Random, Compression::Off), encode(Fill::Records, ZSTD), hash()]);
    all.extend([1452, 8952, 65000].map(|mtu| encrypt(Cipher::Aes128, mtu)));
    all.push(encrypt(Cipher::Aes256, 65000));
    all.extend([decode(Fill::Random), decode(Fill::Records), apply()?]);
    Ok(all)
}

/// A contender that goes over the set block by block, after one round that does not
/// count.
fn alone(
    stage: Stage,
    name: impl Into<String>,
    mut work: impl FnMut(usize) + 'static,
) -> Contender {
    (0..BLOCKS).for_each(&mut work);
    let run = move |bytes: u64| -> Result<Sample, WireError> {
        let rounds = (bytes as usize).div_ceil(SET_BYTES);
        let begun = Stamp::now();
        for _ in 0..rounds {
            (0..BLOCKS).for_each(&mut work);
        }
        Ok(begun.sample((rounds * SET_BYTES) as u64))
    };
    Contender::new(stage, name, run)
}

fn copy() -> Contender {
    let (from, mut to) = (blocks(Fill::Random), blocks(Fill::Random));
    alone(Stage::Baseline, "memcpy", move |number| {
        to[number].copy_from_slice(std::hint::black_box(&from[number]));
        std::hint::black_box(&mut to[number]);
    })
}

/// Looking whether pages are zero, with nothing that they could build on.
fn scan() -> Contender {
    let mut content = blocks(Fill::Random);
    let mut encoder = Encoder::new(Compression::Off);
    alone(Stage::Encode, "scan for zeros", move |number| {
        let block = &mut content[number];
        std::hint::black_box(encoder.scan(&[run_of(number)], block, &Places::default(), None));
    })
}

/// One word of every page has changed since it was sent.
fn deltas() -> Contender {
    let mut content = blocks(Fill::Random);
    // What has a delta is not closed up over, so that `content` stays as it is.
    let mut history = History::new((SET_BYTES / PAGE_BYTES) as u64, SET_BYTES);
    let mut encoder = Encoder::new(Compression::Off);
    for _ in 0..2 {
        for (number, block) in content.iter_mut().enumerate() {
            encoder.scan(&[run_of(number)], block, &Places::default(), Some(&mut history));
        }
    }
    let mut word = 0;
    alone(Stage::Encode, "scan for deltas, one word a page", move |number| {
        word += 1;
        let block = &mut content[number];
        for page in block.chunks_exact_mut(PAGE_BYTES) {
            page[word % 512 * 8] ^= 1;
        }
        let past = Some(&mut history);
        std::hint::black_box(encoder.scan(&[run_of(number)], block, &Places::default(), past));
    })
}

/// All that an encoder does with pages that build on nothing.
fn encode(fill: Fill, compression: Compression) -> Contender {
    let mut content: Vec<_> = blocks(fill).into_iter().map(Lent::new).collect();
    let mut encoder = Encoder::new(compression);
    let name = match compression {
        Compression::Off => "scan and BLAKE3, sent as it is".to_owned(),
        Compression::Zstd { level } => format!("scan, zstd {level} and BLAKE3, records"),
    };
    alone(Stage::Encode, name, move |number| {
        let block = &mut content[number];
        let scan = encoder.scan(&[run_of(number)], block.own(), &Places::default(), None);
        std::hint::black_box(encoder.finish(id(number), scan, block.clone()));
    })
}

fn hash() -> Contender {
    let content = blocks(Fill::Random);
    alone(Stage::Hash, "BLAKE3", move |number| {
        std::hint::black_box(blake3::hash(&content[number]));
    })
}

/// The ciphers that both ends have; TLS agrees on the first in the dialler's list.
#[derive(Debug, Clone, Copy)]
enum Cipher {
    Aes128,
    Aes256,
}

/// The packet protection of QUIC.
fn encrypt(cipher: Cipher, mtu: usize) -> Contender {
    const OVERHEAD_BYTES: usize = 16 + 12;
    let (suite, name) = match cipher {
        Cipher::Aes128 => (cipher_suite::TLS13_AES_128_GCM_SHA256, "AES-128-GCM"),
        Cipher::Aes256 => (cipher_suite::TLS13_AES_256_GCM_SHA384, "AES-256-GCM"),
    };
    let suite = suite.tls13().expect("a suite of TLS 1.3");
    let quic = suite.quic_suite().expect("ring has QUIC's keys");
    let keys = Keys::initial(Version::V1, quic.suite, quic.quic, &[7; 8], Side::Client);
    let mut content = blocks(Fill::Random);
    let mut packet = 0;
    alone(Stage::Encrypt, format!("{name}, packets of {mtu}"), move |number| {
        for payload in content[number].chunks_mut(mtu - OVERHEAD_BYTES) {
            packet += 1;
            let sealed = keys.local.packet.encrypt_in_place(packet, &[0; 12], payload);
            assert!(sealed.is_ok(), "a packet below the limit of its key");
        }
    })
}

fn decode(fill: Fill) -> Contender {
    let mut encoder = Encoder::new(ZSTD);
    let chunks: Vec<_> = blocks(fill)
        .into_iter()
        .enumerate()
        .map(|(number, block)| received(&encoder.pages(id(number), &[run_of(number)], block)))
        .collect();
    let layout = layout();
    let name = match fill {
        Fill::Random => "verify and decode, sent as it is",
        Fill::Records => "verify and decode, zstd of records",
    };
    alone(Stage::Decode, name, move |number| {
        let content = chunks[number].clone().decode(&layout).expect("a chunk that was encoded");
        std::hint::black_box(content);
    })
}

fn apply() -> Result<Contender, WireError> {
    let mut encoder = Encoder::new(Compression::Off);
    let layout = layout();
    let contents: Vec<_> = blocks(Fill::Random)
        .into_iter()
        .enumerate()
        .map(|(number, block)| {
            let chunk = received(&encoder.pages(id(number), &[run_of(number)], block));
            chunk.decode(&layout).expect("a chunk that was encoded")
        })
        .collect();
    let image = GuestImage::new()?;
    Ok(alone(Stage::Apply, "apply to guest memory", move |number| {
        let Content::Pages(pages) = &contents[number] else { panic!("a chunk of pages") };
        apply_pages(pages, &image).expect("no delta is in it");
    }))
}

fn id(number: usize) -> ChunkId {
    ChunkId { epoch: Epoch::FIRST, index: number as u32 }
}

/// A block that a chunk borrows: nothing is copied, as with the product's pool.
#[derive(Debug, Clone)]
pub(super) struct Lent(Arc<[u8]>);

impl Lent {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// The block, to be written; copied if a chunk still has it.
    pub(super) fn own(&mut self) -> &mut [u8] {
        Arc::make_mut(&mut self.0)
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Guest memory without a guest, as a backup applies to it.
#[derive(Debug)]
pub(super) struct GuestImage(GuestRam);

impl GuestImage {
    pub(super) fn new() -> Result<Self, WireError> {
        let ram = GuestRam::new(SET_BYTES as u64, false)?;
        ram.touch(1)?;
        Ok(Self(ram))
    }
}

impl PageStore for GuestImage {
    fn read(&self, run: PageRun, to: &mut [u8]) {
        self.0.copy_out(run, to);
    }

    fn write(&self, run: PageRun, from: &[u8]) {
        self.0.copy_in(run, from);
    }

    fn zero(&self, run: PageRun) {
        self.0.zero(run);
    }
}
