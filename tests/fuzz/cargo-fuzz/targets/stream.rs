//! The target `stream` for libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keyward_fuzz_cargo::run("stream", data));
