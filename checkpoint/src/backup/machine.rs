//! Events in, facts changed, actions out.

mod promotion;

use std::{collections::VecDeque, time::Duration};

use arbiter::{ImageId, NodeId, Register, Term};

use super::{
    Action, Config, Event, Standing,
    stage::{EPOCH_MAX, EPOCHS_AHEAD_MAX, SeedStage, Stages, Verdict},
};
use crate::{
    Epoch, Note, Question,
    chunk::{ChunkId, Digest},
    message::{HeldImage, Hello, Refusal, ToBackup, ToPrimary, Welcome},
    question::Stamps,
};

/// A successor that has not called yet is waited for so many times as long as a
/// primary that has fallen silent.
const FIRST_CONTACT: u32 = 3;

/// See the head of the module above.
#[derive(Debug)]
enum Phase {
    Waiting,
    Seeding(SeedStage),
    Standing,
    Asking(Asking),
    Promoting,
}

/// A question that waits for its answer, or for its next try.
#[derive(Debug)]
struct Asking {
    question: Question,
    reason: Reason,
    /// A copy of it went unanswered: it may have happened, and only an outcome
    /// can tell.
    uncertain: bool,
}

/// Why the arbiter is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// Nothing is heard of the primary, or an operator wants it.
    Silence,
    /// The primary says that it has handed its guest over to this node.
    HandOver,
}

/// The session with a primary.
#[derive(Debug)]
struct Link {
    primary: NodeId,
}

/// The backup's epoch machine.
#[derive(Debug)]
pub struct Backup {
    config: Config,
    phase: Phase,
    now: Duration,
    /// The highest term that this node knows: frames below it are refused.
    term: Term,
    /// Whose term it is, as far as anybody has said: a term has one primary.
    primary_of_term: Option<NodeId>,
    link: Option<Link>,
    /// The register, as the primary last told it.
    register: Option<Register>,
    /// What the register calls this image, or will: as the primary named it that
    /// seeded it. Only a register that says just this means this process.
    image: Option<ImageId>,
    heard_at: Duration,
    committed: Epoch,
    applied: Epoch,
    /// Chunks staged and epochs applied.
    steps: u64,
    pub(super) stages: Stages,
    /// The image's digest is wanted at this epoch.
    verifying: Option<Epoch>,
    ask_not_before: Duration,
    /// A question is under way, perhaps of an image before this one: an answer
    /// does not say to which, so there is one at a time.
    answer_due: bool,
    /// An operator wants a promotion.
    take_over: bool,
    stamps: Stamps,
    actions: VecDeque<Action>,
}

impl Backup {
    /// A backup without an image. `term` is the highest that this node has
    /// seen, if it remembers; `random` is unlike that of any other process.
    #[must_use]
    pub fn new(config: Config, term: Term, random: u64, now: Duration) -> Self {
        Self {
            config,
            phase: Phase::Waiting,
            now,
            term,
            primary_of_term: None,
            link: None,
            register: None,
            image: None,
            heard_at: now,
            committed: Epoch::ZERO,
            applied: Epoch::ZERO,
            steps: 0,
            stages: Stages::default(),
            verifying: None,
            ask_not_before: now,
            answer_due: false,
            take_over: false,
            stamps: Stamps::new(random),
            actions: VecDeque::new(),
        }
    }

    /// A backup that was primary until now, and has the guest as it handed it
    /// over: it stands at `epoch`, and `register` names the successor, and this
    /// node as in sync.
    ///
    /// # Panics
    ///
    /// If `register` does not count this node.
    #[must_use]
    pub fn with_image(
        config: Config,
        register: Register,
        epoch: Epoch,
        random: u64,
        now: Duration,
    ) -> Self {
        let image = register.in_sync.get(&config.node).copied();
        assert!(image.is_some(), "an image that nobody counts on");
        // The successor has its own role to change before it calls.
        let ask_not_before = now + config.detection * FIRST_CONTACT;
        let mut backup = Self::new(config, register.term, random, now);
        backup.phase = Phase::Standing;
        backup.primary_of_term = Some(register.primary.clone());
        (backup.image, backup.register) = (image, Some(register));
        (backup.committed, backup.applied) = (epoch, epoch);
        backup.ask_not_before = ask_not_before;
        backup
    }

