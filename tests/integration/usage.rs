//! Usage counters of a daemon: exact over reloads, rotation, full disks and kills.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{
    Daemon, Export, Random, RawClient, Received, SetOnDrop, Setup, encode_verify, row, wait_until,
};
use keyward_admin::message::Command as AdminCommand;
use keyward_admin::message::{LimitUsage, UsageReport};
use keyward_client::{Debit, Refund as ClientRefund, Request};
use keyward_protocol::{Credential, Refund, Verify};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Number of answers for each key id and verdict.
type VerdictCounts = BTreeMap<(String, String), u64>;

fn usage(daemon: &Daemon, key_id: Option<&str>, owner: Option<&str>, top: Option<usize>) -> UsageReport {
    let [key_id, owner] = [key_id, owner].map(|text| text.map(str::to_owned));
    let reply =
        keyward_admin::send_command(&daemon.admin_socket(), &AdminCommand::Usage { key_id, owner, top });
    reply.expect("an answer").usage.expect("usage")
}

/// Usage files, from the oldest to the current one. A daemon killed while it renumbered them leaves
/// a gap, and may leave no current file.
fn usage_files(directory: &Path) -> Vec<PathBuf> {
    let age = |path: &Path| -> Option<u32> {
        match path.file_name()?.to_str()?.strip_prefix("usage.jsonl")? {
            "" => Some(0),
            number => number.strip_prefix('.')?.parse().ok(),
        }
    };
    let paths = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = paths.filter_map(|path| Some((age(&path)?, path))).collect();
    files.sort_by_key(|(age, _)| Reverse(*age));
    files.into_iter().map(|(_, path)| path).collect()
}

/// All lines of `files`. None of them is torn.
fn parse_lines(files: &[PathBuf]) -> Vec<Value> {
    let texts = files.iter().map(|path| fs::read_to_string(path).expect("a file"));
    let texts: Vec<String> = texts.collect();
    assert!(texts.iter().all(|text| text.is_empty() || text.ends_with('\n')), "a torn line");
    let lines = texts.iter().flat_map(|text| text.lines());
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("torn: {line}"))).collect()
}

fn assert_numbered(lines: &[Value], first: u64) {
    let seqs: Vec<_> = lines.iter().map(seq).collect();
    assert_eq!(seqs, (first..first + lines.len() as u64).collect::<Vec<_>>());
}

fn seq(line: &Value) -> u64 {
    line["seq"].as_u64().expect("a number")
}

/// The sum of the counts of all lines.
fn sum_counts(lines: &[Value]) -> VerdictCounts {
    let mut counts = VerdictCounts::new();
    let mut add = |id: &str, what: &str, count: &Value| {
        *counts.entry((id.to_owned(), what.to_owned())).or_default() += count.as_u64().expect("a number");
    };
    for line in lines {
        if let Some(unknown) = line.get("unknown") {
            add("", "UNKNOWN_KEY", &unknown["UNKNOWN_KEY"]);
            continue;
        }
        let id = line["key_id"].as_str().expect("an id");
        add(id, "ALLOWED", &line["allowed"]);
        let denied = line["denied"].as_object().expect("an object");
        denied.iter().for_each(|(verdict, count)| add(id, verdict, count));
        assert_eq!(line["cost"], line["allowed"], "every request costs 1");
    }
    counts.retain(|_, count| *count > 0);
    counts
}

fn count_answer(peer: &mut RawClient, counts: &mut VerdictCounts) {
    let mut id = String::new();
    let Received::Answer { verdict, .. } = peer.receive_with(|answer| id = answer.key_id.to_owned()) else {
        panic!("an answer");
    };
    *counts.entry((id, verdict.to_owned())).or_default() += 1;
}

