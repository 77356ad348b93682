//! SIGKILL at random moments, while credits and calendar quotas are charged, debited, refunded and
//! granted anew. Each start continues from one moment of the life before, which is not longer ago
//! than the save interval allows; nothing else is forgotten, and no operator has to act.
//!
//! `KEYWARD_TEST_SEED` sets the moments.

mod history;
mod limits;
mod load;

use std::fs;
use std::ops::{Range, RangeInclusive};
use std::thread;
use std::time::{Duration, Instant};

use keyward_admin::message::Command;
use keyward_admin::send_command_within;
use keyward_client::Request;
use keyward_engine::limiter::persist::{SavedBalances, decode};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

use crate::support::serve_process::ServeProcess;
use crate::support::{
    Daemon, Export, Random, SetOnDrop, Setup, TIMEOUT, dose, replace_export, row, wait_until,
};
use history::{Change, History};
use limits::{Tenants, limit_of_idle_key};
use load::Load;

/// Balances are saved at this interval, and two saves take less than the tolerance unless the machine
/// is very busy. [`LONG_LIFE`] is longer than both, and shorter than ten intervals.
const CONFIG: &str = "state.save_interval = '100ms'\nsource.settle = '0s'\nsource.poll = '1h'";
const SAVE_INTERVAL: Duration = Duration::from_millis(100);
const SAVE_TOLERANCE: Duration = Duration::from_millis(700);

/// How long a save may take from its first balance to its time stamp, on a busy machine.
const SCAN_TOLERANCE: Duration = Duration::from_millis(200);

/// Milliseconds that a daemon lives.
const SHORT_LIFE: Range<usize> = 0..150;
const LIFE: Range<usize> = 100..500;
const LONG_LIFE: Range<usize> = 850..900;

/// Milliseconds after which a start is killed, mostly before it serves.
const START: Range<usize> = 0..40;

/// What a start logs if an operator has to act.
const LOST: &str = "balances are lost";

/// Keys that are charged once, and never again.
const IDLE_KEYS: usize = 2_000;

const CONNECTIONS: usize = 4;

/// CLOCK_BOOTTIME in nanoseconds, which the time stamp of a save shows as well.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn random_millis(random: &mut Random, range: Range<usize>) -> Duration {
    Duration::from_millis((range.start + random.below(range.len())) as u64)
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Killed,
    /// As soon as a save has begun to write.
    KilledDuringASave,
    Stopped,
}

/// How a daemon lives.
struct Plan {
    end: End,
    lifetime: Duration,
    reload_after: Option<Duration>,
}

impl Plan {
    fn new(random: &mut Random) -> Self {
        let end = match random.below(8) {
            0 => End::Stopped,
            1..=3 => End::KilledDuringASave,
            _ => End::Killed,
        };
        let range = [SHORT_LIFE, LIFE, LONG_LIFE][random.below(3)].clone();
        let lifetime = random_millis(random, range);
        let reload_after = (random.below(3) == 0).then(|| lifetime * random.below(100) as u32 / 100);
        Self { end, lifetime, reload_after }
    }
}

/// How a daemon has lived, by the clock of [`now`].
struct Life {
    began: u64,
    ended: u64,
    changes: Vec<Change>,
}

/// What happened.
#[derive(Debug, Default)]
struct Counts {
    kills: usize,
    kills_of_starts: usize,
    stops: usize,
    reloads: usize,
    interrupted_saves: usize,
    /// Kills that came long after the start, and those of them that came long after the last save.
    long_lives: usize,
    late_saves: usize,
    answers: usize,
    unanswered: usize,
    /// Balances of single limits after a kill: those that continued from before the last charge, and
    /// those of limits that could have only one balance.
    forgotten: usize,
    certain: usize,
    /// Units that were charged, less those that were refunded, and how many of them the last saves
    /// before the kills need not contain.
    charged: i64,
    unsaved: i64,
    /// The longest time from the last save to the kill.
    oldest_save: Duration,
}

struct Fixture {
    daemon: Option<Daemon>,
    random: Random,
    tenants: Tenants,
    counts: Counts,
}

impl Fixture {
    fn new(seed: u64) -> Self {
        let tenants = Tenants::new();
        let daemon = Setup::new(export(&tenants)).config(CONFIG).start();
        let keys = idle_keys();
        let charges: Vec<_> = keys.iter().map(|(key, cost)| Request::new(key).cost(*cost)).collect();
        for answer in daemon.client().verify_many(&charges) {
            assert!(answer.expect("an answer").is_allowed());
        }
        wait_until("a save", || saved(&daemon).limits.len() == IDLE_KEYS);
        tenants.assert_spent(&daemon);
        Self { daemon: Some(daemon), random: Random::new(seed), tenants, counts: Counts::default() }
    }

