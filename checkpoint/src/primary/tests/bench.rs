//! A machine in virtual time, and whom it speaks with.

use std::{collections::BTreeMap, time::Duration};

use arbiter::{ImageId, NodeId, Operation, Outcome, Register, Term};

use super::releases;
use crate::{
    Answer, Epoch, Question,
    message::{Close, HeldImage, ToBackup, ToPrimary},
    pacing::{Goal, Pace},
    primary::{Action, Command, Config, CutOrder, Event, Primary},
};

const STEP: Duration = Duration::from_millis(1);
/// In an answer: the image that the machine has drawn for that node.
const IMAGE: ImageId = ImageId::new(0);

pub(super) fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

pub(super) fn register(term: u64, members: &[&str]) -> Register {
    let in_sync = members.iter().map(|name| (node(name), IMAGE)).collect();
    Register { term: Term::new(term), primary: node("a"), in_sync }
}

/// A machine and what it has asked for since it was last looked at.
pub(super) struct Bench {
    pub(super) machine: Primary,
    pub(super) now: Duration,
    actions: Vec<Action>,
    /// What the machine has drawn.
    images: BTreeMap<NodeId, ImageId>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with_in_flight(3)
    }

    /// With at most so many epochs in flight.
    pub(super) fn with_in_flight(epochs_in_flight_max: usize) -> Self {
        Self::begun(epochs_in_flight_max, register(1, &[]), Epoch::FIRST)
    }

    /// With what a register and the epoch that the guest is in make of it.
    pub(super) fn begun(epochs_in_flight_max: usize, register: Register, first: Epoch) -> Self {
        let config = Config {
            node: node("a"),
            pace: Pace {
                goal: Goal::Interval(Duration::from_millis(10)),
                interval_min: Duration::from_millis(1),
                interval_max: Duration::from_millis(100),
                early: true,
                gap_min: Duration::from_millis(2),
                early_bytes_max: 1 << 20,
                stretch_max: 4,
            },
            heartbeat: Duration::from_millis(20),
            drop_after: Duration::from_millis(120),
            lag_max: Duration::from_millis(900),
            freeze_gap: Duration::from_millis(60),
            ask_retry: Duration::from_millis(30),
            epochs_in_flight_max,
            bytes_in_flight_max: 1 << 20,
            held_output_bytes_max: 1000,
            seed_pages_left_max: 4,
            seed_rounds_max: 5,
        };
        let machine = Primary::new(config, register, first, 7, Duration::ZERO);
        let mut bench =
            Self { machine, now: Duration::ZERO, actions: Vec::new(), images: BTreeMap::new() };
        bench.tell(Event::Commanded(Command::Protect { backup: node("b") }));
        bench
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.now += STEP;
        self.machine.handle(self.now, event);
        while let Some(action) = self.machine.poll_action() {
            self.note_image(&action);
            if !matches!(action, Action::Note(_)) {
                self.actions.push(action);
            }
        }
    }

    pub(super) fn note_image(&mut self, action: &Action) {
        let drawn = match action {
            Action::Send { backup, message: ToBackup::BeginSeed { image } } => {
                Some((backup.clone(), *image))
            }
            Action::Ask(Question::Change(request)) => match request.operation {
                Operation::Switchover { stands_by: Some(image), .. } => {
                    Some((request.caller.clone(), image))
                }
                _ => None,
            },
            _ => None,
        };
        self.images.extend(drawn);
    }

    /// With the images that the machine has drawn.
    pub(super) fn meant(&self, mut register: Register) -> Register {
        for (node, image) in &mut register.in_sync {
            *image = self.images.get(node).copied().unwrap_or(*image);
        }
        register
    }

    pub(super) fn held(&self, backup: &str, committed: u64) -> HeldImage {
        let id = self.images.get(&node(backup)).copied().unwrap_or(IMAGE);
        HeldImage { id, committed: Epoch::new(committed) }
    }

    /// The order to begin `b`'s seed that was given last.
    pub(super) fn begin(&self) -> Action {
        let image = self.images[&node("b")];
        Action::Send { backup: node("b"), message: ToBackup::BeginSeed { image } }
    }

    /// Lets time pass, timeout by timeout, for `length`.
    pub(super) fn pass(&mut self, length: Duration) {
        let end = self.now + length;
        while let Some(due) = self.machine.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.tell(Event::Timeout);
        }
        self.now = self.now.max(end);
    }

    pub(super) fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The cut that was ordered since the last look.
    pub(super) fn order(&mut self) -> Option<CutOrder> {
        self.take().into_iter().find_map(|action| match action {
            Action::Cut(order) => Some(order),
            _ => None,
        })
    }

    pub(super) fn hear(&mut self, term: u64, message: ToPrimary) {
        self.hear_from("b", term, message);
    }

    pub(super) fn hear_from(&mut self, backup: &str, term: u64, message: ToPrimary) {
        self.tell(Event::Heard { backup: node(backup), term: Term::new(term), message });
    }

    pub(super) fn ack(&mut self, term: u64, committed: u64) {
        self.ack_from("b", term, committed);
    }

    pub(super) fn ack_from(&mut self, backup: &str, term: u64, committed: u64) {
        let committed = Epoch::new(committed);
        self.hear_from(backup, term, ToPrimary::Ack { committed, applied: Epoch::ZERO });
    }

    pub(super) fn link_up(&mut self, committed: Option<u64>) {
        self.tell(Event::LinkUp {
            backup: node("b"),
            image: committed.map(|committed| self.held("b", committed)),
            staging_bytes_max: 1 << 20,
        });
    }

    pub(super) fn finish_cut(&mut self, epoch: u64) {
        let epoch = Epoch::new(epoch);
        self.tell(Event::CutDone { epoch, bytes: 4096, pause: Duration::from_micros(100) });
        let close = Close { epoch, seed_chunks: None, chunks: 1, pages: 1, digest: [0; 32] };
        self.tell(Event::Encoded { close, wire_bytes: 4096 });
    }

    pub(super) fn answer(&mut self, answer: Answer) {
        let answer = match answer {
            Answer::Outcome(Outcome::Set(set)) => Answer::Outcome(Outcome::Set(self.meant(set))),
            Answer::Outcome(Outcome::Mismatch(found)) => {
                Answer::Outcome(Outcome::Mismatch(found.map(|found| self.meant(found))))
            }
            Answer::Register(found) => Answer::Register(found.map(|found| self.meant(found))),
            answer @ (Answer::Unsent | Answer::Unknown | Answer::Refused(_)) => answer,
        };
        self.tell(Event::Answered(answer));
    }

    /// Through a seed, to the cut that ends it.
    pub(super) fn seed(&mut self) {
        self.link_up(None);
        self.hear(1, ToPrimary::SeedAck { chunks: 0 });
        self.tell(Event::SeedRoundSent { backup: node("b"), chunks: 2, pages_left: 0 });
        self.hear(1, ToPrimary::SeedAck { chunks: 2 });
        assert_eq!(self.order().expect("the join").joins, [node("b")]);
    }

    /// Through a seed, the joining epoch 1 and the admission, to term 2.
    pub(super) fn in_sync() -> Self {
        Self::new().brought_in_sync()
    }

    /// With `c` beside `b`, which joins with epoch 3, in term 3.
    pub(super) fn two_in_sync() -> Self {
        let mut bench = Self::with_c_joining();
        bench.answer(Answer::Outcome(Outcome::Set(register(3, &["b", "c"]))));
        assert_eq!(releases(&bench.take()), [2, 3]);
        bench
    }

    /// The same, while the admission is asked for.
    pub(super) fn with_c_joining() -> Self {
        let mut bench = Self::in_sync();
        bench.tell(Event::Commanded(Command::Protect { backup: node("c") }));
        bench.tell(Event::LinkUp { backup: node("c"), image: None, staging_bytes_max: 1 << 20 });
        bench.hear_from("c", 2, ToPrimary::SeedAck { chunks: 0 });
        bench.tell(Event::SeedRoundSent { backup: node("c"), chunks: 1, pages_left: 0 });
        bench.hear_from("c", 2, ToPrimary::SeedAck { chunks: 1 });
        for epoch in [2, 3] {
            bench.pass(Duration::from_millis(10));
            bench.finish_cut(epoch);
            bench.ack(2, epoch);
        }
        bench.ack_from("c", 2, 3);
        bench
    }

    pub(super) fn brought_in_sync(self) -> Self {
        let mut bench = self;
        bench.seed();
        bench.finish_cut(1);
        bench.ack(1, 1);
        bench.answer(Answer::Outcome(Outcome::Set(register(2, &["b"]))));
        bench.take();
        bench
    }
}
