//! The console's side of the outlet: released bytes, kept for readers and
//! written to a sink.
//!
//! The sink may be a terminal that somebody stopped, so a thread of its own
//! (`console`) writes to it; neither packets nor vCPUs wait for it. What it
//! cannot take in time is dropped there, oldest first, and counted; readers of
//! the ring still get it.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::lock;
use crate::thread::{self, ThreadKind};

/// Released bytes that readers can still get.
pub const CONSOLE_BYTES_MAX: usize = 64 << 10;
/// Bytes that wait for the sink.
const SINK_BYTES_MAX: usize = 256 << 10;
/// How long a fence or the end waits for a sink that is stuck in a write.
const SINK_WAIT_MAX: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Bytes {
    ring: VecDeque<u8>,
    /// Bytes ever released: the offset of the ring's end.
    total: u64,
    for_sink: VecDeque<u8>,
    sink_dropped: u64,
    /// The sink's thread is between taking bytes and having written them.
    writing: bool,
    fenced: bool,
    stopping: bool,
}

struct Shared {
    bytes: Mutex<Bytes>,
    changed: Condvar,
}

/// The console's side of the outlet.
pub(super) struct Console {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Console {
    pub(super) fn new(sink: Box<dyn Write + Send>) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { bytes: Mutex::new(Bytes::default()), changed: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        let write = move || write_to_sink(&of_thread, sink);
        let thread = thread::spawn(ThreadKind::Output, "console".into(), write)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes released bytes.
    pub(super) fn write(&self, payload: &[u8]) {
        let mut bytes = lock(&self.shared.bytes);
        if bytes.fenced {
            return;
        }
        bytes.total += payload.len() as u64;
        bytes.ring.extend(payload);
        let beyond = bytes.ring.len().saturating_sub(CONSOLE_BYTES_MAX);
        bytes.ring.drain(..beyond);
        bytes.for_sink.extend(payload);
        let beyond = bytes.for_sink.len().saturating_sub(SINK_BYTES_MAX);
        bytes.for_sink.drain(..beyond);
        bytes.sink_dropped += beyond as u64;
        drop(bytes);
        self.shared.changed.notify_all();
    }

    /// Released bytes from `offset` on, and the offset that follows them.
    pub(super) fn since(&self, offset: u64) -> (Vec<u8>, u64) {
        let bytes = lock(&self.shared.bytes);
        let oldest = bytes.total - bytes.ring.len() as u64;
        let skip = offset.max(oldest).min(bytes.total) - oldest;
        (bytes.ring.range(skip as usize..).copied().collect(), bytes.total)
    }

    /// Bytes that the sink did not take in time.
    pub(super) fn sink_dropped(&self) -> u64 {
        lock(&self.shared.bytes).sink_dropped
    }

    /// Drops what waits. A write that the sink is stuck in was begun before.
    pub(super) fn fence(&self) {
        let mut bytes = lock(&self.shared.bytes);
        bytes.fenced = true;
        bytes.for_sink.clear();
        self.wait(bytes, |bytes| bytes.writing);
    }

    /// Takes bytes again, of another guest.
    pub(super) fn reopen(&self) {
        lock(&self.shared.bytes).fenced = false;
    }

    /// Waits while `busy`, for a sink that may be stuck.
    fn wait(&self, bytes: std::sync::MutexGuard<'_, Bytes>, busy: impl Fn(&Bytes) -> bool) {
        let waited = self.shared.changed.wait_timeout_while(bytes, SINK_WAIT_MAX, |b| busy(b));
        drop(waited.unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let mut bytes = lock(&self.shared.bytes);
        bytes.stopping = true;
        self.shared.changed.notify_all();
        self.wait(bytes, |bytes| bytes.writing || !bytes.for_sink.is_empty());
        let deadline = Instant::now() + SINK_WAIT_MAX;
        let Some(thread) = self.thread.take() else { return };
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

/// The `console` thread.
fn write_to_sink(shared: &Shared, mut sink: Box<dyn Write + Send>) {
    loop {
        let mut bytes = lock(&shared.bytes);
        while bytes.for_sink.is_empty() && !bytes.stopping {
            bytes = shared.changed.wait(bytes).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        if bytes.for_sink.is_empty() {
            return;
        }
        let piece: Vec<u8> = std::mem::take(&mut bytes.for_sink).into();
        bytes.writing = true;
        drop(bytes);
        let lost = sink.write_all(&piece).and_then(|()| sink.flush()).is_err();
        let mut bytes = lock(&shared.bytes);
        bytes.writing = false;
        if lost {
            bytes.sink_dropped += piece.len() as u64;
        }
        drop(bytes);
        shared.changed.notify_all();
    }
}
