//! The configuration as a whole: from texts to settings or exact error messages.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use keyward_engine::limiter::Rate;
use keyward_engine::record::{Limit, Per};
use keyward_settings::file::Position;
use keyward_settings::{LogFormat, LogLevel};
use keyward_source::Field;

mod bad_rows;
mod example;
mod guard;
mod null_texts;

const EXAMPLE: &str = include_str!("../../../systemd/keyward.toml");
/// The beginning of a valid file, to which a test adds settings. A table can be opened only once,
/// so `source.path` is written with a dot.
const SOURCE: &str = "source.path = \"/keys.csv\"\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/keyward/keyward.toml"), text, Overrides::default())
}

fn valid(settings: &str) -> Config {
    parse(&format!("{SOURCE}{settings}")).unwrap_or_else(|error| panic!("{settings}\n{error}"))
}

fn message(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

/// The error about a setting on line 2, without the name of the file.
fn refused(setting: &str) -> String {
    let message = message(&format!("{SOURCE}{setting}\n"));
    message.strip_prefix("/etc/keyward/keyward.toml").expect("begins with the file").to_owned()
}

fn from_options(overrides: Overrides) -> Result<Config, String> {
    Config::from_options(overrides).map_err(|error| error.to_string())
}

fn global_policy(config: &Config) -> keyward_engine::global_policy::GlobalPolicy {
    config.global_policy().expect("no peppers to read")
}

fn path(text: &str) -> Option<PathBuf> {
    Some(text.into())
}

/// The settings of a section, from the list in serde's error about an unknown one.
fn known_settings(section: &str) -> Vec<String> {
    let message = message(&format!("{section}unknown = 0"));
    let (_, listed) = message.split_once(", expected ").expect("a list");
    let settings: Vec<String> = listed.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    assert!(settings.len() > 1 || ["state.", "revocation."].contains(&section), "{message}");
    settings
}

#[test]
fn byte_order_mark_has_no_column_in_the_first_line() {
    let position = |text: &str| parse(text).expect_err(text).position();
    assert_eq!(position("\u{feff}servers.workers = 2"), Some(Position { line: 1, column: 1 }));
    assert_eq!(position("\u{feff}# text\n server = 1"), position("# text\n server = 1"));
    // In another line it is a character of the file.
    let in_second_line = Position { line: 2, column: 3 };
    assert_eq!(position("# text\n\u{feff}a]\n"), Some(in_second_line));
}

#[test]
fn settings_commented_out_in_the_example_are_valid() {
    let is_setting = |line: &str| {
        let begins = |c: char| c.is_ascii_lowercase() || c == '[';
        line.strip_prefix('#').is_some_and(|rest| rest.starts_with(begins))
    };
    let used: String = EXAMPLE
        .lines()
        .map(|line| if is_setting(line) { &line[1..] } else { line })
        .flat_map(|line| [line, "\n"])
        .collect();
    assert_eq!(EXAMPLE.lines().filter(|line| is_setting(line)).count(), 23);
    let config = parse(&used).expect("the example with everything in it");
    assert_eq!(config.server.socket_group, Some(Group::Name("keyward".into())));
    assert_eq!(config.server.admin_socket.as_path(), Path::new(DEFAULT_ADMIN_SOCKET));
    assert_eq!((config.server.workers, config.max_connections_per_uid), (2, Some(3584)));
    assert_eq!(config.uid_quotas.in_flight, Some(10_000));
    assert_eq!(config.plans.resolve("").map(|(name, limits)| (name, limits.len())), Ok(("free", 2)));
    assert_eq!(config.keys.pepper_file.as_deref(), Some(Path::new("/etc/keyward/pepper")));
    let columns = [(Field::KeyHash, "sha256".into()), (Field::KeyId, "id".into())].into();
    assert_eq!(config.source.mapping, ColumnMapping::new(&columns, Vec::new()).expect("a mapping"));
}

#[test]
fn defaults_are_the_documented_ones() {
    let Config {
        server,
        max_connections_per_uid,
        uid_quotas,
        source,
        keys,
        plans,
        save_interval,
        usage,
        audit,
        log,
        ..
    } = valid("");
    assert_eq!(server.socket.as_path(), Path::new("/run/keyward/keyward.sock"));
    assert_eq!(server.admin_socket.as_path(), Path::new("/run/keyward/admin.sock"));
    assert_eq!(
        (server.state_dir.as_path(), server.state_dir_is_explicit),
        (Path::new("/var/lib/keyward"), false)
    );
    assert_eq!((server.socket_mode.bits(), server.socket_group), (0o660, None));
    assert!((1..=256).contains(&server.workers));
    assert!(server.huge_pages && server.busy_poll.is_zero());
    assert_eq!((server.max_connections, max_connections_per_uid), (4096, None));
    assert_eq!(uid_quotas, UidQuotas::UNLIMITED);
    let [idle, drain] = [300, 5].map(Duration::from_secs);
    assert_eq!((server.idle_timeout, server.drain_timeout), (Some(idle), drain));
    assert!(server.clients.allows(0, 0) && server.clients.allows(1000, 1000), "empty lists allow everyone");
    assert_eq!(server.adjusters.permissions(1000), Permissions::ALL, "without lists, every client may");
    assert!(!server.admin_users.has_others());
    assert_eq!((source.path.as_path(), source.format), (Path::new("/keys.csv"), Format::Csv));
    assert_eq!(source.poll, Duration::from_secs(2));
    assert_eq!(source.settle, Duration::from_millis(50));
    assert_eq!(source.max_shrink.get(), 0.5);
    assert_eq!(source.max_staleness, None);
    assert_eq!(keys.minted_prefixes, ["acme_live_".parse().expect("a prefix")]);
    assert_eq!((keys.pepper_file, keys.previous_pepper_file), (None, None));
    assert_eq!(*plans, Plans::default());
    assert_eq!([save_interval, usage.interval], [10, 60].map(Duration::from_secs));
    assert_eq!(usage.files, Rotation { max_file_size: 64 << 20, keep: 8 });
    assert_eq!(audit, Rotation { max_file_size: 16 << 20, keep: 8 });
    assert_eq!(log, Log { level: LogLevel::Info, format: LogFormat::Text });
}

#[test]
fn settings_are_read() {
    let config = valid(
        r#"
        [server]
        socket = "/tmp/k.sock"
        socket_mode = "0600"
        socket_group = 990
        state_dir = "/tmp/state"
        workers = 256
        busy_poll = "1ms"
        huge_pages = false
        max_connections = 1_000_000
        idle_timeout = "never"
        drain_timeout = "0s"
        allow_uids = [1001, 1000, 1001]
        allow_gids = [33]
        refund_uids = [1001, 1000]
        debit_uids = []
        admin_uids = [1000]
        admin_read_uids = [1002, 1001, 1002]
        [uid_quotas]
        connections = 1
        buffered = "128KiB"
        in_flight = 1024
        rate = "100000/s burst 200000"
        [keys]
        minted_prefixes = []
        [state]
        save_interval = "100ms"
        [usage]
        interval = "100ms"
        max_file_size = "4KiB"
        keep = 0
        [audit]
        max_file_size = "1GiB"
        keep = 1000
        [log]
        level = "trace"
        format = "json"
        "#,
    );
    let server = &config.server;
    assert_eq!(server.admin_socket.as_path(), Path::new("/tmp/admin.sock"), "beside the verify socket");
    assert_eq!(server.socket_group, Some(Group::Id(990)));
    assert_eq!((server.workers, server.max_connections), (256, 1_000_000));
    assert_eq!(config.max_connections_per_uid, Some(1));
    let rate = Rate::new(100_000, 1_000_000_000, 200_000).ok();
    assert_eq!(config.uid_quotas, UidQuotas { buffered_bytes: Some(131_072), in_flight: Some(1024), rate });
    let times = (server.busy_poll, server.idle_timeout, server.drain_timeout);
    assert_eq!((server.huge_pages, times), (false, (Duration::from_millis(1), None, Duration::ZERO)));
    assert!(server.clients.allows(1000, 5) && server.clients.allows(1001, 5) && server.clients.allows(5, 33));
    assert!(!server.clients.allows(5, 1000) && !server.clients.allows(33, 5));
    let permissions = |uid| server.adjusters.permissions(uid);
    assert_eq!(permissions(1001), Permissions { refund: true, debit: false });
    assert_eq!(permissions(0), Permissions { refund: false, debit: false }, "root is not listed");
    let admin_users = AdminUsers { uids: [1000].into(), read_uids: [1001, 1002].into() };
    assert_eq!(server.admin_users, admin_users);
    assert_eq!(config.keys.minted_prefixes, []);
    assert_eq!(config.save_interval, Duration::from_millis(100));
    let smallest = Rotation { max_file_size: 4096, keep: 0 };
    assert_eq!(config.usage, usage::UsagePolicy { interval: Duration::from_millis(100), files: smallest });
    assert_eq!(config.audit, Rotation { max_file_size: 1 << 30, keep: 1000 });
    assert_eq!(config.log, Log { level: LogLevel::Trace, format: LogFormat::Json });

    assert_eq!(valid("source.max_shrink = 1").source.max_shrink.get(), 1.0);
    assert_eq!(valid("source.max_shrink = 0.0").source.max_shrink.get(), 0.0);
    assert_eq!(
        valid("source.max_staleness = '1h 30m'").source.max_staleness,
        Some(Duration::from_secs(5400))
    );
    assert_eq!(
        valid("source.format = 'jsonl'").source.format,
        Format::JsonLines,
        "the setting overrides the extension"
    );
}

#[test]
fn invalid_value_is_refused_with_its_position_and_a_valid_example() {
    let cases = [
        (
            "server.idle_timeout = \"5\"",
            r#":2:23: server.idle_timeout: "5" is not a duration: time unit needed, for example 5sec or 5ms; write one such as "90s", "1h 30m" or "7d""#,
        ),
        (
            "server.idle_timeout = \"0s\"",
            r#":2:23: server.idle_timeout: 0s is out of range: write 1s to 1year, or "never""#,
        ),
        (
            "server.idle_timeout = 300",
            r#":2:23: server.idle_timeout: invalid type: integer `300`, expected a duration such as "90s", "1h 30m" or "7d", or "never""#,
        ),
        (
            "server.drain_timeout = \"2years\"",
            r#":2:24: server.drain_timeout: 2years is out of range: write 0s to 1year"#,
        ),
        ("server.busy_poll = \"2ms\"", r#":2:20: server.busy_poll: 2ms is out of range: write 0s to 1ms"#),
        ("source.poll = \"99ms\"", r#":2:15: source.poll: 99ms is out of range: write 100ms to 1year"#),
        ("source.settle = \"61s\"", r#":2:17: source.settle: 1m 1s is out of range: write 0s to 1m"#),
        (
            "source.max_staleness = \"0s\"",
            r#":2:24: source.max_staleness: 0s is out of range: write 1s to 1year, or "never""#,
        ),
        (
            "server.workers = 0",
            r#":2:18: server.workers: invalid value: integer `0`, expected an integer from 1 to 256"#,
        ),
        (
            "server.workers = 257",
            r#":2:18: server.workers: invalid value: integer `257`, expected an integer from 1 to 256"#,
        ),
        (
            "server.workers = \"4\"",
            r#":2:18: server.workers: invalid type: string "4", expected an integer from 1 to 256"#,
        ),
        (
            "[uid_quotas]\nbuffered = \"127KiB\"",
            r#":3:12: uid_quotas.buffered: "127KiB" is out of range: write "128KiB" to "1024GiB""#,
        ),
        (
            "[uid_quotas]\nin_flight = 1023",
            r#":3:13: uid_quotas.in_flight: invalid value: integer `1023`, expected an integer from 1024 to 4294967295"#,
        ),
        (
            "server.max_connections = -1",
            r#":2:26: server.max_connections: invalid value: integer `-1`, expected an integer from 1 to 1000000"#,
        ),
        (
            "server.allow_uids = [0, 4294967295]",
            r#":2:25: server.allow_uids[1]: invalid value: integer `4294967295`, expected an integer from 0 to 4294967294"#,
        ),
        (
            "server.refund_uids = [-1]",
            r#":2:23: server.refund_uids[0]: invalid value: integer `-1`, expected an integer from 0 to 4294967294"#,
        ),
        (
            "server.debit_uids = 1000",
            r#":2:21: server.debit_uids: invalid type: integer `1000`, expected a sequence"#,
        ),
        (
            "server.socket_mode = 660",
            r#":2:22: server.socket_mode: invalid type: integer `660`, expected octal digits in quotes, such as "0660""#,
        ),
        (
            "server.socket_mode = \"0999\"",
            r#":2:22: server.socket_mode: "0999" is not a mode: write octal digits from "0200" to "0777""#,
        ),
        (
            "server.socket_group = -1",
            r#":2:23: server.socket_group: invalid value: integer `-1`, expected a group's name, or its number from 0 to 4294967294"#,
        ),
        (
            "server.socket = \"k.sock\"",
            r#":2:17: server.socket: "k.sock" is relative: write the whole path, from / on"#,
        ),
        (
            "server.admin_socket = \"@admin\"",
            r#":2:23: server.admin_socket: abstract sockets have no permissions: write a path such as /run/keyward/keyward.sock"#,
        ),
        (
            "server.state_dir = \"state\"",
            r#":2:20: server.state_dir: "state" is relative: write the whole path, from / on"#,
        ),
        (
            "source.max_shrink = nan",
            r#":2:21: source.max_shrink: invalid value: floating point `NaN`, expected a number from 0.0 (no key) to 1.0 (every key)"#,
        ),
        (
            "source.max_shrink = 1.01",
            r#":2:21: source.max_shrink: invalid value: floating point `1.01`, expected a number from 0.0 (no key) to 1.0 (every key)"#,
        ),
        (
            "source.max_shrink = -1",
            r#":2:21: source.max_shrink: invalid value: integer `-1`, expected a number from 0.0 (no key) to 1.0 (every key)"#,
        ),
        (
            "source.format = \"xml\"",
            r#":2:17: source.format: "xml" is not a format: write "csv", "jsonl" or "compiled""#,
        ),
        (
            "source.ignore = [\"\"]",
            r#":2:18: source.ignore[0]: a column's name has 1 to 128 bytes and no control characters"#,
        ),
        (
            "keys.minted_prefixes = [\"acme\"]",
            r#":2:25: keys.minted_prefixes[0]: "acme" is not a prefix: a prefix ends in _, as in acme_live_"#,
        ),
        (
            "log.level = \"loud\"",
            r#":2:13: log.level: "loud" is not a level: write "error", "warn", "info", "debug" or "trace""#,
        ),
        ("usage.interval = \"99ms\"", r#":2:18: usage.interval: 99ms is out of range: write 100ms to 1year"#),
        (
            "usage.max_file_size = 64",
            r#":2:23: usage.max_file_size: invalid type: integer `64`, expected a size such as "64MiB""#,
        ),
        (
            "audit.max_file_size = \"1KiB\"",
            r#":2:23: audit.max_file_size: "1KiB" is out of range: write "4KiB" to "1024GiB""#,
        ),
        (
            "audit.keep = 1001",
            r#":2:14: audit.keep: invalid value: integer `1001`, expected an integer from 0 to 1000"#,
        ),
        ("log.format = \"xml\"", r#":2:14: log.format: "xml" is not a format: write "text" or "json""#),
    ];
    for (setting, expected) in cases {
        assert_eq!(refused(setting), expected, "{setting}");
    }
    assert!(!valid("state.keep_snapshot = false").keep_snapshot && valid("").keep_snapshot);
    assert!(refused("state.save_interval = '99ms'").ends_with("99ms is out of range: write 100ms to 1year"));
}

#[test]
fn too_long_socket_path_is_refused() {
    let long = format!("/{}", "s".repeat(107));
    assert_eq!(
        refused(&format!("server.socket = {long:?}")),
        ":2:17: server.socket: the path has 108 bytes and a Unix socket's has at most 107: choose a shorter one"
    );
    let deep = format!("/{}/k", "d".repeat(104));
    let expected =
        "leaves no room for admin.sock beside it: choose a shorter path, or set server.admin_socket";
    assert_eq!(refused(&format!("server.socket = {deep:?}")), format!(": server.socket: {expected}"));
    let socket = path(&deep);
    let error = from_options(Overrides { socket, source: path("k.csv"), ..Overrides::default() });
    assert_eq!(error, Err(format!("--socket: {expected}")));
}

#[test]
fn unknown_setting_is_refused() {
    assert_eq!(
        refused("server.worker = 1"),
        ":2:8: server.worker: unknown field `worker`, expected one of `socket`, `socket_mode`, `socket_group`, \
         `admin_socket`, `state_dir`, `workers`, `busy_poll`, `huge_pages`, `max_connections`, `idle_timeout`, \
         `drain_timeout`, `allow_uids`, `allow_gids`, `refund_uids`, `debit_uids`, \
         `admin_uids`, `admin_read_uids`"
    );
    assert_eq!(
        refused("[sever]"),
        ":2:2: sever: unknown field `sever`, expected one of `server`, `uid_quotas`, `source`, `keys`, `plans`, `state`, `revocation`, `usage`, `audit`, `log`"
    );
    assert_eq!(
        refused("source.columns.ownr = \"o\""),
        ":2:16: source.columns.ownr: \"ownr\" is not a field: write one of key_hash, key_id, owner, environment, \
         plan, status, not_before, expires_at, scopes, allowed_ips, allowed_origins, limits, metadata, and its \
         column's name after the ="
    );
}

#[test]
fn syntax_error_has_a_position() {
    assert_eq!(refused("server.workers 4"), ":2:16: key with no value, expected `=`");
    assert_eq!(refused("log.level = \"info\"\nlog.level = \"warn\""), ":3:5: duplicate key");
    assert_eq!(refused("server = 5"), ":2:10: server: invalid type: integer `5`, expected a table, [server]");
}

#[test]
fn contradictory_settings_are_refused() {
    assert_eq!(
        refused("server.admin_socket = \"/run/keyward/keyward.sock\""),
        ": server.admin_socket: is the path of server.socket too: each socket needs its own"
    );
    assert_eq!(
        refused("server.socket = \"/run/admin.sock\""),
        ": server.socket: is the admin socket's path: choose another, or set server.admin_socket"
    );
    assert_eq!(
        refused("source.max_staleness = \"2s\""),
        ": source.max_staleness: 2s would pass between two polls: make it longer than source.poll (2s)"
    );
    assert_eq!(
        refused("source.columns = { owner = \"who\", plan = \"who\" }"),
        ": source.columns.plan: the column \"who\" is owner already: give each its own"
    );
    assert_eq!(
        refused("source.columns.owner = \"who\"\nsource.ignore = [\"who\"]"),
        ": source.ignore: the column \"who\" is mapped to owner: either read it or ignore it"
    );
    assert_eq!(
        refused("source.ignore = [\"key_id\"]"),
        ": source.ignore: key_id is required: do not ignore its column, or map it to another"
    );
    assert_eq!(
        refused("source.columns.owner = \"key_id\""),
        ": source.columns.owner: the column \"key_id\" is taken from key_id, which is required: map key_id to a \
         column too"
    );
    assert_eq!(
        refused("keys.minted_prefixes = [\"a_\", \"b_\", \"a_\"]"),
        ": keys.minted_prefixes[2]: \"a_\" is listed already: leave one out"
    );
}

#[test]
fn missing_source_or_format_is_refused() {
    assert_eq!(
        message(""),
        "no source of keys: give --source PATH, or set source.path in /etc/keyward/keyward.toml"
    );
    assert_eq!(
        from_options(Overrides::default()),
        Err("no source of keys: give --source PATH, or set source.path in /etc/keyward/keyward.toml"
            .to_owned())
    );
    let no_format = "the extension of its name is not that of a format: name it .csv, .jsonl or .kwc, or set source.format to \"csv\", \"jsonl\" \
                     or \"compiled\"";
    assert_eq!(
        message("source.path = \"/keys\""),
        format!("/etc/keyward/keyward.toml: source.path: /keys: {no_format}")
    );
    assert_eq!(
        from_options(Overrides { source: path("keys.txt"), ..Overrides::default() }),
        Err(format!("--source: keys.txt: {no_format}"))
    );
}

#[test]
fn url_is_refused_without_repeating_its_password() {
    let url = "postgres://me:secret@db/keys";
    let expected = "URLs are not supported: write the path of a file or directory";
    assert_eq!(
        message(&format!("source.path = {url:?}")),
        format!("/etc/keyward/keyward.toml:1:15: source.path: {expected}")
    );
    let error = from_options(Overrides { source: path(url), ..Overrides::default() });
    assert_eq!(error, Err(format!("--source: {expected}")));
}

#[test]
fn options_override_the_file() {
    let text = "source = { path = \"/a\", format = \"jsonl\" }\n\
                server = { socket = \"/a/k.sock\", state_dir = \"/a\" }\n";
    let with = |overrides| Config::parse(Path::new("k.toml"), text, overrides).expect("good");

    let config = with(Overrides { source: path("b.csv"), ..Overrides::default() });
    assert_eq!((config.source.path, config.source.format), ("b.csv".into(), Format::Csv));
    let config = with(Overrides { source: path("b"), ..Overrides::default() });
    assert_eq!((config.source.path, config.source.format), ("b".into(), Format::JsonLines));

    let config = with(Overrides { socket: path("b/k.sock"), ..Overrides::default() });
    assert_eq!(
        config.server.admin_socket.as_path(),
        Path::new("b/admin.sock"),
        "beside the socket of the option"
    );
    let config =
        with(Overrides { admin_socket: path("c.sock"), state_dir: path("s"), ..Overrides::default() });
    assert_eq!(config.server.socket.as_path(), Path::new("/a/k.sock"));
    assert_eq!(config.server.admin_socket.as_path(), Path::new("c.sock"));
    assert_eq!(
        (config.server.state_dir.as_path(), config.server.state_dir_is_explicit),
        (Path::new("s"), true)
    );
    assert!(
        valid("server.state_dir = '/var/lib/keyward'").server.state_dir_is_explicit,
        "a configured directory is explicit, even if it is the default"
    );
}

#[test]
fn invalid_option_is_named() {
    let refused = |overrides: Overrides| {
        let source = overrides.source.or(path("k.csv"));
        from_options(Overrides { source, ..overrides }).expect_err("refused")
    };
    let error = refused(Overrides { socket: path("/run/"), ..Overrides::default() });
    assert_eq!(
        error,
        "--socket: the path names a directory: add a file name, as in /run/keyward/keyward.sock"
    );
    let error = refused(Overrides { admin_socket: path(""), ..Overrides::default() });
    assert_eq!(error, "--admin-socket: the path is empty: write one such as /run/keyward/keyward.sock");
    let error = refused(Overrides { admin_socket: path(DEFAULT_SOCKET), ..Overrides::default() });
    assert_eq!(error, "--admin-socket: is the path of server.socket too: each socket needs its own");
    let error = refused(Overrides { state_dir: path(""), ..Overrides::default() });
    assert_eq!(error, "--state-dir: the path is empty");
}

#[test]
fn unreadable_file_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("keyward.toml");
    let load = |file: &Path| Config::load(Some(file), Overrides::default()).expect_err("refused").to_string();
    let name = file.display();
    assert_eq!(
        load(&file),
        format!("{name}: there is no such file: create it, or name another with --config")
    );
    assert_eq!(
        load(dir.path()),
        format!("{}: cannot be read: Is a directory (os error 21)", dir.path().display())
    );
    std::fs::write(&file, b"# fine\n# caf\xe9\n").expect("writes");
    assert_eq!(load(&file), format!("{name}:2:6: this byte is not UTF-8: save the file as UTF-8"));
    std::fs::write(&file, vec![b'#'; 1 + (1 << 20)]).expect("writes");
    assert_eq!(load(&file), format!("{name}: is larger than 1048576 bytes: is it the configuration?"));
    std::fs::write(&file, "#".repeat(1 << 20)).expect("writes");
    assert_eq!(load(&file), format!("no source of keys: give --source PATH, or set source.path in {name}"));
}

#[test]
fn default_file_is_read_if_it_exists() {
    let dir = tempfile::tempdir().expect("a directory");
    let default = dir.path().join("keyward.toml");
    let overrides = Overrides { source: path("k.csv"), ..Overrides::default() };
    let config = Config::load_with_default(None, &default, overrides.clone()).expect("options are enough");
    assert_eq!(config, Config::from_options(overrides.clone()).expect("good"));
    std::fs::write(&default, "server.workers = 3").expect("writes");
    assert_eq!(Config::load_with_default(None, &default, overrides.clone()).expect("good").server.workers, 3);
    std::fs::write(&default, "server.workers = 0").expect("writes");
    assert!(
        Config::load_with_default(None, &default, overrides.clone()).is_err(),
        "an invalid file is not ignored"
    );
    let missing = dir.path().join("missing.toml");
    assert!(
        Config::load_with_default(Some(&missing), &default, overrides).is_err(),
        "a named file must exist"
    );
}

#[test]
fn converted_settings_match_the_configuration() {
    let config = valid("source.format = 'jsonl'\nsource.max_shrink = 0.25");
    let file = config.source_file();
    assert_eq!((&*file.path, file.format), (Path::new("/keys.csv"), Format::JsonLines));
    assert_eq!(file.mapping, config.source.mapping);
    let policy = config.reload_policy();
    assert_eq!((policy.poll, policy.settle), (config.source.poll, config.source.settle));
    assert_eq!(policy.tolerance.max_shrink, 0.25);
    assert_eq!(global_policy(&config).minted_prefixes, config.keys.minted_prefixes);
    assert_eq!(global_policy(&config).max_staleness, None);
    assert_eq!(global_policy(&valid("source.max_staleness = '90s'")).max_staleness, Some(90));
}

proptest::proptest! {
    #[test]
    fn arbitrary_text_does_not_panic(text in "\\PC*", key in "[a-z_.]{0,20}", value in "[-+0-9a-z_.\"'\\[\\]{} ]{0,20}") {
        let _ = parse(&text);
        let _ = parse(&format!("{key} = {value}\n{text}"));
        for setting in ["server.idle_timeout", "server.socket_mode", "server.socket", "server.socket_group",
            "source.columns", "source.max_shrink", "source.path", "keys.minted_prefixes"] {
            if let Err(error) = parse(&format!("{SOURCE}{setting} = {value}\n")) {
                assert!(!error.to_string().contains('\n'), "one line: {error}");
            }
            let _ = parse(&format!("{SOURCE}{setting} = {text:?}\n"));
        }
    }
}

#[test]
fn plans_are_named_limits() {
    let config = valid(
        r#"
        keys.default_plan = "free"
        [plans.free]
        requests = "10/s burst 20"
        daily = { limit = "1000/d", per = "owner" }
        credits = "5000 overdraft 7"
        a = "10000/month from 15"
        [plans.pro.next]
        limit = "50/s"
        shadow = true
        "#,
    );
    let limit =
        |name: &str, text| Limit::new(name, keyward_engine::record::parse_rule(name, text).expect("a limit"));
    // The order is that of the file.
    let free = [
        limit("requests", "10/s burst 20"),
        Limit { per: Per::Owner, ..limit("daily", "1000/d") },
        limit("credits", "5000 credits overdraft 7"),
        limit("a", "10000/month from 15"),
    ];
    assert_eq!(config.plans.resolve(""), Ok(("free", &free[..])));
    let pro = [Limit { shadow: true, ..limit("next", "50/s") }];
    assert_eq!(config.plans.resolve("pro"), Ok(("pro", &pro[..])));
}

#[test]
fn invalid_plan_is_refused_with_its_position() {
    for (setting, expected) in [
        (
            "plans.pro.daily = '100'",
            ":2:19: plans.pro.daily: \"100\" has no period; write 100/s for a rate, or 100 credits for a total \
             that is never refilled",
        ),
        (
            "plans.pro.daily = { shadow = true, limit = '100' }",
            ":2:44: plans.pro.daily.limit: \"100\" has no period; write 100/s for a rate, or 100 credits for a total \
             that is never refilled",
        ),
        (
            "[plans.pro.daily]\nshadow = true\nlimit = '100'",
            ":4:9: plans.pro.daily.limit: \"100\" has no period; write 100/s for a rate, or 100 credits for a total \
             that is never refilled",
        ),
        (
            "[plans.pro]\na='1/s'\nb='1/s'\nc='1/s'\nd='1/s'\ne='1/s'\nf='1/s'\ng='1/s'\nh='1/s'\ni='1/s'",
            ":11:3: plans.pro.i: is one limit too many: a plan has at most 8, and every request is charged to each",
        ),
        ("plans.pro.daily = { per = 'key' }", ":2:19: plans.pro.daily: missing field `limit`"),
        (
            "plans.pro.daily = { limit = '1/s', shadwo = true }",
            ":2:36: plans.pro.daily.shadwo: unknown field `shadwo`, expected one of `limit`, `per`, `shadow`",
        ),
        (
            "plans.pro.daily = { limit = 7 }",
            ":2:29: plans.pro.daily.limit: invalid type: integer `7`, expected a text such as \"100/s\", \
             \"10000/month\" or \"5000 credits\"",
        ),
        (
            "plans.pro.daily = { limit = '1/s', per = 'team' }",
            ":2:42: plans.pro.daily.per: \"team\" shares no limit: write \"key\" or \"owner\"",
        ),
        (
            "plans.pro.'a b' = '1/s'",
            ":2:11: plans.pro.a b: \"a b\" is not a name for a limit: it has 1 to 64 letters, digits, _, . and -",
        ),
        (
            "keys.default_plan = 'por'",
            ": keys.default_plan: the default plan \"por\" is not defined: add [plans.NAME], or leave the default out",
        ),
        (
            "keys.previous_pepper_file = '/p'",
            ": keys.previous_pepper_file: is set without keys.pepper_file: the current pepper belongs there",
        ),
    ] {
        assert_eq!(refused(setting), expected, "{setting}");
    }
    assert!(refused("plans.pro.daily = 7").contains("expected a limit such as \"100/s\""));
}

#[test]
fn peppers_are_read_with_the_global_policy() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("pepper");
    let config = valid(&format!("keys.pepper_file = '{}'", file.display()));
    let missing = config.global_policy().expect_err("no such file").to_string();
    assert!(missing.ends_with("/pepper: the pepper: No such file or directory (os error 2)"), "{missing}");
    std::fs::write(&file, "0123456789abcdef0123456789abcdef\n").expect("writes");
    let mode = |mode| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    mode(0o604);
    assert!(config.global_policy().expect_err("others can read it").to_string().contains("mode 0604"));
    mode(0o600);
    let peppers = global_policy(&config).peppers.expect("a pepper");
    let pepper = keyward_engine::pepper::Pepper::new(b"0123456789abcdef0123456789abcdef").expect("a pepper");
    assert_eq!((peppers.current, peppers.previous), (pepper, None));
}
