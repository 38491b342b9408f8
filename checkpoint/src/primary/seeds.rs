//! How a seed goes on: rounds while the guest runs, until little is left, and
//! then the checkpoint that it ends with.

use std::time::Duration;

use arbiter::NodeId;

use super::{
    Action, Primary,
    link::{Link, SEED_DOUBLINGS_MAX, Stage},
};
use crate::{Epoch, Note, message::ToBackup};

impl Primary {
    /// Begins the seeds of backups that have connected and have nothing.
    pub(super) fn begin_seeds(&mut self) {
        let now = self.now;
        let begun: Vec<NodeId> = self
            .links
            .iter()
            .filter(|(node, link)| self.seed_due(node, link).is_some_and(|at| at <= now))
            .map(|(node, _)| node.clone())
            .collect();
        for backup in begun {
            let image = self.stamps.image();
            let link = self.links.get_mut(&backup).expect("listed above");
            (link.stage, link.image) = (Stage::Preparing, Some(image));
            link.progress_at = now;
            self.send(&backup, ToBackup::BeginSeed { image });
        }
    }

    /// When the seed of a backup begins that has connected and has nothing.
    pub(super) fn seed_due(&self, node: &NodeId, link: &Link) -> Option<Duration> {
        let waits = link.connected && link.wanted && link.stage == Stage::Away;
        (waits && !self.counts(node, link)).then_some(link.seed_not_before)
    }

    pub(super) fn on_seed_ack(&mut self, backup: &NodeId, chunks: u32) {
        let now = self.now;
        let link = self.links.get_mut(backup).expect("heard from");
        let verified = match link.stage {
            Stage::Seeding { verified, .. } => verified,
            Stage::Joining { seed_chunks, .. } => seed_chunks,
            Stage::Preparing | Stage::Away | Stage::InSync | Stage::Outdated => 0,
        };
        if chunks < verified {
            // It was told twice to begin, as of a session before this one: what
            // came in between is given up there, and nobody would send it again.
            let why = "it has begun its seed anew".to_owned();
            self.note(Note::BackupRefused { backup: backup.clone(), why });
            return self.disconnect(backup);
        }
        match &mut link.stage {
            Stage::Preparing if chunks == 0 => {
                link.progress_at = now;
                let since = self.next_epoch;
                link.stage = Stage::Seeding { since, rounds: 0, sent: None, verified: 0 };
                (link.committed, link.applied) = (Epoch::ZERO, Epoch::ZERO);
                self.note(Note::SeedBegun { backup: backup.clone() });
                self.act(Action::StartSeed { backup: backup.clone() });
            }
            Stage::Seeding { verified, .. } => {
                if chunks > *verified {
                    *verified = chunks;
                    link.progress_at = now;
                }
                self.next_seed_round(backup);
            }
            Stage::Preparing
            | Stage::Away
            | Stage::Joining { .. }
            | Stage::InSync
            | Stage::Outdated => {}
        }
    }

    pub(super) fn on_seed_round(&mut self, backup: &NodeId, chunks: u32, left: u64) {
        let now = self.now;
        let Some(link) = self.links.get_mut(backup) else { return };
        if let Stage::Seeding { rounds, sent, .. } = &mut link.stage {
            link.progress_at = now;
            *rounds += 1;
            *sent = Some((chunks, left));
            self.next_seed_round(backup);
        }
    }

    /// All chunks are verified before a seed ends: what is asked for later was
    /// on its way twice.
    pub(super) fn on_seed_nack(&mut self, backup: &NodeId, mut chunks: Vec<u32>) {
        let Stage::Seeding { verified, .. } = self.links[backup].stage else { return };
        chunks.retain(|index| *index >= verified);
        if !chunks.is_empty() {
            self.note(Note::SeedResent { backup: backup.clone(), chunks: chunks.len() });
            self.act(Action::ResendSeed { backup: backup.clone(), chunks });
        }
    }

    /// Sends another round if the one before has arrived and too much is left.
    fn next_seed_round(&mut self, backup: &NodeId) {
        let (left_max, rounds_max) = (self.config.seed_pages_left_max, self.config.seed_rounds_max);
        let link = self.links.get_mut(backup).expect("being seeded");
        let settled = link.may_join(left_max, rounds_max);
        if let Stage::Seeding { sent, verified, .. } = &mut link.stage
            && sent.is_some_and(|(chunks, _)| chunks == *verified)
            && !settled
        {
            *sent = None;
            self.act(Action::SeedRound { backup: backup.clone() });
        }
    }

    /// Backups whose seeds can end with a checkpoint now.
    pub(super) fn joins(&self) -> Vec<NodeId> {
        let ready = |link: &Link| {
            link.may_join(self.config.seed_pages_left_max, self.config.seed_rounds_max)
        };
        // What was sent ahead of an epoch's end builds on the epoch before, so
        // nobody joins with an epoch that had begun when its seed did.
        let followed = self.followers().next().is_some();
        let begun_before = |link: &Link| match link.stage {
            Stage::Seeding { since, .. } => !followed || since < self.next_epoch,
            _ => false,
        };
        self.links
            .iter()
            .filter(|(_, link)| ready(link) && begun_before(link))
            .map(|(node, _)| node.clone())
            .collect()
    }

    /// Begins a seed again of which nothing goes on any more: a chunk was lost,
    /// or the word of one, and nobody will send it again.
    pub(super) fn notice_stuck_seeds(&mut self) {
        let (now, drop_after) = (self.now, self.config.drop_after);
        let is_stuck = |link: &Link| link.seed_stuck_at(drop_after).is_some_and(|at| at <= now);
        let stuck = self.links.iter().filter(|(_, link)| is_stuck(link));
        for backup in stuck.map(|(node, _)| node.clone()).collect::<Vec<_>>() {
            let link = self.links.get_mut(&backup).expect("listed above");
            link.seeds_stuck = (link.seeds_stuck + 1).min(SEED_DOUBLINGS_MAX);
            let millis = (now - link.progress_at).as_millis() as u64;
            self.note(Note::SeedStuck { backup: backup.clone(), millis });
            self.disconnect(&backup);
        }
    }
}
