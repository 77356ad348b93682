//! How often each kind of step has run.

use std::fmt;

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
}

impl Counts {
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
