//! Applies committed content to the image, one order after the other. Mirrors
//! `tools/src/backup/applier.rs`, with the real image.

use std::collections::VecDeque;

use checkpoint::{
    Epoch, Sections,
    image::{BrokenImage, Image},
    staging::{EpochContent, content_bytes},
};

use crate::simulation::{
    guest::{ImageMemory, Memory},
    happening::{Happening, ProcessId},
    mutation::Mutation,
    world::World,
};

#[derive(Debug)]
enum Order {
    Seed(EpochContent),
    /// With the witness's number for what it belongs to.
    Epoch(Epoch, EpochContent, u64),
    Digest(Epoch),
    Forget,
}

/// What an order came to.
#[derive(Debug)]
pub(super) enum Done {
    Nothing,
    Applied(Epoch),
    Broken(BrokenImage),
    Digest(Epoch, checkpoint::chunk::Digest),
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Applier {
    me: ProcessId,
    orders: VecDeque<Order>,
    planned: bool,
    memory: ImageMemory,
    image: Result<Image, BrokenImage>,
}

impl Applier {
    pub(super) fn new(world: &World, me: ProcessId) -> Self {
        let memory = Memory::new(world.plan.shape.pages);
        Self::with_image(me, memory, Sections::default())
    }

    pub(super) fn with_image(me: ProcessId, memory: Memory, sections: Sections) -> Self {
        Self {
            me,
            orders: VecDeque::new(),
            planned: false,
            memory: ImageMemory::new(memory),
            image: Ok(Image::of(sections)),
        }
    }

    pub(super) fn seed(&mut self, world: &mut World, content: EpochContent) {
        self.order(world, Order::Seed(content));
    }

    pub(super) fn epoch(
        &mut self,
        world: &mut World,
        epoch: Epoch,
        content: EpochContent,
        number: u64,
    ) {
        self.order(world, Order::Epoch(epoch, content, number));
    }

    pub(super) fn digest(&mut self, world: &mut World, epoch: Epoch) {
        self.order(world, Order::Digest(epoch));
    }

    /// What was ordered before makes no image any more.
    pub(super) fn forget(&mut self, world: &mut World) {
        self.order(world, Order::Forget);
    }

    fn order(&mut self, world: &mut World, order: Order) {
        if world.mutated(Mutation::ApplyOutOfOrder)
            && let (Order::Epoch(..), Some(Order::Epoch(..))) = (&order, self.orders.back())
        {
            let before = self.orders.pop_back().expect("looked at");
            self.orders.push_back(order);
            self.orders.push_back(before);
        } else {
            self.orders.push_back(order);
        }
        self.plan(world);
    }

    fn plan(&mut self, world: &mut World) {
        if !self.planned && !self.orders.is_empty() {
            self.planned = true;
            let micros = if world.plan.shape.slow_codecs { 200..9_000 } else { 20..1_500 };
            world.work_later(self.me, micros, Happening::Applied);
        }
    }

    /// Carries out the next order. Returns how many staged bytes it freed.
    pub(super) fn step(&mut self, world: &mut World) -> (Done, usize) {
        self.planned = false;
        let Some(order) = self.orders.pop_front() else { return (Done::Nothing, 0) };
        self.plan(world);
        match order {
            Order::Seed(content) => self.apply(world, content),
            Order::Epoch(epoch, content, number) => {
                if let Ok(image) = &mut self.image {
                    image.begin_epoch();
                }
                let (done, bytes) = self.apply(world, content);
                if let Ok(image) = &self.image {
                    let (witness, sections) = (&mut world.witness, image.sections());
                    self.memory.look(|memory, written| {
                        witness.image(number, epoch.get(), memory, written, sections);
                    });
                    world.report.images += 1;
                    return (Done::Applied(epoch), bytes);
                }
                (done, bytes)
            }
            Order::Digest(epoch) => {
                let digest = self.memory.look_only(|memory| memory.digest());
                (Done::Digest(epoch, digest), 0)
            }
            Order::Forget => {
                self.image = Ok(Image::default());
                (Done::Nothing, 0)
            }
        }
    }

    fn apply(&mut self, world: &mut World, content: EpochContent) -> (Done, usize) {
        let bytes = content_bytes(&content);
        let Ok(image) = &mut self.image else { return (Done::Nothing, bytes) };
        let memory = &self.memory;
        let applied = if world.mutated(Mutation::AheadAppliedLast) {
            content.into_values().rev().try_for_each(|piece| image.apply(piece, memory))
        } else {
            content.into_values().try_for_each(|piece| image.apply(piece, memory))
        };
        match applied {
            Ok(()) => (Done::Nothing, bytes),
            Err(broken) => {
                world.witness.broken_image(self.me, &broken);
                self.image = Err(broken.clone());
                (Done::Broken(broken), bytes)
            }
        }
    }

    /// Finishes what was ordered and hands out the image.
    pub(super) fn finish(mut self, world: &mut World) -> (Result<Image, BrokenImage>, ImageMemory) {
        if world.mutated(Mutation::PromoteHalfApplied) {
            self.orders.clear();
        }
        while !self.orders.is_empty() {
            self.step(world);
        }
        (self.image, self.memory)
    }
}
