//! `keyward usage`: the usage of keys since the start of the daemon.

use std::fmt::{self, Write};
use std::time::Duration;

use clap::Args;
use clap::builder::RangedU64ValueParser;

use super::exit::{CliError, Exit};
use super::format::{Count, Word};
use super::options::{AdminSocket, parse_duration};
use super::streams::Streams;
use keyward_admin::message::{KeyUsage, LimitUsage, MAX_LISTED, UsageCounts, UsageReport};
use keyward_admin::{message, send_command_within};

const HELP: &str = "\
The counts are those of the running daemon since its start. Earlier usage, and the usage of keys that are no longer in the
source, is in usage.jsonl in the state directory, with a line for each used key in each interval.

`cost` is what the requests charged on each limit that they did not name. If a key had costs for named limits, debits or
refunds, its limits follow: what was really charged, debited and refunded on each.

Examples:
  keyward usage --top 10
  keyward usage --key key_1042
  keyward usage --owner acme --json | jq '.total.cost'
  keyward usage --key key_1042 --json | jq '.total.limits.tokens'";

/// Show what keys have used since the daemon's start
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Usage {
    /// One key, by its id
    #[arg(long, value_name = "ID", conflicts_with_all = ["owner", "top"])]
    key: Option<String>,

    /// All keys of an owner
    #[arg(long, value_name = "OWNER", conflicts_with = "top")]
    owner: Option<String>,

    /// The keys that cost most [default: 20]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=MAX_LISTED as u64))]
    top: Option<usize>,

    #[command(flatten)]
    socket: AdminSocket,

    /// How long the daemon may take to answer
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    deadline: Duration,

    /// Print the usage as one JSON object
    #[arg(long)]
    json: bool,
}

/// The default number of keys that are shown.
const DEFAULT_TOP: usize = 20;

impl Usage {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        let reply = send_command_within(self.socket.path()?.as_path(), &self.command(), self.deadline)?;
        let totals = reply.usage.ok_or_else(|| CliError::missing_in_reply("usage"))?;
        match self.target().filter(|_| totals.matched == 0) {
            _ if self.json => streams.print_json(&totals)?,
            Some((what, name)) => streams.print(format_args!(
                "no usage of the {what} {name} is recorded since the daemon's start, {}: there was none, or there is no such {what}",
                totals.since
            ))?,
            None => streams.print(UsageText(&totals))?,
        }
        Ok(Exit::Done)
    }

    /// The key or owner that is queried, if any.
    fn target(&self) -> Option<(&'static str, Word<'_>)> {
        let key = self.key.as_deref().map(|key| ("key", Word(key)));
        key.or_else(|| self.owner.as_deref().map(|owner| ("owner", Word(owner))))
    }

    fn command(&self) -> message::Command {
        let (key_id, owner) = (self.key.clone(), self.owner.clone());
        let top = (key_id.is_none() && owner.is_none()).then(|| self.top.unwrap_or(DEFAULT_TOP));
        message::Command::Usage { key_id, owner, top }
    }
}

/// The usage as text: a line for each key, and two lines with the totals.
struct UsageText<'a>(&'a UsageReport);

impl fmt::Display for UsageText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UsageReport { since, matched, total, unknown, keys, .. } = self.0;
        for key in keys {
            writeln!(f, "{}", line(key))?;
        }
        let listed = match keys.len() {
            len if len == *matched => String::new(),
            len => format!(" ({len} listed)"),
        };
        writeln!(f, "{}{listed}: {}{}", Count(*matched, "key"), counts(total), of_limits(total))?;
        let mut others = String::new();
        for (verdict, count) in unknown.iter().filter(|(_, count)| **count > 0) {
            // Writing to a String cannot fail.
            let _ = write!(others, "; {verdict} {count}");
        }
        write!(f, "since the daemon's start, {since}{others}")
    }
}

fn line(key: &KeyUsage) -> String {
    let mut text = Word(&key.key_id).to_string();
    if !key.owner.is_empty() {
        text += &format!(" ({})", Word(&key.owner));
    }
    text += &format!(": {}", counts(&key.counts));
    if let Some(last) = key.last_used.and_then(|unix| jiff::Timestamp::from_second(unix.into()).ok()) {
        text += &format!(", last used {last}");
    }
    text + &of_limits(&key.counts)
}

