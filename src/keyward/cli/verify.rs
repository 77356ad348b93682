//! `keyward verify`: sends one key to the daemon, and prints the decision.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use keyward_client::{Decision, Error, FieldTooLongError, Options, Request, blocking};
use serde::Serialize;
use serde_json::value::RawValue;

use super::exit::{CliError, Exit};
use super::format::{HumanDuration, Word};
use super::options::{VerifySocket, parse_duration};
use super::secret;
use super::streams::Streams;
use keyward_settings::SocketPath;

const HELP: &str = "\
The key is read from standard input or a file, never from the arguments. The line end after it is not part of it.
The exit code is 0 if the verdict is ALLOWED, 1 for every other verdict, 69 if the daemon does not answer.

Examples:
  keyward verify < key.txt
  keyward verify --scope invoices:read --ip 203.0.113.7 < key.txt
  keyward verify --peek --json < key.txt | jq .remaining";

/// Ask the daemon about the key on standard input
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Verify {
    #[command(flatten)]
    socket: VerifySocket,

    /// Read the key from this file instead of standard input
    #[arg(long, value_name = "PATH")]
    key_file: Option<PathBuf>,

    /// Print the answer as one JSON object, with the protocol's names
    #[arg(long)]
    json: bool,

    /// Require a scope; may be repeated, and then all are required
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,

    /// Let one of the scopes be enough
    #[arg(long, requires = "scopes")]
    any_scope: bool,

    /// Address that the request came from
    #[arg(long, value_name = "IP")]
    ip: Option<IpAddr>,

    /// Web origin of the request, such as `https://app.example.com`
    #[arg(long)]
    origin: Option<String>,

    /// Environment that is being served, as in live or test
    #[arg(long)]
    environment: Option<String>,

    /// What to charge
    #[arg(long, value_name = "N", default_value_t = 1)]
    cost: u32,

    /// What to charge the limit of this name instead; may be repeated
    #[arg(long = "cost-of", value_name = "LIMIT=N", value_parser = parse_cost)]
    costs: Vec<(String, u32)>,

    /// Charge nothing, and show the balance: rate limits are not applied, the verdict is ALLOWED
    /// even at 0
    #[arg(long, conflicts_with_all = ["cost", "costs"])]
    peek: bool,

    /// Ask for the key's metadata, too
    #[arg(long)]
    metadata: bool,

    /// Show the balance of each limit, and what was charged on it
    #[arg(long)]
    balances: bool,

    /// How long the answer may take
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    deadline: Duration,

    /// Send the key itself and not its SHA-256, so that a typo is told from an unknown key
    /// (MALFORMED_KEY)
    #[arg(long)]
    raw: bool,
}

impl Verify {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        let socket = self.socket.path()?;
        let key = secret::read_key(self.key_file.as_deref(), streams)?;
        let options = Options::new(&socket).deadline(self.deadline);
        let decision = blocking::Client::with_options(options)
            .verify(&self.request(&key))
            .map_err(|error| explain(error, &socket))?;
        drop(key);
        let report = Report::from(&decision);
        if self.json {
            streams.print_json(&report)?;
        } else {
            streams.print(&report)?;
        }
        Ok(exit(&decision))
    }

    fn request<'a>(&'a self, key: &'a [u8]) -> Request<'a> {
        let mut request = Request::new(key).cost(if self.peek { 0 } else { self.cost });
        request = if self.any_scope { request.any_scope(&self.scopes) } else { request.scopes(&self.scopes) };
        if let Some(ip) = self.ip {
            request = request.ip(ip);
        }
        if let Some(origin) = &self.origin {
            request = request.origin(origin);
        }
        if let Some(environment) = &self.environment {
            request = request.environment(environment);
        }
        for (limit, cost) in &self.costs {
            request = request.cost_of(limit, *cost);
        }
        if self.metadata {
            request = request.metadata();
        }
        if self.balances {
            request = request.balances();
        }
        if self.raw {
            request = request.raw();
        }
        request
    }
}

/// Parses the cost of a limit.
fn parse_cost(text: &str) -> Result<(String, u32), String> {
    let expected = || format!("{text:?} is not the name of a limit and a cost, as in tokens=1500");
    let (limit, cost) = text.split_once('=').ok_or_else(expected)?;
    Ok((limit.to_owned(), cost.parse().map_err(|_| expected())?))
}

fn explain(error: Error, socket: &SocketPath) -> CliError {
    match error {
        // Only a raw key can be too long.
        Error::FieldTooLong(FieldTooLongError { field: "key", length, max }) => CliError::new(
            Exit::Usage,
            format_args!(
                "the key is {length} bytes long, and may have {max} to be sent itself: leave out --raw"
            ),
        ),
        // It may be the admin socket, which is in the same directory.
        Error::Protocol(what) => CliError::new(
            Exit::Unavailable,
            format_args!(
                "what answers at {} does not keep to keyward's protocol: {what}; is this the admin socket? verify needs \
                 the request socket, of a daemon of this version",
                socket.as_path().display()
            ),
        ),
        error => error.into(),
    }
}

