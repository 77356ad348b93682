//! `keyward key check`: checks the form and the checksum of keys.

use clap::Args;
use serde::Serialize;

use crate::cli::exit::{CliError, Exit};
use crate::cli::format::Count;
use crate::cli::secret::{self, KeyReader};
use crate::cli::streams::Streams;
use keyward_engine::key_format::{CHECKSUM_CHARACTERS, KeyFormat, Prefix, RANDOM_CHARACTERS, classify};

const HELP: &str = "\
Reads one key from each line, and prints a line for each; several are numbered. No key is printed.
The exit code is 0 if every checksum matches, else 1. Only a daemon knows whether a key is in force.

Examples:
  keyward key check --prefix acme_live_ --prefix acme_test_ < key.txt
  keyward key check < keys.txt | grep -v valid:";

/// Check the form and the checksum of the keys on standard input
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(in crate::cli) struct Check {
    /// What minted keys begin with; may be repeated
    #[arg(long = "prefix", value_name = "PREFIX", default_value = "acme_live_")]
    prefixes: Vec<Prefix>,

    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    line: u64,
    valid: bool,
    #[serde(skip)]
    result: &'static str,
    reason: String,
}

impl Check {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        if streams.input_is_terminal {
            let key = secret::read_key(None, streams)?;
            let report = self.report(1, &key);
            self.print(&report, false, streams)?;
            return Ok(exit(report.valid));
        }
        self.check_all(streams)
    }

    fn check_all(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        let mut keys = KeyReader::new(streams.take_input());
        // Printed later, because the format depends on whether there are more keys.
        let mut first = match keys.next_key()? {
            Some(key) if !key.is_empty() => Some(self.report(1, key)),
            _ => return Err(CliError::new(Exit::Usage, secret::NO_KEY)),
        };
        let mut valid = first.iter().filter(|first| first.valid).count() as u64;
        while let Some(key) = keys.next_key()? {
            let (result, reason) = self.classify(key);
            let key = Report { line: keys.lines, valid: result == VALID, result, reason };
            if let Some(first) = first.take() {
                self.print(&first, true, streams)?;
            }
            valid += u64::from(key.valid);
            self.print(&key, true, streams)?;
            if streams.is_closed() {
                return Ok(exit(valid == keys.lines));
            }
        }
        match first {
            Some(only) => self.print(&only, false, streams)?,
            None => streams.note(format_args!(
                "{}: {valid} valid, {} invalid",
                Count(keys.lines, "key"),
                keys.lines - valid
            )),
        }
        Ok(exit(valid == keys.lines))
    }

    fn report(&self, line: u64, key: &[u8]) -> Report {
        let (result, reason) = self.classify(key);
        Report { line, valid: result == VALID, result, reason }
    }

    fn print(&self, report: &Report, of_many: bool, streams: &mut Streams<'_>) -> Result<(), CliError> {
        let Report { line, result, reason, .. } = report;
        match (self.json, of_many) {
            (true, _) => streams.print_json(report),
            (false, true) => streams.print(format_args!("line {line}: {result}: {reason}")),
            (false, false) => streams.print(format_args!("{result}: {reason}")),
        }
    }

    /// The result and the reason. They contain nothing of the key but its prefix.
    fn classify(&self, key: &[u8]) -> (&'static str, String) {
        let prefix = self.longest_prefix(key);
        match (classify(key, &self.prefixes), prefix) {
            (KeyFormat::Valid, _) => (VALID, "the checksum matches".to_owned()),
            (KeyFormat::Malformed, Some(prefix)) => ("malformed", malformed_reason(prefix, key)),
            _ if key.is_empty() => ("no key", "the line is empty".to_owned()),
            (KeyFormat::Malformed | KeyFormat::Foreign, _) => {
                let prefixes: Vec<_> = self.prefixes.iter().map(Prefix::as_str).collect();
                ("not minted here", format!("it does not begin with {}", prefixes.join(" or ")))
            }
        }
    }

    fn longest_prefix(&self, key: &[u8]) -> Option<&Prefix> {
        let matching = self.prefixes.iter().filter(|prefix| key.starts_with(prefix.as_str().as_bytes()));
        matching.max_by_key(|prefix| prefix.as_str().len())
    }
}

