//! Applies committed content to the image: guest memory, saved state, output.
//!
//! Orders are carried out one after the other, so the image is always a whole
//! epoch between two of them. An image that is found broken is not touched
//! again until it is forgotten. A digest is the only order that is broken off:
//! it takes seconds of a large memory, and changes nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
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

/// The digest that is wanted: one at a time, which anybody may give up. Clones
/// share.
#[derive(Debug, Clone)]
struct WantedDigest(Arc<AtomicU64>);

impl WantedDigest {
    /// Of no epoch: none is ever the last.
    const NONE: u64 = u64::MAX;

    fn none() -> Self {
        Self(Arc::new(AtomicU64::new(Self::NONE)))
    }

    /// Whether that of `epoch` is wanted from now on: not while another one is.
    fn order(&self, epoch: Epoch) -> bool {
        self.swap(Self::NONE, epoch.get())
    }

    fn is(&self, epoch: Epoch) -> bool {
        self.0.load(Ordering::Acquire) == epoch.get()
    }

    /// That of `epoch` is there; whether it was still wanted.
    fn done(&self, epoch: Epoch) -> bool {
        self.swap(epoch.get(), Self::NONE)
    }

    fn give_up(&self) {
        self.0.store(Self::NONE, Ordering::Release);
    }

    fn swap(&self, from: u64, to: u64) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// Thread `apply`.
#[derive(Debug)]
pub(super) struct Applier {
    orders: mpsc::Sender<Order>,
    digest: WantedDigest,
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
        let digest = WantedDigest::none();
        let wanted = digest.clone();
        let worker = Worker { guest, staging, telemetry, inputs, digest: wanted, image: Ok(image) };
        let thread = jail::spawn(ThreadKind::Pages, "apply", move || worker.work(&received))?;
        Ok(Self { orders, digest, thread })
    }

    pub(super) fn seed(&self, content: EpochContent) {
        let _ = self.orders.send(Order::Seed(content));
    }

    pub(super) fn epoch(&self, epoch: Epoch, content: EpochContent) {
        let _ = self.orders.send(Order::Epoch(epoch, content));
    }

    /// Takes the image's digest, unless one is being taken.
    pub(super) fn digest(&self, epoch: Epoch) {
        if self.digest.order(epoch) {
            let _ = self.orders.send(Order::Digest(epoch));
        }
    }

    /// Nobody waits for a digest any more.
    pub(super) fn give_up_digest(&self) {
        self.digest.give_up();
    }

    /// What was ordered before makes no image any more; a seed follows, or
    /// nothing.
    pub(super) fn forget(&self) {
        self.give_up_digest();
        let _ = self.orders.send(Order::Forget);
    }

    /// Applies what was ordered and hands out the image.
    pub(super) fn finish(self) -> Result<Image, BrokenImage> {
        self.give_up_digest();
        drop(self.orders);
        self.thread.join().expect("applying does not panic")
    }
}

struct Worker {
    guest: Arc<Guest>,
    staging: Arc<SharedStaging>,
    telemetry: Telemetry,
    inputs: mpsc::Sender<Input>,
    digest: WantedDigest,
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
                    let digest = self.guest.digest_while(|| self.digest.is(epoch));
                    if let Some(digest) = digest
                        && self.digest.done(epoch)
                    {
                        let _ = self.inputs.send(Input::ImageDigest { epoch, digest });
                    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_digest_is_wanted_until_it_is_there_or_given_up() {
        let wanted = WantedDigest::none();
        let [first, second] = [4, 5].map(Epoch::new);
        assert!(wanted.order(first) && wanted.is(first));
        assert!(!wanted.order(second) && wanted.is(first), "another one is being taken");
        assert!(wanted.done(first) && !wanted.is(first));
        assert!(wanted.order(second));
        wanted.give_up();
        assert!(!wanted.is(second) && !wanted.done(second));
        assert!(wanted.order(first));
    }
}
