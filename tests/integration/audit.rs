//! The audit trail, through a real daemon: every event that it promises, who it was, and no key.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use crate::support::{Daemon, Received, Setup, keyward, replace_export, sha256_hex, wait_for};
use keyward_daemon::admin::message::{Command as AdminCommand, Target};
use rustix::process::Signal;
use serde_json::Value;

/// A key that could not be anything else.
const KEY: &str = "acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsEoJpHdG3vbKzT";

fn export(rows: &[(&str, &str)]) -> String {
    let rows = rows.iter().map(|(key, rest)| format!("{},{rest}\n", sha256_hex(key)));
    std::iter::once("key_hash,key_id,owner,status\n".to_owned()).chain(rows).collect()
}

fn lines(directory: &Path) -> Vec<Value> {
    let text = fs::read_to_string(directory.join("audit.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("a whole line")).collect()
}

fn events<'a>(lines: &'a [Value], name: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == name).collect()
}

/// In order, with a time and a number each.
fn assert_in_order(lines: &[Value]) {
    let seqs: Vec<_> = lines.iter().filter_map(|line| line["seq"].as_u64()).collect();
    assert_eq!(seqs, (1..=lines.len() as u64).collect::<Vec<_>>());
    let times: Vec<_> = lines.iter().filter_map(|line| line["time"].as_str()).collect();
    assert!(times.is_sorted() && times.iter().all(|time| time.len() == 24), "{times:?}");
}

/// No key and no hash in anything that the daemon has written.
fn assert_no_key(directory: &Path, keys: &[&str]) {
    for file in fs::read_dir(directory).expect("a directory") {
        let path = file.expect("a file").path();
        let is_ours = path.extension().is_none_or(|extension| extension != "csv" && extension != "new");
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for key in keys.iter().filter(|_| is_ours) {
            let hash = sha256_hex(key);
            assert!(!text.contains(key) && !text.contains(&hash), "{}: {text}", path.display());
            assert!(!text.contains(&hash[..32]), "{}: half of a hash", path.display());
        }
    }
}

#[test]
fn what_changes_answers_is_written_down_and_no_key_is() {
    let rows = [(KEY, "a,acme,active"), ("second-key-of-this-test", "b,acme,active")];
    // As text: where in the export a finding is belongs to what is written down.
    let mut daemon = Setup::text(&export(&rows)).config("[source]\npoll = \"1h\"").start();
    let directory = daemon.setup.dir.path().to_owned();
    let me = |line: &Value| {
        let own = (rustix::process::geteuid().as_raw().into(), std::process::id().into());
        (line["uid"].as_u64(), line["pid"].as_u64()) == (Some(own.0), Some(own.1))
    };

    // Accepted; refused with a key where it does not belong; forced.
    assert!(daemon.publish(&export(&[rows[0], ("third-key", "c,,active")])).accepted);
    let broken = export(&rows[..1]) + KEY + ",d,,active\n" + KEY + ",e,,active\n";
    assert!(!daemon.publish(&broken).accepted);
    replace_export(&daemon.setup.source(), &export(&[]));
    assert!(!daemon.reload().accepted);
    replace_export(&daemon.setup.source(), &export(&rows));
    assert!(daemon.force_reload().accepted);

    let target = |key_id: Option<&str>, owner: Option<&str>| Target {
        key_id: key_id.map(str::to_owned),
        owner: owner.map(str::to_owned),
    };
    let ask = |command: AdminCommand| keyward_daemon::admin::send_command(&daemon.admin_socket(), &command);
    ask(AdminCommand::Revoke(target(Some("a"), None))).expect("revoked");
    ask(AdminCommand::Revoke(target(Some("b"), None))).expect("revoked");
    ask(AdminCommand::Unrevoke(target(Some("a"), None))).expect("taken back");
    ask(AdminCommand::Revoke(target(None, Some("acme")))).expect("revoked");
    ask(AdminCommand::Revoke(target(Some(KEY), None))).expect_err("a key is no id");
    let revoked = [(KEY, "a,acme,revoked"), ("second-key-of-this-test", "b,acme,revoked")];
    assert!(daemon.publish(&export(&revoked)).accepted);
    let before = daemon.status().generation;
    daemon.signal(Signal::HUP);
    // It is in the trail before it is said to have ended.
    wait_for("the signal's reload", || (daemon.status().last_reload?.generation > before).then_some(()));
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_for_exit().success());

    let lines = lines(&directory);
    assert_in_order(&lines);
    assert_eq!(
        (lines[0]["event"].as_str(), lines[1]["event"].as_str()),
        (Some("start"), Some("configuration"))
    );
    assert_eq!(lines.last().expect("a line")["event"], "stop");
    assert_eq!(lines[1]["file"], directory.join("keyward.toml").to_str().expect("UTF-8"));

    let mut reloads = events(&lines, "reload");
    let changed = reloads
        .iter()
        .filter(|line| line["accepted"] == true)
        .map(|line| ["added", "removed", "changed", "revoked"].map(|name| line[name].as_u64().unwrap()));
    let changed: Vec<_> = changed.filter(|counts| *counts != [0; 4]).collect();
    // The last but one: the export is whole again, and it was forced. The last: two keys are revoked.
    assert_eq!(changed, [[2, 0, 0, 0], [1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 2, 2]]);
    // The watch may see a file before the command asks for it, which finds nothing new in it then.
    reloads.retain(|line| line["trigger"] != "change");
    let outcomes: Vec<_> = reloads
        .iter()
        .map(|line| {
            (line["trigger"].as_str().unwrap(), line["accepted"].as_bool().unwrap(), line["reason"].as_str())
        })
        .collect();
    let expected = [
        ("start", true, None),
        ("command", true, None),
        ("command", false, Some("findings")),
        ("command", false, Some("empty")),
        ("command", true, None),
        ("command", true, None),
        ("signal", true, None),
    ];
    assert_eq!(outcomes, expected);
    assert!(reloads[1]["generation"].as_u64() > reloads[0]["generation"].as_u64());
    assert_eq!(reloads[2]["generation"], reloads[1]["generation"], "what is refused changes nothing");
    assert_eq!((reloads[2]["line"].as_u64(), reloads[2]["column"].as_u64()), (Some(3), Some(1)));
    assert_eq!((reloads[2]["findings"].as_u64(), reloads[2].get("added")), (Some(2), None));
    assert_eq!(reloads[4]["force"], true);
    assert!(reloads[1..6].iter().all(|line| me(&line["peers"][0])), "{reloads:?}");
    assert!(reloads[6].get("peers").is_none(), "a signal has no sender");

    let revocations = events(&lines, "revoke");
    assert_eq!(revocations.len(), 3);
    assert_eq!((&revocations[0]["key_id"], &revocations[2]["owner"]), (&"a".into(), &"acme".into()));
    assert_eq!(events(&lines, "unrevoke")[0]["key_id"], "a");
    assert!(revocations.into_iter().chain(events(&lines, "unrevoke")).all(me));
    let agreed = events(&lines, "revocation_agreed");
    assert_eq!(agreed.len(), 2, "the source agrees with b and with acme, and both are kept");
    assert!(events(&lines, "revocation_dropped").is_empty());

    assert_no_key(&directory, &[KEY, "second-key-of-this-test", "third-key"]);
}

