//! Applies committed content to the image: guest memory, saved state, output.
//!
//! Orders are carried out one after the other, so the image is always a whole
//! epoch between two of them. An image that is found broken is not touched
//! again until it is forgotten.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Instant,
};

use checkpoint::{
    Epoch, PageRun,
    image::{BrokenImage, Image, PageStore},
    staging::{EpochContent, content_bytes},
};

use super::{core::Input, staging::SharedStaging};
use crate::{
    daemon::Telemetry,
    jail::{self, ThreadKind},
    node::Guest,
};

#[derive(Debug)]
enum Order {
    Seed(EpochContent),
    Epoch(Epoch, EpochContent),
    Digest(Epoch),
    Forget,
}

/// Thread `apply`.
#[derive(Debug)]
pub(super) struct Applier {
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<Result<Image, BrokenImage>>,
}

impl Applier {
    /// `image` is what is in the guest's memory.
    pub(super) fn start(
        image: Image,
        guest: Arc<Guest>,
        staging: Arc<SharedStaging>,
        telemetry: Telemetry,
        inputs: mpsc::Sender<Input>,
    ) -> std::io::Result<Self> {
        let (orders, received) = mpsc::channel();
        let worker = Worker { guest, staging, telemetry, inputs, image: Ok(image) };
        let thread = jail::spawn(ThreadKind::Pages, "apply", move || worker.work(&received))?;
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

    /// What was ordered before makes no image any more; a seed follows, or
    /// nothing.
    pub(super) fn forget(&self) {
        let _ = self.orders.send(Order::Forget);
    }

    /// Finishes what was ordered and hands out the image.
    pub(super) fn finish(self) -> Result<Image, BrokenImage> {
        drop(self.orders);
        self.thread.join().expect("applying does not panic")
    }
}

struct Worker {
    guest: Arc<Guest>,
    staging: Arc<SharedStaging>,
    telemetry: Telemetry,
    inputs: mpsc::Sender<Input>,
    image: Result<Image, BrokenImage>,
}

impl Worker {
    fn work(mut self, orders: &mpsc::Receiver<Order>) -> Result<Image, BrokenImage> {
        while let Ok(order) = orders.recv() {
            match order {
                Order::Seed(content) => self.apply(content),
                Order::Epoch(epoch, content) => {
                    let begun = Instant::now();
                    if let Ok(image) = &mut self.image {
                        image.begin_epoch();
                    }
                    self.apply(content);
                    self.telemetry.metrics.apply.record(begun.elapsed());
                    if self.image.is_ok() {
                        let _ = self.inputs.send(Input::Applied { epoch });
                    }
                }
                Order::Digest(epoch) => {
                    let digest = self.guest.digest();
                    let _ = self.inputs.send(Input::ImageDigest { epoch, digest });
                }
                Order::Forget => self.image = Ok(Image::default()),
            }
        }
        self.image
    }

    fn apply(&mut self, content: EpochContent) {
        let bytes = content_bytes(&content);
        let store = GuestStore(&self.guest);
        if let Ok(image) = &mut self.image {
            let applied = content.into_values().try_for_each(|piece| image.apply(piece, &store));
            if let Err(broken) = applied {
                let _ = self.inputs.send(Input::ImageBroken(broken.clone()));
                self.image = Err(broken);
            }
        }
        self.staging.applied(bytes);
    }
}

/// A guest's memory while no vCPU runs.
struct GuestStore<'a>(&'a Guest);

impl PageStore for GuestStore<'_> {
    fn read(&self, run: PageRun, to: &mut [u8]) {
        self.0.memory().copy_out(run, to);
    }

    fn write(&self, run: PageRun, from: &[u8]) {
        self.0.memory().copy_in(run, from);
    }

    fn zero(&self, run: PageRun) {
        self.0.memory().zero(run);
    }
}
