//! A source older than `max_staleness`: every command reports it and fails.

use std::fs::File;
use std::time::{Duration, SystemTime};

use crate::support::{CommandOutput, Export, Setup, keyward, replace_export};

const STALE: &str = "source.max_staleness is 1h: every request is answered STALE_SNAPSHOT";

fn setup() -> Setup {
    // The age of a compiled source is that of the export it was compiled from.
    Setup::text(Export::of(["one"])).config("source.max_staleness = '1h'\nsource.poll = '10m'")
}

/// Sets the age of the source.
fn set_age(setup: &Setup, hours: u64) {
    let file = File::options().write(true).open(setup.source()).expect("opens");
    file.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).expect("sets the time");
}

#[test]
fn reload_of_a_stale_source_is_accepted_but_fails() {
    let daemon = setup().start();
    assert_eq!(daemon.verdict("one"), "ALLOWED");
    assert_eq!(daemon.run_keyward(&["reload"]).code, Some(0));
    replace_export(&daemon.setup.source(), Export::of(["two"]));
    set_age(&daemon.setup, 3);
    let CommandOutput { code, stdout: output, stderr: errors } = daemon.run_keyward(&["check", "--daemon"]);
    assert!(code == Some(1) && errors.contains(STALE), "{code:?} {output} {errors}");
    let CommandOutput { code, stdout: output, stderr: errors } = daemon.run_keyward(&["reload"]);
    assert!(code == Some(1) && errors.contains(STALE) && errors.contains("3h"), "{code:?} {output} {errors}");
    let CommandOutput { code, stdout: output, .. } = daemon.run_keyward(&["reload", "--json"]);
    assert!(code == Some(1) && output.contains("\"accepted\":true") && output.contains(STALE), "{output}");
    assert_eq!(daemon.verdict("two"), "STALE_SNAPSHOT");
    daemon.assert_logged(STALE);
    assert!(daemon.status().stale);

    set_age(&daemon.setup, 0);
    let CommandOutput { code, stderr: errors, .. } = daemon.run_keyward(&["reload"]);
    assert!(code == Some(0) && errors.is_empty(), "{errors}");
    assert_eq!((daemon.verdict("one"), daemon.verdict("two")), ("UNKNOWN_KEY".into(), "ALLOWED".into()));
}

#[test]
fn start_with_a_stale_source_logs_an_error_and_check_fails() {
    let setup = setup();
    set_age(&setup, 2);
    let daemon = setup.start();
    daemon.assert_logged(STALE);
    daemon.assert_logged("ERROR");
    assert_eq!(daemon.verdict("one"), "STALE_SNAPSHOT");
    let check = |json: &[&str]| {
        let source = daemon.setup.source();
        let config = daemon.setup.path("keyward.toml");
        let arguments = [&["check"], json].concat();
        keyward()
            .args(arguments)
            .arg("--config")
            .arg(config)
            .arg("--source")
            .arg(source)
            .output()
            .expect("runs")
    };
    let output = check(&[]);
    assert!(
        output.status.code() == Some(1) && String::from_utf8_lossy(&output.stderr).contains(STALE),
        "{output:?}"
    );
    let output = check(&["--json"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.code() == Some(1) && text.contains("\"ok\":false") && text.contains("\"stale\":"),
        "{text}"
    );
}
