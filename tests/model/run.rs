//! One seed: a daemon and its reference take the same steps, and must agree after each.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use keyward_admin::message::{Command, Reply};
use keyward_admin::{CommandError, send_command_within};
use keyward_daemon::config::{Config, Overrides};
use keyward_daemon::server::simulation::Process;
use keyward_service::log::Log;
use keyward_state::disk::trace;
use keyward_state::simulation;
use keyward_state::simulation::Time;

use crate::client::Client;
use crate::counts::Counts;
use crate::disk::Disk;
use crate::keys::{Content, Source, TICKS, Universe};
use crate::ledger::Ledger;
use crate::random::Random;
use crate::reference::{Now, Reference};
use crate::wait::HANG;

mod files;
mod life;
mod requests;
mod revocations;
mod source;
mod time;

/// As in the configuration below.
const POLL: i64 = 1000 * SECOND;
const SAVE_INTERVAL: i64 = 60 * SECOND;

const SECOND: i64 = 1_000_000_000;

const CONFIGURATION: &str = "
[server]
huge_pages = true
drain_timeout = '5s'
idle_timeout = 'never'
[source]
poll = '1000s'
settle = '0s'
max_shrink = 0.5
max_reactivated = 1.0
max_loosened = 1.0
[state]
save_interval = '60s'
[usage]
interval = '30d'
";

/// What all seeds of a process share.
pub struct Fixture {
    root: PathBuf,
    config: Config,
    log: Log,
    /// The threads of the process without any daemon.
    threads: u64,
}

/// A daemon and its reference.
struct Run<'f> {
    fixture: &'f Fixture,
    universe: Universe,
    reference: Reference,
    ledger: Ledger,
    source: Source,
    /// Whether bad rows are set aside. Otherwise they refuse the source.
    sets_aside: bool,
    next_version: u64,
    disk: Arc<Disk>,
    process: Option<Process>,
    client: Option<Client>,
    time: Time,
    /// When the reload thread last polled, and when balances are saved next.
    polled_at: i64,
    save_due: i64,
    /// Whether anything was charged since the last save.
    is_charged: bool,
    /// Whether the current process has had a snapshot.
    has_loaded: bool,
    /// The calls that had failed before the current step, or the current start.
    failed_before: u64,
    random: Random,
    steps: Vec<String>,
    counts: &'f mut Counts,
}

/// A disagreement, and the steps that led to it.
pub struct Failure {
    pub problem: String,
    pub steps: Vec<String>,
    /// Whether the daemon took too long for something.
    pub is_hang: bool,
}

impl Fixture {
    pub fn new(root: &Path) -> Self {
        let path = |name: &str| Some(root.join(name));
        let overrides = Overrides {
            source: path("keys.csv"),
            socket: path("s"),
            admin_socket: path("a"),
            state_dir: path("state"),
        };
        let mut config = Config::parse(Path::new("model.toml"), CONFIGURATION, overrides).expect("valid");
        config.server.workers = 1;
        let log = Log::start(fs::File::create("/dev/null").expect("opens")).expect("a thread");
        Self { root: root.to_owned(), config, log, threads: threads() }
    }

