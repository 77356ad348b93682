//! Compares the source with the last good keys in the state directory, as a start of the daemon
//! would. A daemon that uses the directory is not disturbed.

use super::outcome::{CheckOutcome, LastGood, NotCompared};
use keyward_daemon::clock::Clock;
use keyward_daemon::config::Config;
use keyward_daemon::reload::last_good::{Recovered, recover, was_accepted};
use keyward_daemon::reload::{Evaluation, FileState};
use keyward_daemon::revocation::LoadedList;
use keyward_daemon::server;
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::record::rfc3339;
use keyward_engine::snapshot::{CompareOptions, KeyTable};
use keyward_state::{Acceptance, is_accepted};

/// Compares `new`, read from the file in the state `state`, with the last good keys, if there are
/// any. `global_policy` is `None` if this user may not read the peppers, and `revocations` if it
/// may not read their list.
pub(super) fn compare(
    config: &Config,
    global_policy: Option<&GlobalPolicy>,
    (new, state): (&KeyTable, &FileState),
    revocations: Option<&LoadedList>,
    outcome: &mut CheckOutcome,
) {
    if !config.keep_snapshot {
        return;
    }
    let source = config.source_file();
    let was_accepted = global_policy
        .is_some_and(|global_policy| was_accepted(&config.server.state_dir, state, &source, global_policy));
    match recover(&config.server.state_dir, &source) {
        Ok(None) => {}
        Ok(Some(recovered)) => {
            let usable = global_policy.map(|global_policy| recovered.retained_hashes(global_policy).current);
            let now = Clock::new().now().unix;
            // Without the peppers, hashes cannot be compared.
            let options = global_policy.map_or(CompareOptions { now, by_key_id: true }, |global_policy| {
                recovered.compare_options(global_policy, now)
            });
            let (policy, path) = (config.reload_policy(), &source.path);
            let mut evaluation = Evaluation::new(&policy, path, new, &recovered.keys, options, revocations);
            let peppers = global_policy
                .map_or(Ok(()), |global_policy| recovered.guard_peppers(global_policy, path, new, now));
            let earlier = recovered.guard_earlier_source(path, &evaluation.diff, state);
            let refused = earlier.err().or(evaluation.refused).or(peppers.err());
            evaluation.refused = refused.filter(|_| !was_accepted);
            let Recovered { keys: old, stored, superseded, .. } = recovered;
            outcome.diff = Some(server::diff(&evaluation, stored.generation, old.len()));
            outcome.last_good = Some(LastGood {
                generation: stored.generation,
                accepted_at: rfc3339(stored.accepted_at),
                source: stored.source,
                usable,
                not_served: superseded.map(|superseded| superseded.error.to_string()),
                source_accepted: is_accepted(&config.server.state_dir, Acceptance::Source),
            });
        }
        Err(error) => {
            // This user may be another than that of the daemon.
            let is_refused = error.prevents_comparison() && !error.is_permission_denied();
            let is_accepted = is_accepted(&config.server.state_dir, Acceptance::Source);
            outcome.not_compared = Some(NotCompared {
                why: error.to_string(),
                start_refuses: is_refused && !is_accepted && !was_accepted,
            });
        }
    }
}
