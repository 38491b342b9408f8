//! Encoder threads: from captured batches to chunks, outside the pause.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use checkpoint::chunk::{Chunk, ChunkId};

use crate::node::crash_point::{self, Moment};

use super::{
    capture::{Batch, Captured},
    core::Input,
    flights::Flights,
};

/// What becomes one chunk.
#[derive(Debug)]
enum Content {
    Batch(Batch),
    Ready(Chunk),
}

#[derive(Debug)]
struct Job {
    id: ChunkId,
    content: Content,
}

/// A pool of threads `encode-0`, …
#[derive(Debug)]
pub(super) struct Encoders {
    jobs: Option<crossbeam_channel::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    flights: Arc<Flights>,
}

impl Encoders {
    pub(super) fn start(
        threads: u16,
        flights: Arc<Flights>,
        inputs: &mpsc::Sender<Input>,
    ) -> std::io::Result<Self> {
        let (jobs, received) = crossbeam_channel::unbounded::<Job>();
        let threads = (0..threads)
            .map(|index| {
                let (received, flights, inputs) =
                    (received.clone(), flights.clone(), inputs.clone());
                std::thread::Builder::new()
                    .name(format!("encode-{index}"))
                    .spawn(move || work(&received, &flights, &inputs))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { jobs: Some(jobs), threads, flights })
    }

    /// Encodes a checkpoint; [`Input::Encoded`] tells when all of it is.
    pub(super) fn encode(&self, captured: Captured) {
        let epoch = captured.epoch;
        let pages = captured.pages();
        let mut contents: Vec<Content> = captured.batches.into_iter().map(Content::Batch).collect();
        let id = |index: usize| ChunkId { epoch, index: index as u32 };
        let sections = Chunk::of_sections(id(contents.len()), &captured.sections);
        contents.push(Content::Ready(sections));
        let mut outputs = &captured.outputs[..];
        while !outputs.is_empty() {
            let (chunk, taken) = Chunk::of_outputs(id(contents.len()), outputs);
            contents.push(Content::Ready(chunk));
            outputs = &outputs[taken..];
        }
        self.flights.begin(epoch, contents.len(), pages);
        let jobs = self.jobs.as_ref().expect("taken only by drop");
        for (index, content) in contents.into_iter().enumerate() {
            let _ = jobs.send(Job { id: id(index), content });
        }
    }
}

impl Drop for Encoders {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(jobs: &crossbeam_channel::Receiver<Job>, flights: &Flights, inputs: &mpsc::Sender<Input>) {
    while let Ok(Job { id, content }) = jobs.recv() {
        let chunk = match content {
            Content::Batch(batch) => Chunk::of_pages(id, batch.runs(), batch.bytes()),
            Content::Ready(chunk) => chunk,
        };
        let complete = flights.publish(chunk);
        crash_point::reached(Moment::Encoded);
        if let Some(complete) = complete {
            let _ = inputs.send(Input::Encoded(complete));
        }
    }
}
