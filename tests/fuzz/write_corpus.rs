//! Writes the seeds of all corpora: golden frames, the commented configuration, and files as keyward
//! writes them. `cargo run -p keyward-fuzz --example write-corpus` replaces the files that it
//! writes, and leaves others, such as inputs that a target has failed on.

#![allow(clippy::expect_used, reason = "a seed that cannot be made is a mistake in this file")]

use std::collections::HashMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use keyward_engine::limiter::persist::{SavedLimit, encode};
use keyward_engine::limiter::{ClockReading, LimitId, Period, Rate, Rule, SavedBalance};
use keyward_engine::record::KeyRecord;
use keyward_engine::snapshot::Builder;
use keyward_source::{ColumnMapping, Diagnostics, Format, read};
use serde_json::Value;

/// Golden frames of each group that become a seed.
const FRAMES_OF_GROUP: usize = 3;

/// Longest golden frame that becomes a seed: libFuzzer extends texts by itself.
const MAX_FRAME: usize = 300;

/// The Unix second at which balances are saved.
const CALENDAR: u32 = 1_800_000_000;

const VECTORS: &str = include_str!("../../protocol/vectors/vectors.json");
const CONFIGURATION: &str = include_str!("../../systemd/keyward.toml");
const FIXTURE: &str = include_str!("fixture.jsonl");

const CSV: &str = "key_id,key_hash,owner,environment,plan,status,not_before,expires_at,scopes,allowed_ips,\
allowed_origins,limits,metadata\r\n\
k1,aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa,\"Müller, \"\"Söhne\"\"\",live,pro,disabled,\
2026-11-21 10:00:00+00,1795255201,\"orders:*\nusers:read\",10.0.0.0/8 ::1,https://*.example.com,\
requests=100/s burst 200; 5/10s,\"{\"\"a\"\": [1]}\"\r\n\
k2,\\xbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb,,,,,,,,,,,\r\n";

/// Rows with newlines in quotes, with doubled quotes before them, in the columns of the target's
/// filler.
const BEHIND_FILLER: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa,k1,\"Müller, \"\"Söhne\"\"\",\
,,,,,\"orders:*\nusers:read\",,,,\"{\"\"a\"\":\n1}\",\r\n\
bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb,k2,,,,,,,,,,,,\n";

const JSONL: &str = "{\"key_id\":\"k1\",\"key_hash\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\",\
\"owner\":\"M\\u00fcller\",\"environment\":\"live\",\"plan\":\"pro\",\"status\":\"revoked\",\
\"not_before\":\"2026-11-21T10:00:00Z\",\"expires_at\":1795255201,\"scopes\":[\"orders:*\",\"users:read\"],\
\"allowed_ips\":\"10.0.0.0/8,::1\",\"allowed_origins\":[\"https://*.example.com\"],\"limits\":\"100/s burst 200\",\
\"metadata\":{\"a\": [1]}}\r\n\r\n\
{ \"key_hash\" : \"\\\\xbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\", \"owner\" : null, \"key_id\" : 2 }\n";

const LIST: &str = r#"{"revocations":1,"list":"000102030405060708090a0b0c0d0e0f","seq":4}
{"seq":5,"action":"revoke","key_id":"key_1","when":"2026-11-21T10:00:00Z","by_uid":0}
{"seq":6,"action":"revoke","owner":"acme","when":"2026-11-21T10:00:00Z","by_uid":1000}
{"seq":7,"action":"source","key_id":"key_1","when":"2026-11-22T10:00:00Z","says":{"status":"revoked","since":"2026-11-22T10:00:00Z","clock_ms":86400000}}
{"seq":8,"action":"revoke","key_id":"key_2","when":"2026-11-21T10:00:00Z","by_uid":0,"says":{"status":"active","since":"2026-11-22T10:00:00Z","clock_ms":1}}
{"seq":9,"action":"unrevoke","key_id":"key_2","when":"2026-11-23T10:00:00Z","by_uid":0}
{"seq":10,"action":"drop","key_id":"key_1","when":"2026-11-30T10:00:00Z"}
"#;

const USAGE: &str = r#"{"seq":41,"from":"2026-11-21T10:00:00Z","to":"2026-11-21T10:01:00Z","key_id":"k1","owner":"acme","allowed":3,"cost":3,"first_used":1795255201,"last_used":1795255202}
{"seq":42,"from":"2026-11-21T10:00:00Z","to":"2026-11-21T10:01:00Z","unknown":{"UNKNOWN_KEY":7,"MALFORMED_KEY":0}}
"#;

