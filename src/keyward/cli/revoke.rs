//! `keyward revoke` and `keyward unrevoke`: revoke a key or all keys of an owner, and take a
//! revocation back.

use std::fmt;
use std::time::Duration;

use clap::Args;

use super::exit::{CliError, Exit};
use super::format::{Count, Word};
use super::options::{AdminSocket, parse_duration};
use super::streams::Streams;
use keyward_admin::{message, send_command_within};

const REVOKE_HELP: &str = "\
When the command returns, the key is refused on every connection. It stays refused through restarts and reloads until
the source has had it as revoked for revocation.keep (by default 7 days), or the revocation is taken back. All keys that
share the id are revoked. keyward status --revocations lists all revocations.

If the state directory cannot be written, the key is refused all the same. The command then prints NOT DURABLE and the
reason, and its exit code is 1. The daemon writes the revocation as soon as it can.

Examples:
  keyward revoke key_1
  keyward revoke --owner acme";

const UNREVOKE_HELP: &str = "\
When the command returns, the status of the key in the source applies again, on every connection. A key that is revoked by
its id and by its owner stays revoked until both revocations are taken back. If the state directory cannot be written, the
command prints NOT DURABLE, and its exit code is 1: a restart before it can be written revokes the key again.

Examples:
  keyward unrevoke key_1
  keyward unrevoke --owner acme";

/// Revoke a key, or all keys of an owner, at once
#[derive(Debug, Args)]
#[command(after_help = REVOKE_HELP)]
pub(super) struct Revoke {
    #[command(flatten)]
    options: RevocationOptions,
}

/// Take a revocation back
#[derive(Debug, Args)]
#[command(after_help = UNREVOKE_HELP)]
pub(super) struct Unrevoke {
    #[command(flatten)]
    options: RevocationOptions,
}

#[derive(Debug, Args)]
struct RevocationOptions {
    #[command(flatten)]
    target: Target,

    #[command(flatten)]
    socket: AdminSocket,

    /// How long the daemon may take
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    deadline: Duration,

    /// Print the outcome as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// The key's id: never the key itself
    #[arg(value_name = "KEY_ID")]
    key_id: Option<String>,

    /// All keys of this owner
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,
}

impl Revoke {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        self.options.send(message::Command::Revoke, "revoked", streams)
    }
}

impl Unrevoke {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        self.options.send(message::Command::Unrevoke, "unrevoked", streams)
    }
}

impl RevocationOptions {
    fn send(
        &self,
        command: fn(message::Target) -> message::Command,
        done: &'static str,
        streams: &mut Streams<'_>,
    ) -> Result<Exit, CliError> {
        let Target { key_id, owner } = &self.target;
        let target = message::Target { key_id: key_id.clone(), owner: owner.clone() };
        let reply = send_command_within(self.socket.path()?.as_path(), &command(target), self.deadline);
        let reply = reply.map_err(|error| CliError::of_change(error, HINT))?;
        let outcome = reply.revocation.ok_or_else(|| CliError::missing_in_reply("revocation"))?;
        if self.json {
            streams.print_json(&outcome)?;
        } else {
            streams.print(OutcomeText { done, outcome: &outcome })?;
        }
        // A revocation that does not survive a restart is in force, but it is not what was
        // requested.
        Ok(if outcome.durable { Exit::Done } else { Exit::Denied })
    }
}

/// How to find out whether a command that was not answered has been carried out.
const HINT: &str =
    "what was asked for may still come into force: keyward status --revocations lists what is revoked";

/// As in `revoked key_1 (2 keys), in force on every connection, generation 7`.
struct OutcomeText<'a> {
    done: &'static str,
    outcome: &'a message::Revocation,
}

/// The target of a revocation, as in `key_1` or `owner acme`.
pub(super) struct TargetName<'a>(pub(super) &'a message::Target);

impl fmt::Display for TargetName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.0.key_id, &self.0.owner) {
            (Some(key_id), _) => Word(key_id).fmt(f),
            (None, owner) => write!(f, "owner {}", Word(owner.as_deref().unwrap_or_default())),
        }
    }
}

