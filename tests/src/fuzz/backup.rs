//! The backup's machine under primaries and an arbiter that say whatever they
//! like, whenever they like. What the shell tells it stays legal: a chunk is
//! verified before it is staged, an epoch is applied after it was ordered, and
//! a question is answered once.
//!
//! Checked beside panics: an epoch is applied only if what was staged of it is
//! what its close says, epochs rise, a promotion makes a primary, and no event
//! has endless consequences.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use arbiter::{ImageId, Operation, Record, Register, Request, Stamp, Term};
use checkpoint::{
    Epoch, MemoryLayout, PageNumber, PageRun, Question,
    backup::{Action, Backup, Config, Event},
    chunk::{ChunkId, Digest, epoch_digest},
    message::{Close, Hello, Machine, ToBackup},
    primary::Primary,
};

use super::{
    Verdict, primary,
    script::Script,
    words::{self, NODES, Oracle},
};

/// Consequences of one event.
const ACTIONS_MAX: usize = 5_000;
/// Most chunks of an epoch that a step sends whole.
const CHUNKS_MAX: u8 = 5;
const VM: &str = "guest";
const VERSION: &str = "romulus/3";

// Steps.
pub(super) const TIMEOUT: u8 = 0;
pub(super) const KNOCK: u8 = 1;
pub(super) const LINK_DOWN: u8 = 2;
pub(super) const HEARD: u8 = 3;
pub(super) const STAGED: u8 = 4;
pub(super) const REFUSED: u8 = 5;
pub(super) const PASSED_OVER: u8 = 6;
pub(super) const APPLIED: u8 = 7;
pub(super) const BROKEN: u8 = 8;
pub(super) const DIGEST: u8 = 9;
pub(super) const ANSWERED: u8 = 10;
pub(super) const TAKE_OVER: u8 = 11;
pub(super) const MEDDLE: u8 = 12;
/// A whole epoch: its chunks, then its close.
pub(super) const EPOCH: u8 = 13;
/// A primary as it should be knocks, and begins a seed.
pub(super) const SEED: u8 = 14;
pub(super) const EXCESS: u8 = 15;
const STEPS: u8 = 16;

pub(super) fn run(bytes: &[u8]) -> Verdict {
    let mut script = Script::new(bytes);
    let mut shell = Shell::new();
    while let Some(step) = script.step() {
        shell.now += Duration::from_millis(words::pause_ms(&mut script));
        for event in shell.events(step % STEPS, &mut script) {
            shell.machine.handle(shell.now, event);
            shell.act();
        }
    }
    if shell.commits > 1 { Verdict::Taken } else { Verdict::Refused }
}

struct Shell {
    machine: Backup,
    now: Duration,
    oracle: Oracle,
    /// What is staged, as the shell keeps it.
    staged: BTreeMap<Epoch, BTreeMap<u32, Digest>>,
    closes: BTreeMap<Epoch, Vec<Close>>,
    applying: VecDeque<Epoch>,
    digesting: Option<Epoch>,
    asked: Option<Question>,
    /// The last epoch that was ordered to be applied since the last discard.
    last: Option<Epoch>,
    commits: u32,
    promoted: bool,
    meddled: u64,
}

impl Shell {
    fn new() -> Self {
        let config = Config {
            node: words::name(NODES[0]),
            vm: VM.parse().expect("a name"),
            machine: machine(1),
            versions: vec![VERSION.to_owned()],
            detection: Duration::from_millis(150),
            freeze_gap: Duration::from_millis(600),
            ask_retry: Duration::from_millis(30),
            nack_after: Duration::from_millis(20),
            staging_bytes_max: 1 << 20,
        };
        let in_sync = [(words::name(NODES[0]), ImageId::new(0))].into();
        let register = Register { term: Term::new(7), primary: words::name(NODES[1]), in_sync };
        Self {
            machine: Backup::new(config, Term::new(7), 1 << 32, Duration::ZERO),
            now: Duration::ZERO,
            oracle: Oracle::new(Some(Record { register, stamp: Stamp::new(0) })),
            staged: BTreeMap::new(),
            closes: BTreeMap::new(),
            applying: VecDeque::new(),
            digesting: None,
            asked: None,
            last: None,
            commits: 0,
            promoted: false,
            meddled: 0,
        }
    }

