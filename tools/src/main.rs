//! The `romulus` binary: everything is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    romulus::cli::run(std::env::args_os()).into()
}
