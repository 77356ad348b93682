//! The model: limits whose balances are exact numbers, and are brought up to date whenever they are
//! read.
//!
//! * A token bucket has a signed level in parts. One unit has as many parts as its rate has ticks for
//!   it, so that a tick refills one part and nothing is rounded. [`Limit::convert`] is the exception:
//!   another rate has parts of another size, and the level is rounded down.
//! * A calendar window has a start and a sum, from the model's own calendar ([`civil`](crate::civil)).
//! * Credits have a sum.
//!
//! All arithmetic is in `i128`, which cannot overflow here.

use std::collections::BTreeMap;

use crate::civil::{LAST, ZONES, is_new};
use crate::limiter::{NEVER, Rate, Rule, RuleKind};
use crate::now::Now;

const NANOSECONDS_PER_MILLISECOND: i64 = 1_000_000;

/// The identity of a limit.
pub type Id = (u8, RuleKind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Admitted,
    Refused,
    OutOfCredit,
    ExceedsBurst,
    Superseded,
}

/// Available cost, nanoseconds until the refused cost fits, nanoseconds until nothing is spent.
pub type Balance = (i64, u64, u64);

/// The verdict; the position of the deciding limit, and its balance; and the first shadow limit that
/// would have refused.
pub type Answer = (Verdict, Option<(usize, Balance)>, Option<usize>);

/// The enforced limits by position: what was charged, debited or refunded, and the balance.
pub type Balances = Vec<(usize, u32, Balance)>;

/// A limit of a request.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub id: Id,
    /// The rule in the snapshot of the request.
    pub rule: Rule,
    pub cost: u32,
    pub shadow: bool,
}

/// The times that the limiter has seen.
#[derive(Clone, Debug)]
struct Clock {
    nanoseconds: u64,
    unix: u32,
    /// The index of the time zone.
    zone: usize,
    /// Windows that were computed: zone, period, start, end.
    computed: Vec<(usize, u8, i64, i64)>,
}

/// A moment for one rule.
#[derive(Clone, Copy)]
struct Moment {
    nanoseconds: u64,
    /// The start of the current calendar window, and its end.
    start: i64,
    end: i64,
    zone: usize,
    /// Milliseconds since 1970.
    unix_millisecond: i64,
}

impl Moment {
    /// Nanoseconds until a limit starts anew that is in use in the window of this period that started
    /// at `used`.
    fn ends_in(&self, period: u8, used: i64) -> u64 {
        let mut next = self.end;
        while next < LAST && !is_new(period, used, next) {
            next = ZONES[self.zone].window(period, next).1;
        }
        let milliseconds = 1_000 * next - self.unix_millisecond;
        (milliseconds.max(0) * NANOSECONDS_PER_MILLISECOND) as u64
    }
}

impl Clock {
    /// The later of `now` and all times before. Only calendar windows take notice of the calendar.
    fn at(&mut self, now: Now, rule: Rule) -> Moment {
        self.nanoseconds = self.nanoseconds.max(now.nanoseconds);
        let (mut start, mut end) = (0, 0);
        if let Rule::Window { period, .. } = rule {
            self.unix = self.unix.max(now.unix);
            (start, end) = self.window(period.number());
        }
        let unix_millisecond = 1_000 * i64::from(now.unix) + i64::from(now.millisecond);
        Moment { nanoseconds: self.nanoseconds, start, end, zone: self.zone, unix_millisecond }
    }

    fn window(&mut self, period: u8) -> (i64, i64) {
        let unix = i64::from(self.unix);
        let is_current = |(zone, of, start, end): &&(usize, u8, i64, i64)| {
            (*zone, *of) == (self.zone, period) && (*start..*end).contains(&unix)
        };
        if let Some((_, _, start, end)) = self.computed.iter().find(is_current) {
            return (*start, *end);
        }
        let (start, end) = ZONES[self.zone].window(period, unix);
        self.computed.push((self.zone, period, start, end));
        (start, end)
    }
}

#[derive(Clone, Copy, Debug)]
enum Amount {
    /// The level in parts at a time in nanoseconds.
    Level { parts: i128, at: u64 },
    /// What was spent in the window that started at a Unix second.
    InWindow { start: i64, spent: i128 },
    /// What was spent in total.
    InTotal { spent: i128 },
}

