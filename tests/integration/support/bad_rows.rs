//! Exports with rows that cannot be understood, and daemons that serve them.

use std::fs;

use keyward_daemon::admin::message::Withheld;

use super::{Daemon, Setup, sha256_hex};

pub(crate) const HEADER: &str = "key_hash,key_id,owner,status,expires_at,allowed_ips,limits,metadata\n";
pub(crate) const SET_ASIDE: &str = "[source]\nmax_shrink = 1.0\non_bad_row = 'set-aside'\n";
pub(crate) const TAKE_AWAY: &str = "[source]\napply_takeaways_of_refused = true\n";

/// The row of key `id`; `rest` follows the id.
pub(crate) fn row(id: &str, rest: &str) -> String {
    format!("{},{id},{rest}\n", sha256_hex(id))
}

pub(crate) fn good(id: &str) -> String {
    row(id, "acme,,,,,")
}

/// Twenty good rows, one that is disabled, so that no status is missed, and those that are given.
pub(crate) fn export(rows: &[String]) -> String {
    let others: String = (0..20).map(|number| good(&format!("other{number}"))).collect();
    format!("{HEADER}{others}{}{}", row("off", "acme,disabled,,,,"), rows.concat())
}

pub(crate) fn start(config: &str, export: &str) -> Daemon {
    let mut setup = Setup::text(export);
    setup.replace_config(config);
    let daemon = setup.start();
    assert!(daemon.status().ready, "{}", daemon.log());
    daemon
}

pub(crate) fn withheld(daemon: &Daemon) -> Withheld {
    daemon.status().withheld.unwrap_or_default()
}

pub(crate) fn reload_events(daemon: &Daemon) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(daemon.setup.path("audit.jsonl")).expect("a trail");
    let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    events.filter(|line| line["event"] == "reload").collect()
}