#[test]
fn refused_peers_are_written_down_once_however_often_they_come() {
    const TIMES: u64 = 300;
    let own = rustix::process::geteuid().as_raw();
    let mut daemon = Setup::new(&export(&[("a", "a,,active")]))
        .config(&format!("[server]\nallow_uids = [{}]", own + 1))
        .start();
    for _ in 0..TIMES {
        assert!(matches!(daemon.connect().receive(), Received::Error { code: 11, .. }));
    }
    let directory = daemon.setup.dir.path().to_owned();
    wait_for("a line", || (!events(&lines(&directory), "peer_refused").is_empty()).then_some(()));
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_for_exit().success());
    let lines = lines(&directory);
    assert_in_order(&lines);
    let refused = events(&lines, "peer_refused");
    assert!(refused.len() <= 2, "{refused:?}");
    assert_eq!(refused.iter().filter_map(|line| line["count"].as_u64()).sum::<u64>(), TIMES);
    let first = refused[0];
    assert_eq!((&first["socket"], first["uid"].as_u64()), (&"verify".into(), Some(own.into())));
    assert_eq!(first["pid"].as_u64(), Some(std::process::id().into()));
    assert_eq!(first["generation"], 1);
}

#[test]
#[ignore = "needs root, to run as another user: tests/run runs it"]
fn a_user_who_may_not_give_orders_is_written_down() {
    /// Nobody in particular.
    const UID: u32 = 64_321;
    let setup = Setup::new(&export(&[("a", "a,,active")])).config("[server]\nadmin_uids = [12345]");
    fs::set_permissions(setup.dir.path(), PermissionsExt::from_mode(0o755)).expect("open to all");
    let mut daemon = setup.start();
    let binary = daemon.setup.path("keyward");
    fs::copy(keyward().get_program(), &binary).expect("a binary that all may run");
    let mut status = std::process::Command::new(binary);
    let status =
        status.args(["status", "--admin-socket"]).arg(daemon.admin_socket()).uid(UID).output().expect("runs");
    assert!(!status.status.success());
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_for_exit().success());
    let lines = lines(daemon.setup.dir.path());
    let refused = events(&lines, "peer_refused");
    assert_eq!((&refused[0]["socket"], refused[0]["uid"].as_u64()), (&"admin".into(), Some(UID.into())));
    assert!(refused[0]["pid"].is_u64() && refused[0]["count"] == 1);
}

/// The configuration is read again with the source; what is wrong with it is placed, and not repeated.
#[test]
fn a_configuration_that_is_refused_is_written_down() {
    let daemon = Daemon::serving(&export(&[("a", "a,,active")]));
    let config = daemon.setup.path("keyward.toml");
    fs::write(&config, format!("[log]\nlevel = \"{KEY}\"\n")).expect("writes");
    assert!(!daemon.reload().accepted);
    let lines = lines(daemon.setup.dir.path());
    let refused = events(&lines, "configuration")[1];
    assert_eq!((&refused["valid"], refused["line"].as_u64()), (&false.into(), Some(2)));
    assert_eq!(events(&lines, "reload")[1]["reason"], "configuration");
    let trail = fs::read_to_string(daemon.setup.path("audit.jsonl")).expect("a trail");
    assert!(!trail.contains(KEY));
}