/// A balance, and the rule that it is read with.
#[derive(Clone, Debug)]
pub struct State {
    rule: Rule,
    amount: Amount,
}

fn period(rate: Rate) -> i128 {
    i128::from(rate.period().get())
}

fn scale(rate: Rate) -> i128 {
    i128::from(rate.scale().get())
}

/// The parts in a full bucket.
fn capacity(rate: Rate) -> i128 {
    period(rate) * i128::from(rate.burst())
}

/// The level at the floor.
fn floor(rate: Rate, overdraft: u32) -> i128 {
    -period(rate) * i128::from(overdraft)
}

/// Whether a limit whose rule changes continues with the same balance.
fn continues(rule: Rule, next: Rule) -> bool {
    match (rule, next) {
        (Rule::Bucket { .. }, Rule::Bucket { .. }) => rule == next,
        (Rule::Window { period, .. }, Rule::Window { period: other, .. }) => period == other,
        (Rule::Credits { .. }, Rule::Credits { .. }) => true,
        _ => false,
    }
}

/// The nanoseconds in which this many parts are refilled.
fn nanoseconds(rate: Rate, parts: i128) -> u64 {
    let scale = scale(rate);
    ((parts + scale - 1) / scale).max(0) as u64
}

impl State {
    fn unspent(rule: Rule) -> Self {
        let amount = match rule {
            Rule::Bucket { rate, .. } => Amount::Level { parts: capacity(rate), at: 0 },
            Rule::Window { .. } => Amount::InWindow { start: i64::MIN / 2, spent: 0 },
            Rule::Credits { .. } => Amount::InTotal { spent: 0 },
        };
        Self { rule, amount }
    }

    fn rate(&self) -> Rate {
        let Rule::Bucket { rate, .. } = self.rule else { panic!("not a bucket") };
        rate
    }

    /// The level of a bucket, or the start of the window in use and what was spent.
    fn read(&self, moment: Moment) -> (i64, i128) {
        match self.amount {
            Amount::Level { parts, at } => {
                let refilled = i128::from(moment.nanoseconds - at) * scale(self.rate());
                (0, (parts + refilled).min(capacity(self.rate())))
            }
            Amount::InWindow { start, spent } => {
                let Rule::Window { period, .. } = self.rule else { panic!("not a window") };
                if is_new(period.number(), start, moment.start) { (moment.start, 0) } else { (start, spent) }
            }
            Amount::InTotal { spent } => (0, spent),
        }
    }

    fn write(&mut self, moment: Moment, start: i64, number: i128) {
        self.amount = match self.amount {
            Amount::Level { .. } => Amount::Level { parts: number, at: moment.nanoseconds },
            Amount::InWindow { .. } => Amount::InWindow { start, spent: number },
            Amount::InTotal { .. } => Amount::InTotal { spent: number },
        };
    }

    /// Nanoseconds until nothing is spent.
    fn unspent_in(&self, moment: Moment) -> u64 {
        let (start, number) = self.read(moment);
        match self.rule {
            Rule::Bucket { rate, .. } => nanoseconds(rate, capacity(rate) - number),
            Rule::Window { period, .. } => {
                if number > 0 {
                    moment.ends_in(period.number(), start)
                } else {
                    0
                }
            }
            Rule::Credits { .. } => {
                if number > 0 {
                    NEVER
                } else {
                    0
                }
            }
        }
    }

    /// How far the balance is above zero under `rule`: in parts for a bucket, in units otherwise.
    fn above_zero(&self, rule: Rule, moment: Moment) -> i128 {
        let (_, number) = self.read(moment);
        match rule {
            Rule::Bucket { .. } => number,
            Rule::Window { count: limit, .. } | Rule::Credits { granted: limit, .. } => {
                i128::from(limit) - number
            }
        }
    }

    /// `cost` in what [`above_zero`](Self::above_zero) counts.
    fn measure(rule: Rule, cost: u32) -> i128 {
        match rule {
            Rule::Bucket { rate, .. } => period(rate) * i128::from(cost),
            Rule::Window { .. } | Rule::Credits { .. } => i128::from(cost),
        }
    }

