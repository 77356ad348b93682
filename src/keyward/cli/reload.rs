//! `keyward reload`: makes the daemon read its source again, and waits until the result is in
//! force.

use std::fmt;
use std::time::Duration;

use clap::Args;

use super::exit::{CliError, Exit};
use super::format::Count;
use super::key_change::{self, AccessCounts, KeyChange};
use super::options::{AdminSocket, parse_duration};
use super::streams::Streams;
use super::withheld;
use keyward_admin::{message, send_command_within};

const HELP: &str = "\
The command returns when the new keys are in force on every connection. A source that is refused changes nothing; what
is wrong with it is printed, and the exit code is 1. It is 1 too where the new keys are in force and none is served,
because the source is older than max_staleness.

If the state directory cannot be written, the new keys are in force all the same. The command then prints NOT DURABLE and
the reason, and its exit code is 1: a restart with a source that is refused would serve older keys, and give back what
has been taken away since. The daemon records the accepted source as soon as it can.

Example, when more than half of the keys are meant to go:
  keyward reload --force";

/// Read the source again
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Reload {
    /// Accept a source that the guard refuses: one without keys, one that changes access for more
    /// keys than max_shrink, max_reactivated or max_loosened allow, that lost a restriction, or
    /// whose keys need a pepper which is gone
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    socket: AdminSocket,

    /// How long the daemon may take
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    deadline: Duration,

    /// Print the outcome as one JSON object
    #[arg(long)]
    json: bool,
}

/// How to find out whether a reload that was not answered has been carried out.
const HINT: &str = "the reload may still be carried out: keyward status reports the last one";

impl Reload {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        let command = message::Command::Reload { force: self.force };
        let reply = send_command_within(self.socket.path()?.as_path(), &command, self.deadline);
        let reply = reply.map_err(|error| CliError::of_change(error, HINT))?;
        let outcome = reply.reload.ok_or_else(|| CliError::missing_in_reply("reload"))?;
        self.report(&outcome, streams)
    }

    fn report(&self, outcome: &message::Reload, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        if self.json {
            streams.print_json(outcome)?;
        } else if outcome.accepted {
            streams.print(summary(outcome))?;
            for line in examples(&outcome.examples) {
                streams.print(line)?;
            }
            print_withheld(outcome, streams);
            if let Some(stale) = &outcome.stale {
                streams.note(format_args!("keyward: {stale}"));
            }
            if let Some(reason) = &outcome.not_durable {
                streams.note(NotDurable(reason));
            }
        } else {
            streams.note(outcome.error.as_deref().unwrap_or("the source was refused"));
            print_withheld(outcome, streams);
            if let Some(changes) = outcome.changes {
                streams.note(format_args!("it would change{}", changes_text(&changes)));
            }
            for line in examples(&outcome.examples) {
                streams.note(line);
            }
            streams.note(match outcome.generation {
                0 => "no keys are being served".to_owned(),
                generation => {
                    format!("still serving generation {generation}: {}", Count(outcome.keys, "key"))
                }
            });
        }
        // Keys that a restart replaces by older ones are in force, but they are not what was requested.
        let is_done = outcome.accepted && outcome.stale.is_none() && outcome.durable;
        Ok(if is_done { Exit::Done } else { Exit::Denied })
    }
}

/// What a restart would do to an accepted reload that is not recorded, and why it is not.
pub(super) struct NotDurable<'a>(pub(super) &'a str);

impl fmt::Display for NotDurable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.0;
        write!(
            f,
            "NOT DURABLE: the keys are in force, but a restart with a source that is refused serves older keys and gives \
             back what has been taken away since, unless the accepted source can be recorded before (keyward status): \
             {reason}"
        )
    }
}

/// Prints the effects of bad rows, and their diagnostics.
fn print_withheld(outcome: &message::Reload, streams: &mut Streams<'_>) {
    if let Some(withheld) = &outcome.withheld {
        withheld::lines(withheld).into_iter().for_each(|line| streams.note(line));
        for diagnostic in &withheld.diagnostics {
            streams.note(format_args!("  line {}", withheld::DiagnosticText(diagnostic)));
        }
    }
}

/// As in `generation 8: 1000 keys (+1 -2 ~0)`.
pub(super) fn summary(outcome: &message::Reload) -> String {
    let message::Reload { generation, keys, .. } = outcome;
    let mut text = format!("generation {generation}: {}", Count(*keys, "key"));
    let agreed = match outcome.revocations_agreed {
        0 => String::new(),
        agreed => format!(", {} dropped, since the source says revoked itself", Count(agreed, "revocation")),
    };
    let conflicting = match outcome.revocations_conflicting {
        0 => String::new(),
        1 => ", 1 revocation conflicts with the source".to_owned(),
        many => format!(", {many} revocations conflict with the source"),
    };
    let revocations = agreed + &conflicting;
    // Keys that a refused source has taken away return with an accepted source that is otherwise
    // unchanged.
    let is_unchanged = outcome.unchanged && outcome.changes.is_none_or(|changes| changes.starting == 0);
    if is_unchanged {
        return text + ", unchanged" + &revocations;
    }
    if let Some(changes) = &outcome.changes {
        text += &changes_text(changes);
    }
    text + &revocations
}

/// As in ` (+1 -2 ~0; 2 stop working)`.
fn changes_text(changes: &message::ChangeCounts) -> String {
    let message::ChangeCounts { added, removed, changed, .. } = changes;
    format!(" (+{added} -{removed} ~{changed}{})", AccessCounts(changes))
}

