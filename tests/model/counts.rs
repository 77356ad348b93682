//! How often each kind of step has run.

use std::fmt;

use keyward_protocol::Verdict;

macro_rules! counts {
    ($($name:ident)*) => {
        #[derive(Clone, Debug, Default)]
        pub struct Counts {
            $(pub $name: u64,)*
        }

        impl Counts {
            fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counts! {
    seeds
    requests
    allowed
    unknown_key
    revoked
    disabled
    not_yet_valid
    expired
    cost_exceeds_burst
    rate_limited
    not_ready
    unknown_limit
    refunds
    debits
    charges
    lost_connections
    stalled_peers
    exports
    accepted_reloads
    refused_reloads
    reloads_by_poll
    commands
    edits_of_revocations
    clock_changes
    saves_of_balances
    writes_of_last_good_keys
    failing_calls
    starts
    failed_starts
    orderly_restarts
    crashes
    power_cuts
    starts_with_last_good_keys
    starts_without_keys
    starts_with_spent_buckets
}

impl Counts {
    /// Counts an answer by its verdict.
    pub fn answer(&mut self, verdict: Verdict) {
        self.requests += 1;
        let count = match verdict {
            Verdict::Allowed => &mut self.allowed,
            Verdict::UnknownKey => &mut self.unknown_key,
            Verdict::Revoked => &mut self.revoked,
            Verdict::Disabled => &mut self.disabled,
            Verdict::NotYetValid => &mut self.not_yet_valid,
            Verdict::Expired => &mut self.expired,
            Verdict::CostExceedsBurst => &mut self.cost_exceeds_burst,
            Verdict::RateLimited => &mut self.rate_limited,
            Verdict::UnknownLimit => &mut self.unknown_limit,
            Verdict::NotReady => &mut self.not_ready,
            // The reference has refused it.
            _ => return,
        };
        *count += 1;
    }

    /// The names of what has never run.
    pub fn zeros(&self) -> Vec<&'static str> {
        self.named().into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts =
            self.named().into_iter().map(|(name, count)| format!("{count} {}", name.replace('_', " ")));
        f.write_str(&texts.collect::<Vec<_>>().join(", "))
    }
}
