//! Tables: what a benchmark found, in rows, with units.
//!
//! Invariant: every row has a cell for every column. Columns are known by their
//! names, which differ within a table.

use serde::Serialize;

/// What was measured, in rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    /// Part of a file's name: lower case and `-`.
    pub name: String,
    /// What it shows, in a sentence.
    pub caption: String,
    /// From left to right.
    pub columns: Vec<Column>,
    /// From top to bottom.
    pub rows: Vec<Vec<Cell>>,
    /// What to mind when reading it; empty for nothing.
    pub note: String,
}

/// One kind of figure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its unit; empty for text and plain counts.
    pub unit: String,
}

impl Column {
    /// Name and unit, as a heading says them.
    #[must_use]
    pub fn heading(&self) -> String {
        let Self { name, unit } = self;
        if unit.is_empty() { name.clone() } else { format!("{name} [{unit}]") }
    }
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Cell {
    /// In the column's unit; always finite.
    Number(f64),
    /// Words.
    Text(String),
    /// Not measured, or not defined.
    Absent,
}

impl Cell {
    /// The number, if it is one.
    #[must_use]
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Number(value) => Some(*value),
            Self::Text(_) | Self::Absent => None,
        }
    }

    /// For people: few digits.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Number(value) => shown(*value),
            Self::Text(text) => text.clone(),
            Self::Absent => "–".to_owned(),
        }
    }

    /// For programs: all digits; nothing for [`Cell::Absent`].
    #[must_use]
    pub fn exact(&self) -> String {
        match self {
            Self::Number(value) => value.to_string(),
            Self::Text(text) => text.clone(),
            Self::Absent => String::new(),
        }
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        if value.is_finite() { Self::Number(value) } else { Self::Absent }
    }
}

impl From<u64> for Cell {
    fn from(value: u64) -> Self {
        Self::Number(value as f64)
    }
}

impl From<u32> for Cell {
    fn from(value: u32) -> Self {
        Self::Number(f64::from(value))
    }
}

impl From<Option<f64>> for Cell {
    fn from(value: Option<f64>) -> Self {
        value.map_or(Self::Absent, Self::from)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Table {
    /// Without columns and rows.
    #[must_use]
    pub fn new(name: &str, caption: &str) -> Self {
        let (name, caption) = (name.to_owned(), caption.to_owned());
        Self { name, caption, columns: Vec::new(), rows: Vec::new(), note: String::new() }
    }

    /// Adds a column at the right.
    ///
    /// # Panics
    ///
    /// If there are rows, or a column of that name.
    #[must_use]
    pub fn column(mut self, name: &str, unit: &str) -> Self {
        assert!(self.rows.is_empty(), "columns come before rows");
        assert!(self.index(name).is_none(), "there are two columns `{name}`");
        self.columns.push(Column { name: name.to_owned(), unit: unit.to_owned() });
        self
    }

    /// Says what to mind when reading it.
    #[must_use]
    pub fn note(mut self, note: &str) -> Self {
        note.clone_into(&mut self.note);
        self
    }

    /// Adds a row at the bottom.
    ///
    /// # Panics
    ///
    /// If it has more or fewer cells than there are columns.
    pub fn push(&mut self, row: Vec<Cell>) {
        assert_eq!(row.len(), self.columns.len(), "a cell for every column of `{}`", self.name);
        self.rows.push(row);
    }

    /// Where the column of that name is.
    #[must_use]
    pub fn index(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// Whether all that was measured of the column is numbers.
    #[must_use]
    pub fn is_numeric(&self, column: usize) -> bool {
        !self.rows.iter().any(|row| matches!(row[column], Cell::Text(_)))
    }

    /// Lines of text, aligned, with caption and note.
    #[must_use]
    pub fn text(&self) -> String {
        let headings: Vec<String> = self.columns.iter().map(Column::heading).collect();
        let shown: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.iter().map(Cell::shown).collect()).collect();
        let width = |column: usize| {
            let cells = shown.iter().map(|row| row[column].chars().count());
            cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &[String]| {
            let aligned = cells.iter().enumerate().map(|(column, cell)| {
                let width = widths[column];
                if self.is_numeric(column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            format!("  {}\n", aligned.collect::<Vec<_>>().join("  ").trim_end())
        };
        let mut text = format!("{}\n\n{}", self.caption, line(&headings));
        text.extend(shown.iter().map(|row| line(row)));
        if !self.note.is_empty() {
            text.push_str(&format!("\n  {}\n", self.note));
        }
        text
    }

    /// Comma separated values, as RFC 4180 wants them, headings first.
    #[must_use]
    pub fn csv(&self) -> String {
        let line = |cells: Vec<String>| {
            let quoted: Vec<_> = cells.iter().map(|cell| quote(cell)).collect();
            format!("{}\r\n", quoted.join(","))
        };
        let mut text = line(self.columns.iter().map(Column::heading).collect());
        text.extend(self.rows.iter().map(|row| line(row.iter().map(Cell::exact).collect())));
        text
    }
}

/// Three digits and more if they are before the point, with commas between thousands.
#[must_use]
pub fn shown(value: f64) -> String {
    let decimals = match value.abs() {
        _ if value.fract() == 0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size if size >= 0.01 => 3,
        _ => return format!("{value:.2e}"),
    };
    let digits = format!("{value:.decimals$}");
    let (whole, fraction) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let (sign, whole) = whole.split_at(usize::from(whole.starts_with('-')));
    let mut grouped = String::new();
    for (index, digit) in whole.char_indices() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{fraction}")
}

fn quote(cell: &str) -> String {
    if cell.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new("pauses", "Pause by dirty pages.")
            .column("side", "")
            .column("dirty", "pages")
            .column("p50", "ms")
            .note("Mind this.");
        table.push(vec!["a, \"b\"".into(), 100_u64.into(), 0.254_3.into()]);
        table.push(vec!["c".into(), 12_345_u64.into(), f64::NAN.into()]);
        table
    }

    #[test]
    fn numbers_have_few_digits() {
        for (value, expected) in [
            (0.0, "0"),
            (-1234.0, "-1,234"),
            (1_234_567.8, "1,234,568"),
            (99.96, "100.0"),
            (3.216_66, "3.22"),
            (0.012_34, "0.012"),
            (0.000_012_34, "1.23e-5"),
        ] {
            assert_eq!(shown(value), expected);
        }
    }

    #[test]
    fn text_is_aligned() {
        let expected = "Pause by dirty pages.\n\n  \
            side    dirty [pages]  p50 [ms]\n  \
            a, \"b\"            100     0.254\n  \
            c              12,345         –\n\n  Mind this.\n";
        assert_eq!(table().text(), expected);
    }

    #[test]
    fn csv_has_all_digits_and_quotes() {
        let expected = "side,dirty [pages],p50 [ms]\r\n\
            \"a, \"\"b\"\"\",100,0.2543\r\nc,12345,\r\n";
        assert_eq!(table().csv(), expected);
    }
}
