//! Runs a target of `keyward-fuzz` for libFuzzer.

/// Runs the target `name`.
pub fn run(name: &str, data: &[u8]) {
    let target = keyward_fuzz::target(name).expect("cargo test -p keyward-fuzz compares the names");
    (target.run)(data);
}
