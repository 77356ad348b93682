//! `keyward demo`: the whole thing in one command, on a daemon of its own that ends with it.

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

use super::exit::{Exit, Failure};
use super::streams::Streams;
use keyward_daemon::admin;
use keyward_daemon::admin::message::{Command as AdminCommand, Reload};
use keyward_engine::key_format::{self, Prefix};

/// How long the daemon may take to come up, and each answer to come back: a demo on a busy machine must not fail for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keys in the export beside the ones that are shown.
const CROWD: usize = 1_000;

/// Requests of the closing measurement, and how many of them are written at once.
const MEASURED: usize = 200_000;
const PIPELINE: usize = 128;

const HELP: &str = "\
Nothing is left behind: the daemon, its sockets and its export live in a temporary directory.

Example:
  keyward demo";

/// Show it all at work: keys, limits, a revocation, a bad export, and how fast it is
///
/// Starts a daemon of its own in a temporary directory, and ends it.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Demo {}

impl Demo {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, Failure> {
        play(streams).map_err(|error| Failure::new(Exit::Denied, format_args!("{error:#}")))?;
        Ok(Exit::Done)
    }
}

fn play(out: &mut Streams<'_>) -> anyhow::Result<()> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let scene = Scene::set(directory.path())?;
    let mut client =
        Client::with_options(Options::new(directory.path().join("keyward.sock")).deadline(PATIENCE));

    show(out, "\n1. Keys are minted, and shown once. The export holds their SHA-256 and nothing else:")?;
    show(
        out,
        format_args!(
            "     {}    (a scanner can find it, a typo is told without a look-up)",
            scene.web.as_str()
        ),
    )?;
    for line in scene.export(Web::Active).lines().take(3) {
        show(out, format_args!("     {line}"))?;
    }
    let _daemon = Daemon::start(directory.path(), &scene.source)?;
    show(out, format_args!("     ... {} keys in {}", CROWD + 3, scene.source.display()))?;

    show(out, "\n2. The daemon answers on a Unix socket: may this key do this, now?")?;
    expect(
        &mut client,
        out,
        "a key in order",
        &Request::new(scene.web.as_bytes()).scopes(["orders:write"]),
        "ALLOWED",
    )?;
    expect(
        &mut client,
        out,
        "without that scope",
        &Request::new(scene.web.as_bytes()).scopes(["admin"]),
        "MISSING_SCOPE",
    )?;
    expect(&mut client, out, "nobody's key", &Request::new("something else"), "UNKNOWN_KEY")?;
    expect(&mut client, out, "an expired key", &Request::new(scene.expired.as_bytes()), "EXPIRED")?;

    show(out, "\n3. Each answer charges a token bucket: 1 a minute, 3 at once.")?;
    for attempt in 1..=4 {
        let verdict = if attempt <= 3 { "ALLOWED" } else { "RATE_LIMITED" };
        expect(
            &mut client,
            out,
            &format!("request {attempt}"),
            &Request::new(scene.limited.as_bytes()),
            verdict,
        )?;
    }

    show(
        out,
        "\n4. The export changes: the web key is revoked. A reload swaps all keys at once, and keeps the buckets.",
    )?;
    scene.publish(out, Web::Revoked)?;
    expect(&mut client, out, "the revoked key", &Request::new(scene.web.as_bytes()), "REVOKED")?;
    expect(&mut client, out, "the empty bucket", &Request::new(scene.limited.as_bytes()), "RATE_LIMITED")?;

    show(out, "\n5. A broken export changes nothing, and says where it is broken.")?;
    scene.refuse(out)?;
    expect(&mut client, out, "still served", &Request::new(scene.web.as_bytes()), "REVOKED")?;

    show(out, "\n6. And it is quick. One connection, this process on one side, the daemon on the other:")?;
    scene.measure(out, &mut client)?;
    show(out, "\nThat was keyward. Next: keyward serve --help, or README.md.")?;
    Ok(())
}

