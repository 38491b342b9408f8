//! What is encoded comes back as it was, and nothing malformed gets through.

use std::collections::BTreeMap;

use super::*;
use crate::{
    PAGE_BYTES, PageRun,
    history::History,
    image::{Image, PageStore, apply_pages},
    output::Channel,
};

const ID: ChunkId = ChunkId { epoch: Epoch::new(7), index: 3 };
const ZSTD: Compression = Compression::Zstd { level: 1 };

fn layout() -> MemoryLayout {
    MemoryLayout::new(vec![run(0, 300), run(1000, 24)]).unwrap()
}

fn run(first: u64, count: u64) -> PageRun {
    PageRun { first: PageNumber::new(first), count }
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().finalize_xof();
    let mut noise = vec![0; bytes];
    reader.fill(&mut noise);
    noise
}

fn decoded(chunk: &Chunk) -> Result<Content, ChunkError> {
    chunk.clone().decode(&layout())
}

/// Memory by page; what was never written is zero.
#[derive(Debug, Default, PartialEq)]
struct Memory(std::cell::RefCell<BTreeMap<u64, Vec<u8>>>);

impl PageStore for Memory {
    fn read(&self, run: PageRun, to: &mut [u8]) {
        let pages = self.0.borrow();
        for (page, to) in run.pages().zip(to.chunks_mut(PAGE_BYTES)) {
            match pages.get(&page.get()) {
                Some(content) => to.copy_from_slice(content),
                None => to.fill(0),
            }
        }
    }

    fn write(&self, run: PageRun, from: &[u8]) {
        for (page, from) in run.pages().zip(from.chunks(PAGE_BYTES)) {
            self.0.borrow_mut().insert(page.get(), from.to_vec());
        }
    }

    fn zero(&self, run: PageRun) {
        self.write(run, &vec![0; run.count as usize * PAGE_BYTES]);
    }
}

fn apply(chunk: &Chunk, memory: &Memory) {
    let Content::Pages(pages) = decoded(chunk).unwrap() else { panic!("not pages") };
    apply_pages(&pages, memory).unwrap();
}

fn memory_of(runs: &[PageRun], bytes: &[u8]) -> Memory {
    let memory = Memory::default();
    let pages = runs.iter().flat_map(|run| run.pages()).zip(bytes.chunks(PAGE_BYTES));
    for (page, content) in pages {
        memory.write(PageRun { first: page, count: 1 }, content);
    }
    memory
}

#[test]
fn pages_come_back_as_they_were() {
    let mut bytes = noise(6 * PAGE_BYTES);
    bytes[PAGE_BYTES..3 * PAGE_BYTES].fill(0);
    bytes[3 * PAGE_BYTES..4 * PAGE_BYTES].fill(7);
    bytes[5 * PAGE_BYTES..].fill(0);
    let runs = [run(298, 2), run(1000, 4)];
    for compression in [Compression::Off, ZSTD] {
        let chunk = Encoder::new(compression).pages(ID, &runs, bytes.clone());
        let memory = Memory::default();
        apply(&chunk, &memory);
        assert_eq!(memory, memory_of(&runs, &bytes));
        assert_eq!(decoded(&chunk).unwrap().pages(), 6);
    }
}

#[test]
fn a_page_that_changed_little_is_a_delta_and_one_that_did_not_is_left_out() {
    let mut history = History::new(1100, 1 << 20);
    let mut encoder = Encoder::new(Compression::Off);
    let runs = [run(298, 2), run(1000, 2)];
    let mut bytes = noise(4 * PAGE_BYTES);
    let memory = Memory::default();
    let mut send = |bytes: &[u8], history: &mut History| {
        let mut block = bytes.to_vec();
        let scan = encoder.scan(&runs, &mut block, &Places::default(), Some(history));
        let chunk = encoder.finish(ID, scan, block);
        apply(&chunk, &memory);
        assert_eq!(memory, memory_of(&runs, bytes));
        (chunk.body.len(), decoded(&chunk).unwrap().pages())
    };
    for _ in 0..2 {
        let (len, pages) = send(&bytes, &mut history);
        assert!(len > 4 * PAGE_BYTES && pages == 4);
    }
    assert_eq!(send(&bytes, &mut history), (8, 0));
    // One word each in two neighbouring pages.
    bytes[8] ^= 1;
    bytes[PAGE_BYTES + 800] ^= 1;
    let (len, pages) = send(&bytes, &mut history);
    assert!(len < 100 && pages == 2, "{len} octets for {pages} pages");
    // Zero, then back: nothing to build on.
    let zeros = vec![0; bytes.len()];
    assert!(send(&zeros, &mut history).0 < 100);
    assert!(send(&bytes, &mut history).0 > 4 * PAGE_BYTES);
}

