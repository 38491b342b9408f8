//! Seeds a backup: all of memory in rounds, while the guest runs.
//!
//! Every round takes what is owed, copies and sends it, and then counts what
//! was dirtied meanwhile. The machine decides whether another round follows or
//! the next checkpoint ends the seed. Pages that could not be sent are owed
//! again.

use std::{
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arbiter::NodeId;
use checkpoint::{
    Epoch, PageSet,
    chunk::{ChunkId, Compression, Encoder},
};

use super::{
    capture::{BlockPool, batches},
    core::Input,
    peers::ChunkSink,
    tracker::Tracker,
};
use crate::{
    jail::{self, ThreadKind},
    node::Guest,
    telemetry::Metrics,
};

/// Memory for captures that is touched before the first checkpoint.
const POOL_TOUCHED_BYTES: usize = 64 << 20;

/// What a seed works with.
pub(super) struct Tools {
    pub(super) guest: Arc<Guest>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) pool: BlockPool,
    pub(super) sink: ChunkSink,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) compression: Compression,
    /// Bound on the rate.
    pub(super) mib_per_s_max: Option<NonZeroU64>,
}

/// How far a seed is, for the status.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) sent_pages: AtomicU64,
    pub(super) round: AtomicU64,
}

/// One running seed. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Seed {
    rounds: Option<mpsc::Sender<()>>,
    stop: Arc<AtomicBool>,
    pub(super) progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

impl Seed {
    /// Starts thread `seed-NODE`, which sends the first round.
    pub(super) fn start(backup: NodeId, tools: Tools) -> std::io::Result<Self> {
        let (rounds, ordered) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let progress = Arc::new(Progress::default());
        let encoder = Encoder::new(tools.compression);
        let worker = Worker {
            backup,
            tools,
            encoder,
            stop: stop.clone(),
            progress: progress.clone(),
            chunks: 0,
        };
        let name = format!("seed-{}", worker.backup);
        let thread = jail::spawn(ThreadKind::Pages, name, move || worker.work(&ordered))?;
        Ok(Self { rounds: Some(rounds), stop, progress, thread: Some(thread) })
    }

    /// Sends another round.
    pub(super) fn round(&self) {
        let _ = self.rounds.as_ref().expect("taken only by drop").send(());
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.rounds.take());
        // Not joined: it may wait for a network that no longer takes anything,
        // until its session is closed. It changes nothing after `stop`.
        drop(self.thread.take());
    }
}

struct Worker {
    backup: NodeId,
    tools: Tools,
    encoder: Encoder,
    stop: Arc<AtomicBool>,
    progress: Arc<Progress>,
    chunks: u32,
}

impl Worker {
    fn work(mut self, rounds: &mpsc::Receiver<()>) {
        // Epochs follow the seed, and their pauses are no time to touch memory.
        self.tools.pool.touch(POOL_TOUCHED_BYTES);
        loop {
            match self.round() {
                Ok(Some(pages_left)) => {
                    let backup = self.backup.clone();
                    let sent = Input::SeedRoundSent { backup, chunks: self.chunks, pages_left };
                    let _ = self.tools.inputs.send(sent);
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(backup = %self.backup, %error, "the seed has failed");
                    return;
                }
            }
            if rounds.recv().is_err() {
                return;
            }
        }
    }

    /// Sends what is owed; returns how much is owed afterwards, or `None` if
    /// the seed is over.
    fn round(&mut self) -> Result<Option<u64>, vmm::vm::VmError> {
        self.progress.round.fetch_add(1, Ordering::Relaxed);
        let Some(pages) = self.tools.tracker.take_round(&self.backup)? else { return Ok(None) };
        if !self.send(&pages) {
            self.tools.tracker.give_back(&self.backup, &pages);
            return Ok(None);
        }
        self.tools.tracker.owed(&self.backup).map(Some)
    }

    fn send(&mut self, pages: &PageSet) -> bool {
        let begun = Instant::now();
        let mut sent_bytes = 0;
        let (guest, pool) = (self.tools.guest.clone(), self.tools.pool.clone());
        for mut batch in batches(pages, guest.memory(), || pool.take_patiently()) {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let id = ChunkId { epoch: Epoch::ZERO, index: self.chunks };
            let page_count = batch.pages();
            let scan = self.encoder.scan(&batch.runs, batch.block.as_mut(), &batch.stale, None);
            let chunk = self.encoder.finish(id, scan, batch.block);
            let wire_bytes = chunk.body.len() as u64;
            if !self.tools.sink.send(chunk) {
                return false;
            }
            self.chunks += 1;
            sent_bytes += wire_bytes;
            self.progress.sent_pages.fetch_add(page_count, Ordering::Relaxed);
            self.tools.metrics.seed_wire.inc_by(wire_bytes);
            self.slow_down(begun, sent_bytes);
        }
        true
    }

    /// Waits until `sent_bytes` are not more than the rate allows.
    fn slow_down(&self, begun: Instant, sent_bytes: u64) {
        let Some(rate) = self.tools.mib_per_s_max else { return };
        let due = Duration::from_secs_f64(sent_bytes as f64 / (rate.get() << 20) as f64);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
}