#[test]
fn counts_are_exact_over_workers_reloads_and_rotation() {
    const PEERS: usize = 8;
    const KEYS: [&str; 6] = ["old", "new", "limited", "revoked", "temporary", "unlisted"];
    // The temporary key comes first, so that it moves the other rows.
    let export = |has_temporary: bool| {
        Export::new(has_temporary.then(|| row("temporary"))).rows([
            row("old").id("rotated").owner("acme").status("active"),
            row("new").id("rotated").owner("acme").status("active"),
            row("limited").owner("acme").status("active").limits("1/h burst 100"),
            row("revoked").status("revoked"),
        ])
    };
    let config =
        "[server]\nworkers = 2\n[usage]\ninterval = \"100ms\"\nmax_file_size = \"4KiB\"\nkeep = 1000";
    let mut daemon = Setup::new(export(true)).config(config).start();
    let stop = AtomicBool::new(false);
    let mut counts = VerdictCounts::new();
    thread::scope(|scope| {
        let end = SetOnDrop(&stop);
        let work = || {
            let (mut peer, mut counts) = (daemon.connect(), VerdictCounts::new());
            while !stop.load(Ordering::Relaxed) {
                let requests: Vec<u8> =
                    (0..120).flat_map(|id| encode_verify(id, KEYS[id as usize % KEYS.len()])).collect();
                peer.send(&requests);
                (0..120).for_each(|_| count_answer(&mut peer, &mut counts));
            }
            counts
        };
        let workers: Vec<_> = (0..PEERS).map(|_| scope.spawn(work)).collect();
        for round in 0..6 {
            thread::sleep(Duration::from_millis(120));
            assert!(daemon.publish(export(round % 2 == 1)).accepted);
        }
        drop(end);
        for worker in workers {
            for (what, count) in worker.join().expect("no panic") {
                *counts.entry(what).or_default() += count;
            }
        }
    });

    let count =
        |id: &str, verdict: &str| counts.get(&(id.to_owned(), verdict.to_owned())).copied().unwrap_or(0);
    assert!(count("rotated", "ALLOWED") > 1000 && count("limited", "RATE_LIMITED") > 0, "{counts:?}");
    // The report includes counts that are not yet written.
    let rotated = usage(&daemon, Some("rotated"), None, None);
    assert_eq!((rotated.matched, rotated.total.allowed), (1, count("rotated", "ALLOWED")));
    assert!(rotated.keys[0].first_used <= rotated.keys[0].last_used && rotated.since < rotated.as_of);
    let acme = usage(&daemon, None, Some("acme"), None);
    assert_eq!((acme.matched, acme.keys[0].key_id.as_str()), (2, "rotated"));
    assert_eq!(acme.total.allowed, count("rotated", "ALLOWED") + count("limited", "ALLOWED"));
    assert_eq!(acme.total.denied["RATE_LIMITED"], count("limited", "RATE_LIMITED"));
    let top = usage(&daemon, None, None, Some(1));
    assert_eq!((top.keys.len(), top.keys[0].key_id.as_str()), (1, "rotated"));
    assert_eq!(
        top.unknown["UNKNOWN_KEY"],
        count("", "UNKNOWN_KEY"),
        "unknown keys are counted in total only"
    );
    assert_eq!(usage(&daemon, Some("unlisted"), None, None).matched, 0);

    daemon.stop();
    let lines = parse_lines(&usage_files(daemon.setup.dir.path()));
    assert_numbered(&lines, 1);
    assert_eq!(sum_counts(&lines), counts);
    assert!(daemon.setup.path("usage.jsonl.2").exists(), "the files were rotated");
    let is_small = |name: &str| fs::metadata(daemon.setup.path(name)).expect("a file").len() <= 4096;
    assert!(is_small("usage.jsonl") && is_small("usage.jsonl.1"));
}

#[test]
fn refunds_peeks_and_shadow_limits_are_counted_separately() {
    let plan = "[plans.free]\nquick = { limit = \"1/h\", shadow = true }\n";
    let daemon = Setup::new(Export::new([row("a").plan("free").limits("100/h")])).config(plan).start();
    let credential = Credential::Digest(Sha256::digest("a").into());
    let mut frames = Vec::new();
    for (id, cost) in [(1, 1), (2, 5), (3, 0)] {
        Verify { cost, ..Verify::new(id, credential) }.encode(&mut frames).expect("within limits");
    }
    Refund::new(4, 5, credential).encode(&mut frames).expect("within limits");
    let mut peer = daemon.connect();
    peer.send(&frames);
    for _ in 0..4 {
        assert!(matches!(peer.receive(), Received::Answer { verdict: "ALLOWED", .. }));
    }
    let total = usage(&daemon, Some("a"), None, None).total;
    assert_eq!((total.allowed, total.cost, total.refunded), (2, 6, 5));
    assert_eq!((total.shadow_limited, total.peeked), (1, 1));
    // The shadow limit had room for the first request only, and 1 of it could be refunded.
    assert_eq!(total.limits, named(&[("default", [6, 0, 5]), ("quick", [1, 0, 1])]));
}

