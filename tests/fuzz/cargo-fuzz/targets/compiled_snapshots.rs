//! The target `compiled_snapshots` for libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keyward_fuzz_cargo::run("compiled_snapshots", data));
