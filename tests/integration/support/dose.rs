//! The length of tests that repeat something: short in every run, long on demand.

/// The environment variable that selects the long doses (`tests/doses`).
const VARIABLE: &str = "KEYWARD_TEST_DOSE";

/// `long` if `KEYWARD_TEST_DOSE=long`, otherwise `short`.
pub(crate) fn dose(short: usize, long: usize) -> usize {
    match std::env::var(VARIABLE).as_deref() {
        Ok("long") => long,
        Ok("short") | Err(_) => short,
        Ok(other) => panic!("{VARIABLE}: {other:?} is neither short nor long"),
    }
}
