//! Compares the documented configuration, `systemd/keyward.toml`, with the settings.

use super::*;
use keyward_source::Field;

#[test]
fn example_has_the_defaults() {
    let defaults = from_options(Overrides { source: path("/etc/keyward/keys.csv"), ..Overrides::default() });
    let example = parse(EXAMPLE).expect("the example");
    assert_eq!(example.file.as_deref(), Some(Path::new("/etc/keyward/keyward.toml")));
    assert_eq!(Config { file: None, ..example }, defaults.expect("the defaults"));
}

#[test]
fn example_has_every_setting() {
    let is_written =
        |begin: &str| EXAMPLE.lines().any(|line| line.trim_start_matches('#').starts_with(begin));
    // The names of plans are arbitrary.
    for section in known_settings("").into_iter().filter(|section| section != "plans") {
        assert!(is_written(&format!("[{section}]")), "[{section}] is missing");
        for setting in known_settings(&format!("{section}.")) {
            let written =
                is_written(&format!("{setting} = ")) || is_written(&format!("[{section}.{setting}]"));
            assert!(written, "{section}.{setting} is missing");
        }
    }
    for field in Field::ALL.map(Field::name) {
        assert!(EXAMPLE.contains(field), "source.columns.{field} is missing");
    }
}
