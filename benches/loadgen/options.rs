//! The command-line options, the load that they describe, and the output of its report.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use hyper::StatusCode;
use keyward_protocol::DEFAULT_SOCKET;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::oneshot;

use crate::check_server::CheckServer;
use crate::echo_server::EchoServer;
use crate::encoded_requests::EncodedRequests;
use crate::error::LoadError;
use crate::exit::{Exit, Failure};
use crate::key_file::{read_digests, read_keys};
use crate::keys::Keys;
use crate::load::{self, LoadConfig};
use crate::report::Report;
use crate::target::{Echo, Keyward, Memcached, Postgres, Redis, Target, VerifyOptions};

/// Most connections. A process is rarely allowed more descriptors.
const MAX_CONNECTIONS: i64 = 65_536;

/// Most requests in flight on a connection: 3 MiB of requests.
const MAX_DEPTH: i64 = 65_536;

/// The highest rate of an open loop, in requests per second. A client cannot send as many.
const MAX_RATE: f64 = 1e8;

/// Descriptors needed in addition to those of the connections.
const OTHER_DESCRIPTORS: u64 = 64;

/// Size of a request to the echo server in bytes: that of a VERIFY with a digest and nothing else.
const REQUEST_BYTES: usize = 48;

const HELP: &str = "\
Without --rate, each connection writes --depth requests, waits for all answers, and repeats (a
closed loop). With --rate, requests are due at a fixed rate, however slow the daemon is (an open
loop). --depth then limits the requests in flight, and the latency of a request counts from the time
at which it was due, so that a pause of the daemon shows in every request that it delayed.

If the client sleeps on one processor and the daemon on another, the latency is mostly the time that
the machine takes to wake them up. Use --pin, pin the daemon too (taskset -c 1 keyward serve ...),
and compare only figures that were measured with the same pinning. --busy-poll needs two processors:
on one, the client spins while the daemon has to answer.

The load charges the limits of the keys, as every client does; with --cost 0 it charges nothing.

The exit code is 0 if the load completed, whatever the verdicts, 1 if the client failed, 2 if an
option or a file with keys is wrong, and 69 if the daemon cannot be reached or failed. Ctrl-C ends
the load and prints the figures so far.

Examples:
  keyward-bench --digests keys.csv
  keyward-bench --digests keys.csv --depth 128 --pin 0
  keyward-bench --digests keys.csv --connections 16 --rate 20000 --json | jq .latency_ns.p99";

/// Load a running daemon: throughput, and a histogram of latencies
#[derive(Debug, Parser)]
#[command(name = "keyward-bench", version, after_help = HELP)]
pub(crate) struct Options {
    /// The daemon's socket
    #[arg(long, value_name = "PATH", env = "KEYWARD_SOCKET", hide_env_values = true,
          default_value = DEFAULT_SOCKET)]
    socket: PathBuf,

    /// Connections
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_CONNECTIONS))]
    connections: u32,

    /// Requests in flight on each connection; with --rate, the maximum
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_DEPTH))]
    depth: u32,

    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = positive_time)]
    duration: Duration,

    /// How long to load before measuring
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    warmup: Duration,

    /// Verify the keys in this file, one per line
    #[arg(long, value_name = "FILE", conflicts_with = "digests")]
    keys: Option<PathBuf>,

    /// Verify the keys with these SHA-256 digests: 64 hex digits per line, or an export
    #[arg(long, value_name = "FILE")]
    digests: Option<PathBuf>,

    /// Send the keys themselves instead of their SHA-256, as a daemon with a pepper requires
    #[arg(long, requires = "keys")]
    raw: bool,

    /// Share of requests that are for these keys; the others are for unknown keys [default: 1, or 0
    /// without keys]
    #[arg(long, value_name = "0..1", value_parser = share)]
    hit_rate: Option<f64>,

    /// Cost of each request
    #[arg(long, value_name = "N", default_value_t = 1)]
    cost: u32,

    /// Requests per second on all connections together, however slow the daemon is (an open loop)
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,

    /// Threads of this client
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,

    /// Processors to pin the threads to, one after the other
    #[arg(long, value_name = "CPU,...", value_delimiter = ',')]
    pin: Vec<usize>,

    /// Spin instead of sleeping while waiting for answers
    #[arg(long)]
    busy_poll: bool,

    /// Print the figures as one JSON object, including the whole histogram
    #[arg(long)]
    json: bool,

    /// Kind of server at the socket; benches/rivals compares keyward with the others
    #[arg(long, value_enum, default_value_t = TargetKind::Keyward, hide = true)]
    target: TargetKind,

    /// Size of the echo server's answers in bytes
    #[arg(long, value_name = "N", default_value_t = 80, hide = true, value_parser = clap::value_parser!(u16).range(1..))]
    answer_size: u16,

    /// Run the echo server at --socket
    #[arg(long, hide = true)]
    serve_echo: bool,

    /// Run a checker for gateways at --socket that replies to every request with this status
    #[arg(long, value_name = "STATUS", hide = true)]
    serve_checks: Option<StatusCode>,

    /// Let the checker listen there as well
    #[arg(long, value_name = "ADDRESS", hide = true, requires = "serve_checks")]
    checks_address: Option<SocketAddr>,

    /// Let the checker speak gRPC
    #[arg(long, hide = true, requires = "serve_checks", conflicts_with = "redis")]
    grpc: bool,

    /// Let the checker charge token buckets in the Redis server at this socket
    #[arg(long, value_name = "PATH", hide = true, requires = "serve_checks")]
    redis: Option<PathBuf>,
}

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum TargetKind {
    Keyward,
    Echo,
    Redis,
    RedisBucket,
    Memcached,
    Postgres,
}

