//! The configuration file as it is written: the types that serde fills, with the default of every
//! setting.
//!
//! The default of a setting is `None` if it depends on another setting, the command line or the
//! machine. [`Config`](super::Config) contains the resolved value.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Deserialize;
use serde::de::Deserializer;

use super::plan::{Plan, RateText};
use super::value::{
    BadRowAction, BufferSize, ColumnName, FieldText, FileSize, FormatText, Fraction, NullTextList,
    PrefixText, TimeZoneText,
};
use super::{DEFAULT_SOCKET, MAX_CONNECTIONS, MAX_WORKERS};
use crate::revocation::Retention;
use keyward_engine::key_format::Prefix;
use keyward_settings::text::{self, MAX_DURATION};
use keyward_settings::{AbsolutePath, Group, Id, Log, SocketMode, SocketPath};

/// A shorter timeout would make clients reconnect after every pause.
const IDLE_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=MAX_DURATION;
/// Zero disables spinning. Waking a worker takes some 50 us. A wait of more than 20 times that
/// saves next to nothing, and takes a processor from the applications.
const BUSY_POLL: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_millis(1);
/// One connection can have the requests of a whole read in flight.
const MIN_IN_FLIGHT: u32 = 1024;
/// Zero closes connections at once.
const DRAIN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=MAX_DURATION;
/// A shorter interval would be a busy loop. Polling only finds what the watcher has missed.
const POLL: RangeInclusive<Duration> = Duration::from_millis(100)..=MAX_DURATION;
/// Zero reads a changed file at once. More than a minute would delay revocations.
const SETTLE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60);
/// Maximum of `max_bad_rows`: each bad row is held in memory while a source is read.
const MAX_BAD_ROWS: u32 = 100_000;
/// Enough for a few malformed values, and too few for a broken export.
const DEFAULT_MAX_BAD_ROWS: u32 = 100;
/// `max_staleness` must also be longer than `poll`.
const MAX_STALENESS: RangeInclusive<Duration> = Duration::from_secs(1)..=MAX_DURATION;

