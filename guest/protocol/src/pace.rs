//! Holding a rate in small batches: how much is due now.
//!
//! Credit is earned by the passing of time and spent by the work done. What a paused guest missed
//! is forgotten, or it would come back from every pause with a burst.

/// A pace that fell behind catches up with what this much time earned, at most.
const BACKLOG_NS_MAX: u64 = 50_000_000;
const NS_PER_S: u64 = 1_000_000_000;
/// The highest rate that is held; products with a second in ns still fit 64 bits.
pub const RATE_PER_S_MAX: u64 = 100_000_000;

/// Earned and spent work at a rate.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    rate_per_s: u64,
    last_ns: u64,
    /// In billionths of a piece of work.
    credit: u64,
}

impl Pace {
    /// A pace that starts now; the rate is bounded by [`RATE_PER_S_MAX`].
    pub fn new(rate_per_s: u64, now_ns: u64) -> Self {
        Self { rate_per_s: rate_per_s.min(RATE_PER_S_MAX), last_ns: now_ns, credit: 0 }
    }

    /// The rate that is held.
    pub fn rate_per_s(&self) -> u64 {
        self.rate_per_s
    }

    /// Takes what is due at `now_ns`, at most `max` pieces. A clock that went back earns nothing.
    pub fn take_due(&mut self, now_ns: u64, max: u64) -> u64 {
        let passed = now_ns.saturating_sub(self.last_ns).min(NS_PER_S);
        self.last_ns = now_ns;
        // And a piece: at a low rate it takes longer to earn than the backlog.
        let credit_max = BACKLOG_NS_MAX * self.rate_per_s + NS_PER_S;
        self.credit = (self.credit + passed * self.rate_per_s).min(credit_max);
        let due = (self.credit / NS_PER_S).min(max);
        self.credit -= due * NS_PER_S;
        due
    }

    /// Whether more is due without waiting.
    pub fn is_behind(&self) -> bool {
        self.credit >= NS_PER_S
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pace: &mut Pace, step_ns: u64, steps: u64) -> u64 {
        (1..=steps).map(|step| pace.take_due(step * step_ns, 1000)).sum()
    }

    #[test]
    fn rates_are_held() {
        for rate in [1, 7, 1000, 40_000, 333_333] {
            let done = run(&mut Pace::new(rate, 0), 2_000_000, 5000);
            assert!(done.abs_diff(rate * 10) <= 1, "{rate}: {done}");
        }
    }

    /// Rates below 20 a second never earned a whole page: the backlog's bound was below one.
    #[test]
    fn a_low_rate_earns_in_the_end() {
        assert_eq!(run(&mut Pace::new(3, 0), 50_000_000, 20), 3);
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        let mut pace = Pace::new(1000, 0);
        assert_eq!(pace.take_due(60 * NS_PER_S, u64::MAX), 51);
    }

    #[test]
    fn a_clock_that_goes_back_earns_nothing() {
        let mut pace = Pace::new(1000, NS_PER_S);
        assert_eq!(pace.take_due(0, 10), 0);
        assert_eq!(pace.take_due(2_000_000, 10), 2);
    }

    #[test]
    fn what_exceeds_a_batch_stays_due() {
        let mut pace = Pace::new(1000, 0);
        assert_eq!(pace.take_due(20_000_000, 5), 5);
        assert!(pace.is_behind());
    }
}
