//! Refunds and debits: changes what a request was charged, after the fact (SPEC.md section 5).

use keyward_protocol::{Adjustment, BalancesBuf, Credential, Debit, Refund, Verdict};

use super::decision::{BALANCES, CHANGES, Detail};
use super::detailed_charge::{Amounts, LimitsOf};
use super::{Decision, Superseded, Verifier, credential};
use crate::limiter::{Charge, LimitBalances, Limiter, Outcome};
use crate::now::Now;
use crate::snapshot::Key;

/// [`Limiter::refund`] or [`Limiter::debit`].
type Change = fn(&Limiter, &[Charge], Now, Option<&mut LimitBalances>) -> Outcome;

impl<'s> Verifier<'s> {
    /// Refunds the limits of a key, and passes the decision to `answer`.
    ///
    /// The status of the key and its validity do not matter: the key was in force when the cost was
    /// charged, and a refund by itself admits nothing.
    ///
    /// # Errors
    /// [`Superseded`] if a newer snapshot has taken over the buckets. Nothing was refunded then.
    pub fn refund(&self, refund: &Refund<'_>, answer: impl FnOnce(&Decision<'_>)) -> Result<(), Superseded> {
        self.adjust(refund, Limiter::refund, answer)
    }

    /// Charges the limits of a key what a response has cost, down to their floors, and passes the
    /// decision to `answer`.
    ///
    /// The status of the key and its validity do not matter: a response of a key that has been
    /// revoked since has cost the same.
    ///
    /// # Errors
    /// [`Superseded`] if a newer snapshot has taken over the buckets. Nothing was charged then.
    pub fn debit(&self, debit: &Debit<'_>, answer: impl FnOnce(&Decision<'_>)) -> Result<(), Superseded> {
        self.adjust(debit, Limiter::debit, answer)
    }

    fn adjust<const KIND: u8>(
        &self,
        adjustment: &Adjustment<'_, KIND>,
        change: Change,
        answer: impl FnOnce(&Decision<'_>),
    ) -> Result<(), Superseded> {
        let Adjustment { request_id, cost, credential, costs, want_balances } = *adjustment;
        let generation = self.view.map_or(0, |view| view.generation);
        let without_key = |verdict| Decision::without_key(request_id, verdict, generation);
        let key = match self.find(credential) {
            Ok(key) => key,
            Err(verdict) => {
                answer(&without_key(verdict));
                return Ok(());
            }
        };
        let mut limits = LimitsOf::new(key, cost);
        let is_known = limits.set_costs(costs, self.global_policy).is_ok();
        let mut balances = LimitBalances::new();
        let mut decision = Decision { key: Some(key), ..without_key(Verdict::Allowed) };
        if is_known {
            let outcome = change(self.limiter, limits.charges(), self.now, Some(&mut balances));
            decision.limit_report = outcome.report().ok_or(Superseded)?;
            // The cost that the request was charged on every limit that it did not name.
            decision.cost = cost;
        } else {
            decision.verdict = Verdict::UnknownLimit;
            self.peek(&mut limits, &mut balances)?;
        }
        let encoded = want_balances.then(|| Amounts::new(key, &mut balances).encoded());
        let detail = Detail {
            balances: encoded.as_ref().map(BalancesBuf::as_balances),
            changes: is_known.then_some(&balances[..]),
        };
        let extras = if want_balances { BALANCES | CHANGES } else { CHANGES };
        answer(&Decision { detail: Some(&detail), extras, ..decision });
        Ok(())
    }

    /// Looks up one key, without the stages of a batch.
    fn find(&self, credential: Credential<'_>) -> Result<Key<'s>, Verdict> {
        let snapshot = self.view.ok_or(Verdict::NotReady)?.snapshot;
        if self.is_stale(snapshot) {
            return Err(Verdict::StaleSnapshot);
        }
        let found = snapshot.find(&self.digest(credential)?);
        let found = match self.global_policy.previous_pepper() {
            None => found,
            Some(previous) => credential::find_with_either_pepper(snapshot, found, credential, previous),
        };
        found.ok_or(Verdict::UnknownKey)
    }
}