    /// The events of a step; none if they would be none of the shell's.
    fn events(&mut self, step: u8, script: &mut Script<'_>) -> Vec<Event> {
        let event = match step {
            TIMEOUT => Some(Event::Timeout),
            KNOCK => Some(self.knock(script)),
            LINK_DOWN => Some(Event::LinkDown),
            HEARD => Some(self.heard(script)),
            STAGED => {
                let id = self.id(script);
                let (digest, pages) = (words::digest(script), u64::from(script.u8()));
                Some(self.stage(words::term(script, self.machine.term()), id, digest, pages))
            }
            REFUSED => Some(Event::Refused { id: self.id(script) }),
            PASSED_OVER => Some(Event::PassedOver { id: self.id(script) }),
            APPLIED => self.applying.pop_front().map(|epoch| Event::Applied { epoch }),
            BROKEN => {
                let broken = !self.applying.is_empty();
                broken.then(|| Event::ImageBroken { why: "words".to_owned() })
            }
            DIGEST => {
                let digest = words::digest(script);
                self.digesting.take().map(|epoch| Event::ImageDigest { epoch, digest })
            }
            ANSWERED => {
                let question = self.asked.take();
                question.map(|asked| Event::Answered(self.oracle.answer(&asked, script)))
            }
            TAKE_OVER => Some(Event::TakeOver),
            MEDDLE => {
                self.meddle(script);
                None
            }
            EPOCH => return self.whole_epoch(script),
            SEED => return self.begin_seed(script),
            EXCESS => Some(Event::Excess),
            _ => unreachable!("steps are below {STEPS}"),
        };
        event.into_iter().collect()
    }

    fn knock(&self, script: &mut Script<'_>) -> Event {
        let version = if script.flag() { VERSION } else { "romulus/0" };
        let vm = if script.flag() { VM } else { "another" };
        let hello = Hello {
            versions: vec![version.to_owned()],
            vm: vm.parse().expect("a name"),
            machine: machine(u16::from(script.u8()) % 3),
        };
        let term = words::term(script, self.machine.term());
        Event::Knock { peer: words::node(script), term, hello }
    }

    fn heard(&mut self, script: &mut Script<'_>) -> Event {
        let near = self.machine.term();
        let term = words::term(script, near);
        let (committed, _) = self.machine.epochs();
        let epoch = words::epoch(script, committed.next());
        let message = match script.u8() % 7 {
            0 => ToBackup::Heartbeat { ping: script.u64() },
            1 => ToBackup::BeginSeed { image: words::image(script) },
            2 => {
                let seed_chunks = script.flag().then(|| script.number_near(0x40) as u32);
                let chunks = script.number_near(0x40) as u32;
                let (pages, digest) = (script.number_near(0x40), words::digest(script));
                let close = Close { epoch, seed_chunks, chunks, pages, digest };
                self.closes.entry(epoch).or_default().push(close.clone());
                ToBackup::Close(close)
            }
            3 => ToBackup::Membership(words::register(script, near)),
            4 => ToBackup::HandOver { epoch, register: words::register(script, near) },
            5 => ToBackup::Verify { epoch },
            _ => ToBackup::Farewell { reason: "words".to_owned() },
        };
        Event::Heard { term, message }
    }

    fn id(&self, script: &mut Script<'_>) -> ChunkId {
        let (committed, _) = self.machine.epochs();
        let epoch = if script.flag() { Epoch::ZERO } else { words::epoch(script, committed) };
        ChunkId { epoch, index: script.number_near(0x40) as u32 }
    }

    fn stage(&mut self, term: Term, id: ChunkId, digest: Digest, pages: u64) -> Event {
        // A stale frame is refused before its body is read.
        if term >= self.machine.term() {
            self.staged.entry(id.epoch).or_default().insert(id.index, digest);
        }
        Event::Staged { term, id, digest, pages }
    }

