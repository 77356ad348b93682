//! `keyward balance`: what a key has left on each limit, and the ways to reset it.

use std::fmt;
use std::time::Duration;

use clap::Args;

use super::exit::{CliError, Exit};
use super::format::{Count, HumanDuration, Word};
use super::options::{AdminSocket, parse_duration};
use super::streams::Streams;
use keyward_admin::message::{CalendarReset, KeyBalances, LimitBalance, LimitKind};
use keyward_admin::{message, send_command_within};

const HELP: &str = "\
A balance below zero is one that debits have overdrawn, or that a smaller limit has taken away.

--reset makes the limits of the key unspent: token buckets are full, and of calendar quotas and credits nothing is spent.
A limit that the keys of an owner share is reset for all of them. The reset is in force when the command returns, and is
saved with the balances (state.save_interval). The audit trail records who reset which limit of which key, and what its
balance was.

--reset-calendar is for a clock that was ahead and has been corrected. Calendar windows do not go back, so quotas would wait
until the clock reaches the time that it showed before (keyward status). This sets the calendar back to the clock. What was
spent in windows that have not begun yet counts as spent in the current ones. Each quota can admit at most its count once
more than it should.

Examples:
  keyward balance key_1
  keyward balance key_1 --reset --limit tokens
  keyward balance --reset-calendar";

/// Show what a key has left on its limits, or reset it
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Balance {
    /// The key's id: never the key itself
    #[arg(value_name = "KEY_ID", required_unless_present = "reset_calendar")]
    key_id: Option<String>,

    /// Make the limits of the key unspent
    #[arg(long, requires = "key_id")]
    reset: bool,

    /// Reset only the limit of this name
    #[arg(long, value_name = "NAME", requires = "reset")]
    limit: Option<String>,

    /// Set the calendar of the quotas back to the system's clock
    #[arg(long, conflicts_with_all = ["key_id", "reset", "limit"])]
    reset_calendar: bool,

    #[command(flatten)]
    socket: AdminSocket,

    /// How long the daemon may take: it finishes a reload first
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    deadline: Duration,

    /// Print the outcome as one JSON object
    #[arg(long)]
    json: bool,
}

impl Balance {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        let reply = send_command_within(self.socket.path()?.as_path(), &self.command(), self.deadline);
        let reply = reply.map_err(|error| {
            let is_change = self.reset || self.reset_calendar;
            if is_change { CliError::of_change(error, HINT) } else { error.into() }
        })?;
        if self.reset_calendar {
            let reset = reply.calendar.ok_or_else(|| CliError::missing_in_reply("calendar"))?;
            if self.json {
                streams.print_json(&reset)?;
            } else {
                streams.print(CalendarText(&reset))?;
            }
        } else {
            let balances = reply.balances.ok_or_else(|| CliError::missing_in_reply("list of balances"))?;
            if self.json {
                streams.print_json(&balances)?;
            } else {
                streams.print(BalancesText(&balances))?;
            }
        }
        Ok(Exit::Done)
    }

    fn command(&self) -> message::Command {
        let key_id = self.key_id.clone().unwrap_or_default();
        match (self.reset_calendar, self.reset) {
            (true, _) => message::Command::ResetCalendar,
            (false, true) => message::Command::ResetBalance { key_id, limit: self.limit.clone() },
            (false, false) => message::Command::Balance { key_id },
        }
    }
}

/// How to find out whether a reset that was not answered has been carried out.
const HINT: &str = "the reset may still come into force: audit.jsonl records it";

/// The balances as text: a line for each limit.
struct BalancesText<'a>(&'a KeyBalances);

impl fmt::Display for BalancesText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KeyBalances { key_id, limits } = self.0;
        write!(f, "{}: {}", Word(key_id), Count(limits.len(), "limit"))?;
        limits.iter().try_for_each(|limit| write!(f, "\n  {}", LimitText(limit)))
    }
}

/// As in `tokens (token bucket): -300 of 1000, full in 2 min, overdraft 500`.
struct LimitText<'a>(&'a LimitBalance);

