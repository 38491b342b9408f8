//! The epochs of a primary: when they are cut, what is released and forgotten,
//! and when the guest has to wait for its backups.

use std::time::Duration;

use arbiter::NodeId;

use super::{
    Action, CutOrder,
    flight::Flight,
    link::{Link, SEED_PATIENCE, Stage},
    machine::{HeldFor, Phase, Primary},
};
use crate::{
    Epoch, Note,
    message::{Close, ToBackup},
};

/// An epoch may take a backup so many times as long as it may stand still, if it
/// moves.
const CRAWL_MAX: u32 = 100;

/// After a cut that failed the next waits so long, and after each further one
/// twice as long, this often.
const CUT_RETRY: Duration = Duration::from_millis(5);
const CUT_DOUBLINGS_MAX: u32 = 8;

impl Primary {
    pub(super) fn wants_cut(&self) -> bool {
        let drained = matches!(&self.phase, Phase::Draining(drain) if drain.last.is_some());
        let needed = self.followers().next().is_some() || !self.joins().is_empty();
        self.cutting.is_none() && needed && !drained && self.has_room()
    }

    /// Whether another epoch may be in flight.
    fn has_room(&self) -> bool {
        self.flights.len() < self.config.epochs_in_flight_max
            && self.flights.bytes() < self.config.bytes_in_flight_max
    }

    /// Whether the epoch that runs cannot end because backups lag.
    pub(super) fn lacks_room(&self) -> bool {
        self.phase == Phase::Running && self.cutting.is_none() && !self.has_room()
    }

    pub(super) fn cut_due(&self) -> Duration {
        let draining = matches!(&self.phase, Phase::Draining(drain) if drain.last.is_none());
        let paced = self.followers().next().is_some() && !draining;
        let due = paced.then(|| self.pacer.due(self.epoch_begun, self.output_waits));
        due.unwrap_or_default().max(self.cut_not_before)
    }

    pub(super) fn cut(&mut self) {
        let draining = matches!(&self.phase, Phase::Draining(drain) if drain.last.is_none());
        let followers = self.followers().next().is_some();
        if self.phase == Phase::Ended || !self.wants_cut() || self.now < self.cut_due() {
            return;
        }
        let epoch = self.next_epoch;
        // Judged before the number goes on: who may join depends on the epoch
        // that the guest is in.
        let joins = if draining { Vec::new() } else { self.joins() };
        self.next_epoch = epoch.next();
        self.epoch_length = self.now - self.epoch_begun;
        self.epoch_begun = self.now;
        self.output_waits = None;
        if let Phase::Draining(drain) = &mut self.phase {
            drain.last = Some(epoch);
        }
        let stay_paused = draining || self.guest_held;
        let digest = std::mem::take(&mut self.verify_next);
        if digest {
            self.verifying = Some(epoch);
        }
        let ahead_bytes_max = self.ahead_bytes_max(&joins);
        let order = CutOrder { epoch, joins, followers, stay_paused, digest, ahead_bytes_max };
        self.cutting = Some(order.clone());
        self.act(Action::Cut(order));
    }

    /// A page that is written after it was sent ahead comes twice, and a backup
    /// stages both: an epoch that fits might not any more, and its backup be seeded
    /// again and again. So beside what is sent ahead there is room for twice the
    /// largest of the last epochs. Nothing is known of them when somebody joins.
    fn ahead_bytes_max(&self, joins: &[NodeId]) -> u64 {
        if !joins.is_empty() {
            return 0;
        }
        let following = self.links.values().filter(|link| link.follows());
        let staging = following.map(|link| link.staging_bytes_max).min().unwrap_or(0);
        staging.saturating_sub(self.epoch_bytes_top.saturating_mul(2))
    }

