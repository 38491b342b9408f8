//! Verified content that waits for its epoch's commit, bounded in bytes.
//!
//! Every piece belongs to a session: what a decoder finishes for a session that
//! is over is not taken. The machine in [`crate::backup`] decides by ids and
//! digests what is committed; this is where the content itself lies meanwhile.
//!
//! **Bound.** What is staged and what is committed but not applied are counted
//! together. Over `bytes_max`
//!
//! - a decoder waits as long as something is being applied;
//! - then only the lowest epoch that is staged still grows, as it is what the
//!   next commit waits for. Chunks of later ones are passed over; when their
//!   epoch is closed they are missed and asked for again;
//! - over twice as much, the primary has broken its word: it sends no epoch
//!   larger than `bytes_max`.
//!
//! So a peer that never completes anything costs memory that is known.

use std::collections::BTreeMap;

use crate::{
    Epoch,
    chunk::{ChunkId, Content, Digest},
};

/// What a piece costs beside its content, roughly: a peer may send empty ones.
const PIECE_BYTES: usize = 256;

/// Content of one epoch, by chunk index.
pub type EpochContent = BTreeMap<u32, Content>;

/// A chunk's content, and the digest that it was verified by.
#[derive(Debug)]
struct Piece {
    digest: Digest,
    content: Content,
}

/// What was staged, to be freed when there is time.
#[derive(Debug)]
pub struct Unwanted {
    _epochs: BTreeMap<Epoch, BTreeMap<u32, Piece>>,
}

/// What became of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// It is staged, or was before.
    Staged,
    /// It is not wanted: its epoch is committed, another came before in its
    /// place, or there is no room for its epoch yet.
    Passed,
    /// It is more than a primary may send: its session should end.
    Excess,
}

impl Piece {
    fn bytes(&self) -> usize {
        self.content.staged_bytes() + PIECE_BYTES
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct Staging {
    session: u64,
    epochs: BTreeMap<Epoch, BTreeMap<u32, Piece>>,
    /// The last epoch that was taken; duplicates may come after it.
    taken: Epoch,
    /// Chunks of the seed below it were taken.
    seed_taken: u32,
    /// Of all pieces.
    staged_bytes: usize,
    /// Committed and not applied.
    backlog_bytes: usize,
    bytes_max: usize,
}

impl Staging {
    /// Nothing is staged, and `bytes_max` may be.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            session: 0,
            epochs: BTreeMap::new(),
            taken: Epoch::ZERO,
            seed_taken: 0,
            staged_bytes: 0,
            backlog_bytes: 0,
            bytes_max,
        }
    }

    /// From now on only content of `session` is staged; nothing is staged yet.
    /// What was committed stays. Returns what was staged, which may take long to
    /// free.
    #[must_use]
    pub fn begin(&mut self, session: u64) -> Unwanted {
        self.session = session;
        self.staged_bytes = 0;
        Unwanted { _epochs: std::mem::take(&mut self.epochs) }
    }

    /// There is no image any more: nothing is committed.
    #[must_use]
    pub fn discard(&mut self) -> Unwanted {
        self.taken = Epoch::ZERO;
        self.seed_taken = 0;
        self.begin(self.session)
    }

    /// Whether `session` is over.
    #[must_use]
    pub fn is_over(&self, session: u64) -> bool {
        self.session != session
    }

