//! The reference: what a daemon must answer, and what may be left after a crash.
//!
//! It consists of plain maps and exact arithmetic, and shares no code with the engine. Where a crash
//! or a lost connection leaves several outcomes possible, it holds all of them, and what the daemon
//! answers next decides among them.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use keyward_protocol::{Answer, Verdict};

use crate::keys::{ANCHOR, Content, Key, Row, Rows, Source, Status, TICKS, Universe};

/// Generations from here on are taken from the system time.
const FROM_SYSTEM_TIME: u64 = 1 << 40;

/// The target of a revocation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Key(String),
    Owner(String),
}

/// The keys in force.
#[derive(Clone, Debug)]
pub struct Served {
    /// The generation in force, which a revocation moves.
    pub generation: u64,
    pub rows: Rc<Rows>,
}

/// The record of the source that was accepted last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub generation: u64,
    pub version: u64,
    /// Whether it took access away from keys that are stored.
    pub takes_away: bool,
}

/// The last good keys on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub generation: u64,
    pub version: u64,
    pub rows: Rc<Rows>,
}

/// What may be on disk.
pub type OnDisk = (Option<Accepted>, Option<Stored>);

/// The balances that a daemon has saved: ticks until each bucket is full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    pub at: keyward_state::simulation::Time,
    pub debts: BTreeMap<BucketId, BTreeSet<i128>>,
}

/// A bucket: the key id and the name of the limit.
pub type BucketId = (String, &'static str);

pub struct Reference {
    pub served: Option<Served>,
    /// The largest generation that the daemons of this directory have used, as far as is known.
    pub last_generation: u64,
    /// As `last_generation`, of those that the next daemon must know of.
    pub reserved_generation: u64,
    /// Whether the next daemon must know of the generations that this one is using.
    is_reserved: bool,
    /// For each generation of this daemon and each key, the verdict of its answers, as far as it
    /// depends on neither time nor balances.
    verdicts: BTreeMap<(u64, Option<usize>), Option<Verdict>>,
    pub revoked: BTreeSet<Target>,
    /// Targets that may or may not be on the list of the next daemon.
    pub uncertain: BTreeSet<Target>,
    /// When each bucket is full, in ticks of the boot's clock: every possible value. A bucket that is
    /// missing is full.
    pub buckets: BTreeMap<BucketId, BTreeSet<i128>>,
    /// What the file with balances may contain.
    pub saved: Vec<Option<Saved>>,
    pub on_disk: Vec<OnDisk>,
    /// Accepted keys that may have been stored since.
    pub unstored: Vec<Stored>,
    /// The version of the source that was read last; 0: there was none.
    pub last_read: u64,
}

/// Whether a source is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    Accepts,
    Refuses,
    /// It depends on what is on disk.
    Either,
}

/// The outcome of a start.
#[derive(Clone, Debug)]
pub enum Start {
    Source,
    LastGood(Stored),
    NotReady,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Verify,
    Refund,
    Debit,
}

/// A request to a key.
#[derive(Clone, Debug)]
pub struct Request {
    /// `None`: an unknown key.
    pub key: Option<usize>,
    pub is_raw: bool,
    pub kind: Kind,
    pub cost: u32,
    /// The cost of a limit with this name.
    pub cost_of: Option<(&'static str, u32)>,
}

impl Request {
    pub fn peek(key: Option<usize>) -> Self {
        Self { key, is_raw: false, kind: Kind::Verify, cost: 0, cost_of: None }
    }

