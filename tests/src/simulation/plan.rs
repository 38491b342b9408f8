//! What a run is like: all of it drawn from its seed before it begins.
//!
//! Every kind of fault is left out of half of the runs and has a rate of its
//! own in the others, so that rare mixtures come about that a fixed one would
//! never show ("swarm testing", Groce et al., ISSTA 2012). Times are shorter
//! than an operator would choose, in the same proportions, and so is memory:
//! a run is to be short, because there are to be many.

use std::{ops::Range, time::Duration};

use checkpoint::{
    choice::{Choice, Way},
    pacing::{Goal, Pace},
};

use super::chance::Chance;

/// A thing that goes wrong now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A process dies; it is started again later.
    Crash,
    /// A process stands still as by SIGSTOP, with its guest.
    Freeze,
    /// A process's core thread gets no time; its other threads do.
    Stall,
    /// Nothing gets through between two machines, one way or both, for long.
    Cut,
    /// The same for a moment.
    Blink,
    /// Nothing gets in or out of a machine.
    Isolate,
    /// A session ends for no reason.
    Break,
    /// The arbiter's process or its host dies, in the middle of a write or not.
    ArbiterDies,
    /// The arbiter's disk fails once.
    ArbiterDisk,
    /// A backup verifies and applies slowly for a while.
    SlowBackup,
    /// A tap takes no frames for a while.
    FullTap,
    /// An operator does something, most of the time at a bad moment.
    Operator,
    /// A process's threads do nothing for long, but for its core, which speaks.
    Hang,
    /// A backup's name moves to another machine, and a process there takes it,
    /// while the one that had it stands still and does not know.
    Namesake,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 14] = [
        Self::Crash,
        Self::Freeze,
        Self::Stall,
        Self::Cut,
        Self::Blink,
        Self::Isolate,
        Self::Break,
        Self::ArbiterDies,
        Self::ArbiterDisk,
        Self::SlowBackup,
        Self::FullTap,
        Self::Operator,
        Self::Namesake,
        Self::Hang,
    ];

    /// How often it comes where it comes at all: between two of them, in
    /// microseconds of the whole cluster.
    fn interval(self) -> Range<u64> {
        match self {
            Self::Crash => 200_000..2_000_000,
            Self::Freeze => 80_000..800_000,
            Self::Stall | Self::Operator => 30_000..300_000,
            Self::Cut => 80_000..600_000,
            Self::Blink => 20_000..200_000,
            Self::Isolate => 200_000..1_500_000,
            Self::Break | Self::FullTap => 60_000..500_000,
            Self::ArbiterDies => 60_000..600_000,
            Self::ArbiterDisk => 100_000..1_000_000,
            Self::Namesake => 100_000..600_000,
            Self::SlowBackup | Self::Hang => 100_000..600_000,
        }
    }
}

/// Of a thousand times, how often something goes wrong that may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rates {
    /// A packet is lost: what it carried comes later, and so does what follows
    /// it on its stream.
    pub(super) loss: u64,
    /// A chunk is damaged after its packets were found sound.
    pub(super) damage: u64,
    /// A checkpoint cannot be taken.
    pub(super) capture: u64,
    /// A request to the arbiter, or its answer, is lost.
    pub(super) ask_lost: u64,
    /// A request arrives twice, the copy perhaps much later.
    pub(super) ask_doubled: u64,
    /// A client's packet is lost.
    pub(super) client_lost: u64,
    /// A client's packet arrives twice.
    pub(super) client_doubled: u64,
    /// A process stands still between deciding to release and releasing.
    pub(super) freeze_at_release: u64,
    /// An operator who starts a primary starts a second one elsewhere.
    pub(super) twin: u64,
}

/// The machines' configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timing {
    /// When epochs end.
    pub(super) pace: Pace,
    pub(super) heartbeat: Duration,
    pub(super) detection: Duration,
    pub(super) drop_after: Duration,
    pub(super) lag_max: Duration,
    pub(super) ask_retry: Duration,
    pub(super) nack_after: Duration,
    /// The transport gives up a handshake.
    pub(super) connect_timeout: Duration,
    /// The transport gives up a session.
    pub(super) idle_timeout: Duration,
    /// The arbiter's client gives up a question.
    pub(super) request_timeout: Duration,
}