/// The first keys whose access changes, one line for each.
fn examples(examples: &message::AccessExamples) -> Vec<String> {
    let groups = [
        (key_change::STOP, &examples.stopping),
        (key_change::START, &examples.starting),
        (key_change::LOOSEN, &examples.loosened),
    ];
    let lines = groups.into_iter().flat_map(|([what, _], examples)| {
        examples.iter().map(move |example| format!("  {what}: {}", KeyChange(example)))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::super::tests::parse;
    use super::*;

    fn outcome(accepted: bool, error: Option<&str>) -> message::Reload {
        let changes = message::ChangeCounts { added: 1, removed: 2, ..message::ChangeCounts::default() };
        message::Reload {
            accepted,
            generation: 8,
            keys: 1000,
            changes: accepted.then_some(changes),
            examples: message::AccessExamples::default(),
            error: error.map(str::to_owned),
            stale: None,
            withheld: None,
            unchanged: false,
            revocations_agreed: 0,
            revocations_conflicting: 0,
            durable: true,
            not_durable: None,
            took_ms: 3,
            age_s: 0,
        }
    }

    fn report(arguments: &[&str], outcome: &message::Reload) -> (Exit, String, String) {
        let Ok(Command::Reload(reload)) = parse(&[&["reload"], arguments].concat()) else {
            panic!("{arguments:?}");
        };
        let (mut input, mut output, mut messages) = (std::io::empty(), Vec::new(), Vec::new());
        let mut streams = Streams::new(&mut input, &mut output, &mut messages);
        let exit = reload.report(outcome, &mut streams).expect("reports");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (exit, text(output), text(messages))
    }

    #[test]
    fn accepted_reload_reports_its_changes() {
        let mut outcome = outcome(true, None);
        let expected = "generation 8: 1000 keys (+1 -2 ~0)\n".to_owned();
        assert_eq!(report(&[], &outcome), (Exit::Done, expected, String::new()));
        let (exit, output, _) = report(&["--json"], &outcome);
        let expected = "{\"accepted\":true,\"generation\":8,\"keys\":1000,\"changes\":{\"added\":1,\"removed\":2,\
                        \"changed\":0,\"revoked\":0,\"stopping\":0,\"starting\":0,\"loosened\":0},\"unchanged\":false,\"revocations_agreed\":0,\
                        \"revocations_conflicting\":0,\"durable\":true,\"took_ms\":3,\"age_s\":0}\n";
        assert_eq!((exit, output.as_str()), (Exit::Done, expected));
        outcome.changes =
            Some(message::ChangeCounts { stopping: 2, loosened: 1, ..message::ChangeCounts::default() });
        assert_eq!(
            summary(&outcome),
            "generation 8: 1000 keys (+0 -0 ~0; 2 stop working, 1 loses a restriction)"
        );
        outcome.unchanged = true;
        assert_eq!(summary(&outcome), "generation 8: 1000 keys, unchanged");
        outcome.revocations_conflicting = 1;
        let expected = "generation 8: 1000 keys, unchanged, 1 revocation conflicts with the source";
        assert_eq!(summary(&outcome), expected);
        (outcome.revocations_agreed, outcome.revocations_conflicting) = (1, 2);
        let expected = "generation 8: 1000 keys, unchanged, 1 revocation dropped, since the source says revoked itself, \
                        2 revocations conflict with the source";
        assert_eq!(summary(&outcome), expected);
    }

    #[test]
    fn accepted_reload_of_a_stale_source_fails() {
        let outcome = message::Reload { stale: Some("too old".to_owned()), ..outcome(true, None) };
        let (exit, output, messages) = report(&[], &outcome);
        assert_eq!((exit, messages.as_str()), (Exit::Denied, "keyward: too old\n"));
        assert!(output.starts_with("generation 8"), "{output}");
        let (exit, output, _) = report(&["--json"], &outcome);
        assert!(exit == Exit::Denied && output.contains("\"stale\":\"too old\""), "{output}");
    }

    #[test]
    fn accepted_reload_that_is_not_durable_fails() {
        let not_durable = Some("the disk is full".to_owned());
        let outcome = message::Reload { durable: false, not_durable, ..outcome(true, None) };
        let (exit, output, messages) = report(&[], &outcome);
        assert_eq!(exit, Exit::Denied);
        assert!(output.starts_with("generation 8: 1000 keys"), "{output}");
        assert!(messages.starts_with("NOT DURABLE: the keys are in force, but a restart"), "{messages}");
        assert!(messages.ends_with(": the disk is full\n"), "{messages}");
        let (exit, output, _) = report(&["--json"], &outcome);
        let expected = "\"durable\":false,\"not_durable\":\"the disk is full\"";
        assert!(exit == Exit::Denied && output.contains(expected), "{output}");
    }

    #[test]
    fn refused_reload_reports_the_reason_and_the_served_keys() {
        let mut refused = outcome(false, Some("keys.csv:2: wrong\nkeys.csv:3: wrong"));
        let expected =
            "keys.csv:2: wrong\nkeys.csv:3: wrong\nstill serving generation 8: 1000 keys\n".to_owned();
        assert_eq!(report(&[], &refused), (Exit::Denied, String::new(), expected));
        assert_eq!(report(&["--json"], &refused).0, Exit::Denied);
        refused.generation = 0;
        assert!(report(&[], &refused).2.ends_with("no keys are being served\n"));
    }
}
