//! `keyward status`: the state of the daemon.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::exit::{CliError, Exit};
use super::format::{Ago, Count, HumanDuration};
use super::options::{AdminSocket, parse_duration};
use super::reload::{NotDurable, summary};
use super::revoke::TargetName;
use super::streams::Streams;
use super::withheld;
use keyward_admin::{message, send_command_within};

const HELP: &str = "\
The exit code is 0 if the daemon answered, and 69 if it did not. The state of the daemon does not matter.

Example, for a monitor:
  keyward status --json | jq -e '.ready and (.stale | not)'";

/// Maximum number of revocations that are shown, so that the rest fits a screen.
const SHOWN_REVOCATIONS: usize = 20;

/// Show the daemon's state: keys, last reload, answers
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Status {
    #[command(flatten)]
    socket: AdminSocket,

    /// List all revocations instead, in the order of their names
    #[arg(long)]
    revocations: bool,

    /// How long the daemon may take to answer
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    deadline: Duration,

    /// Print the status as one JSON object
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        let path = self.socket.path()?;
        if self.revocations {
            return self.list_revocations(path.as_path(), streams);
        }
        let reply = send_command_within(path.as_path(), &message::Command::Status, self.deadline)?;
        let status = reply.status.ok_or_else(|| CliError::missing_in_reply("status"))?;
        if self.json {
            streams.print_json(&status)?;
        } else {
            streams.print(StatusText(&status))?;
        }
        Ok(Exit::Done)
    }

    /// Prints a line for each revocation, page by page. With `--json`, each line is an object.
    fn list_revocations(&self, path: &Path, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        let mut after = None;
        loop {
            let reply = send_command_within(path, &message::Command::Revocations { after }, self.deadline)?;
            let page = reply.revocations.ok_or_else(|| CliError::missing_in_reply("list of revocations"))?;
            for revoked in &page.entries {
                if self.json {
                    streams.print_json(revoked)?;
                } else {
                    streams.print(RevokedText(revoked))?;
                }
            }
            after = page.entries.last().map(|revoked| revoked.target.clone());
            if !page.more || after.is_none() || streams.is_closed() {
                return Ok(Exit::Done);
            }
        }
    }
}

/// As in `key_1 since 2026-11-21T10:00:00Z, by user 0`.
struct RevokedText<'a>(&'a message::Revoked);

impl fmt::Display for RevokedText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message::Revoked { target, when, by_uid, durable, agreed_since, conflict_since } = self.0;
        write!(f, "{} since {when}, by user {by_uid}", TargetName(target))?;
        if let Some(since) = agreed_since {
            write!(f, "; the source says the same since {since}")?;
        }
        if let Some(since) = conflict_since {
            write!(f, "; CONFLICT: the source says active since {since}")?;
        }
        f.write_str(if *durable { "" } else { "; NOT DURABLE" })
    }
}

/// The status as text: a line for each part, which begins with its name.
struct StatusText<'a>(&'a message::Status);

impl fmt::Display for StatusText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.0;
        let message::Status { table_generation, connections, .. } = status;
        let mut generation = status.generation.to_string();
        // An older daemon does not report the second number.
        if ![0, status.generation].contains(table_generation) {
            // Something has been revoked since the reload.
            _ = write!(generation, ", with the keys of {table_generation}");
        }
        let (keys, buckets) = (Count(status.keys, "key"), Count(status.buckets, "bucket"));
        match (status.ready, status.stale) {
            (true, false) => writeln!(f, "ready        generation {generation}: {keys}, {buckets}")?,
            (_, true) => writeln!(f, "STALE        generation {generation}: {keys}, too old to be served")?,
            (false, false) => writeln!(f, "NOT READY    no keys have been loaded")?,
        }
        write!(f, "source       {}", status.source)?;
        match status.source_age_s {
            Some(age) => writeln!(f, ", written {}", Ago(age))?,
            None => writeln!(f)?,
        }
        self.last_good(f)?;
        self.withheld(f)?;
        self.reloads(f)?;
        self.unwritten(f)?;
        self.revocations(f)?;
        self.calendar(f)?;
        self.sockets(f)?;
        self.log(f)?;
        let accepted = status.accepted_connections;
        writeln!(f, "connections  {connections} open, {accepted} accepted{}", refused(status))?;
        writeln!(f, "answers      {}", answers(status))?;
        write!(f, "daemon       {}", process(status))
    }
}

