//! Promises 9 and 10 over many rounds: the source changes at random, and the daemon is killed or stopped at random. After each
//! round, every answer is compared with a simple model of what has to be in force.
//!
//! `KEYWARD_TEST_ROUNDS` sets the number of rounds, and `KEYWARD_TEST_SEED` the sequence.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::support::{Daemon, Setup, replace_export, sha256_hex, wait_for};
use keyward_client::Request;
use keyward_daemon::admin::message::{Command, Target};
use rustix::process::Signal;

/// Few enough for a round to be short, and enough for the guard's shares to mean something.
const KEYS: usize = 40;

/// Rounds, unless the environment says otherwise. A round waits for the disk some ten times.
const ROUNDS: u64 = 60;

/// The last is none: such a row is set aside.
const STATUSES: [&str; 4] = ["active", "disabled", "revoked", "t"];
const SET_ASIDE: usize = 3;

/// Rows that may be set aside.
const MAX_BAD_ROWS: usize = 5;

/// A row whose hash cannot be read.
const UNREADABLE: &str = "no hash,x,active,\n";

const CONFIG: &str = "source.settle = '0s'\nsource.poll = '1h'\nsource.on_bad_row = 'set-aside'\nsource.max_bad_rows = 5\n\
                      source.apply_takeaways_of_refused = true";

#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    status: usize,
    has_network: bool,
}

type Rows = BTreeMap<usize, Row>;

/// The verdicts by severity: 0 for active, 1 for disabled, 2 for revoked.
fn severity(status: usize) -> usize {
    if status == SET_ASIDE { 1 } else { status }
}

/// The source as the file has it.
#[derive(Clone, Debug)]
enum Source {
    Good(Rows),
    Bad(&'static str),
}

/// xorshift64*: a sequence that is the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    }

    fn below(&mut self, bound: usize) -> usize {
        self.next() as usize % bound
    }
}

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn key(number: usize) -> String {
    format!("key {number}")
}

fn export(rows: &Rows) -> String {
    let rows = rows.iter().map(|(number, row)| {
        let network = if row.has_network { "10.0.0.0/8" } else { "" };
        format!("{},k{number},{},{network}\n", sha256_hex(&key(*number)), STATUSES[row.status])
    });
    rows.fold("key_hash,key_id,status,allowed_ips\n".to_owned(), |text, row| text + &row)
}

/// The daemon beside the model.
struct Fixture {
    daemon: Option<Daemon>,
    random: Random,
    source: Source,
    in_force: Rows,
    /// What was in force by the number of its snapshot.
    history: BTreeMap<u64, Rows>,
    revoked: BTreeSet<usize>,
    /// What refused sources have taken away, by severity.
    taken: BTreeMap<usize, usize>,
    /// Whether the keys in force are known to be on the disk.
    is_kept: bool,
}