    /// What the limit `name` is charged, debited or refunded.
    fn amount(&self, name: &str) -> u32 {
        self.cost_of.filter(|(named, _)| *named == name).map_or(self.cost, |(_, cost)| cost)
    }
}

/// One possible outcome of a request.
#[derive(Clone, Debug)]
struct Outcome {
    verdict: Verdict,
    limit: Option<Limit>,
    /// The buckets of the key afterwards.
    after: Vec<(BucketId, i128)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Limit {
    name: &'static str,
    burst: u32,
    remaining: u32,
    retry_after_ms: u32,
    reset_ms: u32,
}

/// The times that an answer depends on.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub ticks: i128,
    pub unix: i64,
}

/// Whether a source that was accepted after `stored` has taken access away.
fn takes_away_since(accepted: Option<Accepted>, stored: Option<&Stored>) -> bool {
    let generation = stored.map_or(0, |stored| stored.generation);
    accepted.is_some_and(|accepted| accepted.takes_away && accepted.generation > generation)
}

/// Whether a key of `old` may do less by `new`: all possible values.
fn takes_away(old: &Rows, new: &Rows) -> &'static [bool] {
    // The anchor's owner is another one.
    if old.marker != new.marker && old.of(ANCHOR).is_some() && new.of(ANCHOR).is_some() {
        return &[true];
    }
    let is_same = |before: &Row, after: &Row| match (before.status, after.status) {
        (Status::SetAside, Status::SetAside) => true,
        _ => before == after,
    };
    if old.rows.iter().any(|row| !new.of(row.key).is_some_and(|after| is_same(row, after))) {
        &[true]
    } else if old.has_limits == new.has_limits {
        &[false]
    } else {
        // It depends on whether any of the keys have limits.
        &[false, true]
    }
}

/// A record of which it is known that it was written before `stored`.
fn recorded_before(accepted: Accepted, stored: &Stored) -> Accepted {
    Accepted { generation: accepted.generation.min(stored.generation), ..accepted }
}

impl Default for Reference {
    fn default() -> Self {
        Self {
            served: None,
            last_generation: 0,
            reserved_generation: 0,
            is_reserved: true,
            verdicts: BTreeMap::new(),
            revoked: BTreeSet::new(),
            uncertain: BTreeSet::new(),
            buckets: BTreeMap::new(),
            saved: vec![None],
            on_disk: vec![(None, None)],
            unstored: Vec::new(),
            last_read: 0,
        }
    }
}

impl Reference {
    pub fn generation(&self) -> u64 {
        self.served.as_ref().map_or(0, |served| served.generation)
    }

    /// The number of rows of `target` in force, and of those that are revoked.
    pub fn rows_of(&self, universe: &Universe, target: &Target) -> (usize, usize) {
        let Some(served) = &self.served else { return (0, 0) };
        let is_of = |row: &&Row| match target {
            Target::Key(id) => universe.keys[row.key].id == *id,
            Target::Owner(owner) => universe.owner(&served.rows, row.key) == owner,
        };
        let rows: Vec<_> = served.rows.rows.iter().filter(is_of).collect();
        let revoked =
            |row: &&&Row| row.status == Status::Revoked || self.is_revoked(universe, &served.rows, row.key);
        (rows.len(), rows.iter().filter(revoked).count())
    }

    fn is_revoked(&self, universe: &Universe, rows: &Rows, key: usize) -> bool {
        let owner = universe.owner(rows, key).to_owned();
        self.revoked.contains(&Target::Key(universe.keys[key].id.clone()))
            || self.revoked.contains(&Target::Owner(owner))
    }

    /// The possible outcomes of a request.
    fn outcomes(&self, universe: &Universe, request: &Request, now: Now) -> Vec<Outcome> {
        let denied = |verdict| vec![Outcome { verdict, limit: None, after: Vec::new() }];
        let Some(served) = &self.served else { return denied(Verdict::NotReady) };
        let row = request.key.and_then(|key| served.rows.of(key));
        let Some(row) = row else { return denied(Verdict::UnknownKey) };
        if request.kind == Kind::Verify {
            let is_revoked =
                row.status == Status::Revoked || self.is_revoked(universe, &served.rows, row.key);
            let denial = match row.status {
                _ if is_revoked => Some(Verdict::Revoked),
                Status::Disabled | Status::SetAside => Some(Verdict::Disabled),
                _ if row.not_before.is_some_and(|begins| now.unix < begins.into()) => {
                    Some(Verdict::NotYetValid)
                }
                _ if row.expires_at.is_some_and(|expires| now.unix >= expires.into()) => {
                    Some(Verdict::Expired)
                }
                _ => None,
            };
            if let Some(verdict) = denial {
                return denied(verdict);
            }
        }
        if request.cost_of.is_some_and(|(name, _)| !universe.has_limit(&served.rows, name)) {
            return denied(Verdict::UnknownLimit);
        }
        let key = &universe.keys[row.key];
        let limits = universe.limits(&served.rows, row);
        let mut states: Vec<Vec<i128>> = vec![Vec::new()];
        for (name, ..) in limits {
            let full = BTreeSet::from([0]);
            let possible = self.buckets.get(&(key.id.clone(), *name)).unwrap_or(&full);
            let extend = |state: &Vec<i128>| {
                let extended = |full_at: &i128| state.iter().copied().chain([*full_at]).collect();
                possible.iter().map(extended).collect::<Vec<_>>()
            };
            states = states.iter().flat_map(extend).collect();
        }
        states.iter().map(|state| charge(key, limits, state, request, now)).collect()
    }