impl StatusText<'_> {
    /// The last good keys, if they are in use or unusable.
    fn last_good(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(last_good) = &self.0.last_good else { return Ok(()) };
        let message::LastGood { in_use_s, accepted_age_s, source_age_s, generation, .. } = last_good;
        if let (Some(since), Some(accepted), Some(written)) = (in_use_s, accepted_age_s, source_age_s) {
            writeln!(
                f,
                "last good    IN USE for {}, because the source was refused: keys accepted {} as generation {generation}, \
                 written {}",
                HumanDuration::seconds(*since),
                Ago(*accepted),
                Ago(*written)
            )?;
        }
        if let Some(why) = &last_good.unusable {
            writeln!(f, "last good    NOT USABLE: {why}")?;
        }
        Ok(())
    }

    fn withheld(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.0.withheld.as_ref().map(withheld::lines).unwrap_or_default();
        lines.into_iter().try_for_each(|line| writeln!(f, "WITHHELD     {line}"))
    }

    fn reloads(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(last) = &self.0.last_reload else {
            return Ok(());
        };
        let age = Ago(last.age_s);
        if last.accepted
            && let Some(error) = &self.0.configuration_refused
        {
            writeln!(f, "config       REFUSED, what was read before it is in force:")?;
            error.lines().try_for_each(|line| writeln!(f, "             {line}"))?;
        }
        if last.accepted {
            let took = HumanDuration::milliseconds(last.took_ms);
            writeln!(f, "reload       {age}, in {took}: {}", summary(last))?;
            return not_durable(last, f);
        }
        writeln!(f, "reload       REFUSED {age}:")?;
        for line in last.error.as_deref().unwrap_or("no reason given").lines() {
            writeln!(f, "             {line}")?;
        }
        match &self.0.last_accepted {
            Some(accepted) => {
                writeln!(f, "             accepted {}: {}", Ago(accepted.age_s), summary(accepted))?;
                not_durable(accepted, f)
            }
            None => Ok(()),
        }
    }

    fn unwritten(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut heading = "NOT WRITTEN";
        for message::Unwritten { file, since, since_s, error, dropped } in &self.0.unwritten {
            write!(f, "{heading:12} {file}, since {since} ({})", Ago(*since_s))?;
            if *dropped > 0 {
                write!(f, ", {} dropped", Count(*dropped, "record"))?;
            }
            writeln!(f, ": {error}")?;
            heading = "";
        }
        Ok(())
    }

    fn revocations(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revocations = &self.0.revocations;
        let mut heading = "revoked";
        for revoked in revocations.iter().take(SHOWN_REVOCATIONS) {
            writeln!(f, "{heading:12} {}", RevokedText(revoked))?;
            heading = "";
        }
        match self.0.revocations_total.saturating_sub(revocations.len().min(SHOWN_REVOCATIONS)) {
            0 => Ok(()),
            more => writeln!(f, "{heading:12} and {more} more: keyward status --revocations lists them"),
        }
    }

    /// A calendar that is ahead of the system's clock.
    fn calendar(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.calendar_ahead_s {
            0 => Ok(()),
            ahead => writeln!(
                f,
                "calendar     AHEAD of the system's clock by {}: quotas wait for it (keyward balance --reset-calendar)",
                HumanDuration::seconds(ahead.into())
            ),
        }
    }

    /// Sockets that clients cannot reach.
    fn sockets(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problems =
            self.0.sockets.iter().filter_map(|(name, socket)| Some((name, socket.problem.as_ref()?)));
        problems
            .into_iter()
            .try_for_each(|(name, problem)| writeln!(f, "socket       {name} UNREACHABLE: {problem}"))
    }

    /// Lines that are missing from the log.
    fn log(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message::LogStatus { dropped, failing_since, error } = &self.0.log;
        let lines = Count(*dropped, "line");
        match (dropped, failing_since) {
            (0, _) => Ok(()),
            (_, None) => writeln!(f, "log          {lines} dropped since the start"),
            (_, Some(since)) => {
                let error = error.as_deref().unwrap_or("no reason given");
                writeln!(f, "log          FAILING since {since}: {error}; {lines} dropped since the start")
            }
        }
    }
}

/// Why the accepted source would not survive a restart.
fn not_durable(accepted: &message::Reload, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match &accepted.not_durable {
        Some(reason) => writeln!(f, "             {}", NotDurable(reason)),
        None => Ok(()),
    }
}

fn refused(status: &message::Status) -> String {
    match status.refused_connections.values().sum::<u64>() {
        0 => String::new(),
        total => format!(", {total} refused ({})", list_counts(&status.refused_connections)),
    }
}

