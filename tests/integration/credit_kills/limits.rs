//! The keys that are charged, their limits, and what is known of each limit.

use std::time::{SystemTime, UNIX_EPOCH};

use keyward_client::Request;

use crate::support::{Daemon, Random, Row, row};

/// What is granted first to the limits of each tenant: so little that it is spent soon, or so much that
/// it is never spent.
const GRANTS: [i64; 4] = [10_000, 50_000, 1_000_000, 1 << 36];

/// Later grants, in percent of the first.
const SMALLEST_FACTOR: i64 = 50;
const LARGEST_FACTOR: i64 = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Credits,
    CreditsPerOwner,
    Week,
}

/// A limit with a balance of its own.
#[derive(Clone, Debug)]
pub(super) struct Limit {
    kind: Kind,
    pub(super) label: String,
    first_grant: i64,
    granted: i64,
    pub(super) largest_grant: i64,
    pub(super) overdraft: i64,
    /// What was spent at the last start.
    pub(super) spent: i64,
    /// What was charged since the beginning, less what was refunded or may have been; and how much of
    /// it the last saves before the kills need not contain.
    pub(super) charged: i64,
    pub(super) unsaved: i64,
}

impl Limit {
    /// Its name in an export and in answers.
    pub(super) fn name(&self) -> &'static str {
        if self.kind == Kind::Week { "weekly" } else { "credits" }
    }

    fn text(&self) -> String {
        let Self { granted, overdraft, .. } = self;
        match self.kind {
            Kind::Credits => format!("credits={granted} overdraft {overdraft}"),
            Kind::CreditsPerOwner => format!("credits={granted} overdraft {overdraft} per owner"),
            Kind::Week => format!("weekly={granted}/week from {} overdraft {overdraft}", distant_weekday()),
        }
    }
}

/// The weekday in three days: no window ends during a test.
fn distant_weekday() -> &'static str {
    const FROM_THE_EPOCH: [&str; 7] =
        ["thursday", "friday", "saturday", "sunday", "monday", "tuesday", "wednesday"];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    FROM_THE_EPOCH[(now / 86_400 + 3) as usize % 7]
}

/// A key, its owner, and the numbers of its limits.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) name: String,
    owner: String,
    pub(super) limits: Vec<usize>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Tenants {
    pub(super) keys: Vec<Key>,
    pub(super) limits: Vec<Limit>,
}

impl Tenants {
    pub(super) fn new() -> Self {
        let mut tenants = Self::default();
        for (number, granted) in GRANTS.into_iter().enumerate() {
            let owner = format!("tenant {number}");
            let mut limit = |kind: Kind, overdraft: i64| {
                let label = format!("limit {} of {owner} ({kind:?})", tenants.limits.len());
                let (first_grant, largest_grant) = (granted, granted);
                let (spent, charged, unsaved) = (0, 0, 0);
                tenants.limits.push(Limit {
                    kind,
                    label,
                    first_grant,
                    granted,
                    largest_grant,
                    overdraft,
                    spent,
                    charged,
                    unsaved,
                });
                tenants.limits.len() - 1
            };
            let shared = limit(Kind::CreditsPerOwner, 500);
            let keys = [
                ("credits", vec![limit(Kind::Credits, 0)]),
                ("both", vec![limit(Kind::Credits, 300), limit(Kind::Week, 0)]),
                ("shares a", vec![shared]),
                ("shares b", vec![shared, limit(Kind::Week, 400)]),
            ];
            for (what, limits) in keys {
                tenants.keys.push(Key { name: format!("{what} of {owner}"), owner: owner.clone(), limits });
            }
        }
        tenants
    }

    pub(super) fn rows(&self) -> Vec<Row> {
        let texts =
            |key: &Key| -> Vec<_> { key.limits.iter().map(|limit| self.limits[*limit].text()).collect() };
        self.keys.iter().map(|key| row(&key.name).owner(&key.owner).limits(texts(key).join(";"))).collect()
    }

    /// Makes the grants larger or smaller.
    pub(super) fn change_grants(&mut self, random: &mut Random) {
        for limit in &mut self.limits {
            let percent = SMALLEST_FACTOR + random.below((LARGEST_FACTOR - SMALLEST_FACTOR) as usize) as i64;
            limit.granted = limit.first_grant * percent / 100;
            limit.largest_grant = limit.largest_grant.max(limit.granted);
        }
    }

    /// What is spent of each limit. The grants are those that were published last.
    pub(super) fn spent(&self, daemon: &Daemon) -> Vec<i64> {
        let mut client = daemon.client();
        let mut spent = vec![0; self.limits.len()];
        for key in &self.keys {
            let peek = client.verify(&Request::new(&key.name).peek().balances()).expect("an answer");
            assert!(peek.is_allowed(), "{peek:?}: {}", daemon.log());
            for limit in &key.limits {
                let balance = peek.balance(self.limits[*limit].name()).expect("its balance");
                assert_eq!(balance.limit as i64, self.limits[*limit].granted, "{peek:?}");
                spent[*limit] = balance.limit as i64 - balance.balance;
            }
        }
        spent
    }

    pub(super) fn assert_spent(&self, daemon: &Daemon) {
        let expected: Vec<_> = self.limits.iter().map(|limit| limit.spent).collect();
        assert_eq!(self.spent(daemon), expected);
    }
}

/// The limit of a key that is charged once.
pub(super) fn limit_of_idle_key() -> &'static str {
    "1000 credits"
}
