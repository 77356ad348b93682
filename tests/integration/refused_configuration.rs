//! A reload reads the configuration together with the source. If the reload is refused, no setting
//! of it takes effect, and later reloads of the watch use the previous
//! configuration.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::support::{Daemon, Export, Setup, keyward, line, replace_export, row, wait_until};
use keyward_client::Request;

/// Keys `0` to `keys - 1`, on plan `p`.
fn export(keys: usize) -> Export {
    let rows = (0..keys).map(|number| row(number.to_string()).id(format!("key-{number}")).plan("p"));
    Export::new(rows).columns(["plan"])
}

/// The defaults of these tests, overridden by `settings`.
fn configuration(settings: &[&str]) -> String {
    let defaults =
        ["source.poll = '100ms'", "source.settle = '0s'", "source.max_shrink = 0.5", "plans.p.all = '5/d'"];
    let name = |line: &str| line.split(" = ").next().map(str::to_owned);
    let is_overridden = |line: &str| settings.iter().any(|setting| name(setting) == name(line));
    let lines = defaults.into_iter().filter(|line| !is_overridden(line)).chain(settings.iter().copied());
    lines.map(|line| format!("{line}\n")).collect()
}

/// A daemon with ten keys, one configuration in force, and another in its file.
struct Fixture {
    daemon: Daemon,
}

impl Fixture {
    fn new(before: &[&str]) -> Self {
        Self::serving(Setup::text(export(10)), before)
    }

    fn serving(setup: Setup, before: &[&str]) -> Self {
        let daemon = setup.config(&configuration(before)).start();
        assert!(daemon.status().ready, "{}", daemon.log());
        Self { daemon }
    }

    /// Writes a configuration, spoils the source with `spoil`, and expects the reload to be
    /// refused.
    fn refuse_configuration(&self, settings: &[&str], spoil: impl FnOnce(&Daemon)) {
        fs::write(self.daemon.setup.path("keyward.toml"), configuration(settings)).expect("written");
        spoil(&self.daemon);
        let outcome = self.daemon.reload();
        assert!(!outcome.accepted, "{settings:?}");
        assert_eq!(self.daemon.status().generation, 1);
    }

    /// Replaces the export, and waits until the watch has reloaded it.
    fn assert_accepted(&self, export: impl Into<String>) {
        let before = self.daemon.status().generation;
        replace_export(&self.daemon.setup.source(), export);
        wait_until("the export to be accepted", || self.daemon.status().generation > before);
    }

    /// Replaces the export, and waits until the watch's reload has refused it for `reason`.
    fn assert_refused(&self, export: impl Into<String>, reason: &str) {
        let before = self.daemon.status().generation;
        replace_export(&self.daemon.setup.source(), export);
        wait_until("the export to be refused", || {
            let status = self.daemon.status();
            assert_eq!(status.generation, before, "the export was accepted");
            let error = status.last_reload.and_then(|last| last.error);
            error.is_some_and(|error| error.contains(reason))
        });
    }
}

/// Makes the source or the configuration invalid.
type Spoil = fn(&Daemon);

/// Adds a bad row to the source.
fn add_invalid_row(daemon: &Daemon) {
    replace_export(&daemon.setup.source(), export(10).rows([line("nonsense,k,p")]));
}

#[test]
fn refused_reload_does_not_change_max_shrink() {
    let refusals: [(&str, Spoil); 5] = [
        ("a bad row", add_invalid_row),
        ("no keys", |daemon| replace_export(&daemon.setup.source(), export(0))),
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
        fixture.refuse_configuration(&["source.max_shrink = 1.0"], spoil);
        // Fails unless the source is a directory.
        let _ = fs::remove_dir(fixture.daemon.setup.source());
        eprintln!("refusal: {what}");
        fixture.assert_refused(export(1), "source.max_shrink");
        assert_eq!(fixture.daemon.verdict("9"), "ALLOWED", "refused for {what}");
    }
    // A stricter guard does not take effect either.
    let fixture = Fixture::new(&["source.max_shrink = 1.0"]);
    fixture.refuse_configuration(&["source.max_shrink = 0.0"], add_invalid_row);
    fixture.assert_accepted(export(1));
}

#[test]
fn refused_reload_does_not_change_plans() {
    let fixture = Fixture::new(&["keys.default_plan = 'p'"]);
    fixture.refuse_configuration(
        &["plans.p.all = '50/d'", "plans.q.all = '1/d'", "keys.default_plan = 'q'"],
        add_invalid_row,
    );
    let limit = |key: &str| {
        let answer = fixture.daemon.client().verify(&Request::new(key).peek()).expect("an answer");
        (answer.plan().map(str::to_owned), answer.limit().expect("a limit").limit)
    };
    let on_p = (Some("p".to_owned()), 5);
    assert_eq!(limit("1"), on_p, "the snapshot in force");
    fixture.assert_accepted(export(10).rows([row("new")]));
    assert_eq!([limit("1"), limit("new")], [on_p.clone(), on_p], "the next snapshot");
    fixture.assert_refused(export(10).rows([row("new").plan("q")]), "is not in the configuration");
}

