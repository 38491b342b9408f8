//! What repeated runs say together.

use super::table::{Cell, Table};

/// The same figure of repeated runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// In the middle.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

impl Spread {
    /// Of at least one value; `None` without.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        Some(Self { median: quantile(&values, 0.5)?, low, high })
    }

    /// Cells for columns made by [`Spread::columns`].
    #[must_use]
    pub fn cells(spread: Option<Self>) -> [Cell; 3] {
        match spread {
            Some(Self { median, low, high }) => [median.into(), low.into(), high.into()],
            None => [Cell::Absent, Cell::Absent, Cell::Absent],
        }
    }

    /// Adds columns for the median and its range.
    #[must_use]
    pub fn columns(table: Table, name: &str, unit: &str) -> Table {
        let [low, high] = Self::names(name);
        table.column(name, unit).column(&low, unit).column(&high, unit)
    }

    /// The names of the range's columns.
    #[must_use]
    pub fn names(name: &str) -> [String; 2] {
        [format!("{name}, low"), format!("{name}, high")]
    }
}

/// The value that `part` of the `sorted` ones do not exceed: interpolated between
/// neighbours; `None` of nothing.
#[must_use]
pub fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = part.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    Some(sorted[below] + (sorted[above] - sorted[below]) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between() {
        let spread = Spread::of([4.0, 1.0, 10.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { median: 3.0, low: 1.0, high: 10.0 });
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn quantiles_are_interpolated() {
        let values: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.99), Some(99.0));
        assert_eq!(quantile(&[1.0, 2.0], 0.25), Some(1.25));
    }
}