/// As in `; requests: charged 10; tokens: charged 1500, refunded 3`.
fn of_limits(counts: &UsageCounts) -> String {
    let mut text = String::new();
    for (name, LimitUsage { charged, debited, refunded }) in counts.limits.iter().flatten() {
        // Writing to a String cannot fail.
        let _ = write!(text, "; {}: charged {charged}", Word(name));
        for (what, amount) in [("debited", debited), ("refunded", refunded)].iter().filter(|(_, of)| **of > 0)
        {
            let _ = write!(text, ", {what} {amount}");
        }
    }
    text
}

/// As in `10 allowed, cost 12, RATE_LIMITED 3`, without other counts that are zero.
fn counts(counts: &UsageCounts) -> String {
    let UsageCounts { allowed, denied, cost, refunded, debited, shadow_limited, peeked, limits: _ } = counts;
    let mut text = format!("{allowed} allowed, cost {cost}");
    let denied = denied.iter().map(|(verdict, count)| (verdict.as_str(), count));
    let others = [
        ("refunded", refunded),
        ("debited", debited),
        ("shadow-limited", shadow_limited),
        ("peeked", peeked),
    ];
    for (name, count) in denied.chain(others).filter(|(_, count)| **count > 0) {
        // Writing to a String cannot fail.
        let _ = write!(text, ", {name} {count}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::super::tests::parse;
    use super::*;

    fn command(arguments: &[&str]) -> Option<message::Command> {
        match parse(&[&["usage"], arguments].concat()) {
            Ok(Command::Usage(usage)) => Some(usage.command()),
            _ => None,
        }
    }

    #[test]
    fn at_most_one_query_is_accepted() {
        let asked = |key_id: Option<&str>, owner: Option<&str>, top| {
            let [key_id, owner] = [key_id, owner].map(|text| text.map(str::to_owned));
            Some(message::Command::Usage { key_id, owner, top })
        };
        assert_eq!(command(&[]), asked(None, None, Some(20)));
        assert_eq!(command(&["--top", "3"]), asked(None, None, Some(3)));
        assert_eq!(command(&["--key", "a"]), asked(Some("a"), None, None));
        assert_eq!(command(&["--owner", "o"]), asked(None, Some("o"), None));
        for wrong in [&["--key", "a", "--owner", "o"][..], &["--owner", "o", "--top", "1"], &["--top", "0"]] {
            assert_eq!(command(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn text_lists_keys_and_totals() {
        let key = KeyUsage {
            key_id: "a".to_owned(),
            owner: "acme inc".to_owned(),
            counts: UsageCounts {
                allowed: 10,
                cost: 12,
                denied: [("RATE_LIMITED".to_owned(), 3)].into(),
                refunded: 2,
                limits: Some(
                    [
                        ("requests".to_owned(), LimitUsage { charged: 10, ..LimitUsage::default() }),
                        ("tokens".to_owned(), LimitUsage { charged: 1_500, debited: 20, refunded: 3 }),
                    ]
                    .into(),
                ),
                ..UsageCounts::default()
            },
            first_used: Some(1_795_255_200),
            last_used: Some(1_795_255_201),
        };
        let totals = UsageReport {
            since: "2026-11-21T09:00:00.000Z".to_owned(),
            as_of: "2026-11-21T10:00:00.000Z".to_owned(),
            matched: 2,
            total: UsageCounts {
                allowed: 11,
                cost: 13,
                limits: Some(
                    [("default".to_owned(), LimitUsage { refunded: 1, ..LimitUsage::default() })].into(),
                ),
                ..UsageCounts::default()
            },
            unknown: [("UNKNOWN_KEY".to_owned(), 7), ("MALFORMED_KEY".to_owned(), 0)].into(),
            keys: vec![key],
        };
        assert_eq!(
            UsageText(&totals).to_string(),
            "a (\"acme inc\"): 10 allowed, cost 12, RATE_LIMITED 3, refunded 2, last used 2026-11-21T10:00:01Z\
             ; requests: charged 10; tokens: charged 1500, debited 20, refunded 3\n\
             2 keys (1 listed): 11 allowed, cost 13; default: charged 0, refunded 1\n\
             since the daemon's start, 2026-11-21T09:00:00.000Z; UNKNOWN_KEY 7"
        );
    }
}