#[test]
fn refused_reload_does_not_change_columns() {
    let renamed = export(11).to_csv().replace("plan", "tier");
    let fixture = Fixture::new(&[]);
    fixture.refuse_configuration(&["source.columns.plan = 'tier'"], add_invalid_row);
    fixture.assert_refused(&renamed, "tier");
    fixture.assert_accepted(export(11));
    let fixture = Fixture::new(&[]);
    fixture.refuse_configuration(&["source.ignore = ['tier']"], add_invalid_row);
    fixture.assert_refused(&renamed, "tier");
}

#[test]
fn refused_reload_does_not_change_source_path_or_format() {
    let setup = Setup::text(export(10));
    let (own, other) = (setup.source(), setup.path("other.csv"));
    let path = |path: &std::path::Path| format!("source.path = '{}'", path.display());
    let (before, after) = (path(&own), path(&other));
    let fixture = Fixture::serving(setup, &[&before]);
    fixture.refuse_configuration(&[&after, "source.format = 'jsonl'"], |_| {
        fs::write(&other, "nonsense").expect("written");
    });
    assert_eq!(fixture.daemon.status().source, own.display().to_string());
    // The other source becomes valid before the daemon's own changes.
    replace_export(&other, export(12));
    fixture.assert_accepted(export(11));
    assert_eq!(fixture.daemon.verdicts(["10", "11"]), ["ALLOWED", "UNKNOWN_KEY"]);
}

/// Replaces the export by one last modified two hours ago.
fn replace_by_old(daemon: &Daemon, export: Export) {
    let new = daemon.setup.path("old.new");
    fs::write(&new, export.to_csv()).expect("written");
    let file = fs::File::options().write(true).open(&new).expect("opens");
    file.set_modified(SystemTime::now() - Duration::from_secs(7200)).expect("set");
    fs::rename(&new, daemon.setup.source()).expect("renamed");
}

/// With the refused settling time, the daemon would wait before it reads a file written in place.
#[test]
fn refused_reload_does_not_change_settling_time() {
    let fixture = Fixture::new(&[]);
    // An old file needs no settling time.
    fixture.refuse_configuration(&["source.settle = '60s'"], |daemon| replace_by_old(daemon, export(0)));
    fixture.daemon.setup.write_export(export(11));
    wait_until("the export written in place", || fixture.daemon.verdict("10") == "ALLOWED");
}

#[test]
fn refused_reload_does_not_change_max_staleness() {
    let fixture = Fixture::new(&[]);
    fixture.refuse_configuration(&["source.max_staleness = '1h'"], add_invalid_row);
    replace_by_old(&fixture.daemon, export(11));
    wait_until("two-hour-old keys", || fixture.daemon.verdict("10") == "ALLOWED");
    assert!(!fixture.daemon.status().stale);
}

/// The reload is refused because the new pepper would strand all keys.
#[test]
fn refused_reload_does_not_change_pepper() {
    let setup = Setup::without_export().text_source();
    let [own, other] = ["a", "b"].map(|name| setup.write_secret(name, name.repeat(16)));
    let [before, after] = [&own, &other].map(|path| format!("keys.pepper_file = '{path}'"));
    let hash_with_cli = |key: &str| {
        let file = setup.path("key");
        fs::write(&file, format!("{key}\n")).expect("written");
        let mut hash = keyward();
        hash.args(["key", "hash", "--pepper-file"]).arg(&own).stdin(fs::File::open(file).expect("opens"));
        let output = hash.output().expect("runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    };
    let [first, second] = ["first", "second"].map(|key| row(key).hash(hash_with_cli(key)));
    setup.write_export(Export::new([first.clone()]));
    let fixture = Fixture::serving(setup, &[&before]);
    assert_eq!(fixture.daemon.verdict("first"), "ALLOWED");
    fixture.refuse_configuration(&[&after], |_| {});
    fixture.assert_accepted(Export::new([first, second]));
    assert_eq!(fixture.daemon.verdicts(["first", "second"]), ["ALLOWED"; 2]);
}

/// The reload thread would wait for it for ever.
#[test]
fn pipe_does_not_hold_up_a_reload() {
    let fixture = Fixture::new(&[]);
    let file = fixture.daemon.setup.path("keyward.toml");
    fs::remove_file(&file).expect("removes");
    rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .expect("a pipe");
    let error = fixture.daemon.reload().error.expect("refused");
    assert!(error.contains("it is a pipe or a socket: a reload needs a regular file"), "{error}");
    fs::remove_file(&file).expect("removes");
    fs::write(&file, configuration(&[])).expect("writes");
    assert!(fixture.daemon.reload().accepted);
}
