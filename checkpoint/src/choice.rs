//! Whether to compress: found out by trying both.
//!
//! What compressing gains hangs on the network, on processors and who else uses
//! them, and on what the guest writes. A model of all that would be wrong
//! somewhere, so both ways are timed on the work itself: mostly the one that
//! costs less, and now and then the other, for a few pieces of work, more rarely
//! the more often that was in vain. Only time counts, not bytes.

use std::{collections::VecDeque, time::Duration};

/// Less content says more of the round trip than of its bytes.
const BYTES_MIN: u64 = 256 << 10;
/// Pieces of work that a trial takes.
const TRIAL: usize = 3;
/// Pieces of work that a trial may begin: some of them may be small, or late.
const TRIAL_BEGUN_MAX: u32 = 16;
/// The latest pieces that stand for the way in use.
const RECENT: usize = 9;
/// Pieces of work from one trial to the next: at first, and at most.
const GAP_MIN: u32 = 16;
const GAP_MAX: u32 = 1024;
/// The other way is taken if it costs less than this part of the one in use.
const BETTER: f64 = 0.9;

/// How content is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through the compressor.
    Compressed,
    /// As it is.
    Raw,
}

impl Way {
    fn other(self) -> Self {
        match self {
            Self::Compressed => Self::Raw,
            Self::Raw => Self::Compressed,
        }
    }
}

/// See the module's head. A piece of work is an epoch, or a stretch of a seed.
#[derive(Debug, Clone)]
pub struct Choice {
    leader: Way,
    fixed: bool,
    /// Seconds per byte of the leader's latest pieces.
    recent: VecDeque<f64>,
    /// Those of the other way, while it is tried.
    trial: Option<Trial>,
    /// Pieces until the next trial, and from that to the one after.
    wait: u32,
    gap: u32,
}

#[derive(Debug, Clone, Default)]
struct Trial {
    begun: u32,
    costs: Vec<f64>,
}

impl Choice {
    /// By cost. Begins with compressing, which does less harm where it is wrong.
    #[must_use]
    pub fn by_cost() -> Self {
        Self {
            leader: Way::Compressed,
            fixed: false,
            recent: VecDeque::with_capacity(RECENT),
            trial: None,
            wait: TRIAL as u32,
            gap: GAP_MIN,
        }
    }

    /// Always this way.
    #[must_use]
    pub fn always(way: Way) -> Self {
        Self { leader: way, fixed: true, ..Self::by_cost() }
    }

    /// The way that costs less, as far as is known.
    #[must_use]
    pub fn leader(&self) -> Way {
        self.leader
    }

    /// The way for the next piece of work.
    pub fn begin(&mut self) -> Way {
        let Some(trial) = &mut self.trial else { return self.leader };
        trial.begun += 1;
        if trial.begun <= TRIAL_BEGUN_MAX {
            return self.leader.other();
        }
        self.trial = None;
        self.wait = self.gap;
        self.leader
    }

    /// A piece of work with `bytes` of content, sent this `way`, `took` so long
    /// until it was done. Returns the way that leads from now on, if that is
    /// another one.
    pub fn record(&mut self, way: Way, bytes: u64, took: Duration) -> Option<Way> {
        if self.fixed || bytes < BYTES_MIN {
            return None;
        }
        let cost = took.as_secs_f64() / bytes as f64;
        if way == self.leader {
            self.recent.truncate(RECENT - 1);
            self.recent.push_front(cost);
            if self.trial.is_none() {
                self.wait = self.wait.saturating_sub(1);
                self.trial = (self.wait == 0).then(Trial::default);
            }
            return None;
        }
        let trial = self.trial.as_mut()?;
        trial.costs.push(cost);
        if trial.costs.len() < TRIAL {
            return None;
        }
        let costs = self.trial.take().expect("looked at above").costs;
        let better = median(&costs) < median(self.recent.make_contiguous()) * BETTER;
        if better {
            self.leader = way;
            self.recent = costs.into();
            self.gap = GAP_MIN;
        } else {
            self.gap = (self.gap * 2).min(GAP_MAX);
        }
        self.wait = self.gap;
        better.then_some(way)
    }
}

/// The middle one of `costs`, which are not none.
fn median(costs: &[f64]) -> f64 {
    let mut sorted = costs.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Epochs of 8 MiB that compress to a third, at 400 MB/s of a compressor;
    /// returns how many of them were sent raw.
    fn epochs(choice: &mut Choice, count: u32, line_bytes_per_s: f64) -> u32 {
        let content = (8 * MIB) as f64;
        let mut raw = 0;
        for index in 0..count {
            let way = choice.begin();
            let seconds = match way {
                Way::Raw => content / line_bytes_per_s,
                Way::Compressed => content / 4e8 + content / 3.0 / line_bytes_per_s,
            };
            // Every seventh is late, for reasons of its own.
            let noise = if index % 7 == 0 { 4.0 } else { 1.0 };
            raw += u32::from(way == Way::Raw);
            choice.record(way, 8 * MIB, Duration::from_secs_f64(seconds * noise));
        }
        raw
    }

    #[test]
    fn a_fast_line_gets_raw_pages_and_a_slow_one_compressed_ones() {
        let mut choice = Choice::by_cost();
        let raw = epochs(&mut choice, 1000, 2e9);
        assert_eq!(choice.leader(), Way::Raw);
        assert!(raw > 950, "only {raw} of 1000 epochs");
        let mut choice = Choice::by_cost();
        let raw = epochs(&mut choice, 1000, 1e8);
        assert_eq!(choice.leader(), Way::Compressed);
        assert!(raw < 30, "{raw} of 1000 epochs");
    }

    #[test]
    fn a_line_that_changes_is_noticed() {
        let mut choice = Choice::by_cost();
        for line in [2e9, 1e8, 2e9] {
            epochs(&mut choice, 3 * GAP_MAX, line);
            assert_eq!(choice.leader() == Way::Raw, line > 1e9, "at {line} bytes/s");
        }
    }

    #[test]
    fn ways_that_cost_the_same_do_not_alternate() {
        let mut choice = Choice::by_cost();
        let mut changes = 0;
        for index in 0..10_000_u64 {
            let way = choice.begin();
            let took = Duration::from_micros(10_000 + index * 37 % 200);
            changes += u32::from(choice.record(way, MIB, took).is_some());
        }
        assert_eq!(changes, 0);
    }

    #[test]
    fn small_epochs_say_nothing_and_a_trial_ends_without_them() {
        let mut choice = Choice::by_cost();
        epochs(&mut choice, TRIAL as u32, 2e9);
        let ways: Vec<Way> = (0..100)
            .map(|_| {
                let way = choice.begin();
                choice.record(way, BYTES_MIN - 1, Duration::from_secs(1));
                way
            })
            .collect();
        let raw = ways.iter().filter(|way| **way == Way::Raw).count();
        assert_eq!(raw, TRIAL_BEGUN_MAX as usize);
        assert_eq!(choice.leader(), Way::Compressed);
    }

    #[test]
    fn what_is_fixed_is_never_tried() {
        let mut choice = Choice::always(Way::Compressed);
        assert_eq!(epochs(&mut choice, 1000, 2e9), 0);
    }
}
