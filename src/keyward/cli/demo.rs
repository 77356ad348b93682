//! `keyward demo`: shows the features of keyward with a temporary daemon.

use std::fmt::{Display, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use keyward_client::blocking::Client;
use keyward_client::{Decision, Options, Request};
use zeroize::Zeroizing;

use super::exit::{CliError, Exit};
use super::streams::Streams;
use keyward_admin::message::{Command as AdminCommand, Reload};
use keyward_admin::send_command;
use keyward_engine::key_format::{self, Prefix};

/// How long the daemon may take to start and to answer. Long, so that the demo does not fail on a
/// busy machine.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Keys in the export besides those that are shown.
const BACKGROUND_KEYS: usize = 1_000;

/// Requests of the throughput measurement.
const MEASURED_REQUESTS: usize = 200_000;

/// Requests that are sent in one write.
const PIPELINE_DEPTH: usize = 128;

const HELP: &str = "\
Nothing is left behind: the daemon, its sockets and its export are in a temporary directory.

Example:
  keyward demo";

/// Show keyward at work: keys, limits, a revocation, a bad export, and its speed
///
/// Starts a daemon of its own in a temporary directory, and ends it.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Demo {}

impl Demo {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        run(streams).map_err(|error| CliError::new(Exit::Denied, error_text(&error)))?;
        Ok(Exit::Done)
    }
}

