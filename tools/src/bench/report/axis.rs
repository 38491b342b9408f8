//! Axes: from figures to places between 0 and 1, and where the ticks are.

/// Linear ticks that are aimed at.
const TICKS: f64 = 5.0;
/// Decades up to which the ticks at 2 and 5 are shown, too.
const FINE_DECADES_MAX: f64 = 2.5;

/// One axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    /// From and to round figures around `values`; a linear one begins with 0 if
    /// nothing is below, a logarithmic one leaves out what it cannot show.
    pub(super) fn around(values: impl IntoIterator<Item = f64>, log: bool) -> Self {
        let values = values.into_iter().filter(|value| !log || *value > 0.0);
        let bounds = values.fold(None, |bounds: Option<(f64, f64)>, value| {
            let (low, high) = bounds.unwrap_or((value, value));
            Some((low.min(value), high.max(value)))
        });
        let (low, high) = bounds.unwrap_or((1.0, 1.0));
        if log {
            // Values that are the ends of a step stay on the edge.
            let (low, high) = (round_down(low), round_up(high));
            let high = if high > low { high } else { low * 10.0 };
            return Self { low, high, log };
        }
        let low = low.min(0.0);
        let high = if high > low { high } else { low + 1.0 };
        let step = step(high - low);
        Self { low: (low / step).floor() * step, high: (high / step).ceil() * step, log }
    }

    /// Where `value` is, from 0 to 1; `None` if it cannot be shown.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        if self.log {
            let length = (self.high / self.low).log10();
            return (value > 0.0).then(|| (value / self.low).log10() / length);
        }
        Some((value - self.low) / (self.high - self.low))
    }

    /// Rising, ends included.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if self.log {
            let fine = (self.high / self.low).log10() <= FINE_DECADES_MAX;
            let first = self.low.log10().floor() as i32;
            let last = self.high.log10().ceil() as i32;
            let steps: &[f64] = if fine { &[1.0, 2.0, 5.0] } else { &[1.0] };
            return (first..=last)
                .flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)))
                .filter(|tick| *tick >= self.low * 0.999 && *tick <= self.high * 1.001)
                .collect();
        }
        let step = step(self.high - self.low);
        let count = ((self.high - self.low) / step).round() as i32;
        (0..=count).map(|index| self.low + f64::from(index) * step).collect()
    }
}

/// The round step that cuts `length` in about [`TICKS`] parts.
fn step(length: f64) -> f64 {
    let rough = length / TICKS;
    let decade = 10_f64.powf(rough.log10().floor());
    let wanted = rough / decade;
    decade * [1.0, 2.0, 5.0, 10.0].into_iter().find(|round| *round >= wanted * 0.75).unwrap_or(10.0)
}

/// The largest of 1, 2, 5, 10 … that is not above `value`.
fn round_down(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let round = [5.0, 2.0, 1.0].into_iter().find(|round| round * decade <= value * 1.001);
    round.unwrap_or(1.0) * decade
}

/// The smallest of 1, 2, 5, 10 … that is not below `value`.
fn round_up(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let round = [1.0, 2.0, 5.0].into_iter().find(|round| round * decade >= value * 0.999);
    round.unwrap_or(10.0) * decade
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: &[f64], expected: &[f64]) -> bool {
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-9 * b.abs().max(1.0);
        found.len() == expected.len() && found.iter().zip(expected).all(close)
    }

    #[test]
    fn a_linear_axis_begins_with_zero_and_ends_round() {
        let axis = Axis::around([3.0, 17.0], false);
        assert!(near(&axis.ticks(), &[0.0, 5.0, 10.0, 15.0, 20.0]), "{:?}", axis.ticks());
        assert_eq!(axis.place(10.0), Some(0.5));
    }

    #[test]
    fn a_logarithmic_axis_has_round_ends() {
        let axis = Axis::around([100.0, 0.0, 100_000.0], true);
        assert!(near(&axis.ticks(), &[100.0, 1000.0, 10_000.0, 100_000.0]), "{:?}", axis.ticks());
        assert!((axis.place(1000.0).unwrap() - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(axis.place(0.0), None);
        let short = Axis::around([1.3, 18.0], true);
        assert!(near(&short.ticks(), &[1.0, 2.0, 5.0, 10.0, 20.0]), "{:?}", short.ticks());
    }

    #[test]
    fn one_value_and_none_have_an_axis() {
        for log in [false, true] {
            for values in [vec![7.0], vec![0.0], vec![]] {
                let axis = Axis::around(values, log);
                assert!(axis.ticks().len() >= 2, "{axis:?}");
            }
        }
    }
}
