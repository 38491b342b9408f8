//! Decoder threads: verify chunks, decode them, stage them.

use std::{
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
};

use arbiter::Term;
use checkpoint::{MemoryLayout, chunk::Chunk, staging::Placed};
use tokio::sync::mpsc as async_mpsc;

use super::{core::Input, staging::SharedStaging};
use crate::{
    jail::{self, ThreadKind},
    node::Unhandled,
};

/// Chunks that wait for a decoder; more wait in the network.
const WAITING_MAX: usize = 8;

/// A chunk and where it came from.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) session: u64,
    pub(super) term: Term,
    pub(super) chunk: Chunk,
    pub(super) unhandled: Unhandled,
}

/// Where sessions put chunks. Clones share.
pub(super) type Arrivals = async_mpsc::Sender<Arrival>;

/// Threads `decode-0`, … They end when the last [`Arrivals`] is gone.
#[derive(Debug)]
pub(super) struct Decoders {
    threads: Vec<JoinHandle<()>>,
}

impl Decoders {
    pub(super) fn start(
        threads: u16,
        layout: &MemoryLayout,
        staging: &Arc<SharedStaging>,
        inputs: &mpsc::Sender<Input>,
    ) -> std::io::Result<(Self, Arrivals)> {
        let (arrivals, received) = async_mpsc::channel(WAITING_MAX);
        let received = Arc::new(Mutex::new(received));
        let threads = (0..threads)
            .map(|index| {
                let (received, layout, staging, inputs) =
                    (received.clone(), layout.clone(), staging.clone(), inputs.clone());
                let work = move || work(&received, &layout, &staging, &inputs);
                jail::spawn(ThreadKind::Pages, format!("decode-{index}"), work)
            })
            .collect::<Result<_, _>>()?;
        Ok((Self { threads }, arrivals))
    }

    /// Waits for the threads; every [`Arrivals`] must be gone or going.
    pub(super) fn join(self) {
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

fn work(
    received: &Mutex<async_mpsc::Receiver<Arrival>>,
    layout: &MemoryLayout,
    staging: &SharedStaging,
    inputs: &mpsc::Sender<Input>,
) {
    let mut refused = 0_u64;
    loop {
        let next = received.lock().expect("no holder panics").blocking_recv();
        let Some(Arrival { session, term, chunk, unhandled }) = next else { return };
        let (id, digest) = (chunk.id, chunk.digest);
        let input = match chunk.decode(layout) {
            Ok(content) => {
                let pages = content.pages();
                match staging.stage(session, id, digest, content) {
                    Placed::Staged => Input::Staged { session, term, id, digest, pages, unhandled },
                    Placed::Passed => continue,
                    Placed::Excess => Input::Excess { session, unhandled },
                }
            }
            Err(error) => {
                refused += 1;
                if refused.is_power_of_two() {
                    tracing::warn!(%error, refused, "a chunk was refused");
                }
                Input::Refused { session, id, unhandled }
            }
        };
        let _ = inputs.send(input);
    }
}