#[test]
fn skipped_pages_are_not_sent() {
    let mut bytes = noise(3 * PAGE_BYTES);
    let mut skipped = Places::default();
    skipped.insert(1);
    let mut encoder = Encoder::new(Compression::Off);
    let scan = encoder.scan(&[run(4, 3)], &mut bytes, &skipped, None);
    assert_eq!(scan.pages(), 2);
    let memory = Memory::default();
    apply(&encoder.finish(ID, scan, bytes), &memory);
    let expected = noise(3 * PAGE_BYTES);
    let at = |page: usize| expected[page * PAGE_BYTES..(page + 1) * PAGE_BYTES].to_vec();
    assert_eq!(memory, memory_of(&[run(4, 1), run(6, 1)], &[at(0), at(2)].concat()));
}

#[test]
fn a_delta_on_other_content_breaks_the_image() {
    let mut history = History::new(1100, 1 << 20);
    let mut encoder = Encoder::new(Compression::Off);
    let mut block = noise(PAGE_BYTES);
    for _ in 0..2 {
        encoder.scan(&[run(5, 1)], &mut block.clone(), &Places::default(), Some(&mut history));
    }
    block[17] ^= 1;
    let scan = encoder.scan(&[run(5, 1)], &mut block, &Places::default(), Some(&mut history));
    let content = decoded(&encoder.finish(ID, scan, block)).unwrap();
    let broken = Image::default().apply(content, &Memory::default()).unwrap_err();
    assert!(matches!(broken, crate::image::BrokenImage::Page { page, .. } if page.get() == 5));
}

#[test]
fn what_compresses_is_compressed_and_what_does_not_is_not() {
    let text = || b"fault tolerance ".repeat(PAGE_BYTES / 16);
    let mut encoder = Encoder::new(ZSTD);
    assert_eq!(encoder.pages(ID, &[run(0, 1)], text()).encoding, Encoding::Zstd);
    assert_eq!(encoder.pages(ID, &[run(0, 1)], noise(PAGE_BYTES)).encoding, Encoding::Raw);
    // After a failure the next is not tried.
    assert_eq!(encoder.pages(ID, &[run(0, 1)], text()).encoding, Encoding::Raw);
    assert_eq!(encoder.pages(ID, &[run(0, 1)], text()).encoding, Encoding::Zstd);
    let zero = encoder.pages(ID, &[run(0, 256)], vec![0; 256 * PAGE_BYTES]);
    assert!(zero.body.len() < 32, "{} bytes for nothing", zero.body.len());
    let mut plain = Encoder::new(Compression::Off);
    assert_eq!(plain.pages(ID, &[run(0, 1)], text()).encoding, Encoding::Raw);
}

#[test]
fn outputs_and_sections_come_back() {
    let mut encoder = Encoder::new(ZSTD);
    let outputs = vec![
        Output { channel: Channel::Console, payload: b"login:"[..].into() },
        Output { channel: Channel::Network(1), payload: noise(60).into() },
    ];
    let (chunk, taken) = Chunk::of_outputs(ID, &outputs, &mut encoder);
    assert_eq!(taken, 2);
    assert_eq!(decoded(&chunk), Ok(Content::Outputs(outputs)));
    let sections = Sections::default();
    let chunk = SectionEncoder::default().chunk(ID, &sections, true, &mut encoder);
    assert_eq!(decoded(&chunk), Ok(Content::Sections(sections)));
}

#[test]
fn state_that_changed_little_is_a_delta() {
    let sections = |last: u8| {
        let mut bytes = noise(3000);
        bytes[1000] = last;
        Sections::new(vec![crate::Section { name: "vcpu".into(), version: 1, bytes }]).unwrap()
    };
    let mut encoder = Encoder::new(ZSTD);
    let mut state = SectionEncoder::default();
    let mut image = Image::default();
    for (last, fresh, kind) in [
        (1, false, ChunkKind::Sections),
        (2, false, ChunkKind::SectionsDelta),
        (3, true, ChunkKind::Sections),
        (3, false, ChunkKind::Sections),
        (4, false, ChunkKind::SectionsDelta),
    ] {
        let chunk = state.chunk(ID, &sections(last), fresh, &mut encoder);
        assert_eq!(chunk.kind, kind, "{last} {fresh}");
        image.apply(decoded(&chunk).unwrap(), &Memory::default()).unwrap();
        assert_eq!(*image.sections(), sections(last));
    }
}