    /// The buckets that a request is about, with their periods, their bursts and the amounts.
    pub fn buckets_of(&self, universe: &Universe, request: &Request) -> Vec<(BucketId, (i128, u32), u32)> {
        let served = self.served.as_ref();
        let Some((rows, row)) = served.and_then(|served| Some((&served.rows, served.rows.of(request.key?)?)))
        else {
            return Vec::new();
        };
        let id = &universe.keys[row.key].id;
        let bucket = |(name, period, burst): &(&'static str, _, _)| {
            ((id.clone(), *name), (*period, *burst), request.amount(name))
        };
        universe.limits(rows, row).iter().map(bucket).filter(|(.., amount)| *amount > 0).collect()
    }

    /// Checks the answer to a request, and follows what it has charged.
    pub fn check(
        &mut self,
        universe: &Universe,
        request: &Request,
        now: Now,
        answer: &Answer<'_>,
    ) -> Result<(), String> {
        if answer.generation != self.generation() {
            return Err(format!("generation {} and not {}", answer.generation, self.generation()));
        }
        if request.kind == Kind::Verify {
            self.agree(request.key, answer)?;
        }
        let outcomes = self.outcomes(universe, request, now);
        let found = Limit {
            name: "",
            burst: answer.limit.limit,
            remaining: answer.limit.remaining,
            retry_after_ms: answer.limit.retry_after_ms,
            reset_ms: answer.limit.reset_ms,
        };
        let matches = |outcome: &&Outcome| {
            outcome.verdict == answer.verdict
                && match &outcome.limit {
                    None => answer.limit == keyward_protocol::LimitState::default(),
                    Some(limit) => {
                        limit.name == answer.limit.name && Limit { name: "", ..limit.clone() } == found
                    }
                }
        };
        let matching: Vec<_> = outcomes.iter().filter(matches).collect();
        if matching.is_empty() {
            return Err(format!("none of the outcomes {outcomes:?}"));
        }
        let served = self.served.as_ref().zip(request.key.and_then(|key| self.served.as_ref()?.rows.of(key)));
        let (key_id, owner) = served.map_or(("", ""), |(served, row)| {
            (&*universe.keys[row.key].id, universe.owner(&served.rows, row.key))
        });
        if (answer.key_id, answer.owner) != (key_id, owner) {
            return Err(format!("not the key id and owner {key_id} {owner}"));
        }
        let after = possible_states(&matching);
        self.buckets.extend(after);
        Ok(())
    }

    /// A request that may or may not have been answered: every outcome is possible from now on, and
    /// none at all.
    pub fn lose(&mut self, universe: &Universe, request: &Request, now: Now) {
        let outcomes = self.outcomes(universe, request, now);
        for (id, states) in possible_states(&outcomes.iter().collect::<Vec<_>>()) {
            self.buckets.entry(id).or_insert_with(|| BTreeSet::from([0])).extend(states);
        }
    }

