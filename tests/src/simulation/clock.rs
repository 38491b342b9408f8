//! A process's own idea of time: from zero at its start, and not as fast as
//! that of others.

use std::time::Duration;

/// See the module's head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    begun: Duration,
    /// Thousandths of the true rate.
    rate: u64,
}

impl Clock {
    pub(super) fn new(now: Duration, rate: u64) -> Self {
        Self { begun: now, rate }
    }

    /// What this clock shows at the true time `now`.
    pub(super) fn shows(&self, now: Duration) -> Duration {
        if self.rate == 1000 {
            return now - self.begun;
        }
        Duration::from_nanos((now - self.begun).as_nanos() as u64 / 1000 * self.rate)
    }

    /// The true time at which this clock shows at least `shown`.
    pub(super) fn true_time(&self, shown: Duration) -> Duration {
        if self.rate == 1000 {
            return self.begun + shown;
        }
        let nanos = (shown.as_nanos() as u64).div_ceil(self.rate) * 1000;
        self.begun + Duration::from_nanos(nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_never_early_and_hardly_late() {
        for rate in [900, 950, 1000, 1049, 1100] {
            let clock = Clock::new(Duration::from_millis(3), rate);
            for shown in (0..40_000_000).step_by(1_000_003).map(Duration::from_nanos) {
                let at = clock.true_time(shown);
                assert!(clock.shows(at) >= shown, "{rate}: {shown:?}");
                assert!(clock.shows(at) < shown + Duration::from_micros(4), "{rate}: {shown:?}");
            }
        }
    }
}