const VALID: &str = "valid";

fn exit(all_valid: bool) -> Exit {
    if all_valid { Exit::Done } else { Exit::Denied }
}

fn malformed_reason(prefix: &Prefix, key: &[u8]) -> String {
    let rest = key.get(prefix.as_str().len()..).unwrap_or_default();
    let expected = RANDOM_CHARACTERS + CHECKSUM_CHARACTERS;
    if rest.len() != expected {
        return format!("expected {expected} characters after {prefix}, found {}", rest.len());
    }
    match rest.iter().position(|byte| !byte.is_ascii_alphanumeric()) {
        Some(at) => format!("character {} is neither a letter nor a digit", prefix.as_str().len() + at + 1),
        None => "the checksum does not match: there is a typo in it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::Exit;
    use crate::cli::tests::run_with;

    const KEY: &str = "acme_live_0123456789ABCDEFGHIJKLMNOPQRST4MTgoG";

    fn check(key: &str, options: &[&str]) -> (Exit, String) {
        let (exit, output, messages) = run_with(&[&["key", "check"], options].concat(), key.as_bytes());
        assert_eq!(messages, "");
        (exit, output)
    }

    #[test]
    fn invalid_key_has_a_reason() {
        assert_eq!(check(&format!("{KEY}\n"), &[]), (Exit::Done, "valid: the checksum matches\n".to_owned()));
        for (key, reason) in [
            (KEY.replace('4', "5"), "malformed: the checksum does not match: there is a typo in it"),
            (KEY[..45].to_owned(), "malformed: expected 36 characters after acme_live_, found 35"),
            (KEY.replace('0', "-"), "malformed: character 11 is neither a letter nor a digit"),
            ("sk_live_1".to_owned(), "not minted here: it does not begin with acme_live_"),
        ] {
            assert_eq!(check(&key, &[]), (Exit::Denied, format!("{reason}\n")));
        }
    }

    #[test]
    fn prefixes_are_a_list() {
        let prefixes = ["--prefix", "acme_live_", "--prefix", "acme_"];
        assert_eq!(check(KEY, &prefixes).0, Exit::Done);
        let (_, text) = check("x", &prefixes);
        assert_eq!(text, "not minted here: it does not begin with acme_live_ or acme_\n");
        let (exit, text) = check("x", &["--json"]);
        let expected = "{\"line\":1,\"valid\":false,\"reason\":\"it does not begin with acme_live_\"}\n";
        assert_eq!((exit, text.as_str()), (Exit::Denied, expected));
    }
    #[test]
    fn each_key_has_a_line() {
        let typo = KEY.replace('4', "5");
        let input = format!("{KEY}\n{typo}\n\nsk_live_1\n{KEY}\n");
        let (exit, output, messages) = run_with(&["key", "check"], input.as_bytes());
        assert_eq!(
            output,
            "line 1: valid: the checksum matches\n\
             line 2: malformed: the checksum does not match: there is a typo in it\n\
             line 3: no key: the line is empty\n\
             line 4: not minted here: it does not begin with acme_live_\n\
             line 5: valid: the checksum matches\n"
        );
        assert_eq!((exit, messages.as_str()), (Exit::Denied, "5 keys: 2 valid, 3 invalid\n"));
        let (exit, output, _) = run_with(&["key", "check", "--json"], format!("{KEY}\n{KEY}").as_bytes());
        assert_eq!(exit, Exit::Done);
        assert_eq!(
            output.lines().nth(1),
            Some("{\"line\":2,\"valid\":true,\"reason\":\"the checksum matches\"}")
        );
        for nothing in ["", "\n", "\nkey\n"] {
            let (exit, output, messages) = run_with(&["key", "check"], nothing.as_bytes());
            assert_eq!((exit, output.as_str()), (Exit::Usage, ""), "{messages}");
        }
    }
}
