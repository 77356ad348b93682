//! The target `limiter_operations` for libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keyward_fuzz_cargo::run("limiter_operations", data));
