//! All stages at once: pages of one side become the other side's memory.
//!
//! ```text
//!   encode (1 thread) ─▶ session ─▶ decode (1 thread) ─▶ apply (1 thread)
//! ```
//!
//! The threads and the queues between them are as the daemons' defaults have them.

use std::{
    sync::{Arc, mpsc},
    thread::{self, ScopedJoinHandle},
};

use checkpoint::{
    Epoch,
    chunk::{Chunk, ChunkId, Compression, Content, Encoder, Places},
    image::apply_pages,
};
use tokio::sync::mpsc as async_mpsc;
use transport::{BackupReceiver, BackupSession, DataSender, Incoming, Options};

use super::{
    AHEAD_BYTES, WireError,
    certificates::Certificates,
    contest::{Contender, Stage},
    meter::{Meter, Sample},
    session::{Connected, Ends, TERM},
    work::{self, BLOCK_BYTES, Fill, GuestImage, Lent},
};
use crate::config::ZSTD_LEVEL;

/// Chunks between the network and the decoder, as in a backup.
const WAITING_MAX: usize = 8;
/// Decoded chunks that wait to be applied: what a backup may stage is more, and
/// would only hide who is slow.
const STAGED_MAX: usize = 64;
const ZSTD: Compression = Compression::Zstd { level: ZSTD_LEVEL };

/// The whole way for pages that nothing makes smaller, and for such that zstd does.
pub(super) fn contenders(certificates: &Arc<Certificates>) -> Result<Vec<Contender>, WireError> {
    let contender = |name: &str, fill| {
        let (ends, image) = (Ends::new(certificates)?, GuestImage::new()?);
        let mut blocks: Vec<_> = work::blocks(fill).into_iter().map(Lent::new).collect();
        let run = move |bytes| whole_way(&ends, &mut blocks, &image, bytes);
        Ok::<_, WireError>(Contender::new(Stage::Together, name, run))
    };
    Ok(vec![
        contender("random pages, from memory to memory", Fill::Random)?,
        contender("records, from memory to memory", Fill::Records)?,
    ])
}

fn whole_way(
    ends: &Ends,
    blocks: &mut [Lent],
    image: &GuestImage,
    bytes: u64,
) -> Result<Sample, WireError> {
    let meter = Meter::new(AHEAD_BYTES, bytes);
    let count = meter.total_bytes().div_ceil(BLOCK_BYTES as u64);
    let Connected { primary, backup, _endpoints } = ends.connect(&Options::default())?;
    let (arrivals, arrived) = async_mpsc::channel(WAITING_MAX);
    let (staged, waiting) = mpsc::sync_channel(STAGED_MAX);
    let BackupSession { receiver, .. } = backup;
    let receiving = ends.receiver.spawn(receive(receiver, arrivals));
    thread::scope(|scope| {
        let data = primary.data.clone();
        let encoding = scope.spawn(move || encode(blocks, count, &data));
        let decoding = scope.spawn(move || decode(arrived, &staged));
        let applying = scope.spawn(move || apply(&waiting, image, meter));
        // Who fails first ends the queues of the others.
        let sample = join(applying);
        receiving.abort();
        join(decoding)?;
        drop(primary);
        join(encoding)?;
        sample
    })
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T, WireError>>) -> Result<T, WireError> {
    thread.join().expect("no stage panics")
}

fn encode(blocks: &mut [Lent], count: u64, data: &DataSender) -> Result<(), WireError> {
    let mut encoder = Encoder::new(ZSTD);
    for index in 0..count {
        let number = index as usize % blocks.len();
        let block = &mut blocks[number];
        let id = ChunkId { epoch: Epoch::FIRST, index: index as u32 };
        let scan = encoder.scan(&[work::run_of(number)], block.own(), &Places::default(), None);
        let chunk = encoder.finish(id, scan, block.clone());
        data.blocking_send(TERM, Arc::new(chunk))?;
    }
    Ok(())
}

async fn receive(
    mut receiver: BackupReceiver,
    arrivals: async_mpsc::Sender<Chunk>,
) -> Result<(), WireError> {
    loop {
        if let Incoming::Chunk(_, chunk) = receiver.next().await?
            && arrivals.send(chunk).await.is_err()
        {
            return Ok(());
        }
    }
}

fn decode(
    mut arrived: async_mpsc::Receiver<Chunk>,
    staged: &mpsc::SyncSender<Content>,
) -> Result<(), WireError> {
    let layout = work::layout();
    while let Some(chunk) = arrived.blocking_recv() {
        if staged.send(chunk.decode(&layout)?).is_err() {
            break;
        }
    }
    Ok(())
}

fn apply(
    waiting: &mpsc::Receiver<Content>,
    image: &GuestImage,
    mut meter: Meter,
) -> Result<Sample, WireError> {
    while let Ok(content) = waiting.recv() {
        let Content::Pages(pages) = content else { continue };
        apply_pages(&pages, image).expect("no delta is in it");
        if let Some(sample) = meter.arrived(BLOCK_BYTES as u64) {
            return Ok(sample);
        }
    }
    Err(WireError::Unanswered)
}
