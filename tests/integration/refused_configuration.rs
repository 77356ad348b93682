//! Promise 3 for the configuration: a reload reads it with the source, and where the reload is refused, nothing of it is in
//! force. Whatever happens later by itself, such as the watch's next reload, happens as the configuration before said.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::support::{Daemon, Setup, replace_export, sha256_hex, wait_for};
use keyward_client::Request;

/// Keys `0` to `keys - 1`, on plan p.
fn export(keys: usize) -> String {
    let rows = (0..keys).map(|number| format!("{},key-{number},p\n", sha256_hex(&number.to_string())));
    std::iter::once("key_hash,key_id,plan\n".to_owned()).chain(rows).collect()
}

/// What all of these daemons begin with, but for the setting that a test is about.
fn configuration(settings: &[&str]) -> String {
    let defaults =
        ["source.poll = '100ms'", "source.settle = '0s'", "source.max_shrink = 0.5", "plans.p.all = '5/d'"];
    let name = |line: &str| line.split(" = ").next().map(str::to_owned);
    let is_overridden = |line: &str| settings.iter().any(|setting| name(setting) == name(line));
    let lines = defaults.into_iter().filter(|line| !is_overridden(line)).chain(settings.iter().copied());
    lines.map(|line| format!("{line}\n")).collect()
}

/// A daemon with ten keys, one configuration in force and another one in the file.
struct Fixture {
    daemon: Daemon,
}

impl Fixture {
    fn new(before: &[&str]) -> Self {
        Self::serving(Setup::text(&export(10)), before)
    }

    fn serving(setup: Setup, before: &[&str]) -> Self {
        let daemon = setup.config(&configuration(before)).start();
        assert!(daemon.status().ready, "{}", daemon.log());
        Self { daemon }
    }

    /// Writes a configuration, and has it refused together with what `spoil` does to the source.
    fn refuse(&self, settings: &[&str], spoil: impl FnOnce(&Daemon)) {
        fs::write(self.daemon.setup.path("keyward.toml"), configuration(settings)).expect("written");
        spoil(&self.daemon);
        let outcome = self.daemon.reload();
        assert!(!outcome.accepted, "{settings:?}");
        assert_eq!(self.daemon.status().generation, 1);
    }

    /// Replaces the export, and waits until the daemon has taken it up without a command.
    fn accepts(&self, export: &str) {
        let before = self.daemon.status().generation;
        replace_export(&self.daemon.setup.source(), export);
        wait_for("the export to be accepted", || (self.daemon.status().generation > before).then_some(()));
    }

    /// Replaces the export, and waits until the daemon has refused it for `reason`.
    fn refuses(&self, export: &str, reason: &str) {
        let before = self.daemon.status().generation;
        replace_export(&self.daemon.setup.source(), export);
        wait_for("the export to be refused", || {
            let status = self.daemon.status();
            assert_eq!(status.generation, before, "the export was accepted");
            let error = status.last_reload.and_then(|last| last.error);
            error.is_some_and(|error| error.contains(reason)).then_some(())
        });
    }
}

/// Makes a source or a configuration one that is refused.
type Spoil = fn(&Daemon);

/// A row that is wrong.
fn broken(daemon: &Daemon) {
    replace_export(&daemon.setup.source(), &(export(10) + "nonsense,k,p\n"));
}

#[test]
fn max_shrink_is_not_taken_from_a_refused_reload_whatever_it_was_refused_for() {
    let refusals: [(&str, Spoil); 5] = [
        ("a bad row", broken),
        ("no keys", |daemon| replace_export(&daemon.setup.source(), &export(0))),
        ("no file", |daemon| fs::remove_file(daemon.setup.source()).expect("removed")),
        ("no regular file", |daemon| {
            fs::remove_file(daemon.setup.source()).expect("removed");
            fs::create_dir(daemon.setup.source()).expect("made");
        }),
        ("the configuration", |daemon| {
            let file = daemon.setup.path("keyward.toml");
            let text = fs::read_to_string(&file).expect("reads");
            fs::write(&file, text + "server.workerz = 1\n").expect("written");
        }),
    ];
    for (what, spoil) in refusals {
        let fixture = Fixture::new(&[]);
        fixture.refuse(&["source.max_shrink = 1.0"], spoil);
        let _if_it_is_one = fs::remove_dir(fixture.daemon.setup.source());
        eprintln!("refused for {what}");
        fixture.refuses(&export(1), "source.max_shrink");
        assert_eq!(fixture.daemon.verdict("9"), "ALLOWED", "refused for {what}");
    }
    // And the other way round: a guard that is stricter is not in force either.
    let fixture = Fixture::new(&["source.max_shrink = 1.0"]);
    fixture.refuse(&["source.max_shrink = 0.0"], broken);
    fixture.accepts(&export(1));
}

