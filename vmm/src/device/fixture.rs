//! What the tests of several devices need: guest memory, a network of their
//! own, and a way to say that a host lacks what they test.

use std::{process::Command, sync::Arc, time::Duration};

use checkpoint::output::Mode;
use vm_memory::GuestAddress;

use super::GuestMemory;
use crate::outlet::{Outlet, OutletConfig};

/// One mebibyte of guest memory from address 0.
pub(crate) fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

/// An outlet without a console that anybody reads.
pub(crate) fn outlet(mode: Mode) -> Arc<Outlet> {
    let config = OutletConfig::default();
    Arc::new(Outlet::new(config, mode, Box::new(std::io::sink()), Box::new(|| {})).unwrap())
}

/// Whether taps can be made here; if not, says so, or fails if
/// `ROMULUS_REQUIRE` has `tun` in it.
pub(crate) fn require_tun() -> bool {
    // SAFETY: geteuid cannot fail and touches no memory.
    let root = unsafe { libc::geteuid() } == 0;
    if root && std::fs::metadata("/dev/net/tun").is_ok() {
        return true;
    }
    let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|word| word == "tun"), "tun is required and not here");
    eprintln!("skipped: needs root and /dev/net/tun");
    false
}

/// Runs `test` on a thread in a network namespace of its own.
pub(crate) fn in_new_network(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: it moves this thread alone to a new network namespace.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "unshare");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the caller's network namespace.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Waits until `condition` holds.
///
/// # Panics
///
/// After ten seconds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{what} did not happen within ten seconds");
}