    /// Charges the limits until the daemon ends, starts it again, and checks the balances.
    fn live(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon");
        let plan = Plan::new(&mut self.random);
        let life = self.charge(&daemon, &plan);
        self.end(&mut daemon, plan.end);
        let moments = self.saved_moments(&daemon, plan.end, &life);
        let daemon = self.restart(daemon);
        assert!(daemon.status().ready && !daemon.log().contains(LOST), "{}", daemon.log());
        let spent = self.tenants.spent(&daemon);
        self.compare(plan.end, &life, &moments, &spent);
        assert_idle_keys(&daemon);
        self.daemon = Some(daemon);
    }

    /// Charges the limits, reloads if that is planned, and sends the signal that ends the daemon.
    fn charge(&mut self, daemon: &Daemon, plan: &Plan) -> Life {
        let began = now();
        let load = Load::new(daemon, &self.tenants, &mut self.random);
        let seeds = [(); CONNECTIONS].map(|()| self.random.number());
        if plan.reload_after.is_some() {
            self.tenants.change_grants(&mut self.random);
        }
        thread::scope(|scope| {
            let _end = SetOnDrop(&load.stop);
            let load = &load;
            let threads = seeds.map(|seed| scope.spawn(move || load.run(Random::new(seed))));
            let reload = plan.reload_after.map(|after| {
                let export = export(&self.tenants);
                scope.spawn(move || {
                    thread::sleep(after);
                    replace_export(&daemon.setup.source(), export);
                    reload(daemon)
                })
            });
            thread::sleep(plan.lifetime / 3);
            load.calm_down();
            thread::sleep(plan.lifetime - plan.lifetime / 3);
            if plan.end == End::KilledDuringASave {
                wait_for_a_save(daemon);
            }
            let ended = now();
            daemon.signal(if plan.end == End::Stopped { Signal::TERM } else { Signal::KILL });
            let changes = threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
            let has_reloaded = reload.is_some_and(|reload| reload.join().expect("no panic"));
            self.counts.reloads += usize::from(has_reloaded);
            Life { began, ended, changes }
        })
    }

    fn end(&mut self, daemon: &mut Daemon, end: End) {
        if end == End::Stopped {
            assert!(daemon.wait_for_exit().success(), "{}", daemon.log());
            self.counts.stops += 1;
        } else {
            daemon.kill();
            self.counts.kills += 1;
            self.counts.interrupted_saves += usize::from(daemon.setup.path("balances.new").exists());
        }
    }

    /// When the balances that the next start finds were read.
    fn saved_moments(&mut self, daemon: &Daemon, end: End, life: &Life) -> RangeInclusive<u64> {
        if end == End::Stopped {
            return u64::MAX..=u64::MAX;
        }
        let saved_at = saved(daemon).saved_at.boottime;
        // Charges began with this life.
        let age = Duration::from_nanos(life.ended.saturating_sub(saved_at.max(life.began)));
        let is_late = |time: Duration| time > SAVE_INTERVAL + SAVE_TOLERANCE;
        let counts = &mut self.counts;
        counts.long_lives += usize::from(is_late(Duration::from_nanos(life.ended - life.began)));
        counts.late_saves += usize::from(is_late(age));
        counts.oldest_save = counts.oldest_save.max(age);
        saved_at.saturating_sub(SCAN_TOLERANCE.as_nanos() as u64)..=saved_at
    }

    /// Some grants change while no daemon runs, and some starts are killed.
    fn restart(&mut self, mut daemon: Daemon) -> Daemon {
        if self.random.below(4) == 0 {
            self.tenants.change_grants(&mut self.random);
            replace_export(&daemon.setup.source(), export(&self.tenants));
        }
        while self.random.below(5) == 0 {
            daemon = daemon.respawn();
            thread::sleep(random_millis(&mut self.random, START));
            daemon.kill();
            self.counts.kills += 1;
            self.counts.kills_of_starts += 1;
        }
        daemon.kill_and_restart()
    }

    /// Each limit continues from one of the moments.
    fn compare(&mut self, end: End, life: &Life, moments: &RangeInclusive<u64>, spent: &[i64]) {
        let counts = &mut self.counts;
        let answers = life.changes.iter().filter(|change| change.answered.is_some()).count();
        counts.answers += answers;
        counts.unanswered += life.changes.len() - answers;
        for (number, (limit, &spent)) in self.tenants.limits.iter_mut().zip(spent).enumerate() {
            let changes = || life.changes.iter().filter(|change| change.limit == number);
            let history = History::new(limit.spent, changes());
            assert!(
                history.contains(spent, moments),
                "{end:?} at {}: of {}, {} was spent before and {spent} is now, but not at {moments:?}: {history:?}",
                life.ended,
                limit.label,
                limit.spent,
            );
            limit.unsaved += history.largest_loss(moments);
            limit.charged += changes().map(Change::least).sum::<i64>();
            limit.spent = spent;
            counts.certain += usize::from(end != End::Stopped && history.is_certain(moments));
            counts.forgotten += usize::from(!history.contains(spent, &(u64::MAX..=u64::MAX)));
        }
    }

