//! What was in force stays in force, over random sequences: the source changes, and the daemon is
//! killed or stopped. After each round, every verdict is compared with a simple model of the keys
//! in force.
//!
//! `KEYWARD_TEST_SEED` sets the sequence.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::support::{Daemon, Export, Random, Setup, dose, key_target, replace_export, row};
use keyward_client::Request;

/// Few, so that a round is short, but enough for the guard's shares.
const KEYS: usize = 40;

/// Rounds of a short and of a long dose. A round waits for the disk about ten times.
const ROUNDS: usize = 60;
const MANY_ROUNDS: usize = 2_000;

/// The last one is invalid: its row is set aside.
const STATUSES: [&str; 4] = ["active", "disabled", "revoked", "t"];
const SET_ASIDE: usize = 3;

/// `source.max_bad_rows` of [`CONFIG`].
const MAX_BAD_ROWS: usize = 5;

/// A row with an invalid hash.
const UNREADABLE: &str = "no hash,x,active,\n";

const CONFIG: &str = "source.settle = '0s'\nsource.poll = '1h'\nsource.on_bad_row = 'set-aside'\nsource.max_bad_rows = 5\n\
                      source.apply_takeaways_of_refused = true";

#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    status: usize,
    has_network: bool,
}

type Rows = BTreeMap<usize, Row>;

/// Severity of a status: 0 for active, 1 for disabled, 2 for revoked.
fn severity(status: usize) -> usize {
    if status == SET_ASIDE { 1 } else { status }
}