/// Prints a line of the demo. Whoever has stopped listening does not stop it.
fn show(out: &mut Streams<'_>, line: impl Display) -> anyhow::Result<()> {
    out.print(line).map_err(|failure| anyhow::anyhow!(failure.message))
}

/// Asks, prints the answer, and holds it against what the demo is about.
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

/// Whether the web key of the demo is in force.
#[derive(Clone, Copy)]
enum Web {
    Active,
    Revoked,
}

/// The keys and the export.
struct Scene {
    web: Zeroizing<String>,
    limited: Zeroizing<String>,
    expired: Zeroizing<String>,
    crowd: Vec<String>,
    source: PathBuf,
    admin: PathBuf,
}

impl Scene {
    fn set(directory: &Path) -> anyhow::Result<Self> {
        let prefix = Prefix::default();
        let mint = || key_format::mint(&prefix).context("the system gives no randomness");
        let scene = Self {
            web: mint()?,
            limited: mint()?,
            expired: mint()?,
            crowd: (0..CROWD).map(|number| format!("crowd-{number}")).collect(),
            source: directory.join("keys.csv"),
            admin: directory.join("admin.sock"),
        };
        fs::write(&scene.source, scene.export(Web::Active)).context("cannot write the export")?;
        Ok(scene)
    }

    fn export(&self, web: Web) -> String {
        let status = match web {
            Web::Active => "active",
            Web::Revoked => "revoked",
        };
        let hash = |key: &str| const_hex::encode(key_format::hash(key.as_bytes()));
        let mut text = String::from("key_hash,key_id,owner,status,expires_at,scopes,limits\n");
        let shown = [
            (hash(&self.web), format!("web,acme,{status},2099-12-31T00:00:00Z,orders:*,1000/s")),
            (hash(&self.limited), "batch,acme,active,,,1/m burst 3".to_owned()),
            (hash(&self.expired), "old,acme,active,2020-01-01 00:00:00+00,,".to_owned()),
        ];
        let crowd = self.crowd.iter().map(|key| (hash(key), format!("{key},,active,,,1000000/s")));
        for (hash, rest) in shown.into_iter().chain(crowd) {
            // Writing to a String cannot fail.
            let _infallible = writeln!(text, "{hash},{rest}");
        }
        text
    }

    /// Writes the export as every export should be written: beside the old one, and renamed over it.
    fn publish(&self, out: &mut Streams<'_>, web: Web) -> anyhow::Result<()> {
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

    fn refuse(&self, out: &mut Streams<'_>) -> anyhow::Result<()> {
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

    fn replace(&self, export: &str) -> anyhow::Result<Reload> {
        let new = self.source.with_extension("new");
        fs::write(&new, export).context("cannot write the export")?;
        fs::rename(&new, &self.source).context("cannot replace the export")?;
        let reply = admin::send_command(&self.admin, &AdminCommand::Reload { force: false })?;
        reply.reload.context("the daemon did not say how the reload went")
    }

    fn measure(&self, out: &mut Streams<'_>, client: &mut Client) -> anyhow::Result<()> {
        let requests: Vec<Request<'_>> = self.crowd.iter().map(|key| Request::new(key.as_bytes())).collect();
        let mut latencies: Vec<Duration> = Vec::with_capacity(CROWD * 5);
        for request in requests.iter().cycle().take(CROWD * 5) {
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
        for batch in requests.chunks(PIPELINE).cycle() {
            if answered >= MEASURED {
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
            format_args!("     {PIPELINE} at a time       {:>9.0} verifies a second, hashing included", rate),
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
        let _infallible = write!(text, ", key {key_id}");
    }
    if let Some(limit) = answer.limit() {
        let _infallible = write!(text, ", {} of {} left", limit.remaining, limit.limit);
        if !limit.retry_after.is_zero() {
            let _infallible = write!(text, ", retry in {:.0} s", limit.retry_after.as_secs_f64());
        }
    }
    text
}

/// The demo's own daemon.
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
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reply = admin::send_command(&directory.join("admin.sock"), &AdminCommand::Status);
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
        let _already_gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}