    /// Why a cost does not fit.
    fn misfit(&self, rule: Rule, moment: Moment, cost: u32) -> Option<Verdict> {
        if cost == 0 || Self::measure(rule, cost) <= self.above_zero(rule, moment) {
            return None;
        }
        Some(match rule {
            Rule::Credits { .. } => Verdict::OutOfCredit,
            Rule::Bucket { .. } | Rule::Window { .. } if u64::from(cost) > rule.limit() => {
                Verdict::ExceedsBurst
            }
            Rule::Bucket { .. } | Rule::Window { .. } => Verdict::Refused,
        })
    }

    /// Takes `units` from the balance, or returns them if they are negative.
    fn take(&mut self, moment: Moment, units: i64) {
        let (start, number) = self.read(moment);
        let after = match self.rule {
            Rule::Bucket { rate, .. } => (number - period(rate) * i128::from(units)).min(capacity(rate)),
            Rule::Window { .. } | Rule::Credits { .. } => number + i128::from(units),
        };
        self.write(moment, start, after);
    }

    /// How much of `cost` fits above the floor.
    fn above_floor(&self, rule: Rule, moment: Moment, cost: u32) -> u32 {
        let above_zero = self.above_zero(rule, moment);
        let room = match rule {
            Rule::Bucket { rate, overdraft } => (above_zero - floor(rate, overdraft)) / period(rate),
            Rule::Window { .. } | Rule::Credits { .. } => (above_zero + i128::from(rule.overdraft())).max(0),
        };
        room.min(cost.into()) as u32
    }

    /// How much of `cost` is spent. A unit that has been refilled in part counts.
    fn refundable(&self, rule: Rule, moment: Moment, cost: u32) -> u32 {
        let (_, number) = self.read(moment);
        let spent = match rule {
            Rule::Bucket { rate, .. } => (capacity(rate) - number + period(rate) - 1) / period(rate),
            Rule::Window { .. } | Rule::Credits { .. } => number,
        };
        spent.min(cost.into()) as u32
    }

    fn balance(&self, rule: Rule, moment: Moment, wanted: u32) -> Balance {
        let above_zero = self.above_zero(rule, moment);
        let missing = Self::measure(rule, wanted) - above_zero;
        let (available, retry_after) = match rule {
            Rule::Bucket { rate, .. } => (above_zero.div_euclid(period(rate)), nanoseconds(rate, missing)),
            Rule::Window { period, .. } => {
                let (start, _) = self.read(moment);
                (above_zero, if missing > 0 { moment.ends_in(period.number(), start) } else { 0 })
            }
            Rule::Credits { .. } => (above_zero, if missing > 0 { NEVER } else { 0 }),
        };
        let reset = if rule.kind() == RuleKind::Credits { NEVER } else { self.unspent_in(moment) };
        (available as i64, if wanted == 0 { 0 } else { retry_after }, reset)
    }
}

/// A limit of the snapshots in use.
#[derive(Clone, Debug)]
pub struct Limit {
    state: State,
    /// The rule that a reload has changed to, until a request uses it.
    new_rule: Option<Rule>,
    /// The other balances that a conversion starts from. After the conversion, the balance as it was
    /// before is one of them.
    former: Vec<State>,
    /// Whether the balance has been converted since the reload. Requests of the old snapshot are
    /// superseded.
    is_superseded: bool,
}

impl Limit {
    fn new(state: State) -> Self {
        Self { state, new_rule: None, former: Vec::new(), is_superseded: false }
    }

    /// Converts the balance to its new rule, if it has one. This is the only place that rounds: a
    /// level down.
    fn convert(&mut self, clock: &mut Clock, now: Now) -> bool {
        let Some(rule) = self.new_rule.take() else { return false };
        let new = clock.at(now, rule);
        let mut former = std::mem::take(&mut self.former);
        former.push(self.state.clone());
        let numbers = former.iter().map(|state| {
            let (_, number) = state.read(clock.at(now, state.rule));
            match rule {
                Rule::Bucket { rate, overdraft } => {
                    let level = (number * period(rate)).div_euclid(period(state.rate()));
                    level.max(floor(rate, overdraft)).min(capacity(rate))
                }
                Rule::Window { .. } | Rule::Credits { .. } => -number,
            }
        });
        let lowest = numbers.min().expect("at least one");
        let mut state = State::unspent(rule);
        let number = if rule.kind() == RuleKind::Bucket { lowest } else { -lowest };
        state.write(new, new.start, number);
        *self = Self { state, new_rule: None, former, is_superseded: true };
        true
    }
}