impl Timing {
    /// As `tools/src/primary/core.rs` derives it.
    pub(super) fn freeze_gap(&self) -> Duration {
        self.drop_after.min(self.detection) / 2
    }

    /// As `tools/src/node/guest.rs` derives it.
    pub(super) fn release_age_max(&self) -> Duration {
        self.detection / 2
    }
}

/// How content is sent. Mirrors `tools/src/config/types.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    Off,
    Zstd,
    /// Now like this and now like that, whatever costs less time.
    Auto,
}

impl Codec {
    /// Who chooses for it.
    pub(super) fn choice(self) -> Choice {
        match self {
            Self::Off => Choice::always(Way::Raw),
            Self::Zstd => Choice::always(Way::Compressed),
            Self::Auto => Choice::by_cost(),
        }
    }
}

/// What guest and codecs are like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    /// Pages below and above the hole in the guest's RAM.
    pub(super) pages: [u64; 2],
    /// Between two steps of the guest, in microseconds.
    pub(super) pace: Range<u64>,
    /// Most pages that it writes in a step.
    pub(super) writes_max: u64,
    pub(super) clients: usize,
    /// The dirty log can leave hot pages where they are.
    pub(super) keeps_hot: bool,
    pub(super) resend_outputs: bool,
    pub(super) history_pages: usize,
    pub(super) codec: Codec,
    /// Most pages in a chunk.
    pub(super) chunk_pages: usize,
    /// Pages that an epoch must have for the next to send ahead.
    pub(super) ahead_pages_min: u64,
    /// Pages that an epoch must have for the next to copy early.
    pub(super) early_pages_min: u64,
    /// Most pages that are copied in a pause; the others are protected.
    pub(super) copy_pages_max: u64,
    pub(super) data_streams: usize,
    /// Data frames on their way at once.
    pub(super) window: usize,
    pub(super) epochs_in_flight_max: usize,
    pub(super) held_output_bytes_max: u64,
    pub(super) seed_pages_left_max: u64,
    /// What backups stage: any epoch, but perhaps not one of which much was sent
    /// ahead and written again.
    pub(super) staging_pages_max: u64,
    /// Encoding, decoding and applying take time of their own.
    pub(super) slow_codecs: bool,
}

/// More than the pages of any epoch.
const STAGING_PAGES: u64 = 400;
/// Longer than a run, where backups do not hang.
const LAG_MAX: Duration = Duration::from_secs(60);
/// Drawn after the rest.
const ADDED: [Fault; 2] = [Fault::Namesake, Fault::Hang];
/// More than an epoch leaves.
const NEVER: u64 = 1_000;

/// See the module's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub(super) backups: usize,
    pub(super) timing: Timing,
    pub(super) shape: Shape,
    pub(super) rates: Rates,
    /// Between two faults of a kind, if there are any.
    pub(super) faults: Vec<(Fault, u64)>,
    /// How long a message takes, in microseconds.
    pub(super) latency: Range<u64>,
    /// Rates of the hosts' clocks, in thousandths.
    pub(super) clocks: Range<u64>,
    /// How long things go wrong.
    pub(super) faulty: Duration,
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let chance = &mut Chance::new(seed ^ 0x706c_616e);
        let backups = [1, 1, 2, 2, 2, 3][chance.index(6)];
        let mut plan = Self {
            backups,
            timing: timing(chance),
            shape: shape(chance),
            rates: rates(chance),
            faults: faults(chance),
            latency: [50..300, 50..2_000, 1_000..3_000][chance.index(3)].clone(),
            clocks: if chance.hits(300) { 900..1_100 } else { 1_000..1_001 },
            faulty: chance.micros(150_000..600_000),
        };
        // Last, so that the seeds from before it draw what they drew.
        if chance.hits(300) {
            let interval = chance.within(&Fault::Namesake.interval());
            plan.faults.push((Fault::Namesake, interval));
        }
        if chance.hits(200) {
            plan.timing.lag_max = plan.timing.drop_after + chance.micros(20_000..150_000);
            plan.faults.push((Fault::Hang, chance.within(&Fault::Hang.interval())));
        }
        if chance.hits(60) {
            plan.shape.codec = Codec::Auto;
        }
        plan
    }

    /// Whether a backup's name may move to another machine.
    pub(super) fn moves_a_name(&self) -> bool {
        self.faults.iter().any(|(fault, _)| *fault == Fault::Namesake)
    }

    /// The same, with only these faults.
    #[must_use]
    pub fn only(mut self, kinds: &[Fault]) -> Self {
        self.rates = Rates::default();
        let chance = &mut Chance::new(self.faulty.as_micros() as u64);
        let draw = |kind: &Fault| (*kind, chance.within(&kind.interval()));
        self.faults = kinds.iter().map(draw).collect();
        self
    }

    /// The same, with so many backups.
    #[must_use]
    pub fn with_backups(mut self, backups: usize) -> Self {
        self.backups = backups;
        self
    }

    /// After how long a message that was sent and not lost has arrived.
    pub(super) fn latency_max(&self) -> Duration {
        Duration::from_micros(self.latency.end)
    }
}

