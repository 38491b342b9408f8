//! When an epoch ends: a fixed interval, or one that a goal steers; earlier when
//! output waits and little is dirty.
//!
//! ```text
//!   begun ── gap ──────────── early, if output waits ──────── interval ── stretch ──▶ the guest is held
//! ```
//!
//! Pure: it is told what epochs cost and says when the next is due. A goal is
//! approached by a factor within bounds at every epoch, so that one odd epoch
//! moves little, and not at all within a dead band around it.
//!
//! Invariants: the interval stays within its bounds; an epoch is never due
//! before its gap is over.

use std::time::Duration;

/// Largest change of the interval at one epoch, as a factor.
const STEP_MAX: f64 = 1.25;
/// Relative deviation from a goal that is left alone.
const DEAD_BAND: f64 = 0.05;
/// Weight of the last epoch in moving means.
const WEIGHT: f64 = 0.25;
/// An epoch that ends early does so at the earliest after so many pauses: no
/// more than an eighth of the guest's time goes to them.
const GAP_PAUSES: u32 = 7;

/// What the interval is to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// This interval.
    Interval(Duration),
    /// A pause of this length.
    Pause(Duration),
    /// Output is held for this long on average: half the interval, and the time
    /// until the commit.
    Latency(Duration),
    /// So many bytes a second on the wire.
    BytesPerSecond(u64),
}

/// How epochs are paced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// What to reach.
    pub goal: Goal,
    /// Bounds of the interval, where a goal steers it.
    pub interval_min: Duration,
    /// See there.
    pub interval_max: Duration,
    /// Whether waiting output ends an epoch early.
    pub early: bool,
    /// Shortest epoch that ends early.
    pub gap_min: Duration,
    /// Epochs with more page content than this do not end early.
    pub early_bytes_max: u64,
    /// How much longer than its interval an epoch may get, as a factor, while
    /// backups lag; then the guest is held.
    pub stretch_max: u32,
}

impl Pace {
    /// The longest interval that may come to be in force.
    #[must_use]
    pub fn interval_longest(&self) -> Duration {
        match self.goal {
            Goal::Interval(interval) => interval,
            Goal::Pause(_) | Goal::Latency(_) | Goal::BytesPerSecond(_) => self.interval_max,
        }
    }
}

/// What an epoch cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// The time in which no vCPU ran.
    pub pause: Duration,
    /// Page content.
    pub bytes: u64,
}

/// See the module's head.
#[derive(Debug)]
pub struct Pacer {
    pace: Pace,
    interval: Duration,
    /// Moving means.
    pause: f64,
    commit: f64,
    bytes: u64,
}

