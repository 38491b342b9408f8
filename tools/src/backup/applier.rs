//! Applies committed content to the image: guest memory, saved state, output.
//!
//! Orders are carried out one after the other, so the image is always a whole
//! epoch between two of them.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Instant,
};

use checkpoint::{Epoch, Sections, chunk::Content, output::Output};

use super::{
    core::Input,
    staging::{EpochContent, Staging, content_bytes},
};
use crate::{daemon::Telemetry, node::Guest};

#[derive(Debug)]
enum Order {
    Seed(EpochContent),
    Epoch(Epoch, EpochContent),
    Digest(Epoch),
}

/// What a promotion goes on from, beside memory.
#[derive(Debug, Default)]
pub(super) struct Image {
    pub(super) sections: Sections,
    /// What the guest said in the last epoch.
    pub(super) outputs: Vec<Output>,
}

/// Thread `apply`.
#[derive(Debug)]
pub(super) struct Applier {
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<Image>,
}

impl Applier {
    pub(super) fn start(
        guest: Arc<Guest>,
        staging: Arc<Staging>,
        telemetry: Telemetry,
        inputs: mpsc::Sender<Input>,
    ) -> std::io::Result<Self> {
        let (orders, received) = mpsc::channel();
        let worker = Worker { guest, staging, telemetry, inputs, image: Image::default() };
        let thread = std::thread::Builder::new()
            .name("apply".into())
            .spawn(move || worker.work(&received))?;
        Ok(Self { orders, thread })
    }

    pub(super) fn seed(&self, content: EpochContent) {
        let _ = self.orders.send(Order::Seed(content));
    }

    pub(super) fn epoch(&self, epoch: Epoch, content: EpochContent) {
        let _ = self.orders.send(Order::Epoch(epoch, content));
    }

    pub(super) fn digest(&self, epoch: Epoch) {
        let _ = self.orders.send(Order::Digest(epoch));
    }

    /// Finishes what was ordered and hands out the image.
    pub(super) fn finish(self) -> Image {
        drop(self.orders);
        self.thread.join().expect("applying cannot fail")
    }
}

struct Worker {
    guest: Arc<Guest>,
    staging: Arc<Staging>,
    telemetry: Telemetry,
    inputs: mpsc::Sender<Input>,
    image: Image,
}

impl Worker {
    fn work(mut self, orders: &mpsc::Receiver<Order>) -> Image {
        while let Ok(order) = orders.recv() {
            match order {
                Order::Seed(content) => self.apply(content),
                Order::Epoch(epoch, content) => {
                    let begun = Instant::now();
                    self.image.outputs.clear();
                    self.apply(content);
                    self.telemetry.metrics.apply.record(begun.elapsed());
                    let _ = self.inputs.send(Input::Applied { epoch });
                }
                Order::Digest(epoch) => {
                    let digest = self.guest.digest();
                    let _ = self.inputs.send(Input::ImageDigest { epoch, digest });
                }
            }
        }
        self.image
    }

    fn apply(&mut self, content: EpochContent) {
        let bytes = content_bytes(&content);
        let memory = self.guest.memory();
        for content in content.into_values() {
            match content {
                Content::Pages(pages) => {
                    for run in pages.zero_runs() {
                        memory.zero(*run);
                    }
                    for (run, bytes) in pages.data_runs() {
                        memory.copy_in(run, bytes);
                    }
                }
                Content::Sections(sections) => self.image.sections = sections,
                Content::Outputs(outputs) => self.image.outputs.extend(outputs),
            }
        }
        self.staging.applied(bytes);
    }
}
