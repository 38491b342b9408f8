//! The primary's machine under peers and an arbiter that say whatever they
//! like, whenever they like. What the shell tells it stays legal: a cut is done
//! once and when it was ordered, an epoch is encoded after its cut, a round of
//! a seed is sent after it was ordered, and a question is answered once.
//!
//! Checked beside panics: what is released only rises and was cut, nothing
//! follows the end, and no event has endless consequences.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use arbiter::{ImageId, NodeId, Operation, Record, Register, Request, Stamp, Term};
use checkpoint::{
    Epoch, Question,
    chunk::epoch_digest,
    message::{Close, HeldImage, Refusal, ToBackup},
    pacing::{Goal, Pace},
    primary::{Action, Command, Config, CutOrder, Event, Primary},
};

use super::{
    Verdict,
    script::Script,
    words::{self, NODES, Oracle},
};

/// Consequences of one event.
const ACTIONS_MAX: usize = 1_000;
/// Orders of the shell that may wait.
const WAITING_MAX: usize = 64;
/// The guest's first epoch.
const FIRST: Epoch = Epoch::new(5);

// Steps.
pub(super) const TIMEOUT: u8 = 0;
pub(super) const CUT_DONE: u8 = 1;
pub(super) const CUT_FAILED: u8 = 2;
pub(super) const ENCODED: u8 = 3;
pub(super) const LINK_UP: u8 = 4;
pub(super) const LINK_DOWN: u8 = 5;
pub(super) const LINK_REFUSED: u8 = 6;
pub(super) const HEARD: u8 = 7;
pub(super) const SEED_ROUND: u8 = 8;
pub(super) const ANSWERED: u8 = 9;
pub(super) const OUTPUT_HELD: u8 = 10;
pub(super) const COMMANDED: u8 = 11;
pub(super) const STALLED: u8 = 12;
pub(super) const MEDDLE: u8 = 13;
/// What a well-meaning backup says next.
pub(super) const WELL: u8 = 14;
pub(super) const OUTPUT_WAITS: u8 = 15;
const STEPS: u8 = 16;

pub(super) fn run(bytes: &[u8]) -> Verdict {
    let mut script = Script::new(bytes);
    let mut shell = Shell::new();
    while let Some(step) = script.step() {
        shell.now += Duration::from_millis(words::pause_ms(&mut script));
        if let Some(event) = shell.event(step % STEPS, &mut script) {
            shell.machine.handle(shell.now, event);
            shell.act();
        }
    }
    if shell.released > FIRST { Verdict::Taken } else { Verdict::Refused }
}

pub(super) fn config(node: NodeId) -> Config {
    Config {
        node,
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
        freeze_gap: Duration::from_millis(600),
        ask_retry: Duration::from_millis(30),
        epochs_in_flight_max: 4,
        bytes_in_flight_max: 1 << 20,
        held_output_bytes_max: 1_000,
        seed_pages_left_max: 4,
        seed_rounds_max: 5,
    }
}

struct Shell {
    machine: Primary,
    now: Duration,
    oracle: Oracle,
    cutting: Option<CutOrder>,
    last_cut: Epoch,
    encoding: Vec<Epoch>,
    seeding: VecDeque<NodeId>,
    /// The images that were last begun.
    given: BTreeMap<NodeId, ImageId>,
    asked: Option<Question>,
    released: Epoch,
    ended: bool,
    meddled: u64,
}

impl Shell {
    fn new() -> Self {
        let own = words::name(NODES[0]);
        let register = Register { term: Term::new(7), primary: own.clone(), in_sync: [].into() };
        let record = Record { register: register.clone(), stamp: Stamp::new(0) };
        let machine = Primary::new(config(own), register, FIRST, 1 << 32, Duration::ZERO);
        Self {
            machine,
            now: Duration::ZERO,
            oracle: Oracle::new(Some(record)),
            cutting: None,
            last_cut: FIRST.previous(),
            encoding: Vec::new(),
            seeding: VecDeque::new(),
            given: BTreeMap::new(),
            asked: None,
            released: Epoch::ZERO,
            ended: false,
            meddled: 0,
        }
    }

    /// What a backup says that its image is: mostly what it was given.
    fn image_of(&self, backup: &NodeId, script: &mut Script<'_>) -> ImageId {
        let honest = script.u8() < 0xe0;
        let given = self.given.get(backup).copied().filter(|_| honest);
        given.unwrap_or_else(|| words::image(script))
    }