    /// Whether more content may come. While not, a decoder waits, so that a
    /// backup that applies slowly slows its primary instead of growing. With
    /// nothing to apply, waiting would not help.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.backlog_bytes == 0 || self.backlog_bytes + self.staged_bytes <= self.bytes_max
    }

    /// Stages content that was verified by `digest`. Of two in one place of an
    /// epoch the first stays, so that what is applied is what the machine was told
    /// of and has judged. A seed's chunk may have been made again: whichever of
    /// them is applied, later chunks have what was written since.
    ///
    /// # Panics
    ///
    /// If the session is over.
    pub fn stage(&mut self, session: u64, id: ChunkId, digest: Digest, content: Content) -> Placed {
        assert_eq!(self.session, session, "content of a session that is over");
        if self.is_past(id) {
            return Placed::Passed;
        }
        let before = self.epochs.get(&id.epoch).and_then(|pieces| pieces.get(&id.index));
        let replaced_bytes = match before {
            Some(before) if before.digest == digest => return Placed::Staged,
            Some(_) if id.epoch > Epoch::ZERO => return Placed::Passed,
            before => before.map_or(0, Piece::bytes),
        };
        let piece = Piece { digest, content };
        let staged_bytes = self.staged_bytes - replaced_bytes + piece.bytes();
        let held = self.backlog_bytes + staged_bytes;
        if held > self.bytes_max {
            if self.epochs.keys().next().is_some_and(|lowest| *lowest < id.epoch) {
                return Placed::Passed;
            }
            if held > 2 * self.bytes_max {
                return Placed::Excess;
            }
        }
        self.staged_bytes = staged_bytes;
        self.epochs.entry(id.epoch).or_default().insert(id.index, piece);
        Placed::Staged
    }

    /// Whether it was taken already, or can never be.
    fn is_past(&self, id: ChunkId) -> bool {
        match id.epoch {
            Epoch::ZERO => self.taken > Epoch::ZERO || id.index < self.seed_taken,
            epoch => epoch <= self.taken,
        }
    }

    /// Takes an epoch that is committed; the seed before it is over.
    pub fn take(&mut self, epoch: Epoch) -> EpochContent {
        self.taken = epoch;
        drop(self.unstage(Epoch::ZERO));
        let pieces = self.remove(epoch);
        self.backlog(pieces)
    }

    /// Takes the chunks of the seed below `end`.
    pub fn take_seed(&mut self, end: u32) -> EpochContent {
        self.seed_taken = self.seed_taken.max(end);
        let Some(seed) = self.epochs.get_mut(&Epoch::ZERO) else { return EpochContent::new() };
        let later = seed.split_off(&end);
        let taken = std::mem::replace(seed, later);
        if seed.is_empty() {
            self.epochs.remove(&Epoch::ZERO);
        }
        self.staged_bytes -= taken.values().map(Piece::bytes).sum::<usize>();
        self.backlog(taken)
    }

    fn remove(&mut self, epoch: Epoch) -> BTreeMap<u32, Piece> {
        let pieces = self.epochs.remove(&epoch).unwrap_or_default();
        self.staged_bytes -= pieces.values().map(Piece::bytes).sum::<usize>();
        pieces
    }

    fn backlog(&mut self, pieces: BTreeMap<u32, Piece>) -> EpochContent {
        let content = pieces.into_iter().map(|(index, piece)| (index, piece.content)).collect();
        self.backlog_bytes += content_bytes(&content);
        content
    }

    /// Takes an epoch that is not wanted any more.
    #[must_use]
    pub fn unstage(&mut self, epoch: Epoch) -> Unwanted {
        Unwanted { _epochs: BTreeMap::from([(epoch, self.remove(epoch))]) }
    }

    /// Content of so many bytes is in the image.
    pub fn applied(&mut self, bytes: usize) {
        self.backlog_bytes -= bytes;
    }
}

