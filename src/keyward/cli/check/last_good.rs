//! What a start of the daemon would make of the source: a comparison with the last good keys in the state directory. A
//! daemon that uses the directory is not disturbed.

use serde::Serialize;

use super::report::Outcome;
use keyward_daemon::clock::Clock;
use keyward_daemon::config::Config;
use keyward_daemon::reload::Evaluation;
use keyward_daemon::reload::last_good::{Recovered, recover};
use keyward_daemon::server;
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::record::rfc3339;
use keyward_engine::snapshot::{CompareOptions, KeyTable};
use keyward_state::{Acceptance, is_accepted};

/// The last good keys that the source was compared with.
#[derive(Serialize)]
pub(super) struct LastGood {
    /// The snapshot that they were accepted as.
    pub(super) generation: u64,
    /// When they came into force, in UTC.
    pub(super) accepted_at: String,
    /// Where they came from.
    pub(super) source: String,
    /// Whether they would be served if the source were refused; unknown where this user may not read the peppers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usable: Option<bool>,
    /// Whether the next start takes the source all the same, because of `keyward state accept source`.
    pub(super) source_accepted: bool,
}

/// Compares `new`, which was read by `config`, with the last good keys, if there are any.
pub(super) fn compare(
    config: &Config,
    global_policy: Option<&GlobalPolicy>,
    new: &KeyTable,
    outcome: &mut Outcome,
) {
    if !config.keep_snapshot {
        return;
    }
    let source = config.source_file();
    match recover(&config.server.state_dir, &source) {
        Ok(None) => {}
        Ok(Some(recovered)) => {
            let usable = global_policy.map(|global_policy| recovered.retained_hashes(global_policy).current);
            let now = Clock::new().now().unix;
            // Hashes say nothing where the peppers are not known.
            let options = global_policy.map_or(CompareOptions { now, by_key_id: true }, |global_policy| {
                recovered.compare_options(global_policy, now)
            });
            let Recovered { keys: old, stored, .. } = recovered;
            let evaluation = Evaluation::new(&config.reload_policy(), &source.path, new, Some(&old), options);
            outcome.diff = Some(server::diff(&evaluation, stored.generation, old.len()));
            outcome.last_good = Some(LastGood {
                generation: stored.generation,
                accepted_at: rfc3339(stored.accepted_at),
                source: stored.source,
                usable,
                source_accepted: is_accepted(&config.server.state_dir, Acceptance::Source),
            });
        }
        Err(error) => outcome.not_compared = Some(error.to_string()),
    }
}