/// With a shorter interval, saves of a million buckets would follow each other without a pause.
const SAVE_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=MAX_DURATION;
/// Zero removes a revocation as soon as the source confirms it.
const KEEP_REVOCATIONS: RangeInclusive<Duration> = Duration::ZERO..=MAX_DURATION;
/// With a shorter interval, most records would contain a single request.
const USAGE_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=MAX_DURATION;
/// Maximum number of rotated files. Each rotation renames all of them.
const MAX_KEEP: u32 = 1000;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ConfigFile {
    pub(super) server: Server,
    pub(super) uid_quotas: UidQuotas,
    pub(super) source: Source,
    pub(super) keys: Keys,
    pub(super) plans: BTreeMap<Box<str>, Plan>,
    pub(super) state: State,
    pub(super) revocation: Revocation,
    pub(super) usage: Usage,
    pub(super) audit: Audit,
    pub(super) log: Log,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [server]")]
pub(super) struct Server {
    pub(super) socket: SocketPath,
    pub(super) socket_mode: SocketMode,
    pub(super) socket_group: Option<Group>,
    pub(super) admin_socket: Option<SocketPath>,
    pub(super) state_dir: Option<AbsolutePath>,
    #[serde(deserialize_with = "workers")]
    pub(super) workers: Option<u32>,
    #[serde(deserialize_with = "busy_poll")]
    pub(super) busy_poll: Duration,
    pub(super) huge_pages: bool,
    #[serde(deserialize_with = "max_connections")]
    pub(super) max_connections: u32,
    #[serde(deserialize_with = "idle_timeout")]
    pub(super) idle_timeout: Option<Duration>,
    #[serde(deserialize_with = "drain_timeout")]
    pub(super) drain_timeout: Duration,
    pub(super) allow_uids: Vec<Id>,
    pub(super) allow_gids: Vec<Id>,
    pub(super) refund_uids: Option<Vec<Id>>,
    pub(super) debit_uids: Option<Vec<Id>>,
    pub(super) admin_uids: Vec<Id>,
    pub(super) admin_read_uids: Vec<Id>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [uid_quotas]")]
pub(super) struct UidQuotas {
    #[serde(deserialize_with = "uid_connections")]
    pub(super) connections: Option<u32>,
    pub(super) buffered: Option<BufferSize>,
    #[serde(deserialize_with = "uid_in_flight")]
    pub(super) in_flight: Option<u32>,
    pub(super) rate: Option<RateText>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [source]")]
pub(super) struct Source {
    pub(super) path: Option<AbsolutePath>,
    pub(super) format: Option<FormatText>,
    #[serde(deserialize_with = "poll")]
    pub(super) poll: Duration,
    #[serde(deserialize_with = "settle")]
    pub(super) settle: Duration,
    pub(super) max_shrink: Fraction,
    pub(super) max_reactivated: Fraction,
    pub(super) max_loosened: Fraction,
    pub(super) required: Vec<FieldText>,
    pub(super) on_bad_row: BadRowAction,
    #[serde(deserialize_with = "max_bad_rows")]
    pub(super) max_bad_rows: u32,
    pub(super) apply_takeaways_of_refused: bool,
    #[serde(deserialize_with = "max_staleness")]
    pub(super) max_staleness: Option<Duration>,
    pub(super) ignore: Vec<ColumnName>,
    pub(super) null_texts: NullTextList,
    pub(super) columns: BTreeMap<FieldText, ColumnName>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [state]")]
pub(super) struct State {
    #[serde(deserialize_with = "save_interval")]
    pub(super) save_interval: Duration,
    pub(super) keep_snapshot: bool,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [usage]")]
pub(super) struct Usage {
    #[serde(deserialize_with = "interval")]
    pub(super) interval: Duration,
    pub(super) max_file_size: FileSize,
    #[serde(deserialize_with = "kept_files")]
    pub(super) keep: u32,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [audit]")]
pub(super) struct Audit {
    pub(super) max_file_size: FileSize,
    #[serde(deserialize_with = "kept_files")]
    pub(super) keep: u32,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [keys]")]
pub(super) struct Keys {
    pub(super) minted_prefixes: Vec<PrefixText>,
    pub(super) default_plan: Option<Box<str>>,
    pub(super) time_zone: TimeZoneText,
    pub(super) pepper_file: Option<AbsolutePath>,
    pub(super) previous_pepper_file: Option<AbsolutePath>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [revocation]")]
pub(super) struct Revocation {
    #[serde(deserialize_with = "revocation_retention")]
    pub(super) keep: Retention,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            socket: SocketPath::from_static(DEFAULT_SOCKET),
            socket_mode: SocketMode::DEFAULT,
            socket_group: None,
            admin_socket: None,
            state_dir: None,
            workers: None,
            busy_poll: Duration::ZERO,
            huge_pages: true,
            max_connections: 4096,
            idle_timeout: Some(Duration::from_secs(300)),
            drain_timeout: Duration::from_secs(5),
            allow_uids: Vec::new(),
            allow_gids: Vec::new(),
            refund_uids: None,
            debit_uids: None,
            admin_uids: Vec::new(),
            admin_read_uids: Vec::new(),
        }
    }
}

impl Default for Source {
    fn default() -> Self {
        Self {
            path: None,
            format: None,
            poll: Duration::from_secs(2),
            settle: Duration::from_millis(50),
            max_shrink: Fraction::MAX_SHRINK,
            max_reactivated: Fraction::WIDE,
            max_loosened: Fraction::WIDE,
            required: Vec::new(),
            on_bad_row: BadRowAction::default(),
            max_bad_rows: DEFAULT_MAX_BAD_ROWS,
            apply_takeaways_of_refused: false,
            max_staleness: None,
            ignore: Vec::new(),
            null_texts: NullTextList::default(),
            columns: BTreeMap::new(),
        }
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            minted_prefixes: vec![PrefixText(Prefix::default())],
            default_plan: None,
            time_zone: TimeZoneText(TimeZone::UTC),
            pepper_file: None,
            previous_pepper_file: None,
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self { save_interval: Duration::from_secs(10), keep_snapshot: true }
    }
}

impl Default for Revocation {
    fn default() -> Self {
        Self { keep: Retention::DEFAULT }
    }
}

impl Default for Usage {
    fn default() -> Self {
        // Half a gigabyte in all: two million lines, or one day with 1,500 active keys in each
        // minute.
        Self { interval: Duration::from_secs(60), max_file_size: FileSize::kibibytes(64 << 10), keep: 8 }
    }
}

impl Default for Audit {
    fn default() -> Self {
        // Years of events: an event has some 200 bytes, and events are rare.
        Self { max_file_size: FileSize::kibibytes(16 << 10), keep: 8 }
    }
}

fn workers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    text::integer(deserializer, 1..=MAX_WORKERS).map(Some)
}

fn max_connections<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    text::integer(deserializer, 1..=MAX_CONNECTIONS)
}

fn uid_connections<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    text::integer(deserializer, 1..=MAX_CONNECTIONS).map(Some)
}

fn uid_in_flight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    text::integer(deserializer, MIN_IN_FLIGHT..=u32::MAX).map(Some)
}

fn max_bad_rows<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    text::integer(deserializer, 1..=MAX_BAD_ROWS)
}

fn busy_poll<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    text::duration(deserializer, BUSY_POLL)
}

fn idle_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    text::duration_or_word(deserializer, IDLE_TIMEOUT, "never")
}

fn drain_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    text::duration(deserializer, DRAIN_TIMEOUT)
}

fn save_interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    text::duration(deserializer, SAVE_INTERVAL)
}

fn revocation_retention<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Retention, D::Error> {
    let keep = text::duration_or_word(deserializer, KEEP_REVOCATIONS, "forever")?;
    Ok(keep.map_or(Retention::Forever, Retention::For))
}

fn interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    text::duration(deserializer, USAGE_INTERVAL)
}

fn kept_files<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    text::integer(deserializer, 0..=MAX_KEEP)
}

fn poll<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    text::duration(deserializer, POLL)
}

fn settle<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    text::duration(deserializer, SETTLE)
}

fn max_staleness<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    text::duration_or_word(deserializer, MAX_STALENESS, "never")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_a_duration_or_forever() {
        let keep = |text: &str| toml::from_str::<Revocation>(text).map(|table| table.keep);
        let days = |days: u64| Retention::For(Duration::from_secs(days * 86_400));
        for (text, expected) in [
            ("", days(7)),
            ("keep = '0s'", days(0)),
            ("keep = '30d'", days(30)),
            ("keep = 'forever'", Retention::Forever),
        ] {
            assert_eq!(keep(text).expect(text), expected, "{text}");
        }
        for (text, problem) in [
            ("keep = '400d'", "is out of range: write 0s to 1year, or \"forever\""),
            ("keep = 'never'", "\"never\" is not a duration"),
            ("keep = 7", "a duration such as \"90s\", \"1h 30m\" or \"7d\", or \"forever\""),
            ("hold = '7d'", "unknown field `hold`"),
        ] {
            let refused = keep(text).expect_err(text).to_string();
            assert!(refused.contains(problem), "{text}: {refused}");
        }
    }
}
