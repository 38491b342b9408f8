//! How pages are spelled in a chunk.
//!
//! ```text
//!   body  := run_count:u32  delta_bytes:u32  run[run_count]  delta*  content     little-endian
//!   run   := first_frame:u64  count:u32  spelling:u8
//!            0 zero: the pages are all zero
//!            1 data: their content stands in `content`, in the order of the runs
//!            2 delta: one `delta` for each page, in the order of the runs
//!   delta := len:u16  octets[len], see `crate::delta`
//! ```
//!
//! A page that is as the backup has it already is not named at all.

use bytes::Bytes;

use super::{CHUNK_PAGES_MAX, ChunkError};
use crate::{MemoryLayout, PAGE_BYTES, PageNumber, PageRun, delta};

const COUNTS_BYTES: usize = 8;
const RUN_BYTES: usize = 13;
const DELTA_HEAD_BYTES: usize = 2;

/// How a page is spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    Zero,
    Data,
    Delta,
}

impl Spelling {
    fn code(self) -> u8 {
        match self {
            Self::Zero => 0,
            Self::Data => 1,
            Self::Delta => 2,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Zero),
            1 => Some(Self::Data),
            2 => Some(Self::Delta),
            _ => None,
        }
    }
}

/// New content of pages, checked for one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageContent {
    runs: Vec<(PageRun, Spelling)>,
    body: Bytes,
    deltas_from: usize,
    content_from: usize,
}

/// What is new in a run of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News<'a> {
    /// They are all zero.
    Zero,
    /// They are this, `count * PAGE_BYTES` long.
    Data(&'a [u8]),
    /// It is one page, and this delta leads to it.
    Delta(&'a [u8]),
}

impl PageContent {
    /// What is new, run by run.
    pub fn news(&self) -> impl Iterator<Item = (PageRun, News<'_>)> {
        let mut deltas = &self.body[self.deltas_from..self.content_from];
        let mut content = &self.body[self.content_from..];
        self.runs.iter().map(move |(run, spelling)| match spelling {
            Spelling::Zero => (*run, News::Zero),
            Spelling::Data => {
                let (data, rest) = content.split_at(run.count as usize * PAGE_BYTES);
                content = rest;
                (*run, News::Data(data))
            }
            Spelling::Delta => {
                let delta = take_delta(&mut deltas).expect("checked when it was decoded");
                (*run, News::Delta(delta))
            }
        })
    }

    /// How many pages it names.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|(run, _)| run.count).sum()
    }

    /// Bytes that it takes while staged.
    #[must_use]
    pub fn staged_bytes(&self) -> usize {
        self.body.len() + self.runs.len() * size_of::<(PageRun, Spelling)>()
    }
}

/// Builds the part of a body before the content.
#[derive(Debug, Default)]
pub(super) struct HeadBuilder {
    runs: Vec<(PageNumber, u32, Spelling)>,
    /// Each with its length before it.
    deltas: Vec<u8>,
    pages: u64,
}

impl HeadBuilder {
    pub(super) fn clear(&mut self) {
        self.runs.clear();
        self.deltas.clear();
        self.pages = 0;
    }

    pub(super) fn push(&mut self, page: PageNumber, spelling: Spelling) {
        self.pages += 1;
        if let Some((first, count, last)) = self.runs.last_mut()
            && *last == spelling
            && spelling != Spelling::Delta
            && first.get() + u64::from(*count) == page.get()
        {
            *count += 1;
        } else {
            self.runs.push((page, 1, spelling));
        }
    }

