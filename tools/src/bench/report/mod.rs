//! Reports: tables, how to draw them, and where they were measured.
//!
//! ```text
//!   DIR/sweep.json               everything, for programs
//!   DIR/sweep-intervals.csv      one for each table
//!   DIR/sweep.html               charts and tables, for people; needs nothing but itself
//! ```

mod axis;
mod chart;
mod html;
mod machine;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;
use thiserror::Error;

pub(in crate::bench) use self::machine::memory_mib;
pub use self::{
    chart::{Chart, ChartKind, Series},
    machine::Machine,
};
use super::table::Table;

/// What a benchmark found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The benchmark: part of the files' names.
    pub name: String,
    /// What it measures, in a sentence.
    pub about: String,
    /// The command line that measures it again.
    pub command: String,
    /// Wall clock at its end, milliseconds since 1970.
    pub unix_ms: u64,
    /// Where it was measured.
    pub machine: Machine,
    /// What was chosen, and what is in force by default.
    pub options: BTreeMap<String, String>,
    /// What was measured.
    pub tables: Vec<Table>,
    /// How to draw it.
    pub charts: Vec<Chart>,
}

/// A report cannot be kept.
#[derive(Debug, Error)]
#[error("cannot write {path}: {source}: choose another folder with --out")]
pub struct ReportError {
    path: PathBuf,
    source: io::Error,
}

impl Report {
    /// Of this machine and command line, at this time.
    #[must_use]
    pub fn new(name: &str, about: &str) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let words: Vec<String> =
            std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
        Self {
            name: name.to_owned(),
            about: about.to_owned(),
            command: format!("romulus {}", words.join(" ")),
            unix_ms: now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
            machine: Machine::look(),
            options: BTreeMap::new(),
            tables: Vec::new(),
            charts: Vec::new(),
        }
    }

    /// Notes an option.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl ToString) -> Self {
        self.options.insert(name.to_owned(), value.to_string());
        self
    }

    /// The table of that name.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == name)
    }

    /// Writes all its files into `folder`, which is made if need be; their paths,
    /// the page first.
    ///
    /// # Errors
    ///
    /// [`ReportError`]
    ///
    /// # Panics
    ///
    /// If a chart names a table or a column that is not there.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>, ReportError> {
        let name = &self.name;
        let json = serde_json::to_string_pretty(self).expect("a report is plain data");
        let mut files = vec![
            (folder.join(format!("{name}.html")), html::page(self)),
            (folder.join(format!("{name}.json")), json),
        ];
        for table in &self.tables {
            files.push((folder.join(format!("{name}-{}.csv", table.name)), table.csv()));
        }
        let error = |path: &Path| {
            let path = path.to_owned();
            move |source| ReportError { path, source }
        };
        fs::create_dir_all(folder).map_err(error(folder))?;
        for (path, text) in &files {
            fs::write(path, text).map_err(error(path))?;
        }
        Ok(files.into_iter().map(|(path, _)| path).collect())
    }

    /// All tables, for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let tables: Vec<String> = self.tables.iter().map(Table::text).collect();
        format!("{}\n{}\n\n{}", self.about, self.machine, tables.join("\n"))
    }
}

#[cfg(test)]
mod tests;
