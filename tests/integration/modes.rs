//! The mode in which the tests run their daemons (`support/mode.rs`): its syntax, and that it is in
//! force.

use std::fs;

use crate::support::mode::Mode;
use crate::support::{Export, Setup, row};

/// Enough keys for a table larger than a huge page.
const KEYS: usize = 50_000;

/// A file of a process in `/proc`, or `None` if it may not be read.
fn read_proc(pid: u32, name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/{name}")).ok().filter(|text| !text.is_empty())
}

#[test]
fn mode_is_in_force() {
    let mode = Mode::current();
    println!("mode: {mode:?}");
    let export = Export::new((0..KEYS).map(|number| row(number.to_string()).limits("1000/s")));
    let daemon = Setup::new(export).config("[server]\nidle_timeout = \"60s\"").start();
    assert_eq!(daemon.verdict("7"), "ALLOWED", "{}", daemon.log());
    let status = daemon.status();
    let set = |name: &str| {
        mode.server.iter().find(|(setting, _)| *setting == name).map(|(_, value)| value.as_str())
    };

    // The daemon refuses unknown settings, so the settings in its file are in force.
    let config = fs::read_to_string(daemon.setup.path("keyward.toml")).expect("the configuration");
    let config: toml::Table = config.parse().expect("TOML");
    for (name, value) in &mode.server {
        assert_eq!(config["server"][name].to_string(), *value, "{name}");
    }
    // Their effects, as far as they can be observed:
    let workers: usize = set("workers").map_or_else(
        || std::thread::available_parallelism().map_or(1, usize::from),
        |workers| workers.parse().expect("a number"),
    );
    assert_eq!(status.workers, workers);
    assert_eq!(status.source.ends_with(".kwc"), mode.compiled, "{}", status.source);
    let source = fs::read(daemon.setup.source()).expect("the source");
    assert_eq!(source.starts_with(b"key_hash,"), !mode.compiled);
    // `hg` marks memory advised for huge pages. Only root may read the map of a process that dumps
    // no core.
    if let Some(map) = read_proc(status.pid, "smaps") {
        let is_advised =
            map.lines().filter(|line| line.starts_with("VmFlags:")).any(|line| line.contains(" hg"));
        assert_eq!(is_advised, set("huge_pages") != Some("false"), "huge pages");
    }
}

#[test]
fn mode_is_parsed_from_its_settings() {
    let mode = Mode::parse("workers=2 busy_poll=50us huge_pages=off source=compiled");
    let expected = [("workers", "2"), ("busy_poll", "\"50us\""), ("huge_pages", "false")]
        .map(|(name, value)| (name, value.to_owned()));
    assert_eq!(mode, Mode { server: expected.into(), compiled: true });
    assert_eq!(Mode::parse(""), Mode::default());
    for wrong in ["workers", "workers=two", "huge_pages=maybe", "source=csv", "wrokers=1"] {
        assert!(std::panic::catch_unwind(|| Mode::parse(wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn settings_of_a_test_take_precedence_over_the_mode() {
    let mode = Mode::parse("workers=2 huge_pages=off");
    for (config, expected) in [
        ("", "\n[server]\nworkers = 2\nhuge_pages = false\n"),
        (
            "[source]\npoll = \"1h\"\n",
            "[source]\npoll = \"1h\"\n\n[server]\nworkers = 2\nhuge_pages = false\n",
        ),
        ("[server]\nworkers = 3\n", "[server]\nhuge_pages = false\nworkers = 3\n"),
        ("server.huge_pages = true\n[log]\n", "server.workers = 2\nserver.huge_pages = true\n[log]\n"),
        ("server.workers = 1\nserver.huge_pages = true\n", "server.workers = 1\nserver.huge_pages = true\n"),
    ] {
        assert_eq!(mode.configure(config), expected);
        assert!(mode.configure(config).parse::<toml::Table>().is_ok(), "{config}");
    }
}
