//! The configuration file.
//!
//! * A configuration that is accepted has every value in range, and its policies can be built.
//! * Comments and blank lines around it change nothing, except the line that an error names.
//! * An error is one line without control characters, names the file, and its position is in it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keyward_daemon::config::{Config, ConfigError, MAX_CONNECTIONS, MAX_WORKERS, Overrides};
use keyward_settings::MAX_SOCKET_PATH;
use keyward_settings::file::{FileError, MAX_FILE_BYTES, Position};

use super::Outcome;

/// The file that errors name.
const FILE: &str = "/etc/keyward/keyward.toml";

/// The byte order mark.
const BOM: &str = "\u{feff}";

/// Longest accepted duration: `systemd/keyward.toml` says that all are at most a year.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// Longest message, apart from parts of the file that it quotes.
const MAX_MESSAGE: usize = 4096;

pub(crate) fn run(data: &[u8]) -> Outcome {
    // The source may be an option, so that a file with a single setting is complete.
    let (source, data) = match data.split_first() {
        Some((b'+', rest)) => (Some(PathBuf::from("keys.csv")), rest),
        _ => (None, data),
    };
    let Ok(text) = std::str::from_utf8(data) else { return Outcome::Refused };
    if text.len() as u64 > MAX_FILE_BYTES {
        return Outcome::Refused;
    }
    let parse = |text: &str| {
        let overrides = Overrides { source: source.clone(), ..Overrides::default() };
        Config::parse(Path::new(FILE), text, overrides)
    };
    // A byte order mark is one only at the beginning of the file.
    let mark = if text.starts_with(BOM) { BOM } else { "" };
    let commented = format!("{mark}# a comment\n\n{}", &text[mark.len()..]);
    match (parse(text), parse(&commented)) {
        (Ok(config), Ok(same)) => {
            assert_eq!(config, same);
            assert_eq!(parse(&format!("{text}\n# a comment")).ok(), Some(same));
            check(&config);
            Outcome::Accepted
        }
        (Err(error), Err(later)) => {
            check_error(text, &error);
            check_error(&commented, &later);
            let moved = error.position().map(|Position { line, column }| Position { line: line + 2, column });
            assert_eq!(later.position(), moved);
            Outcome::Refused
        }
        (one, other) => panic!("a comment decides: {one:?}, {other:?}"),
    }
}

fn check(config: &Config) {
    let Config { server, source, keys, save_interval, usage, .. } = config;
    assert!((1..=MAX_WORKERS as usize).contains(&server.workers));
    assert!((1..=MAX_CONNECTIONS as usize).contains(&server.max_connections));
    assert!(server.busy_poll <= Duration::from_millis(1));
    assert!(server.idle_timeout.is_none_or(|idle| (Duration::from_secs(1)..=MAX_DURATION).contains(&idle)));
    assert!(server.drain_timeout <= MAX_DURATION);
    assert_ne!(server.socket, server.admin_socket);
    for socket in [&server.socket, &server.admin_socket] {
        assert!(socket.as_path().as_os_str().len() <= MAX_SOCKET_PATH);
    }
    assert!(server.admin_users.uids.is_sorted() && server.admin_users.read_uids.is_sorted());
    let lists = [&server.adjusters.refund_uids, &server.adjusters.debit_uids];
    assert!(lists.into_iter().flatten().all(|uids| uids.is_sorted()));
    assert!((Duration::from_millis(100)..=MAX_DURATION).contains(&source.poll));
    assert!(source.settle <= Duration::from_secs(60));
    assert!(source.max_staleness.is_none_or(|staleness| staleness > source.poll));
    assert!(*save_interval >= Duration::from_millis(100) && usage.interval >= Duration::from_millis(100));
    // Building it reads the peppers, which no target may do.
    if keys.pepper_file.is_none() && keys.previous_pepper_file.is_none() {
        config.global_policy().expect("there is nothing to read");
    }
    let _ = config.global_policy_without_peppers();
    let _ = (config.source_file(), config.reload_policy());
}

fn check_error(text: &str, error: &ConfigError) {
    let message = error.to_string();
    assert!(!message.chars().any(char::is_control), "{message:?}");
    // Control characters are escaped, which takes up to six bytes for one.
    assert!(message.len() <= MAX_MESSAGE + 6 * text.len(), "{} bytes", message.len());
    match error {
        ConfigError::File(FileError::Setting { position, .. }) => {
            assert!(message.starts_with(FILE));
            if let Some(Position { line, column }) = *position {
                let lines: Vec<&str> = text.split('\n').collect();
                assert!((1..=lines.len()).contains(&line), "line {line}");
                assert!((1..=lines[line - 1].chars().count() + 1).contains(&column), "column {column}");
            }
        }
        ConfigError::NoSource { .. } => assert!(message.contains(FILE)),
        other => panic!("a text cannot cause it: {other}"),
    }
}
