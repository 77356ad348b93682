//! Exports with bad rows, and daemons that serve them.

use keyward_admin::message::Withheld;

use super::{Daemon, Export, Row, Setup, row};

/// The optional columns, in the order in which literal lines have them.
const COLUMNS: [&str; 6] = ["owner", "status", "expires_at", "allowed_ips", "limits", "metadata"];

pub(crate) const SET_ASIDE: &str = "[source]\nmax_shrink = 1.0\non_bad_row = 'set-aside'\n";
pub(crate) const APPLY_TAKEAWAYS: &str = "[source]\napply_takeaways_of_refused = true\n";

pub(crate) fn valid(key: impl Into<String>) -> Row {
    row(key).owner("acme")
}

/// A row with a control character in its owner. Its hash and its id are readable.
pub(crate) fn invalid(key: impl Into<String>) -> Row {
    row(key).owner("ac\tme")
}

/// An export of `rows`, after twenty valid rows and a disabled one, so that no export loses all
/// values of `status`.
pub(crate) fn export(rows: impl IntoIterator<Item = Row>) -> Export {
    let others = (0..20).map(|number| valid(format!("other{number}")));
    Export::new(others).columns(COLUMNS).rows([valid("off").status("disabled")]).rows(rows)
}

pub(crate) fn start(config: &str, export: impl Into<String>) -> Daemon {
    let mut setup = Setup::text(export);
    setup.replace_config(config);
    let daemon = setup.start();
    assert!(daemon.status().ready, "{}", daemon.log());
    daemon
}

pub(crate) fn withheld(daemon: &Daemon) -> Withheld {
    daemon.status().withheld.unwrap_or_default()
}