/// The error with its causes. The messages of typed errors already contain their cause.
fn error_text(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn run(out: &mut Streams<'_>) -> anyhow::Result<()> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let fixture = Fixture::create(directory.path())?;
    let mut client =
        Client::with_options(Options::new(directory.path().join("keyward.sock")).deadline(TIMEOUT));

    show(out, "\n1. Keys are minted and shown once. The export contains only their SHA-256:")?;
    show(
        out,
        format_args!(
            "     {}    (scanners can find it, and a typo is detected without a look-up)",
            fixture.web.as_str()
        ),
    )?;
    for line in fixture.export(WebKey::Active).lines().take(3) {
        show(out, format_args!("     {line}"))?;
    }
    let _daemon = Daemon::start(directory.path(), &fixture.source)?;
    show(out, format_args!("     ... {} keys in {}", BACKGROUND_KEYS + 3, fixture.source.display()))?;

    show(out, "\n2. The daemon answers on a Unix socket: may this key do this, now?")?;
    expect(
        &mut client,
        out,
        "a valid key",
        &Request::new(fixture.web.as_bytes()).scopes(["orders:write"]),
        "ALLOWED",
    )?;
    expect(
        &mut client,
        out,
        "without that scope",
        &Request::new(fixture.web.as_bytes()).scopes(["admin"]),
        "MISSING_SCOPE",
    )?;
    expect(&mut client, out, "an unknown key", &Request::new("something else"), "UNKNOWN_KEY")?;
    expect(&mut client, out, "an expired key", &Request::new(fixture.expired.as_bytes()), "EXPIRED")?;

    show(out, "\n3. Each answer charges a token bucket: 1 a minute, 3 at once.")?;
    for attempt in 1..=4 {
        let verdict = if attempt <= 3 { "ALLOWED" } else { "RATE_LIMITED" };
        expect(
            &mut client,
            out,
            &format!("request {attempt}"),
            &Request::new(fixture.limited.as_bytes()),
            verdict,
        )?;
    }

    show(
        out,
        "\n4. The export changes: the web key is revoked. A reload swaps all keys at once, and keeps the buckets.",
    )?;
    fixture.publish(out, WebKey::Revoked)?;
    expect(&mut client, out, "the revoked key", &Request::new(fixture.web.as_bytes()), "REVOKED")?;
    expect(&mut client, out, "the empty bucket", &Request::new(fixture.limited.as_bytes()), "RATE_LIMITED")?;

    show(out, "\n5. A broken export changes nothing, and says where it is broken.")?;
    fixture.publish_malformed(out)?;
    expect(&mut client, out, "still served", &Request::new(fixture.web.as_bytes()), "REVOKED")?;

    show(out, "\n6. Speed. One connection between this process and the daemon:")?;
    fixture.measure(out, &mut client)?;
    show(out, "\nThat was keyward. Next: keyward serve --help, or README.md.")?;
    Ok(())
}

/// Prints a line of the demo.
fn show(out: &mut Streams<'_>, line: impl Display) -> anyhow::Result<()> {
    out.print(line).map_err(|failure| anyhow::anyhow!(failure.message))
}

/// Sends a request, prints the decision, and checks its verdict.
fn expect(
    client: &mut Client,
    out: &mut Streams<'_>,
    what: &str,
    request: &Request<'_>,
    verdict: &str,
) -> anyhow::Result<()> {
    let answer = client.verify(request).context("the daemon does not answer")?;
    show(out, format_args!("     {what:<20} {}", describe(&answer)))?;
    if answer.verdict().name() != verdict {
        bail!("{what}: expected {verdict}");
    }
    Ok(())
}

/// The status of the web key.
#[derive(Clone, Copy)]
enum WebKey {
    Active,
    Revoked,
}

/// The keys and the export of the demo.
struct Fixture {
    web: Zeroizing<String>,
    limited: Zeroizing<String>,
    expired: Zeroizing<String>,
    background_keys: Vec<String>,
    source: PathBuf,
    admin: PathBuf,
}

impl Fixture {
    fn create(directory: &Path) -> anyhow::Result<Self> {
        let prefix = Prefix::default();
        let mint = || key_format::mint(&prefix).context("the system gives no randomness");
        let fixture = Self {
            web: mint()?,
            limited: mint()?,
            expired: mint()?,
            background_keys: (0..BACKGROUND_KEYS).map(|number| format!("background-{number}")).collect(),
            source: directory.join("keys.csv"),
            admin: directory.join("admin.sock"),
        };
        fs::write(&fixture.source, fixture.export(WebKey::Active)).context("cannot write the export")?;
        Ok(fixture)
    }

    fn export(&self, web: WebKey) -> String {
        let status = match web {
            WebKey::Active => "active",
            WebKey::Revoked => "revoked",
        };
        let hash = |key: &str| const_hex::encode(key_format::hash(key.as_bytes()));
        let mut text = String::from("key_hash,key_id,owner,status,expires_at,scopes,limits\n");
        let shown = [
            (hash(&self.web), format!("web,acme,{status},2099-12-31T00:00:00Z,orders:*,1000/s")),
            (hash(&self.limited), "batch,acme,active,,,1/m burst 3".to_owned()),
            (hash(&self.expired), "old,acme,active,2020-01-01 00:00:00+00,,".to_owned()),
        ];
        let background =
            self.background_keys.iter().map(|key| (hash(key), format!("{key},,active,,,1000000/s")));
        for (hash, rest) in shown.into_iter().chain(background) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{hash},{rest}");
        }
        text
    }

    /// Replaces the export, and prints the outcome of the reload.
    fn publish(&self, out: &mut Streams<'_>, web: WebKey) -> anyhow::Result<()> {
        let outcome = self.replace(&self.export(web))?;
        if !outcome.accepted {
            bail!("the export was refused: {}", outcome.error.unwrap_or_default());
        }
        let Reload { generation, keys, took_ms, .. } = outcome;
        show(
            out,
            format_args!(
                "     {keys} keys, generation {generation}: in force on every connection after {took_ms} ms"
            ),
        )?;
        Ok(())
    }

    /// Replaces the export by a malformed one, and prints the diagnostics.
    fn publish_malformed(&self, out: &mut Streams<'_>) -> anyhow::Result<()> {
        let outcome = self.replace("key_hash,key_id\nnot a hash,web\n")?;
        match outcome.error {
            Some(error) if !outcome.accepted => {
                for line in error.lines() {
                    show(out, format_args!("     {line}"))?;
                }
                Ok(())
            }
            _ => bail!("a broken export was accepted"),
        }
    }

    /// Writes a new export beside the old one and renames it, as every export should be replaced.
    /// Reloads it.
    fn replace(&self, export: &str) -> anyhow::Result<Reload> {
        let new = self.source.with_extension("new");
        fs::write(&new, export).context("cannot write the export")?;
        fs::rename(&new, &self.source).context("cannot replace the export")?;
        let reply = send_command(&self.admin, &AdminCommand::Reload { force: false })?;
        reply.reload.context("the daemon did not say how the reload went")
    }

    fn measure(&self, out: &mut Streams<'_>, client: &mut Client) -> anyhow::Result<()> {
        let requests: Vec<Request<'_>> =
            self.background_keys.iter().map(|key| Request::new(key.as_bytes())).collect();
        let mut latencies: Vec<Duration> = Vec::with_capacity(BACKGROUND_KEYS * 5);
        for request in requests.iter().cycle().take(BACKGROUND_KEYS * 5) {
            let start = Instant::now();
            client.verify(request)?;
            latencies.push(start.elapsed());
        }
        latencies.sort_unstable();
        show(
            out,
            format_args!(
                "     one at a time        {:>9.1} us, median of {}",
                micros(latencies[latencies.len() / 2]),
                latencies.len()
            ),
        )?;

        let start = Instant::now();
        let mut answered = 0;
        for batch in requests.chunks(PIPELINE_DEPTH).cycle() {
            if answered >= MEASURED_REQUESTS {
                break;
            }
            for answer in client.verify_many(batch) {
                answer?;
            }
            answered += batch.len();
        }
        let rate = answered as f64 / start.elapsed().as_secs_f64();
        show(
            out,
            format_args!(
                "     {PIPELINE_DEPTH} at a time       {:>9.0} verifies a second, hashing included",
                rate
            ),
        )?;
        Ok(())
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn describe(answer: &Decision) -> String {
    let mut text = format!("{:<14} generation {}", answer.verdict().name(), answer.generation());
    if let Some(key_id) = answer.key_id() {
        let _ = write!(text, ", key {key_id}");
    }
    if let Some(limit) = answer.limit() {
        let _ = write!(text, ", {} of {} left", limit.remaining, limit.limit);
        if !limit.retry_after.is_zero() {
            let _ = write!(text, ", retry in {:.0} s", limit.retry_after.as_secs_f64());
        }
    }
    text
}

/// The daemon of the demo, ended when it is dropped.
struct Daemon(Child);

impl Daemon {
    fn start(directory: &Path, source: &Path) -> anyhow::Result<Self> {
        let config = directory.join("keyward.toml");
        fs::write(&config, "[log]\nlevel = \"error\"\n").context("cannot write the configuration")?;
        let log = fs::File::create(directory.join("log")).context("cannot write the log")?;
        let daemon = Command::new(std::env::current_exe().context("cannot find this program")?)
            .arg("serve")
            .args([Path::new("--config"), &config, Path::new("--source"), source])
            .args([Path::new("--socket"), &directory.join("keyward.sock")])
            .args([Path::new("--state-dir"), directory])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start the daemon")?;
        let mut daemon = Self(daemon);
        daemon.wait_until_ready(directory)?;
        Ok(daemon)
    }

    fn wait_until_ready(&mut self, directory: &Path) -> anyhow::Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let reply = send_command(&directory.join("admin.sock"), &AdminCommand::Status);
            if reply.is_ok_and(|reply| reply.status.is_some_and(|status| status.ready)) {
                return Ok(());
            }
            if self.0.try_wait()?.is_some() || Instant::now() >= deadline {
                let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
                bail!("the daemon does not come up: {log}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