impl fmt::Display for OutcomeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message::Revocation { target, already, keys, revoked, generation, .. } = self.outcome;
        let (named, done) = (TargetName(target), self.done);
        if *already {
            write!(f, "{named} was {done} already")?;
        } else {
            write!(f, "{done} {named}")?;
        }
        if *generation == 0 {
            write!(f, "; no keys are loaded yet, and it will hold when they are")?;
            return self.durability(f);
        }
        write!(f, " ({}), in force on every connection, generation {generation}", Count(*keys, "key"))?;
        if done == "unrevoked" && *revoked > 0 {
            let are = if *revoked == 1 { "is" } else { "are" };
            write!(f, "; {revoked} of them {are} still revoked, by the source or by another revocation")?;
        }
        self.durability(f)
    }
}

impl OutcomeText<'_> {
    fn durability(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(reason) = &self.outcome.not_durable else { return Ok(()) };
        let restart = match self.done {
            "revoked" => "forgets it",
            _ => "revokes it again",
        };
        write!(
            f,
            "\nNOT DURABLE: a restart {restart}, unless it can be written before (keyward status): {reason}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use super::*;

    fn target(key_id: Option<&str>, owner: Option<&str>) -> message::Target {
        message::Target { key_id: key_id.map(str::to_owned), owner: owner.map(str::to_owned) }
    }

    fn outcome_text(done: &'static str, outcome: &message::Revocation) -> String {
        OutcomeText { done, outcome }.to_string()
    }

    /// A command for `key_1`, which has two rows.
    fn two_keys() -> message::Revocation {
        message::Revocation {
            target: target(Some("key_1"), None),
            already: false,
            keys: 2,
            revoked: 2,
            generation: 7,
            durable: true,
            not_durable: None,
        }
    }

    #[test]
    fn exactly_one_target_is_required() {
        for command in ["revoke", "unrevoke"] {
            assert!(parse(&[command, "key_1"]).is_ok());
            assert!(parse(&[command, "--owner", "acme", "--json", "--deadline", "1s"]).is_ok());
            for wrong in [&[command][..], &[command, "key_1", "--owner", "acme"], &[command, "a", "b"]] {
                assert!(parse(wrong).is_err(), "{wrong:?}");
            }
        }
    }

    #[test]
    fn outcome_reports_the_number_of_keys() {
        let mut outcome = two_keys();
        let in_force = "(2 keys), in force on every connection, generation 7";
        assert_eq!(outcome_text("revoked", &outcome), format!("revoked key_1 {in_force}"));
        assert_eq!(
            outcome_text("unrevoked", &outcome),
            format!(
                "unrevoked key_1 {in_force}; 2 of them are still revoked, by the source or by another revocation"
            )
        );
        outcome = message::Revocation { already: true, target: target(None, Some("a b")), ..outcome };
        assert_eq!(
            outcome_text("revoked", &outcome),
            format!("owner \"a b\" was revoked already {in_force}")
        );
        outcome = message::Revocation { already: false, generation: 0, keys: 0, ..outcome };
        assert_eq!(
            outcome_text("revoked", &outcome),
            "revoked owner \"a b\"; no keys are loaded yet, and it will hold when they are"
        );
    }

    #[test]
    fn json_of_a_revocation_is_flat() {
        let outcome = two_keys();
        let text = serde_json::to_string(&outcome).expect("JSON");
        assert_eq!(
            text,
            r#"{"key_id":"key_1","already":false,"keys":2,"revoked":2,"generation":7,"durable":true}"#
        );
        assert_eq!(serde_json::from_str::<message::Revocation>(&text).expect("the same"), outcome);
        let command: message::Command =
            serde_json::from_str(r#"{"command":"unrevoke","owner":"acme"}"#).expect("a command");
        assert_eq!(command, message::Command::Unrevoke(target(None, Some("acme"))));
        assert!(serde_json::from_str::<message::Command>(r#"{"command":"revoke","key":"x"}"#).is_err());
    }
}
