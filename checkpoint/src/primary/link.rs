//! What the primary knows of one backup.
//!
//! ```text
//!            LinkUp, not a member            SeedAck 0          few pages left
//!   Away ───────────────────────▶ Preparing ──────────▶ Seeding ──────────────▶ Joining
//!    ▲   (after an epoch that it could not stage: not before some time)           │ admitted
//!    └─ link lost (unless the admission has been asked) ◀──────────────────────── InSync
//! ```
//!
//! `Joining` and `InSync` outlive a lost session: the backup's image is sound,
//! and what it lacks is still in flight.

use std::time::Duration;

use arbiter::{ImageId, Term};

use crate::Epoch;

/// How far a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It has nothing.
    Away,
    /// It was told that a seed begins.
    Preparing,
    /// The guest's memory goes to it while the guest runs.
    Seeding {
        /// The epoch in which it began.
        since: Epoch,
        /// Rounds sent.
        rounds: u32,
        /// Chunks sent and pages left after the last whole round; `None` while
        /// a round is under way.
        sent: Option<(u32, u64)>,
        /// Chunks that it has verified.
        verified: u32,
    },
    /// The checkpoint that completes its seed is cut.
    Joining {
        /// The epoch that the checkpoint ended.
        epoch: Epoch,
        /// Chunks of the seed below it.
        seed_chunks: u32,
    },
    /// The register counts it.
    InSync,
    /// The register counts it, but it has lost its image.
    Outdated,
}

/// One backup.
#[derive(Debug)]
pub(super) struct Link {
    /// The operator wants it in sync.
    pub(super) wanted: bool,
    pub(super) connected: bool,
    pub(super) stage: Stage,
    /// The image that it was given: what the register calls it, or will.
    pub(super) image: Option<ImageId>,
    /// The last epoch that it has acknowledged.
    pub(super) committed: Epoch,
    /// The last epoch that it said its image has.
    pub(super) applied: Epoch,
    pub(super) heard_at: Duration,
    /// The term under which it last spoke: it knows the register of that one.
    pub(super) heard_term: Term,
    /// The last pings sent and answered in this session.
    pub(super) ping: u64,
    pub(super) pong: u64,
    /// The first ping that ends a doubt.
    pub(super) doubt_ping: u64,
    pub(super) staging_bytes_max: u64,
    /// When something of its seed last went on, or of the epochs that wait for it.
    pub(super) progress_at: Duration,
    /// What it has done, by its last heartbeat.
    pub(super) steps: u64,
    /// Seeds in a row that did not go on: each is waited for twice as long as
    /// the one before, because the line may be that slow.
    pub(super) seeds_stuck: u32,
    /// Its next seed does not begin before: there was an epoch that it could not
    /// stage, or that it got nowhere with, and the next such one may not be far.
    pub(super) seed_not_before: Duration,
    /// When its last seed ended.
    pub(super) joined_at: Duration,
    /// How long it was left alone after the last such epoch.
    left_alone: Duration,
}

/// A seed that does not go on for so many times the time after which a silent
/// backup is given up is begun again. So long is waited, too, before a backup is
/// seeded that could not stage an epoch.
pub(super) const SEED_PATIENCE: u32 = 20;
/// A backup is left alone no longer than that, or than once if that is longer.
const LEFT_ALONE_MAX: Duration = Duration::from_secs(120);
/// Most doublings of the patience with a seed.
pub(super) const SEED_DOUBLINGS_MAX: u32 = 5;

impl Link {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            wanted: true,
            connected: false,
            stage: Stage::Away,
            image: None,
            committed: Epoch::ZERO,
            applied: Epoch::ZERO,
            heard_at: now,
            heard_term: Term::ZERO,
            ping: 0,
            pong: 0,
            doubt_ping: 0,
            staging_bytes_max: 0,
            progress_at: now,
            steps: 0,
            seeds_stuck: 0,
            seed_not_before: Duration::ZERO,
            joined_at: now,
            left_alone: Duration::ZERO,
        }
    }

    /// A backup whose image has everything up to `committed`, and that is still
    /// to connect.
    pub(super) fn of_member(image: ImageId, committed: Epoch, now: Duration) -> Self {
        Self {
            stage: Stage::InSync,
            image: Some(image),
            committed,
            // What it stages is told when it does.
            staging_bytes_max: u64::MAX,
            ..Self::new(now)
        }
    }

    /// When its seed is begun again, if nothing of it goes on: a chunk, or word
    /// of one, has been lost that nobody will send again.
    pub(super) fn seed_stuck_at(&self, drop_after: Duration) -> Option<Duration> {
        match self.stage {
            // All of it has arrived: the checkpoint that it ends with is waited for.
            Stage::Seeding { sent: Some((chunks, _)), verified, .. } if verified == chunks => None,
            Stage::Preparing | Stage::Seeding { .. } if self.connected => {
                let patience = drop_after * (SEED_PATIENCE << self.seeds_stuck);
                Some(self.progress_at + patience)
            }
            Stage::Preparing
            | Stage::Seeding { .. }
            | Stage::Away
            | Stage::Joining { .. }
            | Stage::InSync
            | Stage::Outdated => None,
        }
    }

    /// It could not do with an epoch: how long it is left alone. That is twice as
    /// long as the last time, unless all has gone well since for longer than it
    /// was left alone then.
    pub(super) fn leave_alone(&mut self, now: Duration, shortest: Duration) -> Duration {
        let again = now <= self.joined_at + self.left_alone;
        let longest = LEFT_ALONE_MAX.max(shortest);
        self.left_alone =
            if again { (self.left_alone * 2).clamp(shortest, longest) } else { shortest };
        self.seed_not_before = now + self.left_alone;
        self.left_alone
    }

    /// The epoch that it is to commit next.
    pub(super) fn next_commit(&self) -> Option<Epoch> {
        match self.stage {
            Stage::Joining { epoch, .. } => Some(self.committed.next().max(epoch)),
            Stage::InSync => Some(self.committed.next()),
            Stage::Away | Stage::Preparing | Stage::Seeding { .. } | Stage::Outdated => None,
        }
    }

    /// Whether epochs go to it.
    pub(super) fn follows(&self) -> bool {
        match self.stage {
            Stage::Joining { .. } | Stage::InSync => true,
            Stage::Away | Stage::Preparing | Stage::Seeding { .. } | Stage::Outdated => false,
        }
    }

    /// Whether its seed can end with the next checkpoint.
    pub(super) fn may_join(&self, pages_left_max: u64, rounds_max: u32) -> bool {
        match self.stage {
            Stage::Seeding { rounds, sent: Some((chunks, pages_left)), verified, .. } => {
                let settled = pages_left <= pages_left_max || rounds >= rounds_max;
                self.connected && settled && verified == chunks
            }
            Stage::Seeding { sent: None, .. }
            | Stage::Away
            | Stage::Preparing
            | Stage::Joining { .. }
            | Stage::InSync
            | Stage::Outdated => false,
        }
    }
}