fn exit(decision: &Decision) -> Exit {
    if decision.is_allowed() { Exit::Done } else { Exit::Denied }
}

/// The decision with the names of SPEC.md. Absent fields are omitted.
#[derive(Debug, Default, Serialize)]
struct Report<'a> {
    verdict: &'a str,
    generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<&'a str>,
    #[serde(flatten)]
    limit: Option<Limit<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow_limit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    balances: Vec<Balance<'a>>,
}

/// The balance of a limit.
#[derive(Debug, Serialize)]
struct Balance<'a> {
    name: &'a str,
    kind: &'a str,
    limit: u64,
    charged: u32,
    balance: i64,
    reset_ms: u64,
}

/// The limit that decided.
#[derive(Debug, Serialize)]
struct Limit<'a> {
    limit_name: &'a str,
    limit: u32,
    remaining: u32,
    retry_after_ms: u64,
    reset_ms: u64,
}

impl<'a> From<&'a Decision> for Report<'a> {
    fn from(decision: &'a Decision) -> Self {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            verdict: decision.verdict().name(),
            generation: decision.generation(),
            key_id: decision.key_id(),
            owner: decision.owner(),
            environment: decision.environment(),
            plan: decision.plan(),
            limit: decision.limit().map(|limit| Limit {
                limit_name: limit.name,
                limit: limit.limit,
                remaining: limit.remaining,
                retry_after_ms: milliseconds(limit.retry_after),
                reset_ms: milliseconds(limit.reset),
            }),
            shadow_limit: decision.shadow_limit(),
            // Cannot fail: the metadata of every row has been parsed as JSON.
            metadata: decision.metadata().and_then(|text| serde_json::from_str(text).ok()),
            balances: decision
                .balances()
                .map(|limit| Balance {
                    name: limit.name,
                    kind: limit.kind.name(),
                    limit: limit.limit,
                    charged: limit.charged,
                    balance: limit.balance,
                    reset_ms: milliseconds(limit.reset),
                })
                .collect(),
        }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.verdict)?;
        let identity = [
            ("key_id", self.key_id),
            ("owner", self.owner),
            ("environment", self.environment),
            ("plan", self.plan),
        ];
        for (name, text) in identity {
            if let Some(text) = text {
                write!(f, "  {name}={}", Word(text))?;
            }
        }
        if let Some(Limit { limit_name, limit, remaining, retry_after_ms, reset_ms }) = &self.limit {
            write!(f, "  limit {} {remaining}/{limit}", Word(limit_name))?;
            if *retry_after_ms > 0 {
                write!(f, ", retry in {}", HumanDuration::milliseconds(*retry_after_ms))?;
            }
            write_reset(*reset_ms, f)?;
        }
        if let Some(shadow_limit) = self.shadow_limit {
            write!(f, "  shadow limit {} would refuse", Word(shadow_limit))?;
        }
        write!(f, "  generation {}", self.generation)?;
        if let Some(metadata) = self.metadata {
            write!(f, "\nmetadata {}", metadata.get().replace(char::is_control, " "))?;
        }
        for Balance { name, kind, limit, charged, balance, reset_ms } in &self.balances {
            write!(f, "\n{} {} {balance}/{limit}, charged {charged}", Word(name), kind.to_lowercase())?;
            write_reset(*reset_ms, f)?;
        }
        Ok(())
    }
}