/// A balance that no key of the snapshots in use has.
#[derive(Clone, Debug)]
pub struct Retained {
    id: Id,
    state: State,
    /// Whether another rule has replaced that of the balance.
    is_former: bool,
}

#[derive(Clone, Debug)]
pub struct Model {
    /// The limits of the snapshots in use.
    limits: BTreeMap<Id, Limit>,
    /// The balances of removed keys and of former rules.
    pub retained: Vec<Retained>,
    clock: Clock,
    /// Conversions of a balance to another rule.
    pub conversions: u64,
    /// Windows that a limit in use has left behind.
    pub new_windows: u64,
}

impl Model {
    pub fn new(now: u64, unix: u32, zone: usize) -> Self {
        let clock = Clock { nanoseconds: now, unix, zone, computed: Vec::new() };
        Self { limits: BTreeMap::new(), retained: Vec::new(), clock, conversions: 0, new_windows: 0 }
    }

    pub fn set_zone(&mut self, zone: usize) {
        self.clock.zone = zone;
    }

    /// The latest Unix second that a window was used at.
    pub fn latest_unix(&self) -> u32 {
        self.clock.unix
    }

    /// The Unix second at which the current window ends.
    pub fn end_of_window(&mut self, period: u8) -> i64 {
        self.clock.window(period).1
    }

    fn convert(&mut self, id: Id, now: Now) {
        let limit = self.limits.get_mut(&id).expect("a limit");
        self.conversions += u64::from(limit.convert(&mut self.clock, now));
    }

    fn state(&self, request: &Request) -> &State {
        &self.limits[&request.id].state
    }

    /// The moment of each limit of a request, which belongs to the newest snapshot or to the one
    /// before; `None` if one is superseded.
    fn prepare(&mut self, requests: &[Request], now: Now, is_newest: bool) -> Option<Vec<Moment>> {
        if !is_newest && requests.iter().any(|request| self.limits[&request.id].is_superseded) {
            return None;
        }
        if is_newest {
            requests.iter().for_each(|request| self.convert(request.id, now));
        }
        Some(requests.iter().map(|request| self.clock.at(now, request.rule)).collect())
    }

    fn peek(&mut self, requests: &[Request], now: Now, is_newest: bool) -> (Answer, Balances) {
        let mut balances = Vec::new();
        for (position, request) in requests.iter().enumerate().filter(|(_, request)| !request.shadow) {
            let Some(moments) = self.prepare(&[*request], now, is_newest) else {
                return ((Verdict::Superseded, None, None), balances);
            };
            balances.push((position, 0, self.state(request).balance(request.rule, moments[0], 0)));
        }
        ((Verdict::Admitted, least_available(&balances), None), balances)
    }