impl fmt::Display for LimitText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LimitBalance { name, kind, limit, overdraft, balance, reset_ms, owner, shadow, before } = self.0;
        let (kind, reset) = match kind {
            LimitKind::TokenBucket => ("token bucket", "full in"),
            LimitKind::CalendarQuota => ("calendar quota", "begins anew in"),
            LimitKind::Credits => ("credits", ""),
        };
        write!(f, "{} ({kind}): {balance} of {limit}", Word(name))?;
        if let Some(milliseconds) = reset_ms.filter(|milliseconds| *milliseconds > 0) {
            write!(f, ", {reset} {}", HumanDuration::milliseconds(milliseconds))?;
        }
        if *overdraft > 0 {
            write!(f, ", overdraft {overdraft}")?;
        }
        if let Some(owner) = owner {
            write!(f, ", shared by all keys of owner {}", Word(owner))?;
        }
        if *shadow {
            write!(f, ", shadow")?;
        }
        match before {
            Some(before) => write!(f, "; RESET, it was {before}"),
            None => Ok(()),
        }
    }
}

struct CalendarText<'a>(&'a CalendarReset);

impl fmt::Display for CalendarText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CalendarReset { ahead_s, moved } = self.0;
        if *ahead_s == 0 {
            return write!(f, "the calendar is not ahead of the system's clock; nothing was changed");
        }
        let ahead = HumanDuration::seconds((*ahead_s).into());
        let moved = Count(*moved, "balance");
        write!(
            f,
            "the calendar was {ahead} ahead of the system's clock, and is set back; {moved} moved to the current windows"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::super::tests::parse;
    use super::*;

    fn command(arguments: &[&str]) -> Option<message::Command> {
        match parse(&[&["balance"], arguments].concat()) {
            Ok(Command::Balance(balance)) => Some(balance.command()),
            _ => None,
        }
    }

    #[test]
    fn only_a_named_key_is_reset() {
        let key_id = || "a".to_owned();
        assert_eq!(command(&["a"]), Some(message::Command::Balance { key_id: key_id() }));
        let reset = |limit: Option<&str>| {
            Some(message::Command::ResetBalance { key_id: key_id(), limit: limit.map(str::to_owned) })
        };
        assert_eq!(command(&["a", "--reset", "--json"]), reset(None));
        assert_eq!(command(&["a", "--reset", "--limit", "tokens"]), reset(Some("tokens")));
        assert_eq!(command(&["--reset-calendar"]), Some(message::Command::ResetCalendar));
        for wrong in [
            &[][..],
            &["--reset"],
            &["a", "b"],
            &["a", "--limit", "tokens"],
            &["a", "--reset-calendar"],
            &["--reset", "--reset-calendar"],
        ] {
            assert_eq!(command(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn text_has_a_line_for_each_limit() {
        let tokens = LimitBalance {
            name: "tokens".to_owned(),
            kind: LimitKind::TokenBucket,
            limit: 1_000,
            overdraft: 500,
            balance: -300,
            reset_ms: Some(120_000),
            owner: None,
            shadow: false,
            before: None,
        };
        let monthly = LimitBalance {
            name: "per month".to_owned(),
            kind: LimitKind::CalendarQuota,
            owner: Some("acme".to_owned()),
            shadow: true,
            overdraft: 0,
            ..tokens.clone()
        };
        let credits = LimitBalance {
            name: "credits".to_owned(),
            kind: LimitKind::Credits,
            balance: 1_000,
            overdraft: 0,
            reset_ms: None,
            before: Some(-20),
            ..tokens.clone()
        };
        let balances = KeyBalances { key_id: "a".to_owned(), limits: vec![tokens, monthly, credits] };
        assert_eq!(
            BalancesText(&balances).to_string(),
            "a: 3 limits\n  \
             tokens (token bucket): -300 of 1000, full in 2 min, overdraft 500\n  \
             \"per month\" (calendar quota): -300 of 1000, begins anew in 2 min, shared by all keys of owner acme, shadow\n  \
             credits (credits): 1000 of 1000; RESET, it was -20"
        );
    }

    #[test]
    fn calendar_that_is_not_ahead_is_left_alone() {
        let text = |ahead_s, moved| CalendarText(&CalendarReset { ahead_s, moved }).to_string();
        assert_eq!(text(0, 0), "the calendar is not ahead of the system's clock; nothing was changed");
        assert_eq!(
            text(90_000, 1),
            "the calendar was 1 d 1 h ahead of the system's clock, and is set back; 1 balance moved to the current windows"
        );
    }
}