/// Writes when a limit has its whole balance again, unless that is now or never.
fn write_reset(reset_ms: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match reset_ms {
        0 => Ok(()),
        // The protocol's largest value: that long or longer, or never.
        reset_ms if reset_ms >= u64::from(u32::MAX) => Ok(()),
        reset_ms => write!(f, ", full in {}", HumanDuration::milliseconds(reset_ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::super::tests::{parse, run_with};
    use super::*;

    fn verify(arguments: &[&str]) -> Result<Verify, String> {
        match parse(&[&["verify"], arguments].concat()) {
            Ok(Command::Verify(verify)) => Ok(verify),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn answer_is_one_line_with_the_verdict_first() {
        let metadata: Box<RawValue> = serde_json::from_str(r#"{"team":"a\u001bb"}"#).expect("JSON");
        let limit =
            Limit { limit_name: "default", limit: 200, remaining: 199, retry_after_ms: 0, reset_ms: 5 };
        let mut report = Report {
            verdict: "ALLOWED",
            generation: 7,
            key_id: Some("ci-1"),
            owner: Some("Acme Ltd"),
            limit: Some(limit),
            ..Report::default()
        };
        assert_eq!(
            report.to_string(),
            "ALLOWED  key_id=ci-1  owner=\"Acme Ltd\"  limit default 199/200, full in 5 ms  generation 7"
        );
        report.metadata = Some(&metadata);
        assert!(report.to_string().ends_with("\nmetadata {\"team\":\"a\\u001bb\"}"), "{report}");
        assert_eq!(
            serde_json::to_string(&report).expect("JSON"),
            "{\"verdict\":\"ALLOWED\",\"generation\":7,\"key_id\":\"ci-1\",\"owner\":\"Acme Ltd\",\
             \"limit_name\":\"default\",\"limit\":200,\"remaining\":199,\"retry_after_ms\":0,\"reset_ms\":5,\
             \"metadata\":{\"team\":\"a\\u001bb\"}}"
        );
    }

    #[test]
    fn denial_omits_absent_fields() {
        let unknown = Report { verdict: "UNKNOWN_KEY", generation: 7, ..Report::default() };
        assert_eq!(unknown.to_string(), "UNKNOWN_KEY  generation 7");
        assert_eq!(
            serde_json::to_string(&unknown).expect("JSON"),
            r#"{"verdict":"UNKNOWN_KEY","generation":7}"#
        );
        let limit =
            Limit { limit_name: "daily", limit: 5, remaining: 0, retry_after_ms: 90_000, reset_ms: 600_000 };
        let limited =
            Report { verdict: "RATE_LIMITED", generation: 7, limit: Some(limit), ..Report::default() };
        assert_eq!(
            limited.to_string(),
            "RATE_LIMITED  limit daily 0/5, retry in 1 min 30 s, full in 10 min  generation 7"
        );
    }

    #[test]
    fn options_become_a_request() {
        let verify = verify(&[
            "--scope",
            "a:b",
            "--scope",
            "c",
            "--any-scope",
            "--ip",
            "10.0.0.1",
            "--origin",
            "https://a.b",
            "--environment",
            "live",
            "--cost",
            "5",
            "--cost-of",
            "tokens=1500",
            "--metadata",
            "--balances",
            "--deadline",
            "50ms",
        ]);
        let verify = verify.expect("good");
        assert_eq!(verify.deadline, Duration::from_millis(50));
        assert_eq!(
            format!("{:?}", verify.request(b"secret")),
            "Request { key: 6 bytes, cost: 5, costs: {\"tokens\": 1500}, scopes: \"a:b c\", mode: Any, \
             ip: Some(10.0.0.1), origin: Some(\"https://a.b\"), environment: Some(\"live\"), metadata: true, \
             balances: true }"
        );
    }

    #[test]
    fn invalid_options_are_refused() {
        for arguments in [
            &["--any-scope"][..],
            &["--peek", "--cost", "2"],
            &["--cost", "-1"],
            &["--cost", "4294967296"],
            &["--ip", "localhost"],
            &["--deadline", "0s"],
            &["--deadline", "soon"],
            &["--socket", "/tmp/"],
        ] {
            assert!(verify(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn peek_has_cost_zero() {
        let request = |arguments: &[&str]| {
            let verify = verify(arguments).expect("good");
            format!("{:?}", verify.request(b"k"))
        };
        assert!(request(&["--peek"]).contains("cost: 0"));
        assert!(request(&[]).contains("cost: 1"));
    }

    #[test]
    fn missing_daemon_is_unreachable() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("no.sock");
        let socket = socket.to_str().expect("UTF-8");
        let (exit, output, messages) = run_with(&["verify", "--socket", socket], b"secret\n");
        assert_eq!((exit, output.as_str()), (Exit::Unavailable, ""));
        assert!(messages.starts_with("keyward: cannot connect to keyward at "), "{messages}");
        assert!(!messages.contains("secret"), "{messages}");
        let (exit, ..) = run_with(&["verify", "--socket", socket], b"");
        assert_eq!(exit, Exit::Usage);
        let (exit, _, messages) = run_with(&["verify", "--key-file", "acme_live_0123456789_secret_key"], b"");
        assert_eq!(exit, Exit::Usage);
        assert!(!messages.contains("secret"), "{messages}");
        let (_, _, messages) = run_with(&["verify", "--key-file", "no/key.txt"], b"");
        assert!(messages.contains("cannot open no/key.txt: "), "{messages}");
        let socket = verify(&[]).and_then(|verify| verify.socket.path().map_err(|error| error.message));
        let long = FieldTooLongError { field: "key", length: 1025, max: 1024 };
        let long = explain(Error::FieldTooLong(long), &socket.expect("the default"));
        assert!(long.message.ends_with("leave out --raw"), "{}", long.message);
    }
}
