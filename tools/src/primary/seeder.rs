//! Seeds a backup: all of memory in rounds, while the guest runs.
//!
//! Every round takes what is owed, copies and sends it, and then counts what
//! was dirtied meanwhile. The machine decides whether another round follows or
//! the next checkpoint ends the seed. Pages that could not be sent are owed
//! again.
//!
//! A chunk that did not arrive whole goes again under its number, with what its
//! pages hold by then. That is as good: what was written after the chunk was
//! made is dirty, so a later chunk has it, and chunks are applied in order. If a
//! page in it was sent again meanwhile, it holds what was sent or is dirty.

use std::{
    collections::BTreeSet,
    num::NonZeroU64,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arbiter::NodeId;
use checkpoint::{
    Epoch, PageRun, PageSet,
    choice::{Choice, Way},
    chunk::ChunkId,
};

use super::{
    capture::{Batch, BlockPool, batches, copy_runs},
    core::Input,
    encoder::Codecs,
    peers::ChunkSink,
    tracker::Tracker,
};
use crate::{
    config::Codec,
    control::SeedProgress,
    jail::{self, ThreadKind},
    node::Guest,
    telemetry::Metrics,
};

/// Memory for captures that is touched before the first checkpoint.
const POOL_TOUCHED_BYTES: usize = 64 << 20;

/// So much content is timed at once: as much as waits in buffers on its way, so
/// that what goes before is through when the next stretch begins.
const STRETCH_BYTES: u64 = 32 << 20;

/// What a seed works with.
pub(super) struct Tools {
    pub(super) guest: Arc<Guest>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) pool: BlockPool,
    pub(super) sink: ChunkSink,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) codec: Codec,
    /// Bound on the rate.
    pub(super) mib_per_s_max: Option<NonZeroU64>,
}

/// How far a seed is.
#[derive(Debug)]
pub(super) struct Progress {
    /// For the status: the figures of one round, seen together.
    round: Mutex<SeedProgress>,
    /// Chunks that were begun.
    chunks: AtomicU32,
}

impl Progress {
    /// In a first round, of `total_pages`.
    fn new(total_pages: u64) -> Self {
        let round = SeedProgress { sent_pages: 0, total_pages, round: 1 };
        Self { round: Mutex::new(round), chunks: AtomicU32::new(0) }
    }

    /// A round of `total_pages` begins.
    fn begin(&self, round: u32, total_pages: u64) {
        *self.lock() = SeedProgress { sent_pages: 0, total_pages, round };
    }

    /// So many more pages of the round were sent.
    fn sent(&self, pages: u64) {
        self.lock().sent_pages += pages;
    }

    /// Those of `chunks` that were sent: a backup may ask for any.
    fn sent_of(&self, mut chunks: Vec<u32>) -> Vec<u32> {
        let sent = self.chunks.load(Ordering::Acquire);
        chunks.retain(|index| *index < sent);
        chunks
    }

