//! The target `devices` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    romulus_fuzz::feed("devices", bytes);
});