#[test]
fn plans_are_not_taken_from_a_refused_reload() {
    let fixture = Fixture::new(&["keys.default_plan = 'p'"]);
    fixture.refuse(&["plans.p.all = '50/d'", "plans.q.all = '1/d'", "keys.default_plan = 'q'"], broken);
    let limit = |key: &str| {
        let answer = fixture.daemon.client().verify(&Request::new(key).peek()).expect("an answer");
        (answer.plan().map(str::to_owned), answer.limit().expect("a limit").limit)
    };
    let on_p = (Some("p".to_owned()), 5);
    assert_eq!(limit("1"), on_p, "the snapshot before");
    fixture.accepts(&(export(10) + &format!("{},new,\n", sha256_hex("new"))));
    assert_eq!([limit("1"), limit("new")], [on_p.clone(), on_p], "the next one");
    let on_q = export(10) + &format!("{},new,q\n", sha256_hex("new"));
    fixture.refuses(&on_q, "is not in the configuration");
}

#[test]
fn columns_are_not_taken_from_a_refused_reload() {
    let renamed = export(11).replace("plan", "tier");
    let fixture = Fixture::new(&[]);
    fixture.refuse(&["source.columns.plan = 'tier'"], broken);
    fixture.refuses(&renamed, "tier");
    fixture.accepts(&export(11));
    let fixture = Fixture::new(&[]);
    fixture.refuse(&["source.ignore = ['tier']"], broken);
    fixture.refuses(&renamed, "tier");
}

#[test]
fn source_path_and_format_are_not_taken_from_a_refused_reload() {
    let setup = Setup::text(&export(10));
    let (own, other) = (setup.source(), setup.path("other.csv"));
    let path = |path: &std::path::Path| format!("source.path = '{}'", path.display());
    let (before, after) = (path(&own), path(&other));
    let fixture = Fixture::serving(setup, &[&before]);
    fixture.refuse(&[&after, "source.format = 'jsonl'"], |_| {
        fs::write(&other, "nonsense").expect("written");
    });
    assert_eq!(fixture.daemon.status().source, own.display().to_string());
    // Good now, in either format that it could be read in; and the daemon's own comes later.
    replace_export(&other, &export(12));
    fixture.accepts(&export(11));
    assert_eq!(["10", "11"].map(|key| fixture.daemon.verdict(key)), ["ALLOWED", "UNKNOWN_KEY"]);
}

/// Replaces the export by one that was last written two hours ago.
fn replace_by_old(daemon: &Daemon, export: &str) {
    let new = daemon.setup.path("old.new");
    fs::write(&new, export).expect("written");
    let file = fs::File::options().write(true).open(&new).expect("opens");
    file.set_modified(SystemTime::now() - Duration::from_secs(7200)).expect("set");
    fs::rename(&new, daemon.setup.source()).expect("renamed");
}

/// With the settling time of the refused configuration, a file that is written in place would be waited for.
#[test]
fn settling_time_is_not_taken_from_a_refused_reload() {
    let fixture = Fixture::new(&[]);
    // An old file has settled already.
    fixture.refuse(&["source.settle = '60s'"], |daemon| replace_by_old(daemon, &export(0)));
    fixture.daemon.setup.write_export(&export(11));
    wait_for("what was written in place", || (fixture.daemon.verdict("10") == "ALLOWED").then_some(()));
}

#[test]
fn staleness_is_not_taken_from_a_refused_reload() {
    let fixture = Fixture::new(&[]);
    fixture.refuse(&["source.max_staleness = '1h'"], broken);
    replace_by_old(&fixture.daemon, &export(11));
    wait_for("two-hour-old keys", || (fixture.daemon.verdict("10") == "ALLOWED").then_some(()));
    assert!(!fixture.daemon.status().stale);
}

/// The pepper is what this reload is refused for: all keys would be stranded.
#[test]
fn pepper_is_not_taken_from_a_refused_reload() {
    let setup = Setup::without_export().text_source();
    let pepper = |name: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = setup.path(name);
        fs::write(&path, name.repeat(16)).expect("written");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("closed");
        (format!("keys.pepper_file = '{}'", path.display()), path)
    };
    let ((before, own), (after, _)) = (pepper("a"), pepper("b"));
    let hashed = |key: &str| {
        let file = setup.path("key");
        fs::write(&file, format!("{key}\n")).expect("written");
        let mut hash = crate::support::keyward();
        hash.args(["key", "hash", "--pepper-file"]).arg(&own).stdin(fs::File::open(file).expect("opens"));
        let output = hash.output().expect("runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    };
    let [first, second] = ["first", "second"].map(|key| format!("{},{key}\n", hashed(key)));
    let header = "key_hash,key_id\n";
    setup.write_export(&format!("{header}{first}"));
    let fixture = Fixture::serving(setup, &[&before]);
    assert_eq!(fixture.daemon.verdict("first"), "ALLOWED");
    fixture.refuse(&[&after], |_| {});
    fixture.accepts(&format!("{header}{first}{second}"));
    assert_eq!(["first", "second"].map(|key| fixture.daemon.verdict(key)), ["ALLOWED"; 2]);
}
