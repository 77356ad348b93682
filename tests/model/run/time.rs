//! Steps of the clock, and what the daemon does when a time has come.

use keyward_state::simulation;

use super::{POLL, Run, SAVE_INTERVAL, SECOND};
use crate::reference::Guard;

impl Run<'_> {
    pub(super) fn set_clock(&mut self) {
        let by = self.random.below(20_000) as i64 - 10_000;
        self.note(format!("the system time is set by {by} s"));
        self.time.realtime += by * SECOND;
        simulation::set(self.time);
        self.counts.clock_changes += 1;
    }

    pub(super) fn advance(&mut self) -> Result<(), String> {
        let random = &mut self.random;
        let by = match random.below(5) {
            0 => random.below(1_000_000) as i64,
            1 => random.below(2 * SECOND as u64) as i64,
            2 => random.below(100 * SECOND as u64) as i64,
            3 => random.below(2000 * SECOND as u64) as i64,
            _ => random.below(10_000 * SECOND as u64) as i64,
        };
        self.note(format!("{} s pass", by as f64 / SECOND as f64));
        self.counts.clock_changes += 1;
        self.disk.take_replaced();
        self.time.boottime += by;
        self.time.realtime += by;
        let failed = self.disk.failed();
        simulation::advance(by).map_err(|error| error.to_string())?;
        let now = self.time.boottime;
        let is_crashed = self.disk.is_crashed();
        let replaced = self.disk.take_replaced();
        let saved = self.reference.save(self.time);
        let is_due = now >= self.save_due;
        let is_replaced = replaced.iter().any(|name| name == "balances");
        let has_failed = self.disk.failed() > failed;
        // The name of a file that was replaced may not be durable.
        if is_crashed || (is_replaced && has_failed) {
            self.reference.saved.push(Some(saved));
            self.ledger.may_have_saved(self.time);
            self.save_due = self.save_due.max(if is_due { now + SAVE_INTERVAL } else { 0 });
        } else if is_replaced {
            self.reference.saved = vec![Some(saved)];
            self.ledger.save(self.time);
            self.save_due = now + SAVE_INTERVAL;
            self.is_charged = false;
            self.counts.saves_of_balances += 1;
        } else if is_due && self.is_charged && !has_failed {
            return Err("the balances were not saved".to_owned());
        } else if is_due {
            self.save_due = now + SAVE_INTERVAL;
        }
        if now >= self.polled_at + POLL {
            self.polled_at = now;
            if self.source.version != self.reference.last_read {
                self.polled(is_crashed)?;
            }
        }
        Ok(())
    }

    /// The poll has found another source.
    fn polled(&mut self, is_crashed: bool) -> Result<(), String> {
        let guard = self.guard();
        if is_crashed {
            if guard != Guard::Refuses {
                self.reference.may_have_accepted(&self.source);
            }
            return Ok(());
        }
        self.counts.reloads_by_poll += 1;
        let frame = self.client()?.hello();
        self.client()?.send(&frame)?;
        let generation = self.client()?.receive_welcome()?;
        let is_accepted = generation != self.reference.generation();
        self.note(format!("the poll has found another source, accepted: {is_accepted}"));
        self.reloaded(guard, is_accepted, generation)
    }
}
