//! Encoder threads: from captured batches to chunks, outside the pause.
//!
//! ```text
//!   submit ─▶ groups, in order ─▶ encode-n: scan │ compress, hash ─▶ flights
//!                                  one group after the other │ all at once
//! ```
//!
//! A group is what was captured together: no page is in it twice. Groups are
//! scanned one after the other, because a page of a later group builds on the
//! same page of an earlier one; what follows the scan may overlap.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, mpsc},
    thread::JoinHandle,
};

use checkpoint::{
    Epoch, Sections,
    choice::Way,
    chunk::{Chunk, Compression, Encoder, Scan, SectionEncoder},
    history::History,
    output::Output,
};

use super::{
    capture::Batch,
    core::Input,
    flights::{Complete, Flights, Place},
};
use crate::{
    config::{Codec, ZSTD_LEVEL},
    jail::{self, ThreadKind},
    node::crash_point::{self, Moment},
};

/// So few bytes are compressed within the time of a few packets: deltas, mostly,
/// of which little is left then.
const LITTLE_BYTES: usize = 64 << 10;

/// What was captured together.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) epoch: Epoch,
    pub(super) batches: Vec<Batch>,
    /// It is the first of an epoch that a backup joins with: nothing that was
    /// encoded of it counts, and nothing in it builds on what was sent before.
    pub(super) fresh: bool,
    /// The end of the epoch, if this is its last group.
    pub(super) end: Option<EpochEnd>,
}

/// What ends an epoch.
#[derive(Debug)]
pub(super) struct EpochEnd {
    pub(super) sections: Sections,
    /// What the guest said in it, if that is sent along.
    pub(super) outputs: Vec<Output>,
    /// A backup joins with this epoch: the state may build on nothing.
    pub(super) fresh: bool,
}

#[derive(Debug)]
enum Job {
    Batch(Batch),
    Sections { sections: Sections, fresh: bool },
    Outputs(Vec<Output>),
}

#[derive(Debug)]
struct Queued {
    epoch: Epoch,
    jobs: VecDeque<Job>,
    /// The epoch ends with it.
    ends: bool,
    /// It has not begun, and builds on nothing.
    fresh: bool,
}

#[derive(Debug, Default)]
struct Queue {
    groups: VecDeque<Queued>,
    /// Jobs of the first group that are being scanned.
    scanning: usize,
    ended: bool,
}

/// What follows from what was sent before.
#[derive(Debug)]
struct Past {
    history: History,
    sections: SectionEncoder,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Signalled when there may be a job, or the end.
    news: Condvar,
    past: Mutex<Past>,
    flights: Arc<Flights>,
    inputs: mpsc::Sender<Input>,
}

/// The encoders of one thread. What is little is compressed in any case.
pub(super) struct Codecs {
    compressing: Encoder,
    raw: Encoder,
}

impl Codecs {
    pub(super) fn new(codec: Codec) -> Self {
        let compression = match codec {
            Codec::Auto | Codec::Zstd => Compression::Zstd { level: ZSTD_LEVEL },
            Codec::Off => Compression::Off,
        };
        Self { compressing: Encoder::new(compression), raw: Encoder::new(Compression::Off) }
    }

    /// Who finishes `scan`, if what is more than a little goes this `way`.
    pub(super) fn of(&mut self, way: Way, scan: &Scan) -> &mut Encoder {
        match way {
            Way::Raw if scan.bytes() > LITTLE_BYTES => &mut self.raw,
            Way::Raw | Way::Compressed => &mut self.compressing,
        }
    }

    /// Who scans: that is the same for all of them.
    pub(super) fn scanner(&mut self) -> &mut Encoder {
        &mut self.compressing
    }
}

/// A pool of threads `encode-0`, …
#[derive(Debug)]
pub(super) struct Encoders {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Encoders {
    pub(super) fn start(
        threads: u16,
        codec: Codec,
        history: History,
        flights: Arc<Flights>,
        inputs: mpsc::Sender<Input>,
    ) -> std::io::Result<Self> {
        let past = Mutex::new(Past { history, sections: SectionEncoder::default() });
        let (queue, news) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { queue, news, past, flights, inputs });
        let mut encoders = Self { shared, threads: Vec::new() };
        for index in 0..threads {
            let shared = encoders.shared.clone();
            let work = move || shared.work(&mut Codecs::new(codec));
            let thread = jail::spawn(ThreadKind::Pages, format!("encode-{index}"), work)?;
            encoders.threads.push(thread);
        }
        Ok(encoders)
    }

