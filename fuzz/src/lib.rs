//! Feeds what libFuzzer makes to a target of `romulus-tests`.

#![forbid(unsafe_code)]

use romulus_tests::fuzz;

/// Feeds `bytes` to the target called `name`.
pub fn feed(name: &str, bytes: &[u8]) {
    let _ = (fuzz::target(name).run)(bytes);
}