    /// Over all lives, no limit has admitted more than the largest grant and what the saves before the
    /// kills did not contain.
    fn assert_totals(&mut self) {
        for limit in &self.tenants.limits {
            let allowed = limit.largest_grant + limit.overdraft + limit.unsaved;
            assert!(
                limit.charged <= allowed,
                "{}: {} charged, {} granted at most, overdraft {}, {} unsaved",
                limit.label,
                limit.charged,
                limit.largest_grant,
                limit.overdraft,
                limit.unsaved,
            );
            self.counts.charged += limit.charged;
            self.counts.unsaved += limit.unsaved;
        }
    }
}

/// The balances of keys that were charged once, before the first kill.
fn assert_idle_keys(daemon: &Daemon) {
    let keys = idle_keys();
    let peeks: Vec<_> = keys.iter().map(|(key, _)| Request::new(key).peek().balances()).collect();
    for ((key, cost), answer) in keys.iter().zip(daemon.client().verify_many(&peeks)) {
        let answer = answer.expect("an answer");
        let balance = answer.balances().next().expect("a limit");
        assert_eq!(balance.limit as i64 - balance.balance, i64::from(*cost), "{key}: {answer:?}");
    }
}

/// The keys that are charged once, and their costs.
fn idle_keys() -> Vec<(String, u32)> {
    (0..IDLE_KEYS).map(|number| (format!("idle {number}"), 1 + number as u32 % 100)).collect()
}

fn export(tenants: &Tenants) -> Export {
    let idle = idle_keys().into_iter().map(|(key, _)| row(key).limits(limit_of_idle_key()));
    Export::new(tenants.rows().into_iter().chain(idle))
}

/// Whether the reload was acknowledged.
fn reload(daemon: &Daemon) -> bool {
    let reply = send_command_within(&daemon.admin_socket(), &Command::Reload { force: false }, TIMEOUT);
    let outcome = reply.ok().and_then(|reply| reply.reload);
    assert!(outcome.as_ref().is_none_or(|outcome| outcome.accepted), "{outcome:?}");
    outcome.is_some()
}

/// The balances in the state directory.
fn saved(daemon: &Daemon) -> SavedBalances {
    let file = fs::read(daemon.setup.path("balances")).expect("written before the first answer");
    decode(&mut &*file).expect("a complete file at every moment")
}

/// Waits until a save writes its file, but not for ever.
fn wait_for_a_save(daemon: &Daemon) {
    let (new, until) = (daemon.setup.path("balances.new"), Instant::now() + 2 * SAVE_INTERVAL);
    while !new.exists() && Instant::now() < until {}
}

#[test]
fn credits_continue_from_the_last_save_after_kills_at_random_moments() {
    let kills = dose(10, 200);
    let seed = match std::env::var("KEYWARD_TEST_SEED") {
        Ok(seed) => seed.parse().expect("KEYWARD_TEST_SEED is a number"),
        Err(_) => 1,
    };
    eprintln!("seed {seed}");
    let mut fixture = Fixture::new(seed);
    let is_enough = |counts: &Counts| {
        let has_ended = counts.kills >= kills && counts.stops > 0 && counts.interrupted_saves > 0;
        has_ended && counts.reloads > 0 && counts.long_lives > 2
    };
    for _ in 0..4 * kills {
        fixture.live();
        if is_enough(&fixture.counts) {
            break;
        }
    }
    fixture.assert_totals();
    let counts = &fixture.counts;
    eprintln!("{counts:#?}");
    let has_happened = is_enough(counts) && counts.forgotten > 0 && counts.certain > 0;
    assert!(has_happened, "too little happened between the kills: {counts:?}");
    assert!(counts.late_saves <= 1 + counts.long_lives / 4, "balances are saved too seldom: {counts:?}");
}

/// Nothing was saved before, so nothing is lost: not even if the first start is killed while it
/// creates the state directory's first files.
#[test]
fn first_start_that_is_killed_leaves_no_lost_balances() {
    let mut random = Random::new(2);
    for _ in 0..dose(10, 100) {
        let setup =
            Setup::new(Export::new([row("a").limits("100 credits")])).config("state.save_interval = '1h'");
        let start = ServeProcess::start(setup.command());
        thread::sleep(random_millis(&mut random, START));
        drop(start);
        let daemon = setup.start();
        let peek = daemon.client().verify(&Request::new("a").peek().balances()).expect("an answer");
        assert!(peek.is_allowed() && !daemon.log().contains(LOST), "{peek:?}: {}", daemon.log());
        assert_eq!(peek.balances().next().expect("a limit").balance, 100);
    }
}