    fn whole_epoch(&mut self, script: &mut Script<'_>) -> Vec<Event> {
        let term = self.machine.term();
        let (committed, _) = self.machine.epochs();
        let epoch = words::epoch(script, committed.next());
        let chunks = u32::from(script.u8() % CHUNKS_MAX);
        let digests: Vec<Digest> = (0..chunks).map(|index| [index as u8; 32]).collect();
        let seed_chunks = (committed == Epoch::ZERO).then_some(0);
        let mut events: Vec<Event> = (0..chunks)
            .map(|index| self.stage(term, ChunkId { epoch, index }, [index as u8; 32], 1))
            .collect();
        let digest = epoch_digest(&digests);
        let close = Close { epoch, seed_chunks, chunks, pages: u64::from(chunks), digest };
        self.closes.entry(epoch).or_default().push(close.clone());
        let place = usize::from(script.u8()) % (events.len() + 1);
        events.insert(place, Event::Heard { term, message: ToBackup::Close(close) });
        events
    }

    fn begin_seed(&self, script: &mut Script<'_>) -> Vec<Event> {
        let term = self.machine.term();
        let hello = Hello {
            versions: vec![VERSION.to_owned()],
            vm: VM.parse().expect("a name"),
            machine: machine(1),
        };
        let register = words::register(script, term);
        vec![
            Event::Knock { peer: words::node(script), term, hello },
            Event::Heard { term, message: ToBackup::BeginSeed { image: words::image(script) } },
            Event::Heard { term, message: ToBackup::Membership(register) },
        ]
    }

    /// Another node asks the arbiter for what it may.
    fn meddle(&mut self, script: &mut Script<'_>) {
        self.meddled += 1;
        let (caller, about) = (words::node(script), words::node(script));
        let expected = self.oracle.register().cloned();
        let operation = match script.u8() % 4 {
            0 => Operation::Admit { backup: about, image: words::image(script) },
            1 => Operation::Drop { backup: about },
            2 => {
                let image = words::image_of(script, expected.as_ref(), &caller);
                Operation::Promote { image }
            }
            _ => {
                let stands_by = script.flag().then(|| words::image(script));
                Operation::Switchover { successor: about, stands_by }
            }
        };
        let stamp = Stamp::new(self.meddled);
        self.oracle.meddle(&Request { caller, expected, operation, stamp });
    }

    fn act(&mut self) {
        let mut actions = 0;
        while let Some(action) = self.machine.poll_action() {
            actions += 1;
            assert!(actions <= ACTIONS_MAX, "an event without an end");
            assert!(!self.promoted || matches!(action, Action::Refuse(_)), "{action:?} at the end");
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            // A session begins with nothing staged.
            Action::Welcome(_) => self.staged.clear(),
            Action::Discard => {
                self.staged.clear();
                self.last = None;
            }
            Action::Unstage { epoch } => drop(self.staged.remove(&epoch)),
            Action::Apply { epoch } => self.apply(epoch),
            Action::DigestImage { epoch } => self.digesting = Some(epoch),
            Action::Ask(question) => {
                assert!(self.asked.is_none(), "two questions at once");
                self.asked = Some(question);
            }
            Action::Promote { register, epoch } => {
                assert_eq!(Some(epoch), self.last, "a promotion is of the last image");
                self.promoted = true;
                let config = primary::config(words::name(NODES[0]));
                drop(Primary::new(config, register, epoch.next(), 0, self.now));
            }
            Action::Note(note) => drop(note.to_string()),
            Action::Refuse(_)
            | Action::Disconnect { .. }
            | Action::Floor(_)
            | Action::Send(_)
            | Action::ApplySeed { .. } => {}
        }
    }

    /// All or nothing: what was staged is what some close of the epoch says.
    fn apply(&mut self, epoch: Epoch) {
        assert!(self.last.is_none_or(|last| last.next() == epoch), "{epoch} out of order");
        let staged = self.staged.remove(&epoch).unwrap_or_default();
        let digest = epoch_digest(staged.values());
        let sound = |close: &Close| close.digest == digest && close.chunks == staged.len() as u32;
        let closes = self.closes.get(&epoch).map_or(&[][..], Vec::as_slice);
        assert!(closes.iter().any(sound), "epoch {epoch} is applied in part");
        self.last = Some(epoch);
        self.commits += 1;
        self.applying.push_back(epoch);
    }
}

fn machine(vcpus: u16) -> Machine {
    let ram = PageRun { first: PageNumber::new(0), count: 16 };
    let layout = MemoryLayout::new(vec![ram]).expect("one region");
    Machine { layout, vcpus, traits: Default::default() }
}