impl Options {
    pub(crate) fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        if self.serve_echo {
            return self.serve_echo();
        }
        if let Some(status) = self.serve_checks {
            return self.serve_checks(status);
        }
        let config = self.load_config()?;
        let keys = self.keys()?;
        let target = self.target(&keys)?;
        // The requests are encoded, so the keys are no longer needed.
        drop(keys);
        raise_descriptor_limit(config.connections);
        let report = run_until_interrupted(&*target, &config)?;
        if report.interrupted && report.seconds == 0.0 {
            return Err(Failure::new(Exit::Failed, "interrupted while warming up: nothing was measured"));
        }
        let text = if self.json {
            serde_json::to_string(&report)
                .map_err(|error| Failure::new(Exit::Failed, format_args!("cannot write JSON: {error}")))?
        } else {
            report.to_string()
        };
        match writeln!(out, "{text}") {
            // A reader such as `head` may close its end early.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(Exit::Failed, format_args!("cannot write to standard output: {error}")))
            }
            _ => Ok(()),
        }
    }

    fn load_config(&self) -> Result<LoadConfig, Failure> {
        if self.threads > self.connections {
            let message = format!("--threads {}: more than --connections {}", self.threads, self.connections);
            return Err(Failure::new(Exit::Usage, message));
        }
        Ok(LoadConfig {
            socket: self.socket.clone(),
            connections: self.connections as usize,
            depth: self.depth as usize,
            threads: self.threads as usize,
            pin: self.pin.clone(),
            warmup: self.warmup,
            duration: self.duration,
            rate: self.rate,
            busy_poll: self.busy_poll,
        })
    }

    fn keys(&self) -> Result<Keys, Failure> {
        match (&self.keys, &self.digests) {
            (Some(path), _) => read_keys(path, self.raw),
            (None, Some(path)) => read_digests(path),
            (None, None) if self.hit_rate.is_some_and(|rate| rate > 0.0) => {
                Err(Failure::new(Exit::Usage, "--hit-rate needs keys: give --keys or --digests"))
            }
            (None, None) if self.target == TargetKind::Echo => Ok(Keys::default()),
            (None, None) => {
                // A closed standard error loses this note, but must not prevent the report.
                let _ = writeln!(
                    io::stderr(),
                    "keyward-bench: no --keys and no --digests: every request is for an unknown key"
                );
                Ok(Keys::default())
            }
        }
    }

    fn target(&self, keys: &Keys) -> Result<Box<dyn Target>, Failure> {
        let hit_rate = self.hit_rate.unwrap_or(1.0);
        let path = self.socket.as_path();
        let keyward = || Keyward::new(keys, VerifyOptions { cost: self.cost, raw: self.raw, hit_rate });
        Ok(match self.target {
            TargetKind::Keyward => Box::new(keyward()?),
            TargetKind::Echo => {
                let frame = vec![0; REQUEST_BYTES];
                let requests = EncodedRequests::new(1 << 12, |_, out| out.extend_from_slice(&frame));
                let requests = requests.map_err(LoadError::NoRequests)?;
                Box::new(Echo::new(requests, usize::from(self.answer_size)))
            }
            TargetKind::Redis => Box::new(Redis::get(keys, hit_rate)?),
            TargetKind::RedisBucket => Box::new(Redis::bucket(keys, hit_rate, path)?),
            TargetKind::Memcached => Box::new(Memcached::new(keys, hit_rate)?),
            TargetKind::Postgres => Box::new(Postgres::new(keys, hit_rate)?),
        })
    }

    fn serve_checks(&self, status: StatusCode) -> Result<(), Failure> {
        CheckServer { status, grpc: self.grpc, redis: self.redis.clone() }
            .serve(self.socket.as_path(), self.checks_address)
            .map_err(|error| Failure::new(Exit::Failed, format_args!("the checker failed: {error}")))
    }

    fn serve_echo(&self) -> Result<(), Failure> {
        let server = EchoServer {
            request_bytes: REQUEST_BYTES,
            answer_bytes: usize::from(self.answer_size),
            busy_poll: self.busy_poll,
        };
        server
            .serve(self.socket.as_path())
            .map_err(|error| Failure::new(Exit::Failed, format_args!("the echo server failed: {error}")))
    }
}

