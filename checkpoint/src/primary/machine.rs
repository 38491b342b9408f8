//! Events in, facts changed, actions out.
//!
//! Each event only changes facts; [`Primary::settle`] then derives from the
//! facts what is to be done. So no order of events needs a rule of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use arbiter::{ImageId, NodeId, Register, Term};

use super::{
    Action, Config, CutOrder, Ending, Event,
    flight::Flights,
    link::{Link, Stage},
    questions::Asked,
};
use crate::{
    Epoch, Note,
    message::{Close, HeldImage, Refusal, ToBackup, ToPrimary},
    pacing::{Cost, Pacer},
    question::Stamps,
};

/// Where the machine is in its life. See the head of the module above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    Draining(Drain),
    Ended,
}

/// Why the guest is paused for good, and up to where it must be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drain {
    pub(super) purpose: DrainPurpose,
    /// The last epoch, once it is ordered.
    pub(super) last: Option<Epoch>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DrainPurpose {
    HandOver { to: NodeId, stand_by: bool },
    Finish(String),
}

/// Bounds that were reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct HeldFor {
    /// Too much output waits.
    pub(super) output: bool,
    /// Backups lag, and the guest dirties on.
    pub(super) room: bool,
}

/// The right to run is to be confirmed before anything is released.
#[derive(Debug, Clone, Copy)]
pub(super) struct Doubt {
    pub(super) since: Duration,
    /// Fresh pongs of all followers are enough; otherwise only the arbiter is.
    by_pongs: bool,
}

/// The primary's epoch machine.
#[derive(Debug)]
pub struct Primary {
    pub(super) config: Config,
    pub(super) register: Register,
    pub(super) phase: Phase,
    /// When the last event came.
    pub(super) now: Duration,
    pub(super) links: BTreeMap<NodeId, Link>,
    pub(super) next_epoch: Epoch,
    pub(super) pacer: Pacer,
    /// When the cut was ordered that began the epoch that runs.
    pub(super) epoch_begun: Duration,
    /// How long the guest ran in the epoch that is being cut.
    pub(super) epoch_length: Duration,
    /// Since when output waits for the end of the epoch that runs.
    pub(super) output_waits: Option<Duration>,
    pub(super) cutting: Option<CutOrder>,
    pub(super) flights: Flights,
    /// Captured bytes of the largest of the last epochs; an old one counts less.
    pub(super) epoch_bytes_top: u64,
    /// Everything up to here has been released.
    pub(super) released: Epoch,
    /// Output waits for commits.
    pub(super) holding: bool,
    pub(super) held_bytes: u64,
    /// Why the guest is paused, if it is not by a drain.
    pub(super) held_for: HeldFor,
    pub(super) guest_held: bool,
    pub(super) heartbeat_at: Duration,
    pub(super) doubt: Option<Doubt>,
    /// The next cut takes the digest of all memory.
    pub(super) verify_next: bool,
    /// The epoch whose digest backups are asked for.
    pub(super) verifying: Option<Epoch>,
    pub(super) asked: Option<Asked>,
    pub(super) ask_not_before: Duration,
    pub(super) stamps: Stamps,
    pub(super) actions: VecDeque<Action>,
}

impl Primary {
    /// The machine of a node that `register` names as primary. `first` is the
    /// epoch that its guest is in; whoever is in sync has the epoch before it,
    /// by a handover, and output is held from the start. `random` is unlike that
    /// of any other process.
    ///
    /// # Panics
    ///
    /// If the register names somebody else.
    #[must_use]
    pub fn new(
        config: Config,
        register: Register,
        first: Epoch,
        random: u64,
        now: Duration,
    ) -> Self {
        assert_eq!(register.primary, config.node, "only its primary may run a VM");
        let member = |(node, image): (&NodeId, &ImageId)| {
            (node.clone(), Link::of_member(*image, first.previous(), now))
        };
        Self {
            pacer: Pacer::new(config.pace),
            config,
            phase: Phase::Running,
            now,
            links: register.in_sync.iter().map(member).collect(),
            next_epoch: first,
            epoch_begun: now,
            epoch_length: Duration::ZERO,
            output_waits: None,
            cutting: None,
            flights: Flights::default(),
            epoch_bytes_top: 0,
            released: first.previous(),
            holding: !register.in_sync.is_empty(),
            register,
            held_bytes: 0,
            held_for: HeldFor::default(),
            guest_held: false,
            heartbeat_at: now,
            doubt: None,
            verify_next: false,
            verifying: None,
            asked: None,
            ask_not_before: now,
            stamps: Stamps::new(random),
            actions: VecDeque::new(),
        }
    }