    /// What a start may do with the source, given one of the possible contents of the disk.
    pub fn start_outcomes(&self, source: &Source, on_disk: &OnDisk, now: i64) -> Vec<Start> {
        let (accepted, stored) = on_disk;
        let servable = || stored.clone().filter(|stored| !takes_away_since(*accepted, Some(stored)));
        let fallback = || servable().map_or(Start::NotReady, Start::LastGood);
        let Content::Rows(rows) = &source.content else { return vec![fallback()] };
        let stored_generation = stored.as_ref().map_or(0, |stored| stored.generation);
        let is_recorded = accepted.is_some_and(|accepted| {
            accepted.generation >= stored_generation && accepted.version == source.version
        });
        if is_recorded || stored.as_ref().is_some_and(|stored| stored.version == source.version) {
            return vec![Start::Source];
        }
        match self.guard(stored.as_ref().map(|stored| &*stored.rows), rows, now, |_| false) {
            Guard::Accepts => vec![Start::Source],
            Guard::Refuses => vec![fallback()],
            Guard::Either => vec![Start::Source, fallback()],
        }
    }

    /// Whether the guard lets `new` replace the keys in force.
    pub fn guard_by_served(&self, universe: &Universe, served: &Served, new: &Rows, now: i64) -> Guard {
        self.guard(Some(&served.rows), new, now, |key| self.is_revoked(universe, &served.rows, key))
    }

    /// Whether the guard lets `new` replace `old`. Keys that an operator has revoked do not count.
    fn guard(&self, old: Option<&Rows>, new: &Rows, now: i64, is_revoked: impl Fn(usize) -> bool) -> Guard {
        if new.rows.is_empty() {
            return Guard::Refuses;
        }
        let Some(old) = old else { return Guard::Accepts };
        let has_limits = |rows: &Rows| rows.has_limits && !rows.rows.is_empty();
        if has_limits(old) && !has_limits(new) {
            return Guard::Refuses;
        }
        let works = |row: &Row| {
            row.status == Status::Active
                && row.not_before.is_none_or(|begins| i64::from(begins) <= now)
                && row.expires_at.is_none_or(|expires| now < i64::from(expires))
        };
        let working: Vec<_> = old.rows.iter().filter(|row| works(row) && !is_revoked(row.key)).collect();
        let stopping = working.iter().filter(|row| !new.of(row.key).is_some_and(works)).count();
        // `max_shrink` is a half; one key may always stop.
        if stopping > 1 && 2 * stopping > working.len() { Guard::Refuses } else { Guard::Accepts }
    }

    /// The keys of `source` are in force. The record of that may be missing if the disk has failed.
    pub fn accept(&mut self, source: &Source, generation: u64, has_failed: bool) {
        let Content::Rows(rows) = &source.content else { return };
        let before = self.on_disk.clone();
        let (version, rows) = (source.version, Rc::clone(rows));
        let served = self.served.replace(Served { generation, rows: Rc::clone(&rows) });
        self.use_generation(generation, has_failed);
        for (accepted, stored) in std::mem::take(&mut self.on_disk) {
            if accepted.is_some_and(|accepted| accepted.version == version) {
                self.on_disk.push((accepted, stored));
                continue;
            }
            let is_stored = stored.as_ref().is_some_and(|stored| stored.version == version);
            let earlier = served.as_ref().map(|served| &served.rows);
            let earlier = earlier.or(stored.as_ref().map(|stored| &stored.rows));
            let possible: &[bool] = match earlier {
                _ if is_stored => &[false],
                _ if takes_away_since(accepted, stored.as_ref()) => &[true],
                Some(earlier) => takes_away(earlier, &rows),
                // In a new directory there was nothing to take away.
                None if accepted.is_none() => &[false],
                None => &[true],
            };
            for takes_away in possible.iter().copied() {
                let accepted = Some(Accepted { generation, version, takes_away });
                self.on_disk.push((accepted, stored.clone()));
            }
        }
        if has_failed {
            self.on_disk.extend(before);
        }
        self.deduplicate();
        self.unstored.push(Stored { generation, version, rows });
    }

    /// A reload has put `generation` in force. `has_failed`: a call on the disk has failed since the
    /// one before, so it may be taken from the system time, and not be known to the next daemon.
    pub fn use_generation(&mut self, generation: u64, has_failed: bool) {
        self.is_reserved = !has_failed || generation < FROM_SYSTEM_TIME;
        self.follow_generation(generation);
    }