    pub(super) fn on_cut_done(&mut self, epoch: Epoch, bytes: u64) {
        let order = self.cutting.take().expect("a cut was ordered");
        assert_eq!(order.epoch, epoch, "the cut that was ordered is the one that was done");
        self.cuts_failed = 0;
        self.epoch_bytes_top = bytes.max(self.epoch_bytes_top / 8 * 7);
        let (length, cut_at) = (self.epoch_length, self.now);
        self.flights.push(Flight { epoch, bytes, length, cut_at, close: None });
        self.holding = true;
        for backup in &order.joins {
            let Some(link) = self.links.get_mut(backup) else { continue };
            let Stage::Seeding { since, verified, .. } = link.stage else { continue };
            if since > epoch {
                // It was lost and came back while this was cut: another seed has
                // begun, and the cut has taken what that one was owed.
                self.disconnect(backup);
            } else {
                link.stage = Stage::Joining { epoch, seed_chunks: verified };
                link.seeds_stuck = 0;
                link.joined_at = cut_at;
                let after = epoch.previous();
                self.act(Action::Follow { backup: backup.clone(), after, joins: true });
                self.note(Note::Joining { backup: backup.clone(), epoch });
            }
        }
        let overfull: Vec<NodeId> = self
            .links
            .iter()
            .filter(|(_, link)| link.follows() && bytes > link.staging_bytes_max)
            .map(|(node, _)| node.clone())
            .collect();
        for backup in overfull {
            let (now, shortest) = (self.now, self.config.drop_after * SEED_PATIENCE);
            let link = self.links.get_mut(&backup).expect("listed above");
            link.overflow_bytes = Some(bytes);
            let seconds = link.leave_alone(now, now, shortest).as_secs_f64();
            let why = format!(
                "it stages less than the {bytes} bytes of epoch {epoch}: raise its staging_mib_max; it is seeded again after {seconds:.1} s"
            );
            self.note(Note::BackupRefused { backup: backup.clone(), why });
            self.outdate(&backup);
        }
        if order.stay_paused && self.phase == Phase::Running && !self.guest_held {
            self.act(Action::FreeGuest);
        }
    }

    /// The number is used for the next try: nobody has heard of it.
    pub(super) fn on_cut_failed(&mut self, epoch: Epoch, why: String) {
        let order = self.cutting.take().expect("a cut was ordered");
        assert_eq!(order.epoch, epoch, "the cut that was ordered is the one that failed");
        self.next_epoch = epoch;
        self.cut_not_before = self.now + CUT_RETRY * (1 << self.cuts_failed.min(CUT_DOUBLINGS_MAX));
        self.cuts_failed = self.cuts_failed.saturating_add(1);
        // Nobody was asked for the digest yet: the next try takes it.
        self.verify_next |= order.digest;
        self.verifying = self.verifying.filter(|verifying| *verifying != epoch);
        if let Phase::Draining(drain) = &mut self.phase {
            drain.last = None;
        }
        self.note(Note::CutFailed { epoch, why });
        for backup in order.joins {
            self.disconnect(&backup);
        }
        if order.stay_paused && self.phase == Phase::Running && !self.guest_held {
            self.act(Action::FreeGuest);
        }
    }

    pub(super) fn on_encoded(&mut self, close: Close, wire_bytes: u64) {
        let Some(flight) = self.flights.get_mut(close.epoch) else { return };
        self.pacer.shipped(flight.length, wire_bytes);
        flight.close = Some(close.clone());
        let mut messages = Vec::new();
        for (backup, link) in &mut self.links {
            if link.next_commit() == Some(close.epoch) {
                // Until now nothing waited for it.
                link.progress_at = self.now;
            }
            let seed_chunks = match link.stage {
                Stage::Joining { epoch, .. } if epoch > close.epoch => continue,
                Stage::Joining { epoch, seed_chunks } if epoch == close.epoch => Some(seed_chunks),
                Stage::Joining { .. } | Stage::InSync => None,
                Stage::Away | Stage::Preparing | Stage::Seeding { .. } | Stage::Outdated => {
                    continue;
                }
            };
            if link.connected {
                if self.verifying == Some(close.epoch) {
                    messages.push((backup.clone(), ToBackup::Verify { epoch: close.epoch }));
                }
                let close = Close { seed_chunks, ..close.clone() };
                messages.push((backup.clone(), ToBackup::Close(close)));
            }
        }
        for (backup, message) in messages {
            self.send(&backup, message);
        }
    }