    /// `is_alone`: the limiter does not lock the only limit.
    pub fn charge(
        &mut self,
        requests: &[Request],
        now: Now,
        is_newest: bool,
        is_alone: bool,
    ) -> (Answer, Balances) {
        if requests.iter().all(|request| request.cost == 0) {
            return self.peek(requests, now, is_newest);
        }
        if is_alone {
            self.clock.nanoseconds = self.clock.nanoseconds.max(now.nanoseconds);
        }
        let Some(moments) = self.prepare(requests, now, is_newest) else {
            return ((Verdict::Superseded, None, None), Vec::new());
        };
        let misfit = |position: usize| {
            let Request { rule, cost, .. } = requests[position];
            self.state(&requests[position]).misfit(rule, moments[position], cost)
        };
        let of = |shadow: bool| {
            let positions = (0..requests.len()).filter(move |position| requests[*position].shadow == shadow);
            positions.filter_map(|position| Some((misfit(position)?, position)))
        };
        let shadow = of(true).map(|(_, position)| position).next();
        let severest = [Verdict::ExceedsBurst, Verdict::OutOfCredit, Verdict::Refused].into_iter();
        let refusal = severest.filter_map(|severe| of(false).find(|(misfit, _)| *misfit == severe)).next();
        let fits: Vec<bool> = (0..requests.len()).map(|position| misfit(position).is_none()).collect();
        let waits: Vec<bool> =
            (0..requests.len()).map(|position| misfit(position) == Some(Verdict::Refused)).collect();
        let mut balances = Vec::new();
        for (position, request) in requests.iter().enumerate() {
            let (Request { id, rule, cost, shadow }, moment) = (*request, moments[position]);
            let is_charged = refusal.is_none() && fits[position];
            if is_charged && cost > 0 {
                self.take(id, moment, cost.into());
            }
            if !shadow {
                let wanted = if waits[position] { cost } else { 0 };
                let balance = self.state(request).balance(rule, moment, wanted);
                balances.push((position, if is_charged { cost } else { 0 }, balance));
            }
        }
        let balance_at = |at: usize| balances.iter().find(|(position, ..)| *position == at);
        let (verdict, deciding) = match refusal {
            None => (Verdict::Admitted, least_available(&balances)),
            Some((Verdict::Refused, _)) => {
                let longest = balances.iter().rev().max_by_key(|(_, _, (_, retry_after, _))| *retry_after);
                (Verdict::Refused, longest.map(|(position, _, balance)| (*position, *balance)))
            }
            Some((verdict, at)) => {
                (verdict, balance_at(at).map(|(position, _, balance)| (*position, *balance)))
            }
        };
        ((verdict, deciding, shadow), balances)
    }

    fn take(&mut self, id: Id, moment: Moment, units: i64) {
        let state = &mut self.limits.get_mut(&id).expect("a limit").state;
        if let Amount::InWindow { start, spent } = state.amount {
            self.new_windows += u64::from(spent > 0 && state.read(moment).0 != start);
        }
        state.take(moment, units);
    }

    pub fn debit(&mut self, requests: &[Request], now: Now, is_newest: bool) -> (Answer, Balances) {
        self.settle(requests, now, is_newest, |state, request, moment| {
            i64::from(state.above_floor(request.rule, moment, request.cost))
        })
    }

    pub fn refund(&mut self, requests: &[Request], now: Now, is_newest: bool) -> (Answer, Balances) {
        self.settle(requests, now, is_newest, |state, request, moment| {
            -i64::from(state.refundable(request.rule, moment, request.cost))
        })
    }

    fn settle(
        &mut self,
        requests: &[Request],
        now: Now,
        is_newest: bool,
        units: impl Fn(&State, &Request, Moment) -> i64,
    ) -> (Answer, Balances) {
        let Some(moments) = self.prepare(requests, now, is_newest) else {
            return ((Verdict::Superseded, None, None), Vec::new());
        };
        self.clock.nanoseconds = self.clock.nanoseconds.max(now.nanoseconds);
        let mut balances = Vec::new();
        for (position, (request, moment)) in requests.iter().zip(moments).enumerate() {
            let units = units(self.state(request), request, moment);
            if request.cost > 0 {
                self.take(request.id, moment, units);
            }
            if !request.shadow {
                let balance = self.state(request).balance(request.rule, moment, 0);
                balances.push((position, units.unsigned_abs() as u32, balance));
            }
        }
        ((Verdict::Admitted, least_available(&balances), None), balances)
    }

    /// A reload publishes a snapshot with the limits `wanted`.
    pub fn publish(&mut self, wanted: &[(Id, Rule)]) {
        for (id, rule) in wanted {
            if let Some(limit) = self.limits.get_mut(id)
                && continues(limit.state.rule, *rule)
            {
                limit.state.rule = *rule;
                continue;
            }
            let mut existing: Vec<State> =
                self.limits.remove(id).map(|limit| limit.state).into_iter().collect();
            let is_added = existing.is_empty();
            // A balance of a former rule stays retained beside one that continues.
            let is_last = |of: &Retained| of.id == *id && !of.is_former;
            let last: Vec<usize> =
                (0..self.retained.len()).filter(|at| is_last(&self.retained[*at])).collect();
            if let [only] = *last
                && is_added
                && continues(self.retained[only].state.rule, *rule)
            {
                let state = self.retained.remove(only).state;
                self.limits.insert(*id, Limit::new(State { rule: *rule, ..state }));
                continue;
            }
            let retained = self.retained.extract_if(.., |of| of.id == *id);
            existing.extend(retained.map(|of| of.state));
            let limit = match existing.first().cloned() {
                None => Limit::new(State::unspent(*rule)),
                Some(state) => {
                    Limit { new_rule: Some(*rule), former: existing.split_off(1), ..Limit::new(state) }
                }
            };
            self.limits.insert(*id, limit);
        }
    }

