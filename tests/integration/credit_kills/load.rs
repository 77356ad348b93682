//! Clients that charge, debit and refund, and record what they were told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use keyward_client::{Debit, Decision, Error, Refund, Request};

use super::history::Change;
use super::limits::{Key, Tenants};
use super::now;
use crate::support::{Daemon, Random};

/// The largest cost for one limit. Overdrafts are larger.
const MAX_COST: usize = 40;

/// When a key is used in a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Never,
    AtFirst,
    Always,
}

pub(super) struct Load<'d> {
    daemon: &'d Daemon,
    tenants: Tenants,
    uses: Vec<Use>,
    is_calm: AtomicBool,
    pub(super) stop: AtomicBool,
}

enum Operation {
    Verify,
    Debit,
    Refund,
}

impl<'d> Load<'d> {
    pub(super) fn new(daemon: &'d Daemon, tenants: &Tenants, random: &mut Random) -> Self {
        let mut one = |_| [Use::Never, Use::AtFirst, Use::Always, Use::Always][random.below(4)];
        let uses = tenants.keys.iter().map(&mut one).collect();
        let (is_calm, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { daemon, tenants: tenants.clone(), uses, is_calm, stop }
    }

    /// Some keys are not used any more.
    pub(super) fn calm_down(&self) {
        self.is_calm.store(true, Ordering::Release);
    }

    fn is_used(&self, key: usize) -> bool {
        match self.uses[key] {
            Use::Never => false,
            Use::AtFirst => !self.is_calm.load(Ordering::Acquire),
            Use::Always => true,
        }
    }

    /// Sends requests until the daemon has ended.
    pub(super) fn run(&self, mut random: Random) -> Vec<Change> {
        let (mut client, mut changes) = (self.daemon.client(), Vec::new());
        while !self.stop.load(Ordering::Acquire) {
            let number = random.below(self.tenants.keys.len());
            if !self.is_used(number) {
                // Perhaps none is.
                if random.below(100) == 0 {
                    thread::sleep(Duration::from_micros(100));
                }
                continue;
            }
            let key = &self.tenants.keys[number];
            let costs: Vec<u32> = key.limits.iter().map(|_| 1 + random.below(MAX_COST) as u32).collect();
            let operation = match random.below(4) {
                0 => Operation::Debit,
                1 => Operation::Refund,
                _ => Operation::Verify,
            };
            let sent = now();
            let answer = match operation {
                Operation::Verify => {
                    let request = Request::new(&key.name).cost(0);
                    client.verify(&self.with_costs(key, &costs, request, Request::cost_of).balances())
                }
                Operation::Debit => {
                    let debit = Debit::new(&key.name, 0);
                    client.debit(&self.with_costs(key, &costs, debit, Debit::cost_of).balances())
                }
                Operation::Refund => {
                    let refund = Refund::new(&key.name, 0);
                    client.refund(&self.with_costs(key, &costs, refund, Refund::cost_of).balances())
                }
            };
            let answered = now();
            let sign = if matches!(operation, Operation::Refund) { -1 } else { 1 };
            match answer {
                Ok(decision) => {
                    self.check(key, &operation, &decision);
                    changes.extend(key.limits.iter().filter_map(|&limit| {
                        let charged = decision.balance(self.tenants.limits[limit].name())?.charged;
                        let amount = sign * i64::from(charged);
                        (amount != 0).then_some(Change { limit, amount, sent, answered: Some(answered) })
                    }));
                }
                Err(Error::Connect { .. }) => break,
                Err(_) => {
                    changes.extend(key.limits.iter().zip(&costs).map(|(&limit, cost)| Change {
                        limit,
                        amount: sign * i64::from(*cost),
                        sent,
                        answered: None,
                    }));
                    break;
                }
            }
        }
        changes
    }

    fn with_costs<R>(
        &self,
        key: &Key,
        costs: &[u32],
        request: R,
        cost_of: fn(R, &'static str, u32) -> R,
    ) -> R {
        let named = key.limits.iter().map(|limit| self.tenants.limits[*limit].name()).zip(costs);
        named.fold(request, |request, (name, cost)| cost_of(request, name, *cost))
    }

    /// An ALLOWED brings no limit below zero, and a debit none below its floor.
    fn check(&self, key: &Key, operation: &Operation, decision: &Decision) {
        let verdict = decision.verdict().name();
        let expected = match operation {
            Operation::Verify => &["ALLOWED", "OUT_OF_CREDIT", "RATE_LIMITED"][..],
            Operation::Debit | Operation::Refund => &["ALLOWED"],
        };
        assert!(expected.contains(&verdict), "{decision:?}");
        for limit in key.limits.iter().map(|limit| &self.tenants.limits[*limit]) {
            let balance = decision.balance(limit.name()).expect("its balance");
            let floor = match operation {
                Operation::Verify => 0,
                Operation::Debit => -limit.overdraft,
                Operation::Refund => continue,
            };
            assert!(balance.charged == 0 || balance.balance >= floor, "{decision:?}");
        }
    }
}
