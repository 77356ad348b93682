//! The day of a gateway for language models: requests and tokens per minute for each key, credits
//! for each owner. The cost is known only from the response, so it is estimated, charged, and settled
//! afterwards. Every answer and the totals agree with a model.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use crate::support::{Daemon, Export, Random, Setup, dose, row};
use keyward_client::blocking::Client;
use keyward_client::{Debit, Decision, Refund, Request};

const KEYS: usize = 200;
const KEYS_OF_AN_OWNER: usize = 10;
const THREADS: usize = 4;

const REQUESTS_PER_MINUTE: f64 = 600.0;
const REQUEST_BURST: f64 = 40.0;
const TOKENS_PER_MINUTE: f64 = 60_000.0;
const TOKEN_BURST: f64 = 8_000.0;
const TOKEN_OVERDRAFT: f64 = 1_000.0;
/// Enough for about half of what the keys of an owner ask for.
const GRANTED: i64 = 8_000;
const CREDIT_OVERDRAFT: i64 = 50;
/// One credit pays for this many tokens.
const TOKENS_PER_CREDIT: u32 = 10;

const PLAN: &str = r#"
state.save_interval = "1h"
keys.default_plan = "gateway"
[plans.gateway]
requests = "600/m burst 40"
tokens = "60000/m burst 8000 overdraft 1000"
credits = { limit = "8000 overdraft 50", per = "owner" }
"#;

/// A token bucket of which the level is known up to the time that a request takes.
struct Level {
    rate: f64,
    burst: f64,
    /// The lowest and the highest level after the last request.
    bounds: [f64; 2],
    /// When the last request began and ended. It was decided at some time in between.
    last: [Instant; 2],
}

impl Level {
    fn full(per_minute: f64, burst: f64) -> Self {
        Self { rate: per_minute / 60.0, burst, bounds: [burst; 2], last: [Instant::now(); 2] }
    }

    /// The level when a request was decided that began at `before` and has ended now.
    fn during(&mut self, before: Instant) -> [f64; 2] {
        let now = Instant::now();
        let [began, ended] = self.last;
        let refilled = |from: Instant, until: Instant| (until - from).as_secs_f64() * self.rate;
        self.bounds = [
            (self.bounds[0] + refilled(ended, before)).min(self.burst),
            (self.bounds[1] + refilled(began, now)).min(self.burst),
        ];
        self.last = [before, now];
        self.bounds
    }

    fn spend(&mut self, amount: f64) {
        self.bounds = self.bounds.map(|bound| (bound - amount).min(self.burst));
    }

    fn assert_balance(&self, balance: i64) {
        let [low, high] = self.bounds;
        assert!((low.floor()..=high).contains(&(balance as f64)), "{balance} is not in {low}..{high}");
    }
}

fn balance(decision: &Decision, limit: &str) -> (u32, i64) {
    let balance = decision.balance(limit).expect("the request wanted balances");
    (balance.charged, balance.balance)
}

/// What the keys of an owner have spent, by the daemon's answers.
type Spent = Mutex<BTreeMap<usize, i64>>;

/// One key, used by one thread.
struct Holder {
    key: String,
    owner: usize,
    requests: Level,
    tokens: Level,
    counts: BTreeMap<&'static str, u32>,
}

