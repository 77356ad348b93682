//! The audit trail of a running daemon: it has every event, names the peer, and contains no key.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::support::{
    Daemon, Export, Received, Row, Setup, key_target, keyward, line, owner_target, replace_export, row, run,
    sha256_hex, wait_until,
};
use keyward_admin::message::Command as AdminCommand;
use rustix::process::Signal;
use serde_json::Value;

/// A raw key that does not resemble anything else in a log.
const KEY: &str = "acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsEoJpHdG3vbKzT";
const SECOND_KEY: &str = "second-key-of-this-test";

fn events<'a>(trail: &'a [Value], name: &str) -> Vec<&'a Value> {
    trail.iter().filter(|event| event["event"] == name).collect()
}

/// Each event has a time and a sequence number, in ascending order.
fn assert_in_order(trail: &[Value]) {
    let seqs: Vec<_> = trail.iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert_eq!(seqs, (1..=trail.len() as u64).collect::<Vec<_>>());
    let times: Vec<_> = trail.iter().filter_map(|event| event["time"].as_str()).collect();
    assert!(times.is_sorted() && times.iter().all(|time| time.len() == 24), "{times:?}");
}

/// No file that the daemon has written contains a key or its hash.
fn assert_no_key(directory: &Path, keys: &[&str]) {
    for file in fs::read_dir(directory).expect("a directory") {
        let path = file.expect("a file").path();
        if path.extension().is_some_and(|extension| extension == "csv" || extension == "new") {
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for key in keys {
            let half_hash = &sha256_hex(key)[..32];
            assert!(!text.contains(key) && !text.contains(half_hash), "{}: {text}", path.display());
        }
    }
}

/// The events of every change, in order: accepted, refused and forced reloads, a signal,
/// revocations, and their confirmation by the source.
#[test]
fn changes_are_recorded_with_their_peers_and_without_keys() {
    let of_acme = |key: &str, id: &str| row(key).id(id).owner("acme").status("active");
    let rows = || [of_acme(KEY, "a"), of_acme(SECOND_KEY, "b")];
    // A text export, because a finding is recorded with its line and column.
    let mut daemon = Setup::text(Export::new(rows())).config("[source]\npoll = \"1h\"").start();
    let is_own = |event: &Value| {
        event["uid"] == rustix::process::geteuid().as_raw() && event["pid"] == std::process::id()
    };

    // Accepted; refused because of keys in place of their hashes; refused because empty; forced.
    let third = row("third-key").id("c").status("active");
    assert!(daemon.publish(Export::new([of_acme(KEY, "a"), third])).accepted);
    let keys_as_hashes = ["d", "e"].map(|id| line(format!("{KEY},{id},,active")));
    assert!(!daemon.publish(Export::new([of_acme(KEY, "a")]).rows(keys_as_hashes)).accepted);
    replace_export(&daemon.setup.source(), Export::new([]).columns(["owner", "status"]));
    assert!(!daemon.reload().accepted);
    replace_export(&daemon.setup.source(), Export::new(rows()));
    assert!(daemon.force_reload().accepted);

    daemon.revoke(key_target("a"));
    daemon.revoke(key_target("b"));
    daemon.unrevoke(key_target("a"));
    daemon.revoke(owner_target("acme"));
    daemon.send_command(&AdminCommand::Revoke(key_target(KEY))).expect_err("a key is not an id");
    assert!(daemon.publish(Export::new(rows().map(|row: Row| row.status("revoked")))).accepted);
    let before = daemon.status().generation;
    daemon.signal(Signal::HUP);
    // A reload is recorded before the status shows it.
    wait_until("the reload of the signal", || {
        daemon.status().last_reload.is_some_and(|reload| reload.generation > before)
    });
    daemon.stop();

    let trail = daemon.setup.audit_trail();
    assert_in_order(&trail);
    assert_eq!((&trail[0]["event"], &trail[1]["event"]), (&"start".into(), &"configuration".into()));
    assert_eq!(trail.last().expect("an event")["event"], "stop");
    assert_eq!(trail[1]["file"], daemon.setup.path("keyward.toml").to_str().expect("UTF-8"));

    let mut reloads = events(&trail, "reload");
    let changes: Vec<_> = reloads
        .iter()
        .filter(|event| event["accepted"] == true)
        .map(|event| ["added", "removed", "changed", "revoked"].map(|name| event[name].as_u64().unwrap()))
        .filter(|counts| *counts != [0; 4])
        .collect();
    // The start, the first accepted export, the forced one, and the one with two revoked keys.
    assert_eq!(changes, [[2, 0, 0, 0], [1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 2, 2]]);
    // The watch may reload a file before the command does, which then finds nothing new.
    reloads.retain(|event| event["trigger"] != "change");
    let outcomes: Vec<_> = reloads
        .iter()
        .map(|event| {
            let accepted = event["accepted"].as_bool().unwrap();
            (event["trigger"].as_str().unwrap(), accepted, event["reason"].as_str())
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
    assert_eq!(reloads[2]["generation"], reloads[1]["generation"], "a refused reload changes nothing");
    assert_eq!((reloads[2]["line"].as_u64(), reloads[2]["column"].as_u64()), (Some(3), Some(1)));
    assert_eq!((reloads[2]["findings"].as_u64(), reloads[2].get("added")), (Some(2), None));
    assert_eq!(reloads[4]["force"], true);
    assert!(reloads[1..6].iter().all(|event| is_own(&event["peers"][0])), "{reloads:?}");
    assert!(reloads[6].get("peers").is_none(), "a signal has no peer");

    let revocations = events(&trail, "revoke");
    assert_eq!(revocations.len(), 3);
    assert_eq!((&revocations[0]["key_id"], &revocations[2]["owner"]), (&"a".into(), &"acme".into()));
    assert_eq!(events(&trail, "unrevoke")[0]["key_id"], "a");
    assert!(revocations.into_iter().chain(events(&trail, "unrevoke")).all(is_own));
    let confirmed = events(&trail, "revocation_agreed");
    assert_eq!(confirmed.len(), 2, "the source confirms the revocations of b and of acme");
    assert!(events(&trail, "revocation_dropped").is_empty());

    assert_no_key(daemon.setup.dir.path(), &[KEY, SECOND_KEY, "third-key"]);
}

#[test]
fn repeated_refusals_of_a_peer_are_recorded_together() {
    const TIMES: u64 = 300;
    let uid = rustix::process::geteuid().as_raw();
    let config = format!("[server]\nallow_uids = [{}]", uid + 1);
    let mut daemon = Setup::new(Export::of(["a"])).config(&config).start();
    for _ in 0..TIMES {
        assert!(matches!(daemon.connect().receive(), Received::Error { code: 11, .. }));
    }
    wait_until("the event", || !daemon.setup.audit_events("peer_refused").is_empty());
    daemon.stop();
    assert_in_order(&daemon.setup.audit_trail());
    let refused = daemon.setup.audit_events("peer_refused");
    assert!(refused.len() <= 2, "{refused:?}");
    assert_eq!(refused.iter().filter_map(|event| event["count"].as_u64()).sum::<u64>(), TIMES);
    let first = &refused[0];
    assert_eq!((&first["socket"], first["uid"].as_u64()), (&"verify".into(), Some(uid.into())));
    assert_eq!(first["pid"].as_u64(), Some(std::process::id().into()));
    assert_eq!(first["generation"], 1);
}

#[test]
#[ignore = "needs root, to run as another user: tests/run runs it"]
fn refused_admin_peer_is_recorded() {
    /// Neither root nor in `admin_uids`.
    const UID: u32 = 64_321;
    let setup = Setup::new(Export::of(["a"])).config("[server]\nadmin_uids = [12345]");
    fs::set_permissions(setup.dir.path(), PermissionsExt::from_mode(0o755)).expect("open to all");
    let mut daemon = setup.start();
    let binary = daemon.setup.path("keyward");
    fs::copy(keyward().get_program(), &binary).expect("a binary that all users may run");
    let mut status = Command::new(binary);
    status.args(["status", "--admin-socket"]).arg(daemon.admin_socket()).uid(UID);
    assert_ne!(run(&mut status).code, Some(0));
    daemon.stop();
    let refused = &daemon.setup.audit_events("peer_refused")[0];
    assert_eq!((&refused["socket"], refused["uid"].as_u64()), (&"admin".into(), Some(UID.into())));
    assert!(refused["pid"].is_u64() && refused["count"] == 1);
}

/// A reload reads the configuration again. The event has the line of the error, but not its text.
#[test]
fn refused_configuration_is_recorded_without_its_text() {
    let daemon = Daemon::serving(Export::of(["a"]));
    let config = daemon.setup.path("keyward.toml");
    fs::write(&config, format!("[log]\nlevel = \"{KEY}\"\n")).expect("writes");
    assert!(!daemon.reload().accepted);
    let refused = &daemon.setup.audit_events("configuration")[1];
    assert_eq!((&refused["valid"], refused["line"].as_u64()), (&false.into(), Some(2)));
    assert_eq!(daemon.setup.audit_events("reload")[1]["reason"], "configuration");
    let trail = fs::read_to_string(daemon.setup.path("audit.jsonl")).expect("a trail");
    assert!(!trail.contains(KEY));
}
