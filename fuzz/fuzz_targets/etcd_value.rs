//! The target `etcd_value` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    romulus_fuzz::feed("etcd_value", bytes);
});
