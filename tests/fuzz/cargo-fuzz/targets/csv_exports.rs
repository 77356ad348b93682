//! The target `csv_exports` for libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keyward_fuzz_cargo::run("csv_exports", data));
