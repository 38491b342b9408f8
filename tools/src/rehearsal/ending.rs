//! An end by SIGTERM or SIGINT: what a rehearsal or a benchmark has started and
//! made goes with its process.
//!
//! ```text
//!   main thread:  Ending::on_signals ── rehearsal ── over ─▶ goes on
//!   `signals`:         a signal ─▶ children, namespaces, folders ─▶ exit 128 + its number
//! ```
//!
//! What happens to the main thread when its daemons end under it is not told:
//! [`Ending::over`] waits for the end.

use std::{
    fs, io,
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    sys::signal::{Signal as Number, kill},
    unistd::Pid,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::leftovers;

/// Holds for as long as something is rehearsed.
#[derive(Debug)]
pub struct Ending {
    /// Held for ever by the thread that ends the process.
    ends: Arc<Mutex<()>>,
}

impl Ending {
    /// Ends the process in order on SIGTERM and SIGINT from now on. What processes
    /// before it could not remove is removed first.
    ///
    /// # Errors
    ///
    /// What the system says of threads and signals.
    pub fn on_signals() -> io::Result<Self> {
        leftovers::remove_of_the_dead();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _entered = runtime.enter();
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
        };
        let ends = Arc::new(Mutex::new(()));
        let held = Arc::clone(&ends);
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            let number = runtime.block_on(first_of(signals));
            let _held = held.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("{number}: what was started ends");
            kill_children();
            leftovers::remove_own();
            std::process::exit(128 + number as i32);
        })?;
        Ok(Self { ends })
    }

    /// It has come to its own end. Does not return if a signal ends the process.
    pub fn over(self) {
        drop(self.ends.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

async fn first_of((mut terminate, mut interrupt): (Signal, Signal)) -> Number {
    tokio::select! {
        _ = terminate.recv() => Number::SIGTERM,
        _ = interrupt.recv() => Number::SIGINT,
    }
}

/// Daemons and clients are in namespaces; a benchmark's QEMU is in none.
fn kill_children() {
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for pid in children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
            // It may have ended by itself in the meantime.
            let _ = kill(Pid::from_raw(pid), Number::SIGKILL);
        }
    }
}