    /// The register as this node knows it. Frames carry its term.
    #[must_use]
    pub fn register(&self) -> &Register {
        &self.register
    }

    /// The epoch that the guest is in.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.next_epoch
    }

    /// Everything up to here has been released.
    #[must_use]
    pub fn released(&self) -> Epoch {
        self.released
    }

    /// The last epoch that the image of every follower has, as far as they have
    /// told; `None` without a follower.
    #[must_use]
    pub fn applied_by_all(&self) -> Option<Epoch> {
        self.followers().map(|(_, link)| link.applied).min()
    }

    /// Epochs that are cut and not committed by every follower.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Captured bytes of those epochs.
    #[must_use]
    pub fn bytes_in_flight(&self) -> u64 {
        self.flights.bytes()
    }

    /// Whether nothing is released until the right to run is confirmed.
    #[must_use]
    pub fn in_doubt(&self) -> bool {
        self.doubt.is_some()
    }

    /// Whether the guest is paused for a handover or for good.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.phase != Phase::Running
    }

    /// Whether an unanswered question waits for the arbiter.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.asked.is_some()
    }

    /// Every known backup: its name, stage, last committed epoch, and whether
    /// it is connected.
    pub fn backups(&self) -> impl Iterator<Item = (&NodeId, Stage, Epoch, bool)> {
        self.links.iter().map(|(node, link)| (node, link.stage, link.committed, link.connected))
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Timeout`] is due, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.phase == Phase::Ended {
            return None;
        }
        let cut = self.wants_cut().then(|| self.cut_due());
        let lagging = self.lacks_room() && !self.held_for.room;
        let hold = lagging.then(|| self.pacer.hold_at(self.epoch_begun));
        let silent = self.links.iter().filter_map(|(node, link)| self.silent_at(node, link));
        let drop_after = self.config.drop_after;
        let stuck = self.links.values().filter_map(|link| link.seed_stuck_at(drop_after));
        let retry = self.retry_at();
        let seed = self.links.iter().filter_map(|(node, link)| self.seed_due(node, link));
        let lags = self.links.values().filter_map(|link| self.lags_at(link));
        let due = [Some(self.heartbeat_at), cut, hold, retry];
        due.into_iter().flatten().chain(silent).chain(lags).chain(stuck).chain(seed).min()
    }

    /// Takes what happened at `now`; actions follow from
    /// [`Primary::poll_action`].
    pub fn handle(&mut self, now: Duration, event: Event) {
        self.notice_gap(now);
        match (&self.phase, event) {
            (Phase::Running | Phase::Draining(_), Event::Timeout) => {}
            (Phase::Running | Phase::Draining(_), Event::CutDone { epoch, bytes, pause }) => {
                self.pacer.cut(Cost { pause, bytes });
                self.on_cut_done(epoch, bytes);
            }
            (Phase::Running | Phase::Draining(_), Event::CutFailed { epoch, why }) => {
                self.on_cut_failed(epoch, why);
            }
            (Phase::Running | Phase::Draining(_), Event::Stalled) => {
                self.note(Note::Doubt { millis: 0 });
                self.begin_doubt(true);
            }
            (Phase::Running | Phase::Draining(_), Event::Encoded { close, wire_bytes }) => {
                self.on_encoded(close, wire_bytes);
            }
            (
                Phase::Running | Phase::Draining(_),
                Event::LinkUp { backup, image, staging_bytes_max },
            ) => self.on_link_up(&backup, image, staging_bytes_max),
            (Phase::Running | Phase::Draining(_), Event::LinkRefused { backup, refusal }) => {
                self.on_link_refused(backup, &refusal);
            }
            (Phase::Running | Phase::Draining(_), Event::LinkDown { backup }) => {
                self.on_link_down(&backup);
            }
            (Phase::Running | Phase::Draining(_), Event::Heard { backup, term, message }) => {
                self.on_heard(&backup, term, message);
            }
            (
                Phase::Running | Phase::Draining(_),
                Event::SeedRoundSent { backup, chunks, pages_left },
            ) => self.on_seed_round(&backup, chunks, pages_left),
            (Phase::Running | Phase::Draining(_), Event::Answered(answer)) => {
                self.on_answered(answer);
            }
            (Phase::Running | Phase::Draining(_), Event::OutputWaits) => {
                self.output_waits.get_or_insert(self.now);
            }
            (Phase::Running | Phase::Draining(_), Event::OutputHeld { bytes }) => {
                self.held_bytes = bytes;
            }
            (Phase::Running, Event::Commanded(command)) => self.on_command(command),
            (Phase::Draining(_), Event::Commanded(command)) => {
                self.on_command_while_draining(command)
            }
            (
                Phase::Ended,
                Event::Timeout
                | Event::CutDone { .. }
                | Event::CutFailed { .. }
                | Event::Stalled
                | Event::Encoded { .. }
                | Event::LinkUp { .. }
                | Event::LinkRefused { .. }
                | Event::LinkDown { .. }
                | Event::Heard { .. }
                | Event::SeedRoundSent { .. }
                | Event::Answered(_)
                | Event::OutputWaits
                | Event::OutputHeld { .. }
                | Event::Commanded(_),
            ) => return,
        }
        self.settle();
    }

    /// Derives what is to be done from the facts.
    fn settle(&mut self) {
        // What follows an end would be said by who has no right to.
        if self.phase == Phase::Ended {
            return;
        }
        self.give_up_lost_joins();
        self.notice_silence();
        self.notice_laggards();
        self.notice_stuck_seeds();
        self.begin_seeds();
        self.resolve_doubt_by_pongs();
        self.release();
        self.forget();
        self.pass();
        self.advance_drain();
        if self.phase == Phase::Ended {
            return;
        }
        self.ask();
        self.hold_or_free_guest();
        self.cut();
        self.send_heartbeats();
    }

    /// Whose commits output waits for. Who was lost while its admission is
    /// asked for may have been admitted.
    pub(super) fn followers(&self) -> impl Iterator<Item = (&NodeId, &Link)> {
        self.links.iter().filter(|(node, link)| self.counts(node, link))
    }

    pub(super) fn counts(&self, node: &NodeId, link: &Link) -> bool {
        link.follows() || self.register.in_sync.contains_key(node) || self.asks_about(node)
    }

    /// The last epoch that every follower has committed; `None` without one.
    pub(super) fn committed_by_all(&self) -> Option<Epoch> {
        self.followers().map(|(_, link)| link.committed).min()
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(super) fn note(&mut self, note: Note) {
        self.act(Action::Note(note));
    }

    pub(super) fn end(&mut self, ending: Ending) {
        if matches!(ending, Ending::Fenced { .. }) {
            // Whatever was about to be said is not said any more.
            self.actions
                .retain(|action| !matches!(action, Action::Release { .. } | Action::PassOutput));
        }
        self.phase = Phase::Ended;
        self.act(Action::End(ending));
    }

    // --- Time -------------------------------------------------------------

    fn notice_gap(&mut self, now: Duration) {
        let late = self.poll_timeout().map_or(Duration::ZERO, |due| now.saturating_sub(due));
        self.now = self.now.max(now);
        if late < self.config.freeze_gap || self.phase == Phase::Ended {
            return;
        }
        // Who stood still cannot tell who was silent meanwhile.
        for link in self.links.values_mut() {
            link.heard_at = self.now;
            link.progress_at = self.now;
        }
        // Alone, it asks the arbiter: somebody may have started the guest again in
        // its name.
        let followed = self.followers().next().is_some();
        self.note(Note::Doubt { millis: late.as_millis() as u64 });
        self.begin_doubt(followed);
    }

    fn begin_doubt(&mut self, by_pongs: bool) {
        let by_pongs = by_pongs && self.doubt.is_none_or(|doubt| doubt.by_pongs);
        self.doubt = Some(Doubt { since: self.now, by_pongs });
        self.heartbeat_at = self.now;
        for link in self.links.values_mut() {
            link.doubt_ping = link.ping + 1;
        }
    }

    /// A backup stops answering before it asks for a promotion, so when every
    /// follower answers a ping sent since, nobody has been promoted. One that has
    /// lost its image proves nothing: it may be a new process, and the one
    /// before it may have been promoted and died.
    fn resolve_doubt_by_pongs(&mut self) {
        let answered =
            |link: &Link| link.follows() && link.connected && link.pong >= link.doubt_ping;
        if self.doubt.is_some_and(|doubt| doubt.by_pongs)
            && self.followers().all(|(_, link)| answered(link))
        {
            self.resolve_doubt();
        }
    }

    pub(super) fn resolve_doubt(&mut self) {
        self.doubt = None;
        self.note(Note::DoubtResolved);
        self.act(Action::Confirm);
    }

    /// When a link that says nothing is given up.
    fn silent_at(&self, node: &NodeId, link: &Link) -> Option<Duration> {
        if self.register.in_sync.contains_key(node) {
            // A lost member is timed, too: its drop will be due.
            let at = link.heard_at + self.config.drop_after;
            return (link.connected || at > self.now).then_some(at);
        }
        let patience = if link.follows() { 1 } else { 4 };
        link.connected.then(|| link.heard_at + self.config.drop_after * patience)
    }

    fn notice_silence(&mut self) {
        let silent: Vec<NodeId> = self
            .links
            .iter()
            .filter(|(node, link)| {
                link.connected && self.silent_at(node, link).is_some_and(|at| at <= self.now)
            })
            .map(|(node, _)| node.clone())
            .collect();
        for backup in silent {
            let link = self.links.get_mut(&backup).expect("listed above");
            let millis = (self.now - link.heard_at).as_millis() as u64;
            self.note(Note::BackupSilent { backup: backup.clone(), millis });
            self.disconnect(&backup);
        }
    }

    fn send_heartbeats(&mut self) {
        if self.now < self.heartbeat_at || self.phase == Phase::Ended {
            return;
        }
        self.heartbeat_at = self.now + self.config.heartbeat;
        for (backup, link) in &mut self.links {
            if link.connected {
                link.ping += 1;
                let message = ToBackup::Heartbeat { ping: link.ping };
                self.actions.push_back(Action::Send { backup: backup.clone(), message });
            }
        }
    }

    // --- Links ------------------------------------------------------------

    fn on_link_up(&mut self, backup: &NodeId, held: Option<HeldImage>, staging_bytes_max: u64) {
        let now = self.now;
        let Some(link) = self.links.get_mut(backup).filter(|link| link.wanted) else {
            self.act(Action::Disconnect { backup: backup.clone(), redial: false });
            return;
        };
        link.connected = true;
        link.heard_at = now;
        link.ping = 0;
        link.pong = 0;
        link.doubt_ping = 1;
        if staging_bytes_max > link.staging_bytes_max {
            link.seed_not_before = now;
        }
        link.staging_bytes_max = staging_bytes_max;
        link.progress_at = now;
        let follows = self.counts(backup, &self.links[backup]);
        self.note(Note::BackupConnected { backup: backup.clone() });
        self.heartbeat_at = now;
        if follows {
            self.resume(backup, held);
        } else {
            self.reset_unless_follower(backup);
            self.links.get_mut(backup).expect("found above").stage = Stage::Away;
            // Its seed may wait, and it is to know that it does not count.
            self.send(backup, ToBackup::Membership(self.register.clone()));
        }
    }

    /// A follower is back: what it lacks is sent again, if it is still here. It
    /// may be another process of that name, with an image of its own.
    fn resume(&mut self, backup: &NodeId, held: Option<HeldImage>) {
        let link = &self.links[backup];
        let oldest = self.flights.first().unwrap_or_else(|| self.first_not_cut());
        let same = held.filter(|held| link.image == Some(held.id));
        let resumable = same.map(|held| held.committed).filter(|committed| {
            let sound = *committed >= link.committed && link.stage != Stage::Outdated;
            sound && *committed < self.first_not_cut() && committed.next() >= oldest
        });
        let Some(committed) = resumable else {
            self.outdate(backup);
            return;
        };
        let closes: Vec<Close> =
            self.flights.after(committed).filter_map(|flight| flight.close.clone()).collect();
        let resent = self.flights.after(committed).count();
        self.links.get_mut(backup).expect("looked up above").committed = committed;
        self.note(Note::Resumed { backup: backup.clone(), after: committed, resent });
        self.send(backup, ToBackup::Membership(self.register.clone()));
        self.act(Action::Follow { backup: backup.clone(), after: committed, joins: false });
        for close in closes {
            self.send(backup, ToBackup::Close(close));
        }
    }

    /// The epoch that the next finished cut ends.
    fn first_not_cut(&self) -> Epoch {
        self.cutting.as_ref().map_or(self.next_epoch, |order| order.epoch)
    }

    /// A follower's image is lost. A member is dropped, then seeded again.
    pub(super) fn outdate(&mut self, backup: &NodeId) {
        self.note(Note::BackupOutdated { backup: backup.clone() });
        let link = self.links.get_mut(backup).expect("a known backup");
        link.stage = Stage::Outdated;
    }

    fn on_link_refused(&mut self, backup: NodeId, refusal: &Refusal) {
        if let Refusal::Stale { current } = refusal
            && *current > self.register.term
        {
            self.begin_doubt(false);
        }
        self.note(Note::BackupRefused { backup, why: refusal.to_string() });
    }

    fn on_link_down(&mut self, backup: &NodeId) {
        let Some(link) = self.links.get_mut(backup).filter(|link| link.connected) else {
            return;
        };
        link.connected = false;
        self.note(Note::BackupLost { backup: backup.clone() });
        self.reset_unless_follower(backup);
    }

    fn reset_unless_follower(&mut self, backup: &NodeId) {
        let link = self.links.get_mut(backup).expect("a known backup");
        match link.stage {
            Stage::Preparing | Stage::Seeding { .. } => {
                link.stage = Stage::Away;
                self.act(Action::StopSeed { backup: backup.clone() });
            }
            Stage::Away | Stage::Joining { .. } | Stage::InSync | Stage::Outdated => {}
        }
    }

    /// Ends a session and asks for a new one, if the backup is wanted.
    pub(super) fn disconnect(&mut self, backup: &NodeId) {
        let link = self.links.get_mut(backup).expect("a known backup");
        link.connected = false;
        let redial = link.wanted;
        self.reset_unless_follower(backup);
        self.act(Action::Disconnect { backup: backup.clone(), redial });
    }

    /// A join whose backup is lost before the arbiter was asked is over.
    fn give_up_lost_joins(&mut self) {
        let lost: Vec<NodeId> = self
            .links
            .iter()
            .filter(|(node, link)| {
                let joining = matches!(link.stage, Stage::Joining { .. } | Stage::Outdated);
                let member = self.register.in_sync.contains_key(*node) || self.asks_about(node);
                let lost = !link.connected || link.stage == Stage::Outdated || !link.wanted;
                joining && !member && lost
            })
            .map(|(node, _)| node.clone())
            .collect();
        for backup in lost {
            let link = self.links.get_mut(&backup).expect("listed above");
            link.stage = Stage::Away;
            link.committed = Epoch::ZERO;
            if link.connected {
                self.disconnect(&backup);
            }
        }
    }

    fn on_heard(&mut self, backup: &NodeId, term: Term, message: ToPrimary) {
        let now = self.now;
        let Some(link) = self.links.get_mut(backup).filter(|link| link.connected) else {
            return;
        };
        link.heard_at = now;
        if term != self.register.term {
            if term > self.register.term {
                self.begin_doubt(false);
            } else {
                self.note(Note::StaleFrame { peer: backup.clone(), term });
            }
            return;
        }
        if matches!(message, ToPrimary::Heartbeat { .. } | ToPrimary::Ack { .. }) {
            // Said after it had read the membership, unlike what an order from a
            // session before this one comes to.
            link.heard_term = term;
        }
        match message {
            ToPrimary::Heartbeat { pong, steps } => {
                link.pong = link.pong.max(pong.min(link.ping));
                if std::mem::replace(&mut link.steps, steps) != steps && link.follows() {
                    link.progress_at = now;
                }
            }
            ToPrimary::SeedAck { chunks } => self.on_seed_ack(backup, chunks),
            ToPrimary::Ack { committed, applied } => self.on_ack(backup, committed, applied),
            ToPrimary::Nack { epoch: Epoch::ZERO, chunks } => self.on_seed_nack(backup, chunks),
            ToPrimary::Nack { epoch, chunks } => self.on_nack(backup, epoch, chunks),
            ToPrimary::Verified { epoch, digest } => {
                self.act(Action::Verified { backup: backup.clone(), epoch, digest });
            }
        }
    }

    fn on_ack(&mut self, backup: &NodeId, committed: Epoch, applied: Epoch) {
        let closed = committed < self.next_epoch
            && self.flights.get(committed).is_none_or(|flight| flight.close.is_some());
        let link = self.links.get_mut(backup).expect("heard from");
        if !link.follows() {
            return;
        }
        link.applied = link.applied.max(applied.min(link.committed));
        if committed <= link.committed {
            return;
        }
        if closed {
            link.committed = committed;
            link.applied = link.applied.max(applied.min(committed));
            link.progress_at = self.now;
        } else {
            let why = format!("it acknowledged epoch {committed}, which was not sent yet");
            self.note(Note::BackupRefused { backup: backup.clone(), why });
            self.disconnect(backup);
        }
    }

    fn on_nack(&mut self, backup: &NodeId, epoch: Epoch, chunks: Vec<u32>) {
        if !self.links[backup].follows() || self.flights.get(epoch).is_none() {
            return;
        }
        self.note(Note::ChunksResent { backup: backup.clone(), epoch, chunks: chunks.len() });
        self.act(Action::Resend { backup: backup.clone(), epoch, chunks });
    }
}
