//! How far a benchmark is: a bar on a terminal, lines elsewhere, nothing with `--json`.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

/// Shows the steps of a benchmark on stderr.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    says_lines: bool,
}

impl Progress {
    /// Shows nothing if `quiet`.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let bar = if quiet || !terminal { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let style = ProgressStyle::with_template("{wide_bar}  {pos} of {len}  {elapsed}  {msg}");
        let bar = match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        Self { bar, says_lines: !quiet && !terminal }
    }

    /// `steps` will be taken.
    pub fn expect(&self, steps: u64) {
        self.bar.set_length(steps);
    }

    /// A step begins.
    pub fn begin(&self, step: &str) {
        self.bar.set_message(step.to_owned());
        self.bar.tick();
        if self.says_lines {
            eprintln!("{step}");
        }
    }

    /// The step that began last is done.
    pub fn done(&self) {
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
