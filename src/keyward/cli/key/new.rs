//! `keyward key new`: mints keys, and prints or appends their rows for an export.
//!
//! Before a key is minted, its row is parsed as a daemon would parse it, because a key whose row is
//! refused is useless.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use zeroize::Zeroizing;

use super::export::Export;
use super::header::Header;
use super::pepper::{Hasher, PepperOptions};
use super::row::Row;
use crate::cli::exit::{CliError, Exit};
use crate::cli::format::Count;
use crate::cli::options::parse_duration;
use crate::cli::streams::Streams;
use keyward_daemon::clock::Clock;
use keyward_daemon::config::Config;
use keyward_engine::key_format::{self, Prefix};
use keyward_engine::record::{Digest, Quoted, rfc3339};
use keyward_source::{self as source, ColumnMapping, Diagnostics, Format};

/// Maximum number of keys at once.
const MAX_COUNT: i64 = 100_000;

/// Bytes of the hash in a generated key id. 48 bits collide among a million keys with a probability
/// of 1 in 500.
const ID_BYTES: usize = 6;

const HELP: &str = "\
A key is printed once and stored nowhere: give it to its user. Its row contains the hash, and belongs in the export that
the daemon reads.

Times are written to the row in UTC. --expires-in counts from now, regardless of --not-before.

With --config (or KEYWARD_CONFIG), the pepper is that of the configuration, a plan that it does not have is refused, and a
prefix that is none of its minted_prefixes is reported.

With --append-to the row is appended to an export, and only the key is printed to standard output. A missing file is created
with a column for each field. An existing file keeps its columns, mode and owner, and is replaced as a whole. If the row or
the file is invalid, the file is not changed and no key is minted.

Examples:
  keyward key new --key-id ci-1 --owner acme --limits '100/s burst 200' --expires-in 90d
  keyward key new --owner acme --limits 100/s --append-to keys.csv > key.txt
  keyward key new --key-id ci-2 --limits 100/s --like keys.csv
  keyward key new --count 3 --scopes 'orders:read orders:write' --json | jq -c .row >> keys.jsonl";

/// Mint keys, with the rows to export
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(in crate::cli) struct New {
    /// What the keys begin with: a-z, 0-9 and _, ending in _
    #[arg(long, default_value = "acme_live_")]
    prefix: Prefix,

    /// Number of keys, at most 100000
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_COUNT))]
    count: u32,

    #[command(flatten)]
    pepper: PepperOptions,

    /// Print the rows to be appended to this export (CSV): the columns that its header has, in its
    /// order
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    like: Option<PathBuf>,

    /// Append the rows to this export (CSV or JSON Lines), and print the keys alone
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "like"])]
    append_to: Option<PathBuf>,

    /// Print one JSON object a line: {"key":…,"row":{…}}
    #[arg(long)]
    json: bool,

    /// Name of the key in answers and logs; with --count, -1, -2, … is added [default: derived from
    /// the hash]
    #[arg(long, value_name = "ID")]
    key_id: Option<String>,

    /// Environment that the key is for, as in live or test
    #[arg(long)]
    environment: Option<String>,

    /// Who the key belongs to
    #[arg(long)]
    owner: Option<String>,

    /// Plan that the key is on
    #[arg(long)]
    plan: Option<String>,

    /// What the key may do, as in 'orders:read invoices:*'
    #[arg(long)]
    scopes: Option<String>,

    /// Limits, as in '100/s burst 200' or 'requests=100/s; quota=10000/month; credits=5000'
    #[arg(long)]
    limits: Option<String>,

    /// When the key begins to be valid, as in 2026-11-21T10:00:00Z [default: at once]
    #[arg(long, value_name = "TIME")]
    not_before: Option<String>,

    /// How long from now the key is valid, as in 90d or '1y 6months' [default: forever]
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    expires_in: Option<Duration>,
}

/// Parses a lifetime of at least a second, which is the resolution of a row.
fn lifetime(text: &str) -> Result<Duration, &'static str> {
    match parse_duration(text) {
        Ok(time) if time.as_secs() == 0 => Err("must be a second or longer"),
        Ok(time) => Ok(time),
        Err(_) => Err("write a time such as 90d, 12h or 1y"),
    }
}