/// What was charged, debited and refunded on each limit, as a report has it.
fn named(limits: &[(&str, [u64; 3])]) -> Option<BTreeMap<String, LimitUsage>> {
    let usage = |[charged, debited, refunded]: [u64; 3]| LimitUsage { charged, debited, refunded };
    Some(limits.iter().map(|(name, amounts)| ((*name).to_owned(), usage(*amounts))).collect())
}

/// Estimates, settled after the response; over a reload that renames a limit.
#[test]
fn charges_debits_and_refunds_are_counted_for_each_limit() {
    // They refill by less than 1 during the test.
    const LIMITS: &str = "requests=1000/30d;tokens=10000/30d overdraft 500";
    let plan = "usage.interval = '1h'\n[plans.free]\nsoft = { limit = '4/d', shadow = true }\n";
    let export = |limits: &str| {
        Export::new([
            row("a").owner("acme").plan("free").limits(limits),
            row("b").owner("acme").limits("tokens=9/d"),
        ])
    };
    let mut daemon = Setup::new(export(LIMITS)).config(plan).start();
    let mut client = daemon.client();
    let mut verify = |request: Request<'_>| client.verify(&request).expect("an answer").verdict().name();
    assert_eq!(verify(Request::new("a").cost(2)), "ALLOWED");
    assert_eq!(verify(Request::new("b").cost(3)), "ALLOWED");
    assert_eq!(
        usage(&daemon, None, Some("acme"), None).total.limits,
        None,
        "all limits were charged the cost"
    );

    assert_eq!(verify(Request::new("a").cost_of("tokens", 9_000)), "ALLOWED");
    assert_eq!(verify(Request::new("a").cost_of("tokens", 9_000)), "RATE_LIMITED", "and charged nothing");
    // A request without a general cost is no peek if it charges a limit.
    assert_eq!(verify(Request::new("a").cost(0).cost_of("tokens", 998)), "ALLOWED");
    assert_eq!(verify(Request::new("a").cost(0)), "ALLOWED");
    // Names of limits that the key does not have charge it nothing.
    assert_eq!(verify(Request::new("b").cost(0).cost_of("requests", 5)), "ALLOWED");
    let mut debit = |debit: Debit<'_>| assert!(client.debit(&debit).expect("an answer").is_allowed());
    // Nothing is left: 500 below zero is the floor. The shadow limit has 1 left.
    debit(Debit::new("a", 0).cost_of("tokens", 400));
    debit(Debit::new("a", 0).cost_of("tokens", 400).cost_of("soft", 9));
    let mut refund =
        |refund: ClientRefund<'_>| assert!(client.refund(&refund).expect("an answer").is_allowed());
    refund(ClientRefund::new("a", 5));
    let settled = [("requests", [3, 0, 3]), ("soft", [3, 1, 4]), ("tokens", [10_000, 500, 5])];
    let a = usage(&daemon, Some("a"), None, None).total;
    assert_eq!((a.allowed, a.cost, a.peeked, a.debited, a.refunded), (3, 3, 1, 0, 5));
    assert_eq!(a.limits, named(&settled));
    let acme = usage(&daemon, None, Some("acme"), None);
    let both = [("requests", [3, 0, 3]), ("soft", [3, 1, 4]), ("tokens", [10_003, 500, 5])];
    assert_eq!(acme.total.limits, named(&both), "with the plain requests of other keys");
    assert_eq!(acme.keys.iter().find(|key| key.key_id == "b").expect("used").counts.limits, None);
    let text = daemon.run_keyward(&["usage", "--key", "a"]).stdout;
    assert!(
        text.contains(
            "; requests: charged 3, refunded 3; soft: charged 3, debited 1, refunded 4\
             ; tokens: charged 10000, debited 500, refunded 5\n"
        ),
        "{text}"
    );
    let json = daemon.run_keyward(&["usage", "--key", "a", "--json"]).stdout;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        json["keys"][0]["limits"]["tokens"],
        serde_json::json!({"charged": 10_000, "debited": 500, "refunded": 5})
    );

    assert!(daemon.publish(export("calls=1000/d")).accepted);
    assert!(daemon.client().verify(&Request::new("a").cost(7)).expect("an answer").is_allowed());
    daemon.stop();
    let mut daemon = daemon.kill_and_restart();
    assert!(daemon.client().verify(&Request::new("a").cost(1)).expect("an answer").is_allowed());
    daemon.stop();
    let lines = parse_lines(&usage_files(daemon.setup.dir.path()));
    assert_numbered(&lines, 1);
    let of_a: Vec<_> = lines.iter().filter(|line| line["key_id"] == "a").collect();
    let limits: BTreeMap<String, LimitUsage> =
        serde_json::from_value(of_a[0]["limits"].clone()).expect("limits");
    let calls = ("calls", [7, 0, 0]);
    // The shadow limit had room for 4 at most.
    let soft = ("soft", [3, 1, 4]);
    assert_eq!(Some(limits), named(&[calls, settled[0], soft, settled[2]]));
    assert_eq!(
        (&of_a[1]["cost"], of_a[1].get("limits")),
        (&1.into(), None),
        "a daemon that has just started"
    );
    let of_b: Vec<_> = lines.iter().filter(|line| line["key_id"] == "b").collect();
    assert_eq!((of_b.len(), &of_b[0]["cost"], of_b[0].get("limits")), (1, &3.into(), None));
}

