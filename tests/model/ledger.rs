//! What each bucket has admitted, whatever the [reference](crate::reference) believes.
//!
//! In no period may a bucket admit more than its burst, what the period refills, and what was
//! refunded in it. A crash may forget what was admitted since the last save, and nothing else. This
//! is checked for every period that ends with an answer, from the answers and the times of saves
//! alone: the ledger knows no balances.

use std::collections::BTreeMap;

use keyward_state::simulation::Time;

use crate::keys::TICKS;
use crate::reference::BucketId;

/// A charge, or a refund with a negative amount.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: i128,
    ticks: i128,
}

/// A save that the next daemon may begin with.
#[derive(Clone, Debug)]
struct Save {
    time: Time,
    at: i128,
    /// The number of entries of each bucket.
    lengths: BTreeMap<BucketId, usize>,
}

pub struct Ledger {
    entries: BTreeMap<BucketId, Vec<Entry>>,
    /// The last complete save, and those after it that may be on disk. `None`: there is no file.
    saves: Vec<Option<Save>>,
    /// Ticks of the ledger's time at the beginning of the boot. That time goes on over a reboot.
    boot_at: i128,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), saves: vec![None], boot_at: 0 }
    }
}

impl Ledger {
    fn at(&self, time: Time) -> i128 {
        self.boot_at + i128::from(time.boottime) * TICKS
    }

    /// A request was allowed that costs `units` of `period` ticks each.
    pub fn charge(
        &mut self,
        id: BucketId,
        (period, burst): (i128, u32),
        units: u32,
        time: Time,
    ) -> Result<(), String> {
        let at = self.at(time);
        let entries = self.entries.entry(id.clone()).or_default();
        entries.push(Entry { at, ticks: period * i128::from(units) });
        let mut admitted = 0;
        for entry in entries.iter().rev() {
            admitted += entry.ticks;
            let most = period * i128::from(burst) + at - entry.at;
            if entry.ticks > 0 && admitted > most {
                let seconds = (at - entry.at) as f64 / (1e9 * TICKS as f64);
                let units = |ticks: i128| ticks as f64 / period as f64;
                return Err(format!(
                    "{id:?} has admitted {} units in {seconds} s, and not at most {}",
                    units(admitted),
                    units(most)
                ));
            }
        }
        Ok(())
    }

    /// `units` were refunded, or may have been.
    pub fn refund(&mut self, id: BucketId, period: i128, units: u32, time: Time) {
        let at = self.at(time);
        self.entries.entry(id).or_default().push(Entry { at, ticks: -period * i128::from(units) });
    }

    /// The balances were saved completely.
    pub fn save(&mut self, time: Time) {
        self.saves.clear();
        self.may_have_saved(time);
    }

    /// The balances may have been saved.
    pub fn may_have_saved(&mut self, time: Time) {
        let lengths = self.entries.iter().map(|(id, entries)| (id.clone(), entries.len())).collect();
        self.saves.push(Some(Save { time, at: self.at(time), lengths }));
    }

    /// A daemon begins. It knows what the last complete save has, and possibly more.
    pub fn start(&mut self, time: Time) {
        let complete = self.saves.first().cloned().flatten();
        for (id, entries) in &mut self.entries {
            let length = complete.as_ref().and_then(|save| save.lengths.get(id));
            let later = entries.split_off(length.copied().unwrap_or_default());
            // A later save may have the refunds.
            entries.extend(later.into_iter().filter(|entry| entry.ticks < 0));
        }
        let now = |save: &Save| {
            let is_same_boot = save.time.boot_id == time.boot_id;
            let elapsed = if is_same_boot {
                time.boottime - save.time.boottime
            } else {
                time.realtime - save.time.realtime
            };
            save.at + i128::from(elapsed.max(0)) * TICKS
        };
        let now = self.saves.iter().flatten().map(now).max().unwrap_or_default();
        self.boot_at = now - i128::from(time.boottime) * TICKS;
    }
}