    pub(super) fn get(&self) -> SeedProgress {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, SeedProgress> {
        self.round.lock().expect("no holder panics")
    }
}

/// What the thread is to do next.
#[derive(Debug)]
enum Order {
    /// Another round.
    Round,
    /// Look which chunks are wanted again.
    Look,
}

/// Sends the first round of a seed, once.
#[derive(Debug)]
pub(super) struct FirstRound(mpsc::Sender<Order>);

impl FirstRound {
    pub(super) fn go(self) {
        let _ = self.0.send(Order::Round);
    }
}

/// One running seed. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Seed {
    orders: Option<mpsc::Sender<Order>>,
    wanted: Arc<Mutex<BTreeSet<u32>>>,
    stop: Arc<AtomicBool>,
    pub(super) progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

impl Seed {
    /// Starts thread `seed-NODE`; it waits for [`Seed::first_round`].
    pub(super) fn start(backup: NodeId, tools: Tools) -> std::io::Result<Self> {
        let (orders, ordered) = mpsc::channel();
        let wanted = Arc::new(Mutex::new(BTreeSet::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let progress = Arc::new(Progress::new(tools.guest.layout().page_count()));
        let (codecs, stretch) = (Codecs::new(tools.codec), Stretch::new(tools.codec.choice()));
        let worker = Worker {
            backup,
            tools,
            codecs,
            stretch,
            stop: stop.clone(),
            progress: progress.clone(),
            wanted: wanted.clone(),
            rounds: 0,
            sent: Vec::new(),
        };
        let name = format!("seed-{}", worker.backup);
        let thread = jail::spawn(ThreadKind::Pages, name, move || worker.work(&ordered))?;
        Ok(Self { orders: Some(orders), wanted, stop, progress, thread: Some(thread) })
    }

    /// For whoever tells the ledger that the seed begins: there is nothing to
    /// send before.
    pub(super) fn first_round(&self) -> FirstRound {
        FirstRound(self.orders.clone().expect("taken only by drop"))
    }

    /// Sends another round.
    pub(super) fn round(&self) {
        self.order(Order::Round);
    }

    /// Sends the pages of `chunks` again.
    pub(super) fn resend(&self, chunks: Vec<u32>) {
        let chunks = self.progress.sent_of(chunks);
        if chunks.is_empty() {
            return;
        }
        let mut wanted = self.wanted.lock().expect("no holder panics");
        let idle = wanted.is_empty();
        wanted.extend(chunks);
        drop(wanted);
        // However often a backup asks: one order waits.
        if idle {
            self.order(Order::Look);
        }
    }

    fn order(&self, order: Order) {
        let _ = self.orders.as_ref().expect("taken only by drop").send(order);
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.orders.take());
        // Not joined: it may wait for a network that no longer takes anything,
        // until its session is closed. It changes nothing after `stop`.
        drop(self.thread.take());
    }
}

/// Times a seed by stretches, and chooses how the next one is sent.
struct Stretch {
    choice: Choice,
    way: Way,
    /// The one before went the same way: what it left in buffers is alike.
    counts: bool,
    begun: Instant,
    bytes: u64,
}

impl Stretch {
    fn new(mut choice: Choice) -> Self {
        let way = choice.begin();
        Self { choice, way, counts: false, begun: Instant::now(), bytes: 0 }
    }

    /// So much more content was sent.
    fn sent(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes < STRETCH_BYTES {
            return;
        }
        if self.counts {
            self.choice.record(self.way, self.bytes, self.begun.elapsed());
        }
        let way = self.choice.begin();
        self.counts = way == self.way;
        (self.way, self.begun, self.bytes) = (way, Instant::now(), 0);
    }
}

struct Worker {
    backup: NodeId,
    tools: Tools,
    codecs: Codecs,
    stretch: Stretch,
    stop: Arc<AtomicBool>,
    progress: Arc<Progress>,
    wanted: Arc<Mutex<BTreeSet<u32>>>,
    /// Rounds begun.
    rounds: u32,
    /// The pages of each chunk.
    sent: Vec<Box<[PageRun]>>,
}

impl Worker {
    fn work(mut self, orders: &mpsc::Receiver<Order>) {
        // Epochs follow the seed, and their pauses are no time to touch memory.
        self.tools.pool.touch(POOL_TOUCHED_BYTES);
        while let Ok(order) = orders.recv() {
            let goes_on = match order {
                Order::Round => self.round(),
                Order::Look => Ok(self.send_wanted()),
            };
            match goes_on {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(backup = %self.backup, %error, "the seed has failed");
                    return;
                }
            }
        }
    }

    /// Sends what is owed, and tells how much is owed afterwards; `false` if the
    /// seed is over.
    fn round(&mut self) -> Result<bool, vmm::vm::VmError> {
        let tracker = self.tools.tracker.clone();
        let Some(pages) = tracker.take_round(&self.backup, &self.stop)? else { return Ok(false) };
        self.rounds += 1;
        self.progress.begin(self.rounds, pages.len());
        if !self.send(&pages) {
            tracker.give_back(&self.backup, &pages, &self.stop);
            return Ok(false);
        }
        let Some(pages_left) = tracker.owed(&self.backup, &self.stop)? else { return Ok(false) };
        let (backup, chunks) = (self.backup.clone(), self.sent.len() as u32);
        let _ = self.tools.inputs.send(Input::SeedRoundSent { backup, chunks, pages_left });
        Ok(true)
    }