#[test]
fn usage_command_prints_the_counters() {
    let daemon = Daemon::serving(Export::new([row("a").owner("acme")]));
    assert_eq!(daemon.verdict("a"), "ALLOWED");
    assert_eq!(daemon.verdict("b"), "UNKNOWN_KEY");
    let run = |arguments: &[&str]| {
        let output = daemon.run_keyward(&[&["usage"], arguments].concat());
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        output.stdout
    };
    let text = run(&[]);
    assert!(text.starts_with("a (acme): 1 allowed, cost 1, last used 2"), "{text}");
    assert!(text.contains("1 key: 1 allowed, cost 1\nsince the daemon's start, 2"), "{text}");
    assert!(text.ends_with("Z; UNKNOWN_KEY 1\n"), "{text}");
    let json: Value = serde_json::from_str(&run(&["--owner", "acme", "--json"])).expect("JSON");
    assert_eq!((&json["total"]["allowed"], &json["keys"][0]["key_id"]), (&1.into(), &"a".into()));
    assert!(run(&["--key", "unlisted"]).starts_with("no usage of the key unlisted is recorded"));
}

/// While the disk is full, the daemon answers. Afterwards no count is lost or duplicated.
#[test]
fn full_disk_loses_no_usage() {
    const KEYS: u32 = 100;
    let rows = (0..KEYS).map(|key| row(key.to_string()).id(format!("key_{key}")));
    let setup = Setup::new(Export::new(rows)).config("[usage]\ninterval = \"100ms\"");
    let serve = setup.command();
    let mut command = std::process::Command::new("sh");
    // 10 units of 512 or 1024 bytes: less than the lines of usage, more than any other file.
    let limited = "trap '' XFSZ; ulimit -S -f 10; exec \"$0\" \"$@\"";
    command.arg("-c").arg(limited).arg(serve.get_program()).args(serve.get_args());
    command.stderr(fs::File::create(setup.path("log")).expect("the log"));
    let mut daemon = setup.start_with(command);
    let mut peer = daemon.connect();
    let mut verify_all = |times: u32| {
        for _ in 0..times {
            let requests: Vec<u8> = (0..KEYS).flat_map(|key| encode_verify(key, &key.to_string())).collect();
            peer.send(&requests);
            (0..KEYS)
                .for_each(|_| assert!(matches!(peer.receive(), Received::Answer { verdict: "ALLOWED", .. })));
        }
    };
    verify_all(3);
    wait_until("the failure", || daemon.log().contains("usage.jsonl"));
    let before = fs::metadata(daemon.setup.path("usage.jsonl")).expect("a file").len();
    assert_eq!(before, 0, "a partial write is truncated");
    verify_all(2);
    let pid = Pid::from_raw(daemon.pid() as i32);
    prlimit(pid, Resource::Fsize, Rlimit { current: None, maximum: None }).expect("no limit");
    wait_until("the lines", || {
        let written = fs::read_to_string(daemon.setup.path("usage.jsonl")).unwrap_or_default();
        written.lines().count() >= KEYS as usize
    });
    daemon.stop();
    let lines = parse_lines(&usage_files(daemon.setup.dir.path()));
    assert_numbered(&lines, 1);
    let counts = sum_counts(&lines);
    assert_eq!(counts.len(), KEYS as usize);
    assert!(counts.values().all(|count| *count == 5), "{counts:?}");
}

