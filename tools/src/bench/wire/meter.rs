//! Bytes against the clock and against the processor time of this process.

use std::time::{Duration, Instant};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};

/// Some bytes, and what they cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    pub(super) bytes: u64,
    /// On the clock.
    pub(super) clock: Duration,
    /// Of all processors, of all threads of this process, kernel included.
    pub(super) cpu: Duration,
}

impl Sample {
    /// GB (10^9 bytes) a second.
    pub(super) fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / self.clock.as_secs_f64() / 1e9
    }

    /// GB (10^9 bytes) for a second of one processor.
    pub(super) fn gb_per_cpu_s(&self) -> f64 {
        self.bytes as f64 / self.cpu.as_secs_f64() / 1e9
    }
}

/// A moment, on the clock and in processor time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    at: Instant,
    cpu: Duration,
}

impl Stamp {
    pub(super) fn now() -> Self {
        let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask for its own usage");
        let cpu = duration(usage.user_time()) + duration(usage.system_time());
        Self { at: Instant::now(), cpu }
    }

    /// What `bytes` since then cost.
    pub(super) fn sample(&self, bytes: u64) -> Sample {
        let now = Self::now();
        Sample { bytes, clock: now.at - self.at, cpu: now.cpu - self.cpu }
    }
}

fn duration(time: TimeVal) -> Duration {
    Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000)
}

/// Counts what arrives at the end of a pipe: the first bytes, until windows and
/// packets have grown, do not count.
#[derive(Debug)]
pub(super) struct Meter {
    ahead_bytes: u64,
    bytes: u64,
    seen: u64,
    begun: Option<(Stamp, u64)>,
}

impl Meter {
    /// `bytes` count, after `ahead_bytes`.
    pub(super) fn new(ahead_bytes: u64, bytes: u64) -> Self {
        Self { ahead_bytes, bytes, seen: 0, begun: None }
    }

    /// How many bytes must be sent.
    pub(super) fn total_bytes(&self) -> u64 {
        self.ahead_bytes + self.bytes
    }

    /// `bytes` have arrived; the sample when all have.
    pub(super) fn arrived(&mut self, bytes: u64) -> Option<Sample> {
        self.seen += bytes;
        match self.begun {
            None if self.seen >= self.ahead_bytes => {
                self.begun = Some((Stamp::now(), self.seen));
                None
            }
            Some((begun, from)) if self.seen >= self.total_bytes() => {
                Some(begun.sample(self.seen - from))
            }
            None | Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_ahead_does_not_count() {
        let mut meter = Meter::new(100, 1000);
        assert_eq!(meter.arrived(60), None);
        assert_eq!(meter.arrived(60), None, "now it counts");
        assert_eq!(meter.arrived(900), None);
        let sample = meter.arrived(80).expect("all have arrived");
        assert_eq!(sample.bytes, 980);
    }

    #[test]
    fn rates_are_of_a_thousand_million_bytes() {
        let (clock, cpu) = (Duration::from_secs(2), Duration::from_secs(4));
        let sample = Sample { bytes: 4_000_000_000, clock, cpu };
        assert_eq!((sample.gb_per_s(), sample.gb_per_cpu_s()), (2.0, 1.0));
    }
}
