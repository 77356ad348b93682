//! The target `admin_messages` for libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keyward_fuzz_cargo::run("admin_messages", data));