impl Holder {
    fn new(number: usize) -> Self {
        Self {
            key: format!("key {number}"),
            owner: number / KEYS_OF_AN_OWNER,
            requests: Level::full(REQUESTS_PER_MINUTE, REQUEST_BURST),
            tokens: Level::full(TOKENS_PER_MINUTE, TOKEN_BURST),
            counts: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// One call of a model: charged by an estimate, and settled.
    fn call(&mut self, client: &mut Client, random: &mut Random, spent: &Spent) {
        let estimate = 100 + random.below(1_900) as u32;
        let credits = estimate.div_ceil(TOKENS_PER_CREDIT);
        let before = Instant::now();
        let request = Request::new(&self.key).cost_of("tokens", estimate).cost_of("credits", credits);
        let decision = client.verify(&request.balances()).expect("an answer");
        let [requests, tokens] = [self.requests.during(before), self.tokens.during(before)];
        match decision.verdict().name() {
            "ALLOWED" => {
                assert!(
                    requests[1] >= 1.0 && tokens[1] >= estimate.into(),
                    "{requests:?} {tokens:?} {estimate}"
                );
                self.requests.spend(1.0);
                self.tokens.spend(estimate.into());
                assert_eq!(balance(&decision, "credits").0, credits);
                *spent.lock().expect("no panic").entry(self.owner).or_default() += i64::from(credits);
                self.count("allowed");
                self.settle(client, random, estimate, spent);
            }
            "RATE_LIMITED" => {
                let lacks = requests[0] < 1.0 || tokens[0] < estimate.into();
                assert!(lacks, "refused with {requests:?} requests and {tokens:?} tokens for {estimate}");
                self.count("limited");
            }
            "OUT_OF_CREDIT" => {
                assert!(balance(&decision, "credits").1 < credits.into(), "{decision:?}");
                self.count("out of credit");
            }
            other => panic!("{other}"),
        }
        self.requests.assert_balance(balance(&decision, "requests").1);
    }

    /// The response has cost between nothing and twice the estimate.
    fn settle(&mut self, client: &mut Client, random: &mut Random, estimate: u32, spent: &Spent) {
        let actual = random.below(2 * estimate as usize) as u32;
        let (tokens, credits) = (estimate.abs_diff(actual), estimate.abs_diff(actual) / TOKENS_PER_CREDIT);
        let before = Instant::now();
        if actual >= estimate {
            let debit = Debit::new(&self.key, 0).cost_of("tokens", tokens).cost_of("credits", credits);
            let decision = client.debit(&debit.balances()).expect("an answer");
            let [low, high] = self.tokens.during(before);
            let (charged, _) = balance(&decision, "tokens");
            let most = f64::from(tokens).min((high + TOKEN_OVERDRAFT).max(0.0).floor());
            let least = f64::from(tokens).min((low + TOKEN_OVERDRAFT).max(0.0).floor());
            assert!((least..=most).contains(&charged.into()), "{charged} is not in {least}..{most}");
            if charged < tokens {
                self.count("stopped at the floor");
            }
            self.tokens.spend(charged.into());
            let (charged, left) = balance(&decision, "credits");
            assert!(charged <= credits && left >= -CREDIT_OVERDRAFT, "{decision:?}");
            *spent.lock().expect("no panic").entry(self.owner).or_default() += i64::from(charged);
            self.count("debited");
        } else {
            let refund = Refund::new(&self.key, 0).cost_of("tokens", tokens).cost_of("credits", credits);
            let decision = client.refund(&refund.balances()).expect("an answer");
            self.tokens.during(before);
            // What has been refilled meanwhile is not refunded.
            let (refunded, _) = balance(&decision, "tokens");
            assert!(refunded <= tokens);
            self.tokens.spend(-f64::from(tokens));
            assert_eq!(balance(&decision, "credits").0, credits, "it was charged before");
            *spent.lock().expect("no panic").entry(self.owner).or_default() -= i64::from(credits);
            self.count("refunded");
        }
    }
}

fn assert_credits(daemon: &Daemon, spent: &Spent) {
    let mut client = daemon.client();
    for (owner, spent) in spent.lock().expect("no panic").iter() {
        let key = format!("key {}", owner * KEYS_OF_AN_OWNER);
        let decision = client.verify(&Request::new(&key).peek().balances()).expect("an answer");
        assert_eq!(balance(&decision, "credits").1, GRANTED - spent, "owner {owner}");
    }
}

#[test]
fn totals_of_a_day_equal_the_models() {
    let calls = dose(60, 2_000);
    let rows = (0..KEYS)
        .map(|number| row(format!("key {number}")).owner(format!("owner {}", number / KEYS_OF_AN_OWNER)));
    let mut daemon = Setup::new(Export::new(rows)).config(PLAN).start();
    let spent = Spent::default();
    let counts: Mutex<BTreeMap<&'static str, u32>> = Mutex::default();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (daemon, spent, counts) = (&daemon, &spent, &counts);
            scope.spawn(move || {
                let (mut client, mut random) = (daemon.client(), Random::new(thread as u64));
                let mut holders: Vec<Holder> =
                    (0..KEYS).skip(thread).step_by(THREADS).map(Holder::new).collect();
                for _ in 0..calls {
                    for holder in &mut holders {
                        holder.call(&mut client, &mut random, spent);
                    }
                }
                let mut counts = counts.lock().expect("no panic");
                for (what, count) in holders.into_iter().flat_map(|holder| holder.counts) {
                    *counts.entry(what).or_default() += count;
                }
            });
        }
    });
    let counts = counts.into_inner().expect("no panic");
    for what in ["allowed", "limited", "out of credit", "debited", "refunded", "stopped at the floor"] {
        assert!(counts.get(what).is_some_and(|count| *count > 0), "{what}: {counts:?}");
    }
    assert_credits(&daemon, &spent);
    daemon.stop();
    assert_credits(&daemon.kill_and_restart(), &spent);
}