    /// The old snapshot is no longer in use, and the new one has the limits `current`. The balances of
    /// others are retained until nothing of them is spent, and so are those under former rules that
    /// are spent for longer than the ones that replaced them.
    pub fn reclaim(&mut self, current: &[Id], now: Now) {
        let ids: Vec<Id> = self.limits.keys().copied().collect();
        ids.iter().for_each(|id| self.convert(*id, now));
        let clock = &mut self.clock;
        for (id, limit) in &mut self.limits {
            limit.is_superseded = false;
            for former in std::mem::take(&mut limit.former) {
                let own = limit.state.unspent_in(clock.at(now, limit.state.rule));
                if former.unspent_in(clock.at(now, former.rule)) > own {
                    self.retained.push(Retained { id: *id, state: former, is_former: true });
                }
            }
        }
        let removed = self.limits.extract_if(.., |id, _| !current.contains(id));
        let removed = removed.map(|(id, limit)| Retained { id, state: limit.state, is_former: false });
        self.retained.extend(removed);
        let mut is_spent = |of: &Retained| of.state.unspent_in(clock.at(now, of.state.rule)) > 0;
        let spent: Vec<Id> = self.retained.iter().filter(|of| is_spent(of)).map(|of| of.id).collect();
        self.retained.retain(|of| if of.is_former { is_spent(of) } else { spent.contains(&of.id) });
    }

    /// What is saved: all balances of the limits of which something is spent.
    pub fn saved(&mut self, now: Now) -> Self {
        let live = self.limits.iter();
        let live = live.map(|(id, limit)| Retained { id: *id, state: limit.state.clone(), is_former: false });
        let retained = live.chain(self.retained.iter().cloned()).collect();
        let retained = of_spent_limits(retained, &mut self.clock, now);
        Self { limits: BTreeMap::new(), retained, clock: self.clock.clone(), ..*self }
    }

    /// The model of the next process, which starts at `now` in the time zone `zone`. These balances
    /// were saved at `saved_at` of the previous process, `elapsed` nanoseconds ago.
    pub fn restarted(mut self, saved_at: u64, elapsed: u64, now: Now, zone: usize) -> Self {
        let clock = &mut self.clock;
        (clock.nanoseconds, clock.zone) = (now.nanoseconds, zone);
        for Retained { state, .. } in &mut self.retained {
            if let Amount::Level { .. } = state.amount {
                let nanoseconds = saved_at + elapsed;
                let at = Moment { nanoseconds, start: 0, end: 0, zone, unix_millisecond: 0 };
                let (_, parts) = state.read(at);
                state.amount = Amount::Level { parts, at: now.nanoseconds };
            }
        }
        self.retained = of_spent_limits(self.retained, clock, now);
        self
    }
}

/// The balances of the limits of which something is spent.
fn of_spent_limits(mut balances: Vec<Retained>, clock: &mut Clock, now: Now) -> Vec<Retained> {
    let mut is_spent = |of: &&Retained| of.state.unspent_in(clock.at(now, of.state.rule)) > 0;
    let spent: Vec<Id> = balances.iter().filter(&mut is_spent).map(|of| of.id).collect();
    balances.retain(|of| spent.contains(&of.id));
    balances
}

/// The first of the limits with the least available.
fn least_available(balances: &Balances) -> Option<(usize, Balance)> {
    let least = balances.iter().min_by_key(|(_, _, (available, ..))| *available);
    least.map(|(position, _, balance)| (*position, *balance))
}