fn answers(status: &message::Status) -> String {
    let mut text = status.verdicts.values().sum::<u64>().to_string();
    let verdicts = list_counts(&status.verdicts);
    if !verdicts.is_empty() {
        text += &format!(" ({verdicts})");
    }
    if status.refunds > 0 {
        text += &format!(", {}", Count(status.refunds, "refund"));
    }
    if status.debits > 0 {
        text += &format!(", {}", Count(status.debits, "debit"));
    }
    if status.errors > 0 {
        text += &format!(", {}", Count(status.errors, "error"));
    }
    text
}

/// The counts in descending order, without those that are zero.
fn list_counts(counts: &BTreeMap<String, u64>) -> String {
    let mut counts: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let mut text = String::new();
    for (name, count) in counts {
        let separator = if text.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{name} {count}");
    }
    text
}

fn process(status: &message::Status) -> String {
    let message::Status { pid, workers, uptime_s, version, .. } = status;
    let [lowest, highest] = version.protocol;
    let protocol = if lowest == highest { lowest.to_string() } else { format!("{lowest} to {highest}") };
    let workers = Count(*workers, "worker");
    let up = HumanDuration::seconds(*uptime_s);
    format!("keyward {}, protocol {protocol}, pid {pid}, {workers}, up {up}", version.keyward)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> message::Status {
        let reload = message::Reload {
            accepted: true,
            generation: 8,
            keys: 1000,
            changes: Some(message::ChangeCounts {
                added: 1,
                removed: 2,
                deactivated: 2,
                stopping: 2,
                ..message::ChangeCounts::default()
            }),
            examples: message::AccessExamples::default(),
            error: None,
            stale: None,
            withheld: None,
            unchanged: false,
            durable: true,
            not_durable: None,
            took_ms: 3,
            revocations_agreed: 0,
            revocations_conflicting: 0,
            age_s: 75,
        };
        let counts =
            |counts: &[(&str, u64)]| counts.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        message::Status {
            ready: true,
            stale: false,
            generation: 8,
            table_generation: 8,
            keys: 1000,
            buckets: 42,
            source: "/etc/keyward/keys.csv".to_owned(),
            source_age_s: Some(80),
            last_reload: Some(reload.clone()),
            configuration_refused: None,
            last_accepted: Some(reload),
            last_good: None,
            withheld: None,
            revocations: Vec::new(),
            unwritten: Vec::new(),
            revocations_total: 0,
            calendar_ahead_s: 0,
            sockets: BTreeMap::new(),
            log: message::LogStatus::default(),
            connections: 3,
            accepted_connections: 120,
            refused_connections: counts(&[("peer", 2), ("full", 0)]),
            verdicts: counts(&[("ALLOWED", 10_000), ("EXPIRED", 0), ("UNKNOWN_KEY", 234)]),
            refunds: 2,
            debits: 0,
            errors: 1,
            uptime_s: 7_500,
            workers: 2,
            pid: 4711,
            version: message::Version { keyward: "0.1.0".to_owned(), protocol: [1, 1] },
        }
    }

    #[test]
    fn healthy_daemon_has_six_lines() {
        assert_eq!(
            StatusText(&status()).to_string(),
            "ready        generation 8: 1000 keys, 42 buckets\n\
             source       /etc/keyward/keys.csv, written 1 min 20 s ago\n\
             reload       1 min 15 s ago, in 3 ms: generation 8: 1000 keys (+1 -2 ~0; 2 stop working)\n\
             connections  3 open, 120 accepted, 2 refused (peer 2)\n\
             answers      10234 (ALLOWED 10000, UNKNOWN_KEY 234), 2 refunds, 1 error\n\
             daemon       keyward 0.1.0, protocol 1, pid 4711, 2 workers, up 2 h 5 min"
        );
    }

    #[test]
    fn revocations_are_listed_up_to_the_limit() {
        let mut status = status();
        let revoked = |number: usize| message::Revoked {
            target: match number {
                0 => message::Target { owner: Some("acme".to_owned()), key_id: None },
                _ => message::Target { key_id: Some(format!("key_{number}")), owner: None },
            },
            when: "2026-11-21T10:00:00Z".to_owned(),
            by_uid: 0,
            durable: true,
            agreed_since: None,
            conflict_since: None,
        };
        status.revocations = (0..22).map(revoked).collect();
        status.revocations_total = 1_022;
        let text = StatusText(&status).to_string();
        let first =
            "revoked      owner acme since 2026-11-21T10:00:00Z, by user 0\n             key_1 since ";
        let last = "key_19 since 2026-11-21T10:00:00Z, by user 0\n             \
                    and 1002 more: keyward status --revocations lists them\nconnections ";
        assert!(text.contains(first) && text.contains(last), "{text}");
        status.revocations.truncate(20);
        status.revocations_total = 20;
        assert!(!StatusText(&status).to_string().contains("more"));
    }

    #[test]
    fn unwritten_files_are_listed_with_time_and_reason() {
        let mut status = status();
        let unwritten = |file: &str, dropped| message::Unwritten {
            file: file.to_owned(),
            since: "2026-11-21T10:00:00Z".to_owned(),
            since_s: 75,
            error: format!("/s/{file}: cannot write to it: No space left on device (os error 28)"),
            dropped,
        };
        status.unwritten = vec![unwritten("audit.jsonl", 2), unwritten("balances", 0)];
        let expected = "\
            NOT WRITTEN  audit.jsonl, since 2026-11-21T10:00:00Z (1 min 15 s ago), 2 records dropped: \
            /s/audit.jsonl: cannot write to it: No space left on device (os error 28)\n             \
            balances, since 2026-11-21T10:00:00Z (1 min 15 s ago): \
            /s/balances: cannot write to it: No space left on device (os error 28)\n";
        let text = StatusText(&status).to_string();
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn generation_of_the_keys_is_shown_once_a_revocation_has_moved_the_other() {
        let status = message::Status { generation: 11, ..status() };
        let text = StatusText(&status).to_string();
        assert!(text.starts_with("ready        generation 11, with the keys of 8: 1000 keys, 42"), "{text}");
        let old = message::Status { table_generation: 0, ..status };
        assert!(StatusText(&old).to_string().starts_with("ready        generation 11: 1000 keys"));
    }

    #[test]
    fn last_good_keys_in_use_are_shown() {
        let mut status = status();
        status.last_good = Some(message::LastGood { generation: 7, keys: 9, ..message::LastGood::default() });
        assert!(!StatusText(&status).to_string().contains("last good"), "nothing is wrong");
        status.last_good = Some(message::LastGood {
            in_use: true,
            in_use_s: Some(5),
            why: Some("keys.csv: wrong".to_owned()),
            generation: 7,
            keys: 9,
            accepted_age_s: Some(75),
            source_age_s: Some(80),
            ..message::LastGood::default()
        });
        let text = StatusText(&status).to_string();
        let expected = "last good    IN USE for 5 s, because the source was refused: keys accepted 1 min 15 s ago as \
                        generation 7, written 1 min 20 s ago\nreload ";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn unreachable_socket_and_failing_log_are_shown() {
        let mut status = status();
        let socket = |problem: Option<&str>| message::SocketStatus {
            path: Some("/run/k.sock".to_owned()),
            adopted: false,
            reachable: problem.is_none(),
            problem: problem.map(str::to_owned),
            rebound: 0,
        };
        status.sockets.insert("admin".to_owned(), socket(None));
        status.sockets.insert("verify".to_owned(), socket(Some("the socket's file was removed")));
        status.log.dropped = 3;
        let text = StatusText(&status).to_string();
        let expected = "socket       verify UNREACHABLE: the socket's file was removed\n\
                        log          3 lines dropped since the start\nconnections ";
        assert!(text.contains(expected), "{text}");
        status.log.failing_since = Some("2026-11-21T10:00:00.000Z".to_owned());
        status.log.error = Some("standard error is not being read".to_owned());
        let text = StatusText(&status).to_string();
        let expected = "log          FAILING since 2026-11-21T10:00:00.000Z: standard error is not being read; \
                        3 lines dropped since the start\n";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn refused_reload_is_shown() {
        let mut status = status();
        if let Some(last) = &mut status.last_reload {
            *last = message::Reload {
                accepted: false,
                changes: None,
                error: Some("keys.csv:2: wrong\nkeys.csv:3: wrong".to_owned()),
                age_s: 5,
                ..last.clone()
            };
        }
        let text = StatusText(&status).to_string();
        let expected = "reload       REFUSED 5 s ago:\n             \
                        keys.csv:2: wrong\n             keys.csv:3: wrong\n             \
                        accepted 1 min 15 s ago: generation 8: 1000 keys (+1 -2 ~0; 2 stop working)\n";
        assert!(text.contains(expected), "{text}");
        (status.stale, status.ready) = (true, false);
        assert!(StatusText(&status).to_string().starts_with("STALE "));
        status.stale = false;
        assert!(StatusText(&status).to_string().starts_with("NOT READY "));
    }
}