    /// A handle for whoever captures.
    pub(super) fn intake(&self) -> Intake {
        Intake(self.shared.clone())
    }
}

impl Drop for Encoders {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.news.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Takes groups, in the order in which they are submitted.
#[derive(Debug, Clone)]
pub(super) struct Intake(Arc<Shared>);

impl Intake {
    /// Encodes a group; [`Input::Encoded`] tells when all of an epoch is.
    pub(super) fn submit(&self, group: Group) {
        let Group { epoch, batches, fresh, end } = group;
        let mut jobs: VecDeque<Job> = batches.into_iter().map(Job::Batch).collect();
        let ends = end.is_some();
        if let Some(end) = end {
            jobs.push_back(Job::Sections { sections: end.sections, fresh: end.fresh });
            if !end.outputs.is_empty() {
                jobs.push_back(Job::Outputs(end.outputs));
            }
        }
        self.0.lock().groups.push_back(Queued { epoch, jobs, ends, fresh });
        self.0.news.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder panics")
    }

    fn lock_past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().expect("no holder panics")
    }

    fn work(&self, codecs: &mut Codecs) {
        while let Some((place, job)) = self.next_job() {
            match job {
                Job::Batch(mut batch) => {
                    let encoder = codecs.scanner();
                    let mut past = self.lock_past();
                    let history = Some(&mut past.history);
                    let scan =
                        encoder.scan(&batch.runs, batch.block.as_mut(), &batch.stale, history);
                    drop(past);
                    self.scanned();
                    let pages = scan.pages();
                    let encoder = codecs.of(place.way, &scan);
                    self.publish(&place, encoder.finish(place.id, scan, batch.block), pages);
                }
                Job::Sections { sections, fresh } => {
                    let encoder = &mut codecs.compressing;
                    let chunk =
                        self.lock_past().sections.chunk(place.id, &sections, fresh, encoder);
                    self.scanned();
                    self.publish(&place, chunk, 0);
                }
                Job::Outputs(outputs) => {
                    self.encode_outputs(place, &outputs, &mut codecs.compressing);
                    self.scanned();
                }
            }
        }
    }

    /// The next job in order, when it may be scanned; `None` at the end.
    fn next_job(&self) -> Option<(Place, Job)> {
        let mut queue = self.lock();
        loop {
            let Queue { groups, scanning, ended } = &mut *queue;
            if *ended {
                return None;
            }
            if let Some(group) = groups.front_mut() {
                if std::mem::take(&mut group.fresh) {
                    self.lock_past().history.clear();
                    self.flights.reopen(group.epoch);
                }
                if let Some(job) = group.jobs.pop_front() {
                    *scanning += 1;
                    return Some((self.flights.place(group.epoch), job));
                }
                if *scanning == 0 {
                    let group = groups.pop_front().expect("looked at above");
                    self.end_group(&group);
                    continue;
                }
            }
            queue = self.news.wait(queue).expect("no holder panics");
        }
    }

    /// All of a group is scanned.
    fn end_group(&self, group: &Queued) {
        if group.ends {
            self.lock_past().history.tick();
            self.tell(self.flights.close(group.epoch));
        }
    }

    fn scanned(&self) {
        self.lock().scanning -= 1;
        self.news.notify_all();
    }

    fn encode_outputs(&self, first: Place, outputs: &[Output], encoder: &mut Encoder) {
        let (mut place, mut rest) = (first, outputs);
        loop {
            let (chunk, taken) = Chunk::of_outputs(place.id, rest, encoder);
            self.publish(&place, chunk, 0);
            rest = &rest[taken..];
            if rest.is_empty() {
                return;
            }
            place = self.flights.place(place.id.epoch);
        }
    }

    fn publish(&self, place: &Place, chunk: Chunk, pages: u64) {
        let complete = self.flights.publish(place, chunk, pages);
        crash_point::reached(Moment::Encoded);
        self.tell(complete);
    }

    fn tell(&self, complete: Option<Complete>) {
        if let Some(complete) = complete {
            let _ = self.inputs.send(Input::Encoded(complete));
        }
    }
}
