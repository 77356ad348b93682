//! `keyward check`: whether a daemon would start with this configuration and serve this source.

use clap::Args;
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::options::Origin;
use super::streams::Streams;
use crate::clock::Clock;
use crate::config::{Config, Overrides};
use crate::reload::{self, Loaded, SourceFile};
use crate::snapshot::Summary;
use crate::source::{Finding, Findings};

const HELP: &str = "\
Everything that is wrong with the source is reported with its line and column, the first 20 findings in full.
The exit code is 78 if the configuration or the source is wrong. A running daemon is not touched.

Example, before an export replaces the one that is served:
  keyward check --source new.csv && mv new.csv /etc/keyward/keys.csv";

/// Validate the configuration and the keys without serving them
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Check {
    #[command(flatten)]
    origin: Origin,

    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// For machines.
#[derive(Default, Serialize)]
struct Report<'a> {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(flatten)]
    summary: Option<Summary>,
    /// What is wrong, where it is not a matter of rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_findings: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    findings: Option<Vec<Row<'a>>>,
}

/// One finding.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<String>,
    message: &'a str,
}

impl<'a> From<&'a Finding> for Row<'a> {
    fn from(finding: &'a Finding) -> Self {
        Self {
            line: Some(finding.line).filter(|line| *line > 0),
            column: finding.column.as_ref().map(ToString::to_string),
            message: &finding.message,
        }
    }
}

impl Check {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, Failure> {
        match self.load() {
            Ok(source) => self.check(&source, streams),
            Err(failure) => self.refuse(None, failure, streams),
        }
    }

    fn load(&self) -> Result<SourceFile, Failure> {
        let overrides = Overrides { source: self.origin.source.clone(), ..Overrides::default() };
        Ok(Config::load(self.origin.config.as_deref(), overrides)?.file())
    }

    fn check(&self, source: &SourceFile, streams: &mut Streams<'_>) -> Result<Exit, Failure> {
        let name = source.path.display().to_string();
        match load(source) {
            Ok(summary) if self.json => {
                let summary = Some(summary);
                streams.print_json(&Report { ok: true, source: Some(name), summary, ..Report::default() })?;
            }
            Ok(summary) => streams.print(format_args!("{name}: {summary}: ok"))?,
            Err(reload::Failure::Findings(findings)) => return self.report(name, &findings, streams),
            Err(failure) => {
                return self.refuse(Some(name), Failure::new(Exit::BadInput, failure), streams);
            }
        }
        Ok(Exit::Done)
    }

    fn report(&self, name: String, findings: &Findings, streams: &mut Streams<'_>) -> Result<Exit, Failure> {
        if self.json {
            streams.print_json(&Report {
                source: Some(name),
                total_findings: Some(findings.total()),
                findings: Some(findings.kept().iter().map(Row::from).collect()),
                ..Report::default()
            })?;
        } else {
            streams.note(findings);
        }
        Ok(Exit::BadInput)
    }

    /// The failure is the result: for a machine, it is on standard output.
    fn refuse(
        &self,
        source: Option<String>,
        failure: Failure,
        streams: &mut Streams<'_>,
    ) -> Result<Exit, Failure> {
        if !self.json {
            return Err(failure);
        }
        streams.print_json(&Report { source, error: Some(&failure.message), ..Report::default() })?;
        Ok(failure.exit)
    }
}

/// As a reload reads it, which also refuses an export without keys.
fn load(source: &SourceFile) -> Result<Summary, reload::Failure> {
    let seed = getrandom::u64().map_err(reload::Failure::Random)?;
    let Loaded { keys, .. } = source.load(seed)?;
    match keys.is_empty() {
        true => Err(reload::Failure::Empty { path: source.path.to_path_buf() }),
        false => Ok(keys.summary(Clock::new().now().unix)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::run_with;
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    /// Checks an export; the directory's name is left out of the output.
    fn check(export: &str, options: &[&str]) -> (Exit, String, String) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys.csv");
        std::fs::write(&path, export).expect("writes");
        let path = path.to_str().expect("UTF-8");
        let (exit, output, messages) = run_with(&[&["check", "--source", path], options].concat(), b"");
        (exit, output.replace(path, "keys.csv"), messages.replace(path, "keys.csv"))
    }

    #[test]
    fn a_good_export_is_summed_up() {
        let export = format!(
            "key_hash,key_id,owner,status,expires_at,limits\n{A},k1,acme,,1,100/s\n{B},k1,acme,revoked,,100/s\n"
        );
        let (exit, output, messages) = check(&export, &[]);
        assert_eq!(
            output,
            "keys.csv: 2 keys (1 active, 1 revoked, 1 expired), 1 key id, 1 owner, 1 policy: ok\n"
        );
        assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
        let (exit, output, _) = check(&export, &["--json"]);
        assert_eq!(
            output,
            "{\"ok\":true,\"source\":\"keys.csv\",\"keys\":2,\"key_ids\":1,\"owners\":1,\"policies\":1,\
             \"active\":1,\"disabled\":0,\"revoked\":1,\"expired\":1,\"not_yet_valid\":0,\"without_limits\":0}\n"
        );
        assert_eq!(exit, Exit::Done);
    }

    #[test]
    fn every_finding_has_its_place() {
        let export = format!("key_hash,key_id,limits\n{A},k1,100\n{A},k2,\n{A},k3,\n");
        let (exit, output, messages) = check(&export, &[]);
        assert_eq!((exit, output.as_str()), (Exit::BadInput, ""));
        assert_eq!(
            messages,
            "keys.csv:2: column 3 (limits): \"100\" is not a rate; write it as 100/s or 1000/h burst 50\n\
             keys.csv:4: the same key_hash as in line 3; a key may be listed once\n"
        );
        let (exit, output, messages) = check(&export, &["--json"]);
        assert_eq!(
            output,
            "{\"ok\":false,\"source\":\"keys.csv\",\"total_findings\":2,\"findings\":[{\"line\":2,\
             \"column\":\"column 3 (limits)\",\"message\":\"\\\"100\\\" is not a rate; write it as 100/s or \
             1000/h burst 50\"},{\"line\":4,\"message\":\"the same key_hash as in line 3; a key may be listed \
             once\"}]}\n"
        );
        assert_eq!((exit, messages.as_str()), (Exit::BadInput, ""));
    }

    #[test]
    fn the_first_twenty_findings_are_shown_and_the_rest_counted() {
        let export = format!("key_hash,key_id\n{}", "x,k\n".repeat(30));
        let (_, _, messages) = check(&export, &[]);
        assert_eq!(messages.lines().count(), 21);
        assert!(messages.ends_with("keys.csv: and 10 more\n"), "{messages}");
    }

    #[test]
    fn an_export_without_keys_is_wrong() {
        let (exit, _, messages) = check("key_hash,key_id\n", &[]);
        assert_eq!(exit, Exit::BadInput);
        assert!(messages.starts_with("keyward: keys.csv: no keys in it"), "{messages}");
        let (exit, output, _) = check("key_hash,key_id\n", &["--json"]);
        assert_eq!(exit, Exit::BadInput);
        assert!(
            output.starts_with("{\"ok\":false,\"source\":\"keys.csv\",\"error\":\"keys.csv: no"),
            "{output}"
        );
    }
}