impl New {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        self.check_empty_options()?;
        let like = self.like.as_deref().map(|path| Header::read(path, "--like")).transpose()?;
        let config = self.pepper.config()?;
        let hasher = self.pepper.hasher(config.as_ref())?;
        if let Some(config) = &config {
            self.check_configured(config, streams)?;
        }
        let batch = KeyBatch { options: self, validity: self.validity()?, hasher, like };
        // The last row has the longest key id.
        let last = batch.row(self.count, &[0; 32]);
        check_row(&last)?;
        if let Some(header) = &batch.like {
            header.check_fields(last.fields().map(|(field, _)| field))?;
        }
        match (&self.append_to, self.json) {
            (Some(path), _) => batch.append(path, &last, streams)?,
            (None, true) => batch.print_json(streams)?,
            (None, false) => batch.print(streams)?,
        }
        Ok(Exit::Done)
    }

    /// Refuses empty options. An unset shell variable would otherwise mint keys without
    /// restrictions.
    fn check_empty_options(&self) -> Result<(), CliError> {
        let options =
            [("--limits", &self.limits), ("--scopes", &self.scopes), ("--not-before", &self.not_before)];
        let is_empty = |text: &Option<String>| text.as_deref().is_some_and(|text| text.trim().is_empty());
        match options.into_iter().find(|(_, text)| is_empty(text)) {
            Some((option, _)) => Err(CliError::new(
                Exit::Usage,
                format_args!("{option} is empty: leave the option out for none"),
            )),
            None => Ok(()),
        }
    }

    /// Refuses a plan that the daemon does not have: it would refuse the whole export. Warns if the
    /// daemon does not verify the checksum of the keys.
    fn check_configured(&self, config: &Config, streams: &mut Streams<'_>) -> Result<(), CliError> {
        if let Err(error) = config.plans.resolve(self.plan.as_deref().unwrap_or_default()) {
            return Err(CliError::new(Exit::Usage, format_args!("the row would be refused: plan: {error}")));
        }
        let prefixes = &config.keys.minted_prefixes;
        if !prefixes.contains(&self.prefix) {
            streams.note(format_args!(
                "keyward: warning: {} is none of keys.minted_prefixes: the daemon does not verify the checksum of these keys",
                self.prefix
            ));
        }
        Ok(())
    }

    /// When the keys become valid and expire.
    fn validity(&self) -> Result<Validity, CliError> {
        let expires_at = match self.expires_in {
            None => None,
            Some(lifetime) => {
                let end = u64::from(Clock::new().now().unix).saturating_add(lifetime.as_secs());
                let end = u32::try_from(end).ok().filter(|end| *end < u32::MAX).ok_or_else(|| {
                    let message =
                        "--expires-in ends after 2106, which is later than an export can represent: leave it out for never";
                    CliError::new(Exit::Usage, message)
                })?;
                Some(rfc3339(end))
            }
        };
        Ok(Validity { not_before: self.not_before.clone(), expires_at })
    }

    fn mint(&self) -> Result<Zeroizing<String>, CliError> {
        key_format::mint(&self.prefix).map_err(|error| {
            CliError::new(Exit::Denied, format_args!("the system has no randomness: {error}"))
        })
    }
}

/// The validity period of all keys of a batch, computed once.
struct Validity {
    not_before: Option<String>,
    expires_at: Option<String>,
}

/// Keys that are minted together.
struct KeyBatch<'a> {
    options: &'a New,
    validity: Validity,
    hasher: Hasher,
    like: Option<Header>,
}