    fn send(&mut self, pages: &PageSet) -> bool {
        let begun = Instant::now();
        let mut sent_bytes = 0;
        let (guest, pool) = (self.tools.guest.clone(), self.tools.pool.clone());
        for batch in batches(pages, guest.memory(), || pool.take_patiently()) {
            if self.stop.load(Ordering::Relaxed) || !self.send_wanted() {
                return false;
            }
            let (index, page_count) = (self.sent.len() as u32, batch.pages());
            self.sent.push(batch.runs.clone().into());
            self.progress.chunks.store(index + 1, Ordering::Release);
            let Some(wire_bytes) = self.send_chunk(index, batch) else { return false };
            sent_bytes += wire_bytes;
            self.progress.sent(page_count);
            self.slow_down(begun, sent_bytes);
        }
        true
    }

    /// Sends the chunks that are wanted again; `false` if the seed is over.
    fn send_wanted(&mut self) -> bool {
        let (guest, pool) = (self.tools.guest.clone(), self.tools.pool.clone());
        loop {
            let next = self.wanted.lock().expect("no holder panics").pop_first();
            let Some(index) = next else { return true };
            let runs = &self.sent[index as usize];
            let batch = copy_runs(runs.to_vec(), guest.memory(), pool.take_patiently());
            if self.stop.load(Ordering::Relaxed) || self.send_chunk(index, batch).is_none() {
                return false;
            }
        }
    }

    /// Sends `batch` as chunk `index`; the bytes of it on the wire, or `None` if
    /// the seed is over.
    fn send_chunk(&mut self, index: u32, mut batch: Batch) -> Option<u64> {
        let id = ChunkId { epoch: Epoch::ZERO, index };
        let scanner = self.codecs.scanner();
        let scan = scanner.scan(&batch.runs, batch.block.as_mut(), &batch.stale, None);
        let chunk = self.codecs.of(self.stretch.way, &scan).finish(id, scan, batch.block);
        let (wire_bytes, content_bytes) = (chunk.body.len() as u64, chunk.decoded_bytes);
        self.tools.metrics.seed_wire.inc_by(wire_bytes);
        let sent = self.tools.sink.send(chunk);
        self.stretch.sent(content_bytes.into());
        sent.then_some(wire_bytes)
    }

    /// Waits until `sent_bytes` are not more than the rate allows.
    fn slow_down(&self, begun: Instant, sent_bytes: u64) {
        let Some(rate) = self.tools.mib_per_s_max else { return };
        let due = Duration::from_secs_f64(sent_bytes as f64 / (rate.get() << 20) as f64);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_that_of_the_round() {
        let progress = Progress::new(1000);
        let at = |sent_pages, total_pages, round| SeedProgress { sent_pages, total_pages, round };
        assert_eq!(progress.get(), at(0, 1000, 1));
        progress.begin(1, 1000);
        progress.sent(600);
        progress.sent(400);
        assert_eq!(progress.get(), at(1000, 1000, 1));
        progress.begin(2, 30);
        assert_eq!(progress.get(), at(0, 30, 2), "what the first round sent does not count");
        progress.sent(15);
        assert_eq!(progress.get(), at(15, 30, 2));
    }

    #[test]
    fn what_was_never_sent_is_not_wanted() {
        let (orders, ordered) = mpsc::channel();
        let seed = Seed {
            orders: Some(orders),
            wanted: Arc::default(),
            stop: Arc::default(),
            progress: Arc::new(Progress::new(1000)),
            thread: None,
        };
        seed.resend(vec![0, 7, u32::MAX]);
        assert!(ordered.try_recv().is_err());
        seed.progress.chunks.store(2, Ordering::Relaxed);
        seed.resend(vec![1, 2, u32::MAX]);
        seed.resend(vec![0, 1]);
        assert_eq!(*seed.wanted.lock().unwrap(), [0, 1].into());
        assert!(matches!(ordered.try_recv(), Ok(Order::Look)));
        assert!(ordered.try_recv().is_err(), "one order waits");
    }
}