impl Fixture {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut rows: Rows = (0..KEYS)
            .map(|number| {
                let status = [0, 0, 0, 1, 2][random.below(5)];
                (number, Row { status, has_network: random.below(4) == 0 })
            })
            .collect();
        // These two stay: a restriction of each kind is there at any time.
        rows.insert(0, Row { status: 2, has_network: false });
        rows.insert(1, Row { status: 0, has_network: true });
        let setup = Setup::text(&export(&rows)).config(CONFIG);
        let daemon = setup.start();
        let generation = daemon.status().generation;
        let history = [(generation, rows.clone())].into();
        let source = Source::Good(rows.clone());
        let mut fixture = Self {
            daemon: Some(daemon),
            random,
            source,
            in_force: rows,
            history,
            revoked: BTreeSet::new(),
            taken: BTreeMap::new(),
            is_kept: false,
        };
        fixture.keep();
        fixture
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("running")
    }

    /// Waits until the keys in force are on the disk.
    fn keep(&mut self) {
        if !self.is_kept && matches!(self.source, Source::Good(_)) {
            let daemon = self.daemon();
            wait_for("the keys to be kept", || {
                let status = daemon.status();
                status.last_good.is_some_and(|kept| kept.generation == status.generation).then_some(())
            });
            self.is_kept = true;
        }
    }

    /// A change as exports have it every day: one or two keys, some of whose rows cannot be understood.
    fn change(&mut self) -> String {
        let mut rows = self.in_force.clone();
        for _ in 0..=self.random.below(2) {
            let number = 2 + self.random.below(KEYS - 2);
            let row = Row { status: self.random.below(4), has_network: self.random.below(4) == 0 };
            if self.random.below(5) == 0 {
                rows.remove(&number);
            } else {
                rows.insert(number, row);
            }
        }
        let set_aside = |rows: &Rows| rows.values().filter(|row| row.status == SET_ASIDE).count();
        if set_aside(&rows) >= MAX_BAD_ROWS {
            rows.values_mut().filter(|row| row.status == SET_ASIDE).for_each(|row| row.status = 0);
        }
        let unreadable = ["", UNREADABLE][self.random.below(2)];
        replace_export(&self.daemon().setup.source(), &(export(&rows) + unreadable));
        let outcome = self.daemon().reload();
        assert!(outcome.accepted, "{:?} -> {rows:?}: {outcome:?}", self.in_force);
        let withheld = outcome.withheld.unwrap_or_default();
        let told = (withheld.set_aside, withheld.unreadable_rows);
        assert_eq!(told, (set_aside(&rows), usize::from(!unreadable.is_empty())));
        self.taken.clear();
        self.history.insert(outcome.generation, rows.clone());
        (self.source, self.in_force, self.is_kept) = (Source::Good(rows.clone()), rows, false);
        "a change".to_owned()
    }

    /// An export that is refused for its bad rows, while others revoke or disable keys. One that is cut takes nothing away.
    fn take_away(&mut self) -> String {
        let mut rows = self.in_force.clone();
        for _ in 0..=self.random.below(2) {
            let number = 2 + self.random.below(KEYS - 2);
            if let Some(row) = rows.get_mut(&number) {
                row.status = 1 + self.random.below(2);
            }
        }
        let export = export(&rows) + &UNREADABLE.repeat(MAX_BAD_ROWS + 1);
        let is_cut = self.random.below(3) == 0;
        replace_export(&self.daemon().setup.source(), if is_cut { export.trim_end() } else { &export });
        let outcome = self.daemon().reload();
        assert!(!outcome.accepted, "{outcome:?}");
        self.source = Source::Bad("too many bad rows");
        let mut taken = self.taken.clone();
        for (number, row) in rows.iter().filter(|(_, row)| !is_cut && row.status != SET_ASIDE) {
            if row.status > self.severity(*number) {
                taken.insert(*number, row.status);
            }
        }
        let is_working = |number: &usize| self.in_force[number].status == 0;
        let working = self.in_force.keys().filter(|number| is_working(number)).count();
        let stopping = taken.keys().filter(|number| is_working(number)).count();
        // source.max_shrink is 0.5.
        if stopping <= 1 || 2 * stopping <= working {
            self.taken = taken;
        }
        assert_eq!(self.daemon().status().withheld.unwrap_or_default().taken_away, self.taken.len());
        format!("{:?}, cut: {is_cut}", self.source)
    }

    /// An export that must not be taken.
    fn spoil(&mut self) -> String {
        let path = self.daemon().setup.source();
        let good = export(&self.in_force);
        let few: Rows = self.in_force.iter().take(KEYS / 5).map(|(number, row)| (*number, *row)).collect();
        let lost = |column: usize| {
            let without = |line: &str| {
                let fields = line.split(',').enumerate().filter(|(number, _)| *number != column);
                fields.map(|(_, field)| field).collect::<Vec<_>>().join(",") + "\n"
            };
            good.lines().map(without).collect::<String>()
        };
        let revived: Rows =
            self.in_force.iter().map(|(number, row)| (*number, Row { status: 0, ..*row })).collect();
        let (what, content) = match self.random.below(8) {
            0 => ("cut short", good[..good.len() - 20].to_owned()),
            1 => ("rows that cannot be read", good.clone() + &UNREADABLE.repeat(MAX_BAD_ROWS + 1)),
            2 => ("empty", String::new()),
            3 => ("a header alone", "key_hash,key_id,status,allowed_ips\n".to_owned()),
            4 => ("shrunk", export(&few)),
            5 => ("without the column status", lost(2)),
            6 => ("without the column allowed_ips", lost(3)),
            _ => ("every key active", export(&revived)),
        };
        if self.random.below(10) == 0 {
            let _already_gone = fs::remove_file(&path);
            self.source = Source::Bad("missing");
        } else {
            replace_export(&path, &content);
            self.source = Source::Bad(what);
        }
        let outcome = self.daemon().reload();
        assert!(!outcome.accepted, "{:?} was accepted: {outcome:?}", self.source);
        format!("{:?}", self.source)
    }

    fn revoke(&mut self) -> String {
        let number = self.random.below(KEYS);
        let target = Target { key_id: Some(format!("k{number}")), owner: None };
        let ask = |command| keyward_daemon::admin::send_command(&self.daemon().admin_socket(), &command);
        if self.revoked.contains(&number) {
            ask(Command::Unrevoke(target)).expect("taken back");
            self.revoked.remove(&number);
        } else if self.in_force.contains_key(&number) {
            ask(Command::Revoke(target)).expect("revoked");
            self.revoked.insert(number);
        }
        format!("revoke or unrevoke k{number}")
    }

    /// kill -9 or SIGTERM at any moment, and a start beside whatever the source is then.
    fn restart(&mut self) -> String {
        let mut daemon = self.daemon.take().expect("running");
        let is_killed = self.random.below(2) == 0;
        if is_killed {
            daemon.kill();
        } else {
            daemon.signal(Signal::TERM);
            assert!(daemon.wait_for_exit().success());
        }
        let manifest = fs::read(daemon.setup.path("last_good.json")).expect("a manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
        let on_disk = manifest["content"]["generation"].as_u64().expect("a number");
        let daemon = daemon.restart();
        let status = daemon.status();
        let in_use = status.last_good.as_ref().is_some_and(|last_good| last_good.in_use);
        match &self.source {
            Source::Good(rows) => {
                assert!(!in_use && status.ready, "{}", daemon.log());
                self.in_force = rows.clone();
                self.taken.clear();
                self.is_kept = false;
            }
            Source::Bad(what) => {
                assert!(in_use, "{what} was accepted at a start: {}", daemon.log());
                self.in_force = self.history[&on_disk].clone();
                self.is_kept = true;
            }
        }
        let (last, _) = self.history.last_key_value().expect("some");
        assert!(status.generation > *last, "generation {} was used before", status.generation);
        self.history.insert(status.generation, self.in_force.clone());
        self.daemon = Some(daemon);
        format!("restart, killed: {is_killed}")
    }

    fn severity(&self, number: usize) -> usize {
        let of_row = self.in_force.get(&number).map_or(0, |row| severity(row.status));
        of_row.max(self.taken.get(&number).copied().unwrap_or_default())
    }

    fn expected(&self, number: usize) -> &'static str {
        match self.in_force.get(&number) {
            None => "UNKNOWN_KEY",
            Some(_) if self.revoked.contains(&number) => "REVOKED",
            Some(_) if self.severity(number) == 2 => "REVOKED",
            Some(_) if self.severity(number) == 1 => "DISABLED",
            Some(Row { has_network: true, .. }) => "IP_NOT_ALLOWED",
            Some(_) => "ALLOWED",
        }
    }

    fn compare(&self, what: &str) {
        let keys: Vec<String> = (0..KEYS).map(key).collect();
        let requests: Vec<Request<'_>> = keys.iter().map(String::as_str).map(Request::new).collect();
        let answers = self.daemon().client().verify_many(&requests);
        for (number, answer) in answers.into_iter().enumerate() {
            let verdict = answer.expect("an answer").verdict().name();
            assert_eq!(verdict, self.expected(number), "k{number} after {what}: {}", self.daemon().log());
        }
    }
}

#[test]
fn answers_are_those_of_the_model_over_changes_refusals_and_restarts() {
    let seed = environment("KEYWARD_TEST_SEED", 0x9e37_79b9_7f4a_7c15);
    let mut fixture = Fixture::new(seed);
    fixture.compare("the start");
    for round in 0..environment("KEYWARD_TEST_ROUNDS", ROUNDS) {
        // A restart compares with what is on the disk: no more than one change behind.
        fixture.keep();
        let mut what = match fixture.random.below(6) {
            0 | 1 => fixture.change(),
            2 | 3 => fixture.spoil(),
            4 => fixture.take_away(),
            _ => fixture.revoke(),
        };
        fixture.compare(&format!("round {round} of seed {seed}: {what}"));
        if fixture.random.below(2) == 0 {
            what = format!("{what}, {}", fixture.restart());
            fixture.compare(&format!("round {round} of seed {seed}: {what}"));
        }
    }
}