/// Parses the row as a daemon would.
fn check_row(row: &Row<'_>) -> Result<(), CliError> {
    let text = format!("{}\n{}\n", row.header(), row.csv());
    let mut diagnostics = Diagnostics::new("row");
    let sink: &mut source::RecordSink<'_> = &mut |_, record| {
        if record.not_before >= record.expires_at {
            return Err("not_before is not before expires_at: the key would never be valid".into());
        }
        // An owner such as NULL would be parsed as no owner (source.null_texts).
        match row.owner.filter(|owner| *owner != record.owner) {
            Some(owner) => Err(format!("the owner {} would be read as none", Quoted(owner)).into()),
            None => Ok(()),
        }
    };
    let read = source::read(text.as_bytes(), Format::Csv, &ColumnMapping::default(), sink, &mut diagnostics);
    read.map_err(|error| CliError::new(Exit::Denied, error))?;
    let Some(diagnostic) = diagnostics.retained().first() else {
        return Ok(());
    };
    let column = diagnostic.location.column().map(|column| format!("{column}: ")).unwrap_or_default();
    let message = format!("the row would be refused: {column}{}", diagnostic.message);
    Err(CliError::new(Exit::Usage, message))
}

impl KeyBatch<'_> {
    fn row(&self, number: u32, hash: &Digest) -> Row<'_> {
        let key_id = match &self.options.key_id {
            Some(id) if self.options.count > 1 => format!("{id}-{number}"),
            Some(id) => id.clone(),
            None => format!("key_{}", const_hex::encode(&hash[..ID_BYTES])),
        };
        Row {
            key_hash: const_hex::encode(hash),
            key_id,
            owner: self.options.owner.as_deref(),
            environment: self.options.environment.as_deref(),
            plan: self.options.plan.as_deref(),
            not_before: self.validity.not_before.as_deref(),
            expires_at: self.validity.expires_at.as_deref(),
            scopes: self.options.scopes.as_deref(),
            limits: self.options.limits.as_deref(),
        }
    }

    /// Mints a key, and makes its row.
    fn mint(&self, number: u32) -> Result<(Zeroizing<String>, Row<'_>), CliError> {
        let key = self.options.mint()?;
        let row = self.row(number, &self.hasher.hash(key.as_bytes()));
        Ok((key, row))
    }

    fn print(&self, streams: &mut Streams<'_>) -> Result<(), CliError> {
        let mut rows = String::new();
        streams.print(match self.options.count {
            1 => "The key, which is shown only now:",
            _ => "The keys, which are shown only now:",
        })?;
        streams.print("")?;
        for number in 1..=self.options.count {
            let (key, row) = self.mint(number)?;
            let text = match &self.like {
                Some(header) => row.csv_under(header),
                None if rows.is_empty() => format!("{}\n{}", row.header(), row.csv()),
                None => row.csv(),
            };
            let separator = if rows.is_empty() { "" } else { "\n" };
            // Writing to a String cannot fail.
            let _ = write!(rows, "{separator}{text}");
            streams.print(format_args!("  {}", *key))?;
            if streams.is_closed() {
                return Ok(());
            }
        }
        let target = match &self.like {
            Some(header) => format!("{}, to be appended to it", header.path),
            None => "the export (CSV)".to_owned(),
        };
        streams.print(match self.options.count {
            1 => format!("\nIts row for {target}, which is not secret:\n"),
            _ => format!("\nTheir rows for {target}, in the same order, which are not secret:\n"),
        })?;
        streams.print_exact(rows)
    }

    /// Appends the rows to the export, and prints the keys. `last` is the longest row.
    fn append(&self, path: &Path, last: &Row<'_>, streams: &mut Streams<'_>) -> Result<(), CliError> {
        let export = Export::open(path)?;
        export.check_fields(last)?;
        let (mut keys, mut rows) = (Vec::new(), String::new());
        for number in 1..=self.options.count {
            let (key, row) = self.mint(number)?;
            rows += &export.line(&row)?;
            keys.push(key);
        }
        export.append(&rows, self.options.count)?;
        streams.note(format_args!("{} appended to {}", Count(self.options.count, "row"), path.display()));
        for key in keys {
            streams.print(&*key)?;
        }
        if streams.is_closed() {
            // The rows have been appended, but their keys are lost.
            return Err(CliError::new(
                Exit::Denied,
                format_args!(
                    "standard output was closed before all keys were printed; remove the last {} from {}",
                    Count(self.options.count, "row"),
                    path.display()
                ),
            ));
        }
        Ok(())
    }

    fn print_json(&self, streams: &mut Streams<'_>) -> Result<(), CliError> {
        for number in 1..=self.options.count {
            let (key, row) = self.mint(number)?;
            let row = row.json()?;
            // Formatted without serde, whose buffers are not wiped. A key needs no escapes.
            streams.print_exact(format_args!("{{\"key\":\"{}\",\"row\":{row}}}", *key))?;
            if streams.is_closed() {
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{parse, run_with};
    use keyward_engine::key_format::KeyFormat;

    fn new(arguments: &[&str]) -> (Exit, String, String) {
        run_with(&[&["key", "new"], arguments].concat(), b"")
    }

    #[test]
    fn key_is_printed_with_its_row() {
        let (exit, output, messages) =
            new(&["--key-id", "ci-1", "--owner", "Acme, Inc.", "--limits", "a=1/s; b=2/s"]);
        assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
        let lines: Vec<_> = output.lines().collect();
        let key = lines[2].trim();
        assert_eq!(key_format::classify(key.as_bytes(), &[Prefix::default()]), KeyFormat::Valid, "{output}");
        let hash = const_hex::encode(key_format::hash(key.as_bytes()));
        assert_eq!(
            lines[3..],
            [
                "",
                "Its row for the export (CSV), which is not secret:",
                "",
                "key_hash,key_id,owner,limits",
                &format!("{hash},ci-1,\"Acme, Inc.\",a=1/s; b=2/s"),
            ]
        );
        assert_eq!(lines[..2], ["The key, which is shown only now:", ""]);
    }

    #[test]
    fn keys_and_rows_have_the_same_order() {
        let (_, output, _) = new(&["--count", "3", "--prefix", "acme_test_", "--key-id", "ci"]);
        let keys: Vec<_> = output.lines().filter_map(|line| line.strip_prefix("  ")).collect();
        let rows: Vec<_> = output.lines().skip_while(|line| *line != "key_hash,key_id").skip(1).collect();
        assert_eq!((keys.len(), rows.len()), (3, 3), "{output}");
        for ((key, row), number) in keys.iter().zip(&rows).zip(1..) {
            assert!(key.starts_with("acme_test_"));
            let hash = const_hex::encode(key_format::hash(key.as_bytes()));
            assert_eq!(*row, format!("{hash},ci-{number}"));
        }
    }

    #[test]
    fn json_has_one_object_in_each_line() {
        let (_, output, _) = new(&["--json", "--count", "2", "--environment", "live"]);
        assert_eq!(output.lines().count(), 2);
        for line in output.lines() {
            let object: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let hash = key_format::hash(object["key"].as_str().expect("a key").as_bytes());
            let hash = const_hex::encode(hash);
            let expected = serde_json::json!({
                "key_hash": hash, "key_id": format!("key_{}", &hash[..12]), "environment": "live"
            });
            assert_eq!(object["row"], expected);
        }
    }

    #[test]
    fn all_keys_of_a_batch_have_the_requested_fields() {
        let options = [
            "--json",
            "--count",
            "200",
            "--prefix",
            "acme_test_",
            "--environment",
            "test",
            "--owner",
            "acme",
            "--plan",
            "pro",
            "--scopes",
            "orders:read, invoices:*",
            "--limits",
            "100/s",
            "--expires-in",
            "90d",
            "--not-before",
            "2026-01-01T00:00:00Z",
        ];
        let before = Clock::new().now().unix;
        let (exit, output, messages) = new(&options);
        assert_eq!((exit, messages.as_str(), output.lines().count()), (Exit::Done, "", 200));
        let mut export = String::new();
        let mut seen = std::collections::HashSet::new();
        for line in output.lines() {
            let object: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert!(seen.insert(object["key"].as_str().expect("a key").to_owned()));
            export += &format!("{}\n", object["row"]);
        }
        // What is exported is what a daemon reads.
        let mut diagnostics = Diagnostics::new("keys.jsonl");
        let mut rows = 0;
        let sink: &mut source::RecordSink<'_> = &mut |_, record| {
            rows += 1;
            assert_eq!((record.environment, record.owner, record.plan), ("test", "acme", "pro"));
            assert_eq!(record.scopes.len(), 2);
            assert_eq!(record.limits.len(), 1);
            let expected = before + 90 * 86_400;
            assert!((expected..expected + 60).contains(&record.expires_at), "{}", record.expires_at);
            assert_eq!(record.not_before, 1_767_225_600);
            Ok(())
        };
        source::read(export.as_bytes(), Format::JsonLines, &ColumnMapping::default(), sink, &mut diagnostics)
            .expect("reads");
        assert_eq!((rows, diagnostics.to_string().as_str()), (200, ""));
        assert!(export.contains("Z\""), "in UTC: {export}");
    }

    #[test]
    fn key_that_would_never_be_valid_is_not_minted() {
        let (exit, output, messages) = new(&["--expires-in", "1d", "--not-before", "2099-01-01T00:00:00Z"]);
        assert_eq!((exit, output.as_str()), (Exit::Usage, ""));
        assert!(messages.contains("never be valid"), "{messages}");
        let (exit, _, messages) = new(&["--expires-in", "100y"]);
        assert_eq!(exit, Exit::Usage);
        assert!(messages.contains("after 2106"), "{messages}");
        for time in ["0s", "5ms", "soon", ""] {
            assert!(parse(&["key", "new", "--expires-in", time]).is_err(), "{time}");
        }
        assert_eq!(new(&["--not-before", "tomorrow"]).0, Exit::Usage);
        assert_eq!(new(&["--scopes", ""]).0, Exit::Usage);
    }

    #[test]
    fn configuration_determines_pepper_plans_and_prefixes() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let [config, pepper] = ["keyward.toml", "pepper"].map(|name| dir.path().join(name));
        std::fs::write(&pepper, "p".repeat(32)).expect("writes");
        std::fs::set_permissions(&pepper, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        let text = format!("keys.pepper_file = '{}'\n[plans.pro]\nrequests = '1/s'\n", pepper.display());
        std::fs::write(&config, text).expect("writes");
        let config = config.to_str().expect("UTF-8");
        let (exit, output, messages) = new(&["--config", config, "--plan", "pro", "--json"]);
        assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
        let object: serde_json::Value = serde_json::from_str(&output).expect("JSON");
        let pepper = keyward_engine::pepper::Pepper::new("p".repeat(32).as_bytes()).expect("a pepper");
        let hash = const_hex::encode(pepper.hash(object["key"].as_str().expect("a key").as_bytes()));
        assert_eq!(object["row"]["key_hash"], hash);
        let (exit, output, messages) = new(&["--config", config, "--plan", "por"]);
        assert_eq!((exit, output.as_str()), (Exit::Usage, ""));
        assert!(messages.contains("the row would be refused: plan: "), "{messages}");
        let (exit, _, messages) = new(&["--config", config, "--prefix", "other_"]);
        assert_eq!(exit, Exit::Done);
        assert!(messages.contains("other_ is none of keys.minted_prefixes"), "{messages}");
        assert_eq!(new(&["--config", "missing.toml"]).0, Exit::BadInput);
    }

    #[test]
    fn key_with_an_invalid_row_is_not_minted() {
        let (exit, output, messages) = new(&["--limits", "100"]);
        assert_eq!((exit, output.as_str()), (Exit::Usage, ""));
        assert_eq!(
            messages,
            "keyward: the row would be refused: column 3 (limits): \"100\" has no period; write 100/s \
             for a rate, or 100 credits for a total that is never refilled\n"
        );
        assert_eq!(new(&["--limits", " "]).0, Exit::Usage);
        let long = "i".repeat(63);
        assert_eq!(new(&["--key-id", &long]).0, Exit::Done);
        assert_eq!(new(&["--key-id", &long, "--count", "2"]).0, Exit::Usage, "i…-2 has 65 bytes");
        for arguments in [&["--count", "0"][..], &["--count", "100001"], &["--prefix", "acme"]] {
            assert!(parse(&[&["key", "new"], arguments].concat()).is_err(), "{arguments:?}");
        }
    }
}