    /// The event of a step; `None` if it would be none of the shell's.
    fn event(&mut self, step: u8, script: &mut Script<'_>) -> Option<Event> {
        match step {
            TIMEOUT => Some(Event::Timeout),
            CUT_DONE => {
                let epoch = self.cutting.take()?.epoch;
                self.last_cut = epoch;
                self.encoding.push(epoch);
                let pause = Duration::from_micros(u64::from(script.u16()));
                Some(Event::CutDone { epoch, bytes: u64::from(script.u32()), pause })
            }
            CUT_FAILED => {
                let epoch = self.cutting.take()?.epoch;
                Some(Event::CutFailed { epoch, why: "words".to_owned() })
            }
            ENCODED => self.encoded(script),
            LINK_UP => {
                let committed = script.flag().then(|| words::epoch(script, self.last_cut));
                let staging_bytes_max = script.number_near(1 << 20);
                let backup = words::node(script);
                let image = committed
                    .map(|committed| HeldImage { id: self.image_of(&backup, script), committed });
                Some(Event::LinkUp { backup, image, staging_bytes_max })
            }
            LINK_DOWN => Some(Event::LinkDown { backup: words::node(script) }),
            LINK_REFUSED => {
                let refusal = self.refusal(script);
                Some(Event::LinkRefused { backup: words::node(script), refusal })
            }
            HEARD => {
                let term = words::term(script, self.machine.register().term);
                let message = words::to_primary(script, self.last_cut);
                Some(Event::Heard { backup: words::node(script), term, message })
            }
            SEED_ROUND => {
                let backup = self.seeding.pop_front()?;
                let chunks = u32::from(script.u8());
                let pages_left = script.number_near(0x40);
                Some(Event::SeedRoundSent { backup, chunks, pages_left })
            }
            ANSWERED => {
                let question = self.asked.take()?;
                Some(Event::Answered(self.oracle.answer(&question, script)))
            }
            OUTPUT_HELD => Some(Event::OutputHeld { bytes: u64::from(script.u16()) }),
            COMMANDED => Some(Event::Commanded(command(script))),
            OUTPUT_WAITS => Some(Event::OutputWaits),
            STALLED => Some(Event::Stalled),
            MEDDLE => {
                self.meddle(script);
                None
            }
            WELL => self.well_meant(script),
            _ => unreachable!("steps are below {STEPS}"),
        }
    }

    fn encoded(&mut self, script: &mut Script<'_>) -> Option<Event> {
        let index = usize::from(script.u8()) % self.encoding.len().max(1);
        let epoch = (index < self.encoding.len()).then(|| self.encoding.remove(index))?;
        let digest = epoch_digest([]);
        let close = Close { epoch, seed_chunks: None, chunks: 0, pages: 0, digest };
        Some(Event::Encoded { close, wire_bytes: u64::from(script.u32()) })
    }

    fn refusal(&self, script: &mut Script<'_>) -> Refusal {
        let words = || "words".to_owned();
        match script.u8() % 5 {
            0 => Refusal::Version { spoken: vec![words()] },
            1 => Refusal::Machine { difference: words() },
            2 => Refusal::Stale { current: words::term(script, self.machine.register().term) },
            3 => Refusal::Promoting,
            _ => Refusal::Unready { reason: words() },
        }
    }

    /// What a backup says that is as it should be: it has what was sent.
    fn well_meant(&mut self, script: &mut Script<'_>) -> Option<Event> {
        use checkpoint::message::ToPrimary;
        let backup = words::node(script);
        let term = self.machine.register().term;
        let message = match script.u8() % 3 {
            0 => ToPrimary::Heartbeat { pong: u64::MAX, steps: u64::MAX },
            1 => ToPrimary::SeedAck { chunks: u32::from(script.u8()) },
            _ => ToPrimary::Ack { committed: self.last_cut, applied: self.last_cut },
        };
        Some(Event::Heard { backup, term, message })
    }

    /// Another node asks the arbiter for what it may: a backup takes over.
    fn meddle(&mut self, script: &mut Script<'_>) {
        self.meddled += 1;
        let expected = self.oracle.register().cloned();
        let stamp = Stamp::new(self.meddled);
        let caller = words::node(script);
        let image = words::image_of(script, expected.as_ref(), &caller);
        let operation = Operation::Promote { image };
        self.oracle.meddle(&Request { caller, expected, operation, stamp });
    }

    fn act(&mut self) {
        let mut actions = 0;
        while let Some(action) = self.machine.poll_action() {
            actions += 1;
            assert!(actions <= ACTIONS_MAX, "an event without an end");
            assert!(!self.ended, "{action:?} after the end");
            self.carry_out(action);
        }
        assert!(self.machine.poll_timeout().is_none_or(|due| due < Duration::from_secs(1 << 40)));
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Cut(order) => {
                assert!(self.cutting.is_none(), "two cuts at once");
                self.cutting = Some(order);
            }
            Action::StartSeed { backup } | Action::SeedRound { backup } => {
                self.seeding.push_back(backup);
                assert!(self.seeding.len() <= WAITING_MAX, "rounds without end");
            }
            Action::StopSeed { backup } => self.seeding.retain(|seeded| *seeded != backup),
            Action::Ask(question) => {
                assert!(self.asked.is_none(), "two questions at once");
                self.asked = Some(question);
            }
            Action::Release { through } => {
                assert!(through > self.released && through <= self.last_cut, "{through} released");
                self.released = through;
            }
            Action::Send { backup, message: ToBackup::BeginSeed { image } } => {
                self.given.insert(backup, image);
            }
            Action::End(_) => self.ended = true,
            Action::Note(note) => drop(note.to_string()),
            Action::Connect { .. }
            | Action::Disconnect { .. }
            | Action::Send { .. }
            | Action::Follow { .. }
            | Action::Resend { .. }
            | Action::ResendSeed { .. }
            | Action::Verified { .. }
            | Action::Forget { .. }
            | Action::Confirm
            | Action::PassOutput
            | Action::HoldGuest
            | Action::FreeGuest => {}
        }
    }
}

fn command(script: &mut Script<'_>) -> Command {
    let backup = words::node(script);
    match script.u8() % 8 {
        0..=3 => Command::Protect { backup },
        4 => Command::Unprotect { backup },
        5 => Command::HandOver { to: backup, stand_by: script.flag() },
        6 => Command::Verify,
        _ => Command::Finish { reason: "words".to_owned() },
    }
}