/// SIGKILL at random moments, 200 times: the next start succeeds, no line is torn, and no counter
/// exceeds the admitted requests.
#[test]
fn killed_daemon_leaves_whole_lines() {
    const ROUNDS: u64 = 200;
    const KEYS: u32 = 100;
    /// More than is sent. The refill during the test is negligible.
    const BURST: u32 = 1_000_000;
    /// Interval of the rounds that read all files. The others read only the current file, to save
    /// time.
    const FULL_CHECK_INTERVAL: u64 = 20;
    let row = |key: u32| row(key.to_string()).id(format!("key_{key}")).limits(format!("{BURST}/30d"));
    let setup = Setup::new(Export::new((0..KEYS).map(row)));
    let setup = setup.config(
        "[server]\nworkers = 2\n[state]\nsave_interval = \"100ms\"\n[usage]\ninterval = \"100ms\"\nmax_file_size = \"256KiB\"\nkeep = 1000",
    );
    let mut daemon = setup.start();
    let requests: Vec<u8> = (0..KEYS).flat_map(|key| encode_verify(key, &key.to_string())).collect();
    let (mut sent, mut counted, mut torn, mut restored) = (0_u64, 0, 0, 0);
    let mut random = Random::new(1);
    for round in 1..=ROUNDS {
        // Around the moment when the first interval ends.
        let life = Duration::from_micros(70_000 + random.below(60_000) as u64);
        let (start, mut peer) = (Instant::now(), daemon.connect());
        while start.elapsed() < life {
            sent += u64::from(KEYS);
            peer.send(&requests);
            (0..KEYS).for_each(|_| assert!(matches!(peer.receive(), Received::Answer { .. })));
        }
        daemon.kill();
        if random.below(8) == 0 {
            // As if it had been killed while it saved balances.
            fs::write(daemon.setup.path("balances.new"), b"half of what was to be saved")
                .expect("half a file");
        }
        if random.below(4) == 0 {
            // As if it had been killed during a write, which is rare because a write is short.
            let path = daemon.setup.path("usage.jsonl");
            // The file is missing if the daemon was killed during the rotation.
            let mut file =
                fs::OpenOptions::new().append(true).create(true).open(path).expect("a file to write to");
            file.write_all(b"{\"seq\":7,\"from\":\"2026-").expect("half a line");
            torn += 1;
        }
        daemon = daemon.kill_and_restart();
        assert!(daemon.status().ready, "{}", daemon.log());
        assert!(!daemon.log().contains("cannot be used"), "{}", daemon.log());
        let peek = daemon.client().verify(&Request::new("7").peek()).expect("an answer");
        let charged = u64::from(BURST - peek.limit().expect("a limit").remaining);
        assert!(charged <= sent / u64::from(KEYS) + 1, "{charged} restored, {sent} sent to {KEYS} keys");
        restored = restored.max(charged);
        // The daemon must not write or rotate files while they are read.
        daemon.pause();
        let files = usage_files(daemon.setup.dir.path());
        let is_all = round % FULL_CHECK_INTERVAL == 0;
        let lines = parse_lines(if is_all { &files } else { &files[files.len() - 1..] });
        assert_numbered(&lines, if is_all { 1 } else { lines.first().map_or(1, seq) });
        daemon.resume();
        if !is_all {
            continue;
        }
        let allowed: u64 = sum_counts(&lines).values().sum();
        assert!(allowed <= sent && allowed >= counted, "{allowed} counted, {sent} sent, {counted} before");
        counted = allowed;
    }
    assert!(
        torn > 0 && counted > 0 && restored > 0,
        "nothing was tested: {torn} torn lines, {counted} counted, {restored} restored"
    );
    let trail = daemon.setup.audit_trail();
    assert_numbered(&trail, 1);
    assert!(trail.len() as u64 > 2 * ROUNDS);
}