    /// A change of the list of revocations has moved the generation by one.
    pub fn move_generation(&mut self) {
        if let Some(served) = &mut self.served {
            served.generation += 1;
            let generation = served.generation;
            self.follow_generation(generation);
        }
    }

    fn follow_generation(&mut self, generation: u64) {
        self.last_generation = self.last_generation.max(generation);
        if self.is_reserved {
            self.reserved_generation = self.reserved_generation.max(generation);
        }
    }

    /// Two answers of one daemon with the same generation differ only by time and balances.
    fn agree(&mut self, key: Option<usize>, answer: &Answer<'_>) -> Result<(), String> {
        let fixed = [Verdict::NotReady, Verdict::UnknownKey, Verdict::Revoked, Verdict::Disabled];
        let verdict = fixed.contains(&answer.verdict).then_some(answer.verdict);
        let before = *self.verdicts.entry((answer.generation, key)).or_insert(verdict);
        if before != verdict {
            return Err(format!("generation {} has two verdicts: {before:?} before", answer.generation));
        }
        Ok(())
    }

    /// Another daemon answers from now on.
    pub fn forget_verdicts(&mut self) {
        self.verdicts.clear();
    }

    /// The accepted keys are on disk.
    pub fn store(&mut self) {
        if let Some(last) = self.unstored.pop() {
            for (accepted, stored) in &mut self.on_disk {
                *accepted = accepted.map(|accepted| recorded_before(accepted, &last));
                *stored = Some(last.clone());
            }
            self.deduplicate();
        }
        self.unstored.clear();
    }

    /// The accepted keys may be on disk, or some that were accepted before them.
    pub fn may_have_stored(&mut self) {
        for stored in std::mem::take(&mut self.unstored) {
            for (accepted, _) in self.on_disk.clone() {
                // The record may be of a later source.
                let before = accepted.map(|accepted| recorded_before(accepted, &stored));
                self.on_disk.extend([accepted, before].map(|accepted| (accepted, Some(stored.clone()))));
            }
        }
        self.deduplicate();
    }

    /// The source may have been accepted and recorded.
    pub fn may_have_accepted(&mut self, source: &Source) {
        if !matches!(source.content, Content::Rows(_)) {
            return;
        }
        let (generation, version) = (u64::MAX, source.version);
        for (_, stored) in self.on_disk.clone() {
            for takes_away in [false, true] {
                self.on_disk.push((Some(Accepted { generation, version, takes_away }), stored.clone()));
            }
        }
        self.deduplicate();
    }

    fn deduplicate(&mut self) {
        let mut distinct: Vec<OnDisk> = Vec::new();
        for possible in self.on_disk.drain(..) {
            if !distinct.contains(&possible) {
                distinct.push(possible);
            }
        }
        self.on_disk = distinct;
    }

    /// The balances as they are saved now.
    pub fn save(&self, at: keyward_state::simulation::Time) -> Saved {
        let now = i128::from(at.boottime) * TICKS;
        let debts = |states: &BTreeSet<i128>| states.iter().map(|full_at| (full_at - now).max(0)).collect();
        Saved { at, debts: self.buckets.iter().map(|(id, states)| (id.clone(), debts(states))).collect() }
    }

    /// The buckets that the next daemon begins with.
    pub fn restore(&mut self, at: keyward_state::simulation::Time) {
        let now = i128::from(at.boottime) * TICKS;
        let mut buckets: BTreeMap<BucketId, BTreeSet<i128>> = BTreeMap::new();
        let ids: BTreeSet<_> =
            self.saved.iter().flatten().flat_map(|saved| saved.debts.keys().cloned()).collect();
        for saved in &self.saved {
            for id in &ids {
                let states = buckets.entry(id.clone()).or_default();
                let Some(saved) = saved else {
                    states.insert(0);
                    continue;
                };
                let is_same_boot = saved.at.boot_id == at.boot_id;
                let elapsed = if is_same_boot {
                    at.boottime - saved.at.boottime
                } else {
                    at.realtime - saved.at.realtime
                };
                let elapsed = i128::from(elapsed.max(0)) * TICKS;
                let full = BTreeSet::from([0]);
                let debts = saved.debts.get(id).unwrap_or(&full);
                states.extend(
                    debts.iter().map(|debt| if debt - elapsed > 0 { now + debt - elapsed } else { 0 }),
                );
            }
        }
        self.buckets = buckets;
    }
}