    /// When a backup is given up that gets nothing done though epochs wait for it.
    pub(super) fn lags_at(&self, link: &Link) -> Option<Duration> {
        let next = self.flights.get(link.next_commit()?)?;
        let waits = next.close.is_some() && link.connected;
        let stands = link.progress_at + self.config.lag_max;
        // Steps are what it says of itself.
        let crawls = next.cut_at + self.config.lag_max * CRAWL_MAX;
        waits.then_some(stands.min(crawls))
    }

    /// A backup that speaks and does nothing would hold the guest for ever.
    pub(super) fn notice_laggards(&mut self) {
        let now = self.now;
        let lags = |link: &Link| self.lags_at(link).is_some_and(|at| at <= now);
        let laggards = self.links.iter().filter(|(_, link)| lags(link));
        for backup in laggards.map(|(node, _)| node.clone()).collect::<Vec<_>>() {
            let shortest = self.config.lag_max;
            let link = self.links.get_mut(&backup).expect("listed above");
            let (epoch, well) = (link.committed, link.progress_at.min(now));
            let since = now - well;
            let alone = link.leave_alone(now, well, shortest);
            self.note(Note::BackupLags { backup: backup.clone(), epoch, since, alone });
            self.outdate(&backup);
        }
    }

    pub(super) fn release(&mut self) {
        let Some(through) = self.committed_by_all() else { return };
        if self.doubt.is_none() && through > self.released && !self.a_member_is_silent() {
            self.released = through;
            if let Some(flight) = self.flights.get(through) {
                self.pacer.committed(self.now - flight.cut_at);
            }
            self.act(Action::Release { through });
        }
    }

    /// A member that is silent may have been promoted, whatever it acknowledged
    /// before: nothing is said until it is heard or dropped. Another member's late
    /// word would release what this one had long committed, and it may be lost
    /// again since. So may one that has ended its session, as it does before it
    /// asks, one whose name somebody without its image answers to, and one that is
    /// perhaps admitted.
    fn a_member_is_silent(&self) -> bool {
        let silent = |link: &Link| {
            let silent = self.now >= link.heard_at + self.config.drop_after;
            silent || !link.connected || !link.follows()
        };
        let in_sync = &self.register.in_sync;
        in_sync.keys().any(|node| !self.links.contains_key(node))
            || self.followers().any(|(_, link)| silent(link))
    }

    pub(super) fn forget(&mut self) {
        let through = match self.committed_by_all() {
            Some(through) => through,
            // Nobody needs what is encoded; what is not even cut stays.
            None => self.flights.last().unwrap_or(Epoch::ZERO),
        };
        if self.flights.forget(through) {
            self.act(Action::Forget { through });
        }
    }

    pub(super) fn pass(&mut self) {
        if !self.holding || self.followers().next().is_some() || self.cutting.is_some() {
            return;
        }
        assert!(self.register.in_sync.is_empty(), "members are followers");
        self.holding = false;
        self.act(Action::PassOutput);
    }

    pub(super) fn hold_or_free_guest(&mut self) {
        let (bytes, bytes_max) = (self.held_bytes, self.config.held_output_bytes_max);
        let output = bytes >= bytes_max || self.held_for.output && bytes > bytes_max / 2;
        let overdue = self.now >= self.pacer.hold_at(self.epoch_begun);
        let room = self.lacks_room() && (overdue || self.held_for.room);
        let before = std::mem::replace(&mut self.held_for, HeldFor { output, room });
        if output && !before.output {
            self.note(Note::GuestHeld { bytes });
        }
        if room && !before.room {
            self.note(Note::GuestSlowed { epochs: self.flights.len() });
        }
        let held = output || room;
        if held == self.guest_held {
            return;
        }
        self.guest_held = held;
        if held {
            self.act(Action::HoldGuest);
        } else {
            self.note(Note::GuestFreed);
            if self.phase == Phase::Running {
                self.act(Action::FreeGuest);
            }
        }
    }
}