impl Pacer {
    /// A pacer that has seen no epoch.
    ///
    /// # Panics
    ///
    /// If the bounds of the interval are reversed.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        assert!(pace.interval_min <= pace.interval_max, "reversed bounds of the interval");
        let interval = match pace.goal {
            Goal::Interval(interval) => interval,
            Goal::Pause(_) | Goal::BytesPerSecond(_) => pace.interval_min,
            Goal::Latency(latency) => latency.clamp(pace.interval_min, pace.interval_max),
        };
        Self { pace, interval, pause: 0.0, commit: 0.0, bytes: 0 }
    }

    /// The interval in force.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// When the epoch that begun at `begun` is to end, if output has been
    /// waiting in it since `waiting`.
    #[must_use]
    pub fn due(&self, begun: Duration, waiting: Option<Duration>) -> Duration {
        let due = begun + self.interval;
        match waiting {
            Some(since) if self.pace.early && self.bytes <= self.pace.early_bytes_max => {
                due.min(since.max(begun + self.gap()))
            }
            Some(_) | None => due,
        }
    }

    /// When the guest is to be held, if the epoch that began at `begun` still
    /// cannot end.
    #[must_use]
    pub fn hold_at(&self, begun: Duration) -> Duration {
        begun + self.interval * self.pace.stretch_max
    }

    fn gap(&self) -> Duration {
        self.pace.gap_min.max(Duration::from_secs_f64(self.pause) * GAP_PAUSES)
    }

    /// An epoch was cut.
    pub fn cut(&mut self, cost: Cost) {
        self.bytes = cost.bytes;
        let pause = cost.pause.as_secs_f64();
        self.pause += WEIGHT * (pause - self.pause);
        if let Goal::Pause(target) = self.pace.goal {
            self.approach(target.as_secs_f64() / self.pause.max(1e-6));
        }
    }

    /// An epoch of `length` has put `bytes` on the wire.
    pub fn shipped(&mut self, length: Duration, bytes: u64) {
        if let Goal::BytesPerSecond(target) = self.pace.goal {
            let rate = bytes as f64 / length.as_secs_f64().max(1e-6);
            // A longer epoch sends less a second: pages are written again.
            self.approach(rate / target.max(1) as f64);
        }
    }

    /// An epoch was committed, so long after it was cut.
    pub fn committed(&mut self, after: Duration) {
        self.commit += WEIGHT * (after.as_secs_f64() - self.commit);
        if let Goal::Latency(target) = self.pace.goal {
            let wanted = 2.0 * (target.as_secs_f64() - self.commit);
            self.approach(wanted.max(0.0) / self.interval.as_secs_f64());
        }
    }

    fn approach(&mut self, factor: f64) {
        if (factor - 1.0).abs() <= DEAD_BAND {
            return;
        }
        let factor = factor.clamp(1.0 / STEP_MAX, STEP_MAX);
        let interval = self.interval.mul_f64(factor);
        self.interval = interval.clamp(self.pace.interval_min, self.pace.interval_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pace(goal: Goal) -> Pace {
        Pace {
            goal,
            interval_min: 2 * MS,
            interval_max: 500 * MS,
            early: true,
            gap_min: 2 * MS,
            early_bytes_max: 1 << 20,
            stretch_max: 4,
        }
    }

    /// A guest and a link: a hot set that is written all the time, pages that
    /// are written once, a pause with a fixed part, a wire with a rate.
    struct Plant {
        hot_pages: f64,
        pages_per_s: f64,
        pause_base_s: f64,
        pause_page_s: f64,
        wire_bytes_per_s: f64,
        /// A pseudo-random walk for noise of a fifth.
        noise: u64,
    }

    impl Plant {
        fn noisy(&mut self, value: f64) -> f64 {
            self.noise = self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            value * (0.9 + 0.2 * (self.noise >> 40) as f64 / (1 << 24) as f64)
        }

        /// One epoch under `pacer`; returns pause, wire rate and latency, in s.
        fn epoch(&mut self, pacer: &mut Pacer) -> (f64, f64, f64) {
            let length = pacer.interval().as_secs_f64();
            let fresh = self.pages_per_s * length;
            let hot = self.hot_pages * (1.0 - (-length / 0.02).exp());
            let pages = self.noisy(fresh + hot);
            let pause = self.noisy(self.pause_base_s + pages * self.pause_page_s);
            let bytes = pages * 4096.0;
            let commit = self.noisy(0.001 + bytes / self.wire_bytes_per_s);
            let length = pacer.interval();
            pacer.cut(Cost { pause: Duration::from_secs_f64(pause), bytes: bytes as u64 });
            pacer.shipped(length, bytes as u64);
            pacer.committed(Duration::from_secs_f64(commit));
            (pause, bytes / length.as_secs_f64(), length.as_secs_f64() / 2.0 + commit)
        }
    }

    fn plant() -> Plant {
        Plant {
            hot_pages: 500.0,
            pages_per_s: 20_000.0,
            pause_base_s: 3e-4,
            pause_page_s: 1e-6,
            wire_bytes_per_s: 1e9,
            noise: 7,
        }
    }

    /// Means over the last half of `epochs`, and the spread of the interval there.
    fn settle(goal: Goal, plant: &mut Plant, epochs: usize) -> ([f64; 3], f64) {
        let mut pacer = Pacer::new(pace(goal));
        let (mut sums, mut least, mut most) = ([0.0; 3], f64::MAX, 0_f64);
        for epoch in 0..epochs {
            let (pause, rate, latency) = plant.epoch(&mut pacer);
            if epoch >= epochs / 2 {
                for (sum, value) in sums.iter_mut().zip([pause, rate, latency]) {
                    *sum += value / (epochs - epochs / 2) as f64;
                }
                least = least.min(pacer.interval().as_secs_f64());
                most = most.max(pacer.interval().as_secs_f64());
            }
        }
        (sums, most / least)
    }

    fn near(value: f64, target: f64) -> bool {
        (value / target - 1.0).abs() < 0.15
    }

    #[test]
    fn goals_are_reached_and_kept() {
        let (means, spread) = settle(Goal::Pause(2 * MS), &mut plant(), 200);
        assert!(near(means[0], 2e-3) && spread < 1.5, "{means:?} {spread}");
        let (means, spread) = settle(Goal::BytesPerSecond(100 << 20), &mut plant(), 200);
        assert!(near(means[1], 100.0 * 1024.0 * 1024.0) && spread < 1.8, "{means:?} {spread}");
        let (means, spread) = settle(Goal::Latency(15 * MS), &mut plant(), 200);
        assert!(near(means[2], 15e-3) && spread < 1.5, "{means:?} {spread}");
    }

    #[test]
    fn a_goal_out_of_reach_ends_at_a_bound() {
        let mut pacer = Pacer::new(pace(Goal::Pause(MS / 10)));
        let mut plant = plant();
        for _ in 0..100 {
            plant.epoch(&mut pacer);
        }
        assert_eq!(pacer.interval(), 2 * MS);
        let mut pacer = Pacer::new(pace(Goal::BytesPerSecond(1)));
        for _ in 0..100 {
            plant.epoch(&mut pacer);
        }
        assert_eq!(pacer.interval(), 500 * MS);
    }

    #[test]
    fn a_step_of_the_load_is_followed_without_swinging() {
        let mut plant = plant();
        let mut pacer = Pacer::new(pace(Goal::Latency(20 * MS)));
        for _ in 0..100 {
            plant.epoch(&mut pacer);
        }
        plant.wire_bytes_per_s = 2e8;
        let mut last = Vec::new();
        for epoch in 0..120 {
            plant.epoch(&mut pacer);
            if epoch >= 60 {
                last.push(pacer.interval().as_secs_f64());
            }
        }
        let most = last.iter().copied().fold(0.0, f64::max);
        let least = last.iter().copied().fold(f64::MAX, f64::min);
        assert!(most / least < 1.5, "{least} to {most}");
        let mean: f64 = (0..50).map(|_| plant.epoch(&mut pacer).2).sum::<f64>() / 50.0;
        assert!(near(mean, 20e-3), "{mean}");
    }

    #[test]
    fn waiting_output_ends_a_quiet_epoch_early_but_not_too_early() {
        let mut pacer = Pacer::new(pace(Goal::Interval(25 * MS)));
        let begun = 1000 * MS;
        assert_eq!(pacer.due(begun, None), begun + 25 * MS);
        assert_eq!(pacer.due(begun, Some(begun)), begun + 2 * MS);
        assert_eq!(pacer.due(begun, Some(begun + 9 * MS)), begun + 9 * MS);
        assert_eq!(pacer.due(begun, Some(begun + 90 * MS)), begun + 25 * MS);
        // Long pauses make a long gap.
        for _ in 0..50 {
            pacer.cut(Cost { pause: MS, bytes: 4096 });
        }
        let gap = pacer.due(begun, Some(begun)) - begun;
        assert!(gap > 6 * MS && gap < 8 * MS, "{gap:?}");
        // Much is dirty: ending early would cost more than it gains.
        pacer.cut(Cost { pause: MS, bytes: 2 << 20 });
        assert_eq!(pacer.due(begun, Some(begun)), begun + 25 * MS);
        assert_eq!(pacer.hold_at(begun), begun + 100 * MS);
    }

    proptest::proptest! {
        #[test]
        fn the_interval_stays_within_its_bounds(
            goal in 0_u8..4,
            costs in proptest::collection::vec((0_u64..100_000, 0_u64..1 << 32, 0_u64..1_000_000), 1..60),
        ) {
            let goal = match goal {
                0 => Goal::Interval(25 * MS),
                1 => Goal::Pause(2 * MS),
                2 => Goal::Latency(15 * MS),
                _ => Goal::BytesPerSecond(100 << 20),
            };
            let mut pacer = Pacer::new(pace(goal));
            for (pause_us, bytes, commit_us) in costs {
                let length = pacer.interval();
                pacer.cut(Cost { pause: Duration::from_micros(pause_us), bytes });
                pacer.shipped(length, bytes);
                pacer.committed(Duration::from_micros(commit_us));
                let interval = pacer.interval();
                proptest::prop_assert!((2 * MS..=500 * MS).contains(&interval), "{interval:?}");
                proptest::prop_assert!(pacer.due(MS, Some(MS)) >= MS + 2 * MS);
            }
        }
    }
}