/// Lines of the admin socket: some of the commands, and replies.
const MESSAGES: [(&str, &str); 17] = [
    ("status", r#"{"command":"status"}"#),
    ("reload", r#"{"command":"reload","force":true}"#),
    ("check", r#"{"command":"check","source":"/etc/keyward/keys.csv"}"#),
    ("usage", r#"{"command":"usage","owner":"acme","top":7}"#),
    ("revoke", r#"{"command":"revoke","key_id":"a\u202eb"}"#),
    ("unrevoke", r#"{"command":"unrevoke","owner":"M\u00fcller"}"#),
    ("revocations", r#"{"command":"revocations","after":{"key_id":"k1"}}"#),
    ("balance", r#"{"command":"balance","key_id":"k1"}"#),
    ("reset-balance", r#"{"command":"reset_balance","key_id":"k1","limit":"tokens"}"#),
    ("reset-calendar", r#"{"command":"reset_calendar"}"#),
    ("unknown-command", r#"{"command":"halt"}"#),
    ("unknown-field", r#"{"command":"status","verbose":true}"#),
    ("cut-short", r#"{"command":"revoke","key_id":"#),
    ("refused", r#"{"ok":false,"error":"not a command"}"#),
    (
        "revocation",
        r#"{"ok":true,"revocation":{"owner":"acme","already":false,"keys":3,"revoked":3,"generation":9,"durable":false,"not_durable":"the disk is full"}}"#,
    ),
    (
        "balances",
        r#"{"ok":true,"balances":{"key_id":"k1","limits":[{"name":"tokens","kind":"calendar_quota","limit":50,"overdraft":5,"balance":-3,"reset_ms":12,"owner":"acme","shadow":true,"before":-5}]}}"#,
    ),
    ("calendar", r#"{"ok":true,"calendar":{"ahead_s":90000,"moved":7}}"#),
];

fn main() {
    for (name, line) in MESSAGES {
        write("admin_messages", name, &[line.as_bytes(), b"\n"]);
    }
    frames_and_streams();
    exports();
    compiled_snapshots();
    configurations();
    balances();
    revocations();
    usage();
    chosen_by_bytes();
}

fn write(target: &str, name: &str, parts: &[&[u8]]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&directory).expect("the directory can be made");
    fs::write(directory.join(name), parts.concat()).expect("the file can be written");
}

/// The bytes of a golden frame, in the notation of `protocol/vectors/README.md`.
fn frame(notation: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in notation.split([' ', '|']).filter(|part| !part.is_empty()) {
        let (hex, times) = part.split_once('*').unwrap_or((part, "1"));
        let times = times.parse().expect("a number");
        bytes.extend(const_hex::decode(hex).expect("hex").repeat(times));
    }
    bytes
}

fn frames_and_streams() {
    let vectors: Vec<Value> = serde_json::from_str(VECTORS).expect("JSON");
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut stream = Vec::new();
    for vector in &vectors {
        let text = |name: &str| vector[name].as_str().expect("a text");
        let bytes = frame(text("bytes"));
        let seen = seen.entry(text("group")).or_default();
        if bytes.len() > MAX_FRAME || *seen == FRAMES_OF_GROUP {
            continue;
        }
        *seen += 1;
        write("frames", text("name"), &[&bytes]);
        if text("from") == "client" && vector["error"]["closes"] != true {
            stream.extend(bytes);
        } else if text("from") == "client" {
            write(
                "stream",
                &format!("closed-by-{}", text("name")),
                &[&[0, 1, 2, 3, 4], &stream[..200], &bytes],
            );
        }
    }
    write("stream", "golden-frames", &[&[0, 1, 2, 3, 4], &stream]);
    write("stream", "golden-frames-cut-short", &[&[0, 1, 2, 3, 4], &stream[..stream.len() - 5]]);
    write("stream", "no-frame", &[&[0, 1, 2, 3, 4], b"GET / HTTP/1.1\r\n"]);
    let chosen: Vec<u8> = (0..=255).collect();
    write("stream", "chosen-requests", &[&[1, 1, 2, 3, 4], &chosen]);
    let batch = [1, 1, 1, 0].repeat(150);
    write("stream", "more-than-a-batch", &[&[1, 9, 9, 9, 9], &batch]);
    let large = [9, 1, 1, 7, 0, 0, 0].repeat(60);
    write("stream", "more-than-the-output", &[&[1, 9, 9, 9, 9], &large]);
}

fn exports() {
    for (target, text, cut) in [("csv_exports", CSV, "k3,\"open"), ("jsonl_exports", JSONL, "{\"key_hash\":")]
    {
        write(target, "all-fields", &[b"00", text.as_bytes()]);
        write(target, "byte-order-mark", &[b"00\xef\xbb\xbf", text.as_bytes()]);
        write(target, "cut-short", &[b"00", text.as_bytes(), cut.as_bytes()]);
        // The header, with an ignored column at the end, is part of the target's filler.
        let rows = if target == "csv_exports" { BEHIND_FILLER } else { JSONL };
        for (end, _) in rows.match_indices('\n') {
            // One byte behind a newline, and three bytes behind it.
            for distance in [end + 1, end + 3] {
                let place = [1 + 16 * (distance >> 8) as u8, distance as u8];
                write(target, &format!("chunk-end-at-{distance}"), &[&place, rows.as_bytes()]);
            }
        }
    }
    write("csv_exports", "two-columns", &[b"00key_hash,key_id\n", "ab".repeat(32).as_bytes(), b",k\n"]);
    write("csv_exports", "bad-row", &[b"00key_hash,key_id\n", "ab".repeat(30).as_bytes(), b",k,x\n"]);
    write("jsonl_exports", "fixture", &[b"00", FIXTURE.as_bytes()]);
    write("jsonl_exports", "bad-row", &[b"00{\"key_hash\":7,\"key_id\":\"k\",\"typo\":[]}\n"]);
}

fn table(text: &str, format: Format) -> Builder {
    let mut builder = Builder::new(7, 0);
    let mut diagnostics = Diagnostics::new("seed");
    let mut sink = |line: u64, record: &KeyRecord<'_>| Ok(builder.add(line, record)?);
    let mapping = ColumnMapping::default();
    read(text.as_bytes(), format, &mapping, &mut sink, &mut diagnostics).expect("a slice");
    assert!(diagnostics.is_empty(), "{diagnostics}");
    builder
}

fn compiled_snapshots() {
    let compile = |builder: &Builder| {
        let mut file = Cursor::new(Vec::new());
        builder.compile(&mut file, 1_700_000_000, &mut |_| {}).expect("memory is writable");
        file.into_inner()
    };
    let mut set_aside = table(CSV, Format::Csv);
    set_aside.note_set_aside();
    set_aside.set_aside(9, [7; 32], Some("k1")).expect("the row is added");
    for (name, builder) in [
        ("empty", Builder::new(7, 0)),
        ("csv", table(CSV, Format::Csv)),
        ("fixture", table(FIXTURE, Format::JsonLines)),
        ("set-aside", set_aside),
    ] {
        let file = compile(&builder);
        write("compiled_snapshots", name, &[&[1, 0, 0], &file]);
        write("compiled_snapshots", &format!("{name}-checked"), &[&[0, 200, 5], &file]);
        write("compiled_snapshots", &format!("{name}-cut-short"), &[&[1, 0, 0], &file[..file.len() - 20]]);
    }
}

fn configurations() {
    let is_setting = |line: &str| {
        let begins = |c: char| c.is_ascii_lowercase() || c == '[';
        line.strip_prefix('#').is_some_and(|rest| rest.starts_with(begins))
    };
    // Settings without comments, which would only make inputs longer.
    let mut settings = String::new();
    for line in CONFIGURATION.lines() {
        let line = if is_setting(line) { &line[1..] } else { line };
        if !line.trim().is_empty() && !line.starts_with('#') {
            settings += line;
            settings += "\n";
        }
    }
    write("configuration", "every-setting", &[settings.as_bytes()]);
    write("configuration", "nothing", &[b"+"]);
    write("configuration", "no-source", &[b"[server]\nworkers = 2\n"]);
    for (number, line) in settings.lines().filter(|line| !line.starts_with('[')).enumerate() {
        let section =
            settings.split(line).next().and_then(|before| before.lines().rfind(|line| line.starts_with('[')));
        let text = format!("+{}\n{line}\n", section.unwrap_or_default());
        write("configuration", &format!("setting-{number}"), &[text.as_bytes()]);
    }
    write("configuration", "bad-value", &[b"+[server]\nworkers = \"two\"\n"]);
    write("configuration", "bad-syntax", &[b"+[server\nworkers = 2\n"]);
}

fn balances() {
    let saved_at = ClockReading {
        boot_id: Some([7; 16]),
        boottime: 5_000_000_000,
        boottime_offset: Some(-2),
        realtime: 1 << 60,
    };
    let limit = |id: u8, rule: Rule, balance: SavedBalance| {
        let id = LimitId([id; 16]);
        SavedLimit { id, rule, is_former: false, balance }
    };
    let former = |limit: SavedLimit| SavedLimit { is_former: true, ..limit };
    let rate = Rate::new(10, 1_000_000_000, 100).expect("in range");
    let bucket = |id: u8, debt: u64| {
        limit(id, Rule::bucket(rate, 20).expect("in range"), SavedBalance::Bucket { debt })
    };
    let window = |id: u8, period: Period, spent: u64| {
        let start = CALENDAR / 900 - 50;
        limit(id, Rule::window(50, period, 5).expect("in range"), SavedBalance::Window { start, spent })
    };
    let credits = |id: u8, spent: u64| {
        limit(id, Rule::credits(50, 5).expect("in range"), SavedBalance::Credits { spent })
    };
    let limits = [
        bucket(1, 1),
        bucket(2, 10 << 30),
        bucket(2, 0),
        window(3, Period::Month(1), 51),
        window(4, Period::Hour, 7),
        window(5, Period::Day, 8),
        credits(5, 60),
        credits(6, 7),
        former(bucket(1, 10 << 30)),
        former(window(3, Period::Day, 7)),
        former(window(7, Period::Day, 7)),
        former(credits(8, 0)),
    ];
    let mut file = Vec::new();
    encode(&saved_at, CALENDAR, limits.into_iter(), &mut file).expect("a vector");
    write("balances", "version-3", &[&[0, 0, 1], &file]);
    write("balances", "version-3-corrected", &[&[1, 0, 0], &file]);
    write("balances", "cut-short", &[&[0, 0, 0], &file[..file.len() - 1]]);
    let mut version_2 = file.clone();
    version_2[12] = 2;
    write("balances", "version-2", &[&[1, 0, 0], &version_2]);
    let mut empty = Vec::new();
    encode(&saved_at, CALENDAR, std::iter::empty(), &mut empty).expect("a vector");
    write("balances", "empty", &[&[0, 9, 9], &empty]);
}

fn revocations() {
    let mark = |seq: u64| {
        format!(
            "{{\"list\":\"000102030405060708090a0b0c0d0e0f\",\"seq\":{seq},\"clock_ms\":5,\"boottime_ms\":1,\"realtime_ms\":1}}\n"
        )
    };
    let list = LIST.as_bytes();
    write("revocations", "complete", &[mark(10).as_bytes(), b"123\n", list]);
    write("revocations", "mark-behind", &[mark(6).as_bytes(), b"4\n", list]);
    write("revocations", "torn-line", &[mark(10).as_bytes(), b"77\n", list, b"{\"seq\":11,\"act"]);
    write("revocations", "lost-line", &[mark(11).as_bytes(), b"1\n", list]);
    write("revocations", "no-mark", &[b"\n1\n", list]);
    write("revocations", "nothing", &[b"\n1"]);
    write(
        "revocations",
        "empty-list",
        &[mark(4).as_bytes(), b"1\n", &list[..LIST.find('\n').unwrap_or(0) + 1]],
    );
    let three: String = LIST.split_inclusive('\n').take(4).collect();
    write("revocations", "in-force", &[mark(7).as_bytes(), b"321\n", three.as_bytes()]);
}

fn usage() {
    let usage = USAGE.as_bytes();
    write("usage", "complete", &[&[0, 2], usage]);
    write("usage", "rotated", &[&[1, 1], usage]);
    write("usage", "rotated-later", &[&[2, 4], usage]);
    write("usage", "torn-line", &[&[0, 1], usage, b"{\"seq\":43,"]);
    write("usage", "zeros", &[&[0, 1], usage, &[0; 40], b"\n"]);
    write("usage", "not-json", &[&[0, 3], b"hello\n"]);
    write("usage", "last-number", &[&[0, 2], b"{\"seq\":18446744073709551615}\n"]);
}

/// Inputs that choose what happens: deterministic noise of several lengths.
fn chosen_by_bytes() {
    let mut state = 1_u64;
    for length in [8, 40, 100, 200, 400] {
        let noise: Vec<u8> = (0..length)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        write("limiter_operations", &format!("noise-{length}"), &[&noise]);
        write("equal_exports", &format!("noise-{length}"), &[&noise]);
    }
    let row: Vec<u8> = (0..26).map(|at| if at % 2 == 0 { 150 } else { 5 + at }).collect();
    write("equal_exports", "typical-texts", &[&row, &row]);
    write("equal_exports", "no-row-is-good", &[&[255; 60]]);
    write("equal_exports", "only-required", &[&[0; 26]]);
}