/// The content of the source file.
#[derive(Clone, Debug)]
enum Source {
    Good(Rows),
    Bad(&'static str),
}

fn key(number: usize) -> String {
    format!("key {number}")
}

fn export(rows: &Rows) -> String {
    let rows = rows.iter().map(|(number, state)| {
        let network = if state.has_network { "10.0.0.0/8" } else { "" };
        row(key(*number)).id(format!("k{number}")).status(STATUSES[state.status]).allowed_ips(network)
    });
    Export::new(rows).to_csv()
}

/// The daemon and the model.
struct Fixture {
    daemon: Option<Daemon>,
    random: Random,
    source: Source,
    in_force: Rows,
    /// The keys in force by their generation.
    history: BTreeMap<u64, Rows>,
    revoked: BTreeSet<usize>,
    /// Takeaways of refused sources, with their severity.
    taken: BTreeMap<usize, usize>,
    /// Whether the keys in force are known to be saved.
    is_saved: bool,
}

impl Fixture {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut rows: Rows = (0..KEYS)
            .map(|number| {
                let status = [0, 0, 0, 1, 2][random.below(5)];
                (number, Row { status, has_network: random.below(4) == 0 })
            })
            .collect();
        // These rows never change, so both kinds of restrictions are always present.
        rows.insert(0, Row { status: 2, has_network: false });
        rows.insert(1, Row { status: 0, has_network: true });
        let setup = Setup::text(export(&rows)).config(CONFIG);
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
            is_saved: false,
        };
        fixture.wait_until_saved();
        fixture
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("running")
    }

    /// Waits until the keys in force are saved.
    fn wait_until_saved(&mut self) {
        if !self.is_saved && matches!(self.source, Source::Good(_)) {
            self.daemon().wait_until_saved();
            self.is_saved = true;
        }
    }

    /// An ordinary change of one or two keys. Some rows may be invalid.
    fn publish_change(&mut self) -> String {
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
        let reported = (withheld.set_aside, withheld.unreadable_rows);
        assert_eq!(reported, (set_aside(&rows), usize::from(!unreadable.is_empty())));
        self.taken.clear();
        self.history.insert(outcome.generation, rows.clone());
        (self.source, self.in_force, self.is_saved) = (Source::Good(rows.clone()), rows, false);
        "a change".to_owned()
    }

    /// An export that is refused for its bad rows, while others revoke or disable keys. A truncated
    /// export takes nothing away.
    fn publish_takeaways(&mut self) -> String {
        let mut rows = self.in_force.clone();
        for _ in 0..=self.random.below(2) {
            let number = 2 + self.random.below(KEYS - 2);
            if let Some(row) = rows.get_mut(&number) {
                row.status = 1 + self.random.below(2);
            }
        }
        let export = export(&rows) + &UNREADABLE.repeat(MAX_BAD_ROWS + 1);
        let is_truncated = self.random.below(3) == 0;
        replace_export(&self.daemon().setup.source(), if is_truncated { export.trim_end() } else { &export });
        let outcome = self.daemon().reload();
        assert!(!outcome.accepted, "{outcome:?}");
        self.source = Source::Bad("too many bad rows");
        let mut taken = self.taken.clone();
        for (number, row) in rows.iter().filter(|(_, row)| !is_truncated && row.status != SET_ASIDE) {
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
        format!("{:?}, truncated: {is_truncated}", self.source)
    }

    /// An export that must be refused.
    fn publish_invalid(&mut self) -> String {
        let path = self.daemon().setup.source();
        let good = export(&self.in_force);
        let few: Rows = self.in_force.iter().take(KEYS / 5).map(|(number, row)| (*number, *row)).collect();
        let without_column = |column: usize| {
            let without = |line: &str| {
                let fields = line.split(',').enumerate().filter(|(number, _)| *number != column);
                fields.map(|(_, field)| field).collect::<Vec<_>>().join(",") + "\n"
            };
            good.lines().map(without).collect::<String>()
        };
        let revived: Rows =
            self.in_force.iter().map(|(number, row)| (*number, Row { status: 0, ..*row })).collect();
        let (what, content) = match self.random.below(8) {
            0 => ("truncated", good[..good.len() - 20].to_owned()),
            1 => ("too many bad rows", good.clone() + &UNREADABLE.repeat(MAX_BAD_ROWS + 1)),
            2 => ("empty", String::new()),
            3 => ("a header alone", "key_hash,key_id,status,allowed_ips\n".to_owned()),
            4 => ("shrunk", export(&few)),
            5 => ("without the column status", without_column(2)),
            6 => ("without the column allowed_ips", without_column(3)),
            _ => ("every key active", export(&revived)),
        };
        if self.random.below(10) == 0 {
            // Fails if the file is missing already.
            let _ = fs::remove_file(&path);
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
        let target = key_target(&format!("k{number}"));
        if self.revoked.remove(&number) {
            self.daemon().unrevoke(target);
        } else if self.in_force.contains_key(&number) {
            self.daemon().revoke(target);
            self.revoked.insert(number);
        }
        format!("revoke or unrevoke k{number}")
    }

    /// SIGKILL or SIGTERM, and a start with the current source.
    fn restart(&mut self) -> String {
        let mut daemon = self.daemon.take().expect("running");
        let is_killed = self.random.below(2) == 0;
        if is_killed {
            daemon.kill();
        } else {
            daemon.stop();
        }
        let manifest = fs::read(daemon.setup.path("last_good.json")).expect("a manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
        let on_disk = manifest["content"]["generation"].as_u64().expect("a number");
        let daemon = daemon.kill_and_restart();
        let status = daemon.status();
        let in_use = status.last_good.as_ref().is_some_and(|last_good| last_good.in_use);
        match &self.source {
            Source::Good(rows) => {
                assert!(!in_use && status.ready, "{}", daemon.log());
                self.in_force = rows.clone();
                self.taken.clear();
                self.is_saved = false;
            }
            Source::Bad(what) => {
                assert!(in_use, "{what} was accepted at a start: {}", daemon.log());
                self.in_force = self.history[&on_disk].clone();
                self.is_saved = true;
            }
        }
        let (last, _) = self.history.last_key_value().expect("some");
        assert!(status.generation > *last, "generation {} was used before", status.generation);
        self.history.insert(status.table_generation, self.in_force.clone());
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
fn answers_match_the_model_over_changes_refusals_and_restarts() {
    let seed = match std::env::var("KEYWARD_TEST_SEED") {
        Ok(seed) => seed.parse().expect("KEYWARD_TEST_SEED is a number"),
        Err(_) => 1,
    };
    let mut fixture = Fixture::new(seed);
    fixture.compare("the start");
    for round in 0..dose(ROUNDS, MANY_ROUNDS) {
        // A restart compares with the saved keys, which must be at most one change behind.
        fixture.wait_until_saved();
        let mut what = match fixture.random.below(6) {
            0 | 1 => fixture.publish_change(),
            2 | 3 => fixture.publish_invalid(),
            4 => fixture.publish_takeaways(),
            _ => fixture.revoke(),
        };
        fixture.compare(&format!("round {round} of seed {seed}: {what}"));
        if fixture.random.below(2) == 0 {
            what = format!("{what}, {}", fixture.restart());
            fixture.compare(&format!("round {round} of seed {seed}: {what}"));
        }
    }
}