    /// Appends a delta that `write` makes; it tells whether it made one.
    pub(super) fn push_delta<T>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> (bool, T)) -> T {
        let begun = self.deltas.len();
        self.deltas.extend([0; DELTA_HEAD_BYTES]);
        let (made, result) = write(&mut self.deltas);
        if made {
            let len = self.deltas.len() - begun - DELTA_HEAD_BYTES;
            let len = u16::try_from(len).expect("deltas are shorter than their page");
            self.deltas[begun..begun + DELTA_HEAD_BYTES].copy_from_slice(&len.to_le_bytes());
        } else {
            self.deltas.truncate(begun);
        }
        result
    }

    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let len = COUNTS_BYTES + self.runs.len() * RUN_BYTES + self.deltas.len();
        let mut head = Vec::with_capacity(len);
        head.extend((self.runs.len() as u32).to_le_bytes());
        head.extend((self.deltas.len() as u32).to_le_bytes());
        for (first, count, spelling) in &self.runs {
            head.extend(first.get().to_le_bytes());
            head.extend(count.to_le_bytes());
            head.push(spelling.code());
        }
        head.extend(&self.deltas);
        head
    }
}

pub(super) fn decode(body: Bytes, layout: &MemoryLayout) -> Result<PageContent, ChunkError> {
    let early = ChunkError::Malformed("its page list ends early");
    let (counts, mut rest) = body.split_first_chunk::<COUNTS_BYTES>().ok_or(early.clone())?;
    let run_count = u32_at(counts, 0) as usize;
    let delta_bytes = u32_at(counts, 4) as usize;
    if run_count > CHUNK_PAGES_MAX {
        return Err(ChunkError::Malformed("it has more runs than a chunk has pages"));
    }
    let mut runs = Vec::with_capacity(run_count);
    let (mut pages, mut data_pages, mut delta_pages) = (0, 0, 0);
    for _ in 0..run_count {
        let (head, left) = rest.split_first_chunk::<RUN_BYTES>().ok_or(early.clone())?;
        rest = left;
        let (run, spelling) = checked_run(head, layout)?;
        pages += run.count;
        match spelling {
            Spelling::Zero => {}
            Spelling::Data => data_pages += run.count,
            Spelling::Delta => delta_pages += run.count,
        }
        runs.push((run, spelling));
    }
    if pages > CHUNK_PAGES_MAX as u64 {
        return Err(ChunkError::Malformed("it has too many pages"));
    }
    let (deltas, content) = rest.split_at_checked(delta_bytes).ok_or(early)?;
    check_deltas(deltas, delta_pages)?;
    if content.len() as u64 != data_pages * PAGE_BYTES as u64 {
        return Err(ChunkError::Malformed("its page content has the wrong length"));
    }
    let deltas_from = body.len() - rest.len();
    let content_from = body.len() - content.len();
    Ok(PageContent { runs, body, deltas_from, content_from })
}

fn checked_run(
    head: &[u8; RUN_BYTES],
    layout: &MemoryLayout,
) -> Result<(PageRun, Spelling), ChunkError> {
    let first = u64::from_le_bytes(head[..8].try_into().expect("eight octets"));
    let count = u64::from(u32_at(head, 8));
    let run = PageRun { first: PageNumber::new(first), count };
    let spelling = Spelling::from_code(head[12])
        .ok_or(ChunkError::Malformed("a run is neither zero nor data nor delta"))?;
    if count == 0 || spelling == Spelling::Delta && count != 1 {
        return Err(ChunkError::Malformed("a run has no page, or several with one delta"));
    }
    if count > CHUNK_PAGES_MAX as u64 || !layout.contains(run) {
        return Err(ChunkError::OutsideMemory { first: run.first, count });
    }
    Ok((run, spelling))
}

fn check_deltas(mut deltas: &[u8], count: u64) -> Result<(), ChunkError> {
    for _ in 0..count {
        let delta = take_delta(&mut deltas).ok_or(ChunkError::Malformed("its deltas end early"))?;
        if !delta::is_sound(delta, PAGE_BYTES) {
            return Err(ChunkError::Malformed("a delta is malformed"));
        }
    }
    if deltas.is_empty() { Ok(()) } else { Err(ChunkError::Malformed("it has a delta too many")) }
}

fn take_delta<'a>(deltas: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = deltas.split_first_chunk::<DELTA_HEAD_BYTES>()?;
    let (delta, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    *deltas = rest;
    Some(delta)
}

fn u32_at(octets: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(octets[at..at + 4].try_into().expect("four octets"))
}