/// Runs the load on another thread, while this one waits for Ctrl-C.
fn run_until_interrupted(target: &dyn Target, config: &LoadConfig) -> Result<Report, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format_args!("cannot wait for signals: {error}")))?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (done, mut finished) = oneshot::channel::<()>();
        let load = scope.spawn(|| {
            let report = load::run(target, config, &stop);
            drop(done);
            report
        });
        runtime.block_on(async {
            tokio::select! {
                _ = &mut finished => {}
                // If the signal cannot be handled, Ctrl-C ends the process.
                Ok(()) = tokio::signal::ctrl_c() => stop.store(true, Ordering::Relaxed),
                else => {}
            }
        });
        load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(Failure::from)
    })
}

/// Raises the soft limit on descriptors as far as the connections need. If it cannot be raised far
/// enough, opening a connection fails with an error.
fn raise_descriptor_limit(connections: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    let needed = connections as u64 + OTHER_DESCRIPTORS;
    if limit.current.is_some_and(|current| current < needed) {
        limit.current = Some(limit.maximum.map_or(needed, |maximum| maximum.min(needed)));
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// Parses a time such as `50ms` or `2s`, which must not be zero.
fn positive_time(text: &str) -> Result<Duration, &'static str> {
    match humantime::parse_duration(text) {
        Ok(time) if time.is_zero() => Err("must be longer than 0 s"),
        Ok(time) => Ok(time),
        Err(_) => Err("write a time such as 50ms or 2s"),
    }
}

fn share(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or("write a share from 0 to 1")
}

fn rate(text: &str) -> Result<f64, &'static str> {
    let in_range = |rate: &f64| *rate > 0.0 && *rate <= MAX_RATE;
    text.parse().ok().filter(in_range).ok_or("write a number of requests per second, at most 100000000")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, String> {
        Options::try_parse_from(["keyward-bench"].iter().chain(arguments)).map_err(|error| error.to_string())
    }

    /// Runs options that must fail.
    fn failure(arguments: &[&str]) -> Failure {
        let mut output = Vec::new();
        let failure =
            parse(arguments).expect("the options are valid").run(&mut output).expect_err("a failure");
        assert!(output.is_empty(), "{arguments:?}");
        failure
    }

    #[test]
    fn command_definition_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn options_are_parsed_into_a_load() {
        let options = [
            "--connections",
            "16",
            "--depth",
            "4",
            "--threads",
            "2",
            "--pin",
            "0,1",
            "--rate",
            "2e4",
            "--duration",
            "50ms",
            "--warmup",
            "0s",
            "--busy-poll",
        ];
        let config = parse(&options).expect("valid options").load_config().expect("a valid load");
        assert_eq!((config.connections, config.depth, config.threads), (16, 4, 2));
        assert_eq!((config.pin, config.rate, config.busy_poll), (vec![0, 1], Some(20_000.0), true));
        assert_eq!((config.duration, config.warmup), (Duration::from_millis(50), Duration::ZERO));
    }

    #[test]
    fn invalid_options_are_refused() {
        for arguments in [
            &["--connections", "0"][..],
            &["--depth", "0"],
            &["--depth", "65537"],
            &["--duration", "0s"],
            &["--warmup", "soon"],
            &["--keys", "a", "--digests", "b"],
            &["--raw"],
            &["--hit-rate", "1.1"],
            &["--hit-rate", "NaN"],
            &["--rate", "0"],
            &["--rate", "inf"],
            &["--pin", "a"],
            &["--cost", "-1"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
        for (arguments, complaint) in [
            (&["--threads", "2"][..], "--threads 2: more than --connections 1"),
            (&["--hit-rate", "0.5"], "--hit-rate needs keys"),
            (&["--digests", "no/such"], "--digests: cannot open no/such"),
        ] {
            let Failure { exit, message } = failure(arguments);
            assert_eq!(exit, Exit::Usage, "{arguments:?}");
            assert!(message.contains(complaint), "{message}");
        }
    }

    #[test]
    fn unreachable_daemon_ends_the_load_with_exit_code_69() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("no.sock");
        let Failure { exit, message } = failure(&["--socket", socket.to_str().expect("UTF-8")]);
        assert_eq!(exit, Exit::Unavailable);
        assert!(message.contains("cannot connect to keyward at "), "{message}");
    }
}