#[test]
fn a_flipped_bit_anywhere_is_seen() {
    let page = b"guest".repeat(820)[..PAGE_BYTES].to_vec();
    let chunk = Encoder::new(ZSTD).pages(ID, &[run(0, 1)], page);
    let body = chunk.body.clone().into_contiguous().to_vec();
    for bit in 0..body.len() * 8 {
        let mut flipped = body.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let flipped = Chunk { body: flipped.into(), ..chunk.clone() };
        assert_eq!(decoded(&flipped), Err(ChunkError::Digest(ID)));
    }
    let mut moved = chunk;
    moved.id.index += 1;
    assert!(decoded(&moved).is_err(), "a chunk moved to another place");
}

#[test]
fn pages_outside_memory_are_refused() {
    for outside in [run(299, 2), run(400, 1), run(1023, 2)] {
        let bytes = vec![1; outside.count as usize * PAGE_BYTES];
        let chunk = Encoder::new(ZSTD).pages(ID, &[outside], bytes);
        assert!(matches!(decoded(&chunk), Err(ChunkError::OutsideMemory { .. })));
    }
}

#[test]
fn golden_bytes_of_a_page_list() {
    let mut history = History::new(1100, 1 << 20);
    let mut encoder = Encoder::new(Compression::Off);
    let mut block = vec![3; PAGE_BYTES];
    for _ in 0..2 {
        encoder.scan(&[run(1, 1)], &mut block.clone(), &Places::default(), Some(&mut history));
    }
    let check = twox_hash::XxHash3_64::oneshot(&block).to_le_bytes();
    block[8] = 4;
    block.extend([0; PAGE_BYTES]);
    block.extend([5; PAGE_BYTES]);
    let scan = encoder.scan(&[run(1, 3)], &mut block, &Places::default(), Some(&mut history));
    let body = encoder.finish(ID, scan, block).body.into_contiguous();
    let run = |first: u8, spelling: u8| [first, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, spelling];
    let head = [
        &[3, 0, 0, 0, 20, 0, 0, 0][..],
        &run(1, 2),
        &run(2, 0),
        &run(3, 1),
        &[18, 0],
        &check,
        &[1, 1, 4, 3, 3, 3, 3, 3, 3, 3],
    ]
    .concat();
    assert_eq!(body[..head.len()], head);
    assert_eq!(body[head.len()..], [5; PAGE_BYTES]);
}

proptest::proptest! {
    #[test]
    fn any_body_decodes_or_errs(
        kind in 0_u8..4,
        zstd: bool,
        decoded_bytes in 0_u32..100_000,
        body: Vec<u8>,
    ) {
        let mut chunk = Chunk {
            id: ID,
            kind: ChunkKind::from_code(kind).unwrap(),
            encoding: if zstd { Encoding::Zstd } else { Encoding::Raw },
            decoded_bytes: if zstd { decoded_bytes } else { body.len() as u32 },
            body: body.into(),
            digest: [0; 32],
        };
        chunk.digest = chunk.expected_digest();
        if let Ok(content) = decoded(&chunk) {
            let _ = Image::default().apply(content, &Memory::default());
        }
    }

    /// Bodies that are nearly right, so that decoding goes deep.
    #[test]
    fn any_change_of_a_page_list_decodes_or_errs(
        at in 0_usize..90, octet: u8, cut in 0_usize..90, seed in 0_u8..4,
    ) {
        let mut history = History::new(1100, 1 << 20);
        let mut encoder = Encoder::new(Compression::Off);
        let mut block = vec![seed; 3 * PAGE_BYTES];
        for _ in 0..2 {
            encoder.scan(&[run(1, 3)], &mut block.clone(), &Places::default(), Some(&mut history));
        }
        block[9] ^= 1;
        block[PAGE_BYTES..2 * PAGE_BYTES].fill(seed + 1);
        let scan = encoder.scan(&[run(1, 3)], &mut block, &Places::default(), Some(&mut history));
        let mut chunk = encoder.finish(ID, scan, block);
        let mut body = chunk.body.into_contiguous().to_vec();
        if let Some(place) = body.get_mut(at) {
            *place = octet;
        }
        if seed == 3 {
            body.truncate(cut);
        }
        chunk.decoded_bytes = body.len() as u32;
        chunk.body = body.into();
        chunk.digest = chunk.expected_digest();
        if let Ok(content) = decoded(&chunk) {
            let _ = Image::default().apply(content, &Memory::default());
        }
    }
}