/// All buckets that the outcomes have changed, with their possible states.
fn possible_states(outcomes: &[&Outcome]) -> BTreeMap<BucketId, BTreeSet<i128>> {
    let mut states: BTreeMap<BucketId, BTreeSet<i128>> = BTreeMap::new();
    for (id, full_at) in outcomes.iter().flat_map(|outcome| &outcome.after) {
        states.entry(id.clone()).or_default().insert(*full_at);
    }
    states
}

/// Charges, debits or refunds `state`, the times at which each of `limits` is full.
fn charge(
    key: &Key,
    limits: &[(&'static str, i128, u32)],
    state: &[i128],
    request: &Request,
    now: Now,
) -> Outcome {
    let now = now.ticks;
    let debt = |full_at: i128| (full_at - now).max(0);
    let after = |state: Vec<i128>| {
        let ids = limits.iter().map(|(name, ..)| (key.id.clone(), *name));
        ids.zip(state).collect::<Vec<_>>()
    };
    let milliseconds = |ticks: i128| {
        let millisecond = TICKS * 1_000_000;
        u32::try_from((ticks + millisecond - 1) / millisecond).unwrap_or(u32::MAX)
    };
    let remaining = |position: usize, full_at: i128| {
        let (_, period, burst) = limits[position];
        u32::try_from((period * i128::from(burst) - debt(full_at)) / period).expect("at most the burst")
    };
    let report = |position: usize, full_at: i128, retry_after: i128| {
        let (name, _, burst) = limits[position];
        Limit {
            name,
            burst,
            remaining: remaining(position, full_at),
            retry_after_ms: milliseconds(retry_after),
            reset_ms: milliseconds(debt(full_at)),
        }
    };
    let allowed = |state: Vec<i128>| {
        let lowest = (0..limits.len()).min_by_key(|position| remaining(*position, state[*position]));
        let limit = lowest.map(|position| report(position, state[position], 0));
        Outcome { verdict: Verdict::Allowed, limit, after: after(state) }
    };
    // Each limit whose amount is not 0 is full that much later, and not before now.
    let changed = |units: &dyn Fn(usize, i128) -> i128| {
        let positions = 0..limits.len();
        let change = |position: usize| {
            let full_at = state[position];
            match i128::from(request.amount(limits[position].0)) {
                0 => full_at,
                amount => now + (debt(full_at) + limits[position].1 * units(position, amount)).max(0),
            }
        };
        positions.map(change).collect::<Vec<_>>()
    };
    match request.kind {
        Kind::Refund => return allowed(changed(&|_, amount| -amount)),
        Kind::Debit => {
            let units =
                |position: usize, amount: i128| amount.min(remaining(position, state[position]).into());
            return allowed(changed(&units));
        }
        Kind::Verify => {}
    }
    if let Some(position) = limits.iter().position(|(name, _, burst)| request.amount(name) > *burst) {
        let limit = Some(report(position, state[position], 0));
        return Outcome { verdict: Verdict::CostExceedsBurst, limit, after: after(state.to_vec()) };
    }
    let wait = |position: usize| match limits[position] {
        (name, ..) if request.amount(name) == 0 => 0,
        (name, period, burst) => {
            let amount = i128::from(request.amount(name));
            (debt(state[position]) + period * amount - period * i128::from(burst)).max(0)
        }
    };
    // The first of the longest waits: `max_by_key` would return the last.
    let longest = (0..limits.len()).rev().max_by_key(|position| wait(*position));
    if let Some(position) = longest.filter(|position| wait(*position) > 0) {
        let limit = Some(report(position, state[position], wait(position)));
        return Outcome { verdict: Verdict::RateLimited, limit, after: after(state.to_vec()) };
    }
    allowed(changed(&|_, amount| amount))
}
