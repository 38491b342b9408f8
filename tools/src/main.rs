//! The `romulus` binary: everything is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    die_of_panics();
    romulus::cli::run(std::env::args_os()).into()
}

/// A daemon that has lost a thread is half alive: its heart beats, and its guest
/// hangs. Dead, it is replaced.
fn die_of_panics() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}