/// Bytes that content takes while it waits.
#[must_use]
pub fn content_bytes(content: &EpochContent) -> usize {
    content.values().map(|content| content.staged_bytes() + PIECE_BYTES).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Section, Sections,
        output::{Channel, Output},
    };

    fn empty() -> Content {
        Content::Sections(Sections::default())
    }

    fn id(epoch: u64, index: u32) -> ChunkId {
        ChunkId { epoch: Epoch::new(epoch), index }
    }

    fn content(bytes: usize) -> Content {
        Content::SectionsDelta(vec![0; bytes].into())
    }

    #[test]
    fn a_new_session_begins_with_nothing() {
        let mut staging = Staging::new(1 << 20);
        drop(staging.begin(1));
        assert_eq!(staging.stage(1, id(3, 0), [0; 32], empty()), Placed::Staged);
        drop(staging.begin(2));
        assert!(staging.is_over(1) && !staging.is_over(2));
        assert!(staging.take(Epoch::new(3)).is_empty());
    }

    #[test]
    fn a_seed_is_taken_in_order() {
        let mut staging = Staging::new(1 << 20);
        let _ = staging.begin(1);
        for index in [2, 0, 1] {
            assert_eq!(staging.stage(1, id(0, index), [0; 32], empty()), Placed::Staged);
        }
        assert_eq!(staging.take_seed(2).into_keys().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(staging.stage(1, id(0, 1), [0; 32], empty()), Placed::Passed, "it was taken");
        assert_eq!(staging.take_seed(3).into_keys().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn a_seeds_chunk_may_be_made_again() {
        let mut staging = Staging::new(1 << 20);
        let _ = staging.begin(1);
        assert_eq!(staging.stage(1, id(0, 0), [1; 32], content(100)), Placed::Staged);
        assert_eq!(staging.stage(1, id(0, 0), [2; 32], content(50)), Placed::Staged);
        assert_eq!(staging.staged_bytes, 50 + PIECE_BYTES);
        assert_eq!(content_bytes(&staging.take_seed(1)), 50 + PIECE_BYTES);
        assert_eq!(staging.staged_bytes, 0);
    }

    #[test]
    fn what_is_not_applied_stops_the_intake() {
        let mut staging = Staging::new(1000);
        let _ = staging.begin(1);
        assert_eq!(staging.stage(1, id(1, 0), [1; 32], content(1001)), Placed::Staged);
        assert_eq!(staging.stage(1, id(1, 0), [1; 32], content(1001)), Placed::Staged, "again");
        assert_eq!(staging.stage(1, id(1, 0), [2; 32], empty()), Placed::Passed, "the first stays");
        assert!(staging.has_room());
        let bytes = content_bytes(&staging.take(Epoch::new(1)));
        assert!(!staging.has_room());
        staging.applied(bytes);
        assert!(staging.has_room());
    }

    #[test]
    fn what_is_committed_is_not_staged_again() {
        let mut staging = Staging::new(1000);
        let _ = staging.begin(1);
        // Of the seed, with a gap before it.
        assert_eq!(staging.stage(1, id(0, 7), [0; 32], content(100)), Placed::Staged);
        assert_eq!(staging.stage(1, id(5, 0), [0; 32], content(100)), Placed::Staged);
        let bytes = content_bytes(&staging.take(Epoch::new(5)));
        staging.applied(bytes);
        for late in [id(5, 0), id(5, 1), id(4, 0), id(0, 7), id(0, 8)] {
            assert_eq!(staging.stage(1, late, [0; 32], content(100)), Placed::Passed, "{late:?}");
        }
        assert_eq!(staging.staged_bytes, 0, "nothing is left of the seed");
        // It stays committed for whoever comes next, until there is no image.
        let _ = staging.begin(2);
        assert_eq!(staging.stage(2, id(5, 0), [0; 32], content(100)), Placed::Passed);
        let _ = staging.discard();
        assert_eq!(staging.stage(2, id(5, 0), [0; 32], content(100)), Placed::Staged);
    }

    #[test]
    fn a_primary_that_completes_nothing_is_bounded() {
        const MAX: usize = 100_000;
        let outputs = || {
            let output = Output { channel: Channel::Console, payload: [][..].into() };
            Content::Outputs(vec![output; 10])
        };
        let names = || {
            let section = |index: u32| Section {
                name: format!("vcpu.{index:02}.regs"),
                version: 1,
                bytes: Vec::new(),
            };
            Content::Sections(Sections::new((0..10).map(section).collect()).unwrap())
        };
        type Made = fn(u32) -> u64;
        let cases: [(Made, &dyn Fn() -> Content, usize); 6] = [
            // One epoch that never ends, a seed with a gap, epochs far ahead, and what
            // is as good as empty.
            (|_| 1, &|| content(1000), 1000),
            (|_| 0, &|| content(1000), 1000),
            (|index| u64::from(index % 900) + 2, &|| content(1000), 1000),
            (|index| 900 - u64::from(index % 900), &|| content(0), 0),
            (|_| 1, &outputs, 10 * size_of::<Output>()),
            (|_| 1, &names, 10 * size_of::<Section>()),
        ];
        for (epoch_of, make, bytes) in cases {
            let mut staging = Staging::new(MAX);
            let _ = staging.begin(1);
            let mut told = [0; 3];
            for index in 1..10_000 {
                assert!(staging.has_room(), "waiting would be for ever");
                let chunk = id(epoch_of(index), index);
                told[staging.stage(1, chunk, [0; 32], make()) as usize] += 1;
                assert!(staging.staged_bytes <= 2 * MAX);
                assert!(told[0] * bytes <= 2 * MAX, "what is held costs more than is counted");
            }
            assert!(told[0] >= MAX / (bytes + 1000 + PIECE_BYTES), "{told:?}");
            assert!(told[1] + told[2] > 5000, "{told:?}");
        }
    }

    #[test]
    fn what_the_next_commit_waits_for_has_room_beside_what_comes_later() {
        let mut staging = Staging::new(10_000);
        let _ = staging.begin(1);
        let mut stage = |chunk| staging.stage(1, chunk, [0; 32], content(1000));
        assert!((0..7).all(|index| stage(id(2, index)) == Placed::Staged));
        assert_eq!(stage(id(1, 0)), Placed::Staged);
        assert_eq!(stage(id(2, 7)), Placed::Passed);
        assert!((1..7).all(|index| stage(id(1, index)) == Placed::Staged));
    }
}