    /// Runs the steps with the given seeds on the daemon that `seed` describes. Returns what they did.
    pub fn run(&self, seed: u64, steps: &[u64], counts: &mut Counts) -> Result<Vec<String>, Failure> {
        counts.seeds += 1;
        let started = Instant::now();
        for entry in fs::read_dir(&self.root).expect("lists").flatten() {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
        let mut random = Random::new(seed);
        let time = Time {
            boottime: (1 + random.below(1_000_000) as i64) * SECOND,
            realtime: (1_900_000_000 + random.below(1_000_000) as i64) * SECOND,
            boot_id: [1; 16],
        };
        simulation::install(time);
        let disk = Arc::new(Disk::new(&self.root.join("state"), random.number()));
        disk.shorten_writes(random.one_in(3));
        trace::intercept(Some(Arc::clone(&disk) as Arc<dyn trace::Interceptor>));
        let mut run = Run {
            fixture: self,
            universe: Universe::new(&mut random),
            reference: Reference::default(),
            ledger: Ledger::default(),
            source: Source { version: 0, content: Content::Missing },
            sets_aside: random.one_in(3),
            next_version: 1,
            disk,
            process: None,
            client: None,
            time,
            polled_at: 0,
            save_due: 0,
            is_charged: false,
            has_loaded: false,
            failed_before: 0,
            random,
            steps: Vec::new(),
            counts,
        };
        let result = run.all(steps);
        run.counts.failing_calls += run.disk.failed();
        let calls = run.disk.calls();
        let mut log = std::mem::take(&mut run.steps);
        let ended = run.abandon();
        match result.and(ended) {
            Ok(()) => Ok(log),
            Err(problem) => {
                let from = calls.len().saturating_sub(60);
                log.push(format!("the last calls on the disk: {}", calls[from..].join("; ")));
                // Any other run takes far less than the wait for something that hangs.
                Err(Failure { problem, steps: log, is_hang: started.elapsed() >= HANG })
            }
        }
    }
}

/// The number of threads of this process.
fn threads() -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self/task").expect("there").nlink() - 2
}

impl Run<'_> {
    fn all(&mut self, steps: &[u64]) -> Result<(), String> {
        self.write_rows(true);
        self.start()?;
        for step in steps {
            self.random = Random::new(*step);
            self.failed_before = self.disk.failed();
            self.step()?;
            if self.disk.is_crashed() {
                self.crash()?;
            }
            simulation::quiesce().map_err(|error| error.to_string())?;
        }
        self.note("the end");
        self.terminate()?;
        if self.disk.is_crashed() {
            self.crash()?;
            self.terminate()?;
        }
        Ok(())
    }

    /// Ends a daemon that is left after a failure.
    fn abandon(&mut self) -> Result<(), String> {
        self.client = None;
        self.disk.crash_now();
        self.kill()
    }

    fn note(&mut self, text: impl Into<String>) {
        self.steps.push(text.into());
    }

    /// Whether a call on the disk has failed in the current step, or since the start that is part of
    /// it.
    fn has_failed(&self) -> bool {
        self.disk.failed() > self.failed_before
    }

    fn now(&self) -> Now {
        Now { ticks: i128::from(self.time.boottime) * TICKS, unix: self.time.realtime.div_euclid(SECOND) }
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.below(100) {
            0..34 => self.requests(),
            34..44 => {
                self.write_source();
                Ok(())
            }
            44..54 => self.reload(false),
            54..58 => self.reload(true),
            58..67 => self.revoke(),
            67..72 => self.unrevoke(),
            72..82 => self.advance(),
            82..84 => {
                self.set_clock();
                Ok(())
            }
            84..87 => self.store(),
            87..89 => self.lose_connection(),
            89..90 => self.stalled_peer(),
            90..93 => {
                self.plan_failure();
                Ok(())
            }
            93..97 => {
                self.plan_crash();
                Ok(())
            }
            97..98 => {
                self.note("kill -9");
                self.disk.crash_now();
                Ok(())
            }
            _ => self.restart(),
        }
    }

    /// Sends a command. `None`: the daemon has crashed meanwhile, so the reply was not received.
    fn command(&mut self, command: Command) -> Result<Option<Result<Reply, String>>, String> {
        self.counts.commands += 1;
        let result = send_command_within(&self.fixture.root.join("a"), &command, HANG);
        if self.disk.is_crashed() {
            return Ok(None);
        }
        match result {
            Ok(reply) => Ok(Some(Ok(reply))),
            Err(CommandError::Refused(refused)) => Ok(Some(Err(refused))),
            Err(error @ CommandError::Timeout { .. }) => Err(format!("{command:?} HANGS: {error}")),
            Err(error) => Err(format!("{command:?}: {error}")),
        }
    }
}
