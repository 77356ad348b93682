//! The mode that the other tests run in (`tests/support/mode.rs`) is in force, and what a mode is.

use std::fmt::Write as _;
use std::fs;

use crate::support::mode::Mode;
use crate::support::{Setup, sha256_hex};

/// Keys whose table is longer than a huge page.
const KEYS: usize = 50_000;

fn export() -> String {
    let mut text = String::from("key_hash,key_id,limits\n");
    for number in 0..KEYS {
        writeln!(text, "{},{number},1000/s", sha256_hex(&number.to_string())).expect("a String");
    }
    text
}

/// What `/proc` says of a process; nothing where it may not be seen.
fn proc(pid: u32, name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/{name}")).ok().filter(|text| !text.is_empty())
}

#[test]
fn the_mode_is_in_force() {
    let mode = Mode::current();
    println!("mode: {mode:?}");
    let daemon = Setup::new(&export()).config("[server]\nidle_timeout = \"60s\"").start();
    assert_eq!(daemon.verdict("7"), "ALLOWED", "{}", daemon.log());
    let status = daemon.status();
    let set = |name: &str| {
        mode.server.iter().find(|(setting, _)| *setting == name).map(|(_, value)| value.as_str())
    };

    // The daemon refuses what it does not know, so that what is in its file is in force, ...
    let config = fs::read_to_string(daemon.setup.path("keyward.toml")).expect("the configuration");
    let config: toml::Table = config.parse().expect("TOML");
    for (name, value) in &mode.server {
        assert_eq!(config["server"][name].to_string(), *value, "{name}");
    }
    // ... and this is what can be seen of it.
    let workers: usize = set("workers").map_or_else(
        || std::thread::available_parallelism().map_or(1, usize::from),
        |workers| workers.parse().expect("a number"),
    );
    assert_eq!(status.workers, workers);
    assert_eq!(status.source.ends_with(".kwc"), mode.compiled, "{}", status.source);
    let source = fs::read(daemon.setup.source()).expect("the source");
    assert_eq!(source.starts_with(b"key_hash,"), !mode.compiled);
    // Memory that huge pages were asked for is marked so; the map of a process that dumps no core is root's to read.
    if let Some(map) = proc(status.pid, "smaps") {
        let asked = map.lines().filter(|line| line.starts_with("VmFlags:")).any(|line| line.contains(" hg"));
        assert_eq!(asked, set("huge_pages") != Some("false"), "huge pages");
    }
}

#[test]
fn a_mode_is_what_its_words_say() {
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
fn a_test_keeps_the_settings_that_it_makes_itself() {
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