fn timing(chance: &mut Chance) -> Timing {
    let heartbeat = chance.micros(5_000..12_000);
    Timing {
        pace: pace(chance),
        heartbeat,
        detection: heartbeat * 5 + chance.micros(0..80_000),
        drop_after: heartbeat * 5 + chance.micros(0..60_000),
        lag_max: LAG_MAX,
        ask_retry: chance.micros(10_000..40_000),
        nack_after: chance.micros(10_000..30_000),
        connect_timeout: chance.micros(20_000..60_000),
        idle_timeout: chance.micros_of_any_size(30_000..400_000),
        request_timeout: chance.micros(30_000..120_000),
    }
}

fn pace(chance: &mut Chance) -> Pace {
    let interval_min = chance.micros(1_000..4_000);
    let interval_max = interval_min + chance.micros(0..30_000);
    let goal = match chance.below(8) {
        0 => Goal::Pause(chance.micros(50..1_500)),
        1 => Goal::Latency(chance.micros(1_000..20_000)),
        2 => Goal::BytesPerSecond(chance.within(&(10_000..20_000_000))),
        _ => Goal::Interval(chance.micros(4_000..16_000)),
    };
    Pace {
        goal,
        interval_min,
        interval_max,
        early: chance.hits(500),
        gap_min: chance.micros(500..4_000),
        early_bytes_max: chance.within(&(0..100_000)),
        stretch_max: 1 + chance.below(5) as u32,
    }
}

fn shape(chance: &mut Chance) -> Shape {
    let pages = [chance.within(&(6..16)), chance.within(&(2..12))];
    let pace_min = chance.within(&(1_500..5_000));
    Shape {
        pages,
        pace: pace_min..2 * pace_min,
        writes_max: chance.within(&(1..5)),
        clients: 1 + chance.index(3),
        keeps_hot: chance.hits(500),
        resend_outputs: chance.hits(500),
        history_pages: [0, 3, 12, 64, 64, 64][chance.index(6)],
        codec: if chance.hits(40) { Codec::Zstd } else { Codec::Off },
        chunk_pages: [1, 2, 4, 8, 16][chance.index(5)],
        ahead_pages_min: [0, 3, NEVER, NEVER][chance.index(4)],
        early_pages_min: [0, 3, NEVER][chance.index(3)],
        copy_pages_max: [0, 3, NEVER, NEVER][chance.index(4)],
        data_streams: 1 + chance.index(3),
        window: 2 + chance.index(14),
        epochs_in_flight_max: 1 + chance.index(6),
        held_output_bytes_max: chance.within(&(1_000..12_000)),
        seed_pages_left_max: chance.below(6),
        staging_pages_max: if chance.hits(100) { pages[0] + pages[1] } else { STAGING_PAGES },
        slow_codecs: chance.hits(300),
    }
}

fn rates(chance: &mut Chance) -> Rates {
    let mut rate = |most: u64| if chance.hits(500) { 1 + chance.below(most) } else { 0 };
    Rates {
        loss: rate(30),
        damage: rate(60),
        capture: rate(80),
        ask_lost: rate(250),
        ask_doubled: rate(300),
        client_lost: rate(300),
        client_doubled: rate(200),
        freeze_at_release: rate(60),
        twin: rate(500),
    }
}

fn faults(chance: &mut Chance) -> Vec<(Fault, u64)> {
    let mut faults = Vec::new();
    for kind in Fault::ALL.into_iter().filter(|kind| !ADDED.contains(kind)) {
        if chance.hits(500) {
            faults.push((kind, chance.within(&kind.interval())));
        }
    }
    faults
}