    /// What it is doing.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.phase {
            Phase::Waiting => Standing::Waiting,
            Phase::Seeding(_) => Standing::Seeding,
            Phase::Standing => Standing::Whole,
            Phase::Asking(_) => Standing::Asking,
            Phase::Promoting => Standing::Promoting,
        }
    }

    /// The highest term that it knows.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The last committed and the last applied epoch.
    #[must_use]
    pub fn epochs(&self) -> (Epoch, Epoch) {
        (self.committed, self.applied)
    }

    /// The primary of the session, if there is one.
    #[must_use]
    pub fn primary(&self) -> Option<&NodeId> {
        self.link.as_ref().map(|link| &link.primary)
    }

    /// The register, as the primary last told it.
    #[must_use]
    pub fn register(&self) -> Option<&Register> {
        self.register.as_ref()
    }

    /// What the register calls its image, or will, if it has one or is being
    /// seeded.
    #[must_use]
    pub fn image(&self) -> Option<ImageId> {
        self.image
    }

    /// Whether the primary has told it a register that counts on its image.
    #[must_use]
    pub fn in_sync(&self) -> bool {
        self.register.as_ref().is_some_and(|register| self.is_counted_by(register))
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Timeout`] is due, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Waiting | Phase::Promoting => None,
            Phase::Seeding(_) => self.stages.nack_at(),
            Phase::Standing => {
                let suspect = (self.heard_at + self.config.detection).max(self.ask_not_before);
                let suspect = (!self.answer_due).then_some(suspect);
                let nack = self.link.as_ref().and_then(|_| self.stages.nack_at());
                suspect.into_iter().chain(nack).min()
            }
            Phase::Asking(_) => (!self.answer_due).then_some(self.ask_not_before),
        }
    }

    /// Takes what happened at `now`; actions follow from
    /// [`Backup::poll_action`].
    pub fn handle(&mut self, now: Duration, event: Event) {
        let late = self.poll_timeout().map_or(Duration::ZERO, |due| now.saturating_sub(due));
        self.now = self.now.max(now);
        if late >= self.config.freeze_gap {
            // Who stood still cannot tell who was silent meanwhile.
            self.heard_at = self.now;
        }
        if matches!(event, Event::Answered(_)) {
            self.answer_due = false;
        }
        match (&mut self.phase, event) {
            (Phase::Waiting | Phase::Promoting, Event::Timeout) => {}
            (Phase::Seeding(_), Event::Timeout) => self.nack_missing(),
            (Phase::Standing, Event::Timeout) => {
                self.nack_missing();
                self.suspect();
            }
            (Phase::Asking(_), Event::Timeout) => self.ask_again(),

            (
                Phase::Waiting | Phase::Seeding(_) | Phase::Standing,
                Event::Knock { peer, term, hello },
            ) => {
                self.on_knock(peer, term, &hello);
            }
            (Phase::Asking(_) | Phase::Promoting, Event::Knock { .. }) => {
                self.act(Action::Refuse(Refusal::Promoting));
            }

            (Phase::Waiting | Phase::Standing, Event::LinkDown) => self.on_link_down(),
            (Phase::Seeding(_), Event::LinkDown) => {
                self.on_link_down();
                self.discard();
            }
            (Phase::Asking(_) | Phase::Promoting, Event::LinkDown) => self.link = None,

            (
                Phase::Waiting | Phase::Seeding(_) | Phase::Standing,
                Event::Heard { term, message },
            ) => {
                self.on_heard(term, message);
            }
            (Phase::Seeding(_) | Phase::Standing, Event::Staged { term, id, digest, pages }) => {
                self.on_staged(term, id, digest, pages);
            }
            (Phase::Seeding(_) | Phase::Standing, Event::Refused { id }) => self.on_refused(id),
            (Phase::Seeding(_) | Phase::Standing, Event::PassedOver { id }) => self.ask_for(id),
            (Phase::Waiting | Phase::Seeding(_) | Phase::Standing, Event::Excess) => {
                self.violation("it sends more than this node can stage, and completes none of it");
            }

            (Phase::Standing, Event::Applied { epoch }) => self.on_applied(epoch),
            (Phase::Standing, Event::ImageDigest { epoch, digest }) => {
                self.verifying = None;
                self.act(Action::Send(ToPrimary::Verified { epoch, digest }));
            }
            (Phase::Standing, Event::TakeOver) => {
                self.take_over = true;
                self.suspect();
            }

            (Phase::Asking(_), Event::Answered(answer)) => self.on_answered(answer),
            (Phase::Asking(_) | Phase::Promoting, Event::Applied { epoch }) => self.applied = epoch,

            (
                Phase::Seeding(_) | Phase::Standing | Phase::Asking(_),
                Event::ImageBroken { why },
            ) => self.on_image_broken(why),

            // What was under way when the phase changed.
            (
                Phase::Waiting,
                Event::Staged { .. }
                | Event::Refused { .. }
                | Event::PassedOver { .. }
                | Event::Applied { .. }
                | Event::ImageBroken { .. }
                | Event::ImageDigest { .. }
                | Event::Answered(_)
                | Event::TakeOver,
            )
            | (
                Phase::Seeding(_),
                Event::Applied { .. }
                | Event::ImageDigest { .. }
                | Event::Answered(_)
                | Event::TakeOver,
            )
            | (Phase::Standing, Event::Answered(_))
            | (
                Phase::Asking(_),
                Event::Heard { .. }
                | Event::Staged { .. }
                | Event::Refused { .. }
                | Event::PassedOver { .. }
                | Event::Excess
                | Event::ImageDigest { .. }
                | Event::TakeOver,
            )
            | (
                Phase::Promoting,
                Event::Heard { .. }
                | Event::Staged { .. }
                | Event::Refused { .. }
                | Event::PassedOver { .. }
                | Event::Excess
                | Event::ImageBroken { .. }
                | Event::ImageDigest { .. }
                | Event::Answered(_)
                | Event::TakeOver,
            ) => {}
        }
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn note(&mut self, note: Note) {
        self.act(Action::Note(note));
    }

    // --- Sessions ---------------------------------------------------------

    fn on_knock(&mut self, peer: NodeId, term: Term, hello: &Hello) {
        if let Some(refusal) = self.objection(&peer, term, hello) {
            self.note(Note::PrimaryRefused { primary: peer, why: refusal.to_string() });
            self.act(Action::Refuse(refusal));
            return;
        }
        let version = self.common_version(hello).expect("objected otherwise");
        if self.link.take().is_some() {
            self.act(Action::Disconnect { reason: "a newer session replaces it".to_owned() });
        }
        if matches!(self.phase, Phase::Seeding(_)) {
            self.discard();
        }
        self.raise(term, &peer);
        if self.image.is_none() {
            self.primary_of_term = Some(peer.clone());
        }
        self.heard_at = self.now;
        let whole = self.image.filter(|_| matches!(self.phase, Phase::Standing));
        let image = whole.map(|id| HeldImage { id, committed: self.committed });
        // What was staged and not committed comes again in this session.
        for epoch in self.stages.remove_through(Epoch::new(u64::MAX - 1)) {
            self.act(Action::Unstage { epoch });
        }
        self.verifying = None;
        self.note(Note::PrimaryConnected { primary: peer.clone(), term });
        self.link = Some(Link { primary: peer });
        self.act(Action::Welcome(Welcome {
            version,
            image,
            staging_bytes_max: self.config.staging_bytes_max,
        }));
    }

    fn objection(&self, peer: &NodeId, term: Term, hello: &Hello) -> Option<Refusal> {
        if term < self.term {
            return Some(Refusal::Stale { current: self.term });
        }
        // Another node's epochs on top of the primary's would be taken for its own.
        let primary = self.primary_of_term.as_ref().filter(|_| self.image.is_some());
        if let Some(primary) = primary.filter(|primary| term == self.term && *primary != peer) {
            let reason = format!("its image is that of `{primary}`, whose term {term} is");
            return Some(Refusal::Unready { reason });
        }
        if self.common_version(hello).is_none() {
            return Some(Refusal::Version { spoken: self.config.versions.clone() });
        }
        if hello.vm != self.config.vm {
            let difference =
                format!("this node stands by for `{}`, not `{}`", self.config.vm, hello.vm);
            return Some(Refusal::Machine { difference });
        }
        let difference = self.config.machine.difference(&hello.machine)?;
        Some(Refusal::Machine { difference })
    }

    fn common_version(&self, hello: &Hello) -> Option<String> {
        self.config.versions.iter().find(|version| hello.versions.contains(version)).cloned()
    }

    /// There is a later term, which is `primary`'s.
    fn raise(&mut self, term: Term, primary: &NodeId) {
        if term > self.term {
            self.term = term;
            self.primary_of_term = Some(primary.clone());
            self.act(Action::Floor(term));
        }
    }

    fn on_link_down(&mut self) {
        if let Some(link) = self.link.take() {
            self.note(Note::PrimaryLost { primary: link.primary });
        }
    }

    /// Ends a session whose peer does not keep to the protocol.
    fn violation(&mut self, reason: &str) {
        self.on_link_down();
        self.act(Action::Disconnect { reason: reason.to_owned() });
        if matches!(self.phase, Phase::Seeding(_)) {
            self.discard();
        }
    }

    fn on_heard(&mut self, term: Term, message: ToBackup) {
        let Some(link) = &self.link else { return };
        let peer = link.primary.clone();
        if term < self.term {
            self.note(Note::StaleFrame { peer, term });
            return;
        }
        self.heard_at = self.now;
        let primary = match &message {
            ToBackup::HandOver { register, .. } => &register.primary,
            _ => &peer,
        };
        self.raise(term, primary);
        match message {
            ToBackup::Heartbeat { ping } => {
                // A digest of all memory takes long, and nothing else goes on meanwhile.
                let digests = self.verifying.is_some_and(|epoch| epoch <= self.committed);
                self.steps += u64::from(digests);
                let steps = self.steps;
                self.act(Action::Send(ToPrimary::Heartbeat { pong: ping, steps }));
            }
            ToBackup::BeginSeed { image } => self.on_begin_seed(image),
            ToBackup::Close(close) => {
                let epoch = close.epoch;
                if !self.in_window(epoch) {
                    return;
                }
                let (now, patience) = (self.now, self.config.nack_after);
                let joins = close.seed_chunks.is_some() && matches!(self.phase, Phase::Seeding(_));
                self.stages.entry(epoch).close(close, now, patience);
                if joins {
                    // What is below it is of no use, and in the way where room is
                    // short: the lowest epoch is served first.
                    for stale in self.stages.remove_through(epoch.previous()) {
                        self.act(Action::Unstage { epoch: stale });
                    }
                }
                self.commit();
            }
            ToBackup::Membership(register) => self.on_membership(register),
            ToBackup::HandOver { epoch, register } => self.on_hand_over(epoch, register),
            ToBackup::Verify { epoch } => self.verifying = Some(epoch),
            ToBackup::Farewell { reason } => {
                self.note(Note::StoodDown { why: reason });
                self.discard();
            }
        }
    }

    fn on_membership(&mut self, register: Register) {
        if register.term != self.term {
            return;
        }
        if self.primary() != Some(&register.primary) {
            self.violation("the register that it tells is another's");
            return;
        }
        let member = self.is_counted_by(&register);
        if member && !self.in_sync() {
            self.note(Note::InSync { term: register.term });
        }
        self.register = Some(register);
        // What was acknowledged under the term before is said again under this.
        match &self.phase {
            Phase::Seeding(seed) => {
                let chunks = seed.gapless();
                self.act(Action::Send(ToPrimary::SeedAck { chunks }));
            }
            Phase::Standing => self.acknowledge(),
            Phase::Waiting | Phase::Asking(_) | Phase::Promoting => {}
        }
    }

    fn on_hand_over(&mut self, epoch: Epoch, register: Register) {
        let whole = matches!(self.phase, Phase::Standing) && self.committed == epoch;
        if whole && self.is_handed_to_us(&register) {
            self.confirm_handover();
        } else if whole && self.goes_on_under(&register) {
            let (primary, term) = (register.primary.clone(), register.term);
            self.note(Note::GoesOnUnder { primary, term });
            self.go_on_under(register);
        } else {
            self.violation("it hands over what is not committed here");
        }
    }

    // --- Seeds and epochs -------------------------------------------------

    fn on_begin_seed(&mut self, image: ImageId) {
        let current = self.register.as_ref().filter(|register| register.term == self.term);
        if current.is_some_and(|register| self.is_counted_by(register)) {
            // The register may count on this image: it is not given up.
            self.violation("it seeds a backup that is in sync");
            return;
        }
        let primary = self.link.as_ref().expect("heard from").primary.clone();
        self.discard();
        self.phase = Phase::Seeding(SeedStage::default());
        self.image = Some(image);
        self.note(Note::SeedReceiving { primary });
        self.act(Action::Send(ToPrimary::SeedAck { chunks: 0 }));
    }

    /// Gives up image and stages: there is nothing to promote any more.
    fn discard(&mut self) {
        self.phase = Phase::Waiting;
        self.committed = Epoch::ZERO;
        self.applied = Epoch::ZERO;
        self.stages = Stages::default();
        self.register = None;
        self.image = None;
        self.verifying = None;
        self.take_over = false;
        self.act(Action::Discard);
    }

    fn in_window(&self, epoch: Epoch) -> bool {
        match self.phase {
            // The joining epoch may have any number, but not all of them; nothing
            // below it is wanted once it is known.
            Phase::Seeding(_) => {
                let joining = self.stages.joining().map_or(Epoch::FIRST, |(epoch, ..)| epoch);
                epoch >= joining && epoch <= EPOCH_MAX && self.stages.has_place(epoch)
            }
            Phase::Standing => {
                epoch > self.committed
                    && epoch.get() - self.committed.get() <= EPOCHS_AHEAD_MAX
                    && epoch <= EPOCH_MAX
            }
            Phase::Waiting | Phase::Asking(_) | Phase::Promoting => false,
        }
    }

    fn on_staged(&mut self, term: Term, id: ChunkId, digest: Digest, pages: u64) {
        if self.link.is_none() {
            return;
        }
        if term < self.term {
            // The term changed while it was decoded.
            return self.ask_for(id);
        }
        self.heard_at = self.now;
        self.steps += 1;
        if id.epoch == Epoch::ZERO {
            if let Phase::Seeding(seed) = &mut self.phase
                && let Some(chunks) = seed.stage(id.index)
            {
                self.act(Action::ApplySeed { chunks });
                self.act(Action::Send(ToPrimary::SeedAck { chunks }));
                self.commit();
            }
            return;
        }
        if !self.in_window(id.epoch) {
            if matches!(self.phase, Phase::Seeding(_)) {
                // Where it lies it would be taken for what is to commit next.
                self.act(Action::Unstage { epoch: id.epoch });
            }
            return;
        }
        let now = self.now;
        if self.stages.entry(id.epoch).stage(id.index, digest, pages, now) {
            self.commit();
        } else {
            self.violation("a chunk's index is beyond all bounds");
        }
    }

    fn on_refused(&mut self, id: ChunkId) {
        if self.link.is_none() {
            return;
        }
        self.note(Note::ChunkRefused { epoch: id.epoch, index: id.index });
        self.ask_for(id);
    }

    fn ask_for(&mut self, id: ChunkId) {
        if self.link.is_some() {
            self.act(Action::Send(ToPrimary::Nack { epoch: id.epoch, chunks: vec![id.index] }));
        }
    }

    /// Commits as many epochs as are whole, in their order.
    fn commit(&mut self) {
        let before = self.committed;
        while let Some(epoch) = self.next_whole() {
            if self.committed == Epoch::ZERO {
                self.note(Note::ImageComplete { epoch });
                self.phase = Phase::Standing;
                self.applied = Epoch::ZERO;
            }
            self.committed = epoch;
            for stale in self.stages.remove_through(epoch) {
                if stale != epoch {
                    self.act(Action::Unstage { epoch: stale });
                }
            }
            self.act(Action::Apply { epoch });
            if self.verifying == Some(epoch) {
                self.act(Action::DigestImage { epoch });
            }
        }
        if self.committed != before {
            self.acknowledge();
        }
    }

    fn next_whole(&mut self) -> Option<Epoch> {
        let epoch = match &self.phase {
            Phase::Seeding(seed) => {
                let (epoch, _, seed_chunks) = self.stages.joining()?;
                (seed.gapless() >= seed_chunks).then_some(epoch)?
            }
            Phase::Standing => self.committed.next(),
            Phase::Waiting | Phase::Asking(_) | Phase::Promoting => return None,
        };
        match self.stages.get(epoch)?.verdict() {
            Verdict::Incomplete => None,
            Verdict::Whole => Some(epoch),
            Verdict::Wrong => {
                // Chunks of it may still be between the decoders and here: only
                // a new session tells which of them count.
                self.note(Note::EpochRefused { epoch });
                self.violation("an epoch is not what its close says");
                None
            }
        }
    }

    fn acknowledge(&mut self) {
        if self.link.is_some() {
            let (committed, applied) = (self.committed, self.applied);
            self.act(Action::Send(ToPrimary::Ack { committed, applied }));
        }
    }

    fn on_applied(&mut self, epoch: Epoch) {
        self.applied = self.applied.max(epoch);
        self.steps += 1;
    }

    /// Nothing of a broken image may ever run: better no backup than this one.
    fn on_image_broken(&mut self, why: String) {
        self.note(Note::ImageBroken { why });
        self.on_link_down();
        self.act(Action::Disconnect { reason: "the image is broken".to_owned() });
        self.discard();
    }

    fn nack_missing(&mut self) {
        let now = self.now;
        let mut nacks = Vec::new();
        for (epoch, stage) in self.stages.iter_mut() {
            if stage.nack_at().is_some_and(|at| at <= now) {
                let chunks = stage.take_missing(now);
                if !chunks.is_empty() {
                    nacks.push(ToPrimary::Nack { epoch, chunks });
                }
            }
        }
        if self.link.is_some() {
            self.actions.extend(nacks.into_iter().map(Action::Send));
        }
    }
}
